# SPDX-License-Identifier: Apache-2.0
"""Small inputs as layers in memory, for this process alone.

    /dev/shm/sandboxlib-RANDOM/  its process holds an exclusive flock(2) on it
        N/                       a layer; it is removed when nobody refers to it any more

The store keeps what other processes may want, so an entry of it takes locks, a rename and a dozen
writes to the metadata of a disk: milliseconds. Single files are mostly those of one command, and in
memory a layer of them takes a twentieth of that. What a killed process left, the next one removes.
"""

from __future__ import annotations

import atexit
import errno
import os
import stat
from _thread import allocate_lock
from itertools import count
from weakref import ref

from .._host import machine
from .._images.child import removal
from .._store.locks import DIRECTORY, lock, new_directory, still_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .staging import Layer

SHM = "/dev/shm"
_PREFIX = "sandboxlib-"
LARGEST = 1 << 18  # bytes of a layer
MOST = 1 << 24  # bytes of all layers of this process
#: What says that there is no room, or nothing any more: then a layer is staged in the store.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.ENOENT, errno.ESTALE)


class InMemory:
    """A layer in memory: it is removed when this is closed or collected. path: of its directory."""

    __slots__ = ("__weakref__", "_directory", "_size", "path")

    def __init__(self, directory: Directory, path: str, size: int) -> None:
        self._directory, self.path, self._size = directory, path, size

    def close(self) -> None:
        size, self._size = self._size, 0
        if size:
            self._directory.remove(self.path, size)

    def __del__(self) -> None:
        self.close()


class Directory:
    """The directory of this process, which has locked it. It is removed if nobody refers to it any
    more: neither a Placer nor a layer. path: str.
    """

    def __init__(self) -> None:
        self.path, self._fd = new_directory(SHM, _PREFIX, 8)
        self._pid = os.getpid()
        self._lock = allocate_lock()
        self._numbers = count()
        self._size = 0
        # A layer may be collected while this thread holds the lock: so that takes no lock.
        self._freed: list[int] = []

    @property
    def is_ours(self) -> bool:
        """False in a fork of the process that made it."""
        return self._pid == os.getpid()

    def stage(self, layer: Layer) -> InMemory | None:
        """A new layer in memory; None if it is too large, or there is no room: use the store."""
        size = layer.size
        if size > LARGEST:
            return None
        with self._lock:
            while self._freed:
                self._size -= self._freed.pop()
            if self._size + size > MOST:
                return None
            self._size += size
        made = InMemory(self, f"{self.path}/{next(self._numbers)}", size)
        try:
            layer.bring()
            os.mkdir(made.path, 0o700)
            layer.fill(made.path)
        except OSError as error:
            made.close()
            if isinstance(error, RuntimeError) or error.errno not in _FULL:  # a SetupError
                raise
            return None
        except BaseException:
            made.close()
            raise
        return made

    def remove(self, path: str, size: int) -> None:
        """Removes a layer. In a fork of this process it leaves it to its owner."""
        if not self.is_ours:
            return
        _remove(path)
        self._freed.append(size)

    def close(self) -> None:
        """Removes all of it."""
        if self.is_ours and self._fd >= 0:
            _remove(self.path)
            self.abandon()

    def abandon(self) -> None:
        """Lets go of the lock: in a fork its process still has it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class _Process:
    """What this process has in memory. is_fit: whether it can have anything; None: nobody asked."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._directory: Callable[[], Directory | None] = _nothing
        self._is_fit: bool | None = None

    def find(self) -> Directory | None:
        """The directory, made if there is none. None if there can be none."""
        with self._lock:
            found = self._directory()
            if self._is_fit is None:
                self._is_fit = _is_fit()
            if found is None and self._is_fit:
                try:
                    _remove_leftovers()
                    found = Directory()
                except OSError:
                    self._is_fit = False
                else:
                    self._directory = ref(found)
            return found

    def close(self) -> None:
        """Removes what is left at the end of the process."""
        if (found := self._directory()) is not None:
            found.close()

    def forget(self) -> None:
        """Lets a fork make a directory of its own."""
        if (found := self._directory()) is not None:
            found.abandon()
        self._lock, self._directory = allocate_lock(), _nothing


def _nothing() -> None:
    return None


_process = _Process()
os.register_at_fork(after_in_child=_process.forget)
atexit.register(_process.close)


def find() -> Directory | None:
    """The directory of this process; None if there can be none. Keep it as long as its path is in
    use.
    """
    return _process.find()


def _is_fit() -> bool:
    """Whether /dev/shm is memory in which nobody else can replace our directory. Before Linux 6.1 a
    tmpfs has no UUID, and an overlay over it has other inode numbers.
    """
    if machine.kernel_is_older_than(6, 1):
        return False
    try:
        status = os.stat(SHM, follow_symlinks=False)
    except OSError:
        return False
    is_safe = status.st_uid in (0, os.geteuid()) and (
        status.st_mode & stat.S_ISVTX or not status.st_mode & 0o022
    )
    types = [mount.type for mount in machine.mounts() if mount.point == SHM]
    return bool(is_safe and types[-1:] == ["tmpfs"] and os.access(SHM, os.W_OK))


def _remove_leftovers() -> None:
    """Removes the directories of processes of this user that were killed."""
    for name in os.listdir(SHM):
        path = os.path.join(SHM, name)
        if not name.startswith(_PREFIX):
            continue
        try:
            fd = os.open(path, DIRECTORY)
        except OSError:  # of another user, or its process has just removed it
            continue
        try:
            is_mine = os.fstat(fd).st_uid == os.geteuid()
            if is_mine and lock(fd, wait=False) and still_at(fd, path):
                removal.empty(fd)
                os.rmdir(path)
        except OSError:
            continue
        finally:
            os.close(fd)


def _remove(path: str) -> None:
    try:
        fd = os.open(path, DIRECTORY)
    except OSError:  # somebody else has removed it
        return
    try:
        removal.empty(fd)
        os.rmdir(path)
    except OSError:
        return  # what is left goes with the directory of this process
    finally:
        os.close(fd)
