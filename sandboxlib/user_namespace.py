# SPDX-License-Identifier: Apache-2.0
"""The native executor for callers without privilege: the C core in a user namespace.

In the namespace the command has its caller's ids by default (user='caller'), or is root there and
nowhere else (user='root'), or is root with the ids that /etc/subuid gives to the caller
(user='ranges').
"""

from __future__ import annotations

import os

from . import errors
from ._executors import calls, trial
from ._executors.base import NativeExecutor
from ._executors.refusals import (
    ids_refused,
    layers_refused,
    limits_refused,
    nesting_refused,
    single_id_refused,
)
from ._host import machine
from ._runs import plan
from ._spec.spec import Spec
from .errors import UnsupportedError

NAME = "user_namespace"
CAPABILITIES = {
    "network": ["isolated", "undefined"],
    "mounts": ["isolated", "undefined"],
    "filesystem_writable_paths": ["all", "any"],
}


def _promises_not(box: Spec) -> list[str]:
    if refused := layers_refused(box) or nesting_refused(box, True) or ids_refused(box):
        return refused
    if refused := single_id_refused(box):
        return refused
    if box._overlay is not None and box.devices == "root":
        text = "no device opens in a file system that a user namespace made"
        return [f"devices='root' with an Overlay: {text}; Mount.bind has single ones"]
    return limits_refused(box, box._user_kind == "ranges", in_user_namespace=True)


def _about_ranges() -> list[tuple[str, str]]:
    """The causes for which user='ranges' does not work, with remedies."""
    if os.geteuid() == 0:
        return []
    from ._runs import id_maps

    causes = []
    for kind in ("uid", "gid"):
        try:
            if id_maps.find_tool(f"new{kind}map") is None:
                causes.append((f"user='ranges': there is no new{kind}map", "install uidmap"))
        except errors.UnsupportedError as error:
            cause, _, remedy = str(error).partition("; ")
            causes.append((f"user='ranges': {cause}", remedy))
        try:
            id_maps.ranges(kind)
        except errors.UnsupportedError as error:
            cause, _, remedy = str(error).rpartition("; ")
            causes.append((f"user='ranges': {cause}", remedy))
    return causes


class UserNamespace(NativeExecutor):
    """The executor that runs the C core in a user namespace of the caller's."""

    name = NAME

    def why_not(self) -> str:
        """Returns "" if the executor works on this machine; otherwise says why not."""
        return trial.trial(self.run_command, (), "caller", os.geteuid())

    def refusals(self, box: Spec) -> list[str]:
        """Returns a sentence for each promise of a Sandbox that it cannot keep on this machine."""
        return _promises_not(box) or trial.native_refusals(self.run_command, box)

    def plan_of(self, box: Spec) -> plan.Plan:
        """Returns how the C core runs a command in a Sandbox: in a user namespace of the caller's.
        Raises UnsupportedError.
        """
        is_plain = box._ids is None and box.limits is None
        is_plain = is_plain and not box.policy.nesting and box._overlay is None
        if not is_plain and (refused := _promises_not(box)):
            raise UnsupportedError(f"{NAME}: {refused[0]}")
        return plan.plan_for(box, (os.geteuid(), os.getegid()))

    def causes(self) -> list[tuple[str, str]]:
        return machine.about_user_namespaces()

    def remarks(self) -> list[tuple[str, str]]:
        """Returns why user='ranges' does not work: all else can work without."""
        return _about_ranges()


EXECUTOR = UserNamespace()
plan_of = EXECUTOR.plan_of
why_not = EXECUTOR.why_not
refusals = EXECUTOR.refusals
run_command = EXECUTOR.run_command
_api = calls.Api(NAME, run_command, EXECUTOR.maximum_possible_isolation)
run_in = _api.run_in
maximum_possible_isolation = _api.maximum_possible_isolation
run_sandbox = _api.run_sandbox
run_sandbox_with_redirection = _api.run_sandbox_with_redirection
degrade_config_for_capabilities = _api.degrade_config_for_capabilities
