# SPDX-License-Identifier: Apache-2.0
"""The files of a Process: our ends of the command's pipes, and of its terminal."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import posix  # its close(): see _core/unpatched.py
import select
import struct
import termios
from collections.abc import Iterator
from typing import IO, Any

from .._core import unpatched
from .._runs.running import Running
from ..errors import SpecTypeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .process import Process


AT_MOST = 65536  # bytes of a read or write, as much as a pipe holds
_OF_TERMINAL = 65536  # more than one holds (drivers/tty/pty.c)

NO_STDIN = "stdin is not captured (start(..., stdin=CAPTURE) does that), or was closed"


def check_input(value: object) -> None:
    """SpecTypeError if the input of communicate() is text."""
    if isinstance(value, str):
        raise SpecTypeError("the input is a str, and has to be bytes: input.encode()")


def are_over(fds: list[int]) -> bool:
    """Whether there are outputs, and the command has closed all of them. -1: one that is closed."""
    poll = unpatched.poll()
    for fd in fds:
        if fd >= 0:
            poll.register(fd, 0)
    ended = sum(1 for fd in fds if fd < 0) + len(poll.poll(0))
    return 0 < len(fds) <= ended


class Pipe(io.FileIO):
    """Our end of a pipe, as a file. It keeps the run, which otherwise ends with its Process.

    What another thread, or a signal handler, closes meanwhile stays open until nobody holds it: the
    number could be that of another run's pipe by then.
    """

    run: Running | None = None

    def __init__(self, fd: int, mode: str) -> None:
        self._holders: set[object] = set()
        self._is_closing = False
        self._cut: list[bytes] | None = None
        super().__init__(fd, mode)

    @contextlib.contextmanager
    def held(self) -> Iterator[int]:
        """The descriptor, which stays open in this block. ValueError if the file is closed."""
        holder = object()
        try:
            self._holders.add(holder)
            self._check_open()
            yield self.fileno()
        finally:
            self._let_go(holder)

    @contextlib.contextmanager
    def cut_off(self) -> Iterator[list[bytes] | None]:
        """Cut off the buffer above the pipe: it finds the end of the file, and what it writes goes
        to the list. None: another thread reads or writes right now, and has the lock of the buffer.
        """
        written: list[bytes] = []
        self._cut = written  # first, so that none begins after we have looked
        try:
            yield None if self._holders else written
        finally:
            self._cut = None

    def close(self) -> None:
        self._is_closing = True
        if not self._holders:
            self.close_for_all()

    def close_for_all(self) -> None:
        """Close it, whoever holds it."""
        super().close()
        self.run = None

    def readinto(self, buffer: Any) -> Any:
        holder = object()
        try:
            self._holders.add(holder)
            if self._cut is not None:
                return 0
            self._check_open()
            return super().readinto(buffer)
        finally:
            self._let_go(holder)

    def readall(self) -> Any:
        holder = object()
        try:
            self._holders.add(holder)
            if self._cut is not None:
                return b""
            self._check_open()
            return super().readall()
        finally:
            self._let_go(holder)

    def write(self, data: Any) -> Any:
        holder = object()
        try:
            self._holders.add(holder)
            if (cut := self._cut) is not None:
                cut.append(bytes(data))
                return len(data)
            self._check_open()
            return super().write(data)
        finally:
            self._let_go(holder)

    def __del__(self) -> None:
        if self._is_closing and not self.closed:  # a signal handler raised in _let_go()
            self.close_for_all()
        super().__del__()

    def _check_open(self) -> None:
        if self._is_closing:
            raise ValueError("I/O operation on closed file")

    def _let_go(self, holder: object) -> None:
        self._holders.discard(holder)
        if self._is_closing and not self._holders:
            self.close_for_all()


class Terminal(Pipe):
    """Our end of a pty. The descriptor does not block, because the command may take back what it
    wrote (tcflush(3)) after poll(2) has told us of it: so reads and writes wait by poll(2).
    """

    read = io.RawIOBase.read  # type: ignore[assignment]
    readall = io.RawIOBase.readall

    def readinto(self, buffer: Any) -> Any:
        with self.held() as fd:
            while self._cut is None:
                try:
                    if (count := super().readinto(buffer)) is not None:
                        return count
                except OSError as error:
                    if error.errno == errno.EIO:  # nobody has the other end open (pty(7))
                        return 0
                    raise
                _await(fd, select.POLLIN)
        return 0

    def write(self, data: Any) -> Any:
        with self.held() as fd:
            while (count := super().write(data)) is None:
                _await(fd, select.POLLOUT)
        return count


def left_in(fd: int, is_terminal: bool) -> int:
    """How many bytes a pipe or terminal holds, at most."""
    if is_terminal:
        return _OF_TERMINAL
    count: int = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0]
    return count


def _await(fd: int, event: int) -> None:
    poll = unpatched.poll()
    poll.register(fd, event)
    poll.poll()


def make() -> tuple[int, io.BufferedWriter]:
    """A pipe for stdin: the command's end, and ours as a file."""
    reader, writer = os.pipe()
    try:
        reader, writer = _above(reader), _above(writer)
        return reader, io.BufferedWriter(Pipe(writer, "wb"))
    except BaseException:
        for fd in (reader, writer):
            posix.close(fd)
        raise


def _above(fd: int) -> int:
    """Move a descriptor to a number from 3 on. The caller may have closed its own 0, 1 and 2."""
    if fd > 2:
        return fd
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    posix.close(fd)
    return moved


def give(process: Process, run: Running, stdin: io.BufferedWriter | None, is_pty: bool) -> None:
    """Give a Process its files."""
    out, err = run.handle.take_outputs()
    if is_pty:
        process.stdin = _file(Terminal(os.dup(out), "wb"), run)
        process.stdout = io.BufferedReader(_file(Terminal(out, "rb"), run))
        out = -1
    if stdin is not None:
        _file(stdin.raw, run)
        process.stdin = stdin
    for name, fd in (("stdout", out), ("stderr", err)):
        if fd >= 0:
            os.set_blocking(fd, True)
            setattr(process, name, io.BufferedReader(_file(Pipe(fd, "rb"), run)))


def _file(pipe: Any, run: Running) -> Any:
    pipe.run = run
    return pipe


def raw_of(file: IO[bytes]) -> Any:
    """The Pipe below a file of a Process."""
    return file if isinstance(file, Pipe) else file.raw  # type: ignore[attr-defined]


def is_open(file: IO[bytes] | None) -> bool:
    """Whether a stream is captured, and its file neither closed nor detached."""
    try:
        return file is not None and not file.closed
    except ValueError:
        return False


def close(file: IO[bytes]) -> None:
    """Close a file. What the buffer of one for writing holds is written before; the command may
    have closed its end.
    """
    if isinstance(file, io.BufferedWriter) and is_open(file):
        # RuntimeError: we are a signal handler that interrupted a method of the buffer.
        with contextlib.suppress(BrokenPipeError, RuntimeError):
            file.flush()
    drop(file)


def drop(file: IO[bytes]) -> None:
    """Close a file, without what its buffer holds. Unlike file.close() it waits for no lock, which
    another thread may hold as long as it reads or writes.
    """
    if (raw := raw_of(file)) is not None:  # None: it is detached
        raw.close()


def abandon(file: IO[bytes]) -> None:
    """Close the descriptor of a file in a fork of the caller: whoever held it there is not here."""
    if (raw := raw_of(file)) is not None:
        raw.close_for_all()


def buffered(file: IO[bytes]) -> bytes:
    """Take what the buffer of a file holds: bytes that were read and not returned, or written and
    not sent. b"" if another thread reads or writes: then it is theirs.
    """
    if not is_open(file) or isinstance(file, Pipe):
        return b""
    # RuntimeError: we are a signal handler that interrupted a method of the buffer.
    with contextlib.suppress(RuntimeError), raw_of(file).cut_off() as written:
        if written is None:
            return b""
        if isinstance(file, io.BufferedReader):
            return file.read1()
        file.flush()
        return b"".join(written)
    return b""
