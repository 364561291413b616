# SPDX-License-Identifier: Apache-2.0
"""The BuildGrid and the PostgreSQL that the tests and the demo start on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import pytest
from lib.machine import require
from lib.waiting import wait_until

from sandboxlib import RemoteError, Server, _reapi
from sandboxlib._cluster import cluster as clusters
from sandboxlib._cluster import database
from sandboxlib._cluster.cluster import Cluster
from sandboxlib._cluster.kept import ClusterError
from sandboxlib._reapi import digest_of
from sandboxlib._remote import cas, stubs


def test_a_cluster_answers_over_tcp_and_over_its_socket(cluster: Cluster) -> None:
    for url in (cluster.url, cluster.socket):
        with Server(url) as server:
            assert server.capabilities().execution_capabilities.exec_enabled


def test_a_client_hears_of_the_end_of_its_action_at_once(cluster: Cluster) -> None:
    command = _reapi.command([b"true"], {}, [], b"")
    action = _reapi.action(digest_of(command), digest_of(b""), 60.0, os.urandom(16), b"")
    blobs: dict[str, bytes] = {digest_of(each): each for each in (command, action, b"")}
    with Server(cluster.url) as server:
        cas.upload(server, blobs)
        name, size = digest_of(action).split("/")
        digest = stubs.re_pb.Digest(hash=name, size_bytes=int(size))
        request = stubs.re_pb.ExecuteRequest(action_digest=digest)
        stream = server.stub(stubs.re_grpc.ExecutionStub).Execute(request, timeout=60)
        operation = next(stream)  # nothing executes it: no worker is there
        asked = stubs.operations_pb.CancelOperationRequest(name=operation.name)
        began = time.monotonic()
        server.stub(stubs.operations_grpc.OperationsStub).CancelOperation(asked, timeout=60)
        with suppress(stubs.grpc.RpcError):  # CANCELLED
            while not operation.done:
                operation = next(stream)
        assert time.monotonic() - began < 20, "the next keep-alive, after 30 s, told it"


@pytest.mark.slow
def test_the_blobs_outlive_the_death_of_the_server_and_of_the_database(cluster: Cluster) -> None:
    with Server(cluster.url) as server:
        digest = digest_of(b"outlives")
        cas.upload(server, {digest: b"outlives"})
        cluster.stop_server()
        cluster.stop_database()
        with pytest.raises(RemoteError, match="UNAVAILABLE"):
            cas.missing(server, [digest])
        cluster.start_database()
        cluster.start_server()
        assert cas.fetch(server, [digest]) == {digest: b"outlives"}


@pytest.mark.slow
@pytest.mark.slow
def test_what_the_database_was_told_outlives_its_death(cluster: Cluster) -> None:
    pb = stubs.bots_pb
    with Server(cluster.url) as server:
        stub = server.stub(stubs.bots_grpc.BotsStub)
        session = pb.BotSession(bot_id=f"bot-{os.getpid()}", status=1)
        session.worker.devices.add(handle="it")
        made = stub.CreateBotSession(pb.CreateBotSessionRequest(bot_session=session), timeout=30)
        cluster.stop_database()
        cluster.start_database()
        made.status = 4  # it ends, so that the server does not wait for work for it
        request = pb.UpdateBotSessionRequest(name=made.name, bot_session=made)

        def update() -> str:
            try:
                stub.UpdateBotSession(request, timeout=30)
            except stubs.grpc.RpcError as error:
                return str(error.code().name)
            return "OK"

        # INTERNAL: a connection that the server had to the database that was.
        answers: list[str] = []
        assert wait_until(lambda: answers.append(update()) or answers[-1] != "INTERNAL", 30)
        assert answers[-1] == "OK", "INVALID_ARGUMENT: the database does not know the session"


def test_a_killed_process_leaves_no_server_behind(tmp_path: Path) -> None:
    require(not Cluster.lacks(), f"no cluster: {Cluster.lacks()}")
    program = f"""
        import time
        from sandboxlib._cluster.cluster import Cluster
        with Cluster({str(tmp_path)!r}) as made:
            print(made.port, made.database.port, made.database.files, flush=True)
            time.sleep(600)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        *ports, files = child.stdout.readline().split()
        assert len(os.listdir(files)) == 1
        assert all(map(_is_taken, ports))
    finally:
        child.kill()
        child.communicate()
    assert wait_until(lambda: not any(map(_is_taken, ports)), 20)
    assert wait_until(lambda: not os.path.exists(files), 20)


def _is_taken(port: str) -> bool:
    """Whether somebody listens on a port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0


@pytest.mark.slow
def test_a_server_that_does_not_start_is_told_with_its_words(tmp_path: Path) -> None:
    require(not Cluster.lacks(), f"no cluster: {Cluster.lacks()}")
    with pytest.raises(ClusterError, match=r"BuildGrid ended: (.|\n)*no_such_setting"):
        Cluster(tmp_path, scheduler={"no-such-setting": 1})


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(clusters, "bgd", lambda: None)
    with pytest.raises(ClusterError, match=r"pip install 'buildgrid\[database\]"):
        Cluster(tmp_path)
    monkeypatch.setattr(clusters, "bgd", lambda: "/bin/true")
    monkeypatch.setattr(clusters.database, "programs", lambda: None)
    assert "apt install postgresql" in Cluster.lacks()
    assert os.listdir(tmp_path) == []


def test_another_user_of_the_machine_does_not_get_into_the_database(cluster: Cluster) -> None:
    psql = database.programs()
    assert psql is not None
    argv = [f"{psql}/psql", "-w", "-h", "127.0.0.1", "-p", str(cluster.database.port)]
    argv += ["-U", "bgd", "-d", "postgres", "-Atc", "select 1"]
    plain = {name: each for name, each in os.environ.items() if not name.startswith("PG")}

    def ask(**environ: str) -> subprocess.CompletedProcess[str]:
        environ = {**plain, "HOME": "/nowhere", "LC_ALL": "C", **environ}
        return subprocess.run(
            argv, env=environ, capture_output=True, text=True, timeout=60, check=False
        )

    assert "no password supplied" in ask().stderr
    assert "authentication failed" in ask(PGPASSWORD="postgres").stderr
    assert ask(**cluster.database.environ).stdout == "1\n"
    path = Path(cluster.database.environ["PGPASSFILE"])
    assert path.stat().st_mode & 0o777 == 0o600
    password = path.read_text().strip().rpartition(":")[2]
    assert len(password) == 64
    assert password not in (cluster.directory / "bgd.yml").read_text() + cluster.database.url
