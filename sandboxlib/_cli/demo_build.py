# SPDX-License-Identifier: Apache-2.0
"""A pass through the steps of the demo's build, and what is told of it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

from .._timeline.progress import Progress
from .._timeline.timeline import Timeline
from ..errors import SandboxError
from ..result import Result

MOST_SHOWN = 5  # failures
Outcome = Result | SandboxError


class Pass:
    """One time through all steps: how many, which failed, how long it took (wall, seconds), how
    many a cache answered (hits), and how many each worker ran.

    with Pass(...): shows the progress, takes the time, and prints the failures.
    """

    def __init__(self, title: str, total: int, timeline: Timeline | None = None) -> None:
        self.title = title
        self.steps, self.hits, self.wall = 0, 0, 0.0
        self.failures: list[str] = []
        self.workers: Counter[str] = Counter()
        self._timeline = timeline
        self._progress = Progress(title, total=total)

    def __enter__(self) -> Pass:
        self._began = monotonic()
        self._progress.begin()
        return self

    def __exit__(self, *error: object) -> None:
        self.wall = monotonic() - self._began
        self._progress.end()
        for failure in self.failures[:MOST_SHOWN]:
            print(failure, file=sys.stderr)

    def note(self, ended: int, outcome: Outcome) -> None:
        """Counts a step that ended; it is a `progress` of map()."""
        self._progress(ended, outcome)
        if self._timeline is not None:
            self._timeline.add(outcome)
        self.steps += 1
        if isinstance(outcome, SandboxError):
            self.failures.append(str(outcome))
            return
        self.hits += outcome.cached
        if outcome.worker and not outcome.cached:
            self.workers[outcome.worker] += 1
        if not outcome.ok:
            words = "a step" if outcome.command is None else " ".join(outcome.command.argv)
            missing = "".join(f"\nit made no {path}" for path in outcome._missing)
            text = as_text(outcome.err)
            self.failures.append(f"{words}: exit {outcome.exit}{missing}\n{text}".rstrip())


def build(
    title: str,
    stages: Sequence[Sequence[Sequence[str]]],
    run: Callable[[Sequence[str]], Result],
    jobs: int,
    timeline: Timeline | None = None,
) -> Pass:
    """Runs all steps, `jobs` at a time, and a stage when the one before it is done."""
    with Pass(title, sum(map(len, stages)), timeline) as done:
        for steps in stages:
            with ThreadPoolExecutor(jobs) as pool:
                for result in pool.map(run, steps):
                    done.note(done.steps + 1, result)
    return done


def as_text(data: bytes | None) -> str:
    """What a command said, as text."""
    return (data or b"").decode(errors="backslashreplace").strip()
