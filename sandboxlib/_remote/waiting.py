# SPDX-License-Identifier: Apache-2.0
"""Waits for a command that is elsewhere in the caller's event loop, of asyncio or trio."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import Callable

from .._concurrent import loops
from .._spec.command import Command
from ..result import Result
from .flight import PATIENCE, Flight
from .landing import Landing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .remote import Remote


async def run(remote: Remote, command: Command, landing: Landing) -> Result:
    """See Remote.run_async."""
    bell = _TrioBell() if loops.is_trio() else _AsyncioBell()
    events: deque[tuple[str, Any]] = deque()

    def tell(flight: Flight, kind: str, value: Any) -> None:
        events.append((kind, value))
        bell.ring()

    flight = Flight(remote, command, tell, landing.is_live)
    flight.start()
    has_ended = False
    try:
        while True:
            await bell.wait()
            while events:
                kind, value = events.popleft()
                has_ended = kind == "end"
                result = landing.heard(flight, kind, value)
                if result is not None:
                    return result
    finally:
        if not has_ended:
            flight.cancel()
            await bell.wait_for(lambda: any(kind == "end" for kind, _ in events))


class _AsyncioBell:
    """Wakes a task of asyncio from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()

    async def wait_for(self, is_met: Callable[[], bool]) -> None:
        """Waits for a condition, but not for long; another cancellation ends it."""

        async def meet() -> None:
            while not is_met():
                await self.wait()

        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(meet(), PATIENCE)


class _TrioBell:
    """Wakes a task of trio from any thread."""

    def __init__(self) -> None:
        self._trio: Any = sys.modules["trio"]
        self._token = self._trio.lowlevel.current_trio_token()
        self._event = self._trio.Event()

    def ring(self) -> None:
        with contextlib.suppress(self._trio.RunFinishedError):
            self._token.run_sync_soon(self._set)

    def _set(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event = self._trio.Event()

    async def wait_for(self, is_met: Callable[[], bool]) -> None:
        """Waits for a condition, but not for long, whatever was cancelled."""
        with self._trio.move_on_after(PATIENCE, shield=True):
            while not is_met():
                await self.wait()
