# SPDX-License-Identifier: Apache-2.0
"""Hostile surroundings: what hosts do to their runs, and what runs must not do to their hosts.

Every host is a Python process of its own.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from lib import hosts
from lib.machine import needs_root, require
from lib.waiting import processes, wait_until

from sandboxlib import run_sandbox

pytestmark = needs_root
MODES = {
    "reaper": {},
    "init=False": {"init": False},
    "fresh": {"fresh": True},
    "map": {"map": True},
    "fresh, init=False": {"fresh": True, "init": False},
    "processes=undefined": {"processes": "undefined"},
}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())

HEAD = """
box = open_box(root, **mode)
def check(count):
    for i in range(count):
        result = box.run(["sh", "-c", f"echo {i}; exit {i % 50}"])
        assert result == (i % 50, b"%d\\n" % i, b""), result
        assert box.run(["sh", "-c", "kill -9 $$"], **{}).exit in (-9, 0)
"""


def host(script: str, root: Path, mode: object = None, **words: object) -> str:
    return hosts.run(HEAD + script, root, mode, **words)


@pytest.mark.slow
@modes
def test_32_threads_get_each_its_own(shared_rootfs: Path, mode: dict[str, object]) -> None:
    script = """
from concurrent.futures import ThreadPoolExecutor
def one(i):
    return box.run(["sh", "-c", f"echo {i}; echo {i} >&2; exit {i % 100}"]) == (
        i % 100, b"%d\\n" % i, b"%d\\n" % i)
with ThreadPoolExecutor(32) as pool:
    assert all(pool.map(one, range(32 * 200)))
"""
    host(script, shared_rootfs, mode)


@modes
@pytest.mark.parametrize(
    "trick",
    [
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        "signal.signal(signal.SIGCHLD, lambda *_: None)",
        """
def thief():
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            pass
threading.Thread(target=thief, daemon=True).start()
""",
    ],
    ids=["SIG_IGN", "handler", "waitpid(-1)"],
)
def test_the_status_is_true_whatever_the_host_does_with_children(
    shared_rootfs: Path, mode: dict[str, object], trick: str
) -> None:
    require(_kernel() >= (6, 15) or mode == {}, "without the reaper that takes Linux 6.15")
    host(trick + "\ncheck(many(40, 200))\nos._exit(0)", shared_rootfs, mode)


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])


@modes
def test_signals_that_arrive_all_the_time_stay_in_the_host(
    shared_rootfs: Path, mode: dict[str, object]
) -> None:
    script = """
seen, pids = [], set()
def handler(*_):
    seen.append(1); pids.add(os.getpid())
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
check(many(50, 150))
signal.setitimer(signal.ITIMER_REAL, 0)
assert len(seen) > 20 and pids == {os.getpid()}
"""
    host(script, shared_rootfs, mode)


@modes
def test_signals_to_the_whole_group_do_not_reach_a_child_in_its_set_up(
    shared_rootfs: Path, mode: dict[str, object]
) -> None:
    # Until it has a session of its own the child is in the host's group; set-up takes 1 ms.
    script = """
import subprocess
os.setpgid(0, 0)
pids = set()
signal.signal(signal.SIGUSR1, lambda *_: pids.add(os.getpid()))
isolated = open_box(root, network="isolated", **mode)
sender = subprocess.Popen(
    [sys.executable, "-c", "import os, sys, time\\nwhile True: os.killpg(int(sys.argv[1]), 10)",
     str(os.getpid())], start_new_session=True)
try:
    while not pids:
        time.sleep(0.001)
    end = time.monotonic() + 8
    for _ in range(many(40, 150)):
        assert isolated.run(["echo", "x"]) == (0, b"x\\n", b"")
        if time.monotonic() > end:
            break
finally:
    sender.kill()
    sender.wait()
assert pids == {os.getpid()}
"""
    host(script, shared_rootfs, mode)


@modes
def test_the_command_begins_with_default_signals(
    shared_rootfs: Path, mode: dict[str, object]
) -> None:
    script = """
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1, signal.SIGRTMIN])
before = open("/proc/self/status").read()
run = lambda: run_sandbox("/", ["cat", "/proc/self/status"], **mode).out.decode()
print(run())
assert signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN
assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == {15, 10, signal.SIGRTMIN}
"""
    for line in host(script, shared_rootfs, mode).split("\n"):
        name, _, value = line.partition(":")
        if name in ("SigBlk", "SigIgn", "SigCgt", "SigPnd"):
            assert int(value, 16) == 0, line


@modes
def test_a_host_without_standard_descriptors_is_no_different(
    shared_rootfs: Path, mode: dict[str, object]
) -> None:
    script = """
closed, result = eval(sys.argv[3]), os.dup(2)
for fd in closed:
    os.close(fd)
good = box.run(["sh", "-c", "cat; echo out; echo err >&2; ls /proc/self/fd | wc -l"])
os._exit(0 if good[:2] == (0, b"out\\n4\\n") and good.err == b"err\\n" else 1)
"""
    if mode == MODES["processes=undefined"]:
        script = script.replace("; ls /proc/self/fd | wc -l", "; echo 4")
    for closed in itertools.chain.from_iterable(
        itertools.combinations(range(3), count) for count in range(4)
    ):
        argv = hosts.command(HEAD + script, shared_rootfs, mode, repr(closed))
        assert subprocess.run(argv, check=False).returncode == 0, closed


@modes
def test_only_0_1_and_2_reach_the_command(mode: dict[str, object], shared_rootfs: Path) -> None:
    script = """
stop = False
def opener():
    while not stop:
        fds = [os.open("/etc/passwd", os.O_RDONLY) for _ in range(20)]
        for fd in fds:
            os.set_inheritable(fd, True)
        for fd in fds:
            os.close(fd)
thread = threading.Thread(target=opener)
thread.start()
try:
    for _ in range(many(25, 100)):
        # 3 is the directory that ls reads.
        assert run_sandbox("/", ["ls", "/proc/self/fd"], **mode).out == b"0\\n1\\n2\\n3\\n"
finally:
    stop = True
    thread.join()
"""
    host(script, shared_rootfs, mode)


@modes
def test_a_run_changes_nothing_of_its_host(shared_rootfs: Path, mode: dict[str, object]) -> None:
    script = """
import ctypes
PR_GET_DUMPABLE = 3
def state():
    status = open("/proc/self/status").read().split("\\n")
    kept = ("Umask", "Uid", "Gid", "Groups", "Sig", "Cap", "NoNewPrivs", "Seccomp", "Threads")
    return (
        [line for line in status if line.startswith(kept) and "SigQ" not in line],
        os.getcwd(), os.listdir("/proc/self/fd"), os.getsid(0), os.getpgrp(),
        ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0),
        [signal.getsignal(number) for number in signal.valid_signals()],
        [os.readlink(f"/proc/self/ns/{n}") for n in os.listdir("/proc/self/ns")],
        open("/proc/self/limits").read(),
        [line for line in open("/proc/self/mountinfo") if " - fuse" not in line],
        open(f"/proc/self/task/{os.getpid()}/children").read(), os.uname().nodename,
    )
box.run(["true"])
before = state()
for words in ({}, {"network": "isolated", "hostname": "box", "filesystem_writable_paths": "none"}):
    words = {**mode, **words}
    run_sandbox(root, ["sh", "-c", "umask 0; cd /tmp; exit 3"], **words)
    for bad in (["nonesuch"], ["true", "/" * 200000]):
        try:
            run_sandbox(root, bad, **words)
        except SetupError:
            pass
    errno = ctypes.get_errno()
assert state() == before, [pair for pair in zip(state(), before) if pair[0] != pair[1]]
"""
    host(script, shared_rootfs, mode)


# ---- the end of the host ---------------------------------------------------------------------


def start_host(script: str, root: Path, mode: object = None) -> subprocess.Popen[bytes]:
    argv = hosts.command(HEAD + script, root, mode)
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@modes
@pytest.mark.parametrize("thread", ["main", "worker"])
def test_sigkill_of_the_host_ends_its_runs(
    shared_rootfs: Path, mode: dict[str, object], thread: str
) -> None:
    mark = f"73{os.getpid()}{thread == 'main':d}"
    script = f"""
run = lambda: box.run(["sleep", "{mark}"])
threads = [threading.Thread(target=run, daemon=True) for _ in range(3)]
[thread.start() for thread in threads]
run() if {thread == "main"} else signal.pause()
"""
    host = start_host(script, shared_rootfs, mode)
    count = 4 if thread == "main" else 3
    assert wait_until(lambda: len(processes(mark)) >= count)
    host.kill()
    host.communicate()
    assert wait_until(lambda: not processes(mark)), processes(mark)


@pytest.mark.every_way
@pytest.mark.parametrize("mode", [{}, {"fresh": True}], ids=["slot", "fresh"])
def test_a_fork_of_the_host_does_not_keep_its_runs_alive(
    shared_rootfs: Path, mode: dict[str, object]
) -> None:
    mark = f"74{os.getpid()}"
    script = f"""
import warnings
began = threading.Event()
command = ["sh", "-c", "echo; exec sleep {mark}"]
run = lambda: box.run(command, stdout=lambda data: began.set())
threading.Thread(target=run, daemon=True).start()
began.wait()
warnings.simplefilter("ignore")  # Python 3.12 warns of every fork with threads
pid = os.fork()
if pid:
    print(pid, flush=True)
signal.pause()
"""
    host = start_host(script, shared_rootfs, mode)
    assert host.stdout is not None
    fork = int(host.stdout.readline())
    try:
        assert wait_until(lambda: processes(mark))
        host.kill()
        host.wait()
        assert wait_until(lambda: not processes(mark))
        assert os.path.exists(f"/proc/{fork}")
    finally:
        os.kill(fork, signal.SIGKILL)
        host.communicate()


@modes
def test_a_worker_thread_that_ends_leaves_the_runs_of_others(
    shared_rootfs: Path, mode: dict[str, object]
) -> None:
    script = """
for _ in range(many(6, 20)):
    results = []
    slow = threading.Thread(target=lambda: results.append(box.run(["usleep", "50000"])))
    quick = threading.Thread(target=lambda: results.append(box.run(["true"])))
    slow.start(); quick.start(); slow.join(); quick.join()
    assert [result.exit for result in results] == [0, 0]
"""
    host(script, shared_rootfs, mode)


# ---- Ctrl-C ----------------------------------------------------------------------------------


@modes
def test_ctrl_c_ends_the_run_and_is_raised_once(
    shared_rootfs: Path, mode: dict[str, object]
) -> None:
    mark = f"75{os.getpid()}"
    script = f"""
signal.signal(signal.SIGINT, signal.default_int_handler)
fds = len(os.listdir("/proc/self/fd"))
count = 0
try:
    print("ready", flush=True)
    box.run(["sleep", "{mark}"])
except KeyboardInterrupt:
    count += 1
assert count == 1
try:
    time.sleep(0.3)
except KeyboardInterrupt:
    count += 1
assert open(f"/proc/self/task/{{os.getpid()}}/children").read() == ""
assert box.run(["echo", "x"]).out == b"x\\n"
box.close()
assert len(os.listdir("/proc/self/fd")) <= fds + 1, os.listdir("/proc/self/fd")
print(count)
"""
    host = start_host(script, shared_rootfs, mode)
    assert wait_until(lambda: processes(mark))
    start = time.monotonic()
    host.send_signal(signal.SIGINT)
    out, err = host.communicate(timeout=20)
    assert (out, host.returncode) == (b"ready\n1\n", 0), err
    assert time.monotonic() - start < 30
    assert not processes(mark)


@modes
def test_ctrl_c_at_any_moment_leaves_nothing(shared_rootfs: Path, mode: dict[str, object]) -> None:
    script = """
signal.signal(signal.SIGINT, signal.default_int_handler)
box.run(["true"])
box.close()
import random
before = os.listdir("/proc/self/fd")
hits = 0
count = many(80, 400)
for i in range(count):
    timer = threading.Timer(random.random() * 0.003, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        while True:
            box.run(["true"])
    except KeyboardInterrupt:
        hits += 1
    timer.join()
import gc; gc.collect()
box.close()
assert hits == count
assert os.listdir("/proc/self/fd") == before
assert open(f"/proc/self/task/{os.getpid()}/children").read() == ""
"""
    host(script, shared_rootfs, mode)


def test_exceptions_from_other_threads_leave_nothing(shared_rootfs: Path) -> None:
    script = """
import random
class Stop(Exception): pass
raised = 0
busy = threading.Semaphore(0)
def work():
    global raised
    try:
        busy.release()
        while True:
            box.run(["true"])
    except Stop:
        raised += 1
box.run(["true"])
box.close()
before = os.listdir("/proc/self/fd")
count = many(10, 40)
for _ in range(count):
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
        busy.acquire()
    time.sleep(random.random() * 0.02)
    for thread in threads:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(Stop))
    [thread.join() for thread in threads]
import gc; gc.collect()
box.close()
assert raised == 8 * count
assert os.listdir("/proc/self/fd") == before
assert open(f"/proc/self/task/{os.getpid()}/children").read() == ""
"""
    host(script, shared_rootfs)


# ---- forks, files, limits --------------------------------------------------------------------


@modes
def test_forks_of_other_threads_do_not_hold_a_run(
    shared_rootfs: Path, mode: dict[str, object]
) -> None:
    # A fork without exec has copies of every pipe that is open at that moment.
    script = """
fork = ctypes.PyDLL(None).fork
children, stop = [], False
def forker():
    while not stop:
        pid = fork()
        if pid == 0:
            signal.pthread_sigmask(signal.SIG_BLOCK, [])
            time.sleep(100)
            os._exit(0)
        children.append(pid)
        time.sleep(0.005)
thread = threading.Thread(target=forker)
thread.start()
start = time.monotonic()
try:
    for i in range(many(30, 100)):
        assert box.run(["sh", "-c", "echo x"]) == (0, b"x\\n", b"")
        assert i % 10 or box.run(["sleep", "60"], timeout=0.02).timed_out
    assert time.monotonic() - start < 60
finally:
    stop = True
    thread.join()
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
"""
    host(script, shared_rootfs, mode)


def test_a_fork_of_the_host_cannot_end_its_runs(shared_rootfs: Path) -> None:
    script = """
reader, writer = os.pipe()
command = ["sh", "-c", "echo up >&2; sleep 1; echo x"]
thread = threading.Thread(target=lambda: results.append(box.run(command, stderr=writer)))
results = []
thread.start()
assert os.read(reader, 1)
import gc, warnings
warnings.simplefilter("ignore")  # Python 3.12 warns of every fork with threads
pid = os.fork()
if pid == 0:
    gc.collect()
    os._exit(0 if box.run(["echo", "y"]).out == b"y\\n" else 1)
assert os.waitpid(pid, 0)[1] == 0
thread.join()
assert results[0].out == b"x\\n"
"""
    host(script, shared_rootfs)


def test_programs_that_were_just_written_can_be_run(rootfs: Path) -> None:
    script = """
from concurrent.futures import ThreadPoolExecutor
import shutil
def one(i):
    path = f"{root}/tmp/program{i}"
    shutil.copy(f"{root}/bin/busybox", path)
    os.chmod(path, 0o755)
    assert box.run([f"/tmp/program{i}", "true"]).exit in (0, 127)
    os.unlink(path)
with ThreadPoolExecutor(8) as pool:
    list(pool.map(one, range(many(100, 400))))
"""
    host(script, rootfs)


def test_a_machine_that_forbids_programs_in_memory_uses_the_file(shared_rootfs: Path) -> None:
    require(os.path.exists("/proc/sys/vm/memfd_noexec"), "the kernel has no vm.memfd_noexec")
    script = 'echo 2 > /proc/sys/vm/memfd_noexec && exec "$@"'
    host_script = HEAD + "print(box.run(['echo', 'x']).out, os.readlink('/proc/self/fd/'"
    host_script += " + str(sandboxlib._core.native.init_descriptor())))"
    argv = ["unshare", "-pf", "--mount-proc", "sh", "-c", script, "sh"]
    done = subprocess.run(
        [*argv, *hosts.command(host_script, shared_rootfs)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("b'x\\n' ")
    assert done.stdout.endswith("sandboxlib/_init\n")


def test_a_host_that_closes_what_is_not_its_own_still_runs_the_reaper(shared_rootfs: Path) -> None:
    script = """
box.run(["true"])
os.closerange(3, 100)
files = [open("/etc/passwd") for _ in range(20)]
assert box.run(["echo", "x"]).out == b"x\\n"
"""
    host(script, shared_rootfs)


# ---- leaks -----------------------------------------------------------------------------------


@pytest.mark.slow
@modes
def test_thousands_of_runs_leave_nothing(shared_rootfs: Path, mode: dict[str, object]) -> None:
    script = """
import gc, resource
from sandboxlib import Mount
def state():
    gc.collect()
    for each in (box, isolated, mounted):
        each.close()
    return (sorted(os.listdir("/proc/self/fd")), threading.active_count(),
            open(f"/proc/self/task/{os.getpid()}/children").read(),
            [line for line in open("/proc/self/mountinfo") if " - fuse" not in line])
def memory():
    return int(open("/proc/self/statm").read().split()[1]) * 4
isolated = open_box(root, network="isolated", **mode)
mounted = open_box(root, extra_mounts=[Mount.tmpfs("/tmp"), Mount.bind("/etc", "/made")], **mode)
broken = open_box(root, extra_mounts=[Mount.bind("/none/such", "/tmp")], **mode)
def attempt(box, *words, **more):
    try:
        box.run(*words, **more)
    except SetupError:
        pass
def once(i):
    attempt(box, ["true"])
    attempt(box, ["nonesuch"])
    attempt(box, ["true"], cwd="/none")
    attempt(open_box("/none/such", **mode), ["true"])
    attempt(broken, ["true"])
    attempt(mounted, ["true"])
    attempt(box, ["head", "-c", "300000", "/bin/busybox"])
    if i % 10 == 0:
        attempt(isolated, ["true"])
        attempt(box, ["sleep", "60"], timeout=0.001)
for i in range(40):
    once(i)
before, size = state(), memory()
for i in range(300):
    once(i)
assert state() == before
if "SANDBOXLIB_SANITIZED" not in os.environ:  # a sanitizer keeps what is freed
    assert memory() - size < 3000, (memory(), size)
"""
    host(script, shared_rootfs, mode)


def test_a_finished_sandbox_leaves_no_namespace(shared_rootfs: Path) -> None:
    # Alone in a namespace of pids: other processes of the machine get the freed numbers again.
    script = """
from sandboxlib._core import native as _native
from sandboxlib._runs.plan import plan_for
def links(pids):
    found = set()
    for pid in pids:
        for name in ("net", "mnt", "pid", "ipc"):
            try:
                found.add(os.readlink(f"/proc/{pid}/ns/{name}"))
            except OSError:
                pass
    return found
isolated = Sandbox(root, network="isolated")
for _ in range(30):
    isolated.run(["true"])
idle = plan_for(isolated).slots._idle
own = links(_native.pid_of(slot.struct.pidfd) for slot in idle) - links(["self"])
assert own
isolated.close()
end = time.monotonic() + 60
while own & links(filter(str.isdigit, os.listdir("/proc"))):
    assert time.monotonic() < end
    time.sleep(0.01)
"""
    host(script, shared_rootfs, wrapper=("unshare", "-pf", "--mount-proc"))


def test_a_reaper_that_is_killed_from_outside_is_told_as_that(shared_rootfs: Path) -> None:
    mark = f"76{os.getpid()}"
    script = f"""
print(box.run(["sleep", "{mark}"], fresh=True).exit)
"""
    host = start_host(script, shared_rootfs, {})
    assert wait_until(lambda: len(processes(mark)) == 1)
    status = Path(f"/proc/{processes(mark)[0]}/status").read_text()
    reaper = next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:"))
    os.kill(int(reaper), signal.SIGKILL)
    assert host.communicate(timeout=20)[0] == b"-9\n"
    assert run_sandbox(shared_rootfs, ["true"]).exit == 0
