# SPDX-License-Identifier: Apache-2.0
"""The worker with a BuildGrid that takes only clients with a certificate and a token."""

from __future__ import annotations

import shutil
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest
from lib.certificates import Authority, jwt
from lib.cluster import new_cluster
from lib.farm import Farmer, WorkerProcess, worker

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
        (tmp_path / name).write_text(text)
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
