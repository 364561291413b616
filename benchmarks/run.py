# SPDX-License-Identifier: Apache-2.0
"""What a sandbox costs: sandboxlib against bare C loops, and against others.

    python benchmarks/run.py                    all tables; rewrites results/, docs/ and README
    python benchmarks/run.py TABLE ...          these tables only, nothing but results/ is written
    python benchmarks/run.py --quick            few rounds, into results/quick/: noisy
    python benchmarks/run.py --report           docs/ and README again from results/
    python benchmarks/run.py --phases           how much of a run is Python, how much the core
    python benchmarks/run.py --syscalls         system calls of a run, counted by strace

As root, in an environment with sandboxlib and matplotlib (pip install -e '.[bench]'). Peers from
PyPI are installed into environments of their own below ~/.cache/sandboxlib/bench; bubblewrap, tcc
and gcc come from the distribution. What is missing leaves a row without a figure and says why.
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
    parser.add_argument("--no-install", action="store_true", help="no peers that are not there yet")
    parser.add_argument("--words", action="store_true", help="print how to repeat each row")
    parser.add_argument("--results", type=Path, help="where to keep every value")
    return parser.parse_args()


def main() -> int:
    words = parse()
    results = words.results or (RESULTS / "quick" if words.quick else RESULTS)
    if words.report:
        return show(results, write=True)
    if os.geteuid() != 0:
        print("the benchmark takes root; python -m sandboxlib bench does not", file=sys.stderr)
        return 2
    if words.syscalls or words.phases:
        with tempfile.TemporaryDirectory(prefix="sandboxlib-bench-") as place:
            rows.build(Path(place))
            count = syscalls.count_syscalls if words.syscalls else phases.show_phases
            return count(Path(place))
    if not words.no_install:
        peers.install()
    line = machine()
    print(line, flush=True)
    for name in words.tables or TABLES:
        start = time.monotonic()
        table = measure(name, line, words.quick)
        table.save(results)
        report.print_table(table)
        if words.words:
            report.print_words(table)
        print(f"  ({time.monotonic() - start:.0f} s)")
        sys.stdout.flush()
    return show(results, write=not (words.quick or words.tables or words.results))


def show(results: Path, write: bool) -> int:
    """The goals; write: docs/ and README.md as well."""
    loaded = {name: load(results, name) for name in TABLES}
    tables: dict[str, Table] = {name: table for name, table in loaded.items() if table}
    report.print_goals(tables)
    if write:
        report.write_all(tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
