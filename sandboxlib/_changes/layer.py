# SPDX-License-Identifier: Apache-2.0
"""Layer: a directory tree in the store, by the digest of its tar."""

from __future__ import annotations

import errno
import os
import re

from .. import _types
from .._images.kinds import hides_all, kind_of
from .._images.store import store_of
from .._spec.overlay import Layers, Lower, Owners
from .._values import AnyStore, Value, absolute, check_path, check_text, unknown_keyword
from ..errors import SpecError, SpecTypeError, UnsupportedError, setup_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._store.locks import Lease

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Layer(Value, Layers):
    """A layer of files in a store, which an Overlay stacks. A frozen value; what it names does not
    change.

        base = Layer.from_tar("bookworm.tar")
        Sandbox(Overlay(base, Layer.from_directory("/srv/toolchain")))

    digest: str, "sha256:" with the SHA-256 of the layer's tar, uncompressed: what OCI calls a
        diff_id. The layer has to be in the store; from_tar, from_directory and Changes.commit put
        it there.
    store: Store. None (the default): that of the Sandbox.

    Raises SpecError (a ValueError) if a value is wrong, and SpecTypeError for a value of the wrong
    type, or an unknown keyword argument. A run raises SetupError (ENOENT) if the store has no such
    layer.
    """

    __module__ = "sandboxlib"  # as callers import it, and pickles name it

    _fields = ("digest", "store")
    digest: str
    store: _types.AnyStore | None

    def __init__(
        self, digest: str, store: AnyStore | None = None, **unknown: _types.NoReturn
    ) -> None:
        if unknown:
            raise unknown_keyword("Layer", unknown, self._fields)
        if not _DIGEST.fullmatch(check_text("digest", digest)):
            raise SpecError(f"this is no digest: {digest!r}; one looks like sha256:0123...")
        if store is not None and not isinstance(store, AnyStore):
            raise SpecTypeError(f"store is not a Store: {store!r}; Store(directory) makes one")
        self.__dict__.update(digest=digest, store=store)

    @classmethod
    def from_tar(
        cls, file: _types.Path, store: AnyStore | None = None, *, timeout: float | None = 600.0
    ) -> _types.Self:
        """Returns the Layer of a tar, plain or compressed by gzip, bzip2, xz or zstd, and unpacks
        it into the store if it is not there yet. Whiteouts (.wh.) hide what lies in lower layers.

        file: str or path. store: Store; None (the default): Store(), the caller's cache directory.
        timeout: float, seconds, 600 by default; None: no limit.

        A confined child unpacks it, as it does images; device nodes are left out. Raises ImageError
        if the tar is damaged or hostile, or hides all of the layers below it; SetupError if the
        store cannot be used, or after the timeout (ETIMEDOUT); UnsupportedError if this caller can
        confine no child.
        """
        from .._images import unpack_layers

        return cls(
            unpack_layers.from_tar(check_text("file", file), store_of(store), timeout), store
        )

    @classmethod
    def from_directory(
        cls, directory: _types.Path, store: AnyStore | None = None, *, timeout: float | None = 600.0
    ) -> _types.Self:
        """Returns the Layer of a directory as it is now, and copies it into the store if it is not
        there yet. The same content gives the same digest: that of a tar with all that is in it, in
        the order of the names. Modes, owners and times count; those of a Tree do not.

        directory: str or path. store: Store; None (the default): Store(), the caller's cache
        directory. timeout: float, seconds, 600 by default; None: no limit.

        Files keep their modes, times, hard links, attributes `user.*`, and owners as far as this
        caller can read and give them. Sockets and device nodes are left out. Raises SetupError if
        the directory or the store cannot be used, UnsupportedError if a name begins with .wh.,
        which means a whiteout in a layer, or if this caller can confine no child; and the errors
        of from_tar.
        """
        from . import packing

        path = absolute(check_path("directory", directory))
        digest = packing.from_directory(path, store_of(store), timeout)
        return cls(digest, store)

    @classmethod
    def _from_file(
        cls, fd: int, name: str, store: AnyStore | None, timeout: float | None = 600.0
    ) -> _types.Self:
        """The Layer of a tar that is an open file. name: for messages."""
        from .._images import unpack_layers

        storage, source = store_of(store), {"offset": 0, "size": os.fstat(fd).st_size}
        for way in unpack_layers.ways():
            digest = unpack_layers.from_stream(fd, name, storage, timeout, way, source)
        return cls(digest, store)

    def _lowers(self, owners: Owners, store: AnyStore | None = None) -> list[Lower]:
        lease = self._lease(owners, store)
        if hides_all(lease):
            text = "hides all of the layers below it, which an Overlay cannot do; an Image can"
            raise UnsupportedError(f"the layer {self.digest} {text}")
        return [Lower(lease.path, lease)]

    def _lease(self, owners: Owners, store: AnyStore | None) -> Lease:
        """A lease of the layer, as a caller with these owners has it."""
        kind, storage = kind_of(owners), store_of(self.store or store)
        lease = storage._lease(kind, self.digest[7:])
        if lease is None:
            path = storage._path(kind, self.digest[7:])
            what = f"find the layer {self.digest} in the store {storage.directory}"
            hint = "it was pruned, or is in another store: make it again"
            raise setup_error(errno.ENOENT, path, "store", what, hint)
        return lease

    def _key(self, store: AnyStore | None = None) -> str:
        return self.digest
