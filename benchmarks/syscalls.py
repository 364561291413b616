# SPDX-License-Identifier: Apache-2.0
"""Counts the system calls of a run by strace, and compares the library with straight.c."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rows import CHROOT, FULL, takes_fresh

STRAIGHT_SCRIPT = """
import ctypes, sys
run = ctypes.CDLL({library!r}).straight
run.restype = ctypes.c_int64
for _ in range(int(sys.argv[1])):
    assert run({root!r}, b"/say", {full}) > 0
"""
OURS_SCRIPT = """
import sys
from sandboxlib import Mount, Policy, Sandbox
box = Sandbox({root!r}, **{options!r})
for _ in range(int(sys.argv[1])):
    box.run(["/say"]{how})
"""


def traced(directory: Path, script: str) -> dict[str, float]:
    """The number of system calls of one run, by name, in the caller and the child together."""
    totals = []
    for count in (10, 110):
        argv = ["strace", "-f", "-c", "-U", "calls,name", "-o", str(directory / "trace")]
        subprocess.run([*argv, sys.executable, "-c", script, str(count)], check=True)
        lines = [line.split() for line in (directory / "trace").read_text().splitlines()[2:]]
        totals.append({w[1]: int(w[0]) for w in lines if len(w) == 2 and w[0].isdigit()})
    return {key: (totals[1][key] - totals[0].get(key, 0)) / 100 for key in totals[1]}


def count_syscalls(directory: Path) -> int:
    """Print the system calls of the library. Returns 1 if straight.c makes other ones, else 0."""
    root, library, missed = directory / "root", directory / "straight.so", 0
    fresh = ", fresh=True" if takes_fresh() else ""
    for name, full, how, options in (
        ("chroot only", 0, fresh, CHROOT),
        ("full isolation, fresh, init=False", 1, fresh, {**FULL, "init": False}),
        ("full isolation, fresh", None, fresh, FULL),
        *([("full isolation, prepared", None, "", FULL)] if fresh else []),
    ):
        ours = traced(directory, OURS_SCRIPT.format(root=str(root), options=options, how=how))
        signals = ours.get("rt_sigaction", 0)
        print(f"{name}: {ours['total']:.0f} system calls, {signals:.0f} of them rt_sigaction")
        if full is None:
            continue
        script = STRAIGHT_SCRIPT.format(library=str(library), root=os.fsencode(root), full=full)
        loop = traced(directory, script)
        # How often a wait wakes, and whether before the last byte, depends on the scheduler.
        differ = {
            key: (loop.get(key, 0), ours.get(key, 0))
            for key in sorted({*loop, *ours} - {"total", "ppoll", "read", "ioctl"})
            if abs(loop.get(key, 0) - ours.get(key, 0)) > 0.5
        }
        verdict = f"NOT the same (loop, library): {differ}" if differ else "the same"
        print(f"    straight.c calls {verdict}")
        missed += bool(differ)
    return min(missed, 1)
