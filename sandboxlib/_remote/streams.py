# SPDX-License-Identifier: Apache-2.0
"""The threads of a client: one with an event loop, in which all operations of a server are waited
for, and a few for what takes a CPU, a disk or a short call. So a thousand actions in flight take a
thousand streams of the server, and nine threads here.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor

from .._host import green
from .uploads import Uploads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .server import Server

MOST_THREADS = 8


class Going:
    """A coroutine that goes on in the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None
        self._is_cancelled = False

    def begin(self, coroutine: Coroutine[Any, Any, Any], done: Callable[[Going], object]) -> None:
        """Begins, in the loop's thread."""
        self._task = self._loop.create_task(coroutine)
        self._task.add_done_callback(lambda _: done(self))
        if self._is_cancelled:
            self._task.cancel()

    def cancel(self) -> None:
        """Ends it, from any thread; it is over when it has told the server."""
        self._is_cancelled = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: it is over
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def result(self) -> Any:
        """What it returned, once it is over; CancelledError, or what it raised."""
        assert self._task is not None
        return self._task.result()


class Streams:
    """What a Server has for operations. close() ends all of it."""

    def __init__(self, server: Server) -> None:
        green.refuse("remote execution")
        self._server = server
        self.uploads = Uploads(server)
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._channel: Any = None
        self._pool = ThreadPoolExecutor(MOST_THREADS, "sandboxlib-remote")
        # A daemon thread: a run that nobody waits for any more does not keep the interpreter.
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="sandboxlib-streams", daemon=True
        )
        self._thread.start()

    def submit(self, function: Callable[..., object], *args: object) -> Future[object]:
        """Calls a function in a thread of the pool. RuntimeError after close()."""
        return self._pool.submit(function, *args)

    def start(
        self, make: Callable[[Any], Coroutine[Any, Any, Any]], done: Callable[[Going], object]
    ) -> Going:
        """Runs a coroutine in the loop. RuntimeError after close().

        make: makes it out of the channel, in the loop's thread. done: called there when it is over.
        """
        going = Going(self._loop)
        self._loop.call_soon_threadsafe(going.begin, self._run(make), done)
        return going

    async def _run(self, make: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        if self._channel is None:
            self._channel = self._server._open_aio()
        return await make(self._channel)

    def close(self) -> None:
        """Cancels what is in flight, and waits for that, no longer than the cancelling may take."""
        with self._lock:
            if self._loop.is_closed() or threading.current_thread() is self._thread:
                return
            self._pool.shutdown(wait=False, cancel_futures=True)
            ended = asyncio.run_coroutine_threadsafe(self._end(), self._loop)
            try:
                ended.result(15.0)
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=10.0)
        if self._channel is not None:
            await self._channel.close()


def streams_of(server: Server) -> Streams:
    """The Streams of a Server, which close() of it closes."""
    return server._keep(Streams)
