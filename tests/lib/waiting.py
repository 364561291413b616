# SPDX-License-Identifier: Apache-2.0
"""How tests wait for something: as long as it takes on a busy machine, and not forever."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from sandboxlib import Result


def processes(mark: str) -> list[str]:
    """The pids of all processes that have this word in their command line."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if mark.encode() in words:
            found.append(pid)
    return found


def wait_until(true: Callable[[], object], seconds: float = 60.0) -> bool:
    """Whether it becomes true in time."""
    end = time.monotonic() + seconds
    while not true():  # a last look, however late it is
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def late(run: Callable[[float], Result], said: Callable[[Result], object]) -> Result:
    """A run that its timeout ends, and that had said something by then: a busy machine is given
    longer.
    """
    for timeout in (0.5, 5.0, 40.0):
        result = run(timeout)
        assert result.timed_out
        if said(result):
            break
    return result
