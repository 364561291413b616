# SPDX-License-Identifier: Apache-2.0
"""Draws the pictures of README.md and docs/benchmark.md by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rows
from table import Table

OURS = {
    rows.PREPARED,
    rows.DIRECT,
    rows.MAP,
    rows.DEVICES,
    rows.ONE_SHOT,
    rows.ONE_SHOT_DIRECT,
    rows.FILTERED,
    rows.ONE_SHOT_FILTERED,
}
IN_C = {rows.FLOOR, rows.STRAIGHT, rows.CORE, rows.SLOT}
BLUE, GREY, RED = "#2b6cb0", "#4a5568", "#c05621"


def colour(row: str) -> str:
    return BLUE if row in OURS else GREY if row in IN_C | {rows.BARE} else RED


def draw(tables: dict[str, Table], path: Path) -> None:
    """Draw that of docs/benchmark.md: the table `isolation` as bars, and the threads as lines."""
    pyplot = plotter()
    table = tables["isolation"]
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8.5), layout="constrained")
    panels = list(axes.flat)
    for panel, column in zip(panels, table.values, strict=False):
        values = {row: table.median((column, row)) for row in table.values[column]}
        bars(panel, values)
        panel.set_xscale("log")
        panel.set_xlim(50, max(values.values()) * 2.5)
        panel.set_title(f"{column}: microseconds for a run", loc="left")
    if "threads" in tables:
        lines(panels[3], tables["threads"])
    else:
        panels[3].set_axis_off()
    save(figure, path)


def draw_front(table: Table, path: Path) -> None:
    """Draw that of README.md: runs with full isolation, beside a program without any."""
    pyplot = plotter()
    figure, panel = pyplot.subplots(figsize=(7, 2.6), layout="constrained")
    values = {row: table.median(("full", row)) for row in rows.FRONT if table.has(("full", row))}
    values[rows.BARE] = table.median(("chroot", rows.BARE))
    bars(panel, values)
    panel.set_title("microseconds for a run with full isolation", loc="left")
    panel.set_xlim(0, max(values.values()) * 1.1)
    save(figure, path)


def plotter() -> Any:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "sandboxlib", "font.size": 9}
    return pyplot


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    text = path.read_text()
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n")


def bars(panel: Any, values: dict[str, float]) -> None:
    values = dict(sorted(values.items(), key=lambda item: -item[1]))
    colours = [colour(row) for row in values]
    drawn = panel.barh(list(values), list(values.values()), color=colours)
    labels = [f"{value:,.0f}" for value in values.values()]
    panel.bar_label(drawn, labels, padding=2, fontsize=8)
    panel.spines[["top", "right"]].set_visible(False)


def lines(panel: Any, table: Table) -> None:
    columns = list(table.values)
    last = {row: table.median((columns[-1], row)) for row in table.rows()}
    height = 0.0
    for row in sorted(last, key=lambda row: last[row]):
        kind, _, name = row.partition(": ")
        points = [table.median((column, row)) for column in columns]
        style = "-" if kind == "full" else "--"
        panel.plot(range(len(columns)), points, style, marker=".", color=colour(name))
        height = max(last[row], height * 1.17)  # keeps labels apart
        panel.text(len(columns) - 0.9, height, row, va="center", fontsize=7, color=colour(name))
    panel.set_yscale("log")
    panel.set_xlim(-0.2, len(columns) + 1.8)
    panel.set_xticks(range(len(columns)), [column.split()[0] for column in columns])
    panel.set_title("runs per second, by threads", loc="left")
    panel.spines[["top", "right"]].set_visible(False)
