# SPDX-License-Identifier: Apache-2.0
"""The files of a Process as streams of an event loop: those of asyncio, or those of trio."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import posix  # its close(): see _core/unpatched.py
import select
import sys
from collections.abc import Callable, Coroutine
from typing import IO, Any

from .._core import unpatched
from . import pipes
from .process import Process
from .terminal_writer import TerminalWriter

Wait = Callable[[], Coroutine[Any, Any, int]]


def make(process: Process, in_trio: bool, limit: int) -> _Streams:
    """Takes the files of a Process, whose streams connect() makes.

    limit: int, the longest line that a StreamReader of asyncio takes, in bytes.
    """
    return _Trio(process) if in_trio else _Asyncio(process, limit)


class _Lent:
    """Our end of a pipe, lent to a transport, which closes it.

    asyncio calls close() for that. uvloop has libuv close the descriptor, and calls close()
    afterwards, or not at all if the connection failed; by then another thread may have opened
    something else of that number. So close() looks whether the number still is this pipe.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.is_terminal = isinstance(pipes.raw_of(file), pipes.Terminal)
        self._fd = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 3)
        self._file = _file_of(self._fd)
        pipes.drop(file)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        with contextlib.suppress(OSError):  # EBADF
            if fd >= 0 and _file_of(fd) == self._file:
                posix.close(fd)

    def __del__(self) -> None:
        self.close()

    def give(self) -> int:
        """Give the descriptor to somebody who closes it."""
        fd, self._fd = self._fd, -1
        return fd


def _file_of(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _can_be_read(fd: int) -> bool:
    """Whether there is something to read, or the end. fd: -1 if it is closed."""
    poll = unpatched.poll()
    poll.register(fd, select.POLLIN)
    return fd >= 0 and bool(poll.poll(0))


class _Streams:
    """The streams of one Process, and what communicate() has read from them.

    streams: of stdin, stdout and stderr, each None if it is not captured.
    """

    def __init__(self, process: Process) -> None:
        files = (process.stdin, process.stdout, process.stderr)
        self._pipes = [None if file is None else _Lent(file) for file in files]
        process.stdin = process.stdout = process.stderr = None  # type: ignore[assignment]
        self.streams: list[Any] = [None, None, None]
        self._input = b""
        self._chunks: list[list[bytes]] = [[], [], []]

    def terminal(self) -> int:
        """The descriptor of the terminal. ValueError if there is none, or it was closed."""
        pipe = self._pipes[1]
        if pipe is None or not pipe.is_terminal or self._fd(1) < 0:
            raise ValueError("there is no pty, or it was closed")
        return self._fd(1)

    def outputs(self) -> tuple[bytes | None, bytes | None]:
        """The bytes of stdout and stderr that exchange() has read; None: it is not captured."""
        out, err = (
            None if self._pipes[number] is None else b"".join(self._chunks[number])
            for number in (1, 2)
        )
        return out, err

    def set_input(self, input: bytes) -> None:
        """Set what exchange() writes. ValueError if it cannot be written."""
        if input and (self._pipes[0] is None or self._is_stdin_closed()):
            raise ValueError(pipes.NO_STDIN)
        self._input = input

    def _is_stdin_closed(self) -> bool:
        """Whether the caller closed stdin."""
        return self._fd(0) < 0

    def _outputs(self) -> list[int]:
        """The numbers of the outputs that are captured."""
        return [number for number in (1, 2) if self.streams[number] is not None]

    def are_outputs_over(self) -> bool:
        """Whether there are outputs, and the command has closed all of them."""
        return pipes.are_over([self._fd(number) for number in self._outputs()])

    def _left(self, number: int) -> int:
        """How many bytes there are to read, at most."""
        pipe, fd = self._pipes[number], self._fd(number)
        return 0 if fd < 0 else pipes.left_in(fd, pipe is not None and pipe.is_terminal)

    def _fd(self, number: int) -> int:
        """The descriptor of a stream; -1: it was closed."""
        raise NotImplementedError

    async def connect(self) -> None:
        """Make the streams."""
        raise NotImplementedError

    async def exchange(self, wait: Wait) -> None:
        """Write the input and close stdin, read the outputs, and wait() for the end of the run.

        What the pipes hold when the run is over is the end of the outputs: a process elsewhere may
        write on for ever.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Close the streams, stdin after writing its buffer."""
        raise NotImplementedError

    async def abort(self) -> None:
        """Close the streams now, and wait until their descriptors are closed."""
        raise NotImplementedError


# ---- asyncio -----------------------------------------------------------------------------------


class _Protocol(asyncio.StreamReaderProtocol):
    def __init__(self, reader: asyncio.StreamReader) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(reader, loop=loop)
        self.lost = loop.create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        # A terminal of which nobody has the other end open (pty(7)): that is its end.
        if isinstance(exc, OSError) and exc.errno == errno.EIO:
            exc = None
        super().connection_lost(exc)
        if not self.lost.done():
            self.lost.set_result(None)


class _Stdin(asyncio.StreamWriter):
    """Tells whether the caller closed it: its transport closes by itself if the command ends, or
    closes its stdin.
    """

    was_closed = False

    def close(self) -> None:
        self.was_closed = True
        super().close()


class _Asyncio(_Streams):
    def __init__(self, process: Process, limit: int) -> None:
        super().__init__(process)
        self._limit = limit
        self._connections: list[tuple[int, Any, _Protocol]] = []

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        for number, pipe in enumerate(self._pipes):
            if pipe is None:
                continue
            reader = asyncio.StreamReader(limit=self._limit, loop=loop)
            protocol = _Protocol(reader)
            transport: Any
            if number == 0 and pipe.is_terminal:
                transport = TerminalWriter(pipe, protocol)
            else:
                connect: Any = loop.connect_read_pipe if number else loop.connect_write_pipe
                transport, _ = await connect(lambda protocol=protocol: protocol, pipe)
            self._connections.append((number, transport, protocol))
            if number:
                self.streams[number] = reader
            else:
                self.streams[0] = _Stdin(transport, protocol, reader, loop)

    def _fd(self, number: int) -> int:
        pipe = self._pipes[number]
        return -1 if pipe is None else pipe.fileno()

    def _is_stdin_closed(self) -> bool:
        stdin: _Stdin | None = self.streams[0]
        return stdin is None or stdin.was_closed

    async def exchange(self, wait: Wait) -> None:
        ending = asyncio.ensure_future(wait())
        tasks = {ending, asyncio.ensure_future(self._feed())}
        for number in self._outputs():
            collecting = _collect(self.streams[number], self._chunks[number])
            tasks.add(asyncio.ensure_future(collecting))
        try:
            waiting = set(tasks)
            while ending in waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for number in self._outputs():
            await self._read_rest(number)
        await self.abort()

    async def _read_rest(self, number: int) -> None:
        """Read what the reader has, then what its pipe holds now."""
        reader, chunks = self.streams[number], self._chunks[number]
        while data := _read_at_once(reader):
            chunks.append(data)
        left = self._left(number)
        while left > 0 and data != b"":
            await asyncio.sleep(0)  # the loop reads meanwhile
            if data := _read_at_once(reader):
                chunks.append(data)
                left -= len(data)
            elif not _can_be_read(self._fd(number)):
                break

    async def _feed(self) -> None:
        stdin: asyncio.StreamWriter | None = self.streams[0]
        if stdin is None:
            return
        # From here on the transport has it, and writes it even if this task is cancelled.
        input, self._input = self._input, b""
        try:
            if input and not stdin.is_closing():  # uvloop refuses to write then
                stdin.write(input)
            await stdin.drain()
        except OSError as error:
            if error.errno not in (None, errno.EPIPE, errno.ECONNRESET, errno.EIO):
                raise
        stdin.close()

    async def close(self) -> None:
        for _, transport, _ in self._connections:
            transport.close()

    async def abort(self) -> None:
        for number, transport, protocol in self._connections:
            if not protocol.lost.done():
                transport.close() if number else transport.abort()
        connected = [number for number, _, _ in self._connections]
        for number, pipe in enumerate(self._pipes):
            if pipe is not None and number not in connected:
                pipe.close()
        lost = [protocol.lost for _, _, protocol in self._connections]
        if any(not future.done() for future in lost):
            await asyncio.wait(lost)


async def _collect(reader: asyncio.StreamReader, chunks: list[bytes]) -> None:
    while data := await reader.read(pipes.AT_MOST):
        chunks.append(data)


def _read_at_once(reader: asyncio.StreamReader) -> bytes | None:
    """b"" at the end; None: there is nothing now."""
    coroutine = reader.read(pipes.AT_MOST)
    try:
        coroutine.send(None)
    except StopIteration as done:
        data: bytes = done.value
        return data
    coroutine.close()
    return None


# ---- trio --------------------------------------------------------------------------------------


class _Trio(_Streams):
    async def connect(self) -> None:
        trio = sys.modules["trio"]
        for number, pipe in enumerate(self._pipes):
            if pipe is not None:
                stream = trio.lowlevel.FdStream(pipe.give())
                is_terminal = number and pipe.is_terminal
                self.streams[number] = _terminal_output(stream) if is_terminal else stream

    def _fd(self, number: int) -> int:
        fd: int = self.streams[number].fileno()
        return fd

    async def exchange(self, wait: Wait) -> None:
        trio = sys.modules["trio"]
        failures: list[Exception] = []
        async with trio.open_nursery() as nursery:

            async def do(function: Any, *args: Any) -> None:
                try:
                    await function(*args)
                except Exception as error:  # not in an ExceptionGroup
                    failures.append(error)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(do, self._feed)
            for number in self._outputs():
                nursery.start_soon(do, _receive, self.streams[number], self._chunks[number])
            await do(wait)
            nursery.cancel_scope.cancel()
        if failures:
            raise failures[0]
        for number in self._outputs():
            _receive_rest(self._fd(number), self._left(number), self._chunks[number])
        await self.abort()

    async def _feed(self) -> None:
        stdin = self.streams[0]
        if stdin is None:
            return
        trio = sys.modules["trio"]
        while self._input:
            await trio.lowlevel.checkpoint()
            try:
                written = os.write(stdin.fileno(), self._input)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(stdin.fileno())
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.EIO, errno.EBADF):
                    raise
                break
            else:
                self._input = self._input[written:]
        stdin.close()

    async def close(self) -> None:
        for stream in self.streams:
            if stream is not None:
                stream.close()

    abort = close


def _terminal_output(stream: Any) -> Any:
    """The output of a pty as a stream of trio, which ends when nobody has the other end open."""
    trio = sys.modules["trio"]

    class TerminalOutput(trio.abc.ReceiveStream):  # type: ignore[misc, name-defined]
        def fileno(self) -> int:
            return stream.fileno()  # type: ignore[no-any-return]

        def close(self) -> None:
            stream.close()

        async def aclose(self) -> None:
            await stream.aclose()

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            try:
                return await stream.receive_some(max_bytes)  # type: ignore[no-any-return]
            except trio.BrokenResourceError as error:
                if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EIO:
                    return b""
                raise

    return TerminalOutput()


async def _receive(stream: Any, chunks: list[bytes]) -> None:
    trio = sys.modules["trio"]
    try:
        while data := await stream.receive_some(pipes.AT_MOST):
            chunks.append(data)
    except trio.ClosedResourceError:  # its end
        pass


def _receive_rest(fd: int, left: int, chunks: list[bytes]) -> None:
    """Read what a pipe holds, so many bytes at most."""
    while left > 0:
        try:
            data = os.read(fd, left)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EIO):
                raise
            break
        if not data:
            break
        chunks.append(data)
        left -= len(data)
