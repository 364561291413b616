# SPDX-License-Identifier: Apache-2.0
"""What a hostile command of a session can do to its reaper, to the session, and to the host."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lib.machine import many, needs_root
from lib.waiting import processes, wait_until

import sandboxlib
from sandboxlib import Limits, Mount, Policy, Sandbox, SessionOver, SetupError, User

pytest_plugins = ["lib.probes", "lib.ways"]

PROBE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static void tell(const char *what, long result) {
    printf("%s %s\n", what, result < 0 ? strerrorname_np(errno) : "WORKS");
    fflush(stdout);
}

static void reach(int pid) { /* all that leads into another process */
    char path[64], byte;
    struct iovec here = {&byte, 1}, there = {(void *)0x400000, 1};
    tell("attach", ptrace(PTRACE_ATTACH, pid, 0, 0));
    tell("seize", ptrace(PTRACE_SEIZE, pid, 0, 0));
    sprintf(path, "/proc/%d/mem", pid);
    tell("mem", open(path, O_RDWR));
    tell("readv", process_vm_readv(pid, &here, 1, &there, 1, 0));
    int pidfd = syscall(SYS_pidfd_open, pid, 0);
    for (int fd = 3; fd < 8; fd++)
        tell("getfd", syscall(438, pidfd, fd, 0));
    sprintf(path, "/proc/%d/fd/3", pid);
    tell("fd", open(path, O_RDWR));
    tell("stop", kill(pid, pid == 1 ? SIGKILL : 0));
}

static void chains(int n) { /* each process starts the next, and ends */
    for (int i = 0; i < n; i++)
        if (fork() == 0)
            for (setsid();;)
                if (fork() != 0)
                    _exit(0);
    printf("ready\n");
    fflush(stdout);
    for (;;)
        pause();
}

static void bomb(void) {
    printf("ready\n");
    fflush(stdout);
    for (;;)
        if (fork() == 0)
            setsid();
}

int main(int argc, char **argv) {
    int number = argc > 2 ? atoi(argv[2]) : 0;
    struct rlimit none = {0, 0};
    if (strcmp(argv[1], "reach") == 0)
        reach(number ? number : getppid());
    if (strcmp(argv[1], "chains") == 0)
        chains(number);
    if (strcmp(argv[1], "bomb") == 0)
        bomb();
    if (strcmp(argv[1], "hold") == 0) {
        tell("hold", ptrace(PTRACE_SEIZE, number, 0, 0));
        for (;;)
            pause();
    }
    if (strcmp(argv[1], "limit") == 0)
        tell("limit", prlimit(number ? number : getppid(), atoi(argv[3]), &none, 0));
    return 0;
}
"""


@pytest.fixture
def box(executor: str, rootfs: Path, compile_static: Callable[[str], Path]) -> Sandbox:
    return hostile(rootfs, compile_static)


def hostile(root: Path, compile_static: Callable[[str], Path], **options: object) -> Sandbox:
    """A Sandbox whose commands have the probe, and no filter."""
    mount = Mount.bind(compile_static(PROBE), "/bin/probe")
    (root / "bin" / "probe").touch()
    policy = Policy(seccomp="none")
    return Sandbox(root, extra_mounts=[mount], policy=policy, **options)  # type: ignore[arg-type]


def marks() -> tuple[str, str]:
    return f"{os.getpid()}.0625", f"{os.getpid()}.03125"


# ---- the reapers -------------------------------------------------------------------------------


def test_neither_pid_1_nor_a_reaper_can_be_reached(box: Sandbox) -> None:
    with box.session() as session:
        for pid in ("1", "0"):
            told = session.run(["probe", "reach", pid]).stdout.decode().split("\n")
            works = [line for line in told if "WORKS" in line]
            # Signals may be sent; pid 1 does not get them.
            assert works == ["stop WORKS"], told
        assert session.run(["true"]).ok
        # A reaper of another command.
        running = threading.Thread(target=lambda: session.run(["sleep", marks()[0]]))
        running.start()
        assert wait_until(lambda: processes(marks()[0]))
        script = "probe reach $(ps | sed -n 's/ *\\([0-9]*\\).*memfd.*/\\1/p' | sed -n 2p)"
        told = session.run(["sh", "-c", script]).stdout.decode().split("\n")
        assert [line for line in told if "WORKS" in line] == ["stop WORKS"], told
        session.run(["killall", "-9", "sleep"])
        running.join(100)


@pytest.mark.parametrize("how", ["kill -9 $PPID", "kill -9 -1"])
def test_who_kills_a_reaper_ends_the_session(box: Sandbox, how: str) -> None:
    mark, other = marks()
    ends: list[object] = []

    def run() -> None:
        try:
            ends.append(session.run(["sleep", other]))
        except SessionOver as error:
            ends.append(error)

    with box.session() as session:
        running = threading.Thread(target=run)
        running.start()
        assert wait_until(lambda: processes(other))
        script = f"(setsid sleep {mark} &); (setsid sh -c '{how}' &); {how}; sleep {mark}"
        with pytest.raises(SessionOver, match="killed the reaper"):
            session.run(["sh", "-c", script])
        running.join(100)
        assert not processes(mark) + processes(other)
        assert isinstance(ends[0], SessionOver) or ends[0].exit == -9  # type: ignore[attr-defined]
        with pytest.raises(SessionOver):
            session.run(["true"])


def test_a_reaper_that_is_stopped_does_not_keep_the_host(box: Sandbox) -> None:
    mark = marks()[0]
    with box.session() as session:
        script = f"kill -STOP $PPID; (setsid sleep {mark} &); sleep {mark}"
        start = time.monotonic()
        result = session.run(["sh", "-c", script], timeout=1.0)
        assert result.exit == -9
        assert result.timed_out
        assert time.monotonic() - start < 60
        assert not processes(mark)
        with pytest.raises(SessionOver, match="did not end in time"):
            session.run(["true"])


def test_a_reaper_without_its_limits_does_not_keep_the_host(box: Sandbox) -> None:
    nofile, nproc = "7", "6"
    for pid in ("1", "0"):
        with box.session() as session:
            for limit in (nproc, nofile):
                with contextlib.suppress(SessionOver, SetupError):
                    session.run(["probe", "limit", pid, limit])
            for _ in range(3):
                with contextlib.suppress(SessionOver, SetupError):
                    session.run(["sh", "-c", "sleep 1000 & sleep 1000"], timeout=0.2)


# ---- what does not want to end -----------------------------------------------------------------


@pytest.mark.parametrize("count", [1, many(50, 200)])
def test_processes_that_follow_each_other_are_caught(box: Sandbox, count: int) -> None:
    """None of them lives longer than it takes to start the next."""
    with box.session() as session:
        for timeout in (0.5, 5.0, 50.0):
            result = session.run(["probe", "chains", str(count)], timeout=timeout)
            assert result.timed_out
            if result.out == b"ready\n":
                break
        assert result == (-9, b"ready\n", b"")
        # On a machine that is very busy the session may have ended instead.
        if not session.closed:
            listed = session.run(["ps"])
            assert listed.ok
            assert b"probe" not in listed.stdout


@needs_root
def test_a_fork_bomb_ends_at_its_timeout(
    rootfs: Path, compile_static: Callable[[str], Path]
) -> None:
    # RLIMIT_NPROC counts all processes of a user: so the command has one that nobody else has.
    user, limits = User(54321 + os.getpid() % 1000, 54321), Limits(processes=many(100, 1000))
    with hostile(rootfs, compile_static, user=user, limits=limits).session() as session:
        mark = marks()[0]
        session.run(["sh", "-c", f"setsid sleep {mark} >/dev/null 2>&1 &"])
        result = session.run(["probe", "bomb"], timeout=1.0)
        assert result.timed_out
        if session.closed:
            assert not processes(mark)
        else:
            assert b"probe" not in session.run(["ps"]).stdout
            assert len(processes(mark)) == 1
    assert not processes(mark)


def test_a_process_that_another_command_traces_is_bounded(box: Sandbox) -> None:
    """A tracer keeps a zombie, for which the reaper then waits."""
    with box.session() as session:
        held = threading.Thread(
            target=lambda: session.run(["sh", "-c", "echo $$ > /tmp/pid; sleep 1000"], timeout=2.0)
        )
        held.start()
        script = "while [ ! -s /tmp/pid ]; do :; done; probe hold $(cat /tmp/pid) > /tmp/held"
        tracer = threading.Thread(target=_ignore(session.run), args=(["sh", "-c", script],))
        tracer.start()
        held.join(50)
        assert not held.is_alive()
    tracer.join(50)
    assert not tracer.is_alive()


# ---- the host ----------------------------------------------------------------------------------


def test_outputs_that_never_end_do_not_keep_the_host(box: Sandbox) -> None:
    with box.session() as session:
        # A daemon keeps the pipe, and writes on.
        done = session.run(["sh", "-c", "(while :; do echo x; done) & echo first"], timeout=60)
        assert done.exit == 0
        assert not done.timed_out
        assert session.run(["yes"], timeout=0.5, max_output="1M").timed_out
        assert session.run(["true"]).ok


def test_a_command_cannot_stop_the_end_of_its_session(box: Sandbox) -> None:
    mark = marks()[1]
    session = box.session()
    script = f"trap '' TERM INT HUP; setsid sleep {mark} & kill -STOP $PPID; kill -STOP $$"
    running = threading.Thread(target=_ignore(session.run), args=(["sh", "-c", script],))
    running.start()
    assert wait_until(lambda: processes(mark))
    start = time.monotonic()
    session.close()
    running.join(100)
    assert time.monotonic() - start < 60
    assert not processes(mark)


def _ignore(call: Callable[..., object]) -> Callable[..., None]:
    def run(*args: object) -> None:
        with contextlib.suppress(SessionOver):
            call(*args)

    return run


def test_threads_that_open_use_and_close_sessions(box: Sandbox) -> None:
    """Others use a session while one thread closes it: each run ends, in one way or the other."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(many(5, 50)):
        session = box.session()
        wrong: list[object] = []

        def use(session: sandboxlib.Session = session, wrong: list[object] = wrong) -> None:
            try:
                while True:
                    result = session.run(["echo", "x"])
                    if result != (0, b"x\n", b""):
                        wrong.append(result)
            except SessionOver:
                pass
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            session.run(["true"])
        session.close()
        for thread in threads:
            thread.join(100)
            assert not thread.is_alive()
        assert wrong == []
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_host_that_closes_the_descriptors_gets_an_error(box: Sandbox) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            session = box.session()
            os.closerange(3, 300)
            try:
                session.run(["true"])
            except SessionOver as error:
                code = 7 if "descriptors" in str(error) else 2
            session.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
