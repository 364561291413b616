# SPDX-License-Identifier: Apache-2.0
"""The client of gRPC by which the runner reaches casd, against grpcio's server and hostile ones."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lib.fake_casd import FakeCasd

from sandboxlib import _reapi
from sandboxlib._buildbox import wire
from sandboxlib._buildbox.casd import Casd
from sandboxlib._buildbox.hpack import Decoder, Malformed, encode
from sandboxlib._buildbox.wire import CallFailed, Connection


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeCasd]:
    with FakeCasd(tmp_path) as fake:
        yield fake


@pytest.fixture
def casd(fake: FakeCasd) -> Iterator[Casd]:
    casd = Casd(fake.url.removeprefix("unix:"))
    yield casd
    casd.close()


def test_blobs_of_any_size_come_back_as_they_went(casd: Casd, fake: FakeCasd) -> None:
    sizes = [0, 1, 16383, 16384, 16385, 70_000, 1 << 20, (3 << 20) + 1, 20 << 20]
    contents = [os.urandom(size) for size in sizes]
    blobs: dict[str, bytes | str] = {_reapi.digest_of(each): each for each in contents}
    assert casd.upload(blobs) == sum(sizes)
    assert casd.upload(blobs) == 0, "what is there is not sent again"
    assert casd.fetch(blobs) == blobs
    assert {"Write", "Read", "BatchUpdateBlobs", "BatchReadBlobs"} <= set(fake.calls)


def test_ten_thousand_small_blobs_go_in_several_calls(casd: Casd, fake: FakeCasd) -> None:
    blobs: dict[str, bytes | str] = {}
    for number in range(10_000):
        content = str(number).encode()
        blobs[_reapi.digest_of(content)] = content
    assert casd.upload(blobs) == sum(len(each) for each in blobs.values())
    assert casd.fetch(blobs) == blobs
    assert fake.calls.count("BatchReadBlobs") > 1


def test_a_file_is_uploaded_from_its_path(casd: Casd, fake: FakeCasd, tmp_path: Path) -> None:
    for size in (10, 5 << 20):
        content = os.urandom(size)
        (tmp_path / "file").write_bytes(content)
        digest = _reapi.digest_of(content)
        casd.upload({digest: str(tmp_path / "file")})
        assert fake.blobs[digest] == content


@pytest.mark.parametrize("size", [5, 5 << 20])
def test_a_missing_blob_is_named(casd: Casd, size: int) -> None:
    digest = f"{'0' * 64}/{size}"
    with pytest.raises(CallFailed, match=digest) as caught:
        casd.fetch([digest])
    assert caught.value.code == "NOT_FOUND"


def test_a_blob_with_another_content_is_refused(casd: Casd, fake: FakeCasd) -> None:
    digest = _reapi.digest_of(b"right")
    fake.blobs[digest] = b"wrong"
    with pytest.raises(CallFailed, match=digest) as caught:
        casd.fetch([digest])
    assert caught.value.code == "DATA_LOSS"


def test_a_call_that_the_server_does_not_know_is_unimplemented(tmp_path: Path) -> None:
    with FakeCasd(tmp_path, stages=False) as fake:
        casd = Casd(fake.url.removeprefix("unix:"))
        casd.begin_staging(_reapi.EMPTY, (0, 0))
        with pytest.raises(CallFailed) as caught:
            casd.staged()
        assert caught.value.code == "UNIMPLEMENTED"
        casd.close()


def test_other_calls_go_on_beside_a_staged_tree(casd: Casd, fake: FakeCasd) -> None:
    root = fake.put(_reapi.directory({b"f": _reapi.file_node(b"f", fake.put(b"text"))}, {}, {}))
    casd.begin_staging(root, (0, 0))
    assert casd.fetch([root])[root] == fake.blobs[root]
    path = Path(casd.staged())
    assert (path / "f").read_text() == "text"
    assert casd.fetch([root])[root] == fake.blobs[root]


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(CallFailed, match="is casd running") as caught:
        Connection(str(tmp_path / "nothing"))
    assert caught.value.code == "UNAVAILABLE"


# ---- peers that break the protocol -----------------------------------------------------------


def frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + number.to_bytes(4, "big")
    return head + payload


def headers(*pairs: tuple[bytes, bytes]) -> bytes:
    return frame(wire.HEADERS, wire.END_HEADERS, 1, encode(list(pairs)))


def message(content: bytes) -> bytes:
    return b"\0" + len(content).to_bytes(4, "big") + content


END = frame(wire.HEADERS, 5, 1, encode([(b"grpc-status", b"0")]))
HOSTILE = {
    "ends": b"",
    "no HTTP/2": b"HTTP/1.1 400 Bad Request\r\n\r\n" * 3,
    "frame too large": frame(wire.DATA, 0, 1, b"")[:0] + b"\xff\xff\xff\0\0\0\0\0\1",
    "message too large": headers() + frame(wire.DATA, 0, 1, b"\0\xff\xff\xff\xff"),
    "compressed": headers() + frame(wire.DATA, 0, 1, b"\1\0\0\0\1x"),
    "no status": headers() + frame(wire.DATA, 1, 1, message(b"x")),
    "padding": headers() + frame(wire.DATA, wire.PADDED, 1, b"\xffx"),
    "headers in between": frame(wire.HEADERS, 0, 1, b"\x88") + frame(wire.DATA, 0, 1, b""),
    "a number of no table": frame(wire.HEADERS, 4, 1, b"\xff\xff\xff\x0f"),
    "headers end too early": frame(wire.HEADERS, 4, 1, b"\0\x7f"),
    "a table too large": frame(wire.HEADERS, 4, 1, b"\x3f\xff\xff\x7f"),
    "goes away": frame(wire.GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\1because"),
    "reset": frame(wire.RESET, 0, 1, b"\0\0\0\1"),
    "two answers": headers() + frame(wire.DATA, 0, 1, message(b"x") * 2) + END,
    "no answer": END,
    "continues nothing": frame(wire.CONTINUATION, 4, 1, b""),
}


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Callable[[bytes], Connection]]:
    """Connects to a server that says what it is told to, and ends."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "peer"))
    listener.listen()
    threads: list[threading.Thread] = []

    def start(answer: bytes) -> Connection:
        def serve() -> None:
            with listener.accept()[0] as taken:
                taken.settimeout(10)
                received = b""
                while b"application/grpc" not in received:
                    received += taken.recv(1 << 16)
                taken.sendall(answer)
                taken.shutdown(socket.SHUT_WR)
                while taken.recv(1 << 16):
                    pass

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return Connection(str(tmp_path / "peer"))

    yield start
    for thread in threads:
        thread.join(10)
    listener.close()


@pytest.mark.every_way
@pytest.mark.parametrize("way", HOSTILE)
def test_a_peer_that_breaks_the_protocol_is_an_error(
    way: str, peer: Callable[[bytes], Connection]
) -> None:
    connection = peer(HOSTILE[way])
    with pytest.raises(CallFailed):
        connection.call("a.B/C", b"question")
    connection.close()


def test_a_ping_and_settings_are_answered(peer: Callable[[bytes], Connection]) -> None:
    settings = frame(wire.SETTINGS, 0, 0, b"\0\4\0\0\xff\xff" + b"\0\5\0\0\x40\0")
    answer = headers() + frame(wire.DATA, 0, 1, message(b"answer")) + END
    connection = peer(settings + frame(wire.PING, 0, 0, b"12345678") + answer)
    assert connection.call("a.B/C", b"question") == b"answer"
    connection.close()


# ---- HPACK -----------------------------------------------------------------------------------


def test_a_header_is_found_in_the_table_later() -> None:
    decoder = Decoder()
    assert decoder.decode(b"\x40\x01a\x01b") == {b"a": b"b"}
    assert decoder.decode(b"\x40\x01c\x01d") == {b"c": b"d"}
    assert decoder.decode(b"\xbe\xbf") == {b"c": b"d", b"a": b"b"}
    assert decoder.decode(b"\x20") == {}, "the table is emptied"
    with pytest.raises(Malformed):
        decoder.decode(b"\xbe")


def test_the_table_drops_the_oldest() -> None:
    decoder = Decoder()
    for number in range(200):
        decoder.decode(b"\x40\x01a\x7f\x01" + bytes([number]) * 128)
    assert len(decoder._table) == 4096 // (1 + 128 + 32)


@pytest.mark.parametrize(("coded", "value"), [(b"\x07", b"0"), (b"\x0f", b"1"), (b"\x77", b"7")])
def test_a_status_in_huffmans_code(coded: bytes, value: bytes) -> None:
    assert Decoder().decode(b"\0\x0bgrpc-status\x81" + coded) == {b"grpc-status": value}
