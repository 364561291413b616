# SPDX-License-Identifier: Apache-2.0
"""The compiled module: csrc/sandbox.h is the cdef, csrc/*.c the code.

The reaper (csrc/init.c) is a program of its own: it is compiled and linked first, without libc,
into sandboxlib/_init. csrc/spawn.c takes it in as bytes; the file itself is shipped for machines
that forbid to run programs from memory (sysctl vm.memfd_noexec=2).

SBX_CFLAGS (words) is added to the flags of the extension, not of the reaper: for sanitizers.
"""

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
CSRC = HERE / "csrc"
INIT = HERE / "sandboxlib" / "_init"
INIT_SOURCES = [CSRC / "init.c", CSRC / "child.c", CSRC / "dev.c"]
INIT_FLAGS = [
    *("-std=gnu11", "-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-pie", "-no-pie"),
    *("-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fno-ident", "-DSBX_INSIDE"),
    *("-Wl,--build-id=none", "-Wl,-z,noseparate-code", "-Wl,-z,norelro", "-Wl,-s"),
]


def build_init() -> None:
    """Compiles the reaper with $CC, or the compiler that the interpreter was built with."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    subprocess.run([compiler, *INIT_FLAGS, "-o", str(INIT), *map(str, INIT_SOURCES)], check=True)


def make_ffi() -> FFI:
    """What setup.py hands to cffi."""
    build_init()
    more = shlex.split(os.environ.get("SBX_CFLAGS", ""))
    ffi = FFI()
    ffi.cdef((CSRC / "sandbox.h").read_text())
    ffi.set_source(
        "sandboxlib._sandbox",
        '#include <stdint.h>\n#include "sandbox.h"',
        sources=[f"csrc/{name}.c" for name in ("spawn", "child", "dev", "pump")],
        include_dirs=["csrc"],
        depends=["build_ffi.py", str(INIT), *map(str, CSRC.glob("*"))],
        define_macros=[("SBX_INIT", f'"{INIT}"')],
        extra_compile_args=["-std=gnu11", *more],
        extra_link_args=["-Wl,-z,now", *more],
    )
    return ffi
