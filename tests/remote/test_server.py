# SPDX-License-Identifier: Apache-2.0
"""Server: its URL and its credentials, its calls and their tries, its life."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.certificates import Authority, jwt, write_token
from lib.cluster import new_cluster
from lib.fake_server import FakeServer
from lib.waiting import wait_until

from sandboxlib import RemoteError, Server, SpecError, SpecTypeError, UnsupportedError
from sandboxlib._reapi import EMPTY, digest_of
from sandboxlib._remote import cas
from sandboxlib._remote.stubs import grpc, re_grpc, re_pb

# ---- the URL and the name of the instance -------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "target", "shown"),
    [
        ("grpc://cache:8980", "dns:cache:8980", "grpc://cache:8980"),
        ("grpc://Cache:8980/", "dns:cache:8980", "grpc://cache:8980"),
        ("grpcs://cache", "dns:cache:443", "grpcs://cache:443"),
        ("grpc://[::1]:50051", "dns:[::1]:50051", "grpc://[::1]:50051"),
        ("unix:///run/casd.sock", "unix:/run/casd.sock", "unix:///run/casd.sock"),
        ("unix:/run/casd.sock", "unix:/run/casd.sock", "unix:///run/casd.sock"),
    ],
)
def test_a_url_names_a_place(url: str, target: str, shown: str) -> None:
    with Server(url) as server:
        assert server.url == shown
        assert server._address.target == target


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("cache:8980", "no known kind"),
        ("http://cache:80", "no known kind"),
        ("grpc://cache", "without a port"),
        ("grpc://:80", "without a host"),
        ("grpc://cache:port", "grpc://HOST:PORT"),
        ("grpc://cache:99999", "grpc://HOST:PORT"),
        ("grpc://cache:80/main", "instance=NAME"),
        ("grpc://me:word@cache:80", "a token is token=PATH"),
        ("grpc://cache:80?x=1", "more than a host"),
        ("unix://run/casd.sock", "unix:///PATH"),
        ("unix:casd.sock", "unix:///PATH"),
        ("grpc://ca che:80", "characters"),
        ("grpc://cache:80\n", "characters"),
        ("", "no known kind"),
    ],
)
def test_a_url_that_names_none_is_refused(url: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        Server(url)


@pytest.mark.parametrize("name", ["a//b", "/a", "a/", "a/blobs/b", "uploads", "a\nb", "a\0"])
def test_a_name_that_no_instance_has_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match="instance"):
        Server("grpc://cache:80", instance=name)


def test_values_of_the_wrong_type_are_refused() -> None:
    for options in ({"instance": 1}, {"token": "secret"}, {"token": 5}, {"url": 5}):
        with pytest.raises(SpecTypeError):
            Server(**{"url": "grpcs://cache:80", **options})  # type: ignore[arg-type]


def test_a_token_as_text_is_not_repeated_in_the_error() -> None:
    with pytest.raises(SpecTypeError, match="not the path of a file") as caught:
        Server("grpcs://cache", token="eyJhbGciOi")  # type: ignore[arg-type]
    assert "eyJhbGciOi" not in str(caught.value)


# ---- calls --------------------------------------------------------------------------------------


def test_a_socket_of_unix_is_a_place(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with FakeServer(f"unix:{path}") as fake, Server(f"unix://{path}") as server:
        digest = fake.put(b"over a socket")
        assert cas.fetch(server, [digest]) == {digest: b"over a socket"}


def test_an_error_names_the_server_the_call_the_code_and_a_remedy() -> None:
    with Server("grpc://127.0.0.1:1") as server, pytest.raises(RemoteError) as caught:
        server.call("Ask", lambda seconds: ask(server, seconds), tries=1)
    text = str(caught.value)
    assert text.startswith("grpc://127.0.0.1:1: Ask: UNAVAILABLE: ")
    assert text.endswith("is the server up, and the URL right (grpc:// has no TLS, grpcs:// has)?")
    assert pickle.loads(pickle.dumps(caught.value)).code == "UNAVAILABLE"


def ask(server: Server, seconds: float) -> Any:
    stub = server.stub(re_grpc.CapabilitiesStub)
    return stub.GetCapabilities(re_pb.GetCapabilitiesRequest(), timeout=seconds)


def test_words_of_a_server_are_cut_off_and_move_no_cursor(fake: FakeServer, server: Server) -> None:
    fake.instead["GetCapabilities"] = lambda request, context: context.abort(
        grpc.StatusCode.INTERNAL, "\x1b[2J" + "x" * 5000
    )
    with pytest.raises(RemoteError) as caught:
        server.capabilities()
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 2200


@pytest.mark.usefixtures("no_waits")
def test_tries_are_counted(fake: FakeServer, server: Server) -> None:
    for tries, once, calls in ((3, False, 3), (1, False, 1), (6, True, 1)):
        fake.fails["GetCapabilities"] = ["UNAVAILABLE"] * 10
        fake.calls.clear()
        with pytest.raises(RemoteError, match="UNAVAILABLE"):
            server.call("Ask", lambda seconds: ask(server, seconds), tries=tries, once=once)
        assert len(fake.calls) == calls


def test_a_timeout_bounds_all_tries_together(fake: FakeServer, server: Server) -> None:
    fake.fails["GetCapabilities"] = ["UNAVAILABLE"] * 1000
    began = time.monotonic()
    with pytest.raises(RemoteError, match="UNAVAILABLE"):
        server.call("Ask", lambda seconds: ask(server, seconds), timeout=0.5, tries=1000)
    assert time.monotonic() - began < 5
    fake.fails.clear()
    fake.instead["GetCapabilities"] = fake.hang
    with pytest.raises(RemoteError, match="DEADLINE_EXCEEDED"):
        server.call("Ask", lambda seconds: ask(server, seconds), timeout=0.3)


def test_an_event_ends_the_waiting(fake: FakeServer, server: Server) -> None:
    fake.fails["GetCapabilities"] = ["UNAVAILABLE"] * 1000
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    began = time.monotonic()
    with pytest.raises(RemoteError, match="UNAVAILABLE"):
        server.call("Ask", lambda seconds: ask(server, seconds), tries=1000, timeout=600, stop=stop)
    assert time.monotonic() - began < 30


def test_capabilities_are_asked_for_once(fake: FakeServer, server: Server) -> None:
    assert server.capabilities() is server.capabilities()
    assert fake.calls == ["GetCapabilities"]
    assert server.largest_batch() == (4 << 20) - (64 << 10)  # a server that says no limit


def test_a_server_without_capabilities_gets_the_defaults(fake: FakeServer, server: Server) -> None:
    fake.fails["GetCapabilities"] = ["UNIMPLEMENTED"]
    assert server.largest_batch() == (4 << 20) - (64 << 10)


def test_a_limit_that_no_message_could_have_is_bounded(fake: FakeServer, server: Server) -> None:
    fake.capabilities.cache_capabilities.max_batch_total_size_bytes = 1 << 40
    assert server.largest_batch() < 4 << 20


def test_a_server_without_sha256_is_refused(fake: FakeServer, server: Server) -> None:
    del fake.capabilities.cache_capabilities.digest_function[:]
    fake.capabilities.cache_capabilities.digest_function.append(re_pb.DigestFunction.MD5)
    with pytest.raises(UnsupportedError, match="does not take SHA-256"):
        cas.fetch(server, [digest_of(b"x")])


# ---- credentials --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def keys(authority: Authority) -> tuple[Path, Path]:
    return authority.sign("server")


@pytest.fixture
def safe(authority: Authority, keys: tuple[Path, Path]) -> Iterator[FakeServer]:
    """A server with TLS, which asks for the certificates of its clients."""
    pair = (keys[0].read_bytes(), keys[1].read_bytes())
    signed_by = authority.certificate.read_bytes()
    credentials = grpc.ssl_server_credentials([pair], signed_by, True)
    with FakeServer(credentials=credentials) as made:
        yield made


def test_a_private_authority_and_a_certificate_of_the_client(
    safe: FakeServer, authority: Authority
) -> None:
    key, cert = authority.sign("client")
    with Server(safe.url, ca=authority.certificate, cert=cert, key=key) as server:
        digest = safe.put(b"safe")
        assert cas.fetch(server, [digest]) == {digest: b"safe"}


@pytest.mark.parametrize("lacks", ["ca", "certificate", "trust"])
def test_a_peer_that_is_not_trusted_gets_nothing(
    safe: FakeServer, authority: Authority, tmp_path: Path, lacks: str
) -> None:
    key, cert = authority.sign("client")
    options: dict[str, Any] = {"ca": authority.certificate, "cert": cert, "key": key}
    if lacks == "ca":
        options.pop("ca")
    elif lacks == "certificate":
        options = {"ca": authority.certificate}
    else:
        options["key"], options["cert"] = Authority(tmp_path, "other").sign("stranger")
    with Server(safe.url, **options) as server, pytest.raises(RemoteError, match="UNAVAILABLE"):
        server.call("Ask", lambda seconds: ask(server, seconds), tries=1)
    assert safe.calls == []


def test_files_of_tls_are_checked_first(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    (tmp_path / "text").write_text("no certificate")
    os.mkfifo(tmp_path / "fifo")
    for options, says in (
        ({"ca": tmp_path / "none"}, "ca cannot be read"),
        ({"ca": tmp_path / "fifo"}, "ca cannot be read"),
        ({"ca": tmp_path / "text"}, "ca is no PEM file"),
        ({"cert": keys[1]}, "belong together"),
        ({"key": keys[0]}, "belong together"),
    ):
        with pytest.raises(SpecError, match=says):
            Server("grpcs://cache", **options)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="for TLS"):
        Server("grpc://cache:80", ca=keys[1])


def test_a_token_is_read_again_when_its_file_changes(fake: FakeServer, tmp_path: Path) -> None:
    path = write_token(tmp_path / "token", "first\n")
    with Server(fake.url, token=path) as server:
        assert "first" not in repr(server)
        cas.missing(server, [EMPTY])
        cas.missing(server, [EMPTY])
        write_token(tmp_path / "new", "second").rename(path)
        cas.missing(server, [EMPTY])
        with path.open("w") as file:  # the same inode, of the same size
            file.write("third!")
        cas.missing(server, [EMPTY])
        path.unlink()
        with pytest.raises(RemoteError, match=r"UNAUTHENTICATED: no token: .*No such file"):
            cas.missing(server, [EMPTY])
        write_token(path, "fourth")
        cas.missing(server, [EMPTY])
        path.chmod(0o644)
        with pytest.raises(RemoteError, match=r"UNAUTHENTICATED: no token: .*chmod 6[04]0"):
            cas.missing(server, [EMPTY])
    words = ("first", "first", "second", "third!", "fourth")
    assert fake.tokens == [f"Bearer {word}" for word in words]


def test_a_token_goes_with_streams_too(fake: FakeServer, tmp_path: Path) -> None:
    token = write_token(tmp_path / "token", "word")
    content = bytes(5 << 20)
    with Server(fake.url, token=token) as server:
        cas.upload(server, {digest_of(content): content})
        cas.fetch(server, [digest_of(content)])
    assert {"Write", "Read"} <= set(fake.calls)
    assert set(fake.tokens) == {"Bearer word"}


def test_a_token_does_not_go_where_others_could_read_it(tmp_path: Path) -> None:
    path = write_token(tmp_path / "token", "word")
    for url in ("grpc://cache:80", "grpc://192.0.2.1:80", "grpc://localhost.example:80"):
        with pytest.raises(SpecError, match="can be read by anyone on the way"):
            Server(url, token=path)
    for url in ("grpcs://cache", "unix:///x", "grpc://127.1.2.3:80", "grpc://[::1]:80"):
        Server(url, token=path).close()


@pytest.mark.parametrize("content", [b"", b"two words", b"\xff", b"a\0b", b"x" * 70000])
def test_a_file_without_a_token_is_refused_and_not_shown(tmp_path: Path, content: bytes) -> None:
    path = write_token(tmp_path / "token", content)
    with pytest.raises(SpecError, match=r"no single word|more than \d+ bytes") as caught:
        Server("grpcs://cache", token=path)
    assert "words" not in str(caught.value)


def owned_tokens(path: Path) -> Iterator[int]:
    """Owners of a file with a token: the caller and, if that is root, another user."""
    write_token(path, "word")
    yield path.stat().st_uid
    if os.geteuid() == 0:
        os.chown(path, 4321, 4321)
        yield 4321


def test_a_token_is_read_by_its_owner_and_the_group_of_roots_alone(tmp_path: Path) -> None:
    for owner in owned_tokens(tmp_path / "token"):
        for mode in (0o600, 0o400, 0o700, *((0o640, 0o440) if owner == 0 else ())):
            (tmp_path / "token").chmod(mode)
            Server("grpcs://cache", token=tmp_path / "token").close()
        for mode in (0o644, 0o604, 0o660, 0o620, 0o602, 0o610, *((0o640,) if owner else ())):
            (tmp_path / "token").chmod(mode)
            remedy = f"mode {mode:04o}, .*: chmod {600 if owner else 640}"
            with pytest.raises(SpecError, match=remedy):
                Server("grpcs://cache", token=tmp_path / "token")


@pytest.mark.slow
def test_buildgrid_with_tls_and_tokens(tmp_path: Path, authority: Authority) -> None:
    secret = "a secret of thirty-two characters or more"
    key, cert = authority.sign("buildgrid")
    client_key, client_cert = authority.sign("client")
    token = write_token(tmp_path / "token", jwt(secret, exp=int(time.time()) - 60))
    certificates = (key, cert, authority.certificate)
    with (
        new_cluster(tmp_path / "cluster", certificates=certificates, secret=secret) as cluster,
        Server(
            cluster.url, token=token, ca=authority.certificate, cert=client_cert, key=client_key
        ) as server,
    ):
        assert cluster.url.startswith("grpcs://")
        with pytest.raises(RemoteError, match="UNAUTHENTICATED"):
            cas.missing(server, [EMPTY])
        token.write_text(jwt(secret, exp=int(time.time()) + 600))
        cas.upload(server, {digest_of(b"safe"): b"safe"})
        assert cas.fetch(server, [digest_of(b"safe")]) == {digest_of(b"safe"): b"safe"}


# ---- its life -----------------------------------------------------------------------------------


def test_it_connects_at_the_first_call_only(fake: FakeServer) -> None:
    with Server("grpc://192.0.2.1:1"):
        pass
    with Server(fake.url) as server:
        assert server._channel is None
        server.capabilities()
        assert server._channel is not None


def test_after_close_each_call_is_an_error(fake: FakeServer) -> None:
    server = Server(fake.url)
    server.capabilities()
    server.close()
    server.close()
    assert server.closed
    assert "closed" in repr(server)
    with pytest.raises(RemoteError, match="CANCELLED: the Server is closed"):
        cas.missing(server, [EMPTY])
    assert fake.calls == ["GetCapabilities"]


@pytest.mark.parametrize("method", ["FindMissingBlobs", "Read", "Write"])
def test_close_ends_calls_that_run(fake: FakeServer, method: str) -> None:
    content = bytes(5 << 20)
    fake.instead[method] = fake.hang
    server = Server(fake.url)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            if method == "Read":
                cas.fetch(server, [digest_of(content)])
            else:
                cas.upload(server, {digest_of(content): content})
        except BaseException as error:
            errors.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    assert wait_until(lambda: method in fake.calls)
    server.close()
    worker.join(30)
    (error,) = errors
    assert isinstance(error, RemoteError)
    assert error.code == "CANCELLED"
    assert "the Server is closed" in str(error)


def test_close_ends_the_waiting_between_tries() -> None:
    server = Server("grpc://127.0.0.1:1")
    errors: list[RemoteError] = []

    def work() -> None:
        try:
            server.call("Ask", lambda seconds: ask(server, seconds), tries=1000, timeout=600)
        except RemoteError as error:
            errors.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    assert wait_until(lambda: server._channel is not None)
    server.close()
    worker.join(30)
    assert not worker.is_alive()
    assert len(errors) == 1


def test_threads_share_one_connection(fake: FakeServer, server: Server) -> None:
    digest = fake.put(b"shared")
    found: list[dict[str, bytes]] = []
    workers = [
        threading.Thread(target=lambda: found.append(cas.fetch(server, [digest])))
        for _ in range(20)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert found == [{digest: b"shared"}] * 20


def fetch_in_child(server: Server, digest: str, pipe: Any) -> None:
    try:
        pipe.send(cas.fetch(server, [digest]))
        server.close()
    except BaseException as error:
        pipe.send(repr(error))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_of_a_fork_has_a_connection_of_its_own(cluster: Any) -> None:
    with Server(cluster.url) as server:
        digest = digest_of(b"forked")
        cas.upload(server, {digest: b"forked"})
        here, there = multiprocessing.Pipe()
        server._lock.acquire()  # as a thread of the parent's may, which the child does not have
        child = multiprocessing.get_context("fork").Process(
            target=fetch_in_child, args=(server, digest, there)
        )
        try:
            child.start()
        finally:
            server._lock.release()
        assert here.poll(60)
        assert here.recv() == {digest: b"forked"}
        child.join(60)
        assert child.exitcode == 0
        assert cas.fetch(server, [digest]) == {digest: b"forked"}


def test_it_cannot_be_pickled(server: Server) -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(server)


def test_one_that_is_not_closed_warns(fake: FakeServer) -> None:
    servers = [Server(fake.url)]
    servers[0].capabilities()
    with pytest.warns(ResourceWarning, match="unclosed <Server grpc://"):
        servers.clear()
    Server(fake.url)  # never used, so there is nothing to close
    gc.collect()


NOTHING_LEFT = """
import gc, os, sys, time
from sandboxlib import Server
from sandboxlib._remote import cas
from sandboxlib._reapi import digest_of

def left():
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

def use():
    with Server(sys.argv[1]) as server:
        for size in (10, 5 << 20):
            content = os.urandom(size)
            cas.upload(server, {digest_of(content): content})
            cas.fetch(server, [digest_of(content)])

use()
counts = []
for _ in range(8):
    use()
    gc.collect()
    counts.append(left())
end = time.monotonic() + 20
while left()[0] > counts[0][0] + 2 and time.monotonic() < end:
    time.sleep(0.1)
print(counts[0][0], left()[0], max(threads for _, threads in counts))
"""


def test_servers_that_are_closed_leave_no_descriptor_and_no_growing_threads(
    fake: FakeServer,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOTHING_LEFT, fake.url],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    first, last, threads = map(int, done.stdout.split())
    assert last <= first + 2
    assert threads < 40  # gRPC keeps a pool of its own


NOT_INSTALLED = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Nothing())
import sandboxlib
from sandboxlib import *  # all names, without the packages
assert Server is sandboxlib.Server
try:
    Server("grpc://cache:80")
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize("absent", ["grpc", "google", "buildgrid"])
def test_without_the_packages_the_error_names_the_extra(absent: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", NOT_INSTALLED.format(absent=[absent])],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert "pip install 'sandboxlib[remote]'" in done.stdout
    assert f"No module named '{absent}" in done.stdout


def test_the_import_of_sandboxlib_brings_nothing_of_it() -> None:
    program = "import sys, sandboxlib; sandboxlib.Sandbox; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    modules = done.stdout.split()
    rooms = ("grpc", "google", "buildgrid", "asyncio", "typing", "sandboxlib._remote")
    assert not [name for name in modules if name.startswith(rooms)]
