# SPDX-License-Identifier: Apache-2.0
"""Runs in an event loop: of asyncio, or, where anyio is installed, of what anyio knows.

A run has an epoll descriptor of its own, on which the loop waits; whatever comes is moved by the
same pump as everywhere. There is no thread.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import AsyncIterator, Callable
from time import monotonic

from .._choice import choose
from .._core import native
from .._runs import job
from .._runs.run import Run
from .._spec.command import Command
from .._spec.spec import Spec
from ..result import Result
from . import process as _handle

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
        """Until it can be read or written, or the time is over."""
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
    """What the caller's coroutine runs in."""
    try:
        asyncio.get_running_loop()
        return _Asyncio
    except RuntimeError:
        return _Anyio


class _Watch:
    """An epoll(7) descriptor that is readable when there is something to do for a run."""

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
        # What was closed has left the epoll; what is new to it means another start.
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


async def run(box: Spec, command: Command, fresh: bool) -> Result:
    """A run in the caller's loop; see Sandbox.run_async."""
    began = monotonic()
    box = box._for(command)
    executor = choose.native_executor_of(box)
    loop = _loop()
    run = Run(executor.plan_of(box), job.job_of(command, box), command)
    watch = _Watch(run)
    try:
        run.start(fresh)
        while not run.follow(lib.sbx_pump(run.struct, 0)):
            await loop.ready(watch.fileno(), _patience(run))
        return run.result(executor.name, began, run.plan.isolation)
    finally:  # a cancellation as well: kill, wait, close
        watch.close()
        run.end()
        run.release()


def _patience(run: Run) -> float:
    """How long to wait before looking up: what hangs at its end wakes nobody."""
    return max(0.0, min(_LONGEST_WAIT, run.due() - monotonic()))


# ---- a handle ----------------------------------------------------------------------------------


class AsyncReader:
    """An output of an AsyncProcess: read(), readline(), and lines by `async for`."""

    def __init__(self, process: AsyncProcess, queue: _handle.Queue) -> None:
        self._process = process
        self._queue = queue
        self._rest = b""

    async def read(self, most: int = -1) -> bytes:
        """Up to `most` bytes, at least one; b'' at the end. Without `most`: all until the end."""
        if most >= 0:
            data = self._rest[:most] or await self._more(most)
            self._rest = self._rest[most:]
            return data
        chunks = [self._rest]
        self._rest = b""
        while data := await self._more(1 << 20):
            chunks.append(data)
        return b"".join(chunks)

    async def readline(self) -> bytes:
        """The next line, with its b'\\n', which the last one may lack; b'' at the end."""
        chunks = []
        data = self._rest
        while True:
            line, newline, rest = data.partition(b"\n")
            chunks.append(line + newline)
            self._rest = rest
            if newline:
                break
            data = await self._more(65536)
            if not data:
                break
        return b"".join(chunks)

    async def _more(self, most: int) -> bytes:
        await self._process._until(lambda: bool(self._queue))
        return self._queue.take_at_most(most)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while line := await self.readline():
            yield line


class AsyncWriter:
    """stdin of an AsyncProcess: write(), drain() and close()."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""
        os.set_blocking(fd, False)

    def write(self, data: bytes) -> None:
        """Keeps it for drain()."""
        self._rest += data

    async def drain(self) -> None:
        """Until all is written, or the command reads no more: then BrokenPipeError."""
        while self._rest:
            written, rest = 0, memoryview(self._rest)
            try:
                while written < len(rest):
                    written += await self._write_some(rest[written:])
            finally:  # there may be more of it by now
                self._rest = self._rest[written:]

    async def _write_some(self, data: memoryview) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            await _loop().ready(self._fd, None, writing=True)
            return 0

    def close(self) -> None:
        """What drain() did not write is lost."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class AsyncProcess:
    """A command that runs, in an event loop: what `async with box.start_async(...)` gives.

    args, pid, returncode, result, fileno(), send_signal(), terminate(), kill(), suspend(), resume()
    and resize() are those of Process. stdin is an AsyncWriter, stdout and stderr are AsyncReaders,
    or None. Leaving the block waits for the end; by an exception, a cancellation too, it kills
    everything first.
    """

    stdin: AsyncWriter | None = None
    stdout: AsyncReader | None = None
    stderr: AsyncReader | None = None

    def __init__(self, start: Callable[[], _handle.Process]) -> None:
        self._start = start
        self._process: _handle.Process | None = None
        self._is_pumping = False

    async def __aenter__(self) -> AsyncProcess:
        self._loop = _loop()
        self._changed = self._loop.event()
        process = self._process = self._start()
        self._watch = _Watch(process._run)
        if process.stdin is not None:
            self.stdin = AsyncWriter(os.dup(process.stdin.fileno()))
            process.stdin.close()
        for name in ("stdout", "stderr"):
            file = getattr(process, name)
            if file is not None:
                setattr(self, name, AsyncReader(self, file.raw._queue))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                if self.stdin is not None:
                    self.stdin.close()
                await self.wait()
        finally:
            if self.stdin is not None:
                self.stdin.close()
            self._watch.close()
            assert self._process is not None
            self._process.close()

    def __getattr__(self, name: str) -> Any:
        if name in _SAME and self._process is not None:
            return getattr(self._process, name)
        raise AttributeError(f"an AsyncProcess has no {name}, or was not entered")

    async def wait(self) -> int:
        """Waits for the end and returns returncode."""
        await self._until(lambda: False)
        assert self._process is not None
        code = self._process._code()
        assert code is not None
        return code

    async def communicate(self, input: bytes | None = None) -> tuple[bytes | None, bytes | None]:
        """Writes `input` to stdin and closes it, waits for the end, returns what was captured and
        not read yet.
        """
        if self.stdin is not None:
            self.stdin.write(input or b"")
            await self._feed()
        elif input:
            raise ValueError("stdin is not captured")
        await self.wait()
        out = None if self.stdout is None else await self.stdout.read()
        return out, None if self.stderr is None else await self.stderr.read()

    async def _feed(self) -> None:
        """Outputs are moved meanwhile, or both sides would wait for each other."""
        assert self.stdin is not None
        writer = self.stdin
        while writer._rest and not self._is_over():
            try:
                writer._rest = writer._rest[os.write(writer._fd, writer._rest) :]
            except BlockingIOError:
                await self._step(lambda: False, 0.01)
            except BrokenPipeError:
                break
        writer.close()

    def _is_over(self) -> bool:
        assert self._process is not None
        return self._process._is_over

    async def _until(self, done: Callable[[], bool]) -> None:
        while not (done() or self._is_over()):
            await self._step(done, None)

    async def _step(self, done: Callable[[], bool], timeout: float | None) -> None:
        """One task pumps, the others wait for what it finds."""
        assert self._process is not None
        if self._is_pumping:
            await self._changed.wait()
            return
        self._is_pumping = True
        try:
            self._process._until(lambda: False, 0.0)
            if not done() and not self._is_over():
                most = _patience(self._process._run)
                await self._loop.ready(
                    self._watch.fileno(), most if timeout is None else min(timeout, most)
                )
                self._process._until(lambda: False, 0.0)
        finally:
            self._is_pumping = False
            changed, self._changed = self._changed, self._loop.event()
            changed.set()


_SAME = frozenset(
    "args pid returncode result fileno send_signal terminate kill suspend resume resize".split()
)


def start(box: Spec, command: Command) -> AsyncProcess:
    """What starts a command when it is entered; see Sandbox.start_async."""
    _handle.check_startable("start_async", command)
    return AsyncProcess(lambda: _handle.start(box, command))
