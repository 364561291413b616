# SPDX-License-Identifier: Apache-2.0
"""Directory messages of a server as Folders, and the messages and contents of a Folder.

The messages come from another machine, and anybody may have written them. So each is compared with
its digest, every name is checked, and what lies below a directory is counted before anybody walks
it: few messages, each of which names the next one twice, make more paths than there are atoms.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping

from .. import _reapi
from .._inputs.snapshot import Folder, Leaf, Link, Properties, Total, encoded
from ..errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOST_ENTRIES = 2_000_000  # files, directories and links of a tree, each path counted
MOST_DEEP = 400  # directories in each other, as in _inputs/snapshot.py
MOST_BYTES = 256 << 20  # bytes of the messages of a tree
MOST_MESSAGE = 64 << 20  # bytes of one message
_BATCH = 4 << 20  # bytes of messages that are asked for at once
MOST_KEPT = 500_000  # entries of the Folders that stay in memory, about 200 bytes each
_LONGEST_NAME, _LONGEST_TARGET = 255, 4095  # limits.h
_MOST_SIZE = 1 << 50  # bytes of all files of a tree, each path counted

Fetch = Callable[[Iterable[str]], Mapping[str, bytes]]


class Folders:
    """Folders by their digests. Those that were used last stay in memory, and trees share them.

    source: returns the path or the content that a Leaf has for a digest.
    """

    def __init__(self, source: Callable[[str], bytes | str], most: int = MOST_KEPT) -> None:
        self._source, self._most = source, most
        self._lock = allocate_lock()
        self._kept: OrderedDict[str, Folder] = OrderedDict()
        self._entries = 0

    def load(self, digest: str, fetch: Fetch) -> Folder:
        """The Folder of the digest of a Directory message.

        fetch: returns the messages of digests. Raises SpecError for a message that is none, that
        has another digest, or that has what no directory can have; and what fetch() raises.
        """
        found = self._get(digest)
        if found is None:
            known: dict[str, Folder] = {}
            found = self._built(digest, self._messages(digest, fetch, known), known)
        return found

    def known(self, digest: str) -> Folder | None:
        """The Folder of a digest, if it is in memory."""
        return self._get(digest)

    def _get(self, digest: str) -> Folder | None:
        with self._lock:
            if (folder := self._kept.get(digest)) is not None:
                self._kept.move_to_end(digest)
            return folder

    def _keep(self, folder: Folder) -> Folder:
        with self._lock:
            if (other := self._kept.get(folder.digest)) is not None:
                return other
            self._kept[folder.digest] = folder
            self._entries += len(folder) + 1
            while self._entries > self._most and len(self._kept) > 1:
                self._entries -= len(self._kept.popitem(last=False)[1]) + 1
            return folder

    def _messages(self, digest: str, fetch: Fetch, known: dict[str, Folder]) -> dict[str, Any]:
        """The messages of all directories that are not known yet, which it fetches level by
        level. known: gets those that are.
        """
        found: dict[str, Any] = {}
        level, size, entries = [_check(digest)], 0, 0
        for _ in range(MOST_DEEP + 1):
            if not level:
                return found
            for each in level:
                size += int(each.partition("/")[2])
            if size > MOST_BYTES:
                raise SpecError(f"the messages of the directory {digest} are more than 256 MiB")
            contents = _fetched(level, fetch)
            below: dict[str, None] = {}
            for each in level:
                found[each] = message = _parsed(each, contents[each])
                nodes = message.directories
                entries += len(message.files) + len(nodes) + len(message.symlinks)
                if entries > MOST_ENTRIES:
                    raise SpecError(f"the directory {digest} has more than {MOST_ENTRIES} entries")
                below.update((_digest(node, node.name), None) for node in nodes)
            level = []
            for each in below:
                if each not in found and each not in known:
                    if (folder := self._get(each)) is None:
                        level.append(each)
                    else:
                        known[each] = folder
        raise SpecError(f"the directory {digest} has more than {MOST_DEEP} in each other")

    def _built(self, top: str, messages: Mapping[str, Any], made: dict[str, Folder]) -> Folder:
        """The Folder of messages, from the innermost on: each after all that it names. made: those
        that are there already.
        """
        todo = [top]
        while todo:
            digest = todo[-1]
            if digest in made:
                todo.pop()
                continue
            message = messages[digest]
            names = [_digest(node, node.name) for node in message.directories]
            if missing := [each for each in names if each not in made]:
                todo += missing
                continue
            made[digest] = self._keep(self._folder(digest, message, made))
        return made[top]

    def _folder(self, digest: str, message: Any, made: Mapping[str, Folder]) -> Folder:
        folder = Folder()
        entries = len(message.files) + len(message.directories) + len(message.symlinks)
        size, deepest = 0, 0
        folder.properties = _properties(message)
        is_plain = folder.properties is None
        for node in message.files:
            content = _digest(node, node.name)
            extra = _unnamed(node)
            is_plain = is_plain and extra is None
            source = self._source(content)
            folder[_name(node.name)] = Leaf(content, node.is_executable, source, 0, extra)
            size += int(content.partition("/")[2])
        for node in message.directories:
            folder[_name(node.name)] = below = made[_digest(node, node.name)]
            assert below.total is not None
            entries, size = entries + below.total.entries, size + below.total.size
            deepest = max(deepest, below.total.deepest)
            is_plain = is_plain and below.total.is_plain
        for node in message.symlinks:
            extra = _unnamed(node)
            is_plain = is_plain and extra is None
            folder[_name(node.name)] = Link(_target(node), extra)
        if len(folder) < len(message.files) + len(message.directories) + len(message.symlinks):
            raise SpecError(f"the directory {digest} has two entries of the same name")
        if entries > MOST_ENTRIES or size > _MOST_SIZE:
            text = f"{MOST_ENTRIES} entries or {_MOST_SIZE} bytes, as its paths are counted"
            raise SpecError(f"the directory {digest} has more than {text}")
        if deepest >= MOST_DEEP:
            raise SpecError(f"the directory {digest} has more than {MOST_DEEP} in each other")
        folder.digest = digest
        folder.total = Total(entries, size, deepest + 1, is_plain, True)
        return folder


def _fetched(digests: Iterable[str], fetch: Fetch) -> dict[str, bytes]:
    """The messages of some directories, so many at once as memory takes."""
    found: dict[str, bytes] = {}
    batch: list[str] = []
    size = 0
    for digest in digests:
        batch.append(digest)
        size += int(digest.partition("/")[2])
        if size > _BATCH:
            found.update(fetch(batch))
            batch, size = [], 0
    if batch:
        found.update(fetch(batch))
    return found


def _check(digest: str) -> str:
    _reapi.check_digest("the digest of a directory", digest)
    if int(digest.partition("/")[2]) > MOST_MESSAGE:
        raise SpecError(f"the message of the directory {digest} is too large")
    return digest


def _parsed(digest: str, content: bytes) -> Any:
    from .stubs import message, re_pb

    if _reapi.digest_of(content) != digest:
        raise SpecError(f"the content of the directory {digest} has another digest")
    parsed = re_pb.Directory()
    try:
        parsed.ParseFromString(content)
    except message.DecodeError:
        raise SpecError(f"the blob {digest} is no Directory message") from None
    for node in parsed.directories:
        _check(_digest(node, node.name))
    return parsed


def _digest(node: Any, name: str) -> str:
    text = f"{node.digest.hash}/{node.digest.size_bytes}"
    return _reapi.check_digest(f"the digest of {name!r}", text)


def _name(name: str) -> bytes:
    encoded_name = name.encode()
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(encoded_name) > _LONGEST_NAME:
        raise SpecError(f"nothing in a directory has the name {name[:300]!r}")
    return encoded_name


def _target(node: Any) -> bytes:
    target: bytes = node.target.encode()
    if not target or b"\0" in target or len(target) > _LONGEST_TARGET:
        raise SpecError(f"the symbolic link {node.name!r} has a target that no link can have")
    return target


def _unnamed(node: Any) -> Properties | None:
    """The properties of a file or a link, which have no named ones: nobody would keep those."""
    properties = _properties(node)
    if properties is not None and properties.named:
        name = properties.named[0][0].decode()
        raise SpecError(f"the property {name} of {node.name!r} is not known")
    return properties


def _properties(node: Any) -> Properties | None:
    if not node.HasField("node_properties"):
        return None
    told = node.node_properties
    mode = told.unix_mode.value if told.HasField("unix_mode") else None
    mtime = (told.mtime.seconds, told.mtime.nanos) if told.HasField("mtime") else None
    if mtime is not None and not (0 <= mtime[1] < 10**9 and abs(mtime[0]) < 1 << 40):
        raise SpecError(f"a time of a file is no time: {mtime}")
    named = tuple(sorted((each.name.encode(), each.value.encode()) for each in told.properties))
    return Properties(mode, mtime, named)


# ---- for uploads -----------------------------------------------------------------------------


def messages_of(folder: Folder) -> dict[str, bytes]:
    """The Directory messages of a Folder of ours and of all below it, by their digests."""
    messages: dict[str, bytes] = {}
    encoded(folder, messages)
    return messages


def contents_of(folder: Folder) -> dict[str, bytes | str]:
    """Where the contents of all files below a Folder are, by their digests: bytes, or a path."""
    return {leaf.digest: leaf.source for leaf in leaves(folder)}


def leaves(folder: Folder) -> Iterator[Leaf]:
    """The files below a Folder. A directory that lies at several places is walked once."""
    seen: set[int] = set()
    todo = [folder]
    while todo:
        for node in todo.pop().values():
            if isinstance(node, Leaf):
                yield node
            elif isinstance(node, Folder) and id(node) not in seen:
                seen.add(id(node))
                todo.append(node)
