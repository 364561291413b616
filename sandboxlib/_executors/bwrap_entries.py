# SPDX-License-Identifier: Apache-2.0
"""Mount.directory, symlink and file by bwrap, which makes them in file systems of the run's own."""

from __future__ import annotations

import contextlib
import errno
import os

from .._runs.mounts import content_of
from .._runs.run import memory_file
from .._spec.mount import Mount
from .._spec.spec import Spec
from ..errors import UnsupportedError
from .bwrap_look import Wanted
from .bwrap_overlay import missing_parents
from .bwrap_tool import Descriptors
from .view import View


class Entries:
    """The entries of one run: it gives the options that make them, and keeps their descriptors."""

    def __init__(
        self, box: Spec, view: View, descriptors: Descriptors, undo: contextlib.ExitStack
    ) -> None:
        self._box, self._view, self._descriptors, self._undo = box, view, descriptors, undo
        self.wanted: list[Wanted] = []

    def options(self, mount: Mount, what: str) -> list[str]:
        """The options for an entry. OSError if something else is there; UnsupportedError if bwrap
        would have to make it in a directory of the caller's.
        """
        above, name = os.path.split(mount.target)
        if mount.type == "symlink":
            point = os.path.join(self._view.resolve(above), name)
        else:
            point = self._view.resolve(mount.target)
        if self._view.exists(point):
            self._check(mount, point)
            return self._file(mount, point, what) if mount.type == "file" else []
        is_own = self._view.mount_of(point) == "/" and self._box._overlay is not None
        if not is_own and self._view.host(point) is not None:
            text = "bwrap would have to make it in a directory of the caller's"
            raise UnsupportedError(f"{what}: {text}; chroot and user_namespace need not")
        parents = missing_parents(self._view, point)
        for path in parents[3::4]:
            self._view.made[path] = None
        if mount.type == "file":
            return [*parents, *self._file(mount, point, what)]
        self._view.made[point] = mount.to
        if mount.type == "symlink":
            return [*parents, "--symlink", str(mount.to), point]
        return [*parents, "--perms", f"{mount.mode:o}", "--dir", point]

    def _check(self, mount: Mount, point: str) -> None:
        """OSError if what exists there is not what the entry asks for."""
        number = 0
        if mount.type == "symlink":
            number = 0 if self._view.link_at(point) == mount.to else errno.EEXIST
        elif mount.type == "directory":
            number = 0 if self._view.has_directory(point) else errno.ENOTDIR
        elif self._view.has_directory(point):
            number = errno.EISDIR
        if number:
            raise OSError(number, os.strerror(number), point)

    def _file(self, mount: Mount, point: str, what: str) -> list[str]:
        content, mode = content_of(mount)
        if not self._descriptors.has_room():
            raise UnsupportedError(f"bubblewrap: {what}: it inherits no more descriptors")
        fd = memory_file(f"the content of {mount.target}", content)
        self._undo.callback(os.close, fd)
        self.wanted.append(Wanted(point, type="data", read_only=True))
        self._view.put(point, None)
        number = self._descriptors.take(fd)
        return ["--perms", f"{mode:o}", "--ro-bind-data", number, point]
