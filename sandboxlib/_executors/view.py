# SPDX-License-Identifier: Apache-2.0
"""View: the root of a sandbox with its mounts, as paths of the caller.

It follows symbolic links inside the root, as the command will.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence

from .. import errors
from .._host import machine
from .._host.machine import is_below
from .._runs import explain
from .._spec.mount import hidden
from .._spec.spec import Spec

_NOWHERE = "/proc/0"  # no process has this number: nothing is below it

# ---- paths -----------------------------------------------------------------------------------


def _mounts_below(above: str) -> list[str]:
    """The mount points below a directory that can be seen and reached, parents first."""
    points = {
        mount.number: mount.point
        for mount in machine.mounts()
        if mount.point != above and is_below(mount.point, above)
    }
    seen = {name for name in points.values() if points.get(_mount_id(name)) == name}
    seen = {name for name in seen if _may_enter(name)}
    return sorted(seen, key=_parts)


def _parts(path: str) -> list[str]:
    """A sort key: a directory comes before its content, and its content before its next sibling."""
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


def merged(layers: Sequence[str], path: str) -> str:
    """The path on the host of a path, which has no symbolic links, in a stack of layers, the
    uppermost first: that of the uppermost layer which has it. If none does, there is no such file.
    """
    found = list(layers)
    for name in path.split("/"):
        below: list[str] = []
        for directory in found if name else ():
            here = os.path.join(directory, name)
            try:
                status = os.lstat(here)
            except OSError:
                continue
            if not stat.S_ISDIR(status.st_mode):
                is_whiteout = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
                below += [] if below or is_whiteout else [here]
                break
            below.append(here)
            if _is_opaque(here):
                break
        found = below if name else found
    return found[0] if found else f"{_NOWHERE}/{path}"


def _is_opaque(directory: str) -> bool:
    """Whether a directory hides those of its name in the layers below, as bwrap's overlays have it
    (userxattr in overlayfs.rst).
    """
    with contextlib.suppress(OSError):
        return os.getxattr(directory, "user.overlay.opaque", follow_symlinks=False) == b"y"
    return False


class View:
    """The files that the command will see: the root, and over it the mounts so far.

    over: the paths inside on which something is mounted, each with its path on the host, or None if
    the run makes it itself (a tmpfs, a proc). made: the directories (None) and the symbolic links
    (their texts) that the run adds, by their paths without links.
    """

    def __init__(self, root: str | None, layers: Sequence[str] = ()) -> None:
        """layers: what the root is stacked of, the uppermost first; root is the uppermost then."""
        self.over: dict[str, str | None] = {"/": root}
        self.made: dict[str, str | None] = {}
        self._layers = layers

    def put(self, target: str, host: str | None) -> None:
        """Mounts a path of the host on target; None: a file system that the run makes itself."""
        self.over = {at: source for at, source in self.over.items() if not is_below(at, target)}
        self.over[target] = host
        self.made = {at: to for at, to in self.made.items() if not is_below(at, target)}

    def exists(self, path: str) -> bool:
        """Whether a path inside, whose parents have no symbolic links, is there. Of a file system
        that the run makes only mount points and what was added are known.
        """
        host = self.host(path)
        is_known = path in self.over or path in self.made
        return is_known or (host is not None and os.path.lexists(host))

    def link_at(self, path: str) -> str | None:
        """The text of the symbolic link at such a path; None: there is none. OSError."""
        return self.made[path] if path in self.made else _read_link(self.host(path))

    def mount_of(self, path: str) -> str:
        """The mount point, inside, of the mount that a path inside lies on."""
        while path not in self.over:
            path = os.path.dirname(path)
        return path

    def host(self, path: str) -> str | None:
        """The path on the host of a path inside, which has no symbolic links."""
        at = self.mount_of(path)
        base = self.over[at]
        if at == "/" and self._layers:
            return merged(self._layers, path)
        below = path[len(at) :].lstrip("/")
        return os.path.join(base, below) if base and below else base

    def resolve(self, path: str) -> str:
        """Resolves the symbolic links of a path inside, as if in chroot(2). OSError."""
        resolved, todo, links = "/", path.split("/")[::-1], 0
        while todo:
            name = todo.pop()
            if name in ("", ".", ".."):
                resolved = os.path.dirname(resolved) if name == ".." else resolved
                continue
            here = os.path.join(resolved, name)
            leads_to = self.link_at(here)
            if leads_to is None:
                resolved = here
                continue
            links += 1
            if links > 40:  # the kernel's limit, path_resolution(7)
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            resolved = "/" if leads_to.startswith("/") else resolved
            todo += leads_to.split("/")[::-1]
        return resolved

    def find(self, path: str) -> str | None:
        """The path on the host; "" if only the run has it, None if it does not exist."""
        with contextlib.suppress(OSError):
            resolved = self.resolve(path)
            host = self.host(resolved)
            if host is None or resolved in self.made:
                return ""
            if os.path.exists(host):
                return host
        return None

    def gets_own(self, path: str, box: Spec) -> bool:
        """Whether the sandbox mounts something of its own there: the root has such a directory, or
        an extra mount goes into it; and no extra mount goes onto it.
        """
        targets = [mount.target for mount in box.extra_mounts]
        if path in hidden(box.extra_mounts):
            return False
        return self.has_directory(path) or any(is_below(target, path) for target in targets)

    def has_directory(self, path: str) -> bool:
        """Whether there is such a directory. In a file system that the run makes only the mount
        points are known.
        """
        try:
            resolved = self.resolve(path)
            host = self.host(resolved)
        except OSError:
            return False
        if resolved in self.made:
            return True
        return os.path.isdir(host) if host else any(is_below(at, resolved) for at in self.over)


def _read_link(host: str | None) -> str | None:
    try:
        return os.readlink(host) if host is not None else None
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
            return None
        raise


@contextlib.contextmanager
def doing(filename: str, step: str, what: str, box: Spec | None = None) -> Iterator[None]:
    """Turns an OSError of the block into a SetupError of this step.

    box: of which the block makes a mount point, for the remedy.
    """
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        if box is None:
            hint = explain.hint(step, 0, number)
        else:
            hint = explain.hint_of_stub(number, box, filename)
        raise errors.setup_error(number, filename, step, what, hint) from error
