# SPDX-License-Identifier: Apache-2.0
"""Run a command in a sandbox of its own, fast enough for every compile step."""

from __future__ import annotations

from . import chroot
from ._choice import choose
from ._choice.choose import executor_for_platform, get_executor
from ._spec.command import BASE_ENVIRONMENT, Command, environment_vars
from ._spec.inputs import File
from ._spec.limits import Limits
from ._spec.mount import Mount
from ._spec.overlay import Layers as Layers
from ._spec.overlay import Overlay
from ._spec.policy import Policy
from ._spec.policy import Profile as Profile
from ._spec.streams import CAPTURE, DEVNULL, STDOUT, Lines, Tee
from ._spec.user import User
from ._types import Argv
from ._version import __version__ as __version__
from .api import Sandbox, doctor, run_sandbox, run_sandbox_async
from .api import map as map  # not in __all__: `from sandboxlib import *` leaves the builtin alone
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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from . import bubblewrap, linux_user_chroot, load, user_namespace, utils
    from ._changes.change import Change
    from ._changes.changes import Changes
    from ._changes.layer import Layer
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
    from ._spec.command import CommandOptions
    from ._timeline.progress import Progress
    from ._timeline.timeline import Timeline
    from ._trace.trace import Trace

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

#: Modules and names that __getattr__ imports at their first use, so that `import sandboxlib` stays
#: fast.
_LATER = ("bubblewrap", "linux_user_chroot", "load", "user_namespace", "utils")
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


def __getattr__(name: str) -> Any:
    if name in _LATER:
        import importlib

        return importlib.import_module(f"{__name__}.{name}")
    if name in _NAMES_LATER:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_NAMES_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


maximum_possible_isolation = choose.api.maximum_possible_isolation
run_sandbox_with_redirection = choose.api.run_sandbox_with_redirection
degrade_config_for_capabilities = choose.api.degrade_config_for_capabilities
