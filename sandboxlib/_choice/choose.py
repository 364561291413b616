# SPDX-License-Identifier: Apache-2.0
"""Chooses the executor of a call: the first that can keep all promises of its Sandbox."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from types import ModuleType

from .. import errors
from .._executors import calls, trial
from .._executors.base import Executor, NativeExecutor
from .._spec.command import Command
from .._spec.spec import Spec
from ..errors import UnsupportedError
from ..result import Result

#: In the order in which choose() tries them: from the most to the least direct.
EXECUTORS = ("chroot", "linux_user_chroot", "user_namespace", "bubblewrap")
VARIABLE = "SANDBOXLIB_BACKEND"
_VARIABLE = VARIABLE.encode()
# Read by bytes: os.environ encodes each name and decodes each value, which takes several times as
# long.
_variables: Mapping[bytes, bytes] = getattr(os.environ, "_data", os.environb)


def get_executor(name: str) -> ModuleType:
    """Returns the module of an executor. name: str, with '-' or '_'. KeyError if unknown."""
    canonical = name.replace("-", "_")
    if canonical not in EXECUTORS:
        raise KeyError(name)
    module = f"sandboxlib.{canonical}"
    __import__(module)  # without importlib, which costs more than this
    return sys.modules[module]


def executor_named(name: str) -> Executor:
    """The Executor with that name."""
    executor: Executor = get_executor(name).EXECUTOR
    return executor


def candidates() -> tuple[str, ...]:
    name = os.environ.get(VARIABLE)
    if not name:
        return EXECUTORS
    canonical = name.replace("-", "_")
    if canonical in EXECUTORS:
        return (canonical,)
    known = ", ".join(EXECUTORS)
    errors.warn(f"{VARIABLE} is {name!r}, none of {known}; it is ignored")
    return EXECUTORS


def executor_for_platform() -> ModuleType:
    """Returns the module of the first executor that works on this machine.

    The variable SANDBOXLIB_BACKEND names another; an unknown name is ignored, with a warning.
    Raises UnsupportedError if none works; it says for each why not.
    """
    reasons = []
    for name in candidates():
        reason = executor_named(name).why_not()
        if not reason:
            return get_executor(name)
        reasons.append(f"{name}: {reason}")
    raise UnsupportedError("no executor works on this machine\n  " + "\n  ".join(reasons))


def choose(box: Spec, native: bool = False) -> Executor:
    """The first executor that can keep all promises of a Sandbox. UnsupportedError.

    native: bool. True: only one that drives no program.
    """
    reasons = []
    for name in candidates():
        executor = executor_named(name)
        reason = "; ".join(executor.refusals(box))
        if native and not isinstance(executor, NativeExecutor):
            reason = "it drives a program: no grace, no executable=, no terminal, no changes, no"
            reason += " inputs, no outputs, no Process, no session, no event loop, no trace"
        if not reason:
            return executor
        reasons.append(f"{name}: {reason}")
    raise UnsupportedError("no executor can promise this\n  " + "\n  ".join(reasons))


def run_command(box: Spec, command: Command, fresh: bool = True) -> Result:
    """Runs a Command in a Sandbox by the executor that choose() finds; see run_sandbox."""
    native = not command._is_plain and needs_native(command)
    result: Result = executor_of(box, native).run_command(box, command, fresh)
    return result


def needs_native(command: Command) -> bool:
    """Whether a Command has options that need an executor which drives no program."""
    asked = command.pty or command.grace or command.executable or command.changes != "drop"
    return bool(asked or command.inputs or command.outputs)


def executor_of(box: Spec, native: bool = False) -> Executor:
    """The executor of a Sandbox, chosen once for each kind of caller."""
    key = os.geteuid(), _variables.get(_VARIABLE), native
    chosen: Executor | None = box._executors.get(key)
    if chosen is None:
        chosen = box._executors[key] = choose(box, native)
    return chosen


def native_executor_of(box: Spec) -> NativeExecutor:
    """The executor of a Sandbox, of those that drive no program."""
    executor = executor_of(box, native=True)
    assert isinstance(executor, NativeExecutor)
    return executor


def _possible() -> dict[str, str]:
    """The most that one executor can isolate on this machine."""
    best: dict[str, str] = {**trial.UNDEFINED, "seccomp": "none"}
    for executor in map(executor_named, candidates()):
        possible = best if executor.why_not() else executor.maximum_possible_isolation()
        if list(possible.values()).count("isolated") > list(best.values()).count("isolated"):
            best = possible
    return best


api = calls.Api("sandboxlib", run_command, _possible)
maximum_possible_isolation = api.maximum_possible_isolation
run_sandbox_with_redirection = api.run_sandbox_with_redirection
degrade_config_for_capabilities = api.degrade_config_for_capabilities
