# SPDX-License-Identifier: Apache-2.0
"""Measures how much of a run is Python, before and after the core, and how much is the core.

It also measures the same Python code with a core that does nothing. In a real run that code takes
longer, because the kernel and the command have left the CPU's caches and predictors cold.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from types import SimpleNamespace
from typing import Any

import rows

from sandboxlib import Sandbox, run_sandbox
from sandboxlib._core import native
from sandboxlib._runs import run as _process

COUNT = 2000
STARTS = ("sbx_spawn", "sbx_spawn_in_slot")
CORE = {name: getattr(native.lib, name) for name in dir(native.lib)}


def show_phases(directory: Path) -> int:
    root = directory / "root"
    chroot, full = (Sandbox(root, **options) for options in (rows.CHROOT, rows.FULL))
    calls = {
        "chroot, Sandbox.run": lambda: chroot.run(["/say"]),
        "full, Sandbox.run": lambda: full.run(["/say"]),
        "full, run_sandbox": lambda: run_sandbox(str(root), ["/say"], **rows.FULL),
    }
    print(f"microseconds, medians of {COUNT:,} runs; Python before and after the core")
    print(f"{'':22}{'whole':>8}{'before':>8}{'core':>8}{'after':>8}{'Python alone':>14}")
    for name, call in calls.items():
        for _ in range(20):  # makes the slot, and lets Python specialise its code
            call()
        phases = [phases_of(call) for _ in range(COUNT)]
        whole, before, core, after = (
            statistics.median(column) / 1e3 for column in zip(*phases, strict=True)
        )
        alone = statistics.median(alone_of(call) for _ in range(COUNT)) / 1e3
        print(f"{name:22}{whole:8.1f}{before:8.1f}{core:8.1f}{after:8.1f}{alone:14.1f}")
    full.close()
    return 0


def phases_of(call: Callable[[], Any]) -> tuple[int, int, int, int]:
    """The nanoseconds of a run: in all, and before, in and after the call of the core."""
    marks: list[int] = []

    def timed(function: Callable[..., int]) -> Callable[..., int]:
        def wrapper(*args: Any) -> int:
            marks.append(perf_counter_ns())
            result = function(*args)
            marks.append(perf_counter_ns())
            return result

        return wrapper

    start, end = times(call, {name: timed(CORE[name]) for name in STARTS})
    return end - start, marks[0] - start, marks[1] - marks[0], end - marks[1]


def alone_of(call: Callable[[], Any]) -> int:
    """The nanoseconds of a call whose core does nothing, and reports that the run is over."""

    def spawn(place: Any, job: Any, run: Any, stack: Any) -> int:
        run.first, run.wait_status = CORE["SBX_PUMP_DONE"], 0
        return 0

    def spawn_in_slot(slot: Any, job: Any, run: Any) -> int:
        return spawn(None, job, run, None)

    nothing = {"sbx_spawn": spawn, "sbx_spawn_in_slot": spawn_in_slot, "sbx_end": lambda run: None}
    start, end = times(call, nothing)
    return end - start


def times(call: Callable[[], Any], changes: dict[str, Any]) -> tuple[int, int]:
    """The start and the end of a call, with some functions of the core replaced."""
    real, _process.lib = _process.lib, SimpleNamespace(**{**CORE, **changes})
    try:
        start = perf_counter_ns()
        call()
        return start, perf_counter_ns()
    finally:
        _process.lib = real
