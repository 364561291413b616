# SPDX-License-Identifier: Apache-2.0
"""A server that executes what a test says: its streams break, say nothing, forget, and lie."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lib.memory_server import MemoryServer, memory_server


class Executions(MemoryServer):
    """executes: the requests of Execute, in order. waits: the names of WaitExecution. cancelled:
    those of CancelOperation. in_flight: how many streams are open; most: the highest number.
    answer: what the action comes to, an ActionResult or an ExecuteResponse, by its digest; it may
    wait. on_execute, on_wait: take the request and the context, and give the stream.
    """

    def __init__(self) -> None:
        super().__init__()
        self.executes: list[Any] = []
        self.waits: list[str] = []
        self.cancelled: list[str] = []
        self.was_cancelled = threading.Event()
        self.in_flight = self.most = 0
        self.answer: Callable[[str], Any] = lambda digest: result(stdout_raw=b"out")
        self.on_execute: Callable[[Any, Any], Iterator[Any]] = self.executed
        self.on_wait: Callable[[Any, Any], Iterator[Any]] = self.waited
        self._names = itertools.count()
        self._actions: dict[str, str] = {}
        self._lock = threading.Lock()

    def named(self, request: Any) -> str:
        """A new name for the operation of a request."""
        name = f"operations/{next(self._names)}"
        self._actions[name] = f"{request.action_digest.hash}/{request.action_digest.size_bytes}"
        return name

    def executed(self, request: Any, context: Any) -> Iterator[Any]:
        """The stream of an honest server."""
        name = self.named(request)
        yield operation(name)
        yield operation(name, self.answer(self._actions[name]))

    def waited(self, request: Any, context: Any) -> Iterator[Any]:
        """The same, of an operation that is known."""
        yield operation(request.name, self.answer(self._actions[request.name]))

    def action(self, number: int = 0) -> Any:
        """The Action of a request."""
        from sandboxlib._remote.stubs import digest_text, re_pb

        return re_pb.Action.FromString(self.blobs[digest_text(self.executes[number].action_digest)])

    def command(self, number: int = 0) -> Any:
        """The Command of a request."""
        from sandboxlib._remote.stubs import digest_text, re_pb

        return re_pb.Command.FromString(self.blobs[digest_text(self.action(number).command_digest)])

    def files(self, number: int = 0) -> dict[str, bytes | None]:
        """What the input root of a request has, by paths; None: a directory."""
        from sandboxlib._remote.stubs import digest_text

        return self._files(digest_text(self.action(number).input_root_digest), "")

    def _files(self, digest: str, above: str) -> dict[str, bytes | None]:
        from sandboxlib._remote.stubs import digest_text, re_pb

        found: dict[str, bytes | None] = {}
        folder = re_pb.Directory.FromString(self.blobs[digest])
        for each in folder.files:
            found[above + each.name] = self.blobs[digest_text(each.digest)]
        for each in folder.directories:
            found[above + each.name] = None
            found |= self._files(digest_text(each.digest), f"{above}{each.name}/")
        return found

    def count(self, change: int) -> None:
        with self._lock:
            self.in_flight += change
            self.most = max(self.most, self.in_flight)


def result(**fields: Any) -> Any:
    """An ActionResult."""
    from sandboxlib._remote.stubs import re_pb

    return re_pb.ActionResult(**fields)


def response(code: str = "OK", message: str = "", **fields: Any) -> Any:
    """An ExecuteResponse with a status."""
    from sandboxlib._remote.stubs import code_pb, re_pb

    made = re_pb.ExecuteResponse(**fields)
    made.status.code, made.status.message = code_pb.Code.Value(code), message
    return made


def operation(name: str, answer: Any = None, stage: str = "EXECUTING", **streams: str) -> Any:
    """An Operation; with an answer it is done."""
    from sandboxlib._remote.stubs import operations_pb, re_pb

    made = operations_pb.Operation(name=name, done=answer is not None)
    stage = stage if answer is None else "COMPLETED"
    told = re_pb.ExecuteOperationMetadata(stage=getattr(re_pb.ExecutionStage, stage), **streams)
    made.metadata.Pack(told)
    if isinstance(answer, re_pb.ActionResult):
        answer = re_pb.ExecuteResponse(result=answer)
    if answer is not None:
        made.response.Pack(answer)
    return made


@contextmanager
def executions(threads: int = 16) -> Iterator[Executions]:
    """The server. It is stopped at the end, and so are its streams."""
    own = Executions()
    with memory_server(own, lambda add: _add(own, add), threads):
        yield own


def _add(own: Executions, add: Any) -> None:
    from sandboxlib._remote.stubs import empty_pb, operations_grpc, re_grpc

    class Execution(re_grpc.ExecutionServicer):  # type: ignore[misc]
        def Execute(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
            own.executes.append(request)
            yield from self._stream("Execute", own.on_execute, request, context)

        def WaitExecution(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
            own.waits.append(request.name)
            yield from self._stream("WaitExecution", own.on_wait, request, context)

        def _stream(self, name: str, give: Any, request: Any, context: Any) -> Iterator[Any]:
            own.count(1)
            try:
                own.came(name, context)
                yield from give(request, context)
            finally:
                own.count(-1)

    class Operations(operations_grpc.OperationsServicer):  # type: ignore[misc]
        def CancelOperation(self, request: Any, context: Any) -> Any:  # noqa: N802
            own.came("CancelOperation", context)
            own.cancelled.append(request.name)
            own.was_cancelled.set()
            return empty_pb.Empty()

    re_grpc.add_ExecutionServicer_to_server(Execution(), add)
    operations_grpc.add_OperationsServicer_to_server(Operations(), add)
