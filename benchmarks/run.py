# SPDX-License-Identifier: Apache-2.0
"""Measures what a sandbox costs: sandboxlib against bare C loops, and against other programs.

    python benchmarks/run.py                    all tables; rewrites results/, docs/ and README
    python benchmarks/run.py TABLE ...          these tables only, nothing but results/ is written
    python benchmarks/run.py --quick            few rounds, into results/quick/: noisy
    python benchmarks/run.py --report           docs/ and README again from results/
    python benchmarks/run.py --phases           how much of a run is Python, how much the core
    python benchmarks/run.py --syscalls         system calls of a run, counted by strace

Run it as root, in an environment with sandboxlib and matplotlib (pip install -e '.[bench]'). It
installs the peers from PyPI into environments of their own below ~/.cache/sandboxlib/bench;
bubblewrap, tcc and gcc come from the distribution. A row whose peer is missing says why.
The tables: {tables}.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import peers
import phases
import report
import rows
import syscalls
from measure import TABLES, measure
from table import Table, load, machine

RESULTS = Path(__file__).resolve().parent / "results"


def parse() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__.format(tables=", ".join(TABLES)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], metavar="TABLE")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--phases", action="store_true")
    parser.add_argument("--syscalls", action="store_true")
    parser.add_argument("--no-install", action="store_true", help="do not install missing peers")
    parser.add_argument("--recipes", action="store_true", help="print how to repeat each row")
    parser.add_argument("--results", type=Path, help="where to keep every value")
    return parser.parse_args()


def main() -> int:
    options = parse()
    results = options.results or (RESULTS / "quick" if options.quick else RESULTS)
    if options.report:
        return show(results, write=True)
    if os.geteuid() != 0:
        print("the benchmark takes root; python -m sandboxlib bench does not", file=sys.stderr)
        return 2
    if options.syscalls or options.phases:
        with tempfile.TemporaryDirectory(prefix="sandboxlib-bench-") as directory:
            rows.build(Path(directory))
            count = syscalls.count_syscalls if options.syscalls else phases.show_phases
            return count(Path(directory))
    if not options.no_install:
        peers.install()
    line = machine()
    print(line, flush=True)
    for name in options.tables or TABLES:
        start = time.monotonic()
        table = measure(name, line, options.quick)
        table.save(results)
        report.print_table(table)
        if options.recipes:
            report.print_recipes(table)
        print(f"  ({time.monotonic() - start:.0f} s)")
        sys.stdout.flush()
    return show(results, write=not (options.quick or options.tables or options.results))


def show(results: Path, write: bool) -> int:
    """Print the goals. write: also write docs/ and README.md."""
    loaded = {name: load(results, name) for name in TABLES}
    tables: dict[str, Table] = {name: table for name, table in loaded.items() if table}
    report.print_goals(tables)
    if write:
        report.write_all(tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
