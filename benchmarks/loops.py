# SPDX-License-Identifier: Apache-2.0
"""The C loops through cffi: the same process, the same memory, the same structs."""

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


def build(place: Path) -> None:
    """loop.so calls the library's own core, straight.so shares nothing with it."""
    init = Path(native.__file__).parents[1] / "_init"
    flags = ["-std=gnu11", "-O3", "-shared", "-fPIC", "-Wl,-z,now", f'-DSBX_INIT="{init}"']
    for name in ("loop", "straight"):
        folders = ("caller", "child") if name == "loop" else ()
        rest = [str(path) for f in folders for path in (HERE.parent / "csrc" / f).glob("*.c")]
        argv = ["cc", *flags, "-o", str(place / f"{name}.so"), str(HERE / f"{name}.c"), *rest]
        subprocess.run(argv, check=True)


class Loops:
    """What the two libraries offer, as runs of /say."""

    def __init__(self, place: Path) -> None:
        from cffi import FFI

        self.ffi = FFI()
        self.ffi.cdef(CONTRACT + DECLARED)
        self.lib = self.ffi.dlopen(str(place / "loop.so"))
        self.other = self.ffi.dlopen(str(place / "straight.so"))
        self._root = self.ffi.new("char[]", os.fsencode(place / "root"))
        self._program = self.ffi.new("char[]", b"/say")

    def floor(self) -> Once:
        return _checked(lambda: self.lib.loop_floor(self._root, self._program))

    def straight(self, full: bool) -> Once:
        return _checked(lambda: self.other.straight(self._root, self._program, full))

    def straight_for(self, full: bool, seconds: float) -> int:
        """How many runs one thread does in that time."""
        return int(self.other.straight_for(self._root, self._program, full, int(seconds * 1e9)))

    def keep(self, program: Path, size: int) -> int:
        """Nanoseconds to read all that a program writes."""
        path = self.ffi.new("char[]", os.fsencode(program))
        return _checked(lambda: self.lib.loop_keep(path, size))()

    def core(self, box: Sandbox) -> Once:
        """The library's core, everything fresh in each run."""
        plan, job, work = plan_for(box), job_of(Command("/say", "/"), box), workspace.Workspace()
        init = native.init_descriptor() if plan.reaper else -1
        kept = self._fill(work, plan, job, init)
        place = self._ours("struct sbx_place *", plan.place)
        words, run, stack, out, err = self._memory(work)
        size = workspace.SCRATCH_SIZE

        def once(kept: object = (kept, plan, job, work)) -> int:
            return int(self.lib.loop_core(place, words, run, stack, out, err, size))

        return _checked(once)

    def slot(self, box: Sandbox) -> Once | str:
        """The library's core in slots that are kept, taking turns; or why there are none."""
        plan, job, work = plan_for(box), job_of(Command("/say", "/"), box), workspace.Workspace()
        if not _slots.can_stay(plan):
            return "such a sandbox keeps no slot"
        slots = _slots.Slots(plan)
        taken = [slots.take() for _ in range(2)]
        kept = self._fill(work, plan, job, -1)
        turns = itertools.cycle([self._ours("struct sbx_slot *", s.struct) for s in taken])
        words, run, _, out, err = self._memory(work)

        def once(kept: object = (kept, plan, job, work, slots, taken)) -> int:
            return int(
                self.lib.loop_slot(next(turns), words, run, out, err, workspace.SCRATCH_SIZE)
            )

        return _checked(once)

    def _fill(self, work: Any, plan: Any, job: Job, init: int) -> object:
        stdio = (native.lib.SBX_NULL, native.lib.SBX_CAPTURE, native.lib.SBX_CAPTURE)
        words = job.blob, job.cwd_size, job.counts, stdio, init, plan.held(()), -1
        return workspace.fill_job(work, *words)

    def _memory(self, work: Any) -> tuple[Any, ...]:
        scratch = [self.ffi.new("char[]", workspace.SCRATCH_SIZE) for _ in range(2)]
        kinds = {"struct sbx_job *": work.job, "struct sbx_run *": work.run, "char *": work.stack}
        return *(self._ours(kind, value) for kind, value in kinds.items()), *scratch

    def _ours(self, kind: str, value: Any) -> Any:
        """A pointer of the library's cffi module as one of this."""
        return self.ffi.cast(kind, int(native.ffi.cast("uintptr_t", value)))


def _checked(call: Callable[[], Any]) -> Once:
    def once() -> int:
        spent = int(call())
        if spent <= 0:
            raise RuntimeError(f"a run of a C loop failed: {spent}")
        return spent

    return once
