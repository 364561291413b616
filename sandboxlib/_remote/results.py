# SPDX-License-Identifier: Apache-2.0
"""Results as messages of the Remote Execution API, and back.

action_result() makes the ActionResult of a Result of a run on this machine; answer_of() reads that
of a server, and takes what it names out of the server's store.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping

from .. import _reapi
from .._inputs.outputs import Outputs
from .._inputs.placing import Wanted
from .._inputs.reading import Taker
from .._inputs.snapshot import Folder, Leaf, Link, encoded, leaf_of, merged
from .._spec.command import Command
from .._spec.inputs import File, inside
from .._store.storage import Storage
from ..errors import RemoteError
from ..result import Result
from . import cas
from .listing import Declared, Listing, Wrong, checked_digest
from .metadata import Told, exit_code, fill_metadata
from .server import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOST_STREAM = 64 << 20  # bytes of stdout, and of stderr, that a store keeps for a command
_SMALL = 1 << 18  # bytes: such files are fetched many at once, as in _inputs/reading.py
_AT_ONCE = 16 << 20  # bytes of small files
_MOST_MESSAGE = 3 << 20  # bytes of an ActionResult: servers take 4 MiB

Blobs = dict[str, bytes | str]


def action_result(result: Result, cwd: str | None, worker: str) -> tuple[Any, Blobs] | None:
    """The ActionResult of a Result, and the blobs that it names: bytes, or the path of a file. The
    files last as long as the Result. None if no message can have it: an output has a name that is
    not UTF-8, or there are so many that a server would not take the message.

    cwd: the directory of the command. worker: the name of what ran it.
    """
    from .stubs import re_pb

    message = re_pb.ActionResult(exit_code=exit_code(result))
    message.execution_metadata.worker = worker
    fill_metadata(message.execution_metadata, result)
    blobs: Blobs = {}
    for name, content in (("stdout", result.out), ("stderr", result.err)):
        if content:
            digest = _reapi.digest_of(content)
            blobs[digest] = content
            _fill(getattr(message, f"{name}_digest"), digest)
    try:
        _put_outputs(message, result.outputs, cwd, blobs)
    except UnicodeEncodeError:
        return None
    return None if message.ByteSize() > _MOST_MESSAGE else (message, blobs)


def _put_outputs(message: Any, outputs: Outputs, cwd: str | None, blobs: Blobs) -> None:
    above = inside("x", cwd).removesuffix("x")
    tops = [path for path in outputs.directories if not _is_below(path, outputs.directories)]
    nodes: dict[str, dict[str, object]] = {path: {} for path in tops}
    for path, node in _nodes(outputs):
        path.encode()  # UnicodeEncodeError, for a name that no message can have
        top = next((each for each in _above(path) if each in nodes), None)
        if isinstance(node, Leaf):
            blobs[node.digest] = node.source
        if top is not None:
            if path != top:
                nodes[top][path[len(top) + 1 :]] = node
        elif isinstance(node, Leaf):
            made = message.output_files.add(
                path=path.removeprefix(above), is_executable=node.is_executable
            )
            _fill(made.digest, node.digest)
        elif isinstance(node, Link):
            message.output_symlinks.add(path=path.removeprefix(above), target=node.target.decode())
    for path in tops:
        tree = _tree(nodes[path])
        blobs[digest := _reapi.digest_of(tree)] = tree
        made = message.output_directories.add(path=path.removeprefix(above))
        _fill(made.tree_digest, digest)


def _nodes(outputs: Outputs) -> Iterator[tuple[str, Leaf | Link | Folder]]:
    for path in outputs.directories:
        yield path, Folder()
    for path, file in outputs.items():
        yield path, leaf_of(file)
    for path, target in outputs.links.items():
        target.encode()
        yield path, Link(os.fsencode(target))


def _above(path: str) -> Iterator[str]:
    """A path, and the directories above it, the top last."""
    while path:
        yield path
        path = path.rpartition("/")[0]


def _is_below(path: str, directories: Iterable[str]) -> bool:
    others = directories if isinstance(directories, (set, frozenset)) else frozenset(directories)
    return any(each in others for each in _above(path.rpartition("/")[0]))


def _tree(nodes: Mapping[str, object]) -> bytes:
    """The Tree message of a directory. nodes: what lies in it, by relative paths."""
    folder = merged(nodes, lambda node: node)  # type: ignore[arg-type, return-value]
    messages: dict[str, bytes] = {}
    top = encoded(folder, messages)
    return _reapi.tree(messages[top], [each for key, each in messages.items() if key != top])


def _fill(message: Any, digest: str) -> None:
    name, _, size = digest.partition("/")
    message.hash, message.size_bytes = name, int(size)


# ---- what a server says ----------------------------------------------------------------------


class Answer:
    """What an ActionResult says.

    exit: int, as in Result. stdout, stderr: bytes; b"" for one that nobody wanted. outputs:
    Outputs. usage: Usage, or None. limits_hit, isolation, worker: as in Result.
    """

    def __init__(self, told: Told, stdout: bytes, stderr: bytes, outputs: Outputs) -> None:
        self.exit, self.usage = told.exit, told.usage
        self.limits_hit, self.isolation = told.limits_hit, told.isolation
        self.worker = told.worker
        self.stdout, self.stderr, self.outputs = stdout, stderr, outputs


def answer_of(
    server: Server,
    message: Any,
    command: Command,
    cwd: str | None,
    storage: Storage,
    *,
    declared: Iterable[str] | None = None,
    streams: Iterable[str] = ("stdout", "stderr"),
) -> Answer:
    """Reads an ActionResult of a server. Small files are in memory, large ones in the store, each
    compared with its digest.

    cwd: the directory of the command, as Sandbox._cwd_of() has it. declared: the output paths that
    the server was asked for, if these are not command.outputs: outputs that the Command does not
    declare are then left out. streams: 'stdout' and 'stderr', as far as they are wanted.

    Raises RemoteError: DATA_LOSS for a message that cannot be true, before anything is written;
    NOT_FOUND, with the digests, if the store of the server lost a blob; RESOURCE_EXHAUSTED for more
    than memory or the disk takes; SetupError if the store cannot be written.
    """
    try:
        return _Reader(server, message, command, cwd, storage).read(declared, frozenset(streams))
    except Wrong as error:
        raise RemoteError(server.url, "GetActionResult", "DATA_LOSS", str(error)) from None


class _Reader:
    def __init__(
        self, server: Server, message: Any, command: Command, cwd: str | None, storage: Storage
    ) -> None:
        self._server, self._message, self._command = server, message, command
        self._cwd, self._storage = cwd, storage
        self._contents: dict[str, bytes] = {_reapi.EMPTY: b""}

    def read(self, declared: Iterable[str] | None, streams: frozenset[str]) -> Answer:
        own = Declared(self._command.outputs, self._cwd)
        asked = own if declared is None else Declared(declared, self._cwd)
        listing = Listing(self._message, asked, self._cwd)
        wanted = {name: self._stream(name) for name in sorted(streams)}
        self._take_inline(listing)
        digests = {digest for digest in (*wanted.values(), *listing.trees.values()) if digest}
        files = self._small(listing)
        self._fetch(digests, files)
        listing.expand(self._contents)
        if declared is not None:
            listing.keep(lambda path: bool(own.matching(path)))
        self._check_room(listing)
        outputs = self._outputs(listing, own)
        out, err = (self._contents.get(wanted.get(each, ""), b"") for each in ("stdout", "stderr"))
        return Answer(Told(self._message), out, err, outputs)

    def _stream(self, name: str) -> str:
        """The digest of a stream; "" if it is empty. The message itself may have the content."""
        told, raw = getattr(self._message, f"{name}_digest"), getattr(self._message, f"{name}_raw")
        digest = checked_digest(told) if told.hash else ""
        if raw:
            found = _reapi.digest_of(raw)
            if digest not in ("", found):
                raise Wrong(f"{name} has not the digest that the result names")
            self._contents[found] = raw
            return found
        if digest and (size := cas.size_of(digest)) > MOST_STREAM:
            text = f"{name} has {size} bytes, more than the {MOST_STREAM} that are taken"
            raise RemoteError(self._server.url, "Read", "RESOURCE_EXHAUSTED", text, (digest,))
        return digest

    def _take_inline(self, listing: Listing) -> None:
        for path, entry in listing.files.items():
            if entry.content is not None:
                if _reapi.digest_of(entry.content) != entry.digest:
                    raise Wrong(f"{path[:200]!r} has not the digest that the result names")
                self._contents[entry.digest] = entry.content

    def _small(self, listing: Listing) -> dict[str, int]:
        """The sizes of small files, by their digests, as far as they were not fetched yet."""
        known = self._contents
        return {
            each.digest: each.size
            for each in listing.files.values()
            if each.size <= _SMALL and each.digest not in known
        }

    def _fetch(self, first: set[str], files: Mapping[str, int]) -> None:
        """Fetches blobs into memory: all of the first, and as many files as there is room for."""
        left = {each for each in first if each not in self._contents}
        room = _AT_ONCE - sum(map(len, self._contents.values()))
        for digest, size in files.items():
            room -= size
            if room < 0:
                break
            left.add(digest)
        if left:
            most = 4 * MOST_STREAM + _AT_ONCE
            self._contents |= cas.fetch(self._server, left, most=most)

    def _check_room(self, listing: Listing) -> None:
        """RESOURCE_EXHAUSTED if the disk of the store cannot have the outputs."""
        large = [
            each.digest for each in listing.files.values() if each.digest not in self._contents
        ]
        total = sum(map(cas.size_of, large))
        if total <= _AT_ONCE:
            return
        self._storage._ready()
        disk = os.statvfs(self._storage.directory)
        if total > (free := disk.f_bavail * disk.f_frsize):
            text = f"the outputs have {total} bytes, and the disk of the store has room for {free}"
            raise RemoteError(self._server.url, "Read", "RESOURCE_EXHAUSTED", text)

    def _outputs(self, listing: Listing, own: Declared) -> Outputs:
        paths: dict[tuple[str, bool], list[str]] = {}
        for path, entry in listing.files.items():
            paths.setdefault((entry.digest, entry.is_executable), []).append(path)
        with contextlib.ExitStack() as stack:
            taker = Taker(self._storage, stack)
            for path in listing.directories:
                taker.directory(path)
            for path, target in listing.links.items():
                taker.link(path, target)
            for group in self._groups(paths):
                contents = self._contents_of(group)
                for digest, is_executable in group:
                    taker.begin(paths[digest, is_executable], cas.size_of(digest), is_executable)
                    self._write(taker, digest, contents)
                    taker.end()
            found: set[int] = set()
            for path in (*listing.files, *listing.links, *listing.directories):
                found |= own.matching(path)
            taker.found = {own.patterns[number] for number in found}
            outputs = taker.finish([Wanted(pattern, self._cwd) for pattern in own.patterns])
        for path, file in outputs.items():  # its digest need not be computed again
            _note(file, listing.files[path].digest)
        return outputs

    def _groups(self, files: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
        """The files, so many at once as memory takes; a large one, which goes to the store, takes
        none.
        """
        group: list[tuple[str, bool]] = []
        room = _AT_ONCE
        for key in files:
            size = cas.size_of(key[0])
            needs = size if size <= _SMALL and key[0] not in self._contents else 0
            if needs > room:
                yield group
                group, room = [], _AT_ONCE
            group.append(key)
            room -= needs
        if group:
            yield group

    def _contents_of(self, group: Iterable[tuple[str, bool]]) -> Mapping[str, bytes]:
        """The contents of the small files of a group."""
        left = {digest for digest, _ in group if cas.size_of(digest) <= _SMALL}
        left -= self._contents.keys()
        return {**self._contents, **cas.fetch(self._server, left)} if left else self._contents

    def _write(self, taker: Taker, digest: str, contents: Mapping[str, bytes]) -> None:
        if (content := contents.get(digest)) is not None:
            taker.write(0, content)
            return
        at = 0

        def write(data: bytes) -> None:
            nonlocal at
            taker.write(at, data)
            at += len(data)

        cas.download(self._server, digest, write)


def _note(file: File, digest: str) -> None:
    content = file.content
    source = content if isinstance(content, bytes) else os.fspath(content)
    file.__dict__["_leaf"] = Leaf(digest, file.executable, source)
