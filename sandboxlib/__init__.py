# SPDX-License-Identifier: Apache-2.0
"""Run a command in a sandbox of its own, fast enough for every compile step."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable

from . import _calls, _ladder, _types, chroot, sandbox
from ._ladder import executor_for_platform, get_executor
from ._streams import CAPTURE, STDOUT, Lines, Tee
from ._types import overload
from .command import BASE_ENVIRONMENT, Command, environment_vars
from .compat import HostRootWarning, argv_to_string, validate_extra_mounts
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
    "HostRootWarning",
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


run_sandbox = _ladder.api.run_sandbox
maximum_possible_isolation = _ladder.api.maximum_possible_isolation
run_sandbox_with_redirection = _ladder.api.run_sandbox_with_redirection
degrade_config_for_capabilities = _ladder.api.degrade_config_for_capabilities


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


def doctor() -> list[dict[str, _types.Any]]:
    """What works on this machine: for each executor a dict.

    name: str; usable: bool; reason: str, why not; isolation: dict, as maximum_possible_isolation,
    with 'seccomp'; causes: a list of (cause, remedy) found on this machine.
    """
    from . import _doctor

    found: list[dict[str, Any]] = _doctor.examine()
    return found
