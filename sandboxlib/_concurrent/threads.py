# SPDX-License-Identifier: Apache-2.0
"""Blocking functions in threads, for a task of an event loop: asyncio's, uvloop's or trio's."""

from __future__ import annotations

import os
from _thread import allocate_lock
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from .. import _types
from . import loops

_LONGEST_WAIT = 1.0  # seconds


class _Bell:
    """An eventfd(2), which a thread rings; after close() that does nothing."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def ring(self, future: object) -> None:
        with self._lock:
            if self.fd >= 0:
                os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        with self._lock:
            os.close(self.fd)
            self.fd = -1


async def in_thread(
    pool: ThreadPoolExecutor, function: Callable[[], _types.T], stop: Callable[[], object]
) -> _types.T:
    """Calls a function in a thread, and waits for it.

    stop: called after a cancellation, which does not wait for the thread.
    """
    bell = _Bell()
    try:
        future = pool.submit(function)
        try:
            future.add_done_callback(bell.ring)
            while not future.done():
                await loops.ready(bell.fd, _LONGEST_WAIT)
        except BaseException:
            stop()
            future.cancel()
            raise
        return future.result()
    finally:
        bell.close()
