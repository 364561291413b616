# SPDX-License-Identifier: Apache-2.0
"""More hostile hosts: they end at random moments, and use threads, terminals, descriptors.

test_host.py has the plain ones. Every host is a Python process of its own.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from lib import hosts
from lib.machine import many, needs_root, require
from lib.waiting import wait_until

pytestmark = needs_root

MODES = hosts.MODES
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())

HEAD = """
box = open_box(root, **mode)

def in_threads(count, work):
    errors = []
    def safe(i):
        try:
            work(i)
        except BaseException as error:
            errors.append(repr(error))
    threads = [threading.Thread(target=safe, args=(i,)) for i in range(count)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not errors, errors[:3]

def children():
    return open(f"/proc/self/task/{os.getpid()}/children").read().split()
"""


def command(script: str, root: Path, mode: object, *more: str) -> list[str]:
    return hosts.command(HEAD + script, root, mode, *more)


def host(script: str, root: Path, mode: object = None, wrapper: Any = (), **words: Any) -> str:
    return hosts.run(HEAD + script, root, mode, wrapper, **words)


def left(mark: str) -> list[str]:
    """Processes that have the mark anywhere in their command line: hosts as well."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


# ---- the status ------------------------------------------------------------------------------

TRICKS = {
    "SIG_IGN": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "SA_NOCLDWAIT": """
class Action(ctypes.Structure):
    _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_ulong * 16),
                ("flags", ctypes.c_int), ("restorer", ctypes.c_void_p)]
assert ctypes.CDLL(None).sigaction(17, ctypes.byref(Action(flags=2)), None) == 0
""",
    "waitpid(-1)": """
def thief():
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            pass
threading.Thread(target=thief, daemon=True).start()
""",
    "a handler that reaps": """
def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
signal.signal(signal.SIGCHLD, reap)
""",
}


@modes
@pytest.mark.parametrize("trick", TRICKS.values(), ids=TRICKS.keys())
def test_exits_deaths_and_timeouts_are_true_whoever_takes_the_children(
    shared_rootfs: Path, mode: dict[str, Any], trick: str
) -> None:
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    require(release >= (6, 15) or mode == {}, "without the reaper that takes Linux 6.15")
    script = """
alone = mode.get("init", True)  # pid 1 hears no signal of its own
def work(i):
    for k in range(many(4, 12)):
        n = (i * 12 + k) % 256
        assert box.run(["sh", "-c", f"exit {n}"]).exit == n
        for number in (9, 15, 6, 2):
            assert not alone or box.run(["sh", "-c", f"kill -{number} $$"]).exit == -number
    late = box.run(["sleep", "60"], timeout=0.01)
    assert (late.exit, late.timed_out) == (-9, True)
in_threads(8, work)
os._exit(0)
"""
    host(trick + script, shared_rootfs, mode)


@modes
def test_a_handler_may_run_sandboxes_while_a_sandbox_runs(
    shared_rootfs: Path, mode: dict[str, Any]
) -> None:
    script = """
inner = []
def handler(*_):
    signal.setitimer(signal.ITIMER_REAL, 0)
    inner.append(box.run(["sh", "-c", f"echo inner; exit {len(inner) % 256}"]))
    signal.setitimer(signal.ITIMER_REAL, 0.003)
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.003)
for i in range(many(24, 60)):
    outer = box.run(["sh", "-c", f"usleep 4000; cat; echo outer; exit {i}"], stdin=b"in ")
    assert outer == (i, b"in outer\\n", b"")
signal.setitimer(signal.ITIMER_REAL, 0)
assert len(inner) > many(8, 20)
assert inner == [(i % 256, b"inner\\n", b"") for i in range(len(inner))]
"""
    host(script, shared_rootfs, mode)


def test_long_outputs_are_whole_while_signals_arrive(shared_rootfs: Path) -> None:
    script = """
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
data = os.urandom(3_000_000)
for _ in range(many(2, 5)):
    result = box.run(["sh", "-c", "tee /proc/self/fd/2"], stdin=data)
    assert (result.out, result.err) == (data, data)
signal.setitimer(signal.ITIMER_REAL, 0)  # the interpreter gives its handlers up before it ends
"""
    host(script, shared_rootfs)


def test_changes_of_ids_in_other_threads_do_not_hold_each_other(shared_rootfs: Path) -> None:
    # libc's setresgid(2) interrupts every thread and waits for all of them.
    script = """
stop = False
def change():
    count = 0
    while not stop or count < 100:
        os.setresgid(0, 0, 0)
        count += 1
thread = threading.Thread(target=change)
thread.start()
try:
    for i in range(many(30, 200)):
        assert box.run(["sh", "-c", f"exit {i % 256}"]).exit == i % 256
finally:
    stop = True
    thread.join()
"""
    host(script, shared_rootfs)


# ---- descriptors -----------------------------------------------------------------------------


@modes
def test_every_descriptor_can_be_every_stream(shared_rootfs: Path, mode: dict[str, Any]) -> None:
    # The reaper's own are 3 and 4, and the program of the reaper is at 5 or above.
    script = """
reader, writer = os.pipe()
os.write(writer, b"in" * 1000)
out, err = os.memfd_create("out"), os.memfd_create("err")
fds = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (reader, out, err)]
os.closerange(3, 20)
for numbers in itertools.permutations(range(3, 8), 3):
    kept = []
    for fd, number in zip(fds, numbers):
        assert os.dup2(fd, number) == number
    done = box.run(["sh", "-c", "dd bs=2 count=1 2>&-; echo out; echo err >&2"],
                   stdin=numbers[0], stdout=numbers[1], stderr=numbers[2])
    assert done == (0, None, None)
    assert [os.pread(fd, 99, 0) for fd in fds[1:]] == [b"inout\\n", b"err\\n"], numbers
    for fd, number in zip(fds, numbers):
        os.close(number)
    for fd in fds[1:]:
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, 0)
"""
    host("import fcntl\n" + script, shared_rootfs, mode)


@modes
def test_a_host_without_standard_descriptors_can_give_every_stream(
    shared_rootfs: Path, mode: dict[str, Any], tmp_path: Path
) -> None:
    script = """
closed, file, done = json.loads(sys.argv[3]), sys.argv[4], False
for fd in closed:
    os.close(fd)
try:
    with open(file, "w+b") as out:
        assert box.run(["cat"], stdin=b"bytes").out == b"bytes"
        merged = box.run(["sh", "-c", "cat; echo err >&2"], stdin=b"1", stderr=STDOUT)
        assert merged.out == b"1err\\n"
        assert box.run(["sh", "-c", "echo out; echo err >&2"], stdout=out, stderr=STDOUT).exit == 0
        assert os.pread(out.fileno(), 99, 0) == b"out\\nerr\\n"
        assert box.run(["sh", "-c", "echo out; echo err >&2"], stdout=None) == (0, None, b"err\\n")
        fds = mode or box.run(["sh", "-c", "echo /proc/self/fd/*"]).out
        assert mode or fds == b"/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3\\n"
        for fd in closed:
            if fd != out.fileno():
                try:
                    box.run(["true"], stdin=fd)
                    os._exit(3)
                except SetupError as error:
                    assert error.step == "stdio"
        done = True
finally:
    os._exit(0 if done else 1)
"""
    for closed in itertools.chain.from_iterable(
        itertools.combinations(range(3), count) for count in range(4)
    ):
        argv = command(script, shared_rootfs, mode, json.dumps(closed), str(tmp_path / "out"))
        assert subprocess.run(argv, check=False).returncode == 0, closed


@modes
def test_descriptors_above_a_lowered_limit_do_not_reach_the_command(
    mode: dict[str, Any], shared_rootfs: Path
) -> None:
    script = """
import resource
for number in (6, 63, 64, 500, 900):
    os.dup2(0, number, inheritable=True)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
for _ in range(3):
    assert run_sandbox("/", ["ls", "/proc/self/fd"], **mode).out == b"0\\n1\\n2\\n3\\n"
os.fstat(900)
mounts = [Mount.tmpfs(f"/tmp/{i}") for i in range(100)]
crowded = open_box(root, extra_mounts=[Mount.tmpfs("/tmp"), *mounts], **mode)
assert crowded.run(["ls", "/tmp"]).out.count(b"\\n") == 100
"""
    host(script, shared_rootfs, mode)


# ---- the end of the host ---------------------------------------------------------------------


LOOP = """
in_threads(4, lambda i: [box.run(["sleep", sys.argv[3]], timeout=0.004) for _ in iter(int, 1)])
"""


def end_hosts(root: Path, mode: dict[str, Any], name: str, script: str) -> None:
    """Ends a host in the middle of its runs, several times; no process of theirs is left."""
    chance = random.Random(name)
    for i in range(many(4, 12)):
        mark = f"{name}-{os.getpid()}-{i}".replace("SIG", "7")
        seconds = f"77{os.getpid()}{i:02d}{sum(name.encode())}"
        started = subprocess.Popen(
            command(script, root, mode, seconds, mark), stdout=subprocess.PIPE
        )
        assert started.stdout is not None
        started.stdout.readline()
        time.sleep(chance.random() * 0.05)
        started.send_signal(getattr(signal, name))
        started.wait()
        started.stdout.close()
        assert wait_until(lambda s=seconds: not left(s), 30), left(seconds)


@modes
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGSEGV"])
def test_a_host_that_is_ended_at_any_moment_leaves_no_process(
    shared_rootfs: Path, mode: dict[str, Any], name: str
) -> None:
    # bwrap --die-with-parent left processes at the second to sixth of such ends.
    end_hosts(shared_rootfs, mode, name, "print(flush=True)\n" + LOOP)


@modes
def test_a_host_that_is_killed_in_the_midst_of_32_runs_leaves_nothing_a_moment_later(
    shared_rootfs: Path, mode: dict[str, Any]
) -> None:
    # Without a pid namespace only the command is tied to the host (docs: processes='undefined').
    tree = "(sleep $0 & setsid sleep $0 &) ; setsid sh -c 'sleep $0 & sleep $0' $0 & sleep $0; :"
    argv = ["sleep"] if "processes" in mode else ["sh", "-c", f"trap '' TERM; {tree}"]
    script = f"""
argv = {argv!r} + [sys.argv[3]]
box = open_box(root, extra_mounts=[Mount.dev()], **mode)
ready = threading.Barrier(32)
def work():
    box.run(["true"])
    ready.wait()
    print(flush=True)
    box.run(argv, **({{"timeout": 60, "grace": 60}} if threading.get_ident() % 2 else {{}}))
for _ in range(31):
    threading.Thread(target=work).start()
work()
"""
    chance = random.Random(3)
    each = 1 if "processes" in mode else 6
    for i in range(many(2, 6)):
        seconds = f"79{os.getpid()}{i:02d}"
        started = subprocess.Popen(
            command(script, shared_rootfs, mode, seconds), stdout=subprocess.PIPE
        )
        assert started.stdout is not None
        try:
            for _ in range(32):
                started.stdout.readline()
            if i % 2:  # all of them are there
                assert wait_until(lambda s=seconds, n=32 * each: len(left(s)) > n, 30)
            else:
                time.sleep(chance.random() * 0.1)
        finally:
            started.kill()
            started.wait()
            started.stdout.close()
        assert wait_until(lambda s=seconds: not left(s), 20), left(seconds)


@modes
@pytest.mark.sample(1)
def test_a_host_one_of_whose_threads_takes_long_to_die_leaves_no_process(
    shared_rootfs: Path, tmp_path: Path, mode: dict[str, Any]
) -> None:
    # Its process is there until that thread has gone, while the thread that started a command, and
    # was to take it along, may have died before the command asked for that.
    slow = f"""
ready = threading.Event()
def slow():
    libc = ctypes.CDLL(None)
    assert libc.unshare(0x20000) == 0
    assert libc.mount(b"none", b"/", None, 0x44000, None) == 0
    for _ in range(3000):
        assert libc.mount(b"/tmp", {os.fsencode(tmp_path)!r}, None, 0x1000, None) == 0
    ready.set()
    threading.Event().wait()
threading.Thread(target=slow).start()
ready.wait()
print(flush=True)
"""
    end_hosts(
        shared_rootfs, mode, "SIGTERM", slow + LOOP.replace("(4,", "(8,").replace("0.004", "0.001")
    )


@modes
@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "os.execv('/bin/true', ['true'])"])
def test_a_host_that_ends_or_becomes_another_program_leaves_no_process(
    shared_rootfs: Path, mode: dict[str, Any], end: str
) -> None:
    seconds = f"78{os.getpid()}{len(end)}"
    script = f"""
for _ in range(3):
    threading.Thread(target=lambda: box.run(["sleep", "{seconds}"]), daemon=True).start()
time.sleep(0.5)
{end}
"""
    if "execv" in end:  # what it becomes lives on, and is the same process
        script = script.replace("/bin/true', ['true']", f"/bin/sleep', ['sleep', '3{seconds}']")
    started = subprocess.Popen(command(script, shared_rootfs, mode))
    try:
        if "execv" in end:
            exe = f"/proc/{started.pid}/exe"
            assert wait_until(lambda: "sleep" in os.path.basename(os.readlink(exe)))
        else:
            started.wait(timeout=20)
        assert wait_until(lambda: not [p for p in left(seconds) if int(p) != started.pid], 30)
    finally:
        started.kill()
        started.wait()


# ---- Ctrl-C ----------------------------------------------------------------------------------


@modes
def test_ctrl_c_leaves_the_runs_of_other_threads(shared_rootfs: Path, mode: dict[str, Any]) -> None:
    script = """
signal.signal(signal.SIGINT, signal.default_int_handler)
stop, counts, errors = False, [0] * 4, []
def work(i):
    while not stop:
        result = box.run(["sh", "-c", f"echo {i}; exit {i}"])
        if result != (i, b"%d\\n" % i, b""):
            errors.append(result)
        counts[i] += 1
threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
hits, late = 0, 0
[thread.start() for thread in threads]
count = many(8, 30)
for i in range(count):
    timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT))
    start = time.monotonic()
    try:
        timer.start()
        box.run(["sleep", "60"])
    except KeyboardInterrupt:
        hits += 1
    late = max(late, time.monotonic() - start)
    timer.join()
stop = True
[thread.join() for thread in threads]
assert hits == count and late < 30, (hits, late)
assert not errors and min(counts) > 0, (errors[:3], counts)
assert children() == []
"""
    host(script, shared_rootfs, mode)


def test_ctrl_c_at_a_terminal_reaches_the_host_and_not_the_command(shared_rootfs: Path) -> None:
    script = """
import fcntl, termios
signal.signal(signal.SIGINT, signal.default_int_handler)
os.setsid()
master, slave = os.openpty()
fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
out = os.memfd_create("out")
told = "trap 'echo hit; exit 3' INT; echo ready; sleep 30"
def press():
    while os.fstat(out).st_size == 0:
        time.sleep(0.01)
    os.write(master, b"\\x03")
threading.Thread(target=press).start()
start, hits = time.monotonic(), 0
try:
    box.run(["sh", "-c", told], stdin=slave, stdout=out)
except KeyboardInterrupt:
    hits += 1
assert hits == 1 and time.monotonic() - start < 20
assert os.pread(out, 99, 0) == b"ready\\n"
assert children() == []
"""
    host(script, shared_rootfs)


@modes
@pytest.mark.parametrize(
    "setup", ["", "os.setsid()", "signal.signal(signal.SIGHUP, signal.SIG_IGN)"]
)
def test_a_host_without_a_terminal_is_no_different(
    shared_rootfs: Path, mode: dict[str, Any], setup: str
) -> None:
    require(shutil.which("setsid"), "there is no setsid")
    script = f"""
if os.getpid() != os.getsid(0):
    {setup or "pass"}
out = box.run(["sh", "-c", "cat /proc/$$/stat"]).out.split()
assert out[5] != b"0"  # field 6 is the session, 7 the terminal
assert out[6] == b"0"
assert int(out[5]) != os.getsid(0)
try:
    open("/dev/tty").close()
except OSError:
    print("no terminal")
"""
    root = Path("/") if mode == MODES["processes=undefined"] else shared_rootfs
    done = host(script, root, mode, ("setsid", "-w") if not setup else ("setsid", "-f", "-w"))
    assert done == "no terminal\n"


# ---- exceptions from other threads -----------------------------------------------------------


@modes
def test_exceptions_from_other_threads_leave_nothing_of_any_kind_of_run(
    shared_rootfs: Path, mode: dict[str, Any]
) -> None:
    script = """
import gc, random
class Stop(BaseException): pass
busy = threading.Semaphore(0)
def work(kind):
    try:
        busy.release()
        while True:
            if kind == 0:
                box.run(["head", "-c", "150000", "/bin/busybox"])
            elif kind == 1:
                box.run(["sleep", "60"], timeout=0.003)
            elif kind == 2:
                try:
                    box.run(["nonesuch"])
                except SetupError:
                    pass
            else:
                box.run(["true"])
    except Stop:
        pass
def fds():
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + fd)]
box.run(["true"])
box.close()
before = fds()
set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
for _ in range(many(12, 63)):
    threads = [threading.Thread(target=work, args=(i % 4,)) for i in range(8)]
    for thread in threads:
        thread.start()
        busy.acquire()
    time.sleep(random.random() * 0.01)
    for thread in threads:
        assert set_exception(ctypes.c_ulong(thread.ident), ctypes.py_object(Stop)) == 1
    for thread in threads:
        thread.join(5)
        while thread.is_alive():  # it came up in a finalizer, where Python drops exceptions
            set_exception(ctypes.c_ulong(thread.ident), ctypes.py_object(Stop))
            thread.join(0.1)
gc.collect()
box.close()
assert fds() == before
assert children() == []
"""
    host(script, shared_rootfs, mode)


@modes
def test_an_interrupt_while_a_run_is_freed_is_not_dropped(
    shared_rootfs: Path, mode: dict[str, Any]
) -> None:
    script = """
import _thread, functools, gc, weakref
gc.disable()  # or other finalizers, in Python, might begin with the interrupt
from sandboxlib._core import workspace as _workspace
class Last: pass
def used():
    another = box.replace(hostname="another")
    another.run(["true"])
    return another
for make in [_workspace.Workspace, used] * 3:
    last = Last()
    # Interrupts, without a line of Python, when `last` is freed: just before what is lost.
    interrupt = functools.partial(next, map(_thread.interrupt_main, [signal.SIGINT]))
    watch = weakref.ref(last, interrupt)
    garbage = [make(), last]
    del last
    try:
        garbage.clear()  # the last one first
        time.sleep(0.01)
    except KeyboardInterrupt:
        continue
    raise AssertionError(f"the interrupt was dropped with {make}")
box.close()
assert children() == []
"""
    host(script, shared_rootfs, mode)


# ---- forks of the host -----------------------------------------------------------------------


@modes
def test_programs_of_multiprocessing_do_not_hold_or_harm_a_run(
    shared_rootfs: Path, mode: dict[str, Any]
) -> None:
    script = """
import multiprocessing, warnings
warnings.simplefilter("ignore")  # Python 3.12 warns of every fork with threads
context = multiprocessing.get_context("fork")
stop = False
def forker():
    while not stop:
        process = context.Process(target=time.sleep, args=(0.2,))
        process.start()
        process.join()
thread = threading.Thread(target=forker)
thread.start()
start = time.monotonic()
def work(i):
    for k in range(many(12, 40)):
        result = box.run(["sh", "-c", f"echo {k}; exit {k}"])
        assert result == (k, b"%d\\n" % k, b""), result
    for timeout in (0.3, 3, 30):
        late = box.run(["sh", "-c", "echo x; sleep 100"], timeout=timeout)
        if late.out:
            break
    assert late == (-9, b"x\\n", b"")
try:
    in_threads(4, work)
finally:
    stop = True
    thread.join()
assert time.monotonic() - start < 90
"""
    host(script, shared_rootfs, mode)


@modes
def test_scripts_that_were_just_written_can_be_run(rootfs: Path, mode: dict[str, Any]) -> None:
    # A fork of another thread may hold the file open for writing: ETXTBSY, for a moment.
    script = """
import subprocess
stop = False
def spawner():
    while not stop:
        subprocess.run(["true"], preexec_fn=lambda: None)
thread = threading.Thread(target=spawner)
thread.start()
def work(i):
    for k in range(many(12, 40)):
        name = f"/tmp/script-{i}-{k}"
        with open(root + name, "w") as file:
            file.write(f"#!/bin/sh\\necho {i} {k}\\n")
            os.fchmod(file.fileno(), 0o755)
        result = box.run([name])
        assert result == (0, b"%d %d\\n" % (i, k), b""), result
try:
    in_threads(8, work)
finally:
    stop = True
    thread.join()
"""
    host(script, rootfs, mode)


# ---- programs in memory ----------------------------------------------------------------------


@pytest.mark.parametrize(("level", "where"), [("0", "memfd"), ("1", "memfd"), ("2", "_init")])
def test_the_reaper_works_at_every_level_of_memfd_noexec(
    shared_rootfs: Path, level: str, where: str
) -> None:
    require(os.path.exists("/proc/sys/vm/memfd_noexec"), "the kernel has no vm.memfd_noexec")
    script = """
from sandboxlib._core import native as _native
for i in range(5):
    assert box.run(["sh", "-c", f"echo {i}; exit {i}"]) == (i, b"%d\\n" % i, b"")
assert box.run(["sleep", "60"], timeout=0.05) == (-9, b"", b"")
assert box.run(["cat"], stdin=b"also a file in memory").out == b"also a file in memory"
try:
    box.run(["nonesuch"])
except FileNotFoundError as error:
    assert error.step == "exec"
os.closerange(3, 100)
assert box.run(["echo", "x"]).out == b"x\\n"
print(os.readlink(f"/proc/self/fd/{_native.init_descriptor()}"))
"""
    setup = f'echo {level} > /proc/sys/vm/memfd_noexec && exec "$@"'
    wrapper = ("unshare", "-pf", "--mount-proc", "sh", "-c", setup, "sh")
    assert where in host(script, shared_rootfs, {}, wrapper)
