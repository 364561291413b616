# SPDX-License-Identifier: Apache-2.0
"""The tables, one function each: what is measured, under which conditions, how often."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import life
import output
import peers
import rows
import steps
from table import Table
from worker import Worker

from sandboxlib._core import native

US = "us"
LARGE = "full, 1,000 binds"


def isolation(table: Table, place: Path, quick: bool) -> None:
    """What each kind of isolation costs."""
    wanted = {
        "chroot": rows.OF_CHROOT,
        "full": rows.OF_FULL,
        "full, 100 binds": rows.OF_BINDS,
    }
    with Worker(place, wanted) as worker:
        table.words, table.missing = worker.words, worker.missing
        for _ in range(6 if quick else 50):
            table.add_round(worker.ask(round=True))


def binds(table: Table, place: Path, quick: bool) -> None:
    """1,000 read-only binds in one sandbox."""
    names = [rows.CORE, rows.SLOT, rows.PREPARED, rows.ONE_SHOT, rows.BWRAP, rows.NSJAIL]
    with Worker(place, {LARGE: names}) as worker:
        table.words, table.missing = worker.words, worker.missing
        for _ in range(1 if quick else 8):
            table.add_round(worker.ask(round=True))


def parents(table: Table, place: Path, quick: bool) -> None:
    """The size of the calling process."""
    wanted = {
        "chroot": [rows.STRAIGHT, rows.PREPARED, rows.BARE, rows.PREEXEC, rows.EARLIER],
        "full": [rows.STRAIGHT, rows.PREPARED, rows.ONE_SHOT, rows.BWRAP],
    }
    sizes = [50, 1024] if quick else [50, 1024, 4096]
    workers = [(f"{size:,} MB", size, 0) for size in sizes]
    conditions(table, place, wanted, workers, 4 if quick else 20)


def mounts(table: Table, place: Path, quick: bool) -> None:
    """The size of the host's mount table."""
    wanted = {"full": [rows.STRAIGHT, rows.SLOT, rows.PREPARED, rows.ONE_SHOT, rows.BWRAP]}
    workers = [(f"{count:,} mounts", 50, count) for count in (20, 500, 2000)]
    conditions(table, place, wanted, workers, 4 if quick else 40)


def conditions(
    table: Table,
    place: Path,
    wanted: dict[str, list[str]],
    workers: list[tuple[str, int, int]],
    rounds: int,
) -> None:
    """A worker for each condition (name, MB, mounts); they take turns in each round."""
    with contextlib.ExitStack() as stack:
        found = []
        for name, size, mounts in workers:
            worker = stack.enter_context(Worker(place, wanted, size, mounts))
            table.words[name] = _flat(worker.words)
            table.missing[name] = _flat(worker.missing)
            found.append((name, worker))
        for _ in range(rounds):
            answers = {
                name: _flat(worker.ask(round=True))
                for name, worker in random.sample(found, len(found))
            }
            table.add_round({name: answers[name] for name, _ in found})


def _flat(found: dict[str, dict[str, object]]) -> dict[str, object]:
    """{'full': {'Sandbox.run': 1}} as {'full: Sandbox.run': 1}."""
    return {f"{c}: {name}": value for c, names in found.items() for name, value in names.items()}


def threads(table: Table, place: Path, quick: bool) -> None:
    """Runs per second from several threads of one process."""
    counts = [1, 2, 4, 8, 32]
    wanted = {
        "chroot": [rows.STRAIGHT, rows.PREPARED, rows.MAP, rows.BARE],
        "full": [rows.STRAIGHT, rows.PREPARED, rows.MAP, rows.ONE_SHOT, rows.BWRAP],
    }
    rates(table, place, wanted, counts, 0.1 if quick else 0.4, 1 if quick else 5)


def sustained(table: Table, place: Path, quick: bool) -> None:
    """Runs per second for 10 s without a break."""
    wanted = {"full": [rows.PREPARED, rows.FILTERED, rows.ONE_SHOT, rows.BWRAP]}
    rates(table, place, wanted, [1, 2], 1 if quick else 10, 1 if quick else 2)


def rates(
    table: Table,
    place: Path,
    wanted: dict[str, list[str]],
    counts: list[int],
    seconds: float,
    rounds: int,
) -> None:
    """Runs per second for each number of threads."""
    with Worker(place, wanted) as worker:
        columns = [f"{count} thread{'s' * (count > 1)}" for count in counts]
        for name in columns:
            table.words[name], table.missing[name] = _flat(worker.words), _flat(worker.missing)
        cells = [
            (count, name, column, row)
            for count, name in zip(counts, columns, strict=True)
            for column, found in worker.words.items()
            for row in found
        ]
        for _ in range(rounds):
            answers = {}
            for cell in random.sample(cells, len(cells)):
                count, _, column, row = cell
                ask = {"column": column, "row": row, "threads": count, "seconds": seconds}
                answers[cell] = worker.ask(**ask)
            for cell in cells:
                table.add(cell[1], f"{cell[2]}: {cell[3]}", round(answers[cell], 1))


def output_rates(table: Table, place: Path, quick: bool) -> None:
    """Much output, captured."""
    size = 1 << 27 if quick else 1 << 30
    rows.compile_small(rows.HERE / "flood.c", place / "root" / "flood", f"-DFLOOD_BYTES={size}L")
    for _ in range(2 if quick else 7):
        for row in random.sample(output.ROWS, len(output.ROWS)):
            argv = [sys.executable, output.__file__, str(place), row, str(size)]
            words = subprocess.check_output(argv, text=True).split()
            table.add("GB/s", row, round(size / float(words[0]) / 1e9, 3))
            table.add("peak memory / payload", row, round(int(words[1]) / size, 4))
    table.title += f" ({size >> 20:,} MiB)"
    table.values = {
        c: {row: found[row] for row in output.ROWS} for c, found in table.values.items()
    }


def what_life_adds(table: Table, place: Path, quick: bool) -> None:
    """What limits, accounting, deadlines and streams add to a run."""
    columns = {name: life.Column(place, words) for name, words in life.COLUMNS.items()}
    table.missing = {name: column.missing for name, column in columns.items()}
    for _ in range(4 if quick else 30):
        for name in random.sample(list(columns), len(columns)):
            table.add_round({name: columns[name].round(20 if quick else 40)})
    table.values = {name: table.values[name] for name in columns}


def build(table: Table, place: Path, quick: bool) -> None:
    """The compile steps of `python -m sandboxlib demo`, one at a time."""
    builds = {}
    for compiler in steps.COMPILERS:
        try:
            builds[compiler] = steps.Build(place / compiler.replace(" ", ""), compiler)
        except peers.MissingError as error:
            table.missing[compiler] = {steps.BARE: str(error)}
    for compiler, made in builds.items():
        table.words[compiler] = {steps.BWRAP: " ".join(made.bwrap()).replace(str(place), "PLACE")}
    for _ in range(2 if quick else 12):
        numbers = random.sample(range(1 << 20), 5 if quick else 16)
        for compiler in random.sample(list(builds), len(builds)):
            table.add_round({compiler: builds[compiler].round(numbers)})
    table.values = {name: table.values[name] for name in builds}


def imports(table: Table, place: Path, quick: bool) -> None:
    """What `import sandboxlib` takes over a bare interpreter."""
    pythons = {"plain install": plain_interpreter(place), "this interpreter": Path(sys.executable)}
    for name, python in pythons.items():
        for value in import_cost(5 if quick else 30, python):
            table.add(name, "import sandboxlib", round(value, 2))


def plain_interpreter(place: Path) -> Path:
    """An environment with sandboxlib as a wheel installs it. The finder of an editable install has
    loaded much of the standard library before anything is imported, which hides what that costs.
    """
    import _cffi_backend

    here = place / "plain"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", here], check=True)
    packages = next((here / "lib").glob("python*")) / "site-packages"
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(native.__file__).parents[1], packages / "sandboxlib", ignore=leave)
    shutil.copy(_cffi_backend.__file__, packages)
    return here / "bin" / "python"


def import_cost(count: int, python: Path) -> list[float]:
    """Milliseconds, each the difference of a pair."""
    dropped = {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH"}
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    found = []
    for number in range(count + 2):
        spent = {}
        for code in random.sample(["pass", "import sandboxlib"], 2):
            start = time.perf_counter()
            subprocess.run([python, "-c", code], check=True, env=environment, cwd="/")
            spent[code] = time.perf_counter() - start
        if number > 1:
            found.append(1000 * (spent["import sandboxlib"] - spent["pass"]))
    return found


Measure = Callable[[Table, Path, bool], None]
TABLES: dict[str, tuple[Measure, str, str]] = {
    "isolation": (isolation, "What isolation costs: one run, microseconds", US),
    "binds": (binds, "1,000 read-only binds in one sandbox: one run, microseconds", US),
    "parents": (parents, "From parents of several sizes: one run, microseconds", US),
    "mounts": (mounts, "With that many mounts on the host: one run, microseconds", US),
    "threads": (threads, "From several threads: runs per second", "/s"),
    "sustained": (sustained, "Sustained for 10 s: runs per second", "/s"),
    "output": (output_rates, "Much output captured", ""),
    "life": (what_life_adds, "What is asked of a run adds to it: microseconds", US),
    "build": (build, "Compile steps of the demo's build: milliseconds for a step", "ms"),
    "import": (imports, "import sandboxlib: milliseconds over a bare interpreter", "ms"),
}


def measure(name: str, machine: str, quick: bool) -> Table:
    """One table, measured now."""
    function, title, unit = TABLES[name]
    table = Table(name, title, unit, machine)
    with tempfile.TemporaryDirectory(prefix="sandboxlib-bench-") as place:
        os.chmod(place, 0o755)
        if name not in ("build", "import"):
            rows.build(Path(place))
        function(table, Path(place), quick)
    return table
