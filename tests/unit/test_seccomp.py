# SPDX-License-Identifier: Apache-2.0
"""The profile 'builds': what its program answers, held against a description of our own, against
libseccomp, and against the kernel.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from lib import bpf
from lib.bpf import ALLOW, AUDIT, answer
from lib.machine import LIB, require

from sandboxlib import UnsupportedError
from sandboxlib._seccomp import builds, syscalls
from sandboxlib._seccomp import filters as _seccomp
from sandboxlib._seccomp import made as _seccomp_made

EPERM, ENOSYS, EAFNOSUPPORT = (
    bpf.ERRNO | number for number in (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT)
)
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {"capabilities": frozenset({"net_raw", "chown"})},
    "nothing": {},
    "nesting": {"capabilities": frozenset({"net_raw"}), "nesting": True},
    "slot": {"capabilities": frozenset({"net_raw"}), "in_slot": True},
    "sys_admin": {"capabilities": frozenset({"sys_admin"})},
    "others": {
        "capabilities": frozenset(
            "sys_time sys_ptrace sys_module sys_boot sys_pacct sys_rawio dac_read_search bpf "
            "perfmon syslog".split()
        )
    },
}
OLD_MOUNTS = "mount umount umount2 pivot_root".split()
NEW_MOUNTS = "fsopen fsconfig fsmount fspick open_tree open_tree_attr move_mount mount_setattr"
OF_RESIDENTS = (
    "mount umount2 pivot_root fsopen fsconfig fsmount open_tree move_mount mount_setattr "
    "sethostname setdomainname"
).split()
ADMINISTRATION = [*OLD_MOUNTS, *NEW_MOUNTS.split(), "setns", "sethostname", "setdomainname"]
BY_CAPABILITY = {
    name: words.split()
    for names, words in (
        ("bpf", "bpf sys_admin"),
        ("perf_event_open", "perfmon sys_admin"),
        ("fanotify_init quotactl quotactl_fd", "sys_admin"),
        ("syslog", "sys_admin syslog"),
        ("acct", "sys_pacct"),
        ("open_by_handle_at", "dac_read_search"),
        ("kcmp", "sys_ptrace"),
        ("reboot", "sys_boot"),
        ("iopl ioperm", "sys_rawio"),
        ("init_module finit_module delete_module", "sys_module"),
        ("create_module get_kernel_syms query_module", "sys_module"),
        ("settimeofday stime clock_settime clock_settime64", "sys_time"),
        ("adjtimex clock_adjtime clock_adjtime64", "sys_time"),
    )
    for name in names.split()
}
NEVER = "add_key request_key keyctl userfaultfd kexec_load kexec_file_load swapon swapoff".split()
NEVER_THERE = "io_uring_setup io_uring_enter io_uring_register nfsservctl uselib socketcall".split()


def described(  # noqa: PLR0911
    name: str,
    args: list[int],
    capabilities: frozenset[str] = frozenset(),
    nesting: bool = False,
    in_slot: bool = False,
) -> int:
    """The answer that 'builds' must give."""
    administers = nesting or "sys_admin" in capabilities
    words = [arg & 0xFFFFFFFF for arg in args]
    if name in ADMINISTRATION:
        return ALLOW if administers or (in_slot and name in OF_RESIDENTS) else EPERM
    if name in ("clone3", "listns"):
        return ALLOW if administers else ENOSYS
    if name in NEVER:
        return EPERM
    if name in NEVER_THERE:
        return ENOSYS
    if name in BY_CAPABILITY:
        return EPERM if capabilities.isdisjoint(BY_CAPABILITY[name]) else ALLOW
    if name in ("clone", "unshare") and not administers:
        closed = 0x10000000
        if not in_slot:
            closed |= 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
            closed |= 0x80 if name == "unshare" else 0
        closed |= 0x8000 if name == "clone" else 0
        return EPERM if words[0] & closed else ALLOW
    if name == "ioctl":
        return EPERM if words[1] in (0x5412, 0x541C) else ALLOW
    if name == "setsockopt":
        return EPERM if words[1:3] == [41, 32] else ALLOW
    if name == "personality":
        kept = (0, 0x8, 0x20000, 0x20008, 0x40000, 0x40008, 0x60000, 0x60008, 0xFFFFFFFF)
        return ALLOW if words[0] in kept else EPERM
    if name in ("socket", "socketpair"):
        raw = "net_raw" in capabilities
        if not raw and words[0] == 2 and words[1] & 15 == 10:
            return EAFNOSUPPORT
        return ALLOW if words[0] in (1, 2, 10, 16) or (raw and words[0] == 17) else EAFNOSUPPORT
    return ALLOW


INTERESTING = [
    *(0, 1, 2, 8, 10, 16, 17, 32, 38, 40, 41, 0x80, 0x5412, 0x541C, 0x5413, 0x400000, 0x440000),
    *(0x20000, 0x40000, 0x60008, 0x10000000, 0x20000000, 0x7E020000, 0x4000000, 0x1200011),
    *(0xFFFFFFFF, (1 << 64) - 1, 0x3D0F00, 1 << 31, 1 << 32, 1 << 63),
]


def some_value(chance: random.Random) -> int:
    value = chance.choice(INTERESTING)
    if chance.random() < 0.2:
        value |= chance.choice(INTERESTING)
    if chance.random() < 0.2:
        value ^= 1 << chance.randrange(64)
    if chance.random() < 0.3:
        value |= chance.getrandbits(32) << 32
    return value & (1 << 64) - 1


def some_calls(abi: str, count: int) -> list[tuple[str, int, list[int]]]:
    """Calls by name, number and arguments: each without any, and the interesting ones often."""
    chance = random.Random(f"{abi} {count}")
    numbers = syscalls.numbers_of(abi)
    often = "clone unshare ioctl setsockopt personality socket socketpair".split()
    calls = [(name, number, [0] * 6) for name, number in numbers.items()]
    for _ in range(count):
        name = chance.choice(often if chance.random() < 0.7 else list(numbers))
        args = [some_value(chance) for _ in range(6)]
        calls.append((name, numbers[name], args))
    return calls


def of_abi(settings: str, abi: str) -> tuple[bytes, dict[str, Any]]:
    """The program, and what is asked of this ABI: residents make calls of the machine's own."""
    machine = {"i386": "x86_64", "arm": "aarch64"}.get(abi, abi)
    given = SETTINGS[settings]
    program = _seccomp.builds(**given, machine=machine)
    return program, given if abi == machine else {**given, "in_slot": False}


@pytest.mark.parametrize("abi", ["x86_64", "i386", "aarch64", "arm"])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.slow
def test_every_call_gets_the_answer_described(settings: str, abi: str) -> None:
    program, given = of_abi(settings, abi)
    for name, number, args in some_calls(abi, 1500):
        found = answer(program, AUDIT[abi], number, args)
        assert found == described(name, args, **given), (name, args)


@pytest.mark.parametrize("high", [1 << 32, 1 << 63, 0xFFFFFFFF << 32])
def test_high_halves_that_the_kernel_does_not_see_hide_nothing(high: int) -> None:
    """CVE-2019-10063: of ioctl's command, a family and the like, the kernel takes 32 bits."""
    program = _seccomp.builds(frozenset({"net_raw"}), machine="x86_64")
    for name, args, closed in (
        ("ioctl", [0, 0x5412], EPERM),
        ("ioctl", [0, 0x541C], EPERM),
        ("socket", [40, 1], EAFNOSUPPORT),
        ("socket", [1, 1], ALLOW),
        ("setsockopt", [3, 41, 32], EPERM),
        ("personality", [0x400000], EPERM),
        ("clone", [0x10000011], EPERM),
        ("unshare", [0x10000000], EPERM),
    ):
        number = syscalls.numbers_of("x86_64")[name]
        for place in range(3):
            args_with_more = [arg | (high if i == place else 0) for i, arg in enumerate(args)]
            found = answer(program, AUDIT["x86_64"], number, args_with_more)
            assert found == closed, (name, args_with_more)


@pytest.mark.parametrize("settings", SETTINGS)
def test_x32_and_numbers_that_nobody_knows_are_not_there(settings: str) -> None:
    program = _seccomp.builds(**SETTINGS[settings], machine="x86_64")
    x86_64, i386 = AUDIT["x86_64"], AUDIT["i386"]
    for number in (0, 1, 41, 56, 59, 165, 272, 435, 512, 547, 0x3FFFFFFE):
        assert answer(program, x86_64, 0x40000000 | number) == ENOSYS
    newest = max(syscalls.numbers_of("x86_64").values())
    for audit in (x86_64, i386):
        for number in (
            newest + 1,
            512,
            547,
            1 << 20,
            0x3FFFFFFF,
            0x7FFFFFFF,
            1 << 31,
            ~1 & 2**32 - 1,
        ):
            assert answer(program, audit, number) == ENOSYS
        assert answer(program, audit, 2**32 - 1) == ALLOW  # by it a tracer skips a call
    assert answer(program, AUDIT["aarch64"], 0) == ENOSYS


def test_programs_are_small_and_made_once() -> None:
    for settings in SETTINGS.values():
        for machine in ("x86_64", "aarch64"):
            program = _seccomp.builds(**settings, machine=machine)
            assert len(program) / 8 < 145  # each takes 0.12 us to install
            assert _seccomp.builds(**settings, machine=machine) is program
    # a capability that opens nothing makes no other program
    program = _seccomp.builds(frozenset({"net_raw"}), machine="x86_64")
    assert _seccomp.builds(frozenset({"net_raw", "chown"}), machine="x86_64") is program


def test_programs_made_ahead_are_what_the_compiler_makes() -> None:
    assert len(_seccomp_made.PROGRAMS) == 6
    for (machine, openers), made in _seccomp_made.PROGRAMS.items():
        found = builds.compile_builds(openers, _seccomp.MACHINES[machine])
        assert found.hex() == made, "run make_syscalls.py"


def test_whatever_opens_something_is_known_to_open() -> None:
    """Other capabilities do not reach the compiler."""
    words = {word for _, _, words in builds.CLOSED for word in words.split()}
    assert words - {"nesting", "slot"} | {"net_raw"} == _seccomp.OPENERS


@pytest.mark.parametrize(
    ("abi", "header"),
    [
        ("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        ("i386", "/usr/include/x86_64-linux-gnu/asm/unistd_32.h"),
        ("x32", "/usr/include/x86_64-linux-gnu/asm/unistd_x32.h"),
        ("aarch64", "/usr/aarch64-linux-gnu/include/asm-generic/unistd.h"),
    ],
)
def test_numbers_are_those_of_the_headers(abi: str, header: str) -> None:
    require(Path(header).exists(), f"there is no {header}")
    numbers = syscalls.numbers_of(abi)
    found = re.findall(
        r"#define __NR_(\w+)\s+\(?(?:__X32_SYSCALL_BIT \+ )?(\d+)", Path(header).read_text()
    )
    assert len(found) > 250
    for name, number in found:
        if name in ("arch_specific_syscall", "syscalls"):  # limits of the generic table
            continue
        expected = int(number) | (0x40000000 if abi == "x32" else 0)
        assert numbers.get(name, expected) == expected, name
        assert name in numbers or int(number) > 471 or abi == "aarch64", name


def test_the_way_to_an_answer_is_short() -> None:
    """The kernel goes it once for each number and ABI when a filter is installed."""
    program = _seccomp.builds(frozenset({"net_raw"}), machine="x86_64")
    code = bpf.instructions(program)
    lengths: dict[int, int] = {}
    for start in range(len(code) - 1, -1, -1):
        operation, yes, no, k = code[start]
        ways = [] if operation == 6 else [k] if operation == 5 else [yes, no]
        ways = [0] if operation in (0x20, 0x54) else ways
        lengths[start] = 1 + max((lengths[start + 1 + way] for way in ways), default=0)
    assert lengths[0] < 25


def test_other_machines_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="riscv64"):
        _seccomp.builds(machine="riscv64")
    with pytest.raises(UnsupportedError, match="seccomp='none'"):
        _seccomp.from_profile({"defaultAction": "SCMP_ACT_ALLOW"}, machine="s390x")


def test_importing_the_package_builds_no_filter() -> None:
    # Those that were made ahead are there; what makes others is not.
    command = (
        "import sys, sandboxlib; sandboxlib.Sandbox; print([m for m in sys.modules if "
        "m.endswith(('.bpf', '.syscalls', '_seccomp.builds', '_seccomp.profile'))])"
    )
    found = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    assert found.stdout == "[]\n"


# libseccomp


LOOKED_AT = "clone unshare ioctl setsockopt personality socket socketpair".split()
LOW = 0xFFFFFFFF


def denied(given: dict[str, Any], names: Iterable[str]) -> list[Any]:
    """Rules for libseccomp: what 'builds' closes, but for personality and sockets."""
    closed = ((name, described(name, [0] * 6, **given)) for name in names if name not in LOOKED_AT)
    rules: list[Any] = [(found, name) for name, found in closed if found != ALLOW]
    if described("unshare", [0x10000000, *[0] * 5], **given) != ALLOW:
        bits = [28] if given.get("in_slot") else [17, 25, 26, 27, 28, 29, 30]
        for bit in bits:
            condition = (0, "MASKED_EQ", 1 << bit, 1 << bit)
            rules += [(EPERM, name, condition) for name in ("clone", "unshare")]
        rules.append((EPERM, "clone", (0, "MASKED_EQ", 0x8000, 0x8000)))
        if not given.get("in_slot"):
            rules.append((EPERM, "unshare", (0, "MASKED_EQ", 0x80, 0x80)))
    for command in (0x5412, 0x541C):
        rules.append((EPERM, "ioctl", (1, "MASKED_EQ", LOW, command)))
    rules.append((EPERM, "setsockopt", (1, "MASKED_EQ", LOW, 41), (2, "MASKED_EQ", LOW, 32)))
    return rules


def open_personalities() -> list[Any]:
    kept = (0, 8, 0x20000, 0x20008, 0x40000, 0x40008, 0x60000, 0x60008, LOW)
    return [(ALLOW, "personality", (0, "MASKED_EQ", LOW, value)) for value in kept]


def open_sockets(raw: bool) -> list[Any]:
    rules: list[Any] = []
    for name in ("socket", "socketpair"):
        for family in [1, 10, 16, *([2, 17] if raw else [])]:
            rules.append((ALLOW, name, (0, "MASKED_EQ", LOW, family)))
        for kind in [] if raw else sorted(set(range(16)) - {10}):
            rules.append((ALLOW, name, (0, "MASKED_EQ", LOW, 2), (1, "MASKED_EQ", 15, kind)))
    return rules


@pytest.mark.parametrize("abi", ["x86_64", "i386", "aarch64", "arm"])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.slow
def test_libseccomp_makes_the_same_of_it(settings: str, abi: str) -> None:
    """Three filters: what is denied, and for two kinds of calls what is allowed."""
    program, given = of_abi(settings, abi)
    filters: list[Any] = [
        (ALLOW, ENOSYS, [abi], denied(given, syscalls.numbers_of(abi))),
        (EPERM, ENOSYS, [abi], open_personalities()),
        (EAFNOSUPPORT, ENOSYS, [abi], open_sockets("net_raw" in given.get("capabilities", ()))),
    ]
    oracles, unknown = bpf.libseccomp(filters)
    for name, number, args in some_calls(abi, 1500):
        if name in unknown:
            continue
        oracle = oracles[{"personality": 1, "socket": 2, "socketpair": 2}.get(name, 0)]
        expected = answer(oracle, AUDIT[abi], number, args)
        assert answer(program, AUDIT[abi], number, args) == expected, (name, args)


# The kernel


def under(program: bytes, calls: list[list[int]]) -> list[int]:
    """The answers of the kernel to calls of a process that has installed the program."""
    text = (
        bpf.LOADER + "\nimport json\nprogram, calls = json.load(sys.stdin)\n"
        "install(bytes.fromhex(program))\nprint(json.dumps([call(*c) for c in calls]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", text],
        input=json.dumps([program.hex(), calls]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    answers: list[int] = json.loads(found.stdout)
    return answers


HARMLESS = 0xFFFFFFFFFFFFFFFF  # no descriptor, and no address


def test_the_kernel_answers_so() -> None:
    require(os.uname().machine == "x86_64", "the numbers are those of x86_64")
    numbers = syscalls.numbers_of("x86_64")
    calls: list[tuple[str, list[int], int]] = [
        ("getpid", [], 0),
        ("unshare", [0], 0),
        ("unshare", [0x10000000], -errno.EPERM),
        ("unshare", [0x20000], -errno.EPERM),
        ("clone", [0x10000011, 0], -errno.EPERM),
        ("clone3", [0, 0], -errno.ENOSYS),
        ("setns", [HARMLESS, 0], -errno.EPERM),
        ("mount", [0, 0, 0, 0, 0], -errno.EPERM),
        ("umount2", [0, 0], -errno.EPERM),
        ("open_tree", [HARMLESS, 0, 0], -errno.EPERM),
        ("open_tree_attr", [HARMLESS, 0, 0, 0, 0], -errno.EPERM),
        ("keyctl", [0, 0], -errno.EPERM),
        ("bpf", [HARMLESS, 0, 0], -errno.EPERM),
        ("io_uring_setup", [0, 0], -errno.ENOSYS),
        ("userfaultfd", [HARMLESS], -errno.EPERM),
        ("kcmp", [0, 0, HARMLESS, 0, 0], -errno.EPERM),
        ("socket", [40, 1, 0], -errno.EAFNOSUPPORT),
        ("socket", [38, 5, 0], -errno.EAFNOSUPPORT),
        ("socket", [1 << 32 | 40, 1, 0], -errno.EAFNOSUPPORT),
        ("socketpair", [30, 1, 0, 0], -errno.EAFNOSUPPORT),
        ("ioctl", [HARMLESS, 0x5412, 0], -errno.EPERM),
        ("ioctl", [HARMLESS, 1 << 32 | 0x5412, 0], -errno.EPERM),
        ("ioctl", [HARMLESS, 0x5413, 0], -errno.EBADF),
        ("setsockopt", [HARMLESS, 41, 32, 0, 0], -errno.EPERM),
        ("setsockopt", [HARMLESS, 41, 33, 0, 0], -errno.EBADF),
        ("personality", [0x400000], -errno.EPERM),
        ("personality", [0x40000], 0),
        ("personality", [0x60008], 0x40000),
        ("personality", [0xFFFFFFFF], 0x60008),
        ("process_vm_readv", [0, 0, 0, 0, 0, 0], 0),
    ]
    plain = [[numbers[name], *args] for name, args, _ in calls]
    found = under(_seccomp.builds(frozenset({"net_raw"})), [*plain, [0x40000000 | 39], [472]])
    *named, x32, unknown = found
    for (name, args, expected), value in zip(calls, named, strict=True):
        assert value == expected or (name == "getpid" and value > 0), (name, args, value)
    assert x32 == unknown == -errno.ENOSYS


def test_calls_of_i386_from_a_64_bit_program(tmp_path: Path) -> None:
    require(os.uname().machine == "x86_64", "the numbers are those of x86_64")
    require(shutil.which("cc"), "there is no C compiler")
    tool = str(tmp_path / "calls")
    source = str(LIB / "calls.c")
    subprocess.run(["cc", "-O1", "-o", tool, source], check=True)
    numbers = syscalls.numbers_of("i386")
    calls = [
        ("getppid", [], None),
        ("unshare", [0x10000000], errno.EPERM),
        ("clone", [0x10000011], errno.EPERM),
        ("clone3", [], errno.ENOSYS),
        ("mount", [], errno.EPERM),
        ("umount", [], errno.EPERM),
        ("umount2", [], errno.EPERM),
        ("keyctl", [], errno.EPERM),
        ("stime", [], errno.EPERM),
        ("clock_settime64", [], errno.EPERM),
        ("socketcall", [1], errno.ENOSYS),
        ("socket", [40, 1], errno.EAFNOSUPPORT),
        ("socket", [1, 1], None),
        ("socketpair", [30, 1], errno.EAFNOSUPPORT),
        ("ioctl", [0xFFFFFFFF, 0x5412], errno.EPERM),
        ("ioctl", [0xFFFFFFFF, 0x5413], errno.EBADF),
        ("setsockopt", [0xFFFFFFFF, 41, 32], errno.EPERM),
        ("personality", [0x400000], errno.EPERM),
        ("personality", [0x40008], None),
        ("add_key", [], errno.EPERM),
        ("io_uring_setup", [], errno.ENOSYS),
    ]
    words = [f"i:{','.join(map(str, [numbers[name], *args]))}" for name, args, _ in calls]
    program = _seccomp.builds(frozenset({"net_raw"}))
    text = bpf.LOADER + "\ninstall(bytes.fromhex(sys.argv[1]))\nos.execv(sys.argv[2], sys.argv[2:])"
    found = subprocess.run(
        [sys.executable, "-c", text, program.hex(), tool, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    answers = [int(line) for line in found.stdout.split()]
    require(answers[0] != -errno.ENOSYS, "this kernel runs no i386 calls")
    for (name, args, expected), value in zip(calls, answers, strict=True):
        assert (value >= 0) if expected is None else (value == -expected), (name, args, value)
