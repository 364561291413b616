# SPDX-License-Identifier: Apache-2.0
"""The shape of the project is as ARCHITECTURE.md says."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from struct import unpack_from

import pytest
from lib.machine import require

import sandboxlib
from sandboxlib._core import native, workspace

TOP = Path(__file__).resolve().parents[2]
PACKAGE = Path(sandboxlib.__file__).parent
CSRC = TOP / "csrc"
#: The reaper of a run, that of a session, that of a run whose CPU time is watched, and that of a
#: slot whose runs have a root of layers.
PROGRAMS = [
    *(PACKAGE / "_init", PACKAGE / "_init_session"),
    *(PACKAGE / "_init_cpu_time", PACKAGE / "_init_layers"),
]

LICENSED = [
    *(
        "sandboxlib/**/*.py",
        "sandboxlib/*.pyi",
        "csrc/**/*.[ch]",
        "tests/**/*.[pc]*",
        "benchmarks/*.[pc]*",
    ),
    *("examples/*.py", "*.py", "*.md", "*.toml", "*.in", "docs/*.md", ".ci/*", ".clang-format"),
]
# Steps without a line in the table: the caller's own, one that MOUNT tells apart, the reaper's.
NOT_IN_THE_TABLE = {"NONE", "PIPE", "LIFELINE", "CLONE", "TARGET", "FORK", "KILL"}
PURE_LIBC = {"strlen", "strcmp", "memcpy", "memset", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"}


def test_only_the_room_of_the_core_says_ffi() -> None:
    for path in PACKAGE.rglob("*.py"):
        words = set()
        for node in ast.walk(ast.parse(path.read_text())):
            for field in ("id", "attr", "name", "module"):
                words |= set(str(getattr(node, field, None)).split("."))
        assert not words & {"ffi", "cffi", "_sandbox"} or path.parent.name == "_core", path


def test_the_exported_names_are_there() -> None:
    assert len(set(sandboxlib.__all__)) == len(sandboxlib.__all__)
    for name in sandboxlib.__all__:
        assert getattr(sandboxlib, name) is not None


def test_every_file_names_its_licence() -> None:
    require((TOP / ".git").exists() or (TOP / "csrc").exists(), "this is not the source tree")
    paths = [path for pattern in LICENSED for path in TOP.glob(pattern)]
    assert len(paths) > 30
    for path in paths:
        assert "SPDX-License-Identifier: Apache-2.0" in path.read_text()[:200], path


# ---- the core --------------------------------------------------------------------------------


def undefined(tmp_path: Path, flags: list[str], sources: list[Path]) -> set[str]:
    """The names that these files take from elsewhere, once they are linked into one."""
    objects = [tmp_path / f"{number}.o" for number in range(len(sources))]
    for source, made in zip(sources, objects, strict=True):
        subprocess.run(["cc", "-std=gnu11", *flags, "-c", source, "-o", made], check=True)
    subprocess.run(["ld", "-r", "-o", tmp_path / "all.o", *objects], check=True)
    nm = ["nm", "-u", tmp_path / "all.o"]
    listed = subprocess.run(nm, capture_output=True, text=True, check=True).stdout
    return {line.split()[-1] for line in listed.splitlines()}


@pytest.mark.parametrize("level", ["-O0", "-O2", "-O3"])
def test_the_child_and_the_reaper_call_nothing_that_could_lock(tmp_path: Path, level: str) -> None:
    require(shutil.which("cc") and shutil.which("nm"), "there is no compiler, or no nm")
    child, reaper = (sorted((CSRC / name).glob("*.c")) for name in ("child", "reaper"))
    assert undefined(tmp_path, ["-fPIC", level], child) <= PURE_LIBC
    flags = [level, "-fno-pie", "-ffreestanding", "-fno-stack-protector", "-DSBX_IN_REAPER"]
    for more in ([], ["-DSBX_IN_SESSION"], ["-DSBX_WATCHES_CPU"]):
        sources = [CSRC / "freestanding.c", *child, *reaper]
        assert not undefined(tmp_path, [*flags, *more], sources)


def test_the_extension_binds_everything_when_it_is_loaded() -> None:
    require(shutil.which("readelf"), "there is no readelf")
    (extension,) = PACKAGE.glob("_sandbox*.so")
    listed = subprocess.run(
        ["readelf", "-d", extension], capture_output=True, text=True, check=True
    ).stdout
    assert re.search(r"\(FLAGS(_1)?\).*NOW", listed)


def test_the_order_of_the_steps_is_the_order_of_the_table() -> None:
    table = (CSRC / "child/steps.c").read_text().partition("} steps[] = {")[2]
    names = re.findall(r"[{(]SBX_STEP_(\w+),", table)
    order = [native.STEPS[number].upper() for number in sorted(native.STEPS)]
    assert names == [name for name in order if name not in NOT_IN_THE_TABLE]


def test_the_contract_is_declarations_only() -> None:
    for header in ("sandbox.h", "trace.h", "calls.h"):
        words = re.sub(r"/\*.*?\*/", "", (CSRC / header).read_text(), flags=re.DOTALL)
        assert "#" not in words
        assert "__attribute__" not in words


def test_every_field_of_the_plan_is_set_and_used() -> None:
    contract = (CSRC / "sandbox.h").read_text()
    rooms = (*PACKAGE.glob("_runs/*.py"), *PACKAGE.glob("_core/*.py"))
    python = "".join(path.read_text() for path in rooms)
    core = "".join(path.read_text() for path in CSRC.glob("*/*.c"))
    for struct in ("sbx_mount", "sbx_place", "sbx_job"):
        body = re.search(rf"struct {struct} {{(.*?)\n}};", contract, re.DOTALL)
        assert body
        plain = re.sub(r"/\*.*?\*/", "", body.group(1), flags=re.DOTALL)
        fields = re.findall(r"(\w+)(?:\[\d+\])?;", plain)
        assert fields
        for name in fields:
            assert re.search(rf"\b{name}\b", python), f"{struct}.{name} is never set"
            assert re.search(rf"(->|\.){name}\b", core), f"{struct}.{name} is never read"


def test_files_and_functions_of_the_core_fit_a_screen() -> None:
    for path in CSRC.glob("**/*.[ch]"):
        lines = path.read_text().splitlines()
        assert len(lines) <= 400, path
        start = 0
        for number, line in enumerate(lines):
            if line[:1].isalpha():  # a declaration, or where a function begins
                start = number
            assert line != "}" or number - start < 45, f"{path}:{start + 1}"


def test_the_reaper_s_program_is_small() -> None:
    most = 16384 if os.uname().machine == "x86_64" else 24576  # aarch64 has longer instructions
    for program in PROGRAMS:  # the last one stacks layers: no plain run starts it
        assert program.stat().st_size <= most + 4096 * (program == PROGRAMS[-1])


@pytest.mark.parametrize("file", PROGRAMS, ids=lambda file: file.name)
def test_the_reaper_is_static(file: Path) -> None:
    program = file.read_bytes()
    (offset,) = unpack_from("=Q", program, 32)  # elf(5): e_phoff, e_phentsize, e_phnum
    size, count = unpack_from("=HH", program, 54)
    types = {unpack_from("=I", program, offset + i * size)[0] for i in range(count)}
    assert program[:4] == b"\x7fELF"
    assert 1 in types  # PT_LOAD
    assert not types & {2, 3}  # PT_DYNAMIC, PT_INTERP


def test_the_stack_of_the_child_is_large_enough(shared_rootfs: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("the native executor takes root")
    from sandboxlib import Mount, Sandbox

    work = workspace.take_workspace()
    stack = native.ffi.buffer(work.stack, native.lib.SBX_STACK_SIZE)
    stack[:] = b"\xa5" * len(stack)
    workspace.give_back(work)
    deep = "/tmp/" + "/".join(["d" * 100] * 38)
    mounts = [Mount.tmpfs("/tmp"), Mount.bind("/etc", deep), Mount.dev()]
    words = {"network": "isolated", "hostname": "x", "filesystem_writable_paths": "none"}
    for _ in range(3):
        assert (
            Sandbox(shared_rootfs, extra_mounts=mounts, **words).run(["true"], fresh=True).exit == 0
        )
    untouched = len(stack[:]) - len(stack[:].lstrip(b"\xa5"))
    assert 0 < len(stack) - untouched < len(stack) / 2


GUARD = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
/* Ends the process where a child that shares the caller's memory allocates. */
static long host;
__attribute__((constructor)) static void begin(void) { host = syscall(SYS_getpid); }
static void check(void) { if (host && syscall(SYS_getpid) != host) syscall(SYS_exit_group, 86); }
extern void *__libc_malloc(size_t), __libc_free(void *), *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
void *malloc(size_t n) { check(); return __libc_malloc(n); }
void *calloc(size_t n, size_t m) { check(); return __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { check(); return __libc_realloc(p, n); }
void free(void *p) { check(); __libc_free(p); }
"""


def test_the_child_allocates_nothing(tmp_path: Path, shared_rootfs: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("the native executor takes root")
    if os.environ.get("SANDBOXLIB_SANITIZED"):
        pytest.skip("the sanitizer has an allocator of its own")
    require(shutil.which("cc"), "there is no C compiler")
    (tmp_path / "guard.c").write_text(GUARD)
    guard = str(tmp_path / "guard.so")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", guard, tmp_path / "guard.c"], check=True)
    script = """
import os, sys, ctypes
from sandboxlib import Mount, Sandbox
box = Sandbox(sys.argv[1], network="isolated", extra_mounts=[Mount.tmpfs("/tmp"), Mount.dev()])
for _ in range(200):
    assert box.run(["true"]).exit == 0
    try:
        box.run(["nonesuch"], cwd="/none")
    except FileNotFoundError:
        pass
pid = ctypes.PyDLL(None).fork()
if pid == 0:
    bytes(100000)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    argv = [sys.executable, "-c", script, str(shared_rootfs)]
    env = {**os.environ, "LD_PRELOAD": guard}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "86\n"  # the guard is awake
