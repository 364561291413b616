# SPDX-License-Identifier: Apache-2.0
"""Refusals of Policy(nesting=True), with which commands may make user namespaces, and mount there.

Such a command can mount the machine's cgroups (cgroup_namespaces(7)), and write to those that its
uid owns: as uid 0 of the machine to all of them. It could then kill, freeze and move the processes
of others, so we refuse that.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Sequence

from .._cgroups import hierarchies
from .._host import machine
from .._spec.spec import Spec

#: A process that may write one of these can move, kill or stop the processes in a cgroup.
_COMMANDS = (
    "cgroup.procs",
    "cgroup.threads",
    "tasks",
    "cgroup.kill",
    "cgroup.freeze",
    "freezer.state",
)


@functools.lru_cache(maxsize=64)
def refused(box: Spec, in_user_namespace: bool, euid: int) -> list[str]:
    """Why a Sandbox cannot have nesting; [] if it can.

    in_user_namespace: bool, whether its commands are in a user namespace.
    """
    if box.mounts != "isolated" and box._directory != "/":
        return ["nesting=True: there are no user namespaces in a chroot; mounts='isolated' is none"]
    if box.policy.capabilities == "all" and not in_user_namespace:
        return ["nesting=True: capabilities='all' leads out of a sandbox without it"]
    uids = [range(uid, uid + 1) for uid in _uids(box, in_user_namespace, euid)]
    if in_user_namespace and box._user_kind == "ranges" and euid != 0:
        from .._runs import id_maps

        uids += [range(first, first + count) for _, first, count in id_maps.ranges("uid")]
    if in_user_namespace and euid == 0 and box._ids is not None and 0 in uids[0]:
        return ["nesting=True: a user namespace of root's belongs to uid 0; the executor is chroot"]
    if any(0 in each for each in uids):
        return [
            "nesting=True: uid 0 of the machine could write its cgroups through a user namespace "
            "of its own, and so reach every process; give the command other ids (user=1000)"
        ]
    path = _writable(uids)
    if path:
        return [
            f"nesting=True: the cgroup {path} is delegated to the command's uid, which could reach "
            "the processes there; give the command other ids, or take the delegation away"
        ]
    return []


def _uids(box: Spec, in_user_namespace: bool, euid: int) -> set[int]:
    """The uids that commands can get, as the initial user namespace has them."""
    if in_user_namespace or box._ids is None:
        return {_outside(euid)}
    others = set() if box.policy.no_new_privs else {euid}
    return {_outside(uid) for uid in {box._ids[0], *others}}


def _outside(uid: int) -> int:
    """A uid of the caller's user namespace as the initial one has it."""
    for line in machine.read("/proc/self/uid_map").splitlines():
        first, low, count = (int(number) for number in line.split())
        if 0 <= uid - first < count:
            return low + uid - first
    return uid


def _writable(uids: Sequence[range]) -> str:
    """A cgroup that one of the uids may write, of those mounted for the caller; "" if none."""
    for top in sorted(set(hierarchies.mount_points().values())):
        for path, _, files in os.walk(top):
            if "cgroup.procs" not in files:
                continue
            for name in (path, *(f"{path}/{file}" for file in _COMMANDS if file in files)):
                with contextlib.suppress(OSError):  # removed meanwhile
                    status = os.stat(name)
                    owner = _outside(status.st_uid)
                    # A cgroup that its group may write counts as well: the command may be in it.
                    if status.st_mode & 0o022 or any(owner in each for each in uids):
                        return path
    return ""
