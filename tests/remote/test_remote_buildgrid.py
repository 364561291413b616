# SPDX-License-Identifier: Apache-2.0
"""Remote over a BuildGrid with its database, and what happens if these, or workers, are lost."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.bot import Bot, Refused, Task, wait_until

from sandboxlib import Overlay, Remote, RemoteError, Sandbox, Server, Store


@pytest.fixture
def server(cluster: Any) -> Iterator[Server]:
    with Server(cluster.url) as made:
        yield made


class Kind:
    """A kind of workers that no other test has, and a Remote for it."""

    def __init__(self, server: Server, directory: Path) -> None:
        self.server = server
        self.properties = {"OSFamily": f"linux-{uuid.uuid4().hex}"}
        box = Sandbox(Overlay(), store=Store(directory / "store"))
        self.remote = Remote(box, server, platform=self.properties)

    def bot(self, answer: Callable[[Task], Any], jobs: int = 4) -> Bot:
        return Bot(self.server.url, answer, jobs=jobs, properties=self.properties)


@pytest.fixture
def kind(server: Server, tmp_path: Path) -> Kind:
    return Kind(server, tmp_path)


def echo(task: Task) -> Any:
    """The result of a worker that writes the arguments, and the names of what it was given."""
    from sandboxlib._remote.stubs import re_pb

    words = [*task.command.arguments, *sorted(task.files())]
    answer = re_pb.ActionResult(stdout_raw=" ".join(words).encode())
    for path in task.command.output_paths:
        answer.output_files.add(path=path, digest=task.upload(path.encode()))
    return answer


def test_a_command_is_executed(kind: Kind) -> None:
    with kind.bot(echo):
        ran = kind.remote.run(["prog"], cwd="/src", inputs={"a/b": b"x"}, outputs=["o"])
        assert ran.out == b"prog src/ src/a/ src/a/b"
        assert ran.outputs["/src/o"].read_bytes() == b"o"
        assert not ran.cached
        assert kind.remote.run(["prog"], cwd="/src", inputs={"a/b": b"x"}, outputs=["o"]).cached


def test_a_map_is_executed(kind: Kind) -> None:
    with kind.bot(echo, jobs=8):
        commands = [["prog", str(number)] for number in range(40)]
        results = list(kind.remote.map(commands, jobs=20))
        assert [each.out for each in results] == [b"prog %d" % number for number in range(40)]


def test_a_cancellation_ends_the_action_at_the_worker(kind: Kind) -> None:
    began, ended = threading.Event(), threading.Event()

    def hang(task: Task) -> Any:
        began.set()
        if task.stop.wait(30):
            ended.set()
        return echo(task)

    async def main() -> None:
        run = asyncio.create_task(kind.remote.run_async(["prog"]))
        await asyncio.to_thread(began.wait, 30)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    with kind.bot(hang):
        asyncio.run(main())
        assert ended.wait(30)


def test_codes_of_a_worker_are_told(kind: Kind) -> None:
    def fail(task: Task) -> Any:
        raise Refused("RESOURCE_EXHAUSTED", "the disk of the worker is full")

    with kind.bot(fail), pytest.raises(RemoteError, match="the disk of the worker") as failed:
        kind.remote.run(["prog"])
    assert failed.value.code == "RESOURCE_EXHAUSTED"


def test_what_a_worker_lost_runs_on_another_and_comes_once(kind: Kind) -> None:
    began = threading.Event()

    def hang(task: Task) -> Any:
        began.set()
        task.stop.wait(60)
        raise Refused("UNAVAILABLE", "this worker goes away")

    seen: list[bytes] = []
    with kind.bot(hang) as first:
        run = threading.Thread(target=lambda: seen.append(kind.remote.run(["prog"]).stdout))
        run.start()
        assert began.wait(30)
        with kind.bot(echo) as second:
            first.close()
            run.join(60)
            assert len(second.executed) == 1
    assert seen == [b"prog"]


def in_flight_over(kind: Kind, interrupt: Callable[[], None]) -> None:
    """20 actions begin before something happens, and end after it."""
    gate = threading.Event()

    def wait(task: Task) -> Any:
        gate.wait(60)
        return echo(task)

    with kind.bot(wait, jobs=20) as bot:
        results: list[Any] = []
        commands = [["prog", str(number)] for number in range(20)]
        run = threading.Thread(
            target=lambda: results.extend(kind.remote.map(commands, jobs=20, on_failure="continue"))
        )
        run.start()
        wait_until(lambda: len(bot.executed) >= 20, 60)
        interrupt()
        gate.set()
        run.join(150)
        assert [getattr(each, "out", each) for each in results] == [
            b"prog %d" % number for number in range(20)
        ]


@pytest.mark.slow
def test_a_server_that_restarts_loses_nothing(kind: Kind, cluster: Any) -> None:
    def restart() -> None:
        cluster.stop_server()
        time.sleep(0.5)
        cluster.start_server()

    in_flight_over(kind, restart)


@pytest.mark.slow
def test_a_database_that_restarts_loses_nothing(kind: Kind, cluster: Any) -> None:
    def restart() -> None:
        cluster.stop_database()
        time.sleep(0.5)
        cluster.start_database()

    in_flight_over(kind, restart)
