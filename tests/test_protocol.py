# SPDX-License-Identifier: Apache-2.0
"""What the caller, the resident, the reaper and the command's process tell each other."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import make_rootfs, needs_root, python, require, wait_until

from sandboxlib import CAPTURE, Result, Sandbox

pytestmark = needs_root

WAYS = ("slot", "fresh", "map", "start", "async")
each_way = pytest.mark.parametrize("way", WAYS)


def run_by(way: str, box: Sandbox, command: list[str], **words: Any) -> Result:
    """A run, by one of the WAYS."""
    if way == "map":
        (result,) = box.map([command], on_failure="continue", **words)
        return result
    if way == "async":
        return asyncio.run(box.run_async(command, **words))
    if way == "start":
        words.pop("timeout", None)
        with box.start(command, **words) as process:
            process.wait(60)
            process.communicate()
        assert process.result is not None
        return process.result
    return box.run(command, fresh=way == "fresh", **words)


@pytest.fixture(scope="session")
def compile_static(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    place = tmp_path_factory.mktemp("compiled")

    def build(source: str) -> Path:
        require(shutil.which("cc"), "there is no C compiler")
        name = f"probe-{abs(hash(source))}"
        (place / f"{name}.c").write_text(source)
        argv = ["cc", "-static", "-w", "-O1", "-pthread", "-o", place / name, place / f"{name}.c"]
        done = subprocess.run(argv, capture_output=True, check=False)
        require(done.returncode == 0, "there is no static libc")
        return place / name

    return build


@pytest.fixture
def box(rootfs: Path) -> Iterator[Sandbox]:
    with Sandbox(rootfs) as made:
        yield made


# ---- stops and ends ------------------------------------------------------------------------------

TRACED = r"""
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <unistd.h>
static void handle(int signum) { write(1, "handled ", 8); }
static void *thread(void *x) {
    ptrace(PTRACE_TRACEME, 0, 0, 0);
    raise(SIGSTOP);
    return x;
}
int main(int argc, char **argv) {
    int n = atoi(argv[2]);
    signal(SIGUSR1, handle);
    if (!strcmp(argv[1], "thread")) {
        pthread_t t;
        pthread_create(&t, 0, thread, 0);
        pthread_join(t, 0);
    } else {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
    }
    if (!strcmp(argv[1], "exec"))
        execl("/bin/sh", "sh", "-c", "echo after; exit 7", NULL);
    if (!strcmp(argv[1], "orphan")) {
        if (fork()) {
            usleep(300000);
            return 7;
        }
        setsid();
        usleep(100000);
        if (!fork()) {
            usleep(50000);
            ptrace(PTRACE_TRACEME, 0, 0, 0);
            raise(SIGSTOP);
        }
        _exit(0);
    }
    if (n)
        raise(n);
    write(1, "after\n", 6);
    return 7;
}
"""


@pytest.mark.slow
@each_way
@pytest.mark.parametrize(
    ("words", "exit", "out"),
    [
        (("self", "19"), 7, b"after\n"),
        (("self", "20"), 7, b"after\n"),
        (("self", "5"), 7, b"after\n"),
        (("self", "10"), 7, b"handled after\n"),
        (("self", "15"), -15, b""),
        (("self", "40"), -40, b""),
        (("exec", "0"), 7, b"after\n"),
        (("thread", "0"), 7, b"after\n"),
        (("orphan", "0"), 7, b""),
    ],
    ids=lambda value: value[0] + value[1] if isinstance(value, tuple) else "",
)
def test_a_stop_of_a_command_that_nobody_traces_is_not_its_end(
    box: Sandbox,
    compile_static: Callable[[str], Path],
    way: str,
    words: tuple[str, str],
    exit: int,
    out: bytes,
) -> None:
    shutil.copy(compile_static(TRACED), Path(box.root) / "bin" / "traced")
    for _ in range(2):
        result = run_by(way, box, ["traced", *words], timeout=60)
        assert (result.exit, result.out, result.timed_out) == (exit, out, False)


@pytest.mark.parametrize("words", [{"init": False}, {"processes": "undefined"}], ids=str)
def test_a_traced_command_of_the_caller_s_own_ends_in_time(
    rootfs: Path, compile_static: Callable[[str], Path], words: dict[str, Any]
) -> None:
    shutil.copy(compile_static(TRACED), rootfs / "bin" / "traced")
    with Sandbox(rootfs, **words) as box:
        result = box.run(["traced", "self", "19"], timeout=0.5, fresh=True)
        assert (result.exit, result.timed_out) == (-9, True)
        result = box.run(["traced", "exec", "0"], timeout=0.5, fresh=True)
        assert (result.exit, result.timed_out) == (-9, True)


def test_suspend_stops_a_command_that_asked_to_be_traced(
    box: Sandbox, compile_static: Callable[[str], Path]
) -> None:
    source = "#include <sys/ptrace.h>\n#include <unistd.h>\nint main(void){"
    source += 'ptrace(PTRACE_TRACEME, 0, 0, 0); write(1, "x", 1); pause(); }'
    shutil.copy(compile_static(source), Path(box.root) / "bin" / "traced")
    with box.start(["traced"], stdout=CAPTURE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"x"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()

        def state() -> str:
            return Path(f"/proc/{children[0]}/stat").read_text().rpartition(")")[2].split()[0]

        process.suspend()
        assert wait_until(lambda: state() == "T")
        process.resume()
        assert wait_until(lambda: state() == "S")
        process.kill()


#: A host whose own seccomp filter answers EPERM to wait4.
NO_WAIT4 = """
import ctypes, json, struct, sys
from sandboxlib import Sandbox, SandboxError, StatusLost
wait4 = {"x86_64": 61, "aarch64": 260}[__import__("platform").machine()]
code = [(0x20, 0, 0, 0), (0x15, 0, 1, wait4), (0x06, 0, 0, 0x50000 | 1), (0x06, 0, 0, 0x7fff0000)]
blob = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
program = struct.pack("=HxxxxxxQ", len(code), ctypes.addressof(blob))
prctl = ctypes.CDLL(None, use_errno=True).prctl
assert prctl(38, 1, 0, 0, 0) == 0 and prctl(22, 2, program, 0, 0) == 0
root, mode = sys.argv[1], json.loads(sys.argv[2])
fresh = mode.pop("fresh", False)
with Sandbox(root, **mode) as box:
    for _ in range(2):
        try:
            print(box.run(["sleep", "30"], fresh=fresh, timeout=60))
        except StatusLost as error:
            print("lost", "Operation not permitted (EPERM)" in str(error))
"""


@pytest.mark.parametrize("mode", [{}, {"fresh": True}], ids=["slot", "fresh"])
def test_a_reaper_that_may_not_wait_says_so_at_once(rootfs: Path, mode: dict[str, Any]) -> None:
    argv = [*python(), "-c", NO_WAIT4, str(rootfs), json.dumps(mode)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=50, check=False)
    assert (done.stdout, done.stderr) == ("lost True\n" * 2, "")


def test_without_a_reaper_it_is_the_caller_who_waits_by_another_call(rootfs: Path) -> None:
    script = NO_WAIT4.replace('["sleep", "30"]', '["true"]')
    argv = [*python(), "-c", script, str(rootfs), '{"init": false}']
    done = subprocess.run(argv, capture_output=True, text=True, timeout=50, check=False)
    assert (done.stdout.count("exit=0"), done.stderr) == (2, "")


@pytest.mark.parametrize("signum", [34, 35, 40, 63, 64])
def test_json_names_real_time_signals(rootfs: Path, signum: int) -> None:
    argv = [sys.executable, "-m", "sandboxlib", "run", "--json", str(rootfs)]
    argv += ["/bin/sh", "-c", f"kill -{signum} $$"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signum
    record = json.loads(done.stdout)
    names = {34: "SIGRTMIN", 35: "SIGRTMIN+1", 40: "SIGRTMIN+6", 63: "SIGRTMIN+29", 64: "SIGRTMAX"}
    assert (record["exit"], record["signal"]) == (-signum, names[signum])


# ---- descriptors in flight -----------------------------------------------------------------------

IN_FLIGHT = """
import array, asyncio, ctypes, os, resource, socket, sys
from sandboxlib import Sandbox, _async, _map, _machine, user_namespace
root = sys.argv[1]
os.setgroups([]); os.setgid(54322); os.setuid(54322)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self is the user's
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
with Sandbox(root) as box, Sandbox(root) as other:
    assert box.run(["true"]).exit == 0
    assert box.run(["true"]).exit == 0
    a, b = socket.socketpair()
    try:  # as a command may, too: they are counted for the user
        for _ in range(6):
            rights = array.array("i", [0] * 253)
            a.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    except OSError as error:
        print(error.strerror)
    for n in range(3):
        assert box.run(["sh", "-c", f"exit {n}"]).exit == n
        assert other.run(["sh", "-c", f"exit {n}"], fresh=True).exit == n
        assert [r.exit for r in box.map([["sh", "-c", f"exit {n}"]], on_failure="continue")] == [n]
        assert asyncio.run(box.run_async(["sh", "-c", f"exit {n}"])).exit == n
        print(n, len(os.listdir("/proc/self/fd")) < 40)
"""


@pytest.fixture
def public_rootfs() -> Iterator[Path]:
    """A root that other users can reach."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        yield make_rootfs(Path(place) / "root")


@pytest.mark.slow
def test_descriptors_in_flight_of_others_fail_no_run(public_rootfs: Path) -> None:
    argv = [*python(), "-c", IN_FLIGHT, str(public_rootfs)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", check=False)
    require("EPERM, step clone" not in done.stderr, "users have no user namespaces here")
    assert done.stderr == ""
    said = "Too many references: cannot splice\n"
    assert done.stdout == said + "0 True\n1 True\n2 True\n"
