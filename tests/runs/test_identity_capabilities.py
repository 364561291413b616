# SPDX-License-Identifier: Apache-2.0
"""Capabilities with ids of their own are delivered or refused; so is a read-only root whose command
shares the processes of the machine.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import needs_root, require

import sandboxlib
from sandboxlib import Policy, Sandbox, UnsupportedError, User, chroot, user_namespace
from sandboxlib._spec.policy import CAPABILITIES, DEFAULT_CAPABILITIES

PYTHON = os.path.realpath(sys.executable)
NAMES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
pytestmark = needs_root

WAYS: dict[str, Callable[[Sandbox, list[str]], bytes]] = {
    "slot": lambda box, argv: [box.run(argv).out for _ in range(2)][1],
    "fresh": lambda box, argv: box.run(argv, fresh=True).out,
    "map": lambda box, argv: next(iter(box.map([argv]))).out,
    "start": lambda box, argv: box.start(argv).communicate()[0],
}


@pytest.fixture(params=WAYS)
def run(request: pytest.FixtureRequest) -> Callable[[Sandbox, list[str]], bytes]:
    return WAYS[str(request.param)]


def sets(output: bytes) -> dict[str, list[str]]:
    found = {}
    for name, digits in re.findall(r"(Cap\w+):\s*(\w+)", output.decode()):
        found[name] = [n for i, n in enumerate(CAPABILITIES) if int(digits, 16) >> i & 1]
    assert sorted(found) == sorted(NAMES)
    return found


def needs_ids() -> None:
    lines = Path("/proc/self/uid_map").read_text().split()
    require(int(lines[-1]) > 2000, "the caller has a single id")


@pytest.mark.parametrize("names", [["net_bind_service"], ["kill", "setuid", "net_bind_service"]])
def test_those_asked_for_by_name_are_delivered(
    shared_rootfs: Path, run: Callable[[Sandbox, list[str]], bytes], names: list[str]
) -> None:
    needs_ids()
    script = "id -u; cat /proc/self/status"
    policy = Policy(capabilities=names)
    with Sandbox(shared_rootfs, user=1000, network="isolated", policy=policy) as box:
        out = run(box, ["sh", "-c", script])
        assert out.startswith(b"1000\n")
        assert sets(out) == dict.fromkeys(NAMES, names)


@pytest.mark.parametrize("capabilities", ["default", "none"])
def test_without_names_there_are_none(
    shared_rootfs: Path, run: Callable[[Sandbox, list[str]], bytes], capabilities: str
) -> None:
    needs_ids()
    with Sandbox(shared_rootfs, user=1000, policy=Policy(capabilities=capabilities)) as box:
        found = sets(run(box, ["cat", "/proc/self/status"]))
    assert {name for name in NAMES if found[name]} <= {"CapBnd"}


def test_uid_0_has_what_the_policy_says_and_no_more(
    shared_rootfs: Path, run: Callable[[Sandbox, list[str]], bytes]
) -> None:
    needs_ids()
    for names in (["kill"], ["chown", "setgid"]):
        with Sandbox(shared_rootfs, user=User(0, 5), policy=Policy(capabilities=names)) as box:
            found = sets(run(box, ["cat", "/proc/self/status"]))
        assert found["CapEff"] == found["CapPrm"] == found["CapBnd"] == names


HOST = """
import ctypes, sys
from sandboxlib import Policy, Sandbox
NO_SETUID_FIXUP = 1 << 2
libc = ctypes.CDLL(None, use_errno=True)
class Header(ctypes.Structure): _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]
sets = (ctypes.c_uint32 * 6)()
header = Header(0x20080522, 0)
libc.capget(ctypes.byref(header), sets)
sets[2], sets[5] = sets[1], sets[4]  # all are inheritable, so that they can be ambient
assert libc.capset(ctypes.byref(header), sets) == 0
for number in range(41): libc.prctl(47, 2, number, 0, 0)
assert libc.prctl(28, NO_SETUID_FIXUP, 0, 0, 0) == 0
for names in ("default", "none", ["kill"]):
    for fresh in (False, True):
        with Sandbox(sys.argv[1], user=1000, policy=Policy(capabilities=names)) as box:
            out = box.run(["grep", "-E", "Cap(Eff|Prm|Amb)", "/proc/self/status"], fresh=fresh).out
            print(*{line.split()[1].decode() for line in out.splitlines()})
"""


def test_securebits_of_the_caller_leave_nothing(shared_rootfs: Path) -> None:
    needs_ids()
    argv = [sys.executable, "-c", HOST, str(shared_rootfs)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.split() == ["0" * 16] * 4 + ["0" * 14 + "20"] * 2


@pytest.mark.parametrize("executor", [chroot, user_namespace, sandboxlib])
def test_all_of_them_with_another_uid_is_refused(shared_rootfs: Path, executor: Any) -> None:
    with pytest.raises(UnsupportedError, match="capabilities='all' with user"):
        executor.run_sandbox(shared_rootfs, ["true"], user=1000, policy=Policy(capabilities="all"))
    # In the form of 0.3, which keeps them all, nobody asked for it.
    needs_ids()
    done = executor.run_sandbox(["id", "-u"], filesystem_root=str(shared_rootfs), user=1000)
    assert done.out == b"1000\n"


# ---- a read-only root and the processes of the machine ----------------------------------------

#: As the command of a uid, through each process that has it: writes into the root of the host.
ESCAPE = """
import os, sys
uid, file, *pids = sys.argv[1:]
try:
    os.setgroups([]); os.setresgid(*[int(uid)] * 3); os.setresuid(*[int(uid)] * 3)
except OSError:
    pass
for pid in pids:
    try:
        with open(f"/proc/{pid}/root{file}", "w") as stream: stream.write("escaped")
    except OSError as error: print(pid, error.errno)
"""
WITHOUT = [name for name in DEFAULT_CAPABILITIES if name != "setuid"]


def escape(box: Sandbox, tmp_path: Path, uid: int) -> str:
    """The content of a file of the host after the attempt."""
    file = tmp_path / "file"
    file.write_text("safe")
    for path in (file, tmp_path, *(p for p in tmp_path.parents if str(p) != "/")):
        if os.stat(path).st_uid == os.geteuid() and str(path) != "/tmp":
            path.chmod(0o777)
    words: dict[str, Any] = {"user": uid, "group": uid, "extra_groups": []} if uid else {}
    victim = subprocess.Popen(["sleep", "1000"], **words)
    try:
        pids = [str(victim.pid), str(os.getpid())]
        argv = [PYTHON, "-I", "-S", "-c", ESCAPE, str(uid), str(file), *pids]
        chroot.run_in(box, argv, cwd="/")
    finally:
        victim.kill()
        victim.wait()
    return file.read_text()


@pytest.mark.parametrize("seccomp", ["builds", {"defaultAction": "SCMP_ACT_ALLOW"}])
def test_a_uid_finds_the_programs_that_its_capabilities_let_it_find(
    tmp_path: Path, seccomp: Any
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    program = closed / "program"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)
    closed.chmod(0o700)
    policy = Policy(capabilities=["dac_read_search"], seccomp=seccomp)
    box = Sandbox("/", user=User(65534), policy=policy, tmp="root")
    assert box.run([program]).exit == 0
    assert box.run(["program"], env={"PATH": f"/none:{closed}"}).exit == 0


@pytest.mark.parametrize("paths", ["none", ["/tmp"]])
def test_a_read_only_root_with_shared_processes_is_refused(paths: Any) -> None:
    needs_ids()
    for policy in (Policy(), Policy(capabilities=[*WITHOUT, "sys_ptrace"])):
        box = open_box("/", processes="undefined", filesystem_writable_paths=paths, policy=policy)
        with pytest.raises(UnsupportedError, match="processes='undefined' with a read-only root"):
            chroot.run_in(box, ["true"])
        assert chroot.refusals(box)
        assert not chroot.refusals(box.replace(processes="isolated"))
        assert not chroot.refusals(box.replace(filesystem_writable_paths="all"))


@pytest.mark.parametrize("capabilities", [WITHOUT, "none"], ids=["no setuid", "none"])
@pytest.mark.parametrize("uid", [0, 1234])
def test_what_is_not_refused_holds(tmp_path: Path, capabilities: Any, uid: int) -> None:
    needs_ids()
    policy = Policy(capabilities=capabilities)
    box = open_box("/", processes="undefined", filesystem_writable_paths="none", policy=policy)
    assert escape(box, tmp_path, uid) == "safe"


def test_what_is_refused_would_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attempt works where the rule is not looked at: so the rule is about something."""
    needs_ids()
    monkeypatch.setattr(chroot, "read_only_refused", lambda box: [])
    box = open_box("/", processes="undefined", filesystem_writable_paths="none")
    assert escape(box, tmp_path, 1234) == "escaped"
