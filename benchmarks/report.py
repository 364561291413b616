# SPDX-License-Identifier: Apache-2.0
"""From tables to text: the terminal's, docs/benchmark.md, and the block in README.md."""

from __future__ import annotations

from pathlib import Path

import goals
import life
import output
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
BASES = (rows.STRAIGHT, rows.CORE, steps.BARE, output.KEEP, life.PLAIN, rows.ONE_SHOT)


def number(value: float) -> str:
    """Three digits that say something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def base_of(table: Table, column: str, row: str) -> str:
    """The row that a row is compared with, of the same isolation; "" where there is none."""
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
    for column, found in table.values.items():
        print(f"  {column}")
        for row in found:
            print(f"    {row:44} {cell_text(table, column, row)}")
        for row, reason in table.missing.get(column, {}).items():
            print(f"    {row:44} no figure: {reason}")


def print_words(table: Table) -> None:
    """How to repeat each row."""
    for column, found in table.words.items():
        for row, words in found.items():
            print(f"    {column}, {row}:\n        {words}")


def print_goals(tables: dict[str, Table]) -> None:
    """Those of the tables that there are."""
    print("\nGoals")
    for goal, figures, word in goals.judge_all(tables):
        if goal.table not in tables:
            continue
        print(f"  {goal.words:48} {_spoken(figures):30} {goal.sign} {goal.limit:g}: {word}")


def _spoken(figures: tuple[float, float, float] | None) -> str:
    return "{:,.2f} [{:,.2f}, {:,.2f}]".format(*figures) if figures else "-"


# ---- Markdown --------------------------------------------------------------------------------


def markdown_table(table: Table, short: bool = False) -> str:
    """Rows by columns; short: without intervals."""
    columns = list(table.values)
    lines = ["| | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for row in sorted(table.rows(), key=_rank):
        cells = [cell_text(table, column, row).replace(" | ", ", ") for column in columns]
        words = [cell.partition(" [")[0] if short else cell for cell in cells]
        lines.append(f"| {row} | " + " | ".join(word or "-" for word in words) + " |")
    return "\n".join(lines)


def _rank(row: str) -> tuple[bool, int]:
    """The place of a row: chroot before full, then as rows.py has them."""
    isolation, _, name = row.rpartition(": ")
    order = list(rows.MAKERS)
    return isolation == "full", order.index(name) if name in order else -1


def goals_table(tables: dict[str, Table]) -> str:
    """How many goals are met, and each with its figures."""
    verdicts = [verdict.word for verdict in goals.judge_all(tables)]
    lines = [f"{verdicts.count('met')} of {len(verdicts)} goals are met.", ""]
    lines += ["| goal | limit | measured | |", "| --- | ---: | ---: | --- |"]
    for goal, figures, word in goals.judge_all(tables):
        strong = f"**{word}**" if word == "MISSED" else word
        lines.append(
            f"| {goal.words} | {goal.sign} {goal.limit:g} | {_spoken(figures)} | {strong} |"
        )
    return "\n".join(lines)


def bases(table: Table) -> str:
    """What the ratios of a table are to."""
    cells = [(column, row) for column, found in table.values.items() for row in found]
    found = [base_of(table, *cell).rpartition(": ")[2] for cell in cells]
    names = [name for name in dict.fromkeys(found) if name]
    if not names:
        return "In brackets: the interval of the value."
    return "Ratios: to " + ", or else to ".join(f"`{name}`" for name in names) + "."


def _reasons(table: Table) -> str:
    """Rows that are not there at all, and why."""
    found = {
        f"{row} ({column})": reason
        for column, reasons in table.missing.items()
        for row, reason in reasons.items()
    }
    if not found:
        return ""
    return "No figure: " + "; ".join(f"{name}: {why}" for name, why in found.items()) + ".\n"


def write_docs(tables: dict[str, Table]) -> None:
    """docs/benchmark.md."""
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
    parts += ["## Every row, to be repeated", _all_words(tables)]
    text = "\n\n".join(part.strip() for part in parts if part)
    (DOCS / "benchmark.md").write_text(text + "\n")


def _all_words(tables: dict[str, Table]) -> str:
    """ROOT is a directory with /say in it, PLACE the one above, CACHE where PyPI's peers are."""
    lines = [
        "ROOT has /say in it; PLACE is above ROOT; CACHE is where the peers of PyPI are.",
        "```text",
    ]
    for name in ("isolation", "binds", "build"):
        if name in tables:
            for column, found in tables[name].words.items():
                lines += [f"{column}, {row}:\n    {words}" for row, words in found.items()]
    return "\n".join([*lines, "```"])


def write_readme(tables: dict[str, Table]) -> None:
    """The block between the marks."""
    path = TOP / "README.md"
    before, rest = path.read_text().split(START)
    after = rest.split(END)[1]
    path.write_text(f"{before}{START}\n{readme_block(tables)}\n{END}{after}")


def readme_block(tables: dict[str, Table]) -> str:
    """The rows that somebody compares who has not decided yet; docs/benchmark.md has all."""
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
    """What is committed. It takes matplotlib (the extra `bench`)."""
    import picture

    picture.draw(tables, DOCS / "benchmark.svg")
    picture.draw_front(tables["isolation"], DOCS / "speed.svg")
    write_docs(tables)
    write_readme(tables)
