# SPDX-License-Identifier: Apache-2.0
"""A server of remote execution's store in this process, which can be told to lie, fail or hang."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sandboxlib._reapi import digest_of
from sandboxlib._remote.stubs import (
    bytestream_grpc,
    bytestream_pb,
    code_pb,
    digest_text,
    grpc,
    re_grpc,
    re_pb,
)


class FakeServer:
    """A store of blobs in memory, on a port of loopback or another address of gRPC's.

    blobs: what it has. calls: the methods that were called, in order. tokens: the authorization of
    each. fails: codes, as "UNAVAILABLE", each of which the next call of its method gets:
    {"Read": ["UNAVAILABLE", "INTERNAL"]}. instead: functions that answer in place of a method,
    each called with the request and the context. hung: an Event that ends what `hang` began.
    """

    def __init__(self, address: str = "127.0.0.1:0", credentials: Any = None) -> None:
        self.blobs: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.tokens: list[str | None] = []
        self.fails: dict[str, list[str]] = {}
        self.instead: dict[str, Callable[[Any, Any], Any]] = {}
        self.hung = threading.Event()
        self.capabilities = re_pb.ServerCapabilities()
        self.capabilities.cache_capabilities.digest_function.append(re_pb.DigestFunction.SHA256)
        self.port = 0
        self._address, self._credentials = address, credentials
        self.start()

    @property
    def url(self) -> str:
        if self._address.startswith("unix:"):
            return f"unix://{self._address.removeprefix('unix:')}"
        return f"{'grpcs' if self._credentials else 'grpc'}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts to serve, again at the same place."""
        self._pool = ThreadPoolExecutor(8)
        self._server = grpc.server(self._pool)
        re_grpc.add_CapabilitiesServicer_to_server(_Capabilities(self), self._server)
        re_grpc.add_ContentAddressableStorageServicer_to_server(_Store(self), self._server)
        bytestream_grpc.add_ByteStreamServicer_to_server(_Streams(self), self._server)
        address = f"127.0.0.1:{self.port}" if self.port else self._address
        if self._credentials:
            self.port = self._server.add_secure_port(address, self._credentials)
        else:
            self.port = self._server.add_insecure_port(address)
        self._server.start()

    def stop(self) -> None:
        """Ends at once; what runs is cut off."""
        self._server.stop(None).wait()
        self.hung.set()
        self._pool.shutdown()
        self.hung.clear()

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def put(self, content: bytes) -> str:
        """Has a blob, and returns its digest."""
        self.blobs[digest_of(content)] = content
        return digest_of(content)

    def hang(self, request: Any, context: Any) -> Any:
        """In place of a method: does not answer."""
        self.hung.wait()
        context.abort(grpc.StatusCode.ABORTED, "it hung")

    def begin(self, name: str, request: Any, context: Any) -> Any:
        """What each method does first: notes the call, and fails or answers as it was told."""
        self.calls.append(name)
        self.tokens.append(dict(context.invocation_metadata()).get("authorization"))
        if failures := self.fails.get(name):
            context.abort(getattr(grpc.StatusCode, failures.pop(0)), "as it was told")
        function = self.instead.get(name)
        return None if function is None else function(request, context)


class _Capabilities(re_grpc.CapabilitiesServicer):
    def __init__(self, fake: FakeServer) -> None:
        self.fake = fake

    def GetCapabilities(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self.fake.begin("GetCapabilities", request, context) or self.fake.capabilities


class _Store(re_grpc.ContentAddressableStorageServicer):
    def __init__(self, fake: FakeServer) -> None:
        self.fake = fake

    def FindMissingBlobs(self, request: Any, context: Any) -> Any:  # noqa: N802
        if told := self.fake.begin("FindMissingBlobs", request, context):
            return told
        absent = [each for each in request.blob_digests if digest_text(each) not in self.fake.blobs]
        return re_pb.FindMissingBlobsResponse(missing_blob_digests=absent)

    def BatchUpdateBlobs(self, request: Any, context: Any) -> Any:  # noqa: N802
        if told := self.fake.begin("BatchUpdateBlobs", request, context):
            return told
        answer = re_pb.BatchUpdateBlobsResponse()
        for each in request.requests:
            self.fake.blobs[digest_text(each.digest)] = each.data
            answer.responses.add(digest=each.digest)
        return answer

    def BatchReadBlobs(self, request: Any, context: Any) -> Any:  # noqa: N802
        if told := self.fake.begin("BatchReadBlobs", request, context):
            return told
        answer = re_pb.BatchReadBlobsResponse()
        for each in request.digests:
            content = self.fake.blobs.get(digest_text(each))
            made = answer.responses.add(digest=each, data=content or b"")
            made.status.code = code_pb.OK if content is not None else code_pb.NOT_FOUND
        return answer


class _Streams(bytestream_grpc.ByteStreamServicer):
    def __init__(self, fake: FakeServer) -> None:
        self.fake = fake

    def Read(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        if told := self.fake.begin("Read", request, context):
            yield from told
            return
        content = self.fake.blobs.get(request.resource_name.partition("blobs/")[2])
        if content is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "it has none")
            return
        for start in range(request.read_offset, len(content), 1 << 20):
            yield bytestream_pb.ReadResponse(data=content[start : start + (1 << 20)])

    def Write(self, requests: Iterator[Any], context: Any) -> Any:  # noqa: N802
        if told := self.fake.begin("Write", requests, context):
            return told
        name, content = "", b""
        for request in requests:
            name = name or request.resource_name
            assert request.write_offset == len(content)
            content += request.data
            if request.finish_write:
                self.fake.blobs[name.partition("/blobs/")[2]] = content
        return bytestream_pb.WriteResponse(committed_size=len(content))
