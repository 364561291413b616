# SPDX-License-Identifier: Apache-2.0
"""Between clone and exec the child shares the caller's memory; no other process reaches it."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import needs_root, python, require

from sandboxlib import CAPTURE, Command, Mount, Policy, Sandbox, chroot, user_namespace

pytestmark = needs_root
pytest_plugins = ["lib.probes"]

#: Reads and writes six bytes at an address in whatever process was started last.
ATTACK = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
int main(int argc, char **argv) {
    unsigned long at = strtoul(argv[1], 0, 16);
    int loadavg = open("/proc/loadavg", O_RDONLY);
    write(1, "ready\n", 6);
    for (;;) {
        char text[128] = {0}, got[6], put[6] = "PWNED!";
        struct iovec there = {(void *)at, 6}, in = {got, 6}, out = {put, 6};
        pread(loadavg, text, sizeof text - 1, 0);
        int last = atoi(strrchr(text, ' ') + 1);
        for (int pid = last - 1; pid < last + 3; pid++)
            if (pid > 1 && pid != getpid() && process_vm_readv(pid, &in, 1, &there, 1, 0) == 6
                && !memcmp(got, "SECRET", 6)) {
                process_vm_writev(pid, &out, 1, &there, 1, 0);
                return 7;
            }
    }
}
"""

MODES: list[tuple[ModuleType, dict[str, Any]]] = [
    (chroot, {}),
    (chroot, {"init": False}),
    (chroot, {"processes": "undefined"}),
    (chroot, {"user": 1000}),
    (chroot, {"policy": Policy(capabilities="none")}),
    (user_namespace, {}),
    (user_namespace, {"user": "root", "init": False}),
    (user_namespace, {"user": "ranges"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("executor", "words"), MODES, ids=lambda v: getattr(v, "NAME", str(v)))
def test_a_command_that_sees_all_processes_cannot_reach_the_caller_s_memory(
    rootfs: Path,
    compile_static: Callable[[str], Path],
    executor: ModuleType,
    words: dict[str, Any],
) -> None:
    program = compile_static(ATTACK)
    (rootfs / "bin" / "attack").write_bytes(program.read_bytes())
    (rootfs / "bin" / "attack").chmod(0o755)
    secret = ctypes.create_string_buffer(b"SECRET")
    address = hex(ctypes.addressof(secret))
    box = open_box(rootfs, **words)
    proc = [Mount.bind("/proc", "/proc")]
    with open_box(rootfs, processes="undefined", extra_mounts=proc) as evil:
        attack = evil.start(["attack", address], stdout=CAPTURE)
        with attack:
            assert attack.stdout is not None
            assert attack.stdout.readline() == b"ready\n"
            for _ in range(300):
                executor.run_in(box, ["true"], cwd="/")
                if attack.poll() is not None:
                    break
            with box:
                for _ in range(20):
                    executor.run_in(box, ["true"], cwd="/", fresh=False)
            assert attack.poll() is None
            assert secret.value == b"SECRET"
            attack.kill()


def test_the_caller_is_as_dumpable_afterwards_as_before(rootfs: Path) -> None:
    prctl = ctypes.CDLL(None).prctl
    box = open_box(rootfs)
    for value in (0, 1):
        before = prctl(3, 0, 0, 0, 0)  # PR_GET_DUMPABLE
        try:
            assert prctl(4, value, 0, 0, 0) == 0  # PR_SET_DUMPABLE
            threads = [
                threading.Thread(target=user_namespace.run_in, args=(box, Command(["true"], "/")))
                for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert prctl(3, 0, 0, 0, 0) == value
        finally:
            prctl(4, before, 0, 0, 0)


# ---- what a command has after its exec -----------------------------------------------------------

DEFAULT = 0x800425FB
ALL = (1 << 41) - 1
STATUS = ["grep", "-E", "^(Cap|NoNewPrivs|Uid)", "/proc/self/status"]


def sets_of(box: Sandbox, fresh: bool) -> dict[str, int]:
    for _ in range(1 if fresh else 2):
        result = box.run(STATUS, fresh=fresh)
        assert (result.exit, result.err) == (0, b""), result
    lines = dict(line.split(":\t") for line in result.out.decode().splitlines())
    return {name: int(value.split()[0], 16) for name, value in lines.items()}


@pytest.mark.parametrize("kind", ["slot", "fresh", "no reaper", "undefined"])
@pytest.mark.parametrize("no_new_privs", [True, False])
@pytest.mark.parametrize("user", ["caller", 1000])
@pytest.mark.parametrize(
    ("capabilities", "mask"),
    [
        ("default", DEFAULT),
        ("none", 0),
        ("all", -1),
        (["net_raw", "kill", "setuid", "setgid"], 0x20E0),
    ],
    ids=["default", "none", "all", "named"],
)
def test_the_sets_of_a_command(
    rootfs: Path, capabilities: Any, mask: int, user: Any, no_new_privs: bool, kind: str
) -> None:
    proc = [Mount.bind("/proc", "/proc")]
    undefined: dict[str, Any] = {"processes": "undefined", "extra_mounts": proc}
    words = {"no reaper": {"init": False}, "undefined": undefined}.get(kind, {})
    policy = Policy(capabilities=capabilities, no_new_privs=no_new_privs, seccomp="none")
    if user == 1000 and (kind in ("no reaper", "undefined") or capabilities in ("none", "all")):
        pytest.skip("refused")
    ours = int(
        next(
            line.split()[1]
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("CapPrm")
        ),
        16,
    )
    require(ours & DEFAULT == DEFAULT, "the caller lacks capabilities")
    with open_box(rootfs, policy=policy, user=user, **words) as box:
        found = sets_of(box, fresh=kind != "slot")
    may = ours & mask
    # Of another uid than 0 a command has what was asked for by name, and that is ambient.
    ambient = may if user == 1000 and isinstance(capabilities, list) else 0
    has = ambient if user == 1000 else may
    assert found["CapPrm"] == found["CapEff"] == has
    assert found["CapInh"] == found["CapAmb"] == ambient
    assert found["CapBnd"] & ours == may
    assert found["NoNewPrivs"] == no_new_privs


# ---- the caller's session keyring ----------------------------------------------------------------

KEYCTL = r"""
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void) {
    syscall(SYS_keyctl, 1 /* JOIN_SESSION_KEYRING */, NULL);
    long result = syscall(SYS_keyctl, 18 /* SESSION_TO_PARENT */);
    printf("%s\n", result < 0 ? strerrorname_np(errno) : "done");
#ifdef __x86_64__
    /* The same by the numbers of i386 and of x32. */
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(288L), "b"(18L) : "memory");
    printf("%s\n", result < 0 ? strerrorname_np(-result) : "done");
    result = syscall(0x40000000 | SYS_keyctl, 18);
    printf("%s\n", result < 0 ? strerrorname_np(errno) : "done");
#endif
    return 0;
}
"""
SINGLE = """
import ctypes, json, sys
from sandboxlib import Policy, Sandbox
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
call = ctypes.CDLL(None, use_errno=True).syscall
call.restype = ctypes.c_long
session = lambda: call(%d, 0, ctypes.c_int(-3), 0)
assert call(%d, 1, None) > 0  # one of our own, so that nothing of the machine's is changed
before = session()
words = json.loads(sys.argv[2])
policy = Policy(seccomp="none", no_new_privs=words.pop("no_new_privs", True))
box = open_box(sys.argv[1], policy=policy, **words)
result = box.run(["keyctl"], fresh=True)
print(session() == before, result.exit, *result.out.decode().split())
with box.start(["keyctl"]) as process:
    process.wait()
print(session() == before, process.returncode)
"""


@pytest.mark.parametrize(
    "words",
    [
        {"init": False},
        {"processes": "undefined"},
        {"processes": "undefined", "ipc": "undefined"},
        {"init": False, "no_new_privs": False},
        {},
    ],
    ids=str,
)
def test_the_session_keyring_of_the_caller_stays_its_own(
    rootfs: Path, compile_static: Callable[[str], Path], words: dict[str, Any]
) -> None:
    number = {"x86_64": 250, "aarch64": 219}[os.uname().machine]
    (rootfs / "bin" / "keyctl").write_bytes(compile_static(KEYCTL).read_bytes())
    (rootfs / "bin" / "keyctl").chmod(0o755)
    argv = [*python(), "-c", SINGLE % (number, number), str(rootfs), json.dumps(words)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    first, second = (line.split() for line in done.stdout.splitlines())
    assert (first[:2], second) == (["True", "0"], ["True", "0"])
    if words:
        assert first[2] == "EPERM"
        assert set(first[2:]) <= {"EPERM", "ENOSYS"}
