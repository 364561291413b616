# SPDX-License-Identifier: Apache-2.0
"""The cgroup hierarchies of this machine: where cgroups can be made, and which file has a limit."""

from __future__ import annotations

import errno
import os
import stat
from collections import namedtuple

from .._core import native
from .._host import machine
from ..errors import UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_PARTS = 4  # directories of a cgroup, because a run takes at most four descriptors of them
DELEGATE = "systemd-run --user --scope -p Delegate=yes"
_V1_NAMES = {"memory": "memory", "pids": "pids", "cpu": "cpu", "io": "blkio"}
_OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR)
GONE = (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP)  # the errors of a cgroup that was removed
_SEARCH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAGIC = {"v1": 0x27E0EB, "v2": 0x63677270}  # statfs(2): CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC


class CgroupLimits(
    namedtuple(
        "CgroupLimits",
        "memory swap pids cpu_weight cpu_quota io_weight directory hold",
        defaults=[None, None, None, None, None, None, None, False],
    )
):
    """The limits of a cgroup. None: no limit.

    memory: bytes. swap: bytes beyond memory; it needs memory.
    pids: the number of processes and threads of the run.
    cpu_weight, io_weight: 1 to 10000; 100 is the kernel's default. cpu_quota: CPUs, such as 1.5.
    directory: the absolute path of a cgroup of v2, in which the caller may make cgroups.
    hold: bool. True: make a cgroup even without a limit, to count, suspend and kill every process.
    """

    __slots__ = ()

    @property
    def kind(self) -> tuple[object, ...]:
        """Which limits there are, and where: limits of one kind differ in their values alone."""
        return (*(value is not None for value in self[:-2]), *self[-2:])


class Place(namedtuple("Place", "path kind names")):
    """A directory of a cgroup, its version, "v1" or "v2", and the names of the limits in it."""

    __slots__ = ()
    path: str
    kind: str
    names: tuple[str, ...]


class Part:
    """The part of a cgroup in one hierarchy: in which directories it may be made, the best first,
    and the names of its limits: "memory", "pids", "cpu", "io".

    A parent of v1 is a (path, "v1"), one of v2 a (path, "v2").
    """

    def __init__(self, parents: list[tuple[str, str]], is_needed: bool = True) -> None:
        self.parents = parents
        self.names: list[str] = []
        self.is_needed = is_needed
        self._is_swept = False

    def make(self, name: str, limits: CgroupLimits, places: list[Place]) -> None:
        """Make the directory of one cgroup, and append it to places.

        Raises UnsupportedError if it cannot be made in any of the parents.
        """
        refusals = []
        for parent, kind in self.parents:
            try:
                if not self._is_swept:
                    sweep(parent)
                    if kind == "v2":
                        self._prepare(parent)
                self._make_in(parent, kind, name, limits, places)
                self.parents, self._is_swept = [(parent, kind)], True
                return
            except OSError as error:
                refusals.append((error, kind))
        if self.is_needed:
            raise _refusal(self.names, *refusals[0])
        self.parents = []

    def _make_in(
        self, parent: str, kind: str, name: str, limits: CgroupLimits, places: list[Place]
    ) -> None:
        """Make the directory, and write its files. Descriptors are used throughout, so that no name
        is looked up twice and no symbolic link is followed.

        Raises OSError if it cannot be made, UnsupportedError if a file refuses its value.
        """
        path, parent_fd, made = f"{parent}/{name}", open_cgroup(parent, kind), -1
        try:
            try:
                os.mkdir(name, 0o755, dir_fd=parent_fd)
            except OSError as error:
                is_refused = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
                error.filename = parent if is_refused else path
                raise
            places.append(Place(path, kind, tuple(self.names)))
            os.chmod(name, 0o755, dir_fd=parent_fd)  # mkdir(2) applied the caller's umask
            made = os.open(name, _SEARCH, dir_fd=parent_fd)
            if kind == "v2" and (type_ := _type_of(made)) not in ("domain", ""):
                os.rmdir(name, dir_fd=parent_fd)
                places.pop()
                message = f"its type is {type_!r}: it takes no processes"
                raise OSError(errno.EOPNOTSUPP, message, f"{path}/cgroup.type")
            files = [pair for each in self.names for pair in files_of(limits, each, kind)]
            for file, value in files:
                try:
                    write(file, value, made)
                except OSError as error:
                    error.filename = f"{path}/{file}"
                    raise _refusal(self.names, error, kind) from None
        finally:
            os.close(parent_fd)
            if made >= 0:
                os.close(made)

    def _prepare(self, parent: str) -> None:
        """Enable the controllers for the children, and check that the caller may join them.

        The controllers stay enabled afterwards, because others may have begun to use them.
        """
        available = read(f"{parent}/cgroup.controllers").split()
        for name in self.names:
            if name not in available:
                message = f"the controller {name} is not in it"
                raise OSError(errno.ENOENT, message, f"{parent}/cgroup.controllers")
        enabled = read(f"{parent}/cgroup.subtree_control").split()
        if missing := [f"+{name}" for name in self.names if name not in enabled]:
            # cgroups(7), "Thread mode": with pids and cpu alone the kernel enables them beside
            # processes, and the parent becomes the root of threads. None of its children takes
            # a process then.
            file = f"{parent}/cgroup.subtree_control"
            if _has_processes(parent) and os.access(file, os.W_OK, effective_ids=True):
                raise OSError(errno.EBUSY, "there are processes in it", f"{parent}/cgroup.procs")
            write(f"{parent}/cgroup.subtree_control", " ".join(missing))
        # cgroup-v2.rst, "Delegation Containment": moving a process takes write access to the
        # cgroup.procs of the nearest common ancestor of both cgroups.
        own, point = own_directories().get(""), mount_points().get("")
        if own and point and f"{parent}/".startswith(f"{point}/"):
            ancestor = os.path.commonpath([own, parent])
            os.close(os.open(f"{ancestor}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))


def _has_processes(parent: str) -> bool:
    """Whether a cgroup of v2 has processes that keep controllers from its children. The root of the
    hierarchy, which has no cgroup.type, does not mind them.
    """
    return os.path.exists(f"{parent}/cgroup.type") and bool(read(f"{parent}/cgroup.procs"))


def _type_of(cgroup: int) -> str:
    """The content of cgroup.type; "" where the kernel has no such file (before Linux 4.14)."""
    try:
        return read("cgroup.type", cgroup).strip()
    except FileNotFoundError:
        return ""


def find_parts(limits: CgroupLimits) -> list[Part]:
    """The parts of a cgroup with these limits. Raises UnsupportedError if no hierarchy has one."""
    own = own_directories()
    unified = _unified(limits.directory, own)
    delegated = _controllers_of(limits.directory) if limits.directory else ""
    parts: dict[str, Part] = {}
    names = [name for name in _V1_NAMES if _is_asked(limits, name)]
    for name in names:
        path = own.get(_V1_NAMES[name])
        if path and name not in delegated.split():
            part = parts.setdefault(path, Part([(path, "v1")]))
        elif unified:
            part = parts.setdefault("", Part(unified))
        else:
            raise UnsupportedError(f"{name}: no cgroup hierarchy of /proc/self/cgroup has it")
        part.names.append(name)
        files_of(limits, name, part.parents[0][1])  # refuses what would do nothing
    if "" not in parts and (limits.hold or "pids" not in names) and len(parts) < MOST_PARTS:
        in_v1 = [own[name] for name in ("freezer", "pids", "memory") if name in own]
        parents = unified + [(path, "v1") for path in in_v1 if path not in parts]
        if parents:
            parts[""] = Part(parents, is_needed=not parts)
        elif not parts:
            raise UnsupportedError("no cgroup hierarchy is mounted (/proc/self/mountinfo)")
    return list(parts.values())


def _controllers_of(directory: str) -> str:
    """The controllers of a directory that the caller named. Raises UnsupportedError if it is no
    cgroup of v2.
    """
    try:
        fd = open_cgroup(directory, "v2")
        try:
            return read("cgroup.controllers", fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in _OUT_OF:
            raise
        message = f"{directory} is no cgroup of v2: {error.strerror}"
        raise UnsupportedError(message) from None


def _is_asked(limits: CgroupLimits, name: str) -> bool:
    if name == "cpu":
        return limits.cpu_weight is not None or limits.cpu_quota is not None
    return getattr(limits, "io_weight" if name == "io" else name) is not None


def _unified(directory: str | None, own: dict[str, str]) -> list[tuple[str, str]]:
    """The parents to try for a cgroup of v2: the caller's own, then each one above it."""
    if directory is not None:
        return [(directory, "v2")]
    parents = []
    if path := own.get(""):
        point = mount_points()[""]
        while True:
            parents.append((path, "v2"))
            if len(path) <= len(point):
                break
            path = os.path.dirname(path)
    return parents


def files_of(limits: CgroupLimits, name: str, kind: str) -> list[tuple[str, str]]:
    """The files of one controller with the value for each, in the order to write them."""
    is_v1 = kind == "v1"
    files: list[tuple[str, object]] = []
    if name == "memory":
        files = [("memory.limit_in_bytes" if is_v1 else "memory.max", limits.memory)]
        if limits.swap is not None and is_v1:  # cgroup-v1/memory.rst: both, and never below memory
            files += [("memory.memsw.limit_in_bytes", limits.memory + limits.swap)]
        elif limits.swap is not None:
            files += [("memory.swap.max", limits.swap)]
    elif name == "pids":
        files = [("pids.max", limits.pids)]
    elif name == "io":
        files = _io_files(limits.io_weight, is_v1)
    if name == "cpu" and limits.cpu_weight is not None:
        # systemd converts a weight to shares like this. 2 and 262144 are MIN_SHARES and MAX_SHARES
        # of kernel/sched/sched.h.
        shares = min(max(limits.cpu_weight * 1024 // 100, 2), 262144)
        files += [("cpu.shares", shares) if is_v1 else ("cpu.weight", limits.cpu_weight)]
    if name == "cpu" and limits.cpu_quota is not None:
        # Documentation/scheduler/sched-bwc.rst: a quota of 1 ms or more, a period of 1 s or less
        period = 100_000 if limits.cpu_quota >= 0.01 else 1_000_000
        quota = round(limits.cpu_quota * period)
        if is_v1:
            files += [("cpu.cfs_period_us", period), ("cpu.cfs_quota_us", quota)]
        else:
            files += [("cpu.max", f"{quota} {period}")]
    return [(file, str(value)) for file, value in files]


def _io_files(weight: int, is_v1: bool) -> list[tuple[str, object]]:
    """The files for io_weight. Raises UnsupportedError if the kernel would ignore a weight, because
    no device has the scheduler bfq, nor the cost model of io.cost.qos.

    Documentation/block/bfq-iosched.rst: weights go from 1 to 1000 with 100 as the default; higher
    weights are converted as systemd does it. cgroup-v2.rst: io.weight, and io.cost.qos in the root.
    """
    files: list[tuple[str, object]] = []
    if any("[bfq]" in read(f"/sys/block/{name}/queue/scheduler") for name in _block_devices()):
        bfq = weight if weight <= 100 else 100 + (weight - 100) * 900 // 9900
        files += [("blkio.bfq.weight" if is_v1 else "io.bfq.weight", bfq)]
    costs = f"{mount_points().get('', '')}/io.cost.qos"
    if not is_v1 and os.path.exists(costs) and "enable=1" in read(costs):
        files += [("io.weight", f"default {weight}")]
    if not files:
        raise UnsupportedError(
            "io: the kernel ignores weights on every block device: /sys/block/*/queue/scheduler is"
            " bfq on none, and io.cost.qos in the root of cgroup v2 enables none"
        )
    return files


def _block_devices() -> list[str]:
    try:
        names = os.listdir("/sys/block")
    except OSError:
        return []
    return [name for name in names if os.path.exists(f"/sys/block/{name}/queue/scheduler")]


def _refusal(names: list[str], error: OSError, kind: str) -> Exception:
    """An UnsupportedError with the remedy; or the error itself, if it only means that something ran
    out (descriptors, memory).
    """
    if error.errno in _OUT_OF:
        return error
    remedy = ""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "run as root, or have root hand that directory over (chown)"
        if kind == "v2":
            remedy = f"start the caller with `{DELEGATE}`, or name a delegated directory"
    elif error.errno == errno.EBUSY:
        remedy = f"it has processes of its own: start the caller with `{DELEGATE}`, or name another"
        remedy += " directory, that has none"
    elif error.errno == errno.ENOENT and kind == "v2":
        remedy = (
            "the kernel lacks it, or a cgroup above has not enabled it in cgroup.subtree_control"
        )
    elif error.errno == errno.ENOENT:
        remedy = "the kernel lacks it"
    elif error.errno == errno.EINVAL:
        remedy = "the value is beyond what the kernel takes, or what a cgroup above it leaves"
    limits = " and ".join(names) or "a cgroup"
    code = errno.errorcode.get(error.errno or 0, "?")
    text = f"{limits}: {error.filename}: {error.strerror} ({code})"
    return UnsupportedError(f"{text}; {remedy}" if remedy else text)


# ---- the mounted hierarchies -----------------------------------------------------------------


def _mounts() -> Iterator[tuple[str, str, str]]:
    """(controller, root of the mount, mount point) of v1; the controller of v2 is ""."""
    for mount in machine.mounts():
        if mount.type in ("cgroup", "cgroup2"):
            for name in ("",) if mount.type == "cgroup2" else mount.options.split(","):
                yield name, mount.root, mount.point


def mount_points() -> dict[str, str]:
    """The mount points of v2 ("") and of each controller of v1."""
    return {name: point for name, _, point in _mounts()}


def own_directories() -> dict[str, str]:
    """The directories of the caller's own cgroups: of v2 (""), and of v1 by controller.

    A cgroup without a directory here is left out: its hierarchy is not mounted, or it lies above
    the root of the caller's cgroup namespace.
    """
    own = {}
    for line in filter(None, read("/proc/self/cgroup").split("\n")):
        _, names, path = line.split(":", 2)
        own.update({name: path.rstrip("/") for name in names.split(",")})
    directories = {}
    for name, root, point in _mounts():
        top = root.rstrip("/")
        if name in own and f"{own[name]}/".startswith(f"{top}/"):
            below = own[name][len(top) :]
            if "/.." not in below:
                directories[name] = point + below
    return directories


def about_controllers() -> list[tuple[str, str]]:
    """For each controller: its version, the caller's directory, and whether it is delegated, that
    is whether the caller may make cgroups there; otherwise the remedy. For people.
    """
    own = own_directories()
    texts = []
    for name, in_v1 in _V1_NAMES.items():
        path, kind = own.get(in_v1, ""), "v1"
        if not path:
            kind = "v2"
            above = [each for each, _ in _unified(None, own) if name in _available(each)]
            path = next((each for each in above if _is_delegated(each, kind)), "")
            path = path or next(iter(above), "")
        if not path:
            remedy = "boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1), or mount it"
            texts.append((name, f"in no cgroup hierarchy of the caller; {remedy}"))
        elif _is_delegated(path, kind):
            texts.append((name, f"{kind}, delegated: {path}"))
        else:
            remedy = f"start the caller with `{DELEGATE}`" if kind == "v2" else "run as root"
            texts.append((name, f"{kind}, not delegated to uid {os.geteuid()}: {path}; {remedy}"))
    return texts


def _available(path: str) -> list[str]:
    try:
        return read(f"{path}/cgroup.controllers").split()
    except OSError:
        return []


def _is_delegated(path: str, kind: str) -> bool:
    files = [path] if kind == "v1" else [path, f"{path}/cgroup.procs"]
    return all(os.access(each, os.W_OK, effective_ids=True) for each in files)


def lists_of_processes(directory: int) -> str:
    """The text of cgroup.procs of a directory and of all below it, read through its descriptor."""
    if os.fstat(directory).st_nlink <= 2:
        return read("cgroup.procs", directory)
    text = ""
    for _, _, _, fd in os.fwalk(".", topdown=False, dir_fd=directory):
        try:
            text += read("cgroup.procs", fd)
        except OSError as error:
            if error.errno not in GONE:
                raise
    return text


def tree(path: str) -> list[str]:
    """A directory and all below it, the deepest first. If st_nlink is 2, there is none below."""
    try:
        if os.stat(path).st_nlink <= 2:
            return [path]
    except OSError:
        return [path]
    return [directory for directory, _, _ in os.walk(path, topdown=False)]


def open_cgroup(path: str, kind: str) -> int:
    """Open a directory of cgroupfs, of kind "v1" or "v2", without following a symbolic link.

    Raises OSError if it is none, so that nothing behind a link or in another file system is ever
    written.
    """
    fd, reached = os.open("/", _SEARCH), ""
    for name in filter(None, path.split("/")):
        reached += f"/{name}"
        above = fd
        try:
            fd = os.open(name, _SEARCH, dir_fd=above)
        except OSError as error:
            if error.errno == errno.ENOTDIR and stat.S_ISLNK(os.lstat(name, dir_fd=above).st_mode):
                text = f"{reached} is a symbolic link, and none is followed"
                raise OSError(errno.ELOOP, text, path) from None
            error.filename = path
            raise
        finally:
            os.close(above)
    if filesystem_of(fd) != _MAGIC[kind]:
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not in a file system of cgroups", path)
    return fd


def filesystem_of(fd: int) -> int:
    """The magic number of the file system of a descriptor (statfs(2))."""
    return int(native.lib.sbx_filesystem_of(fd))


def read(path: str, directory: int | None = None) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        text = b""
        while chunk := os.read(fd, 1 << 16):
            text += chunk
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)
    return os.fsdecode(text)


def write(path: str, value: str, directory: int | None = None) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


# ---- names, and cgroups that dead processes left ---------------------------------------------


def mark() -> str:
    """The prefix of the names of this process's cgroups. It has the start time of the process, so a
    later process with the same pid has another prefix.
    """
    pid = os.getpid()
    return f"sandboxlib-{pid}-{_started('self')}-{_namespaces()}"


def sweep(parent: str) -> None:
    """Remove the cgroups that dead processes left, unless a process is in them."""
    for name in os.listdir(parent):
        parts = name.split("-")
        if parts[0] != "sandboxlib" or len(parts) != 6 or parts[3] != _namespaces():
            continue
        if parts[1].isdigit() and not _is_alive(int(parts[1]), parts[2]):
            try:
                for directory in tree(f"{parent}/{name}"):
                    os.rmdir(directory)
            except OSError:
                continue


def _namespaces() -> str:
    """The pid and time namespaces of the caller: only there do its pids and start times hold."""
    kinds = [f"/proc/self/ns/{kind}" for kind in ("pid", "time")]
    return ".".join(f"{os.stat(path).st_ino:x}" for path in kinds if os.path.exists(path))


def _started(pid: int | str) -> str:
    """The start time of a process, in clock ticks since boot: field 22 of proc(5), stat."""
    return read(f"/proc/{pid}/stat").rpartition(")")[2].split()[19]


def _is_alive(pid: int, started: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    try:
        return _started(pid) == started
    except OSError:  # its /proc is hidden (hidepid), or it ended just now
        return True
