# SPDX-License-Identifier: Apache-2.0
"""A storage on a Unix socket, with LocalCAS as casd has it: its StageTree makes a copy."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from sandboxlib import Tree, _reapi
from sandboxlib._buildbox import messages
from sandboxlib._inputs.snapshot import Folder, Leaf, Link
from sandboxlib._remote.stubs import bytestream_grpc, bytestream_pb, re_grpc, re_pb
from sandboxlib._remote.trees import contents_of, messages_of


class FakeCasd(re_grpc.ContentAddressableStorageServicer, bytestream_grpc.ByteStreamServicer):  # type: ignore[misc]
    """A context manager. stages: whether it knows LocalCAS. calls: the names of all calls."""

    def __init__(self, directory: Path, stages: bool = True) -> None:
        self.directory, self.stages = directory, stages
        self.blobs: dict[str, bytes] = {_reapi.EMPTY: b""}
        self.calls: list[str] = []
        self.staged: list[Path] = []
        self._lock = threading.Lock()

    def __enter__(self) -> FakeCasd:
        self.url = f"unix:{self.directory}/casd"
        most = [("grpc.max_receive_message_length", 8 << 20)]
        self._server = grpc.server(ThreadPoolExecutor(8), options=most)
        re_grpc.add_ContentAddressableStorageServicer_to_server(self, self._server)
        re_grpc.add_CapabilitiesServicer_to_server(Capabilities(), self._server)
        bytestream_grpc.add_ByteStreamServicer_to_server(self, self._server)
        if self.stages:
            handler = grpc.stream_stream_rpc_method_handler(self._stage)
            service = "build.buildgrid.LocalContentAddressableStorage"
            methods = grpc.method_handlers_generic_handler(service, {"StageTree": handler})
            self._server.add_generic_rpc_handlers((methods,))
        assert self._server.add_insecure_port(self.url)
        self._server.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.stop(None).wait(10)

    def put(self, content: bytes) -> str:
        digest = _reapi.digest_of(content)
        self.blobs[digest] = content
        return digest

    def put_tree(self, path: Path) -> str:
        """Puts a directory with all that is in it; returns the digest of its message."""
        folder, digest = Tree(path)._snapshot()
        for content in messages_of(folder).values():
            self.put(content)
        for source in contents_of(folder).values():
            self.put(source if isinstance(source, bytes) else Path(source).read_bytes())
        return digest

    def folder(self, digest: str) -> Folder:
        """The directory of a digest, with all below it."""
        folder = messages.Known(digest, self.blobs.__getitem__).read()
        for node in folder.values():
            if isinstance(node, Folder):
                folder[next(n for n, each in folder.items() if each is node)] = self.folder(
                    node.digest
                )
        return folder

    # ---- the services ----

    def FindMissingBlobs(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls.append("FindMissingBlobs")
        lacking = [d for d in request.blob_digests if f"{d.hash}/{d.size_bytes}" not in self.blobs]
        return re_pb.FindMissingBlobsResponse(missing_blob_digests=lacking)

    def BatchReadBlobs(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls.append("BatchReadBlobs")
        answer = re_pb.BatchReadBlobsResponse()
        for digest in request.digests:
            content = self.blobs.get(f"{digest.hash}/{digest.size_bytes}")
            each = answer.responses.add(digest=digest, data=content or b"")
            each.status.code = 5 if content is None else 0
        return answer

    def BatchUpdateBlobs(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls.append("BatchUpdateBlobs")
        answer = re_pb.BatchUpdateBlobsResponse()
        for each in request.requests:
            self.put(each.data)
            answer.responses.add(digest=each.digest)
        return answer

    def Read(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self.calls.append("Read")
        content = self.blobs.get("/".join(request.resource_name.split("/")[-2:]))
        if content is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no blob: {request.resource_name} (100 %)")
            return
        for at in range(0, len(content), 1 << 16):
            yield bytestream_pb.ReadResponse(data=content[at : at + (1 << 16)])

    def Write(self, requests: Iterator[Any], context: Any) -> Any:  # noqa: N802
        self.calls.append("Write")
        content = b"".join(request.data for request in requests)
        self.put(content)
        return bytestream_pb.WriteResponse(committed_size=len(content))

    def _stage(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        self.calls.append("StageTree")
        found = messages.fields(next(requests))
        digest = messages.digest_of(found, 2, "a root")
        with self._lock:
            path = self.directory / f"staged{len(self.staged)}"
            self.staged.append(path)
        try:
            self._fill(self.folder(digest), path)
        except KeyError:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "Tree is not completely available")
        yield _reapi._text(1, os.fsencode(path))
        for _ in requests:  # the client keeps the call open as long as it uses the tree
            pass
        shutil.rmtree(path)

    def _fill(self, folder: Folder, path: Path) -> None:
        path.mkdir()
        for encoded, node in folder.items():
            at = path / os.fsdecode(encoded)
            if isinstance(node, Folder):
                self._fill(node, at)
            elif isinstance(node, Link):
                at.symlink_to(os.fsdecode(node.target))
            else:
                assert isinstance(node, Leaf)
                at.write_bytes(self.blobs[node.digest])
                at.chmod(0o755 if node.is_executable else 0o644)


class Capabilities(re_grpc.CapabilitiesServicer):  # type: ignore[misc]
    def GetCapabilities(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = re_pb.ServerCapabilities()
        answer.cache_capabilities.digest_function.append(1)
        answer.low_api_version.major = answer.high_api_version.major = 2
        return answer
