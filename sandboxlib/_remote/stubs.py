# SPDX-License-Identifier: Apache-2.0
"""The packages of the extra `remote`, imported once: grpc, and the generated messages and stubs.

Modules of this room import this one inside functions: it takes 0.2 s, and the packages may not be
installed. Then the ImportError names the extra.
"""

from __future__ import annotations

from typing import Any

try:
    import grpc as grpc
    from buildgrid.common.protos.build.bazel.remote.execution.v2 import (
        remote_execution_pb2 as re_pb,
    )
    from buildgrid.common.protos.build.bazel.remote.execution.v2 import (
        remote_execution_pb2_grpc as re_grpc,
    )
    from buildgrid.common.protos.build.bazel.remote.logstream.v1 import (
        remote_logstream_pb2 as logstream_pb,
    )
    from buildgrid.common.protos.build.bazel.remote.logstream.v1 import (
        remote_logstream_pb2_grpc as logstream_grpc,
    )
    from buildgrid.common.protos.build.bazel.semver import semver_pb2 as semver_pb
    from buildgrid.common.protos.build.buildbox import execution_stats_pb2 as stats_pb
    from buildgrid.common.protos.google.bytestream import bytestream_pb2 as bytestream_pb
    from buildgrid.common.protos.google.bytestream import bytestream_pb2_grpc as bytestream_grpc
    from buildgrid.common.protos.google.devtools.remoteworkers.v1test2 import bots_pb2 as bots_pb
    from buildgrid.common.protos.google.devtools.remoteworkers.v1test2 import (
        bots_pb2_grpc as bots_grpc,
    )
    from buildgrid.common.protos.google.devtools.remoteworkers.v1test2 import (
        worker_pb2 as worker_pb,
    )
    from buildgrid.common.protos.google.longrunning import operations_pb2 as operations_pb
    from buildgrid.common.protos.google.longrunning import operations_pb2_grpc as operations_grpc
    from buildgrid.common.protos.google.rpc import code_pb2 as code_pb
    from buildgrid.common.protos.google.rpc import error_details_pb2 as error_details_pb
    from buildgrid.common.protos.google.rpc import status_pb2 as status_pb
    from google.protobuf import any_pb2 as any_pb
    from google.protobuf import duration_pb2 as duration_pb
    from google.protobuf import empty_pb2 as empty_pb
    from google.protobuf import json_format as json_format
    from google.protobuf import message as message
    from google.protobuf import struct_pb2 as struct_pb
    from google.protobuf import timestamp_pb2 as timestamp_pb
    from google.protobuf import wrappers_pb2 as wrappers_pb
except ImportError as error:
    raise ImportError(
        f"a server of the Remote Execution API takes packages that are not installed ({error}): "
        "pip install 'sandboxlib[remote]'",
        name=error.name,
    ) from error

__all__ = [
    "any_pb",
    "bots_grpc",
    "bots_pb",
    "bytestream_grpc",
    "bytestream_pb",
    "code_name",
    "code_pb",
    "digest_message",
    "digest_text",
    "duration_pb",
    "empty_pb",
    "error_details_pb",
    "grpc",
    "json_format",
    "logstream_grpc",
    "logstream_pb",
    "message",
    "operations_grpc",
    "operations_pb",
    "re_grpc",
    "re_pb",
    "semver_pb",
    "stats_pb",
    "status_pb",
    "struct_pb",
    "timestamp_pb",
    "unpacked",
    "worker_pb",
    "wrappers_pb",
]


def digest_message(digest: str) -> Any:
    """The Digest message of a "HASH/SIZE"."""
    name, _, size = digest.partition("/")
    return re_pb.Digest(hash=name, size_bytes=int(size))


def code_name(code: int) -> str:
    """The name of a code of gRPC; "UNKNOWN" for a number that is none."""
    return code_pb.Code.Name(code) if code in code_pb.Code.values() else "UNKNOWN"


def unpacked(packed: Any, into: Any) -> bool:
    """Whether an Any has a message of the class of `into`, which then has it. An Any whose content
    is no message has none.
    """
    try:
        return bool(packed.Unpack(into))
    except message.DecodeError:
        return False


def digest_text(message: Any) -> str:
    """The "HASH/SIZE" of a Digest message, which may be malformed: see _reapi.check_digest."""
    return f"{message.hash}/{message.size_bytes}"
