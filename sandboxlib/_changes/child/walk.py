# SPDX-License-Identifier: Apache-2.0
"""Compares what a run left with the layers below: a walk of the upper, in the order of the names,
but what is gone from a directory comes first.

Part of the confined reader. Nothing that it finds is followed, and only regular files are opened.
It visits what is in the upper. It looks at what is below only under the same names, or in a
directory that was renamed or replaced.
"""

from __future__ import annotations

import os
import stat

from .stack import Directory, Entry, Stack, is_whiteout, names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ADDED, MODIFIED, DELETED, METADATA, SAME = "added", "modified", "deleted", "metadata", ""
CHUNK = 1 << 17  # bytes of one read: malloc(3) maps larger buffers anew each time
BLOCK = 512
HOLE = 1 << 16  # bytes: what is zero for so long, and begins at a multiple of it, is a hole
SMALL, MOST_HELD = 1 << 16, 8 << 20  # bytes: of a content that is held, of all that are
_ZEROS = bytes(HOLE)
PARTS = 64  # open directories above the one that is walked; those above are opened again by `..`
_ESCAPE = b"overlay."  # what the kernel puts into an attribute of a command that looks like its own


class TooMuch(Exception):
    """There is more than the reader takes. The parent passes the message on to its caller."""


class Item:
    """A path that the walk came by.

    path: the names of its components. kind: SAME for a directory on the way, and for a file of
    which the run made a hard link. entry: what is there now; for a deleted one, what was there.
    link: the components of the first path of the same file, if this is a later one. was: what was
    there before.
    """

    __slots__ = ("attributes", "entry", "kind", "link", "path", "was")

    def __init__(
        self,
        path: tuple[bytes, ...],
        kind: str,
        entry: Entry,
        was: Entry | None,
        attributes: dict[bytes, bytes],
        link: tuple[bytes, ...] | None = None,
    ) -> None:
        self.path, self.kind, self.entry, self.was = path, kind, entry, was
        self.attributes, self.link = attributes, link


class Frame:
    """A directory that is being walked.

    now, was: the directory as the run left it, and as it was (None: there was none). is_same:
    whether they differ by the top layer alone. children: (name, entry, what it was, kind), last
    first.
    """

    __slots__ = ("children", "ids", "is_same", "now", "was")

    def __init__(self, now: Directory, was: Directory | None, is_same: bool) -> None:
        self.now, self.was, self.is_same = now, was, is_same
        self.children: list[tuple[bytes, Entry, Entry | None, str]] = []
        self.ids: tuple[int, int] | None = None

    def before(self, name: bytes) -> Entry | None:
        if self.is_same:
            return self.now.look(name, below=0)
        return None if self.was is None else self.was.look(name)

    def close(self) -> None:
        self.now.close()
        if self.was is not None and not self.is_same:
            self.was.close()


class Walk:
    """The walk of a stack whose top is an upper. prefix: of overlay's attributes. most: how many
    names it may come by, before it raises TooMuch.
    """

    def __init__(self, stack: Stack, prefix: bytes, most: int) -> None:
        self._stack, self._prefix = stack, prefix
        self._most = self._left = most
        self._firsts: dict[tuple[int, int, int], tuple[bytes, ...]] = {}
        self._held = 0  # bytes of contents of entries

    def items(self) -> Iterator[Item]:
        frames: list[Frame] = []
        path: list[bytes] = []
        root = self._stack.root()
        frame = Frame(root, root, True)
        frames.append(frame)
        try:
            self._fill(frame)
            yield self._root_item(frame)
            while frames:
                frame = frames[-1]
                if not frame.children:
                    self._leave(frames)
                    if path:
                        path.pop()
                    continue
                name, entry, was, kind = frame.children.pop()
                if kind != DELETED and entry.is_directory():
                    path.append(name)
                    yield self._enter(frames, tuple(path), entry, was, kind)
                else:
                    item = self._item((*path, name), entry, was, kind)
                    if item is not None:
                        yield item
                    if entry.content is not None:
                        self._held -= len(entry.content)
        finally:
            for each in frames:
                each.close()

    # ---- directories ----

    def _root_item(self, frame: Frame) -> Item:
        top = frame.now.parts[0][1]
        entry = Entry(b".", os.fstat(top), 0, top)
        below = frame.now.parts[1:]
        if not below:
            item = Item((), SAME, entry, None, self._attributes(entry))
            item.kind = SAME if is_plain(item) else METADATA
            return item
        was = Entry(b".", os.fstat(below[0][1]), below[0][0], below[0][1])
        # The time of the upper's root is that of its making.
        kind, attributes = self._compare_metadata(entry, was, with_time=False)
        return Item((), kind, entry, was, attributes)

    def _enter(
        self,
        frames: list[Frame],
        path: tuple[bytes, ...],
        entry: Entry,
        was: Entry | None,
        kind: str,
    ) -> Item:
        """Go into a directory. Returns the item of the directory itself."""
        parent = frames[-1]
        now = parent.now.open(entry.name)
        frame = Frame(now, None, False)
        try:
            if was is not None and was.is_directory():
                if parent.is_same and now.continues and now.parts[0][0] == 0:
                    frame.is_same, frame.was = True, now
                elif parent.is_same:
                    with Directory(self._stack, parent.now.parts[1:]) as below:
                        try:
                            frame.was = below.open(entry.name)
                        finally:
                            below.parts = []  # they are the parent's
                else:
                    assert parent.was is not None
                    frame.was = parent.was.open(entry.name)
            if frame.was is None or frame.is_same or _ids(frame.was) != _ids(now):
                self._fill(frame)
            attributes = None
            if kind == SAME and was is not None:
                changed = any(each[3] not in (SAME, METADATA) for each in frame.children)
                kind, attributes = self._compare_metadata(entry, was, with_time=not changed)
            if attributes is None:
                attributes = self._attributes(entry)
        except BaseException:
            frame.close()
            raise
        self._suspend(frames, frame)
        frames.append(frame)
        return Item(path, kind, entry, was, attributes)

    def _suspend(self, frames: list[Frame], child: Frame) -> None:
        """Close the descriptor of a directory far up, in a tree that is the upper's alone: so a
        tree may be deeper than a process may have open files.
        """
        parent = frames[-1]
        parts = parent.now.parts
        if len(frames) < PARTS or len(parts) != 1 or parent.was is not None:
            return
        if len(child.now.parts) == 1:
            status = os.fstat(parts[0][1])
            parent.ids = status.st_dev, status.st_ino
            parent.now.close()

    def _leave(self, frames: list[Frame]) -> None:
        frame = frames.pop()
        try:
            parent = frames[-1] if frames else None
            if parent is not None and parent.ids is not None:
                layer, fd = frame.now.parts[0]
                above = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
                parent.now.parts.append((layer, above))
                status = os.fstat(above)
                if (status.st_dev, status.st_ino) != parent.ids:
                    raise TooMuch("the directories of the upper changed while they were read")
                parent.ids = None
                for _, entry, _, _ in parent.children:
                    entry.directory = above
        finally:
            frame.close()

    def _fill(self, frame: Frame) -> None:
        """List a directory, and compare its entries with what was there."""
        children = frame.children
        top = frame.now.parts[0][1]
        if frame.is_same:
            for name in names(top):
                self._count()
                status = os.lstat(name, dir_fd=top)
                was = frame.now.look(name, below=0)
                if not is_whiteout(status):
                    children.append(self._child(Entry(name, status, 0, top), was))
                elif was is not None:
                    children.append((name, was, was, DELETED))
        else:
            for entry in frame.now.entries():
                self._count()
                children.append(self._child(entry, frame.before(entry.name)))
            if frame.was is not None:
                still = {each[0] for each in children}
                for entry in frame.was.entries():
                    self._count()
                    if entry.name not in still:
                        children.append((entry.name, entry, entry, DELETED))
        children.sort(key=_order, reverse=True)

    def _child(self, entry: Entry, was: Entry | None) -> tuple[bytes, Entry, Entry | None, str]:
        if was is None:
            return entry.name, entry, was, ADDED
        same_type = stat.S_IFMT(entry.status.st_mode) == stat.S_IFMT(was.status.st_mode)
        if not same_type or (not entry.is_directory() and not self._is_same_content(entry, was)):
            return entry.name, entry, was, MODIFIED
        return entry.name, entry, was, SAME

    def _is_same_content(self, entry: Entry, was: Entry) -> bool:
        """Compare two files of the same type, which are no directories."""
        size = entry.status.st_size
        if not (stat.S_ISREG(entry.status.st_mode) and 0 < size == was.status.st_size < SMALL):
            return is_same_content(entry, was)
        if _is_same_file(entry, was):
            return True
        content = read(entry, size)
        if self._held < MOST_HELD and len(content) == size:
            entry.content = content  # it is asked for again, if the file is told
            self._held += size
        return content == read(was, size)

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise TooMuch(f"there are more than {self._most} names")

    # ---- files ----

    def _item(
        self, path: tuple[bytes, ...], entry: Entry, was: Entry | None, kind: str
    ) -> Item | None:
        if kind == DELETED:
            return Item(path, kind, entry, was, {})
        attributes = None
        if kind == SAME and was is not None and not _is_same_file(entry, was):
            kind, attributes = self._compare_metadata(entry, was)
        # The kernel copies a file with several names up by one of them, so that a file of the upper
        # has several only if the run linked it.
        if kind == SAME and not (entry.status.st_nlink > 1 and entry.layer == 0):
            return None
        link = None
        if entry.status.st_nlink > 1:
            key = (entry.layer, entry.status.st_dev, entry.status.st_ino)
            first = self._firsts.setdefault(key, path)
            link = None if first is path else first
        if attributes is None:
            attributes = self._attributes(entry)
        return Item(path, kind, entry, was, attributes, link)

    def _compare_metadata(
        self, entry: Entry, was: Entry, with_time: bool = True
    ) -> tuple[str, dict[bytes, bytes]]:
        """METADATA or SAME, and the attributes of the entry."""
        now, before = entry.status, was.status
        attributes = self._attributes(entry)
        if (
            (now.st_mode, now.st_uid, now.st_gid) != (before.st_mode, before.st_uid, before.st_gid)
            or (with_time and now.st_mtime_ns != before.st_mtime_ns)
            or attributes != self._attributes(was)
        ):
            return METADATA, attributes
        return SAME, attributes

    def _attributes(self, entry: Entry) -> dict[bytes, bytes]:
        """The extended attributes, without those by which overlay marks its files, and without
        labels of the machine's security modules. It changes the current directory.
        """
        os.fchdir(entry.directory)
        try:
            listed = os.listxattr(entry.name, follow_symlinks=False)
        except OSError:  # the file system has none
            return {}
        found = {}
        for each in listed:
            name = os.fsencode(each)
            if name.startswith(self._prefix):
                name = name[len(self._prefix) :]
                if not name.startswith(_ESCAPE):
                    continue
                name = self._prefix + name[len(_ESCAPE) :]
            if not name.startswith(b"security.") or name == b"security.capability":
                found[name] = os.getxattr(entry.name, each, follow_symlinks=False)
        return found


def _order(child: tuple[bytes, Entry, Entry | None, str]) -> tuple[bool, bytes]:
    return child[3] != DELETED, child[0]


def _ids(directory: Directory) -> list[tuple[int, int, int]]:
    found = []
    for layer, fd in directory.parts:
        status = os.fstat(fd)
        found.append((layer, status.st_dev, status.st_ino))
    return found


def with_parents(items: Iterable[Item], points: Iterable[bytes] = ()) -> Iterator[Item]:
    """The items, without directories that hold no other item and did not change themselves. The
    root is there if it changed, or is not plain.

    points: paths of mount points, and of links that the run was given, with "//" and the text of
    the link behind the path. What was made for them is no change of the run: a point itself, and a
    directory above it, unless there is something else in that.
    """
    texts = {path: text for path, _, text in (point.partition(b"//") for point in points)}
    targets = {tuple(part for part in path.split(b"/") if part): texts[path] for path in texts}
    above = {target[:size] for target in targets for size in range(1, len(target) + 1)}
    waiting: list[Item] = []
    for item in items:
        while waiting and len(waiting[-1].path) >= len(item.path):
            waiting.pop()
        is_point = item.kind == ADDED and item.path in above
        if item.entry.is_directory() and (item.kind == SAME or is_point):
            if not item.path and not is_plain(item):
                yield item  # a layer without an entry of its root gives that the default
            waiting.append(item)
            continue
        if is_point and item.path in targets and _is_of_point(item.entry, targets[item.path]):
            continue
        yield from (each for each in waiting if each.path)
        waiting.clear()
        yield item


def is_plain(item: Item) -> bool:
    """Return True for a root directory as an empty root has it: of 0:0, with mode 0755."""
    status = item.entry.status
    values = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
    return values == (0o755, 0, 0) and not item.attributes


def _is_of_point(entry: Entry, text: bytes) -> bool:
    """Return True for what a run makes at a point: an empty file, or a link with this text."""
    mode = entry.status.st_mode
    if stat.S_ISLNK(mode):
        return entry.link() == text
    return stat.S_ISREG(mode) and not entry.status.st_size


def read(entry: Entry, size: int) -> bytes:
    """The first bytes of a regular file."""
    fd = entry.open()
    try:
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)


def _is_same_file(entry: Entry, was: Entry) -> bool:
    return entry.layer == was.layer and os.path.samestat(entry.status, was.status)


def is_same_content(entry: Entry, was: Entry) -> bool:
    """Compare two files of the same type, which are no directories."""
    now, before = entry.status, was.status
    if stat.S_ISLNK(now.st_mode):
        return entry.link() == was.link()
    if stat.S_ISCHR(now.st_mode) or stat.S_ISBLK(now.st_mode):
        return now.st_rdev == before.st_rdev
    if not stat.S_ISREG(now.st_mode) or _is_same_file(entry, was):
        return True
    if now.st_size == 0 or now.st_size != before.st_size:
        return now.st_size == before.st_size
    first = entry.open()
    try:
        second = was.open()
        try:
            return _is_same_data(first, second, now.st_size)
        finally:
            os.close(second)
    finally:
        os.close(first)


def _is_same_data(first: int, second: int, size: int) -> bool:
    at = 0
    while at < size:
        at = min(next_data(first, at, size), next_data(second, at, size))
        length = min(CHUNK, size - at)
        data = os.pread(first, length, at)
        if data != os.pread(second, length, at):
            return False
        if not data:
            return True
        at += len(data)
    return True


def next_data(fd: int, at: int, size: int) -> int:
    """Where the next bytes are that a file really has, from `at` on; its size if there are none."""
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError:  # ENXIO
        return size


def data_of(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are no holes, as (start, length). What is a hole depends on the
    content alone, so files with equal content are stored in the same way, however they were
    written.
    """
    start, at = -1, 0
    while at < size:
        data = next_data(fd, at, size)
        if data >= at + HOLE or data == size:
            if start >= 0:
                yield start, at - start
                start = -1
            at = size if data == size else data - data % HOLE
            continue
        length = min(HOLE, size - at)
        is_hole = os.pread(fd, min(BLOCK, length), at).count(0) == min(BLOCK, length)
        if is_hole:
            is_hole = os.pread(fd, length, at) == _ZEROS[:length]
        if is_hole and start >= 0:
            yield start, at - start
            start = -1
        elif not is_hole and start < 0:
            start = at
        at += length
    if start >= 0:
        yield start, size - start
