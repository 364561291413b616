# SPDX-License-Identifier: Apache-2.0
"""Open files: those that are read together in one call of the core, and one that no exception of a
signal handler leaves open.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from .._sandbox import ffi as ffi
from .._sandbox import lib as lib

_CURRENT = -100  # AT_FDCWD


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


class Descriptor:
    """A file that is open as long as this object lives, or until close().

    The core stores the number, and closes it when the object goes. So an exception of a signal
    handler, which may come as soon as a call has returned, does not leave the file open.
    """

    __slots__ = ("_fd",)

    def __init__(self) -> None:
        self._fd = ffi.gc(ffi.new("int *", -1), lib.sbx_close)

    @property
    def number(self) -> int:
        """-1: nothing is open."""
        fd: int = self._fd[0]
        return fd

    def open(self, path: str, flags: int) -> None:
        """As os.open(path, flags). Closes what was open. OSError."""
        self._open(_CURRENT, path, flags, False)

    def open_in_root(self, directory: int, path: str, flags: int) -> None:
        """As open(), with every link resolved with `directory` as the root; "" is the directory."""
        self._open(directory, path, flags, True)

    def _open(self, directory: int, path: str, flags: int, in_root: bool) -> None:
        error = lib.sbx_open_into(self._fd, directory, os.fsencode(path), flags, in_root)
        if error < 0:
            raise OSError(-error, os.strerror(-error), path)

    def close(self) -> None:
        lib.sbx_close(self._fd)


def _check(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
