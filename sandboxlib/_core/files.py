# SPDX-License-Identifier: Apache-2.0
"""Open files that are read together, in one call of the core."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .._sandbox import ffi as ffi
from .._sandbox import lib as lib


class OpenFiles:
    """The beginnings of several open files.

    files: (descriptor, bytes) of each. read() returns so many bytes of each, one after the other;
    a shorter file is filled up with zeros.
    """

    def __init__(self, files: Sequence[tuple[int, int]]) -> None:
        self._count = len(files)
        self._fds = ffi.new("int[]", [fd for fd, _ in files])
        self._sizes = ffi.new("int[]", [size for _, size in files])
        self._room = ffi.new("char[]", sum(size for _, size in files))

    def read(self) -> bytes:
        """Raises OSError if one cannot be read."""
        _check(lib.sbx_read_files(self._count, self._fds, self._sizes, self._room))
        content: bytes = ffi.buffer(self._room)[:]
        return content


class FileStatuses:
    """The modes, owners and numbers of links of several open files."""

    def __init__(self, fds: Sequence[int]) -> None:
        self._fds = ffi.new("int[]", fds)
        self._room = ffi.new("uint32_t[]", 4 * len(fds))

    def read(self) -> bytes:
        """Raises OSError if one is not open."""
        _check(lib.sbx_stat_files(len(self._fds), self._fds, self._room))
        content: bytes = ffi.buffer(self._room)[:]
        return content


def _check(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
