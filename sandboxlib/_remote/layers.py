# SPDX-License-Identifier: Apache-2.0
"""The tars of layers, as servers take them: uncompressed, so that their hash is the diff_id.

The store has layers unpacked. A tar that this package made is made again out of that, and is the
same to the byte; any other is read out of the file from which the layer came. It then stays in the
store, under its hash, for the next time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from .._changes import packing
from .._changes.child.stack import USER
from .._changes.layer import Layer
from .._images import unpack_image, unpack_layers
from .._images.image import Image
from .._images.store import store_of
from .._images.unpack_layers import PLAIN
from .._runs.upper import Upper
from .._spec.overlay import Layers, Lower, Owners
from .._store.storage import New, Storage
from ..errors import UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._values import AnyStore

KIND = "tars"
_TIMEOUT = 600.0  # seconds, as for unpacking
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Tar:
    """A tar in the store.

    digest: str, the diff_id. path: str. size: int, bytes. key: str, the digest of the API. lease:
    what keeps it there.
    """

    def __init__(self, digest: str, path: str, lease: object) -> None:
        self.digest, self.path, self.lease = digest, path, lease
        self.size = os.stat(path).st_size
        self.key = f"{digest[7:]}/{self.size}"


def tars_of(layers: Sequence[Layers], store: AnyStore | None) -> list[Tar]:
    """The tars of the layers of an Overlay, bottom first. Raises UnsupportedError for one that
    cannot be had again; SetupError, ImageError.
    """
    owners = unpack_layers.ways()[0].owners
    found: list[Tar] = []
    lowers: list[Lower] = []
    for layer in layers:
        if isinstance(layer, Layer):
            found.append(_of_layer(layer, store, owners, lowers))
        elif isinstance(layer, Image):
            found += _of_image(layer, store_of(store))
        lowers += layer._lowers(owners, store)
    return found


def _of_layer(layer: Layer, store: AnyStore | None, owners: Owners, lowers: Sequence[Lower]) -> Tar:
    storage = store_of(layer.store or store)

    def again(new: New) -> bool:
        lease = layer._lease(owners, store)
        return any(
            _packed(lease.path, below, owners, layer.digest, new)
            for below in ((), tuple(lowers))  # a tar of changes has what was deleted below
        )

    def out_of_file(new: New) -> bool:
        return unpack_layers.write_plain(storage, layer.digest, new, _TIMEOUT)

    tar = _tar(storage, layer.digest, (again, out_of_file))
    if tar is None:
        text = f"the tar of the layer {layer.digest} cannot be had again"
        remedy = "Layer.from_tar(file) once more, with a file that stays, remembers where it is"
        raise UnsupportedError(f"{text}; {remedy}")
    return tar


def _of_image(image: Image, storage: Storage) -> list[Tar]:
    found = []
    for name in image._known(storage).layers:
        digest = f"sha256:{name}"
        if len(name) != 64:
            text = f"{image!r} has a layer that is unpacked over those below it alone"
            raise UnsupportedError(f"{text}, {digest}; Layer.from_directory() of its root is sent")

        def out_of_file(new: New, digest: str = digest) -> bool:
            path, ref = image.path, image.ref
            return unpack_image.write_plain(path, ref, storage, digest, new, _TIMEOUT)

        tar = _tar(storage, digest, (out_of_file,))
        if tar is None:
            raise UnsupportedError(f"{image!r} has no tar {digest}; an OCI image has")
        found.append(tar)
    return found


def _tar(storage: Storage, digest: str, ways: Sequence[Callable[[New], bool]]) -> Tar | None:
    """The tar with a digest: out of the store, or written by the first of the ways that can."""
    with storage._making(KIND, digest[7:]):
        lease = storage._lease(KIND, digest[7:])
        if lease is None:
            with storage._new() as new:
                if not any(way(new) for way in ways):
                    return None
                lease = storage._publish(new, KIND, digest[7:])
    return Tar(digest, os.path.join(lease.path, PLAIN), lease)


def _packed(path: str, lowers: tuple[Lower, ...], owners: Owners, digest: str, new: New) -> bool:
    """Packs a layer again. Returns whether that gave the same bytes."""
    target = os.path.join(new.tree, PLAIN)
    for with_root in (True, False):
        upper = Upper(os.open(path, _FLAGS), USER, lowers, owners, True, ())
        try:
            with open(target, "wb") as file:
                if packing.archive(upper, file.write, with_root) == digest:
                    return True
        finally:
            upper.close()
    os.unlink(target)
    return False
