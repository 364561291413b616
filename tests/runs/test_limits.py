# SPDX-License-Identifier: Apache-2.0
"""Limits: each is seen from inside, hit for real, and told; or it is refused.

In every executor that works here, and for the native ones in every way that they run a command.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import needs_root, require

import sandboxlib
from sandboxlib import (
    Limits,
    Mount,
    Policy,
    Result,
    Sandbox,
    SetupError,
    SpecError,
    SpecTypeError,
    UnsupportedError,
)
from sandboxlib._choice import choose
from sandboxlib._host import machine
from sandboxlib._runs import slots
from sandboxlib._spec.policy import CAPABILITIES

pytest_plugins = ["lib.setuid_tool"]

HERE = Path(__file__).resolve().parents[1]
NESTED = os.environ.get("SANDBOXLIB_TEST_NESTED")
PYTHON = os.path.realpath(sys.executable)

#: How a native executor runs a command: in a slot, all of it new, as pid 1, without isolation.
WAYS: dict[str, tuple[dict[str, Any], bool]] = {
    "slot": ({}, False),
    "fresh": ({}, True),
    "pid 1": ({"init": False}, True),
    "pid 1 in a slot": ({"init": False}, False),
    "undefined": ({"processes": "undefined"}, True),
}
PLACES = [
    (name, way)
    for name in choose.EXECUTORS
    for way in (WAYS if name in ("chroot", "user_namespace") else ("fresh",))
]
Run = Callable[..., Result]


class Place:
    """An executor, and a way in which it runs Python scripts."""

    def __init__(self, name: str, way: str) -> None:
        self.name, self.way = name, way
        self.executor = sandboxlib.get_executor(name)
        self.is_native = name in ("chroot", "user_namespace")
        self.is_pid_1 = "pid 1" in way or name == "linux_user_chroot"
        self.tells_signals = name != "linux_user_chroot"
        self._words, self._fresh = WAYS[way]

    def box(self, limits: Limits | None, **words: Any) -> Sandbox:
        least = {"policy": Policy(capabilities="all")} if self.name == "linux_user_chroot" else {}
        mounts = [Mount.tmpfs("/tmp")]
        return open_box(
            "/", limits=limits, **{"extra_mounts": mounts, **least, **self._words, **words}
        )

    def run(self, script: str, limits: Limits | None, timeout: float = 100, **words: Any) -> Result:
        argv = [PYTHON, "-I", "-S", "-c", script]
        result: Result = self.executor.run_in(
            self.box(limits, **words), argv, cwd="/", fresh=self._fresh, timeout=timeout
        )
        return result


@pytest.fixture(params=PLACES, ids=lambda place: "-".join(place).replace(" ", "_"))
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tool_path: str) -> Place:
    monkeypatch.setattr(slots, "MOST_SPARE", 0)
    monkeypatch.setenv("PATH", tool_path)
    require(not PYTHON.startswith("/tmp/"), "Python is in /tmp")
    found = Place(*request.param)
    if reason := found.executor.why_not():
        pytest.skip(reason)
    return found


LOOK = """
import json, os, resource as r
numbers = [r.RLIMIT_CPU, r.RLIMIT_FSIZE, r.RLIMIT_DATA, r.RLIMIT_STACK, r.RLIMIT_CORE,
           r.RLIMIT_NOFILE, r.RLIMIT_MEMLOCK, r.RLIMIT_AS]
print(json.dumps({
    "rlimits": [r.getrlimit(number) for number in numbers],
    "nice": os.nice(0),
    "scheduler": os.sched_getscheduler(0),
    "cpus": sorted(os.sched_getaffinity(0)),
    "oom_score_adj": int(open("/proc/self/oom_score_adj").read()),
    "umask": os.umask(0),
}))
"""


def look(place: Place, limits: Limits | None, **words: Any) -> dict[str, Any]:
    import json

    result = place.run(LOOK, limits, **words)
    assert (result.exit, result.err) == (0, b""), result
    found: dict[str, Any] = json.loads(result.out or b"")
    return found


def test_each_is_seen_from_inside(place: Place) -> None:
    cpu = max(os.sched_getaffinity(0))
    is_exempt = os.geteuid() == 0 and place.name == "linux_user_chroot"
    limits = Limits(
        address_space=1 << 30,
        cpu_time=50,
        file_size=12345,
        data=1 << 29,
        stack=1 << 20,
        core=0,
        open_files=40,
        locked_memory=None if is_exempt else 4096,
        nice=3,
        scheduler="batch",
        cpuset=[cpu],
        oom_score_adj=500,
    )
    locked = list(resource.getrlimit(resource.RLIMIT_MEMLOCK)) if is_exempt else [4096, 4096]
    most = [[n, n] for n in (12345, 1 << 29, 1 << 20, 0, 40)]
    assert look(place, limits, umask=0o27) == {
        "rlimits": [[50, 51], *most, locked, [1 << 30, 1 << 30]],
        "nice": 3,
        "scheduler": os.SCHED_BATCH,
        "cpus": [cpu],
        "oom_score_adj": 500,
        "umask": 0o27,
    }


def test_what_is_not_asked_for_is_the_caller_s(place: Place) -> None:
    import json
    import subprocess

    mine = subprocess.run([PYTHON, "-I", "-S", "-c", LOOK], capture_output=True, check=True)
    assert look(place, None) == json.loads(mine.stdout)
    assert look(place, Limits(open_files=40)) == {
        **json.loads(mine.stdout),
        "rlimits": [[40, 40] if i == 5 else n for i, n in enumerate(look(place, None)["rlimits"])],
    }


def test_the_first_cpus_of_the_caller_s(place: Place) -> None:
    assert look(place, Limits(cpuset=1))["cpus"] == sorted(os.sched_getaffinity(0))[:1]
    with pytest.raises(UnsupportedError, match="1024 CPUs: the caller may use"):
        place.run("", Limits(cpuset=1024))


def test_no_limit_of_a_run_reaches_the_next(place: Place) -> None:
    change = """
import os, resource as r
for number in range(10):
    hard = r.getrlimit(number)[1]
    r.setrlimit(number, (min(hard, 50) if hard >= 0 else 50,) * 2)
os.nice(5)
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
os.umask(0o777)
with open("/proc/self/oom_score_adj", "w") as file:
    file.write("999")
"""
    limits = Limits(cpu_time=100, open_files=60, nice=1, oom_score_adj=100)
    before = look(place, limits)
    assert place.run(change, limits).exit == 0
    assert look(place, limits) == before


# ---- hit, and told ---------------------------------------------------------------------------


@pytest.mark.sample(1)
def test_cpu_time(place: Place) -> None:
    result = place.run("while True: pass", Limits(cpu_time=1))
    if place.tells_signals:
        # Pid 1 does not get SIGXCPU, which it does not handle; the kernel sends SIGKILL at the end.
        code = -9 if place.is_pid_1 else -24
        assert result.exit == (128 + 24 if place.name == "bubblewrap" else code)
        assert result.limits_hit == ("cpu_time",)
    assert result.exit != 0
    assert not result.timed_out


@pytest.mark.sample(1)
def test_cpu_time_of_who_ignores_the_warning(place: Place) -> None:
    script = "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    result = place.run(script, Limits(cpu_time=1))
    if place.name == "bubblewrap":  # which does not tell the usage either
        assert (result.exit, result.limits_hit) == (128 + 9, ())
    elif place.tells_signals:
        assert (result.exit, result.limits_hit) == (-9, ("cpu_time",))
    assert result.exit != 0
    assert not result.timed_out


@pytest.mark.sample(1)
def test_cpu_time_of_a_child_of_a_shell(place: Place) -> None:
    script = f"""
import os, subprocess, sys
done = subprocess.run([{PYTHON!r}, "-I", "-S", "-c", "while True: pass"])
sys.exit(128 - done.returncode)
"""
    result = place.run(script, Limits(cpu_time=1))
    assert (result.exit, result.limits_hit) == (128 + 24, ("cpu_time",))


@pytest.mark.sample(1)
def test_a_fraction_of_cpu_time(place: Place) -> None:
    """The reaper ends the run there; where there is none, it is refused."""
    burn = "import time\nwhile time.process_time() < {}: pass"
    if place.way not in ("slot", "fresh") or not place.is_native:
        with pytest.raises(UnsupportedError, match=r"cpu_time=0\.9: .* say cpu_time=1"):
            place.run("", Limits(cpu_time=0.9))
        return
    for most, used, exit, hit in ((0.1, 0.8, -9, ("cpu_time",)), (0.9, 0.1, 0, ())):
        result = place.run(burn.format(used), Limits(cpu_time=most))
        assert (result.exit, result.limits_hit) == (exit, hit)


def test_another_death_is_no_cpu_time(place: Place) -> None:
    burn = "import os, time\nwhile time.process_time() < 0.3: pass\n"
    kill = "os.kill(os.getpid(), 9)" if not place.is_pid_1 else "os._exit(137)"
    result = place.run(burn + kill, Limits(cpu_time=3))
    assert result.exit != 0
    assert result.limits_hit == ()
    if place.way not in ("pid 1", "undefined"):
        return  # others have no usage then, which would look as if
    burn = """
import os, time
for _ in range(2):
    if os.fork() == 0:
        while time.process_time() < 0.8: pass
        os._exit(0)
while True:
    try: os.wait()
    except ChildProcessError: time.sleep(1000)
"""
    late = place.run(burn, Limits(cpu_time=1), timeout=4)
    assert (late.timed_out, late.limits_hit) == (True, ())


def test_file_size(place: Place) -> None:
    script = """
import os, signal
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
fd = os.open("/tmp/file", os.O_CREAT | os.O_RDWR)
assert os.write(fd, b"x" * 2000) == 1000
os.write(fd, b"x")
"""
    result = place.run(script, Limits(file_size=1000))
    if not place.is_pid_1:  # which gets EFBIG
        assert result.exit == {"bubblewrap": 128 + 25}.get(place.name, -25)
        assert result.limits_hit == ("file_size",)
    else:
        assert result.exit == 1
        assert b"File too large" in (result.err or b"") or place.name == "linux_user_chroot"
        assert result.limits_hit == ()


@pytest.mark.parametrize(
    ("limits", "script", "error"),
    [
        (Limits(address_space=1 << 28), "bytearray(1 << 29)", "MemoryError"),
        (Limits(data=1 << 28), "bytearray(1 << 29)", "MemoryError"),
        (Limits(open_files=20), "x = [open('/') for _ in range(20)]", "IsADirectory"),
        (
            Limits(open_files=20),
            "import os; x = [os.open('/', 0) for _ in range(18)]",
            "[Errno 24] Too many open files",
        ),
    ],
)
def test_what_the_command_is_told(place: Place, limits: Limits, script: str, error: str) -> None:
    result = place.run(script, limits)
    assert result.exit == 1
    assert error in (result.err or b"").decode()
    assert place.run(script.replace("open('/')", "0"), None).exit == 0


def test_arguments_beyond_the_stack(place: Place) -> None:
    argv = ["/bin/true", *["x" * 60000] * 10]
    assert place.executor.run_in(place.box(None), argv, cwd="/").exit == 0
    with pytest.raises((SetupError, AssertionError)) as caught:  # by a program in between: its exit
        assert place.executor.run_in(place.box(Limits(stack=1 << 20)), argv, cwd="/").exit == 0
    if place.is_native:
        assert isinstance(caught.value, SetupError)
        assert caught.value.errno == errno.E2BIG
        assert "Limits" in caught.value.hint


def test_no_core(place: Place, tmp_path: Path) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    require(not pattern.startswith(("|", "/")), f"cores are somebody else's: {pattern}")
    most = resource.getrlimit(resource.RLIMIT_CORE)[1]
    require(most == -1, "the caller's hard limit of core is lower")
    tmp_path.chmod(0o777)
    if place.name == "linux_user_chroot" and os.geteuid() == 0:
        return  # root can rename what is in /, and so nothing is bound there
    mounts = [Mount.bind(tmp_path, "/tmp")]
    script = "import os, signal\nos.chdir('/tmp')\nif os.fork() == 0: os.abort()\nos.wait()"
    for size, found in ((0, False), (1 << 30, True)):
        place.run(script, Limits(core=size), extra_mounts=mounts)
        assert any(name.startswith("core") for name in os.listdir(tmp_path)) == found


def test_locked_memory(place: Place) -> None:
    limits = Limits(locked_memory=8192)
    if os.geteuid() == 0 and place.name == "linux_user_chroot":
        return  # refused, see below
    result = place.run(LOCK, limits)
    assert result.exit == 1
    assert b"Cannot allocate memory" in (result.err or b"")


LOCK = """
import ctypes, os, mmap
memory = mmap.mmap(-1, 1 << 20)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
libc = ctypes.CDLL(None, use_errno=True)
result = libc.mlock(ctypes.c_void_p(start), ctypes.c_size_t(1 << 20))
assert result == 0, os.strerror(ctypes.get_errno())
"""
FORK = "i=0; while sleep 1000 & do i=$((i + 1)); echo $i; done"  # a shell that cannot fork ends


def test_processes_of_a_user(place: Place, shared_rootfs: Path) -> None:
    """Those of the sandbox are counted as well: the reaper, and of a slot the resident."""
    if os.geteuid() == 0:
        assert "uid 0" in " ".join(place.executor.refusals(place.box(Limits(processes=20))))
        with pytest.raises(UnsupportedError, match="uid 0"):
            place.run("", Limits(processes=20))
    is_root = os.geteuid() == 0
    if not place.is_native or (is_root and (place.name != "chroot" or place.is_pid_1)):
        return
    if place.way == "undefined":
        return
    ids = {"user": 54321} if is_root else {}
    words: Any = {"extra_mounts": [Mount.dev()], **ids, **place._words}
    box = open_box(shared_rootfs, limits=Limits(processes=20), **words)
    for _ in range(2):
        result = place.executor.run_in(box, ["sh", "-c", FORK], fresh=place._fresh)
        assert b"can't fork" in result.err
        assert 15 <= int(result.out.split()[-1]) < 20
    box = box.replace(limits=Limits(processes=1))  # it holds from the command on
    assert b"can't fork" in place.executor.run_in(box, ["sh", "-c", FORK]).err


def test_locked_memory_of_who_is_exempt(place: Place) -> None:
    limits = Limits(locked_memory=8192)
    if os.geteuid() == 0 and place.name != "user_namespace":
        with pytest.raises(UnsupportedError, match="ipc_lock"):
            place.run(LOCK, limits, policy=Policy(capabilities="all"))
    elif os.geteuid() != 0 or place.name == "user_namespace":
        assert place.run(LOCK, limits, policy=Policy(capabilities="all")).exit == 1


# ---- refused ---------------------------------------------------------------------------------


def test_more_than_the_caller_has(place: Place) -> None:
    """As far as the caller has the capabilities; in a new user namespace nobody has them."""
    have = int(machine.status("CapEff"), 16)
    inside = place.name == "user_namespace"
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    score = int(Path("/proc/self/oom_score_adj").read_text()) - 1
    for name, value, step, capability in (
        ("open_files", hard + 1, "limits", "sys_resource"),
        ("nice", -5, "limits", "sys_nice"),
        ("oom_score_adj", score, "oom_score", "sys_resource"),
    ):
        limits = Limits(**{name: value})
        may = have >> CAPABILITIES.index(capability) & 1
        if may and not inside:
            found = look(place, limits)
            assert found.get(name, found["rlimits"][5][0]) == value
        elif not may:  # what root may from within a user namespace is the kernel's to say
            with pytest.raises(SetupError, match=name) as caught:
                place.run("", limits)
            assert caught.value.step == step
            assert f"CAP_{capability.upper()}" in caught.value.hint


def test_cpus_that_are_not_there(place: Place) -> None:
    there = min(os.sched_getaffinity(0))
    for cpus in ([1023], [there, 1023]):  # of the second the kernel would leave one out
        with pytest.raises(SetupError, match=r"cpuset=\[.*1023\].*does not have all") as caught:
            place.run("", Limits(cpuset=cpus))
        assert (caught.value.step, caught.value.errno) == ("limits", errno.EINVAL)


def test_open_files_beyond_the_machine_s(place: Place) -> None:
    with pytest.raises(SetupError, match=r"open_files=\d+.*fs.nr_open") as caught:
        place.run("", Limits(open_files=(1 << 31) - 1))
    assert caught.value.step == "limits"


@pytest.mark.parametrize(
    "words",
    [
        {"open_files": 2},
        {"cpu_time": 0},
        {"cpu_time": 0.0},
        {"cpu_time": float("nan")},
        {"cpu_time": "1"},
        {"cpu_time": True},
        {"file_size": -1},
        {"core": True},
        {"stack": "8x"},
        {"stack": "m"},
        {"stack": "-8m"},
        {"stack": "8 m"},
        {"memory": "0"},
        {"memory": "9999999T"},
        {"processes": -1},
        {"nice": 20},
        {"nice": -21},
        {"scheduler": "fifo"},
        {"cpuset": 0},
        {"cpuset": []},
        {"cpuset": "0"},
        {"cpuset": [1024]},
        {"cpuset": [-1]},
        {"oom_score_adj": 1001},
        {"umask": 0o22},
        {"no_such": 1},
        {"memory": 0},
        {"memory": "100K"},
        {"pids": 0},
        {"cpu_weight": 0},
        {"cpus": 0},
        {"cpus": "1"},
        {"cpus": float("nan")},
        {"cpus": (0, 2)},
        {"cpu_quota": 1},
        {"cgroup": "relative"},
        {"cgroup": 5},
    ],
    ids=repr,
)
def test_what_makes_no_sense(words: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        Limits(**words)


def test_a_limit_of_swap_takes_one_of_memory(shared_rootfs: Path) -> None:
    """Of the same Limits, or of those that it goes over."""
    assert Limits(memory="5M") | Limits(swap=3) == Limits(memory="5M", swap=3)
    with pytest.raises(SpecError, match="takes one of memory"):
        Sandbox(shared_rootfs, limits=Limits(swap=3))
    with pytest.raises(SpecError, match="takes one of memory"):
        Sandbox(shared_rootfs).run(["true"], limits=Limits(swap=3))


def test_memory_that_starts_no_process_is_refused() -> None:
    least = 64 * os.sysconf("SC_PAGE_SIZE")
    for size in (200, "4K", least - 1):
        with pytest.raises(SpecError, match=r"no process starts with less .* '200M'"):
            Limits(memory=size)
    assert Limits(memory=least).memory == least


def test_a_value(shared_rootfs: Path) -> None:
    import pickle

    limits = Limits(cpuset=(1, 0, 1), memory="1M")
    assert limits == Limits(cpuset=[0, 1], memory=1 << 20)
    assert limits != Limits(cpuset=2, memory=1 << 20)
    assert hash(limits) == hash(Limits(cpuset=[0, 1], memory=1 << 20))
    assert pickle.loads(pickle.dumps(limits)) == limits
    with pytest.raises(SpecError):
        Sandbox(shared_rootfs, limits={"nice": 5})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "count"),
    [("512", 512), ("512K", 512 << 10), ("200M", 200 << 20), ("2g", 2 << 30), ("1T", 1 << 40)],
)
def test_a_size_has_a_unit(size: str, count: int) -> None:
    assert Limits(data=size, swap=size) == Limits(data=count, swap=count)
    assert Mount.tmpfs("/x", size=size) == Mount.tmpfs("/x", size=count)


def test_what_moved_is_told_where_it_went() -> None:
    for words, text in (
        ({"cpus": (0, 2)}, r"cpuset=\(0, 2\)"),
        ({"cpus": [1]}, "cpuset"),
        ({"cpu_quota": 2}, "called cpus"),
        ({"umask": 0o22}, r"Sandbox\(umask="),
        ({"personality": "linux32"}, r"Sandbox\(personality="),
    ):
        with pytest.raises(SpecTypeError, match=text):
            Limits(**words)  # type: ignore[arg-type]


def test_limits_are_merged_field_by_field() -> None:
    box, command = Limits(memory="200M", pids=9, core=0), Limits(pids=5, core=None, nice=3)
    assert box | command == Limits(memory="200M", pids=5, core=0, nice=3)
    assert command | box == Limits(memory="200M", pids=9, core=0, nice=3)
    assert box | None == None | box == box
    assert Limits(memory="5M", swap=3) | Limits(memory="7M") == Limits(memory="7M", swap=3)
    with pytest.raises(TypeError):
        box | {"pids": 5}  # type: ignore[operator]


# ---- who runs all of this --------------------------------------------------------------------


@needs_root
@pytest.mark.skipif(NESTED is not None, reason="it is run by the same suite outside")
@pytest.mark.timeout(300)
def test_limits_of_an_ordinary_user_through_linux_user_chroot(setuid_tool: Any) -> None:
    env = {
        "SANDBOXLIB_TEST_NESTED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": f"{Path(sandboxlib.__file__).resolve().parents[1]}:{HERE}",
        "HOME": "/tmp",
    }
    argv = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    argv += ["-k", "linux_user_chroot"]
    done = setuid_tool.run(*argv, timeout=290, **env)
    if done.returncode != 0:
        telling = [line for line in done.stdout.splitlines() if line.startswith(("E  ", "FAILED"))]
        pytest.fail("\n".join([*telling, done.stderr[-2000:]]))
