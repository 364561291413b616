# SPDX-License-Identifier: Apache-2.0
"""run_async: commands in event loops, with no thread."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import many, needs_root, require
from lib.waiting import processes, wait_until

from sandboxlib import CAPTURE, Mount, Sandbox, SetupError, SpecTypeError, run_sandbox_async
from sandboxlib._core import native

pytestmark = needs_root
MODES: dict[str, dict[str, Any]] = {
    "slot": {},
    "fresh": {"fresh": True},
    "init=False": {"init": False, "fresh": True},
    "processes=undefined": {"processes": "undefined"},
}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())


def made(root: Path, mode: dict[str, Any]) -> tuple[Sandbox, dict[str, Any]]:
    words = dict(mode)
    fresh = {"fresh": True} if words.pop("fresh", False) else {}
    return open_box(root, extra_mounts=[Mount.dev()], **words), fresh


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    threads = threading.active_count()
    native.init_descriptor()  # which is kept
    gc.collect()
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert threading.active_count() <= threads
    assert sorted(os.listdir("/proc/self/fd")) == before


@modes
def test_runs_go_on_at_the_same_time(shared_rootfs: Path, mode: dict[str, Any]) -> None:
    box, fresh = made(shared_rootfs, mode)

    async def main() -> None:
        # Each waits for the one after it, by a pipe: one after the other would never end.
        pipes = [os.pipe() for _ in range(6)]
        try:
            calls = [
                box.run_async(
                    ["sh", "-c", f"read x; echo {i}; exit {i}"],
                    stdin=pipes[i][0],
                    stdout=pipes[i - 1][1] if i else CAPTURE,
                    **fresh,
                )
                for i in range(6)
            ]
            tasks = [asyncio.ensure_future(call) for call in calls]
            await asyncio.sleep(0)
            os.write(pipes[5][1], b"go\n")
            results = await asyncio.gather(*tasks)
        finally:
            for fd in (fd for pipe in pipes for fd in pipe):
                os.close(fd)
        assert [result.exit for result in results] == list(range(6))
        assert results[0].out == b"0\n"
        assert results[0].usage is not None

    with box:
        asyncio.run(main())


@modes
def test_outputs_errors_and_timeouts_are_those_of_run(
    shared_rootfs: Path, mode: dict[str, Any]
) -> None:
    box, fresh = made(shared_rootfs, mode)

    async def main() -> None:
        big = await box.run_async(["sh", "-c", "yes | head -c 3000000; echo e >&2"], **fresh)
        assert (len(big.out or b""), big.err) == (3000000, b"e\n")
        for limit in (0.1, 2, 30):
            command = ["sh", "-c", "echo x; sleep 60"]
            late = await box.run_async(command, timeout=limit, **fresh)
            if late.out:
                break
        assert (late.exit, late.out, late.timed_out) == (-9, b"x\n", True)
        lines: list[bytes] = []
        done = await box.run_async(["sh", "-c", "echo a; cat"], stdin=b"b", stdout=lines.append)
        assert (done.out, b"".join(lines)) == (None, b"a\nb")
        with pytest.raises(SetupError, match="nonsuch"):
            await box.run_async(["nonsuch"], **fresh)
        with pytest.raises(SpecTypeError):
            await box.run_async(["true"], nonsense=1)

    with box:
        asyncio.run(main())


@modes
def test_a_cancelled_run_is_gone(shared_rootfs: Path, mode: dict[str, Any]) -> None:
    box, fresh = made(shared_rootfs, mode)
    mark = f"64{os.getpid()}"

    async def main() -> None:
        script = f"sleep {mark} & sleep {mark}"
        task = asyncio.ensure_future(box.run_async(["sh", "-c", script], **fresh))
        while len(processes(mark)) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not processes(mark) or (
            "processes" in mode and wait_until(lambda: not processes(mark))
        )
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(box.run_async(["sleep", mark], **fresh), 0.05)
        assert (await box.run_async(["true"], **fresh)).exit == 0

    with box:
        asyncio.run(main())


def test_many_runs_in_one_loop_make_no_thread(shared_rootfs: Path) -> None:
    """With cancellations. Each has four descriptors, so the limit on them is raised."""
    script = """
import asyncio, gc, os, random, sys, threading
from sandboxlib import Sandbox
box, count = Sandbox(sys.argv[1], network="isolated"), int(sys.argv[2])
chance = random.Random(5)
most = 0
async def one(i):
    global most
    task = asyncio.ensure_future(box.run_async(["sh", "-c", f"echo {i}; read x"], stdin=reader))
    if i % 10 == 3:
        await asyncio.sleep(chance.random())
        task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            return None
    return await task
async def main():
    calls = [asyncio.ensure_future(one(i)) for i in range(count)]
    await asyncio.sleep(2)
    assert threading.active_count() == 1, threading.enumerate()
    assert len(os.listdir("/proc/self/task")) == 1
    assert sum(call.done() for call in calls) <= count // 10
    os.close(writer)
    results = await asyncio.gather(*calls)
    for i, result in enumerate(results):
        assert (result is None) == (i % 10 == 3)
        assert result is None or result[:2] == (1, b"%d\\n" % i), result
    assert len(os.listdir("/proc/self/task")) == 1
box.run(["true"])
box.close()
before = len(os.listdir("/proc/self/fd"))
reader, writer = os.pipe()
asyncio.run(main())
os.close(reader)
box.close()
gc.collect()
assert len(os.listdir("/proc/self/fd")) == before
"""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    require(hard == resource.RLIM_INFINITY or hard >= 10_000, "ulimit -n is below 10,000")

    def raise_limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (10_000, hard))

    argv = [sys.executable, "-c", script, str(shared_rootfs), str(many(100, 1000))]
    subprocess.run(argv, check=True, timeout=280, preexec_fn=raise_limit)


def test_one_shot_calls_have_words_of_their_own(shared_rootfs: Path) -> None:
    async def main() -> None:
        result = await run_sandbox_async(
            shared_rootfs, ["sh", "-c", "echo $A; hostname"], extra_env={"A": "b"}, hostname="h"
        )
        assert result == (0, b"b\nh\n", b"")
        result = await run_sandbox_async(
            shared_rootfs, ["sh", "-c", "yes"], max_output=4, on_overflow="kill", timeout=30
        )
        assert (result.out, result.limits_hit, result.exit) == (b"y\ny\n", ("output",), -9)

    asyncio.run(main())


def test_a_loop_of_trio_does_as_well(shared_rootfs: Path) -> None:
    require(find_spec("trio"), "there is no trio")
    import trio

    mark = f"66{os.getpid()}"
    box = Sandbox(shared_rootfs)

    async def main() -> None:
        results = []

        async def one(i: int) -> None:
            results.append(await box.run_async(["sh", "-c", f"sleep 0.1; exit {i}"]))

        async with trio.open_nursery() as nursery:
            for i in range(8):
                nursery.start_soon(one, i)
        assert sorted(result.exit for result in results) == list(range(8))
        late = await box.run_async(["sleep", mark], timeout=0.1)
        assert (late.exit, late.timed_out) == (-9, True)
        began = time.monotonic()
        with trio.move_on_after(0.2):
            await box.run_async(["sleep", mark])
        assert time.monotonic() - began < 10
        assert not processes(mark)

    with box:
        trio.run(main)
