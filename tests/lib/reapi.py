# SPDX-License-Identifier: Apache-2.0
"""The messages of the Remote Execution API by protobuf, which is the oracle for ours."""

from __future__ import annotations

import importlib
from typing import Any

from lib.machine import require

STUBS = "buildgrid.common.protos.build.bazel.remote.execution.v2.remote_execution_pb2"


def stubs() -> Any:
    """The module of the generated messages; skips the test if it is not installed."""
    try:
        return importlib.import_module(STUBS)
    except ImportError as error:
        return require(False, f"no stubs of the Remote Execution API (buildgrid-common): {error}")


def encoded(message: Any) -> bytes:
    """What protobuf makes of a message of its own."""
    content: bytes = message.SerializeToString(deterministic=True)
    return content
