# SPDX-License-Identifier: Apache-2.0
"""Blobs of a server's content-addressed store: which are missing, sent, and fetched.

A blob is known by its digest, "HASH/SIZE". What a server sends is compared with that, and its size
is known before memory is taken. Small blobs go many to a message, large ones as a stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping

from .._reapi import EMPTY, check_digest
from ..errors import RemoteError
from .blobs import Blob, Content
from .server import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CHUNK = 1 << 20  # bytes of one message of a stream
MOST_ASKED = 10_000  # digests of one FindMissingBlobs: a megabyte of message
ROOM = 160  # bytes that a digest and a status take in a message
FETCH_LIMIT = 64 << 20  # bytes that fetch() takes into memory unless it is told otherwise
SLOWEST = 256 << 10  # bytes a second; a stream that is slower over its whole length is given up


def size_of(digest: str) -> int:
    """The size of the blob of a digest that is known to be one."""
    return int(digest.partition("/")[2])


def missing(server: Server, digests: Iterable[str]) -> set[str]:
    """The digests of those blobs that the server does not have. Raises RemoteError."""
    stubs = _stubs()
    asked = sorted({check_digest("digest", digest) for digest in digests})
    found: set[str] = set()
    for start in range(0, len(asked), MOST_ASKED):
        part = asked[start : start + MOST_ASKED]
        request = stubs.re_pb.FindMissingBlobsRequest(
            instance_name=server.instance,
            blob_digests=[stubs.digest_message(digest) for digest in part],
        )
        answer = server.call("FindMissingBlobs", _sender(server, "FindMissingBlobs", request))
        found.update(stubs.digest_text(each) for each in answer.missing_blob_digests)
    return found.intersection(asked)


def upload(server: Server, blobs: Mapping[str, Content]) -> int:
    """Sends those of the blobs that the server does not have. Returns how many bytes it sent.

    blobs: by their digests; each is bytes, the path of a file, or a function without arguments that
    returns the bytes, or an iterable of them; it is called again for another try.

    Raises RemoteError; OSError for a file that cannot be read, and of the number ESTALE for content
    that does not have its digest.
    """
    absent = missing(server, blobs)
    if EMPTY in blobs:
        # Servers say that they have it without a look. BuildGrid's action cache does look, and
        # takes a result with an empty file or directory for lost unless somebody sent it.
        absent.add(EMPTY)
    limit = server.largest_batch()
    total = 0
    for batch in _batches(sorted(absent, key=size_of), limit):
        if len(batch) == 1 and size_of(batch[0]) + ROOM > limit:
            _write(server, Blob(batch[0], blobs[batch[0]]))
        else:
            _update(server, [Blob(digest, blobs[digest]) for digest in batch])
        total += sum(map(size_of, batch))
    return total


def fetch(server: Server, digests: Iterable[str], *, most: int = FETCH_LIMIT) -> dict[str, bytes]:
    """The contents of small blobs, each by its digest.

    most: bytes, what all of them may take together.

    Raises RemoteError: NOT_FOUND with the digests of those that the server does not have,
    DATA_LOSS for content that does not have its digest, RESOURCE_EXHAUSTED for more than `most`,
    before anything is fetched.
    """
    wanted = {check_digest("digest", digest) for digest in digests}
    if (total := sum(map(size_of, wanted))) > most:
        details = f"{len(wanted)} blobs of {total} bytes are more than the {most} that we take"
        raise RemoteError(
            server.url, "BatchReadBlobs", "RESOURCE_EXHAUSTED", details, tuple(sorted(wanted))
        )
    found = {EMPTY: b""} if EMPTY in wanted else {}
    limit = server.largest_batch() if wanted - {EMPTY} else 0
    absent: set[str] = set()
    for batch in _batches(sorted(wanted - {EMPTY}, key=size_of), limit):
        if len(batch) == 1 and size_of(batch[0]) + ROOM > limit:
            parts: list[bytes] = []
            try:
                download(server, batch[0], parts.append)
            except RemoteError as error:
                if error.code != "NOT_FOUND":
                    raise
                absent.add(batch[0])
            else:
                found[batch[0]] = b"".join(parts)
        else:
            absent |= _read_batch(server, batch, found)
    if absent:
        raise _not_found(server, "BatchReadBlobs", absent)
    return found


def download(server: Server, digest: str, write: Callable[[bytes], object]) -> None:
    """Passes the content of a blob to write(), part by part. It is compared with its digest at the
    end: what was written is nothing until this returns. After UNAVAILABLE it goes on where it was.

    Raises RemoteError: NOT_FOUND, DATA_LOSS; and what write() raises.
    """
    size = size_of(check_digest("digest", digest))
    if digest == EMPTY:
        return
    stubs = _stubs()
    prefix = f"{server.instance}/" if server.instance else ""
    name = f"{prefix}blobs/{digest}"
    sha256, done = hashlib.sha256(), 0

    def read(seconds: float) -> None:
        nonlocal done
        stub = server.stub(stubs.bytestream_grpc.ByteStreamStub)
        request = stubs.bytestream_pb.ReadRequest(resource_name=name, read_offset=done)
        answers = stub.Read(request, timeout=seconds)
        try:
            for answer in answers:
                done += len(answer.data)
                if done > size:
                    raise _wrong(server, "Read", digest, f"more than {size} bytes came")
                sha256.update(answer.data)
                write(answer.data)
        finally:
            answers.cancel()

    try:
        server.call("Read", read, timeout=_patience(size))
    except RemoteError as error:
        if error.code == "NOT_FOUND":
            raise _not_found(server, "Read", {digest}) from error
        raise
    if done != size or sha256.hexdigest() != digest.partition("/")[0]:
        raise _wrong(server, "Read", digest, f"{done} bytes came, of another content")


# ---- parts ---------------------------------------------------------------------------------------


def _stubs() -> Any:
    from . import stubs

    return stubs


def _patience(size: int) -> float:
    """Seconds that a call with `size` bytes may take."""
    return 60.0 + size / SLOWEST


def _sender(server: Server, name: str, request: Any) -> Callable[[float], Any]:
    """A function for Server.call that sends a request to the store."""
    kind = _stubs().re_grpc.ContentAddressableStorageStub
    return lambda seconds: getattr(server.stub(kind), name)(request, timeout=seconds)


def _batches(digests: list[str], limit: int) -> Iterator[list[str]]:
    """Parts of a list whose blobs fit into a message each; one that is larger stands alone."""
    batch: list[str] = []
    room = limit
    for digest in digests:
        needs = size_of(digest) + ROOM
        if batch and needs > room:
            yield batch
            batch, room = [], limit
        batch.append(digest)
        room -= needs
    if batch:
        yield batch


def _not_found(server: Server, call: str, digests: set[str]) -> RemoteError:
    named = sorted(digests)
    text = ", ".join(named[:10]) + (", ..." if len(named) > 10 else "")
    details = f"the server does not have {len(named)} of the blobs: {text}"
    return RemoteError(server.url, call, "NOT_FOUND", details, tuple(named))


def _wrong(server: Server, call: str, digest: str, what: str) -> RemoteError:
    return RemoteError(server.url, call, "DATA_LOSS", f"blob {digest}: {what}", (digest,))


def _statuses(server: Server, call: str, answer: Any, asked: Iterable[str]) -> dict[str, Any]:
    """The responses of a batch by their digests; RemoteError if one lacks, or was not asked for."""
    stubs = _stubs()
    found = {stubs.digest_text(each.digest): each for each in answer.responses}
    if strange := found.keys() ^ set(asked):
        which = sorted(strange)[0]
        raise _wrong(server, call, which, "the answer is not about the blobs that we named")
    return found


def _refused(server: Server, call: str, digest: str, status: Any) -> RemoteError:
    """The error for a blob that has a status of its own."""
    code = _stubs().code_name(status.code)
    return RemoteError(server.url, call, code, f"blob {digest}: {status.message}", (digest,))


def _update(server: Server, blobs: list[Blob]) -> None:
    """Sends several blobs in one message; after UNAVAILABLE those that did not arrive, again."""
    stubs = _stubs()
    left = {blob.digest: blob.content() for blob in blobs}

    def send(seconds: float) -> None:
        request = stubs.re_pb.BatchUpdateBlobsRequest(instance_name=server.instance)
        for digest, content in left.items():
            request.requests.add(digest=stubs.digest_message(digest), data=content)
        answer = _sender(server, "BatchUpdateBlobs", request)(seconds)
        refused = None
        for digest, each in _statuses(server, "BatchUpdateBlobs", answer, left).items():
            if each.status.code == stubs.code_pb.OK:
                del left[digest]
            else:
                refused = _refused(server, "BatchUpdateBlobs", digest, each.status)
        if refused is not None:
            raise refused

    server.call("BatchUpdateBlobs", send, timeout=_patience(sum(map(len, left.values()))))


def _write(server: Server, blob: Blob) -> None:
    """Sends one blob as a stream; after UNAVAILABLE all of it again."""
    import uuid

    stubs = _stubs()
    size = size_of(blob.digest)
    prefix = f"{server.instance}/" if server.instance else ""

    def send(seconds: float) -> None:
        name = f"{prefix}uploads/{uuid.uuid4()}/blobs/{blob.digest}"
        failures: list[BaseException] = []
        stub = server.stub(stubs.bytestream_grpc.ByteStreamStub)

        def requests() -> Iterator[Any]:  # in a thread of gRPC's
            offset = 0
            try:
                for chunk in blob.chunks(CHUNK):
                    end = offset + len(chunk)
                    yield stubs.bytestream_pb.WriteRequest(
                        resource_name=name if offset == 0 else "",
                        write_offset=offset,
                        data=chunk,
                        finish_write=end == size,
                    )
                    offset = end
            except Exception as error:
                failures.append(error)
                call.cancel()

        call = stub.Write.future(requests(), timeout=seconds)
        try:
            committed = call.result().committed_size
        except stubs.grpc.FutureCancelledError:
            if failures:
                raise failures[0] from None
            raise RemoteError(server.url, "Write", "CANCELLED", "the Server is closed") from None
        except BaseException:
            call.cancel()
            raise
        if committed != size:
            raise _wrong(server, "Write", blob.digest, f"the server took {committed} bytes of it")

    server.call("Write", send, timeout=_patience(size))


def _read_batch(server: Server, batch: list[str], found: dict[str, bytes]) -> set[str]:
    """Fetches several blobs with one message into `found`. Returns those that are not there."""
    stubs = _stubs()
    left = set(batch)
    absent: set[str] = set()

    def send(seconds: float) -> None:
        request = stubs.re_pb.BatchReadBlobsRequest(
            instance_name=server.instance,
            digests=[stubs.digest_message(digest) for digest in sorted(left)],
        )
        answer = _sender(server, "BatchReadBlobs", request)(seconds)
        refused = None
        for digest, each in _statuses(server, "BatchReadBlobs", answer, set(left)).items():
            if each.status.code == stubs.code_pb.NOT_FOUND:
                absent.add(digest)
            elif each.status.code != stubs.code_pb.OK:
                refused = _refused(server, "BatchReadBlobs", digest, each.status)
                continue
            else:
                found[digest] = _verified(server, digest, each.data)
            left.discard(digest)
        if refused is not None:
            raise refused

    server.call("BatchReadBlobs", send, timeout=_patience(sum(map(size_of, batch))))
    return absent


def _verified(server: Server, digest: str, content: bytes) -> bytes:
    if f"{hashlib.sha256(content).hexdigest()}/{len(content)}" != digest:
        what = f"{len(content)} bytes came, of another content"
        raise _wrong(server, "BatchReadBlobs", digest, what)
    return content
