# SPDX-License-Identifier: Apache-2.0
"""Uppers on disk: new ones, which are removed after their run, and those of Overlay(upper=...).

Both are a directory with `upper` and `work` in it, and `empty` to stand for the layers of an
overlay that has none. Whoever uses one has a lock on it (flock(2)), which ends with its process. So
a new one whose lock is free was left by a process that was killed: the next one that makes an upper
in the same place removes it, and Store.prune() does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from time import monotonic, sleep

from .. import errors
from .._host import machine
from .._images.child import removal
from .._spec.overlay import Layers, Lower
from .._store.locks import DIRECTORY, lock, new_directory, still_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    AnyUpper = TypeVar("AnyUpper", bound="DiskUpper")

PREFIX = "sandboxlib-upper-"
_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_PAUSE = 0.01  # seconds between two looks at a lock
_LONGEST_END = 10.0  # seconds that a run may live on after its caller was killed
_swept: set[str] = set()  # directories in which this process looked for leftovers


class DiskUpper:
    """A directory with an upper in it, which the run has to itself until it is closed.

    path: str. fd: int, what is locked. remove: removes the directory when it is closed: a function
    that is called with the path if its files belong to ids of the caller's ranges; None: it stays.
    """

    _fd = -1  # an interrupt may come before __init__ has begun

    def __init__(self, path: str, fd: int, remove: Callable[[str], object] | None = None) -> None:
        self.path, self._fd, self._remove = path, fd, remove

    def note(self, pid: int) -> None:
        """Is told the first process of the run. A new upper is no other run's, whatever happens."""

    def close(self) -> None:
        """Lets go of the directory. Does nothing the second time."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            if self._remove is not None:
                _drop(self.path, fd, self._remove)
        finally:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class KeptUpper(DiskUpper):
    """The upper of Overlay(upper=...), whose lock file also names the first process of the run.

    The lock ends with the host, and if that is killed its run lives a little longer: whoever comes
    next waits for this process.
    """

    def __init__(self, path: str, fd: int) -> None:
        super().__init__(path, fd)
        self._noted_by = 0  # a process: in a fork of it the run is another's

    def note(self, pid: int) -> None:
        """Writes down the first process of the run."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, b"%d %d\n" % (pid, machine.start_time_of(pid)), 0)
        self._noted_by = os.getpid()

    def close(self) -> None:
        """Lets go of the directory. Does nothing the second time."""
        if self._fd >= 0 and self._noted_by == os.getpid():
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
        super().close()


def place_of(storage: str) -> str:
    """The directory in which new uppers are made. storage: as in Overlay."""
    if storage != "disk":
        return str(storage)
    directory = os.environ.get("TMPDIR", "")
    return directory if directory.startswith("/") else "/var/tmp"


def new_upper(
    storage: str, lowers: Sequence[Lower], gives_owners: bool, remove: Callable[[str], object]
) -> DiskUpper:
    """Makes a new upper on disk. gives_owners: the ids of files are those of the machine. Raises
    SetupError.
    """
    parent = place_of(storage)
    if parent not in _swept:
        _swept.add(parent)
        sweep(parent, remove)
    with _making(parent):
        path, fd = new_directory(parent, PREFIX, 8)
        with _closed_on_error(DiskUpper(path, fd, remove)) as upper:
            _furnish(path, lowers, gives_owners)
    return upper


@contextlib.contextmanager
def _closed_on_error(upper: AnyUpper) -> Iterator[AnyUpper]:
    """An exception keeps the frames that it left, and what they hold would stay locked."""
    try:
        yield upper
    except BaseException:
        upper.close()
        raise


def sweep(parent: str, remove: Callable[[str], object]) -> int:
    """Removes the uppers of this user in a directory that killed processes left. Returns how many
    bytes are free now.

    remove: as in DiskUpper.
    """
    freed = 0
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            if not name.startswith(PREFIX):
                continue
            path = os.path.join(parent, name)
            with contextlib.suppress(OSError):  # another process was faster, or it is no such thing
                fd = os.open(path, DIRECTORY)
                try:
                    is_ours = os.fstat(fd).st_uid == os.geteuid() and not _is_kept(fd)
                    if is_ours and lock(fd, wait=False) and still_at(fd, path):
                        freed += _drop(path, fd, remove)
                finally:
                    os.close(fd)
    return freed


def _is_kept(fd: int) -> bool:
    """Whether a directory is one of Overlay(upper=...), whatever its name: it has a `lock`."""
    try:
        os.stat("lock", dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _drop(path: str, fd: int, remove: Callable[[str], object]) -> int:
    """Removes an upper. Returns the bytes that are free now, if this process could count them."""
    freed = 0
    try:
        freed = removal.empty(fd)
    except PermissionError:
        remove(path)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(path)
    return freed


def _furnish(path: str, lowers: Sequence[Lower], gives_owners: bool) -> None:
    """Makes the directories. The upper looks as the root of the top layer, which it hides."""
    for name in ("work", "empty"):
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.join(path, name), 0o700)
    upper = os.path.join(path, "upper")
    os.mkdir(upper, 0o700)
    if not lowers:
        os.chmod(upper, 0o755)
        return
    top = _look(lowers[-1].path)
    if gives_owners:
        os.chown(upper, top.st_uid, top.st_gid)
    os.chmod(upper, stat.S_IMODE(top.st_mode))
    os.utime(upper, ns=(top.st_mtime_ns, top.st_mtime_ns))


def _look(layer: str) -> os.stat_result:
    try:
        return os.stat(layer)
    except OSError as error:
        hint = "a layer is a directory of the caller's, and has to be there"
        raise errors.setup_error(error.errno or 0, layer, "layer", f"layer {layer}", hint) from None


@contextlib.contextmanager
def _making(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, errors.SetupError):
            raise
        number = error.errno or 0
        hint = "make the directory, or give another as storage" if number == errno.ENOENT else ""
        raise errors.setup_error(number, path, "upper", f"make an upper in {path}", hint) from error


# ---- Overlay(upper=...) ----------------------------------------------------------------------


def keys_of(layers: Sequence[Any], prefix: bytes) -> list[str]:
    """What a kept upper remembers of the layers below it, a line for each: an upper is of no use
    over others. prefix: of the overlay's attributes, by which it knows what was removed.
    """
    keys = [f"attributes {prefix.decode()}*"]
    for layer in layers:
        if isinstance(layer, Layers):
            keys.append(f"{type(layer).__name__} {layer._key()}")
        else:
            keys.append(f"directory {_look(layer).st_ino} {layer!r}")
    return keys


def kept_upper(
    path: str,
    busy: str,
    keys: Sequence[str],
    lowers: Sequence[Lower],
    gives_owners: bool,
    deadline: float | None,
    check_stop: Callable[[], None],
) -> KeptUpper:
    """Locks the upper of Overlay(upper=path), and makes it if it is missing.

    keys: what keys_of() returns. deadline: by monotonic(), or None. check_stop: raises if the wait
    for another run has to end. SetupError: EBUSY if it is in use, and `busy` says to refuse that;
    ESTALE for other layers; ETIMEDOUT.
    """
    with _making(path):
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        fd = os.open(os.path.join(path, "lock"), _FILE, 0o600)
        with _closed_on_error(KeptUpper(path, fd)) as upper:
            while not lock(fd, wait=False):
                _check_wait(path, busy, deadline)
                check_stop()
                sleep(_PAUSE)
            given_up = monotonic() + _LONGEST_END
            while pid := _left_behind(fd):
                _check_wait(path, busy, min(deadline or given_up, given_up), pid)
                check_stop()
                sleep(_PAUSE)
            _check_layers(path, keys, lowers, gives_owners)
    return upper


def _check_layers(
    path: str, keys: Sequence[str], lowers: Sequence[Lower], gives_owners: bool
) -> None:
    """Makes an upper that is missing, and refuses one over other layers."""
    text = "".join(f"{key}\n" for key in keys).encode(errors="surrogateescape")
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(os.path.join(path, "layers"), flags), "rb") as file:
            found = file.read()
    except FileNotFoundError:
        _begin(path, text, lowers, gives_owners)
        return
    if found != text:
        what = f"use the upper {path}"
        raise errors.setup_error(errno.ESTALE, path, "upper", what, _other(found, text))


def is_free(path: str) -> bool:
    """Whether no run uses the upper of Overlay(upper=path) now, as far as the caller can see."""
    try:
        fd = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # there is none yet; for another reason the run says more
        return True
    try:
        return lock(fd, wait=False) and not _left_behind(fd)
    finally:
        os.close(fd)


def _left_behind(fd: int) -> int:
    """The first process of a run whose host was killed, as long as it lives; 0: there is none."""
    noted = os.pread(fd, 64, 0).split()
    if len(noted) != 2 or not all(each.isdigit() and len(each) < 20 for each in noted):
        return 0
    pid, start = map(int, noted)
    return pid if pid and machine.start_time_of(pid) == start else 0


def _check_wait(path: str, busy: str, deadline: float | None, pid: int = 0) -> None:
    """pid: of the run that is waited for, if its host was killed."""
    what = f"use the upper {path}"
    if pid and (busy == "refuse" or monotonic() >= (deadline or 0.0)):
        hint = f"process {pid} of a run whose caller was killed still uses it"
        raise errors.setup_error(errno.EBUSY, path, "upper", what, hint)
    if busy == "refuse":
        hint = "another run uses it; busy='wait' waits for that"
        raise errors.setup_error(errno.EBUSY, path, "upper", what, hint)
    if deadline is not None and monotonic() >= deadline:
        hint = "another run uses it all the time"
        raise errors.setup_error(errno.ETIMEDOUT, path, "upper", what, hint)


def _begin(path: str, text: bytes, lowers: Sequence[Lower], gives_owners: bool) -> None:
    """Makes an upper. The list of layers comes last: without it the upper was not used yet."""
    upper = os.path.join(path, "upper")
    others = set(os.listdir(path)) - {"lock", "work", "empty", "upper", "layers.new"}
    if others or (os.path.isdir(upper) and os.listdir(upper)):
        hint = "it has other files; an upper takes an empty directory, or one that is missing"
        raise errors.setup_error(errno.ENOTEMPTY, path, "upper", f"use the upper {path}", hint)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(upper)
    _furnish(path, lowers, gives_owners)
    new = os.path.join(path, "layers.new")
    fd = os.open(new, _FILE | os.O_TRUNC, 0o600)
    with open(fd, "wb") as file:
        file.write(text)
    os.rename(new, os.path.join(path, "layers"))


def _other(found: bytes, asked: bytes) -> str:
    if found.partition(b"\n")[0] != asked.partition(b"\n")[0]:
        return "another kind of caller made it: in a user namespace an overlay has other attributes"
    layers = ", ".join(found.decode(errors="replace").splitlines()[1:]) or "none"
    return f"it has changes to other layers: {layers}; give those, or another directory"
