# SPDX-License-Identifier: Apache-2.0
"""The session of the worker with the bots service of the Remote Workers API.

The worker tells its leases and their states, and the answer says which leases it has now. A lease
that the answer lacks was taken back. An idle worker's update waits at the server until there is
work; when a lease is done meanwhile, the worker cancels that call and makes another.
"""

from __future__ import annotations

import random
import threading
import time

from .._remote.stubs import bots_grpc, bots_pb, grpc
from ..errors import RemoteError, SandboxError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .._remote.server import Server
    from .config import Config
    from .leases import Leases
    from .logs import Log
    from .metrics import Metrics

OK, UNHEALTHY = bots_pb.BotStatus.Value("OK"), bots_pb.BotStatus.Value("UNHEALTHY")
UNSPECIFIED = bots_pb.BotStatus.Value("BOT_STATUS_UNSPECIFIED")
TERMINATING = bots_pb.BotStatus.Value("BOT_TERMINATING")
#: With these codes the server says that it does not know the session. BuildGrid says
#: INVALID_ARGUMENT and DATA_LOSS.
LOST = ("INVALID_ARGUMENT", "NOT_FOUND", "DATA_LOSS", "ABORTED", "FAILED_PRECONDITION")
#: How long a call may take that the server need not wait in.
PROMPT = 30.0
#: The waits between tries, in seconds: the first, and the longest.
FIRST, LONGEST = 0.2, 10.0
#: The pause, in seconds, after an update that could wait for work and was answered at once.
BRIEF = 0.5
#: A session that lives no longer than this was taken by another worker of the same name.
SHORT = 5.0
#: How long a worker without leases tries to tell a server that does not answer that it ends.
LAST_TRIES = 5.0
#: How long the worker takes no lease after one failed here: the first time, and at most.
REST, LONGEST_REST = 5.0, 300.0


class CallFailed(Exception):
    """A call to the bots service failed. code: str, the name of gRPC."""

    def __init__(self, call: str, code: str, details: str) -> None:
        super().__init__(f"{call}: {code}: {details}")
        self.call = call
        self.code = code


class Session:
    """Keeps a session while the worker lives, and makes a new one when the server lost it.

    Args:
        connect: makes a Server: one at first, and one each time that calls end without an answer.
        properties: (name, value) of what the worker has, as the scheduler compares them.
        leases: what the session is about.
        status: called with a text when something changed that a person wants to know.
    """

    def __init__(
        self,
        config: Config,
        connect: Callable[[], Server],
        properties: Sequence[tuple[str, str]],
        log: Log,
        metrics: Metrics,
        status: Callable[[str], object],
    ) -> None:
        self._config = config
        self._connect = connect
        self._properties = properties
        self._log = log
        self._metrics = metrics
        self._status = status
        self._server = connect()
        self._stub: Any = None
        self._message = self._first_message()
        self._event = threading.Event()  # something to tell, or a call that ended
        self._draining: float | None = None
        self._drains = threading.Event()
        self._reconnects = False
        self._began = 0.0  # the session
        self._failures = 0
        self._failed_since = 0.0
        self._rest_until = 0.0
        self._rest = REST
        #: When the loop last went on (time.monotonic): a watchdog looks at it.
        self.beat = time.monotonic()
        #: How long it may be silent.
        self.silence = config.poll + config.heartbeat + PROMPT + LONGEST
        #: Set when the server knows the worker.
        self.known = threading.Event()
        self.leases: Leases

    def wake(self) -> None:
        """Look again, at once: a lease is done."""
        self._event.set()

    def drain(self) -> None:
        """Take no more leases; run() returns when those that there are are done and told."""
        if self._draining is None:
            self._draining = time.monotonic()
            self._drains.set()
            self._event.set()

    @property
    def is_draining(self) -> bool:
        return self._draining is not None

    def reconnect(self) -> None:
        """Make a new connection, which reads the token and the certificates again."""
        self._reconnects = True
        self._event.set()

    def rest(self) -> None:
        """Take no lease for a while, since one failed for a reason of this machine."""
        if time.monotonic() < self._rest_until:
            return  # another lease failed at the same time
        self._rest_until = time.monotonic() + self._rest
        self._log.warning("the worker rests", seconds=self._rest)
        self._rest = min(self._rest * 4, LONGEST_REST)

    def recovered(self) -> None:
        """An action ran as it should."""
        self._rest = REST

    def run(self) -> None:
        """Keep the session until drain() was called and nothing is left to tell."""
        while not self._is_over():
            self.beat = time.monotonic()
            if self._reconnects:
                self._reconnects = False
                self._renew()
            try:
                if self._message.name:
                    self._update()
                else:
                    self._open()
            except CallFailed as error:
                self._after_failure(error)
        self._status("stopped")

    def close(self) -> None:
        self._server.close()

    # ---- what is told ------------------------------------------------------------------------

    def _first_message(self) -> bots_pb.BotSession:
        message = bots_pb.BotSession(bot_id=self._config.name, status=UNSPECIFIED)
        device = message.worker.devices.add(handle=self._config.name)
        for key, value in self._properties:
            device.properties.add(key=key, value=value)
        message.worker.configs.add(key="capacity", value=str(self._config.slots))
        return message

    def _health(self) -> Any:
        if self._draining is not None:
            return TERMINATING
        return OK if time.monotonic() >= self._rest_until else UNHEALTHY

    def _open(self) -> None:
        """Begin a session. As the worker takes no leases yet, the server need not wait for any."""
        request = bots_pb.CreateBotSessionRequest(
            parent=self._config.instance, bot_session=self._message
        )
        answer = self._call("CreateBotSession", request, PROMPT, may_wait=False)
        if not answer.name:
            raise CallFailed("CreateBotSession", "INTERNAL", "the session has no name")
        self._message.name = answer.name
        self._message.version = answer.version
        self._began = time.monotonic()
        self._metrics.count("sessions")
        self._log.info("session began", session=answer.name)
        self._take({}, answer)
        self.known.set()

    def _update(self) -> None:
        self._event.clear()
        message = bots_pb.BotSession()
        message.CopyFrom(self._message)
        message.status = self._health()
        works = self.leases.works()
        message.leases.extend(work.message() for work in works)
        self._metrics.record("healthy", message.status == OK)
        busy = len(works)
        nothing_done = all(work.done is None for work in works)
        may_wait = message.status == OK and busy < self.leases.slots and nothing_done
        timeout = self._wait_time(busy) if may_wait else PROMPT
        request = bots_pb.UpdateBotSessionRequest(name=message.name, bot_session=message)
        asked = time.monotonic()
        answer = self._call("UpdateBotSession", request, timeout, may_wait)
        if answer is None:
            return  # there is something new to tell
        self._message.version = answer.version
        had = {lease.id: lease for lease in message.leases}
        is_news = self._take(had, answer)
        if not may_wait and not is_news and nothing_done and not self._is_over():
            # The server does not wait for anything, so the worker does.
            self._event.wait(self._pause(answer))
        elif may_wait and not is_news and time.monotonic() - asked < BRIEF:
            # This server does not wait either: a worker without a pause would be all that it hears.
            self._event.clear()
            if all(work.done is None for work in self.leases.works()) and not self._is_over():
                self._event.wait(self._until_drained(BRIEF))

    def _wait_time(self, busy: int) -> float:
        """How long the server may wait for work in a call: a busy worker wants to know soon what
        was cancelled. BuildGrid waits for 4/5 of that, and not at all if these are below 3 s.
        """
        return max(self._config.heartbeat, 5.0) if busy else self._config.poll

    def _pause(self, answer: bots_pb.BotSession) -> float:
        """How long to wait until the next update, which has to come before the session ends."""
        pause = self._config.heartbeat
        if not self.leases.works():
            pause = max(pause, self._rest_until - time.monotonic())
        if answer.HasField("expire_time"):
            pause = min(pause, max(1.0, (answer.expire_time.ToSeconds() - time.time()) / 3))
        return self._until_drained(pause)

    def _take(self, had: dict[str, bots_pb.Lease], answer: bots_pb.BotSession) -> bool:
        """Take over the leases of an answer. Whether there is something to tell the server."""
        new = self.leases.settle(had, list(answer.leases))
        room = self.leases.slots - (len(self.leases.works()) - len(new))
        for work in new:
            if self._draining is not None:
                self.leases.refuse(work, "the worker is going to stop")
            elif room <= 0:
                self.leases.refuse(work, f"all {self.leases.slots} slots have a lease")
            else:
                self.leases.start(work)
                room -= 1
        self._status(self._text())
        return bool(new)

    def _text(self) -> str:
        busy = len(self.leases.works())
        state = "draining, " if self._draining is not None else ""
        return f"{state}{busy} of {self.leases.slots} slots busy"

    # ---- the end -----------------------------------------------------------------------------

    def _is_over(self) -> bool:
        if self._draining is None:
            return False
        waited = time.monotonic() - self._draining
        works = self.leases.works()
        if waited >= self._config.drain_timeout:
            self.leases.stop()
        if waited >= self._config.drain_timeout + PROMPT:
            self._log.error("stopped without the server's answer", leases=len(works))
            return True
        if not self._message.name:
            return True  # no server knows of us
        if not works and self._failures and waited >= LAST_TRIES:
            self._log.warning("stopped while the server does not answer")
            return True
        return not works and self._message.status == TERMINATING

    def _until_drained(self, pause: float) -> float:
        if self._draining is None:
            return pause
        end = self._draining + self._config.drain_timeout
        return min(pause, max(0.1, end - time.monotonic()))

    # ---- calls -------------------------------------------------------------------------------

    def _call(self, name: str, request: Any, timeout: float, may_wait: bool) -> Any:
        """Make a call. Returns the answer; None if the call could wait and there is news to tell.

        Raises CallFailed.
        """
        if self._stub is None:
            self._stub = self._server.stub(bots_grpc.BotsStub)
        try:
            call = getattr(self._stub, name).future(request, timeout=timeout)
        except RemoteError as error:  # there is no token
            raise CallFailed(name, error.code, str(error)) from None
        if may_wait:
            call.add_done_callback(lambda _: self._event.set())
            self._event.wait()
            if not call.done():
                call.cancel()
        try:
            answer = call.result()
        except grpc.FutureCancelledError:
            self._metrics.count("calls", call=name, code="INTERRUPTED")
            return None
        except grpc.RpcError as error:
            code = error.code().name
            self._metrics.count("calls", call=name, code=code)
            raise CallFailed(name, code, error.details() or "") from None
        self._metrics.count("calls", call=name, code="OK")
        self._message.status = request.bot_session.status
        if self._failures:
            silent = time.monotonic() - self._failed_since
            self._log.info("the server answers", seconds=silent, failures=self._failures)
            self._failures = 0
        return answer

    def _after_failure(self, error: CallFailed) -> None:
        """Wait before the next try, and begin a new session if this one is lost."""
        if not self._failures:
            self._failed_since = time.monotonic()
        is_lost = bool(self._message.name) and error.code in LOST
        lived = time.monotonic() - self._began
        if is_lost:
            hint = {} if lived > SHORT else {"hint": "is there another worker with this name?"}
            self._log.warning("session lost", error=str(error), lived=lived, **hint)
            self.leases.forget()
            self._message = self._first_message()
        elif self._failures % 30 == 0:
            self._log.warning("the server does not answer", error=str(error))
        self._status(f"no session: {error}" if not self._message.name else f"waiting: {error}")
        self._failures += 1
        if error.code == "DEADLINE_EXCEEDED":
            self._renew()
        wait = min(LONGEST, FIRST * 2 ** min(self._failures - 1, 10))
        if is_lost:
            wait = 0 if lived > SHORT else LONGEST
        self._sleep(wait * random.uniform(0.5, 1))

    def _renew(self) -> None:
        """Connect anew: a connection that has lost packets may be silent for minutes after the
        network is back, and a new one reads the token and the certificates again.
        """
        try:
            server = self._connect()
        except SandboxError as error:
            self._log.error("the old connection is kept", error=str(error))
            return
        self._server.close()
        self._server, self._stub = server, None
        self._log.debug("connected anew")

    def _sleep(self, seconds: float) -> None:
        """Sleep until the next try. The beginning of the end cuts that short."""
        if self._draining is None:
            self._drains.wait(seconds)
        else:
            time.sleep(self._until_drained(seconds))
