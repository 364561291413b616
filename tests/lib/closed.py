# SPDX-License-Identifier: Apache-2.0
"""A host behind a filter of system calls that closes some of them, as a container's does.

python -m lib.closed keyctl,mount -c CODE
"""

from __future__ import annotations

import ctypes
import struct
import sys


def close(calls: list[str]) -> None:
    """Answer EPERM to these system calls from now on, in this process and its children."""
    from sandboxlib import Policy
    from sandboxlib._spec.policy import program_of

    entry = {"names": calls, "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    program = program_of(Policy(seccomp={"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [entry]}))
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(program, len(program))
    fprog = ctypes.create_string_buffer(
        struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    )
    zero = ctypes.c_ulong(0)
    assert libc.prctl(38, ctypes.c_ulong(1), zero, zero, zero) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, ctypes.c_ulong(2), fprog, zero, zero) == 0  # PR_SET_SECCOMP


if __name__ == "__main__":
    import sandboxlib  # noqa: F401  (before the filter, as its start needs some calls)

    close(sys.argv[1].split(","))
    exec(sys.argv[3])
