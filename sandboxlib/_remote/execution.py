# SPDX-License-Identifier: Apache-2.0
"""One action that a server executes: from the call of Execute to the operation that is done.

The stream of an operation may break while the action goes on: then WaitExecution asks for the same
operation. A stream that says nothing for a while is asked anew as well, because its server may have
missed that the action ended, or be gone without a word; and because a server that keeps a thread
for each stream gets some of them back, with which it hears its workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from time import monotonic

from ..errors import RemoteError
from . import stubs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .server import Server

SILENCE = 30.0  # seconds without a message, after which a stream is asked anew
OVERHEAD = 600.0  # seconds beside its timeout that a worker may need for inputs and outputs
_LONGEST_PAUSE = 10.0  # seconds between two tries
_CANCELLING = 5.0  # seconds for CancelOperation, and for a name that is still to come
_MOST_FORGOTTEN = 3  # how often a server may forget an operation before that is an error


class Order:
    """What a server has to execute.

    action: str, the digest. skip_cache_lookup: bool. timeout: float, seconds, that of the action;
    None: it has none. deadline: float, of monotonic(); None: none. patience: float, seconds for
    which the server may be unavailable.
    """

    def __init__(
        self,
        action: str,
        skip_cache_lookup: bool,
        timeout: float | None,
        deadline: float | None,
        patience: float,
    ) -> None:
        self.action, self.skip_cache_lookup = action, skip_cache_lookup
        self.timeout, self.deadline, self.patience = timeout, deadline, patience


class Execution:
    """The execution of one action.

    channel: of grpc.aio. heard: called in the loop's thread with the ExecuteOperationMetadata of
    each message.
    """

    def __init__(
        self, server: Server, channel: Any, order: Order, heard: Callable[[Any], None]
    ) -> None:
        self._server, self._order, self._heard = server, order, heard
        self._stub = stubs.re_grpc.ExecutionStub(channel)
        self._operations = stubs.operations_grpc.OperationsStub(channel)
        self._name = ""
        self._call: Any = None
        self._reading: asyncio.Future[Any] | None = None
        self._ends: float | None = None  # of monotonic(): a worker should have ended by then
        self._unavailable_since: float | None = None
        self._pause = 0.1
        self._forgotten = 0

    async def run(self) -> Any:
        """The ExecuteResponse of the action. Raises RemoteError. If the task is cancelled, or the
        time is over, the operation is cancelled too.
        """
        try:
            while True:
                response = await self._try()
                if response is not None:
                    return response
        except (asyncio.CancelledError, TimeoutError):
            await asyncio.shield(self._cancel())
            raise
        finally:
            if self._call is not None:
                self._call.cancel()

    async def _try(self) -> Any:
        """One stream: the ExecuteResponse; None, if another stream has to be asked."""
        call = "WaitExecution" if self._name else "Execute"
        try:
            self._call = self._open()
            operation = await self._listen()
        except stubs.grpc.aio.AioRpcError as error:
            await self._failed(call, error.code().name, error.details() or "", error)
            return None
        if operation is None:
            if not self._name:
                await self._wait_after(call, "UNAVAILABLE", "the stream ended without a message")
            return None
        response = stubs.re_pb.ExecuteResponse()
        if not operation.HasField("response"):
            code = stubs.code_name(operation.error.code or stubs.code_pb.UNKNOWN)
            raise self._error(call, code, operation.error.message or "it has no response")
        if not stubs.unpacked(operation.response, response):
            kind = operation.response.type_url
            raise self._error(call, "INTERNAL", f"the operation has a response of type {kind!r}")
        if response.status.code == stubs.code_pb.UNAVAILABLE:  # it could not be started
            self._name = ""
            await self._wait_after(call, "UNAVAILABLE", response.status.message)
            return None
        return response

    def _open(self) -> Any:
        metadata = self._server._metadata_of("WaitExecution" if self._name else "Execute")
        if self._name:
            request = stubs.re_pb.WaitExecutionRequest(name=self._name)
            return self._stub.WaitExecution(request, metadata=metadata)
        request = stubs.re_pb.ExecuteRequest(
            instance_name=self._server.instance,
            action_digest=stubs.digest_message(self._order.action),
            skip_cache_lookup=self._order.skip_cache_lookup,
        )
        return self._stub.Execute(request, metadata=metadata)

    async def _listen(self) -> Any:
        """The Operation that is done; None if the stream ended before, or said nothing for long."""
        while True:
            # A task of its own: if this one is cancelled, the name of the operation may yet come.
            self._reading = asyncio.ensure_future(self._call.read())
            self._reading.add_done_callback(_retrieve)
            await asyncio.wait({self._reading}, timeout=self._patience())
            if not self._reading.done():
                self._call.cancel()
                self._check_time()
                return None
            operation = self._reading.result()
            if operation is stubs.grpc.aio.EOF:
                return None
            self._unavailable_since, self._pause = None, 0.1
            self._name = operation.name or self._name
            self._note(operation)
            if operation.done:
                return operation
            self._check_time()

    def _note(self, operation: Any) -> None:
        metadata = stubs.re_pb.ExecuteOperationMetadata()
        if not stubs.unpacked(operation.metadata, metadata):
            return
        if metadata.stage != stubs.re_pb.ExecutionStage.EXECUTING:
            self._ends = None  # it may be queued again, if its worker was lost
        elif self._ends is None and self._order.timeout is not None:
            self._ends = monotonic() + self._order.timeout + OVERHEAD
        self._heard(metadata)

    # ---- times ----

    def _due(self) -> float:
        times = [time for time in (self._ends, self._order.deadline) if time is not None]
        return min(times, default=float("inf"))

    def _patience(self) -> float:
        return max(0.01, min(SILENCE, self._due() - monotonic()))

    def _check_time(self) -> None:
        """Raises TimeoutError if the action has had its time."""
        if monotonic() >= self._due():
            raise TimeoutError

    # ---- errors ----

    def _error(self, call: str, code: str, details: str) -> RemoteError:
        return RemoteError(self._server.url, call, code, details)

    async def _failed(self, call: str, code: str, details: str, cause: Exception) -> None:
        """Returns if the call is worth another try; otherwise raises RemoteError."""
        if code == "NOT_FOUND" and self._name and self._forgotten < _MOST_FORGOTTEN:
            self._forgotten += 1
            self._name = ""  # as the API says: Execute again
        elif code == "UNAVAILABLE":
            await self._wait_after(call, code, details)
        else:
            raise self._error(call, code, details) from cause

    async def _wait_after(self, call: str, code: str, details: str) -> None:
        """Waits before the next try. Raises RemoteError if there have been enough."""
        now = monotonic()
        if self._unavailable_since is None:
            self._unavailable_since = now
        if now - self._unavailable_since >= self._order.patience:
            raise self._error(call, code, details)
        self._check_time()
        pause = random.uniform(0.5, 1.0) * self._pause
        self._pause = min(_LONGEST_PAUSE, 2 * self._pause)
        await asyncio.sleep(min(pause, max(0.0, self._due() - now)))

    # ---- the end that somebody else wants ----

    async def _cancel(self) -> None:
        """Tells the server that nobody waits for the operation any more. It may not care."""
        with contextlib.suppress(stubs.grpc.aio.AioRpcError, RemoteError):
            if not self._name and self._reading is not None:
                await asyncio.wait({self._reading}, timeout=_CANCELLING)
                if self._reading.done() and not self._reading.cancelled():
                    self._name = getattr(self._reading.result(), "name", "")
            if self._name:
                request = stubs.operations_pb.CancelOperationRequest(name=self._name)
                options = {"timeout": _CANCELLING, "wait_for_ready": True}
                metadata = self._server._metadata_of("CancelOperation")
                await self._operations.CancelOperation(request, metadata=metadata, **options)


def _retrieve(task: asyncio.Future[Any]) -> None:
    """Looks at the exception of a task, which asyncio otherwise tells as one that nobody saw."""
    if not task.cancelled():
        task.exception()
