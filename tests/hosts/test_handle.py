# SPDX-License-Identifier: Apache-2.0
"""Commands that run while the caller does something else: Sandbox.start and Process."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import needs_root
from lib.waiting import processes, wait_until

from sandboxlib import (
    CAPTURE,
    STDOUT,
    Mount,
    Process,
    Sandbox,
    SetupError,
    SpecError,
    SpecTypeError,
    UnsupportedError,
)
from sandboxlib._core import native

pytestmark = needs_root
MODES: dict[str, dict[str, Any]] = {
    "reaper": {},
    "init=False": {"init": False},
    "processes=undefined": {"processes": "undefined"},
}


@pytest.fixture(params=MODES.values(), ids=MODES.keys())
def box(request: pytest.FixtureRequest, shared_rootfs: Path) -> Iterator[Sandbox]:
    with open_box(shared_rootfs, extra_mounts=[Mount.dev()], **request.param) as made:
        yield made


@pytest.fixture
def plain(shared_rootfs: Path) -> Iterator[Sandbox]:
    with Sandbox(shared_rootfs, extra_mounts=[Mount.dev()]) as made:
        yield made


def children() -> str:
    tasks = sorted(os.listdir("/proc/self/task"))
    return "".join(Path(f"/proc/self/task/{task}/children").read_text() for task in tasks)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    native.init_descriptor()  # which is kept
    gc.collect()
    before = sorted(os.listdir("/proc/self/fd")), children()
    yield
    gc.collect()
    assert (sorted(os.listdir("/proc/self/fd")), children()) == before


def sh(box: Sandbox, script: str, **words: Any) -> Process:
    return box.start(["sh", "-c", script], **words)


def test_a_process_is_talked_to_while_it_runs(box: Sandbox) -> None:
    with sh(box, "read x; echo got $x; read y; echo no $y >&2; exit 3", stdin=CAPTURE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.poll() is None
        assert process.returncode is None
        process.stdin.write(b"one\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"got one\n"
        process.stdin.write(b"two\n")
        process.stdin.close()
        assert process.stderr.read() == b"no two\n"
        assert process.wait() == 3
        assert process.poll() == process.returncode == 3
    result = process.result()
    assert (result.exit, result.out, result.err, result.executor) == (3, None, None, "chroot")
    assert result.usage is not None
    assert result.command.argv[0] == "sh"


def test_communicate_feeds_and_collects_at_the_same_time(box: Sandbox) -> None:
    content = os.urandom(3_000_000)
    with box.start(["cat"], stdin=CAPTURE) as process:
        assert process.communicate(content) == (content, b"")
    with sh(box, "cat; cat >&2", stdin=CAPTURE, stderr=STDOUT) as process:
        assert process.communicate(b"few") == (b"few", None)
    with sh(box, "exit 5", stdin=CAPTURE) as process:  # it does not want it
        assert process.communicate(b"x" * 1_000_000) == (b"", b"")
        assert process.returncode == 5
    text: Any = "text"
    with box.start(["cat"], stdin=CAPTURE) as process:
        with pytest.raises(SpecTypeError, match=r"input\.encode\(\)"):
            process.communicate(text)
        assert process.communicate(b"few") == (b"few", b"")
    with sh(box, "true") as process, pytest.raises(ValueError, match="stdin"):
        process.communicate(b"x")


def test_a_wait_that_takes_too_long_is_told_and_can_be_repeated(box: Sandbox) -> None:
    with sh(box, "echo early; read x; echo late; exit 4", stdin=CAPTURE) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.05)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0)
        assert process.communicate(b"x\n", timeout=30) == (b"early\nlate\n", b"")
        assert process.wait(0) == 4


def test_an_environment_of_its_own(box: Sandbox) -> None:
    env = {"PATH": "/bin", "A": "1"}
    with box.start(["env"], env=env, extra_env={"B": "2"}) as process:
        assert sorted(process.communicate()[0].split()) == [b"A=1", b"B=2", b"PATH=/bin"]
    results = [box.run(["env"], env=env), *box.map([["env"]], env=env)]
    results.append(asyncio.run(box.run_async(["env"], env=env)))
    for result in results:
        assert sorted((result.out or b"").split()) == [b"A=1", b"PATH=/bin"]
    assert box.run(["env"], env={}) == (0, b"", b"")


@pytest.mark.parametrize("command", [["nonsuch"], ["/"], ["/etc"]])
def test_a_program_that_cannot_be_run_is_told_by_the_start(
    box: Sandbox, command: list[str]
) -> None:
    with pytest.raises(SetupError) as caught:
        box.start(command)
    assert caught.value.step == "exec"


def test_a_cwd_that_is_not_there_is_told_by_the_start(box: Sandbox) -> None:
    with pytest.raises(SetupError, match="working directory"):
        box.start(["true"], cwd="/nonsuch")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ({"nonsense": 1}, SpecTypeError),
        ({"grace": 1.0}, SpecTypeError),
        ({"stdin": "x"}, SpecTypeError),
        ({"stdout": 1 << 40}, SpecError),
        ({"max_output": -1}, SpecError),
    ],
)
def test_words_that_make_no_sense_start_nothing(
    plain: Sandbox, words: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        plain.start(["true"], **words)
    with pytest.raises(error):
        plain.start(["true"], **{"stdin": CAPTURE, **words})


# ---- signals -----------------------------------------------------------------------------------


def test_a_signal_reaches_the_command(box: Sandbox) -> None:
    script = "trap 'echo told; exit 7' USR1; echo up; while :; do sleep 0.02; done"
    with sh(box, script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGUSR1)
        assert process.communicate(timeout=30)[0] == b"told\n"
        assert process.returncode == 7
        process.send_signal(signal.SIGUSR1)  # nobody is there any more


def test_terminate_and_kill_end_it(box: Sandbox) -> None:
    for end in (Process.terminate, Process.kill):
        with sh(box, "trap 'exit 0' TERM; echo up; while :; do sleep 0.02; done") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            end(process)
            assert process.wait(30) == (0 if end is Process.terminate else -9)


def test_terminate_at_once_is_not_lost(plain: Sandbox) -> None:
    for _ in range(200):
        with plain.start(["sleep", "60"]) as process:
            process.terminate()
            assert process.wait(30) == -15


def test_terminate_reaches_every_process_of_the_run(plain: Sandbox) -> None:
    mark = f"60{os.getpid()}"
    script = f"setsid sleep {mark} & sleep {mark} & trap 'wait; exit 8' TERM; echo up; wait; wait"
    with sh(plain, script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert wait_until(lambda: len(processes(mark)) == 2)
        process.terminate()
        assert process.wait(30) == 8
    assert not processes(mark)


@pytest.mark.parametrize("mode", [{}, {"processes": "undefined"}])
def test_a_tree_is_suspended_and_resumed(shared_rootfs: Path, mode: dict[str, Any]) -> None:
    count = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done"
    with sh(
        open_box(shared_rootfs, extra_mounts=[Mount.dev()], **mode), f"({count}) & {count}"
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.suspend()
        assert wait_until(lambda: _is_quiet(process))
        process.resume()
        assert process.stdout.readline()
        process.suspend()
        process.kill()
        assert process.wait(30) == -9


def _is_quiet(process: Process) -> bool:
    """Whether nothing comes for 100 ms, once what the pipe held was read."""
    assert process.stdout is not None
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    while poll.poll(0):
        os.read(process.stdout.fileno(), 65536)
    return not poll.poll(100)


def test_without_a_reaper_nothing_is_suspended_by_halves(shared_rootfs: Path) -> None:
    with Sandbox(shared_rootfs, init=False).start(["sleep", "60"]) as process:
        with pytest.raises(UnsupportedError, match="init=False"):
            process.suspend()
        process.kill()


# ---- descriptors, terminals ---------------------------------------------------------------------


def test_fileno_is_a_pidfd_that_can_be_polled(box: Sandbox) -> None:
    with sh(box, "read x", stdin=CAPTURE) as process:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        assert poll.poll(0) == []
        assert f"Pid:\t{process.pid}" in Path(f"/proc/self/fdinfo/{process.fileno()}").read_text()
        assert process.stdin is not None
        process.stdin.close()
        assert poll.poll(30_000)
        assert process.poll() == 1
    with sh(box, "true") as process:
        process.wait()
        with pytest.raises(ValueError, match="ended"):
            process.fileno()


def test_a_pty_is_typed_at(plain: Sandbox) -> None:
    script = "test -t 0 -a -t 1 -a -t 2 && stty size; read x; stty size; read y; echo never"
    with sh(plain, script, pty=(30, 90)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"30 90\r\n"
        process.resize(40, 100)
        process.stdin.write(b"hello\n")
        assert process.stdout.readline() == b"hello\r\n"  # the terminal's echo
        assert process.stdout.readline() == b"40 100\r\n"
        process.stdin.write(b"\x03")  # Ctrl-C
        assert process.wait(30) == -2
        assert process.stderr is None
        assert b"never" not in process.stdout.read()


def test_the_end_of_a_terminal_hangs_up(plain: Sandbox) -> None:
    with sh(plain, "cat; echo over", pty=True) as process:
        assert process.stdin is not None
        process.stdin.write(b"\x04")  # Ctrl-D
        assert process.communicate(timeout=30)[0] == b"over\r\n"
    with sh(plain, "true") as process, pytest.raises(ValueError, match="pty"):
        process.resize(1, 1)


# ---- lifetime -----------------------------------------------------------------------------------


def test_an_exception_in_the_block_kills_the_run(box: Sandbox) -> None:
    mark = f"61{os.getpid()}"
    try:
        with box.start(["sleep", mark]) as process:
            assert wait_until(lambda: processes(mark))
            raise KeyError
    except KeyError:
        pass
    assert process.returncode == -9
    assert not processes(mark)


def test_a_process_that_is_lost_or_closed_is_gone(box: Sandbox) -> None:
    mark = f"62{os.getpid()}"
    process = box.start(["sleep", mark])
    assert wait_until(lambda: processes(mark))
    process.close()
    process.close()
    assert not processes(mark)
    process = box.start(["sleep", mark])
    assert wait_until(lambda: processes(mark))
    kept = [process]
    del process
    with pytest.warns(ResourceWarning):  # as for every file that was not closed
        kept.clear()
    assert not processes(mark)


def test_a_thread_that_ends_takes_nothing_along(box: Sandbox) -> None:
    started: list[Process] = []
    thread = threading.Thread(
        target=lambda: started.append(sh(box, "echo up; read x; echo $x", stdin=CAPTURE))
    )
    thread.start()
    thread.join()
    (process,) = started
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    assert process.communicate(b"still here\n", timeout=30) == (b"still here\n", b"")
    assert process.returncode == 0
    process.close()


def test_threads_read_both_outputs_at_once(box: Sandbox) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do echo out$i; echo err$i >&2; read x; done"
    with sh(box, script, stdin=CAPTURE) as process:
        seen: dict[str, list[bytes]] = {"stdout": [], "stderr": []}

        def follow(name: str) -> None:
            for line in getattr(process, name):
                seen[name].append(line)

        threads = [threading.Thread(target=follow, args=(name,)) for name in seen]
        for thread in threads:
            thread.start()
        assert process.stdin is not None
        for i in range(1, 10):
            assert wait_until(lambda n=i: len(seen["stdout"]) == len(seen["stderr"]) == n)
            process.stdin.write(b"\n")
            process.stdin.flush()
        for thread in threads:
            thread.join()
        assert process.wait() == 0


def test_a_fork_of_the_caller_does_not_end_it(shared_rootfs: Path) -> None:
    script = """
import os, sys
from sandboxlib import Sandbox, CAPTURE
process = Sandbox(sys.argv[1]).start(["cat"], stdin=CAPTURE)
pid = os.fork()
if pid == 0:
    process.close()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert process.communicate(b"x") == (b"x", b"")
assert process.returncode == 0
"""
    subprocess.run([sys.executable, "-c", script, str(shared_rootfs)], check=True, timeout=60)


def test_the_end_of_the_interpreter_ends_it(shared_rootfs: Path) -> None:
    mark = f"63{os.getpid()}"
    script = f"""
import sys, threading
from sandboxlib import Sandbox
box = Sandbox(sys.argv[1], filesystem_writable_paths="all", **eval(sys.argv[2]))
kept = []
thread = threading.Thread(target=lambda: kept.append(box.start(["sleep", "{mark}"])))
thread.start()
thread.join()
"""
    for mode in MODES.values():
        argv = [sys.executable, "-c", script, str(shared_rootfs), repr(mode)]
        subprocess.run(argv, check=True, timeout=60)
        assert wait_until(lambda: not processes(mark))


def test_an_executor_that_drives_a_program_starts_nothing(
    shared_rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sandboxlib import bubblewrap

    if bubblewrap.why_not():
        pytest.skip(bubblewrap.why_not())
    monkeypatch.setenv("SANDBOXLIB_BACKEND", "bubblewrap")
    with pytest.raises(UnsupportedError, match="bubblewrap"):
        Sandbox(shared_rootfs).start(["true"])
