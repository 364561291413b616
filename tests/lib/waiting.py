# SPDX-License-Identifier: Apache-2.0
"""Functions that wait for something: long enough for a busy machine, but not for ever."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from sandboxlib import Result


def processes(mark: str) -> list[str]:
    """The pids of all processes that have this argument in their command line."""
    pids = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if mark.encode() in argv:
            pids.append(pid)
    return pids


def open_descriptors() -> set[str]:
    """The numbers of our open descriptors."""
    numbers = os.listdir("/proc/self/fd")  # also that of this listing
    return {number for number in numbers if os.path.lexists(f"/proc/self/fd/{number}")}


def wait_until(true: Callable[[], object], seconds: float = 60.0) -> bool:
    """Return True if it becomes true in time."""
    end = time.monotonic() + seconds
    while not true():  # it is checked once more after the end
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def late(run: Callable[[float], Result], said: Callable[[Result], object]) -> Result:
    """Run something with a timeout that ends it, but not before it has written something: a busy
    machine gets a longer timeout.
    """
    for timeout in (0.5, 5.0, 40.0):
        result = run(timeout)
        assert result.timed_out
        if said(result):
            break
    return result
