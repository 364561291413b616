# SPDX-License-Identifier: Apache-2.0
"""What runs need of an event loop: asyncio's, any other with asyncio's interface, or trio's."""

from __future__ import annotations

import asyncio
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def is_trio() -> bool:
    """Whether the caller's coroutine runs in trio. RuntimeError if it runs in no loop at all."""
    # trio is asked first, as its guest mode runs trio's tasks inside the callbacks of another loop.
    if (trio := sys.modules.get("trio")) is not None:
        try:
            trio.lowlevel.current_task()
            return True
        except RuntimeError:
            pass
    asyncio.get_running_loop()
    return False


async def ready(fd: int, timeout: float) -> None:
    """Wait until a descriptor can be read, or for so many seconds. Nobody else waits for it: loops
    know one waiter for each descriptor.
    """
    if is_trio():
        trio: Any = sys.modules["trio"]
        with trio.move_on_after(timeout):
            await trio.lowlevel.wait_readable(fd)
        return
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.add_reader(fd, _finish, future)
    timer = loop.call_later(timeout, _finish, future)
    try:
        await future
    finally:
        loop.remove_reader(fd)
        timer.cancel()


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
