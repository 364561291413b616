# SPDX-License-Identifier: Apache-2.0
"""The session of a worker with a bots service that loses it, fails, and takes leases back."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from lib.bots import COMPLETED, FakeBots
from lib.waiting import wait_until

from sandboxlib import SpecError
from sandboxlib._remote.server import Server
from sandboxlib._remote.stubs import any_pb, bots_pb, code_pb, grpc, re_pb, status_pb
from sandboxlib._worker import leases as leases_module
from sandboxlib._worker.config import read_config
from sandboxlib._worker.leases import Ended, Leases, Work
from sandboxlib._worker.logs import Log
from sandboxlib._worker.metrics import Metrics
from sandboxlib._worker.session import Session

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


class Run:
    """A session in a thread, whose leases are executed by a function of the test's."""

    def __init__(self, url: str, execute: Callable[[Work], Ended], **flags: str) -> None:
        flags = {"server": url, "name": "w1", "slots": "2", "heartbeat": "1", **flags}
        config = read_config(None, flags)
        self.stream = io.BytesIO()
        log = Log("json", "debug", self.stream)
        metrics = Metrics()
        self.statuses: list[str] = []
        self.session = Session(
            config, lambda: Server(url), [("OSFamily", "linux")], log, metrics, self.statuses.append
        )
        self.leases = Leases(config.slots, execute, self.session.wake, log, metrics)
        self.session.leases = self.leases
        self.thread = threading.Thread(target=self.session.run)
        self.thread.start()

    def text(self) -> str:
        """The log."""
        return self.stream.getvalue().decode()

    def end(self) -> None:
        self.session.drain()
        self.thread.join(60)
        assert not self.thread.is_alive()
        self.leases.close()
        self.session.close()


@contextmanager
def running(bots: FakeBots, execute: Callable[[Work], Ended], **flags: str) -> Iterator[Run]:
    run = Run(bots.url, execute, **flags)
    try:
        yield run
    finally:
        run.end()


def action(number: int = 0) -> re_pb.Action:
    return re_pb.Action(salt=b"%d" % number)


def ended(code: int = 0, message: str = "") -> Ended:
    return Ended(status_pb.Status(code=code, message=message), re_pb.ActionResult(exit_code=3))


def quick(work: Work) -> Ended:
    return ended()


def until_stopped(work: Work) -> Ended:
    work.stop.wait(60)
    return ended(code_pb.CANCELLED, "stopped")


@pytest.fixture
def bots() -> Iterator[FakeBots]:
    with FakeBots() as service:
        yield service


def test_leases_are_executed_and_their_results_are_given_back(bots: FakeBots) -> None:
    with running(bots, quick) as run:
        ids = [bots.give(action(number)) for number in range(20)]
        done = bots.wait_done(20)
        assert {lease.id for lease in done} == set(ids)
        for lease in done:
            result = re_pb.ActionResult()
            assert lease.state == COMPLETED
            assert lease.status.code == 0
            assert lease.result.Unpack(result)
            assert result.exit_code == 3
        assert wait_until(lambda: run.leases.works() == [])
    (session,) = bots.sessions
    assert session.bot_id == "w1"
    assert [(p.key, p.value) for p in session.worker.devices[0].properties] == [
        ("OSFamily", "linux")
    ]
    assert session.worker.configs[0].value == "2"


def test_as_many_run_at_once_as_there_are_slots(bots: FakeBots) -> None:
    both = threading.Barrier(2)

    def meet(work: Work) -> Ended:
        both.wait(30)  # breaks unless two run at once
        return ended()

    with running(bots, meet):
        for number in range(4):
            bots.give(action(number))
        assert [lease.status.code for lease in bots.wait_done(4)] == [0] * 4


def test_a_lease_that_is_done_does_not_wait_for_the_end_of_a_long_call(bots: FakeBots) -> None:
    go = threading.Event()

    def wait(work: Work) -> Ended:
        go.wait(30)
        return ended()

    with running(bots, wait, heartbeat="60", poll="100"):
        bots.give(action())
        assert wait_until(lambda: len(bots.statuses) == 2)  # the call that waits for a second lease
        began = time.monotonic()
        go.set()
        bots.wait_done(1)
        assert time.monotonic() - began < 10


def test_a_lease_that_the_server_takes_back_is_stopped_and_not_told(bots: FakeBots) -> None:
    with running(bots, until_stopped, slots="1") as run:
        id = bots.give(action())
        assert wait_until(lambda: id in bots.leases and run.leases.running() == 1)
        bots.take_back(id)
        assert wait_until(lambda: run.leases.running() == 0)
        assert run.leases.works() == []
        bots.give(action())
        assert wait_until(lambda: run.leases.running() == 1)
        run.leases.stop()
        assert [lease.status.code for lease in bots.wait_done(1)] == [code_pb.CANCELLED]


def test_a_lost_session_stops_its_leases_and_a_new_one_begins(bots: FakeBots) -> None:
    with running(bots, until_stopped, slots="1") as run:
        bots.give(action())
        assert wait_until(lambda: run.leases.running() == 1)
        first = run.leases.works()[0]
        time.sleep(0.1)
        run.session._began -= 100  # as if the session had lived for a while
        bots.lose()
        assert wait_until(lambda: len(bots.sessions) == 2)
        assert first.stop.is_set()
        bots.give(action())
        assert wait_until(lambda: run.leases.running() == 1 and bool(run.leases.works()))
        assert run.leases.works()[0] is not first
        run.leases.stop()


def test_a_session_that_is_lost_at_once_is_not_made_again_at_once(bots: FakeBots) -> None:
    with running(bots, quick) as run:
        assert wait_until(lambda: len(bots.sessions) == 1)
        bots.lose()
        assert wait_until(lambda: "another worker with this name" in run.text())
        time.sleep(0.5)
        assert len(bots.sessions) == 1


@pytest.mark.parametrize("code", ["UNAVAILABLE", "INTERNAL", "RESOURCE_EXHAUSTED", "UNKNOWN"])
def test_a_failing_server_stops_no_action(bots: FakeBots, code: str) -> None:
    go = threading.Event()

    def wait(work: Work) -> Ended:
        assert go.wait(30)
        return ended(code_pb.CANCELLED if work.stop.is_set() else 0)

    with running(bots, wait, slots="1") as run:
        bots.give(action())
        assert wait_until(lambda: run.leases.running() == 1)
        bots.failures += [grpc.StatusCode[code]] * 3
        go.set()
        assert [lease.status.code for lease in bots.wait_done(1)] == [0]
        assert len(bots.sessions) == 1
        assert not bots.failures
        assert wait_until(lambda: "the server answers" in run.text())
        assert run.text().count("the server does not answer") == 1


def test_a_worker_waits_for_a_server_that_is_not_there_yet() -> None:
    bots = FakeBots()
    with bots:
        pass  # the port is free again
    run = Run(bots.url, quick)
    assert wait_until(lambda: "the server does not answer" in run.text())
    run.end()
    assert not run.session.known.is_set()


def test_a_worker_that_drains_takes_nothing_finishes_and_tells(bots: FakeBots) -> None:
    go = threading.Event()

    def wait(work: Work) -> Ended:
        assert go.wait(30)
        return ended()

    with running(bots, wait, slots="2") as run:
        bots.give(action())
        assert wait_until(lambda: run.leases.running() == 1)
        run.session.drain()
        assert wait_until(lambda: bots.statuses[-1] == 4)  # BOT_TERMINATING
        bots.give(action())
        time.sleep(0.3)
        assert len(bots.queue) == 1  # for another worker
        go.set()
        assert [lease.status.code for lease in bots.wait_done(1)] == [0]
        run.thread.join(30)
        assert not run.thread.is_alive()
    assert len(bots.done) == 1


def test_after_the_drain_timeout_an_action_is_stopped_and_told(bots: FakeBots) -> None:
    def stopped(work: Work) -> Ended:
        work.stop.wait(60)
        return ended(code_pb.UNAVAILABLE, "the worker stops")

    with running(bots, stopped, drain_timeout="0.3") as run:
        bots.give(action())
        assert wait_until(lambda: run.leases.running() == 1)
        began = time.monotonic()
        run.end()
        assert time.monotonic() - began < 10
    assert [lease.status.code for lease in bots.done] == [code_pb.UNAVAILABLE]


def test_a_worker_that_rests_is_given_nothing(bots: FakeBots) -> None:
    def fails_here(work: Work) -> Ended:
        if len(bots.done) == 0:
            run.session.rest()
            return ended(code_pb.UNAVAILABLE, "the disk is full")
        return ended()

    with running(bots, fails_here, slots="1") as run:
        run.session._rest = 1.0
        bots.give(action())
        bots.wait_done(1)
        bots.give(action())
        assert bots.statuses[-1] == 2  # UNHEALTHY
        assert [lease.status.code for lease in bots.wait_done(2)] == [code_pb.UNAVAILABLE, 0]


def test_an_error_of_the_worker_s_own_is_told_as_internal(bots: FakeBots) -> None:
    def broken(work: Work) -> Ended:
        raise SpecError("nothing works")

    with running(bots, broken) as run:
        bots.give(action())
        (lease,) = bots.wait_done(1)
        assert lease.status.code == code_pb.INTERNAL
        assert "SpecError: nothing works" in lease.status.message
        assert "Traceback" in run.text()


def test_an_idle_worker_makes_few_calls(bots: FakeBots) -> None:
    with running(bots, quick):
        assert wait_until(lambda: bots.calls == 2)
        time.sleep(1.5)
        assert bots.calls == 2  # it waits in the second


def test_a_server_that_never_waits_is_not_called_without_a_pause(bots: FakeBots) -> None:
    bots.waits = False
    with running(bots, quick):
        time.sleep(2.0)
        assert 2 <= bots.calls < 12
        bots.give(action())
        (lease,) = bots.wait_done(1)
        assert lease.status.code == 0


def test_a_session_without_a_name_is_none(bots: FakeBots) -> None:
    bots.has_names = False
    with running(bots, quick) as run:
        time.sleep(1.0)
        assert bots.calls < 10
        assert "the session has no name" in run.text()


def test_a_lease_that_is_told_as_cancelled_is_stopped_or_not_begun() -> None:
    leases = Leases(1, until_stopped, lambda: None, Log("json", "error", io.BytesIO()), Metrics())
    told = bots_pb.Lease(id="a", state=leases_module.ACTIVE)
    (work,) = leases.settle({}, [told])
    assert not work.stop.is_set()
    told.state = leases_module.CANCELLED
    other = bots_pb.Lease(id="b", state=leases_module.CANCELLED)
    assert leases.settle({"a": work.message()}, [told, other, other]) == []
    assert work.stop.is_set()
    assert leases.works() == [work]  # it is told once it has ended
    leases.close()


def test_leases_beyond_the_slots_are_given_back(bots: FakeBots) -> None:
    bots.capacity = 100
    gate = threading.Event()

    def wait(work: Work) -> Ended:
        gate.wait(60)
        return ended()

    with running(bots, wait):
        for number in range(6):
            bots.give(action(number))
        refused = bots.wait_done(4)
        assert {lease.status.code for lease in refused} == {code_pb.UNAVAILABLE}
        assert "slots" in refused[0].status.message
        gate.set()
        bots.wait_done(6)


@pytest.mark.parametrize("kind", ["Action", "Digest", "Nothing"])
def test_a_lease_whose_payload_is_no_message_has_no_action(kind: str) -> None:
    from sandboxlib._worker.worker import wanted_of

    name = f"type.googleapis.com/build.bazel.remote.execution.v2.{kind}"
    assert wanted_of(any_pb.Any(type_url=name, value=b"\xff\xff")) is None
