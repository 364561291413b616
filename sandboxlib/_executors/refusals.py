# SPDX-License-Identifier: Apache-2.0
"""Promises that no executor can keep, because of the kernel or the machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import ceil

from .._host import machine
from .._runs.mounts import ENTRIES
from .._spec.limits import Limits
from .._spec.policy import CAPABILITIES, DEFAULT_CAPABILITIES
from .._spec.spec import Spec
from .._spec.user import User

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass


def overlay_refused(box: Spec, name: str) -> list[str]:
    """Why an executor cannot stack layers; [] if the root is a directory."""
    return [] if box._overlay is None else [f"{name} has no root of layers (Overlay)"]


def entries_refused(box: Spec, name: str) -> list[str]:
    """Why an executor cannot add directories, links and files to a root; [] if there are none."""
    kinds = {mount.type for mount in box.extra_mounts if mount.type in ENTRIES}
    return [f"{name} has no Mount.{kind}()" for kind in sorted(kinds)]


def layers_refused(box: Spec) -> list[str]:
    """Why the kernel stacks no layers in a user namespace; [] if it does, or need not."""
    overlay = box._overlay
    if overlay is None:
        return []
    if machine.kernel_is_older_than(5, 11):
        return ["an Overlay in a user namespace takes Linux 5.11"]
    if overlay.upper is None and overlay.storage == "memory" and machine.kernel_is_older_than(6, 6):
        text = "an upper in memory in a user namespace takes Linux 6.6 (user.* attributes of tmpfs)"
        return [f"{text}; Overlay(..., storage='disk') does without"]
    return []


def nesting_refused(box: Spec, in_user_namespace: bool) -> list[str]:
    """Why commands cannot have nesting; [] if they can, or need not."""
    if not box.policy.nesting:
        return []
    from . import nesting

    return nesting.refused(box, in_user_namespace, os.geteuid())


def _cpu_time_refused(limits: Limits, box: Spec, tool: str) -> list[str]:
    """Why a cpu_time with a fraction would end nothing in time: only a reaper of ours looks."""
    seconds = limits.cpu_time
    if not isinstance(seconds, float):
        return []
    why = f"{tool} has no reaper of ours" if tool else "there is no reaper"
    remedy = "" if tool else ", or isolate processes, with init=True"
    if not tool and box.init and box.processes == "isolated":
        return []
    text = f"{why} to look at it, and the kernel counts whole seconds"
    return [f"Limits.cpu_time={seconds}: {text}; say cpu_time={ceil(seconds)}{remedy}"]


def limits_refused(
    box: Spec, changes_ids: bool = False, in_user_namespace: bool = False, tool: str = ""
) -> list[str]:
    """The limits that the kernel would accept, but not enforce: the command is exempt from them, or
    the kernel counts in larger units.

    tool: the name of the program that makes the sandbox, if it is not our core.
    changes_ids: a User's ids are the command's ids outside of the sandbox as well.
    in_user_namespace: the command has its capabilities in a user namespace only, where they exempt
    it from no limit.
    """
    limits = box.limits
    if limits is None:
        return []
    refused = _cpu_time_refused(limits, box, tool)
    if limits.processes is None and limits.locked_memory is None:
        return refused
    is_other = changes_ids and box._ids is not None and box._ids[0] != 0
    if is_other and isinstance(box.policy.capabilities, str):  # it has no capability
        return refused
    has = () if in_user_namespace else _capabilities_of(box)
    if limits.processes is not None:
        if machine.is_root_of_the_machine() and not is_other:
            text = "the kernel exempts uid 0; give other ids, or Limits.pids"
            refused.append(f"Limits.processes: {text}")
        elif "sys_admin" in has or "sys_resource" in has:
            refused.append("Limits.processes: the kernel exempts sys_admin and sys_resource")
    if limits.locked_memory is not None and "ipc_lock" in has:
        refused.append("Limits.locked_memory: the kernel exempts ipc_lock")
    return refused


def ids_refused(box: Spec) -> list[str]:
    """Why a command cannot have 'all' capabilities with another uid: exec would drop them."""
    if (
        box._ids is None
        or box._ids[0] == 0
        or box.policy.capabilities != "all"
        or os.geteuid() != 0
    ):
        return []
    text = "changing to a uid that is not 0 drops them; list those that the command needs"
    return [f"capabilities='all' with user={box.user!r}: {text}"]


def single_id_refused(box: Spec) -> list[str]:
    """Why a user namespace with a single id cannot give a command the groups of a User."""
    user = box.user
    if box._user_kind == "ranges" or not isinstance(user, User) or user.groups is None:
        return []
    remedy = "ranges=True has more ids"
    if user.groups:
        return [f"groups={user.groups!r}: the user namespace has a single id; {remedy}"]
    if set(os.getgroups()) - {os.getegid()}:
        text = "the command would keep the caller's other groups, which the kernel does not let it"
        return [f"groups=(): {text} give up; {remedy}, and groups=None passes them on"]
    return []


def read_only_refused(box: Spec) -> list[str]:
    """Why a command that shares the caller's processes could write to a root that is read-only.

    A command may trace, and enter /proc/PID/root of, each process that has its ids and no
    capability beyond its own (ptrace(2)): with setuid those of any user, and with sys_ptrace any
    process. From a user namespace of its own it may do neither to a process outside.
    """
    if box.processes == "isolated" or box.filesystem_writable_paths == "all":
        return []
    asked = box.policy.capabilities
    if asked == "all" or machine.has_one_id():  # 'all' makes the root writable again by itself
        return []
    remedy = "isolate processes, or say filesystem_writable_paths='all'"
    if os.geteuid() == 0:
        have = int(machine.status("CapEff") or "0", 16)
        names = DEFAULT_CAPABILITIES if asked == "default" else () if asked == "none" else asked
        bad = [
            name
            for name in ("setuid", "sys_ptrace")
            if name in names and have >> CAPABILITIES.index(name) & 1
        ]
        if not bad:
            return []
        remedy += f", or give capabilities without {' and '.join(bad)}"
    text = "a read-only root, as a command could write through the processes of others"
    return [f"processes='undefined' with {text} (/proc/PID/root): {remedy}"]


def _capabilities_of(box: Spec) -> Sequence[str]:
    """The capabilities of a command beyond 'default', as far as the caller has them."""
    asked = box.policy.capabilities
    if asked in ("default", "none") or machine.is_in_user_namespace():
        return ()
    have = int(machine.status("CapEff") or "0", 16)
    names = CAPABILITIES if asked == "all" else asked
    return [name for name in names if have >> CAPABILITIES.index(name) & 1]
