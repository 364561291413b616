# SPDX-License-Identifier: Apache-2.0
"""Snapshots: what a Tree consists of, by digests, and the Directory messages of that."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping

from .. import _reapi
from .._changes.child.globs import Globs, States
from .._spec.inputs import File, source_error
from ..errors import SpecError
from .hashes import digest_of_file, known_digest

_DEEPEST = 400  # directories in each other; recursion takes a frame of Python for each
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Properties:
    """What a message says of a file, directory or link beside its content (NodeProperties).

    mode: int, permissions; mtime: seconds and nanoseconds; None: not said. named: pairs of a name
    and a value.
    """

    __slots__ = ("mode", "mtime", "named")

    def __init__(
        self,
        mode: int | None = None,
        mtime: tuple[int, int] | None = None,
        named: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        self.mode, self.mtime, self.named = mode, mtime, named

    def encoded(self) -> bytes:
        return _reapi.properties(dict(self.named), self.mtime, self.mode)


class Leaf:
    """A regular file.

    digest: str. is_executable: bool. source: where its content is: bytes, or the path of a file,
    which may have changed since. flags: O_NOFOLLOW, if the path does not end in a link.
    properties: Properties or None.
    """

    __slots__ = ("digest", "flags", "is_executable", "properties", "source")

    def __init__(
        self,
        digest: str,
        is_executable: bool,
        source: bytes | str,
        flags: int = 0,
        properties: Properties | None = None,
    ) -> None:
        self.digest, self.is_executable, self.source = digest, is_executable, source
        self.flags, self.properties = flags, properties


class Link:
    """A symbolic link, kept as it is. target: bytes. properties: Properties or None."""

    __slots__ = ("properties", "target")

    def __init__(self, target: bytes, properties: Properties | None = None) -> None:
        self.target, self.properties = target, properties


class Gone:
    """A name that the layer below has, and this one hides. Only a difference() has it."""

    __slots__ = ()


class Total:
    """How much lies below a Folder, each path counted. entries: int. size: bytes of the files.
    deepest: int, directories in each other. is_plain: bool, whether nothing has Properties.
    is_kept: bool, whether a server has the message of the Folder, and of all below it.
    """

    __slots__ = ("deepest", "entries", "is_kept", "is_plain", "size")

    def __init__(
        self, entries: int, size: int, deepest: int, is_plain: bool, is_kept: bool = False
    ) -> None:
        self.entries, self.size, self.deepest = entries, size, deepest
        self.is_plain, self.is_kept = is_plain, is_kept


class Folder(dict[bytes, "Leaf | Link | Folder"]):
    """A directory: its entries by their names. That of a snapshot does not change.

    digest: str, that of its message, once it was encoded; then it has to stay as it is. staged: the
    path of a copy in the store, with what keeps it there; None: there is none yet. properties:
    Properties or None. base: an earlier Folder, whose layer lies below that of this one, which has
    then only what differs; None: its layer has all. fetch: called with a Folder before its content
    is read, to bring contents here; None: they are here. total: Total of a Folder out of messages.
    """

    __slots__ = ("base", "digest", "fetch", "properties", "staged", "total")

    def __init__(self, entries: Mapping[bytes, Leaf | Link | Folder] | None = None) -> None:
        super().__init__(entries or {})
        self.digest = ""
        self.staged: tuple[str, object] | None = None
        self.properties: Properties | None = None
        self.base: Folder | None = None
        self.fetch: Callable[[Folder], object] | None = None
        self.total: Total | None = None


Node = Leaf | Link | Folder
GONE = Gone()


def leaf_of(file: File) -> Leaf:
    """The Leaf of a File, which is read if its digest is not known. SetupError."""
    leaf: Leaf | None = file.__dict__.get("_leaf")  # of bytes, or of a File of frozen()
    if leaf is not None:
        return leaf
    content, bit = file.content, file._executable
    if isinstance(content, bytes):
        leaf = file.__dict__["_leaf"] = Leaf(_reapi.digest_of(content), bool(bit), content)
        return leaf
    try:
        status = os.stat(content)
    except OSError as error:
        raise source_error(error, content) from None
    digest = known_digest(status)
    if not digest:
        digest, status = digest_of_file(content)
    is_executable = bool(status.st_mode & stat.S_IXUSR) if bit is None else bit
    return Leaf(digest, is_executable, os.fspath(content))


def read_folder(path: str, exclude: Globs) -> Folder:
    """The directory of the caller's, as it is now. SetupError."""
    fd = -1
    try:
        fd = os.open(path, _FOLDER & ~os.O_NOFOLLOW)
        return _read(fd, path, exclude, exclude.start(), _DEEPEST)
    except OSError as error:
        raise source_error(error, path) from None
    finally:
        if fd >= 0:
            os.close(fd)


def _read(fd: int, path: str, exclude: Globs, states: States, room: int) -> Folder:
    if not room:
        raise OSError(errno.ELOOP, f"more than {_DEEPEST} directories in each other")
    folder = Folder()
    with os.scandir(fd) as entries:
        for entry in entries:
            below, excluded = exclude.step(states, entry.name) if states else (states, set())
            if not excluded:
                place = os.path.join(path, entry.name)
                try:
                    folder[os.fsencode(entry.name)] = _entry(fd, entry, place, exclude, below, room)
                except OSError as error:
                    raise source_error(error, place) from None
    return folder


def _entry(
    fd: int, entry: os.DirEntry[str], path: str, exclude: Globs, states: States, room: int
) -> Node:
    status = entry.stat(follow_symlinks=False)
    if stat.S_ISREG(status.st_mode):
        digest = known_digest(status)
        if not digest:
            digest, status = digest_of_file(entry.name, fd, os.O_NOFOLLOW)
        return Leaf(digest, bool(status.st_mode & stat.S_IXUSR), path, os.O_NOFOLLOW)
    if stat.S_ISLNK(status.st_mode):
        return Link(os.fsencode(os.readlink(entry.name, dir_fd=fd)))
    if not stat.S_ISDIR(status.st_mode):
        raise SpecError(
            f"{path} is neither a file, a directory nor a symbolic link, which are what a Tree has;"
            " leave it out: exclude=[...]"
        )
    inner = os.open(entry.name, _FOLDER, dir_fd=fd)
    try:
        return _read(inner, path, exclude, states, room - 1)
    finally:
        os.close(inner)


def put(root: Folder, path: str, node: Node, own: set[int]) -> None:
    """Places a node in a Folder that nobody else has. A directory on the way is copied first if it
    may belong to a snapshot. SpecError if the way leads through a file or a link, or a file would
    replace a directory.

    own: the id() of each Folder that nobody else has; gets those of the copies.
    """
    *way, name = os.fsencode(path).strip(b"/").split(b"/")
    at = root
    for part in way:
        below = at.get(part)
        if below is not None and not isinstance(below, Folder):
            kind = "a symbolic link" if isinstance(below, Link) else "a file"
            raise SpecError(f"{path}: {os.fsdecode(part)!r} on the way there is {kind} of a Tree")
        if below is None or id(below) not in own:
            at[part] = below = copied(below)
            own.add(id(below))
        at = below
    if isinstance(at.get(name), Folder) and not isinstance(node, Folder):
        raise SpecError(f"{path}: a Tree has a directory there, which a File does not replace")
    at[name] = node


def copied(folder: Folder | None) -> Folder:
    """A Folder with the same entries that may be changed; an empty one for None."""
    made = Folder(folder)
    if folder is not None:
        made.properties = folder.properties
    return made


def difference(base: Folder, folder: Folder) -> Folder:
    """What a layer above that of `base` needs, so that both together are `folder`."""
    made = copied(None)
    made.properties = folder.properties
    for name, node in folder.items():
        below = base.get(name)
        if isinstance(node, Folder) and isinstance(below, Folder):
            if encoded(node) != encoded(below):
                made[name] = difference(below, node)
        elif not is_same(node, below):
            made[name] = node
    for name in base.keys() - folder.keys():
        made[name] = GONE  # type: ignore[assignment]
    return made


def is_same(node: Node, other: Node | None) -> bool:
    """Whether two nodes are the same file or link, or equal directories."""
    if node is other:
        return True
    if isinstance(node, Leaf):
        return isinstance(other, Leaf) and (
            node.digest == other.digest
            and node.is_executable == other.is_executable
            and extra_of(node) == extra_of(other)
        )
    if isinstance(node, Link):
        is_link = isinstance(other, Link) and node.target == other.target
        return is_link and extra_of(node) == extra_of(other)  # type: ignore[arg-type]
    return isinstance(other, Folder) and encoded(node) == encoded(other)


def extra_of(node: Node) -> bytes | None:
    """The properties of a node as the nodes of _reapi take them."""
    return None if node.properties is None else node.properties.encoded()


def merged(
    places: Mapping[str, object], node_of: Callable[[object], Leaf | Link | Folder]
) -> Folder:
    """One Folder of all inputs: a longer path goes over a shorter one, and a Tree hides what a
    shorter one has at its path.
    """
    root, own = Folder(), set[int]()
    for path in sorted(places, key=lambda path: (path.count("/"), path)):
        node = node_of(places[path])
        if path == "/" and isinstance(node, Folder):
            root = copied(node)
        else:
            put(root, path, node, own)
    return root


def without(folder: Folder, exclude: Globs, states: States) -> Folder:
    """A Folder without what the patterns match."""
    left = Folder()
    for name, node in folder.items():
        below, excluded = exclude.step(states, name)
        if not excluded:
            left[name] = without(node, exclude, below) if isinstance(node, Folder) else node
    return left


def message_of(folder: Folder, messages: dict[str, bytes] | None = None) -> bytes:
    """The Directory message of a Folder. messages: as in encoded(), without this one."""
    files, directories, links = {}, {}, {}
    for name, node in folder.items():
        if isinstance(node, Leaf):
            extra = None if node.properties is None else extra_of(node)
            files[name] = _reapi.file_node(name, node.digest, node.is_executable, extra)
        elif isinstance(node, Link):
            links[name] = _reapi.symlink_node(name, node.target, extra_of(node))
        else:
            directories[name] = _reapi.directory_node(name, encoded(node, messages))
    return _reapi.directory(files, directories, links, extra_of(folder))


def encoded(folder: Folder, messages: dict[str, bytes] | None = None) -> str:
    """The digest of the Directory message of a Folder.

    messages: gets the messages of this and of all directories below, by their digests.
    """
    if folder.digest and messages is None:
        return folder.digest
    message = message_of(folder, messages)
    folder.digest = digest = _reapi.digest_of(message)
    if messages is not None:
        messages[digest] = message
    return digest
