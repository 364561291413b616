# SPDX-License-Identifier: Apache-2.0
"""A run ends in time, with all of its processes, and the Result says how."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import host_mounts, many, needs_root, require
from lib.waiting import late, processes, wait_until

from sandboxlib import CommandFailed, Mount, Policy, Result, Sandbox
from sandboxlib._core import native
from sandboxlib._runs import run as _process
from sandboxlib._runs import slots as _slots
from sandboxlib._runs.plan import plan_for

PYTHON = os.path.realpath(sys.executable)
REAPED: dict[str, dict[str, Any]] = {"slot": {}, "fresh": {"fresh": True}}
ISOLATED: dict[str, dict[str, Any]] = {
    **REAPED,
    "init=False": {"init": False},
    "init=False, fresh": {"init": False, "fresh": True},
}
MODES = {**ISOLATED, "processes=undefined": {"processes": "undefined"}}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
isolated = pytest.mark.parametrize("mode", ISOLATED.values(), ids=ISOLATED.keys())
reaped = pytest.mark.parametrize("mode", REAPED.values(), ids=REAPED.keys())
_marks = iter(range(10**9))


class Place:
    """A Sandbox in a mode, and how it is run there."""

    def __init__(self, root: Path | str, mode: dict[str, Any], **words: Any) -> None:
        self.fresh = mode.get("fresh", False)
        own = {name: value for name, value in mode.items() if name != "fresh"}
        self.box = open_box(root, **{"extra_mounts": [Mount.dev()], **own, **words})

    def sh(self, script: str, *argv: str, **words: Any) -> Result:
        return self.run(["sh", "-c", script, *argv], **words)

    def run(self, argv: list[str], **words: Any) -> Result:
        return self.box.run(argv, fresh=self.fresh, **words)


@pytest.fixture
def place(shared_rootfs: Path, mode: dict[str, Any]) -> Iterator[Place]:
    made = Place(shared_rootfs, mode)
    with made.box:
        yield made


def new_mark() -> str:
    """An argument of sleep(1) that no other process has."""
    return f"77{os.getpid()}{next(_marks):04d}"


# ---- the time is over --------------------------------------------------------------------------


@modes
def test_sigterm_reaches_the_tree_and_its_last_words_are_kept(place: Place) -> None:
    script = """
    (trap 'echo child; exit' TERM; echo ready; while :; do usleep 10000; done) &
    sh -c "trap 'echo grandchild; exit' TERM; echo ready; while :; do usleep 10000; done" &
    trap 'wait; echo parent; exit 7' TERM
    echo ready; while :; do usleep 10000; done
    """
    result = late(
        lambda timeout: place.sh(script, timeout=2 * timeout, grace=30),
        lambda result: (result.out or b"").count(b"ready") == 3,
    )
    assert result.exit == 7, result
    assert result.out is not None
    words = result.out.decode().split()
    assert sorted(words[:5]) == ["child", "grandchild", "ready", "ready", "ready"]
    assert words[5:] == ["parent"]


@reaped
def test_sigterm_reaches_sessions_of_their_own(place: Place) -> None:
    script = """
    setsid sh -c "trap 'echo heard > /tmp/heard; exit' TERM; > /tmp/up; while :; do usleep 10000
    done" &
    while [ ! -e /tmp/up ]; do usleep 10000; done
    trap 'while [ ! -s /tmp/heard ]; do usleep 10000; done; cat /tmp/heard; exit 7' TERM
    echo up; while :; do usleep 10000; done
    """
    mounts = [Mount.dev(), Mount.tmpfs("/tmp")]
    words: dict[str, Any] = {"grace": 30, "fresh": place.fresh}
    with Sandbox(place.box.root, extra_mounts=mounts) as box:
        result = late(
            lambda timeout: box.run(["sh", "-c", script], timeout=timeout, **words),
            lambda result: result.out,
        )
    assert (result.exit, result.out) == (7, b"up\nheard\n")


@modes
def test_what_ignores_sigterm_is_killed_when_grace_is_over(place: Place) -> None:
    mark = new_mark()
    script = "trap '' TERM; echo up; sleep $0 & sleep $0 & wait; wait"
    result = late(
        lambda timeout: place.sh(script, mark, timeout=timeout, grace=0.6),
        lambda result: result.out,
    )
    assert result == (-9, b"up\n", b"")
    assert 1.05 < result.wall < 60
    assert wait_until(lambda: not processes(mark))


@modes
def test_without_grace_nothing_is_heard_of_the_end(place: Place) -> None:
    script = "trap 'echo heard; exit' TERM; echo up; while :; do usleep 10000; done"
    result = late(lambda timeout: place.sh(script, timeout=timeout), lambda result: result.out)
    assert result == (-9, b"up\n", b"")


@modes
@pytest.mark.parametrize("exit", [0, 3])
def test_check_tells_of_a_deadline_whatever_the_exit_status(place: Place, exit: int) -> None:
    script = f"trap 'exit {exit}' TERM; echo up; while :; do usleep 10000; done"
    result = late(
        lambda timeout: place.sh(script, timeout=timeout, grace=30), lambda result: result.out
    )
    assert (result.exit, result.out) == (exit, b"up\n")
    with pytest.raises(CommandFailed, match=f"status {exit}, when its time was over") as caught:
        result.check()
    assert caught.value.result is result
    (found,) = place.box.map(
        [["sh", "-c", script]], timeout=0.5, grace=30, on_failure="continue", fresh=place.fresh
    )
    assert found.timed_out
    with pytest.raises(CommandFailed, match="when its time was over"):
        list(place.box.map([["sh", "-c", script]], timeout=0.5, grace=30, fresh=place.fresh))


@modes
@pytest.mark.parametrize("timeout", [0, 0.001])
def test_no_timeout_is_too_short(place: Place, timeout: float) -> None:
    for _ in range(10):
        result = place.run(["sleep", "60"], timeout=timeout)
        assert (result, result.timed_out) == ((-9, b"", b""), True)
        assert place.run(["echo", "next"]).out == b"next\n"


@pytest.mark.parametrize(
    "mode", [*REAPED.values(), MODES["processes=undefined"]], ids=[*REAPED, "processes=undefined"]
)
@pytest.mark.parametrize("timeout", [0, 0.0003, 0.001])
def test_a_sigterm_before_the_exec_is_not_lost(place: Place, timeout: float) -> None:
    for _ in range(20):
        start = time.monotonic()
        result = place.run(["sleep", "60"], timeout=timeout, grace=40)
        assert (result.exit, result.timed_out) == (-15, True)
        assert time.monotonic() - start < 20
        assert place.run(["echo", "next"]) == (0, b"next\n", b"")


@modes
def test_the_end_of_one_run_never_hits_the_next(place: Place) -> None:
    """SANDBOXLIB_SOAK says how many runs; each ends about when its time is over."""
    chance, ends = random.Random(7), set()
    place.run(["true"])
    spent = sorted(place.run(["true"]).wall for _ in range(9))[4]
    for _ in range(int(os.environ.get("SANDBOXLIB_SOAK", many(80, 300)))):
        result = place.run(["true"], timeout=spent * chance.uniform(0.4, 1.6), grace=0.05)
        spent *= 1.1 if result.timed_out else 0.9  # it follows the machine
        assert result.exit in (0, -15, -9), result
        assert result.exit == 0 or result.timed_out
        ends.add(result.timed_out)
        assert place.run(["echo", "next"]) == (0, b"next\n", b"")
    assert ends == {True, False}


# ---- how it ended ------------------------------------------------------------------------------


@reaped
def test_a_command_cannot_harm_its_reaper(place: Place) -> None:
    for signum in (9, 19, 15, 6, 11, 17, 34, 64):
        assert place.sh(f"kill -{signum} 1; usleep 1000; exit 5", timeout=60).exit == 5, signum
    for number in (6, 15, 9, 1, 34):
        assert place.sh(f"kill -{number} $$", timeout=60).exit == -number
    for number in (9, 15):
        assert place.sh(f"kill -{number} -1; exit 4", timeout=60).exit in (4, -number)
    assert place.run(["true"]).exit == 0


FORGE = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None)
for number in range(int(sys.argv[2])):
    libc.sigqueue(1, 34, ctypes.c_void_p(number << 7 | int(sys.argv[1])))
    libc.sigqueue(1, 10, ctypes.c_void_p(int(sys.argv[1])))
time.sleep(0.5)
print("alive")
"""


@needs_root
@isolated
@pytest.mark.parametrize("signum", [15, 9, 19])
def test_no_signal_to_the_reaper_is_an_order(mode: dict[str, Any], signum: int) -> None:
    require(not PYTHON.startswith("/tmp/"), "Python is in /tmp")
    words: dict[str, Any] = {"filesystem_writable_paths": "none"}
    other = Place("/", mode, **words)
    with other.box:
        beside = threading.Thread(target=lambda: found.append(other.sh("sleep 1; echo beside")))
        found: list[Result] = []
        beside.start()
        for _ in range(3):
            argv = [PYTHON, "-I", "-S", "-c", FORGE, str(signum), "300"]
            assert other.run(argv, timeout=60, cwd="/") == (0, b"alive\n", b"")
            assert other.sh("echo next", timeout=60, cwd="/") == (0, b"next\n", b"")
            if signum == signal.SIGSTOP:
                break
        beside.join()
        assert [r.out for r in found] == [b"beside\n"]


def test_a_run_long_after_another_waits_in_the_call_that_starts_it(
    shared_rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of the run before, whose process group got SIGKILL, says when that was."""
    place = Place(shared_rootfs, MODES["processes=undefined"])
    place.run(["true"])
    time.sleep(_process.LAST + 0.1)
    core = {name: getattr(_process.lib, name) for name in dir(_process.lib)}
    waits: list[int] = []

    def spawn(where: Any, job: Any, *rest: Any) -> int:
        waits.append(job.pump_ns)
        return int(core["sbx_spawn"](where, job, *rest))

    monkeypatch.setattr(_process, "lib", SimpleNamespace(**{**core, "sbx_spawn": spawn}))
    assert place.sh("echo x").out == b"x\n"
    assert waits == [_process.LONGEST_WAIT]


def reaper_of(place: Place) -> int:
    """The pid of the resident of an idle slot, or of the reaper of the only run."""
    slots = plan_for(place.box).slots
    if slots and not place.fresh:
        return native.pid_of(slots._idle[-1].struct.pidfd)
    found = []
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            for pid in Path(f"/proc/self/task/{task}/children").read_text().split():
                if "sandboxlib-init" in os.readlink(f"/proc/{pid}/exe"):
                    found.append(int(pid))
    return found[0] if found else 0


@needs_root
@reaped
def test_a_reaper_that_is_traced_does_its_work(
    place: Place, mode: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(shutil.which("strace"), "there is no strace")
    monkeypatch.setattr(_slots, "MOST_SPARE", 0)
    out = str(tmp_path / "trace")
    results: list[Result] = []
    script = "cat; (true &); (true &); kill -6 $$"
    reader, writer = os.pipe()
    if not place.fresh:
        place.run(["true"])
        traced = reaper_of(place)
    run = threading.Thread(target=lambda: results.append(place.sh(script, stdin=reader)))
    if place.fresh:
        run.start()
        assert wait_until(lambda: reaper_of(place))
        traced = reaper_of(place)
    tracer = subprocess.Popen(["strace", "-f", "-o", out, "-p", str(traced)], stderr=-3)
    try:
        assert wait_until(lambda: "TracerPid:\t0" not in Path(f"/proc/{traced}/status").read_text())
        if not place.fresh:
            run.start()
        time.sleep(0.3)
        os.write(writer, b"words")
        os.close(writer)
        run.join(60)
        assert results == [(-6, b"words", b"")]
        for _ in range(3):
            assert place.run(["sleep", "60"], timeout=0.3, grace=20).exit == -15
            assert place.run(["sleep", "60"], timeout=0.3).exit == -9
            assert place.run(["echo", "next"]).out == b"next\n"
    finally:
        tracer.terminate()
        tracer.wait()
        os.close(reader)


@reaped
def test_a_flood_of_orphans_neither_holds_nor_hides_the_end(place: Place) -> None:
    script = f"i=0; while [ $i -lt {many(1000, 5000)} ]; do (: &); i=$((i+1)); done; exit 3"
    assert place.sh(script, timeout=100).exit == 3


@modes
@pytest.mark.sample(1)
def test_a_tree_of_thousands_of_processes_ends(place: Place) -> None:
    count = many(1000, 5000)
    free = int(Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0])
    require(free > 600 * count, f"there are no {600 * count} KB for {count} processes")
    mark = new_mark()
    script = f"i=0; while [ $i -lt {count} ]; do sleep $0 & i=$((i+1)); done; echo up; exit 3"
    seen: list[float] = []
    result = place.sh(script, mark, stdout=lambda _: seen.append(time.monotonic()), stderr=None)
    took = time.monotonic() - seen[0]
    assert result.exit == 3
    if place.box.processes == "undefined":  # all are killed, and the first one waited for
        assert wait_until(lambda: not processes(mark), 60)
    assert processes(mark) == []
    assert took < 60


@pytest.mark.parametrize("limit", [256, 1024])
def test_passed_descriptors_may_be_the_highest_of_all(shared_rootfs: Path, limit: int) -> None:
    """Those on the way are moved aside: not above them all, where the limit is."""
    script = """
import os, resource, sys
from sandboxlib import Mount, Sandbox
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
fds = []
for number in (3, 4, 6, 7, 8, limit - 1):
    fd = os.memfd_create("x")
    os.write(fd, b"%d" % number)
    os.lseek(fd, 0, 0)
    fds.append((fd, number))
high = [(os.dup(fd), number) for fd, number in fds]
import fcntl
high = [(fcntl.fcntl(fd, fcntl.F_DUPFD, 100), number) for fd, number in high]
os.closerange(3, 100)
for fd, number in high:
    os.dup2(fd, number)
box = Sandbox(sys.argv[1], extra_mounts=[Mount.dev()])
passed = [number for _, number in high]
read = "; ".join(f"cat /proc/self/fd/{n}; echo" for n in passed)
result = box.run(["sh", "-c", read], pass_fds=passed)
assert result.out.decode().split() == [str(n) for n in passed], result
"""
    argv = [sys.executable, "-c", script, str(shared_rootfs), str(limit)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@needs_root
@modes
def test_cgroups_are_joined_whatever_the_numbers_of_their_descriptors(
    shared_rootfs: Path, mode: dict[str, Any]
) -> None:
    # 3 and 4 are the reaper's, 5 and up what it passes on. A file shows as much as a cgroup.
    script = """
import json, os, sys
from sandboxlib import Sandbox
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
from sandboxlib._cgroups.counts import Counts
from sandboxlib._runs import slots
from sandboxlib._runs.plan import plan_for
slots.MOST_SPARE = 0
mode = json.loads(sys.argv[2])
fresh = mode.pop("fresh", False)
box = open_box(sys.argv[1], **mode)
box.run(["true"], fresh=fresh)
box.close()
os.closerange(3, 64)
files = [os.memfd_create("cgroup.procs") for _ in range(4)]
assert files == [3, 4, 5, 6]

class Cgroup:
    procs = files
    unified = 0
    begin = lambda *_: None
    begin_in_slot = lambda *_: True
    counts = lambda self: Counts((), (), (), True)
    take = lambda self, limits: self
    release = lambda self: None

plan = plan_for(box)
plan.cgroups, plan.is_limited = Cgroup(), True
for more in ({}, {"pass_fds": [3, 5, 6]}):
    slots.close_all()  # a slot's next process joins before its order comes
    plan.slots = None
    for fd in files:
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, 0)
    result = box.run(["echo", "x"], fresh=fresh, **more)
    assert result == (0, b"x\\n", b""), result
    for fd in files:
        assert set(os.pread(fd, 9, 0)) == {ord("0")}, fd
"""
    argv = [sys.executable, "-c", script, str(shared_rootfs), json.dumps(mode)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@needs_root
@reaped
def test_a_reaper_without_cap_kill_ends_what_has_other_ids(
    shared_rootfs: Path, mode: dict[str, Any]
) -> None:
    mark = new_mark()
    place = Place(shared_rootfs, mode, user=1000, policy=Policy(capabilities=["setuid", "setgid"]))
    with place.box:
        start = time.monotonic()
        result = place.sh("sleep $0 & exit 4", mark, stdout=None, stderr=None)
        assert (result.exit, processes(mark)) == (4, [])
        script = "trap 'echo heard; exit 3' TERM; while :; do usleep 10000; done"
        heard = late(
            lambda timeout: place.sh(script, timeout=timeout, grace=30), lambda result: result.out
        )
        assert (heard.exit, heard.out) == (3, b"heard\n")
        assert time.monotonic() - start < 60
        assert place.sh("grep CapEff /proc/self/status").out == b"CapEff:\t00000000000000c0\n"
    policy = Policy(capabilities=["setuid", "setgid"], no_new_privs=False)
    loose = Place(shared_rootfs, mode, user=1000, policy=policy)
    with loose.box:
        start = time.monotonic()
        result = loose.sh("sleep $0 & exit 4", mark, stdout=None, stderr=None)
        assert (result.exit, processes(mark)) == (4, [])
        assert time.monotonic() - start < 20


def state_of(pid: str) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# ---- a set-up that hangs -----------------------------------------------------------------------

DEAD = """
import ctypes, faulthandler, json, os, sys, time
faulthandler.dump_traceback_later(60, exit=True)
from sandboxlib import Mount, Sandbox, SetupError
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
root, mode, dead = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
libc = ctypes.CDLL(None, use_errno=True)
fresh = mode.pop("fresh", False)

def mount():
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    words = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
    assert libc.mount(b"dead", dead.encode(), b"fuse.dead", 6, words) == 0, ctypes.get_errno()
    return fd

def attempt(box, argv=("echo", "x"), timeout=0.5, **more):
    start = time.monotonic()
    try:
        return box.run(list(argv), timeout=timeout, fresh=fresh, **more)
    except SetupError as error:
        assert error.errno == 110 and "does not answer" in error.hint, error
        return error.step, error.filename
    finally:
        assert time.monotonic() - start < 1 + float(os.environ.get("SLACK", "20"))

def bound(source, **words):
    return open_box(root, extra_mounts=[Mount.bind(source, "/mnt/x")], **mode)
"""


@needs_root
@modes
def test_a_set_up_that_hangs_ends_in_time(
    shared_rootfs: Path, tmp_path: Path, mode: dict[str, Any]
) -> None:
    # Of the file systems that do not answer FUSE is one that can be had everywhere; NFS is not.
    script = """
used = bound(dead)  # before it hangs, and there may be a slot
assert used.run(["echo", "x"], fresh=fresh).out == b"x\\n"
fd = mount()
for _ in range(1 if fresh else 2):
    # The mounting itself needs no answer.
    late = attempt(used, timeout=20)
    assert late == (0, b"x\\n", b""), late
    assert attempt(bound(dead + "/x")) == ("source", dead + "/x")
    step, path = attempt(open_box(dead, **mode))
    assert step in ("target", "pivot") and path in (dead, "/dev", "/proc", "/sys"), path
    assert attempt(open_box(dead + "/x", **mode)) == ("root", dead + "/x")
    whole = open_box("/", **mode)
    late = attempt(whole, cwd=dead)
    assert late in (("cwd", dead), (-9, b"", b"")), late  # (a slot is set up before its run)
    late = attempt(whole, [dead + "/program"])
    reaped = mode.get("processes") != "undefined" and mode.get("init", True)
    if reaped or not fresh and "init" in mode:
        assert late == (-9, b"", b""), late
    else:
        assert late == ("exec", dead + "/program"), late
    assert whole.run(["echo", "x"], timeout=30, fresh=fresh).out == b"x\\n"
bare = open_box(dead, mounts="undefined", processes="undefined", ipc="undefined")
assert attempt(bare)[0] in ("root", "chroot", "exec"), attempt(bare)
from sandboxlib._runs import slots as _slots
_slots.close_all()
left = [open(f"/proc/{pid}/stat").read() for pid in os.listdir("/proc") if pid.isdigit()]
assert len(left) == 1, left
faulthandler.cancel_dump_traceback_later()  # which is a thread, and ends soon
end = time.monotonic() + 5
while len(os.listdir("/proc/self/task")) > 1:
    assert time.monotonic() < end
os.close(fd)
"""
    require(os.path.exists("/dev/fuse"), "there is no FUSE")
    require(shutil.which("unshare"), "there is no unshare")
    dead = tmp_path / "dead"
    dead.mkdir()
    argv = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    argv += [sys.executable, "-c", DEAD + script, str(shared_rootfs), json.dumps(mode), str(dead)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    assert wait_until(lambda: not stuck(str(dead)))


def stuck(word: str) -> list[str]:
    """Processes in state D of which something is about this."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if state_of(pid) == "D" and word in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
    return found


# ---- storms ------------------------------------------------------------------------------------

TREE = """
trap '' TERM
(sleep $0 & sleep $0) &
(trap - TERM; sleep $0; sleep $0) &
( (sleep $0 & (sleep $0 &) ) & )
[ $1 = 1 ] && setsid sh -c 'setsid sleep $0 & sleep $0' $0 &
sh -c 'sh -c "sleep $0; sleep $0" $0 & sleep $0' $0 &
[ $2 = 1 ] && exit 3
sleep $0
"""


def state() -> dict[str, Any]:
    gc.collect()
    _slots.close_all()
    fds = [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
    return {
        "descriptors": sorted(fds),
        "threads": len(os.listdir("/proc/self/task")),
        "mounts": host_mounts(),
        "children": Path(f"/proc/self/task/{os.getpid()}/children").read_text(),
    }


def resident_memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.timeout(600)
@modes
def test_no_process_survives_a_kill_storm(place: Place, mode: dict[str, Any]) -> None:
    """SANDBOXLIB_SOAK says how many runs."""
    alone = mode.get("processes", "isolated") == "isolated"
    count = int(os.environ.get("SANDBOXLIB_SOAK", many(60, 300))) // 4
    errors: list[str] = []
    patience = 0.1 if "SANDBOXLIB_SOAK" in os.environ else 5.0  # seconds, on a busy machine

    def work(seed: int, runs: int) -> None:
        chance = random.Random(seed)
        for _ in range(runs):
            mark = new_mark()
            argv = mark, str(int(alone)), str(int(chance.random() < 0.2))
            timeout = chance.random() ** 2 * 0.06
            grace = chance.choice([0, 0, 0.002, 0.02])
            result = place.sh(TREE, *argv, timeout=timeout, grace=grace, stdout=None, stderr=None)
            end = time.monotonic()
            left = processes(mark)
            while left and not alone and time.monotonic() < end + patience:
                left = processes(mark)
            if left or not (result.timed_out or result.exit == 3):
                errors.append(f"{result} {argv} left {left}")

    def storm(runs: int) -> None:
        threads = [threading.Thread(target=work, args=(i, runs)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ids = {str(thread.native_id) for thread in threads}  # join() comes a little before that
        assert wait_until(lambda: not ids & set(os.listdir("/proc/self/task")))
        assert not errors, (len(errors), errors[:5])

    storm(5)
    before, memory = state(), resident_memory()
    storm(count)
    assert state() == before
    if "SANDBOXLIB_SANITIZED" not in os.environ:  # a sanitizer keeps what is freed
        assert resident_memory() - memory < 8 << 20
