# SPDX-License-Identifier: Apache-2.0
"""Runs in an event loop: that of asyncio, or one that anyio supports if anyio is installed.

Each run has an epoll descriptor on which the loop waits; then sbx_pump() moves the data, as in any
other run. No thread is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
from collections.abc import AsyncIterator, Callable
from time import monotonic

from .._choice import choose
from .._core import native
from .._runs import job
from .._runs.run import Run
from .._runs.session import OpenSession
from .._spec.command import Command
from .._spec.spec import Spec
from ..result import Result
from .process import Process, check_startable
from .process import start as start_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

lib = native.lib
_LONGEST_WAIT = 1.0  # seconds


# ---- the loop ----------------------------------------------------------------------------------


class _Asyncio:
    event: Callable[[], Any] = asyncio.Event

    @staticmethod
    async def ready(fd: int, timeout: float | None, writing: bool = False) -> None:
        """Wait until fd can be read (or written), or for `timeout` seconds; None: for ever."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        add, remove = (
            (loop.add_writer, loop.remove_writer)
            if writing
            else (loop.add_reader, loop.remove_reader)
        )
        add(fd, _finish, future)
        timer = None if timeout is None else loop.call_later(timeout, _finish, future)
        try:
            await future
        finally:
            remove(fd)
            if timer is not None:
                timer.cancel()


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _Anyio:
    @staticmethod
    def event() -> Any:
        import anyio

        return anyio.Event()

    @staticmethod
    async def ready(fd: int, timeout: float | None, writing: bool = False) -> None:
        import anyio

        with anyio.move_on_after(timeout):
            await (anyio.wait_writable if writing else anyio.wait_readable)(fd)


def _loop() -> Any:
    """The functions for the event loop that the caller's coroutine runs in."""
    try:
        asyncio.get_running_loop()
        return _Asyncio
    except RuntimeError:
        return _Anyio


class _Watch:
    """An epoll(7) descriptor that becomes readable when a run has something for sbx_pump()."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._epoll: select.epoll | None = None
        self._watched: list[int] = []

    def fileno(self) -> int:
        struct = self._run.struct
        pidfd, control = struct.pidfd, -1
        if struct.slot:
            pidfd, control = struct.slot.pidfd, struct.slot.control
        fds = [pidfd, control, struct.out.fd, struct.err.fd]
        # A descriptor that was closed has left the epoll. A new one means that the run was started
        # a second time, fresh, because its slot failed: then all of them are new.
        if self._epoll is None or any(f not in self._watched for f in fds if f >= 0):
            self.close()
            self._epoll = select.epoll()
            for fd in fds:
                if fd >= 0:
                    self._epoll.register(fd, select.EPOLLIN)
            self._watched = fds
        return self._epoll.fileno()

    def close(self) -> None:
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None


# ---- a run -------------------------------------------------------------------------------------


async def run(box: Spec | OpenSession, command: Command, fresh: bool) -> Result:
    """Run a Command in the caller's event loop; see Sandbox.run_async and Session.run_async."""
    began = monotonic()
    loop = _loop()
    if isinstance(box, OpenSession):
        run: Run = box.run_of(command)
        name = box.executor
    else:
        box = box._for(command)
        executor = choose.native_executor_of(box)
        run, name = Run(executor.plan_of(box), job.job_of(command, box), command), executor.name
    watch = _Watch(run)
    try:
        run.start(fresh)
        while not run.follow(lib.sbx_pump(run.struct, 0)):
            await loop.ready(watch.fileno(), _patience(run))
        return run.result(name, began, run.plan.isolation)
    finally:  # after a cancellation too: kill the run, wait for its end, close its descriptors
        watch.close()
        run.end()
        run.release()


def _patience(run: Run) -> float:
    """Seconds until the next look at a run: a process that hangs in its exit makes no descriptor
    readable, so the wait has to end by itself.
    """
    return max(0.0, min(_LONGEST_WAIT, run.due() - monotonic()))


# ---- a handle ----------------------------------------------------------------------------------


class AsyncReader:
    """An output of an AsyncProcess, to read bytes from: read(), readline(), or `async for` over its
    lines.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._buffer = b""  # what readline() read, and did not return
        os.set_blocking(file.fileno(), False)

    async def read(self, most: int = -1) -> bytes:
        """Wait for output and return it as bytes; b'' at the end.

        most: int, the highest number of bytes to return; the call returns as soon as there is one.
            -1 (the default): return everything up to the end of the output.
        """
        if most >= 0:
            data = self._buffer[:most] or await self._take(most)
            self._buffer = self._buffer[most:]
            return data
        chunks = [self._buffer]
        self._buffer = b""
        while data := await self._take(1 << 20):
            chunks.append(data)
        return b"".join(chunks)

    async def readline(self) -> bytes:
        """Wait for a line and return it with its b'\\n', which the last line may lack; b'' at the
        end.
        """
        chunks = []
        data = self._buffer
        while True:
            line, newline, rest = data.partition(b"\n")
            chunks.append(line + newline)
            self._buffer = rest
            if newline:
                break
            data = await self._take(65536)
            if not data:
                break
        return b"".join(chunks)

    async def _take(self, most: int) -> bytes:
        if self._file.closed:
            return b""
        while True:
            try:
                data = os.read(self._file.fileno(), most)
            except BlockingIOError:
                await _loop().ready(self._file.fileno(), None)
                continue
            except OSError as error:
                if error.errno != errno.EIO:  # a terminal of which nobody has the other end open
                    raise
                data = b""
            if not data:
                self._file.close()
            return data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while line := await self.readline():
            yield line


class AsyncWriter:
    """The stdin of an AsyncProcess: write(), drain() and close()."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = b""
        os.set_blocking(fd, False)

    def write(self, data: bytes) -> None:
        """Add bytes to the buffer, which drain() writes."""
        self._buffer += data

    async def drain(self) -> None:
        """Write the buffer, and wait until the pipe has taken all of it.

        Raises BrokenPipeError if the command has closed its stdin.
        """
        while self._buffer:
            written, data = 0, memoryview(self._buffer)
            try:
                while written < len(data):
                    written += await self._write_some(data[written:])
            finally:  # another task may have added to the buffer meanwhile
                self._buffer = self._buffer[written:]

    async def _write_some(self, data: memoryview) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            await _loop().ready(self._fd, None, writing=True)
            return 0

    def close(self) -> None:
        """Close the pipe: the command reads the end of its stdin. The buffer is dropped, so call
        drain() first.
        """
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class AsyncProcess:
    """A command that runs beside an event loop; Sandbox.start_async makes one.

        async with box.start_async(["make"]) as process:
            async for line in process.stdout:
                ...

    Entering the block starts the command, and raises as Sandbox.start does. Leaving the block waits
    for its end. If an exception or a cancellation leaves the block, every process of the run is
    killed first.

    stdin: AsyncWriter, with stdin=CAPTURE or a pty; otherwise None.
    stdout, stderr: AsyncReader, if that output is captured; otherwise None.

    These are the same as in Process, and raise AttributeError before the block is entered: args,
    pid, returncode, result, fileno(), send_signal(), terminate(), kill(), suspend(), resume(),
    resize().
    """

    stdin: AsyncWriter | None = None
    stdout: AsyncReader | None = None
    stderr: AsyncReader | None = None

    def __init__(self, start: Callable[[], Process]) -> None:
        self._start = start
        self._process: Process | None = None

    async def __aenter__(self) -> AsyncProcess:
        process = self._process = self._start()
        if process.stdin is not None:
            self.stdin = AsyncWriter(os.dup(process.stdin.fileno()))
            process.stdin.close()
        for name in ("stdout", "stderr"):
            file = getattr(process, name)
            if file is not None:
                setattr(self, name, AsyncReader(file))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        try:
            if kind is None:
                if self.stdin is not None:
                    self.stdin.close()
                await self.wait()
        finally:
            if self.stdin is not None:
                self.stdin.close()
            self._process.close()

    def __getattr__(self, name: str) -> Any:
        if name in _OF_PROCESS and self._process is not None:
            return getattr(self._process, name)
        raise AttributeError(f"an AsyncProcess has no {name}, or was not entered")

    async def wait(self) -> int:
        """Wait for the end of the run, and return returncode. Raises as Process.wait does; a
        timeout is that of the loop (asyncio.timeout, anyio.fail_after).
        """
        assert self._process is not None
        while (code := self._process.poll()) is None:
            await _loop().ready(self._process.fileno(), _LONGEST_WAIT)
        return code

    async def communicate(self, input: bytes | None = None) -> tuple[bytes | None, bytes | None]:
        """Write to stdin and close it, read the outputs, wait for the end, and return the outputs
        (stdout, stderr).

        input: bytes for stdin. None (the default): nothing is written.

        Each output is the bytes that were not read before, or None if it is not captured. Raises
        ValueError if there is input, and stdin is not captured; otherwise as wait() does.
        """
        if input and self.stdin is None:
            raise ValueError("stdin is not captured")
        outputs: list[bytes | None] = [None, None]

        async def write() -> None:
            if self.stdin is not None:
                self.stdin.write(input or b"")
                with contextlib.suppress(BrokenPipeError):
                    await self.stdin.drain()
                self.stdin.close()

        async def read(index: int, reader: AsyncReader | None) -> None:
            if reader is not None:
                outputs[index] = await reader.read()

        await _together(write, lambda: read(0, self.stdout), lambda: read(1, self.stderr))
        await self.wait()
        return outputs[0], outputs[1]


async def _together(*functions: Callable[[], Any]) -> None:
    """Run coroutines at the same time, in any loop."""
    if _loop() is _Asyncio:
        await asyncio.gather(*(function() for function in functions))
        return
    import anyio

    async with anyio.create_task_group() as group:
        for function in functions:
            group.start_soon(function)


_OF_PROCESS = frozenset(
    "args pid returncode result fileno send_signal terminate kill suspend resume resize".split()
)


def start(box: Spec, command: Command) -> AsyncProcess:
    """An AsyncProcess, which starts the Command when it is entered; see Sandbox.start_async."""
    check_startable("start_async", command)
    return AsyncProcess(lambda: start_process(box, command))
