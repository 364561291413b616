# SPDX-License-Identifier: Apache-2.0
"""The limits of one Command go over those of its Sandbox, in every way of running it."""

from __future__ import annotations

import asyncio
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
    UnsupportedError,
    bubblewrap,
    chroot,
    user_namespace,
)

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


@needs_root
def test_cpu_time_comes_with_the_run_into_a_slot(shared_rootfs: Path) -> None:
    """Other limits are the slot's, and a command that changes one is run fresh."""

    def namespaces(**options: Any) -> set[bytes]:
        return {(box.run(SHOW, **options).out or b"").split()[2] for _ in range(6)}

    with Sandbox(shared_rootfs, network="isolated", limits=Limits(cpu_time=50)) as box:
        kept = namespaces()
        assert len(kept) <= 2
        slots = namespaces(limits=Limits(cpu_time=9))
        assert slots <= kept
        # The kernel may give the numbers of earlier fresh runs again, but not those of slots.
        for limits in (Limits(core=0), Limits(cpu_time=60)):  # 60 s are more than the slot has
            assert not namespaces(limits=limits) & slots
        assert namespaces() <= kept


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
