# SPDX-License-Identifier: Apache-2.0
"""Sessions: several commands, one after the other or at once, that share a place."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import pickle
import resource
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from lib import hosts
from lib.machine import needs_root
from lib.waiting import processes, wait_until

from sandboxlib import (
    CAPTURE,
    Command,
    CommandFailed,
    Limits,
    Lines,
    Mount,
    Runner,
    Sandbox,
    SandboxExecutor,
    SessionOver,
    SetupError,
    SpecError,
    UnsupportedError,
    User,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxlib import Session

pytest_plugins = ["lib.ways"]


@pytest.fixture
def box(executor: str, shared_rootfs: Path) -> Sandbox:
    return Sandbox(shared_rootfs)


@pytest.fixture
def session(box: Sandbox) -> Iterator[Session]:
    with box.session() as opened:
        yield opened


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


# ---- what commands share -----------------------------------------------------------------------


def test_commands_share_files_and_processes(session: Session) -> None:
    assert session.run(["sh", "-c", "echo kept > /tmp/file"]).ok
    assert session.run(["cat", "/tmp/file"]).out == b"kept\n"
    session.run(["sh", "-c", "sleep 1234 & echo $! > /tmp/pid"], check=True)
    assert session.run(["sh", "-c", "kill -0 $(cat /tmp/pid) && kill $(cat /tmp/pid)"]).ok


def test_a_daemon_serves_later_commands(session: Session) -> None:
    session.run(["sh", "-c", "echo page > /tmp/page"])
    assert session.run(["httpd", "-p", "127.0.0.1:8000", "-h", "/tmp"]).ok  # it daemonises itself
    for _ in range(3):
        page = session.run(["wget", "-q", "-O-", "http://127.0.0.1:8000/page"], timeout=60)
        assert page == (0, b"page\n", b"")


def test_no_command_is_in_two_sessions(box: Sandbox) -> None:
    with box.session() as one, box.session() as other:
        one.run(["touch", "/tmp/x"])
        assert other.run(["ls", "/tmp"]).out == b""
        assert box.run(["ls", "/tmp"]).out == b""
        one.run(["sh", "-c", "sleep 1235 &"])
        assert b"1235" not in other.run(["ps"]).out + box.run(["ps"]).out


def test_daemons_live_until_the_session_ends(box: Sandbox) -> None:
    mark = f"{os.getpid()}.25"
    with box.session() as session:
        session.run(["sh", "-c", f"setsid sleep {mark} >/dev/null 2>&1 &"], check=True)
        assert session.run(["true"]).ok
        assert wait_until(lambda: len(processes(mark)) == 1)
        assert session.run(["true"]).ok
        assert len(processes(mark)) == 1
    assert not processes(mark)


# ---- each command ------------------------------------------------------------------------------


def test_a_command_is_told_apart_from_the_others(session: Session) -> None:
    assert session.run(["sh", "-c", "echo out; echo err >&2; exit 3"]) == (3, b"out\n", b"err\n")
    assert session.run(["sh", "-c", "kill -TERM $$"]).exit == -15
    assert session.run(["cat"], stdin=b"in").out == b"in"
    assert session.run(["sh", "-c", "pwd; echo $A"], cwd="/etc", extra_env={"A": "b"}).out == (
        b"/etc\nb\n"
    )
    lines: list[bytes] = []
    assert session.run(["sh", "-c", "echo 1; echo 2"], stdout=Lines(lines.append)).out is None
    assert lines == [b"1\n", b"2\n"]
    assert len(session.run(["head", "-c", "3000000", "/dev/zero"]).stdout) == 3000000
    assert session.run(["yes"], max_output=10, on_overflow="kill").limits_hit == ("output",)
    with pytest.raises(FileNotFoundError, match="nonesuch"):
        session.run(["nonesuch"])
    with pytest.raises(FileNotFoundError, match="working directory"):
        session.run(["true"], cwd="/nonesuch")
    with pytest.raises(CommandFailed):
        session.run(["false"], check=True)
    long = ["sh", "-c", "echo ${#1}", "sh", "x" * 120000]
    assert session.run([*long, *["y" * 100000] * 8]).out == b"120000\n"
    usage = session.run(["sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"]).usage
    assert usage is not None
    assert usage.user + usage.system > 0


def test_a_command_gets_descriptors_and_a_terminal(session: Session) -> None:
    reader, writer = os.pipe()
    try:
        assert session.run(["sh", "-c", f"echo x >&{writer}"], pass_fds=[writer]).ok
        assert os.read(reader, 9) == b"x\n"
    finally:
        os.close(reader)
        os.close(writer)
    assert session.run(["sh", "-c", "tty >&2; stty size"], pty=(7, 33)).stdout.endswith(b"7 33\r\n")
    # Only 0, 1, 2 and the directory that is read.
    assert len(session.run(["ls", "/proc/self/fd"]).stdout.split()) == 4


def test_a_timeout_ends_all_of_its_command_and_nothing_else(session: Session) -> None:
    mark, other = f"{os.getpid()}.5", f"{os.getpid()}.75"
    session.run(["sh", "-c", f"setsid sleep {other} >/dev/null 2>&1 &"], check=True)
    script = f"""
        (setsid sh -c 'setsid sleep {mark} & sleep {mark} & exit' &)
        (sh -c 'sleep {mark}' | sleep {mark}) &
        while [ $(ps | grep -c '[s]leep {mark}') -lt 4 ]; do :; done
        echo ready; sleep {mark}"""
    for timeout in (1.0, 10.0, 60.0):
        result = session.run(["sh", "-c", script], timeout=timeout)
        assert result.timed_out
        assert not processes(mark)
        if result.out == b"ready\n":
            break
    assert result == (-9, b"ready\n", b"")
    assert len(processes(other)) == 1
    assert session.run(["true"]).ok


def test_grace_gives_a_command_a_warning(session: Session) -> None:
    script = "trap 'echo warned; exit 4' TERM; echo ready; while :; do sleep 0.01; done"
    for timeout in (1.0, 10.0, 60.0):
        result = session.run(["sh", "-c", script], timeout=timeout, grace=60)
        assert result.timed_out
        if b"ready" in result.stdout:
            break
    assert result[:2] == (4, b"ready\nwarned\n")


def test_limits_hold_for_each_command(executor: str, shared_rootfs: Path) -> None:
    box = Sandbox(shared_rootfs, limits=Limits(file_size=1000, open_files=50), umask=0o077)
    with box.session() as session:
        for _ in range(2):
            assert session.run(["sh", "-c", "ulimit -n; umask"]).out == b"50\n0077\n"
            written = session.run(["dd", "if=/dev/zero", "of=/tmp/x", "bs=2000", "count=1"])
            assert written.limits_hit == ("file_size",)
        spin = session.run(["sh", "-c", "while :; do :; done"], limits=Limits(cpu_time=1))
        assert spin.limits_hit == ("cpu_time",)
        several = Limits(open_files=40, core=0, cpuset=1)
        assert session.run(["sh", "-c", "ulimit -n; ulimit -c"], limits=several).out == b"40\n0\n"
        assert session.run(["sh", "-c", "ulimit -n; umask"]).out == b"50\n0077\n"
        with session.start(["sh", "-c", "ulimit -n"], limits=Limits(open_files=30)) as process:
            assert process.communicate() == (b"30\n", b"")
        for refused in (Limits(memory="100M"), Limits(pids=9), Limits(oom_score_adj=5)):
            with pytest.raises(UnsupportedError, match="a limit of the session as a whole"):
                session.run(["true"], limits=refused)


@needs_root
def test_commands_have_the_ids_of_the_sandbox(shared_rootfs: Path) -> None:
    with Sandbox(shared_rootfs, user=User(1000, 2000, [3000])).session() as session:
        for _ in range(2):
            assert session.run(["id"]).out == b"uid=1000 gid=2000 groups=3000\n"
        assert session.run(["sh", "-c", "sleep 99 & sleep 99"], timeout=0.2).timed_out
        assert b"sleep" not in session.run(["ps"]).stdout


@needs_root
def test_mounts_and_mount_points_go_with_the_session(rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    box = Sandbox(rootfs, extra_mounts=[Mount.bind(tmp_path / "source", "/made/here")])
    before = sorted(os.listdir(rootfs))
    with box.session() as session:
        assert session.run(["sh", "-c", "echo x > /made/here/file"]).ok
    assert (tmp_path / "source" / "file").read_text() == "x\n"
    assert sorted(os.listdir(rootfs)) == before


# ---- many at once ------------------------------------------------------------------------------


def test_commands_run_at_once(session: Session) -> None:
    """Each waits for a file that the next one makes."""
    wait = "while [ ! -e /tmp/{0} ]; do sleep 0.01; done; touch /tmp/{1}; echo {0}"
    commands = [["sh", "-c", wait.format(i, i + 1)] for i in range(5)]
    results = []
    threads = [
        threading.Thread(target=lambda c=c: results.append(session.run(c, timeout=100)))
        for c in [
            *commands,
            ["sh", "-c", wait.format(5, 0).replace("while", "touch /tmp/0; while")],
        ]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.stdout for result in results) == [b"%d\n" % i for i in range(6)]


def test_map_and_pools_run_commands_in_a_session(session: Session) -> None:
    runner: Runner = session
    assert isinstance(session, Runner)
    session.run(["sh", "-c", "echo 7 > /tmp/n"])
    commands = [["sh", "-c", f"echo {i} $(cat /tmp/n)"] for i in range(20)]
    wanted = [b"%d 7\n" % i for i in range(20)]
    assert [r.stdout for r in runner.map(commands, jobs=4)] == wanted
    with SandboxExecutor(session, 3) as pool:
        assert [r.stdout for r in pool.map(commands)] == wanted
    with pytest.raises(CommandFailed):
        list(session.map([["true"], ["false"]]))
    (missing, good) = session.map([["nonesuch"], ["true"]], on_failure="continue")
    assert isinstance(missing, FileNotFoundError)
    assert good.ok
    with pytest.raises(SpecError, match="jobs"):
        session.map([["true"]], jobs=0)


def test_an_event_loop_runs_commands_in_a_session(box: Sandbox) -> None:
    async def main() -> None:
        async with box.session() as session:
            await session.run_async(["touch", "/tmp/x"], check=True)
            runs = [session.run_async(["ls", "/tmp"], timeout=100) for _ in range(8)]
            assert [r.stdout for r in await asyncio.gather(*runs)] == [b"x\n"] * 8
            task = asyncio.ensure_future(session.run_async(["sleep", f"{os.getpid()}.125"]))
            while not processes(f"{os.getpid()}.125"):
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not processes(f"{os.getpid()}.125")
            assert (await session.run_async(["true"])).ok

    asyncio.run(main())


# ---- commands that go on -----------------------------------------------------------------------


def test_a_service_serves_its_clients_and_ends_with_its_block(session: Session) -> None:
    session.run(["sh", "-c", "echo page > /tmp/page"])
    server = ["httpd", "-f", "-p", "127.0.0.1:8001", "-h", "/tmp"]
    get = ["wget", "-q", "-O-", "http://127.0.0.1:8001/page"]
    with session.start(server) as process:
        assert wait_until(lambda: session.run(get, timeout=60).ok)
        assert session.run(get).out == b"page\n"
        assert process.poll() is None
        assert process.pid > 1
    assert process.returncode == -15
    assert b"httpd" not in session.run(["ps"]).stdout


def test_a_process_in_a_session_is_like_any_other(session: Session) -> None:
    with session.start(["cat"], stdin=CAPTURE) as process:
        assert process.communicate(b"in") == (b"in", b"")
    with session.start(["sh", "-c", "echo 1; echo 2; exit 3"]) as process:
        assert process.stdout is not None
        assert list(process.stdout) == [b"1\n", b"2\n"]
    assert process.result()[0] == 3
    with session.start(["sh", "-c", "exit 4"], stdout=None, stderr=None) as process:
        assert process.wait(100) == 4
    with pytest.raises(FileNotFoundError, match="nonesuch"):
        session.start(["nonesuch"])
    with session.start(["sh", "-c", "stty size"], pty=(5, 44)) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"5 44\r\n"


def test_signals_reach_all_of_a_process_and_nothing_else(session: Session) -> None:
    mark, other = f"{os.getpid()}.1875", f"{os.getpid()}.0625"
    session.run(["sh", "-c", f"setsid sleep {other} >/dev/null 2>&1 &"], check=True)
    script = f"sleep {mark} & (setsid sh -c 'sleep {mark} & wait' &); echo x; sleep {mark}"

    def states() -> list[str]:
        stats = [Path(f"/proc/{pid}/stat").read_text() for pid in processes(mark)]
        return [stat.rpartition(")")[2].split()[0] for stat in stats]

    with session.start(["sh", "-c", script]) as process:
        assert wait_until(lambda: len(processes(mark)) == 3)
        process.suspend()
        assert wait_until(lambda: states() == ["T"] * 3)
        process.resume()
        assert wait_until(lambda: states() == ["S"] * 3)
        process.terminate()
        process.wait()
        assert wait_until(lambda: not processes(mark))
        assert len(processes(other)) == 1
    with session.start(["sh", "-c", f"trap '' TERM; (setsid sleep {mark} &) ; sleep {mark}"]) as p:
        assert wait_until(lambda: len(processes(mark)) == 2)
        p.kill()
        assert p.wait() == -9
        assert not processes(mark)
        assert len(processes(other)) == 1


def test_an_event_loop_has_services_in_a_session(box: Sandbox) -> None:
    async def main() -> None:
        async with box.session() as session:
            async with session.start_async(["sh", "-c", "echo up; sleep 1000"]) as service:
                assert service.stdout is not None
                assert await service.stdout.readline() == b"up\n"
                assert b"sleep 1000" in (await session.run_async(["ps"])).stdout
            assert service.returncode == -15
            async with session.start_async(["sh", "-c", "echo 1; echo 2; exit 3"]) as process:
                assert process.stdout is not None
                assert [line async for line in process.stdout] == [b"1\n", b"2\n"]
            assert process.returncode == 3
            async with session.start_async(["cat"], stdin=CAPTURE) as process:
                assert await process.communicate(b"in") == (b"in", b"")
            assert b"sleep" not in (await session.run_async(["ps"])).stdout

    asyncio.run(main())


def test_a_process_ends_with_its_session(box: Sandbox) -> None:
    session = box.session()
    process = session.start(["sleep", f"{os.getpid()}.4375"])
    session.close()
    with pytest.raises(SessionOver, match="closed"):
        process.wait(100)
    process.close()
    with pytest.raises(SessionOver):
        session.start(["true"])


# ---- the end -----------------------------------------------------------------------------------


def test_an_interrupt_ends_its_command_alone(shared_rootfs: Path, executor: str) -> None:
    hosts.run(
        """
with Sandbox(root).session() as s:
    s.run(["touch", "/tmp/x"])
    for i in range(5):
        threading.Timer(0.05 + i / 50, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        try:
            s.run(["sleep", "100"])
        except KeyboardInterrupt:
            pass
        assert b"sleep" not in s.run(["ps"]).out
    assert s.run(["ls", "/tmp"]).out == b"x\\n"
""",
        shared_rootfs,
    )


def test_a_closed_session_runs_nothing(box: Sandbox) -> None:
    before = descriptors()
    session = box.session()
    assert not session.closed
    pid = session.pid
    session.close()
    session.close()
    assert session.closed
    assert not os.path.exists(f"/proc/{pid}")
    with pytest.raises(SessionOver, match="it was closed"):
        session.run(["true"])
    with pytest.raises(SessionOver):
        asyncio.run(session.run_async(["true"]))
    with pytest.raises(SessionOver):
        list(session.map([["true"]]))
    (error,) = session.map([["true"]], on_failure="continue")
    assert isinstance(error, SessionOver)
    assert "over" in repr(session)
    assert descriptors() <= before + 2  # those of the reaper's program, opened once


def test_a_session_that_is_closed_meanwhile_ends_its_commands(box: Sandbox) -> None:
    session = box.session()
    mark = f"{os.getpid()}.375"
    ends: list[object] = []

    def run() -> None:
        try:
            ends.append(session.run(["sleep", mark]))
        except SessionOver as error:
            ends.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert wait_until(lambda: len(processes(mark)) == 4)
    session.close()
    for thread in threads:
        thread.join(100)
    assert [str(end) for end in ends] == ["the session is over: it was closed"] * 4
    assert not processes(mark)


def test_a_session_whose_pid_1_is_killed_is_over(box: Sandbox) -> None:
    with box.session() as session:
        os.kill(session.pid, 9)
        with pytest.raises(SessionOver, match="pid 1"):
            session.run(["true"])
        with pytest.raises(SessionOver, match="pid 1"):
            session.run(["true"])


def test_a_late_pid_1_costs_a_command_and_not_the_session(box: Sandbox) -> None:
    """It had no CPU time, for example. What it starts too late runs nothing."""
    with box.session() as session:
        session.run(["sh", "-c", "echo a > /tmp/x"])
        os.kill(session.pid, signal.SIGSTOP)
        with pytest.raises(SetupError, match="the session goes on") as caught:
            session.run(["sh", "-c", "echo b > /tmp/x"], timeout=0.1)
        assert (caught.value.step, caught.value.errno) == ("order", errno.ETIMEDOUT)
        os.kill(session.pid, signal.SIGCONT)
        assert session.run(["cat", "/tmp/x"]) == (0, b"a\n", b"")
        assert wait_until(lambda: session.run(["ps"]).stdout.count(b"sandboxlib-init") == 2)


def test_a_session_without_a_descriptor_names_the_step(box: Sandbox) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with box.session() as session:
        session.run(["true"])
        before = len(os.listdir("/proc/self/fd"))
        steps: list[str] = []
        for room in range(12):
            highest = max(map(int, os.listdir("/proc/self/fd")))
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 40, limits[1]))
            held: list[int] = []
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.dup(0))
            for fd in held[:room]:
                os.close(fd)
            try:
                session.run(["true"])
            except SetupError as error:
                steps.append(str(error.step) if error.errno == errno.EMFILE else str(error))
            finally:
                for fd in held[room:]:
                    os.close(fd)
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert len(os.listdir("/proc/self/fd")) == before
        assert steps[0] == "pipe"
        assert len(steps) < 12
        assert session.run(["true"]).ok


def test_a_lost_session_warns_and_ends(box: Sandbox) -> None:
    session = box.session()
    pid = session.pid
    holder = [session]
    del session
    with pytest.warns(ResourceWarning, match="unclosed"):
        holder.clear()
    gc.collect()
    assert not os.path.exists(f"/proc/{pid}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with box.session():
            pass
        gc.collect()


def test_a_session_is_no_value(session: Session) -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(session)


def test_nothing_is_left_of_many_sessions(box: Sandbox) -> None:
    def use() -> None:
        with box.session() as session:
            session.run(["sh", "-c", "sleep 1236 & exit 1"])
            list(session.map([["true"]] * 3))
            with pytest.raises(FileNotFoundError):
                session.run(["nonesuch"])
            assert session.run(["sleep", "1237"], timeout=0.05).timed_out

    use()
    before, threads = descriptors(), threading.active_count()
    for _ in range(5):
        use()
    assert descriptors() == before
    assert threading.active_count() == threads


def test_a_session_ends_with_its_caller(shared_rootfs: Path, executor: str) -> None:
    mark = f"{os.getpid()}.625"
    script = f"""
s = Sandbox(root).session()
s.run(["sh", "-c", "setsid sleep {mark} >/dev/null 2>&1 &"])
threading.Thread(target=lambda: s.run(["sleep", "{mark}"]), daemon=True).start()
while s.run(["ps"]).out.count(b"sleep {mark}") < 2:
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with subprocess.Popen(hosts.command(script, shared_rootfs)) as host:
        assert host.wait(100) == -9
    assert wait_until(lambda: not processes(mark))


def test_a_fork_of_the_caller_has_no_session(shared_rootfs: Path, executor: str) -> None:
    hosts.run(
        """
import warnings
from sandboxlib import SessionOver
warnings.simplefilter("ignore")
s = Sandbox(root).session()
pid = os.fork()
if pid == 0:
    try:
        s.run(["true"])
    except SessionOver as error:
        assert "belongs to the process" in str(error)
        s.close()
        os._exit(7)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 7 << 8
assert s.run(["true"]).ok
s.close()
""",
        shared_rootfs,
    )


# ---- what is refused ---------------------------------------------------------------------------


def test_what_a_session_cannot_be_is_refused(shared_rootfs: Path, executor: str) -> None:
    for options in ({"processes": "undefined"}, {"init": False}):
        with pytest.raises(SpecError, match="a session takes"):
            Sandbox(shared_rootfs, **options).session()
    with pytest.raises(SpecError, match="no keyword argument cwd"):
        Sandbox(shared_rootfs).session(cwd="/")
    with pytest.raises(SpecError, match="timeout"):
        Sandbox(shared_rootfs).session(timeout=-1)
    with pytest.raises(FileNotFoundError):
        Sandbox("/nonesuch").session()
    with Sandbox(shared_rootfs).session() as session, pytest.raises(SpecError):
        session.run(Command(["true"]), cwd="/")


def test_executors_that_drive_a_program_have_no_sessions(
    shared_rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOXLIB_BACKEND", "bubblewrap")
    with pytest.raises(UnsupportedError):
        Sandbox(shared_rootfs).session()


def test_opening_a_session_keeps_its_timeout(box: Sandbox) -> None:
    start = time.monotonic()
    with box.session(timeout=60) as session:
        assert session.run(["true"]).ok
    assert time.monotonic() - start < 60
