# SPDX-License-Identifier: Apache-2.0
"""A server of the Remote Execution API in the memory of a test: a store, and a cache of results.

A test may look at what it has, change it, and say what happens at a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

from lib.reapi import stubs as _messages

from sandboxlib import _reapi


class MemoryServer:
    """blobs: by their digests. results: ActionResults by the digests of Actions. calls: the names
    of the calls that came. at_call: called with the name of each call before it is answered.
    refusal: a code of gRPC, and the name of the call that gets it ("": all of them); None: none.
    streams: what Read gives from an offset on, for names that are no blobs.
    """

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.results: dict[str, Any] = {}
        self.calls: list[str] = []
        self.at_call: Callable[[str], object] = lambda name: None
        self.refusal: tuple[str, str] | None = None
        self.streams: dict[str, Callable[[int], Iterator[bytes]]] = {}
        self.url = ""

    def put(self, content: bytes) -> str:
        """Adds a blob."""
        digest = _reapi.digest_of(content)
        self.blobs[digest] = content
        return digest

    def came(self, name: str, context: Any) -> None:
        """Notes a call."""
        from sandboxlib._remote.stubs import grpc

        self.calls.append(name)
        self.at_call(name)
        if self.refusal is not None and self.refusal[1] in ("", name):
            context.abort(getattr(grpc.StatusCode, self.refusal[0]), f"{name} is refused")


def _text(digest: Any) -> str:
    return f"{digest.hash}/{digest.size_bytes}"


def _services(own: MemoryServer, add: Any) -> None:
    from sandboxlib._remote.stubs import (
        bytestream_grpc,
        bytestream_pb,
        code_pb,
        grpc,
        re_grpc,
        re_pb,
    )

    class Capabilities(re_grpc.CapabilitiesServicer):  # type: ignore[misc]
        def GetCapabilities(self, request: Any, context: Any) -> Any:  # noqa: N802
            own.came("GetCapabilities", context)
            answer = re_pb.ServerCapabilities()
            answer.cache_capabilities.digest_function.append(re_pb.DigestFunction.SHA256)
            return answer

    class Store(re_grpc.ContentAddressableStorageServicer):  # type: ignore[misc]
        def FindMissingBlobs(self, request: Any, context: Any) -> Any:  # noqa: N802
            own.came("FindMissingBlobs", context)
            absent = [each for each in request.blob_digests if _text(each) not in own.blobs]
            return re_pb.FindMissingBlobsResponse(missing_blob_digests=absent)

        def BatchUpdateBlobs(self, request: Any, context: Any) -> Any:  # noqa: N802
            own.came("BatchUpdateBlobs", context)
            answer = re_pb.BatchUpdateBlobsResponse()
            for each in request.requests:
                own.blobs[_text(each.digest)] = each.data
                answer.responses.add(digest=each.digest)
            return answer

        def BatchReadBlobs(self, request: Any, context: Any) -> Any:  # noqa: N802
            own.came("BatchReadBlobs", context)
            answer = re_pb.BatchReadBlobsResponse()
            for each in request.digests:
                found = own.blobs.get(_text(each))
                made = answer.responses.add(digest=each, data=found or b"")
                made.status.code = code_pb.OK if found is not None else code_pb.NOT_FOUND
            return answer

    class Cache(re_grpc.ActionCacheServicer):  # type: ignore[misc]
        def GetActionResult(self, request: Any, context: Any) -> Any:  # noqa: N802
            own.came("GetActionResult", context)
            found = own.results.get(_text(request.action_digest))
            if found is None:
                context.abort(grpc.StatusCode.NOT_FOUND, "no such result")
            return found

        def UpdateActionResult(self, request: Any, context: Any) -> Any:  # noqa: N802
            own.came("UpdateActionResult", context)
            own.results[_text(request.action_digest)] = request.action_result
            return request.action_result

    class Stream(bytestream_grpc.ByteStreamServicer):  # type: ignore[misc]
        def Read(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
            own.came("Read", context)
            if (stream := own.streams.get(request.resource_name)) is not None:
                yield from (
                    bytestream_pb.ReadResponse(data=each) for each in stream(request.read_offset)
                )
                return
            found = own.blobs.get("/".join(request.resource_name.split("/")[-2:]))
            if found is None:
                context.abort(grpc.StatusCode.NOT_FOUND, "no such blob")
            content = (found or b"")[request.read_offset :]
            for at in range(0, len(content), 1 << 20):
                yield bytestream_pb.ReadResponse(data=content[at : at + (1 << 20)])

        def Write(self, requests: Iterator[Any], context: Any) -> Any:  # noqa: N802
            own.came("Write", context)
            name, content = "", b""
            for each in requests:
                name = name or each.resource_name
                content += each.data
            parts = name.split("/")
            at = parts.index("blobs")
            own.blobs["/".join(parts[at + 1 : at + 3])] = content
            return bytestream_pb.WriteResponse(committed_size=len(content))

    re_grpc.add_CapabilitiesServicer_to_server(Capabilities(), add)
    re_grpc.add_ContentAddressableStorageServicer_to_server(Store(), add)
    re_grpc.add_ActionCacheServicer_to_server(Cache(), add)
    bytestream_grpc.add_ByteStreamServicer_to_server(Stream(), add)


@contextmanager
def memory_server(
    own: MemoryServer | None = None, add: Callable[[Any], object] | None = None, threads: int = 8
) -> Iterator[MemoryServer]:
    """A server that listens on a port of loopback. The test is skipped without the packages.

    own: what is served; None: a new one. add: adds more services to a server of gRPC.
    """
    _messages()
    from sandboxlib._remote.stubs import grpc

    own = own or MemoryServer()
    server = grpc.server(futures.ThreadPoolExecutor(threads))
    _services(own, server)
    if add is not None:
        add(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    own.url = f"grpc://127.0.0.1:{port}"
    try:
        yield own
    finally:
        server.stop(0).wait()
