# SPDX-License-Identifier: Apache-2.0
"""Brings changes into a directory: first all new files are made beside the old ones, then each
takes its place by a rename, and if one cannot, those before it go back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from ..errors import UnsupportedError, printable, setup_error
from .archive import MARKS
from .confined import STEP
from .stream import SAME
from .writer import DIRECTORY, Staging, Writer, failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .change import Change


class Application(Writer):
    """Makes the new files in a staging directory, under numbers: a directory that was added with
    all that is in it, and every other file by itself. steps: what is left to do, in order: (the
    change, the number of its file, or b"").
    """

    def __init__(self, top: int, owners: bool) -> None:
        super().__init__(top, owners, set_ids=True)
        self.steps: list[tuple[Change, bytes]] = []
        self._inside = ""  # the path of the directory that is being made, with a slash

    def place(self, change: Change) -> list[bytes]:
        if self._inside and change.path.startswith(self._inside):
            number, path = self.steps[-1][1], change.path[len(self._inside) :]
            return [] if change.kind == "deleted" else [number, *os.fsencode(path).split(b"/")]
        self._inside = ""
        if change.path == "/" and change.kind == SAME:
            return []
        is_directory = change.type == "directory"
        if change.kind == "deleted" or (is_directory and change.kind in (SAME, "metadata")):
            self.steps.append((change, b""))
            return []
        number = b"%d" % len(self.steps)
        self.steps.append((change, number))
        if is_directory:
            self._inside = f"{change.path}/"
        return [number]


#: The remedy where something is missing: the directory, or what a change is a change of.
_HINTS = {
    errno.ENOENT: "apply() takes the layer that the run had, or a copy of it; extract() makes a new"
    " directory"
}


class Exchange:
    """Renames the staged files into a directory. undo() takes all of it back: an interrupt may come
    between any two calls, so each step says how to take it back before it is done.
    """

    def __init__(self, top: int, staged: int, owners: bool) -> None:
        self._top, self._staged, self._owners = top, staged, owners
        self._undo: list[Callable[[], object]] = []

    def run(self, steps: Sequence[tuple[Change, bytes]]) -> None:
        directories: list[Change] = []
        for change, number in steps:
            with failure(change.path, _HINTS):
                if number or change.kind == "deleted":
                    self._replace(change, number)
                else:
                    directories.append(change)
        # Last, because the renames change the times of directories, and a mode may close one.
        for change in reversed(directories):
            with failure(change.path, _HINTS), opened(self._top, _names(change)) as fd:
                self._set(change, fd)

    def undo(self) -> OSError | None:
        """Take all steps back. Returns the first error, once it has tried them all."""
        first = None
        for back in reversed(self._undo):
            try:
                back()
            except OSError as error:
                first = first or error
        return first

    def _replace(self, change: Change, number: bytes) -> None:
        """Put the staged file in the place of what is there, which moves aside."""
        *above, name = _names(change)
        old = b"old-%d" % len(self._undo)
        with opened(self._top, above) as at:
            try:
                os.lstat(name, dir_fd=at)
            except FileNotFoundError:
                if change.kind != "added":
                    raise
            else:
                self._undo.append(lambda: self._move_back(above, name, old))
                os.rename(name, old, src_dir_fd=at, dst_dir_fd=self._staged)
            if number:
                self._undo.append(lambda: self._take_back(above, name, number))
                os.rename(number, name, src_dir_fd=self._staged, dst_dir_fd=at)

    def _move_back(self, above: list[bytes], name: bytes, old: bytes) -> None:
        if self._has(old):
            with opened(self._top, above) as at:
                os.rename(old, name, src_dir_fd=self._staged, dst_dir_fd=at)

    def _take_back(self, above: list[bytes], name: bytes, number: bytes) -> None:
        if not self._has(number):
            with opened(self._top, above) as at:
                os.rename(name, number, src_dir_fd=at, dst_dir_fd=self._staged)

    def _has(self, staged: bytes) -> bool:
        """Whether a file is in the staging directory: it may not have been moved yet."""
        try:
            os.lstat(staged, dir_fd=self._staged)
        except FileNotFoundError:
            return False
        return True

    def _set(self, change: Change, fd: int) -> None:
        """Set what changed of a directory itself."""
        was, had = os.fstat(fd), attributes_of(fd)
        names = _names(change)
        self._undo.append(lambda: self._set_back(names, was, had))
        if change.kind == "metadata":
            if self._owners:
                os.fchown(fd, change.uid, change.gid)
            set_attributes(fd, {name: value for name, value in change.xattrs if takes(name)})
            os.fchmod(fd, change.mode & 0o7777)
        os.utime(fd, ns=(change.mtime_ns, change.mtime_ns))

    def _set_back(self, names: list[bytes], was: os.stat_result, had: dict[str, bytes]) -> None:
        with opened(self._top, names) as fd:
            if self._owners:
                os.fchown(fd, was.st_uid, was.st_gid)
            set_attributes(fd, had)
            os.fchmod(fd, stat.S_IMODE(was.st_mode))
            os.utime(fd, ns=(was.st_atime_ns, was.st_mtime_ns))


def takes(name: str) -> bool:
    """Whether an attribute is one that apply() sets."""
    return name.startswith(("user.", "security.capability")) and not name.startswith(MARKS)


def attributes_of(fd: int) -> dict[str, bytes]:
    return {name: os.getxattr(fd, name) for name in os.listxattr(fd) if takes(name)}


def set_attributes(fd: int, attributes: dict[str, bytes]) -> None:
    """Give an open directory these attributes, and take all others of their kind away."""
    for name in attributes_of(fd).keys() - attributes.keys():
        os.removexattr(fd, name)
    for name, value in attributes.items():
        os.setxattr(fd, name, value)


def _names(change: Change) -> list[bytes]:
    return os.fsencode(change.path[1:]).split(b"/") if change.path != "/" else []


@contextlib.contextmanager
def opened(top: int, names: list[bytes]) -> Iterator[int]:
    """A directory below another one, open; no link is followed."""
    at = os.open(".", DIRECTORY, dir_fd=top)
    try:
        for name in names:
            below = os.open(name, DIRECTORY, dir_fd=at)
            os.close(at)
            at = below
        yield at
    finally:
        os.close(at)


def apply(
    feed: Callable[[Writer], None], changes: Iterable[Change], directory: str, is_root: bool
) -> None:
    """Bring changes into a directory. is_root: whether the caller may give files away."""
    for change in changes:
        path = printable(change.path)
        if change.kind == "deleted":
            continue
        if change.type == "device":
            raise UnsupportedError(f"apply() makes no devices, and {path} is one")
        if not is_root and (change.uid or change.gid):
            owner = f"{change.uid}:{change.gid}"
            text = f"{path} belongs to {owner}, and this caller cannot give files away"
            raise UnsupportedError(f"{text}; commit() keeps owners")
    with failure(directory, _HINTS):
        top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with Staging(top) as staging:
            writer = Application(staging.fd, is_root)
            try:
                feed(writer)
                writer.close()
            finally:
                writer.abandon()
            _exchange(Exchange(top, staging.fd, is_root), writer.steps, staging, directory)
    finally:
        os.close(top)


def _exchange(
    exchange: Exchange, steps: Sequence[tuple[Change, bytes]], staging: Staging, directory: str
) -> None:
    staging.keep = True  # from here on it has what was in the directory
    try:
        exchange.run(steps)
    except BaseException as error:
        left = exchange.undo()
        if left is not None:
            path = os.path.join(directory, staging.name)
            what = f"take the changes back after an error ({error or type(error).__name__})"
            hint = f"the files that are missing are in {path}"
            raise setup_error(left.errno or errno.EIO, path, STEP, what, hint) from error
        staging.keep = False
        raise
    staging.keep = False
