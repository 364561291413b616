# SPDX-License-Identifier: Apache-2.0
"""The filter of a trace stops the calls that take paths, in every ABI, and no other."""

from __future__ import annotations

import pytest
from lib import bpf

from sandboxlib import UnsupportedError
from sandboxlib._core.native import lib
from sandboxlib._seccomp import filters, paths
from sandboxlib._seccomp.syscalls import numbers_of

NOTIFY = paths.NOTIFY


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("every", [False, True])
def test_a_call_is_stopped_if_it_is_in_the_table(machine: str, every: bool) -> None:
    program, table, audits = paths.tracing(every, machine)
    names = filters.abis(machine)
    assert audits == tuple(bpf.AUDIT[name] for name in names[:2])
    calls = paths.calls_of(every)
    for position, abi in enumerate(names):
        numbers = numbers_of(abi)
        stopped = {name for name in calls if name in numbers}
        if abi in ("i386", "arm"):
            stopped -= {"fanotify_mark"}
        for name, number in numbers.items():
            answer = bpf.answer(program, bpf.AUDIT[abi], number)
            assert answer == (NOTIFY if name in stopped else bpf.ALLOW), (abi, name)
            if number & 0xFFFFFFF < paths.MOST:
                start = 8 * (position * paths.MOST + (number & 0xFFF))
                known = table[start : start + 7]
                assert known == (bytes(calls[name]) if name in stopped else bytes(7)), (abi, name)
    assert bpf.answer(program, 0x12345, numbers["openat"]) == bpf.ALLOW  # another ABI
    assert bpf.answer(program, audits[0], 0xFFFFFFFF) == bpf.ALLOW


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_file_that_is_asked_for_by_its_descriptor_goes_on(machine: str) -> None:
    program, _, audits = paths.tracing(True, machine)
    number = numbers_of(machine)
    empty, here = 0x1000, (1 << 32) - 100
    for directory, flags, expected in (
        (3, empty, bpf.ALLOW),
        (here, empty, NOTIFY),
        (here | 0xFFFFFFFF << 32, empty, NOTIFY),
        (3, 0, NOTIFY),
        (3, empty | 0x100, NOTIFY),
    ):
        args = [directory, 0, 0, flags]
        assert bpf.answer(program, audits[0], number["newfstatat"], args) == expected
        args = [directory, 0, flags, 0]
        assert bpf.answer(program, audits[0], number["statx"], args) == expected


def test_every_path_call_of_strace_is_known() -> None:
    """Those of its class %file (strace(1))."""
    known = paths.calls_of(True)
    for name in (
        *("access", "acct", "chdir", "chmod", "chown", "chroot", "creat", "execve", "execveat"),
        *("faccessat", "faccessat2", "fanotify_mark", "fchmodat", "fchmodat2", "fchownat"),
        *("fspick", "futimesat", "getxattr", "getxattrat", "inotify_add_watch", "lchown"),
        *("lgetxattr", "link", "linkat", "listxattr", "listxattrat", "llistxattr", "lremovexattr"),
        *("lsetxattr", "lstat", "mkdir", "mkdirat", "mknod", "mknodat", "mount", "mount_setattr"),
        *("move_mount", "name_to_handle_at", "newfstatat", "open", "open_tree", "openat"),
        *("openat2", "pivot_root", "quotactl", "readlink", "readlinkat", "removexattr"),
        *("removexattrat", "rename", "renameat", "renameat2", "rmdir", "setxattr", "setxattrat"),
        *("stat", "statfs", "statx", "swapoff", "swapon", "symlink", "symlinkat", "truncate"),
        *("umount2", "unlink", "unlinkat", "uselib", "utime", "utimensat", "utimes"),
    ):
        assert name in known, name


def test_the_numbers_are_those_of_the_core() -> None:
    bits = ("ASKED", "OPENED", "EXECED", "MAKES", "MOVES", "MOUNTS", "OF_LINK", "HOW")
    for name in bits:
        assert getattr(paths, name) == getattr(lib, f"SBX_{name}")
    assert paths.MOST == lib.SBX_MOST_CALLS
    for machine in ("x86_64", "aarch64"):
        assert len(paths.tracing(True, machine)[0]) <= lib.SBX_MOST_TRACE


def test_a_machine_without_tables_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="riscv64"):
        paths.tracing(True, "riscv64")
