# SPDX-License-Identifier: Apache-2.0
"""Limits on a whole run, by cgroups: hit for real, told for real, and nothing is left of them.

In every way that a run is made. Which controllers there are, in which version, is the machine's.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import needs_root, require
from lib.waiting import processes, wait_until

import sandboxlib
from sandboxlib import Limits, Mount, Policy, Result, Sandbox, SetupError, UnsupportedError
from sandboxlib._cgroups import cgroups, hierarchies
from sandboxlib._host import machine
from sandboxlib._runs import slots

PYTHON = os.path.realpath(sys.executable)
WAYS: dict[str, tuple[dict[str, Any], bool]] = {
    "slot": ({}, False),
    "fresh": ({}, True),
    "pid 1": ({"init": False}, True),
    "pid 1 in a slot": ({"init": False}, False),
    "undefined": ({"processes": "undefined"}, True),
}
pytestmark = needs_root


def directories() -> set[str]:
    """The cgroups of this process, in every hierarchy."""
    names = f"sandboxlib-{os.getpid()}-"
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    points = [words[4] for words in mounts if words[words.index("-") + 1].startswith("cgroup")]
    return {
        os.path.join(directory, name)
        for point in points
        for directory, below, _ in os.walk(point)
        for name in below
        if name.startswith(names)
    }


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = directories()
    yield
    slots.close_all()
    cgroups.end_all()
    assert wait_until(lambda: directories() <= before), directories() - before


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(slots, "MOST_SPARE", 0)
    require(not PYTHON.startswith("/tmp/"), "Python is in /tmp")
    return str(request.param)


def needs(*names: str) -> None:
    found = cgroups.controllers()
    for name in names:
        require(name in found, f"no cgroup can have {name} here; there are {found}")


def box_of(way: str, limits: Limits | None, **words: Any) -> Sandbox:
    return open_box(
        "/", limits=limits, **{"extra_mounts": [Mount.tmpfs("/tmp")], **WAYS[way][0], **words}
    )


def run(way: str, box: Sandbox, script: str, **words: Any) -> Result:
    return box.run([PYTHON, "-I", "-S", "-c", script], cwd="/", fresh=WAYS[way][1], **words)


def resets_peaks() -> bool:
    """Linux before 6.12 cannot, in v2: then the peak of a run in a used cgroup is not known."""
    version = tuple(int(part) for part in os.uname().release.split(".")[:2])
    return cgroups.controllers().get("memory") == "v1" or version >= (6, 12)


# ---- each, hit and told ----------------------------------------------------------------------


def test_memory(way: str) -> None:
    needs("memory")
    script = "x = b'x' * (200 << 20); print(len(x))"
    with box_of(way, Limits(memory=100 << 20)) as box:
        for _ in range(2):
            hit = run(way, box, script)
            assert hit.exit == -9
            assert hit.limits_hit == ("memory",)
            assert hit.usage is None or hit.usage.tree_memory is not None or not resets_peaks()
            under = run(way, box, script.replace("200", "50"))
            assert (under.exit, under.limits_hit) == (0, ())
            assert under.usage is not None
            peak = under.usage.tree_memory
            assert peak is None or 50 << 20 < peak < 100 << 20
            assert peak is not None or not resets_peaks()


def test_memory_of_one_that_is_not_the_command(way: str) -> None:
    needs("memory")
    script = f"""
import subprocess
argv = [{PYTHON!r}, "-c", "x = b'x' * (200 << 20)"]
print(subprocess.run(argv).returncode)
"""
    with box_of(way, Limits(memory=100 << 20)) as box:
        result = run(way, box, script)
        assert (result.exit, result.out) == (0, b"-9\n")
        assert result.limits_hit == ("memory",)


def started(box: Sandbox, argv: list[str]) -> Result:
    with box.start(argv, cwd="/") as process:
        process.communicate()
    return process.result()


def mapped(box: Sandbox, argv: list[str]) -> Result:
    (result,) = box.map([argv], cwd="/", on_failure="continue")
    assert isinstance(result, Result)
    return result


CALLS: dict[str, Callable[[Sandbox, list[str]], Result]] = {
    "run": lambda box, argv: box.run(argv, cwd="/"),
    "fresh": lambda box, argv: box.run(argv, cwd="/", fresh=True),
    "map": mapped,
    "run_async": lambda box, argv: asyncio.run(box.run_async(argv, cwd="/")),
    "start": started,
}


@pytest.mark.parametrize("call", CALLS)
def test_memory_is_told_by_every_call(call: str) -> None:
    """Also if the command survives the child that was killed."""
    needs("memory")
    eat = [PYTHON, "-I", "-S", "-c", "x = b'x' * (200 << 20)"]
    with box_of("slot", Limits(memory=100 << 20)) as box:
        hit = CALLS[call](box, eat)
        assert (hit.exit, hit.limits_hit, hit.ok) == (-9, ("memory",), False)
        survived = CALLS[call](box, ["sh", "-c", '"$@"; exit 0', "sh", *eat])
        assert (survived.exit, survived.limits_hit, survived.ok) == (0, ("memory",), True)
        under = CALLS[call](box, ["true"])
        assert (under.exit, under.limits_hit) == (0, ())


# ---- one slot, other limits in each run ------------------------------------------------------


def test_each_command_has_its_own_in_one_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "MOST_SPARE", 0)
    needs("memory", "pids", "swap")
    script = "import os; x = b'x' * (80 << 20); print(os.readlink('/proc/self/ns/net'))"
    with box_of("slot", Limits(memory=100 << 20, pids=20), network="isolated") as box:
        slot = run("slot", box, script).out
        for number in (10, 5, 15):
            few = run("slot", box, FORK, limits=Limits(pids=number))
            assert (few.out, few.limits_hit) == (b"%d\n" % (number - 1), ("pids",))
            less = run("slot", box, script, limits=Limits(memory=(50 + number) << 20))
            assert less.limits_hit == ("memory",)
            more = run("slot", box, script.replace("80", "150"), limits=Limits(memory="1G"))
            assert (more.exit, more.limits_hit, more.out) == (0, (), slot)
            again = run("slot", box, script)
            assert (again.exit, again.limits_hit, again.out) == (0, (), slot)


def test_those_of_one_command_take_no_other_slot_s(way: str) -> None:
    """A Sandbox without limits has slots without a cgroup."""
    needs("memory")
    with box_of(way, None) as box:
        for _ in range(2):
            assert run(way, box, "x = b'x' * (150 << 20)").limits_hit == ()
            hit = run(way, box, "x = b'x' * (150 << 20)", limits=Limits(memory=100 << 20))
            assert hit.limits_hit == ("memory",)


@pytest.mark.every_way
def test_memory_that_a_run_leaves_behind_is_not_the_next_one_s(way: str) -> None:
    """A file in a tmpfs of the caller's is charged to the cgroup of the run that wrote it."""
    needs("memory", "swap")
    shared = Path("/dev/shm")
    require(os.access(shared, os.W_OK) and type_of_mount(shared) == "tmpfs", "no tmpfs there")
    with TemporaryDirectory(dir=shared) as kept:
        mounts = [Mount.tmpfs("/tmp"), Mount.bind(kept, "/mnt")]
        limits = Limits(memory=100 << 20, swap=0)
        with box_of(way, limits, extra_mounts=mounts) as box:
            for number in range(3):
                file = f"open('/mnt/{number}', 'wb').write(bytes(20 << 20))"
                assert run(way, box, file).exit == 0
                whole = run(way, box, "x = b'x' * (85 << 20)")
                assert (whole.exit, whole.limits_hit) == (0, ())
                assert whole.usage is not None
                assert (whole.usage.tree_memory or 0) >= 85 << 20


def test_a_command_in_a_session_is_told_of_its_limits() -> None:
    needs("memory", "pids")
    eat = [PYTHON, "-c", "x = b'x' * (200 << 20)"]
    forks = "import os, time\nfor _ in range(40):\n  if not os.fork(): time.sleep(60)"
    limits = Limits(memory=100 << 20, pids=30)
    with open_box("/", limits=limits, extra_mounts=[Mount.tmpfs("/tmp")]) as box:
        with box.session() as session:
            for _ in range(2):
                hit = session.run(eat)
                assert (hit.exit, hit.limits_hit) == (-9, ("memory",))
                assert session.run([PYTHON, "-c", "pass"]).limits_hit == ()
            with session.start(eat) as process:
                process.wait()
            assert process.result().limits_hit == ("memory",)
            forked = session.run([PYTHON, "-c", forks], timeout=20)
            assert (forked.ok, forked.limits_hit) == (False, ("pids",))
        with box.replace(limits=None).session() as session:
            assert session.run(["true"]).limits_hit == ()


def type_of_mount(path: Path) -> str:
    return next(m.type for m in machine.mounts() if m.point == str(path))


def test_swap(way: str) -> None:
    needs("swap")
    with box_of(way, Limits(memory=100 << 20, swap=0)) as box:
        assert run(way, box, "x = b'x' * (200 << 20)").limits_hit == ("memory",)


def test_a_run_uses_swap_up_to_its_limit(way: str) -> None:
    needs("swap")
    if len(Path("/proc/swaps").read_text().splitlines()) < 2:
        pytest.skip("this machine has no swap; that of test_unified.py has")
    script = "x = b'x' * (120 << 20); print(len(x))"
    for swap, (exit, hits) in {200 << 20: (0, ()), 16 << 20: (-9, ("memory",))}.items():
        with box_of(way, Limits(memory=64 << 20, swap=swap)) as box:
            result = run(way, box, script)
            assert (result.exit, result.limits_hit) == (exit, hits)


def test_swap_of_one_command_over_the_memory_of_the_sandbox(way: str) -> None:
    needs("swap")
    with box_of(way, Limits(memory=100 << 20)) as box:
        limits = Limits(swap=0)
        assert run(way, box, "x = b'x' * (200 << 20)", limits=limits).limits_hit == ("memory",)
        assert run(way, box, "x = b'x' * (50 << 20)", limits=limits).limits_hit == ()


KILLED: dict[str, dict[str, Any]] = {
    "timeout": {"timeout": 1},
    "output": {"max_output": 10, "on_overflow": "kill"},
}


@pytest.mark.parametrize("why", KILLED)
def test_what_a_killed_run_used_is_told(way: str, why: str) -> None:
    needs("memory")
    script = "x = bytearray(50 << 20)\nwhile 1: print('x' * 100, flush=True)"
    with box_of(way, Limits(memory=200 << 20)) as box:
        result = run(way, box, script, **KILLED[why])
        assert result.timed_out == (why == "timeout")
        assert result.usage is not None
        assert result.usage.tree_memory is not None
        assert 50 << 20 < result.usage.tree_memory < 200 << 20


FORK = """
import os, time
children = 0
try:
    while children < 100:
        if os.fork() == 0:
            time.sleep(1000)
        children += 1
except BlockingIOError:
    pass
print(children, flush=True)
"""


def test_pids(way: str) -> None:
    """The reaper does not count."""
    needs("pids")
    with box_of(way, Limits(pids=10)) as box:
        for _ in range(2):
            result = run(way, box, FORK)
            assert (result.exit, result.out) == (0, b"9\n")
            assert result.limits_hit == ("pids",)
            result = run(way, box, "import os; os.fork() or os._exit(0); os.wait")
            assert (result.exit, result.limits_hit) == (0, ())


def test_pids_of_one_command_alone(way: str) -> None:
    needs("pids")
    with box_of(way, Limits(pids=1)) as box:
        result = run(way, box, FORK)
        assert (result.exit, result.out, result.limits_hit) == (0, b"0\n", ("pids",))


def test_cpus_are_a_quota(way: str) -> None:
    needs("cpu")
    # It has to be less than others leave, however many they are.
    script = "import time\nwhile time.process_time() < 0.06: pass"
    with box_of(way, Limits(cpus=0.05)) as box:
        result = run(way, box, script)
        assert (result.exit, result.limits_hit) == (0, ())
        usage = result.usage
        assert usage is not None
        assert usage.throttled is not None
        assert usage.throttled >= 3
        assert result.wall > 5 * (usage.user + usage.system)
        assert run(way, box, "pass").exit == 0


def test_weights(way: str) -> None:
    """The one of several that wants more gets more: seen as the kernel's number."""
    found = cgroups.controllers()
    words = {f"{name}_weight": 500 for name in ("cpu", "io") if name in found}
    require(words, f"no weights here: {found}")
    for name, value in words.items():
        with box_of(way, Limits(**{name: value})) as box:
            assert run(way, box, "pass").exit == 0
    missing = [name for name in ("cpu", "io") if name not in found]
    for name in missing:
        with pytest.raises(UnsupportedError, match=name):
            run(way, box_of(way, Limits(**{f"{name}_weight": 500})), "pass")


def test_a_cgroup_for_its_own_sake(way: str) -> None:
    needs("hold")
    with box_of(way, Limits(cgroup=True)) as box:
        result = run(way, box, "import time\nwhile time.process_time() < 0.3: pass")
        assert (result.exit, result.limits_hit) == (0, ())
        assert result.usage is not None
        assert result.usage.cpu is not None
        assert 0.25 < result.usage.cpu < 10
    import pickle

    copy = pickle.loads(pickle.dumps(result))
    assert copy.usage == result.usage


# ---- what is in it goes, and it goes ---------------------------------------------------------


DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        os.closerange(0, 10)
        os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(1000)", MARK])
    os._exit(0)
os.wait()
"""


def test_a_daemon_does_not_escape(way: str) -> None:
    needs("hold")
    mark = f"daemon-{os.getpid()}-{time.monotonic_ns()}"
    script = DAEMON.replace("MARK", repr(mark))
    with box_of(way, Limits(cgroup=True)) as box:
        for _ in range(3):
            result = run(way, box, script)
            assert (result.exit, result.err) == (0, b"")
            assert processes(mark) == []


def test_a_daemon_of_a_run_that_is_late(way: str) -> None:
    needs("hold")
    mark = f"daemon-{os.getpid()}-{time.monotonic_ns()}"
    script = DAEMON.replace("MARK", repr(mark)) + "time.sleep(1000)"
    with box_of(way, Limits(cgroup=True)) as box:
        for _ in range(2):
            result = run(way, box, script, timeout=0.7)
            assert result.timed_out
            assert processes(mark) == []


def test_one_that_could_not_begin(way: str) -> None:
    needs("hold")
    with box_of(way, Limits(cgroup=True)) as box:
        for _ in range(3):
            with pytest.raises(SetupError):
                box.run(["/no/such"], cwd="/", fresh=WAYS[way][1])
            assert run(way, box, "pass").exit == 0


def test_one_that_somebody_removed(way: str) -> None:
    """A run joins another then."""
    needs("hold")
    with box_of(way, Limits(cgroup=True)) as box:
        assert run(way, box, "pass").exit == 0
        there = directories()
        assert there
        for path in there:
            if "slot" in way:  # the process that waits for an order is in it
                Path(path, "cgroup.kill").write_text("1")
            assert wait_until(lambda path=path: cgroups._remove(path))  # type: ignore[misc]
        assert run(way, box, "pass").exit == 0
        assert directories()


def test_one_whose_processes_were_killed_takes_the_next_run(way: str) -> None:
    """Linux from 6.14 on kills what is born in it, if its parent was not killed as often."""
    needs("hold")
    with box_of(way, Limits(cgroup=True)) as box:
        assert run(way, box, "pass").exit == 0
        for path in directories():
            Path(path, "cgroup.kill").write_text("1")
        for _ in range(3):
            assert run(way, box, "print(5)")[:2] == (0, b"5\n")


def test_close_removes_them(way: str) -> None:
    needs("hold")
    box = box_of(way, Limits(cgroup=True))
    before = directories()
    for _ in range(2):
        assert run(way, box, "pass").exit == 0
        assert run(way, box, "pass", limits=Limits(cgroup=True, nice=3)).exit == 0
        assert directories() > before
        box.close()
        assert directories() == before


def test_several_at_once(way: str) -> None:
    needs("memory", "pids")
    limits = Limits(memory=100 << 20, pids=20)
    with box_of(way, limits) as box, ThreadPoolExecutor(8) as pool:
        scripts = ["x = b'x' * (200 << 20)", "pass", FORK] * 8
        results = list(pool.map(lambda script: run(way, box, script), scripts))
    hits = [result.limits_hit for result in results]
    assert hits == [("memory",), (), ("pids",)] * 8


def test_through_every_executor(monkeypatch: pytest.MonkeyPatch, tool_path: str) -> None:
    needs("memory", "pids")
    monkeypatch.setenv("PATH", tool_path)
    for name in ("user_namespace", "bubblewrap", "linux_user_chroot"):
        executor = sandboxlib.get_executor(name)
        if executor.why_not():
            continue
        limits = Limits(memory=100 << 20, pids=20)
        box = open_box("/", limits=limits, policy=Policy(capabilities="all"))
        argv = [PYTHON, "-I", "-S", "-c"]
        result = executor.run_in(box, [*argv, "x = b'x' * (200 << 20)"], cwd="/")
        assert result.exit in (-9, 137, 1)
        assert result.limits_hit == ("memory",)
        result = executor.run_in(box, [*argv, FORK], cwd="/")
        assert result.limits_hit == ("pids",)
        assert 15 < int(result.out) < 20


def test_who_may_make_none(tmp_path: Path, shared_rootfs: Path) -> None:
    """An ordinary user without a delegated directory; refused, and nothing ran."""
    script = """
import sys
from sandboxlib import Limits, Sandbox, UnsupportedError, user_namespace
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
if reason := user_namespace.why_not():
    sys.exit(reason)
for words in ({"memory": 1 << 30}, {"pids": 5}, {"cpus": 1}, {"cgroup": True},
              {"cgroup": "/sys/fs/cgroup"}, {"cgroup": "/no/such"}):
    try:
        user_namespace.run_in(open_box("/", limits=Limits(**words)), ["true"])
        print("ran", words)
    except UnsupportedError as error:
        assert str(error)
"""
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable]
    done = subprocess.run(
        [*user, "-c", "import sandboxlib"], capture_output=True, check=False, cwd="/"
    )
    require(done.returncode == 0, "an ordinary user cannot import sandboxlib from here")
    done = subprocess.run([*user, "-c", script], capture_output=True, check=False, cwd="/")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


DELEGATED = """
import sys
from sandboxlib import Limits, Sandbox, user_namespace
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
if reason := user_namespace.why_not():
    sys.exit(reason)
for words in ({}, {"processes": "undefined"}):
    with open_box("/", limits=Limits(cgroup=sys.argv[1]), **words) as box:
        for fresh in (True, False):
            result = user_namespace.run_in(box, ["sh", "-c", sys.argv[2]], cwd="/", fresh=fresh)
            assert (result.exit, result.err) == (0, b""), result
            assert result.usage.cpu is not None
"""


def test_a_delegated_directory() -> None:
    """Of an ordinary user, who is in it."""
    point = hierarchies.mount_points().get("")
    require(point, "no cgroup2 is mounted")
    mark = f"1000.{time.monotonic_ns()}"
    base = Path(f"{point}/delegated-{os.getpid()}")
    (base / "leaf").mkdir(parents=True)
    try:
        for path in (base, base / "leaf"):
            os.chown(path, 65534, 65534)
            for name in ("cgroup.procs", "cgroup.subtree_control"):
                os.chown(path / name, 65534, 65534)
        user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable]
        tried = subprocess.run([*user, "-c", "import sandboxlib"], check=False, cwd="/")
        require(tried.returncode == 0, "an ordinary user cannot import sandboxlib from here")
        join = ["sh", "-c", f'echo $$ > {base}/leaf/cgroup.procs; exec "$@"', "sh"]
        script = f"setsid sh -c 'setsid sleep {mark} <&- >&- 2>&- &'; sleep 0.1"
        argv = [*join, *user, "-c", DELEGATED, str(base), script]
        done = subprocess.run(argv, capture_output=True, check=False, cwd="/")
        assert (done.returncode, done.stderr) == (0, b"")
        assert processes(mark) == []
        assert [path.name for path in base.iterdir() if path.is_dir()] == ["leaf"]
    finally:
        (base / "leaf").rmdir()
        base.rmdir()


def test_a_map_and_a_handle(way: str) -> None:
    needs("memory")
    large, small = ([PYTHON, "-I", "-S", "-c", f"x = b'x' * ({n} << 20)"] for n in (200, 20))
    with box_of(way, Limits(memory=100 << 20)) as box:
        words: dict[str, Any] = {"cwd": "/", "fresh": WAYS[way][1]}
        found = list(box.map([large, small] * 3, jobs=3, on_failure="continue", **words))
        assert [result.limits_hit for result in found] == [("memory",), ()] * 3
        with box.start(large, cwd="/") as process:
            assert process.wait(30) == -9
        assert process.result().limits_hit == ("memory",)


@pytest.mark.sample(1)
def test_limits_of_both_kinds(way: str) -> None:
    needs("memory", "pids")
    limits = Limits(memory=200 << 20, pids=30, cpu_time=1, open_files=30, nice=2)
    with box_of(way, limits) as box:
        result = run(way, box, "import os; assert os.nice(0) == 2\nwhile True: pass")
        assert result.limits_hit == ("cpu_time",)
        assert result.exit in (-24, -9)
