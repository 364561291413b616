# SPDX-License-Identifier: Apache-2.0
"""The native executor: the C core with real privilege (CAP_SYS_ADMIN and CAP_SYS_CHROOT)."""

from __future__ import annotations

from collections.abc import Mapping

from . import _executor
from .result import Result
from .sandbox import CAPTURE, Sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .sandbox import Command, Path, Stream

NAME = "chroot"


def maximum_possible_isolation() -> dict[str, str]:
    """All that this executor can isolate, as keywords of run_sandbox."""
    return dict(_executor.ISOLATED)


def run_in(
    box: Sandbox,
    command: Command,
    cwd: Path | None = None,
    extra_env: Mapping[str, str] | None = None,
    stdin: Stream | bytes = None,
    stdout: Stream = CAPTURE,
    stderr: Stream = CAPTURE,
    timeout: float | None = None,
) -> Result:
    """Runs a command in a Sandbox; see run_sandbox."""
    return _executor.run_native(NAME, box, command, cwd, extra_env, stdin, stdout, stderr, timeout)


def run_sandbox(
    rootfs_path: Path,
    command: Command,
    cwd: Path | None = None,
    extra_env: Mapping[str, str] | None = None,
    network: str = "undefined",
    *,
    stdin: Stream | bytes = None,
    stdout: Stream = CAPTURE,
    stderr: Stream = CAPTURE,
    timeout: float | None = None,
    **options: Any,
) -> Result:
    """Runs a command in a sandbox of its own; see sandboxlib.run_sandbox."""
    box = _executor.sandbox_for(rootfs_path, {"network": network, **options})
    return run_in(box, command, cwd, extra_env, stdin, stdout, stderr, timeout)
