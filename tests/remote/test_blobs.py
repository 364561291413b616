# SPDX-License-Identifier: Apache-2.0
"""Blobs of a store that is another's: sent, asked for, fetched, and compared with their digests."""

from __future__ import annotations

import errno
import os
import random
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from lib.fake_server import FakeServer

from sandboxlib import RemoteError, Server, SpecError
from sandboxlib._cluster.cluster import Cluster
from sandboxlib._reapi import EMPTY, digest_of
from sandboxlib._remote import cas
from sandboxlib._remote.stubs import bytestream_pb, code_pb, digest_message, re_pb

MIB = 1 << 20


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def test_blobs_of_all_sizes_come_back_as_they_were_sent(cluster: Cluster) -> None:
    sizes = (0, 1, 100, MIB, cas.CHUNK + 1, 4 * MIB - 65 * 1024, 4 * MIB, 9 * MIB)
    blobs: dict[str, Any] = {}
    for seed, size in enumerate(sizes):
        content = noise(size, seed)
        blobs[digest_of(content)] = content
    with Server(cluster.url, instance="other/one") as server:
        sent = cas.upload(server, blobs)
        assert sent in (sum(sizes), sum(sizes) - 1)  # another test may have sent one of them
        assert cas.missing(server, blobs) == set()
        assert cas.upload(server, blobs) == 0
        assert cas.fetch(server, blobs) == blobs
        for digest, content in blobs.items():
            parts: list[bytes] = []
            cas.download(server, digest, parts.append)
            assert b"".join(parts) == content


def test_a_blob_comes_from_memory_from_a_file_and_from_a_function(
    cluster: Cluster, tmp_path: Path
) -> None:
    small, large = noise(1000, 11), noise(5 * MIB, 12)
    (tmp_path / "small").write_bytes(small)
    (tmp_path / "large").write_bytes(large)
    pieces, whole = [noise(10, 13), b"", noise(5 * MIB, 14)], noise(700, 15)
    with Server(cluster.url) as server:
        blobs = {
            digest_of(small): str(tmp_path / "small"),
            digest_of(large): tmp_path / "large",
            digest_of(b"".join(pieces)): lambda: pieces,
            digest_of(whole): lambda: whole,
        }
        assert cas.upload(server, blobs) == len(small + large + b"".join(pieces) + whole)
        assert set(cas.fetch(server, blobs)) == set(blobs)


def test_many_small_blobs_take_few_calls(fake: FakeServer, server: Server) -> None:
    contents = [b"%d" % number for number in range(3000)]
    blobs = {digest_of(content): content for content in contents}
    cas.upload(server, blobs)
    assert cas.fetch(server, blobs) == blobs
    names = ["FindMissingBlobs", "GetCapabilities", "BatchUpdateBlobs", "BatchReadBlobs"]
    assert fake.calls == names


def test_the_limit_of_the_server_is_kept(fake: FakeServer, server: Server) -> None:
    fake.capabilities.cache_capabilities.max_batch_total_size_bytes = 2000
    blobs = {digest_of(content): content for content in (noise(900, n) for n in range(5))}
    large = noise(2001, 9)
    cas.upload(server, {**blobs, digest_of(large): large})
    assert fake.calls.count("BatchUpdateBlobs") == 5  # of 900 and what a digest takes
    assert fake.calls.count("Write") == 1
    assert cas.fetch(server, [digest_of(large)]) == {digest_of(large): large}
    assert fake.calls[-1] == "Read"


def test_only_what_lacks_is_sent(fake: FakeServer, server: Server) -> None:
    known, new = fake.put(b"known"), digest_of(b"new")
    assert cas.missing(server, [known, new]) == {new}
    assert cas.upload(server, {known: b"known", new: b"new"}) == 3


def test_results_with_what_is_empty_stay_in_the_action_cache(cluster: Cluster) -> None:
    from sandboxlib._remote.stubs import re_grpc

    key = digest_message(digest_of(noise(8, 22)))
    with Server(cluster.url) as server:
        cas.upload(server, {digest_of(b""): b""})
        made = re_pb.ActionResult()
        made.output_files.add(path="empty", digest=digest_message(digest_of(b"")))
        cache = server.stub(re_grpc.ActionCacheStub)
        cache.UpdateActionResult(
            re_pb.UpdateActionResultRequest(action_digest=key, action_result=made), timeout=30
        )
        found = cache.GetActionResult(re_pb.GetActionResultRequest(action_digest=key), timeout=30)
        assert found.output_files[0].path == "empty"


def test_what_the_server_does_not_have_is_named(cluster: Cluster) -> None:
    absent = [digest_of(noise(size, 21)) for size in (10, 20, 5 * MIB)]
    with Server(cluster.url) as server:
        with pytest.raises(RemoteError, match="NOT_FOUND: the server does not have 3") as caught:
            cas.fetch(server, [*absent, EMPTY])
        assert caught.value.digests == tuple(sorted(absent))
        for digest in absent:
            with pytest.raises(RemoteError, match="NOT_FOUND") as caught:
                cas.download(server, digest, lambda part: None)
            assert caught.value.digests == (digest,)


@pytest.mark.parametrize("bad", ["", "abc/1", "g" * 64 + "/1", "0" * 64 + "/01", "0" * 64 + "/-1"])
def test_what_is_no_digest_is_refused_before_a_call(
    fake: FakeServer, server: Server, bad: str
) -> None:
    for call in (
        lambda: cas.missing(server, [bad]),
        lambda: cas.upload(server, {bad: b""}),
        lambda: cas.fetch(server, [bad]),
        lambda: cas.download(server, bad, lambda part: None),
    ):
        with pytest.raises(SpecError, match="no digest"):
            call()
    assert fake.calls == []


# ---- content that is not what it is said to be ------------------------------------------------


def batch_of(digest: str, content: bytes, code: int = 0) -> Any:
    answer = re_pb.BatchReadBlobsResponse()
    answer.responses.add(digest=digest_message(digest), data=content).status.code = code
    return lambda request, context: answer


@pytest.mark.parametrize("content", [b"wrong", b"righ", b"rightright", b""])
def test_a_wrong_content_in_a_batch_is_data_loss(
    fake: FakeServer, server: Server, content: bytes
) -> None:
    digest = fake.put(b"right")
    fake.instead["BatchReadBlobs"] = batch_of(digest, content)
    with pytest.raises(RemoteError, match="DATA_LOSS") as caught:
        cas.fetch(server, [digest])
    assert caught.value.digests == (digest,)


def test_an_answer_about_another_blob_is_data_loss(fake: FakeServer, server: Server) -> None:
    digest = fake.put(b"right")
    fake.instead["BatchReadBlobs"] = batch_of(digest_of(b"other"), b"other")
    with pytest.raises(RemoteError, match="not about the blobs that we named"):
        cas.fetch(server, [digest])
    fake.instead["BatchReadBlobs"] = lambda request, context: re_pb.BatchReadBlobsResponse()
    with pytest.raises(RemoteError, match="not about the blobs that we named"):
        cas.fetch(server, [digest])


def test_a_missing_blob_that_nobody_asked_for_is_none(fake: FakeServer, server: Server) -> None:
    asked = digest_of(b"asked")
    others = [digest_message(each) for each in (digest_of(b"other"), asked)]
    answer = re_pb.FindMissingBlobsResponse(missing_blob_digests=others)
    fake.instead["FindMissingBlobs"] = lambda request, context: answer
    assert cas.missing(server, [asked]) == {asked}


@pytest.mark.parametrize("content", ["other", "short", "long"])
def test_a_wrong_content_in_a_stream_is_data_loss(
    fake: FakeServer, server: Server, content: str
) -> None:
    right = noise(3 * MIB)
    wrong = {"other": noise(3 * MIB, 1), "short": right[:-1], "long": right + b"x"}[content]
    fake.blobs[digest_of(right)] = wrong
    with pytest.raises(RemoteError, match="DATA_LOSS"):
        cas.download(server, digest_of(right), lambda part: None)


def test_an_endless_stream_ends_at_the_size_of_the_blob(fake: FakeServer, server: Server) -> None:
    def endless(request: Any, context: Any) -> Any:
        while context.is_active():
            yield bytestream_pb.ReadResponse(data=bytes(MIB))

    fake.instead["Read"] = endless
    got: list[int] = []
    with pytest.raises(RemoteError, match=r"DATA_LOSS: .*more than 5242880 bytes came"):
        cas.download(server, f"{'0' * 64}/{5 * MIB}", lambda part: got.append(len(part)))
    assert sum(got) == 5 * MIB


def test_a_size_beyond_the_bound_is_refused_before_memory_is_taken(
    fake: FakeServer, server: Server
) -> None:
    huge = [f"{digit * 64}/{1 << 40}" for digit in "ab"]
    with pytest.raises(RemoteError, match="RESOURCE_EXHAUSTED: 2 blobs") as caught:
        cas.fetch(server, huge)
    assert caught.value.digests == tuple(huge)
    with pytest.raises(RemoteError, match="RESOURCE_EXHAUSTED"):
        cas.fetch(server, [digest_of(b"four")], most=3)
    assert fake.calls == []


@pytest.mark.slow
def test_a_large_file_goes_and_comes_without_lying_in_memory(
    cluster: Cluster, tmp_path: Path
) -> None:
    content = noise(48 * MIB, 31)
    digest = digest_of(content)
    (tmp_path / "large").write_bytes(content)
    del content
    with Server(cluster.url) as server, (tmp_path / "copy").open("wb") as copy:
        server.capabilities()
        tracemalloc.start()
        try:
            cas.upload(server, {digest: str(tmp_path / "large")})
            cas.download(server, digest, copy.write)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert digest_of((tmp_path / "copy").read_bytes()) == digest
    assert peak < 24 * MIB


# ---- files that change, and odd ones ------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 5 * MIB])
@pytest.mark.parametrize("change", ["other", "shorter", "longer"])
def test_a_file_that_changed_is_stale_and_not_sent(
    fake: FakeServer, server: Server, tmp_path: Path, size: int, change: str
) -> None:
    content = noise(size)
    now = {"other": noise(size, 1), "shorter": content[:-1], "longer": content + b"x"}[change]
    (tmp_path / "file").write_bytes(now)
    with pytest.raises(OSError, match="has changed") as caught:
        cas.upload(server, {digest_of(content): str(tmp_path / "file")})
    assert caught.value.errno == errno.ESTALE
    assert fake.blobs == {}


def test_a_fifo_a_link_and_a_directory_are_no_files(server: Server, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    for name in ("fifo", "link", "."):
        with pytest.raises(OSError, match=r"regular|symbolic|directory"):
            cas.upload(server, {digest_of(b"x"): str(tmp_path / name)})


def test_what_a_function_raises_comes_out(server: Server) -> None:
    def broken() -> Any:
        yield b"a"
        raise ZeroDivisionError

    for size in (10, 5 * MIB):
        with pytest.raises(ZeroDivisionError):
            cas.upload(server, {f"{'1' * 64}/{size}": broken})

    def full(part: bytes) -> None:
        raise OSError(errno.ENOSPC, "full")

    digest = digest_of(b"x")
    cas.upload(server, {digest: b"x"})
    with pytest.raises(OSError, match="full"):
        cas.download(server, digest, full)


# ---- failures ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_waits")
@pytest.mark.parametrize("times", [1, 5])
def test_unavailable_is_tried_again(fake: FakeServer, server: Server, times: int) -> None:
    small, large = b"small", noise(5 * MIB)
    blobs = {digest_of(small): small, digest_of(large): large}
    for name in ("FindMissingBlobs", "BatchUpdateBlobs", "BatchReadBlobs", "Write", "Read"):
        fake.fails[name] = ["UNAVAILABLE"] * times
    cas.upload(server, blobs)
    assert cas.fetch(server, blobs) == blobs
    assert fake.calls.count("Write") == fake.calls.count("Read") == times + 1


@pytest.mark.usefixtures("no_waits")
def test_a_blob_that_is_unavailable_in_a_batch_is_sent_again_alone(
    fake: FakeServer, server: Server
) -> None:
    seen: list[int] = []

    def half(request: Any, context: Any) -> Any:
        seen.append(len(request.requests))
        answer = re_pb.BatchUpdateBlobsResponse()
        for number, each in enumerate(request.requests):
            made = answer.responses.add(digest=each.digest)
            made.status.code = code_pb.UNAVAILABLE if number else code_pb.OK
        return answer

    fake.instead["BatchUpdateBlobs"] = half
    cas.upload(server, {digest_of(content): content for content in (b"a", b"b", b"c")})
    assert seen == [3, 2, 1]


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "INTERNAL", "PERMISSION_DENIED"])
def test_every_other_code_is_raised_at_once(fake: FakeServer, server: Server, code: str) -> None:
    fake.fails["FindMissingBlobs"] = [code]
    with pytest.raises(RemoteError, match=f"FindMissingBlobs: {code}: as it was told") as caught:
        cas.missing(server, [EMPTY])
    assert (caught.value.server, caught.value.code) == (fake.url, code)
    assert fake.calls == ["FindMissingBlobs"]


def test_a_server_that_takes_too_little_of_a_stream_is_told(
    fake: FakeServer, server: Server
) -> None:
    answer = bytestream_pb.WriteResponse(committed_size=7)
    fake.instead["Write"] = lambda request, context: answer
    content = noise(5 * MIB)
    with pytest.raises(RemoteError, match="the server took 7 bytes of it"):
        cas.upload(server, {digest_of(content): content})


@pytest.mark.parametrize("way", ["fetch", "upload"])
def test_a_server_that_starts_again_in_the_middle_loses_nothing(
    fake: FakeServer, server: Server, way: str
) -> None:
    content = noise(12 * MIB)
    digest = digest_of(content)
    begun = threading.Event()

    def restart() -> None:
        begun.wait(30)
        fake.stop()
        fake.instead.clear()
        fake.start()

    def stalls_read(request: Any, context: Any) -> Any:
        yield bytestream_pb.ReadResponse(data=content[: 3 * MIB])
        begun.set()
        fake.hung.wait(30)

    def stalls_write(requests: Any, context: Any) -> Any:
        next(requests)
        begun.set()
        fake.hung.wait(30)

    fake.instead["Read" if way == "fetch" else "Write"] = (
        stalls_read if way == "fetch" else stalls_write
    )
    restarter = threading.Thread(target=restart)
    restarter.start()
    try:
        if way == "fetch":
            fake.blobs[digest] = content
            assert cas.fetch(server, [digest]) == {digest: content}
        else:
            cas.upload(server, {digest: content})
    finally:
        restarter.join()
    assert fake.blobs == {digest: content}


@pytest.mark.slow
def test_buildgrid_starts_again_in_the_middle_and_nothing_is_lost(cluster: Cluster) -> None:
    content = noise(64 * MIB, 41)
    digest = digest_of(content)
    begun = threading.Event()

    def pieces() -> Any:
        for start in range(0, len(content), MIB):
            yield content[start : start + MIB]
            if start > 8 * MIB:
                begun.set()

    def restart() -> None:
        begun.wait(60)
        cluster.stop_server()
        cluster.start_server()

    restarter = threading.Thread(target=restart)
    restarter.start()
    try:
        with Server(cluster.url) as server:
            for _ in range(20):  # a busy machine takes longer to start it than six tries wait
                try:
                    cas.upload(server, {digest: pieces})
                    break
                except RemoteError as error:
                    if error.code != "UNAVAILABLE":
                        raise
            assert cas.fetch(server, [digest]) == {digest: content}
    finally:
        restarter.join()
