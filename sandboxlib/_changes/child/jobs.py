# SPDX-License-Identifier: Apache-2.0
"""What the confined reader does: it writes what changed, or the content of one file, to stdout.

The upper is a descriptor, and the layers below are at LOWER. It can write nowhere else, and imports
no module of sandboxlib but those of its own folder. It ends with 0 if all is written, and otherwise
with FAILED, an errno and a message on stderr.

The form of the job `changes` is that of _changes/stream.py: for each item of the walk four bytes
with the length of its record; the record, whose fields end with a NUL byte each; and the content of
a regular file, if the record has its parts. A length of 0 is the end.
"""

from __future__ import annotations

import errno
import gc
import os
import resource
import stat

from .outputs import Group, Search
from .stack import Stack
from .walk import CHUNK, DELETED, SAME, Item, TooMuch, Walk, data_of, with_parents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

LOWER = "/dev/lower"
FAILED = 3  # the exit status of a failure that has a message
MEMORY = 2 << 30  # bytes of address space
FULL = 1 << 18  # bytes that are written at once
TYPES = {
    stat.S_IFREG: b"file",
    stat.S_IFDIR: b"directory",
    stat.S_IFLNK: b"symlink",
    stat.S_IFIFO: b"fifo",
    stat.S_IFSOCK: b"socket",
    stat.S_IFCHR: b"device",
    stat.S_IFBLK: b"device",
}


class Output:
    """stdout, written in large pieces. most: bytes of records, before it raises TooMuch."""

    def __init__(self, most: int) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._left = most

    def record(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise TooMuch("the paths and attributes of all changes are too long")
        self.write(len(data).to_bytes(4, "big"))
        self.write(data)

    def write(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size >= FULL:
            self.flush()

    def copy(self, fd: int, parts: Sequence[tuple[int, int]]) -> None:
        for start, length in parts:
            at, end = start, start + length
            while at < end:
                data = os.pread(fd, min(CHUNK, end - at), at)
                if not data:
                    raise TooMuch("a file became shorter while it was read")
                self.write(data)
                at += len(data)

    def flush(self) -> None:
        data = memoryview(b"".join(self._parts))
        self._parts, self._size = [], 0
        while data:
            data = data[os.write(1, data) :]


class Changes:
    """The job `changes`. owner: the uid and gid of all files; None: they have their own. budget:
    bytes of content that are written, before content is left out.
    """

    def __init__(self, output: Output, owner: tuple[int, int] | None, budget: int) -> None:
        self._output, self._owner, self._budget = output, owner, budget

    def write(self, walk: Walk, points: Sequence[bytes]) -> None:
        for item in with_parents(walk.items(), points):
            self.item(item)
        self._output.record(b"")
        self._output.flush()

    def item(self, item: Item) -> None:
        status = item.entry.status
        is_file = stat.S_ISREG(status.st_mode)
        if is_file and status.st_size and item.kind != DELETED and item.link is None:
            self._file(item)
        else:
            self._record(item, b"")

    def _file(self, item: Item) -> None:
        if self._budget <= 0:
            self._record(item, b"?")
            return
        size, content = item.entry.status.st_size, item.entry.content
        if content is not None and size <= self._budget:
            self._budget -= size
            self._record(item, b"0 %d" % size)
            self._output.write(content)
            return
        fd = item.entry.open()
        try:
            parts = [(0, size)] if size < HOLES_FROM else list(data_of(fd, size))
            total = sum(length for _, length in parts)
            if size - total < HOLES_FROM:
                parts, total = [(0, size)], size
            self._budget -= total
            if self._budget < 0:
                self._record(item, b"?")
                return
            self._record(item, b" ".join(b"%d %d" % part for part in parts) or b"-")
            self._output.copy(fd, parts)
        finally:
            os.close(fd)

    def _record(self, item: Item, parts: bytes) -> None:
        entry = item.entry
        status = entry.status
        mode = status.st_mode
        uid, gid = self._owner or (status.st_uid, status.st_gid)
        kind = TYPES[stat.S_IFMT(mode)]
        size = 0 if kind == b"directory" else status.st_size
        target = entry.link() if kind == b"symlink" and item.kind != DELETED else b""
        link = b"" if item.link is None else b"/" + b"/".join(item.link)
        device = b""
        if kind == b"device":
            device = b"%d:%d" % (os.major(status.st_rdev), os.minor(status.st_rdev))
        data = b"/%s\0%s\0%s\0%d %d %d %d %d\0%s\0%s\0%s\0%s\0" % (
            *(b"/".join(item.path), item.kind.encode(), kind),
            *(mode, size, uid, gid, status.st_mtime_ns, target, link, device, parts),
        )
        if item.attributes:
            pairs = sorted(item.attributes.items())
            data += b"".join(b"%s\0%s\0" % (name, value.hex().encode()) for name, value in pairs)
        self._output.record(data)


#: Bytes. A file with less in holes is written as it is.
HOLES_FROM = 1 << 20


def write_content(stack: Stack, path: bytes, most: int) -> None:
    """The job `read`: the content of one file."""
    found = stack.find(path, follow=False)
    if found.status is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    if not stat.S_ISREG(found.status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    size = found.status.st_size
    if size > most:
        raise OSError(errno.EFBIG, f"it has {size} bytes, and max_size is {most}")
    output = Output(0)
    *names, last = [part for part in found.path.split(b"/") if part]
    directory = stack.root()
    try:
        for name in names:
            below = directory.open(name)
            directory.close()
            directory = below
        entry = directory.look(last)
        assert entry is not None
        fd = entry.open()
        output.copy(fd, [(0, size)])
        os.close(fd)
    finally:
        directory.close()
    output.flush()


def write_outputs(stack: Stack, args: Sequence[str]) -> None:
    """The job `outputs`, in the form of `changes`: what patterns find.

    args: how many names it may come by, how many may match, bytes of records, and then pairs of a
    directory and a pattern that begins there.
    """
    most_names, most, most_bytes, *wanted = args
    search, output = Search(stack, int(most_names), int(most)), Output(int(most_bytes))
    changes = Changes(output, None, 1 << 62)
    seen: set[tuple[bytes, ...]] = set()
    for where, pattern in zip(wanted[::2], wanted[1::2], strict=True):
        above = tuple(name for name in os.fsencode(where).split(b"/") if name)
        for path, entry, _ in search.find(Group(os.fsencode(where), [pattern])):
            names = (*above, *path.split(b"/"))
            if names not in seen:
                seen.add(names)
                changes.item(Item(names, SAME, entry, None, {}))
    output.record(b"")
    output.flush()


def run(args: Sequence[str]) -> None:
    """args: the job; the descriptor of the upper; how many layers there are below; the prefix of
    overlay's attributes; and what the job takes.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gc.disable()  # there are no circles
    job, upper, lowers, *rest = args
    layers = [int(upper)]
    for number in reversed(range(int(lowers))):
        layers.append(os.open(f"{LOWER}{number}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    prefix = os.fsencode(rest[0])
    stack = Stack(layers, prefix)
    if job == "read":
        write_content(stack, os.fsencode(rest[1]), int(rest[2]))
        return
    if job == "outputs":
        write_outputs(stack, rest[1:])
        return
    _, owner, most_names, most_bytes, budget, *points = rest
    ids = tuple(map(int, owner.split())) if owner else None
    walk = Walk(stack, prefix, int(most_names))
    changes = Changes(Output(int(most_bytes)), (ids[0], ids[1]) if ids else None, int(budget))
    changes.write(walk, list(map(os.fsencode, points)))


def main(args: Sequence[str]) -> int:
    try:
        run(args)
    except TooMuch as error:
        code, text = errno.EOVERFLOW, str(error)
    except MemoryError:
        code, text = errno.ENOMEM, "it takes more memory than there is for it"
    except OSError as error:
        code, text = error.errno or errno.EIO, str(error.strerror)
    else:
        return 0
    os.write(2, f"{code} {text}".encode())
    return FAILED
