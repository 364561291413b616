# SPDX-License-Identifier: Apache-2.0
"""Limits on all processes of a run together: control groups, of v2 and of v1.

Theory of operation. A machine mounts each controller (memory, pids, cpu, io) in one hierarchy, that
of v2 or one of v1. A Cgroup is one directory in each hierarchy that its limits need, made below the
caller's own. If v2 does not allow that (a cgroup that has processes hands no controllers down,
Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint"), it is made below the
nearest ancestor that does. A process with one thread joins by writing "0" to each of `procs`: to
`tasks` of v1, where a write to cgroup.procs waits for a grace period of RCU, and to cgroup.procs of
v2, into which a fresh run is born (CLONE_INTO_CGROUP). A fresh run leases a Cgroup from the Cgroups
of its Sandbox; when it is empty again, another run may lease it. A slot keeps the Cgroup that it
leases, and its runs write their limits to it.

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

from .._core.files import FileStatuses, OpenFiles
from ..errors import SpecError, UnsupportedError
from .counts import COUNTERS, PEAKS, SIZE, Counts, numbers
from .hierarchies import (
    GONE,
    Part,
    Place,
    files_of,
    find_parts,
    lists_of_processes,
    mark,
    open_cgroup,
    read,
    tree,
    write,
)
from .hierarchies import CgroupLimits as CgroupLimits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MOST_IDLE = 16  # cgroups that wait for a run, each with up to 40 descriptors; others are removed
_AT_A_TIME = 64  # pidfds that are open at once while processes are killed one by one
PATIENCE = 5.0  # seconds that killed processes have to end
# A Cgroup with limits on memory is used again if no more than this part of the limit is left over:
_MOST_LEFT = 4  # of memory that the kernel can take back, as page cache
_MOST_LOST = 64  # of memory that it cannot, as a file in a tmpfs of the caller's
_LIMIT_SIZE = 48  # more than the longest value of a file that has a limit
_BATCH = 64 * os.sysconf("SC_PAGE_SIZE")  # charged ahead for each CPU: MEMCG_CHARGE_BATCH
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

    def take(self, limits: CgroupLimits | None = None) -> Cgroup:
        """Lease a Cgroup for one run, which gives it back by release().

        limits: other values of the same limits; None: those of this object. Raises UnsupportedError
        if this machine, or this caller, cannot enforce one of the limits.
        """
        limits = limits or self.limits
        cgroup = self._take_idle(limits) or self._make(limits)
        cgroup.pool = self
        self._leased[id(cgroup)] = ref(cgroup)
        return cgroup

    def _take_idle(self, limits: CgroupLimits) -> Cgroup | None:
        while True:
            try:
                cgroup = self._idle.pop()
            except IndexError:
                return None
            try:
                if cgroup.is_as_made():
                    cgroup.limit(limits)
                    return cgroup
            except OSError:
                pass
            cgroup.remove()  # another process changed it, or removed a part of it

    def _make(self, limits: CgroupLimits) -> Cgroup:
        with self._lock:
            # The caller may have moved to another cgroup: close() makes us look again.
            if self._parts is None:
                self._parts = find_parts(limits)
                self._name = f"{mark()}-{os.urandom(4).hex()}"
            self._made += 1
            name, parts, generation = f"{self._name}-{self._made}", self._parts, self._generation
        cgroup = Cgroup(limits, generation)
        try:
            for part in parts:
                part.make(name, limits, cgroup.places)
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

    procs: descriptors, numbered from 10 on. A process that has one thread joins by writing "0" to
    each. unified: the descriptor of the directory of v2, if that is the last of them; otherwise 0.
    """

    procs: tuple[int, ...] = ()
    unified = 0
    directories: tuple[int, ...] = ()  # their descriptors, from which all files are opened
    _maker = 0  # and no file: all that __del__ needs if an interrupt came in __init__

    def __init__(self, limits: CgroupLimits, generation: int) -> None:
        self.pool: Cgroups | None = None
        self.generation = generation
        self.places: list[Place] = []
        self._limits = limits
        self._limited: tuple[CgroupLimits, int] | None = None
        self._closing: list[int] = []
        self._counters: list[tuple[str, int]] = []
        self._names: tuple[str, ...] = ()  # of the counters
        self._peaks: list[int] = []  # the counters that begin() sets back
        self._settings: dict[tuple[int, str], _Setting] = {}
        self._others: list[int] = []  # the other files by which a process or thread can join
        self._counted, self._all = OpenFiles(()), OpenFiles(())  # _all: the settings as well
        self._statuses = FileStatuses(())
        self._owners = self._expected = self._before = b""
        self._left = 0  # bytes of memory, of which it is known that the kernel can take them back
        self._is_reset = True  # False: the peaks may be those of an earlier run
        self._is_suspended = False
        self._maker = os.getpid()  # last of all: see above

    @property
    def paths(self) -> list[str]:
        """Its directories."""
        return [place.path for place in self.places]

    def open(self) -> None:
        """Open the files that each run reads, because opening one takes as long as ten reads."""
        self.places.sort(key=lambda place: place.kind)
        limited = {file for place in self.places for file, _ in self._files(place, self._limits)}
        for path, kind, _ in self.places:
            self.directories += (directory := _above(open_cgroup(path, kind)),)
            joining = ["tasks", "cgroup.procs"] if kind == "v1" else ["cgroup.procs"]
            fd = os.open(joining[0], os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
            self.procs += (_above(fd),)
            self.unified = directory if kind == "v2" else 0
            # An O_PATH descriptor cannot be listed itself; its link in /proc can.
            for name in os.listdir(f"/proc/self/fd/{directory}"):
                if name in COUNTERS:
                    self._open_counter(directory, name)
                if name in _SETTINGS:
                    self._open_setting(directory, name, name in limited)
                if name in joining[1:] or name == "cgroup.threads":
                    fd = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=directory)
                    self._others.append(fd)
        self._names = tuple(name for name, _ in self._counters)
        self._peaks = [fd for name, fd in self._counters if name in PEAKS]
        counters = [(fd, SIZE) for _, fd in self._counters]
        self._counted = OpenFiles(counters)
        self._all = OpenFiles([*((s.fd, s.size) for s in self._settings.values()), *counters])
        self._statuses = FileStatuses((*self.directories, *self.procs, *self._others))
        self._owners = self._statuses.read()
        for place, directory in zip(self.places, self.directories, strict=True):
            for file, text in self._files(place, self._limits):
                if setting := self._settings.get((directory, file)):
                    setting.written = f"{text}\n".encode()
        self._limited = self._limits, 0
        self._expect()

    def _open_counter(self, directory: int, name: str) -> None:
        flags = os.O_CLOEXEC | (os.O_RDWR if name in PEAKS else os.O_RDONLY)
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

    def _open_setting(self, directory: int, name: str, is_limit: bool) -> None:
        flags = os.O_CLOEXEC | (os.O_RDWR if is_limit or name == "pids.max" else os.O_RDONLY)
        setting = _Setting(os.open(name, flags, dir_fd=directory))
        self._settings[directory, name] = setting
        if not setting.remember(whole=name != "memory.oom_control"):
            del self._settings[directory, name]
            os.close(setting.fd)

    def _expect(self) -> None:
        self._expected = b"".join(s.value.ljust(s.size, b"\0") for s in self._settings.values())

    @staticmethod
    def _files(place: Place, limits: CgroupLimits, extra_pids: int = 0) -> list[tuple[str, str]]:
        """The files of the limits, with the value for each."""
        if extra_pids and limits.pids is not None:
            limits = limits._replace(pids=limits.pids + extra_pids)
        return [pair for name in place.names for pair in files_of(limits, name, place.kind)]

    def limit(self, limits: CgroupLimits, extra_pids: int = 0) -> None:
        """Write the limits that are not what they were. Raises OSError if the kernel refuses one.

        limits: other values of the same limits. extra_pids is added to the limit on pids.
        """
        if self._limited == (limits, extra_pids):
            return
        changed = []
        for place, directory in zip(self.places, self.directories, strict=True):
            for file, text in self._files(place, limits, extra_pids):
                setting, value = self._settings[directory, file], f"{text}\n".encode()
                if setting.written != value:
                    changed.append((setting, value))
        if (limits.memory or 0) > (self._limits.memory or 0):
            changed.reverse()  # memory.memsw.limit_in_bytes is never below memory.limit_in_bytes
        self._limited = None
        for setting, value in changed:
            setting.write(value)
        self._limits, self._limited = limits, (limits, extra_pids)
        self._expect()

    def is_as_made(self) -> bool:
        """Return True if no process has removed it or changed it since it was made: its limits, its
        freezer, its owners, the cgroups below it.

        The owners and modes say who may write, and the number of links counts the cgroups below.
        """
        try:
            owners, text = self._statuses.read(), self._all.read()
        except OSError:  # ENODEV: the cgroup was removed
            return False
        size = len(self._expected)
        self._before = text[size:]
        return owners == self._owners and text[:size] == self._expected

    def begin(self, extra_pids: int = 0) -> None:
        """Start the counts of a run. extra_pids is added to the limit on pids."""
        self.limit(self._limits, extra_pids)
        self._before = self._counted.read()
        self._reset_peaks()

    def _reset_peaks(self) -> None:
        for fd in self._peaks:
            try:  # v1; v2 since Linux 6.12: for reads through this descriptor
                os.pwrite(fd, b"0", 0)
            except OSError:
                self._is_reset = False

    def begin_in_slot(self, limits: CgroupLimits) -> bool:
        """Start the counts of the next run of a slot, whose process may be in it. Returns False if
        the earlier runs left something, or another process changed it.
        """
        try:
            if not self.is_as_made():
                return False
            if self._limited != (limits, 0):
                self.limit(limits)
            self._reset_peaks()
            return self._has_room(1)
        except OSError:
            return False

    def counts(self) -> Counts:
        """What happened since begin()."""
        return Counts(self._names, self._before, self._counted.read(), self._is_reset)

    def now(self) -> bytes:
        """The counters as they are, for hits_since()."""
        return self._counted.read()

    def hits_since(self, before: bytes) -> list[str]:
        """The limits that were reached since now() returned this, as Counts.hits() says."""
        return Counts(self._names, before, self._counted.read(), False).hits()

    def report(self) -> dict[str, object]:
        """What happened since begin(), as Counts.report() says."""
        return self.counts().report()

    def _value(self, *names: str) -> int:
        """The number in the first of these counters before the run; 0 if it has none of them."""
        for name in names:
            if name in self._names:
                at = self._names.index(name) * SIZE
                return int(self._before[at : at + 24].rstrip(b"\0"))
        return 0

    def _has_room(self, processes: int) -> bool:
        """Return True if the run has all that its limits allow: no more than so many processes
        count, and the kernel can take back the memory that earlier runs left.
        """
        if self._value("pids.current") > processes:
            return False
        limit = self._limits.memory
        if limit is None:
            return True
        used = self._value("memory.usage_in_bytes", "memory.current")
        if used <= self._left + limit // _MOST_LOST:
            return True
        if used > limit // _MOST_LEFT + _BATCH * (os.cpu_count() or 1):
            return False
        directory = self._find("memory.stat")
        kept = numbers(read("memory.stat", directory).encode()) if directory is not None else {}
        lost: int = sum(
            kept.get(name, 0) for name in ("active_anon", "inactive_anon", "unevictable")
        )
        if lost > limit // _MOST_LOST:
            return False
        self._left = used
        return True

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
                self.unified = 0  # Linux from 6.14 on would kill what is born in it
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
        limits = [s for (_, name), s in self._settings.items() if name == "pids.max"]
        if self._limits.pids is not None and limits:
            self._limited = None
            limits[0].write(b"0\n")
            self._expect()
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
        self._before = self._counted.read()
        return self._has_room(0)

    def leave(self) -> None:
        """Give it up, because SIGKILL does not end a process in it: a later close() removes it."""
        pool, self.pool = self.pool, None
        if pool is not None:
            pool._leased.pop(id(self), None)
        if self._maker == os.getpid():
            _stuck.extend(reversed(self.paths))
        self.places = []
        self.remove()

    def remove(self) -> None:
        """Kill its processes, and remove it. If that fails, a later close() tries again."""
        if self._maker == 0:
            return
        if self._maker == os.getpid():
            try:
                if self.pids():
                    self.kill()
            except OSError:
                pass
            while self.places:
                if not _remove(self.places[-1].path):
                    _stuck.append(self.places[-1].path)
                self.places.pop()
        self.places = []
        files = [fd for _, fd in self._counters] + [s.fd for s in self._settings.values()]
        files += [*self.procs, *self.directories, *self._others]
        # No call, so no interrupt, until all are in _closing: after one __del__ comes here again,
        # and must close no number twice.
        self._counters, self._settings, self._others = [], {}, []
        self.procs = self.directories = ()
        self._closing = files + self._closing
        while self._closing:
            os.close(self._closing.pop())
        self._names, self._peaks = (), []
        self._counted, self._all = OpenFiles(()), OpenFiles(())
        self._statuses, self._owners = FileStatuses(()), b"removed"

    def __del__(self) -> None:
        _insist(self.remove)

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
    """An open file of a cgroup, and its content as long as no process changes it.

    written: what was last written to it, if that was a limit.
    """

    __slots__ = ("fd", "size", "value", "written")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.value = self.written = b""
        self.size = 0

    def remember(self, whole: bool) -> bool:
        """Keep its content, or only the first line of it. Returns False if it cannot be read."""
        try:
            self.value = os.pread(self.fd, 4096, 0)
        except OSError:
            return False
        if not whole:
            self.value = self.value[: self.value.find(b"\n") + 1]
        # Room for the longest value of a limit, and beyond the value at least one byte, which tells
        # of content that was added.
        self.size = max(len(self.value) + 1, _LIMIT_SIZE) if whole else len(self.value)
        return True

    def write(self, value: bytes) -> None:
        os.pwrite(self.fd, value, 0)
        self.value, self.written = os.pread(self.fd, self.size - 1, 0), value


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
        versions[name] = cgroup.places[0].kind
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
