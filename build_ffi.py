# SPDX-License-Identifier: Apache-2.0
"""The compiled module: csrc/sandbox.h is the cdef, csrc/caller/ and csrc/child/ are the code.

The reaper is a program of its own, of csrc/reaper/ and csrc/child/: it is compiled and linked
first, without libc, into sandboxlib/_init. csrc/caller/host.c takes it in as bytes; the file itself
is shipped for machines that forbid to run programs from memory (sysctl vm.memfd_noexec=2).

The flags in SBX_CFLAGS are added to those of the extension, not of the reaper: for sanitizers.
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
CALLER, CHILD, REAPER = (
    sorted((CSRC / folder).glob("*.c")) for folder in ("caller", "child", "reaper")
)
INIT_FLAGS = [
    *("-std=gnu11", "-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-pie", "-no-pie"),
    *("-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fno-ident", "-DSBX_IN_REAPER"),
    # The program has four pages: no page more for a segment, and nothing that is not called.
    *("-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections", "-Wl,--build-id=none"),
    *("-Wl,-z,noseparate-code", "-Wl,-z,norelro", "-Wl,-s"),
]


def build_init() -> None:
    """Compiles the reaper with $CC, or the compiler that the interpreter was built with."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    sources = map(str, (CSRC / "freestanding.c", *REAPER, *CHILD))
    subprocess.run([compiler, *INIT_FLAGS, "-o", str(INIT), *sources], check=True)


def make_ffi() -> FFI:
    """What setup.py hands to cffi."""
    build_init()
    more = shlex.split(os.environ.get("SBX_CFLAGS", ""))
    ffi = FFI()
    ffi.cdef((CSRC / "sandbox.h").read_text())
    ffi.set_source(
        "sandboxlib._sandbox",
        '#include <stdint.h>\n#include "sandbox.h"',
        sources=[str(path.relative_to(HERE)) for path in (*CALLER, *CHILD)],
        include_dirs=["csrc"],
        depends=["build_ffi.py", str(INIT), *map(str, CSRC.glob("**/*.[ch]"))],
        define_macros=[("SBX_INIT", f'"{INIT}"')],
        extra_compile_args=["-std=gnu11", "-fvisibility=hidden", *more],
        extra_link_args=["-Wl,-z,now", *more],
    )
    return ffi
