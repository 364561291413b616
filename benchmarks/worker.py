# SPDX-License-Identifier: Apache-2.0
"""A process that measures on request, with a given size and a given number of mounts.

It reads one JSON object a line, {"round": true} or {"column", "row", "threads", "seconds"}, and
answers with one. `Worker` is the other end.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import rows as all_rows

ENOUGH_NS = 60_000_000  # a row of a round is repeated for so long, 3 to 10 times


class Worker:
    """Starts a worker process, and asks it to measure.

    rows: the names of the rows, by column. parent: its size in MB. mounts: the entries of its mount
    table; 0: it has the caller's.
    """

    def __init__(
        self, directory: Path, rows: dict[str, list[str]], parent: int = 50, mounts: int = 0
    ) -> None:
        spec = {"directory": str(directory), "rows": rows, "parent": parent, "mounts": mounts}
        spec["outside"] = os.readlink("/proc/self/ns/mnt")
        argv = [sys.executable, __file__, json.dumps(spec)]
        if mounts:
            argv = ["unshare", "-m", "--propagation", "private", *argv]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True)
        first = self._answer()
        self.recipes: dict[str, dict[str, str]] = first["recipes"]
        self.missing: dict[str, dict[str, str]] = first["missing"]

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a worker died: {self._process.wait()}")
        return json.loads(line)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()


# ---- in the worker ---------------------------------------------------------------------------


def fill_mount_table(directory: Path, count: int, outside: str) -> None:
    """Fill the mount namespace that unshare(1) made for this process, up to `count` mounts."""
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: Path, target: Path, kind: bytes | None, flags: int) -> None:
        args = os.fsencode(source), os.fsencode(target), kind, flags, None
        if libc.mount(*args) != 0:
            raise OSError(ctypes.get_errno(), f"mount on {target}")

    if os.readlink("/proc/self/ns/mnt") == outside:
        raise RuntimeError("this is the caller's own mount namespace")
    host = directory / "host"
    host.mkdir(exist_ok=True)
    mount(Path("none"), host, b"tmpfs", 0)
    (host / "source").mkdir()
    existing = len(Path("/proc/self/mountinfo").read_text().splitlines())
    for number in range(count - existing):
        (host / str(number)).mkdir()
        mount(host / "source", host / str(number), None, 4096)  # MS_BIND


def block(row: all_rows.Row) -> float:
    """The median microseconds of a few runs, without the first two."""
    assert row.once is not None
    samples: list[int] = []
    time.sleep(0.01)  # lets the kernel remove the network namespaces of the row before
    end = time.perf_counter_ns() + ENOUGH_NS
    while len(samples) < 3 or (len(samples) < 10 and time.perf_counter_ns() < end):
        samples.append(row.once())
    return round(statistics.median(samples[2:]) / 1000, 1)


def one_round(columns: dict[str, dict[str, all_rows.Row]]) -> dict[str, dict[str, float]]:
    order = [(column, name) for column, rows in columns.items() for name in rows]
    random.shuffle(order)
    figures = {cell: block(columns[cell[0]][cell[1]]) for cell in order}
    return {c: {name: figures[c, name] for name in rows} for c, rows in columns.items()}


def main() -> None:
    spec = json.loads(sys.argv[1])
    directory, names = Path(spec["directory"]), spec["rows"]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ballast = bytearray(os.urandom(1 << 20)) * spec["parent"]
    if spec["mounts"]:
        fill_mount_table(directory, spec["mounts"], spec["outside"])
    rows = all_rows.rows(directory, spec["parent"], names)
    good = {c: {n: row for n, row in r.items() if row.once} for c, r in rows.items()}
    recipes = {c: {n: row.recipe for n, row in r.items()} for c, r in good.items()}
    missing = {c: {n: r[n].reason for n in r if n not in good[c]} for c, r in rows.items()}
    one_round(good)
    print(json.dumps({"recipes": recipes, "missing": missing}), file=answers, flush=True)
    loops = all_rows.Loops(directory)
    makers = {c: all_rows.Maker(directory, spec["parent"], c, loops) for c in names}
    for line in sys.stdin:
        ask = json.loads(line)
        answer: object
        if "round" in ask:
            answer = one_round(good)
        else:
            column, name = ask["column"], ask["row"]
            threads, seconds = ask["threads"], ask["seconds"]
            answer = all_rows.per_second(makers[column], good[column][name], name, threads, seconds)
        print(json.dumps(answer), file=answers, flush=True)
    del ballast


if __name__ == "__main__":
    main()
