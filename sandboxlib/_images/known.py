# SPDX-License-Identifier: Apache-2.0
"""What the store remembers of images.

It knows the file of an image by its device, inode, size and times. So a second start reads one
small file of the store, and opens nothing of the image.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from .._store.storage import Storage
from ..errors import setup_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._store.locks import Lease

IMAGES = "images"  # the entries of the store that remember images
_FORMAT = "1"
_TICK = 0.02  # seconds: the kernel's clock does not tell two changes of a file within one tick

_MOST_READ = 64
_read: dict[tuple[str, str], Known] = {}  # by store and key, which stand for one content


class Known:
    """What the store remembers of an image.

    layers: the names of its layers' entries, bottom first. ids: the uid and gid of its command;
    None: 0 and 0. Otherwise as config.Config.
    """

    def __init__(
        self,
        layers: list[str],
        entrypoint: list[str],
        cmd: list[str],
        env: dict[str, str],
        cwd: str,
        ids: tuple[int, int] | None,
    ) -> None:
        self.layers, self.entrypoint, self.cmd = layers, entrypoint, cmd
        self.env, self.cwd, self.ids = env, cwd, ids

    def encoded(self) -> bytes:
        """All of it as text with NUL bytes between, which needs no module to be read."""
        env = [word for pair in self.env.items() for word in pair]
        ids = [] if self.ids is None else [str(number) for number in self.ids]
        lists = (self.layers, self.entrypoint, self.cmd, env, [self.cwd], ids)
        words = [_FORMAT]
        for each in lists:
            words += [str(len(each)), *each]
        return os.fsencode("\0".join(words))


def decoded(data: bytes) -> Known | None:
    """The Known of Known.encoded(). Returns None for data of another version of this module."""
    words = os.fsdecode(data).split("\0")
    if words[0] != _FORMAT:
        return None
    lists, at = [], 1
    try:
        while at < len(words):
            end = at + 1 + int(words[at])
            lists.append(words[at + 1 : end])
            at = end
        layers, entrypoint, cmd, env, (cwd,), ids = lists
        pair = (int(ids[0]), int(ids[1])) if ids else None
    except (ValueError, IndexError):
        return None
    return Known(layers, entrypoint, cmd, dict(zip(env[::2], env[1::2], strict=True)), cwd, pair)


def recalled(storage: Storage, key: str) -> Known | None:
    """What the store remembers of an image; None if it does not."""
    known = _read.get((storage.directory, key))
    if known is None:
        known = _recall(storage, key)
        if known is not None:
            if len(_read) >= _MOST_READ:
                _read.clear()
            _read[storage.directory, key] = known
    return known


def _recall(storage: Storage, key: str) -> Known | None:
    lease = storage._lease(IMAGES, key)
    if lease is None:
        return None
    try:
        with open(lease.path, "rb") as file:
            return decoded(file.read())
    finally:
        lease.close()


def file_key(path: str, ref: str | None) -> str:
    """The name by which the store remembers the image, if it does not change. A directory is
    known by its index, which has the digests of everything else.
    """
    name, hint = path, "an image is a file or a directory of this machine: skopeo copy fetches one"
    try:
        at = os.stat(path)
        if stat.S_ISDIR(at.st_mode):
            hint = (
                "a directory is an image if it is an OCI layout; another one is Overlay(directory)"
            )
            name = os.path.join(path, "index.json")
            at = os.stat(name)
    except OSError as error:
        number = error.errno or errno.EIO
        raise setup_error(number, name, "source", f"open {name}", hint) from error
    age = time.time() - at.st_ctime
    if age < _TICK:
        time.sleep(min(_TICK, _TICK - age))
    values = (at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns)
    kind = "a" if path.endswith(".aci") else "o"
    ref = "" if ref is None else f"-{os.fsencode(ref).hex()}"
    key = kind + "-".join(f"{value:x}" for value in values) + ref
    if len(key) > 255:  # NAME_MAX
        import hashlib

        key = hashlib.sha256(key.encode()).hexdigest()
    return key


def leased(storage: Storage, kind: str, known: Known) -> list[Lease] | None:
    """Leases of the layers; None if one of them is not there."""
    leases = []
    for name in known.layers:
        lease = storage._lease(kind, name)
        if lease is None:
            return None
        leases.append(lease)
    return leases
