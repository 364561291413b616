# SPDX-License-Identifier: Apache-2.0
"""Tools for the tests of filters: an interpreter of classic BPF, and libseccomp as an oracle."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lib.machine import require

ALLOW = 0x7FFF0000
ERRNO = 0x50000
AUDIT = {
    "x86_64": 0xC000003E,
    "x32": 0xC000003E,
    "i386": 0x40000003,
    "aarch64": 0xC00000B7,
    "arm": 0x40000028,
}


@lru_cache(maxsize=8)
def instructions(program: bytes) -> list[tuple[int, int, int, int]]:
    """Each instruction: the operation, the jump if true, the jump if false, the constant."""
    assert len(program) % 8 == 0
    return list(struct.iter_unpack("=HBBI", program))


def answer(  # noqa: PLR0912
    program: bytes, audit: int, number: int, args: Sequence[int] = ()
) -> int:
    """Run a filter as the kernel does (bpf(4), seccomp(2)), and return its answer to a call."""
    code = instructions(program)
    values = [value & (1 << 64) - 1 for value in args] + [0] * (6 - len(args))
    data = struct.pack("<IIQ6Q", number, audit, 0, *values)
    at = a = x = 0
    memory = [0] * 16
    while True:
        operation, yes, no, k = code[at]
        at += 1
        match operation:
            case 0x20:
                assert k % 4 == 0
                (a,) = struct.unpack_from("<I", data, k)
            case 0x06:
                return k
            case 0x05:
                at += k
            case 0x15:
                at += yes if a == k else no
            case 0x25:
                at += yes if a > k else no
            case 0x35:
                at += yes if a >= k else no
            case 0x45:
                at += yes if a & k else no
            case 0x54:
                a &= k
            case 0x02:  # only libseccomp uses this instruction and those below
                memory[k] = a
            case 0x60:
                a = memory[k]
            case 0x61:
                x = memory[k]
            case 0x00:
                a = k
            case 0x5C:
                a &= x
            case _:
                raise AssertionError(f"unknown instruction {operation:#x}")


PYTHON = "/usr/bin/python3"  # Debian's python3-seccomp is for this one
ORACLE = """
import json, sys, tempfile
import seccomp

wanted = json.load(sys.stdin)
programs = []


def signed(action):
    return action - (1 << 32) if action >> 31 else action


for default, bad, abis, rules in wanted:
    box = seccomp.SyscallFilter(signed(default))
    box.set_attr(seccomp.Attr.ACT_BADARCH, bad)
    if abis:
        box.remove_arch(seccomp.Arch())
    for abi in abis:
        box.add_arch(getattr(seccomp.Arch, abi.upper()))
    unknown = []
    contradict = False
    for action, call, *args in rules:
        if seccomp.resolve_syscall(seccomp.Arch(), call) == -1:
            unknown.append(call)
            continue
        conditions = []
        for index, comparison, *values in args:
            conditions.append(seccomp.Arg(index, getattr(seccomp, comparison), *values))
        try:
            box.add_rule(signed(action), call, *conditions)
        except RuntimeError as error:
            if "-17" not in str(error):  # EEXIST
                sys.exit(f"{abis} {action:#x} {call} {args}: {error}")
            contradict = True
    if contradict:
        programs.append(("", unknown))
        continue
    with tempfile.TemporaryFile() as file:
        box.export_bpf(file)
        file.seek(0)
        programs.append((file.read().hex(), unknown))
json.dump(programs, sys.stdout)
"""
#: libseccomp's names
ABIS = {"x86_64": "X86_64", "i386": "X86", "x32": "X32", "aarch64": "AARCH64", "arm": "ARM"}


def has_libseccomp() -> bool:
    command = [PYTHON, "-c", "import seccomp"]
    if not Path(PYTHON).exists():
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def libseccomp(
    filters: Sequence[tuple[int, int, Sequence[str], Sequence[Any]]],
) -> tuple[list[bytes], set[str]]:
    """The programs that libseccomp makes, and the names of calls that it does not know.

    filters: (default, answer to other ABIs, ABIs, rules) each. A program is empty if libseccomp
    says that its rules contradict each other.
    """
    require(has_libseccomp(), "Debian's Python has no seccomp (apt: python3-seccomp)")
    request = [[d, bad, [ABIS[a] for a in abis], list(r)] for d, bad, abis, r in filters]
    done = subprocess.run(
        [PYTHON, "-c", ORACLE],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    unknown = {name for _, names in answers for name in names}
    return [bytes.fromhex(text) for text, _ in answers], unknown


# Code for a child that makes system calls under a filter.
LOADER = """
import ctypes, os, struct, sys

libc = ctypes.CDLL(None, use_errno=True)
SECCOMP = {"x86_64": 317, "aarch64": 277}[os.uname().machine]


def call(number, *args):
    ctypes.set_errno(0)
    values = [ctypes.c_long(value - (1 << 64) if value >> 63 else value) for value in args]
    result = libc.syscall(ctypes.c_long(number), *values)
    return -ctypes.get_errno() if result == -1 else result


def install(program):
    class Fprog(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    fprog = Fprog(len(program) // 8, program)
    result = call(SECCOMP, 1, 4, ctypes.addressof(fprog))  # SET_MODE_FILTER, SPEC_ALLOW
    if result:
        raise OSError(-result, os.strerror(-result))
"""
