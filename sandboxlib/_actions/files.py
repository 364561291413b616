# SPDX-License-Identifier: Apache-2.0
"""Files: the contents of a server's files in the store, by their hashes.

    files/HASH    a content; the time of its last use is its mtime

Many are written into one directory below tmp, and each is renamed into its place once it is whole
and verified. So a process that is killed leaves whole files, and a directory that the next one
removes. A file that a crash of the machine damaged is found when a layer is made of it: the content
is compared with its digest then.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterable, Iterator

from .. import _reapi
from .._inputs.collecting import write_all
from .._reapi import EMPTY
from .._store.storage import New, Storage
from ..errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

KIND = "files"
_SMALL = 1 << 20  # bytes: such files are fetched many at once
_BATCH = 16 << 20  # bytes that are in memory at once
_EVERY = 60.0  # seconds: the time of use is this exact
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Files:
    """The files of a store. source, of the calls: what has fetch() and download(), as a server."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._above = storage._path(KIND) + "/"

    def source(self, digest: str) -> bytes | str:
        """Where a Leaf finds the content of a digest: it need not be there yet."""
        return b"" if digest == EMPTY else self.path(digest)

    def path(self, digest: str) -> str:
        return self._above + digest.partition("/")[0]

    def absent(self, digests: Iterable[str]) -> list[str]:
        """Those that are not here. The others are noted as used."""
        found, now = [], time.time()
        for digest in digests:
            name, _, size = digest.partition("/")
            path = self._above + name
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                found.append(digest)
                continue
            if not stat.S_ISREG(status.st_mode) or status.st_size != int(size):
                self.forget(digest)
                found.append(digest)
            elif now - status.st_mtime > _EVERY:
                with contextlib.suppress(OSError):
                    os.utime(path)
        return found

    def forget(self, digest: str) -> None:
        """Removes a file, which is damaged."""
        self._storage._forget(KIND, digest.partition("/")[0])

    def forget_path(self, path: str) -> None:
        """The same for the path that a Leaf had; any other path is left alone."""
        if os.path.dirname(path) + "/" == self._above:
            self._storage._forget(KIND, os.path.basename(path))

    def bring(self, digests: Iterable[str], source: Any) -> int:
        """Fetches those that are not here. Returns how many bytes came.

        Raises what the source raises; SetupError if the store cannot be written; SpecError for a
        content that does not have its digest.
        """
        wanted = self.absent(set(digests) - {EMPTY})
        if not wanted:
            return 0
        small = [digest for digest in wanted if _size(digest) <= _SMALL]
        came = 0
        with self.new() as new:
            for batch in _batches(small):
                for digest, content in source.fetch(batch).items():
                    self.write(new, digest, content)
                    came += len(content)
                self.publish(new, batch)
            for digest in wanted:
                if _size(digest) > _SMALL:
                    came += self._download(new, digest, source)
                    self.publish(new, [digest])
        return came

    @contextlib.contextmanager
    def new(self) -> Iterator[New]:
        """A directory for contents, which write() and publish() take."""
        with self._storage._new() as new:
            with self._storage._step("make the directory of"):
                os.makedirs(self._storage._path(KIND), 0o700, exist_ok=True)
            yield new

    def write(self, new: New, digest: str, content: bytes) -> None:
        """Writes a content, which is compared with its digest."""
        name = digest.partition("/")[0]
        if _reapi.digest_of(content) != digest:
            raise SpecError(f"the content of {digest} has another digest")
        fd = os.open(os.path.join(new.tree, name), _NEW, 0o600)
        try:
            write_all(fd, content)
        finally:
            os.close(fd)

    def _download(self, new: New, digest: str, source: Any) -> int:
        name, size = digest.partition("/")[0], _size(digest)
        hash = _reapi.sha256(size)
        fd = os.open(os.path.join(new.tree, name), _NEW, 0o600)
        came = 0

        def write(data: bytes) -> None:
            nonlocal came
            came += len(data)
            if came > size:
                raise SpecError(f"the content of {digest} is longer than its digest says")
            hash.update(data)
            write_all(fd, data)

        try:
            source.download(digest, write)
        finally:
            os.close(fd)
        if hash.hexdigest() != name or came != size:
            raise SpecError(f"the content of {digest} has another digest")
        return came

    def publish(self, new: New, digests: Iterable[str]) -> None:
        """Gives written contents their places. One that is there already is replaced by the same
        content.
        """
        total = 0
        with self._storage._step("put something into"):
            for digest in digests:
                name = digest.partition("/")[0]
                os.rename(os.path.join(new.tree, name), self._above + name)
                total += -(-_size(digest) // 4096) * 4096
        self._storage._count(total)


def _size(digest: str) -> int:
    return int(digest.partition("/")[2])


def _batches(digests: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for digest in digests:
        if batch and (size + _size(digest) > _BATCH or len(batch) >= 4000):
            yield batch
            batch, size = [], 0
        batch.append(digest)
        size += _size(digest)
    if batch:
        yield batch
