# SPDX-License-Identifier: Apache-2.0
"""Result.usage: the resources that a run used, in every way of running."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import needs_root, require
from lib.waiting import wait_until

import sandboxlib
from sandboxlib import Limits, Mount, Result, Usage, chroot
from sandboxlib._runs import slots

PYTHON = os.path.realpath(sys.executable)
WAYS: dict[str, tuple[dict[str, Any], bool]] = {
    "slot": ({}, False),
    "fresh": ({}, True),
    "pid 1 in a slot": ({"init": False}, False),
    "pid 1": ({"init": False}, True),
    "undefined": ({"processes": "undefined"}, True),
}
pytestmark = needs_root


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(slots, "MOST_SPARE", 0)
    require(not PYTHON.startswith("/tmp/"), "Python is in /tmp")
    return str(request.param)


def run(way: str, script: str, **words: Any) -> Result:
    place, fresh = WAYS[way]
    with open_box("/", extra_mounts=[Mount.tmpfs("/tmp")], **place) as box:
        argv = [PYTHON, "-I", "-S", "-c", script]
        return chroot.run_in(box, argv, cwd="/", fresh=fresh, **words)


def usage_of(result: Result) -> Usage:
    usage = result.usage
    assert usage is not None
    return usage


BURN = """
import os, time
reader, writer = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        while time.process_time() < 0.3:
            pass
        os._exit(0)
    os._exit(0)  # the grandchild is the reaper's from now on
os.close(writer)
os.wait()
os.read(reader, 1)  # it ends
"""


def test_an_orphan_counts_where_it_is_waited_for(way: str) -> None:
    """By the reaper; pid 1 that is the command itself waits for none, but the kernel does at its
    end. Without isolation nobody does.
    """
    usage = usage_of(run(way, BURN))
    counted = usage.user + usage.system
    if way == "undefined":
        assert counted < 0.25
    else:
        assert 0.25 < counted < 1


def test_who_is_killed_in_the_end_counts_as_well(way: str) -> None:
    script = """
import os, time
reader, writer = os.pipe()
if os.fork() == 0:
    while time.process_time() < 0.3:
        pass
    os.write(writer, b"x")
    time.sleep(1000)
os.read(reader, 1)
"""
    usage = usage_of(run(way, script))
    if way in ("slot", "fresh"):  # nobody waits for them where pid 1 is the command
        assert 0.25 < usage.user + usage.system < 1


@pytest.mark.sample(1)
def test_peak_memory(way: str) -> None:
    """Of one process, not of the caller: who is larger here."""
    if "SANDBOXLIB_SANITIZED" in os.environ:
        pytest.skip("a sanitizer keeps what is freed: the caller is always larger")
    ballast = bytearray(200 << 20)
    ballast[::4096] = b"x" * len(ballast[::4096])
    is_ours = WAYS[way][1] and way != "fresh"  # our memory was theirs until the exec
    small = usage_of(run(way, "pass")).peak_memory
    if is_ours:
        assert small is None
    else:
        assert small is not None
        assert small < 50 << 20
    del ballast
    middle = usage_of(run(way, "x = b'x' * (100 << 20)")).peak_memory
    large = usage_of(run(way, "x = b'x' * (700 << 20)")).peak_memory
    if not is_ours:
        assert middle is not None
        assert 100 << 20 < middle < 150 << 20
    assert large is not None
    assert 700 << 20 < large < 750 << 20


def test_faults_and_switches(way: str) -> None:
    little = usage_of(run(way, "pass"))
    script = """
import mmap, time
pages = mmap.mmap(-1, 20000 << 12)
pages.madvise(mmap.MADV_NOHUGEPAGE)
for i in range(20000):
    pages[i << 12] = 1
for i in range(200):
    time.sleep(0.0001)
"""
    much = usage_of(run(way, script))
    assert 19_000 < much.minor_faults - little.minor_faults < 30_000
    assert 100 < much.voluntary_switches - little.voluntary_switches < 5000
    assert little.major_faults >= 0
    assert little.involuntary_switches >= 0
    assert much.system > 0 or much.user > 0


def test_nothing_of_one_run_counts_for_the_next() -> None:
    with open_box("/", extra_mounts=[Mount.tmpfs("/tmp")]) as box:
        script = "import time\nx = b'x' * (300 << 20)\nwhile time.process_time() < 0.6: pass"
        burn = [PYTHON, "-I", "-S", "-c", script]
        before = usage_of(box.run(["true"], cwd="/"))
        much = usage_of(box.run(burn, cwd="/"))
        after = usage_of(box.run(["true"], cwd="/"))
    assert much.user + much.system > 0.4
    assert after.user + after.system < 0.2
    assert before.peak_memory is not None
    assert after.peak_memory is not None
    assert after.peak_memory < 2 * before.peak_memory


def test_it_is_a_value(way: str) -> None:
    result = run(way, "pass")
    copy = pickle.loads(pickle.dumps(result))
    assert copy == result
    assert copy.usage == result.usage
    assert copy.limits_hit == result.limits_hit == ()
    assert usage_of(copy).cpu is None
    assert repr(result.usage).startswith("Usage(user=")
    assert "cpu" not in repr(result.usage)


def test_of_a_command_that_could_not_begin_there_is_none(way: str) -> None:
    place, fresh = WAYS[way]
    with open_box("/", **place) as box, pytest.raises(sandboxlib.SetupError):
        chroot.run_in(box, ["/no/such"], cwd="/", fresh=fresh)


def killed(way: str, script: str, **words: Any) -> Result:
    """A run that something ended; again if the reaper of a busy machine was too slow to tell."""
    for _ in range(5):
        result = run(way, script, **words)
        assert result.exit == -9
        if result.usage is not None:
            break
    return result


def test_of_a_run_that_was_killed(way: str) -> None:
    """The reaper kills the rest, and tells what it has counted."""
    burn = "while True: pass"
    for words in ({"timeout": 0.5}, {"max_output": 1, "on_overflow": "kill"}):
        script = burn if "timeout" in words else f"print('xx', flush=True)\n{burn}"
        result = killed(way, script, **words)
        assert usage_of(result).user + usage_of(result).system > 0
        assert pickle.loads(pickle.dumps(result)).usage == result.usage


def test_of_all_processes_of_a_run_that_was_killed(way: str) -> None:
    """A storm of them, in sessions and groups of their own, that ignore all signals."""
    if way not in ("slot", "fresh"):
        # The kernel reaps what the command leaves, and counts what it used only by chance
        # (kernel/pid_namespace.c, zap_pid_ns_processes).
        pytest.skip("without a reaper nobody waits for what the command leaves")
    script = """
import os, signal, time
for number in range(1, 65):
    if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, 32, 33):
        signal.signal(number, signal.SIG_IGN)
for _ in range(30):
    if os.fork() == 0:
        os.setsid()
        while time.process_time() < 0.05:
            pass
        print(1, end="", flush=True)
        while True:
            signal.pause()
signal.pause()
"""
    for timeout in (2, 20, 60):
        result = killed(way, script, timeout=timeout)
        if result.out == b"1" * 30:
            break
    assert result.out == b"1" * 30
    assert usage_of(result).user + usage_of(result).system > 30 * 0.05


def test_a_slot_outlives_a_run_that_its_timeout_ended() -> None:
    with open_box("/", extra_mounts=[Mount.tmpfs("/tmp")], network="isolated") as box:
        name = ["readlink", "/proc/self/ns/net"]
        before = {box.run(name, cwd="/").out for _ in range(4)}
        for _ in range(3):
            assert box.run(["sleep", "1000"], cwd="/", timeout=0.1).exit == -9
            assert box.run(["sh", "-c", "ls /proc | grep -c '^[0-9]'"], cwd="/").out == b"4\n"
        assert {box.run(name, cwd="/").out for _ in range(4)} & before


def test_a_reaper_that_does_not_answer_is_killed_with_the_rest() -> None:
    """Somebody outside has stopped it."""
    stopped: list[int] = []

    def stop() -> None:
        def stop_it() -> bool:
            for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                if Path(f"/proc/{child}/cmdline").read_bytes() == b"sandboxlib-init\0":
                    below = Path(f"/proc/{child}/task/{child}/children").read_text()
                    if below:
                        os.kill(int(child), signal.SIGSTOP)
                        stopped.append(int(below.split()[0]))
                        return True
            return False

        assert wait_until(stop_it)

    thread = threading.Thread(target=stop)
    thread.start()
    with open_box("/") as box:
        result = chroot.run_in(box, ["sleep", "1000"], cwd="/", fresh=True, timeout=2)
    thread.join()
    assert (result.exit, result.timed_out) == (-9, True)
    assert stopped
    assert result.usage is None
    assert not Path(f"/proc/{stopped[0]}").exists()


@pytest.mark.parametrize("mode", ["SIG_IGN", "wait"])
def test_none_where_somebody_else_took_the_status(shared_rootfs: Path, mode: str) -> None:
    """With a reaper it comes over the pipe, whoever waits."""
    script = """
import os, signal, sys, threading, time
from sandboxlib import Sandbox, StatusLost, chroot
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
if sys.argv[2] == "SIG_IGN":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
else:
    def steal():
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                time.sleep(0.0001)
    threading.Thread(target=steal, daemon=True).start()
command = ["sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done"]
result = chroot.run_in(Sandbox(sys.argv[1]), command)
assert result.usage.user + result.usage.system > 0.01, result.usage
for words in ({"init": False}, {"processes": "undefined"}):
    try:
        result = chroot.run_in(open_box(sys.argv[1], **words), command)
        print(result.exit, result.usage)
    except StatusLost:
        print(0, None)
"""
    argv = [sys.executable, "-c", script, str(shared_rootfs), mode]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:  # of one that waits as well, who is first is open
        taken = line == "0 None"
        assert taken or (mode == "wait" and float(line.split("user=")[1].split(",")[0]) > 0.01)


def test_bubblewrap_tells_none() -> None:
    """What it was itself, and some of its processes, would be less than all."""
    executor = sandboxlib.get_executor("bubblewrap")
    if reason := executor.why_not():
        pytest.skip(reason)
    result = executor.run_in(open_box("/"), ["true"], cwd="/")
    assert (result.exit, result.usage) == (0, None)


def test_a_limit_changes_nothing_of_it(way: str) -> None:
    place, fresh = WAYS[way]
    with open_box("/", limits=Limits(open_files=100), **place) as box:
        result = chroot.run_in(box, ["true"], cwd="/", fresh=fresh)
    assert usage_of(result).minor_faults > 0
    assert result.limits_hit == ()
