# SPDX-License-Identifier: Apache-2.0
"""One command on its way: it is prepared and sent, executed by the server, and its outputs are
fetched. All that happens in the threads of Streams; its owner, who may be a thread, an event loop
or a map, is told what comes.
"""

from __future__ import annotations

import contextlib
import random
import threading
from asyncio import CancelledError
from collections.abc import Callable
from queue import Empty
from time import monotonic

from .._spec.command import Command
from ..errors import RemoteError, SandboxError
from . import logs, stubs
from .execution import Execution, Order
from .streams import Going, streams_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from concurrent.futures import Future
    from typing import Any, TypeVar

    T = TypeVar("T")

    from .portable import Sent
    from .remote import Remote
    from .results import Answer


PATIENCE = 8.0  # seconds for telling the server that nobody waits any more


class Landed:
    """What came of a command. answer: Answer. cached, timed_out: as in Result."""

    def __init__(self, answer: Answer, response: Any) -> None:
        self.answer = answer
        self.cached: bool = response.cached_result
        self.timed_out = bool(response.status.code == stubs.code_pb.DEADLINE_EXCEEDED)


class Over(SandboxError):
    """A flight was cancelled by its owner. Nobody else sees it."""


class Flight:
    """One command on its way.

    tell: called in any thread, with the Flight, a word and a value: 'stdout' or 'stderr' and bytes,
    while the command runs; at last 'end' and a Landed or an exception. It returns soon.
    live: whether the owner takes output while the command runs.
    """

    def __init__(
        self,
        remote: Remote,
        command: Command,
        tell: Callable[[Flight, str, Any], object],
        live: bool = False,
    ) -> None:
        self.command, self.live = command, live
        self._remote, self._tell = remote, tell
        self._streams = streams_of(remote.server)
        self.began = monotonic()
        self._lock = threading.Lock()
        self._going: Going | None = None
        self._stop = threading.Event()
        self._unread = 0
        self._sent: Sent | None = None
        self._skip = remote.skip_cache_lookup
        self._tries: set[str] = set()  # the reasons for which it was done again, each once

    @property
    def wall(self) -> float:
        """Seconds since it began."""
        return monotonic() - self.began

    def start(self) -> None:
        """Begins, in another thread."""
        self._step(self._prepare)

    def cancel(self) -> None:
        """Ends it; the server is told, and 'end' comes when it was, or when it does not answer."""
        with self._lock:
            self._stop.set()
            going = self._going
        if going is not None:
            going.cancel()

    def end(self, wait: Callable[[float], str]) -> None:
        """Cancels it, and waits until the server was told, or does not answer.

        wait: returns the word that the owner is told next, within so many seconds, or raises Empty.
        """
        self.cancel()
        until = monotonic() + PATIENCE
        with contextlib.suppress(Empty):
            while (left := until - monotonic()) > 0 and wait(left) != "end":
                pass

    # ---- its steps, each in a thread of the pool ----

    def _step(self, step: Callable[..., None], *args: Any) -> None:
        try:
            done = self._streams.submit(self._guard, step, *args)
        except RuntimeError:
            self._tell(self, "end", self._closed())
            return

        def end(done: Future[object]) -> None:
            if done.cancelled():  # it waited for a thread when the Server was closed
                self._tell(self, "end", self._closed())

        done.add_done_callback(end)

    def _closed(self) -> RemoteError:
        return self._error("CANCELLED", "the Server is closed")

    def _guard(self, step: Callable[..., None], *args: Any) -> None:
        try:
            if self._stop.is_set():
                raise Over
            step(*args)
        except BaseException as error:
            self._tell(self, "end", error)

    def _prepare(self) -> None:
        self.command, self._sent = self._remote._sent(self.command)
        sent = self._sent
        self._patiently(lambda: self._streams.uploads.send(sent))
        self._execute()

    def _patiently(self, call: Callable[[], T]) -> T:
        """What a call returns. A server that restarts is waited for, as while it executes."""
        until = monotonic() + self._remote.patience
        while True:
            try:
                return call()
            except RemoteError as error:
                if error.code != "UNAVAILABLE" or monotonic() > until or self._stop.is_set():
                    raise
            self._stop.wait(random.uniform(0.5, 1.0))

    def _execute(self) -> None:
        assert self._sent is not None
        remote, command = self._remote, self.command
        deadline = None if remote.deadline is None else self.began + remote.deadline
        timeout = command.timeout
        order = Order(self._sent.action, self._skip, timeout, deadline, remote.patience)
        with self._lock:
            if self._stop.is_set():
                raise Over
            self._going = self._streams.start(
                lambda channel: self._run(channel, order),
                lambda going: self._step(self._take, going),
            )

    async def _run(self, channel: Any, order: Order) -> Any:
        follower = logs.Follower(self._remote.server, channel, self._hear if self.live else None)
        execution = Execution(self._remote.server, channel, order, follower.heard)
        try:
            response = await execution.run()
            await follower.finish()
            return response
        finally:
            follower.cancel()

    def _hear(self, name: str, data: bytes) -> int:
        if data:
            with self._lock:
                self._unread += len(data)
            self._tell(self, name, data)
        return self._unread

    def read(self, size: int) -> None:
        """The owner has read so many bytes of the output while the command runs."""
        with self._lock:
            self._unread -= size

    def _take(self, going: Going) -> None:
        try:
            response = going.result()
        except CancelledError:
            if not self._stop.is_set():
                raise self._closed() from None
            raise Over from None
        except TimeoutError:
            text = "the action has had its time; it was cancelled"
            raise self._error("DEADLINE_EXCEEDED", text) from None
        except RemoteError as error:
            if error.code != "FAILED_PRECONDITION" or not self._again("precondition"):
                raise
            self._send_again()
            return
        code = response.status.code
        if code == stubs.code_pb.FAILED_PRECONDITION and self._again("precondition"):
            self._send_again()
        elif code == stubs.code_pb.OK or (
            code == stubs.code_pb.DEADLINE_EXCEEDED and response.HasField("result")
        ):
            self._end(response)
        else:
            name = stubs.code_name(code)
            raise self._error(name, _details(response))

    def _again(self, reason: str) -> bool:
        """Whether a reason to do it again is met for the first time."""
        is_new = reason not in self._tries
        self._tries.add(reason)
        return is_new

    def _send_again(self) -> None:
        """The server may lack what it had, and says so: it gets all of it that it lacks now."""
        assert self._sent is not None
        sent = self._sent
        self._patiently(lambda: self._streams.uploads.send(sent, again=True))
        self._execute()

    def _end(self, response: Any) -> None:
        try:
            answer = self._patiently(lambda: self._remote._answer(self.command, response.result))
        except RemoteError as error:
            if error.code != "NOT_FOUND" or not self._again("outputs"):
                raise
            self._skip = True  # the result names what the server lost: the command has to run
            self._execute()
            return
        self._tell(self, "end", Landed(answer, response))

    def _error(self, code: str, details: str) -> RemoteError:
        return RemoteError(self._remote.server.url, "Execute", code, details)


def _details(response: Any) -> str:
    """What a server says of an action that it did not execute."""
    texts = [response.status.message]
    for each in response.status.details:
        failure = stubs.error_details_pb.PreconditionFailure()
        if stubs.unpacked(each, failure):
            texts += [
                f"{one.type} {one.subject} {one.description}".strip() for one in failure.violations
            ]
    texts.append(response.message)
    return "; ".join(text for text in texts if text)[:4000]
