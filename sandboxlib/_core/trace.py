# SPDX-License-Identifier: Apache-2.0
"""The memory of a trace, and the call of the core that fills it."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from struct import unpack_from

from .._sandbox import ffi as ffi
from .._sandbox import lib as lib

ASKED: int = lib.SBX_ASKED
OPENED: int = lib.SBX_OPENED
EXECED: int = lib.SBX_EXECED
FOUND: int = lib.SBX_FOUND
MISSING: int = lib.SBX_MISSING
IS_NAMED: int = lib.SBX_IS_NAMED
MOST_PROGRAM: int = lib.SBX_MOST_TRACE
_SIZE = 16 << 20  # bytes of records: of paths of common length, more than _PLACES hold
_PLACES = 1 << 17  # three quarters of them are used
_FIRST_PLACES = 1 << 12


class TraceMemory:
    """A struct sbx_trace with its records.

    socket, stop: descriptors. table, audits: as _seccomp.paths.tracing() returns them. waits:
    whether the kernel ends a wait for calls with the last process of the run (Linux 6.11).
    may_wait: whether a file system of the run may be one that the run itself answers for.
    """

    def __init__(
        self,
        socket: int,
        stop: int,
        table: bytes,
        audits: tuple[int, int],
        waits: bool,
        may_wait: bool,
    ) -> None:
        self._table = ffi.from_buffer(table)
        # Of an anonymous mapping only what is written takes memory.
        self._room = ffi.from_buffer("char[]", mmap.mmap(-1, _SIZE, mmap.MAP_PRIVATE))
        self._places = ffi.from_buffer("uint32_t[]", mmap.mmap(-1, 4 * _PLACES, mmap.MAP_PRIVATE))
        self.struct = ffi.new("struct sbx_trace *")
        self.struct.socket, self.struct.stop = socket, stop
        self.struct.listener = self.struct.root = -1
        self.struct.audits = audits
        self.struct.calls = ffi.cast("struct sbx_path_call *", self._table)
        self.struct.room, self.struct.size = self._room, _SIZE
        self.struct.table, self.struct.table_size = self._places, _FIRST_PLACES
        self.struct.most_table = _PLACES
        self.struct.waits = waits
        self.struct.may_wait = may_wait

    def begin(self) -> int:
        """Waits until the run begins. Returns 0 or -errno: -ECANCELED if it does not begin."""
        error: int = lib.sbx_begin_trace(self.struct)
        return error

    def follow(self) -> int:
        """Sees the calls of a run until it is over, or `stop` is readable. 0 or -errno."""
        error: int = lib.sbx_trace(self.struct)
        return error

    def close(self) -> None:
        """Lets the calls of the run fail that still come (ENOSYS)."""
        lib.sbx_close(ffi.addressof(self.struct, "listener"))
        lib.sbx_close(ffi.addressof(self.struct, "root"))

    @property
    def root(self) -> int:
        """A descriptor of the root of the run, from begin() to close()."""
        fd: int = self.struct.root
        return fd

    def records(self) -> Iterator[tuple[int, bytes]]:
        """What is known of each path: flags, and the path as it was asked for."""
        content = ffi.buffer(self._room)
        at = 0
        while at < self.struct.used:
            flags, size = unpack_from("=II", content, at)
            yield flags, content[at + 16 : at + 16 + size]
            at += (16 + size + 7) & ~7

    @property
    def truncated(self) -> bool:
        return bool(self.struct.truncated)

    @property
    def n_calls(self) -> int:
        count: int = self.struct.n_calls
        return count

    @property
    def n_unknown(self) -> int:
        count: int = self.struct.n_unknown
        return count


def may_trace() -> int:
    """Whether this process may read the memory of another: 0, or an errno."""
    error: int = lib.sbx_may_trace()
    return -error
