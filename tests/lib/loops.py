# SPDX-License-Identifier: Apache-2.0
"""Event loops to run a test in: asyncio's, uvloop's, trio's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any

from lib.machine import require

from sandboxlib import AsyncProcess

LOOPS = ("asyncio", "uvloop", "trio")


def run_in(loop: str, main: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine function in an event loop; anyio's functions work in each of them."""
    require(find_spec("anyio"), "there is no anyio")
    import anyio

    if loop == "trio":
        require(find_spec("trio"), "there is no trio")
        return anyio.run(main, backend="trio")
    if loop == "uvloop":
        require(find_spec("uvloop"), "there is no uvloop")
    return anyio.run(main, backend="asyncio", backend_options={"use_uvloop": loop == "uvloop"})


# The streams of asyncio and of trio have the same purpose, and other names.


async def read(process: AsyncProcess, most: int = 65536) -> bytes:
    """Some bytes of stdout; b"" at the end."""
    stream: Any = process.stdout
    data: bytes = await (stream.receive_some if hasattr(stream, "receive_some") else stream.read)(
        most
    )
    return data


async def read_all(process: AsyncProcess) -> bytes:
    data = b""
    while some := await read(process):
        data += some
    return data


async def write(process: AsyncProcess, data: bytes) -> None:
    stream: Any = process.stdin
    if hasattr(stream, "send_all"):
        await stream.send_all(data)
        return
    stream.write(data)
    await stream.drain()


async def close_stdin(process: AsyncProcess) -> None:
    stream: Any = process.stdin
    if hasattr(stream, "aclose"):
        await stream.aclose()
        return
    stream.close()
    await stream.wait_closed()
