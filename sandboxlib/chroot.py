# SPDX-License-Identifier: Apache-2.0
"""The native executor for privileged callers: it needs CAP_SYS_ADMIN and CAP_SYS_CHROOT."""

from __future__ import annotations

import os

from ._executors import calls, trial
from ._executors.base import NativeExecutor
from ._executors.refusals import (
    ids_refused,
    limits_refused,
    nesting_refused,
    read_only_refused,
)
from ._host import machine
from ._runs import plan
from ._spec.spec import Spec
from .errors import UnsupportedError

NAME = "chroot"
CAPABILITIES = {
    "network": ["isolated", "undefined"],
    "mounts": ["isolated", "undefined"],
    "filesystem_writable_paths": ["all", "any"],
}


def _promises_not(box: Spec) -> list[str]:
    if refused := nesting_refused(box, False):
        return refused
    if box.user != "caller" and os.geteuid() != 0:
        return [f"user={box.user!r} takes a user namespace for a caller that is not root"]
    if box.user not in ("caller", "root") and machine.has_one_id():
        return [f"user={box.user!r}: the caller is in a user namespace that has a single id"]
    if refused := ids_refused(box):
        return refused
    return limits_refused(box, changes_ids=True) or read_only_refused(box)


class Chroot(NativeExecutor):
    """The executor that runs the C core with the caller's own privilege."""

    name = NAME

    def why_not(self) -> str:
        """Returns "" if the executor works on this machine; otherwise says why not."""
        return trial.trial(self.run_command, ("mounts",), "caller", os.geteuid())

    def refusals(self, box: Spec) -> list[str]:
        """Returns a sentence for each promise of a Sandbox that it cannot keep on this machine."""
        return _promises_not(box) or trial.native_refusals(self.run_command, box)

    def plan_of(self, box: Spec) -> plan.Plan:
        """Returns how the C core runs a command in a Sandbox. Raises UnsupportedError."""
        is_plain = box.user == "caller" and box.limits is None
        is_plain = is_plain and (
            box.processes == "isolated" or box.filesystem_writable_paths == "all"
        )
        is_plain = is_plain and not box.policy.nesting
        if not is_plain and (refused := _promises_not(box)):
            raise UnsupportedError(f"{NAME}: {refused[0]}")
        return plan.plan_for(box)

    def causes(self) -> list[tuple[str, str]]:
        if os.geteuid() != 0:
            return [("the caller is not root", "run as root, or use another executor")]
        causes = machine.missing_capabilities() + machine.limits("mnt", "net", "pid", "ipc")
        if machine.status("Seccomp") == "2":
            causes.append(machine.SECCOMP)
        if machine.proc_is_masked():
            causes.append(machine.MASKED_PROC)
        if machine.kernel_is_older_than(5, 12):
            causes.append((f"the kernel is {os.uname().release}", "Linux 5.12 or newer"))
        return causes


EXECUTOR = Chroot()
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
