# SPDX-License-Identifier: Apache-2.0
"""Hashes: what the contents of files hash to, remembered as long as the files stay as they are."""

from __future__ import annotations

import os
from time import time_ns

from .. import _reapi
from .._spec.inputs import CHUNK, open_regular, source_error

_MOST = 200_000  # files that are remembered, about 60 MB
# A file system may stamp changes with a clock that stands still for so long: two seconds on FAT and
# with some servers of NFS. A file that changed since may change again, and keep its times.
_GRAIN_NS = 2_000_000_000

_known: dict[tuple[int, ...], str] = {}


def identity(status: os.stat_result) -> tuple[int, ...]:
    """What changes with the content of a file."""
    s = status
    return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns


def known_digest(status: os.stat_result) -> str:
    """The digest of a file that was hashed before; "" if it was not, or changed since.

    A run never relies on it alone: it uses the content that the store has under this digest. So a
    file that changes unseen, as one that is mapped into memory, gives a run its earlier content
    with the digest of that, and never a content with the digest of another.
    """
    return _known.get(identity(status), "")


def remember(status: os.stat_result, digest: str, began_ns: int) -> None:
    """Notes the digest of a file. began_ns: when the reading began, by time_ns()."""
    if max(status.st_mtime_ns, status.st_ctime_ns) + _GRAIN_NS >= began_ns:
        return
    while len(_known) >= _MOST:
        try:
            del _known[next(iter(_known))]  # the oldest
        except (KeyError, StopIteration, RuntimeError):  # another thread is at it
            break
    _known[identity(status)] = digest


def digest_of_file(
    path: os.PathLike[str] | str, dir_fd: int | None = None, flags: int = 0
) -> tuple[str, os.stat_result]:
    """The digest of a regular file, which is read only if it is not known, and its status.

    dir_fd, flags: as open_regular() takes them. SetupError.
    """
    fd = open_regular(path, dir_fd, flags)
    try:
        status, began = os.fstat(fd), time_ns()
        if known := known_digest(status):
            return known, status
        hash, size = _reapi.sha256(status.st_size), 0
        while chunk := os.read(fd, CHUNK):
            hash.update(chunk)
            size += len(chunk)
        digest = f"{hash.hexdigest()}/{size}"
        if identity(os.fstat(fd)) == identity(status):
            remember(status, digest, began)
        return digest, status
    except OSError as error:
        raise source_error(error, path) from None
    finally:
        os.close(fd)
