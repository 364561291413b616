# SPDX-License-Identifier: Apache-2.0
"""The messages between the caller, the resident, the reaper and the command's process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import needs_root, python, require
from lib.waiting import late, wait_until

from sandboxlib import CAPTURE, Policy, Result, Sandbox, SandboxError, SetupError, StatusLost
from sandboxlib._core import native
from sandboxlib._runs.plan import plan_for

pytestmark = needs_root
pytest_plugins = ["lib.probes"]

WAYS = ("slot", "fresh", "map", "start", "async")
each_way = pytest.mark.parametrize("way", WAYS)


def run_by(way: str, box: Sandbox, command: list[str], **words: Any) -> Result:
    """A run, by one of the WAYS."""
    if way == "map":
        (result,) = box.map([command], on_failure="continue", **words)
        if isinstance(result, SandboxError):
            raise result
        return result
    if way == "async":
        return asyncio.run(box.run_async(command, **words))
    if way == "start":
        words.pop("timeout", None)
        with box.start(command, **words) as process:
            process.communicate(timeout=60)
        return process.result()
    return box.run(command, fresh=way == "fresh", **words)


@pytest.fixture
def box(rootfs: Path) -> Iterator[Sandbox]:
    with open_box(rootfs) as made:
        yield made


# ---- stops and ends ------------------------------------------------------------------------------

TRACED = r"""
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <unistd.h>
static void handle(int signum) { write(1, "handled ", 8); }
static void *thread(void *x) {
    ptrace(PTRACE_TRACEME, 0, 0, 0);
    raise(SIGSTOP);
    return x;
}
int main(int argc, char **argv) {
    int n = atoi(argv[2]);
    signal(SIGUSR1, handle);
    if (!strcmp(argv[1], "thread")) {
        pthread_t t;
        pthread_create(&t, 0, thread, 0);
        pthread_join(t, 0);
    } else {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
    }
    if (!strcmp(argv[1], "exec"))
        execl("/bin/sh", "sh", "-c", "echo after; exit 7", NULL);
    if (!strcmp(argv[1], "orphan")) {
        if (fork()) {
            usleep(300000);
            return 7;
        }
        setsid();
        usleep(100000);
        if (!fork()) {
            usleep(50000);
            ptrace(PTRACE_TRACEME, 0, 0, 0);
            raise(SIGSTOP);
        }
        _exit(0);
    }
    if (n)
        raise(n);
    write(1, "after\n", 6);
    return 7;
}
"""


@pytest.mark.slow
@each_way
@pytest.mark.parametrize(
    ("words", "exit", "out"),
    [
        (("self", "19"), 7, b"after\n"),
        (("self", "20"), 7, b"after\n"),
        (("self", "5"), 7, b"after\n"),
        (("self", "10"), 7, b"handled after\n"),
        (("self", "15"), -15, b""),
        (("self", "40"), -40, b""),
        (("exec", "0"), 7, b"after\n"),
        (("thread", "0"), 7, b"after\n"),
        (("orphan", "0"), 7, b""),
    ],
    ids=lambda value: value[0] + value[1] if isinstance(value, tuple) else "",
)
def test_a_stop_of_a_command_that_nobody_traces_is_not_its_end(
    box: Sandbox,
    compile_static: Callable[[str], Path],
    way: str,
    words: tuple[str, str],
    exit: int,
    out: bytes,
) -> None:
    shutil.copy(compile_static(TRACED), Path(box.root) / "bin" / "traced")
    for _ in range(2):
        result = run_by(way, box, ["traced", *words], timeout=60)
        assert (result.exit, result.out, result.timed_out) == (exit, out, False)


@pytest.mark.parametrize("words", [{"init": False}, {"processes": "undefined"}], ids=str)
def test_a_traced_command_of_the_caller_s_own_ends_in_time(
    rootfs: Path, compile_static: Callable[[str], Path], words: dict[str, Any]
) -> None:
    shutil.copy(compile_static(TRACED), rootfs / "bin" / "traced")
    with open_box(rootfs, **words) as box:
        result = box.run(["traced", "self", "19"], timeout=0.5, fresh=True)
        assert (result.exit, result.timed_out) == (-9, True)
        result = box.run(["traced", "exec", "0"], timeout=0.5, fresh=True)
        assert (result.exit, result.timed_out) == (-9, True)


def test_suspend_stops_a_command_that_asked_to_be_traced(
    box: Sandbox, compile_static: Callable[[str], Path]
) -> None:
    source = "#include <sys/ptrace.h>\n#include <unistd.h>\nint main(void){"
    source += 'ptrace(PTRACE_TRACEME, 0, 0, 0); write(1, "x", 1); pause(); }'
    shutil.copy(compile_static(source), Path(box.root) / "bin" / "traced")
    with box.start(["traced"], stdout=CAPTURE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"x"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()

        def state() -> str:
            return Path(f"/proc/{children[0]}/stat").read_text().rpartition(")")[2].split()[0]

        process.suspend()
        assert wait_until(lambda: state() == "T")
        process.resume()
        assert wait_until(lambda: state() == "S")
        process.kill()


#: A host whose own seccomp filter answers EPERM to wait4.
NO_WAIT4 = """
import ctypes, json, struct, sys
from sandboxlib import Sandbox, SandboxError, StatusLost
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
wait4 = {"x86_64": 61, "aarch64": 260}[__import__("platform").machine()]
code = [(0x20, 0, 0, 0), (0x15, 0, 1, wait4), (0x06, 0, 0, 0x50000 | 1), (0x06, 0, 0, 0x7fff0000)]
blob = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
program = struct.pack("=HxxxxxxQ", len(code), ctypes.addressof(blob))
prctl = ctypes.CDLL(None, use_errno=True).prctl
assert prctl(38, 1, 0, 0, 0) == 0 and prctl(22, 2, program, 0, 0) == 0
root, mode = sys.argv[1], json.loads(sys.argv[2])
fresh = mode.pop("fresh", False)
with open_box(root, **mode) as box:
    for _ in range(2):
        try:
            print(box.run(["sleep", "30"], fresh=fresh, timeout=60))
        except StatusLost as error:
            print("lost", "Operation not permitted (EPERM)" in str(error))
"""


@pytest.mark.parametrize("mode", [{}, {"fresh": True}], ids=["slot", "fresh"])
def test_a_reaper_that_may_not_wait_says_so_at_once(rootfs: Path, mode: dict[str, Any]) -> None:
    argv = [*python(), "-c", NO_WAIT4, str(rootfs), json.dumps(mode)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=50, check=False)
    assert (done.stdout, done.stderr) == ("lost True\n" * 2, "")


def test_without_a_reaper_it_is_the_caller_who_waits_by_another_call(rootfs: Path) -> None:
    script = NO_WAIT4.replace('["sleep", "30"]', '["true"]')
    argv = [*python(), "-c", script, str(rootfs), '{"init": false}']
    done = subprocess.run(argv, capture_output=True, text=True, timeout=50, check=False)
    assert (done.stdout.count("exit=0"), done.stderr) == (2, "")


@pytest.mark.parametrize("signum", [34, 35, 40, 63, 64])
def test_json_names_real_time_signals(rootfs: Path, signum: int) -> None:
    argv = [sys.executable, "-m", "sandboxlib", "run", "--json", str(rootfs)]
    argv += ["/bin/sh", "-c", f"kill -{signum} $$"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signum
    record = json.loads(done.stdout)
    names = {34: "SIGRTMIN", 35: "SIGRTMIN+1", 40: "SIGRTMIN+6", 63: "SIGRTMIN+29", 64: "SIGRTMAX"}
    assert (record["exit"], record["signal"]) == (-signum, names[signum])


# ---- descriptors in flight -----------------------------------------------------------------------

IN_FLIGHT = """
import array, asyncio, ctypes, os, resource, socket, sys
from sandboxlib import Sandbox, user_namespace
from sandboxlib._concurrent import aio as _async
from sandboxlib._concurrent import map as _map
from sandboxlib._host import machine as _machine
root = sys.argv[1]
os.setgroups([]); os.setgid(54322); os.setuid(54322)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self is the user's
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
with Sandbox(root) as box, Sandbox(root) as other:
    assert box.run(["true"]).exit == 0
    assert box.run(["true"]).exit == 0
    a, b = socket.socketpair()
    try:  # as a command may, too: they are counted for the user
        for _ in range(6):
            rights = array.array("i", [0] * 253)
            a.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    except OSError as error:
        print(error.strerror)
    for n in range(3):
        assert box.run(["sh", "-c", f"exit {n}"]).exit == n
        assert other.run(["sh", "-c", f"exit {n}"], fresh=True).exit == n
        assert [r.exit for r in box.map([["sh", "-c", f"exit {n}"]], on_failure="continue")] == [n]
        assert asyncio.run(box.run_async(["sh", "-c", f"exit {n}"])).exit == n
        print(n, len(os.listdir("/proc/self/fd")) < 40)
"""


@pytest.mark.slow
def test_descriptors_in_flight_of_others_fail_no_run(public_rootfs: Path) -> None:
    argv = [*python(), "-c", IN_FLIGHT, str(public_rootfs)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", check=False)
    require("EPERM, step clone" not in done.stderr, "users have no user namespaces here")
    assert done.stderr == ""
    said = "Too many references: cannot splice\n"
    assert done.stdout == said + "0 True\n1 True\n2 True\n"


# ---- run numbers ---------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def residents(box: Sandbox) -> list[int]:
    slots = plan_for(box).slots
    if not slots:
        return []
    found = [s for r in list(slots._shared._slots) if (s := r()) and s.is_open]
    pids = []
    for slot in found:
        with contextlib.suppress(OSError, IndexError):  # closed meanwhile
            pids.append(native.pid_of(slot.struct.pidfd))
    return [pid for pid in pids if pid > 1]  # of a dead process it is -1


def processes_of(resident: int) -> dict[str, int]:
    """By what they do; those on their way out have no children and are not told."""
    for reaper in children(resident):
        for waiting in children(reaper):
            return {"resident": resident, "reaper": reaper, "waiting": waiting}
    return {"resident": resident}


def kill(pid: int) -> None:
    """Kills a process, and waits until it is dead."""
    assert pid > 1
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            assert select.select([pidfd], [], [], 60)[0]
        finally:
            os.close(pidfd)


class Marked:
    """Runs that leave a file and end with a status of their own."""

    def __init__(self, box: Sandbox) -> None:
        self.box = box
        self.place = Path(box.root) / "tmp"
        self.expected: dict[str, bool] = {}

    def run(self, number: int, way: str, script: str = ":") -> Result | SandboxError:
        name = f"ran{number}"
        line = f"echo ran > /tmp/{name}; {script}; echo {number}; exit {number % 100 + 1}"
        try:
            result: Result | SandboxError = run_by(way, self.box, ["sh", "-c", line], timeout=60)
        except SandboxError as error:
            result = error
        self.expected[name] = (self.place / name).exists()
        return result

    def is_right(self, number: int, result: Result | SandboxError) -> bool:
        """The result of this run, which did all that it had to do."""
        if not isinstance(result, Result):
            return False
        there = self.expected[f"ran{number}"]
        return there and (result.exit, result.out) == (number % 100 + 1, f"{number}\n".encode())

    def nothing_ran_later(self) -> bool:
        return all((self.place / name).exists() == was for name, was in self.expected.items())


in_slots = pytest.mark.parametrize("way", ["slot", "map", "async"])
each_process = pytest.mark.parametrize("who", ["resident", "reaper", "waiting"])
with_or_without = pytest.mark.parametrize("init", [True, False], ids=["reaper", "no reaper"])


@pytest.mark.parametrize("words", [{}, {"network": "isolated"}, {"init": False}], ids=str)
def test_a_resident_serves_one_run_after_the_other(rootfs: Path, words: dict[str, Any]) -> None:
    with open_box(rootfs, **words) as box:
        for _ in range(2):
            assert box.run(["true"]).exit == 0
        before = residents(box)
        for _ in range(6):
            assert box.run(["true"]).exit == 0
        assert set(before) <= set(residents(box))


@each_process
@in_slots
@with_or_without
def test_a_process_of_an_idle_slot_is_killed_from_outside(
    rootfs: Path, way: str, who: str, init: bool
) -> None:
    with open_box(rootfs, init=init) as box:
        marked = Marked(box)
        for number in range(2):
            assert marked.is_right(number, marked.run(number, way))
        found = residents(box)
        assert found
        assert wait_until(lambda: all(len(processes_of(pid)) == 3 for pid in found))
        for pid in found:
            pidfd = os.pidfd_open(pid)
            kill(processes_of(pid)[who])
            assert select.select([pidfd], [], [], 60)[0]  # the resident ends by itself
            os.close(pidfd)
        for number in range(2, 8):
            assert marked.is_right(number, marked.run(number, way))
        assert marked.nothing_ran_later()
    assert marked.nothing_ran_later()


@each_process
@in_slots
@with_or_without
def test_a_process_of_a_slot_is_killed_while_its_command_runs(
    rootfs: Path, way: str, who: str, init: bool
) -> None:
    with open_box(rootfs, init=init) as box:
        marked = Marked(box)
        for number in range(2):
            assert marked.is_right(number, marked.run(number, way))
        results: list[Any] = []
        script = "echo begun > /tmp/begun; sleep 50; echo late > /tmp/late"
        thread = threading.Thread(target=lambda: results.append(marked.run(50, way, script)))
        thread.start()
        assert wait_until((marked.place / "begun").exists)

        def busy() -> int | None:
            """The resident whose waiting process is the command now."""
            for pid in residents(box):
                there = processes_of(pid).get("waiting")
                with contextlib.suppress(OSError):
                    if there and b"sleep 50" in Path(f"/proc/{there}/cmdline").read_bytes():
                        return pid
            return None

        resident = busy()
        assert resident is not None
        kill(processes_of(resident)[who])
        thread.join(30)
        assert not thread.is_alive()
        assert results[0].exit == -9
        for number in range(2, 6):
            assert marked.is_right(number, marked.run(number, way))
        assert marked.nothing_ran_later()
    assert not (marked.place / "late").exists()


@pytest.mark.slow
@in_slots
@with_or_without
def test_processes_of_slots_are_killed_at_any_moment(rootfs: Path, way: str, init: bool) -> None:
    with open_box(rootfs, init=init) as box:
        marked = Marked(box)
        is_over = threading.Event()
        killed = []

        def killer() -> None:
            dice = random.Random(0)
            while not is_over.wait(dice.random() / 50):
                with contextlib.suppress(OSError):
                    there = [p for pid in residents(box) for p in processes_of(pid).values()]
                    if there:
                        killed.append(dice.choice(there))
                        kill(killed[-1])

        thread = threading.Thread(target=killer)
        thread.start()
        try:
            outcomes = [marked.run(number, way) for number in range(250)]
        finally:
            is_over.set()
            thread.join()
        for number, outcome in enumerate(outcomes):
            was_killed = isinstance(outcome, Result) and outcome.exit == -9
            was_lost = isinstance(outcome, StatusLost)
            assert was_killed or was_lost or marked.is_right(number, outcome), (number, outcome)
        assert killed
        assert marked.nothing_ran_later()
    assert marked.nothing_ran_later()


# ---- what the reaper of a fresh run is told ------------------------------------------------------


@each_way
@pytest.mark.parametrize("size", [1, 70_000, 100_000])
def test_long_command_lines_arrive_whole(box: Sandbox, way: str, size: int) -> None:
    # Together longer than the buffer of a socket (sysctl net.core.wmem_default).
    words = [f"{n:x<{size}}" for n in range(12)]
    env = {f"V{n}": f"{n:y<{size}}" for n in range(4)}
    script = 'echo $# ${#12} ${#V3} "$V3" | cut -c-30'
    script += "; for w; do case $w in *[0-9]*) ;; *) exit 9;; esac; done"
    result = run_by(way, box, ["sh", "-c", script, "sh", *words], extra_env=env, timeout=60)
    length = max(size, 1)
    start = f"12 {max(length, 2)} {length} " + f"{3:y<{size}}"
    assert (result.exit, result.err) == (0, b"")
    assert result.out == start[:30].encode() + b"\n"


@each_way
def test_what_is_too_long_for_an_exec_is_told_as_that(box: Sandbox, way: str) -> None:
    for words in (["x" * 200_000], ["x" * 100_000] * 100):
        with pytest.raises(SetupError) as caught:
            run_by(way, box, ["true", *words], timeout=60)
        assert (caught.value.step, caught.value.errno) == ("exec", errno.E2BIG)
    assert run_by(way, box, ["true"]).exit == 0


@each_way
def test_nothing_of_the_command_shows_in_pid_1(box: Sandbox, way: str) -> None:
    script = "cat /proc/1/cmdline; cat /proc/1/environ 2>&1 | grep -c secret"
    result = run_by(way, box, ["sh", "-c", script], extra_env={"WORD": "secret"})
    assert result.out == b"sandboxlib-init\0000\n"


# ---- what a command can do to pid 1 --------------------------------------------------------------

ON_PID_1 = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
static void say(const char *name, long result) {
    printf("%s %s\n", name, result < 0 ? strerrorname_np(errno) : "done");
}
int main(void) {
    cpu_set_t cpus;
    struct sched_param priority = {0};
    CPU_ZERO(&cpus);
    CPU_SET(sched_getcpu(), &cpus);
    say("nice", setpriority(PRIO_PROCESS, 1, 19));
    say("affinity", sched_setaffinity(1, sizeof cpus, &cpus));
    say("scheduler", sched_setscheduler(1, SCHED_IDLE, &priority));
    say("ioprio", syscall(SYS_ioprio_set, 1, 1, 3 << 13));
    for (int i = 0; i < 16; i++) {
        struct rlimit none = {0, 0};
        if (i != RLIMIT_CPU)
            prlimit(1, i, &none, NULL);
    }
    int fd = open("/proc/1/autogroup", O_WRONLY);
    write(fd, "19", 2);
    return 0;
}
"""
UNCHANGED = b"nice EPERM\naffinity EPERM\nscheduler EPERM\nioprio EPERM\n"


@each_way
@pytest.mark.parametrize(
    "words",
    [
        {},
        {"user": "root"},
        {"user": 1000},
        {"policy": Policy(capabilities="none")},
        {"policy": Policy(capabilities=["chown"])},
    ],
    ids=str,
)
def test_a_command_cannot_reschedule_its_reaper(
    rootfs: Path, compile_static: Callable[[str], Path], way: str, words: dict[str, Any]
) -> None:
    shutil.copy(compile_static(ON_PID_1), rootfs / "bin" / "probe")
    with open_box(rootfs, **words) as box:
        for _ in range(2):
            result = run_by(way, box, ["probe"], timeout=60)
            assert result[:3] == (0, UNCHANGED, b"")


AS_USER = """
import asyncio, ctypes, json, os, sys
from sandboxlib import Sandbox, user_namespace
from sandboxlib._concurrent import aio as _async
from sandboxlib._concurrent import map as _map
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
from sandboxlib._host import machine as _machine
root, words = sys.argv[1], json.loads(sys.argv[2])
os.setgroups([]); os.setgid(54322); os.setuid(54322)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self is the user's
with open_box(root, **words) as box:
    found = [box.run(["probe"]), box.run(["probe"]), box.run(["probe"], fresh=True)]
    found += box.map([["probe"]], on_failure="continue")
    found.append(asyncio.run(box.run_async(["probe"])))
    print({bytes(r.out or b"") for r in found}, {r.exit for r in found})
"""


@pytest.mark.parametrize("words", [{}, {"user": "root"}], ids=str)
def test_a_command_of_a_user_cannot_reschedule_its_reaper(
    public_rootfs: Path, compile_static: Callable[[str], Path], words: dict[str, Any]
) -> None:
    shutil.copy(compile_static(ON_PID_1), public_rootfs / "bin" / "probe")
    argv = [*python(), "-c", AS_USER, str(public_rootfs), json.dumps(words)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", check=False)
    require("EPERM, step clone" not in done.stderr, "users have no user namespaces here")
    assert done.stderr == ""
    assert done.stdout == f"{ {UNCHANGED} } {{0}}\n"


DEAF = r"""
#define _GNU_SOURCE
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
static void term(int signum) { write(1, "TERM\n", 5); _exit(0); }
int main(int argc, char **argv) {
    struct rlimit none = {0, 0};
    for (int i = 0; i < 16; i++)
        if (i != RLIMIT_CPU)
            prlimit(1, i, &none, NULL);
    signal(SIGTERM, term);
    write(1, "ready\n", 6);
    for (;;)
        pause();
}
"""


@pytest.fixture
def deaf(rootfs: Path, compile_static: Callable[[str], Path]) -> Iterator[Sandbox]:
    shutil.copy(compile_static(DEAF), rootfs / "bin" / "deaf")
    with open_box(rootfs) as made:
        yield made


@pytest.mark.parametrize("way", ["slot", "fresh", "map", "async"])
def test_limits_of_pid_1_do_not_make_it_deaf_to_grace(deaf: Sandbox, way: str) -> None:
    if way != "fresh":
        run_by(way, deaf, ["true"])
    result = late(
        lambda timeout: run_by(way, deaf, ["deaf"], timeout=timeout, grace=100.0),
        lambda result: result.out.startswith(b"ready"),
    )
    assert (result.exit, result.out, result.timed_out) == (0, b"ready\nTERM\n", True)


def test_limits_of_pid_1_do_not_make_it_deaf_to_a_handle(deaf: Sandbox) -> None:
    with deaf.start(["deaf"], stdout=CAPTURE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        (command,) = children(process.pid)

        def state() -> str:
            return Path(f"/proc/{command}/stat").read_text().rpartition(")")[2].split()[0]

        for _ in range(3):
            process.suspend()
            assert wait_until(lambda: state() == "T")
            process.resume()
            assert wait_until(lambda: state() == "S")
        process.terminate()
        assert process.wait(60) == 0
        assert process.stdout.read() == b"TERM\n"


def test_a_run_that_has_not_begun_takes_no_signal() -> None:
    # All of it is zero, and 0 is the caller's own process group to kill(2): so in a group apart.
    script = """
from sandboxlib._core import native, workspace
for signum in (9, 15):
    print(native.lib.sbx_signal(workspace.Workspace().run, signum))
"""
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, start_new_session=True)
    assert (done.returncode, done.stdout) == (0, f"{-errno.ESRCH}\n" * 2)
