# SPDX-License-Identifier: Apache-2.0
"""The files of a Process: our ends of the command's pipes, and of its terminal."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
from _thread import get_ident
from collections.abc import Iterator
from typing import IO, Any

from .._runs.running import Running

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .process import Process


class Pipe(io.FileIO):
    """Our end of a pipe, as a file. It keeps the run, which otherwise ends with its Process.

    What another thread closes meanwhile stays open until nobody holds it: the number could be that
    of another run's pipe by then. (A method of the buffer above holds a lock for that.)

    In a thread that is in `with cut_off()`, the buffer above is cut off from the pipe: it finds
    nothing to read, and what it writes goes to a list.
    """

    run: Running | None = None

    def __init__(self, fd: int, mode: str) -> None:
        self._holders: list[int] = []
        self._is_closing = False
        self._cut: dict[int, list[bytes]] = {}  # by thread
        super().__init__(fd, mode)

    @contextlib.contextmanager
    def held(self) -> Iterator[int]:
        """The descriptor, which stays open in this block. ValueError if the file is closed."""
        self._holders.append(0)
        try:
            if self._is_closing:
                raise ValueError("I/O operation on closed file")
            yield self.fileno()
        finally:
            self._holders.pop()
            if self._is_closing and not self._holders:
                self._close()

    def close(self) -> None:
        self._is_closing = True
        if not self._holders:
            self._close()

    def _close(self) -> None:
        super().close()
        self.run = None

    @contextlib.contextmanager
    def cut_off(self) -> Iterator[list[bytes]]:
        """Cut off the buffer above it, in this thread. Yields the list of what it writes."""
        thread, written = get_ident(), []  # type: ignore[var-annotated]
        self._cut[thread] = written
        try:
            yield written
        finally:
            self._cut.pop(thread, None)

    @property
    def _is_cut(self) -> bool:
        return bool(self._cut) and get_ident() in self._cut

    def readinto(self, buffer: Any) -> Any:
        return None if self._is_cut else super().readinto(buffer)

    def write(self, data: Any) -> Any:
        if not self._is_cut:
            return super().write(data)
        self._cut[get_ident()].append(bytes(data))
        return len(data)


class Terminal(Pipe):
    """Our end of a pty. The descriptor does not block, because the command may take back what it
    wrote (tcflush(3)) after poll(2) has told us of it: so reads and writes wait by poll(2).
    """

    read = io.RawIOBase.read  # type: ignore[assignment]
    readall = io.RawIOBase.readall

    def readinto(self, buffer: Any) -> Any:
        with self.held() as fd:
            while not self._is_cut:
                try:
                    if (count := super().readinto(buffer)) is not None:
                        return count
                except OSError as error:
                    if error.errno == errno.EIO:  # nobody has the other end open (pty(7))
                        return 0
                    raise
                _await(fd, select.POLLIN)
        return None

    def write(self, data: Any) -> Any:
        with self.held() as fd:
            while (count := super().write(data)) is None:
                _await(fd, select.POLLOUT)
        return count


def _await(fd: int, event: int) -> None:
    poll = select.poll()
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
            os.close(fd)
        raise


def _above(fd: int) -> int:
    """Move a descriptor to a number from 3 on. The caller may have closed its own 0, 1 and 2."""
    if fd > 2:
        return fd
    from fcntl import F_DUPFD_CLOEXEC, fcntl

    moved = fcntl(fd, F_DUPFD_CLOEXEC, 3)
    os.close(fd)
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


def raw_of(file: IO[bytes]) -> Pipe:
    """The Pipe below a file of a Process."""
    return file if isinstance(file, Pipe) else file.raw  # type: ignore[attr-defined]


def is_open(file: IO[bytes] | None) -> bool:
    """Whether a stream is captured, and its file neither closed nor detached."""
    try:
        return file is not None and not file.closed
    except ValueError:
        return False


def close(file: IO[bytes]) -> None:
    """Close a file, after writing its buffer. The command may have closed its end."""
    try:
        file.close()
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
    except RuntimeError:  # we are a signal handler that interrupted a method of the buffer
        pass


def drop(file: IO[bytes]) -> None:
    """Close a file, without what its buffer holds: nobody may ever read that."""
    with contextlib.suppress(ValueError), raw_of(file).cut_off():  # ValueError: it is detached
        close(file)


def buffered(file: IO[bytes]) -> bytes:
    """Take what the buffer of a file holds: bytes that were read and not returned, or written and
    not sent. b"" for a file that is closed.
    """
    if not is_open(file) or isinstance(file, Pipe):
        return b""
    # RuntimeError: we are a signal handler that interrupted a method of the buffer.
    with contextlib.suppress(RuntimeError), raw_of(file).cut_off() as written:
        if isinstance(file, io.BufferedReader):
            return file.read1()
        file.flush()
        return b"".join(written)
    return b""
