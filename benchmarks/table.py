# SPDX-License-Identifier: Apache-2.0
"""A table of measured values, one for each column, row and round, and statistics of them."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import peers

import sandboxlib
from sandboxlib._cli.bench import interval

Cell = tuple[str, str]  # column, row


class Table:
    """values[column][row] is a list with an entry for each round; ratios are within a round."""

    def __init__(self, name: str, title: str, unit: str, machine: str = "") -> None:
        self.name, self.title, self.unit, self.machine = name, title, unit, machine
        self.values: dict[str, dict[str, list[float]]] = {}
        self.recipes: dict[str, dict[str, str]] = {}  # how to repeat a row
        self.missing: dict[str, dict[str, str]] = {}  # why there is no such row

    def add(self, column: str, row: str, value: float) -> None:
        self.values.setdefault(column, {}).setdefault(row, []).append(value)

    def add_round(self, values: dict[str, dict[str, float]]) -> None:
        for column, rows in values.items():
            for row, value in rows.items():
                self.add(column, row, value)

    def has(self, cell: Cell) -> bool:
        return cell[1] in self.values.get(cell[0], {})

    def of(self, cell: Cell) -> list[float]:
        return self.values[cell[0]][cell[1]]

    def median(self, cell: Cell) -> float:
        return statistics.median(self.of(cell))

    def ratios(self, cell: Cell, to: Cell) -> list[float]:
        pairs = zip(self.of(cell), self.of(to), strict=True)
        return [one / other for one, other in pairs]

    def rows(self) -> list[str]:
        """All rows, in the order in which they came."""
        return list(dict.fromkeys(row for rows in self.values.values() for row in rows))

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps(vars(self), separators=(",", ":"))
        (directory / f"{self.name}.json").write_text(text + "\n")


def load(directory: Path, name: str) -> Table | None:
    """Load a saved table; None if there is none."""
    path = directory / f"{name}.json"
    if not path.exists():
        return None
    saved: dict[str, Any] = json.loads(path.read_text())
    table = Table(name, saved["title"], saved["unit"])
    vars(table).update(saved)
    return table


def spread(values: list[float]) -> tuple[float, float, float]:
    """The median, and its bootstrap interval of 95 %."""
    return (statistics.median(values), *interval(values))


def machine() -> str:
    """One line with the machine, and the versions of all programs that are measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    mounts = len(Path("/proc/self/mountinfo").read_text().splitlines())
    parts = [
        f"{names[0] if names else platform.machine()}, {os.cpu_count()} CPUs, {memory:.0f} GiB",
        f"Linux {platform.release()}, {mounts} mounts, CPython {platform.python_version()}",
        f"sandboxlib {sandboxlib.__version__} {_commit()}".strip(),
        peers.versions(),
        *(_first_line(name) for name in ("gcc", "tcc") if shutil.which(name)),
        time.strftime("%Y-%m-%d") + f", load {os.getloadavg()[0]:.1f} at the start",
    ]
    return "; ".join(parts)


def _first_line(program: str) -> str:
    argv = [program, "-v" if program == "tcc" else "--version"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).partition("\n")[0]


def _commit() -> str:
    argv = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, cwd=Path(__file__).parent, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
