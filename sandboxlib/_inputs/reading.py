# SPDX-License-Identifier: Apache-2.0
"""Reading: the outputs of a run that is over, out of its upper and the layers below.

The content of the upper is that of a command which may be hostile. So it is read by descriptors,
one name after the other: no link is followed, and only regular files are opened
(_changes/child/outputs.py). What is kept in memory is bounded, whatever the command left.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence

from .._changes.child.outputs import Group, Search
from .._changes.child.stack import Entry, Stack
from .._spec.inputs import CHUNK, File
from .._spec.overlay import Lower
from .._store.storage import New, Storage
from ..errors import setup_error
from .collecting import clone, write_all
from .outputs import Outputs
from .placing import Wanted

_SMALL = 1 << 18  # bytes: such a file is kept in memory
_MOST_IN_MEMORY = 1 << 24  # bytes of all files of a run; then small ones go to the store too
_MOST = 200_000  # files, directories and links of a run
_MOST_NAMES = 2_000_000  # that it may come by, in all directories with outputs
_KIND = "outputs"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def read_outputs(
    upper: int,
    lowers: Sequence[Lower],
    prefix: bytes,
    outputs: Sequence[Wanted],
    storage: Storage,
) -> Outputs:
    """The outputs of a run that is over. upper: a descriptor. SetupError; PermissionError, if the
    caller may not read one.
    """
    layers = [upper]
    try:
        for lower in reversed(lowers):
            layers.append(os.open(lower.path, _DIRECTORY))
        with contextlib.ExitStack() as stack:
            return _read(
                Search(Stack(layers, prefix), _MOST_NAMES), outputs, _Reader(storage, stack)
            )
    except PermissionError:
        raise
    except OSError as error:
        if hasattr(error, "step"):
            raise
        text = str(error.strerror) if error.errno == errno.E2BIG else ""
        what = "read the outputs of a run that is over"
        raise setup_error(error.errno or 0, None, "outputs", what, text) from None
    finally:
        for fd in layers[1:]:
            os.close(fd)


def _read(search: Search, outputs: Sequence[Wanted], reader: _Reader) -> Outputs:
    for parent, wanted in _groups(outputs):
        group = Group(os.fsencode(wanted[0].where), [each.rest for each in wanted])
        for path, entry, numbers in search.find(group):
            reader.take(os.path.join(parent, os.fsdecode(path)), entry)
            reader.found |= {wanted[number].pattern for number in numbers}
    missing = [each.pattern for each in outputs if each.pattern not in reader.found]
    files = reader.finish()
    return Outputs(files, reader.links, tuple(reader.directories), tuple(missing))


def _groups(outputs: Sequence[Wanted]) -> Iterator[tuple[str, list[Wanted]]]:
    """The patterns that begin in the same directory, under the same name of it."""
    groups: dict[str, list[Wanted]] = {}
    for each in outputs:
        groups.setdefault(each.parent, []).append(each)
    yield from groups.items()


class _Reader:
    """Takes the outputs one by one. stack: an ExitStack that is closed after finish()."""

    def __init__(self, storage: Storage, stack: contextlib.ExitStack) -> None:
        self._storage, self._stack = storage, stack
        self._new: New | None = None
        self._room = _MOST_IN_MEMORY
        self._files: dict[str, tuple[bytes | str, bool]] = {}  # content, or its name in the store
        self.links: dict[str, str] = {}
        self.directories: dict[str, None] = {}
        self.found: set[str] = set()

    def take(self, path: str, entry: Entry) -> None:
        if path in self._files:
            return
        if len(self._files) + len(self.links) + len(self.directories) >= _MOST:
            raise OSError(errno.E2BIG, f"more than {_MOST} outputs")
        if entry.is_directory():
            self.directories[path] = None
        elif entry.is_link():
            self.links[path] = os.fsdecode(entry.link())
        else:
            self._files[path] = self._content(entry), bool(entry.status.st_mode & 0o100)

    def _content(self, entry: Entry) -> bytes | str:
        size = entry.status.st_size
        fd = entry.open()
        try:
            if size <= min(_SMALL, self._room):
                self._room -= size
                return _content(fd, size)
            if self._new is None:
                self._new = self._stack.enter_context(self._storage._new())
            name = str(len(self._files))
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            copy = os.open(os.path.join(self._new.tree, name), flags, 0o600)
            try:
                if not clone(fd, copy):
                    _copy(fd, copy, size)
            finally:
                os.close(copy)
            return name
        finally:
            os.close(fd)

    def finish(self) -> dict[str, File]:
        """The Files. Those in the store share one entry, which stays as long as one of them does.
        Nobody looks for it by its content, so it has no digest.
        """
        from pathlib import Path

        lease = None
        if self._new is not None:
            lease = self._storage._publish(self._new, _KIND, os.urandom(16).hex())
        files = {}
        for path, (content, is_executable) in self._files.items():
            if isinstance(content, bytes):
                files[path] = File(content, executable=is_executable)
            else:
                assert lease is not None
                files[path] = File(Path(lease.path, content), executable=is_executable)
                files[path].__dict__["_lease"] = lease
        return files


def _content(fd: int, size: int) -> bytes:
    """At most so many bytes: a process that is left may write on."""
    chunks = []
    while size > 0 and (chunk := os.read(fd, min(size, CHUNK))):
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def _copy(fd: int, copy: int, size: int) -> None:
    """Copies the data of a file, and leaves its holes: a command can make one of any size."""
    os.ftruncate(copy, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                break
            raise
        end = min(size, os.lseek(fd, at, os.SEEK_HOLE))
        os.lseek(fd, at, os.SEEK_SET)
        os.lseek(copy, at, os.SEEK_SET)
        while at < end and (chunk := os.read(fd, min(end - at, CHUNK))):
            write_all(copy, chunk)
            at += len(chunk)
        if at < end:  # it became shorter
            break
