# SPDX-License-Identifier: Apache-2.0
"""Run a command in a sandbox of its own, fast enough for every compile step."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

from . import _calls, _ladder, _types, chroot, sandbox
from ._ladder import executor_for_platform, get_executor
from ._streams import CAPTURE, STDOUT, Lines, Tee
from ._types import overload
from .command import BASE_ENVIRONMENT, Command, environment_vars
from .errors import (
    CommandFailed,
    ImageError,
    ProgramNotFound,
    SandboxError,
    SetupError,
    SpecError,
    SpecTypeError,
    StatusLost,
    Unkillable,
    UnsupportedError,
)
from .limits import Limits
from .policy import Policy
from .result import Result, Usage
from .sandbox import Mount, Sandbox
from .user import User

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from . import bubblewrap, linux_user_chroot, load, user_namespace, utils
    from ._async import AsyncProcess
    from ._handle import Process
    from ._pool import SandboxExecutor
    from ._typing import Argv, CommandOptions, Runner

sandbox.runner = _ladder.run_command

__version__ = "1.0.0.dev0"
__all__ = [
    "BASE_ENVIRONMENT",
    "CAPTURE",
    "STDOUT",
    "Argv",
    "AsyncProcess",
    "Command",
    "CommandFailed",
    "CommandOptions",
    "ImageError",
    "Limits",
    "Lines",
    "Mount",
    "Policy",
    "Process",
    "ProgramNotFound",
    "Result",
    "Runner",
    "Sandbox",
    "SandboxError",
    "SandboxExecutor",
    "SetupError",
    "SpecError",
    "SpecTypeError",
    "StatusLost",
    "Tee",
    "Unkillable",
    "UnsupportedError",
    "Usage",
    "User",
    "argv_to_string",
    "bubblewrap",
    "chroot",
    "degrade_config_for_capabilities",
    "doctor",
    "environment_vars",
    "executor_for_platform",
    "get_executor",
    "linux_user_chroot",
    "load",
    "maximum_possible_isolation",
    "run_sandbox",
    "run_sandbox_async",
    "run_sandbox_with_redirection",
    "user_namespace",
    "utils",
    "validate_extra_mounts",
]

#: Modules that are imported when they are asked for.
_LATER = ("bubblewrap", "linux_user_chroot", "load", "user_namespace", "utils")
_NAMES_LATER = {
    "Argv": "_typing",
    "AsyncProcess": "_async",
    "CommandOptions": "_typing",
    "Process": "_handle",
    "Runner": "_typing",
    "SandboxExecutor": "_pool",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        import importlib

        return importlib.import_module(f"{__name__}.{name}")
    if name in _NAMES_LATER:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_NAMES_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


maximum_possible_isolation = _ladder.api.maximum_possible_isolation


@overload
def run_sandbox(
    rootfs_path: _types.Path,
    command: _types.Argv | Command,
    cwd: _types.Path | None = None,
    extra_env: Mapping[str, str] | None = None,
    network: str = "undefined",
    *,
    mounts: str = "isolated",
    processes: str = "isolated",
    ipc: str = "isolated",
    hostname: str | None = None,
    extra_mounts: Iterable[Mount | Sequence[object]] | None = (),
    filesystem_writable_paths: str | Iterable[_types.Path] | None = "all",
    devices: str | Iterable[_types.Path] = "minimal",
    capabilities: str | Iterable[str] = "default",
    no_new_privs: bool = True,
    seccomp: _types.Seccomp = "default",
    nesting: bool = False,
    policy: Policy = ...,
    init: bool = True,
    user: int | str | User | None = None,
    umask: int | None = None,
    limits: Limits | None = None,
    deterministic: bool = False,
    env: Mapping[str, str] | None = None,
    stdin: _types.Stdin = None,
    stdout: _types.Sink = CAPTURE,
    stderr: _types.Sink = CAPTURE,
    timeout: float | None = None,
    grace: float = 0.0,
    max_output: int | None = None,
    on_overflow: str = "truncate",
    pass_fds: Iterable[int] = (),
    pty: bool | tuple[int, int] = False,
) -> Result: ...
@overload
def run_sandbox(
    command: _types.Argv | Command,
    cwd: _types.Path | None = None,
    env: Mapping[str, str] | None = None,
    filesystem_root: _types.Path = "/",
    filesystem_writable_paths: str | Iterable[_types.Path] | None = "all",
    mounts: str = "undefined",
    extra_mounts: Iterable[Mount | Sequence[object]] | None = None,
    network: str = "undefined",
    stdout: _types.Sink = CAPTURE,
    stderr: _types.Sink = CAPTURE,
    **options: _types.Any,
) -> Result: ...
def run_sandbox(*words: _types.Any, **options: _types.Any) -> Result:
    """Runs a command in a sandbox of its own, and returns `(exit, out, err)`.

        run_sandbox(rootfs_path, command, cwd=None, extra_env=None, network='undefined', *, ...)

    rootfs_path    the root directory of the command.
    command        a list of str, bytes or paths; or a str that names one program and is never
                   split. A program without a slash is looked up in the PATH of the sandbox,
                   inside the root.
    cwd            inside the root; '/' by default, the caller's directory where the root is '/'.
    extra_env      added to BASE_ENVIRONMENT, which is all that the command finds otherwise.
    env            instead of BASE_ENVIRONMENT.
    stdin          None (the default): empty. bytes, a file, or a descriptor.
    stdout, stderr CAPTURE (the default): returned as bytes. A file or a descriptor: written there,
                   None is returned. A function, Lines or Tee: handed there as it comes. None:
                   discarded. stderr=STDOUT: goes where stdout goes.
    timeout        seconds; then everything in the sandbox is killed, and Result.timed_out is True.

    The other keyword arguments are those of Sandbox; capabilities, no_new_privs, seccomp and
    nesting are those of Policy, and stand for policy=; grace, max_output, on_overflow,
    pass_fds and pty are those of Sandbox.run. The form of sandboxlib 0.3 is understood too:

        run_sandbox(command, cwd=None, env=None, filesystem_root='/', ...)

    if the first argument is a list, or the only one, or filesystem_root is given. There env=None is
    the caller's environment, mounts is 'undefined' unless something has to be mounted, the devices
    are those of the root, and the command keeps all capabilities of its caller, and has no system
    call filter. Two str are a rootfs_path and a command.

    Returns a Result, a tuple `(exit, out, err)`. exit is -n where signal n ended the command.

    The executor is the first of chroot, linux_user_chroot, user_namespace and bubblewrap that can
    promise all of this here; Result.executor names it. SANDBOXLIB_BACKEND chooses another.

    Raises SpecError (a ValueError) for a request that makes no sense, UnsupportedError (an
    AssertionError) for one that no executor can keep here, and SetupError (an OSError:
    FileNotFoundError, PermissionError, ...; and a RuntimeError) where the kernel refuses a step: a
    missing program, a bad cwd, a bad root. Unkillable if the kernel does not end what was killed,
    StatusLost if nobody knows how the command ended.
    """
    return _ladder.api.run_sandbox(*words, **options)


async def run_sandbox_async(
    rootfs_path: _types.Path,
    command: _types.Argv | Command,
    cwd: _types.Path | None = None,
    extra_env: _types.Env | None = None,
    network: str = "undefined",
    **options: _types.Any,
) -> Result:
    """As run_sandbox, in an event loop; see Sandbox.run_async. The arguments are those of
    run_sandbox's first form.
    """
    from . import _async

    options["network"] = network
    box, made = _calls.of_first_form(
        "run_sandbox_async", rootfs_path, command, cwd, extra_env, options
    )
    return await _async.run(box, made, True)


def run_sandbox_with_redirection(*words: _types.Any, **options: _types.Any) -> int:
    """Runs a command as run_sandbox does, and returns its exit status alone.

    stdout and stderr are files or descriptors, or None (the default): discarded.
    """
    return _ladder.api.run_sandbox_with_redirection(*words, **options)


# Not in __all__: `from sandboxlib import *` leaves the builtin of this name alone.
@overload
def map(
    calls: Iterable[tuple[Sandbox, _types.Argv | Command]],
    jobs: int | None = None,
    *,
    ordered: bool = True,
    on_failure: _types.Literal["stop"] = "stop",
    progress: Callable[[int, Result], object] | None = None,
    fresh: bool = False,
    **options: _types.Unpack[_types.CommandOptions],
) -> Generator[Result, None, None]: ...
@overload
def map(
    calls: Iterable[tuple[Sandbox, _types.Argv | Command]],
    jobs: int | None = None,
    *,
    ordered: bool = True,
    on_failure: _types.Literal["continue"],
    progress: Callable[[int, Result | SandboxError], object] | None = None,
    fresh: bool = False,
    **options: _types.Unpack[_types.CommandOptions],
) -> Generator[Result | SandboxError, None, None]: ...
def map(
    calls: Iterable[tuple[Sandbox, _types.Argv | Command]],
    jobs: int | None = None,
    *,
    ordered: bool = True,
    on_failure: str = "stop",
    progress: _types.Progress | None = None,
    fresh: bool = False,
    **options: _types.Unpack[_types.CommandOptions],
) -> Generator[_types.Any, None, None]:
    """Runs many commands in several Sandboxes, a few at a time; yields a Result for each.

        sandboxlib.map([(box, ["make"]), (other, Command(["make"], "/src"))], jobs=2)

    calls: an iterable of (Sandbox, command). All else is as in Sandbox.map.
    """
    from . import _map

    return _map.start(calls, jobs, ordered, on_failure, progress, {**options, "fresh": fresh})


def degrade_config_for_capabilities(
    in_config: Mapping[str, _types.Any], warn: bool = True
) -> dict[str, _types.Any]:
    """A copy of a configuration that asks for no more than can be had on this machine.

    in_config: keyword arguments of run_sandbox. What cannot be had of network, mounts, processes
    and ipc becomes 'undefined', and with mounts filesystem_writable_paths, extra_mounts and devices
    get their defaults; a seccomp that cannot be had, also that of a policy, becomes 'default' or
    'none'. Nothing is added that was not asked for, and all else stays as it is: what cannot be had
    of that (nesting, a list of devices) is refused by run_sandbox. It is the one way to ask for
    less.
    warn: True (the default): a UserWarning for each thing that is given up.
    """
    return _ladder.api.degrade_config_for_capabilities(in_config, warn)


def validate_extra_mounts(
    extra_mounts: Iterable[Mount | Sequence[object]] | None,
) -> list[list[object]]:
    """The mounts as lists of source, target, type and options, checked; SpecError."""
    found: list[list[object]] = []
    for words in extra_mounts or ():
        if not isinstance(words, (list, tuple)):
            raise SpecTypeError(f"not (source, target, type[, options]): {words!r}")
        Mount.from_tuple(words)
        source, target, kind, options = (*words, None)[:4]
        found.append([source or "", target, kind or "", options or ""])
    return found


def argv_to_string(argv: Sequence[str]) -> str:
    """A command as one would type it in a shell."""
    import shlex

    return shlex.join(argv)


def doctor() -> list[dict[str, _types.Any]]:
    """What works on this machine: for each executor a dict.

    name: str; usable: bool; reason: str, why not; isolation: dict, as maximum_possible_isolation,
    with 'seccomp'; causes: a list of (cause, remedy) found on this machine.
    """
    from . import _doctor

    found: list[dict[str, Any]] = _doctor.examine()
    return found
