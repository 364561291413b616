# SPDX-License-Identifier: Apache-2.0
"""Slots: namespaces and a resident reaper that a Sandbox keeps from run to run.

A slot serves one run at a time. A run takes an idle slot, or opens one, and gives it back
afterwards. A slot is closed if anything went wrong in it, or if a run left something behind. All
slots end with the Sandbox, with its close(), with the interpreter, and with the process: a resident
holds a pidfd of the caller.
"""

from __future__ import annotations

import atexit
import os
from _thread import RLock, interrupt_main
from _weakref import ref  # weakref itself takes as long as ten of our modules
from collections import deque
from collections.abc import Callable, Sequence

from .._core import native
from .._core.slot import OpenSlot, Watch
from .._host import machine
from .._spec.policy import DEFAULT_CAPABILITIES
from .mirrors import Mirrored
from .mount_points import Stubs
from .mounts import PlannedMount
from .overlay import IN_MEMORY, INPUTS, StackedRoot
from .plan import Plan, filter_values, may_hang

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    T = TypeVar("T")
    #: The place of a resident, the flags of its stubs, the packed place of each run, and which of
    #: enum sbx_program the resident is.
    _Program = tuple[Any, Any, bytes, int]

lib = native.lib

MOST_IDLE = 32  # slots that wait for a run; a slot beyond that is closed when it comes back
# While one run goes on, other slots get ready for the next, on the other CPUs.
MOST_SPARE = min(os.cpu_count() or 1, 8) - 1
# After MOST_WASTED slots in a row that served at most one run, make REST runs fresh before opening
# another.
MOST_WASTED = 16
REST = 1000
#: Where a template of layers has a proc of the user namespace.
_LENDER = "/k/proc"
#: The values of a place that say how a run stacks its layers.
_OF_LAYERS = ("overlay", "upper_size", "upper_inodes", "read_only", "no_devices")
_OF_A_RUN = (lib.SBX_TMPFS, lib.SBX_PROC, lib.SBX_DEV)
_all: dict[int, ref[Slots]] = {}


def can_stay(plan: Plan) -> bool:
    """Whether runs may use a slot one after the other: only if none can change its namespaces."""
    box = plan.box
    if plan.overlay is not None and not plan.overlay.may_stay:
        return False
    if box.mounts != "isolated" or box.processes != "isolated" or box._user_kind == "ranges":
        return False
    # With nesting nothing covers parts of /proc, and uid 0 of the namespace writes its IPC sysctls.
    if box.policy.nesting and plan.values.get("uid_map", "").startswith("0 "):
        return False
    names = box.policy.capabilities
    if isinstance(names, tuple):
        return set(names) <= set(DEFAULT_CAPABILITIES)
    return names != "all"


class NoSlot(Exception):
    """No slot can be had. Nothing was run."""


class _Shared:
    """The state that slots share which were opened for one state of the root and the sources."""

    def __init__(self, root: str) -> None:
        self.stubs = Stubs(root)
        self.watch: Watch | None = None
        self.program: _Program | None = None
        self.is_checked = False
        self.is_over = False
        self.hanging: frozenset[str] | None = None  # see _machine.hanging_mounts
        self.lacks: list[str] = []  # optional mount points that the root did not have
        self.mirrored: Mirrored | None = None
        self._slots: list[ref[Slot]] = []

    @property
    def slots(self) -> int:
        """How many are open: counted each time, as an interrupt may have lost some."""
        return sum(1 for r in self._slots if (slot := r()) is not None and slot.is_open)

    @property
    def at_most(self) -> int:
        """How many are open, or were until recently."""
        return len(self._slots)

    def add(self, slot: Slot) -> None:
        self._slots = [r for r in self._slots if (s := r()) is not None and s.is_open]
        self._slots.append(ref(slot))

    def has_changed(self) -> bool:
        """Whether slots that are opened now would have another root."""
        if self.watch is None:
            return False
        appeared = bool(self.lacks) and any(map(os.path.lexists, self.lacks))
        is_same = self.mirrored is None or self.mirrored.is_same()
        return appeared or not is_same or not self.watch.is_same()

    def release(self) -> None:
        """Releases the mount points that were made, once no slot uses one."""
        if self.slots == 0:
            self.stubs.release()
            self.program = None
            if self.watch is not None:
                self.watch.close()
                self.watch = None


class Slot(OpenSlot):
    """An open slot."""

    runs = 0

    def __init__(
        self, shared: _Shared, program: _Program, cgroup: Any, setup: float | None
    ) -> None:
        procs = () if cgroup is None else cgroup.procs
        place, stubs, run_place, reaper = program
        super().__init__(place, stubs, run_place, procs, int((setup or 0.0) * 1e9), reaper)
        self.shared = shared
        self.cgroup = cgroup  # a Cgroup, which the process of each command joins; or None
        shared.add(self)

    def close(self) -> int:
        stuck = super().close()
        if self.cgroup is not None:
            cgroup, self.cgroup = self.cgroup, None
            if stuck:
                cgroup.leave()
            else:
                cgroup.release()
        if self.shared.is_over:
            self.shared.release()
        return stuck


class Slots:
    """The slots of one Plan for which can_stay() is true.

    cgroups: the Cgroups of the runs, of which each slot keeps a Cgroup; None: they have none.
    is_late: the runs have inputs, which come with the order: only then they stack their layers.
    """

    def __init__(self, plan: Plan, cgroups: Any = None, is_late: bool = False) -> None:
        self._idle: deque[Slot] = deque()
        self._lock = RLock()
        self._root = plan.box._directory
        self._paths = plan.paths
        self._shared = _Shared(self._root)
        self._wasted = self._rest = 0
        self._mounts = plan.mounts
        self._cgroups = cgroups
        if cgroups is not None:  # atexit calls the last one first: slots end before their cgroups
            atexit.unregister(close_all)
            atexit.register(close_all)
        self._overlay, self._is_late = plan.overlay, is_late
        self._own = _of_the_run(plan.mounts, self._root, plan.overlay is not None)
        optional = [m.target for m in plan.mounts if m.stays and m.is_optional]
        self._optional = [self._root.rstrip("/") + target for target in optional]
        self._values = plan.values
        self._policy = plan.box.policy
        self._in_user_namespace = plan.in_user_namespace
        kept = [mount for i, mount in enumerate(plan.mounts) if i not in self._own]
        self._entries = [mount for mount in kept if mount.is_entry]
        # In a slot a run finds no path of the caller: no source, no /dev that lends devices, and no
        # content of a file.
        own = [plan.mounts[i] for i in self._own]
        self._may_stay = not any(
            m.source or m.is_file or m.needs_lender(plan.in_user_namespace) for m in own
        )
        if plan.overlay is not None:
            self._optional, self._entries = [], []  # no run shows a root of the caller's
            self._may_stay = _may_stay_in_layers(own, plan.in_user_namespace)
        _all[id(self)] = ref(self)

    def take(self, setup: float | None = None, limits: Any = None) -> Slot:
        """Takes an idle slot for one run, or opens one. NoSlot if that is not possible.

        setup: float, seconds. NoSlot also if opening a slot, or checking whether it is up to date,
        might take longer. limits: CgroupLimits of the run, or None. UnsupportedError if there can
        be no cgroup with them.
        """
        in_time = setup is not None
        if not self._may_stay or self._is_resting() or (in_time and self._may_hang()):
            raise NoSlot
        shared = self._shared
        if shared.has_changed():
            self._with_lock(setup, lambda: self._close_these(shared))
            if in_time and self._may_hang():
                raise NoSlot
        slot = self._take_idle(limits) or self._open(setup, limits)
        if slot.runs and len(self._idle) < min(self._shared.at_most / 2, MOST_SPARE):
            self._idle.append(self._open(setup, limits))
        slot.runs += 1
        return slot

    def _with_lock(self, setup: float | None, work: Callable[[], T]) -> T:
        """Does `work` under the lock, and returns its result. NoSlot if the lock is not free in
        time: another thread may hang while it opens a slot.

        An exception from another thread can arrive after any call, also after acquire(). So the
        release() runs in any case, and raises RuntimeError if there is nothing to release. (A
        `with` of the lock is as safe, but has no timeout.)
        """
        if self._lock._is_owned():  # type: ignore[attr-defined]
            return work()
        try:
            if not self._lock.acquire(timeout=-1 if setup is None else setup):
                raise NoSlot
            return work()
        finally:
            try:  # noqa: SIM105 - a call before the release could be interrupted
                self._lock.release()
            except RuntimeError:
                pass

    def _close_these(self, shared: _Shared) -> None:
        """Closes the slots for the old state, once, if several threads see the change."""
        if self._shared is shared:
            self.close()

    def _may_hang(self) -> bool:
        """Whether the set-up may hang. It looks at the caller's mounts only once until the watch
        sees a change.
        """
        shared = self._shared
        if shared.hanging is None or shared.watch is None:
            shared.hanging = machine.hanging_mounts()
        return bool(shared.hanging) and may_hang(
            self._root, self._paths, self._mounts, shared.hanging
        )

    def is_pointless(self, slot: Slot) -> bool:
        """Whether opening another slot is of no use after this one failed: it was new, or many in a
        row served only one run, so that they gained nothing.
        """
        self._wasted = self._wasted + 1 if slot.runs <= 2 else 0
        return slot.runs == 1 or self._is_resting()

    def _is_resting(self) -> bool:
        if self._wasted >= MOST_WASTED:
            self._wasted, self._rest = 0, REST
        self._rest -= self._rest > 0
        return self._rest > 0

    def _take_idle(self, limits: Any) -> Slot | None:
        while True:
            try:
                slot = self._idle.popleft()
            except IndexError:
                return None
            # Another state of the root: give() added it while close() ran.
            if slot.shared is self._shared and (
                slot.cgroup is None or slot.cgroup.begin_in_slot(limits)
            ):
                return slot
            slot.close()

    def give(self, slot: Slot) -> None:
        """Takes a slot back from a run. It goes to the end of the queue, as it has to get ready."""
        if slot.shared is self._shared and slot.is_open and len(self._idle) < MOST_IDLE:
            self._idle.append(slot)
        else:
            with self._lock:
                slot.close()

    def close(self) -> None:
        """Closes the idle slots now, and those in use when they come back."""
        with self._lock:
            shared, self._shared = self._shared, _Shared(self._root)
            shared.is_over = True
            while self._idle:
                self._idle.pop().close()
            shared.release()

    def forget(self) -> None:
        """Drops the slots in a fork of the caller: it closes descriptors, and ends no slot."""
        shared, self._shared = self._shared, _Shared(self._root)
        shared.stubs.abandon()
        self._lock = RLock()
        self._idle.clear()

    def __del__(self) -> None:
        if _all is None:  # the interpreter ends, and close_all() has run
            return
        if _all.pop(id(self), None) is None:  # an interrupt came in __init__: there are no slots
            return
        while True:
            try:
                return self.close()
            except KeyboardInterrupt:  # Python ignores it in __del__, so raise it again later
                interrupt_main()

    # ---- opening -----------------------------------------------------------------------------

    def _open(self, setup: float | None, limits: Any) -> Slot:
        slot = self._with_lock(setup, lambda: self._open_locked(setup, limits))
        if not self._may_stay:
            raise NoSlot
        return slot

    def _open_locked(self, setup: float | None, limits: Any) -> Slot:
        """Opens a slot. Under the lock, so that only one thread makes missing mount points."""
        shared, cgroup = self._shared, None
        try:
            if self._cgroups is not None:
                cgroup = self._cgroups.take(limits)
                cgroup.begin()
            if shared.watch is None:
                shared.watch = Watch(self._paths)
                shared.lacks = [p for p in self._optional if not os.path.lexists(p)]
                shared.mirrored = Mirrored(self._root, self._entries) if self._entries else None
            if shared.program is None:
                shared.program = self._prepare(shared.stubs)
            slot = Slot(shared, shared.program, cgroup, setup)
            cgroup = None
            if not shared.is_checked:
                self._check(slot)
                shared.is_checked = True
        except OSError as error:
            shared.release()
            self._wasted += 1
            raise NoSlot from error
        finally:
            if cgroup is not None:
                cgroup.release()
        return slot

    def _check(self, slot: Slot) -> None:
        """Forbids slots if they show a proc that is not the run's own: uid 0 could write sysctls of
        the network there, and a later run would see them.
        """
        owns = [self._mounts[i].target for i in self._own]
        if self._overlay is not None:  # no run sees more of the template than what it keeps
            owns = [_LENDER]
        for mount in machine.mounts(slot.pid):
            is_own = any(machine.is_below(mount.point, own) for own in owns)
            if mount.type == "proc" and not is_own:
                self._may_stay = False

    def _prepare(self, stubs: Stubs) -> _Program:
        """What a slot is opened with."""
        if self._overlay is not None:
            return self._prepare_template(self._overlay)
        missing = [m.needs_stub(stubs) for m in self._mounts]
        for mount, is_missing in zip(self._mounts, missing, strict=True):
            if is_missing:
                stubs.hold(mount.target, mount.is_directory())
        in_slot = [i for i in range(len(self._mounts)) if i not in self._own]
        mounts = [self._mounts[i].values for i in in_slot]
        if self._in_user_namespace:
            # The kernel allows a new proc only if an uncovered one is visible (mount_too_revealing
            # in fs/namespace.c). So the slot has one, below the proc of each run, and a dev that
            # lends its devices to the dev of each run.
            own_values = [self._mounts[i].values for i in self._own]
            lenders = [v for v in own_values if v["kind"] in (lib.SBX_PROC, lib.SBX_DEV)]
            mounts += [{**v, "flags": v["flags"] & ~lib.SBX_COVER} for v in lenders]
        values, for_run = self._split_values()
        place = native.new_place(values, mounts)
        flags = native.held_flags(len(mounts), [n for n, i in enumerate(in_slot) if missing[i]])
        of_a_run = [
            mount.values if i in self._own else {**mount.values, "flags": lib.SBX_KEPT}
            for i, mount in enumerate(self._mounts)
        ]
        # The smaller program makes no directories and links of the Sandbox.
        makes = any(self._mounts[i].is_made for i in self._own)
        program = lib.SBX_OF_LAYERS if makes else lib.SBX_OF_RUN
        return place, flags, native.pack_place(for_run, of_a_run, bytes(missing)), program

    def _prepare_template(self, overlay: StackedRoot) -> _Program:
        """As _prepare(), for runs with a root of layers. The resident's root is a template, which
        has the layers, the top first, and what the runs mount. A run moves that to its targets.
        """
        flags = lib.SBX_READ_ONLY
        lowers = [lower.path for lower in reversed(overlay.lowers())]
        mounts: list[dict[str, Any]] = [
            {"kind": lib.SBX_BIND, "flags": flags, "source": path, "target": f"/l/{number}"}
            for number, path in enumerate(lowers)
        ]
        of_a_run = []
        for index, mount in enumerate(self._mounts):
            if index in self._own:
                of_a_run.append(mount.values)
                continue
            place, optional = f"/k/{index}", mount.values["flags"] & lib.SBX_OPTIONAL
            kept_flags = mount.values["flags"] & ~lib.SBX_OPTIONAL
            mounts.append({**mount.values, "target": place, "flags": kept_flags})
            kept = {k: v for k, v in mount.values.items() if k not in ("content", "length")}
            of_a_run.append({**kept, "source": place, "flags": lib.SBX_KEPT | optional})
        if self._in_user_namespace:  # see _prepare()
            mounts.append({"kind": lib.SBX_PROC, "flags": 0, "target": _LENDER})
        values, for_run = self._split_values()
        values |= {"overlay": lib.SBX_TEMPLATE, "read_only": 1}
        for_run |= {name: self._values[name] for name in _OF_LAYERS if name in self._values}
        for_run["n_lowers"] = len(lowers)
        if self._is_late:
            sources = {INPUTS: overlay.placer.directory}
            if (in_memory := overlay.placer.in_memory) is not None:
                sources[IN_MEMORY] = in_memory.path
            mounts += [
                {"kind": lib.SBX_BIND, "flags": flags, "source": source, "target": target}
                for target, source in sources.items()
            ]
            for_run["overlay"] |= lib.SBX_LATE
        held = native.held_flags(len(mounts), ())
        packed = native.pack_place(for_run, of_a_run, bytes(len(of_a_run)))
        return native.new_place(values, mounts), held, packed, lib.SBX_OF_LAYERS

    def _split_values(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is done once, for the resident; and what is done for each run."""
        limits = dict(self._values["limits"])
        values = {
            **self._values,
            **{"reaper": lib.SBX_RESIDENT, "keyring": 0, "no_new_privs": 0, "cut_capabilities": 0},
            "limits": {name: limits.pop(name) for name in ("oom_score_adj",) if name in limits},
        }
        names = "keyring reaper no_new_privs cut_capabilities capabilities must_capabilities"
        names += " change_ids uid gid n_groups groups"
        for name in ("filter", "filter_length", "filter_when"):
            values.pop(name, None)
        for_run = {name: self._values[name] for name in names.split() if name in self._values}
        for_run |= filter_values(self._policy, in_slot=True)
        for_run |= {"session": 1, "namespaces": int(self._in_user_namespace), "limits": limits}
        return values, for_run


def _may_stay_in_layers(own: Sequence[PlannedMount], in_user_namespace: bool) -> bool:
    """Whether a slot can serve runs with a root of layers: a hole is a part of the run's own root,
    and in a user namespace a dev of the run's own would have to borrow its devices.
    """
    kinds = {mount.values["kind"] for mount in own}
    return lib.SBX_HOLE not in kinds and not (in_user_namespace and lib.SBX_DEV in kinds)


def _of_the_run(mounts: list[PlannedMount], root: str, is_stacked: bool) -> list[int]:
    """The indices of the mounts that every run makes anew: new file systems, and the mounts that
    lie in or over one of them.

    If targets have symbolic links, we cannot tell that, and take all mounts after the first one.

    is_stacked: the root is one of layers: a run mounts all, in order, and makes those anew which
    bring nothing of the caller's.
    """
    if is_stacked:
        return [
            index
            for index, mount in enumerate(mounts)
            if not mount.stays and mount.values["kind"] not in (lib.SBX_BIND, lib.SBX_FILE)
        ]
    real = _real(root).rstrip("/")
    own: list[int] = []
    targets: list[str] = []
    straight = all(_real(real + m.target) == real + m.target for m in mounts)
    # A link that the run itself makes is none of the root's.
    links = [m.target for m in mounts if m.values["kind"] == lib.SBX_SYMLINK]
    straight = straight and not any(link in m.made_above for m in mounts for link in links)
    for index, mount in enumerate(mounts):
        target = mount.target + "/"
        overlaps = any(target.startswith(t) or t.startswith(target) for t in targets)
        if (
            (mount.values["kind"] in _OF_A_RUN and not mount.stays)
            or overlaps
            or (own and not straight)
        ):
            own.append(index)
            targets.append(target)
    return own


def _real(path: str) -> str:
    """The path without symbolic links; "" if another process changes it at the same time, or it has
    more links than the kernel follows.
    """
    try:
        return machine.real_path(path)
    except OSError:
        return ""


def _each() -> list[Slots]:
    return [slots for slots in (r() for r in list(_all.values())) if slots is not None]


def _forget_all() -> None:
    for slots in _each():
        slots.forget()


def close_all() -> None:
    """Closes all slots at the end of the interpreter."""
    for slots in _each():
        slots.close()


os.register_at_fork(after_in_child=_forget_all)
atexit.register(close_all)
