# SPDX-License-Identifier: Apache-2.0
"""Cgroups: each limit is hit, told and survived; nothing is left of any.

Real cgroups, in whatever version the machine has each controller. What a machine with v1 cannot
show (memory, pids, cpu and io in v2) is shown in a directory that stands in for cgroupfs: only
which files are written and read, and how.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
from lib.machine import require
from lib.waiting import wait_until

from sandboxlib import UnsupportedError
from sandboxlib._cgroups import cgroups, hierarchies
from sandboxlib._cgroups.cgroups import Cgroup, CgroupLimits, Cgroups
from sandboxlib._host import machine
from sandboxlib.errors import SpecError

MIB = 1 << 20
JOIN = "import os, sys\nfor fd in sys.argv[2].split(): os.write(int(fd), b'0')\nexec(sys.argv[1])"
CHAIN = "import os\nprint(flush=True)\nwhile True:\n  if os.fork(): os._exit(0)"
EAT = "x = []\nwhile True: x.append(b'x' * 1000000)"

controllers = cache(cgroups.controllers)


def ours() -> set[str]:
    """Cgroups of this process, and of processes that are no more."""
    found = set()
    for point in set(hierarchies.mount_points().values()):
        for path, _, _ in os.walk(point):
            words = os.path.basename(path).split("-")
            if words[0] == "sandboxlib":
                alive = os.path.exists(f"/proc/{words[1]}")
                if not alive or int(words[1]) == os.getpid():
                    found.add(path)
    return found


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    gc.collect()
    before = ours()
    yield
    gc.collect()
    assert wait_until(lambda: ours() <= before), ours() - before


@pytest.fixture
def pools() -> Iterator[list[Cgroups]]:
    made: list[Cgroups] = []
    yield made
    for pool in made:
        pool.end()


def need(present: object, reason: str) -> None:
    """Skip if the machine or the caller lacks the limits; an ordinary user lacks them on most."""
    if not present and os.geteuid() != 0:
        pytest.skip(f"an ordinary user: {reason}")
    require(present, reason)


def test_an_interrupt_of_the_removal_closes_no_descriptor_twice(
    pools: list[Cgroups], monkeypatch: pytest.MonkeyPatch
) -> None:
    need(controllers().keys() >= {"pids"}, "the pids controller")
    pools.append(Cgroups(CgroupLimits(pids=9)))
    cgroup = pools[0].take()
    closed: list[int] = []

    def interrupted(fd: int, close: Any = os.close) -> None:
        close(fd)
        if fd in files:
            closed.append(fd)
            if len(closed) == 3:
                raise KeyboardInterrupt

    files = {*cgroup.procs, *cgroup.directories, *(fd for _, fd in cgroup._counters)}
    monkeypatch.setattr(os, "close", interrupted)
    with suppress(KeyboardInterrupt):
        cgroup.remove()
    cgroup.remove()
    assert sorted(closed) == sorted(files)


def test_a_cgroup_whose_making_was_interrupted_at_once_ends_quietly() -> None:
    Cgroup.__new__(Cgroup).remove()


def make(pools: list[Cgroups], **words: Any) -> Cgroups:
    for name in ("memory", "swap", "pids", "hold"):
        need(not words.get(name) or name in controllers(), f"no cgroups for {name}")
    need(not {"cpu_weight", "cpu_quota"} & set(words) or "cpu" in controllers(), "no cpu cgroups")
    pools.append(Cgroups(CgroupLimits(**words)))
    return pools[-1]


@contextmanager
def start(cgroup: Cgroup, script: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python that has joined, until the end of the block."""
    fds, weak = cgroup.procs, ref(cgroup)
    del cgroup
    argv = [sys.executable, "-I", "-S", "-c", JOIN, script, " ".join(map(str, fds))]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(argv, pass_fds=fds, stdout=pipe, stderr=null) as process:
        try:
            yield process
        finally:
            process.kill()
            if (again := weak()) is not None:
                again.resume()


def finish(cgroup: Cgroup, script: str) -> int:
    with start(cgroup, script) as process:
        process.communicate(timeout=60)
    return process.returncode


def is_running(pid: int) -> bool:
    """Orphans that are dead wait for init to reap them."""
    try:
        state = hierarchies.read(f"/proc/{pid}/stat").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def wait_for_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if these controllers were mounted nowhere; "" is v2."""
    real = hierarchies.own_directories
    monkeypatch.setattr(
        hierarchies,
        "own_directories",
        lambda: {name: path for name, path in real().items() if name not in names},
    )


# ---- limits, hit and told -------------------------------------------------------------------


@pytest.mark.parametrize("swap", [None, 0])
def test_memory(pools: list[Cgroups], swap: int | None) -> None:
    cgroup = make(pools, memory=48 * MIB, swap=swap).take()
    cgroup.begin()
    assert finish(cgroup, EAT) == -9
    told: Any = cgroup.report()
    assert told["oom_kills"] >= 1
    assert 40 * MIB < told["memory_peak"] <= 48 * MIB
    cgroup.release()


def test_memory_and_swap_are_written_for_both(pools: list[Cgroups]) -> None:
    pool = make(pools, memory=48 * MIB, swap=16 * MIB)
    need(controllers()["memory"] == "v1", "memory is in v2")
    cgroup = pool.take()
    assert hierarchies.read(f"{cgroup.paths[0]}/memory.limit_in_bytes").strip() == str(48 * MIB)
    path = f"{cgroup.paths[0]}/memory.memsw.limit_in_bytes"
    assert hierarchies.read(path).strip() == str(64 * MIB)


def test_enough_memory_is_enough(pools: list[Cgroups]) -> None:
    cgroup = make(pools, memory=200 * MIB).take()
    cgroup.begin()
    assert finish(cgroup, "x = b'x' * 50000000") == 0
    told: Any = cgroup.report()
    assert told["oom_kills"] == 0
    assert 50000000 < told["memory_peak"] < 100 * MIB
    cgroup.release()


def test_pids_stop_a_fork_bomb(pools: list[Cgroups]) -> None:
    cgroup = make(pools, pids=20).take()
    cgroup.begin(extra_pids=1)
    bomb = "import os, time\nfor _ in range(100):\n  try: os.fork()\n  except OSError: pass\n"
    with start(cgroup, f"{bomb}print(flush=True); time.sleep(100)") as process:
        wait_for_line(process)
        told: Any = cgroup.report()
        assert told["pids_hits"] >= 1
        assert told["pids_peak"] == 21
        cgroup.kill()
        assert cgroup.pids() == []
    cgroup.release()


def test_a_quota_throttles(pools: list[Cgroups]) -> None:
    cgroup = make(pools, cpu_quota=0.05, hold=True).take()
    cgroup.begin()
    # It has to be less than others leave, however many they are.
    assert finish(cgroup, "import time\nwhile time.process_time() < 0.06: pass") == 0
    told: Any = cgroup.report()
    assert told["throttled"] >= 3
    assert 0.01 < told["cpu"] < 0.5
    cgroup.release()


def test_weights_share_a_cpu(pools: list[Cgroups]) -> None:
    heavy = make(pools, cpu_weight=10000, hold=True).take()
    light = make(pools, cpu_weight=1, hold=True).take()
    cpu = min(os.sched_getaffinity(0))
    script = f"import os\nos.sched_setaffinity(0, [{cpu}])\nprint(flush=True)\nwhile True: pass"
    with start(heavy, script) as one, start(light, script) as two:
        wait_for_line(one), wait_for_line(two)
        heavy.begin(), light.begin()
        assert wait_until(lambda: heavy.report()["cpu"] > 0.5, 60)  # type: ignore[operator]
        most, least = heavy.report()["cpu"], light.report()["cpu"]
        heavy.kill(), light.kill()
    assert isinstance(most, float)
    assert isinstance(least, float)
    assert most > 5 * least
    heavy.release(), light.release()


def test_quotas_below_ten_milliseconds_of_a_period() -> None:
    files = hierarchies.files_of
    assert files(CgroupLimits(cpu_quota=1.5), "cpu", "v2") == [("cpu.max", "150000 100000")]
    assert files(CgroupLimits(cpu_quota=0.002), "cpu", "v2") == [("cpu.max", "2000 1000000")]
    low, high = ("cpu.shares", "10"), ("cpu.shares", "102400")
    assert files(CgroupLimits(cpu_weight=1), "cpu", "v1") == [low]
    assert files(CgroupLimits(cpu_weight=10000), "cpu", "v1") == [high]


def test_io_weights_take_a_device_that_keeps_to_them(pools: list[Cgroups]) -> None:
    if "io" in controllers():
        cgroup = make(pools, io_weight=200).take()
        names = [f"{path}/{name}" for path in cgroup.paths for name in os.listdir(path)]
        (path,) = (name for name in names if name.endswith(("bfq.weight", "io.weight")))
        assert "109" in hierarchies.read(path) or "200" in hierarchies.read(path)
    else:
        with pytest.raises(UnsupportedError, match=r"io.*(bfq|hand|delegate)"):
            Cgroups(CgroupLimits(io_weight=200)).take()


def test_swap_needs_memory() -> None:
    with pytest.raises(SpecError, match="memory"):
        Cgroups(CgroupLimits(swap=0))


def test_limits_are_a_plain_value() -> None:
    assert hash(CgroupLimits(pids=5)) == hash(CgroupLimits(pids=5))
    assert CgroupLimits() == (None,) * 7 + (False,)


# ---- every process -------------------------------------------------------------------------


DAEMONS = """
import os, signal, time
for sig in range(1, 32):
    if sig not in (9, 19): signal.signal(sig, signal.SIG_IGN)
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        if os.fork(): os._exit(0)
        time.sleep(1000)
while os.wait(): pass
"""


def test_kill_finds_daemons(pools: list[Cgroups]) -> None:
    cgroup = make(pools, hold=True).take()
    with start(cgroup, DAEMONS):
        assert wait_until(lambda: len(cgroup.pids()) == 20)
        found = cgroup.pids()
        cgroup.kill()
        assert cgroup.pids() == []
        assert wait_until(lambda: not any(map(is_running, found)))
    cgroup.release()


@pytest.mark.parametrize(
    ("words", "hidden"),
    [
        ({"hold": True}, ()),
        ({"hold": True}, ("",)),  # the freezer of v1
        ({"memory": 200 * MIB}, ()),
        ({"memory": 200 * MIB}, ("",)),
        ({"pids": 500}, ("", "freezer")),
    ],
)
def test_kill_outruns_what_forks_and_exits(
    pools: list[Cgroups], monkeypatch: pytest.MonkeyPatch, words: Any, hidden: Any
) -> None:
    pool = make(pools, **words)
    if hidden:
        need({"freezer", "pids"} <= set(hierarchies.own_directories()), "no cgroups of v1")
        hide(monkeypatch, *hidden)
    cgroup = pool.take()
    kill, states = signal.pidfd_send_signal, []

    def look_and_kill(pidfd: int, sig: int) -> None:
        names = (
            f"{path}/{name}" for path in cgroup.paths for name in ("freezer.state", "pids.max")
        )
        states.append({hierarchies.read(name).strip() for name in names if os.path.exists(name)})
        kill(pidfd, sig)

    monkeypatch.setattr(signal, "pidfd_send_signal", look_and_kill)
    for _ in range(3):
        cgroup.begin()
        with start(cgroup, f"import os\nfor _ in range(4): os.fork()\n{CHAIN}") as process:
            wait_for_line(process)
            cgroup.kill()
            assert cgroup.pids() == []
    cgroup.release()
    if hidden:
        assert states
        assert all(state & {"FROZEN", "0"} for state in states)  # none could fork meanwhile


@pytest.mark.parametrize("hidden", [(), ("",)])
def test_suspended_processes_do_nothing(
    pools: list[Cgroups], monkeypatch: pytest.MonkeyPatch, hidden: tuple[str, ...]
) -> None:
    pool = make(pools, hold=True)
    if hidden:
        need("freezer" in hierarchies.own_directories(), "no freezer of v1")
        hide(monkeypatch, *hidden)
    cgroup = pool.take()
    with start(cgroup, "import time\nwhile True: print(flush=True); time.sleep(0.001)") as process:
        assert process.stdout is not None
        wait_for_line(process)
        fd = process.stdout.fileno()
        assert cgroup.suspend()
        os.set_blocking(fd, False)
        with suppress(BlockingIOError):
            while os.read(fd, 65536):
                pass
        time.sleep(0.1)
        with pytest.raises(BlockingIOError):
            os.read(fd, 1)
        assert cgroup.resume()
        os.set_blocking(fd, True)
        assert os.read(fd, 1)
        assert cgroup.suspend()
        cgroup.release()  # kills it as it stands
        process.wait(timeout=10)
    assert pool.take() is cgroup
    assert finish(cgroup, "") == 0  # and the next is not suspended
    assert cgroup.suspend()
    cgroup.release()
    assert pool.take() is cgroup
    assert finish(cgroup, "") == 0


def test_without_v2_and_freezer_nothing_is_suspended(
    pools: list[Cgroups], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make(pools, pids=10)
    need("pids" in hierarchies.own_directories(), "no pids of v1")
    hide(monkeypatch, "", "freezer")
    cgroup = pool.take()
    assert not cgroup.suspend()
    assert not cgroup.resume()


# ---- recycling -----------------------------------------------------------------------------


def test_the_next_run_finds_it_like_new(pools: list[Cgroups]) -> None:
    pool = make(pools, memory=48 * MIB, pids=20, cpu_quota=0.5, hold=True)
    cgroup = pool.take()
    paths = list(cgroup.paths)
    cgroup.begin()
    assert finish(cgroup, EAT) == -9
    assert cgroup.report()["oom_kills"]
    cgroup.release()
    again = pool.take()
    assert again.paths == paths
    again.begin()
    assert finish(again, "") == 0
    told: Any = again.report()
    assert (told["oom_kills"], told["pids_hits"]) == (0, 0)
    assert told["memory_peak"] is None or told["memory_peak"] < 24 * MIB
    assert 0 < told["cpu"] < 10
    assert set(told["pressure"] or {"cpu": 0}) <= {"cpu", "memory", "io"}
    again.release()


def test_the_limit_on_pids_is_that_of_the_run(pools: list[Cgroups]) -> None:
    pool = make(pools, pids=20)
    cgroup = pool.take()
    for extra in (1, 0, 5):
        cgroup.begin(extra)
        (path,) = (f"{path}/pids.max" for path in cgroup.paths if "pids.max" in os.listdir(path))
        assert int(hierarchies.read(path)) == 20 + extra
        cgroup.kill()


def test_two_runs_have_two(pools: list[Cgroups]) -> None:
    pool = make(pools, pids=20)
    one, two = pool.take(), pool.take()
    assert set(one.procs).isdisjoint(two.procs)
    assert set(one.paths).isdisjoint(two.paths)
    assert len(one.procs) <= 4
    assert not any(os.get_inheritable(fd) for fd in one.procs)


def test_descriptors_leave_the_low_numbers_alone(pools: list[Cgroups]) -> None:
    make(pools, hold=True)
    script = "from sandboxlib._cgroups.cgroups import *; "
    script += "cgroup = Cgroups(CgroupLimits(hold=True)).take()"
    argv = [sys.executable, "-c", f"{script}; print(*cgroup.procs)"]
    said = subprocess.run(argv, capture_output=True, check=True).stdout
    assert min(map(int, said.split())) >= 10


def test_what_has_a_zombie_is_not_recycled(pools: list[Cgroups]) -> None:
    pool = make(pools, pids=20)
    cgroup = pool.take()
    with start(cgroup, "") as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        cgroup.release()
        assert pool.take() is not cgroup


def test_much_page_cache_is_not_recycled(pools: list[Cgroups], tmp_path: Path) -> None:
    pool = make(pools, memory=64 * MIB)
    cgroup = pool.take()
    assert finish(cgroup, f"open({str(tmp_path / 'big')!r}, 'wb').write(bytes({32 * MIB}))") == 0
    cgroup.release()
    (tmp_path / "big").unlink()
    assert pool.take() is not cgroup


def test_little_page_cache_is_nobody_s_peak(pools: list[Cgroups], tmp_path: Path) -> None:
    kind = subprocess.run(["stat", "-fc", "%T", str(tmp_path)], capture_output=True, check=True)
    if kind.stdout.strip() in (b"tmpfs", b"overlayfs"):
        pytest.skip("the files of this machine may be in memory, and are no page cache")
    pool = make(pools, memory=200 * MIB)
    cgroup = pool.take()
    assert finish(cgroup, f"open({str(tmp_path / 'big')!r}, 'wb').write(bytes({32 * MIB}))") == 0
    cgroup.release()
    again = pool.take()
    assert again is cgroup
    again.begin()
    assert finish(again, "x = b'x' * 10000000") == 0
    told: Any = again.report()
    assert 9 * MIB < told["memory_peak"] < 20 * MIB


def test_one_that_somebody_removed_is_replaced(pools: list[Cgroups]) -> None:
    pool = make(pools, pids=20)
    cgroup = pool.take()
    path = cgroup.paths[0]
    cgroup.release()
    os.rmdir(path)
    again = pool.take()
    assert finish(again, "") == 0
    assert again.paths[0] != path


def test_threads_share_a_pool(pools: list[Cgroups]) -> None:
    pool = make(pools, pids=20)
    leased: set[str] = set()
    wrong = []

    def use() -> None:
        for _ in range(50):
            cgroup = pool.take()
            if cgroup.paths[0] in leased:
                wrong.append(cgroup.paths[0])
            leased.add(cgroup.paths[0])
            cgroup.begin()
            cgroup.report()
            leased.discard(cgroup.paths[0])
            cgroup.release()

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(ours()) <= 8 * len(pool.take().paths)


# ---- nothing is left -----------------------------------------------------------------------


def test_close_removes_the_idle_ones_and_release_the_others(pools: list[Cgroups]) -> None:
    pool = make(pools, hold=True)
    before = ours()
    idle, leased = pool.take(), pool.take()
    idle.release()
    fds = leased.procs
    pool.close()
    assert ours() - before == set(leased.paths)
    assert finish(leased, "") == 0
    leased.release()
    assert ours() <= before
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fds[0])


def test_a_lost_lease_and_a_lost_pool_are_garbage(pools: list[Cgroups]) -> None:
    make(pools, hold=True)
    before = ours()
    pool = Cgroups(CgroupLimits(hold=True))
    cgroup = pool.take()
    pool.take().release()
    assert len(ours() - before) >= 2
    with start(cgroup, "import time; print(flush=True); time.sleep(1000)") as process:
        wait_for_line(process)
        del cgroup, pool
        gc.collect()
        assert process.wait(timeout=10) == -9
    assert ours() <= before


def test_what_lives_longer_than_the_modules_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Cgroups(CgroupLimits(hold=True))
    with monkeypatch.context() as end:
        end.setattr(cgroups, "_all", None)  # as the interpreter leaves it
        del pool
        gc.collect()


def test_cgroups_below_go_as_well(pools: list[Cgroups]) -> None:
    cgroup = make(pools, hold=True).take()
    below = f"{cgroup.paths[0]}/below"
    os.mkdir(below)
    with start(
        cgroup, f"open('{below}/cgroup.procs', 'w').write('0'); import time; time.sleep(99)"
    ):
        assert wait_until(
            lambda: os.path.getsize(below) or hierarchies.read(f"{below}/cgroup.procs")
        )
        cgroup.release()
    cgroup.remove()
    assert not os.path.exists(below)


def test_a_refusal_leaves_nothing_half_made(pools: list[Cgroups]) -> None:
    make(pools, memory=MIB, cpu_quota=1.0)
    before = ours()
    pool = Cgroups(CgroupLimits(memory=64 * MIB, cpu_quota=1e-5))
    with pytest.raises(UnsupportedError, match=r"cpu: /.*EINVAL.*beyond"):
        pool.take()
    assert ours() <= before


HOST = """
import os, sys, time
from sandboxlib._cgroups.cgroups import Cgroups, CgroupLimits
pool = Cgroups(CgroupLimits(hold=True))
idle, leased = pool.take(), pool.take()
idle.release()
pid = os.fork()
if pid == 0:
    for fd in leased.procs: os.write(fd, b"0")
    print(os.getpid(), *leased.paths, flush=True)
    time.sleep(1000)
"""


def host(then: str) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", HOST + then], stdin=pipe, stdout=pipe)


def test_the_interpreter_ends_them(pools: list[Cgroups]) -> None:
    make(pools, hold=True)
    with host("sys.stdin.read()") as process:
        pid, path = wait_for_line(process).decode().split()[:2]
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == 0
    assert not os.path.exists(path)
    assert wait_until(lambda: not is_running(int(pid)))
    assert not [name for name in ours() if f"sandboxlib-{process.pid}-" in name]


def test_the_next_one_clears_up_after_a_host_that_was_killed(pools: list[Cgroups]) -> None:
    pool = make(pools, hold=True)
    with host("time.sleep(1000)") as process:
        pid, path = wait_for_line(process).decode().split()[:2]
        alive = Cgroups(CgroupLimits(hold=True))
        alive.take()  # the host lives
        idle = f"{path[:-1]}1"
        assert os.path.exists(path)
        assert os.path.exists(idle)
        process.kill()
    pool.take()
    assert not os.path.exists(idle)
    assert os.path.exists(path)  # a process is in it
    os.kill(int(pid), 9)

    def is_swept() -> bool:
        Cgroups(CgroupLimits(hold=True)).take()
        return not os.path.exists(path)

    assert wait_until(is_swept)


def test_a_pid_that_was_used_again_is_not_the_host(pools: list[Cgroups]) -> None:
    pool = make(pools, hold=True)
    cgroup = pool.take()
    words = os.path.basename(cgroup.paths[0]).split("-")
    parent = os.path.dirname(cgroup.paths[0])
    for start, is_kept in (("1", False), (words[2], True)):
        path = f"{parent}/{'-'.join([*words[:2], start, *words[3:5], '77'])}"
        os.makedirs(f"{path}/below")
        Cgroups(CgroupLimits(hold=True)).take()
        assert os.path.exists(path) == is_kept
    os.rmdir(f"{path}/below")
    os.rmdir(path)


def in_a_fork(test: Any) -> str:
    """What it says, or what it raises."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = str(test())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as stream:
        said = stream.read()
    os.waitpid(pid, 0)
    return said


def test_a_fork_has_none_of_them(pools: list[Cgroups]) -> None:
    pool = make(pools, hold=True)
    idle, leased = pool.take(), pool.take()
    paths = idle.paths + leased.paths
    idle.release()

    def use() -> object:
        new = pool.take()
        others = set(new.paths).isdisjoint(paths)
        new.release()
        leased.release()
        leased.remove()
        pool.end()
        return others and not idle.procs and all(map(os.path.exists, paths))

    assert in_a_fork(use) == "True"
    assert all(map(os.path.exists, paths))
    assert pool.take() is idle
    assert finish(leased, "") == 0


# ---- who may, and where --------------------------------------------------------------------


def as_nobody(test: Any) -> str:
    def inner() -> object:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        return test()

    return in_a_fork(inner)


@pytest.mark.parametrize(
    "words", [{"memory": MIB}, {"pids": 5}, {"cpu_quota": 1.0}, {"hold": True}]
)
def test_who_may_not_is_told_where_and_what_to_do(pools: list[Cgroups], words: Any) -> None:
    need(os.geteuid() == 0, "this takes root to become nobody")
    pool = make(pools, **words)
    said = as_nobody(pool.take)
    assert said.startswith("UnsupportedError"), said
    assert "EACCES" in said
    assert "hand that directory over" in said or hierarchies.DELEGATE in said
    assert any(f"{path}" in said for path in hierarchies.own_directories().values())


def test_without_a_hierarchy_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hierarchies, "own_directories", dict)
    with pytest.raises(UnsupportedError, match="memory: no cgroup hierarchy"):
        Cgroups(CgroupLimits(memory=MIB)).take()
    with pytest.raises(UnsupportedError, match="no cgroup hierarchy"):
        Cgroups(CgroupLimits(hold=True)).take()


@pytest.fixture
def delegated() -> Iterator[Path]:
    """A cgroup of v2, in the hands of nobody."""
    own = hierarchies.own_directories().get("")
    need(os.geteuid() == 0 and own, "this takes root and v2")
    path = Path(f"{own}/test-sandboxlib-{os.getpid()}")
    path.mkdir()
    for name in ("", "cgroup.procs", "cgroup.subtree_control"):
        os.chown(path / name, 65534, 65534)
    yield path
    assert wait_until(lambda: cgroups._remove(str(path)))


def test_a_delegated_cgroup_of_v2_is_used(delegated: Path) -> None:
    def use() -> object:
        pool = Cgroups(CgroupLimits(hold=True))
        cgroup = pool.take()
        cgroup.begin()
        assert in_a_fork(lambda: [os.write(fd, b"0") for fd in cgroup.procs]) == "[1]"
        cpu, path = cgroup.report()["cpu"], cgroup.paths[0]
        assert isinstance(cpu, float)
        assert cpu > 0
        cgroup.release()
        pool.close()
        return os.path.dirname(path)

    def inside() -> object:
        (delegated / "cgroup.procs").write_text("0")
        return as_nobody(use)

    assert in_a_fork(inside) == str(delegated)


def test_a_directory_that_none_can_be_moved_to_is_refused(delegated: Path) -> None:
    pool = Cgroups(CgroupLimits(hold=True, directory=str(delegated)))
    said = as_nobody(pool.take)
    assert f"{delegated.parent}/cgroup.procs: Permission denied" in said
    assert list(delegated.glob("sandboxlib*")) == []
    cgroup = pool.take()  # root
    assert os.path.dirname(cgroup.paths[0]) == str(delegated)
    cgroup.release()
    pool.close()


@pytest.fixture
def controller(delegated: Path) -> Iterator[str]:
    """One that is enabled for that cgroup."""
    own = delegated.parent
    names = (own / "cgroup.controllers").read_text().split()
    need(names, "v2 has no controller")
    enabled = names[0] in (own / "cgroup.subtree_control").read_text().split()
    if not enabled:
        need(own.is_mount(), "the cgroup of the tests hands no controller down")
        (own / "cgroup.subtree_control").write_text(f"+{names[0]}")
    yield names[0]
    if not enabled:
        (own / "cgroup.subtree_control").write_text(f"-{names[0]}")


def _make(part: hierarchies.Part, name: str, places: list[hierarchies.Place]) -> None:
    """One with a controller that no limit needs."""
    part.names = [name]
    part.make(hierarchies.mark() + "-x-1", CgroupLimits(), places)


def test_a_cgroup_with_processes_hands_no_controller_down(delegated: Path, controller: str) -> None:
    own = str(delegated.parent)
    places: list[hierarchies.Place] = []
    process = subprocess.Popen(["sleep", "1000"])
    try:
        (delegated / "cgroup.procs").write_text(str(process.pid))
        part = hierarchies.Part([(str(delegated), "v2")])
        with pytest.raises(UnsupportedError, match=rf"{controller}.*EBUSY.*Delegate=yes"):
            _make(part, controller, places)
        assert places == []
        part = hierarchies.Part([(str(delegated), "v2"), (own, "v2")])
        _make(part, controller, places)
        assert os.path.dirname(places[0].path) == own
        os.rmdir(places[0].path)
    finally:
        process.kill()
        process.wait()


def test_controllers_are_enabled_where_that_is_allowed(delegated: Path, controller: str) -> None:
    places: list[hierarchies.Place] = []
    part = hierarchies.Part([(str(delegated), "v2")])
    _make(part, controller, places)
    os.rmdir(places[0].path)
    enabled = delegated / "cgroup.subtree_control"
    assert enabled.read_text().split() == [controller]
    enabled.write_text(f"-{controller}")
    assert os.path.dirname(places[0].path) == str(delegated)


def test_mounts_are_read_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/self/cgroup": "3:cpu,cpuacct:/docker/a\n2:name=x:/\n1:pids:/../b\n0::/docker/a/c\n",
    }
    mountinfo = [
        b"1 0 0:1 / / rw - ext4 /dev/x rw\n",
        b"2 1 0:2 /docker/a /c\\040g/cpu rw shared:1 - cgroup cgroup rw,cpu,cpuacct\n",
        b"3 1 0:3 / /pids rw - cgroup cgroup rw,pids\n",
        b"4 1 0:4 /docker /two rw - cgroup2  rw,nsdelegate\n",  # of no source
    ]
    monkeypatch.setattr(machine, "_mountinfo", lambda pid: b"".join(mountinfo))
    monkeypatch.setattr(hierarchies, "read", files.__getitem__)
    assert hierarchies.own_directories() == {
        "cpu": "/c g/cpu",
        "cpuacct": "/c g/cpu",
        "": "/two/a/c",
    }
    limits = CgroupLimits(cpu_quota=1.0, hold=True)
    cpu, unified = hierarchies.find_parts(limits)
    assert cpu.parents == [("/c g/cpu", "v1")]
    assert unified.parents == [("/two/a/c", "v2"), ("/two/a", "v2"), ("/two", "v2")]


# ---- the files of v2, in a directory that stands in for cgroupfs ---------------------------


FILES = {
    "cgroup.procs": "",
    "cgroup.controllers": "memory pids cpu",
    "cgroup.events": "populated 0\nfrozen 0\n",
    "memory.max": "max\n",
    "memory.swap.max": "max\n",
    "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n",
    "memory.current": "0\n",
    "memory.peak": "0\n",
    "pids.max": "max\n",
    "pids.events": "max 0\n",
    "pids.current": "0\n",
    "pids.peak": "0\n",
    "cpu.max": "max 100000\n",
    "cpu.weight": "100\n",
    "cpu.stat": "usage_usec 5\nuser_usec 5\nsystem_usec 0\nnr_periods 1\nnr_throttled 1\n",
    "memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
}


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("cpu\n")
    mkdir, rmdir = os.mkdir, os.rmdir

    def make(name: str, mode: int, dir_fd: int) -> None:
        mkdir(name, mode, dir_fd=dir_fd)
        for file, text in FILES.items():
            Path(f"/proc/self/fd/{dir_fd}/{name}/{file}").write_text(text)

    def remove(path: str, dir_fd: int | None = None) -> None:
        where = path if dir_fd is None else f"/proc/self/fd/{dir_fd}/{path}"
        for name in Path(where).iterdir():
            name.unlink()
        rmdir(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", make)
    monkeypatch.setattr(os, "rmdir", remove)
    monkeypatch.setattr(hierarchies, "filesystem_of", lambda fd: 0x63677270)
    return tmp_path


def test_v2_limits_are_written(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words: Any = {"memory": 64 * MIB, "swap": 0, "pids": 9, "cpu_weight": 50, "cpu_quota": 0.5}
    pool = Cgroups(CgroupLimits(**words, directory=str(stand_in)))
    cgroup = pool.take()
    assert len(cgroup.paths) == 1
    own = Path(cgroup.paths[0])
    assert (stand_in / "cgroup.subtree_control").read_text() == "+memory +pids"

    def value(name: str) -> str:
        return (own / name).read_text().partition("\n")[0]

    assert value("memory.max") == str(64 * MIB)
    assert value("memory.swap.max").startswith("0")
    assert value("cpu.max") == "50000 100000"
    assert value("cpu.weight").startswith("50")
    cgroup.begin(1)
    assert value("pids.max").startswith("10")
    pool.close()
    cgroup.release()
    assert not own.exists()


def test_v2_counters_are_read(stand_in: Path) -> None:
    pool = Cgroups(CgroupLimits(memory=64 * MIB, directory=str(stand_in)))
    cgroup = pool.take()
    own = Path(cgroup.paths[0])
    (own / "memory.current").write_text("4096\n")
    cgroup.begin()
    (own / "memory.peak").write_text("1000000\n")
    (own / "memory.events").write_text(FILES["memory.events"].replace("oom_kill 0", "oom_kill 2"))
    (own / "pids.events").write_text("max 3\n")
    (own / "pids.peak").write_text("8\n")
    stat = "usage_usec 1500005\nuser_usec 5\nsystem_usec 0\nnr_periods 9\nnr_throttled 5\n"
    (own / "cpu.stat").write_text(stat)
    (own / "memory.pressure").write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=500007\n")
    assert cgroup.report() == {
        "oom_kills": 2,
        "pids_hits": 3,
        "throttled": 4,
        "memory_peak": 1000000 - 4096,
        "pids_peak": 8,
        "cpu": 1.5,
        "user": 0.0,
        "system": 0.0,
        "pressure": {"memory": {"some": 0.5}},
    }
    (own / "memory.events").write_text(FILES["memory.events"].replace("max 0", "max 1"))
    assert cgroup.report()["memory_peak"] == 1000000  # its own, and what was reclaimed for it
    pool.close()
    cgroup.release()


def test_v2_controllers_that_are_not_there_are_refused(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stand_in / "cgroup.controllers").write_text("pids\n")
    monkeypatch.setattr(hierarchies, "own_directories", dict)
    with pytest.raises(UnsupportedError, match=r"memory: .*cgroup.controllers: .*above has not"):
        Cgroups(CgroupLimits(memory=MIB, directory=str(stand_in))).take()
    assert list(stand_in.glob("sandboxlib*")) == []


def test_a_v2_cgroup_with_processes_gets_no_children(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With pids and cpu alone the kernel lets it have some, and none of them takes a process.
    monkeypatch.setattr(hierarchies, "own_directories", dict)
    (stand_in / "cgroup.type").write_text("domain\n")
    (stand_in / "cgroup.procs").write_text("1\n")
    with pytest.raises(UnsupportedError, match=r"pids: .*cgroup\.procs: there are processes in it"):
        Cgroups(CgroupLimits(pids=9, directory=str(stand_in))).take()
    assert (stand_in / "cgroup.subtree_control").read_text() == "cpu\n"
    (stand_in / "cgroup.subtree_control").write_text("cpu pids\n")  # somebody else did it
    monkeypatch.setitem(FILES, "cgroup.type", "domain invalid\n")
    with pytest.raises(UnsupportedError, match=r"cgroup\.type: its type is 'domain invalid'"):
        Cgroups(CgroupLimits(pids=9, directory=str(stand_in))).take()
    assert list(stand_in.glob("sandboxlib*")) == []


def test_v2_io_weights_are_written(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hierarchies, "_block_devices", lambda: ["x"])
    real = hierarchies.read
    monkeypatch.setattr(
        hierarchies,
        "read",
        lambda p, *at: "none [bfq]" if p.startswith("/sys/block/") else real(p, *at),
    )
    monkeypatch.setitem(FILES, "io.bfq.weight", "default 100\n")
    pool = Cgroups(CgroupLimits(io_weight=10000, directory=str(stand_in)))
    cgroup = pool.take()
    assert (Path(cgroup.paths[0]) / "io.bfq.weight").read_text().startswith("1000")
    pool.close()
    cgroup.release()
