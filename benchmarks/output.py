# SPDX-License-Identifier: Apache-2.0
"""Captures much output once, in a process of its own, because it measures the peak memory too.

python output.py DIRECTORY ROW BYTES   prints the seconds and the peak memory in bytes
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import rows
from loops import Loops

from sandboxlib import Sandbox

KEEP = "C reader that keeps it"
PLAIN = "subprocess.run, no sandbox"
CHROOT = "Sandbox.run, chroot only"
FULL = "Sandbox.run, full isolation"
ROWS = [KEEP, PLAIN, CHROOT, FULL]


def peak() -> int:
    """The peak memory of this process in bytes: proc_pid_status(5), VmHWM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel gives no VmHWM")


def seconds(directory: Path, row: str, size: int) -> float:
    """The seconds that it takes to capture all the output once."""
    if row == KEEP:
        return Loops(directory).keep(directory / "root" / "flood", size) / 1e9
    start = time.perf_counter()
    if row == PLAIN:
        argv = [directory / "root" / "flood"]
        out: bytes | None = subprocess.run(argv, capture_output=True, check=True).stdout
    else:
        options = rows.CHROOT if row == CHROOT else rows.FULL
        out = Sandbox(directory / "root", **options).run(["/flood"]).out
    spent = time.perf_counter() - start
    if out is None or len(out) != size:
        raise RuntimeError("the output is not complete")
    return spent


if __name__ == "__main__":
    print(seconds(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])), peak())
