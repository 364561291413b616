# SPDX-License-Identifier: Apache-2.0
"""Makes the files of a stream in a directory of the caller's.

All of them are made in a new directory of mode 0700, each by its name in a directory that is open,
and none that exists is opened. So no link that the command left is followed, and no other process
sees a file before all are whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from .._images.child import removal
from ..errors import printable, setup_error
from .archive import MARKS
from .confined import STEP
from .stream import Nonsense

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .change import Change
    from .stream import Item

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SET_IDS = stat.S_ISUID | stat.S_ISGID


class Writer:
    """A consumer of a stream that makes the files below an open directory.

    owners: whether files get their owners; otherwise they are the caller's. set_ids: whether they
    get the set-user-ID and set-group-ID bits, and file capabilities.
    """

    def __init__(self, top: int, owners: bool, set_ids: bool) -> None:
        self._top, self._owners, self._set_ids = top, owners, set_ids
        self._open: list[tuple[bytes, int, Change]] = []  # the directories that are being filled
        self._file = -1
        self._todo: list[tuple[int, int]] = []  # the parts of it that are still to come, last first
        self._made: dict[str, bytes] = {}  # where the files are, by their paths, for hard links

    def place(self, change: Change) -> list[bytes]:
        """Where to make a file: its names below the top; [] if it is not made."""
        raise NotImplementedError

    # ---- the consumer ----

    def begin(self, item: Item) -> None:
        change = item.change
        *above, name = self.place(change) or [b""]
        if not name:
            return
        with failure(change.path):
            at = self._enter(above)
            if change.link is not None:
                self._link(change, at, name)
            elif change.type == "directory":
                os.mkdir(name, 0o700, dir_fd=at)
                self._open.append((name, os.open(name, DIRECTORY, dir_fd=at), change))
            elif change.type == "file":
                if item.parts is None:
                    raise Nonsense("a file without its content")
                self._file = os.open(name, _NEW, 0o600, dir_fd=at)
                self._todo = item.parts[::-1]
            else:
                self._make_other(change, at, name)
            if change.type != "directory":
                self._made.setdefault(change.path, b"/".join((*above, name)))

    def content(self, data: bytes) -> None:
        if self._file < 0:
            return
        with failure():
            view = memoryview(data)
            while view:
                start, length = self._todo.pop()
                size = os.pwrite(self._file, view[:length], start)
                view = view[size:]
                if size < length:
                    self._todo.append((start + size, length - size))

    def end(self, item: Item) -> None:
        if self._file < 0:
            return
        with failure(item.change.path):
            os.ftruncate(self._file, item.change.size)
            self._finish(self._file, item.change)
            fd, self._file = self._file, -1  # an interrupt must not close the number twice
            os.close(fd)

    def close(self) -> None:
        """Finish the directories that are open."""
        while self._open:
            self._leave()

    def abandon(self) -> None:
        """Close what is open."""
        fds = [self._file, *(fd for _, fd, _ in self._open)]
        self._open, self._file = [], -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    # ---- files ----

    def _enter(self, above: list[bytes]) -> int:
        """The descriptor of a directory that was made before."""
        while [name for name, _, _ in self._open] != above[: len(self._open)]:
            self._leave()
        if len(self._open) != len(above):
            raise Nonsense("a file comes before its directory")
        return self._open[-1][1] if self._open else self._top

    def _leave(self) -> None:
        _, fd, change = self._open.pop()
        try:
            with failure(change.path):
                self._finish(fd, change)
        finally:
            os.close(fd)

    def _link(self, change: Change, at: int, name: bytes) -> None:
        source = self._made.get(change.link or "")
        if source is None:
            raise Nonsense("a link to a file that was not made")
        options = {"src_dir_fd": self._top, "dst_dir_fd": at}
        os.link(source, name, **options, follow_symlinks=False)

    def _make_other(self, change: Change, at: int, name: bytes) -> None:
        """Make a symbolic link, a FIFO or a socket; no device."""
        if change.type == "symlink":
            os.symlink(os.fsencode(change.target or ""), name, dir_fd=at)
            if self._owners:
                os.chown(name, change.uid, change.gid, dir_fd=at, follow_symlinks=False)
        elif change.type in ("fifo", "socket"):
            os.mknod(name, stat.S_IFMT(change.mode) | 0o600, dir_fd=at)
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            try:
                if self._owners:
                    os.chown(f"/proc/self/fd/{fd}", change.uid, change.gid)
                os.chmod(f"/proc/self/fd/{fd}", change.mode & 0o777)
            finally:
                os.close(fd)
        else:
            raise Nonsense("a device that nobody asked for")
        time = change.mtime_ns
        os.utime(name, ns=(time, time), dir_fd=at, follow_symlinks=False)

    def _finish(self, fd: int, change: Change) -> None:
        """Set the owner, which clears the bits, then the mode, the attributes and the time."""
        if self._owners:
            os.fchown(fd, change.uid, change.gid)
        is_file = change.type == "file"
        os.fchmod(fd, change.mode & (0o1777 if is_file and not self._set_ids else 0o7777))
        for name, value in change.xattrs:
            if not self._takes(name):
                continue
            try:
                os.setxattr(fd, name, value)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP or self._set_ids:
                    raise
        os.utime(fd, ns=(change.mtime_ns, change.mtime_ns))

    def _takes(self, name: str) -> bool:
        """Whether a file gets an attribute: those of users, and with set_ids all that have a
        meaning.
        """
        if name.startswith(MARKS):
            return False
        return name.startswith("user.") or self._set_ids


class Extraction(Writer):
    """What is there of the changes, with the directories on the way."""

    root: Change | None = None  # the root of the run, if it changed or is not as in an empty root

    def place(self, change: Change) -> list[bytes]:
        if change.path == "/":
            self.root = change
        if change.kind == "deleted" or change.type == "device" or change.path == "/":
            return []
        return os.fsencode(change.path[1:]).split(b"/")

    def finish_root(self) -> int:
        """Give the top what the root of the run has. Returns the mode, which it gets at the end: a
        directory is moved only by who may write to it (rename(2)).
        """
        if self.root is None:
            return 0o755
        self._finish(self._top, self.root)
        os.fchmod(self._top, self.root.mode & 0o7777 | 0o700)
        return self.root.mode & 0o7777


@contextlib.contextmanager
def failure(path: str = "", hints: Mapping[int, str] = MappingProxyType({})) -> Iterator[None]:
    """Turn an OSError into a SetupError. hints: remedies, by errno."""
    try:
        yield
    except OSError as error:
        if isinstance(error, RuntimeError):  # a SetupError
            raise
        what = f"write {printable(path)}" if path else "write a file"
        number = error.errno or errno.EIO
        raise setup_error(number, path or None, STEP, what, hints.get(number, "")) from error


#: The remedies for the directory that extract() makes.
_HINTS = {
    errno.ENOENT: "the directory above it has to be there",
    errno.ENOTEMPTY: "extract() makes a new directory; apply() changes one that is there",
    errno.ENOTDIR: "extract() makes a new directory, and replaces no file",
}


class Staging:
    """A new directory of mode 0700, as a context manager that removes it with its content.

    keep: whether it stays: there is something in it that is nowhere else.
    """

    keep = False

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self.name = f".sandboxlib-{os.urandom(8).hex()}"
        with failure(self.name):
            os.mkdir(self.name, 0o700, dir_fd=parent)
            self.fd = os.open(self.name, DIRECTORY, dir_fd=parent)
        at = os.fstat(self.fd)
        if at.st_uid != os.geteuid() or at.st_mode & 0o077 or os.listdir(self.fd):
            os.close(self.fd)
            what = f"use the directory {self.name}, which another process replaced"
            hint = "choose a place that only you can write to"
            raise setup_error(errno.ESTALE, self.name, STEP, what, hint)

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if not self.keep:
                os.fchmod(self.fd, 0o700)
                removal.empty(self.fd)
                os.rmdir(self.name, dir_fd=self._parent)
        finally:
            os.close(self.fd)


def extract(feed: Callable[[Writer], None], directory: str, owners: bool, set_ids: bool) -> None:
    """Make a directory with what is there of the changes. One rename puts it in its place."""
    above, name = os.path.split(os.path.abspath(directory))
    with failure(directory, _HINTS):
        parent = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with Staging(parent) as staging:
            os.mkdir("tree", 0o700, dir_fd=staging.fd)
            top = os.open("tree", DIRECTORY, dir_fd=staging.fd)
            writer = Extraction(top, owners, set_ids)
            try:
                feed(writer)
                writer.close()
                with failure(directory, _HINTS):
                    os.fchmod(top, 0o755)
                    mode = writer.finish_root()
                    # It replaces an empty directory, and nothing else (rename(2)).
                    os.rename("tree", name, src_dir_fd=staging.fd, dst_dir_fd=parent)
                    os.fchmod(top, mode)
            finally:
                writer.abandon()
                os.close(top)
    finally:
        os.close(parent)
