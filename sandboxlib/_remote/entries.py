# SPDX-License-Identifier: Apache-2.0
"""Entries: the results of Commands in the action cache of a server, by the digests of Actions."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from threading import Event

from .. import _reapi
from .._digest.action import action_message, command_message
from .._digest.hermetic import refuse
from .._inputs.frozen import frozen
from .._runs.run import Stopped
from .._spec.command import Command
from .._spec.spec import Spec
from .._store.storage import storage_of
from ..errors import RemoteError
from ..result import Result
from . import cas
from .keeping import wanted
from .results import Answer, action_result, answer_of
from .server import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SLICE = 0.1  # seconds between two looks at the event that ends a call


class Keyed:
    """A Command as it was when its key was made. digest: the key. action: the message of it."""

    __slots__ = ("action", "command", "digest")

    def __init__(self, command: Command, action: bytes) -> None:
        self.command, self.action = command, action
        self.digest = _reapi.digest_of(action)


class Entries:
    """The results of Commands in a Sandbox.

    box: of frozen_box(). assume: as in Command.digest. stop: an Event that ends the calls, with
    Stopped; None: there is none.
    """

    def __init__(
        self, box: Spec, server: Server, assume: Iterable[str], stop: Event | None
    ) -> None:
        self.box, self._server, self._assume, self._stop = box, server, assume, stop

    def keyed(self, command: Command) -> Keyed:
        """The Command with its key. SpecError if it has none; SetupError for an input that cannot
        be read.
        """
        refuse(command, self.box, self._assume)
        made = frozen(command)
        return Keyed(made, action_message(made, self.box))

    def get(self, keyed: Keyed) -> Answer | None:
        """What the cache has; None if it has nothing that may stand for a run: a failure, an
        incomplete result, or one whose contents are gone. RemoteError.
        """
        from .stubs import digest_message, re_grpc, re_pb

        command, server = keyed.command, self._server
        names = wanted(command)
        request = re_pb.GetActionResultRequest(
            instance_name=server.instance,
            action_digest=digest_message(keyed.digest),
            inline_stdout="stdout" in names,
            inline_stderr="stderr" in names,
        )
        try:
            method = server.stub(re_grpc.ActionCacheStub).GetActionResult
            message = self._call("GetActionResult", method, request)
            if message.exit_code != 0:
                return None
            cwd, storage = self.box._cwd_of(command), storage_of(self.box)
            answer = answer_of(server, message, command, cwd, storage, streams=names)
        except RemoteError as error:
            if error.code != "NOT_FOUND":
                raise
            return None
        return None if answer.outputs.missing or answer.limits_hit else answer

    def put(self, keyed: Keyed, result: Result) -> None:
        """Writes a result that is ok. One that no message can have is not written. RemoteError."""
        from .stubs import digest_message, re_grpc, re_pb

        if action_message(keyed.command, self.box) != keyed.action:
            return  # the environment of this process has another SOURCE_DATE_EPOCH than before
        server = self._server
        written = action_result(result, self.box._cwd_of(keyed.command), platform.node())
        if written is None:
            return
        message, blobs = written
        told = command_message(keyed.command, self.box)
        cas.upload(server, {**blobs, keyed.digest: keyed.action, _reapi.digest_of(told): told})
        request = re_pb.UpdateActionResultRequest(
            instance_name=server.instance,
            action_digest=digest_message(keyed.digest),
            action_result=message,
        )
        method = server.stub(re_grpc.ActionCacheStub).UpdateActionResult
        self._call("UpdateActionResult", method, request)

    def _call(self, name: str, method: Any, request: Any) -> Any:
        stop = self._stop
        if stop is None:
            return self._server.call(name, lambda seconds: method(request, timeout=seconds))
        try:
            return self._server.call(name, _watched(method, request, stop), stop=stop)
        except RemoteError:
            if stop.is_set():
                raise Stopped from None
            raise


def _watched(method: Any, request: Any, stop: Event) -> Callable[[float], Any]:
    """A call that ends with Stopped once the event is set."""
    from .stubs import grpc

    def send(seconds: float) -> Any:
        future = method.future(request, timeout=seconds)
        try:
            while True:
                try:
                    return future.result(timeout=_SLICE)
                except grpc.FutureTimeoutError:
                    if stop.is_set():
                        raise Stopped from None
        finally:
            future.cancel()

    return send
