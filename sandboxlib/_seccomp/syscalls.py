# SPDX-License-Identifier: Apache-2.0
"""The numbers of system calls on each machine, from the tables that make_syscalls.py writes."""

from __future__ import annotations

from .syscall_tables import AARCH64, ARM, I386, NOT_X32, UNIFORM, X32, X86_64

_TABLES = {"x86_64": X86_64, "i386": I386, "aarch64": AARCH64, "arm": ARM}


def _parse(table: str) -> dict[str, int]:
    numbers = {}
    number = 0
    for entry in table.split():
        if entry.isdecimal():
            number = int(entry)
        else:
            numbers[entry] = number
            number += 1
    return numbers


def numbers_of(machine: str) -> dict[str, int]:
    """Every call's name and number. machine: x86_64, i386, x32, aarch64 or arm (EABI)."""
    if machine == "x32":  # the calls of x86_64 with a bit set, and 36 calls with other numbers
        numbers = {**numbers_of("x86_64"), **_parse(X32)}
        for name in NOT_X32.split():
            del numbers[name]
        return {name: number | 0x40000000 for name, number in numbers.items()}
    numbers = _parse(_TABLES[machine]) | _parse(UNIFORM)
    if machine == "arm":
        del numbers["memfd_secret"]
    return numbers
