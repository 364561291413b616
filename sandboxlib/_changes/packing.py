# SPDX-License-Identifier: Apache-2.0
"""Packs a directory as a layer: the confined reader of changes reads it, as an upper over nothing,
and the tar that this makes goes straight to the child that unpacks layers.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable

from .._images import unpack_layers
from .._runs.upper import Upper
from .._store.storage import Storage
from ..errors import ImageError, SetupError, setup_error
from .archive import Archive, Gathered
from .child.stack import USER
from .confined import STEP, Reader, nonsense
from .stream import Nonsense, Stream

#: How many names, bytes of paths and attributes, and bytes of content the reader may tell.
_LIMITS = ("1000000", str(1 << 30), str(1 << 63))
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def from_directory(path: str, store: Storage, timeout: float | None) -> str:
    """Pack a directory into the store, and return the digest of the layer."""
    try:
        fd = os.open(path, _FLAGS)
    except OSError as error:
        raise setup_error(error.errno or 0, path, "source", f"open {path}") from error
    ways = unpack_layers.ways()
    upper = Upper(fd, USER, (), ways[0].owners, True, ())
    try:
        for way in ways:
            digest = _packed(upper, path, store, timeout, way)
    finally:
        upper.close()
    return digest


def _packed(
    upper: Upper, path: str, store: Storage, timeout: float | None, way: unpack_layers.Way
) -> str:
    ours, theirs = socket.socketpair()
    digests: list[str] = []
    failed: list[BaseException] = []

    def pack() -> None:
        try:
            digests.append(_archive(upper, ours))
        except BrokenPipeError:  # the child has ended, and its error is the one to tell
            pass
        except BaseException as error:
            failed.append(error)
        finally:
            ours.close()

    packer = threading.Thread(target=pack, name="sandboxlib-packer", daemon=True)
    packer.start()
    try:
        digest = unpack_layers.from_stream(theirs.fileno(), path, store, timeout, way)
    finally:
        theirs.close()
        packer.join()
    if failed:
        error = failed[0]
        if isinstance(error, SetupError):
            what = f"read the directory {path}: {error}"
            raise setup_error(error.errno or 0, path, STEP, what) from error
        raise error
    if digests != [digest]:
        raise ImageError(f"{path}: the store has {digest}, and the directory is {digests}")
    return digest


def _archive(upper: Upper, out: socket.socket) -> str:
    """Write the archive of an upper to a socket, and return its digest."""
    return archive(upper, lambda data: out.sendall(data, socket.MSG_NOSIGNAL))


def archive(upper: Upper, write: Callable[[bytes], object], with_root: bool = False) -> str:
    """Give the archive of an upper to a function, part by part, and return its digest.

    with_root: whether it has an entry for the root itself.
    """
    hashed = hashlib.sha256()

    def take(data: bytes) -> None:
        hashed.update(data)
        write(data)

    gathered = Gathered(take)
    packed = Archive(gathered.write, None, with_root=with_root)
    reader, stream = Reader(upper), Stream(packed)
    try:
        reader.call("changes", reader.owner, *_LIMITS, write=stream.take)
        stream.close()
    except Nonsense as error:
        raise nonsense(error) from None
    packed.close()
    gathered.flush()
    return f"sha256:{hashed.hexdigest()}"
