# SPDX-License-Identifier: Apache-2.0
"""A trace beside other options: limits, policies, users."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from lib.machine import needs_root, require

import sandboxlib
from sandboxlib import Limits, Policy, Sandbox, UnsupportedError
from sandboxlib._runs import tracing

pytest_plugins = ["lib.ways"]

#: A profile that leaves open what busybox takes, and not what the step of the trace takes.
PROFILE: Mapping[str, Any] = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["sendmsg", "recvfrom", "seccomp"], "action": "SCMP_ACT_KILL_PROCESS"}],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "open_files": {"limits": Limits(open_files=4)},
    "a fraction of cpu_time": {"limits": Limits(cpu_time=5.5)},
    "privileges": {"policy": Policy(no_new_privs=False)},
    "a profile": {"policy": Policy(seccomp=PROFILE)},
    "a profile and privileges": {"policy": Policy(seccomp=PROFILE, no_new_privs=False)},
    "no filter": {"policy": Policy(seccomp="none")},
    "no capabilities": {"policy": Policy(capabilities="none")},
    "root": {"user": "root"},
    "the host's ipc": {"ipc": "undefined"},
    "deterministic": {"deterministic": True},
    "32 bits": {"personality": "linux32"},
    "no reaper": {"init": False},
    "no reaper, open files": {"init": False, "limits": Limits(open_files=4)},
    "no reaper, a profile": {"init": False, "policy": Policy(seccomp=PROFILE)},
}


@pytest.mark.every_way
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_a_trace_goes_with(executor: str, rootfs: Path, options: dict[str, Any]) -> None:
    (rootfs / "etc/busybox.conf").touch()
    (rootfs / "etc/there").touch()
    box = Sandbox(rootfs, **options)
    trace = box.trace(["/bin/sh", "-c", "/bin/cat /etc/there /etc/nowhere; exit 5"], timeout=60)
    assert trace.result.exit == 5, trace.result
    assert trace.missing == ("/etc/nowhere",)
    assert "/etc/there" in trace.opened
    assert trace.unknown == 0


@needs_root
def test_root_sees_the_calls_of_another_user(rootfs: Path) -> None:
    (rootfs / "etc/busybox.conf").touch()
    (rootfs / "closed/inner").mkdir(parents=True)
    (rootfs / "closed").chmod(0o700)
    line = "/bin/cat /etc/nowhere; cd /closed; /bin/cat /closed/inner/x; id -u"
    trace = Sandbox(rootfs, user=1000).trace(["/bin/sh", "-c", line])
    assert trace.result.out == b"1000\n"
    assert "/etc/nowhere" in trace.missing


def test_descriptors_and_a_terminal_are_passed_on(executor: str, rootfs: Path) -> None:
    (rootfs / "etc/busybox.conf").touch()
    with open("/dev/null", "rb") as file:
        fd = file.fileno()
        line = f"ls /proc/self/fd/{fd} /proc/self/fd; cat /etc/nowhere"
        trace = Sandbox(rootfs).trace(["/bin/sh", "-c", line], pass_fds=[fd])
    assert trace.missing == ("/etc/nowhere",)
    name, _, *numbers = trace.result.stdout.split()
    assert name == f"/proc/self/fd/{fd}".encode()
    assert set(numbers) == {b"0", b"1", b"2", b"3", str(fd).encode()}  # 3: the directory itself
    trace = Sandbox(rootfs).trace(["/bin/sh", "-c", "test -t 0 && cat /etc/a"], pty=True)
    assert trace.missing == ("/etc/a",)


@pytest.mark.parametrize("name", ["bubblewrap", "linux_user_chroot"])
def test_an_executor_with_a_program_is_refused(
    rootfs: Path, name: str, tool_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "linux_user_chroot" and os.geteuid() != 0:
        pytest.skip("its program takes root, or a set-user-ID bit")
    monkeypatch.setenv("PATH", tool_path)
    monkeypatch.setenv("SANDBOXLIB_BACKEND", name)
    require(not sandboxlib.get_executor(name).why_not(), f"{name} does not work here")
    with pytest.raises(UnsupportedError):
        Sandbox(rootfs).trace(["/bin/true"])


def test_mounts_that_a_command_makes_are_looked_up_in(rootfs: Path) -> None:
    (rootfs / "etc/busybox.conf").touch()
    for name in ("mnt", "new"):
        (rootfs / name).mkdir()
    user = 1000 if os.geteuid() == 0 else None
    box = Sandbox(rootfs, user=user, policy=Policy(nesting=True))
    inner = "mount -t tmpfs x /mnt && echo > /mnt/a && cat /mnt/a /mnt/b; cd /mnt; cat c; exit 6"
    line = f"cat /mnt/a; unshare -Urm /bin/sh -c '{inner}'"
    trace = box.trace(["/bin/sh", "-c", line], timeout=60)
    require(trace.result.exit == 6, f"a command cannot mount here: {trace.result.stderr!r}")
    assert trace.missing == ("/mnt/b", "/mnt/c")
    assert "/mnt/a" in trace.opened
    assert trace.unknown == 0


def test_an_older_kernel_does_not_end_a_wait_for_calls(
    executor: str, rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (rootfs / "etc/busybox.conf").touch()
    monkeypatch.setattr(tracing.machine, "kernel_is_older_than", lambda *version: True)
    box = Sandbox(rootfs)
    for line, timed_out in (("cat /etc/nowhere; exit 5", False), ("cat /etc/nowhere; sleep 9", 1)):
        trace = box.trace(["/bin/sh", "-c", line], timeout=1 if timed_out else 60)
        assert trace.missing == ("/etc/nowhere",)
        assert trace.result.timed_out == timed_out
