# SPDX-License-Identifier: Apache-2.0
"""Pump waits for several runs at once, and Bell lets another thread wake it."""

from __future__ import annotations

import os
from _thread import allocate_lock
from collections.abc import Sequence

from .._sandbox import ffi as ffi
from .._sandbox import lib as lib
from .workspace import _ending, end_run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Pump:
    """Waits for several runs at once. most: the highest number of runs in one wait."""

    def __init__(self, most: int) -> None:
        self._runs = ffi.new("struct sbx_run *[]", most)
        self._results = ffi.new("enum sbx_pump_result[]", most)
        self._room = ffi.new("uint64_t[]", 4 * most)

    def __call__(self, structs: Sequence[Any], wait_ns: int) -> list[int]:
        """Wait at most wait_ns nanoseconds. Returns the enum sbx_pump_result of each run, as
        sbx_pump() gives it, or [] if no run has anything to do.
        """
        count = len(structs)
        self._runs[0:count] = structs
        if not lib.sbx_pump_any(self._runs, count, self._results, self._room, wait_ns):
            return []
        results: list[int] = ffi.unpack(self._results, count)
        return results


class Bell:
    """An eventfd(2) in the shape of a run, so that a Pump can wait for it: another thread wakes the
    Pump by ring(), which fills the output of this run.
    """

    def __init__(self) -> None:
        self._buffer = ffi.new("char[]", 8)  # the size of one read from an eventfd
        self._lock = allocate_lock()
        self._memory, self.struct = _ending("struct sbx_run *", lib.sbx_end)
        self.struct.out.buffer, self.struct.out.size = self._buffer, 8
        error = lib.sbx_open_bell(self.struct)
        if error < 0:
            raise OSError(-error, os.strerror(-error))

    def ring(self) -> None:
        """Wake the Pump. Does nothing if the bell is closed."""
        with self._lock:
            if self.struct.out.fd >= 0:
                os.eventfd_write(self.struct.out.fd, 1)

    def reset(self) -> None:
        """Empty the output, so that the next ring() wakes the Pump again."""
        self.struct.out.length = 0

    def close(self) -> None:
        with self._lock:
            end_run(self.struct)
