# SPDX-License-Identifier: Apache-2.0
"""The worker with servers that take only clients with a certificate, and its new connections."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from lib.bots import FakeBots
from lib.certificates import Authority, jwt, write_token
from lib.cluster import new_cluster
from lib.fake_server import FakeServer
from lib.farm import Farmer, WorkerProcess, worker
from lib.waiting import wait_until

from sandboxlib._reapi import digest_of
from sandboxlib._remote.server import Server
from sandboxlib._remote.stubs import code_pb, digest_message, grpc
from sandboxlib._worker.worker import Source

SECRET = "a secret of thirty-two characters or more"


@pytest.mark.slow
def test_a_worker_with_a_certificate_and_a_token(tmp_path: Path) -> None:
    (tmp_path / "signed").mkdir()
    authority = Authority(tmp_path / "signed")
    key, cert = authority.sign("buildgrid")
    own_key, own_cert = authority.sign("worker")
    good = jwt(SECRET, exp=int(time.time()) + 600)
    for name, text in (
        ("client", good),
        ("worker", good),
        ("expired", jwt(SECRET, exp=int(time.time()) - 60)),
    ):
        write_token(tmp_path / name, text)
    token = tmp_path / "worker"
    credentials = {"ca": authority.certificate, "cert": own_cert, "key": own_key}
    flags = [word for name, path in credentials.items() for word in (f"--{name}", str(path))]
    certificates = (key, cert, authority.certificate)
    with (
        new_cluster(tmp_path / "cluster", certificates=certificates, secret=SECRET) as cluster,
        closing(Farmer(cluster.url, token=tmp_path / "client", **credentials)) as farmer,
    ):
        with worker(
            cluster.url, tmp_path / "cache", "safe", *flags, "--token", str(token), "--poll", "4"
        ) as process:
            response = farmer.run("cat a; wc a > b", files={"a": b"in\n"}, outputs=["b"])
            assert farmer.stdout(response) == b"in\n"
            assert [file.path for file in response.result.output_files] == ["b"]

            # A token that has expired stops the work, and a new one in the file lets it go on.
            shutil.copy(tmp_path / "expired", token)
            process.wait_for("the server does not answer")
            assert "UNAUTHENTICATED" in process.events("the server does not answer")[0]["error"]
            waiting = farmer.start(farmer.action("echo after"))
            token.write_text(good)
            assert farmer.stdout(waiting.response()) == b"after\n"

            # A signal makes new connections, with the certificates that are there then.
            new_key, new_cert = authority.sign("renewed")
            shutil.copy(new_key, own_key)
            shutil.copy(new_cert, own_cert)
            process.process.send_signal(signal.SIGHUP)
            process.wait_for("connected anew")
            assert farmer.stdout(farmer.run("echo renewed")) == b"renewed\n"
            assert good not in process.log.read_text()
            assert process.end() == 0
        for lacking in (flags[2:], flags[:2], [*flags, "--token", str(tmp_path / "expired")]):
            stranger = WorkerProcess(cluster.url, tmp_path / "stranger", "", *lacking)
            stranger.wait_for("the server does not answer")
            assert not stranger.events("session began")
            assert stranger.end() == 0


@pytest.mark.slow
def test_a_signal_makes_a_new_connection_to_the_server_of_files_too(tmp_path: Path) -> None:
    (tmp_path / "signed").mkdir()
    authority = Authority(tmp_path / "signed")
    pairs = [tuple(path.read_bytes() for path in authority.sign("server"))]
    credentials = grpc.ssl_server_credentials(pairs, authority.certificate.read_bytes(), True)
    key, cert = authority.sign("first")
    flags = ["--ca", str(authority.certificate), "--cert", str(cert), "--key", str(key)]
    clients = []
    digest = digest_message(digest_of(b"an action that it lacks"))
    with FakeBots(credentials) as bots, FakeServer(credentials=credentials) as store:
        store.instead["BatchReadBlobs"] = lambda request, context: clients.extend(
            context.auth_context()["x509_common_name"]
        )
        flags += ["--cas", store.url]
        with worker(bots.url, tmp_path / "cache", "", *flags) as process:
            bots.give(digest)
            bots.wait_done(1)
            for new, old in zip(authority.sign("second"), (key, cert), strict=True):
                shutil.copy(new, old)
            process.process.send_signal(signal.SIGHUP)
            process.wait_for("connected anew")
            bots.give(digest)
            bots.wait_done(2)
            store.fails["BatchReadBlobs"] = ["UNAUTHENTICATED"]
            bots.give(digest)
            assert bots.wait_done(3)[2].status.code == code_pb.UNAVAILABLE
            process.wait_for("the worker rests")
            assert process.end() == 0
    assert clients == [b"first", b"second"]


def test_a_transfer_goes_on_while_the_connection_is_made_anew() -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def wait(request: Any, context: Any) -> None:
        begun.set()
        assert goes_on.wait(30)

    with FakeServer() as old, FakeServer() as new:
        slow, quick = old.put(b"slow"), new.put(b"quick")
        old.instead["BatchReadBlobs"] = wait
        first = Server(old.url)
        source, found = Source(first), []
        thread = threading.Thread(target=lambda: found.append(source.fetch([slow])))
        thread.start()
        try:
            assert begun.wait(30)
            source.renew(Server(new.url))
            assert source.fetch([quick]) == {quick: b"quick"}
            assert not first.closed
        finally:
            goes_on.set()
            thread.join(30)
        assert found == [{slow: b"slow"}]
        assert wait_until(lambda: first.closed)
        source.close()
