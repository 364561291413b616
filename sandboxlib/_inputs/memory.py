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

from .._host import machine
from .._images.child import removal
from .._store.locks import DIRECTORY, lock, new_directory, still_at

TYPE_CHECKING = False
if TYPE_CHECKING:
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

    def __init__(self, directory: _Directory, path: str, size: int) -> None:
        self._directory, self.path, self._size = directory, path, size

    def close(self) -> None:
        size, self._size = self._size, 0
        if size:
            self._directory.remove(self.path, size)

    def __del__(self) -> None:
        self.close()


class _Directory:
    """The directory of this process, which has locked it. path: str."""

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

    def stage(self, layer: Layer, size: int) -> InMemory | None:
        """A new layer; None if there is no room for it."""
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
        """Removes all of it, at the end of this process."""
        if self.is_ours and self._fd >= 0:
            _remove(self.path)
            self.abandon()

    def abandon(self) -> None:
        """Lets go of the lock: in a fork its process still has it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class _Process:
    """What this process has in memory. directory: None before the first use, and if there can be
    none. is_settled: whether that was found out.
    """

    def __init__(self) -> None:
        self.lock = allocate_lock()
        self.directory: _Directory | None = None
        self.is_settled = False

    def find(self) -> _Directory | None:
        """The directory, which the first use makes."""
        if not self.is_settled:
            with self.lock:
                if not self.is_settled:
                    self.directory = _new_directory()
                    self.is_settled = True
        return self.directory

    def forget(self) -> None:
        """Lets a fork make a directory of its own."""
        if self.directory is not None:
            self.directory.abandon()
        self.lock, self.directory, self.is_settled = allocate_lock(), None, False


_process = _Process()
os.register_at_fork(after_in_child=_process.forget)


def directory() -> str | None:
    """The path of the directory of this process; None if there can be none."""
    found = _process.find()
    return None if found is None else found.path


def stage(layer: Layer) -> InMemory | None:
    """A new layer in memory; None if it is too large, or there is no room: use the store."""
    size = layer.size
    found = _process.find() if size <= LARGEST else None
    return None if found is None else found.stage(layer, size)


def _new_directory() -> _Directory | None:
    if not _is_fit():
        return None
    try:
        _remove_leftovers()
        made = _Directory()
    except OSError:
        return None
    atexit.register(made.close)
    return made


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
