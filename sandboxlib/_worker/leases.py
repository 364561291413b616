# SPDX-License-Identifier: Apache-2.0
"""The leases of the worker: each is executed by a thread, until it is done or taken back."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from .._remote.stubs import any_pb, bots_pb, code_pb, status_pb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .logs import Log
    from .metrics import Metrics

ACTIVE, COMPLETED = bots_pb.LeaseState.Value("ACTIVE"), bots_pb.LeaseState.Value("COMPLETED")
CANCELLED = bots_pb.LeaseState.Value("CANCELLED")
#: With these the server gives the action to another worker, or to this one again.
RETRIED = (code_pb.UNAVAILABLE, code_pb.INTERNAL)


class Work:
    """A lease, from the moment that the worker takes it.

    id: str of the lease.
    payload: the Any that says what to execute.
    stop: an Event; set, it ends the action.
    done: the Lease to give back, or None while the action runs.
    """

    def __init__(self, id: str, payload: any_pb.Any) -> None:
        self.id = id
        self.payload = payload
        self.stop = threading.Event()
        self.done: bots_pb.Lease | None = None
        self.began = time.monotonic()

    def message(self) -> bots_pb.Lease:
        """The lease as an update of the session has it."""
        if self.done is not None:
            return self.done
        return bots_pb.Lease(id=self.id, state=ACTIVE)


class Ended:
    """How an action ended: the status of the lease, and the ActionResult, if there is one."""

    def __init__(self, status: status_pb.Status, result: Any = None) -> None:
        self.status = status
        self.result = result


class Leases:
    """All leases of the worker, by their ids.

    Args:
        slots: int: how many are executed at once.
        execute: takes a Work and returns an Ended, in a thread of its own; it may raise anything.
        changed: called without arguments when a lease is done.
    """

    def __init__(
        self,
        slots: int,
        execute: Callable[[Work], Ended],
        changed: Callable[[], object],
        log: Log,
        metrics: Metrics,
    ) -> None:
        self.slots = slots
        self._execute = execute
        self._changed = changed
        self._log = log
        self._metrics = metrics
        self._lock = threading.Lock()
        self._works: dict[str, Work] = {}
        #: Set while no action runs, not even one that was taken back.
        self._running = 0
        self._pool = ThreadPoolExecutor(slots, "lease")
        metrics.record("slots", slots)
        metrics.record("leases", 0)

    def works(self) -> list[Work]:
        """The leases that the server is told of."""
        with self._lock:
            return list(self._works.values())

    def running(self) -> int:
        """How many actions run, or wait for a thread, also of those that were taken back."""
        with self._lock:
            return self._running

    def settle(self, sent: dict[str, bots_pb.Lease], told: list[bots_pb.Lease]) -> list[Work]:
        """Take over what the server answered to an update.

        sent: the leases of the update, by their ids.
        told: those of the answer. One that was sent and is not here was taken back, or, if it was
            sent as completed, is over. One that is here alone is new.

        Returns the new ones, which do not run yet.
        """
        ids = {lease.id for lease in told}
        new = []
        with self._lock:
            for id, lease in sent.items():
                work = self._works.get(id)
                if work is None:
                    continue
                if lease.state == COMPLETED:
                    del self._works[id]  # if it is told once more, it is another try
                elif id not in ids:
                    del self._works[id]
                    work.stop.set()
                    self._metrics.count("cancelled")
                    self._log.info("lease taken back", lease=id)
            for lease in told:
                if lease.state == CANCELLED and (known := self._works.get(lease.id)) is not None:
                    known.stop.set()
                if lease.id not in self._works and lease.state not in (COMPLETED, CANCELLED):
                    work = Work(lease.id, lease.payload)
                    self._works[lease.id] = work
                    new.append(work)
            self._metrics.record("leases", len(self._works))
        return new

    def start(self, work: Work) -> None:
        with self._lock:
            self._running += 1
        self._log.info("lease accepted", lease=work.id)
        self._pool.submit(self._run, work)

    def refuse(self, work: Work, text: str) -> None:
        """Give a lease back that was not begun: another worker gets it."""
        self._finish(work, Ended(status_pb.Status(code=code_pb.UNAVAILABLE, message=text)))

    def stop(self) -> None:
        """End all actions; each lease is then given back as the execution says."""
        for work in self.works():
            work.stop.set()

    def forget(self) -> None:
        """End all actions, of which no server wants to hear: the session is lost."""
        with self._lock:
            for work in self._works.values():
                work.stop.set()
            self._works.clear()
            self._metrics.record("leases", 0)

    def close(self) -> None:
        self.forget()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, work: Work) -> None:
        try:
            try:
                ended = self._execute(work)
            except BaseException as error:
                self._log.error("internal error", lease=work.id, trace=traceback.format_exc())
                text = f"the worker failed: {type(error).__name__}: {error}"
                ended = Ended(status_pb.Status(code=code_pb.INTERNAL, message=text))
            self._finish(work, ended)
        finally:
            with self._lock:
                self._running -= 1
            self._changed()

    def _finish(self, work: Work, ended: Ended) -> None:
        lease = bots_pb.Lease(id=work.id, state=COMPLETED, status=ended.status)
        if ended.result is not None:
            lease.result.Pack(ended.result)
        code = code_pb.Code.Name(ended.status.code)
        seconds = time.monotonic() - work.began
        self._metrics.count("actions", code=code)
        self._metrics.record("action_seconds", seconds, phase="all")
        fields: dict[str, object] = {"lease": work.id, "code": code, "seconds": seconds}
        if ended.result is not None:
            fields["exit_code"] = ended.result.exit_code
        if ended.status.message:
            fields["message"] = ended.status.message
        write = self._log.info if ended.status.code not in RETRIED else self._log.warning
        write("lease done", **fields)
        with self._lock:
            work.done = lease
