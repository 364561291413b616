# SPDX-License-Identifier: Apache-2.0
"""Words become numbers: what the C core is told, and what its answers mean."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from . import _native, errors
from ._check import ENCODING
from ._host import machine as _machine
from .command import Command, encode_environment
from .limits import RLIMITS, SCHEDULERS, Limits
from .policy import CAPABILITIES, DEFAULT_CAPABILITIES, Policy, Profile, filter_of, program_of
from .sandbox import Mount, Sandbox, caller_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

lib = _native.lib

# clone(2)
NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000

_NO_LIMITS = Limits()
_KINDS = {"bind": lib.SBX_BIND, "tmpfs": lib.SBX_TMPFS, "proc": lib.SBX_PROC, "dev": lib.SBX_DEV}


class Plan:
    """A Sandbox as the C core takes it, and the way back from a step's number to words.

    It holds names and numbers only, no descriptor: any number of runs may use it at once.
    `ids` are the caller's, for a user namespace; without one None.
    """

    def __init__(self, box: Sandbox, ids: tuple[int, int] | None) -> None:
        self.box = box
        self.mounts = _all_mounts(box)
        values = _place_values(box)
        if ids is not None:
            values["namespaces"] |= NEWUSER
        elif box.policy.capabilities == "all":
            values["guard_keyring"] = 0  # it can change its caller in any way it likes
        if ids is not None and box._user_kind != "ranges":
            inside = box._ids or (ids if box._user_kind == "caller" else (0, 0))
            for name, number, outside in zip(("uid_map", "gid_map"), inside, ids, strict=True):
                values[name] = f"{number} {outside} 1"
        elif box._ids is not None:
            values |= {"change_ids": 1, "uid": box._ids[0], "gid": box._ids[1]}
            values |= {"n_groups": len(box._groups), "groups": box._groups}
        self.in_user_namespace = ids is not None
        self.mapped_outside = ids is not None and box._user_kind == "ranges"
        self.values = values
        self.place, self._kept = _native.new_place(values, [m.values for m in self.mounts])
        self.slots: Any = None  # of _slots; False: every run of this plan is a fresh one
        self.base: Plan | None = None  # in whose slots the runs of this plan can be made
        self.reaper = bool(values["reaper"])
        self.cgroups = _cgroups_of(box)
        self.is_limited = box.limits is not None
        isolation = {**box.isolation(), "seccomp": filter_of(box.policy)}
        self.isolation = MappingProxyType(isolation)  # all results share it
        self._nothing_held = _native.held_flags(len(self.mounts), ())
        self.stubs: tuple[int, ...] = ()  # mounts whose target had to be made in the last run

    @property
    def paths(self) -> list[str]:
        """What it takes of the caller's: the root and the sources."""
        return [self.box.root, *(mount.source for mount in self.mounts if mount.source)]

    def may_hang(self) -> bool:
        """Whether the set-up of a run may take for ever."""
        hanging = _machine.hanging_mounts()
        return bool(hanging) and may_hang(self.box.root, self.paths, self.mounts, hanging)

    def held(self, indices: Sequence[int]) -> Any:
        """What tells the core which mounts' targets are stubs that the caller holds."""
        return _native.held_flags(len(self.mounts), indices) if indices else self._nothing_held

    def error(self, step: int, index: int, error: int, job: Job) -> errors.SetupError:
        """The failure of a step as an exception."""
        name = _native.STEPS[step]
        what, filename = self._about(name, index, job)
        remedy = hint(name, index, error, self.in_user_namespace)
        if name == "limits":
            remedy = _limit_hint(index, error)
        if error == errno.ETIMEDOUT:
            remedy = SILENT
        if name == "exec" and not remedy and isinstance(self.box.policy.seccomp, Profile):
            remedy = "the seccomp profile may close execve"
        return errors.setup_error(error, filename, name, what, remedy)

    def _about(self, step: str, index: int, job: Job) -> tuple[str, str | None]:
        box = self.box
        if step in ("source", "target", "mount"):
            mount = self.mounts[index]
            return f"{mount.words}: {step}", mount.source if step == "source" else mount.target
        if step == "exec":
            path = job.paths[index] if index >= 0 else job.program
            return f"exec {path!r} in the root {box.root}", path
        if step == "cwd":
            what = f"Unable to set current working directory: {job.cwd!r} in the root {box.root}"
            return what, job.cwd
        if step in ("root", "read_only", "attach", "pivot", "chroot"):
            return f"{_ROOT_STEPS[step]} {box.root}", box.root
        if step == "stdio":
            names = ("stdin", "stdout", "stderr", "status", "lifeline")
            return f"descriptor {names[index] if index < 5 else 'of pass_fds'}", None
        is_limit = step == "limits"
        words = _limit_words(index, self.values[step]) if is_limit else _STEPS.get(step, step)
        return words, None


SILENT = "a file system that does not answer (FUSE, network) is the usual cause"


def may_hang(
    root: str, paths: Sequence[str], mounts: Sequence[PlannedMount], hanging: frozenset[str]
) -> bool:
    """Whether it may take for ever to look at one of the paths, the root and the sources, or at a
    mount point in the root. hanging: as of _machine.hanging_mounts().
    """
    return any(_machine.may_hang(path, hanging) for path in paths) or any(
        _machine.may_hang(mount.target, hanging, root) for mount in mounts
    )


class PlannedMount:
    """One entry of the C array: its values, and how to speak of it."""

    stays = False  # no run can change it: a slot keeps it, where the root has the place

    def __init__(self, words: str, kind: int, flags: int, target: str, in_root: bool) -> None:
        self.words = words
        self.target = target
        self.source: str | None = None
        self.in_root = in_root  # the target lies in the root, where a stub can be made
        self.values: dict[str, Any] = {"kind": kind, "flags": flags, "target": target}
        if kind in (lib.SBX_TMPFS, lib.SBX_DEV):
            self.values["inodes"] = _inodes(None)

    @property
    def is_optional(self) -> bool:
        """Whether it is left out where there is no such directory."""
        return bool(self.values["flags"] & lib.SBX_OPTIONAL)

    def needs_lender(self, in_user_namespace: bool) -> bool:
        """Whether it is a dev that lies in a file system of the run."""
        is_dev = self.values["kind"] == lib.SBX_DEV
        return in_user_namespace and is_dev and not self.in_root and not self.is_optional

    def is_directory(self) -> bool:
        """Whether the mount point has to be one."""
        return self.source is None or bool(lib.sbx_is_directory(os.fsencode(self.source)))


def _all_mounts(box: Sandbox) -> list[PlannedMount]:
    """Holes in a read-only root, seals, the run's own /proc and /dev, then what was asked for, in
    order.
    """
    found: list[PlannedMount] = []
    cover = lib.SBX_COVER if box.policy.capabilities != "all" else 0
    if isinstance(box.filesystem_writable_paths, tuple):
        flags = lib.SBX_RECURSIVE | (lib.SBX_NO_DEVICES if _hides_devices(box) else 0)
        for path in box.filesystem_writable_paths:
            words = f"writable path {path}"
            found.append(PlannedMount(words, lib.SBX_HOLE, flags | cover, path, False))
    isolated = box.processes == box.mounts == "isolated"
    with_proc = any(mount.target == "/proc" for mount in box.extra_mounts)
    if cover and box.mounts == "isolated":
        found += _seals(box.root, "/", () if isolated or with_proc else ("/proc",))
    if isolated and not with_proc:
        flags = lib.SBX_OPTIONAL | (0 if box.policy.nesting else cover)
        found.append(PlannedMount("proc on /proc", lib.SBX_PROC, flags, "/proc", False))
    if _hides_devices(box) and all(mount.target != "/dev" for mount in box.extra_mounts):
        found += _minimal_dev(box)
    if box.tmp == "private" and all(mount.target != "/tmp" for mount in box.extra_mounts):
        found.append(_private_tmp(box))
    own = [("deterministic", mount) for mount in _accounts(box)]
    if (resolver := resolver_of(box)) is not None:
        own.append(("resolv_conf", resolver))
    asked = [(f"mount {index}", mount) for index, mount in enumerate(box.extra_mounts)]
    for name, mount in (*own, *asked):
        # A user namespace is given a proc of its own only where it can see one that is whole.
        covers = 0 if box.policy.nesting and mount.type == "proc" else cover
        found.append(_planned(name, mount, _lies_in_one(mount.target, found), covers))
        if cover and mount.source and mount.recursive:
            found += _seals(mount.source, mount.target, ())
    return found


def _lies_in_one(target: str, earlier: Sequence[PlannedMount]) -> bool:
    """Whether it is below a mount of the run: there no mount point is made for it in the root."""
    return any(
        f"{target}/".startswith(f"{mount.target}/") and not mount.is_optional
        for mount in earlier
        if mount.values["kind"] not in (lib.SBX_HOLE, lib.SBX_SEAL)
    )


def _hides_devices(box: Sandbox) -> bool:
    """Whether no device node of the root works."""
    return box.mounts == "isolated" and box.devices != "root"


def _minimal_dev(box: Sandbox) -> list[PlannedMount]:
    """On /dev, and in it the devices that were asked for by name.

    It becomes read-only, so that a slot can keep it; unless the caller counts on a /dev that can be
    written to. Where something goes into it the mount point is made if need be.
    """
    writable = box.filesystem_writable_paths
    paths = writable if isinstance(writable, tuple) else ()
    below = [m.target for m in box.extra_mounts if m.target.startswith("/dev/")]
    devices = box.devices if isinstance(box.devices, tuple) else ()
    flags = 0 if below or devices else lib.SBX_OPTIONAL
    if not any(f"{path}/".startswith("/dev/") for path in paths):
        flags |= lib.SBX_READ_ONLY
    dev = PlannedMount("dev on /dev", lib.SBX_DEV, flags, "/dev", not flags & lib.SBX_OPTIONAL)
    # Mount points of a run's own mounts are made in each run.
    dev.stays = bool(flags & lib.SBX_READ_ONLY) and set(below) <= {"/dev/shm", "/dev/pts"}
    found = [dev]
    for path in devices:
        flags = lib.SBX_READ_ONLY | lib.SBX_DEVICE
        found.append(PlannedMount(f"device {path}", lib.SBX_BIND, flags, path, False))
        found[-1].source = found[-1].values["source"] = path
    return found


def _private_tmp(box: Sandbox) -> PlannedMount:
    """On /tmp; if something goes into it the mount point is made if need be."""
    is_needed = any(mount.target.startswith("/tmp/") for mount in box.extra_mounts)
    flags = 0 if is_needed else lib.SBX_OPTIONAL
    tmp = PlannedMount("the private /tmp", lib.SBX_TMPFS, flags, "/tmp", is_needed)
    tmp.values["mode"] = "1777"
    return tmp


def resolver_of(box: Sandbox) -> Mount | None:
    """The caller's resolv.conf, without links: those of the caller lead nowhere in the root."""
    if not box.resolv_conf:
        return None
    try:
        path = _machine.real_path(_RESOLVER)
    except OSError:  # it is not there, which the run tells
        path = _RESOLVER
    return Mount.bind(path, _RESOLVER, read_only=True)


_RESOLVER = "/etc/resolv.conf"


# As is_of_the_kernel() in csrc/child/seals.c has them, by their names in mountinfo.
_OF_THE_KERNEL = frozenset(
    "sysfs cgroup cgroup2 debugfs tracefs securityfs configfs efivarfs pstore bpf selinuxfs "
    "smackfs fusectl binfmt_misc resctrl proc".split()
)


def _seals(source: str, target: str, more: tuple[str, ...]) -> list[PlannedMount]:
    """Seals for what the caller has mounted below a source, by which uid 0 commands the kernel."""
    paths = seal_paths(source, target, more)
    return [PlannedMount(f"seal {p}", lib.SBX_SEAL, lib.SBX_COVER, p, False) for p in paths]


def seal_paths(source: str, target: str, more: tuple[str, ...]) -> list[str]:
    """Where in the sandbox such mounts are.

    /sys of a root is always looked at, as it may be mounted later. Nothing is looked up where
    nobody may answer. What is sealed is sealed with all below it, so that is left out.
    """
    types = {mount.point: mount.type for mount in _machine.mounts()}  # the last one lies on top
    points = sorted(point for point, kind in types.items() if kind in _OF_THE_KERNEL)
    top = source.rstrip("/")
    if not _is_straight(top):
        found = _ends(points)
    else:
        found = []
        for point in points:
            if point.startswith(f"{top}/") and not _is_below(point[len(top) :], found):
                found.append(point[len(top) :])
    if target == "/":
        found = [*more, "/sys", *(path for path in found if path not in ("/proc", "/sys", *more))]
    return [target.rstrip("/") + path for path in found]


def _is_below(path: str, others: Sequence[str]) -> bool:
    return any(f"{path}/".startswith(f"{other}/") for other in others)


def _is_straight(path: str) -> bool:
    """Whether mountinfo has a directory by this name: one without links and ".." in it."""
    if not path:
        return True
    if _machine.may_hang(path, _machine.hanging_mounts()):
        return False
    try:
        return _machine.real_path(path) == path
    except OSError:
        return False


def _ends(points: Sequence[str]) -> list[str]:
    """All names that mount points may have below a directory that may be any."""
    words = [point.split("/")[1:] for point in points]
    return sorted({"/" + "/".join(w[i:]) for w in words for i in range(len(w)) if w[i:] != [""]})


def is_of_the_kernel(path: str) -> bool:
    """Whether a path of the caller's lies in such a file system."""
    around = [m for m in _machine.mounts() if f"{path}/".startswith(f"{m.point.rstrip('/')}/")]
    return bool(around) and max(around, key=lambda m: len(m.point)).type in _OF_THE_KERNEL


def _accounts(box: Sandbox) -> list[Mount]:
    """Of a deterministic Sandbox, before its own mounts, which may say otherwise."""
    if not box.deterministic:
        return []
    ours = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_etc")
    names = ("passwd", "group")
    return [Mount.bind(f"{ours}/{name}", f"/etc/{name}", read_only=True) for name in names]


def _planned(name: str, mount: Mount, is_inside: bool, cover: int) -> PlannedMount:
    """is_inside: it lies in another mount of the run."""
    flags = cover if mount.type in ("proc", "bind") else 0
    flags |= lib.SBX_RECURSIVE if mount.recursive else 0
    flags |= lib.SBX_READ_ONLY if mount.read_only else 0
    what = f"bind {mount.source}" if mount.source else mount.type
    words = f"{name}: {what} on {mount.target}"
    planned = PlannedMount(words, _KINDS[mount.type], flags, mount.target, not is_inside)
    if mount.source:
        planned.source = planned.values["source"] = mount.source
    if mount.type == "tmpfs":
        planned.values["mode"] = f"{mount.mode:o}"
        planned.values["inodes"] = _inodes(mount.size)
        if mount.size:
            planned.values["size"] = str(mount.size)
    return planned


def _inodes(size: int | None) -> str:
    """How many a tmpfs of that size may have: each is memory of the kernel's, beyond its size."""
    if size is None:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # tmpfs(5)
    return str(min(max(size // 4096, 1024), 1 << 20))


def _mask(names: Sequence[str]) -> int:
    return sum(1 << CAPABILITIES.index(name) for name in names)


def _place_values(box: Sandbox) -> dict[str, Any]:
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
        # The filter 'builds' closes keyctl(2) as a whole.
        "guard_keyring": int(is_our_child and filter_of(box.policy) != "builds"),
        "no_new_privs": int(box.policy.no_new_privs),
        "cut_capabilities": int(box.policy.capabilities != "all"),
    }
    # chroot(2) to "/" changes nothing, and takes privilege.
    if box.root != "/" or isolated["mounts"]:
        values["root"] = box.root
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
    """Those of the system call filter. in_slot: of what a resident does for each run."""
    is_profile = isinstance(policy.seccomp, Profile)
    program = program_of(policy, in_slot and not is_profile)
    if not program:
        return {}
    when = lib.SBX_FILTER_RESIDENT if in_slot else lib.SBX_FILTER_EARLY
    if is_profile:  # it may close what comes before exec; without no_new_privs it takes privilege
        when = lib.SBX_FILTER_LAST if policy.no_new_privs else lib.SBX_FILTER_EARLY
    return {"filter": program, "filter_length": len(program) // 8, "filter_when": when}


def _cgroups_of(box: Sandbox) -> Any:
    """The cgroups of its runs; None where they have none."""
    limits = box.limits or _NO_LIMITS
    names = ("memory", "swap", "pids", "cpu_weight", "io_weight")
    asked = {name: getattr(limits, name) for name in names} | {"cpu_quota": limits.cpus}
    if not limits.cgroup and not any(value is not None for value in asked.values()):
        return None
    from ._cgroups.cgroups import CgroupLimits, Cgroups

    directory = limits.cgroup if isinstance(limits.cgroup, str) else None
    return Cgroups(CgroupLimits(**asked, directory=directory, hold=bool(limits.cgroup)))


# personality(2): ADDR_NO_RANDOMIZE, PER_LINUX32
_NO_RANDOM_ADDRESSES, _LINUX32 = 0x0040000, 0x0008


def _limits(box: Sandbox) -> dict[str, Any]:
    """The values of struct sbx_limits."""
    limits = box.limits or _NO_LIMITS
    values: dict[str, Any] = {"rlimits": 0, "others": 0, "rlimit": [[0, 0] for _ in range(16)]}
    for name, number in RLIMITS.items():
        most = getattr(limits, name)
        if most is not None:
            values["rlimits"] |= 1 << number
            most = math.ceil(most)  # a fraction of cpu_time
            # The second after SIGXCPU is for whoever handles it.
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


def _personality(box: Sandbox) -> int | None:
    number = _NO_RANDOM_ADDRESSES if box.deterministic else 0
    if box.personality == "linux32":
        number |= _LINUX32
    return number or None


def _cpu_words(cpus: int | tuple[int, ...]) -> list[int]:
    """As sched_setaffinity(2) takes them. UnsupportedError where the caller has too few."""
    if isinstance(cpus, int):
        mine = sorted(os.sched_getaffinity(0))
        if len(mine) < cpus:
            raise errors.UnsupportedError(f"{cpus} CPUs: the caller may use {len(mine)}")
        cpus = tuple(mine[:cpus])
    words = [0] * 16
    for cpu in cpus:
        words[cpu // 64] |= 1 << cpu % 64
    return words


def plan_for(box: Sandbox, ids: tuple[int, int] | None = None) -> Plan:
    """The Plan of a Sandbox, made once for each kind of caller."""
    plan: Plan | None = box._plans.get(ids)
    if plan is None:
        plan = Plan(box, ids)
        if box._base is not None:
            base = plan_for(box._base, ids)
            if _serves(base, plan):
                plan.base = base
            else:
                plan.slots = False
        box._plans[ids] = plan
    return plan


def _serves(base: Plan, plan: Plan) -> bool:
    """Whether a slot of one plan can serve runs of another, which has other limits: cgroups and the
    limit of CPU time come with each run, all others are those of the slot.
    """
    (has, its_time), (wants, time) = (_without_cpu_time(p.values["limits"]) for p in (base, plan))
    if has != wants or time > _MOST_SECONDS:
        return False
    return time == its_time or (time > 0 and (its_time == 0 or time < its_time))


_MOST_SECONDS = (1 << 31) - 2  # struct sbx_job has an int for them


def _without_cpu_time(limits: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Values of struct sbx_limits without RLIMIT_CPU; and that, 0 if there is none."""
    number = RLIMITS["cpu_time"]
    rlimit = list(limits["rlimit"])
    seconds = rlimit[number][0]
    rlimit[number] = [0, 0]
    return {**limits, "rlimit": rlimit, "rlimits": limits["rlimits"] & ~(1 << number)}, seconds


# ---- the job ---------------------------------------------------------------------------------


class Job:
    """One command as the core takes it: one blob of NUL-ended strings.

    argv, settings, search: as Command has them, encoded and checked. cwd_or_root: where the sandbox
    has no such cwd, it is "/".
    """

    def __init__(
        self,
        argv: Sequence[bytes],
        cwd: str,
        settings: Sequence[bytes],
        search: Sequence[bytes],
        cwd_or_root: bool = False,
    ) -> None:
        self._program = program = argv[0]
        if b"/" in program:
            self._paths = [program]
        else:
            self._paths = [directory + program for directory in search]
        self.cwd = cwd
        encoded = cwd.encode(ENCODING, "surrogateescape")
        self.counts = len(self._paths), len(argv), len(settings), int(cwd_or_root)
        self.blob = b"\0".join([encoded, *self._paths, *argv, *settings, b""])
        self.cwd_size = len(encoded) + 1

    @property
    def program(self) -> str:
        """The program as it was named."""
        return os.fsdecode(self._program)

    @property
    def paths(self) -> list[str]:
        """Where the program is looked for, in order."""
        return [os.fsdecode(path) for path in self._paths]


def job_of(command: Command, box: Sandbox) -> Job:
    """The Job of a Command in a Sandbox. SetupError if the caller's directory is needed, and was
    removed.
    """
    cwd = command.cwd
    if cwd is None:
        cwd = caller_directory() if box.root == "/" else "/"
    settings, search = command._settings, command._search
    if box.deterministic:
        extra_env = deterministic_environment(command.extra_env, command.env)
        settings, search = encode_environment(extra_env, command.env)
    return Job(command._argv, cwd, settings, search, command.cwd is None)


def deterministic_environment(
    extra_env: Mapping[str, str] | None, env: Mapping[str, str] | None
) -> dict[str, str]:
    """The extra_env of a deterministic Sandbox: what the caller says comes first."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "315532800")  # 1980, the first year of a zip file
    fixed = {"TZ": "UTC", "LC_ALL": "C", "SOURCE_DATE_EPOCH": epoch}
    return {**{k: v for k, v in fixed.items() if k not in (env or ())}, **(extra_env or {})}


# ---- words for what failed -------------------------------------------------------------------

_ROOT_STEPS = {
    "root": "Unable to chroot: open the root",
    "read_only": "make read-only, or without devices, the root",
    "attach": "attach a copy of the root",
    "pivot": "pivot_root into",
    "chroot": "Unable to chroot: into",
}
_STEPS = {
    "pipe": "make the pipes of the run",
    "lifeline": "open a pidfd of the caller",
    "clone": "clone into new namespaces",
    "ids": "map the ids of the new user namespace",
    "session": "make a session",
    "keyring": "join a new session keyring",
    "oom_score": "set oom_score_adj",
    "terminal": "make stdin the terminal of the session",
    "cgroup": "join the cgroup of the run",
    "loopback": "bring up lo in the new network namespace",
    "hostname": "set the hostname",
    "private": "make the mounts of the new namespace private",
    "capabilities": "cut the capabilities",
    "no_new_privs": "set no_new_privs",
    "seccomp": "install the system call filter",
    "parent_keyring": "keep the caller's session keyring from the command",
    "parent_death": "tie the command's life to the caller's",
    "reaper": "exec the reaper",
    "fork": "fork the command in its namespaces",
    "user": "change the ids of the command",
}
_LIMITS = "the limits of RLIMIT_NPROC (ulimit -u) and of the pids cgroup are the usual causes"
_NO_FILTER = (
    "the kernel has no filters (CONFIG_SECCOMP_FILTER), or a filter of the host forbids them; "
    "Policy(seccomp='none') goes without"
)
_HINTS = {
    ("clone", errno.EPERM): "it takes root, or CAP_SYS_ADMIN and CAP_SYS_CHROOT",
    ("clone", errno.ENOSPC): "not a full disk: a limit on namespaces, sysctl user.max_*_namespaces",
    ("clone", errno.EUSERS): "a limit on namespaces, sysctl user.max_*_namespaces",
    ("clone", errno.EAGAIN): _LIMITS,
    ("fork", errno.EAGAIN): _LIMITS,
    ("chroot", errno.EPERM): "it takes CAP_SYS_CHROOT",
    ("pipe", errno.EMFILE): "the caller has too many open files (ulimit -n)",
    ("pipe", errno.ENFILE): "the machine has too many open files (sysctl fs.file-max)",
    ("private", errno.EINVAL): "is the caller itself in a chroot whose root is no mount point?",
    ("pivot", errno.EINVAL): "is the caller's own root an initramfs?",
    ("read_only", errno.ENOSYS): "mount_setattr(2) takes Linux 5.12",
    (
        "keyring",
        errno.EDQUOT,
    ): "too many keys: sysctl kernel.keys.maxkeys, kernel.keys.root_maxkeys",
    ("capabilities", errno.EPERM): "the caller does not have all capabilities that were asked for",
    ("seccomp", errno.EINVAL): _NO_FILTER,
    ("seccomp", errno.ENOSYS): _NO_FILTER,
    ("seccomp", errno.EPERM): _NO_FILTER,
    ("seccomp", errno.EACCES): "it takes no_new_privs=True, or CAP_SYS_ADMIN",
    ("oom_score", errno.EACCES): "lowering it takes CAP_SYS_RESOURCE",
    ("oom_score", errno.EPERM): "lowering it takes CAP_SYS_RESOURCE",
    ("oom_score", errno.ENOENT): "the caller has no /proc",
    ("cgroup", errno.EACCES): "the caller may not move its processes there (cgroups(7))",
    ("cgroup", errno.EPERM): "the caller may not move its processes there (cgroups(7))",
    ("cgroup", errno.ENODEV): "somebody removed it",
    ("cgroup", errno.EBUSY): "it has cgroups below it, and hands its controllers on to them",
    ("cgroup", errno.EOPNOTSUPP): "it is threaded, or one above it (cgroup.type)",
    ("parent_keyring", errno.EACCES): "it takes no_new_privs, or CAP_SYS_ADMIN",
    ("terminal", errno.EPERM): "it is that of another session",
    ("terminal", errno.ENOTTY): "stdin is no terminal",
    ("exec", errno.EAGAIN): "the command's user has more processes than Limits.processes",
    ("cwd", errno.ENOENT): "it is looked for inside the root, below the mounts of the sandbox",
    ("cwd", errno.ELOOP): "links of /proc/PID are not followed",
    ("user", errno.EINVAL): "the user namespace, or the ranges of /etc/subuid, has no such id",
    ("exec", errno.ENOEXEC): "no program, and no script that begins with #!",
    ("exec", errno.E2BIG): "arguments and environment are too long (execve(2), Limits)",
    ("reaper", errno.E2BIG): "arguments and environment are too long (execve(2), Limits)",
    ("reaper", errno.EACCES): "sysctl vm.memfd_noexec, or a mount with noexec",
    (
        "source",
        errno.EINVAL,
    ): "links of /proc/PID lead into the mounts of that process, not the run's",
    ("source", errno.ENODEV): "it is there, and no device",
    ("source", errno.EMFILE): "each bind takes a descriptor during the set-up (ulimit -Hn)",
    ("target", errno.ENOTDIR): "a part of the path is a file",
    ("target", errno.EBUSY): "a link leads it to the root itself",
    (
        "target",
        errno.ELOOP,
    ): "a loop of symbolic links, or more of them than the kernel follows (40)",
    ("target", errno.EMFILE): "each mount point that the root lacks takes two of the caller's "
    "descriptors (ulimit -n)",
    ("target", errno.ETIMEDOUT): "another process keeps a lock on it",
    ("target", errno.EAGAIN): "others rename or mount on the way to it all the time",
    ("source", errno.EAGAIN): "others rename or mount on the way to it all the time",
    ("cwd", errno.EAGAIN): "others rename or mount on the way to it all the time",
    ("mount", errno.EINVAL): "source and target are not both directories or both files",
}


_OTHER_LIMITS = ("nice", "scheduler", "cpus", "umask", "personality")  # enum sbx_limit
_HARD = "raising a limit that the caller has takes CAP_SYS_RESOURCE (ulimit -H -a)"
_SOONER = "it takes CAP_SYS_NICE, or RLIMIT_NICE (ulimit -e)"
_LIMIT_HINTS = {
    ("nice", errno.EACCES): _SOONER,
    ("nice", errno.EPERM): _SOONER,
    ("scheduler", errno.EPERM): _SOONER,
    ("cpus", errno.EINVAL): "the machine, or the cpuset of the caller, does not have all of them",
}


def _limit_name(index: int) -> str:
    """Of an index of step 'limits': a resource of setrlimit(2), then one of enum sbx_limit."""
    if index >= 16:
        return _OTHER_LIMITS[index - 16]
    return next(name for name, number in RLIMITS.items() if number == index)


def _limit_words(index: int, values: Mapping[str, Any]) -> str:
    name = _limit_name(index)
    if name == "personality":
        return f"set the personality {values[name]:#x} (deterministic, linux32)"
    if name == "cpus":
        name, words = "cpuset", enumerate(values["cpus"])
        value: Any = [64 * n + i for n, word in words for i in range(64) if word >> i & 1]
    elif name == "scheduler":
        value = next(word for word, n in SCHEDULERS.items() if n == values["scheduler"])
    elif index < 16:
        value = values["rlimit"][index][0]
    else:
        value = values[name]
    return f"set the limit {name}={value!r}"


def _limit_hint(index: int, error: int) -> str:
    name = _limit_name(index)
    if index < 16 and error == errno.EPERM:
        return f"{_HARD}, sysctl fs.nr_open" if name == "open_files" else _HARD
    return _LIMIT_HINTS.get((name, error), "")


def hint(step: str, index: int, error: int, in_user_namespace: bool = False) -> str:
    """The likely remedy, or ""."""
    if in_user_namespace or step in ("source", "root", "mount"):
        applies = in_user_namespace or _machine.is_in_user_namespace()
        remedy = _machine.user_namespace_remedy(step, error) if applies else ""
        if remedy:
            return remedy
    if step == "exec" and error == errno.ENOENT:
        if index < 0:
            return "it is looked for inside the root, in the PATH of the sandbox"
        return "the file is there, but not its interpreter or loader"
    if error == errno.ENOSYS and step != "seccomp":
        return "sandboxlib takes Linux 5.12, and a seccomp filter that lets this call through"
    return _HINTS.get((step, error), "")


def hint_of_stub(error: int) -> str:
    """The likely remedy where a mount point cannot be made, or ""."""
    if error == errno.ENOENT:  # all that is missing would have been made
        return "a symbolic link on the way leads to nothing"
    if error == errno.EROFS:
        return "the file system of the root is read-only, and has no such directory or file"
    return hint("target", 0, error)
