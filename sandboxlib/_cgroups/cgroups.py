# SPDX-License-Identifier: Apache-2.0
"""Limits on all processes of a run together: control groups, of v2 and of v1.

Theory of operation. A machine mounts each controller (memory, pids, cpu, io) in one hierarchy, that
of v2 or one of v1. A Cgroup is one directory in each hierarchy that its limits need, made below the
caller's own. Where v2 does not allow that (a cgroup that has processes hands no controllers down,
Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint"), it is made below the
nearest ancestor that does. The child of a run joins by writing "0" to each of `procs`. A run leases
a Cgroup from the Cgroups of its Sandbox; when it is empty again, another run may have it.

Where neither v2 nor a limit on pids is asked for, there is a directory of v2, or of the v1 freezer,
all the same: without it one could not be sure to kill what forks faster than its list is read.
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

MOST_IDLE = 16  # that wait for a run, with up to 40 descriptors each; more are removed
_AT_A_TIME = 64  # processes that are killed by descriptors
PATIENCE = 5.0  # seconds for the processes of a cgroup to die, once they are killed
_PRESSURES = ("cpu.pressure", "memory.pressure", "io.pressure")
_PEAKS = ("memory.peak", "memory.max_usage_in_bytes")
# Documentation/admin-guide/cgroup-v2.rst; cgroup-v1/memory.rst, pids.rst, cpuacct.rst
_COUNTERS = (
    *("memory.events", "memory.current", "memory.peak"),
    *("memory.oom_control", "memory.failcnt", "memory.usage_in_bytes", "memory.max_usage_in_bytes"),
    *("pids.events", "pids.current", "pids.peak", "cpu.stat", "cpuacct.usage", *_PRESSURES),
)
# A command that reaches cgroupfs (docs/security.md) could change them for the next one. Of
# memory.oom_control, which counts as well, it is the first line.
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
_stuck: list[str] = []  # directories whose processes would not die


class Cgroups:
    """The cgroups of one Sandbox: made when they are needed, recycled, removed in the end."""

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
        """A Cgroup for one run: release() it.

        UnsupportedError: this machine, or this caller, cannot enforce one of the limits.
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
            cgroup.remove()  # somebody changed it, or removed a part of it

    def _make(self) -> Cgroup:
        with self._lock:
            if self._parts is None:  # where the caller is may change, until close()
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
        """Back from a run. What has processes loses them, and is kept only if it is like new."""
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
        """Removes the idle ones now, and those that are in use when they come back."""
        with self._lock:
            self._generation += 1
            self._parts = None
            while self._idle:
                self._idle.pop().remove()
        _remove_stuck()

    def end(self) -> None:
        """Kills what is in those that are in use, too: at the end of the interpreter."""
        self.close()
        for cgroup in [c for c in (r() for r in list(self._leased.values())) if c is not None]:
            cgroup.release()

    def forget(self) -> None:
        """In a fork of the caller: they are the caller's, and only descriptors are closed."""
        self._lock = RLock()
        self._generation += 1
        self._parts = None
        self._leased.clear()
        while self._idle:
            self._idle.pop().remove()

    def __del__(self) -> None:
        if _all is not None:  # else the interpreter is at its end, and end_all() was here
            _all.pop(id(self), None)
            _insist(self.close)


class Cgroup:
    """Directories in one or several hierarchies that hold one run.

    procs: descriptors of their cgroup.procs, numbers from 10 on. Who writes "0" to each is in.
    """

    procs: tuple[int, ...] = ()
    directories: tuple[int, ...] = ()  # descriptors: what is read and written is found from here

    def __init__(self, limits: CgroupLimits, generation: int) -> None:
        self.pool: Cgroups | None = None
        self.generation = generation
        self.paths: list[str] = []
        self._limits = limits
        self._maker = os.getpid()
        self._counters: list[tuple[str, int]] = []
        self._settings: list[_Setting] = []
        self._pids_setting: _Setting | None = None
        self._threads: list[tuple[int, str]] = []  # the other file by which one may join
        self._owners: list[tuple[int, int, int, int]] = []
        self._before: Numbers = {}
        self._most_pids = limits.pids
        self._is_reset = True  # whether peaks are those of this run
        self._is_suspended = False

    def open(self) -> None:
        """Opens what each run needs; opening one costs as much as reading it ten times."""
        for path in self.paths:
            kind = version(path)
            self.directories += (directory := _above(open_cgroup(path, kind)),)
            fd = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
            self.procs += (_above(fd),)
            # Those of an O_PATH descriptor cannot be listed.
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
        """Who may write to it, and whether there are cgroups below it."""
        statuses = [os.fstat(fd) for fd in (*self.directories, *self.procs)]
        statuses += [os.stat(name, dir_fd=fd) for fd, name in self._threads]
        return [(s.st_mode, s.st_uid, s.st_gid, s.st_nlink) for s in statuses]

    def is_as_made(self) -> bool:
        """Whether it is there, and nobody changed it since it was made: its limits, its freezer,
        its owners, its cgroups below.
        """
        try:
            return self._look_at_owners() == self._owners and all(s.holds() for s in self._settings)
        except OSError:  # ENODEV: somebody removed it
            return False

    def begin(self, extra_pids: int = 0) -> None:
        """What report() tells is counted from here. The limit on pids is extra_pids higher."""
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
        """What happened since begin(); None is not known, as no file of this cgroup tells.

        oom_kills: int, processes killed for want of memory. pids_hits: int, forks refused.
        throttled: int, periods (of 100 ms) in which the quota was used up.
        memory_peak: int, bytes, without what earlier runs left in the page cache (if the limit was
        reached: with it). pids_peak: int. A peak that the kernel does not set back (pids.peak;
        memory.peak before Linux 6.12) is None in a recycled cgroup where an earlier run's was as
        high. Both count all that joined: the reaper too.
        cpu: float, seconds. pressure: {"cpu": {"some": seconds, "full": seconds}, ...}, the time in
        which some or all processes had to wait for it.
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
        micro, nano = grown("cpu.stat", "usage_usec"), grown("cpuacct.usage", "")
        cpu = micro / 1e6 if micro is not None else nano / 1e9 if nano is not None else None
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
            "pressure": waits or None,
        }

    def _read(self) -> Numbers:
        found: Numbers = {}
        for name, fd in self._counters:  # cpu.stat may be there twice: of v1, and of v2
            numbers = found.setdefault(name, {})
            for line in os.pread(fd, 4096, 0).decode().splitlines():
                fields = line.split()  # "5", "max 5", or "some avg10=0.00 ... total=5"
                key = fields[0] if len(fields) > 1 else ""
                numbers[key] = int(fields[-1].rpartition("=")[2])
        return found

    def pids(self) -> list[int]:
        """The processes in it, and in cgroups that they made below; zombies do not count."""
        found: set[int] = set()
        for directory in self.directories:
            try:  # opened anew: a descriptor of v1's would show a list of a second ago
                found.update(map(int, lists_of_processes(directory).split()))
            except OSError as error:
                if error.errno not in GONE:
                    raise
        return sorted(found - {0})  # 0 is one that our pid namespace has no number for

    def kill(self) -> None:
        """Ends every process in it, and returns when there is none. OSError: some live for 5 s."""
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
            # To die they need a CPU, and not to be frozen again before they have had it.
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
        """While nobody can fork: so that the list is all of them."""
        if self._most_pids is not None:
            self._set_most_pids(0)
        else:
            self.suspend()
        pids = self.pids()
        for first in range(0, len(pids), _AT_A_TIME):
            self._kill_these(pids[first : first + _AT_A_TIME])

    def _kill_these(self, pids: list[int]) -> None:
        """By pidfd, never by number: a number that is used again would hit anybody.

        What is in the list after its pidfd was opened is what the pidfd is of; if it is of a
        process that had the number before, that one is dead, and the signal is lost.
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
        """Stops every process in it. False: it has neither v2 nor the v1 freezer."""
        return self._freeze("1", "FROZEN")

    def resume(self) -> bool:
        """The opposite of suspend()."""
        return self._freeze("0", "THAWED")

    def _freeze(self, v2: str, v1: str) -> bool:
        """Waits for a second: it takes its time where a process is in the midst of a call."""
        import time

        if (directory := self._find("cgroup.freeze")) is not None:
            file, said, word, state = "cgroup.freeze", "cgroup.events", v2, f"frozen {v2}"
        elif (directory := self._find("freezer.state")) is not None:
            file, said, word, state = "freezer.state", "freezer.state", v1, v1
        else:
            return False
        self._is_suspended = v2 == "1"
        write(file, word, directory)
        deadline = time.monotonic() + 1
        while state not in read(said, directory).splitlines() and time.monotonic() < deadline:
            time.sleep(0.0005)
        return True

    def release(self) -> None:
        """Back to the Cgroups it is from. What is still in it is killed."""
        pool, self.pool = self.pool, None
        if pool is not None and self._maker == os.getpid():
            pool.give(self)

    def is_like_new(self) -> bool:
        """Whether another run may have it: zombies count as pids, and the page cache as memory.

        memory.force_empty takes a millisecond or more, and the pages from those who share them; a
        new cgroup a third of that. So what is left is left, unless it is much.
        """
        if self._is_suspended:
            self.resume()
        numbers = self._read()
        left = numbers.get("memory.usage_in_bytes") or numbers.get("memory.current") or {"": 0}
        is_small = self._limits.memory is None or left[""] <= self._limits.memory // 4
        return is_small and not numbers.get("pids.current", {}).get("", 0)

    def leave(self) -> None:
        """Gives it up with a process that SIGKILL does not end: a later close() removes it."""
        pool, self.pool = self.pool, None
        if pool is not None:
            pool._leased.pop(id(self), None)
        if self._maker == os.getpid():
            _stuck.extend(reversed(self.paths))
        self.paths = []
        self.remove()

    def remove(self) -> None:
        """Ends what is in it, and removes it. What cannot be is tried again when others go."""
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
    """A file of a cgroup, open, and what it says as long as nobody changes it."""

    __slots__ = ("fd", "size", "value")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.value = b""
        self.size = 0

    def remember(self, whole: bool) -> bool:
        """What it says now, or its first line. False where it cannot be read."""
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
    """The same, as a number from 10 on, where a run puts nothing of its own."""
    from fcntl import F_DUPFD_CLOEXEC, fcntl

    try:
        return fcntl(fd, F_DUPFD_CLOEXEC, 10)
    finally:
        os.close(fd)


def controllers() -> dict[str, str]:
    """Which limits the caller can set, and in which version: {"memory": "v1", "hold": "v2", ...}.

    The names: memory, swap, pids, cpu, io, hold. Found by making a cgroup with each.
    """
    found = {}
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
        found[name] = version(cgroup.paths[0])
        cgroup.release()
        pool.close()
    return found


def _remove(path: str) -> bool:
    """Whether it is gone. A process that dies is still in it for a moment (EBUSY)."""
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
    """For __del__, where a KeyboardInterrupt would be lost."""
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
    """At the end of the interpreter."""
    for pool in _each():
        pool.end()


os.register_at_fork(after_in_child=_forget_all)
atexit.register(end_all)
