# SPDX-License-Identifier: Apache-2.0
"""A bots service in this process, which does what a test tells it: it gives leases, takes them
back, loses sessions, and fails.
"""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sandboxlib._remote.stubs import bots_grpc, bots_pb, grpc

ACTIVE, COMPLETED = bots_pb.LeaseState.Value("ACTIVE"), bots_pb.LeaseState.Value("COMPLETED")
OK = bots_pb.BotStatus.Value("OK")


class FakeBots(bots_grpc.BotsServicer):
    """The service. `with FakeBots() as bots:` listens at bots.url.

    credentials: of a grpc server, for TLS; None: without.
    """

    def __init__(self, credentials: Any = None) -> None:
        self.credentials = credentials
        self.changed = threading.Condition()
        self.names = itertools.count()
        self.session = ""
        self.sessions: list[bots_pb.BotSession] = []
        self.version = 1
        self.queue: list[bots_pb.Lease] = []
        self.leases: dict[str, bots_pb.Lease] = {}
        self.done: list[bots_pb.Lease] = []
        self.statuses: list[int] = []
        self.failures: list[grpc.StatusCode] = []  # of the next calls
        self.calls = 0
        self.waits = True  # whether an update waits for work
        self.has_names = True  # whether a session gets a name
        self.capacity = 0  # leases at once, whatever the worker says; 0: as it says

    def __enter__(self) -> FakeBots:
        self.server = grpc.server(ThreadPoolExecutor(8))
        bots_grpc.add_BotsServicer_to_server(self, self.server)
        if self.credentials is None:
            self.port = self.server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self.server.add_secure_port("127.0.0.1:0", self.credentials)
        self.url = f"grpc{'s' if self.credentials else ''}://127.0.0.1:{self.port}"
        self.server.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self.changed:
            self.changed.notify_all()
        self.server.stop(0.2).wait(10)

    # ---- what a test does --------------------------------------------------------------------

    def give(self, payload: Any) -> str:
        """Queue a lease with a message as its payload. Returns its id."""
        with self.changed:
            lease = bots_pb.Lease(id=f"lease-{next(self.names)}", state=ACTIVE)
            lease.payload.Pack(payload)
            self.queue.append(lease)
            self.changed.notify_all()
        return lease.id

    def take_back(self, id: str) -> None:
        """Cancel a lease: the next answer lacks it. As in BuildGrid, no call ends for that."""
        with self.changed:
            del self.leases[id]
            self.version += 1

    def lose(self) -> None:
        """Forget the session."""
        with self.changed:
            self.session = ""
            self.changed.notify_all()

    def wait_done(self, number: int, timeout: float = 30) -> list[bots_pb.Lease]:
        """Wait until this many leases were given back."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.done) >= number, timeout), self.done
            return list(self.done)

    # ---- the calls ---------------------------------------------------------------------------

    def _fail(self, context: grpc.ServicerContext) -> None:
        self.calls += 1
        if self.failures:
            context.abort(self.failures.pop(0), "as the test wants it")

    def CreateBotSession(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with self.changed:
            self._fail(context)
            answer = request.bot_session
            answer.name = self.session = f"{request.parent}/{next(self.names)}"
            if not self.has_names:
                answer.name = ""
            answer.version = str(self.version)
            self.sessions.append(answer)
            self.leases.clear()
            self.changed.notify_all()
            return answer

    def UpdateBotSession(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        with self.changed:
            self._fail(context)
            answer = request.bot_session
            if request.name != self.session:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "there is no such session")
            self.statuses.append(answer.status)
            capacity = self.capacity or int(answer.worker.configs[0].value)
            old = answer.version
            for lease in answer.leases:
                if lease.state == COMPLETED and self.leases.pop(lease.id, None) is not None:
                    self.done.append(lease)
                    self.version += 1
            self._assign(answer.status, capacity)
            is_idle = old == str(self.version) and len(self.leases) < capacity
            if is_idle and answer.status == OK and self.waits:
                context.add_callback(self._notify)
                wait = min(context.time_remaining() or 5, 60) * 0.8
                self.changed.wait_for(lambda: self._has_news(context), wait)
                self._assign(answer.status, capacity)
            if request.name != self.session:
                context.abort(grpc.StatusCode.DATA_LOSS, "the session is closed")
            del answer.leases[:]
            answer.leases.extend(self.leases.values())
            answer.version = str(self.version)
            self.changed.notify_all()
            return answer

    def _notify(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def _has_news(self, context: grpc.ServicerContext) -> bool:
        return bool(self.queue) or not self.session or not context.is_active()

    def _assign(self, status: int, capacity: int) -> None:
        while status == OK and self.queue and len(self.leases) < capacity:
            lease = self.queue.pop(0)
            self.leases[lease.id] = lease
            self.version += 1
