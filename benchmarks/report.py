# SPDX-License-Identifier: Apache-2.0
"""Writes tables as text: on the terminal, in docs/benchmark.md, and in the block of README.md."""

from __future__ import annotations

from pathlib import Path

import goals
import life
import output
import roots
import rows
import steps
from table import Table, spread

TOP = Path(__file__).resolve().parents[1]
DOCS = TOP / "docs"
START = "<!-- written by benchmarks/run.py -->"
END = "<!-- end of what benchmarks/run.py writes -->"
HOW = """The rows take turns in random order. In each round a row is run 3 to 10 times (60 ms at
most), the first two runs are dropped, and the median of the others is the round's figure. The
tables have the medians of all rounds; a ratio is taken within each round, and the brackets hold
its bootstrap interval of 95 %. The command is a static program of 1 KB that writes "ok\\n"
(`benchmarks/say.c`), with stdout and stderr captured; the caller is CPython with 50 MB more
than it needs, unless a table says otherwise. "chroot" is a chroot and nothing else; "full" is a
mount, pid, ipc, uts, cgroup and net namespace, pivot_root, a /proc and a /tmp of the run. The
filter of system calls and the minimal /dev, both on by default, have rows of their own.
`benchmarks/results/` has every value."""
REPEAT = """It takes about ten minutes, root, a C compiler, `pip install -e '.[bench]'` and, for
all peers, `apt-get install bubblewrap tcc gcc`. It installs the peers of PyPI into environments
of their own. `--help` lists the single tables. `python -m sandboxlib bench` measures a few rows
in seconds, as any user. A machine with busy neighbours changes all rows: believe the ratios."""
BASES = (
    *(rows.STRAIGHT, rows.CORE, steps.BARE, output.KEEP, life.PLAIN, rows.ONE_SHOT),
    *(roots.PLAIN, roots.OVERLAY, roots.TARFILE, roots.NO_INPUTS, roots.UNTAR, roots.UNTRACED),
)


def number(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def base_of(table: Table, column: str, row: str) -> str:
    """The row to compare a row with, of the same isolation; "" if there is none."""
    isolation, colon, _ = row.rpartition(": ")
    for base in BASES:
        if table.has((column, f"{isolation}{colon}{base}")):
            return f"{isolation}{colon}{base}"
    return ""


def cell_text(table: Table, column: str, row: str) -> str:
    if not table.has((column, row)):
        return ""
    text = number(table.median((column, row)))
    base = base_of(table, column, row)
    if not base:
        middle, low, high = spread(table.of((column, row)))
        return f"{text} [{number(low)}, {number(high)}]"
    if base == row:
        return f"{text} | 1"
    middle, low, high = spread(table.ratios((column, row), (column, base)))
    return f"{text} | {middle:.2f}x [{low:.2f}, {high:.2f}]"


# ---- the terminal ----------------------------------------------------------------------------


def print_table(table: Table) -> None:
    print(f"\n{table.title}")
    print(f"  {bases(table)}")
    for column, rows_of_column in table.values.items():
        print(f"  {column}")
        for row in rows_of_column:
            print(f"    {row:44} {cell_text(table, column, row)}")
        for row, reason in table.missing.get(column, {}).items():
            print(f"    {row:44} no figure: {reason}")


def print_recipes(table: Table) -> None:
    """Print how to repeat each row."""
    for column, recipes in table.recipes.items():
        for row, recipe in recipes.items():
            print(f"    {column}, {row}:\n        {recipe}")


def print_goals(tables: dict[str, Table]) -> None:
    """Print the goals of the tables that were measured."""
    print("\nGoals")
    for goal, figures, outcome in goals.judge_all(tables):
        if goal.table not in tables:
            continue
        print(f"  {goal.title:48} {_figures(figures):30} {goal.sign} {goal.limit:g}: {outcome}")


def _figures(figures: tuple[float, float, float] | None) -> str:
    return "{:,.2f} [{:,.2f}, {:,.2f}]".format(*figures) if figures else "-"


# ---- Markdown --------------------------------------------------------------------------------


def markdown_table(table: Table, short: bool = False) -> str:
    """A table in Markdown. short: without intervals."""
    columns = list(table.values)
    lines = ["| | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for row in sorted(table.rows(), key=_rank):
        cells = [cell_text(table, column, row).replace(" | ", ", ") for column in columns]
        texts = [cell.partition(" [")[0] if short else cell for cell in cells]
        lines.append(f"| {row} | " + " | ".join(text or "-" for text in texts) + " |")
    return "\n".join(lines)


def _rank(row: str) -> tuple[bool, int]:
    """The position of a row: chroot before full, then the order of rows.py."""
    isolation, _, name = row.rpartition(": ")
    order = list(rows.MAKERS)
    return isolation == "full", order.index(name) if name in order else -1


def goals_table(tables: dict[str, Table]) -> str:
    """The number of goals that are met, and a table of all with their figures."""
    outcomes = [verdict.outcome for verdict in goals.judge_all(tables)]
    lines = [f"{outcomes.count('met')} of {len(outcomes)} goals are met.", ""]
    lines += ["| goal | limit | measured | |", "| --- | ---: | ---: | --- |"]
    for goal, figures, outcome in goals.judge_all(tables):
        strong = f"**{outcome}**" if outcome == "MISSED" else outcome
        lines.append(
            f"| {goal.title} | {goal.sign} {goal.limit:g} | {_figures(figures)} | {strong} |"
        )
    return "\n".join(lines)


def bases(table: Table) -> str:
    """A sentence that says which rows the ratios of a table refer to."""
    cells = [(column, row) for column, values in table.values.items() for row in values]
    all_names = [base_of(table, *cell).rpartition(": ")[2] for cell in cells]
    names = [name for name in dict.fromkeys(all_names) if name]
    if not names:
        return "In brackets: the interval of the value."
    return "Ratios: to " + ", or else to ".join(f"`{name}`" for name in names) + "."


def _reasons(table: Table) -> str:
    """The rows without a figure, and the reason for each."""
    reasons_of = {
        f"{row} ({column})": reason
        for column, reasons in table.missing.items()
        for row, reason in reasons.items()
    }
    if not reasons_of:
        return ""
    return "No figure: " + "; ".join(f"{name}: {why}" for name, why in reasons_of.items()) + ".\n"


def write_docs(tables: dict[str, Table]) -> None:
    """Write docs/benchmark.md."""
    machine = next(iter(tables.values())).machine
    parts = [
        "<!-- SPDX-License-Identifier: Apache-2.0 -->",
        "# The benchmark",
        "`python benchmarks/run.py` writes this page: do not edit it.",
        REPEAT,
        machine,
        HOW,
        "![What a run costs](benchmark.svg)",
        "## Goals",
        goals_table(tables),
    ]
    for table in tables.values():
        count = len(next(iter(next(iter(table.values.values())).values())))
        parts += [f"## {table.title}", f"Medians of {count} rounds. {bases(table)}"]
        parts += [markdown_table(table), _reasons(table)]
    parts += ["## Every row, to be repeated", _all_recipes(tables)]
    text = "\n\n".join(part.strip() for part in parts if part)
    (DOCS / "benchmark.md").write_text(text + "\n")


def _all_recipes(tables: dict[str, Table]) -> str:
    """Everything that it takes to repeat each row."""
    lines = [
        "ROOT has /say in it; PLACE is above ROOT; CACHE is where the peers of PyPI are.",
        "```text",
    ]
    for name in ("isolation", "binds", "build"):
        if name in tables:
            for column, recipes in tables[name].recipes.items():
                lines += [f"{column}, {row}:\n    {recipe}" for row, recipe in recipes.items()]
    return "\n".join([*lines, "```"])


def write_readme(tables: dict[str, Table]) -> None:
    """Replace the block of README.md between the marks."""
    path = TOP / "README.md"
    before, after = path.read_text().split(START)
    after = after.split(END)[1]
    path.write_text(f"{before}{START}\n{readme_block(tables)}\n{END}{after}")


def readme_block(tables: dict[str, Table]) -> str:
    """The rows for readers who have not decided yet; docs/benchmark.md has all rows."""
    table = tables["isolation"]
    lines = ["| | chroot | full isolation | |", "| --- | ---: | ---: | ---: |"]
    for row in rows.FRONT:
        chroot, full = (
            number(table.median((column, row))) if table.has((column, row)) else "-"
            for column in ("chroot", "full")
        )
        ratio = ""
        if table.has(("full", row)) and row != rows.PREPARED:
            middle = spread(table.ratios(("full", row), ("full", rows.PREPARED)))[0]
            ratio = f"{middle:.1f} x"
        lines.append(f"| {row} | {chroot} | {full} | {ratio} |")
    table_text = "\n".join(lines)
    return f"""Microseconds for one run of a static program of 1 KB with its output captured,
called from CPython; in the last column how many times as long as `Sandbox.run` takes, with full
isolation: mount, pid, ipc, uts, cgroup and net namespaces, pivot_root, a /proc and a /tmp of
the run.

{table_text}

![What a run with full isolation costs](docs/speed.svg)

{table.machine}."""


def write_all(tables: dict[str, Table]) -> None:
    """Write all files that are committed. It takes matplotlib (the extra `bench`)."""
    import picture

    picture.draw(tables, DOCS / "benchmark.svg")
    picture.draw_front(tables["isolation"], DOCS / "speed.svg")
    write_docs(tables)
    write_readme(tables)
