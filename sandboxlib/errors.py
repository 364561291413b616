# SPDX-License-Identifier: Apache-2.0
"""The exceptions, as one tree.

    SandboxError(Exception)                  the base of all exceptions of sandboxlib
     |- SpecError(ValueError)                the request makes no sense; nothing was touched
     |   |- SpecTypeError(TypeError)         ... because a value has the wrong type
     |   `- SpecChoiceError(AssertionError)  ... because a value is not among the choices
     |- UnsupportedError(AssertionError)     this executor cannot promise that; nothing was touched
     |   `- ProgramNotFound                  ... because its program is not installed
     |- ImageError(ValueError)               an image is broken or hostile; it was removed again
     |- SetupError(OSError, RuntimeError)    the kernel refused a step; everything was undone
     |   |- SetupNotFound(FileNotFoundError)
     |   |- SetupExists(FileExistsError)
     |   |- SetupDenied(PermissionError)
     |   `- SetupNotADirectory(NotADirectoryError)
     |- Unkillable                           the run was killed, and the kernel does not end it
     |- SessionOver                          the session of a command is over
     |- StatusLost(ChildProcessError)        the command ran, but its exit status cannot be known
     |- CallerError(OSError)                 in a map: the caller's side of a run failed
     |- RemoteError                          a call to a server of remote execution failed
     `- CommandFailed                        Result.check(), or a map with on_failure='stop'

Only CommandFailed is about the command itself. Otherwise a command that fails raises nothing: the
Result has its exit status.
"""

from __future__ import annotations

import errno as _errno
import os as _os


def _lasting(state: dict[str, object]) -> dict[str, object]:
    """The state of an error for pickle: without a Command that cannot be pickled."""
    passing = getattr(state.get("command"), "_passing", "")
    return {name: value for name, value in state.items() if name != "command" or not passing}


def printable(text: str, unescaped: str = "") -> str:
    """Escapes the characters that a terminal does not print but obeys.

    Names of files, and outputs of commands, could otherwise move the cursor, or turn the text
    around. unescaped: such characters that stay as they are, as in "\\n\\t".
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in unescaped else ascii(each)[1:-1] for each in text
    )


class SandboxError(Exception):
    """The base of all exceptions of sandboxlib.

    number: int, in an error from a map: the index of the command, from 0 on; otherwise -1.
    command: in an error from a map: the Command, or the item of the iterable if it is not a
        command; otherwise None. A pickled copy lacks a Command that cannot be pickled.
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
    """A request with a value that is not among the choices. Nothing was touched. It is an
    AssertionError as well, because earlier versions raised that.
    """


class UnsupportedError(SandboxError, AssertionError):
    """The executor cannot keep a promise that the request asks for. Nothing was touched."""


class ProgramNotFound(UnsupportedError):
    """The program that an executor drives is not installed."""


class ImageError(SandboxError, ValueError):
    """An image is broken, too large, or hostile. All that was unpacked of it is removed."""


class SetupError(SandboxError, OSError, RuntimeError):
    """The kernel refused a step before the command; the command was not run.

    It is a RuntimeError as well, because earlier versions raised that for a bad root or cwd.

    errno, strerror, filename: as in every OSError; filename may be None.
    step: str, the name of the step, as in csrc/sandbox.h without its prefix ("mount", "cwd",
        "exec"), or "unpack" for an image.
    what: str, for people: the action of the step ("mount 3: bind /src on /build/src").
    hint: str, the likely remedy, or "".
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
        args = (self.errno, self.filename, self.step, self.what, self.hint)
        return (type(self), args, _lasting(self.__dict__))


class SetupNotFound(SetupError, FileNotFoundError):
    """ENOENT: the root, the cwd, the source of a mount, or the program does not exist."""


class SetupExists(SetupError, FileExistsError):
    """EEXIST: the directory into which an image should be unpacked exists already."""


class SetupDenied(SetupError, PermissionError):
    """EPERM or EACCES: the caller lacks the permission for a step."""


class SetupNotADirectory(SetupError, NotADirectoryError):
    """ENOTDIR: the root, the cwd or a mount point is not a directory."""


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
    """Makes a SetupError of the class for an errno: `except FileNotFoundError` catches ENOENT."""
    return _CLASSES.get(errno, SetupError)(errno, filename, step, what, hint)


class Unkillable(SandboxError):
    """The run was killed, and one of its processes did not end in time: it waits in the kernel, for
    example for a file system whose server does not answer.

    The call has closed its descriptors; a later call reaps the process once it ends.

    pid: int, the process, as the caller sees it.
    waits_in: str, the kernel function in which it waits (/proc/PID/wchan, see proc(5)); "" if that
        cannot be read.
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


class SessionOver(SandboxError):
    """A session is over: it was closed, or something ended it. Raised for a command that should
    start there, or that was killed with it.

    why: str, for people.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"the session is over: {self.why}"


class StatusLost(SandboxError, ChildProcessError):
    """The command ended, but its exit status cannot be known. There are three causes:

    - The caller's process waits for any child, or ignores SIGCHLD, and so took the status itself;
      the run had no reaper (processes='undefined' or init=False), and the kernel is older than
      6.15.
    - The kernel does not let us wait for the command, because a seccomp filter of the host forbids
      wait4(2). We have killed the run.
    - A process outside of the sandbox broke the slot in which the command ran.
    """


class CallerError(SandboxError, OSError):
    """The caller's side of one run failed with an OSError, and the run was ended. Only a map with
    on_failure='continue' makes one, in place of an OSError of a function or a file that takes an
    output, or of this process, as for too many open files. Every other call raises that OSError
    itself.

    errno, strerror, filename: as in every OSError. __cause__: the OSError that it stands for.
    """


class RemoteError(SandboxError):
    """A call to a server of the Remote Execution API failed, or its answer cannot be true.

    server: str, the URL of the server.
    call: str, the method, as "FindMissingBlobs".
    code: str, the name of gRPC for the code, as "UNAVAILABLE". What the server sends and does not
        match its digest is "DATA_LOSS".
    details: str, the server's own words, or ours where we refuse its answer; at most 2,000
        characters.
    digests: tuple of str, "HASH/SIZE": the blobs that the error is about; () if it is about none.
    """

    def __init__(
        self, server: str, call: str, code: str, details: str, digests: tuple[str, ...] = ()
    ) -> None:
        super().__init__(server, call, code, details, digests)
        self.server = server
        self.call = call
        self.code = code
        self.details = details[:2000]
        self.digests = digests

    def __str__(self) -> str:
        text = f"{self.server}: {self.call}: {self.code}"
        if self.details:
            text += f": {printable(self.details)}"
        hint = _REMEDIES.get(self.code, "")
        return f"{text}; {hint}" if hint else text


_REMEDIES = {
    "UNAVAILABLE": "is the server up, and the URL right (grpc:// has no TLS, grpcs:// has)?",
    "UNAUTHENTICATED": "the server wants another token: Server(..., token=PATH)",
    "PERMISSION_DENIED": "the server does not allow that to this token: Server(..., token=PATH)",
    "UNIMPLEMENTED": "the server at this URL does not offer that call",
}


def caller_error(error: OSError) -> CallerError:
    """The CallerError that stands for an OSError, whose frames are let go."""
    is_plain = error.errno is None
    args = error.args if is_plain else (error.errno, error.strerror, error.filename)
    made = CallerError(*args)
    made.__cause__ = error.with_traceback(None)
    return made


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Issues a warning that names the line which called this package."""
    import sys
    import warnings

    ours = _os.path.join(_os.path.dirname(__file__), "")
    level = 1
    while sys._getframe(level).f_code.co_filename.startswith(ours):
        level += 1
    warnings.warn(text, category, stacklevel=level + 1)
