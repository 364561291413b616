# SPDX-License-Identifier: Apache-2.0
"""Staging: inputs as layers in the store, made once for all runs that name them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from hashlib import sha256

from .._spec.inputs import CHUNK, open_regular, source_error
from .._store.locks import Lease
from .._store.storage import Storage
from ..errors import SpecError, setup_error
from .snapshot import Folder, Leaf, Link

_EPOCH = "315532800"  # 1980, the first year of a zip file, as with deterministic=True
_KIND, _FILES = "inputs", "files"  # kinds of entries in the store
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: A version of what is staged, and how: with another one nothing of an earlier one is used.
_SCHEMA = 1

#: (mode, uid, gid, mtime in ns) of a directory.
Attributes = tuple[int, int, int, int]


class Owner:
    """To whom staged files belong.

    uid, gid: int, as the caller sees them. mtime: seconds since 1970.
    """

    __slots__ = ("gid", "mtime", "uid")

    def __init__(self, uid: int, gid: int, mtime: int) -> None:
        self.uid, self.gid, self.mtime = uid, gid, mtime

    @property
    def directory(self) -> Attributes:
        """The attributes of a directory of a Tree."""
        return 0o755, self.uid, self.gid, self.mtime * 10**9

    def __repr__(self) -> str:
        return f"{self.uid}.{self.gid}.{self.mtime}"


def source_date() -> int:
    """The time of all that is staged: SOURCE_DATE_EPOCH of the caller's environment, or 1980."""
    text = os.environ.get("SOURCE_DATE_EPOCH", _EPOCH)
    if not text.isascii() or not text.isdigit() or len(text) > 11:
        raise SpecError(f"SOURCE_DATE_EPOCH is no number of seconds since 1970: {text!r}")
    return int(text)


class Layer:
    """What one layer of inputs consists of. Equal ones have equal keys.

    folder: Folder, from the root of the layer on. digest: that of the Directory message of all
    inputs in it. directories: the attributes of directories that lead to an input, by their paths;
    all others are the owner's. opaque: the path of a directory that hides what lies below it.
    prefix: of the overlay's own attributes.
    """

    def __init__(
        self,
        folder: Folder,
        digest: str,
        owner: Owner,
        directories: Mapping[bytes, Attributes],
        opaque: bytes = b"",
        prefix: bytes = b"",
    ) -> None:
        self.folder, self.owner = folder, owner
        self.directories, self.opaque = directories, opaque
        self._attribute = os.fsdecode(prefix) + "opaque"
        key = (_SCHEMA, digest, repr(owner), sorted(directories.items()), opaque, prefix)
        self.name = sha256(repr(key).encode()).hexdigest()

    def stage(self, storage: Storage) -> Lease:
        """The directory of the layer in the store, made if it is not there. SetupError."""
        lease = storage._lease(_KIND, self.name)
        if lease is not None:
            return lease
        with storage._making(_KIND, self.name):
            lease = storage._lease(_KIND, self.name)
            if lease is None:
                with storage._new() as new:
                    os.makedirs(storage._path(_FILES), 0o700, exist_ok=True)
                    size = self._fill(storage, self.folder, new.tree, b"/")
                    lease = storage._publish(new, _KIND, self.name, size)
            return lease

    def _fill(self, storage: Storage, folder: Folder, path: str, inside: bytes) -> int:
        """Fills a new directory, and then sets its attributes. Returns the bytes that it takes."""
        size = 4096
        for name, node in folder.items():
            target = os.path.join(path, os.fsdecode(name))
            if isinstance(node, Leaf):
                size += place(storage, node, target, self.owner)
            elif isinstance(node, Link):
                os.symlink(node.target, target)
                self._own(target)
            else:
                os.mkdir(target, 0o700)
                size += self._fill(storage, node, target, os.path.join(inside, name))
        if self.opaque == inside:
            self._make_opaque(path)
        mode, uid, gid, mtime = self.directories.get(inside, self.owner.directory)
        _own(path, uid, gid)
        os.chmod(path, mode)
        os.utime(path, ns=(mtime, mtime))
        return size

    def _own(self, link: str) -> None:
        owner = self.owner
        _own(link, owner.uid, owner.gid)
        os.utime(link, (owner.mtime, owner.mtime), follow_symlinks=False)

    def _make_opaque(self, path: str) -> None:
        try:
            os.setxattr(path, self._attribute, b"y")
        except OSError as error:
            hint = "the file system of the store keeps no such attributes: Store(directory)"
            what = f"mark a directory of inputs with {self._attribute}"
            raise setup_error(error.errno or 0, path, "inputs", what, hint) from None


def _own(path: str, uid: int, gid: int) -> None:
    """Gives a new file of ours to its owner; what only root may do, others leave."""
    if (uid, gid) != (os.geteuid(), os.getegid()) and os.geteuid() == 0:
        os.chown(path, uid, gid, follow_symlinks=False)


def place(storage: Storage, leaf: Leaf, target: str, owner: Owner) -> int:
    """Places a file of the store, as another link: what runs see of it is below their upper, so
    none can write to it. Its content is copied to the store first if it is not there. Returns its
    size.
    """
    hash, _, size = leaf.digest.partition("/")
    blob = storage._path(_FILES, f"{hash}{'x' if leaf.is_executable else '-'}.{owner!r}")
    try:
        os.link(blob, target, follow_symlinks=False)
        if os.lstat(target).st_size == int(size):
            return int(size)
        os.unlink(target)  # the machine stopped before the disk had it all
        os.unlink(blob)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.EMLINK:
            raise
    copy(leaf, target, owner)
    try:
        os.link(target, blob, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.EMLINK):
            raise
    return int(size)


def copy(leaf: Leaf, target: str, owner: Owner) -> None:
    """Makes a new file of the content. SetupError (ESTALE) if that is not what was hashed."""
    fd = os.open(target, _NEW, 0o600)
    try:
        hash = sha256()
        for chunk in _chunks(leaf):
            hash.update(chunk)
            unwritten = memoryview(chunk)
            while unwritten:
                unwritten = unwritten[os.write(fd, unwritten) :]
        if f"{hash.hexdigest()}" != leaf.digest.partition("/")[0]:
            name = leaf.source if isinstance(leaf.source, str) else "a content"
            what = f"stage the input {name}, which has changed since it was first looked at"
            raise setup_error(errno.ESTALE, None, "inputs", what, "a new Tree is a new snapshot")
        if os.geteuid() == 0:
            os.fchown(fd, owner.uid, owner.gid)
        os.fchmod(fd, 0o755 if leaf.is_executable else 0o644)
        os.utime(fd, (owner.mtime, owner.mtime))
    finally:
        os.close(fd)


def _chunks(leaf: Leaf) -> Iterator[bytes]:
    if isinstance(leaf.source, bytes):
        yield leaf.source
        return
    fd = open_regular(leaf.source)
    try:
        while chunk := os.read(fd, CHUNK):
            yield chunk
    except OSError as error:
        raise source_error(error, leaf.source) from None
    finally:
        os.close(fd)
