# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, and what each kind of it means.

    SandboxError(Exception)                  everything that sandboxlib raises of its own
     |- SpecError(ValueError)                the request makes no sense; nothing was touched
     |   |- SpecTypeError(TypeError)         ... because a value has the wrong type
     |   `- SpecChoiceError(AssertionError)  ... because a value is none of those that there are
     |- UnsupportedError(AssertionError)     this executor cannot promise that; nothing was touched
     |   `- ProgramNotFound                  ... because its program is not installed
     |- ImageError(ValueError)               an image is broken or hostile; nothing of it is left
     |- SetupError(OSError, RuntimeError)    the kernel refused a step; everything was undone
     |   |- SetupNotFound(FileNotFoundError)
     |   |- SetupExists(FileExistsError)
     |   |- SetupDenied(PermissionError)
     |   `- SetupNotADirectory(NotADirectoryError)
     |- Unkillable                           the run was killed, and the kernel does not end it
     |- StatusLost(ChildProcessError)        the command ran, but nobody knows how it ended
     `- CommandFailed                        a map that stops at a failure met one; Result.check()

A command that fails is no error of ours otherwise: its exit status is in the Result.
"""

from __future__ import annotations

import errno as _errno
import os as _os


def _lasting(state: dict[str, object]) -> dict[str, object]:
    """The state of an error for pickle: without a Command that cannot be pickled."""
    passing = getattr(state.get("command"), "_passing", "")
    return {name: value for name, value in state.items() if name != "command" or not passing}


def printable(text: str, kept: str = "") -> str:
    """A text with nothing that a terminal would obey: what it does not print is escaped.

    Names of files, and what commands write, may move the cursor, or turn the text around. `kept`:
    characters that stay, as in "\\n\\t".
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in kept else ascii(each)[1:-1] for each in text
    )


class SandboxError(Exception):
    """The base of every error that sandboxlib raises of its own.

    number: int, from a map: which of its commands it was. command: the Command, or what the map
    was given where that is none; a copy by pickle lacks one that cannot be pickled.
    """

    number = -1
    command: object = None

    def __reduce__(self) -> tuple[object, ...]:
        made = super().__reduce__()
        return (made[0], made[1], _lasting(self.__dict__))


class SpecError(SandboxError, ValueError):
    """A request that makes no sense. Nothing was touched."""


class SpecTypeError(SpecError, TypeError):
    """A request with a value of the wrong type. Nothing was touched."""


class SpecChoiceError(SpecError, AssertionError):
    """A request with a value that is none of the choices, for which earlier versions raised
    AssertionError. Nothing was touched.
    """


class UnsupportedError(SandboxError, AssertionError):
    """The executor cannot promise what was asked. Nothing was touched."""


class ProgramNotFound(UnsupportedError):
    """The program that an executor drives is not installed."""


class ImageError(SandboxError, ValueError):
    """An image that cannot be used, or must not be: broken, too large, or hostile.

    Nothing of it is left.
    """


class SetupError(SandboxError, OSError, RuntimeError):
    """The kernel refused a step on the way to the command, which was not run.

    It is a RuntimeError as well, because earlier versions raised those for a bad root or cwd.

    errno, strerror, filename: as in every OSError; filename may be None.
    step: the name of the step, as in csrc/sandbox.h without its prefix ("mount", "cwd", "exec"), or
    "unpack" of an image.
    what: what the step was about, for people ("mount 3: bind /src on /build/src").
    hint: the likely remedy, or "".
    """

    def __init__(
        self, errno: int, filename: str | None, step: str, what: str, hint: str = ""
    ) -> None:
        super().__init__(errno, _os.strerror(errno), filename)
        self.step = step
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        name = _errno.errorcode.get(self.errno or 0, "?")
        text = f"{self.what}: {self.strerror} ({name}, step {self.step})"
        return f"{text}; {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[object, ...]:
        words = (self.errno, self.filename, self.step, self.what, self.hint)
        return (type(self), words, _lasting(self.__dict__))


class SetupNotFound(SetupError, FileNotFoundError):
    """ENOENT: the root, the cwd, a mount's source or the program is not there."""


class SetupExists(SetupError, FileExistsError):
    """EEXIST: the directory that an image was to be unpacked to is there already."""


class SetupDenied(SetupError, PermissionError):
    """EPERM or EACCES."""


class SetupNotADirectory(SetupError, NotADirectoryError):
    """ENOTDIR: the root, the cwd or a mount point is something else."""


_CLASSES = {
    _errno.ENOENT: SetupNotFound,
    _errno.EEXIST: SetupExists,
    _errno.EPERM: SetupDenied,
    _errno.EACCES: SetupDenied,
    _errno.ENOTDIR: SetupNotADirectory,
}


def setup_error(
    errno: int, filename: str | None, step: str, what: str, hint: str = ""
) -> SetupError:
    """The SetupError for an errno, of the class that `except FileNotFoundError` expects."""
    return _CLASSES.get(errno, SetupError)(errno, filename, step, what, hint)


class Unkillable(SandboxError):
    """The run was killed, and a process of it did not end in time: it waits in the kernel for
    something that does not come, as a file system whose server does not answer.

    All that the call held is closed; a later call reaps the process once it ends.

    pid: int, of that process, as the caller sees it.
    waits_in: str, the function of the kernel that it waits in (/proc/PID/wchan), "" if that cannot
        be read.
    """

    def __init__(self, pid: int, waits_in: str) -> None:
        super().__init__(pid, waits_in)
        self.pid = pid
        self.waits_in = waits_in

    def __str__(self) -> str:
        where = f" in {self.waits_in}" if self.waits_in else ""
        text = f"process {self.pid} was killed and does not end: it waits{where} in the kernel"
        return (
            f"{text}; it ends when that answers, or is taken away (a FUSE, a network file system)"
        )


class StatusLost(SandboxError, ChildProcessError):
    """The command ended, but how is not known.

    Either the caller's process waits for any child, or ignores SIGCHLD; the run had no reaper
    (processes='undefined' or init=False), and the kernel is older than 6.15. Or the kernel does not
    let us wait for the command (a seccomp filter of the host that forbids wait4): then the run was
    ended. Or somebody outside broke the slot that the command ran in.
    """


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """A warning that names the line which called this package."""
    import sys
    import warnings

    ours = _os.path.join(_os.path.dirname(__file__), "")
    level = 1
    while sys._getframe(level).f_code.co_filename.startswith(ours):
        level += 1
    warnings.warn(text, category, stacklevel=level + 1)
