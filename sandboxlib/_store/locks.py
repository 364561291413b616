# SPDX-License-Identifier: Apache-2.0
"""Locks by flock(2): they belong to an open file, so threads have them as well as processes, and
they end with their holder, however it ends.
"""

from __future__ import annotations

import fcntl
import os

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def lock(fd: int, *, wait: bool, shared: bool = False) -> bool:
    """Lock an open file. Returns False if another one has it. wait: True: it waits for that."""
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(fd, how if wait else how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def still_at(fd: int, path: str) -> bool:
    """Return True if the path still leads to the open file."""
    try:
        at = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(at, os.fstat(fd))


def new_directory(parent: str, prefix: str, size: int) -> tuple[str, int]:
    """Make a directory of mode 0700 that this process has locked. Returns its path and descriptor.

    size: random bytes of its name. Another process may take one that is not locked yet for a
    leftover, and remove it: then another one is made.
    """
    while True:
        path = os.path.join(parent, prefix + os.urandom(size).hex())
        os.mkdir(path, 0o700)
        try:
            fd = os.open(path, DIRECTORY)
        except FileNotFoundError:
            continue
        if lock(fd, wait=False) and still_at(fd, path):
            return path, fd
        os.close(fd)


class Lease:
    """Keeps an entry of a store from being removed, until it is closed or collected.

    path: the file or directory that it is about.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()
