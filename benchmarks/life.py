# SPDX-License-Identifier: Apache-2.0
"""Measures what limits, accounting, deadlines and streams add to a run of /say."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rows

from sandboxlib import Sandbox, SandboxError
from sandboxlib._spec.limits import Limits
from sandboxlib._spec.streams import Tee
from sandboxlib.result import Result

PLAIN = "Sandbox.run, nothing asked for"
# rest: seconds before each run, after which the first process that is moved to another cgroup waits
# for a grace period of RCU
COLUMNS: dict[str, dict[str, Any]] = {
    "full, in a slot": {},
    "full, fresh": {"fresh": True},
    "full, fresh, init=False": {"fresh": True, "init": False},
    "in a slot, after 50 ms": {"rest": 0.05},
    "fresh, after 50 ms": {"fresh": True, "rest": 0.05},
}
OF_RUN: dict[str, dict[str, Any]] = {
    "timeout=60": {"timeout": 60},
    "timeout=60, grace=1": {"timeout": 60, "grace": 1},
    "max_output=1000000": {"max_output": 1_000_000},
    "stdout, stderr to functions": {"stdout": lambda _: None, "stderr": lambda _: None},
}
WATCHED = "Limits(cpu_time=60.5), which the reaper of a fresh run watches"
LIMITS: dict[str, Any] = {
    "Limits of each process, 4 of them": {"cpu_time": 60, "core": 0, "open_files": 256, "nice": 5},
    WATCHED: {"cpu_time": 60.5},
    "Limits with a cgroup, memory and pids": {"memory": 1 << 28, "pids": 64},
    "Limits with a cgroup, memory, swap, pids, cpus": {
        **{"memory": 1 << 28, "swap": 0, "pids": 64, "cpus": 2}
    },
}
#: Limits of one Command, in a Sandbox without any: those of LIMITS, and others in each run
OF_COMMAND = "Limits of a Command, memory and pids"
CHANGING = "Limits of a Command, memory and pids, other ones in each run"
AGAIN = "the same again"  # its ratio shows the noise
USAGE = "and Result.usage is read"
TEE = "a Tee of stdout to a file"
START = "Sandbox.start, communicate(), result()"  # always fresh
IN_SESSION = "Session.run, in a session that stays open"


class Column:
    """The rows of one kind of run. missing: why this machine cannot run some rows."""

    def __init__(self, directory: Path, options: dict[str, Any]) -> None:
        of_box = {n: value for n, value in options.items() if n not in ("fresh", "rest")}
        self._fresh, self._rest = options.get("fresh", False), options.get("rest", 0.0)
        self._box = Sandbox(directory / "root", **rows.FULL, **of_box)
        self._log = (directory / "log").open("ab", buffering=0)
        self.missing: dict[str, str] = {}
        self.rows: dict[str, Callable[[], Result]] = {PLAIN: self._row(self._box)}
        self.rows[AGAIN] = self._row(self._box)
        self.rows[USAGE] = self._with_usage
        for name, of_run in OF_RUN.items():
            self.rows[name] = self._row(self._box, **of_run)
        self.rows[TEE] = self._with_tee
        if self._fresh and not self._rest:
            self.rows[START] = self._started
        if not options:
            session = self._box.session()
            self.rows[IN_SESSION] = lambda: session.run(["/say"])
        for name, limits in LIMITS.items():
            if name == WATCHED and not options.get("init", True):
                self.missing[name] = "there is no reaper"
                continue
            try:
                row = self._row(self._box.replace(limits=Limits(**limits)))
                row()
            except (SandboxError, ImportError, OSError) as error:
                self.missing[name] = str(error)
            else:
                self.rows[name] = row
        if not self.missing.keys() - {WATCHED}:
            self.rows[OF_COMMAND] = self._row(self._box, limits=Limits(memory=1 << 28, pids=64))
            self.rows[CHANGING] = self._changing
        if self._rest:
            kept = (PLAIN, AGAIN, *LIMITS, OF_COMMAND, CHANGING)
            self.rows = {name: row for name, row in self.rows.items() if name in kept}

    def _changing(self) -> Result:
        limits = Limits(memory=random.choice((1 << 27, 1 << 28)), pids=random.choice((64, 65)))
        return self._box.run(["/say"], fresh=self._fresh, limits=limits)

    def _row(self, box: Sandbox, **options: Any) -> Callable[[], Result]:
        return lambda: box.run(["/say"], fresh=self._fresh, **options)

    def _started(self) -> Result:
        with self._box.start(["/say"]) as process:
            process.communicate()
        return process.result()

    def _with_usage(self) -> Result:
        result = self._box.run(["/say"], fresh=self._fresh)
        if result.usage is None:
            raise RuntimeError("a run without a usage")
        return result

    def _with_tee(self) -> Result:
        os.ftruncate(self._log.fileno(), 0)
        return self._box.run(["/say"], fresh=self._fresh, stdout=Tee(self._log))

    def round(self, count: int) -> dict[str, float]:
        """The median microseconds of each row. The rows take turns in random order, run by run."""
        samples: dict[str, list[int]] = {name: [] for name in self.rows}
        for _ in range(count):
            for name in random.sample(list(self.rows), len(self.rows)):
                time.sleep(self._rest)
                start = time.perf_counter_ns()
                result = self.rows[name]()
                samples[name].append(time.perf_counter_ns() - start)
                if result.exit != 0:
                    raise RuntimeError(f"{name}: {result}")
        return {name: round(statistics.median(v) / 1000, 1) for name, v in samples.items()}
