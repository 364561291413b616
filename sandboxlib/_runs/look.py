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

from .._core.files import Descriptor
from .._host import machine
from .._spec.spec import Spec
from .mounts import PlannedMount, _all_mounts

_MOST_LINKS = 40  # path_resolution(7)
_MOST_STEPS = 200
_MOST_MOUNTS = 64  # whose targets are resolved; those of more are taken as they are written
_NAME = os.O_PATH | os.O_NOFOLLOW
_CONTENT = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY


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

    def __init__(self) -> None:
        self.way: list[tuple[str, os.stat_result]] = []
        self.file = Descriptor()

    def close(self) -> None:
        self.file.close()

    @property
    def is_there(self) -> bool:
        return self.status is not None

    def is_missing(self) -> bool:
        """Whether we know that there is no such file."""
        return bool(self.missing or self.no_directory)

    def is_dangling(self) -> bool:
        """Whether the last link leads to what is missing, and not to a directory above that."""
        if not (self.missing and self.link):
            return False
        leads_to = os.path.normpath(os.path.join(os.path.dirname(self.link), self.leads_to))
        return machine.is_below(leads_to, self.missing)

    def why_missing(self) -> str:
        """What is missing, as a sentence; "" if nothing is, or that cannot be told."""
        if self.hidden:
            return f"{self.hidden} hides what the root has there"
        if self.no_directory:
            return f"{self.no_directory} is no directory"
        if self.denied:
            return f"uid {os.geteuid()} may not enter {self.denied}"
        if self.is_dangling():
            return f"{self.link} is a symbolic link to {self.leads_to!r}, which the root lacks"
        return f"the root has no {self.missing}" if self.missing else ""


class Look:
    """The files of one sandbox: its root, and the mounts of its runs over it. Use it in `with`.

    mounts: as a Plan has them. None (the default): those of the Sandbox.
    """

    def __init__(self, box: Spec, mounts: Sequence[PlannedMount] | None = None) -> None:
        self._box, self._mounts = box, mounts
        self._hanging: frozenset[str] = frozenset()
        self._over: list[tuple[str, Descriptor, str, str]] = []  # target, file, host's name, title
        self._found: list[Found] = []

    def __enter__(self) -> Look:
        return self

    def __exit__(self, *error: object) -> None:
        for _, base, _, _ in self._over:
            base.close()
        for found in self._found:
            found.close()

    def _begin(self) -> None:
        """Opens the root and the sources: only once somebody looks at a file."""
        self._hanging = machine.hanging_mounts()
        self._put("/", self._box._directory or None, "")
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
        base, host = Descriptor(), ""
        if source is not None and not machine.may_hang(source, self._hanging):
            with contextlib.suppress(OSError):
                host = machine.real_path(source)
                base.open(host, os.O_PATH)
        self._over.append((target, base, host, title if source is None else ""))

    def find(self, path: str, directory: str = "/") -> Found:
        """Resolves a path of the sandbox, in a directory of it if the path is relative."""
        if not self._over:
            self._begin()
        found = Found()
        self._found.append(found)
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
            if not self._open(here, found):
                return
            status = os.fstat(found.file.number)
            if stat.S_ISLNK(status.st_mode):
                leads_to = os.readlink("", dir_fd=found.file.number)
                links += 1
                found.link, found.leads_to = here, leads_to
                if links > _MOST_LINKS:
                    return
                at = "/" if leads_to.startswith("/") else at
                todo += leads_to.split("/")[::-1]
                continue
            if any(part not in ("", ".") for part in todo) or path.endswith("/"):
                if not stat.S_ISDIR(status.st_mode):
                    found.no_directory = here
                    return
                found.way.append((here, status))
            at = here
        else:
            return
        if self._open(at, found):
            found.path, found.status = at, os.fstat(found.file.number)

    def _open(self, path: str, found: Found) -> bool:
        """Opens the name of a path without links as found.file. False: `found` says why not."""
        found.close()
        over = [entry for entry in self._over if machine.is_below(path, entry[0])]
        target, base, host, title = over[-1]
        if title:
            found.hidden = title
            return False
        below = path[len(target.rstrip("/")) :].strip("/")
        if base.number < 0 or os.path.join(host, below).rstrip("/") in self._hanging:
            return False
        try:
            found.file.open_in_root(base.number, below, _NAME)
            return True
        except FileNotFoundError:
            found.missing = path
        except NotADirectoryError:
            found.no_directory = os.path.dirname(path)
        except PermissionError:
            found.denied = os.path.dirname(path)
        return False

    def read(self, found: Found, size: int, offset: int = 0) -> bytes:
        """The first bytes of a regular file; b"" if it cannot be read without waiting."""
        if found.status is None or not stat.S_ISREG(found.status.st_mode):
            return b""
        if machine.may_wait(found.file.number):
            return b""
        content = Descriptor()
        try:  # the same file again, whatever has its name by now
            content.open(f"/proc/self/fd/{found.file.number}", _CONTENT)
            return os.pread(content.number, size, offset)
        except OSError:
            return b""
        finally:
            content.close()

    def is_noexec(self, found: Found) -> bool:
        """Whether the file lies on a mount with noexec."""
        if found.status is None or machine.may_wait(found.file.number):
            return False
        with contextlib.suppress(OSError):
            return bool(os.fstatvfs(found.file.number).f_flag & os.ST_NOEXEC)
        return False
