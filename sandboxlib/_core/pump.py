# SPDX-License-Identifier: Apache-2.0
"""Several runs at once: one wait for all of them, and a bell that wakes it."""

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


# ---- several runs at once ----------------------------------------------------------------------


class Pump:
    """One wait for several runs, `most` of them."""

    def __init__(self, most: int) -> None:
        self._runs = ffi.new("struct sbx_run *[]", most)
        self._results = ffi.new("enum sbx_pump_result[]", most)
        self._room = ffi.new("uint64_t[]", 4 * most)

    def __call__(self, structs: Sequence[Any], wait_ns: int) -> list[int]:
        """What there is to be done for each of the runs, as by sbx_pump; [] where there is nothing
        for any.
        """
        count = len(structs)
        self._runs[0:count] = structs
        if not lib.sbx_pump_any(self._runs, count, self._results, self._room, wait_ns):
            return []
        results: list[int] = ffi.unpack(self._results, count)
        return results


class Bell:
    """By which a thread wakes one that pumps: in the form of a run, whose output is full then."""

    def __init__(self) -> None:
        self._buffer = ffi.new("char[]", 8)  # eventfd(2)
        self._lock = allocate_lock()
        self._memory, self.struct = _ending("struct sbx_run *", lib.sbx_end)
        self.struct.out.buffer, self.struct.out.size = self._buffer, 8
        error = lib.sbx_open_bell(self.struct)
        if error < 0:
            raise OSError(-error, os.strerror(-error))

    def ring(self) -> None:
        """Does nothing once it is closed."""
        with self._lock:
            if self.struct.out.fd >= 0:
                os.eventfd_write(self.struct.out.fd, 1)

    def reset(self) -> None:
        """Was heard."""
        self.struct.out.length = 0

    def close(self) -> None:
        with self._lock:
            end_run(self.struct)
