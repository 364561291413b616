# SPDX-License-Identifier: Apache-2.0
"""Exchange does what Process.communicate() has to do, in as many calls as it takes."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
from time import monotonic
from typing import IO

from . import pipes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .process import Process

_PAGE = 4096  # bytes for which poll(2) promises room (pipe(7))
_LOOK_UP = 0.1  # seconds; see _runs.run.LONGEST_WAIT


class Exchange:
    """The input of a Process that is still to be written, and the outputs so far.

    input: bytes for stdin, or None. ValueError if it cannot be written.
    """

    def __init__(self, process: Process, input: bytes | None) -> None:
        self._process = process
        if input and not pipes.is_open(process.stdin):
            raise ValueError(pipes.NO_STDIN)
        written = b"" if process.stdin is None else pipes.buffered(process.stdin)
        self._input = memoryview(written + (input or b""))
        files = (process.stdout, process.stderr)
        self._chunks: list[list[bytes] | None] = [None if file is None else [] for file in files]

    def outputs(self) -> tuple[bytes | None, bytes | None]:
        """The bytes of stdout and stderr so far; None: it is not captured."""
        out, err = (None if chunks is None else b"".join(chunks) for chunks in self._chunks)
        return out, err

    def go_on(self, timeout: float | None) -> None:
        """Write, read, and wait for the end of the run. Raises TimeoutExpired, and as wait()."""
        end = None if timeout is None else monotonic() + timeout
        self._take_buffers()
        if not self._input:
            self._close_stdin()
        try:
            self._move(end)
            self._process.wait(None if end is None else max(0.0, end - monotonic()))
        except Exception as error:
            from subprocess import TimeoutExpired

            if not isinstance(error, (TimeoutExpired, TimeoutError)):
                raise
            out, err = self.outputs()
            raise TimeoutExpired(self._process.args, timeout or 0.0, out, err) from None

    def _take_buffers(self) -> None:
        """Take what the caller's own calls left in the buffers of the files."""
        stdin = self._process.stdin
        if stdin is not None and (data := pipes.buffered(stdin)):
            self._input = memoryview(bytes(self._input) + data)
        for file, chunks in self._open_outputs():
            chunks.append(pipes.buffered(file))

    # ---- one call ----------------------------------------------------------------------------

    def _move(self, end: float | None) -> None:
        """Move bytes until all streams are at their end, or the run is over. TimeoutError."""
        run, stdin = self._process._run, self._process.stdin
        with contextlib.ExitStack() as stack:
            selector = stack.enter_context(_selector())
            with contextlib.suppress(ProcessLookupError):  # the run is over
                pidfd = run.handle.pidfd()
                stack.callback(os.close, pidfd)
                selector.register(pidfd, selectors.EVENT_READ)
            streams: dict[object, list[bytes] | None] = dict(self._open_outputs())
            if self._input and stdin is not None:
                streams[stdin] = None
            for file, chunks in streams.items():
                event = selectors.EVENT_WRITE if chunks is None else selectors.EVENT_READ
                with contextlib.suppress(ValueError):  # another thread closed it just now
                    selector.register(file, event, file)  # type: ignore[arg-type]
            while streams and not run.wait(0):
                left = None if end is None else end - monotonic()
                if left is not None and left < 0:
                    raise TimeoutError
                for key, _ in selector.select(_LOOK_UP if left is None else min(left, _LOOK_UP)):
                    file = key.data  # None: the pidfd
                    if file in streams and not self._move_some(file, streams[file]):
                        selector.unregister(key.fd)
                        del streams[file]
        if run.handle.is_over:
            self._close_stdin()
            for file, chunks in self._open_outputs():
                self._read_rest(file, chunks)

    # ValueError of held(): another thread closed the file, which is its end.

    def _open_outputs(self) -> list[tuple[IO[bytes], list[bytes]]]:
        files = (self._process.stdout, self._process.stderr)
        return [
            (file, chunks)
            for file, chunks in zip(files, self._chunks, strict=True)
            if file is not None and chunks is not None and pipes.is_open(file)
        ]

    def _move_some(self, file: IO[bytes], chunks: list[bytes] | None) -> bool:
        """Read or write once. False, and the file is closed, if that was all."""
        with contextlib.suppress(ValueError), pipes.raw_of(file).held() as fd:
            if chunks is None:
                self._input = self._input[_write(fd, self._input) :]
                if self._input:
                    return True
            elif (data := _read(fd)) != b"":
                chunks.append(data or b"")
                return True
        pipes.drop(file)
        return False

    def _read_rest(self, file: IO[bytes], chunks: list[bytes]) -> None:
        """Read what a pipe holds now, and no more: another process may write on for ever."""
        with contextlib.suppress(ValueError), pipes.raw_of(file).held() as fd:
            left = pipes.left_in(fd, isinstance(pipes.raw_of(file), pipes.Terminal))
            while left > 0 and (data := _read(fd, left)):
                chunks.append(data)
                left -= len(data)
        pipes.drop(file)

    def _close_stdin(self) -> None:
        self._input = memoryview(b"")
        if self._process.stdin is not None:
            pipes.drop(self._process.stdin)


def _selector() -> selectors.BaseSelector:
    if hasattr(selectors, "PollSelector"):
        return selectors.PollSelector()
    return selectors.SelectSelector()  # eventlet takes the other one away


# Reads and writes that poll(2) promised, and that do not block even if the command takes the bytes
# or the room back, as it can by its own end of the pipe. Before Linux 6.4 a pipe does not know
# RWF_NOWAIT; then they are those of Popen, which such a command can block. (A terminal does not
# know it either, but its descriptor does not block.)


def _read(fd: int, most: int = pipes.AT_MOST) -> bytes | None:
    """b"" at the end; None: there is nothing now."""
    try:
        buffer = bytearray(min(most, pipes.AT_MOST))
        count = os.preadv(fd, [buffer], -1, os.RWF_NOWAIT)
        return bytes(memoryview(buffer)[:count])
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ESPIPE):
            return _at_end(error)
    try:
        return os.read(fd, most)
    except BlockingIOError:
        return None
    except OSError as error:
        return _at_end(error)


def _at_end(error: OSError) -> bytes:
    if error.errno == errno.EIO:  # a terminal of which nobody has the other end open
        return b""
    raise error


def _write(fd: int, data: memoryview) -> int:
    """How many bytes were written; all of them if nobody reads any more."""
    try:
        try:
            return os.pwritev(fd, [data[: pipes.AT_MOST]], -1, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ESPIPE):
                raise
            return os.write(fd, data[:_PAGE])
    except BlockingIOError:
        return 0
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        return len(data)
