# SPDX-License-Identifier: Apache-2.0
"""Gate: a pipe that holds bwrap after its last mount, until we let the command start."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import select
import struct
import termios
from collections.abc import Callable

from .. import errors
from .._runs import explain

_LONGEST_END = 2.0  # seconds that the kernel has to end what was killed
#: A seccomp program (seccomp(2)) that allows everything: load 32 bits, return SECCOMP_RET_ALLOW.
ALLOW_ALL = struct.pack("=HBBIHBBI", 0x20, 0, 0, 0, 0x06, 0, 0, 0x7FFF0000)


# ---- the gate --------------------------------------------------------------------------------


class Gate:
    """A pipe from which bwrap reads its seccomp program, after its last mount.

    At first the pipe holds only the first instruction. Once that is gone, bwrap has made its mounts
    and waits for the rest, until open() writes it.
    """

    def __init__(self, program: bytes = ALLOW_ALL) -> None:
        self.is_open = False
        self.status = b""  # the JSON that bwrap wrote to its --json-status-fd
        self._program = program
        self._fds: list[int] = []
        self._pause = 0.0002
        self._child = -1  # a pidfd of the process in the new namespaces
        try:
            self._fds += os.pipe()
            self._fds += os.pipe()
            os.set_blocking(self._fds[2], False)
            os.set_blocking(self._fds[1], False)
        except OSError as error:
            self.close()
            number = error.errno or 0
            hint = explain.hint("pipe", 0, number)
            raise errors.setup_error(
                number, None, "pipe", "make the pipes of the run", hint
            ) from None
        self._program_end, self._writer, self._reader, self._status_end = self._fds
        os.write(self._writer, program[:8])

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def options(self, number: Callable[[int], str] = str) -> list[str]:
        """The options for bwrap. number: gives the number in bwrap of a descriptor of ours."""
        status, program = number(self._status_end), number(self._program_end)
        return ["--json-status-fd", status, "--seccomp", program]

    def descriptors(self) -> tuple[int, int]:
        """The descriptors that bwrap has to inherit."""
        return self._status_end, self._program_end

    def started(self) -> None:
        """Closes our copies, once bwrap has its own: a read then sees the end of bwrap."""
        self._close(self._status_end)
        self._close(self._program_end)

    def is_reached(self) -> bool:
        """Whether bwrap has made its mounts, and waits for the rest of the program."""
        waiting = bytearray(4)
        fcntl.ioctl(self._writer, termios.FIONREAD, waiting)
        return not any(waiting) and self.pid() is not None

    def is_over(self) -> bool:
        """Whether bwrap has closed its status, as it does at its end."""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._reader, 4096):
                self.status += part
            return True
        return False

    def pid(self) -> int | None:
        """The pid of the process in the new namespaces; None until bwrap has told it."""
        self.is_over()
        match = re.search(rb'"child-pid": *([0-9]+)', self.status)
        if match and self._child < 0:
            with contextlib.suppress(ProcessLookupError):
                self._child = os.pidfd_open(int(match[1]))
        return int(match[1]) if match else None

    def pause(self, most: float = 0.002) -> None:
        """Waits until bwrap writes to its status, or it is time to look at the pipe again."""
        self._pause = min(self._pause * 1.5, most)
        select.select([self._reader], [], [], self._pause)

    def open(self) -> None:
        """Lets the command start. BrokenPipeError if bwrap has ended, or does not read."""
        rest = self._program[8:]
        for _ in range(100):
            with contextlib.suppress(
                BlockingIOError
            ):  # some pipes have room for one page only (pipe(7))
                rest = rest[os.write(self._writer, rest) :]
            if not rest:
                break
            select.select([], [self._writer], [], 0.1)
        else:
            raise BrokenPipeError(errno.EPIPE, "bwrap does not read its filter")
        self.is_open = True
        self._close(self._writer)

    def has_exit_status(self) -> bool:
        """Whether bwrap told the exit status of a command, which proves that the command began."""
        self.is_over()
        return b'"exit-code"' in self.status

    def close(self) -> None:
        """Closes the descriptors. If we are a subreaper (prctl(2)), the process in the namespaces
        is our child once bwrap has ended, and is reaped.
        """
        child, self._child = self._child, -1
        try:
            if child >= 0 and select.select([child], [], [], _LONGEST_END)[0]:
                with contextlib.suppress(ChildProcessError):
                    os.waitid(os.P_PIDFD, child, os.WEXITED | os.WNOHANG)
        finally:
            for fd in (*self._fds, *([child] if child >= 0 else ())):
                os.close(fd)
            self._fds.clear()

    def _close(self, fd: int) -> None:
        if fd in self._fds:
            self._fds.remove(fd)
            os.close(fd)
