# SPDX-License-Identifier: Apache-2.0
"""Two builds of sandboxlib side by side: what a change costs a run that asks for nothing new.

    python benchmarks/compare.py BEFORE AFTER [--rounds N]

BEFORE and AFTER are interpreters, each of an environment with one of the two builds
(`git worktree add /tmp/before COMMIT`, a venv in it, `pip install -e .`). Each gets a worker
process; in each round both measure every row, in random order. Printed: medians in microseconds,
the median of the ratios within the rounds, and its 95 % bootstrap interval.

Rows ask for the same sandbox of both builds: where a build has a system call filter and a minimal
/dev by default, they are switched off, except in the rows that end with "as it comes".
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


def sandbox(root: str, *, plain: bool = True, **words: Any) -> Any:
    """A Sandbox with network and mounts of its own, in the words of the build that is there."""
    import sandboxlib

    if plain and hasattr(sandboxlib, "Policy"):
        words.setdefault("policy", sandboxlib.Policy(seccomp="none"))
        if "devices" in sandboxlib.Sandbox._fields:
            words.setdefault("devices", "root")
    words = {"network": "isolated", "filesystem_writable_paths": "all", **words}
    words.setdefault("extra_mounts", [sandboxlib.Mount.tmpfs("/tmp")])
    return sandboxlib.Sandbox(root, **words)


def chroot(root: str) -> Any:
    import sandboxlib

    words: dict[str, Any] = dict.fromkeys(("network", "mounts", "processes", "ipc"), "undefined")
    if hasattr(sandboxlib, "Policy"):
        policy = sandboxlib.Policy(capabilities="all", no_new_privs=False, seccomp="none")
        return sandbox(root, **words, policy=policy, extra_mounts=())
    return sandbox(root, **words, capabilities="all", no_new_privs=False, extra_mounts=())


def rows(root: str) -> dict[str, Callable[[], float]]:
    """For each row the microseconds of one run; for threads those of a run when two run."""
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
    found = rows(root)
    for line in sys.stdin:
        print(round(found[line.strip()](), 2), flush=True)


# ---- outside ---------------------------------------------------------------------------------


class Side:
    """One of the two builds, in a process of its own."""

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
    """Of the median, by 2,000 resamples."""
    medians = sorted(statistics.median(random.choices(ratios, k=len(ratios))) for _ in range(2000))
    return medians[50], medians[1949]


def compare(before: Side, after: Side, rounds: int) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {row: [] for row in ROWS}
    for number in range(rounds + 1):
        for row in random.sample(ROWS, len(ROWS)):
            sides = random.sample([before, after], 2)
            values = {id(side): side.measure(row) for side in sides}
            if number:  # the first round warms both up
                found[row].append((values[id(before)], values[id(after)]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true", help="print every value of every round")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sandboxlib-compare-") as name:
        os.chmod(name, 0o755)
        root = Path(name) / "root"
        for directory in ("proc", "tmp", "dev"):
            (root / directory).mkdir(parents=True)
        flags = "-Os -static -nostdlib -ffreestanding -fno-stack-protector -Wl,--build-id=none"
        argv = ["cc", *flags.split(), "-o", str(root / "say"), str(HERE / "say.c")]
        subprocess.run(argv, check=True)
        before, after = Side(words.before, root), Side(words.after, root)
        try:
            found = compare(before, after, words.rounds)
        finally:
            before.close()
            after.close()
    if words.json:
        print(json.dumps(found))
    print(f"{'row':22} {'before':>8} {'after':>8} {'ratio':>6}  95 % interval")
    for row, pairs in found.items():
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
