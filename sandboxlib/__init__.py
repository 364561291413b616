# SPDX-License-Identifier: Apache-2.0
"""Run a command in a sandbox of its own, fast enough for every compile step."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from . import bubblewrap, chroot, linux_user_chroot, load, user_namespace, utils
    from ._changes.change import Change
    from ._changes.changes import Changes
    from ._changes.layer import Layer
    from ._choice.choose import (
        degrade_config_for_capabilities,
        executor_for_platform,
        get_executor,
        maximum_possible_isolation,
        run_sandbox_with_redirection,
    )
    from ._concurrent.async_process import AsyncProcess
    from ._concurrent.pool import SandboxExecutor
    from ._concurrent.process import Process
    from ._concurrent.session import Session
    from ._images.image import Image
    from ._images.store import Store
    from ._inputs.outputs import Outputs
    from ._inputs.tree import Tree
    from ._remote.cached import Cached
    from ._remote.remote import Remote
    from ._remote.server import Server
    from ._runner import Runner
    from ._spec.command import BASE_ENVIRONMENT, Command, CommandOptions, environment_vars
    from ._spec.inputs import File
    from ._spec.limits import Limits
    from ._spec.mount import Mount
    from ._spec.overlay import Layers as Layers
    from ._spec.overlay import Overlay
    from ._spec.policy import Policy
    from ._spec.policy import Profile as Profile
    from ._spec.streams import CAPTURE, DEVNULL, STDOUT, Lines, Tee
    from ._spec.user import User
    from ._timeline.progress import Progress
    from ._timeline.timeline import Timeline
    from ._trace.trace import Trace
    from ._types import Argv
    from ._version import __version__ as __version__
    from .api import Sandbox, doctor, run_sandbox, run_sandbox_async
    from .api import map as map
    from .compat import HostRootWarning, argv_to_string, validate_extra_mounts
    from .errors import (
        CallerError,
        ImageError,
        ProgramNotFound,
        RemoteError,
        SandboxError,
        SessionOver,
        SetupError,
        SpecError,
        SpecTypeError,
        StatusLost,
        Unkillable,
        UnsupportedError,
    )
    from .result import CommandFailed, Result, Usage

#: Without map: `from sandboxlib import *` leaves the builtin alone.
__all__ = [
    "BASE_ENVIRONMENT",
    "CAPTURE",
    "DEVNULL",
    "STDOUT",
    "Argv",
    "AsyncProcess",
    "Cached",
    "CallerError",
    "Change",
    "Changes",
    "Command",
    "CommandFailed",
    "CommandOptions",
    "File",
    "HostRootWarning",
    "Image",
    "ImageError",
    "Layer",
    "Limits",
    "Lines",
    "Mount",
    "Outputs",
    "Overlay",
    "Policy",
    "Process",
    "ProgramNotFound",
    "Progress",
    "Remote",
    "RemoteError",
    "Result",
    "Runner",
    "Sandbox",
    "SandboxError",
    "SandboxExecutor",
    "Server",
    "Session",
    "SessionOver",
    "SetupError",
    "SpecError",
    "SpecTypeError",
    "StatusLost",
    "Store",
    "Tee",
    "Timeline",
    "Trace",
    "Tree",
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

#: Modules and names that __getattr__ imports at their first use. `import sandboxlib` itself imports
#: nothing, so that a program of ours, such as the runner, has no more of it than it uses.
_LATER = frozenset(
    "api bubblewrap chroot compat errors linux_user_chroot load result user_namespace utils".split()
)
_NAMES_LATER = {
    "AsyncProcess": "_concurrent.async_process",
    "Cached": "_remote.cached",
    "Change": "_changes.change",
    "Changes": "_changes.changes",
    "CommandOptions": "_spec.command",
    "Outputs": "_inputs.outputs",
    "Process": "_concurrent.process",
    "Session": "_concurrent.session",
    "Runner": "_runner",
    "SandboxExecutor": "_concurrent.pool",
    "Remote": "_remote.remote",
    "Server": "_remote.server",
    "Image": "_images.image",
    "Layer": "_changes.layer",
    "Store": "_images.store",
    "Progress": "_timeline.progress",
    "Timeline": "_timeline.timeline",
    "Trace": "_trace.trace",
    "Tree": "_inputs.tree",
}
#: All others, which come together: a run needs nearly all of them, and typing.get_type_hints looks
#: here for what the hints of one of them name.
_TOGETHER = {
    "_choice.choose": (
        "executor_for_platform get_executor maximum_possible_isolation"
        " run_sandbox_with_redirection degrade_config_for_capabilities"
    ),
    "_spec.command": "BASE_ENVIRONMENT Command environment_vars",
    "_spec.inputs": "File",
    "_spec.limits": "Limits",
    "_spec.mount": "Mount",
    "_spec.overlay": "Layers Overlay",
    "_spec.policy": "Policy Profile",
    "_spec.streams": "CAPTURE DEVNULL STDOUT Lines Tee",
    "_spec.user": "User",
    "_types": "Argv",
    "_version": "__version__",
    "api": "Sandbox doctor map run_sandbox run_sandbox_async",
    "chroot": "",
    "compat": "HostRootWarning argv_to_string validate_extra_mounts",
    "errors": (
        "CallerError ImageError ProgramNotFound RemoteError SandboxError SessionOver SetupError"
        " SpecError SpecTypeError StatusLost Unkillable UnsupportedError"
    ),
    "result": "CommandFailed Result Usage",
}
_COMMON = frozenset(" ".join(_TOGETHER.values()).split())


def _imported(name: str) -> Any:
    from sys import modules

    __import__(f"{__name__}.{name}")  # without importlib, which costs more than this
    return modules[f"{__name__}.{name}"]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return _imported(name)
    if name in _NAMES_LATER:
        return getattr(_imported(_NAMES_LATER[name]), name)
    if name in _COMMON:
        for module, names in _TOGETHER.items():
            found = _imported(module)
            globals().update({each: getattr(found, each) for each in names.split()})
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, *_NAMES_LATER, *_COMMON})
