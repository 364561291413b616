# SPDX-License-Identifier: Apache-2.0
"""Where the time of a run goes: in Python before and after the core, or in the core.

And the same Python when it does nothing else: what it takes longer in a run is the price of caches
and predictors that the kernel's work, and the command, have left cold.
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


def show_phases(place: Path) -> int:
    root = place / "root"
    chroot, full = (Sandbox(root, **words) for words in (rows.CHROOT, rows.FULL))
    calls = {
        "chroot, Sandbox.run": lambda: chroot.run(["/say"]),
        "full, Sandbox.run": lambda: full.run(["/say"]),
        "full, run_sandbox": lambda: run_sandbox(str(root), ["/say"], **rows.FULL),
    }
    print(f"microseconds, medians of {COUNT:,} runs; Python before and after the core")
    print(f"{'':22}{'whole':>8}{'before':>8}{'core':>8}{'after':>8}{'Python alone':>14}")
    for name, call in calls.items():
        for _ in range(20):  # what is kept is there; its Python is specialised
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
    """Nanoseconds: all of it, and before, in and after the call that starts and moves it."""
    marks: list[int] = []

    def timed(function: Callable[..., int]) -> Callable[..., int]:
        def wrapper(*words: Any) -> int:
            marks.append(perf_counter_ns())
            result = function(*words)
            marks.append(perf_counter_ns())
            return result

        return wrapper

    start, end = times(call, {name: timed(CORE[name]) for name in STARTS})
    return end - start, marks[0] - start, marks[1] - marks[0], end - marks[1]


def alone_of(call: Callable[[], Any]) -> int:
    """Nanoseconds of a call whose core does nothing, and says that the run is over."""

    def spawn(place: Any, job: Any, run: Any, stack: Any) -> int:
        run.first, run.wait_status = CORE["SBX_PUMP_DONE"], 0
        return 0

    def spawn_in_slot(slot: Any, job: Any, run: Any) -> int:
        return spawn(None, job, run, None)

    nothing = {"sbx_spawn": spawn, "sbx_spawn_in_slot": spawn_in_slot, "sbx_end": lambda run: None}
    start, end = times(call, nothing)
    return end - start


def times(call: Callable[[], Any], changes: dict[str, Any]) -> tuple[int, int]:
    """When a call began and ended whose core has some other functions."""
    real, _process.lib = _process.lib, SimpleNamespace(**{**CORE, **changes})
    try:
        start = perf_counter_ns()
        call()
        return start, perf_counter_ns()
    finally:
        _process.lib = real
