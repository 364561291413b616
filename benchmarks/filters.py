# SPDX-License-Identifier: Apache-2.0
"""Measures the cost of a system call filter: its instructions, and the time that the kernel takes
to install it, the shortest of 400.

    python benchmarks/filters.py [PROFILE.json ...]

Any user can run it. The figures of docs/seccomp.md are those of `python benchmarks/filters.py`.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path

from sandboxlib import Policy
from sandboxlib._spec.policy import program_of

TIMES = 400
ALLOW = b"\x06\x00\x00\x00\x00\x00\xff\x7f"  # BPF_RET | BPF_K, SECCOMP_RET_ALLOW
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2


class Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install(code: bytes) -> int:
    """The nanoseconds that a child of this process takes to install a filter; 0: refused."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        prctl = ctypes.CDLL(None).prctl
        program = ctypes.byref(Program(len(code) // 8, code))
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        start = time.perf_counter_ns()
        failed = prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program)
        took = time.perf_counter_ns() - start
        os.write(writing, str(0 if failed else took).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    took = int(os.read(reading, 100))
    os.close(reading)
    return took


def main() -> None:
    programs = {
        "one that allows everything": ALLOW,
        "'builds'": program_of(Policy()),
        "'builds', nesting": program_of(Policy(nesting=True)),
    }
    for path in sys.argv[1:]:
        programs[path] = program_of(Policy(seccomp=Path(path)))
    for name, code in programs.items():
        best = min(install(code) for _ in range(TIMES))
        assert best, f"{name}: the kernel refuses it"
        print(f"{name:28} {len(code) // 8:4} instructions  {best / 1e6:.3f} ms")


if __name__ == "__main__":
    main()
