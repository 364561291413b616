# SPDX-License-Identifier: Apache-2.0
"""Blob: a content to send, which lies in memory, in a file, or behind a function."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator

Content = bytes | str | os.PathLike[str] | Callable[[], bytes | Iterable[bytes]]


class Blob:
    """A content with the digest that it is said to have, which is compared as it is read."""

    def __init__(self, digest: str, source: Content) -> None:
        self.digest = digest
        self._source = source

    def chunks(self, most: int) -> Iterator[bytes]:
        """The content in parts of `most` bytes or less, none of them empty; the last one comes only
        if all have the digest. OSError of the number ESTALE if they do not.
        """
        name, _, text = self.digest.partition("/")
        size, sha256, done = int(text), hashlib.sha256(), 0
        parts = self._parts(most)
        for chunk in parts:
            done += len(chunk)
            sha256.update(chunk)
            if done >= size:
                if done > size or sha256.hexdigest() != name or next(parts, None) is not None:
                    raise self._stale()
                yield chunk
                return
            yield chunk
        raise self._stale()

    def content(self) -> bytes:
        """All of it, which is small."""
        if self.digest.endswith("/0"):
            return b""
        return b"".join(self.chunks(1 << 20))

    def _parts(self, most: int) -> Iterator[bytes]:
        source = self._source
        if callable(source):
            made = source()
            given: Iterable[bytes] = (made,) if isinstance(made, bytes) else made
        elif isinstance(source, bytes):
            given = (source,)
        else:
            given = _read(os.fspath(source), most)
        for each in given:
            if len(each) <= most:
                if each:
                    yield each
                continue
            for start in range(0, len(each), most):
                yield each[start : start + most]

    def _stale(self) -> OSError:
        source = self._source
        path = os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
        text = f"the content has changed, or never had the digest {self.digest}"
        return OSError(errno.ESTALE, text, path)


def _read(path: str, most: int) -> Iterator[bytes]:
    """The content of a regular file; OSError for anything else, which could block."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW
    with open(os.open(path, flags), "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "this is no regular file", path)
        while chunk := file.read(most):
            yield chunk
