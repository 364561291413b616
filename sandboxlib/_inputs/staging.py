# SPDX-License-Identifier: Apache-2.0
"""Staging: inputs as layers in the store, made once for all runs that name them."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Mapping

from .. import _reapi
from .._spec.inputs import CHUNK, open_regular, source_error
from .._store.locks import Lease
from .._store.storage import Storage
from ..errors import SpecError, setup_error
from .collecting import clone, write_all
from .snapshot import Folder, Gone, Leaf, Link, Node, Properties, encoded

_EPOCH = "315532800"  # 1980, the first year of a zip file, as with deterministic=True
KIND = "inputs"  # the kind of entries in the store
_LARGE = 1 << 16  # bytes: such a file shares its blocks with the source where that is possible
_BLOCK = 4096
_LONGEST = 600.0  # seconds that another process may take to stage what this one waits for
_ZEROS = bytes(CHUNK)
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
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
    """What one layer of inputs consists of. Equal ones have equal names.

    folder: Folder, from the root of the layer on. digest: that of the Directory message of all
    inputs in it; "": it is computed if the name is asked for. directories: the attributes of
    directories that lead to an input, by their paths; all others are the owner's. opaque: the path
    of a Tree, which hides what the layers below have there; "" in a layer of Files. prefix: of the
    overlay's own attributes. fetch: called with the folder before it is filled, to bring contents
    here that are elsewhere.
    """

    def __init__(
        self,
        folder: Folder,
        digest: str,
        owner: Owner,
        directories: Mapping[bytes, Attributes],
        opaque: str = "",
        prefix: bytes = b"",
        fetch: Callable[[Folder], object] | None = None,
    ) -> None:
        self._folder, self._owner, self._fetch = folder, owner, fetch
        self._directories, self.opaque = directories, opaque
        self._prefix, self._digest, self._name = prefix, digest, ""

    @property
    def name(self) -> str:
        """That of its entry in the store."""
        if not self._name:
            above, digest = sorted(self._directories.items()), self._digest or encoded(self._folder)
            key = (_SCHEMA, digest, repr(self._owner), above, self.opaque, self._prefix)
            self._name = _reapi.digest_of(repr(key).encode()).partition("/")[0]
        return self._name

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return _size(self._folder)

    def stage(self, storage: Storage) -> Lease:
        """The directory of the layer in the store, made if it is not there. SetupError."""
        lease = storage._lease(KIND, self.name)
        if lease is not None:
            return lease
        with storage._making(KIND, self.name, time.monotonic() + _LONGEST):
            lease = storage._lease(KIND, self.name)
            if lease is None:
                self.bring()
                with storage._new() as new:
                    size = self.fill(new.tree)
                    lease = storage._publish(new, KIND, self.name, size)
            return lease

    def bring(self) -> None:
        """Brings the contents here that are elsewhere. The errors of `fetch`."""
        if self._fetch is not None:
            self._fetch(self._folder)

    def fill(self, path: str) -> int:
        """Fills a new directory with the layer. Returns the bytes that it takes. SetupError."""
        return self._fill(self._folder, path, b"/")

    def _fill(self, folder: Folder, path: str, inside: bytes, spare: str = "") -> int:
        """Fills a new directory, and then sets its attributes. Returns the bytes that it takes.
        spare: an earlier copy of the folder, if there is one.

        Each file is a copy: of a hard link the command would see that it has others (gzip(1) leaves
        such a file alone), and two files with one inode are one file to cp(1) and mv(1).
        """
        size = _BLOCK
        if folder.staged is not None:
            spare = folder.staged[0]
        for key, node in folder.items():
            name = os.fsdecode(key)
            target, other = os.path.join(path, name), os.path.join(spare, name) if spare else ""
            if isinstance(node, Leaf):
                size += copy(node, target, self._owner, other)
            elif isinstance(node, Link):
                os.symlink(node.target, target)
                self._own(target, node.properties)
            elif isinstance(node, Gone):
                os.mknod(target, stat.S_IFCHR | 0o600, os.makedev(0, 0))
            else:
                os.mkdir(target, 0o700)
                size += self._fill(node, target, os.path.join(inside, key), other)
        if self.opaque == os.fsdecode(inside):
            self._make_opaque(path)
        mode, uid, gid, mtime = self._directories.get(inside, self._owner.directory)
        _own(path, uid, gid)
        mode, mtime = attributes(folder.properties, mode, mtime)
        os.chmod(path, mode)
        os.utime(path, ns=(mtime, mtime))
        return size

    def _own(self, link: str, properties: Properties | None) -> None:
        owner = self._owner
        _own(link, owner.uid, owner.gid)
        mtime = attributes(properties, 0, owner.mtime * 10**9)[1]
        os.utime(link, ns=(mtime, mtime), follow_symlinks=False)

    def _make_opaque(self, path: str) -> None:
        attribute = os.fsdecode(self._prefix) + "opaque"
        try:
            os.setxattr(path, attribute, b"y")
        except OSError as error:
            hint = "the file system of the store keeps no such attributes: Store(directory)"
            what = f"mark a directory of inputs with {attribute}"
            raise setup_error(error.errno or 0, path, "inputs", what, hint) from None


def attributes(properties: Properties | None, mode: int, mtime: int) -> tuple[int, int]:
    """Mode and mtime, in nanoseconds: those of the properties, or else the given ones."""
    if properties is not None:
        if properties.mode is not None:
            mode = properties.mode & 0o7777
        if properties.mtime is not None:
            mtime = properties.mtime[0] * 10**9 + properties.mtime[1]
    return mode, mtime


def _size(node: Node | Gone) -> int:
    """The bytes that a node takes, in whole blocks."""
    if isinstance(node, Leaf):
        return -(-int(node.digest.partition("/")[2]) // _BLOCK) * _BLOCK
    if isinstance(node, Folder):
        return _BLOCK + sum(map(_size, node.values()))
    return 0


def _own(path: str, uid: int, gid: int) -> None:
    """Gives a new file of ours to its owner; what only root may do, others leave."""
    if (uid, gid) != (os.geteuid(), os.getegid()) and os.geteuid() == 0:
        os.chown(path, uid, gid, follow_symlinks=False)


def copy(leaf: Leaf, target: str, owner: Owner, spare: str = "") -> int:
    """Makes a new file of the content. Returns the bytes that it takes. spare: a path that may have
    the content too. SetupError (ESTALE) if nothing has the content that was hashed.
    """
    fd = os.open(target, _NEW, 0o600)
    try:
        if not _write(leaf, leaf.source, fd) and not (spare and _write(leaf, spare, fd)):
            name = leaf.source if isinstance(leaf.source, str) else "a content"
            what = f"stage the input {name}, which has changed since it was first looked at"
            path = leaf.source if isinstance(leaf.source, str) else None
            raise setup_error(errno.ESTALE, path, "inputs", what, "a new Tree is a new snapshot")
        if (owner.uid, owner.gid) != (os.geteuid(), os.getegid()) and os.geteuid() == 0:
            os.fchown(fd, owner.uid, owner.gid)
        mode, mtime = 0o755 if leaf.is_executable else 0o644, owner.mtime * 10**9
        if leaf.properties is not None:
            mode, mtime = attributes(leaf.properties, mode, mtime)
        os.fchmod(fd, mode)
        os.utime(fd, ns=(mtime, mtime))
    finally:
        os.close(fd)
    return _size(leaf)


def _write(leaf: Leaf, source: bytes | str, fd: int) -> bool:
    """Writes a content to a new file, and compares what was written with the digest."""
    hash = _reapi.sha256(_size(leaf))
    if isinstance(source, bytes):
        hash.update(source)
        write_all(fd, source)
    else:
        try:
            _write_file(leaf, source, fd, hash.update)
        except FileNotFoundError:
            return False
    if hash.hexdigest() == leaf.digest.partition("/")[0]:
        return True
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, os.SEEK_SET)
    return False


def _write_file(leaf: Leaf, path: str, fd: int, update: Callable[[bytes], object]) -> None:
    source = open_regular(path, flags=leaf.flags)
    try:
        is_clone = os.fstat(source).st_size >= _LARGE and clone(source, fd)
        while chunk := os.read(fd if is_clone else source, CHUNK):
            update(chunk)
            if is_clone:
                continue
            if chunk == _ZEROS:  # it may be a hole, and of any size
                os.lseek(fd, len(chunk), os.SEEK_CUR)
                os.ftruncate(fd, os.lseek(fd, 0, os.SEEK_CUR))
            else:
                write_all(fd, chunk)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # of the store, whose caller says so
        raise source_error(error, path) from None
    finally:
        os.close(source)
