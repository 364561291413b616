# SPDX-License-Identifier: Apache-2.0
"""Storage: a directory of entries that are whole or absent, shared by any number of processes.

    KIND/NAME        an entry: a file, or a directory with `tree`, `size` and more of its maker's
    tmp/RANDOM/      what is being made, or removed: its maker holds an exclusive flock(2) on it
    locks/KIND+NAME  the lock of the process that makes that entry, so that others wait for it

An entry is renamed into its place once it is whole, and out of it before it is removed. Who uses an
entry holds a shared lock on it, its lease, and only an entry without leases is removed. A process
that is killed loses its locks: then the next one removes what it left below tmp.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator

from .. import _types
from .._images.child import removal
from .._values import AnyStore, absolute, check_path, check_size, unknown_keyword
from ..errors import setup_error
from .locks import DIRECTORY, Lease, lock, new_directory, still_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._types import Path

_EVERY = 60.0  # seconds: an entry's time of use is this exact
_FULL = (errno.ENOSPC, errno.EDQUOT)
_TMP, _LOCKS = "tmp", "locks"
#: Bytes that this process published to each directory since the size was last looked at.
_published: dict[str, int] = {}


class Entry:
    """One entry, for prune and list. used: the time of its last lease, in seconds since 1970."""

    def __init__(self, kind: str, name: str, path: str, size: int, used: float) -> None:
        self.kind, self.name, self.path, self.size, self.used = kind, name, path, size, used


class New:
    """What is being made, below tmp; a context manager that removes it unless it was published.

    tree: the path of a directory of mode 0700, to be filled. file: a path, for an entry that is a
    single file, in place of the tree.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path, self.fd = path, fd
        self.entry = os.path.join(path, "entry")
        self.tree = os.path.join(self.entry, "tree")
        self.file = os.path.join(path, "file")

    def write(self, name: str, data: bytes) -> None:
        """Write a file beside the tree."""
        with open(os.path.join(self.entry, name), "xb", opener=_private) as file:
            file.write(data)


class Storage(AnyStore):
    """Where a caller keeps what is made once for many runs; see sandboxlib.Store, which adds what
    takes a confined child.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        max_size: int | str | None = None,
        **unknown: _types.NoReturn,
    ) -> None:
        if unknown:
            raise unknown_keyword(type(self).__name__, unknown, self._fields)
        if directory is None:
            directory = _default()
        if max_size is not None:
            max_size = check_size("max_size", max_size, 0, 1 << 62)
        path = absolute(check_path("the directory of a store", directory))
        self.__dict__.update(directory=path, max_size=max_size)

    def prune(self, max_size: int | str = 0) -> int:
        """Removes the entries that were used least recently, until the store is no larger than
        `max_size`. Returns how many bytes that freed.

        max_size: int, bytes, or a str like "2G"; 0 (the default): removes all that nobody uses.

        It never removes what a run has in use. What killed processes left behind, it always
        removes. Raises SpecError for a wrong size; SetupError if the store cannot be read or
        written.
        """
        most = check_size("max_size", max_size, 0, 1 << 62)
        self._ready()
        with self._step("remove what nobody uses from"):
            freed = self._remove_leftovers()
            entries = sorted(self._entries(), key=lambda entry: entry.used)
            left = sum(entry.size for entry in entries)
            for entry in entries:
                if left <= most:
                    break
                gone = self._remove(entry)
                if gone is not None:
                    left -= entry.size
                    freed += gone
        return freed

    # ---- for those who make and use entries ----

    @contextlib.contextmanager
    def _new(self) -> Iterator[New]:
        """Something to fill and to publish: `with store._new() as new: ...`."""
        self._ready()
        self._remove_leftovers()
        with self._step("make something in"):
            new = self._locked()
        try:
            os.mkdir(new.entry, 0o700)
            os.mkdir(new.tree, 0o700)
            yield new
        except OSError as error:
            if error.errno in _FULL and not isinstance(error, RuntimeError):
                raise self._error(error, "make something in") from error
            raise
        finally:
            try:
                self._drop(new)
            finally:
                os.close(new.fd)

    def _locked(self) -> New:
        """A new directory below tmp, which this process has locked."""
        return New(*new_directory(self._path(_TMP), "", 12))

    def _publish(self, new: New, kind: str, name: str, size: int | None = None) -> Lease:
        """Give what was made its place, and return a lease of it. If the entry is there already, it
        stays, and `new` is removed.

        kind: the directory of such entries, as in "layers/real". name: one that needs no escape.
        size: bytes that it takes on the disk; None: they are counted, which takes a look at every
        file.
        """
        is_file = os.path.lexists(new.file)
        with self._step("put something into"):
            os.makedirs(self._path(kind), 0o700, exist_ok=True)
            if size is None:
                size = _size(new.file if is_file else new.tree)
            if not is_file:
                new.write("size", b"%d" % size)
            lease = self._put(new, is_file, kind, name)
        self._count(size)
        return lease

    def _put(self, new: New, is_file: bool, kind: str, name: str) -> Lease:
        path = self._path(kind, name)
        source = new.file if is_file else new.entry
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        lock(fd, wait=False, shared=True)
        try:
            while True:
                try:
                    if is_file:
                        os.link(source, path, follow_symlinks=False)
                    else:
                        os.rename(source, path)
                    return Lease(path if is_file else os.path.join(path, "tree"), fd)
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                        raise
                other = self._lease(kind, name)
                if other is not None:
                    os.close(fd)
                    return other
        except BaseException:
            os.close(fd)
            raise

    def _lease(self, kind: str, name: str) -> Lease | None:
        """Keep an entry from being removed until the lease is closed or collected. Returns None if
        there is no such entry.

        Lease.path: the file, or the tree of the entry.
        """
        path = self._path(kind, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._error(error, "open an entry of") from error
        try:
            at = os.fstat(fd)
            if at.st_uid != os.geteuid():
                raise self._refused(path, "belongs to another user")
            if not lock(fd, wait=False, shared=True) or not still_at(fd, path):
                os.close(fd)  # somebody is removing it
                return None
            if time.time() - at.st_mtime > _EVERY:
                os.utime(fd)
        except BaseException:
            os.close(fd)
            raise
        return Lease(os.path.join(path, "tree") if stat.S_ISDIR(at.st_mode) else path, fd)

    def _forget(self, kind: str, name: str) -> None:
        """Remove an entry that is a file, for a newer one in its place."""
        with self._step("remove something from"), contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(kind, name))

    @contextlib.contextmanager
    def _making(self, kind: str, name: str, deadline: float | None = None) -> Iterator[None]:
        """Wait until no other process or thread makes this entry, and keep others from making it:
        look for the entry again inside of the block.

        deadline: a time of time.monotonic(); None: none. Raises SetupError (ETIMEDOUT) after it.
        """
        self._ready()
        path = self._path(_LOCKS, f"{kind.replace('/', '+')}+{name}")
        with self._step("lock something in"):
            fd = self._own_lock(path, deadline)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)
            os.close(fd)

    def _own_lock(self, path: str, deadline: float | None) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        pause = 0.001
        while True:
            fd = os.open(path, flags, 0o600)
            if lock(fd, wait=False) and still_at(fd, path):
                return fd
            os.close(fd)
            if deadline is not None and time.monotonic() > deadline:
                what = f"wait for another process that makes {os.path.basename(path)}"
                hint = "timeout= gives it longer"
                raise setup_error(errno.ETIMEDOUT, path, "store", what, hint)
            time.sleep(pause)
            pause = min(0.05, 2 * pause)

    # ---- the directory ----

    def _path(self, *parts: str) -> str:
        return os.path.join(self.directory, *parts)

    def _ready(self) -> None:
        """Make the directory if it is missing. Raises SetupError if another user could write it."""
        with self._step("make the directory of"):
            os.makedirs(self.directory, 0o700, exist_ok=True)
        self._check(self.directory, os.stat(self.directory))
        for name in (_TMP, _LOCKS):
            path = self._path(name)
            with self._step("make the directory of"), contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            self._check(path, os.stat(path, follow_symlinks=False))

    def _check(self, path: str, at: os.stat_result) -> None:
        if not stat.S_ISDIR(at.st_mode):
            raise self._refused(path, "is no directory", errno.ENOTDIR)
        if at.st_uid != os.geteuid():
            raise self._refused(path, "belongs to another user")
        if at.st_mode & 0o022:
            raise self._refused(path, "can be written by other users: chmod go-w")

    def _refused(self, path: str, why: str, number: int = errno.EPERM) -> Exception:
        hint = "Store(directory) names another, XDG_CACHE_HOME the parent of the default one"
        what = f"use the store {self.directory}: {path} {why}"
        return setup_error(number, path, "store", what, hint)

    def _error(self, error: OSError, what: str) -> Exception:
        hint = "Store(directory) names another"
        if error.errno in _FULL:
            hint = f"Store.prune() removes what nobody uses; {hint}"
        path = error.filename if isinstance(error.filename, str) else self.directory
        what = f"{what} the store {self.directory}"
        return setup_error(error.errno or errno.EIO, path, "store", what, hint)

    @contextlib.contextmanager
    def _step(self, what: str) -> Iterator[None]:
        """Turn an OSError into a SetupError that says what we were about."""
        try:
            yield
        except OSError as error:
            if isinstance(error, RuntimeError):  # a SetupError
                raise
            raise self._error(error, what) from error

    # ---- what there is, and its removal ----

    def _kinds(self) -> list[str]:
        """The directories of entries: those on top, and below `layers` and its like."""
        kinds = []
        for name in sorted(os.listdir(self.directory)):
            if name not in (_TMP, _LOCKS) and _is_directory(self._path(name)):
                kinds += self._kinds_below(name)
        return kinds

    def _kinds_below(self, kind: str) -> list[str]:
        """The kind, or if it is one of kinds, these: a directory without `size` is no entry."""
        inner = [
            f"{kind}/{name}"
            for name in sorted(os.listdir(self._path(kind)))
            if _is_directory(self._path(kind, name))
            and not os.path.lexists(self._path(kind, name, "size"))
        ]
        return [kind, *inner]

    def _entries(self) -> Iterator[Entry]:
        for kind in self._kinds():
            for name in sorted(os.listdir(self._path(kind))):
                path = self._path(kind, name)
                with contextlib.suppress(OSError, ValueError):  # it is gone, or no entry
                    at = os.stat(path, follow_symlinks=False)
                    size = at.st_blocks * 512
                    if stat.S_ISDIR(at.st_mode):
                        with open(os.path.join(path, "size"), "rb") as file:
                            size = int(file.read(20))
                    elif not stat.S_ISREG(at.st_mode):
                        continue
                    yield Entry(kind, name, path, size, at.st_mtime)

    def _remove(self, entry: Entry) -> int | None:
        """Remove an entry. Returns the bytes that are free now; None if somebody uses it, or it is
        gone.
        """
        try:
            fd = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        try:
            if not lock(fd, wait=False) or not still_at(fd, entry.path):
                return None
            new = self._locked()
            try:
                os.rename(entry.path, new.entry)
                return self._drop(new)
            finally:
                os.close(new.fd)
        finally:
            os.close(fd)

    def _remove_leftovers(self) -> int:
        """Remove what killed processes left below tmp. Returns the bytes that are free now."""
        freed = 0
        for name in os.listdir(self._path(_TMP)):
            path = self._path(_TMP, name)
            try:
                fd = os.open(path, DIRECTORY)
            except OSError:  # its maker has just removed it
                continue
            try:
                if lock(fd, wait=False) and still_at(fd, path):
                    freed += self._drop(New(path, fd))
            finally:
                os.close(fd)
        return freed

    def _drop(self, new: New) -> int:
        """Remove a directory below tmp, which this process has locked. Returns the bytes that are
        free now.
        """
        try:
            freed = removal.empty(new.fd)
        except PermissionError:
            freed = self._empty_foreign(new)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(new.path)
        return freed

    def _empty_foreign(self, new: New) -> int:
        """Empty a directory that has files of the caller's ranges of ids. Only a process with these
        ids can do that, which Store starts.
        """
        raise self._refused(new.path, "has files of the caller's ranges of ids")

    def _count(self, size: int) -> None:
        """Prune the store now and then, if it has a max_size: a look at all entries takes longer
        than publishing one.
        """
        if self.max_size is None:
            return
        total = _published.get(self.directory, self.max_size) + size
        if total > self.max_size // 16:
            self.prune(self.max_size)
            total = 0
        _published[self.directory] = total


def _default() -> str:
    """The directory of the XDG Base Directory Specification for what can be made again."""
    parent = os.environ.get("XDG_CACHE_HOME", "")
    if not parent.startswith("/"):  # it says that a relative path counts as none
        parent = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(parent, "sandboxlib")


def _is_directory(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _size(top: str) -> int:
    """The bytes of blocks that a tree takes, each file counted once."""
    at = os.stat(top, follow_symlinks=False)
    size = at.st_blocks * 512
    if not stat.S_ISDIR(at.st_mode):
        return size
    seen: set[tuple[int, int]] = set()
    todo = [top]
    while todo:
        try:
            scan = os.scandir(todo.pop())
        except PermissionError:  # its mode keeps even its owner out: it counts as empty
            continue
        with scan:
            for entry in scan:
                at = entry.stat(follow_symlinks=False)
                if at.st_nlink > 1 and not stat.S_ISDIR(at.st_mode):
                    if (at.st_dev, at.st_ino) in seen:
                        continue
                    seen.add((at.st_dev, at.st_ino))
                size += at.st_blocks * 512
                if stat.S_ISDIR(at.st_mode):
                    todo.append(entry.path)
    return size


def storage_of(box: Any) -> Any:
    """The store of a Sandbox: its own, or the default one."""
    return box.store if box.store is not None else Storage()
