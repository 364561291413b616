# SPDX-License-Identifier: Apache-2.0
"""Stack: the merged view of an overlay's layers, read without a mount.

It reads directories by descriptors and one name at a time, and no call follows a symbolic link. So
the content of a layer, which may come from a hostile command, leads nowhere. It changes no state
of the process, so any thread may use it. Names and paths are bytes.

The rules are those of the kernel's fs/overlayfs/namei.c (ovl_lookup): a character device 0:0 is a
whiteout; a directory with the attribute opaque="y" hides those below it; one with the attribute
redirect has another name in the layers below. Nothing is cached.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

TRUSTED, USER = b"trusted.overlay.", b"user.overlay."
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: O_NONBLOCK: a FIFO that took the place of a file would otherwise block the open(2).
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CODEC = sys.getfilesystemencoding()
MOST_LINKS = 40  # symbolic links in one look-up, as path_resolution(7) has it


def is_whiteout(status: os.stat_result) -> bool:
    """Return True for the mark of a deleted name."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


class Entry:
    """What a name is in the merged view.

    layer: the number of the layer that it is in, 0 is the top. directory: the descriptor of its
    directory there, which the Directory owns. content: of a file that was read already, or None.
    """

    __slots__ = ("content", "directory", "layer", "name", "status")

    def __init__(self, name: bytes, status: os.stat_result, layer: int, directory: int) -> None:
        self.name, self.status, self.layer, self.directory = name, status, layer, directory
        self.content: bytes | None = None

    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    def is_link(self) -> bool:
        return stat.S_ISLNK(self.status.st_mode)

    def open(self) -> int:
        """Open a regular file for reading. Raises OSError (EINVAL) if it is none."""
        if not stat.S_ISREG(self.status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return os.open(self.name, FILE, dir_fd=self.directory)

    def link(self) -> bytes:
        """The target of a symbolic link."""
        return os.readlink(self.name, dir_fd=self.directory)


class Directory:
    """A merged directory, as a context manager.

    parts: (layer, descriptor), top first; it owns the descriptors. continues: whether the layers
    below the first part count, under the same name.
    """

    __slots__ = ("continues", "parts", "stack")

    def __init__(self, stack: Stack, parts: list[tuple[int, int]]) -> None:
        self.stack, self.parts = stack, parts
        self.continues = True

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        while self.parts:
            os.close(self.parts.pop()[1])

    def look(self, name: bytes, below: int = -1) -> Entry | None:
        """What a name is; None if it does not exist. below: only in the layers below that one."""
        for layer, fd in self.parts:
            if layer <= below:
                continue
            try:
                status = os.lstat(name, dir_fd=fd)
            except FileNotFoundError:
                continue
            return None if is_whiteout(status) else Entry(name, status, layer, fd)
        return None

    def open(self, name: bytes) -> Directory:
        """The directory of that name, merged. Raises OSError (ENOENT, ENOTDIR)."""
        return self.stack._open(self, name)

    def entries(self, below: int = -1) -> Iterator[Entry]:
        """All entries, in no order. below: only those in the layers below that one."""
        seen: set[bytes] = set()
        parts = [part for part in self.parts if part[0] > below]
        for number, (layer, fd) in enumerate(parts):
            for name in names(fd):
                if name in seen:
                    continue
                if number + 1 < len(parts):
                    seen.add(name)
                status = os.lstat(name, dir_fd=fd)
                if not is_whiteout(status):
                    yield Entry(name, status, layer, fd)


def names(fd: int) -> Iterator[bytes]:
    """The names in a directory, which may be millions: they are read as they are asked for."""
    with os.scandir(fd) as scan:
        for each in scan:
            yield each.name.encode(_CODEC, "surrogateescape")


class Found:
    """Where a path leads in the merged view.

    path: bytes, absolute, without links but for a last one that was not followed; with the
    components that do not exist at its end. status: of the file; None if it does not exist.
    layer: as in Entry; -1 if it does not exist. missing: how many of the last components do not
    exist.
    """

    __slots__ = ("layer", "missing", "path", "status")

    def __init__(
        self, path: Iterable[bytes], status: os.stat_result | None, layer: int, missing: int
    ) -> None:
        self.path = b"/" + b"/".join(path)
        self.status, self.layer, self.missing = status, layer, missing


class Stack:
    """The layers of an overlay, merged.

    layers: descriptors of directories, the top (the upper, if there is one) first. They stay the
        caller's, and have to stay open.
    prefix: of overlay's own attributes: TRUSTED or USER. Redirects count with TRUSTED only, because
        the kernel follows none in an overlay with `userxattr`.
    """

    def __init__(self, layers: Sequence[int], prefix: bytes) -> None:
        self._layers = tuple(layers)
        self._opaque = os.fsdecode(prefix) + "opaque"
        self._redirect = os.fsdecode(prefix) + "redirect" if prefix == TRUSTED else None

    def root(self, below: int = -1) -> Directory:
        """The root directory, merged of the roots of all layers. below: of those below that one."""
        made = Directory(self, [])
        try:
            for number, fd in enumerate(self._layers):
                if number > below:
                    made.parts.append((number, os.open(".", DIRECTORY, dir_fd=fd)))
        except BaseException:
            made.close()
            raise
        return made

    def find(self, path: bytes, *, follow: bool = True) -> Found:
        """Look a path up in the merged view, as chroot(2) would: links in it are followed inside
        the stack, and `..` at the root stays there.

        follow: False: a link at the end of the path is not followed.
        Raises OSError: ENOTDIR if something on the way is no directory, ELOOP after 40 links.
        """
        todo = [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]
        way: list[bytes] = []
        above = [self.root()]
        status, layer, links = os.fstat(above[0].parts[0][1]), 0, 0
        try:
            while todo:
                name = todo.pop()
                if name == b"..":
                    if way:
                        way.pop()
                        above.pop().close()
                    status, layer = os.fstat(above[-1].parts[0][1]), above[-1].parts[0][0]
                    continue
                entry = above[-1].look(name)
                if entry is None:
                    return Found([*way, name, *reversed(todo)], None, -1, 1 + len(todo))
                if stat.S_ISLNK(entry.status.st_mode) and (todo or follow):
                    links += 1
                    if links > MOST_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                    target = entry.link()
                    while target.startswith(b"/") and way:
                        way.pop()
                        above.pop().close()
                    todo += [p for p in reversed(target.split(b"/")) if p not in (b"", b".")]
                    status, layer = os.fstat(above[-1].parts[0][1]), above[-1].parts[0][0]
                    continue
                status, layer = entry.status, entry.layer
                way.append(name)
                if entry.is_directory():
                    above.append(above[-1].open(name))
                elif todo:
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            return Found(way, status, layer, 0)
        finally:
            for each in above:
                each.close()

    # ---- one directory down ----

    def _open(self, parent: Directory, name: bytes) -> Directory:
        made = Directory(self, [])
        where, at = parent.parts, 0
        root: Directory | None = None
        way = [name]  # from `where` to it: several names after an absolute redirect
        try:
            while at < len(where):
                layer, fd = where[at]
                at += 1
                found, below, is_absolute, stops = self._walk(fd, way, root is not None)
                if found >= 0:
                    if not made.parts:
                        made.continues = below == way and not stops
                    made.parts.append((layer, found))
                way = below
                if stops:
                    break
                if is_absolute and root is None:
                    root = self.root()
                    where, at = root.parts, layer + 1
            if not made.parts:
                entry = parent.look(name)
                code = errno.ENOENT if entry is None else errno.ENOTDIR
                raise OSError(code, os.strerror(code))
        except BaseException:
            made.close()
            raise
        finally:
            if root is not None:
                root.close()
        return made

    def _walk(
        self, start: int, way: list[bytes], is_absolute: bool
    ) -> tuple[int, list[bytes], bool, bool]:
        """Walk a way in one layer. Returns (its descriptor or -1, the way in the layers below,
        whether that begins at the root, whether no layer below counts).
        """
        at, below, stops = start, way, False
        try:
            for number, name in enumerate(way):
                try:
                    new = os.open(name, DIRECTORY, dir_fd=at)
                except FileNotFoundError:
                    return -1, below, is_absolute, stops
                except OSError as error:
                    # ENOTDIR, ELOOP: a whiteout, or another file that hides what is below
                    if error.errno in (errno.ENOTDIR, errno.ELOOP):
                        return -1, below, is_absolute, True
                    raise
                if at != start:
                    os.close(at)
                at = new
                if _attribute(at, self._opaque) == b"y":
                    stops = True
                    continue
                redirect = self._redirect and _attribute(at, self._redirect)
                if redirect:
                    rest = way[number + 1 :]
                    if redirect.startswith(b"/"):
                        below, is_absolute = redirect[1:].split(b"/") + rest, True
                    else:
                        below = [*below[: len(below) - len(rest) - 1], redirect, *rest]
                    if any(each in (b"", b".", b"..") or b"/" in each for each in below):
                        raise OSError(errno.EIO, "a redirect of an overlay is damaged")
            found, at = at, start
            return found, below, is_absolute, stops
        finally:
            if at != start:
                os.close(at)


def _attribute(fd: int, name: str) -> bytes | None:
    try:
        return os.getxattr(fd, name)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise
