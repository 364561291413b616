# SPDX-License-Identifier: Apache-2.0
"""Targets: where the paths of inputs and outputs lead in the layers of a root."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from .._changes.child.stack import Stack
from .._spec.overlay import Lower
from ..errors import setup_error

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Targets:
    """The merged view of the layers of a root, in which paths are looked up. Use it in `with`.

    lowers: bottom first. prefix: of the overlay's own attributes.
    """

    def __init__(self, lowers: Sequence[Lower], prefix: bytes) -> None:
        self._fds: list[int] = []
        try:
            for lower in reversed(lowers):
                self._fds.append(os.open(lower.path, _DIRECTORY))
        except OSError as error:
            self.close()
            what = f"look at the layer {lower.path}"
            raise setup_error(error.errno or 0, lower.path, "inputs", what) from None
        self._stack = Stack(self._fds, prefix) if lowers else None
        self._directories: dict[str, str] = {}
        self._statuses: dict[str, os.stat_result | None] = {}

    def __enter__(self) -> Targets:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def resolve(self, path: str, is_tree: bool) -> str:
        """The path without links, in which a File or a Tree is placed. Links lead where they lead
        in the root, also the last one. SetupError: EISDIR if a File would replace a directory, and
        ENOTDIR if something on the way is no directory.
        """
        above, _, name = path.rpartition("/")
        place = os.path.join(self._directory(above or "/"), name)
        status = self.status(place)
        if status is not None and stat.S_ISLNK(status.st_mode):
            place, status = self._find(path)
        if status is not None and stat.S_ISDIR(status.st_mode) and not is_tree:
            raise _refused(path, errno.EISDIR, "a File replaces a file, and never a directory")
        return place

    def directory(self, path: str) -> str:
        """The path of a directory without links. It need not exist; what exists is a directory."""
        place = self._directory(path)
        status = self.status(place)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            raise _refused(path, errno.ENOTDIR, "the root has a file there")
        return place

    def exists(self, path: str) -> bool:
        """Whether the root has a path, whose directories have no links."""
        return self.status(path) is not None

    def _directory(self, path: str) -> str:
        if path not in self._directories:
            self._directories[path] = self._find(path)[0]
        return self._directories[path]

    def status(self, path: str) -> os.stat_result | None:
        """The status of a path whose directories have no links; None if the root lacks it."""
        if path not in self._statuses:
            self._statuses[path] = self._find(path, follow=False)[1]
        return self._statuses[path]

    def _find(self, path: str, follow: bool = True) -> tuple[str, os.stat_result | None]:
        if self._stack is None:
            return path, None
        try:
            found = self._stack.find(os.fsencode(path), follow=follow)
        except OSError as error:
            raise _refused(path, error.errno or 0, "") from None
        return os.fsdecode(found.path), found.status


def _refused(path: str, number: int, hint: str) -> Exception:
    return setup_error(number, path, "inputs", f"place {path} in the root", hint)
