# SPDX-License-Identifier: Apache-2.0
"""Calls the C loops through cffi, in the same process and with the same memory as the library."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sandboxlib import Command, Sandbox
from sandboxlib._core import native, workspace
from sandboxlib._runs import slots as _slots
from sandboxlib._runs.job import Job, job_of
from sandboxlib._runs.plan import plan_for

HERE = Path(__file__).resolve().parent
CONTRACT = (HERE.parent / "csrc" / "sandbox.h").read_text()
DECLARED = """
int64_t loop_core(const struct sbx_place *, const struct sbx_job *, struct sbx_run *, char *,
                  char *, char *, size_t);
int64_t loop_floor(const char *, const char *);
int64_t loop_keep(const char *, size_t);
int64_t straight(const char *, const char *, int);
int64_t straight_for(const char *, const char *, int, int64_t);
int64_t loop_slot(struct sbx_slot *, const struct sbx_job *, struct sbx_run *, char *, char *,
                  size_t);
"""
Once = Callable[[], int]  # one run; nanoseconds


def build(directory: Path) -> None:
    """Compile loop.so, which calls the library's core, and straight.so, which shares no code."""
    init = Path(native.__file__).parents[1] / "_init"
    flags = ["-std=gnu11", "-O3", "-shared", "-fPIC", "-Wl,-z,now", f'-DSBX_INIT="{init}"']
    flags += [
        f'-DSBX_INIT_{name.upper()}="{init}_{name}"' for name in ("session", "cpu_time", "layers")
    ]
    for name in ("loop", "straight"):
        folders = ("caller", "child") if name == "loop" else ()
        sources = [str(path) for f in folders for path in (HERE.parent / "csrc" / f).glob("*.c")]
        argv = [
            "cc",
            *flags,
            "-o",
            str(directory / f"{name}.so"),
            str(HERE / f"{name}.c"),
            *sources,
        ]
        subprocess.run(argv, check=True)


class Loops:
    """The functions of the two C libraries, as runs of /say."""

    def __init__(self, directory: Path) -> None:
        from cffi import FFI

        self.ffi = FFI()
        self.ffi.cdef(CONTRACT + DECLARED)
        self.lib = self.ffi.dlopen(str(directory / "loop.so"))
        self.other = self.ffi.dlopen(str(directory / "straight.so"))
        self._root = self.ffi.new("char[]", os.fsencode(directory / "root"))
        self._program = self.ffi.new("char[]", b"/say")

    def floor(self) -> Once:
        return _checked(lambda: self.lib.loop_floor(self._root, self._program))

    def straight(self, full: bool) -> Once:
        return _checked(lambda: self.other.straight(self._root, self._program, full))

    def straight_for(self, full: bool, seconds: float) -> int:
        """The number of runs that one thread makes in that time."""
        return int(self.other.straight_for(self._root, self._program, full, int(seconds * 1e9)))

    def keep(self, program: Path, size: int) -> int:
        """The nanoseconds that it takes to read all the output of a program."""
        path = self.ffi.new("char[]", os.fsencode(program))
        return _checked(lambda: self.lib.loop_keep(path, size))()

    def core(self, box: Sandbox) -> Once:
        """A run of the library's core in which everything is new."""
        plan, job, work = plan_for(box), job_of(Command("/say", "/"), box), workspace.Workspace()
        init = native.init_descriptor() if plan.reaper else -1
        memory = self._fill(work, plan, job, init)
        struct = self._ours("struct sbx_place *", plan.place)
        job_struct, run, stack, out, err = self._memory(work)
        size = workspace.SCRATCH_SIZE

        def once(memory: object = (memory, plan, job, work)) -> int:
            return int(self.lib.loop_core(struct, job_struct, run, stack, out, err, size))

        return _checked(once)

    def slot(self, box: Sandbox) -> Once | str:
        """A run of the library's core in two slots, which take turns; or why there are none."""
        plan, job, work = plan_for(box), job_of(Command("/say", "/"), box), workspace.Workspace()
        if not _slots.can_stay(plan):
            return "such a sandbox keeps no slot"
        slots = _slots.Slots(plan)
        taken = [slots.take() for _ in range(2)]
        memory = self._fill(work, plan, job, -1)
        turns = itertools.cycle([self._ours("struct sbx_slot *", s.struct) for s in taken])
        job_struct, run, _, out, err = self._memory(work)

        def once(memory: object = (memory, plan, job, work, slots, taken)) -> int:
            return int(
                self.lib.loop_slot(next(turns), job_struct, run, out, err, workspace.SCRATCH_SIZE)
            )

        return _checked(once)

    def _fill(self, work: Any, plan: Any, job: Job, init: int) -> object:
        stdio = (native.lib.SBX_NULL, native.lib.SBX_CAPTURE, native.lib.SBX_CAPTURE)
        args = job.blob, job.cwd_size, job.counts, stdio, init, plan.stub_flags(()), -1
        return workspace.fill_job(work, *args)

    def _memory(self, work: Any) -> tuple[Any, ...]:
        scratch = [self.ffi.new("char[]", workspace.SCRATCH_SIZE) for _ in range(2)]
        kinds = {"struct sbx_job *": work.job, "struct sbx_run *": work.run, "char *": work.stack}
        return *(self._ours(kind, value) for kind, value in kinds.items()), *scratch

    def _ours(self, kind: str, value: Any) -> Any:
        """Cast a pointer of the library's cffi module to one of this module."""
        return self.ffi.cast(kind, int(native.ffi.cast("uintptr_t", value)))


def _checked(call: Callable[[], Any]) -> Once:
    def once() -> int:
        spent = int(call())
        if spent <= 0:
            raise RuntimeError(f"a run of a C loop failed: {spent}")
        return spent

    return once
