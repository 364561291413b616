# SPDX-License-Identifier: Apache-2.0
"""Writes sandboxlib/_seccomp/syscalls.py from the kernel headers of a Debian machine, and with it
sandboxlib/_seccomp/made.py: programs of the profile 'builds' for the default settings, since
compiling one takes 2 ms of a process's first run.

    apt-get install linux-libc-dev linux-libc-dev-arm64-cross linux-libc-dev-armhf-cross
    python make_syscalls.py
    python make_syscalls.py made            the programs only

Numbers from 424 on are the same on every machine, and newer kernels than the headers' are known
here by NEWER. Whoever adds a call there decides in sandboxlib/_seccomp/builds.py whether 'builds'
closes it: what is newer than the table is ENOSYS.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

UNIFORM = 424
#: From 6.5 to 7.0, as of November 2026.
NEWER = (
    "cachestat fchmodat2 map_shadow_stack futex_wake futex_wait futex_requeue statmount listmount "
    "lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal setxattrat getxattrat listxattrat "
    "removexattrat open_tree_attr file_getattr file_setattr listns rseq_slice_yield"
).split()
NEWEST_OF_HEADERS = 450
#: uretprobe and uprobe are of 6.11 and 6.18; those of ARM are no system calls to its headers.
EXTRA = {
    "x86_64": {"uretprobe": 335, "uprobe": 336},
    "i386": {},
    "aarch64": {},
    "arm": {
        "breakpoint": 0xF0001,
        "cacheflush": 0xF0002,
        "usr26": 0xF0003,
        "usr32": 0xF0004,
        "set_tls": 0xF0005,
        "get_tls": 0xF0006,
    },
}
HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu", "asm/unistd_64.h", "-D__x86_64__"),
    "i386": ("/usr/include/x86_64-linux-gnu", "asm/unistd_32.h", "-D__i386__"),
    "x32": ("/usr/include/x86_64-linux-gnu", "asm/unistd_x32.h", "-D__ILP32__"),
    "aarch64": ("/usr/aarch64-linux-gnu/include", "asm/unistd.h", "-D__aarch64__"),
    "arm": ("/usr/arm-linux-gnueabihf/include", "asm/unistd.h", "-D__ARM_EABI__"),
}
HEAD = '''# SPDX-License-Identifier: Apache-2.0
"""The numbers of system calls. Written by make_syscalls.py: change it, and not this file.

A word is the name of the next number; a number says which one that is.
"""

'''
TAIL = '''
_TABLES = {"x86_64": X86_64, "i386": I386, "aarch64": AARCH64, "arm": ARM}


def _parse(table: str) -> dict[str, int]:
    numbers = {}
    number = 0
    for word in table.split():
        if word.isdecimal():
            number = int(word)
        else:
            numbers[word] = number
            number += 1
    return numbers


def numbers_of(machine: str) -> dict[str, int]:
    """Name to number, for x86_64, i386, x32, aarch64 or arm (EABI)."""
    if machine == "x32":  # x86_64's, a bit, and 36 calls with numbers of their own
        numbers = {**numbers_of("x86_64"), **_parse(X32)}
        for name in NOT_X32.split():
            del numbers[name]
        return {name: number | 0x40000000 for name, number in numbers.items()}
    numbers = _parse(_TABLES[machine]) | _parse(UNIFORM)
    if machine == "arm":
        del numbers["memfd_secret"]
    return numbers
'''


def defined(machine: str) -> dict[str, int]:
    """What the preprocessor knows as __NR_*."""
    folder, header, machine_macro = HEADERS[machine]
    command = ["cpp", "-undef", "-nostdinc", "-dM", f"-I{folder}", "-I/usr/include"]
    command += [machine_macro, "-include", header, "/dev/null"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    macros = dict(re.findall(r"^#define (__\w+) (.+)$", text, re.M))
    macros.update({"__X32_SYSCALL_BIT": "0", "__NR_SYSCALL_BASE": "0"})

    def value(expression: str) -> int:
        return sum(
            int(term, 0) if term[0].isdigit() else value(macros[term])
            for term in re.findall(r"\w+", expression)
        )

    skip = ("SYSCALL", "syscalls", "arch_specific", "SYSCALL_BASE", "OABI")
    names = (name[5:] for name in macros if name.startswith("__NR_"))
    return {name: value(macros["__NR_" + name]) for name in names if not name.startswith(skip)}


def as_words(numbers: dict[str, int]) -> str:
    words: list[str] = []
    expected = 0
    for name, number in sorted(numbers.items(), key=lambda item: item[1]):
        if number != expected:
            words.append(str(number))
        words.append(name)
        expected = number + 1
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) > 98:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(lines)


MADE = '''# SPDX-License-Identifier: Apache-2.0
"""Programs of the profile 'builds'. Written by make_syscalls.py: change builds.py, not this
file.
"""

from __future__ import annotations

#: Of a machine, and what is open there.
PROGRAMS = {
'''


def write_made() -> None:
    from sandboxlib._seccomp.builds import compile_builds
    from sandboxlib._seccomp.filters import MACHINES

    parts = [MADE]
    for machine in ("x86_64", "aarch64"):
        for openers in (["net_raw"], ["net_raw", "slot"]):
            text = compile_builds(frozenset(openers), MACHINES[machine]).hex()
            parts.append(f"    ({machine!r}, frozenset({openers})): (\n")
            parts += [f"        {text[at : at + 88]!r}\n" for at in range(0, len(text), 88)]
            parts.append("    ),\n")
    place = Path(__file__).with_name("sandboxlib") / "_seccomp" / "made.py"
    place.write_text("".join(parts).replace("'", '"') + "}\n")


def write_syscalls() -> None:
    found = {machine: defined(machine) for machine in HEADERS}
    newest = {n: number for n, number in found["x86_64"].items() if number >= UNIFORM}
    newest.update({name: NEWEST_OF_HEADERS + 1 + i for i, name in enumerate(NEWER)})
    for machine, extra in EXTRA.items():
        numbers = found[machine]
        assert all(newest[n] == number for n, number in numbers.items() if number >= UNIFORM)
        known = {n for n, number in newest.items() if number <= NEWEST_OF_HEADERS}
        assert known - numbers.keys() == ({"memfd_secret"} if machine == "arm" else set())
        found[machine] = {n: nr for n, nr in numbers.items() if nr < UNIFORM and n in numbers}
        found[machine].update(extra)
    own = {n: nr for n, nr in found["x32"].items() if found["x86_64"].get(n) != nr}
    own = {name: number for name, number in own.items() if number < UNIFORM or number > 511}
    missing = sorted({*found["x86_64"].keys() - found["x32"].keys(), "map_shadow_stack"})
    parts = [HEAD]
    for title, numbers in (
        *((machine.upper(), found[machine]) for machine in EXTRA),
        ("X32", own),
        ("UNIFORM", newest),
    ):
        parts.append(f'{title} = """\n{as_words(numbers)}\n"""\n')
    parts.append(f'NOT_X32 = """\n{as_words({n: i for i, n in enumerate(missing)})}\n"""\n')
    place = Path(__file__).with_name("sandboxlib") / "_seccomp" / "syscalls.py"
    place.write_text("".join(parts) + TAIL)


if __name__ == "__main__":
    if sys.argv[1:] != ["made"]:
        write_syscalls()
    write_made()
