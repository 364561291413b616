# SPDX-License-Identifier: Apache-2.0
"""python -m sandboxlib bench: measures in some seconds what a sandbox costs on this machine.

It runs the same small command bare, in sandboxes of sandboxlib, and in bubblewrap if that is
installed: network, mounts, processes and IPC isolated, with a new /proc and /tmp. The rows take
turns in random order. The figure of a round is the median of some runs, and ratios are taken
within a round. benchmarks/run.py in the source tree has more measurements and more rivals.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic, perf_counter_ns
from typing import Any

from .._version import __version__
from ..api import Sandbox, run_sandbox
from ..errors import SandboxError
from .parser import Parser

BARE, ONE_SHOT, PREPARED = "subprocess.run, no sandbox", "run_sandbox", "Sandbox.run"
BWRAP = "bubblewrap, through subprocess.run"
Row = Callable[[], object]

SAY = r"""
static long call(long number, long a, long b, long c) {
#if defined(__x86_64__)
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c)
                     : "rcx", "r11", "memory");
    return result;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
    return x0;
#endif
}
#include <asm/unistd.h>
void _start(void) {
    call(__NR_write, 1, (long)"ok\n", 3);
    for (;;)
        call(__NR_exit_group, 0, 0, 0);
}
"""


def main(argv: Sequence[str]) -> int:
    """Measure and print a table. Returns 1 if no executor here can isolate all of it."""
    parser = Parser(
        prog="python -m sandboxlib bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=_count, default=30)
    options = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="sandboxlib-bench-") as directory:
            os.chmod(directory, 0o755)
            root, command, description = _command(Path(directory))
            rows, executor = _rows(root, command)
            print(f"sandboxlib {__version__}, executor {executor}; the command is {description}")
            _print_table(_measure(rows, options.rounds))
    except SandboxError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"not a number from 1 on: {text!r}")
    return int(text)


def _command(directory: Path) -> tuple[str, str, str]:
    """A root, a command in it, and a description: a static program of 1 KB, or else /bin/true."""
    compiler = shutil.which("cc")
    if compiler is None:
        return "/", "/bin/true", "/bin/true, as there is no C compiler"
    for name in ("root/proc", "root/tmp"):
        (directory / name).mkdir(parents=True)
    (directory / "say.c").write_text(SAY)
    flags = "-Os -static -nostdlib -ffreestanding -fno-stack-protector -Wl,--build-id=none -Wl,-s"
    root, source = str(directory / "root"), str(directory / "say.c")
    argv = [compiler, *flags.split(), "-o", f"{root}/say", source]
    if subprocess.run(argv, capture_output=True, check=False).returncode != 0:
        return "/", "/bin/true", "/bin/true, as the C compiler does not link without libc"
    return root, "/say", "a static program of 1 KB"


def _rows(root: str, command: str) -> tuple[dict[str, Row], str]:
    """The rows, and the name of the executor."""
    options: dict[str, Any] = {"network": "isolated", "tmp": "private"}
    options |= {"filesystem_writable_paths": "none"}
    box = Sandbox(root, **options)
    first = box.run([command], cwd="/")

    def tool(*argv: str) -> Row:
        return lambda: subprocess.run(argv, capture_output=True, check=True)

    rows: dict[str, Row] = {
        BARE: tool(command if root == "/" else root + command),
        ONE_SHOT: lambda: run_sandbox(root, [command], cwd="/", **options),
        PREPARED: lambda: box.run([command], cwd="/"),
    }
    if bwrap := shutil.which("bwrap"):
        kinds = [f"--unshare-{kind}" for kind in ("pid", "ipc", "uts", "net", "cgroup")]
        mounts = ["--ro-bind", root, "/", "--proc", "/proc", "--tmpfs", "/tmp"]
        row = tool(bwrap, *kinds, "--new-session", *mounts, command)
        try:
            row()
            rows[BWRAP] = row
        except subprocess.CalledProcessError as error:
            print(f"no row for bubblewrap: {error.stderr.decode(errors='replace').strip()}")
    else:
        print("no row for bubblewrap: there is no bwrap in PATH")
    return rows, first.executor


def _measure(rows: dict[str, Row], rounds: int) -> dict[str, list[float]]:
    """The microseconds of each row, a value for each round. It stops after 15 s."""
    microseconds: dict[str, list[float]] = {name: [] for name in rows}
    end = monotonic() + 15
    for number in range(rounds + 1):
        for name in random.sample(list(rows), len(rows)):
            value = _block(rows[name])
            if number:  # the first round only fills the caches
                microseconds[name].append(value)
        if number and monotonic() > end:
            break
    return microseconds


def _block(row: Row) -> float:
    samples = []
    for _ in range(10):
        start = perf_counter_ns()
        row()
        samples.append(perf_counter_ns() - start)
    return statistics.median(samples[2:]) / 1000


def interval(values: Sequence[float]) -> tuple[float, float]:
    """A bootstrap interval of 95 % for the median."""
    pick = random.Random(1)
    medians = sorted(statistics.median(pick.choices(values, k=len(values))) for _ in range(1000))
    return medians[25], medians[974]


def _print_table(rows: dict[str, list[float]]) -> None:
    print(f"{'':36} {'us':>9} {'x Sandbox.run':>15}   95 %")
    for name, values in rows.items():
        ratios = [one / other for one, other in zip(values, rows[PREPARED], strict=True)]
        low, high = interval(ratios)
        middle, ratio = statistics.median(values), statistics.median(ratios)
        print(f"{name:36} {middle:9.0f} {ratio:15.2f}   {low:.2f} to {high:.2f}")
    print(f"medians of {len(values)} rounds")
