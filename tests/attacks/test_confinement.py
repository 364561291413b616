# SPDX-License-Identifier: Apache-2.0
"""A command can neither break out nor leave anything behind."""

from __future__ import annotations

import hashlib
import os
import select
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import needs_root, require
from lib.roots import make_rootfs
from lib.waiting import processes

import sandboxlib
from sandboxlib import Mount, Result, Sandbox, run_sandbox

pytestmark = needs_root

# Each attempt prints what the kernel said: "0 ..." means that it worked.
PROBE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <unistd.h>
static int say(long result) {
    printf("%d %s\n", result < 0 ? -1 : 0, result < 0 ? strerror(errno) : "");
    return 0;
}
int main(int argc, char **argv) {
    const char *what = argv[1];
    struct timeval now;
    if (argc < 2) return 2;
#define TRY(name, call) if (!strcmp(what, name)) return say(call)
    TRY("mknod", mknod("/tmp/disk", S_IFBLK | 0600, makedev(254, 0)));
    TRY("mount", mount("x", "/tmp", "tmpfs", 0, 0));
    TRY("bind", mount("/", "/tmp", 0, MS_BIND, 0));
    TRY("remount", mount(0, "/", 0, MS_REMOUNT | MS_BIND, 0));
    TRY("umount", umount2("/proc", MNT_DETACH));
    TRY("pivot_root", syscall(SYS_pivot_root, "/tmp", "/tmp"));
    TRY("unshare", unshare(CLONE_NEWNS));
    TRY("setns", setns(open("/proc/1/ns/mnt", O_RDONLY), 0));
    TRY("ptrace", ptrace(PTRACE_SEIZE, 1, 0, 0));
    TRY("mem", open("/proc/1/mem", O_RDWR));
    TRY("exe", open("/proc/1/exe", O_RDONLY));
    TRY("fds", open("/proc/1/fd/3", O_WRONLY));
    TRY("cwd", open("/proc/1/cwd/MARK", O_RDONLY));
    TRY("reboot", syscall(SYS_reboot, 0, 0, 0, 0));
    TRY("clock", gettimeofday(&now, 0) ? -1 : settimeofday(&now, 0));
    TRY("module", syscall(SYS_init_module, "", 0, ""));
    TRY("hostname", sethostname("x", 1));
    TRY("nice", setpriority(0, 0, -5));
    if (!strcmp(what, "keyring")) /* KEYCTL_GET_KEYRING_ID of the session */
        return printf("%ld\n", syscall(SYS_keyctl, 0, -3, 0)), 0;
    TRY("sysctl", open("/proc/sys/kernel/core_pattern", O_WRONLY));
    TRY("sysrq", open("/proc/sysrq-trigger", O_WRONLY));
    TRY("pdeathsig", ({ int s = 0; prctl(PR_GET_PDEATHSIG, &s); errno = s; -1; }));
    TRY("shm", shmget(0x5342, 4096, IPC_CREAT | 0666));
    TRY("shm_there", shmget(0x5342, 0, 0));
    TRY("tiocsti", ({ int fd = open(argv[2], O_RDWR); fd < 0 ? -1 : ioctl(fd, TIOCSTI, "x"); }));
    if (!strcmp(what, "forge")) {
        int record[5] = {0x53425831, 0, 0, 0, 0};
        for (int fd = 3; fd < 64; fd++)
            if (write(fd, record, sizeof record) > 0)
                return 1;
        return 42;
    }
    if (!strcmp(what, "euid"))
        return printf("%d\n", (int)geteuid()), 0;
    if (!strcmp(what, "as")) {
        setgid(atoi(argv[2]));
        setuid(atoi(argv[2]));
        execv(argv[3], argv + 3);
    }
    return 2;
}
"""


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the probe in it. The file MARK lies beside it, where no probe should get."""
    require(shutil.which("cc"), "there is no C compiler")
    place = tmp_path_factory.mktemp("cell")
    root = make_rootfs(place / "root")
    (place / "probe.c").write_text(PROBE)
    argv = ["cc", "-w", "-static", "-o", str(root / "bin" / "probe"), str(place / "probe.c")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    require(done.returncode == 0, f"no static program can be compiled: {done.stderr[-300:]}")
    return root


Probe = Callable[..., tuple[bool, str]]


def in_a_fresh_sandbox(root: Path, argv: list[str], **options: Any) -> Result:
    return run_sandbox(root, argv, **options)


def in_a_prepared_sandbox(root: Path, argv: list[str], **options: Any) -> Result:
    """The second of two runs."""
    with open_box(root, **options) as box:
        box.run(argv)
        return box.run(argv)


def in_a_map(root: Path, argv: list[str], **options: Any) -> Result:
    """The third of several."""
    with open_box(root, **options) as box:
        found: list[Result] = list(box.map([argv] * 3, jobs=2, on_failure="continue"))
        return found[-1]


@pytest.fixture(params=[in_a_fresh_sandbox, in_a_prepared_sandbox, in_a_map])
def probe(request: pytest.FixtureRequest) -> Probe:
    """Whether an attempt worked, and what the kernel said."""

    def attempt(root: Path, *words: str, **options: Any) -> tuple[bool, str]:
        exit, out, err = request.param(root, ["probe", *words], **options)
        assert exit == 0, err
        worked, _, text = out.decode().strip().partition(" ")
        return worked == "0", text

    return attempt


@pytest.mark.parametrize(
    "attempt",
    "mknod mount bind remount umount pivot_root unshare setns ptrace mem exe fds cwd "
    "reboot clock module hostname nice sysctl".split(),
)
@pytest.mark.parametrize("network", ["undefined", "isolated"])
def test_an_attempt_to_get_out_fails(cell: Path, probe: Probe, attempt: str, network: str) -> None:
    worked, text = probe(cell, attempt, network=network)
    assert not worked, text


@pytest.mark.parametrize("probe", [in_a_fresh_sandbox], indirect=True)
def test_the_attempts_are_real(cell: Path, probe: Probe) -> None:
    # A control: with the capability, the attempts that failed above work.
    for attempt in ("mount", "bind", "unshare", "mknod", "nice"):
        assert probe(cell, attempt, capabilities="all")[0], attempt
        (cell / "tmp" / "disk").unlink(missing_ok=True)


def test_the_kernels_knobs_are_read_only(cell: Path, probe: Probe) -> None:
    assert probe(cell, "sysctl")[1] == "Read-only file system"
    if os.path.exists("/proc/sysrq-trigger"):
        assert probe(cell, "sysrq")[1] == "Read-only file system"


@pytest.mark.parametrize("number", range(3, 51))
def test_a_working_directory_that_is_a_descriptor_is_refused(cell: Path, number: int) -> None:
    with pytest.raises(OSError, match="cwd"):
        run_sandbox(cell, ["pwd"], cwd=f"/proc/self/fd/{number}")


@pytest.mark.parametrize("name", ["KILL", "STOP", "INT", "TERM", "SEGV", "CHLD", "IO"])
def test_no_signal_from_inside_changes_the_reaper(cell: Path, name: str) -> None:
    script = f"for i in 1 2 3; do kill -{name} 1; done; usleep 20000; exit 7"
    assert run_sandbox(cell, ["sh", "-c", script], timeout=30).exit == 7


def test_a_status_cannot_be_forged(cell: Path) -> None:
    assert run_sandbox(cell, ["probe", "forge"]).exit == 42


def test_the_parent_death_signal_is_not_inherited(cell: Path, probe: Probe) -> None:
    assert probe(cell, "pdeathsig")[1] == "Success"


def test_a_set_uid_program_gives_nothing(cell: Path) -> None:
    shutil.copy(cell / "bin" / "probe", cell / "bin" / "setuid")
    (cell / "bin" / "setuid").chmod(0o4755)
    command = ["probe", "as", "1000", "/bin/setuid", "euid"]
    assert run_sandbox(cell, command).out == b"1000\n"
    assert run_sandbox(cell, command, no_new_privs=False).out == b"0\n"


def test_what_runs_outside_is_not_changed_from_inside(cell: Path) -> None:
    package = Path(sandboxlib.__file__).parent
    files = [Path(sys.executable), *package.glob("_sandbox*.so"), package / "_init"]

    def sums() -> list[str]:
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]

    before = sums()
    (cell / "bin" / "self").write_text("#!/proc/self/exe\n")
    (cell / "bin" / "self").chmod(0o755)
    script = "for p in 1 self thread-self; do echo x > /proc/$p/exe; ls -l /proc/$p/exe; done"
    out = run_sandbox(cell, ["sh", "-c", script]).out.decode()
    assert str(package) not in out
    assert sys.executable not in out
    # At that moment /proc/self/exe is the reaper's program in memory: it runs, as a stray.
    run_sandbox(cell, ["self"], timeout=10)
    assert sums() == before


# ---- left behind -----------------------------------------------------------------------------


@pytest.mark.parametrize("init", [True, False])
def test_whatever_was_started_is_gone_when_the_call_returns(cell: Path, init: bool) -> None:
    mark = f"81{os.getpid()}"
    script = f"""
        for i in $(seq 100); do sleep {mark} & done
        setsid sh -c 'trap "" TERM HUP INT; (sleep {mark} &) ; sleep {mark}' &
        (setsid setsid sleep {mark} &)
        exit 5
    """
    assert run_sandbox(cell, ["sh", "-c", script], init=init).exit == 5
    assert processes(mark) == []


def test_without_process_isolation_the_process_group_is_gone(cell: Path) -> None:
    # Each process holds the pipe from its fork on, whatever it is called by then.
    reader, writer = os.pipe()
    script = "sleep 1000 & sleep 1000 & exit 5"
    words: dict[str, Any] = {"processes": "undefined", "pass_fds": [writer]}
    assert run_sandbox(cell, ["sh", "-c", script], **words).exit == 5
    os.close(writer)
    is_over, _, _ = select.select([reader], [], [], 60)
    os.close(reader)
    assert is_over


def test_orphans_are_reaped_while_the_command_still_runs(cell: Path) -> None:
    script = """
        for i in $(seq 200); do (true &) ; done
        for i in $(seq 100); do
            usleep 50000
            zombies=$(grep -sl '^State:.Z' /proc/[0-9]*/status | wc -l)
            test $zombies = 0 && break
        done
        echo $zombies
    """
    result = run_sandbox(cell, ["sh", "-c", script], extra_mounts=[Mount.dev()])
    assert (result.out, result.err) == (b"0\n", b"")


def test_shared_memory_stays_in_its_run(cell: Path, probe: Probe) -> None:
    assert probe(cell, "shm")[0]
    assert not probe(cell, "shm_there")[0]
    assert not probe(cell, "shm_there", ipc="undefined")[0]
    assert not probe(cell, "sysctl")[0]


def test_the_session_keyring_is_the_runs_own(cell: Path) -> None:
    def keyrings(**words: Any) -> set[bytes]:
        return {run_sandbox(cell, ["probe", "keyring"], **words).out for _ in range(2)}

    shared, own = keyrings(ipc="undefined", seccomp="none"), keyrings(seccomp="none")
    assert len(shared) == 1
    assert len(own) == 2
    assert not own & shared
    assert keyrings() == {b"-1\n"}  # the filter lets nobody ask


def test_two_runs_with_isolated_networks_cannot_meet(cell: Path) -> None:
    box = Sandbox(cell, network="isolated", extra_mounts=[Mount.dev()])
    up = "cat /proc/net/tcp /proc/net/tcp6 2> /dev/null | grep -q ':0009 '"
    met = "sleep 1 | nc -w 20 127.0.0.1 9"
    script = f"echo met | timeout 30 nc -l -p 9 & until {up}; do usleep 10000; done; {met}"
    assert b"met" in box.run(["sh", "-c", script]).out
    serve, call = "echo met | timeout 2 nc -l -p 9", "sleep 1 | nc -w 1 127.0.0.1 9"
    listener = threading.Thread(target=box.run, args=(["sh", "-c", serve],))
    listener.start()
    assert box.run(["sh", "-c", f"usleep 200000; {call}"]).out == b""
    listener.join()


def test_no_input_can_be_pushed_into_the_callers_terminal(cell: Path) -> None:
    # As root, on a terminal that is given as stdin: a session of its own is what stops it.
    script = """
import fcntl, os, sys, termios
os.setsid()
master, slave = os.openpty()
fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
import sandboxlib
result = sandboxlib.run_sandbox(sys.argv[1], ["probe", "tiocsti", "/proc/self/fd/0"], stdin=slave)
tty = sandboxlib.run_sandbox(sys.argv[1], ["sh", "-c", ": < /dev/tty"],
    extra_mounts=[sandboxlib.Mount.dev()], stdin=slave)
print(result.out.decode(), tty.exit)
"""
    argv = [sys.executable, "-c", script, str(cell)]
    out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert out.startswith("-1 ")
    assert not out.strip().endswith(" 0")
