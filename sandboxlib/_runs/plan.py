# SPDX-License-Identifier: Apache-2.0
"""Plan: a Sandbox as numbers and names for the C core."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import MappingProxyType

from .. import errors
from .._core import native
from .._host import machine
from .._spec.limits import RLIMITS, SCHEDULERS, Limits
from .._spec.overlay import Overlay
from .._spec.policy import (
    CAPABILITIES,
    DEFAULT_CAPABILITIES,
    Policy,
    Profile,
    filter_of,
    program_of,
)
from .._spec.spec import Spec
from .mounts import PlannedMount, _all_mounts, _hides_devices, inodes_of
from .overlay import StackedRoot, place_values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

lib = native.lib

# The flags of clone(2), from linux/sched.h.
NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000

_NO_LIMITS = Limits()


class Plan:
    """A Sandbox as the C core takes it.

    It holds names and numbers only, no descriptors: any number of runs may use it at once.
    ids: the caller's (uid, gid), if the runs need a user namespace; otherwise None.
    """

    def __init__(self, box: Spec, ids: tuple[int, int] | None) -> None:
        self.box = box
        self.mounts = _all_mounts(box)
        values = _place_values(box)
        self.overlay = None if box._overlay is None else self._stack(box._overlay, ids, values)
        if ids is not None:
            values["namespaces"] |= NEWUSER
        elif box.policy.capabilities == "all":
            values["guard_keyring"] = 0  # such a command can do all to its caller anyway
        if ids is not None and box._user_kind != "ranges":
            mapped = box._ids or (ids if box._user_kind == "caller" else (0, 0))
            for name, number, outside in zip(("uid_map", "gid_map"), mapped, ids, strict=True):
                values[name] = f"{number} {outside} 1"
        elif box._ids is not None:
            values |= {"change_ids": 1, "uid": box._ids[0], "gid": box._ids[1]}
            values |= {"n_groups": len(box._groups), "groups": box._groups}
        self.in_user_namespace = ids is not None
        self.mapped_outside = ids is not None and box._user_kind == "ranges"
        self.values = values
        self.place, self._memory = native.new_place(values, [m.values for m in self.mounts])
        self.base: Plan | None = None  # see share()
        self.limits_in_slot: Any = None  # its limits, if the slots have others
        self.is_without_slots = False  # True: all runs of this plan are fresh
        self.reaper = bool(values["reaper"])
        self.cgroup_limits = _cgroup_limits(box)
        # Plans with other limits may share these; see share().
        self._all_slots: dict[object, Any] = {}
        self._all_cgroups: dict[object, Any] = {}
        self.cgroups: Any = None  # Cgroups, of fresh runs and of slots
        self._share_cgroups()
        self.is_limited = box.limits is not None
        isolation = {**box.isolation(), "seccomp": filter_of(box.policy)}
        self.isolation = MappingProxyType(isolation)  # shared by all Results
        self._nothing_held = native.held_flags(len(self.mounts), ())
        self.stubs: tuple[int, ...] = ()  # the mounts whose target the last run had to make

    def _stack(
        self, overlay: Overlay, ids: tuple[int, int] | None, values: dict[str, Any]
    ) -> StackedRoot:
        """The root of layers, of which it fills the values of the place."""
        changes = None if self.box.limits is None else self.box.limits.changes
        values |= place_values(overlay, ids, changes, inodes_of(changes))
        targets = tuple(mount.point for mount in self.mounts)
        hidden = tuple(mount.target for mount in self.mounts if mount.is_over_the_root)
        return StackedRoot(self.box, ids, targets, hidden)

    def share(self, base: Plan) -> None:
        """Uses the slots of another plan, which differs in the limits alone, if they have cgroups
        with the same kinds of limits. The limits go with the order.
        """
        self.base = base
        if self.values["limits"] != base.values["limits"]:
            limits = {n: v for n, v in self.values["limits"].items() if n != "oom_score_adj"}
            self.limits_in_slot = native.new_limits(limits)
        self._all_slots, self._all_cgroups = base._all_slots, base._all_cgroups
        self._share_cgroups()

    def _share_cgroups(self) -> None:
        if self.cgroup_limits is not None:
            from .._cgroups.cgroups import Cgroups

            self.cgroups = self._all_cgroups.get(self._kind)
            if self.cgroups is None:
                self.cgroups = self._all_cgroups[self._kind] = Cgroups(self.cgroup_limits)

    @property
    def _kind(self) -> object:
        """Cgroups with the same kinds of limits take each other's values."""
        return None if self.cgroup_limits is None else self.cgroup_limits.kind

    @property
    def slots(self) -> Any:
        """Its Slots, made by slots_of() when a run first asks for one; None before."""
        return self._all_slots.get(self._kind)

    @slots.setter
    def slots(self, slots: Any) -> None:
        self._all_slots[self._kind] = slots

    @property
    def late_slots(self) -> Any:
        """The same for runs with inputs, which come with the order."""
        return self._all_slots.get(("late", self._kind))

    @late_slots.setter
    def late_slots(self, slots: Any) -> None:
        self._all_slots["late", self._kind] = slots

    @property
    def all_slots(self) -> list[Any]:
        """The Slots of this plan and of those that share them."""
        return list(self._all_slots.values())

    @property
    def all_cgroups(self) -> list[Any]:
        """The Cgroups of this plan and of those that share them."""
        return list(self._all_cgroups.values())

    @property
    def paths(self) -> list[str]:
        """The caller's paths that a run opens: the root, or its layers, and the sources."""
        sources = [mount.source for mount in self.mounts if mount.source]
        if self.overlay is not None:
            return [*(lower.path for lower in self.overlay.lowers()), *sources]
        return [self.box._directory, *sources]

    def may_hang(self) -> bool:
        """Whether the set-up of a run may take for ever."""
        hanging = machine.hanging_mounts()
        return bool(hanging) and may_hang(self.box._directory, self.paths, self.mounts, hanging)

    def stub_flags(self, indices: Sequence[int]) -> Any:
        """The flags that tell the core which targets of mounts are stubs, held by the caller."""
        return native.held_flags(len(self.mounts), indices) if indices else self._nothing_held


def may_hang(
    root: str, paths: Sequence[str], mounts: Sequence[PlannedMount], hanging: frozenset[str]
) -> bool:
    """Whether looking up one of the paths, or a mount point in the root, may take for ever.

    hanging: as machine.hanging_mounts() returns it.
    """
    return any(machine.may_hang(path, hanging) for path in paths) or any(
        machine.may_hang(mount.target, hanging, root) for mount in mounts
    )


def _mask(names: Sequence[str]) -> int:
    return sum(1 << CAPABILITIES.index(name) for name in names)


def _place_values(box: Spec) -> dict[str, Any]:
    isolated = {name: value == "isolated" for name, value in box.isolation().items()}
    hostname = box.hostname or ("sandbox" if box.deterministic else None)
    namespaces = (
        (isolated["mounts"] and NEWNS)
        | (isolated["network"] and NEWNET)
        | (isolated["processes"] and NEWPID | NEWCGROUP)
        | (isolated["ipc"] and NEWIPC | NEWUTS)
        | (hostname is not None and NEWUTS)
    )
    is_our_child = not (isolated["processes"] and box.init)
    values: dict[str, Any] = {
        "namespaces": int(namespaces),
        "read_only": int(box.filesystem_writable_paths != "all"),
        "no_devices": int(_hides_devices(box)),
        "session": 1,
        "keyring": int(isolated["ipc"]),
        "reaper": int(isolated["processes"] and box.init),
        # Not needed with the filter 'builds', which closes keyctl(2) as a whole.
        "guard_keyring": int(is_our_child and filter_of(box.policy) != "builds"),
        "no_new_privs": int(box.policy.no_new_privs),
        "cut_capabilities": int(box.policy.capabilities != "all"),
    }
    # Leave out chroot(2) to "/": it changes nothing, but takes CAP_SYS_CHROOT.
    if box._overlay is None and (box._directory != "/" or isolated["mounts"]):
        values["root"] = box._directory
    if hostname is not None:
        values["hostname"] = hostname
    values["limits"] = _limits(box)
    names = box.policy.capabilities
    if names == "default":
        values["capabilities"] = _mask(DEFAULT_CAPABILITIES)
    elif isinstance(names, tuple):
        values["capabilities"] = values["must_capabilities"] = _mask(names)
    return values | filter_values(box.policy)


def filter_values(policy: Policy, in_slot: bool = False) -> dict[str, Any]:
    """The values of the system call filter. in_slot: for a run that a resident makes."""
    is_profile = isinstance(policy.seccomp, Profile)
    program = program_of(policy, in_slot and not is_profile)
    if not program:
        return {}
    when = lib.SBX_FILTER_RESIDENT if in_slot else lib.SBX_FILTER_EARLY
    # A profile may close calls of our set-up, so it comes last. Without no_new_privs installing it
    # takes CAP_SYS_ADMIN (seccomp(2)), so it comes before the capabilities go.
    if is_profile:
        when = lib.SBX_FILTER_LAST if policy.no_new_privs else lib.SBX_FILTER_EARLY
    return {"filter": program, "filter_length": len(program) // 8, "filter_when": when}


def _cgroup_limits(box: Spec) -> Any:
    """The CgroupLimits of a Sandbox; None if its limits need no cgroup."""
    limits = box.limits or _NO_LIMITS
    names = ("memory", "swap", "pids", "cpu_weight", "io_weight")
    asked = {name: getattr(limits, name) for name in names} | {"cpu_quota": limits.cpus}
    if not limits.cgroup and not any(value is not None for value in asked.values()):
        return None
    from .._cgroups.hierarchies import CgroupLimits

    directory = limits.cgroup if isinstance(limits.cgroup, str) else None
    return CgroupLimits(**asked, directory=directory, hold=bool(limits.cgroup))


# ADDR_NO_RANDOMIZE and PER_LINUX32 of personality(2).
_NO_RANDOM_ADDRESSES, _LINUX32 = 0x0040000, 0x0008


def _limits(box: Spec) -> dict[str, Any]:
    """The values of struct sbx_limits."""
    limits = box.limits or _NO_LIMITS
    values: dict[str, Any] = {"rlimits": 0, "others": 0, "rlimit": [[0, 0] for _ in range(16)]}
    for name, number in RLIMITS.items():
        most = getattr(limits, name)
        if most is not None:
            values["rlimits"] |= 1 << number
            most = int(-(-most // 1))  # cpu_time may have a fraction: round it up
            # The hard limit of cpu_time comes a second later: a command may handle SIGXCPU.
            values["rlimit"][number] = [most, most + (name == "cpu_time")]
    umask = 0o022 if box.umask is None and box.deterministic else box.umask
    others: dict[str, Any] = {
        "nice": limits.nice,
        "scheduler": limits.scheduler and SCHEDULERS[limits.scheduler],
        "cpus": None if limits.cpuset is None else _cpu_words(limits.cpuset),
        "umask": umask,
        "personality": _personality(box),
    }
    for name, value in others.items():
        if value is not None:
            values["others"] |= 1 << getattr(lib, f"SBX_{name.upper()}")
            values[name] = value
    if limits.oom_score_adj is not None:
        values["oom_score_adj"] = str(limits.oom_score_adj)
    return values


def _personality(box: Spec) -> int | None:
    number = _NO_RANDOM_ADDRESSES if box.deterministic else 0
    if box.personality == "linux32":
        number |= _LINUX32
    return number or None


def _cpu_words(cpus: int | tuple[int, ...]) -> list[int]:
    """The mask for sched_setaffinity(2). UnsupportedError if the caller has too few CPUs."""
    if isinstance(cpus, int):
        mine = sorted(os.sched_getaffinity(0))
        if len(mine) < cpus:
            raise errors.UnsupportedError(f"{cpus} CPUs: the caller may use {len(mine)}")
        cpus = tuple(mine[:cpus])
    mask = [0] * 16
    for cpu in cpus:
        mask[cpu // 64] |= 1 << cpu % 64
    return mask


def plan_for(box: Spec, ids: tuple[int, int] | None = None) -> Plan:
    """The Plan of a Sandbox, made once for each kind of caller."""
    plan: Plan | None = box._plans.get(ids)
    if plan is None:
        plan = Plan(box, ids)
        if box._base is not None:
            base = plan_for(box._base, ids)
            if _serves(base, plan):
                plan.share(base)
            else:
                plan.is_without_slots = True
        box._plans[ids] = plan
    return plan


def _serves(base: Plan, plan: Plan) -> bool:
    """Whether a slot of the plan `base` can serve runs of another plan, with other limits. All of
    them go with the order but oom_score_adj, which belongs to the memory that the processes of a
    slot share.
    """
    name = "oom_score_adj"
    is_same = base.values["limits"].get(name) == plan.values["limits"].get(name)
    return bool(is_same and base.values.get("upper_size") == plan.values.get("upper_size"))
