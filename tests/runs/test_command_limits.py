# SPDX-License-Identifier: Apache-2.0
"""The limits of one Command go over those of its Sandbox, in every way of running it."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lib.machine import needs_root

import sandboxlib
from sandboxlib import (
    Command,
    Limits,
    Result,
    Sandbox,
    SetupError,
    UnsupportedError,
    bubblewrap,
    chroot,
    user_namespace,
)
from sandboxlib._runs import slots

SHOW = ["sh", "-c", "ulimit -n; ulimit -c; readlink /proc/self/ns/net"]


def started(box: Sandbox, command: Command) -> Any:
    with box.start(command) as process:
        process.communicate()
    return process.result()


WAYS: dict[str, Callable[[Sandbox, Command], Result]] = {
    "run": lambda box, command: box.run(command),
    "fresh": lambda box, command: box.run(command, fresh=True),
    "map": lambda box, command: next(box.map([command])),
    "run_async": lambda box, command: asyncio.run(box.run_async(command)),
    "start": started,
    "run_sandbox": lambda box, command: sandboxlib.run_sandbox(
        box.root, command, limits=box.limits, network="isolated"
    ),
}
EXECUTORS = {"chroot": chroot, "user_namespace": user_namespace, "bubblewrap": bubblewrap}


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> ModuleType:
    executor: ModuleType = EXECUTORS[request.param]
    if reason := executor.why_not():
        pytest.skip(reason)
    return executor


@pytest.mark.parametrize("way", WAYS)
def test_they_go_over_those_of_the_sandbox_field_by_field(way: str, shared_rootfs: Path) -> None:
    with Sandbox(shared_rootfs, network="isolated", limits=Limits(open_files=99, core=512)) as box:
        run = WAYS[way]
        seen = [
            run(box, Command(SHOW, limits=limits)).out
            for limits in (None, Limits(open_files=50), Limits(core=0), Limits(open_files=60), None)
        ]
    numbers = [tuple((out or b"").split()[:2]) for out in seen]
    before = (b"99", b"1")  # blocks of 512 bytes
    assert numbers == [before, (b"50", b"1"), (b"99", b"0"), (b"60", b"1"), before]


def test_they_hold_in_each_executor(executor: ModuleType, shared_rootfs: Path) -> None:
    box = Sandbox(shared_rootfs)
    for fresh in (True, False):
        assert executor.run_in(box, ["sh", "-c", "ulimit -n"], fresh=fresh).out != b"50\n"
        command = Command(["sh", "-c", "ulimit -n"], limits=Limits(open_files=50))
        assert executor.run_in(box, command, fresh=fresh).out == b"50\n"


@pytest.fixture
def one_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "MOST_SPARE", 0)


ALL_IN_A_SLOT = Limits(
    **{"address_space": "1G", "data": "1G", "stack": "1M", "core": 0, "file_size": "1M"},
    **{"locked_memory": 4096, "open_files": 60, "cpu_time": 60, "nice": 3, "cpuset": 1},
    scheduler="batch",
)
LOOK = """
cat /proc/self/limits
cut -d' ' -f18,19,40,41 /proc/self/stat
grep Cpus_allowed: /proc/self/status
readlink /proc/self/ns/net
"""


@needs_root
@pytest.mark.usefixtures("one_slot")
def test_the_limits_of_a_command_come_with_it_into_the_slot(shared_rootfs: Path) -> None:
    """Above and below those of the Sandbox, and none of them holds for the next command."""

    def look(limits: Limits | None, fresh: bool = False) -> tuple[list[bytes], bytes]:
        *seen, namespace = (
            box.run(["sh", "-c", LOOK], limits=limits, fresh=fresh).out or b""
        ).splitlines()
        return seen, namespace

    own = Limits(cpu_time=50, nice=2, open_files=70)
    changes = [
        Limits(**{name: getattr(ALL_IN_A_SLOT, name)})
        for name in ALL_IN_A_SLOT._fields
        if getattr(ALL_IN_A_SLOT, name) is not None
    ]
    with Sandbox(shared_rootfs, network="isolated", limits=own) as box:
        before, slot = look(None)
        for limits in (*changes, ALL_IN_A_SLOT):
            seen, where = look(limits)
            assert where == slot, limits
            assert seen == look(limits, fresh=True)[0], limits
            assert seen != before, limits
            assert look(None) == (before, slot), limits
        # The memory of a slot's processes has one score for all of them.
        assert look(Limits(oom_score_adj=5))[1] != slot


@needs_root
@pytest.mark.usefixtures("one_slot")
def test_a_limit_that_the_kernel_refuses_is_named_in_a_slot_too(shared_rootfs: Path) -> None:
    last = max(os.sched_getaffinity(0))
    with Sandbox(shared_rootfs) as box:
        box.run(["true"])
        with pytest.raises(SetupError, match="cpuset") as caught:
            box.run(["true"], limits=Limits(cpuset=[last, 1023]))
        assert (caught.value.step, caught.value.errno) == ("limits", errno.EINVAL)
        assert box.run(["true"]).exit == 0


@needs_root
def test_cpu_time_of_one_command_ends_it(shared_rootfs: Path) -> None:
    burn = ["sh", "-c", "while :; do :; done"]
    with Sandbox(shared_rootfs) as box:
        box.run(["true"])
        result = box.run(burn, limits=Limits(cpu_time=1), timeout=60)
        assert (result.limits_hit, result.ok) == (("cpu_time",), False)
        assert box.run(["sh", "-c", "ulimit -t"]).out == b"unlimited\n"


@needs_root
@pytest.mark.parametrize("way", WAYS)
def test_what_nobody_would_enforce_is_refused(way: str, shared_rootfs: Path) -> None:
    """The kernel exempts uid 0 from RLIMIT_NPROC."""
    with (
        Sandbox(shared_rootfs) as box,
        pytest.raises(UnsupportedError, match=r"Limits\.processes: the kernel exempts uid 0"),
    ):
        WAYS[way](box, Command("true", limits=Limits(processes=5)))


def test_no_more_plans_are_kept_than_there_is_a_use_for(shared_rootfs: Path) -> None:
    with Sandbox(shared_rootfs) as box:
        for number in range(200):
            box._for(Command("true", limits=Limits(open_files=100 + number)))
        assert len(box._limited) <= 64
