# SPDX-License-Identifier: Apache-2.0
"""Write two modules of sandboxlib/_seccomp: syscall_tables.py, from the kernel headers of a Debian
machine, and made.py, which has compiled programs of the profile 'builds' for the default settings,
because compiling one takes 2 ms of a process's first run.

    apt-get install linux-libc-dev linux-libc-dev-arm64-cross linux-libc-dev-armhf-cross
    python make_syscalls.py
    python make_syscalls.py made            the programs only

Numbers from 424 on are the same on every machine. NEWER names the calls of kernels that are newer
than the headers. If you add a call there, decide in sandboxlib/_seccomp/builds.py whether 'builds'
closes it: a call that is newer than the table gets ENOSYS.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

UNIFORM = 424
#: The calls that Linux 6.5 to 7.0 added, as of November 2026.
NEWER = (
    "cachestat fchmodat2 map_shadow_stack futex_wake futex_wait futex_requeue statmount listmount "
    "lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal setxattrat getxattrat listxattrat "
    "removexattrat open_tree_attr file_getattr file_setattr listns rseq_slice_yield"
).split()
NEWEST_OF_HEADERS = 450
#: Calls that the headers do not list: uretprobe came with Linux 6.11 and uprobe with 6.18, and the
#: headers of ARM keep its private calls apart.
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
"""The tables of system calls. make_syscalls.py writes this file: change that program instead.

A table is a list of names and numbers. A number says where the names after it start, and each name
has the number after that of the name before it.
"""

'''


def defined(machine: str) -> dict[str, int]:
    """The calls of a machine, name to number: the preprocessor's macros __NR_*."""
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


def as_table(numbers: dict[str, int]) -> str:
    """The text of a table, as syscall_tables.py describes it, in lines of at most 99 characters."""
    entries: list[str] = []
    expected = 0
    for name, number in sorted(numbers.items(), key=lambda item: item[1]):
        if number != expected:
            entries.append(str(number))
        entries.append(name)
        expected = number + 1
    lines = [""]
    for entry in entries:
        if len(lines[-1]) + len(entry) > 98:
            lines.append("")
        lines[-1] += f" {entry}" if lines[-1] else entry
    return "\n".join(lines)


MADE = '''# SPDX-License-Identifier: Apache-2.0
"""Compiled programs of the profile 'builds'. make_syscalls.py writes this file: change builds.py
instead.
"""

from __future__ import annotations

#: By the machine and the openers (parts of the profile that a run opens) of a program.
PROGRAMS = {
'''


def write_made() -> None:
    from sandboxlib._seccomp.builds import compile_builds
    from sandboxlib._seccomp.filters import MACHINES

    parts = [MADE]
    for machine in ("x86_64", "aarch64"):
        for openers in ([], ["net_raw"], ["net_raw", "slot"]):
            text = compile_builds(frozenset(openers), MACHINES[machine]).hex()
            parts.append(f"    ({machine!r}, frozenset({openers or ''})): (\n")
            parts += [f"        {text[at : at + 88]!r}\n" for at in range(0, len(text), 88)]
            parts.append("    ),\n")
    path = Path(__file__).with_name("sandboxlib") / "_seccomp" / "made.py"
    path.write_text("".join(parts).replace("'", '"') + "}\n")


def write_tables() -> None:
    calls = {machine: defined(machine) for machine in HEADERS}
    newest = {n: number for n, number in calls["x86_64"].items() if number >= UNIFORM}
    newest.update({name: NEWEST_OF_HEADERS + 1 + i for i, name in enumerate(NEWER)})
    for machine, extra in EXTRA.items():
        numbers = calls[machine]
        assert all(newest[n] == number for n, number in numbers.items() if number >= UNIFORM)
        known = {n for n, number in newest.items() if number <= NEWEST_OF_HEADERS}
        assert known - numbers.keys() == ({"memfd_secret"} if machine == "arm" else set())
        calls[machine] = {n: nr for n, nr in numbers.items() if nr < UNIFORM}
        calls[machine].update(extra)
    own = {n: nr for n, nr in calls["x32"].items() if calls["x86_64"].get(n) != nr}
    own = {name: number for name, number in own.items() if number < UNIFORM or number > 511}
    missing = sorted({*calls["x86_64"].keys() - calls["x32"].keys(), "map_shadow_stack"})
    parts = [HEAD]
    for title, numbers in (
        *((machine.upper(), calls[machine]) for machine in EXTRA),
        ("X32", own),
        ("UNIFORM", newest),
    ):
        parts.append(f'{title} = """\n{as_table(numbers)}\n"""\n')
    parts.append(f'NOT_X32 = """\n{as_table({n: i for i, n in enumerate(missing)})}\n"""\n')
    path = Path(__file__).with_name("sandboxlib") / "_seccomp" / "syscall_tables.py"
    path.write_text("".join(parts))


if __name__ == "__main__":
    if sys.argv[1:] != ["made"]:
        write_tables()
    write_made()
