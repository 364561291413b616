# SPDX-License-Identifier: Apache-2.0
"""The native executor: the C core with real privilege (CAP_SYS_ADMIN and CAP_SYS_CHROOT)."""

from __future__ import annotations

import functools
import os

from . import _calls, _executor, _plan
from ._host import machine
from .command import Command
from .errors import UnsupportedError
from .result import Result
from .sandbox import Sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass

NAME = "chroot"
CAPABILITIES = {
    "network": ["isolated", "undefined"],
    "mounts": ["isolated", "undefined"],
    "filesystem_writable_paths": ["all", "any"],
}


def why_not() -> str:
    """The empty string where it works on this machine, otherwise why not."""
    return _executor.trial(run_command, ("mounts",), "caller", os.geteuid())


def refusals(box: Sandbox) -> list[str]:
    """What of a Sandbox it cannot promise on this machine, in words."""
    return _promises_not(box) or _executor.native_refusals(run_command, box)


def _promises_not(box: Sandbox) -> list[str]:
    if refused := _executor.nesting_refused(box, False):
        return refused
    if box.user != "caller" and os.geteuid() != 0:
        return [f"user={box.user!r} takes a user namespace for a caller that is not root"]
    if box.user not in ("caller", "root") and machine.has_one_id():
        return [f"user={box.user!r}: the caller is in a user namespace that has a single id"]
    if refused := _executor.ids_refused(box):
        return refused
    return _executor.limits_refused(box, changes_ids=True) or _executor.read_only_refused(box)


def plan_of(box: Sandbox) -> _plan.Plan:
    """How the C core runs a command in a Sandbox; UnsupportedError."""
    is_plain = box.user == "caller" and box.limits is None
    is_plain = is_plain and (box.processes == "isolated" or box.filesystem_writable_paths == "all")
    is_plain = is_plain and not box.policy.nesting
    if not is_plain and (refused := _promises_not(box)):
        raise UnsupportedError(f"{NAME}: {refused[0]}")
    return _plan.plan_for(box)


def run_command(box: Sandbox, command: Command, fresh: bool = True) -> Result:
    """Runs a Command in a Sandbox."""
    return _executor.run_native(NAME, plan_of(box), command, fresh)


_api = _calls.Api(NAME, run_command, functools.partial(_executor.possible_isolation, run_command))
run_in = _api.run_in
maximum_possible_isolation = _api.maximum_possible_isolation
run_sandbox = _api.run_sandbox
run_sandbox_with_redirection = _api.run_sandbox_with_redirection
degrade_config_for_capabilities = _api.degrade_config_for_capabilities
