# SPDX-License-Identifier: Apache-2.0
"""Build the compiled module: csrc/sandbox.h, trace.h and calls.h are the cdef, csrc/caller/ and
csrc/child/ are the code.

The reaper is a program of its own, made from csrc/reaper/ and csrc/child/. It is compiled and
linked first, without libc, into sandboxlib/_init. The same files make that of a session,
sandboxlib/_init_session, that of a run whose CPU time is watched, sandboxlib/_init_cpu_time, and
that of a slot whose runs have a root of layers, sandboxlib/_init_layers.
csrc/caller/host.c includes the bytes of all. The wheel has the files too, for machines that forbid
running programs from memory (sysctl vm.memfd_noexec=2).

SBX_CFLAGS adds flags to the extension, for sanitizers; the reaper, which has no libc, does not get
them.
"""

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
CSRC = HERE / "csrc"
INIT = HERE / "sandboxlib" / "_init"
INIT_SESSION = HERE / "sandboxlib" / "_init_session"
INIT_CPU_TIME = HERE / "sandboxlib" / "_init_cpu_time"
INIT_LAYERS = HERE / "sandboxlib" / "_init_layers"
CONTRACT = ("sandbox.h", "trace.h", "calls.h")
CALLER, CHILD, REAPER = (
    sorted((CSRC / folder).glob("*.c")) for folder in ("caller", "child", "reaper")
)
INIT_FLAGS = [
    *("-std=gnu11", "-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-pie", "-no-pie"),
    *("-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fno-ident", "-DSBX_IN_REAPER"),
    # The program is four pages long. These flags keep it there: they drop functions that nothing
    # calls, give no segment a page of its own, and keep values where they are used, as each that
    # outlives a loop takes a register to be saved.
    *("-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections", "-Wl,--build-id=none"),
    *("-Wl,-z,noseparate-code", "-Wl,-z,norelro", "-Wl,-s", "-fno-move-loop-invariants"),
]


def build_init() -> None:
    """Compile the reapers with $CC, or with the compiler that the interpreter was built with."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    sources = [*map(str, (CSRC / "freestanding.c", *REAPER, *CHILD))]
    command = [compiler, *INIT_FLAGS, *sources]
    subprocess.run([*command, "-o", str(INIT)], check=True)
    subprocess.run([*command, "-DSBX_IN_SESSION", "-o", str(INIT_SESSION)], check=True)
    subprocess.run([*command, "-DSBX_WATCHES_CPU", "-o", str(INIT_CPU_TIME)], check=True)
    subprocess.run([*command, "-DSBX_STACKS", "-o", str(INIT_LAYERS)], check=True)
    for program in (INIT, INIT_SESSION, INIT_CPU_TIME, INIT_LAYERS):
        drop_section_headers(program)


def drop_section_headers(program: Path) -> None:
    """Cut the section headers off an ELF file. The kernel does not read them (elf(5))."""
    data = bytearray(program.read_bytes())
    start = int.from_bytes(data[40:48], sys.byteorder)  # e_shoff
    data[40:48] = bytes(8)
    data[60:64] = bytes(4)  # e_shnum, e_shstrndx
    program.write_bytes(data[:start])


def make_ffi() -> FFI:
    """Build the reapers, and return the FFI that setup.py hands to cffi."""
    build_init()
    extra_flags = shlex.split(os.environ.get("SBX_CFLAGS", ""))
    ffi = FFI()
    ffi.cdef("".join((CSRC / name).read_text() for name in CONTRACT))
    ffi.set_source(
        "sandboxlib._sandbox",
        "#include <stdint.h>\n" + "".join(f'#include "{name}"\n' for name in CONTRACT),
        sources=[str(path.relative_to(HERE)) for path in (*CALLER, *CHILD)],
        include_dirs=["csrc"],
        depends=[
            *("build_ffi.py", str(INIT), str(INIT_SESSION), str(INIT_CPU_TIME), str(INIT_LAYERS)),
            *map(str, CSRC.glob("**/*.[ch]")),
        ],
        define_macros=[
            ("SBX_INIT", f'"{INIT}"'),
            ("SBX_INIT_SESSION", f'"{INIT_SESSION}"'),
            ("SBX_INIT_CPU_TIME", f'"{INIT_CPU_TIME}"'),
            ("SBX_INIT_LAYERS", f'"{INIT_LAYERS}"'),
        ],
        extra_compile_args=["-std=gnu11", "-fvisibility=hidden", *extra_flags],
        extra_link_args=["-Wl,-z,now", *extra_flags],
    )
    return ffi
