# SPDX-License-Identifier: Apache-2.0
"""The tables. A function for each says what to measure, under which conditions, and how often."""

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
import roots
import rows
import steps
from table import Table
from worker import Worker

from sandboxlib._core import native

US = "us"
LARGE = "full, 1,000 binds"


def isolation(table: Table, directory: Path, quick: bool) -> None:
    """Measure the cost of each kind of isolation."""
    rows_by_column = {
        "chroot": rows.OF_CHROOT,
        "full": rows.OF_FULL,
        "full, 100 binds": rows.OF_BINDS,
    }
    with Worker(directory, rows_by_column) as worker:
        table.recipes, table.missing = worker.recipes, worker.missing
        for _ in range(6 if quick else 50):
            table.add_round(worker.ask(round=True))


def binds(table: Table, directory: Path, quick: bool) -> None:
    """1,000 read-only binds in one sandbox."""
    names = [rows.CORE, rows.SLOT, rows.PREPARED, rows.ONE_SHOT, rows.BWRAP, rows.NSJAIL]
    with Worker(directory, {LARGE: names}) as worker:
        table.recipes, table.missing = worker.recipes, worker.missing
        for _ in range(1 if quick else 8):
            table.add_round(worker.ask(round=True))


def parents(table: Table, directory: Path, quick: bool) -> None:
    """Vary the size of the calling process."""
    rows_by_column = {
        "chroot": [rows.STRAIGHT, rows.PREPARED, rows.BARE, rows.PREEXEC, rows.EARLIER],
        "full": [rows.STRAIGHT, rows.PREPARED, rows.ONE_SHOT, rows.BWRAP],
    }
    sizes = [50, 1024] if quick else [50, 1024, 4096]
    workers = [(f"{size:,} MB", size, 0) for size in sizes]
    conditions(table, directory, rows_by_column, workers, 4 if quick else 20)


def mounts(table: Table, directory: Path, quick: bool) -> None:
    """Vary the size of the host's mount table."""
    rows_by_column = {"full": [rows.STRAIGHT, rows.SLOT, rows.PREPARED, rows.ONE_SHOT, rows.BWRAP]}
    workers = [(f"{count:,} mounts", 50, count) for count in (20, 500, 2000)]
    conditions(table, directory, rows_by_column, workers, 4 if quick else 40)


def conditions(
    table: Table,
    directory: Path,
    rows_by_column: dict[str, list[str]],
    workers: list[tuple[str, int, int]],
    rounds: int,
) -> None:
    """Start a worker for each condition (name, MB, mounts). In each round they take turns."""
    with contextlib.ExitStack() as stack:
        found = []
        for name, size, mounts in workers:
            worker = stack.enter_context(Worker(directory, rows_by_column, size, mounts))
            table.recipes[name] = _flat(worker.recipes)
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


def threads(table: Table, directory: Path, quick: bool) -> None:
    """Measure runs per second from several threads of one process."""
    counts = [1, 2, 4, 8, 32]
    rows_by_column = {
        "chroot": [rows.STRAIGHT, rows.PREPARED, rows.MAP, rows.BARE],
        "full": [rows.STRAIGHT, rows.PREPARED, rows.MAP, rows.ONE_SHOT, rows.BWRAP],
    }
    rates(table, directory, rows_by_column, counts, 0.1 if quick else 0.4, 1 if quick else 5)


def sustained(table: Table, directory: Path, quick: bool) -> None:
    """Measure runs per second for 10 s without a break."""
    rows_by_column = {"full": [rows.PREPARED, rows.FILTERED, rows.ONE_SHOT, rows.BWRAP]}
    rates(table, directory, rows_by_column, [1, 2], 1 if quick else 10, 1 if quick else 2)


def rates(
    table: Table,
    directory: Path,
    rows_by_column: dict[str, list[str]],
    counts: list[int],
    seconds: float,
    rounds: int,
) -> None:
    """Measure runs per second for each number of threads."""
    with Worker(directory, rows_by_column) as worker:
        columns = [f"{count} thread{'s' * (count > 1)}" for count in counts]
        for name in columns:
            table.recipes[name], table.missing[name] = _flat(worker.recipes), _flat(worker.missing)
        cells = [
            (count, name, column, row)
            for count, name in zip(counts, columns, strict=True)
            for column, found in worker.recipes.items()
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


def output_rates(table: Table, directory: Path, quick: bool) -> None:
    """Measure how fast much output is captured."""
    size = 1 << 27 if quick else 1 << 30
    rows.compile_small(
        rows.HERE / "flood.c", directory / "root" / "flood", f"-DFLOOD_BYTES={size}L"
    )
    for _ in range(2 if quick else 7):
        for row in random.sample(output.ROWS, len(output.ROWS)):
            argv = [sys.executable, output.__file__, str(directory), row, str(size)]
            fields = subprocess.check_output(argv, text=True).split()
            table.add("GB/s", row, round(size / float(fields[0]) / 1e9, 3))
            table.add("peak memory / payload", row, round(int(fields[1]) / size, 4))
    table.title += f" ({size >> 20:,} MiB)"
    table.values = {
        c: {row: found[row] for row in output.ROWS} for c, found in table.values.items()
    }


def what_life_adds(table: Table, directory: Path, quick: bool) -> None:
    """Measure what limits, accounting, deadlines and streams add to a run."""
    columns = {name: life.Column(directory, options) for name, options in life.COLUMNS.items()}
    table.missing = {name: column.missing for name, column in columns.items()}
    for _ in range(4 if quick else 30):
        for name in random.sample(list(columns), len(columns)):
            table.add_round({name: columns[name].round(20 if quick else 40)})
    table.values = {name: table.values[name] for name in columns}


def what_a_root_adds(table: Table, directory: Path, quick: bool) -> None:
    """Measure roots of layers, and what belongs to them. The columns come one after the other."""
    try:
        for name, column in roots.columns(directory):
            table.missing[name] = column.missing
            for _ in range(3 if quick else 15):
                table.add_round({name: column.round()})
    except peers.MissingError as error:
        table.missing[roots.PRISTINE] = {roots.PREPARED: str(error)}
    finally:
        roots.clean_up(directory)


def root_rates(table: Table, directory: Path, quick: bool) -> None:
    """Measure runs per second in a plain root and in an Overlay."""
    for _ in range(3 if quick else 15):
        table.add_round({"1 thread": roots.rates(directory, 0.5 if quick else 2)})


def build(table: Table, directory: Path, quick: bool) -> None:
    """Measure the compile steps of `python -m sandboxlib demo`, one at a time."""
    builds = {}
    for compiler in steps.COMPILERS:
        try:
            builds[compiler] = steps.Build(directory / compiler.replace(" ", ""), compiler)
        except peers.MissingError as error:
            table.missing[compiler] = {steps.BARE: str(error)}
    for compiler, made in builds.items():
        table.recipes[compiler] = {
            steps.BWRAP: " ".join(made.bwrap()).replace(str(directory), "PLACE")
        }
    for _ in range(2 if quick else 12):
        numbers = random.sample(range(1 << 20), 5 if quick else 16)
        for compiler in random.sample(list(builds), len(builds)):
            table.add_round({compiler: builds[compiler].round(numbers)})
    table.values = {name: table.values[name] for name in builds}


def imports(table: Table, directory: Path, quick: bool) -> None:
    """Measure the time of `import sandboxlib`, beyond that of a bare interpreter."""
    pythons = {
        "plain install": plain_interpreter(directory),
        "this interpreter": Path(sys.executable),
    }
    for name, python in pythons.items():
        for value in import_cost(5 if quick else 30, python):
            table.add(name, "import sandboxlib", round(value, 2))


def plain_interpreter(directory: Path) -> Path:
    """Make an environment with sandboxlib as a wheel installs it.

    The finder of an editable install has already loaded much of the standard library, which would
    hide the time of loading it.
    """
    import _cffi_backend

    here = directory / "plain"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", here], check=True)
    packages = next((here / "lib").glob("python*")) / "site-packages"
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(native.__file__).parents[1], packages / "sandboxlib", ignore=leave)
    shutil.copy(_cffi_backend.__file__, packages)
    return here / "bin" / "python"


def import_cost(count: int, python: Path) -> list[float]:
    """The milliseconds of each import, as the difference between two interpreters.

    A name is used too: the package imports what it consists of at the first use of one.
    """
    with_name = "import sandboxlib; sandboxlib.Sandbox"
    dropped = {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH"}
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    found = []
    for number in range(count + 2):
        spent = {}
        for code in random.sample(["pass", with_name], 2):
            start = time.perf_counter()
            subprocess.run([python, "-c", code], check=True, env=environment, cwd="/")
            spent[code] = time.perf_counter() - start
        if number > 1:
            found.append(1000 * (spent[with_name] - spent["pass"]))
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
    "roots": (what_a_root_adds, "A step's filesystem: microseconds", US),
    "root rates": (root_rates, "Pristine roots: runs per second", "/s"),
    "build": (build, "Compile steps of the demo's build: milliseconds for a step", "ms"),
    "import": (imports, "import sandboxlib: milliseconds over a bare interpreter", "ms"),
}


def measure(name: str, machine: str, quick: bool) -> Table:
    """Measure one table now."""
    function, title, unit = TABLES[name]
    table = Table(name, title, unit, machine)
    with tempfile.TemporaryDirectory(prefix="sandboxlib-bench-") as directory:
        os.chmod(directory, 0o755)
        if name not in ("build", "import"):
            rows.build(Path(directory))
        function(table, Path(directory), quick)
    return table
