# SPDX-License-Identifier: Apache-2.0
"""What goes wrong around a worker, done for real: servers that restart, a network that is cut,
workers that are killed, blobs that are damaged, disks that are full. Most are slow; quick ones of
the session and of the cache are in test_worker_session.py and tests/actions.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.certificates import write_token
from lib.farm import Farmer, WorkerProcess, worker
from lib.machine import needs_root, require
from lib.waiting import processes, wait_until

from sandboxlib._reapi import digest_of


@pytest.fixture
def farmer(cluster: Any) -> Iterator[Farmer]:
    made = Farmer(cluster.url)
    yield made
    made.close()


def unique() -> str:
    """Seconds that no other command sleeps for."""
    return str(100_000 + time.time_ns() % 1_000_000)


def begun(farmer: Farmer, script: str) -> Any:
    """Start an action, and wait until its command runs: its inputs are there then."""
    seconds = f"1.{time.time_ns() % 10**9}"
    waiting = farmer.start(farmer.action(f"sleep {seconds}; {script}"))
    assert wait_until(lambda: processes(seconds))
    return waiting


@pytest.mark.slow
def test_the_server_restarts(cluster: Any, farmer: Farmer, tmp_path: Path) -> None:
    with worker(cluster.url, tmp_path / "cache") as process:
        waiting = begun(farmer, "echo over it")
        cluster.stop_server()
        process.wait_for("lease done")  # while there is no server
        cluster.start_server()
        assert farmer.stdout(waiting.response()) == b"over it\n"
        assert farmer.stdout(farmer.run("echo after")) == b"after\n"
        assert process.events("the server answers")
        assert process.end() == 0


@pytest.mark.slow
def test_the_database_restarts(cluster: Any, farmer: Farmer, tmp_path: Path) -> None:
    with worker(cluster.url, tmp_path / "cache") as process:
        waiting = begun(farmer, "echo over it")
        cluster.stop_database()
        process.wait_for("lease done")
        process.wait_for("the server does not answer")
        cluster.start_database()
        assert farmer.stdout(waiting.response(90)) == b"over it\n"
        assert farmer.stdout(farmer.run("echo after", 90)) == b"after\n"
        assert process.end() == 0


@pytest.mark.slow
def test_a_worker_that_is_killed_leaves_nothing_and_its_action_runs_elsewhere(
    cluster: Any, farmer: Farmer, tmp_path: Path
) -> None:
    seconds = unique()
    script = f"(setsid sleep {seconds} &) ; sleep 4; echo once"
    with worker(cluster.url, tmp_path / "a") as a, worker(cluster.url, tmp_path / "b") as b:
        waiting = farmer.start(farmer.action(script))
        assert wait_until(lambda: processes(seconds))
        killed, other = (a, b) if a.events("lease accepted") else (b, a)
        killed.process.kill()
        assert wait_until(lambda: other.events("lease accepted") or not processes(seconds))
        response = waiting.response()
        assert farmer.stdout(response) == b"once\n"
        assert response.result.execution_metadata.worker == other.name
        assert other.end() == 0
    assert wait_until(lambda: not processes(seconds))
    # What the killed worker had is used again, also its name.
    cache = killed.log.parent / ("a" if killed is a else "b")
    with worker(cluster.url, cache, killed.name) as again:
        assert farmer.stdout(farmer.run("echo again")) == b"again\n"
        assert again.end() == 0


def blob_files(cluster: Any, digest: str) -> list[Path]:
    """Where the store of BuildGrid keeps a blob."""
    name = digest.partition("/")[0]
    return list(Path(cluster.directory, "cas").rglob(f"*{name[2:20]}*"))


def test_a_damaged_blob_of_the_server_harms_its_action_alone(
    cluster: Any, farmer: Farmer, tmp_path: Path
) -> None:
    data = os.urandom(64)
    digest = farmer.action("cat a", {"a": data})
    (path,) = blob_files(cluster, digest_of(data))
    path.write_bytes(os.urandom(64))
    with worker(cluster.url, tmp_path / "cache") as process:
        response = farmer.execute(digest)
        assert response.status.code != 0
        assert not response.result.output_files
        assert farmer.run("true").status.code == 0
        path.write_bytes(data)
        assert farmer.stdout(farmer.execute(digest)) == data
        assert process.end() == 0


@pytest.mark.slow
def test_a_damaged_file_of_the_cache_is_fetched_again(
    cluster: Any, farmer: Farmer, tmp_path: Path
) -> None:
    files = {"a": os.urandom(32).hex().encode()}
    with worker(cluster.url, tmp_path / "cache", "damaged") as process:
        assert farmer.stdout(farmer.run("cat a", files=files)) == files["a"]
        assert process.end() == 0
    name = digest_of(files["a"]).partition("/")[0]
    found = list((tmp_path / "cache/store").rglob(name))
    assert found
    for path in found:
        path.chmod(0o600)
        path.write_bytes(b"x" * len(files["a"]))
    more = {**files, "b": b"another input root"}
    with worker(cluster.url, tmp_path / "cache", "damaged") as process:
        assert farmer.stdout(farmer.run("cat a", files=more)) == files["a"]
        assert process.end() == 0


@pytest.mark.slow
@needs_root
def test_a_full_disk_makes_a_worker_rest_and_another_one_runs_the_action(
    cluster: Any, farmer: Farmer, tmp_path: Path
) -> None:
    small, big = tmp_path / "small", os.urandom(3 << 20)
    small.mkdir()
    mount = f'mount -t tmpfs -o size=3M,mode=700 none {small} && exec "$@"'
    before = ["unshare", "-m", "--propagation", "private", "sh", "-c", mount, "sh"]
    with worker(cluster.url, small, before=before) as full:
        waiting = farmer.start(farmer.action("echo fits", {"big": big}))
        full.wait_for("the worker rests")
        assert full.events("lease done")[0]["code"] == "UNAVAILABLE"
        with worker(cluster.url, tmp_path / "cache") as roomy:
            response = waiting.response()
            assert farmer.stdout(response) == b"fits\n"
            assert response.result.execution_metadata.worker == roomy.name
        assert full.end() == 0


# ---- the network -----------------------------------------------------------------------------

RELAY = """
import socket, sys, threading
def copy(a, b):
    try:
        while data := a.recv(65536):
            b.sendall(data)
        b.shutdown(socket.SHUT_WR)
    except OSError:
        pass
with socket.create_server((sys.argv[1], 5000)) as listener:
    print("ready", flush=True)
    while True:
        client, _ = listener.accept()
        server = socket.socket(socket.AF_UNIX)
        server.connect(sys.argv[2])
        for pair in ((client, server), (server, client)):
            threading.Thread(target=copy, args=pair, daemon=True).start()
"""


def ip(pid: int, *words: str) -> None:
    subprocess.run(["nsenter", "-t", str(pid), "-n", "ip", *words], check=True, timeout=30)


@contextlib.contextmanager
def two_networks(cluster: Any) -> Iterator[tuple[int, int]]:
    """Two network namespaces of our own that a cable joins; in the second one, the server is at
    10.77.0.1:5000. Gives the pids of a process in each; nothing of the machine's network changes.
    """
    started: list[subprocess.Popen[bytes]] = []
    try:
        for argv in (
            ["sleep", "600"],
            [sys.executable, "-c", RELAY, "10.77.0.1", cluster.socket.removeprefix("unix://")],
        ):
            waits = ["sh", "-c", 'read go; exec "$@"', "sh", *argv]
            started.append(
                subprocess.Popen(
                    ["unshare", "-n", *waits], stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            )
        near, far = (process.pid for process in started)
        own = os.readlink("/proc/self/ns/net")
        for pid in (near, far):
            assert wait_until(lambda pid=pid: os.readlink(f"/proc/{pid}/ns/net") != own)
        ip(near, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", str(far))
        for pid, address in ((near, "10.77.0.2/24"), (far, "10.77.0.1/24")):
            ip(pid, "address", "add", address, "dev", "cable")
            ip(pid, "link", "set", "cable", "up")
            ip(pid, "link", "set", "lo", "up")
        for process in started:
            assert process.stdin
            process.stdin.write(b"go\n")
            process.stdin.close()
        assert started[1].stdout
        assert started[1].stdout.readline() == b"ready\n"
        yield near, far
    finally:
        for process in started:
            process.kill()
            process.wait()
            for file in (process.stdin, process.stdout):
                if file:
                    file.close()


@pytest.mark.slow
@needs_root
@pytest.mark.parametrize("seconds", [5, 60])
def test_the_network_is_cut(cluster: Any, farmer: Farmer, tmp_path: Path, seconds: float) -> None:
    require(shutil.which("ip") and shutil.which("nsenter"), "there is no ip, or no nsenter")
    require(cluster.socket, "the server has no Unix socket")
    with (
        two_networks(cluster) as (near, far),
        worker(
            "grpc://10.77.0.1:5000", tmp_path / "cache", before=["nsenter", "-t", str(near), "-n"]
        ) as process,
    ):
        assert farmer.run("true").status.code == 0
        waiting = begun(farmer, "echo cut")
        ip(far, "link", "set", "cable", "down")
        time.sleep(seconds)
        ip(far, "link", "set", "cable", "up")
        assert farmer.stdout(waiting.response(150)) == b"cut\n"
        assert farmer.stdout(farmer.run("echo after", 100)) == b"after\n"
        assert process.end() == 0


def test_a_token_and_the_instance_go_with_each_call(cluster: Any, tmp_path: Path) -> None:
    token = write_token(tmp_path / "token", "first\n")
    flags = ("--token", str(token), "--instance", "other/one")
    with worker(cluster.url, tmp_path / "cache", "", *flags) as process:
        began = process.events("session began")[0]["session"]
        assert began.startswith("other/one/")
        token.unlink()
        process.process.send_signal(signal.SIGHUP)
        process.wait_for("the old connection is kept")
        assert process.end() == 0


@pytest.mark.slow
def test_a_wrong_cache_or_port_is_told_before_anything_begins(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    write_token(tmp_path / "read", "word").chmod(0o644)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for flags, text in (
            (("--cache", str(tmp_path / "file/cache")), "cannot be used"),
            (("--cache", str(tmp_path / "open")), "can be written by other users: chmod go-w"),
            (("--token", str(tmp_path / "read")), "other users can read or write"),
            (("--metrics", str(port)), "cannot be listened on"),
            (("--sandbox", "networks=on"), "[sandbox]"),
            (("--property", 'network="on"'), "[properties] network"),
            (("--token", str(tmp_path / "lacks")), "token"),
        ):
            process = WorkerProcess(cluster.url, tmp_path / "cache", "", *flags)
            assert process.process.wait(60) == 2, process.log.read_text()
            assert text in process.log.read_text()
