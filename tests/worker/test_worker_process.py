# SPDX-License-Identifier: Apache-2.0
"""The worker as a process, with a real server: its signals, its figures, what actions may do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.farm import Farmer, WorkerProcess, worker
from lib.waiting import processes, wait_until

from sandboxlib._remote.stubs import code_pb, error_details_pb


@pytest.fixture
def farmer(cluster: Any) -> Iterator[Farmer]:
    made = Farmer(cluster.url)
    yield made
    made.close()


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident(pid: int) -> int:
    """The memory of a process, in KiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0])


def test_an_action_is_executed_and_its_outputs_are_at_the_server(
    cluster: Any, farmer: Farmer, tmp_path: Path
) -> None:
    with worker(cluster.url, tmp_path / "cache") as process:
        script = "cat a; cat b >&2; mkdir out; cat a b > out/ab; exit 3"
        files = {"a": b"one\n", "b": b"two\n"}
        response = farmer.run(script, files=files, outputs=["out/ab", "lacks"])
        result = response.result
        assert response.status.code == 0
        assert result.exit_code == 3
        assert farmer.stdout(response) == b"one\n"
        assert [(f.path, f.digest.size_bytes) for f in result.output_files] == [("out/ab", 8)]
        metadata = result.execution_metadata
        assert metadata.worker == process.name
        assert metadata.worker_start_timestamp.seconds > 1e9
        assert process.end() == 0


def test_what_the_site_does_not_give_is_refused(
    cluster: Any, farmer: Farmer, tmp_path: Path
) -> None:
    with worker(cluster.url, tmp_path / "cache") as process:
        response = farmer.run("true", platform={"network": "on"})
        assert response.status.code == code_pb.FAILED_PRECONDITION
        assert "network" in response.status.message
        assert farmer.run("cat /proc/net/dev", platform={"network": "off"}).status.code == 0
        assert process.end() == 0


def test_a_blob_that_lacks_is_told_as_the_api_says(
    cluster: Any, farmer: Farmer, tmp_path: Path
) -> None:
    with worker(cluster.url, tmp_path / "cache"):
        digest = farmer.action("cat a", {"a": b"nobody has this"}, without=["a"])
        response = farmer.execute(digest)
        assert response.status.code == code_pb.FAILED_PRECONDITION
        failure = error_details_pb.PreconditionFailure()
        assert response.status.details[0].Unpack(failure)
        assert [violation.type for violation in failure.violations] == ["MISSING"]
        assert failure.violations[0].subject.startswith("blobs/")
        assert farmer.run("true").status.code == 0


@pytest.mark.slow
def test_sigterm_lets_the_action_end_and_takes_no_other(
    cluster: Any, farmer: Farmer, tmp_path: Path
) -> None:
    with worker(cluster.url, tmp_path / "cache") as process:
        waiting = farmer.start(farmer.action("sleep 1; echo done"))
        process.wait_for("lease accepted")
        process.process.send_signal(signal.SIGTERM)
        other = farmer.start(farmer.action("echo other"))
        assert farmer.stdout(waiting.response()) == b"done\n"
        assert process.process.wait(30) == 0
        assert len(process.events("lease accepted")) == 1
        with worker(cluster.url, tmp_path / "cache2"):
            assert farmer.stdout(other.response()) == b"other\n"


@pytest.mark.slow
def test_after_the_drain_timeout_another_worker_gets_the_action(
    cluster: Any, farmer: Farmer, tmp_path: Path
) -> None:
    mark = f"mark{time.time_ns()}"
    with worker(cluster.url, tmp_path / "a", "", "--drain-timeout", "0.2") as process:
        waiting = farmer.start(farmer.action(f"sleep 2; echo {mark}"))
        process.wait_for("lease accepted")
        assert process.end() == 0
        assert process.events("lease done")[0]["code"] == "UNAVAILABLE"
    with worker(cluster.url, tmp_path / "b") as second:
        response = waiting.response()
        assert farmer.stdout(response) == f"{mark}\n".encode()
        assert response.result.execution_metadata.worker == second.name


def test_a_second_sigterm_ends_the_worker_and_its_actions_at_once(
    cluster: Any, farmer: Farmer, tmp_path: Path
) -> None:
    seconds = str(100_000 + time.time_ns() % 100_000)
    with worker(cluster.url, tmp_path / "cache") as process:
        waiting = farmer.start(farmer.action(f"sleep {seconds}"))
        assert wait_until(lambda: processes(seconds))
        process.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert process.process.poll() is None
        began = time.monotonic()
        assert process.end() == 128 + signal.SIGTERM
        assert time.monotonic() - began < 10
        assert wait_until(lambda: not processes(seconds))
        waiting.cancel()


def test_an_action_that_is_cancelled_ends_on_the_worker(
    cluster: Any, farmer: Farmer, tmp_path: Path
) -> None:
    seconds = str(100_000 + time.time_ns() % 100_000)
    with worker(cluster.url, tmp_path / "cache", "", "--slots", "1") as process:
        waiting = farmer.start(farmer.action(f"sleep {seconds}"))
        assert wait_until(lambda: processes(seconds))
        waiting.cancel()
        assert wait_until(lambda: not processes(seconds))
        process.wait_for("lease taken back")
        assert farmer.run("true").status.code == 0


def test_two_workers_of_one_name_do_not_share_a_cache(cluster: Any, tmp_path: Path) -> None:
    with worker(cluster.url, tmp_path / "cache", "twin"):
        second = WorkerProcess(cluster.url, tmp_path / "cache", "twin")
        assert second.process.wait(60) == 2
        assert "a worker named twin runs already with the cache" in second.log.read_text()


def test_systemd_and_prometheus_see_the_worker(
    cluster: Any, farmer: Farmer, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        path = str(tmp_path / "notify")
        manager.bind(path)
        manager.settimeout(30)
        env = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "1000000"}
        flags = ("--metrics", "0")
        with worker(cluster.url, tmp_path / "cache", "", *flags, env=env) as process:
            said = manager.recv(4096)
            while b"READY=1" not in said:
                said = manager.recv(4096)
            while b"WATCHDOG=1" not in said:
                said = manager.recv(4096)
            assert farmer.run("true").status.code == 0
            port = process.events("metrics")[0]["port"]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
                text = page.read().decode()
            assert 'sandboxlib_worker_actions_total{code="OK"} 1.0' in text
            assert 'sandboxlib_worker_action_seconds_count{phase="run"} 1.0' in text
            process.process.send_signal(signal.SIGTERM)
            while b"STOPPING=1" not in said:
                said = manager.recv(4096)
            assert process.process.wait(30) == 0


@pytest.mark.slow
def test_sighup_connects_anew(cluster: Any, farmer: Farmer, tmp_path: Path) -> None:
    with worker(cluster.url, tmp_path / "cache") as process:
        process.process.send_signal(signal.SIGHUP)
        process.wait_for("connected anew")
        assert farmer.run("true").status.code == 0
        assert process.end() == 0


@pytest.mark.parametrize("number", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_memory_and_descriptors_stay_level(
    cluster: Any, farmer: Farmer, tmp_path: Path, number: int
) -> None:
    with worker(cluster.url, tmp_path / "cache") as process:
        pid = process.process.pid

        def run(count: int) -> None:
            waits = []
            for _ in range(count):
                waits.append(farmer.start(farmer.action("cat a > b", {"a": os.urandom(9)})))
                if len(waits) > 8:
                    assert waits.pop(0).response().result.exit_code == 0
            for waiting in waits:
                assert waiting.response().result.exit_code == 0

        run(100 if number > 100 else 5)  # then the layers that are kept ready are as many as can be
        before, memory = descriptors(pid), resident(pid)
        run(number)
        assert descriptors(pid) <= (before + 10 if number > 100 else 200)
        assert resident(pid) <= memory + (16 << 10)


def test_an_action_leaves_no_process_and_no_more_output_than_it_may(
    cluster: Any, farmer: Farmer, tmp_path: Path
) -> None:
    seconds = str(100_000 + time.time_ns() % 100_000)
    with worker(cluster.url, tmp_path / "cache", "", "--sandbox", "max_output=100000") as process:
        script = f"setsid nohup sleep {seconds} >/dev/null 2>&1 & (sleep {seconds} &) & exit 0"
        assert farmer.run(script).status.code == 0
        assert wait_until(lambda: not processes(seconds))
        response = farmer.run("yes", timeout=120)
        assert len(farmer.stdout(response)) <= 100_000
        assert process.end() == 0


def test_an_action_that_deletes_its_inputs_harms_no_other(
    cluster: Any, farmer: Farmer, tmp_path: Path
) -> None:
    with worker(cluster.url, tmp_path / "cache"):
        files = {"a": b"kept\n"}
        assert farmer.run("rm -r a bin; echo changed > a", files=files).status.code == 0
        assert farmer.stdout(farmer.run("cat a", files=files)) == b"kept\n"


def test_the_program_in_the_environment_is_the_worker() -> None:
    import sys

    program = Path(sys.executable).with_name("sandboxlib-worker")
    if not program.exists():
        pytest.skip("sandboxlib is not installed here")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("sandboxlib ")
