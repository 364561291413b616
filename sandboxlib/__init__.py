# SPDX-License-Identifier: Apache-2.0
"""Run a command in a sandbox of its own, fast enough for every compile step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from . import chroot, linux_user_chroot, load, sandbox
from .errors import (
    SandboxError,
    SetupError,
    SpecError,
    SpecTypeError,
    StatusLost,
    UnsupportedError,
)
from .result import Result
from .sandbox import BASE_ENVIRONMENT, CAPTURE, STDOUT, Mount, Sandbox, environment_vars

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .sandbox import Command, Path, Stream

sandbox.runner = chroot.run_in

__version__ = "1.0.0.dev0"
__all__ = [
    "BASE_ENVIRONMENT",
    "CAPTURE",
    "STDOUT",
    "Mount",
    "Result",
    "Sandbox",
    "SandboxError",
    "SetupError",
    "SpecError",
    "SpecTypeError",
    "StatusLost",
    "UnsupportedError",
    "chroot",
    "environment_vars",
    "linux_user_chroot",
    "load",
    "maximum_possible_isolation",
    "run_sandbox",
]


def maximum_possible_isolation() -> dict[str, str]:
    """All that can be isolated on this machine, as keywords of run_sandbox."""
    return chroot.maximum_possible_isolation()


def run_sandbox(
    rootfs_path: Path,
    command: Command,
    cwd: Path | None = None,
    extra_env: Mapping[str, str] | None = None,
    network: str = "undefined",
    *,
    mounts: str = "isolated",
    processes: str = "isolated",
    ipc: str = "isolated",
    hostname: str | None = None,
    extra_mounts: Iterable[Mount | Sequence[object]] | None = (),
    filesystem_writable_paths: str | Iterable[Path] | None = "all",
    capabilities: str | Iterable[str] = "default",
    no_new_privs: bool = True,
    init: bool = True,
    stdin: Stream | bytes = None,
    stdout: Stream = CAPTURE,
    stderr: Stream = CAPTURE,
    timeout: float | None = None,
) -> Result:
    """Runs a command in a sandbox of its own, and returns `(exit, out, err)`.

    rootfs_path    the root directory of the command.
    command        a list of str, bytes or paths; or a str that names one program and is never
                   split. A program without a slash is looked up in the PATH of the sandbox,
                   inside the root.
    cwd            inside the root; '/' by default, the caller's directory where the root is '/'.
    extra_env      added to BASE_ENVIRONMENT, which is all that the command finds otherwise.
    stdin          None (the default): empty. bytes, a file, or a descriptor.
    stdout, stderr CAPTURE (the default): returned as bytes. A file or a descriptor: written there,
                   None is returned. None: discarded. stderr=STDOUT: goes where stdout goes.
    timeout        seconds; then everything in the sandbox is killed, and Result.timed_out is True.

    The other words are those of Sandbox, which see.

    Returns a Result, a tuple `(exit, out, err)`. exit is -n where signal n ended the command.

    Raises SpecError (a ValueError) for a request that makes no sense, UnsupportedError (an
    AssertionError) for one that cannot be kept here, and SetupError (an OSError: FileNotFoundError,
    PermissionError, ...) where the kernel refuses a step: a missing program, a bad cwd, a bad root.
    """
    return chroot.run_sandbox(
        rootfs_path,
        command,
        cwd,
        extra_env,
        network,
        mounts=mounts,
        processes=processes,
        ipc=ipc,
        hostname=hostname,
        extra_mounts=extra_mounts,
        filesystem_writable_paths=filesystem_writable_paths,
        capabilities=capabilities,
        no_new_privs=no_new_privs,
        init=init,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        timeout=timeout,
    )
