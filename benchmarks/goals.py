# SPDX-License-Identifier: Apache-2.0
"""The goals, which are ratios within a run of the benchmark, and the verdict on each."""

from __future__ import annotations

import operator
from typing import NamedTuple

import output
import roots
import rows
import steps
from table import Cell, Table, spread

CHROOT, FULL = "chroot", "full"
C_LOOP = (CHROOT, rows.STRAIGHT)
PREPARED, DIRECT = (FULL, rows.PREPARED), (FULL, rows.DIRECT)
ONE_SHOT, BWRAP = (FULL, rows.ONE_SHOT), (FULL, rows.BWRAP)
LARGE = "full, 1,000 binds"
GB, PEAK = "GB/s", "peak memory / payload"


class Goal(NamedTuple):
    """A ratio of two cells of a table, or a value, and its limit."""

    title: str
    table: str
    cell: Cell
    to: Cell | None
    sign: str
    limit: float


def full(row: str) -> str:
    return f"{FULL}: {row}"


def chroot(row: str) -> str:
    return f"{CHROOT}: {row}"


GOALS = [
    Goal(
        "chroot, Sandbox.run / straight C", "isolation", (CHROOT, rows.PREPARED), C_LOOP, "<=", 1.12
    ),
    Goal(
        "chroot, Sandbox.run / our core in C",
        "isolation",
        (CHROOT, rows.PREPARED),
        (CHROOT, rows.CORE),
        "<=",
        1.12,
    ),
    Goal(
        "chroot, preexec_fn / Sandbox.run, 50 MB",
        "isolation",
        (CHROOT, rows.PREEXEC),
        (CHROOT, rows.PREPARED),
        ">=",
        20,
    ),
    Goal(
        "chroot, preexec_fn / Sandbox.run, 1 GB",
        "parents",
        ("1,024 MB", chroot(rows.PREEXEC)),
        ("1,024 MB", chroot(rows.PREPARED)),
        ">=",
        200,
    ),
    Goal("full, Sandbox.run / chroot in C", "isolation", PREPARED, C_LOOP, "<=", 2.0),
    Goal("full, bwrap / Sandbox.run", "isolation", BWRAP, PREPARED, ">=", 12),
    Goal("full, init=False / chroot in C", "isolation", DIRECT, C_LOOP, "<=", 1.7),
    Goal(
        "full, devices='minimal' / devices='root'",
        "isolation",
        (FULL, rows.DEVICES),
        PREPARED,
        "<=",
        1.05,
    ),
    Goal("full, bwrap / init=False", "isolation", BWRAP, DIRECT, ">=", 15),
    Goal("full, run_sandbox / our core in C", "isolation", ONE_SHOT, (FULL, rows.CORE), "<=", 1.05),
    Goal(
        "full, run_sandbox init=False / straight C",
        "isolation",
        (FULL, rows.ONE_SHOT_DIRECT),
        (FULL, rows.STRAIGHT),
        "<=",
        1.05,
    ),
    Goal(
        "full, Sandbox.run, 'builds' / 'none'",
        "isolation",
        (FULL, rows.FILTERED),
        PREPARED,
        "<=",
        1.05,
    ),
    Goal(
        "full, run_sandbox, 'builds' / 'none'",
        "isolation",
        (FULL, rows.ONE_SHOT_FILTERED),
        ONE_SHOT,
        "<=",
        1.10,
    ),
    Goal(
        "sustained, Sandbox.run, 2 threads, 'builds' / 'none'",
        "sustained",
        ("2 threads", full(rows.FILTERED)),
        ("2 threads", full(rows.PREPARED)),
        ">=",
        0.92,
    ),
    Goal("full, bwrap / run_sandbox", "isolation", BWRAP, ONE_SHOT, ">=", 3.3),
    Goal(
        "sustained, Sandbox.run, 2 threads / 1",
        "sustained",
        ("2 threads", full(rows.PREPARED)),
        ("1 thread", full(rows.PREPARED)),
        ">=",
        1.7,
    ),
    Goal(
        "sustained, Sandbox.run / run_sandbox, 2 threads",
        "sustained",
        ("2 threads", full(rows.PREPARED)),
        ("2 threads", full(rows.ONE_SHOT)),
        ">=",
        4,
    ),
    Goal(
        "full, Sandbox.run, 2,000 host mounts / 20",
        "mounts",
        ("2,000 mounts", full(rows.PREPARED)),
        ("20 mounts", full(rows.PREPARED)),
        "<=",
        1.05,
    ),
    Goal(
        "chroot, Sandbox.run, parent 4 GB / 50 MB",
        "parents",
        ("4,096 MB", chroot(rows.PREPARED)),
        ("50 MB", chroot(rows.PREPARED)),
        "<=",
        1.05,
    ),
    Goal(
        "full, Sandbox.run, parent 4 GB / 50 MB",
        "parents",
        ("4,096 MB", full(rows.PREPARED)),
        ("50 MB", full(rows.PREPARED)),
        "<=",
        1.05,
    ),
    Goal("1,000 binds, run_sandbox, us", "binds", (LARGE, rows.ONE_SHOT), None, "<=", 10_000),
    Goal(
        "1,000 binds, bwrap / run_sandbox",
        "binds",
        (LARGE, rows.BWRAP),
        (LARGE, rows.ONE_SHOT),
        ">=",
        50,
    ),
    Goal(
        "1 GiB, Sandbox.run / C reader, GB/s",
        "output",
        (GB, output.FULL),
        (GB, output.KEEP),
        ">=",
        0.9,
    ),
    Goal(
        "1 GiB, chroot Sandbox.run / C reader, GB/s",
        "output",
        (GB, output.CHROOT),
        (GB, output.KEEP),
        ">=",
        0.9,
    ),
    Goal("1 GiB, peak memory / payload", "output", (PEAK, output.FULL), None, "<=", 1.05),
    *(
        Goal(
            f"chroot, {n}, Sandbox.run / C loop, runs/s",
            "threads",
            (n, chroot(rows.PREPARED)),
            (n, chroot(rows.STRAIGHT)),
            ">=",
            0.9,
        )
        for n in ("2 threads", "4 threads", "8 threads")
    ),
    Goal(
        "build, gcc -O0, Sandbox.run / bare",
        "build",
        ("gcc -O0", steps.BOXED),
        ("gcc -O0", steps.BARE),
        "<=",
        1.02,
    ),
    Goal(
        "build, tcc, Sandbox.run / bare",
        "build",
        ("tcc", steps.BOXED),
        ("tcc", steps.BARE),
        "<=",
        1.10,
    ),
    *(
        Goal(title, "roots", (column, row), (column, to), sign, limit)
        for title, column, row, to, sign, limit in (
            (
                "Overlay / plain root, Sandbox.run",
                roots.ROOTS,
                roots.OVERLAY,
                roots.PLAIN,
                "<=",
                1.10,
            ),
            (
                "bwrap --tmp-overlay / Overlay, one-shot",
                roots.ROOTS,
                roots.BWRAP,
                roots.OVERLAY_FRESH,
                ">=",
                2.5,
            ),
            ("500 MB: cp -a / Overlay", roots.PRISTINE, roots.COPY, roots.PREPARED, ">=", 100),
            ("500 MB: cp -al / Overlay", roots.PRISTINE, roots.LINKS, roots.PREPARED, ">=", 100),
            (
                "1,000 changes: save() / tarfile",
                roots.CHANGES,
                roots.SAVED,
                roots.TARFILE,
                "<=",
                1.0,
            ),
            (
                "1,000 changes: digest() / tarfile",
                roots.CHANGES,
                roots.DIGESTED,
                roots.TARFILE,
                "<=",
                1.0,
            ),
            (
                "1,000 changes: listed / tarfile",
                roots.CHANGES,
                roots.LISTED,
                roots.TARFILE,
                "<=",
                1.0,
            ),
            ("10,000 inputs / 1", roots.INPUTS, roots.STAGED[10_000], roots.STAGED[1], "<=", 1.05),
            ("umoci / Image, unpacking", roots.IMAGES, roots.UMOCI, roots.UNPACK, ">=", 1.0),
            (
                "trace, opens and execs / fresh run",
                roots.TRACES,
                roots.OPENS,
                roots.UNTRACED,
                "<=",
                1.2,
            ),
            (
                "trace, every path call / fresh run",
                roots.TRACES,
                roots.ALL,
                roots.UNTRACED,
                "<=",
                2.0,
            ),
        )
    ),
    Goal("an image's second start, us", "roots", (roots.IMAGES, roots.SECOND), None, "<=", 5000),
    Goal(
        "Overlay / plain root, runs/s",
        "root rates",
        ("1 thread", roots.OVERLAY),
        ("1 thread", roots.PLAIN),
        ">=",
        0.8,
    ),
    Goal("import sandboxlib, ms", "import", ("plain install", "import sandboxlib"), None, "<=", 20),
]


class Verdict(NamedTuple):
    """figures: the median and its interval, or None; outcome: met, MISSED, or why not measured."""

    goal: Goal
    figures: tuple[float, float, float] | None
    outcome: str


def judge(goal: Goal, table: Table | None) -> Verdict:
    """Compare a goal with its table."""
    for cell in (goal.cell, *([goal.to] if goal.to else [])):
        if table is None or not table.has(cell):
            reason = table.missing.get(cell[0], {}).get(cell[1], "") if table else ""
            reason = f"not measured: {reason}" if reason else "not measured"
            return Verdict(goal, None, reason)
    assert table is not None
    values = table.ratios(goal.cell, goal.to) if goal.to else table.of(goal.cell)
    figures = spread(values)
    compare = {"<=": operator.le, ">=": operator.ge}[goal.sign]
    return Verdict(goal, figures, "met" if compare(figures[0], goal.limit) else "MISSED")


def judge_all(tables: dict[str, Table]) -> list[Verdict]:
    return [judge(goal, tables.get(goal.table)) for goal in GOALS]
