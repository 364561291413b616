# SPDX-License-Identifier: Apache-2.0
"""The native executor for callers without privilege: the C core in a user namespace.

In the namespace the command has its caller's ids by default (user='caller'), or is root there and
nowhere else (user='root'), with more ids where /etc/subuid gives some (user='ranges').
"""

from __future__ import annotations

import functools
import os

from . import _calls, _executor, _plan
from .command import Command
from .errors import UnsupportedError
from .result import Result
from .sandbox import Sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass

NAME = "user_namespace"
CAPABILITIES = {
    "network": ["isolated", "undefined"],
    "mounts": ["isolated", "undefined"],
    "filesystem_writable_paths": ["all", "any"],
}


def why_not() -> str:
    """The empty string where it works on this machine, otherwise why not."""
    return _executor.trial(run_command, (), "caller", os.geteuid())


def refusals(box: Sandbox) -> list[str]:
    """What of a Sandbox it cannot promise on this machine, in words."""
    return _promises_not(box) or _executor.native_refusals(run_command, box)


def _promises_not(box: Sandbox) -> list[str]:
    if refused := _executor.nesting_refused(box, True) or _executor.ids_refused(box):
        return refused
    if box._user_kind != "ranges" and box._ids is not None:
        remedy = "ranges=True has more ids"
        if box._groups:
            return [f"groups={box._groups!r}: the user namespace has a single id; {remedy}"]
        if set(os.getgroups()) - {os.getegid()}:
            left = "the command would keep the caller's other groups"
            return [
                f"user={box.user!r}: {left}, which the kernel does not let it give up; {remedy}"
            ]
    return _executor.limits_refused(box, box._user_kind == "ranges", in_user_namespace=True)


def plan_of(box: Sandbox) -> _plan.Plan:
    """How the C core runs a command in a Sandbox: in a user namespace of the caller's.
    UnsupportedError.
    """
    is_plain = box._ids is None and box.limits is None
    is_plain = is_plain and not box.policy.nesting
    if not is_plain and (refused := _promises_not(box)):
        raise UnsupportedError(f"{NAME}: {refused[0]}")
    return _plan.plan_for(box, (os.geteuid(), os.getegid()))


def run_command(box: Sandbox, command: Command, fresh: bool = True) -> Result:
    """Runs a Command in a Sandbox."""
    return _executor.run_native(NAME, plan_of(box), command, fresh)


_api = _calls.Api(NAME, run_command, functools.partial(_executor.possible_isolation, run_command))
run_in = _api.run_in
maximum_possible_isolation = _api.maximum_possible_isolation
run_sandbox = _api.run_sandbox
run_sandbox_with_redirection = _api.run_sandbox_with_redirection
degrade_config_for_capabilities = _api.degrade_config_for_capabilities
