# SPDX-License-Identifier: Apache-2.0
"""The calls that the profile 'builds' closes, tried inside sandboxes, and every way round it.

The numbers are those of x86_64. No call here changes anything of the machine, if it is let through:
its descriptors, addresses and flags are wrong.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import LIB, needs_root, require

import sandboxlib
from sandboxlib import Policy
from sandboxlib._seccomp import syscalls

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")

BAD = 0xFFFFFFFF  # no descriptor
EPERM, ENOSYS, EAFNOSUPPORT = -errno.EPERM, -errno.ENOSYS, -errno.EAFNOSUPPORT

#: Calls, and what the filter answers. Without it the kernel says something else.
CLOSED: list[tuple[str, list[int], int]] = [
    ("clone", [0x10000200], EPERM),  # CLONE_NEWUSER, which does not go with CLONE_FS
    ("clone", [0x00020200], EPERM),  # CLONE_NEWNS
    ("clone", [0x00018000], EPERM),  # CLONE_PARENT, and CLONE_THREAD, which takes more
    ("clone3", [0, 0], ENOSYS),
    ("setns", [BAD, 0], EPERM),
    ("mount", [0, 0, 0, 0, 0], EPERM),
    ("umount2", [0, 0x100], EPERM),
    ("open_tree", [BAD, 0, 0], EPERM),
    ("mount_setattr", [BAD, 0, 1 << 30, 0, 0], EPERM),
    ("fsconfig", [BAD, 0, 0, 0, 0], EPERM),
    ("keyctl", [0, 0xFFFFFFFF, 0], EPERM),  # which keyring is the thread's?
    ("add_key", [0, 0, 0, 0, 0], EPERM),
    ("request_key", [0, 0, 0, 0], EPERM),
    ("bpf", [0, 0, 1 << 20], EPERM),
    ("perf_event_open", [0, 0, 0, BAD, 1 << 40], EPERM),
    ("userfaultfd", [0x101], EPERM),
    ("fanotify_init", [0x40000200, 0], EPERM),
    ("swapon", [0, 0x10000000], EPERM),
    ("settimeofday", [1, 0], EPERM),
    ("clock_settime", [0, 1], EPERM),
    ("clock_adjtime", [0, 1], EPERM),
    ("adjtimex", [1], EPERM),
    ("open_by_handle_at", [BAD, 0, 0], EPERM),
    ("kcmp", [0, 0, 99, 0, 0], EPERM),
    ("personality", [0x00400000], EPERM),  # READ_IMPLIES_EXEC
    ("ioctl", [BAD, 0x5412, 0], EPERM),
    ("ioctl", [BAD, 0x541C, 0], EPERM),
    ("setsockopt", [BAD, 41, 32, 0, 0], EPERM),
    ("socket", [0x7FFFFFFF, 1, 0], EAFNOSUPPORT),
]
#: The same of these, where the kernel has them at all.
MAYBE: list[tuple[str, list[int], int]] = [
    ("io_uring_setup", [0, 0], ENOSYS),
    ("io_uring_enter", [BAD, 0, 0, 0, 0], ENOSYS),
    ("io_uring_register", [BAD, 0, 0, 0], ENOSYS),
    ("quotactl", [0xFF, 0, 0, 0], EPERM),
    ("quotactl_fd", [BAD, 0, 0, 0], EPERM),
    ("iopl", [4], EPERM),
    ("ioperm", [1 << 20, 1, 1], EPERM),
    ("open_tree_attr", [BAD, 0, 0, 0, 0], EPERM),
    ("syslog", [10, 0, 0], EPERM),
    ("socket", [40, 1, 0], EAFNOSUPPORT),  # AF_VSOCK
    ("socket", [38, 5, 0], EAFNOSUPPORT),  # AF_ALG
    ("socketpair", [30, 5, 0, 0], EAFNOSUPPORT),  # AF_TIPC
]
#: These the kernel refuses as well, with the capabilities that commands have.
REFUSED_ANYWAY: list[tuple[str, list[int], int]] = [
    (name, [BAD, 0, 0, 0, 0, 0], EPERM)
    for name in (
        "pivot_root fsopen fsmount fspick move_mount swapoff acct reboot kexec_load "
        "kexec_file_load init_module finit_module delete_module sethostname"
    ).split()
]
OPEN: list[tuple[str, list[int]]] = [
    ("getpid", []),
    ("clone", [0x200 | 0x80000000]),  # CLONE_IO: a new process with the same files
    ("unshare", [0x200]),  # CLONE_FS
    ("personality", [0x40000]),  # ADDR_NO_RANDOMIZE
    ("personality", [8]),
    ("personality", [0]),
    ("socket", [1, 1, 0]),
    ("socket", [2, 1, 0]),
    ("socket", [10, 1, 0]),
    ("socket", [16, 3, 0]),
    ("process_vm_readv", [0, 0, 0, 0, 0, 0]),
    ("mkdir", [0, 0]),
]


def word(name: str, args: list[int], way: str = "n", high: int = 0) -> str:
    numbers = syscalls.numbers_of("i386" if way == "i" else "x86_64")
    number = numbers[name]
    if way == "x":
        way, number = "n", number | 0x40000000
    return f"{way}:{','.join(map(str, [number, *(arg | high for arg in args)]))}"


@pytest.fixture(scope="session")
def root(shared_rootfs: Path) -> Path:
    require(shutil.which("cc"), "there is no C compiler")
    source = LIB / "calls.c"
    tool = shared_rootfs / "bin" / "calls"
    subprocess.run(["cc", "-O1", "-static", "-o", str(tool), str(source)], check=True)
    return shared_rootfs


@pytest.fixture(params=["chroot", "user_namespace", "bubblewrap"])
def executor(request: pytest.FixtureRequest) -> ModuleType:
    found = sandboxlib.get_executor(request.param)
    reason = found.why_not()
    if reason:
        pytest.skip(reason)
    return found


WAYS: dict[str, dict[str, Any]] = {
    "slot": {},
    "fresh": {"fresh": True},
    "no init": {"init": False},
    "shared": {"processes": "undefined"},
    "the caller's mounts": {"mounts": "undefined"},
    "no_new_privs=False": {"no_new_privs": False},
}
IN_SLOTS = ("slot", "no init", "no_new_privs=False")
Calls = Callable[[list[str]], list[int]]


@contextmanager
def inside(
    executor: ModuleType, root: Path, way: str, monkeypatch: pytest.MonkeyPatch, **policy: Any
) -> Iterator[Calls]:
    """Makes calls in a sandbox, of a kind, of an executor: twice, and it is the same."""
    monkeypatch.setenv("SANDBOXLIB_BACKEND", executor.NAME)
    words = dict(WAYS[way])
    fresh = words.pop("fresh", False)
    if "no_new_privs" in words:
        policy["no_new_privs"] = words.pop("no_new_privs")
    box = open_box(root, policy=Policy(**policy), **words)
    refused = executor.refusals(box)
    if refused:
        pytest.skip(f"refused: {refused}")

    def calls(words: list[str]) -> list[int]:
        found = []
        for _ in range(2):
            result = box.run(["/bin/calls", *words], fresh=fresh)
            assert (result.exit, result.err) == (0, b""), result
            assert result.executor == executor.NAME
            found.append([int(line) for line in result.out.split()])
        assert len(found[0]) == len(words)
        first, second = ([value if value < 0 else 0 for value in values] for values in found)
        assert first == second
        return found[0]

    with box:
        yield calls


@pytest.mark.parametrize("way", WAYS)
def test_what_is_closed_is_refused(
    executor: ModuleType, root: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = [*CLOSED, *MAYBE, *REFUSED_ANYWAY]
    with inside(executor, root, way, monkeypatch) as calls:
        found = calls([word(name, args) for name, args, _ in closed])
        unshare = calls([word("unshare", [0x10000000])])
    wrong = [(c, value) for c, value in zip(closed, found, strict=True) if value != c[2]]
    # what a resident needs, a slot leaves to the kernel, which refuses it in its own order
    assert all(way in IN_SLOTS and is_of_residents(call) for call, _ in wrong), wrong
    assert all(value < 0 for _, value in wrong)
    assert unshare == [EPERM]


def is_of_residents(call: tuple[str, list[int], int]) -> bool:
    name, args, _ = call
    return (name, args) == ("clone", [0x00020200]) or name in (
        "mount umount2 pivot_root fsopen fsconfig fsmount open_tree move_mount mount_setattr "
        "sethostname setdomainname".split()
    )


@pytest.mark.parametrize("way", WAYS)
def test_without_the_filter_the_kernel_answers(
    executor: ModuleType, root: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with inside(executor, root, way, monkeypatch, seccomp="none") as calls:
        found = calls([word(name, args) for name, args, _ in CLOSED])
    same = [c for c, value in zip(CLOSED, found, strict=True) if value == c[2]]
    assert {name for name, _, _ in same} <= {"socket"}  # no kernel has that family


@pytest.mark.parametrize("way", WAYS)
def test_what_builds_need_is_open(
    executor: ModuleType, root: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls_of = [word(name, args) for name, args in OPEN if name != "clone"]
    with inside(executor, root, way, monkeypatch) as calls:
        found = calls(calls_of)
    assert found[-1] == -errno.EFAULT
    assert all(value >= 0 for value in found[:-1]), list(zip(calls_of, found, strict=True))


@pytest.mark.parametrize("way", ["slot", "fresh"])
def test_no_way_leads_round_it(
    executor: ModuleType, root: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other ABIs, upper halves of arguments, a tracer that changes a call, a filter of its own."""
    small = [call for call in CLOSED if not is_of_residents(call)]
    several = {
        "i": [c for c in small if c[0] not in ("userfaultfd", "perf_event_open")],
        "x": small,
        "t": [call for call in small if len(call[1]) <= 3],
        "s": small,
    }
    with inside(executor, root, way, monkeypatch) as calls:
        for kind, closed in several.items():
            found = calls([word(name, args, kind) for name, args, _ in closed])
            expected = [ENOSYS if kind == "x" else answer for _, _, answer in closed]
            assert found == expected, kind
        truncated = [c for c in small if c[0] in ("ioctl", "setsockopt", "personality", "socket")]
        for high in (1 << 32, 1 << 63):
            found = calls([word(name, args, high=high) for name, args, _ in truncated])
            assert found == [answer for _, _, answer in truncated]
        mounts = "mount umount umount2 pivot_root fsopen open_tree move_mount unshare".split()
        found = calls([word(name, [0x10000000, 0, 0, 0, 0], "i") for name in mounts])
        assert found == [EPERM] * len(mounts)
        assert calls([word("socketcall", [n, 0], "i") for n in range(1, 21)]) == [ENOSYS] * 20
        assert calls([f"n:{number}" for number in (472, 512, 547, 1 << 20)]) == [ENOSYS] * 4


def test_every_way_of_running_has_it(
    executor: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOXLIB_BACKEND", executor.NAME)
    tries = [
        ("unshare", [0x10000000], EPERM),
        ("keyctl", [0, 0xFFFFFFFF, 0], EPERM),
        ("clone3", [0, 0], ENOSYS),
    ]
    command = ["/bin/calls", *(word(name, args) for name, args, _ in tries)]
    expected = "".join(f"{answer}\n" for _, _, answer in tries).encode()
    with open_box(root) as box:
        outputs = [result.out for result in box.map([command] * 4, jobs=2)]
        if executor.NAME != "bubblewrap":  # it drives a program
            outputs.append(asyncio.run(box.run_async(command)).out)
            with box.start(command) as process:
                outputs.append(process.communicate()[0])
    outputs.append(executor.run_sandbox(root, command).out)
    assert outputs == [expected] * len(outputs)


@needs_root
def test_capabilities_that_are_named_open_what_they_are_for(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = [("kcmp", [0, 0, 99, 0, 0]), ("clock_adjtime", [0, 1]), ("syslog", [99, 0, 0])]
    tries.append(("open_by_handle_at", [BAD, 0, 0]))
    names = ["sys_ptrace", "sys_time", "syslog", "dac_read_search"]
    for way in ("slot", "fresh"):
        for name, (call, args) in zip(names, tries, strict=True):
            with inside(sandboxlib.chroot, root, way, monkeypatch, capabilities=[name]) as calls:
                found = calls([word(call, args) for call, args in tries])
            expected = [value == EPERM for value in found]
            assert expected == [other != name for other in names], (name, call, found)
        with inside(sandboxlib.chroot, root, way, monkeypatch, capabilities=["sys_admin"]) as calls:
            found = calls([word("unshare", [0x20000]), word("mount", [0] * 5)])
        assert found == [0, -errno.EFAULT]
