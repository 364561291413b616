# SPDX-License-Identifier: Apache-2.0
"""The installed bwrap: finds it, tries its abilities, and reads its messages."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
from collections.abc import Sequence
from time import monotonic

from .. import errors
from .._core import native
from .._host import machine, tools
from ..errors import UnsupportedError
from .bwrap_gate import Gate
from .bwrap_look import table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from subprocess import Popen

PROGRAM = "bwrap"
#: The most arguments that bwrap takes (MAX_ARGS in bubblewrap.c), the command's and its own.
MOST_ARGUMENTS = 9000
_LONGEST_TRY = 30.0  # seconds
_NEEDED = "--args --as-pid-1 --json-status-fd --perms --seccomp --setenv --size".split()


# ---- the program -----------------------------------------------------------------------------


class Tool:
    """A bwrap that was tried. is_staged: bool, whether it needs a stage (see bwrap_mounts.py)."""

    def __init__(self, path: str, options: frozenset[str], is_staged: bool) -> None:
        self.path = path
        self.binds_descriptors = "--bind-fd" in options
        self.takes_overlays = self.binds_descriptors and "--tmp-overlay" in options
        self.is_staged = is_staged


_known: dict[tuple[object, ...], Tool] = {}


def find_tool(deadline: float | None = None) -> Tool:
    """The bwrap in the caller's PATH. ProgramNotFound, UnsupportedError, SetupError."""
    path = tools.trusted_tool(PROGRAM)
    if path is None:
        raise errors.ProgramNotFound(f"there is no {PROGRAM} in PATH; install bubblewrap")
    status = os.stat(path)
    key = (path, status.st_dev, status.st_ino, status.st_ctime_ns, os.geteuid())
    if key not in _known:
        options = _options(path, deadline)
        missing = [name for name in _NEEDED if name not in options]
        if missing:
            raise UnsupportedError(f"{path} has no {', '.join(missing)}; install bubblewrap 0.8")
        _known[key] = Tool(path, options, _takes_stage(path, deadline))
    return _known[key]


def _options(path: str, deadline: float | None) -> frozenset[str]:
    """The options that `bwrap --help` lists."""
    from subprocess import DEVNULL, TimeoutExpired, run

    argv, wait = [path, "--help"], _time_left(deadline)
    try:
        done = run(
            argv, stdin=DEVNULL, capture_output=True, cwd="/", env={}, timeout=wait, check=False
        )
    except (OSError, TimeoutExpired) as error:
        number = getattr(error, "errno", None) or errno.ETIMEDOUT
        raise errors.setup_error(number, path, "bwrap", f"try {path}") from error
    return frozenset(re.findall(r"--[a-z0-9-]+", os.fsdecode(done.stdout + done.stderr)))


def _time_left(deadline: float | None) -> float:
    left = _LONGEST_TRY if deadline is None else deadline - monotonic()
    return max(0.1, min(_LONGEST_TRY, left))


def _takes_stage(path: str, deadline: float | None) -> bool:
    """Whether `..` in a target leads out of the new root: then a stage is needed, and possible.

    If not, bwrap must resolve targets inside the new root, symbolic links too: we try that as well.
    UnsupportedError if neither holds, SetupError if bwrap does not work at all.
    """
    points = _points_of(path, ["--tmpfs", "/../sandboxlib"], deadline)
    if "/sandboxlib" not in points:
        return True
    link = ["--dir", "/there", "--symlink", "/there", "/link", "--tmpfs", "/link/in"]
    if "/there/in" in _points_of(path, link, deadline):
        return False
    raise UnsupportedError(f"{path} follows links in targets out of the root; install another")


def _points_of(path: str, options: list[str], deadline: float | None) -> set[str]:
    """The mount points after bwrap has done these options; its root is an empty tmpfs."""
    from subprocess import TimeoutExpired

    stderr = os.memfd_create("stderr", os.MFD_CLOEXEC)
    try:
        with Gate() as gate:
            argv = [path, *gate.options(), *options, "--", "/none"]
            process = _start(argv, gate, stderr)
            try:
                gate.started()
                give_up = monotonic() + _time_left(deadline)
                while not (reached := gate.is_reached()) and not gate.is_over():
                    if monotonic() >= give_up:
                        break
                    gate.pause()
                if reached:
                    return {mounted.point for mounted in table(gate.pid() or 0)}
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)  # its child at the gate too
                with contextlib.suppress(TimeoutExpired):  # the kernel may hold it for longer
                    process.wait(5)
        text = os.fsdecode(os.pread(stderr, 4096, 0)).strip()
    finally:
        os.close(stderr)
    raise (
        failed(text) if text else errors.setup_error(errno.ETIMEDOUT, path, "bwrap", f"try {path}")
    )


def _start(argv: list[str], gate: Gate, stderr: int) -> Popen[bytes]:
    from subprocess import DEVNULL, Popen

    try:
        return Popen(
            argv,
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=stderr,
            cwd="/",
            env={},
            pass_fds=gate.descriptors(),
            start_new_session=True,
        )
    except OSError as error:
        number, path = error.errno or 0, argv[0]
        hint = machine.closed_by_a_filter("session", number)
        raise errors.setup_error(number, path, "bwrap", f"try {path}", hint) from error


def failed(text: str) -> errors.SetupError:
    """The error for the last message of bwrap."""
    number = next(
        (n for n, name in errno.errorcode.items() if text.endswith((os.strerror(n), f"({name})"))),
        errno.EIO,
    )
    hint = "; ".join(f"{c}: {r}" for c, r in machine.user_namespace_causes())
    return errors.setup_error(number, None, "bwrap", text, hint)


class Descriptors:
    """The descriptors that bwrap inherits. They get the lowest numbers, as bwrap
    too runs under Limits.open_files.
    """

    def __init__(self, passed: Sequence[int], reserved: int) -> None:
        """passed: the pass_fds of the command, which keep their numbers. reserved: how many will be
        taken last; has_room() leaves them free.
        """
        self._passed, self._reserved = passed, reserved
        self.moved: dict[int, int] = {}

    def has_room(self, more: int = 1) -> bool:
        used = len(self._passed) + len(self.moved) + self._reserved
        return bool(used + more <= native.lib.SBX_MOST_PASSED)

    def take(self, fd: int) -> str:
        """Chooses the number that a descriptor of ours has in bwrap."""
        number = 3
        while number in self._passed or number in self.moved:
            number += 1
        self.moved[number] = fd
        return str(number)
