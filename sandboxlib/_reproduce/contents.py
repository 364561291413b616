# SPDX-License-Identifier: Apache-2.0
"""Contents: Files and Trees, which a reproduce file has as one directory in the store.

The directory has one entry for each of them, named by a number, and the file has its digest. The
store has its files once, as links of those that runs see (_inputs/staging.py).
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from .._changes.child.globs import Globs
from .._inputs.snapshot import Folder, encoded, read_folder
from .._inputs.staging import Layer, Owner
from .._inputs.tree import Tree, node_of
from .._spec.inputs import File
from .._store.storage import Storage
from .._values import short
from ..errors import SpecError, setup_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._store.locks import Lease

_KIND = "inputs"  # of entries of the store, as in _inputs/staging.py


class Written:
    """What is collected while a file is written. date: seconds, the time of inputs."""

    def __init__(self, storage: Storage, date: int) -> None:
        self._storage, self._date = storage, date
        self._folder = Folder()

    def add(self, value: File | Tree) -> str:
        """The number of a File or a Tree."""
        number = str(len(self._folder))
        self._folder[number.encode()] = node_of(value)
        return number

    def stage(self) -> str | None:
        """Puts all of them into the store. Returns their digest; None if there are none."""
        if not self._folder:
            return None
        digest = encoded(self._folder)
        _layer(self._folder, digest, self._date).stage(self._storage).close()
        return digest


class Read:
    """What a file finds in the store. It holds a lock of it, so that nobody removes it.

    digest: as the file has it. SetupError if the store has nothing of that digest, or it changed.
    """

    def __init__(self, storage: Storage, digest: str, date: int) -> None:
        name = _layer(Folder(), digest, date).name
        lease = storage._lease(_KIND, name)
        where = f"the inputs {digest} in the store {storage.directory}"
        if lease is None:
            hint = "it was pruned, or is another caller's: --store names the store"
            raise setup_error(errno.ENOENT, None, "store", f"find {where}", hint)
        self._lease: Lease = lease
        if encoded(read_folder(lease.path, Globs(()))) != digest:
            hint = "somebody changed them there"
            raise setup_error(errno.ESTALE, lease.path, "store", f"use {where}", hint)

    def file(self, number: object) -> File:
        """The File of a number."""
        path = self._path(number)
        mode = os.lstat(path).st_mode
        if not stat.S_ISREG(mode):
            raise SpecError(f"{short(number)} of the inputs is no file")
        return File(path, executable=bool(mode & stat.S_IXUSR))

    def tree(self, number: object) -> Tree:
        """The Tree of a number."""
        path = self._path(number)
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise SpecError(f"{short(number)} of the inputs is no directory")
        return Tree(path)

    def _path(self, number: Any) -> Path:
        is_number = isinstance(number, str) and number.isascii() and number.isdigit()
        if not is_number or not os.path.lexists(path := os.path.join(self._lease.path, number)):
            raise SpecError(f"the inputs have no {short(number)}")
        return Path(path)


def _layer(folder: Folder, digest: str, date: int) -> Layer:
    return Layer(folder, digest, Owner(os.geteuid(), os.getegid(), date), {})
