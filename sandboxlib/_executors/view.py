# SPDX-License-Identifier: Apache-2.0
"""The root and its mounts as paths of the caller's: links are followed inside."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from .. import errors
from .._host import machine
from .._runs import explain

# ---- paths -----------------------------------------------------------------------------------


def _below(path: str, above: str) -> bool:
    return path == above or path.startswith(above.rstrip("/") + "/")


def _mounts_below(above: str) -> list[str]:
    """The mount points below a directory that can be seen and reached, parents first."""
    points = {
        mount.number: mount.point
        for mount in machine.mounts()
        if mount.point != above and _below(mount.point, above)
    }
    seen = {name for name in points.values() if points.get(_mount_id(name)) == name}
    seen = {name for name in seen if _may_enter(name)}
    return sorted(seen, key=_parts)


def _parts(path: str) -> list[str]:
    """The key that sorts a directory before what is in it, and that before its next neighbour."""
    return path.split("/")


def _may_enter(directory: str) -> bool:
    """Whether a command with the caller's ids can enter it, now or after a chmod(2).

    Others, as tracefs with mode 0700, cannot be bound by the caller, and protect themselves.
    """
    if os.access(directory, os.X_OK, effective_ids=True):
        return True
    try:
        return os.stat(directory).st_uid == os.geteuid()
    except OSError:
        return False


def _mount_id(path: str) -> int:
    """The mount that is uppermost at a path; -1 where the caller cannot come, and so no command."""
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        with open(f"/proc/self/fdinfo/{fd}") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("mnt_id:"))
    finally:
        os.close(fd)


class View:
    """What the command will see: the root, and over it what was mounted so far."""

    def __init__(self, root: str) -> None:
        self.over: dict[str, str | None] = {"/": root}

    def put(self, inside: str, host: str | None) -> None:
        """Mounts a path of the host; None: something that exists in the run only."""
        self.over = {at: what for at, what in self.over.items() if not _below(at, inside)}
        self.over[inside] = host

    def mount_of(self, inside: str) -> str:
        while inside not in self.over:
            inside = os.path.dirname(inside)
        return inside

    def host(self, inside: str) -> str | None:
        """Where a path inside, one without symbolic links, lies on the host."""
        at = self.mount_of(inside)
        base = self.over[at]
        rest = inside[len(at) :].lstrip("/")
        return os.path.join(base, rest) if base and rest else base

    def resolve(self, path: str) -> str:
        """The path inside without symbolic links; all of them stay in the root. OSError."""
        inside, todo, links = "/", path.split("/")[::-1], 0
        while todo:
            name = todo.pop()
            if name in ("", ".", ".."):
                inside = os.path.dirname(inside) if name == ".." else inside
                continue
            here = os.path.join(inside, name)
            leads_to = _read_link(self.host(here))
            if leads_to is None:
                inside = here
                continue
            links += 1
            if links > 40:  # as path_resolution(7)
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            inside = "/" if leads_to.startswith("/") else inside
            todo += leads_to.split("/")[::-1]
        return inside

    def find(self, path: str) -> str | None:
        """The host's name for it, "" for what is in the run only, None for what is not there."""
        with contextlib.suppress(OSError):
            host = self.host(self.resolve(path))
            if host is None or os.path.exists(host):
                return host or ""
        return None

    def has_directory(self, path: str) -> bool:
        """Whether there is such a directory: in what the run itself makes, a mount point only."""
        try:
            inside = self.resolve(path)
            host = self.host(inside)
        except OSError:
            return False
        return os.path.isdir(host) if host else any(_below(at, inside) for at in self.over)


def _read_link(host: str | None) -> str | None:
    try:
        return os.readlink(host) if host is not None else None
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
            return None
        raise


@contextlib.contextmanager
def doing(filename: str, step: str, what: str) -> Iterator[None]:
    """Makes a SetupError of an OSError."""
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        hint = explain.hint(step, 0, number)
        raise errors.setup_error(number, filename, step, what, hint) from error
