# SPDX-License-Identifier: Apache-2.0
"""Limits on all processes of a run together: control groups, of v2 and of v1.

Theory of operation. A machine mounts each controller (memory, pids, cpu, io) in one hierarchy, that
of v2 or one of v1. A Cgroup is one directory in each hierarchy that its limits need, made below the
caller's own. If v2 does not allow that (a cgroup that has processes hands no controllers down,
Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint"), it is made below the
nearest ancestor that does. The child of a run joins by writing "0" to each of `procs`. A run leases
a Cgroup from the Cgroups of its Sandbox; when it is empty again, another run may lease it.

If the limits need neither v2 nor the pids controller, the Cgroup has a directory of v2, or of the
v1 freezer, all the same. Without one, processes that fork faster than we read their list could
escape kill().
"""

from __future__ import annotations

import atexit
import errno
import os
from _thread import RLock, interrupt_main
from _weakref import ref  # weakref itself takes as long as ten of our modules
from collections import deque

from ..errors import SpecError, UnsupportedError
from .hierarchies import (
    GONE,
    Part,
    find_parts,
    lists_of_processes,
    mark,
    open_cgroup,
    read,
    tree,
    version,
    write,
)
from .hierarchies import CgroupLimits as CgroupLimits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Numbers = dict[str, dict[str, int]]

MOST_IDLE = 16  # cgroups that wait for a run, each with up to 40 descriptors; others are removed
_AT_A_TIME = 64  # pidfds that are open at once while processes are killed one by one
PATIENCE = 5.0  # seconds that killed processes have to end
_PRESSURES = ("cpu.pressure", "memory.pressure", "io.pressure")
_PEAKS = ("memory.peak", "memory.max_usage_in_bytes")
# Documentation/admin-guide/cgroup-v2.rst; cgroup-v1/memory.rst, pids.rst, cpuacct.rst
_COUNTERS = (
    *("memory.events", "memory.current", "memory.peak"),
    *("memory.oom_control", "memory.failcnt", "memory.usage_in_bytes", "memory.max_usage_in_bytes"),
    *("pids.events", "pids.current", "pids.peak", "cpu.stat", "cpuacct.usage", *_PRESSURES),
)
# A command that reaches cgroupfs (docs/security.md) could change these files for the next command.
# Of memory.oom_control only the first line is a setting; the others are counters.
_SETTINGS = frozenset(
    (
        "cgroup.freeze cgroup.subtree_control cgroup.type cgroup.pressure cgroup.max.depth"
        " cgroup.max.descendants memory.min memory.low memory.high memory.max memory.swap.high"
        " memory.swap.max memory.zswap.max memory.zswap.writeback memory.oom.group pids.max"
        " cpu.weight cpu.max cpu.max.burst cpu.idle cpu.uclamp.min cpu.uclamp.max io.weight"
        " io.bfq.weight io.max io.latency freezer.state memory.limit_in_bytes"
        " memory.memsw.limit_in_bytes memory.soft_limit_in_bytes memory.kmem.tcp.limit_in_bytes"
        " memory.swappiness memory.oom_control cpu.shares cpu.cfs_period_us cpu.cfs_quota_us"
        " cpu.cfs_burst_us cpu.rt_period_us cpu.rt_runtime_us blkio.bfq.weight"
        " blkio.bfq.weight_device blkio.throttle.read_bps_device blkio.throttle.read_iops_device"
        " blkio.throttle.write_bps_device blkio.throttle.write_iops_device notify_on_release"
    ).split()
)
_all: dict[int, ref[Cgroups]] = {}
_stuck: list[str] = []  # directories that could not be removed: their processes do not end


class Cgroups:
    """The cgroups of one Sandbox. It makes them when runs need them, reuses and removes them."""

    def __init__(self, limits: CgroupLimits) -> None:
        self.limits = limits
        self._lock = RLock()
        self._idle: deque[Cgroup] = deque()
        self._leased: dict[int, ref[Cgroup]] = {}
        self._parts: list[Part] | None = None
        self._generation = self._made = 0
        self._name = ""
        if limits.swap is not None and limits.memory is None:
            raise SpecError("a limit on swap needs one on memory")
        _all[id(self)] = ref(self)

    def take(self) -> Cgroup:
        """Lease a Cgroup for one run, which gives it back by release().

        Raises UnsupportedError if this machine, or this caller, cannot enforce one of the limits.
        """
        cgroup = self._take_idle() or self._make()
        cgroup.pool = self
        self._leased[id(cgroup)] = ref(cgroup)
        return cgroup

    def _take_idle(self) -> Cgroup | None:
        while True:
            try:
                cgroup = self._idle.pop()
            except IndexError:
                return None
            if cgroup.is_as_made():
                return cgroup
            cgroup.remove()  # another process changed it, or removed a part of it

    def _make(self) -> Cgroup:
        with self._lock:
            # The caller may have moved to another cgroup: close() makes us look again.
            if self._parts is None:
                self._parts = find_parts(self.limits)
                self._name = f"{mark()}-{os.urandom(4).hex()}"
            self._made += 1
            name, parts, generation = f"{self._name}-{self._made}", self._parts, self._generation
        cgroup = Cgroup(self.limits, generation)
        try:
            for part in parts:
                part.make(name, cgroup.paths)
            cgroup.open()
        except BaseException:
            cgroup.remove()
            raise
        return cgroup

    def give(self, cgroup: Cgroup) -> None:
        """Take a Cgroup back from its run: kill its processes, and keep it if it is like new."""
        self._leased.pop(id(cgroup), None)
        if len(self._idle) < MOST_IDLE:
            try:
                if cgroup.pids():
                    cgroup.kill()
                if cgroup.is_like_new():
                    with self._lock:
                        if cgroup.generation == self._generation:
                            return self._idle.append(cgroup)
            except OSError:
                pass
        cgroup.remove()

    def close(self) -> None:
        """Remove the idle cgroups now; those in use are removed when their run gives them back."""
        with self._lock:
            self._generation += 1
            self._parts = None
            while self._idle:
                self._idle.pop().remove()
        _remove_stuck()

    def end(self) -> None:
        """Remove all, and kill the processes of those in use: at the end of the interpreter."""
        self.close()
        for cgroup in [c for c in (r() for r in list(self._leased.values())) if c is not None]:
            cgroup.release()

    def forget(self) -> None:
        """In a fork of the caller, close the descriptors only: the cgroups are the parent's."""
        self._lock = RLock()
        self._generation += 1
        self._parts = None
        self._leased.clear()
        while self._idle:
            self._idle.pop().remove()

    def __del__(self) -> None:
        if _all is not None:  # None: the interpreter is ending, and end_all() did the work
            _all.pop(id(self), None)
            _insist(self.close)


class Cgroup:
    """Directories in one or several hierarchies that hold one run.

    procs: descriptors of their cgroup.procs, numbered from 10 on. A process joins by writing "0" to
    each.
    """

    procs: tuple[int, ...] = ()
    directories: tuple[int, ...] = ()  # their descriptors, from which all files are opened

    def __init__(self, limits: CgroupLimits, generation: int) -> None:
        self.pool: Cgroups | None = None
        self.generation = generation
        self.paths: list[str] = []
        self._limits = limits
        self._maker = os.getpid()
        self._counters: list[tuple[str, int]] = []
        self._settings: list[_Setting] = []
        self._pids_setting: _Setting | None = None
        self._threads: list[tuple[int, str]] = []  # the other file by which a thread can join
        self._owners: list[tuple[int, int, int, int]] = []
        self._before: Numbers = {}
        self._most_pids = limits.pids
        self._is_reset = True  # False: the peaks may be those of an earlier run
        self._is_suspended = False

    def open(self) -> None:
        """Open the files that each run reads, because opening one takes as long as ten reads."""
        for path in self.paths:
            kind = version(path)
            self.directories += (directory := _above(open_cgroup(path, kind)),)
            fd = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
            self.procs += (_above(fd),)
            # An O_PATH descriptor cannot be listed itself; its link in /proc can.
            for name in os.listdir(f"/proc/self/fd/{directory}"):
                if name in _COUNTERS:
                    self._open_counter(directory, name)
                if name in _SETTINGS:
                    self._open_setting(directory, name)
                if name in ("tasks", "cgroup.threads"):
                    self._threads.append((directory, name))
        self._owners = self._look_at_owners()

    def _open_counter(self, directory: int, name: str) -> None:
        flags = os.O_CLOEXEC | (os.O_RDWR if name in _PEAKS else os.O_RDONLY)
        try:
            fd = os.open(name, flags, dir_fd=directory)
        except PermissionError:  # memory.peak before Linux 6.12
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        self._counters.append((name, fd))
        try:
            os.pread(fd, 1, 0)
        except OSError:  # EOPNOTSUPP: the kernel was started with psi=0
            self._counters.pop()
            os.close(fd)

    def _open_setting(self, directory: int, name: str) -> None:
        flags = os.O_CLOEXEC | (os.O_RDWR if name == "pids.max" else os.O_RDONLY)
        setting = _Setting(os.open(name, flags, dir_fd=directory))
        self._settings.append(setting)
        if not setting.remember(whole=name != "memory.oom_control"):
            self._settings.pop()
            os.close(setting.fd)
        elif name == "pids.max":
            self._pids_setting = setting

    def _look_at_owners(self) -> list[tuple[int, int, int, int]]:
        """The owners and modes, which say who may write, and st_nlink, which counts the cgroups
        below.
        """
        statuses = [os.fstat(fd) for fd in (*self.directories, *self.procs)]
        statuses += [os.stat(name, dir_fd=fd) for fd, name in self._threads]
        return [(s.st_mode, s.st_uid, s.st_gid, s.st_nlink) for s in statuses]

    def is_as_made(self) -> bool:
        """Return True if no process has removed it or changed it since it was made: its limits, its
        freezer, its owners, the cgroups below it.
        """
        try:
            return self._look_at_owners() == self._owners and all(s.holds() for s in self._settings)
        except OSError:  # ENODEV: the cgroup was removed
            return False

    def begin(self, extra_pids: int = 0) -> None:
        """Start the counts of report(). extra_pids is added to the limit on pids."""
        if self._limits.pids is not None:
            self._set_most_pids(self._limits.pids + extra_pids)
        for name, fd in self._counters:
            if name in _PEAKS:
                try:  # v1; v2 since Linux 6.12: for reads through this descriptor
                    os.pwrite(fd, b"0", 0)
                except OSError:
                    self._is_reset = False
        self._before = self._read()

    def report(self) -> dict[str, object]:
        """What happened since begin(). None: no file of this cgroup has the value.

        oom_kills: int, processes that the kernel killed because memory ran out.
        pids_hits: int, forks that the kernel refused.
        throttled: int, periods (of 100 ms) in which the quota was used up.
        memory_peak: int, bytes, without the page cache that earlier runs left (with it, if the
            limit was reached). pids_peak: int. Both count every process that joined, the reaper
            too. The kernel cannot reset some peaks (pids.peak; memory.peak before Linux 6.12): in a
            reused cgroup they are None unless this run went beyond the earlier ones.
        cpu: float, seconds. user, system: float, the same apart.
        pressure: {"cpu": {"some": seconds, "full": seconds}, ...}, the time in which some or all
            processes had to wait for it.
        """
        now, before = self._read(), self._before

        def grown(name: str, key: str) -> int | None:
            value = now.get(name, {}).get(key)
            return None if value is None else value - before.get(name, {}).get(key, 0)

        def first(*values: int | None) -> int | None:
            return next((value for value in values if value is not None), None)

        def peak(name: str, is_reset: bool) -> int | None:
            value, earlier = now.get(name, {}).get(""), before.get(name, {}).get("", 0)
            return value if is_reset or not earlier or (value or 0) > earlier else None

        v1 = "memory.max_usage_in_bytes" in now
        memory = peak(_PEAKS[v1], self._is_reset)
        hits = grown("memory.failcnt", "") if v1 else grown("memory.events", "max")
        if memory is not None and not hits:
            left = before.get("memory.usage_in_bytes" if v1 else "memory.current", {}).get("", 0)
            memory = max(memory - left, 0)

        def seconds(key: str) -> float | None:
            micro = grown("cpu.stat", key)
            return None if micro is None else micro / 1e6

        cpu, nano = seconds("usage_usec"), grown("cpuacct.usage", "")
        if cpu is None and nano is not None:
            cpu = nano / 1e9
        waits = {
            name.partition(".")[0]: {key: (grown(name, key) or 0) / 1e6 for key in now[name]}
            for name in _PRESSURES
            if name in now
        }
        return {
            "oom_kills": first(
                grown("memory.events", "oom_kill"), grown("memory.oom_control", "oom_kill")
            ),
            "pids_hits": grown("pids.events", "max"),
            "throttled": grown("cpu.stat", "nr_throttled"),
            "memory_peak": memory,
            "pids_peak": peak("pids.peak", False),
            "cpu": cpu,
            "user": seconds("user_usec"),
            "system": seconds("system_usec"),
            "pressure": waits or None,
        }

    def _read(self) -> Numbers:
        counters: Numbers = {}
        for name, fd in self._counters:  # cpu.stat may be there twice: of v1, and of v2
            numbers = counters.setdefault(name, {})
            for line in os.pread(fd, 4096, 0).decode().splitlines():
                fields = line.split()  # "5", "max 5", or "some avg10=0.00 ... total=5"
                key = fields[0] if len(fields) > 1 else ""
                numbers[key] = int(fields[-1].rpartition("=")[2])
        return counters

    def pids(self) -> list[int]:
        """The processes in it, and in cgroups that they made below it; zombies do not count."""
        pids: set[int] = set()
        for directory in self.directories:
            try:  # opens the file anew: an old descriptor of v1 shows the list of a second ago
                pids.update(map(int, lists_of_processes(directory).split()))
            except OSError as error:
                if error.errno not in GONE:
                    raise
        return sorted(pids - {0})  # 0 stands for a process that our pid namespace does not know

    def kill(self) -> None:
        """Kill every process in it, and wait until all are gone. Raises OSError if some still live
        after 5 s.
        """
        import time

        deadline, patience = time.monotonic() + PATIENCE, 0.01
        killer = self._find("cgroup.kill")
        while True:
            if killer is not None:
                write("cgroup.kill", "1", killer)
            else:
                self._kill_each()
            if self._is_suspended:
                self.resume()
            # A killed process needs a CPU to end, and must not be frozen again before it has had
            # one. So wait for a while, each time longer, before killing again.
            again, pause = time.monotonic() + patience, 0.0002
            while left := self.pids():
                if time.monotonic() > again:
                    break
                time.sleep(pause)
                pause = min(pause * 2, 0.005)
            if not left:
                return
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, f"killed processes do not end: {left}", self.paths[0])
            patience = min(patience * 2, 0.5)

    def _kill_each(self) -> None:
        """Kill the processes one by one. First stop them from forking, so that the list of them is
        complete.
        """
        if self._most_pids is not None:
            self._set_most_pids(0)
        else:
            self.suspend()
        pids = self.pids()
        for first in range(0, len(pids), _AT_A_TIME):
            self._kill_these(pids[first : first + _AT_A_TIME])

    def _kill_these(self, pids: list[int]) -> None:
        """Kill by pidfd, never by pid: a pid that was reused would hit a stranger.

        If a pid is still listed after we opened its pidfd, the pidfd refers to a process of this
        cgroup; or it refers to an earlier process with that pid, which is dead, and then the signal
        has no effect.
        """
        import signal

        opened: dict[int, int] = {}
        try:
            for pid in pids:
                try:
                    opened[pid] = os.pidfd_open(pid)
                except ProcessLookupError:
                    continue
            for pid in set(self.pids()) & set(opened):
                try:
                    signal.pidfd_send_signal(opened[pid], 9)
                except ProcessLookupError:
                    continue
        finally:
            for fd in opened.values():
                os.close(fd)

    def suspend(self) -> bool:
        """Stop every process in it. Returns False if it has neither v2 nor the v1 freezer."""
        return self._freeze("1", "FROZEN")

    def resume(self) -> bool:
        """Let the processes go on that suspend() stopped. Returns as suspend() does."""
        return self._freeze("0", "THAWED")

    def _freeze(self, v2: str, v1: str) -> bool:
        """Write to the freezer, and wait up to a second until the kernel reports the new state: a
        process in the midst of a system call takes that long.
        """
        import time

        if (directory := self._find("cgroup.freeze")) is not None:
            file, state_file, value, state = "cgroup.freeze", "cgroup.events", v2, f"frozen {v2}"
        elif (directory := self._find("freezer.state")) is not None:
            file, state_file, value, state = "freezer.state", "freezer.state", v1, v1
        else:
            return False
        self._is_suspended = v2 == "1"
        write(file, value, directory)
        deadline = time.monotonic() + 1
        while state not in read(state_file, directory).splitlines() and time.monotonic() < deadline:
            time.sleep(0.0005)
        return True

    def release(self) -> None:
        """Give it back to its Cgroups, which kills the processes that are still in it."""
        pool, self.pool = self.pool, None
        if pool is not None and self._maker == os.getpid():
            pool.give(self)

    def is_like_new(self) -> bool:
        """Return True if another run may lease it: zombies count against the limit on pids, and the
        page cache against that on memory.

        Emptying the cache (memory.force_empty) takes a millisecond or more, and drops pages that
        others share. A new cgroup takes a third of that. So a little cache is left in place, and a
        cgroup with much of it is not used again.
        """
        if self._is_suspended:
            self.resume()
        numbers = self._read()
        left = numbers.get("memory.usage_in_bytes") or numbers.get("memory.current") or {"": 0}
        is_small = self._limits.memory is None or left[""] <= self._limits.memory // 4
        return is_small and not numbers.get("pids.current", {}).get("", 0)

    def leave(self) -> None:
        """Give it up, because SIGKILL does not end a process in it: a later close() removes it."""
        pool, self.pool = self.pool, None
        if pool is not None:
            pool._leased.pop(id(self), None)
        if self._maker == os.getpid():
            _stuck.extend(reversed(self.paths))
        self.paths = []
        self.remove()

    def remove(self) -> None:
        """Kill its processes, and remove it. If that fails, a later close() tries again."""
        if self._maker == os.getpid():
            try:
                if self.pids():
                    self.kill()
            except OSError:
                pass
            while self.paths:
                if not _remove(self.paths[-1]):
                    _stuck.append(self.paths[-1])
                self.paths.pop()
        self.paths = []
        for fd in (
            *(fd for _, fd in self._counters),
            *(setting.fd for setting in self._settings),
            *self.procs,
            *self.directories,
        ):
            os.close(fd)
        self._counters, self._settings, self._threads, self._pids_setting = [], [], [], None
        self.procs = self.directories = ()

    def __del__(self) -> None:
        _insist(self.remove)

    def _set_most_pids(self, number: int) -> None:
        if number != self._most_pids and (setting := self._pids_setting) is not None:
            setting.write(f"{number}\n".encode())
            self._most_pids = number

    def _find(self, name: str) -> int | None:
        """The descriptor of a directory that has such a file."""
        for directory in self.directories:
            try:
                os.stat(name, dir_fd=directory)
            except OSError:
                continue
            return directory
        return None


class _Setting:
    """An open file of a cgroup, and its content as long as no process changes it."""

    __slots__ = ("fd", "size", "value")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.value = b""
        self.size = 0

    def remember(self, whole: bool) -> bool:
        """Keep its content, or only the first line of it. Returns False if it cannot be read."""
        try:
            self.value = os.pread(self.fd, 4096, 0)
        except OSError:
            return False
        if not whole:
            self.value = self.value[: self.value.find(b"\n") + 1]
        self.size = len(self.value) + whole
        return True

    def holds(self) -> bool:
        return os.pread(self.fd, self.size, 0) == self.value

    def write(self, value: bytes) -> None:
        os.pwrite(self.fd, value, 0)
        self.value, self.size = value, len(value) + 1


def _above(fd: int) -> int:
    """Move a descriptor to a number from 10 on, because a run uses the lower ones itself."""
    from fcntl import F_DUPFD_CLOEXEC, fcntl

    try:
        return fcntl(fd, F_DUPFD_CLOEXEC, 10)
    finally:
        os.close(fd)


def controllers() -> dict[str, str]:
    """The limits that the caller can set, with the version of each: {"memory": "v1", ...}.

    The names: memory, swap, pids, cpu, io, hold. It makes a cgroup with each of them to find out.
    """
    versions = {}
    limits: dict[str, dict[str, int]] = {
        "memory": {"memory": 1 << 30},
        "swap": {"memory": 1 << 30, "swap": 0},
        "pids": {"pids": 1000},
        "cpu": {"cpu_weight": 100},
        "io": {"io_weight": 100},
        "hold": {"hold": True},
    }
    for name, options in limits.items():
        pool = Cgroups(CgroupLimits(**options))
        try:
            cgroup = pool.take()
        except UnsupportedError:
            continue
        versions[name] = version(cgroup.paths[0])
        cgroup.release()
        pool.close()
    return versions


def _remove(path: str) -> bool:
    """Remove a directory; False if that fails. A process that is ending stays in it for a moment
    (EBUSY), so it is tried several times.
    """
    import time

    for pause in (0.0005, 0.002, 0.01, 0.05, 0.2, 0.5, 0.0):
        try:
            for directory in tree(path):
                os.rmdir(directory)
            return True
        except FileNotFoundError:
            return True
        except OSError:
            time.sleep(pause)
    return False


def _remove_stuck() -> None:
    for path in list(_stuck):
        if _remove(path):
            _stuck.remove(path)


def _insist(finish: Callable[[], None]) -> None:
    """Call finish() until no KeyboardInterrupt stops it, and raise that later in the main thread:
    Python drops what __del__ raises.
    """
    while True:
        try:
            return finish()
        except KeyboardInterrupt:
            interrupt_main()


def _each() -> list[Cgroups]:
    return [pool for pool in (r() for r in list(_all.values())) if pool is not None]


def _forget_all() -> None:
    _stuck.clear()
    for pool in _each():
        pool.forget()


def end_all() -> None:
    """Remove all cgroups of this process, at the end of the interpreter."""
    for pool in _each():
        pool.end()


os.register_at_fork(after_in_child=_forget_all)
atexit.register(end_all)
