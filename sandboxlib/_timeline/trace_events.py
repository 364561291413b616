# SPDX-License-Identifier: Apache-2.0
"""The events of a trace: the Trace Event Format of Chrome, which Perfetto reads as well."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ..errors import printable
from ..result import Result

MOST_NAME = 60  # characters of the text in a bar
MOST_TEXT = 1000  # characters of a command line
# The numbers of threads begin at ROWS: one that is a process's as well is its main thread.
ROWS = 1000
HERE, CACHE = "this machine", "cache"
# chrome://tracing takes a bar's colour from its text, unless the event names one of these.
_RED, _GREY = "terrible", "grey"


class Noted(NamedTuple):
    """What is known of a command that ended.

    name: the text of its bar; None: its argv, in short. began: seconds, by time.monotonic().
    result: without outputs; None for a command that could not be run. text: of that error; with a
    result the names of the outputs that are missing.
    """

    name: str | None
    argv: Sequence[bytes]
    began: float
    result: Result | None
    text: str


def events_of(noted: Iterable[Noted]) -> list[dict[str, Any]]:
    """The metadata of all rows, and an event for each command. A worker, this machine and the cache
    are a process of the trace each, and each of its rows is a thread.
    """
    groups: dict[str, list[Noted]] = {}
    for each in noted:
        groups.setdefault(_group_of(each), []).append(each)
    metadata, events = [], []
    for pid, group in enumerate(sorted(groups), start=1):
        metadata += _metadata("process", pid, 0, group, pid)
        most = 0
        for each, row in _rows(groups[group]):
            most = max(most, row)
            events.append(_event(each, pid, pid * ROWS + row))
        for row in range(1, most + 1):
            metadata += _metadata("thread", pid, pid * ROWS + row, f"slot {row}", row)
    events.sort(key=lambda event: float(event["ts"]))
    return metadata + events


def _group_of(each: Noted) -> str:
    if each.result is not None and each.result.cached:
        return CACHE
    if each.result is not None and each.result.worker:
        return f"worker {printable(each.result.worker)}"
    return HERE


def _metadata(what: str, pid: int, tid: int, name: str, index: int) -> list[dict[str, Any]]:
    of = {"ph": "M", "pid": pid, "tid": tid, "ts": 0}
    return [
        {"name": f"{what}_name", "args": {"name": name}, **of},
        {"name": f"{what}_sort_index", "args": {"sort_index": index}, **of},
    ]


def _rows(group: list[Noted]) -> list[tuple[Noted, int]]:
    """Each command with the first row, from 1 on, that is free when it begins."""
    found = []
    busy: list[tuple[int, int]] = []  # the end of the last command, the row
    free: list[int] = []
    for each in sorted(group, key=_interval):
        start, end = _interval(each)
        while busy and busy[0][0] <= start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        row = heapq.heappop(free) if free else len(busy) + 1
        heapq.heappush(busy, (end, row))
        found.append((each, row))
    return found


def _interval(each: Noted) -> tuple[int, int]:
    """Nanoseconds: whole numbers, so that bars that touch do not overlap by rounding."""
    start = round(each.began * 1e9)
    return start, start + (0 if each.result is None else round(each.result.wall * 1e9))


def _event(each: Noted, pid: int, tid: int) -> dict[str, Any]:
    argv = [printable(os.fsdecode(word)) for word in each.argv]
    name = _short_name(argv) if each.name is None else printable(each.name)
    start, end = _interval(each)
    event: dict[str, Any] = {"name": name, "pid": pid, "tid": tid, "ts": start / 1000}
    args: dict[str, Any] = {"argv": " ".join(argv)[:MOST_TEXT]}
    if each.result is None:
        args["error"] = printable(each.text)[:MOST_TEXT]
        return {"ph": "i", "s": "t", "cat": "error", "cname": _RED, **event, "args": args}
    args |= _of_result(each.result)
    if each.text:
        args["missing"] = printable(each.text)[:MOST_TEXT]
    event |= {"ph": "X", "dur": (end - start) / 1000, "cat": "command", "args": args}
    if not each.result.ok or each.text:
        event |= {"cat": "command,failed", "cname": _RED}
    elif each.result.cached:
        event |= {"cat": "command,cached", "cname": _GREY}
    return event


def _short_name(argv: Sequence[str]) -> str:
    """The program and the words that are no options, cut to MOST_NAME characters."""
    if not argv:
        return "command"
    words = [os.path.basename(argv[0]), *(word for word in argv[1:] if not word.startswith("-"))]
    text = " ".join(words)
    return text if len(text) <= MOST_NAME else f"{text[: MOST_NAME - 3]}..."


def _of_result(result: Result) -> dict[str, Any]:
    """What a browser shows of a bar that is chosen."""
    args: dict[str, Any] = {
        "exit": result.exit,
        "cached": result.cached,
        "executor": result.executor,
    }
    if result.number >= 0:
        args["number"] = result.number
    if result.timed_out:
        args["timed_out"] = True
    if result.limits_hit:
        args["limits_hit"] = ", ".join(result.limits_hit)
    usage = result.usage
    if usage is not None:
        args["usage"] = {
            name: value
            for name, value in vars(usage).items()
            if isinstance(value, (int, float)) and value
        }
    return args
