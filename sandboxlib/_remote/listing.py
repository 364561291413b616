# SPDX-License-Identifier: Apache-2.0
"""Listing: the outputs that an ActionResult names, all of them checked before anything is fetched.

The message comes from a server, which may be wrong or hostile, and so may whoever wrote the result.
No path of it leads out of what the Command declared, and nothing is larger than what is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from .. import _reapi
from .._changes.child.globs import Globs, States
from .._inputs.reading import MOST
from .._spec.inputs import inside, is_wild
from ..errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOST_TREE = 64 << 20  # bytes of the message of an output directory
_DEEPEST = 200  # directories in each other
_LONGEST_PATH, _LONGEST_NAME = 4095, 255  # limits.h
_NO_NAMES = frozenset(("", ".", ".."))


class Wrong(Exception):
    """An ActionResult that cannot be true; the text says why."""


class Entry:
    """A file. digest: str. size: int, bytes. is_executable: bool. content: bytes, if the message
    has it.
    """

    __slots__ = ("content", "digest", "is_executable", "size")

    def __init__(self, digest: str, is_executable: bool, content: bytes | None = None) -> None:
        self.digest, self.is_executable, self.content = digest, is_executable, content
        self.size = int(digest[65:])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Entry):
            return NotImplemented
        return (self.digest, self.is_executable) == (other.digest, other.is_executable)

    __hash__ = None  # type: ignore[assignment]


class Declared:
    """The outputs of a Command, absolute, as matchers of paths.

    patterns: as Command has them. cwd: its directory.
    """

    def __init__(self, patterns: Iterable[str], cwd: str | None) -> None:
        self.patterns = tuple(patterns)
        self._plain: dict[str, int] = {}
        self._wild: list[int] = []
        wild = []
        for number, pattern in enumerate(self.patterns):
            path = inside(pattern, cwd)
            if is_wild(path):
                self._wild.append(number)
                wild.append(path)
            else:
                self._plain[path] = number
        self._globs = Globs(wild)
        self._known: dict[str, tuple[States, frozenset[int]]] = {}
        self._top: tuple[States, frozenset[int]] = (self._globs.start(), frozenset())

    def matching(self, path: str) -> frozenset[int]:
        """The numbers of the patterns that match a path, or a directory above it."""
        return self._look(path)[1] if path != "/" else frozenset()

    def _look(self, path: str) -> tuple[States, frozenset[int]]:
        if path in ("", "/"):
            return self._top
        found = self._known.get(path)
        if found is None:
            above, _, name = path.rpartition("/")
            states, matched = self._look(above)
            if self._wild:
                states, done = self._globs.step(states, name)
                matched |= {self._wild[number] for number in done}
            if (number := self._plain.get(path)) is not None:
                matched |= {number}
            found = self._known[path] = states, matched
        return found


class Listing:
    """What an ActionResult names, by absolute paths in the sandbox.

    files, links, directories: as in Outputs. trees: the digest of the Tree message of a directory,
    by its path. Raises Wrong.
    """

    def __init__(self, message: Any, declared: Declared, cwd: str | None) -> None:
        self.files: dict[str, Entry] = {}
        self.links: dict[str, str] = {}
        self.directories: dict[str, None] = {}
        self.trees: dict[str, str] = {}
        self._declared = declared
        self._above = inside("x", cwd).removesuffix("x")
        for each in message.output_files:
            entry = Entry(
                checked_digest(each.digest), bool(each.is_executable), each.contents or None
            )
            self._put(self.files, self._place(each.path), entry)
        for each in _links(message):
            self._put(self.links, self._place(each.path), _target(each.target))
        for each in message.output_directories:
            path, digest = self._place(each.path), checked_digest(each.tree_digest)
            if _size(digest) > MOST_TREE:
                raise Wrong(f"the message of the directory {path!r} is larger than {MOST_TREE}")
            self._put(self.trees, path, digest)
            self.directories[path] = None
        self._check_nesting()

    def _place(self, text: str) -> str:
        """The place of an output, whose path is as the API has it."""
        path = text[1:] if text.startswith("/") else text
        if path and (not _NO_NAMES.isdisjoint(path.split("/")) or "\0" in path):
            raise Wrong(f"no output has the path {text[:200]!r}")
        if len(path) >= _LONGEST_PATH:
            raise Wrong("an output has a path that no file can have")
        place = f"/{path}" if text.startswith("/") else (self._above + path).rstrip("/") or "/"
        if not self._declared.matching(place):
            raise Wrong(f"the output {text[:200]!r} is none that the Command declared")
        return place

    def _put(self, kind: dict[str, Any], path: str, node: object) -> None:
        if (path in self.files or path in self.links or path in self.trees) and (
            path not in kind or kind[path] != node
        ):
            raise Wrong(f"two outputs have the path {path[:200]!r}")
        kind[path] = node
        if len(self.files) + len(self.links) + len(self.directories) > MOST:
            raise Wrong(f"there are more than {MOST} outputs")

    def expand(self, contents: Mapping[str, bytes]) -> None:
        """Adds what lies in the directories. contents: the Tree messages, by their digests."""
        for path, digest in self.trees.items():
            messages, top = _messages(contents[digest])
            self._add_folder(path, top, messages)
        self._check_nesting()

    def _add_folder(self, top: str, root: bytes, messages: Mapping[str, bytes]) -> None:
        todo = [(top, root, 0)]
        while todo:
            path, content, depth = todo.pop()
            if depth > _DEEPEST:
                raise Wrong(f"there are more than {_DEEPEST} directories in each other")
            folder = _parsed(content)
            names = _Names(path)
            for each in folder.files:
                entry = Entry(checked_digest(each.digest), bool(each.is_executable))
                self._put(self.files, names.add(each.name), entry)
            for each in folder.symlinks:
                self._put(self.links, names.add(each.name), _target(each.target))
            for each in folder.directories:
                below, digest = names.add(each.name), checked_digest(each.digest)
                if digest not in messages:
                    raise Wrong(f"the directory {below[:200]!r} is not in its Tree")
                self.directories[below] = None
                todo.append((below, messages[digest], depth + 1))
            if len(self.files) + len(self.links) + len(self.directories) > MOST:
                raise Wrong(f"there are more than {MOST} outputs")

    def _check_nesting(self) -> None:
        """Wrong if something lies below a file or a link, or a directory is one."""
        for path in (*self.files, *self.links, *self.directories):
            if path in self.directories and (path in self.files or path in self.links):
                raise Wrong(f"two outputs have the path {path[:200]!r}")
            above = path
            while above := above.rpartition("/")[0]:
                if above in self.files or above in self.links:
                    raise Wrong(f"the output {path[:200]!r} lies below one that is no directory")
                if above in self.directories:
                    break

    def keep(self, wanted: Callable[[str], bool]) -> None:
        """Forgets all outputs but those whose path is wanted."""
        kinds: tuple[dict[str, Any], ...] = (self.files, self.links, self.directories)
        for each in kinds:
            for path in [path for path in each if not wanted(path)]:
                del each[path]


class _Names:
    """The names in one directory, each of which may be there once."""

    def __init__(self, path: str) -> None:
        self._path, self._seen = path.rstrip("/"), set[str]()

    def add(self, name: str) -> str:
        """The path of a name. Wrong if no directory can have it."""
        is_none = name in ("", ".", "..") or "/" in name or "\0" in name
        if is_none or len(name.encode()) > _LONGEST_NAME or name in self._seen:
            raise Wrong(
                f"nothing in a directory has the name {name[:200]!r}, or two things have it"
            )
        self._seen.add(name)
        path = f"{self._path}/{name}"
        if len(path) > _LONGEST_PATH:
            raise Wrong("an output has a path that no file can have")
        return path


def _links(message: Any) -> Iterator[Any]:
    yield from message.output_symlinks
    yield from message.output_file_symlinks
    yield from message.output_directory_symlinks


def checked_digest(message: Any) -> str:
    """The digest of a Digest message. Wrong if it is none."""
    try:
        return _reapi.check_digest("a digest", f"{message.hash}/{message.size_bytes}")
    except SpecError as error:
        raise Wrong(str(error)) from None


def _size(digest: str) -> int:
    return int(digest.partition("/")[2])


def _target(target: str) -> str:
    if not target or "\0" in target or len(target.encode()) > _LONGEST_PATH:
        raise Wrong(f"no symbolic link leads to {target[:200]!r}")
    return target


# ---- Tree messages ---------------------------------------------------------------------------


def _parsed(content: bytes) -> Any:
    from .stubs import message, re_pb

    try:
        return re_pb.Directory.FromString(content)
    except message.DecodeError as error:
        raise Wrong(f"a directory of an output is no Directory message: {error}") from None


def _messages(data: bytes) -> tuple[dict[str, bytes], bytes]:
    """The Directory messages of a Tree, by their digests, and that of its root. They are taken as
    bytes: what protobuf would make of one that it has parsed may have another digest.
    """
    root, children = b"", {}
    for field, content in _fields(data):
        if field == 1:
            root = content
        elif field == 2:
            children[_reapi.digest_of(content)] = content
    return children, root


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a message that has submessages alone. Wrong for any other."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        size, at = _varint(data, at)
        if tag & 7 != 2 or at + size > len(data):
            raise Wrong("an output directory is no Tree message")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
    raise Wrong("an output directory is no Tree message")
