# SPDX-License-Identifier: Apache-2.0
"""The gate: bwrap waits at the seccomp program, a pipe, when all its mounts are done."""

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

#: A seccomp program that allows everything: load a word, return SECCOMP_RET_ALLOW.
ALLOW_ALL = struct.pack("=HBBIHBBI", 0x20, 0, 0, 0, 0x06, 0, 0, 0x7FFF0000)


# ---- the gate --------------------------------------------------------------------------------


class Gate:
    """The seccomp program as a pipe: what bwrap waits for when all its mounts are done.

    The first instruction is in the pipe from the start. When it is gone bwrap has come to it.
    """

    def __init__(self, program: bytes = ALLOW_ALL) -> None:
        self.is_open = False
        self.said = b""  # by bwrap: JSON
        self._program = program
        self._fds: list[int] = []
        self._pause = 0.0002
        try:
            self._fds += os.pipe()
            self._fds += os.pipe()
        except OSError as error:
            self.close()
            number = error.errno or 0
            hint = explain.hint("pipe", 0, number)
            raise errors.setup_error(
                number, None, "pipe", "make the pipes of the run", hint
            ) from None
        self._end, self._writer, self._reader, self._status = self._fds
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        os.write(self._writer, program[:8])

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def options(self, number: Callable[[int], str] = str) -> list[str]:
        """number: what becomes of a descriptor of ours in bwrap."""
        return ["--json-status-fd", number(self._status), "--seccomp", number(self._end)]

    def descriptors(self) -> tuple[int, int]:
        """Those that bwrap has to inherit."""
        return self._status, self._end

    def started(self) -> None:
        """bwrap has its descriptors: closes ours, so that its end is seen."""
        self._close(self._status)
        self._close(self._end)

    def is_reached(self) -> bool:
        waiting = bytearray(4)
        fcntl.ioctl(self._writer, termios.FIONREAD, waiting)
        return not any(waiting) and self.pid() is not None

    def is_over(self) -> bool:
        """Whether bwrap has ended, and said all."""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._reader, 4096):
                self.said += part
            return True
        return False

    def pid(self) -> int | None:
        """Of the process in the new namespaces, as soon as it is known."""
        self.is_over()
        found = re.search(rb'"child-pid": *([0-9]+)', self.said)
        return int(found[1]) if found else None

    def pause(self, most: float = 0.002) -> None:
        """Until something is said, or it is time to look again."""
        self._pause = min(self._pause * 1.5, most)
        select.select([self._reader], [], [], self._pause)

    def open(self) -> None:
        """Lets the command start. BrokenPipeError where bwrap has ended, or does not read."""
        rest = self._program[8:]
        for _ in range(100):
            with contextlib.suppress(BlockingIOError):  # some pipes hold a page only (pipe(7))
                rest = rest[os.write(self._writer, rest) :]
            if not rest:
                break
            select.select([], [self._writer], [], 0.1)
        else:
            raise BrokenPipeError(errno.EPIPE, "bwrap does not read its filter")
        self.is_open = True
        self._close(self._writer)

    def has_exit_status(self) -> bool:
        """Whether bwrap told the exit status of a command, which therefore was there."""
        self.is_over()
        return b'"exit-code"' in self.said

    def close(self) -> None:
        for fd in list(self._fds):
            self._close(fd)

    def _close(self, fd: int) -> None:
        if fd in self._fds:
            self._fds.remove(fd)
            os.close(fd)
