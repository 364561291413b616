# SPDX-License-Identifier: Apache-2.0
"""Where the caller's own process may not trace, trace() says so, and why."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from lib.machine import python

pytest_plugins = ["lib.ways"]

#: Installs a filter for this process, which gives one call an answer, and prints what trace() says
#: then, and whether runs still work.
HOST = r"""
import ctypes, os, struct, sys
import sandboxlib
from sandboxlib._seccomp.syscalls import numbers_of
call, answer, flags, root = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
numbers = numbers_of(os.uname().machine)
code = b"".join(struct.pack("=HBBI", *each) for each in (
    (0x20, 0, 0, 0), (0x15, 0, 1, numbers[call]), (0x06, 0, 0, answer), (0x06, 0, 0, 0x7FFF0000)))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)
box = sandboxlib.Sandbox(root)
box.run(["/bin/true"]).check()
box.close()
program = Program(len(code) // 8, code)
if libc.syscall(numbers["seccomp"], 1, flags, ctypes.byref(program)) < 0:
    sys.exit(f"seccomp: errno {ctypes.get_errno()}")
try:
    print(box.trace(["/bin/cat", "/etc/nowhere"]).missing)
except sandboxlib.UnsupportedError as error:
    print("unsupported:", error)
print(box.run(["/bin/echo", "alive"], fresh=True).out)
"""
ALLOW, EPERM, NEW_LISTENER = 0x7FFF0000, 0x50001, 8


@pytest.mark.parametrize(
    ("call", "answer", "flags", "says"),
    [
        ("getpid", ALLOW, NEW_LISTENER, "watched in the same way already"),
        ("process_vm_readv", EPERM, 0, "EPERM, process_vm_readv"),
        ("getppid", ALLOW, 0, None),
    ],
)
def test_a_process_with_a_filter_of_its_own_is_told(
    executor: str, shared_rootfs: Path, call: str, answer: int, flags: int, says: str | None
) -> None:
    words = [*python(), "-c", HOST, call, str(answer), str(flags), str(shared_rootfs)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    lines = done.stdout.splitlines()
    assert lines[-1:] == ["b'alive\\n'"], done.stderr
    if says is None:
        assert lines[0] == "('/etc/nowhere',)"
    else:
        assert lines[0].startswith("unsupported: trace: ")
        assert says in lines[0]
