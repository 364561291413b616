# SPDX-License-Identifier: Apache-2.0
"""Handles in event loops: asyncio, uvloop, trio."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.loops import LOOPS, close_stdin, read, read_all, run_in, write
from lib.machine import many, needs_root, require
from lib.waiting import open_descriptors, processes, wait_until

from sandboxlib import CAPTURE, AsyncProcess, Sandbox, SpecError, SpecTypeError, Tee
from sandboxlib._concurrent import async_streams, pipes
from sandboxlib._core import native

pytestmark = needs_root
loops = pytest.mark.parametrize("mode", LOOPS)
streams_of_asyncio = pytest.mark.parametrize("mode", LOOPS[:2])


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    native.init_descriptor()  # which is kept
    if mode := request.getfixturevalue("mode") if "mode" in request.fixturenames else "":
        run_in(mode, _do_nothing)  # which imports it
    gc.collect()
    threads = set(threading.enumerate())
    before = open_descriptors()
    yield
    gc.collect()
    # trio keeps the threads of a guest run for a while.
    assert all(t in threads or "Trio" in t.name for t in threading.enumerate())
    assert open_descriptors() <= before


async def _do_nothing() -> None:
    pass


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


# ---- reading -----------------------------------------------------------------------------------


@streams_of_asyncio
def test_a_line_whose_reading_was_cancelled_is_read_whole(shared_rootfs: Path, mode: str) -> None:
    async def main() -> list[bytes]:
        import anyio

        lines: list[bytes] = []
        argv = sh("printf 'one '; read x; printf 'two '; read x; echo three; echo four")
        async with Sandbox(shared_rootfs).start_async(argv, stdin=CAPTURE) as process:
            assert process.stdout is not None
            for _ in range(2):
                # Cancelled while it waits: the first word is there, or comes then.
                for seconds in (0, 0.01, 0.1):
                    with anyio.move_on_after(seconds):
                        lines.append(await process.stdout.readline())
                await write(process, b"\n")
            while line := await process.stdout.readline():
                lines.append(line)
        return lines

    assert run_in(mode, main) == [b"one two three\n", b"four\n"]


@streams_of_asyncio
@pytest.mark.parametrize("what", ["lines", "readline", "read"])
def test_a_command_that_writes_without_end_starves_no_task(
    shared_rootfs: Path, mode: str, what: str
) -> None:
    async def main() -> None:
        import anyio

        ticks = 0
        end = time.monotonic() + 60

        async def consume(stdout: Any, scope: Any) -> None:
            if what == "lines":
                async for _ in stdout:
                    if ticks >= 10 or time.monotonic() > end:
                        break
            else:
                while await (stdout.readline() if what == "readline" else stdout.read(4096)):
                    if ticks >= 10 or time.monotonic() > end:
                        break
            scope.cancel()

        async with (
            Sandbox(shared_rootfs).start_async(["yes"]) as process,
            anyio.create_task_group() as group,
        ):
            group.start_soon(consume, process.stdout, group.cancel_scope)
            while True:
                await anyio.sleep(0)
                ticks += 1
        assert time.monotonic() < end
        assert process.returncode == -signal.SIGPIPE

    run_in(mode, main)


@loops
def test_a_reader_that_stops_early_ends_an_endless_command(shared_rootfs: Path, mode: str) -> None:
    async def main() -> None:
        async with Sandbox(shared_rootfs).start_async(["yes"]) as process:
            assert await read(process, 2) == b"y\n"
        assert process.returncode == -signal.SIGPIPE
        assert (await process.result()).out is None

    run_in(mode, main)


@streams_of_asyncio
def test_a_line_may_be_as_long_as_the_limit(shared_rootfs: Path, mode: str) -> None:
    argv = sh("head -c 100000 /dev/zero | tr '\\0' x; echo")

    async def main() -> None:
        box = Sandbox(shared_rootfs)
        async with box.start_async(argv, limit=200_000) as process:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"x" * 100_000 + b"\n"
        async with box.start_async(argv) as process:
            assert process.stdout is not None
            with pytest.raises(ValueError, match="limit"):
                await process.stdout.readline()

    run_in(mode, main)


# ---- writing -----------------------------------------------------------------------------------


@loops
def test_a_command_is_fed_while_others_read_and_wait(shared_rootfs: Path, mode: str) -> None:
    content = os.urandom(2_000_000)

    async def main() -> None:
        import anyio

        async with Sandbox(shared_rootfs).start_async(["cat"], stdin=CAPTURE) as process:
            got: list[Any] = []

            async def collect(function: Callable[..., Any], *args: Any) -> None:
                got.append(await function(*args))

            async with anyio.create_task_group() as group:
                group.start_soon(collect, process.wait)
                group.start_soon(collect, process.wait)
                group.start_soon(collect, read_all, process)
                await anyio.sleep(0)
                await write(process, content)
                await close_stdin(process)
            assert sorted(got, key=str) == sorted([0, 0, content], key=str)

    run_in(mode, main)


@streams_of_asyncio
@pytest.mark.parametrize("what", ["close", "drain"])
def test_a_task_drains_while_another_one_closes_or_drains_too(
    shared_rootfs: Path, mode: str, what: str
) -> None:
    async def main() -> None:
        async with Sandbox(shared_rootfs).start_async(sh("wc -c"), stdin=CAPTURE) as process:
            process.suspend()
            stdin = process.stdin
            assert stdin is not None
            stdin.write(b"x" * 1_000_000)
            tasks = [asyncio.ensure_future(stdin.drain())]
            await asyncio.sleep(0)
            if what == "drain":
                stdin.write(b"y" * 10)
                tasks.append(asyncio.ensure_future(stdin.drain()))
                await asyncio.sleep(0)
            else:
                stdin.close()
            process.resume()
            await asyncio.gather(*tasks)
            stdin.close()
            count = 1_000_010 if what == "drain" else 1_000_000
            assert int(await read_all(process)) == count

    run_in(mode, main)


@loops
def test_a_command_that_reads_nothing_is_no_hindrance(shared_rootfs: Path, mode: str) -> None:
    content = bytes(1_000_000)

    async def main() -> None:
        import anyio

        box = Sandbox(shared_rootfs)
        async with box.start_async(["true"], stdin=CAPTURE) as process:
            assert await process.communicate(content) == (b"", b"")
        async with box.start_async(["true"], stdin=CAPTURE) as process:
            if process.stdin is not None and hasattr(process.stdin, "write"):
                process.stdin.write(content)
        assert process.returncode == 0
        async with box.start_async(["true"], stdin=CAPTURE) as process:
            assert await process.wait() == 0
            await anyio.sleep(0.05)  # the loop sees that nobody reads any more
            assert await process.communicate(content) == (b"", b"")

    run_in(mode, main)


# ---- communicate() -----------------------------------------------------------------------------


@loops
def test_communicate_goes_on_after_a_cancellation(shared_rootfs: Path, mode: str) -> None:
    content = os.urandom(1_000_000)

    async def main() -> None:
        import anyio

        box = Sandbox(shared_rootfs)
        async with box.start_async(sh("echo e >&2; cat; sleep 0.1"), stdin=CAPTURE) as process:
            outputs = None
            for round in range(1000):
                with anyio.move_on_after(0.001 * round):
                    outputs = await process.communicate(content if round == 0 else None)
                    break
            assert outputs == (content, b"e\n")
            with pytest.raises(ValueError, match="before"):
                await process.communicate(b"more")
        result = await process.result()
        assert (result.exit, result.out, result.err) == (0, *outputs)
        # The recipe after a timeout
        async with box.start_async(sh("echo begun; sleep 1000")) as process:
            with anyio.move_on_after(0.05):
                await process.communicate()
            process.kill()
            out, err = await process.communicate()
        assert out in (b"", b"begun\n")
        assert (err, process.returncode) == (b"", -9)

    run_in(mode, main)


@loops
def test_communicate_ends_with_the_run(shared_rootfs: Path, mode: str) -> None:
    """A process that outlives the run has the pipes open."""
    mark = f"67{os.getpid()}"
    box = open_box(shared_rootfs, processes="undefined")
    script = f"setsid sleep {mark} & head -c 200000 /dev/zero; echo last"

    async def main() -> bytes | None:
        async with box.start_async(sh(script)) as process:
            return (await process.communicate())[0]

    with box:
        try:
            out = run_in(mode, main)
            assert out is not None
            assert len(out) == 200_005
            assert out.endswith(b"last\n")
        finally:
            for pid in processes(mark):
                os.kill(int(pid), signal.SIGKILL)
            assert wait_until(lambda: not processes(mark))


@loops
def test_input_that_nobody_takes_is_refused(shared_rootfs: Path, mode: str) -> None:
    async def main() -> None:
        box = Sandbox(shared_rootfs)
        async with box.start_async(["true"]) as process:
            with pytest.raises(ValueError, match="not captured"):
                await process.communicate(b"x")
            assert await process.communicate() == (b"", b"")
        async with box.start_async(["cat"], stdin=CAPTURE, stderr=None) as process:
            text: Any = "text"
            with pytest.raises(SpecTypeError, match=r"input\.encode\(\)"):
                await process.communicate(text)
            await close_stdin(process)
            with pytest.raises(ValueError, match="closed"):
                await process.communicate(b"x")
            assert await process.communicate() == (b"", None)

    run_in(mode, main)


# ---- the end, and what is asked when ----------------------------------------------------------


@loops
def test_many_tasks_wait_and_some_are_cancelled(shared_rootfs: Path, mode: str) -> None:
    async def main() -> None:
        import anyio

        codes: list[int] = []

        async def wait(seconds: float) -> None:
            with anyio.move_on_after(seconds):
                codes.append(await process.wait())

        box = Sandbox(shared_rootfs)
        async with (
            box.start_async(sh("read x; exit 7"), stdin=CAPTURE) as process,
            anyio.create_task_group() as group,
        ):
            for seconds in (0, 0.001, 0.01, 100, 100, 100):
                group.start_soon(wait, seconds)
            await anyio.sleep(0.05)
            assert codes == []
            assert process.returncode is None
            await write(process, b"\n")
        assert codes == [7, 7, 7]

    run_in(mode, main)


@loops
def test_returncode_tells_of_the_end_to_whoever_does_not_wait(
    shared_rootfs: Path, mode: str
) -> None:
    async def main() -> None:
        import anyio

        async with Sandbox(shared_rootfs).start_async(sh("exit 5")) as process:
            with anyio.fail_after(60):
                while process.returncode is None:
                    await anyio.sleep(0.001)
            assert process.returncode == 5

    run_in(mode, main)


def _ask_all(process: AsyncProcess) -> None:
    assert process.args == ["sleep", "1000"]
    assert process.pid > 0
    process.send_signal(0)
    for name in ("suspend", "resume", "terminate", "kill"):
        getattr(process, name)()
    with pytest.raises(ValueError, match="pty"):
        process.resize(10, 10)
    assert "1000" in repr(process)


@loops
@pytest.mark.parametrize("way", ["task", "thread", "error", "cancellation"])
def test_methods_may_be_called_at_any_time(shared_rootfs: Path, mode: str, way: str) -> None:
    async def main() -> None:
        import anyio

        process = Sandbox(shared_rootfs).start_async(["sleep", "1000"])
        for name in ("args", "pid", "returncode"):
            with pytest.raises(RuntimeError, match="async with"):
                getattr(process, name)
        with pytest.raises(RuntimeError, match="async with"):
            await process.wait()
        with pytest.raises(RuntimeError, match="async with"):
            await process.communicate()

        async def use() -> None:
            async with process:
                if way == "error":
                    raise KeyError(way)
                if way == "cancellation":
                    await anyio.sleep(1000)
                if way == "thread":
                    thread = threading.Thread(target=_ask_all, args=(process,))
                    thread.start()
                    await process.wait()
                    thread.join()
                else:
                    _ask_all(process)
                    await process.wait()

        if way == "error":
            with pytest.raises(KeyError):
                await use()
        else:
            with anyio.move_on_after(0.05 if way == "cancellation" else 1000):
                await use()
        # The block is left.
        _ask_all(process)
        code = -signal.SIGKILL if way in ("error", "cancellation") else process.returncode
        assert code in (-signal.SIGTERM, -signal.SIGKILL)
        assert await process.wait() == process.returncode == code
        assert (await process.result()).exit == code
        assert await process.communicate() == (b"", b"")
        with pytest.raises(RuntimeError, match="once"):
            await process.__aenter__()

    run_in(mode, main)


@loops
def test_a_start_that_fails_leaves_nothing(shared_rootfs: Path, mode: str) -> None:
    mark = f"68{os.getpid()}"

    async def main() -> None:
        import anyio

        box = Sandbox(shared_rootfs)
        with pytest.raises(FileNotFoundError):
            async with box.start_async(["nonsuch"], stdin=CAPTURE):
                pass
        for ticks in range(4):  # a cancellation in the midst of the start
            async with anyio.create_task_group() as group:

                async def hold() -> None:
                    async with box.start_async(["sleep", mark], stdin=CAPTURE):
                        await anyio.sleep(1000)

                group.start_soon(hold)
                for _ in range(ticks):
                    await anyio.sleep(0)
                group.cancel_scope.cancel()
        assert not processes(mark)

    run_in(mode, main)


def test_options_that_need_a_reader_at_all_times_are_refused(shared_rootfs: Path) -> None:
    box = Sandbox(shared_rootfs)
    refused: list[dict[str, Any]] = [
        {"stdout": print},
        {"stderr": Tee(1)},
        {"max_output": 10},
        {"timeout": 1},
        {"grace": 1, "timeout": 1},
        {"limit": "10"},
    ]
    for options in refused:
        with pytest.raises(SpecTypeError, match=r"start_async takes no|limit is not"):
            box.start_async(["true"], **options)
    with pytest.raises(SpecError, match="limit is 0"):
        box.start_async(["true"], limit=0)


# ---- all at once ---------------------------------------------------------------------------------


@streams_of_asyncio
def test_a_process_is_talked_to_in_a_loop(shared_rootfs: Path, mode: str) -> None:
    async def main() -> None:
        words: dict[str, Any] = {"stdin": CAPTURE}
        script = "read x; echo got $x; echo e >&2; cat; exit 3"
        async with Sandbox(shared_rootfs).start_async(["sh", "-c", script], **words) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.returncode is None
            process.stdin.write(b"one\n")
            await process.stdin.drain()
            assert await process.stdout.readline() == b"got one\n"
            assert await process.stderr.read(100) == b"e\n"
            process.stdin.write(b"two\nthree")
            await process.stdin.drain()
            process.stdin.close()
            assert [line async for line in process.stdout] == [b"two\n", b"three"]
            assert await process.wait() == 3
        assert process.returncode == 3

    run_in(mode, main)


@streams_of_asyncio
def test_tasks_read_both_outputs_and_wait_at_once(shared_rootfs: Path, mode: str) -> None:
    script = "for i in 1 2 3 4 5; do echo out$i; echo err$i >&2; done; read x; echo last; exit 6"

    async def main() -> None:
        box = Sandbox(shared_rootfs)
        async with box.start_async(["sh", "-c", script], stdin=CAPTURE) as process:
            assert process.stdin is not None

            async def lines(reader: Any) -> list[bytes]:
                return [line async for line in reader]

            tasks = [asyncio.ensure_future(lines(r)) for r in (process.stdout, process.stderr)]
            waiting = asyncio.ensure_future(process.wait())
            await asyncio.sleep(0.05)
            tasks[1].cancel()  # whoever pumps may be cancelled
            process.stdin.write(b"x\n")
            await process.stdin.drain()
            assert (await tasks[0])[-1] == b"last\n"
            assert await waiting == 6

    run_in(mode, main)


@streams_of_asyncio
def test_a_cancelled_block_kills_its_process(shared_rootfs: Path, mode: str) -> None:
    mark = f"65{os.getpid()}"

    async def hold() -> None:
        async with Sandbox(shared_rootfs).start_async(["sleep", mark]) as process:
            await process.wait()

    async def main() -> None:
        task = asyncio.ensure_future(hold())
        while not processes(mark):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not processes(mark)

    run_in(mode, main)


# ---- a terminal --------------------------------------------------------------------------------


@loops
def test_a_terminal_is_talked_to(shared_rootfs: Path, mode: str) -> None:
    script = "stty -echo; echo ready; read x; stty size; echo got $x; exit 4"

    async def main() -> None:
        async with Sandbox(shared_rootfs).start_async(sh(script), pty=(30, 90)) as process:
            out = b""
            while b"ready" not in out:
                out += await read(process)
            process.resize(31, 91)
            await write(process, b"abc\n")
            out += await read_all(process)
            assert out == b"ready\r\n31 91\r\ngot abc\r\n"
        assert process.returncode == 4
        async with Sandbox(shared_rootfs).start_async(sh(script), pty=True) as process:
            out, err = await process.communicate(b"abc\n")
        assert out is not None
        assert out.endswith(b"got abc\r\n")
        assert err is None

    run_in(mode, main)


@streams_of_asyncio
def test_a_terminal_that_nobody_reads_stops_the_writer(shared_rootfs: Path, mode: str) -> None:
    """The buffer of the writer has its bounds, and what it holds is written in the end."""
    script = "stty raw -echo; echo ready; sleep 0.2; head -c 300000 | wc -c"

    async def main() -> None:
        async with Sandbox(shared_rootfs).start_async(sh(script), pty=True) as process:
            stdin, stdout = process.stdin, process.stdout
            assert stdin is not None
            assert stdout is not None
            await stdout.readuntil(b"ready")
            stdin.write(b"x" * 200_000)
            assert stdin.transport.get_write_buffer_size() > 65536
            draining = asyncio.ensure_future(stdin.drain())
            await asyncio.sleep(0)
            assert not draining.done()
            await draining
            stdin.write(b"y" * 100_000)
            assert b"300000" in await stdout.read()

    run_in(mode, main)


# ---- descriptors -------------------------------------------------------------------------------


def test_a_descriptor_that_its_loop_closed_is_not_closed_again(tmp_path: Path) -> None:
    """libuv closes the descriptor of a transport; another thread may get the number at once."""
    reader, file = pipes.make()
    lent = async_streams._Lent(file)
    number = lent.fileno()
    os.close(number)
    other = os.open(tmp_path, os.O_RDONLY)
    os.dup2(other, number)
    lent.close()
    assert os.fstat(number).st_ino == os.fstat(other).st_ino
    for fd in (number, other, reader):
        os.close(fd)
    lent.close()


@pytest.mark.parametrize("mode", ["asyncio", "trio"])  # libuv aborts in such a host
def test_a_host_without_streams_of_its_own_starts_commands(shared_rootfs: Path, mode: str) -> None:
    """With 0, 1 and 2 closed, pipes get these numbers, which a command must not inherit."""
    script = f"""
import os, sys
sys.path[:0] = {[str(Path(__file__).parents[1])]!r}
kept = os.dup(2)
for fd in range(3):
    os.close(fd)
from lib.loops import run_in
from sandboxlib import CAPTURE, Sandbox
async def main():
    async with Sandbox({str(shared_rootfs)!r}).start_async(["cat"], stdin=CAPTURE) as process:
        return await process.communicate(b"hello")
assert run_in({mode!r}, main) == (b"hello", b"")
os.write(kept, b"right")
"""
    from lib.machine import python

    run_in(mode, _do_nothing)  # or it is skipped
    done = subprocess.run([*python(), "-c", script], capture_output=True, timeout=120, check=False)
    assert done.stderr == b"right"


# ---- loops -------------------------------------------------------------------------------------


def test_without_a_loop_nothing_is_started(shared_rootfs: Path) -> None:
    box = Sandbox(shared_rootfs)
    for coroutine in (box.run_async(["true"]), box.start_async(["true"]).__aenter__()):
        with pytest.raises(RuntimeError, match="no running event loop"):
            coroutine.send(None)


def test_trio_as_the_guest_of_another_loop_is_trio(shared_rootfs: Path) -> None:
    require(find_spec("trio"), "there is no trio")
    import trio

    box = Sandbox(shared_rootfs)

    async def guest() -> tuple[Any, ...]:
        async with box.start_async(["cat"], stdin=CAPTURE) as process:
            assert isinstance(process.stdin, trio.abc.SendStream)
            out = await process.communicate(b"guest")
        return out[0], (await box.run_async(["echo", "a"])).out

    async def host() -> Any:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        trio.lowlevel.start_guest_run(
            guest,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=done.set_result,
        )
        out = await box.run_async(["echo", "host"])
        return out.out, (await done).unwrap()

    with box:
        assert asyncio.run(host()) == (b"host\n", (b"guest", b"a\n"))


# ---- beside other runs -------------------------------------------------------------------------


@loops
def test_rounds_beside_runs_in_threads_disturb_neither(shared_rootfs: Path, mode: str) -> None:
    rounds = many(60, 3000)
    box = Sandbox(shared_rootfs)
    is_over = threading.Event()
    wrong: list[object] = []

    def run_beside() -> None:
        while not is_over.is_set():
            result = box.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
            if result != (3, b"out\n", b"err\n"):
                wrong.append(result)

    async def round_of(number: int, chance: random.Random) -> None:
        import anyio

        way = number % 4
        async with box.start_async(["cat"], stdin=CAPTURE) as process:
            if way == 0:
                assert await process.communicate(b"%d" % number) == (b"%d" % number, b"")
            elif way == 1:
                with anyio.move_on_after(chance.random() / 200):
                    await process.communicate(bytes(200_000))
                process.kill()
                await process.communicate()
            elif way == 2:
                await write(process, b"x")
                assert await read(process) == b"x"
                process.terminate()
            else:
                with anyio.move_on_after(chance.random() / 200):
                    await process.wait()

    async def main() -> None:
        import anyio

        chance = random.Random(7)

        async def worker(first: int) -> None:
            for number in range(first, rounds, 4):
                with anyio.move_on_after(60):
                    await round_of(number, chance)

        async with anyio.create_task_group() as group:
            for first in range(4):
                group.start_soon(worker, first)

    threads = [threading.Thread(target=run_beside) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        run_in(mode, main)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    box.close()
    assert not wrong
