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
from .._spec.inputs import File
from .._spec.overlay import Lower
from .._store.storage import New, Storage
from ..errors import setup_error
from .collecting import clone, copy_data, write_all
from .outputs import Outputs
from .placing import Wanted

_SMALL = 1 << 18  # bytes: such a file is kept in memory
_MOST_IN_MEMORY = 1 << 24  # bytes of all files of a run; then small ones go to the store too
MOST = 200_000  # files, directories and links of a run
MOST_NAMES = 1_000_000  # that it may come by, in all directories with outputs
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
        search = Search(Stack(layers, prefix), MOST_NAMES, MOST)
        with contextlib.ExitStack() as stack:
            taker = Taker(storage, stack)
            for parent, wanted in _groups(outputs):
                group = Group(os.fsencode(wanted[0].where), [each.rest for each in wanted])
                for path, entry, numbers in search.find(group):
                    taker.take(os.path.join(parent, os.fsdecode(path)), entry)
                    taker.found |= {wanted[number].pattern for number in numbers}
            return taker.finish(outputs)
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


def _groups(outputs: Sequence[Wanted]) -> Iterator[tuple[str, list[Wanted]]]:
    """The patterns that begin in the same directory, under the same name of it."""
    groups: dict[str, list[Wanted]] = {}
    for each in outputs:
        groups.setdefault(each.parent, []).append(each)
    yield from groups.items()


class Taker:
    """Takes the outputs one by one, and makes Files of them: what is small in memory, as long as
    there is room, and the rest in one entry of the store, which stays as long as one of its Files.
    Nobody looks for that by its content, so it has no digest.

    found: the patterns that have matched, which the caller fills. stack: an ExitStack that is
    closed after finish().
    """

    def __init__(self, storage: Storage, stack: contextlib.ExitStack) -> None:
        self.found: set[str] = set()
        self._storage, self._stack = storage, stack
        self._new: New | None = None
        self._room = _MOST_IN_MEMORY
        self._files: dict[str, tuple[bytes | str, bool]] = {}  # content, or its name in the store
        self._links: dict[str, str] = {}
        self._directories: dict[str, None] = {}
        self._names: list[str] = []  # of the file that is being written
        self._bit = False
        self._content: bytearray | None = None
        self._fd = -1

    def take(self, path: str, entry: Entry) -> None:
        """An output that is read here."""
        if path in self._files:
            return
        if entry.is_directory():
            self.directory(path)
        elif entry.is_link():
            self.link(path, os.fsdecode(entry.link()))
        else:
            fd = entry.open()
            try:
                size = entry.status.st_size
                self.begin([path], size, bool(entry.status.st_mode & 0o100))
                if self._content is not None or not clone(fd, self._fd):
                    copy_data(fd, size, self.write)
                self.end()
            finally:
                os.close(fd)

    def directory(self, path: str) -> None:
        self._directories[path] = None

    def link(self, path: str, target: str) -> None:
        self._links[path] = target

    def begin(self, names: list[str], size: int, is_executable: bool) -> None:
        """A file, under one name or several: what write() is not called for is a hole."""
        self._names, self._bit = names, is_executable
        if size <= min(_SMALL, self._room):
            self._content = bytearray(size)
            self._room -= size
            return
        if self._new is None:
            self._new = self._stack.enter_context(self._storage._new())
        path = os.path.join(self._new.tree, str(len(self._files)))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)
        self._stack.callback(self._close)
        os.ftruncate(self._fd, size)

    def write(self, at: int, data: bytes) -> None:
        if self._content is not None:
            self._content[at : at + len(data)] = data
        else:
            os.lseek(self._fd, at, os.SEEK_SET)
            write_all(self._fd, data)

    def end(self) -> None:
        made = str(len(self._files)) if self._content is None else bytes(self._content)
        self._content = None
        self._close()
        for name in self._names:
            self._files[name] = made, self._bit

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def finish(self, outputs: Sequence[Wanted]) -> Outputs:
        """All of it, and what is missing."""
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
        missing = tuple(each.pattern for each in outputs if each.pattern not in self.found)
        return Outputs(files, self._links, tuple(self._directories), missing)
