# SPDX-License-Identifier: Apache-2.0
"""AsyncProcess, a Process in an event loop: Sandbox.start_async returns one.

The files of the Process become streams of the loop, which reads and writes them. Its end is a pidfd
on which the loop waits, so no thread is needed, and no child watcher.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from time import monotonic

from .._runs import extras
from .._runs.session import OpenSession
from .._spec.command import Command
from .._spec.spec import Spec
from .._values import check_number
from ..errors import Unkillable
from ..result import Result
from . import async_streams, loops, pipes
from .process import MOST_OF_A_SERVICE, Process, check_startable
from .process import start as start_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

_LONGEST_WAIT = 1.0  # seconds; then wait() looks whether a run that was killed does not end
_LONGEST_LINE = 1 << 30


class AsyncProcess:
    """A command that runs beside an event loop; Sandbox.start_async makes one.

        async with box.start_async(["make"]) as process:
            async for line in process.stdout:
                ...

    Entering the block starts the command, and raises as Sandbox.start does. Leaving it closes the
    streams, as with Popen, and waits for the end of the run. If an exception or a cancellation
    leaves the block, every process of the run is killed first.

    stdin: an asyncio.StreamWriter, with stdin=CAPTURE or a pty; otherwise None.
    stdout, stderr: an asyncio.StreamReader, if that output is captured; otherwise None.

    In trio the streams are a SendStream and ReceiveStreams of trio's, as those of a trio.Process.

    args: list of str, Command.argv.
    pid: int, as Process.pid.
    returncode: int, as Result.exit; None while the command runs, or if its exit status was lost.

    Any task may call any method at any time, also after the block or an error. So may any thread
    and signal handler, but for coroutines and the streams. Before the block all raise RuntimeError.
    """

    # The annotations leave out None: who asks for a pipe has it, and need not look.
    stdin: asyncio.StreamWriter = None  # type: ignore[assignment]
    stdout: asyncio.StreamReader = None  # type: ignore[assignment]
    stderr: asyncio.StreamReader = None  # type: ignore[assignment]

    def __init__(self, start: Callable[[], Process], limit: int) -> None:
        self._start = start
        self._limit = limit
        self._started: Process | None = None
        self._streams: Any = None
        self._has_begun = False  # communicate() was called

    async def __aenter__(self) -> AsyncProcess:
        if self._started is not None:
            raise RuntimeError("an AsyncProcess is entered once: each start_async() makes one")
        is_trio = loops.is_trio()
        process = self._started = self._start()
        self._streams = async_streams.make(process, is_trio, self._limit)
        try:
            await self._streams.connect()
            self.stdin, self.stdout, self.stderr = self._streams.streams
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                is_service = self._process._run.is_service and self._process.poll() is None
                is_service = is_service and not self._streams.are_outputs_over()
                await self._streams.close()
                if is_service:
                    self.terminate()
                    if not await self._is_over(MOST_OF_A_SERVICE):
                        self.kill()
                await self.wait()
        finally:
            # Raised above, unless another exception is on its way.
            with contextlib.suppress(Unkillable):
                await self._close()

    async def _close(self) -> None:
        try:
            self._process.close()
        finally:
            await self._streams.abort()

    @property
    def _process(self) -> Process:
        if self._started is None:
            raise RuntimeError("the command starts with 'async with', which was not entered")
        return self._started

    @property
    def args(self) -> list[str]:
        return self._process.args

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        process = self._process
        with contextlib.suppress(Exception):  # wait() raises it
            return process.poll()
        return None

    def fileno(self) -> int:
        """A pidfd of the run's first process; see Process.fileno()."""
        return self._process.fileno()

    async def wait(self) -> int:
        """Wait for the end of the run, and return returncode. Raises as Process.wait does; a
        timeout is that of the loop (asyncio.timeout, trio.fail_after).
        """
        await self._is_over(None)
        code = self._process.poll()
        assert code is not None
        return code

    async def _is_over(self, seconds: float | None) -> bool:
        """Wait for the end of the run; False if the time was over first."""
        process = self._process
        end = None if seconds is None else monotonic() + seconds
        while process.poll() is None:
            left = _LONGEST_WAIT if end is None else min(_LONGEST_WAIT, end - monotonic())
            if left <= 0:
                return False
            # A pidfd of this task's own, as a loop knows one waiter for each descriptor.
            with contextlib.suppress(ProcessLookupError):  # it is over by now
                pidfd = process._run.handle.pidfd()
                try:
                    await loops.ready(pidfd, left)
                finally:
                    os.close(pidfd)
        return True

    async def result(self) -> Result:
        """Wait for the end of the run, and return its Result; see Process.result()."""
        await self.wait()
        outputs = self._streams.outputs() if self._has_begun else (None, None)
        return self._process._run.result(*outputs)

    async def communicate(self, input: bytes | None = None) -> tuple[bytes | None, bytes | None]:
        """Write to stdin and close it, read the outputs, wait for the end, and return the outputs
        (stdout, stderr).

        input: bytes for stdin. None (the default): nothing is written.

        After a cancellation communicate() may be called again, without input: it goes on with what
        is left of it, and returns all output. Otherwise as Process.communicate().
        """
        self._process  # noqa: B018  it was entered
        pipes.check_input(input)
        if self._has_begun and input:
            raise ValueError("communicate() was called before: the input was given then")
        if not self._has_begun:
            self._streams.set_input(bytes(input or b""))
            self._has_begun = True
        await self._streams.exchange(self.wait)
        outputs: tuple[bytes | None, bytes | None] = self._streams.outputs()
        return outputs

    def send_signal(self, signum: int) -> None:
        """Send a signal to every process of the run; see Process.send_signal().

        signum: int, or a member of signal.Signals.
        """
        self._process.send_signal(signum)

    def terminate(self) -> None:
        """Send SIGTERM to every process of the run."""
        self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL to every process of the run."""
        self._process.kill()

    def suspend(self) -> None:
        """Stop every process of the run, until resume(). Raises as Process.suspend() does."""
        self._process.suspend()

    def resume(self) -> None:
        """Let the processes that suspend() stopped go on. Raises as Process.suspend() does."""
        self._process.resume()

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of the command's terminal; see Process.resize().

        rows, columns: int, in characters. Raises ValueError if there is no pty, or it was closed.
        """
        self._process  # noqa: B018  it was entered
        extras.set_window(self._streams.terminal(), rows, columns)

    def __repr__(self) -> str:
        state = "not started" if self._started is None else f"{self.pid} {self.args!r}"
        return f"<AsyncProcess {state}>"


def start(box: Spec | OpenSession, command: Command, limit: int) -> AsyncProcess:
    """An AsyncProcess, which starts the Command when it is entered; see Sandbox.start_async."""
    check_startable("start_async", command)
    check_number("limit", limit, 1, _LONGEST_LINE)
    return AsyncProcess(lambda: start_process(box, command), limit)
