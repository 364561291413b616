# SPDX-License-Identifier: Apache-2.0
"""Look: what the host sees of a sandbox's files after a step failed, to explain why it did.

Commands of other runs may change these files at any moment, and may have made them in order to be
looked at. So a Look follows no link out of the root or out of the source of a bind (each name is
opened by openat2(2) with RESOLVE_IN_ROOT), opens regular files only, reads a few kilobytes, and
leaves alone what lies on a file system that may not answer. What it cannot see it does not tell.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence

from .._core import native
from .._host import machine
from .._spec.spec import Spec
from .mounts import PlannedMount, _all_mounts

_MOST_LINKS = 40  # path_resolution(7)
_MOST_STEPS = 200
_MOST_MOUNTS = 64  # whose targets are resolved; those of more are taken as they are written
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_NAME = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_CONTENT = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Found:
    """Where a path of the sandbox leads. One of these holds:

    status: os.stat_result, if there is a file. path: its name in the sandbox, without links.
    missing: str, the first part of the path that does not exist.
    hidden: str, the title of a mount of the run itself, behind which nobody can look.
    no_directory: str, a part of the path that is a file, but would have to be a directory.
    denied: str, a directory that the caller may not enter.
    None of them: a loop of links, a file system that may not answer, or too long a path.

    link, leads_to: the last symbolic link on the way, and what it says; "" if there is none.
    way: the directories on the way, with their status.
    """

    path = missing = hidden = no_directory = denied = link = leads_to = ""
    status: os.stat_result | None = None
    fd = -1

    def __init__(self) -> None:
        self.way: list[tuple[str, os.stat_result]] = []

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    @property
    def is_there(self) -> bool:
        return self.status is not None

    def is_missing(self) -> bool:
        """Whether we know that there is no such file."""
        return bool(self.missing or self.no_directory)

    def why_missing(self) -> str:
        """What is missing, as a sentence; "" if nothing is, or that cannot be told."""
        if self.hidden:
            return f"{self.hidden} hides what the root has there"
        if self.no_directory:
            return f"{self.no_directory} is no directory"
        if self.denied:
            return f"uid {os.geteuid()} may not enter {self.denied}"
        if self.missing and self.link:
            return f"{self.link} is a symbolic link to {self.leads_to!r}, which the root lacks"
        return f"the root has no {self.missing}" if self.missing else ""


class Look:
    """The files of one sandbox: its root, and the mounts of its runs over it. Use it in `with`.

    mounts: as a Plan has them. None (the default): those of the Sandbox.
    """

    def __init__(self, box: Spec, mounts: Sequence[PlannedMount] | None = None) -> None:
        self._box, self._mounts = box, mounts
        self._undo = contextlib.ExitStack()
        self._hanging: frozenset[str] = frozenset()
        self._over: list[tuple[str, int, str, str]] = []  # target, descriptor, host's name, title

    def __enter__(self) -> Look:
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def _begin(self) -> None:
        """Opens the root and the sources: only once somebody looks at a file."""
        self._hanging = machine.hanging_mounts()
        self._put("/", self._box.root, "")
        planned = _all_mounts(self._box) if self._mounts is None else self._mounts
        over = [mount for mount in planned if mount.is_over_the_root]
        for mount in over:
            target = mount.target
            if len(over) <= _MOST_MOUNTS:
                found = self.find(target)
                found.close()
                target = found.path or target
                if mount.is_optional and found.missing:
                    continue
            self._put(target, mount.source, mount.title)

    def _put(self, target: str, source: str | None, title: str) -> None:
        fd, host = -1, ""
        if source is not None and not machine.may_hang(source, self._hanging):
            with contextlib.suppress(OSError):
                host = machine.real_path(source)
                fd = os.open(host, os.O_PATH | os.O_CLOEXEC)
                self._undo.callback(os.close, fd)
        self._over.append((target, fd, host, title if source is None else ""))

    def find(self, path: str, directory: str = "/") -> Found:
        """Resolves a path of the sandbox, in a directory of it if the path is relative."""
        if not self._over:
            self._begin()
        found = Found()
        self._undo.callback(found.close)
        with contextlib.suppress(OSError):
            self._walk(os.path.join(directory, path), found)
        return found

    def _walk(self, path: str, found: Found) -> None:
        at, todo, links = "/", path.split("/")[::-1], 0
        for _ in range(_MOST_STEPS):
            while todo and todo[-1] in ("", "."):
                todo.pop()
            if not todo:
                break
            name = todo.pop()
            if name == "..":
                at = os.path.dirname(at)
                continue
            here = os.path.join(at, name)
            if any(target != here and machine.is_below(target, here) for target, *_ in self._over):
                at = here  # a directory, as mounts lie below it
                continue
            fd = self._open(here, found)
            if fd < 0:
                return
            status = os.fstat(fd)
            if stat.S_ISLNK(status.st_mode):
                leads_to = os.readlink("", dir_fd=fd)
                os.close(fd)
                links += 1
                found.link, found.leads_to = here, leads_to
                if links > _MOST_LINKS:
                    return
                at = "/" if leads_to.startswith("/") else at
                todo += leads_to.split("/")[::-1]
                continue
            os.close(fd)
            if any(part not in ("", ".") for part in todo) or path.endswith("/"):
                if not stat.S_ISDIR(status.st_mode):
                    found.no_directory = here
                    return
                found.way.append((here, status))
            at = here
        else:
            return
        found.fd = self._open(at, found)
        if found.fd >= 0:
            found.path, found.status = at, os.fstat(found.fd)

    def _open(self, path: str, found: Found) -> int:
        """An O_PATH descriptor of a path without links; -1 if there is none: `found` says why."""
        over = [entry for entry in self._over if machine.is_below(path, entry[0])]
        target, base, host, title = over[-1]
        if title:
            found.hidden = title
            return -1
        below = path[len(target.rstrip("/")) :].strip("/")
        if base < 0 or os.path.join(host, below).rstrip("/") in self._hanging:
            return -1
        try:
            if not below:
                return os.dup(base)
            return native.open_in_root(base, below, _NAME)
        except FileNotFoundError:
            found.missing = path
        except NotADirectoryError:
            found.no_directory = os.path.dirname(path)
        except PermissionError:
            found.denied = os.path.dirname(path)
        return -1

    def read(self, found: Found, size: int, offset: int = 0) -> bytes:
        """The first bytes of a regular file; b"" if it cannot be read without waiting."""
        if found.status is None or not stat.S_ISREG(found.status.st_mode):
            return b""
        if machine.may_wait(found.fd):
            return b""
        try:  # the same file again, whatever has its name by now
            fd = os.open(f"/proc/self/fd/{found.fd}", _CONTENT)
        except OSError:
            return b""
        try:
            return os.pread(fd, size, offset)
        except OSError:
            return b""
        finally:
            os.close(fd)

    def is_noexec(self, found: Found) -> bool:
        """Whether the file lies on a mount with noexec."""
        if found.fd < 0 or machine.may_wait(found.fd):
            return False
        with contextlib.suppress(OSError):
            return bool(os.fstatvfs(found.fd).f_flag & os.ST_NOEXEC)
        return False
