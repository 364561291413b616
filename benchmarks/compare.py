# SPDX-License-Identifier: Apache-2.0
"""Compares two builds of sandboxlib: the cost of a change for runs that do not use it.

    python benchmarks/compare.py BEFORE AFTER [--rounds N]

BEFORE and AFTER are interpreters, each of an environment with one of the two builds
(`git worktree add /tmp/before COMMIT`, a venv in it, `pip install -e .`). Each gets a worker
process; in each round both measure every row, in random order. The output is the medians in
microseconds, the median of the ratios within the rounds, and its 95 % bootstrap interval.

A row asks both builds for the same sandbox: if a build has a system call filter and a minimal /dev
by default, the row switches them off, unless its name ends with "as it comes".
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BLOCK = 30  # runs of a row in a round; the first three are dropped
ROWS = ("slot", "slot, init=False", "fresh", "fresh, init=False", "chroot", "slot, as it comes",
        "fresh, as it comes", "slot, two threads")  # fmt: skip


# ---- in a worker -----------------------------------------------------------------------------


def sandbox(root: str, *, plain: bool = True, **options: Any) -> Any:
    """A Sandbox with isolated network and mounts, by the keyword arguments that this build has."""
    import sandboxlib

    if plain and hasattr(sandboxlib, "Policy"):
        options.setdefault("policy", sandboxlib.Policy(seccomp="none"))
        if "devices" in sandboxlib.Sandbox._fields:
            options.setdefault("devices", "root")
    options = {"network": "isolated", "filesystem_writable_paths": "all", **options}
    options.setdefault("extra_mounts", [sandboxlib.Mount.tmpfs("/tmp")])
    return sandboxlib.Sandbox(root, **options)


def chroot(root: str) -> Any:
    import sandboxlib

    options: dict[str, Any] = dict.fromkeys(("network", "mounts", "processes", "ipc"), "undefined")
    if hasattr(sandboxlib, "Policy"):
        policy = sandboxlib.Policy(capabilities="all", no_new_privs=False, seccomp="none")
        return sandbox(root, **options, policy=policy, extra_mounts=())
    return sandbox(root, **options, capabilities="all", no_new_privs=False, extra_mounts=())


def rows(root: str) -> dict[str, Callable[[], float]]:
    """The functions that measure each row: they return the microseconds of one run."""
    with_slots = sandbox(root)
    direct, as_it_comes = sandbox(root, init=False), sandbox(root, plain=False)
    bare = chroot(root)

    def run(box: Any, fresh: bool) -> Callable[[], float]:
        def once() -> float:
            start = time.perf_counter_ns()
            result = box.run(["/say"], cwd="/", fresh=fresh)
            end = time.perf_counter_ns()
            assert result.out == b"ok\n", result
            return (end - start) / 1000

        return lambda: statistics.median([once() for _ in range(BLOCK)][3:])

    return {
        "slot": run(with_slots, False),
        "slot, init=False": run(direct, False),
        "fresh": run(with_slots, True),
        "fresh, init=False": run(direct, True),
        "chroot": run(bare, False),
        "slot, as it comes": run(as_it_comes, False),
        "fresh, as it comes": run(as_it_comes, True),
        "slot, two threads": lambda: _two_threads(with_slots),
    }


def _two_threads(box: Any) -> float:
    def work() -> None:
        for _ in range(2 * BLOCK):
            box.run(["/say"], cwd="/")

    threads = [threading.Thread(target=work) for _ in range(2)]
    start = time.perf_counter_ns()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter_ns() - start) / 1000 / (4 * BLOCK)


def worker(root: str) -> None:
    measures = rows(root)
    for line in sys.stdin:
        print(round(measures[line.strip()](), 2), flush=True)


# ---- in the main process ---------------------------------------------------------------------


class Side:
    """The worker process of one of the two builds."""

    def __init__(self, python: str, root: Path) -> None:
        argv = [python, __file__, "--worker", str(root)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, cwd="/")

    def measure(self, row: str) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{row}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def interval(ratios: list[float]) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median, by 2,000 resamples."""
    medians = sorted(statistics.median(random.choices(ratios, k=len(ratios))) for _ in range(2000))
    return medians[50], medians[1949]


def compare(before: Side, after: Side, rounds: int) -> dict[str, list[tuple[float, float]]]:
    results: dict[str, list[tuple[float, float]]] = {row: [] for row in ROWS}
    for number in range(rounds + 1):
        for row in random.sample(ROWS, len(ROWS)):
            sides = random.sample([before, after], 2)
            values = {id(side): side.measure(row) for side in sides}
            if number:  # the first round warms both up
                results[row].append((values[id(before)], values[id(after)]))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true", help="print every value of every round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sandboxlib-compare-") as name:
        os.chmod(name, 0o755)
        root = Path(name) / "root"
        for directory in ("proc", "tmp", "dev"):
            (root / directory).mkdir(parents=True)
        flags = "-Os -static -nostdlib -ffreestanding -fno-stack-protector -Wl,--build-id=none"
        argv = ["cc", *flags.split(), "-o", str(root / "say"), str(HERE / "say.c")]
        subprocess.run(argv, check=True)
        before, after = Side(options.before, root), Side(options.after, root)
        try:
            results = compare(before, after, options.rounds)
        finally:
            before.close()
            after.close()
    if options.json:
        print(json.dumps(results))
    print(f"{'row':22} {'before':>8} {'after':>8} {'ratio':>6}  95 % interval")
    for row, pairs in results.items():
        ratios = [b / a for a, b in pairs]
        low, high = interval(ratios)
        medians = [statistics.median(side) for side in zip(*pairs, strict=True)]
        print(
            f"{row:22} {medians[0]:8.0f} {medians[1]:8.0f} "
            f"{statistics.median(ratios):6.3f}  {low:.3f} to {high:.3f}"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2])
    else:
        main()
