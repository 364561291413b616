# SPDX-License-Identifier: Apache-2.0
"""A cpu_time with a fraction: the reaper ends the run there; the kernel counts whole seconds."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lib import hosts
from lib.machine import needs_root, require

from sandboxlib import (
    Command,
    Limits,
    Mount,
    Result,
    Sandbox,
    SessionOver,
    SetupError,
    UnsupportedError,
)

pytest_plugins = ["lib.ways"]

PYTHON = os.path.realpath(sys.executable)
SOON = Limits(cpu_time=0.3)
SPIN = "while :; do :; done"
#: What uses more than its CPU time.
SPINNERS = {
    "command": SPIN,
    "ignores signals": f"trap '' HUP INT QUIT USR1 USR2 PIPE ALRM TERM XCPU; {SPIN}",
    "child": f"({SPIN}) & wait; echo after",
    "daemon": f"(setsid sh -c '{SPIN}' &); sleep 100",
}


def started(box: Sandbox, command: Command) -> Result:
    with box.start(command.replace(timeout=None)) as process:
        process.communicate(timeout=100)
    return process.result()


def in_session(box: Sandbox, command: Command) -> Result:
    with box.session() as session:
        return session.run(command)


def started_in_session(box: Sandbox, command: Command) -> Result:
    with box.session() as session, session.start(command.replace(timeout=None)) as process:
        process.communicate(timeout=100)
        return process.result()


WAYS: dict[str, Callable[[Sandbox, Command], Result]] = {
    "slot": lambda box, command: box.run(command),
    "fresh": lambda box, command: box.run(command, fresh=True),
    "map": lambda box, command: next(box.map([command], on_failure="continue")),  # type: ignore[arg-type, return-value]
    "run_async": lambda box, command: asyncio.run(box.run_async(command)),
    "start": started,
    "session": in_session,
    "start in a session": started_in_session,
}


@pytest.mark.usefixtures("executor")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("spinner", SPINNERS)
def test_a_process_that_uses_more_ends_the_run(way: str, spinner: str, shared_rootfs: Path) -> None:
    """The kernel alone would let it have a second, or two."""
    with Sandbox(shared_rootfs) as box:
        command = Command(["sh", "-c", SPINNERS[spinner]], limits=SOON, timeout=100)
        result = WAYS[way](box, command)
        assert (result.exit, result.out, result.limits_hit) == (-9, b"", ("cpu_time",))
        assert not result.timed_out
        assert result.usage is not None
        assert result.usage.user is not None
        assert result.usage.system is not None
        assert 0.25 < result.usage.user + result.usage.system < 0.95


@pytest.mark.usefixtures("executor")
def test_a_limit_of_the_sandbox_has_a_fraction_too(shared_rootfs: Path) -> None:
    with Sandbox(shared_rootfs, limits=Limits(cpu_time=0.2)) as box:
        for _ in range(2):
            assert box.run(["sh", "-c", SPIN]).limits_hit == ("cpu_time",)
            assert box.run(["echo", "there"]) == (0, b"there\n", b"")
        with box.session() as session:
            assert session.run(["sh", "-c", SPIN]).limits_hit == ("cpu_time",)
            assert session.run(["echo", "there"]) == (0, b"there\n", b"")
        whole = box.run(["sh", "-c", "ulimit -t"], limits=Limits(cpu_time=50))
        assert (whole.out, whole.limits_hit) == (b"50\n", ())


@pytest.mark.usefixtures("executor")
@pytest.mark.parametrize("way", ["fresh", "session"])
def test_it_is_of_each_process(way: str, shared_rootfs: Path) -> None:
    """Children that use less each do not reach it, whatever they use together."""
    require(not PYTHON.startswith("/tmp/"), "Python is in /tmp")
    script = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        while time.process_time() < 0.2: pass
        os._exit(0)
    os.wait()
"""
    box = Sandbox("/", extra_mounts=[Mount.tmpfs("/tmp")])
    command = Command([PYTHON, "-I", "-S", "-c", script], limits=Limits(cpu_time=0.6), cwd="/")
    result = WAYS[way](box, command)
    assert (result.exit, result.err, result.limits_hit) == (0, b"", ())
    assert result.usage is not None
    assert (result.usage.user or 0) + (result.usage.system or 0) > 0.6


@pytest.mark.usefixtures("executor")
def test_other_commands_of_a_session_do_not_count(shared_rootfs: Path) -> None:
    with Sandbox(shared_rootfs).session() as session:
        session.run(["sh", "-c", f"({SPIN}) > /dev/null 2>&1 & echo $! > /tmp/pid"], check=True)
        with session.start(["sh", "-c", SPIN]) as other:
            seen = (
                "while [ $(cut -d' ' -f14 /proc/$(cat /tmp/pid)/stat) -lt 50 ]; do sleep .1; done"
            )
            session.run(["sh", "-c", seen], check=True, timeout=100)
            waits = session.run(["sh", "-c", "sleep 0.2; echo there"], limits=Limits(cpu_time=0.15))
            assert (waits.out, waits.limits_hit) == (b"there\n", ())
            assert session.run(["sh", "-c", SPIN], limits=SOON).limits_hit == ("cpu_time",)
            assert other.poll() is None
            other.kill()
        assert session.run(["sh", "-c", "kill -0 $(cat /tmp/pid)"]).ok


@pytest.mark.usefixtures("executor")
def test_a_command_that_leaves_the_reaper_no_descriptor_is_ended_too() -> None:
    require(not PYTHON.startswith("/tmp/"), "Python is in /tmp")
    script = """
import os, resource
resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (0, 0))
if os.fork() == 0:
    while True: pass
os.wait()
"""
    command = Command([PYTHON, "-I", "-S", "-c", script], limits=SOON, cwd="/", timeout=100)
    box = Sandbox("/", extra_mounts=[Mount.tmpfs("/tmp")])
    assert box.run(command, fresh=True).limits_hit == ("cpu_time",)
    with box.session() as session:
        with pytest.raises(SessionOver):
            session.run(command)
        assert session.closed


WITHOUT_CAP_KILL = """
from sandboxlib import Command, Limits, SessionOver
limits = Limits(cpu_time=0.3)
spin = Command(["sh", "-c", "(while :; do :; done) & sleep 1000"], limits=limits, timeout=100)
box = Sandbox(root, user=1000)
result = box.run(spin)
assert (result.exit, result.limits_hit, result.timed_out) == (-9, ("cpu_time",), False), result
with box.session() as session:
    try:
        sys.exit(f"it ended: {session.run(spin)}")
    except SessionOver as error:
        assert "the reaper could not end all of it" in str(error)
    assert session.closed
"""


@needs_root
@pytest.mark.slow
def test_a_reaper_that_may_not_kill_ends_with_all_that_it_is_pid_1_of(shared_rootfs: Path) -> None:
    """In a session that is everything."""
    require(shutil.which("setpriv"), "there is no setpriv")
    wrapper = ["setpriv", "--bounding-set=-kill", "--inh-caps=-kill"]
    hosts.run(WITHOUT_CAP_KILL, shared_rootfs, wrapper=wrapper)


def test_without_a_reaper_it_is_refused(executor: str, shared_rootfs: Path) -> None:
    for words in ({"init": False}, {"processes": "undefined"}):
        words["filesystem_writable_paths"] = "all"
        box = Sandbox(shared_rootfs, limits=Limits(cpu_time=1.5), **words)  # type: ignore[arg-type]
        text = r"cpu_time=1\.5: there is no reaper .* say cpu_time=2, or isolate processes"
        with pytest.raises(UnsupportedError, match=text):
            box.run(["true"])
        assert box.run(["true"], limits=Limits(cpu_time=2)).ok


def test_without_a_procfs_it_is_refused(executor: str, tmp_path: Path, shared_rootfs: Path) -> None:
    """In a user namespace the kernel makes a procfs only where another one can be seen."""
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    busybox = (shared_rootfs / "bin/busybox").read_bytes()
    (root / "bin/busybox").write_bytes(busybox)
    (root / "bin/busybox").chmod(0o755)
    spin = ["/bin/busybox", "sh", "-c", SPIN]
    box = Sandbox(root, devices="root")
    if executor == "chroot":
        assert box.run(spin, limits=SOON).limits_hit == ("cpu_time",)
        return
    with pytest.raises(SetupError, match=r"cpu_time=0\.3: .*directory /proc") as caught:
        box.run(spin, limits=SOON)
    assert (caught.value.step, caught.value.errno) == ("limits", errno.ENOENT)
    assert box.run(spin, limits=Limits(cpu_time=1)).limits_hit == ("cpu_time",)
