# SPDX-License-Identifier: Apache-2.0
"""Casd: the content-addressable storage of this machine (buildbox-casd), over its socket.

It stages a directory tree by the protocol LocalCAS: a FUSE of its own where it can, else copies. A
tree stays as long as the call that asked for it, so it ends with this process at the latest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from .. import _reapi
from ..errors import SpecError
from .messages import blob, blobs, digest_field, digest_of, fields, number_of, text_of
from .wire import CallFailed, Connection, Stream

_CAS = "build.bazel.remote.execution.v2.ContentAddressableStorage/"
_LOCAL = "build.buildgrid.LocalContentAddressableStorage/"
_BATCH = 3 << 20  # bytes of one call; servers of gRPC take 4 MiB
_NUMBER = 5000  # digests of one call
_CHUNK = 1 << 18
MOST_MESSAGE = 32 << 20  # bytes of a blob that is read into memory


class Casd:
    """A connection. path: of the socket. instance: its name of the storage, str."""

    def __init__(self, path: str, instance: str = "") -> None:
        self._connection = Connection(path)
        self._instance = _reapi._text(1, instance.encode())
        self._prefix = f"{instance}/" if instance else ""
        self._staged: Stream | None = None

    def close(self) -> None:
        """Ends the connection, and with it what was staged."""
        self._connection.close()

    def serve(self, stop: int) -> None:
        """As Connection.serve()."""
        self._connection.serve(stop)

    # ---- a tree as a directory ----

    @property
    def is_staging(self) -> bool:
        """Whether begin_staging() was called."""
        return self._staged is not None

    def begin_staging(self, digest: str, ids: tuple[int, int]) -> None:
        """Asks for the directory of a tree. ids: uid and gid of who uses it."""
        method = f"{_LOCAL}StageTree"
        self._staged = self._connection.open(method)
        owner = _reapi._number(1, ids[0]) + _reapi._number(2, ids[1])
        message = self._instance + digest_field(2, digest) + _reapi._message(4, owner)
        self._connection.send(self._staged, message)

    def staged(self) -> str:
        """The path of that directory, once it is there. CallFailed."""
        assert self._staged is not None
        answer = self._connection.receive(self._staged)
        if answer is None:
            self._staged.check()
            raise CallFailed(self._staged.method, "INTERNAL", "no directory was staged")
        return text_of(fields(answer), 1)

    # ---- blobs ----

    def fetch(self, digests: Iterable[str]) -> dict[str, bytes]:
        """The contents of blobs. CallFailed, with NOT_FOUND for a missing one."""
        found: dict[str, bytes] = {}
        small = []
        for digest in dict.fromkeys(digests):
            size = int(digest.partition("/")[2])
            if size > MOST_MESSAGE:
                raise SpecError(f"the blob {digest} is too large for a message")
            if not size:
                found[digest] = b""
            elif size > _BATCH:
                found[digest] = self._read(digest)
            else:
                small.append(digest)
        for batch in _batches((digest, int(digest.partition("/")[2])) for digest in small):
            message = self._instance + b"".join(digest_field(2, digest) for digest in batch)
            answer = fields(self._connection.call(f"{_CAS}BatchReadBlobs", message))
            for response in blobs(answer, 1):
                inner = fields(response)
                digest = digest_of(inner, 1, "the digest of an answer")
                _check_status(f"{_CAS}BatchReadBlobs", digest, blob(inner, 3))
                found[digest] = blob(inner, 2)
            for digest in batch:
                if digest not in found:
                    raise CallFailed(f"{_CAS}BatchReadBlobs", "NOT_FOUND", f"blobs/{digest}")
        for digest, content in found.items():
            if _reapi.digest_of(content) != digest:
                raise CallFailed(_CAS, "DATA_LOSS", f"blobs/{digest} has another content")
        return found

    def _read(self, digest: str) -> bytes:
        message = _reapi._text(1, f"{self._prefix}blobs/{digest}".encode())
        content = bytearray()
        for answer in self._connection.answers("google.bytestream.ByteStream/Read", [message]):
            content += blob(fields(answer), 10)
            if len(content) > int(digest.partition("/")[2]):
                break
        return bytes(content)

    def upload(self, contents: Mapping[str, bytes | str]) -> int:
        """Sends what the storage lacks. contents: by their digests; a str is the path of a file.
        Returns how many bytes went. CallFailed.
        """
        sent = 0
        small, large = [], []
        for digest in self._missing(contents):
            size = int(digest.partition("/")[2])
            sent += size
            if size > _BATCH:
                large.append(digest)
            else:
                small.append((digest, size))
        for batch in _batches(small):
            requests = b""
            for digest in batch:
                content = contents[digest]
                data = _whole(content) if isinstance(content, str) else content
                inner = digest_field(1, digest) + _reapi._text(2, data)
                requests += _reapi._message(2, inner)
            method = f"{_CAS}BatchUpdateBlobs"
            answer = fields(self._connection.call(method, self._instance + requests))
            for response in blobs(answer, 1):
                inner_fields = fields(response)
                digest = digest_of(inner_fields, 1, "the digest of an answer")
                _check_status(method, digest, blob(inner_fields, 2))
        for digest in large:
            self._write(digest, contents[digest])
        return sent

    def _missing(self, digests: Iterable[str]) -> Iterator[str]:
        for batch in _batches((digest, 0) for digest in digests):
            message = self._instance + b"".join(digest_field(2, digest) for digest in batch)
            answer = fields(self._connection.call(f"{_CAS}FindMissingBlobs", message))
            for each in blobs(answer, 2):
                inner = fields(each)
                digest = f"{text_of(inner, 1)}/{number_of(inner, 2)}"
                if digest in batch:
                    yield digest

    def _write(self, digest: str, content: bytes | str) -> None:
        unique = os.urandom(16).hex()
        unique = "-".join((unique[:8], unique[8:12], unique[12:16], unique[16:20], unique[20:]))
        name = _reapi._text(1, f"{self._prefix}uploads/{unique}/blobs/{digest}".encode())
        size = int(digest.partition("/")[2])

        def messages() -> Iterator[bytes]:
            first = name
            for at, data in _chunks(content, size):
                last = _reapi._number(3, at + len(data) >= size)
                yield first + _reapi._number(2, at) + last + _reapi._text(10, data)
                first = b""

        method = "google.bytestream.ByteStream/Write"
        for answer in self._connection.answers(method, messages()):
            if number_of(fields(answer), 1) != size:
                raise CallFailed(method, "DATA_LOSS", f"blobs/{digest} was not taken as a whole")


def _batches(digests: Iterable[tuple[str, int]]) -> Iterator[list[str]]:
    batch: list[str] = []
    room = _BATCH
    for digest, size in digests:
        if batch and (room < size or len(batch) == _NUMBER):
            yield batch
            batch, room = [], _BATCH
        batch.append(digest)
        room -= size + 200
    if batch:
        yield batch


def _check_status(method: str, digest: str, status: bytes) -> None:
    found = fields(status)
    if code := number_of(found, 1):
        name = {5: "NOT_FOUND", 8: "RESOURCE_EXHAUSTED"}.get(code, "INTERNAL")
        raise CallFailed(method, name, f"blobs/{digest}: {text_of(found, 2)}")


def _whole(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _chunks(content: bytes | str, size: int) -> Iterator[tuple[int, bytes]]:
    if isinstance(content, bytes):
        for at in range(0, size, _CHUNK):
            yield at, content[at : at + _CHUNK]
        return
    at = 0
    with open(content, "rb") as file:
        while data := file.read(_CHUNK):
            yield at, data
            at += len(data)
