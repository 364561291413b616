# SPDX-License-Identifier: Apache-2.0
"""The output of a command while it runs, from servers that have a stream for it.

Such a stream may be lost: the whole output comes with the result all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from . import stubs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .server import Server

_LAST = 5.0  # seconds for the end of a stream once the action is done
_MOST_TRIES = 5  # of a stream that is not available, without a byte in between
_PAUSE = 0.2
_MOST_STREAMS = 40  # of an action: two for each time that it is executed
_MOST_WAITING = 4 << 20  # bytes that the owner of a command has not read yet


class Follower:
    """Follows the streams of an action.

    take: called in the loop's thread with 'stdout' or 'stderr' and bytes; None: nobody wants them.
    It returns how many bytes wait to be read: with many of them the streams wait.
    """

    def __init__(
        self, server: Server, channel: Any, take: Callable[[str, bytes], int] | None
    ) -> None:
        self._server, self._channel, self._take = server, channel, take
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by the names of the streams

    def heard(self, metadata: Any) -> None:
        """Notes an ExecuteOperationMetadata. An action that is executed again has new streams."""
        if self._take is None:
            return
        for kind in ("stdout", "stderr"):
            name = getattr(metadata, f"{kind}_stream_name")
            if name and name not in self._tasks and len(self._tasks) < _MOST_STREAMS:
                self._tasks[name] = asyncio.ensure_future(self._follow(kind, name))

    async def finish(self) -> None:
        """Waits for the rest, for a while."""
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=_LAST)

    def cancel(self) -> None:
        """Ends it."""
        for task in self._tasks.values():
            task.cancel()

    async def _follow(self, kind: str, name: str) -> None:
        stub = stubs.bytestream_grpc.ByteStreamStub(self._channel)
        at, tries = 0, 0
        while tries < _MOST_TRIES:
            request = stubs.bytestream_pb.ReadRequest(resource_name=name, read_offset=at)
            try:
                async for message in stub.Read(request, metadata=self._server._metadata_of("Read")):
                    at, tries = at + len(message.data), 0
                    await self._give(kind, message.data)
                return
            except stubs.grpc.aio.AioRpcError as error:
                if error.code().name != "UNAVAILABLE":
                    return  # the result has it
            tries += 1
            await asyncio.sleep(_PAUSE)

    async def _give(self, kind: str, data: bytes) -> None:
        assert self._take is not None
        if data:
            waiting = self._take(kind, data)
            while waiting > _MOST_WAITING:
                await asyncio.sleep(_PAUSE)
                waiting = self._take(kind, b"")
