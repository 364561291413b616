# SPDX-License-Identifier: Apache-2.0
"""The programs that sandboxlib starts on the host, and whether they are safe to start."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterable

from .. import errors
from . import machine

#: The usual directories of programs, for callers whose PATH is short.
DIRECTORIES = ("/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin", "/sbin")
#: The environment of a tool: no variable of the caller may change how it works.
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_MOST_LINKS = 40  # path_resolution(7)
_OVERFLOW_UID = "/proc/sys/kernel/overflowuid"


def trusted_tool(name: str, directories: Iterable[str] = DIRECTORIES) -> str | None:
    """Find a program by name in the caller's PATH, then in `directories`. Returns its real path, or
    None if there is no such program.

    Raises UnsupportedError if another user could have put it there: the file, every directory and
    every link on the way to it must belong to root or to the caller's effective uid, and no other
    user may write to them. An unsafe program is not skipped for the next one of that name, because
    the caller meant the first. Entries of PATH that are empty or relative are skipped, because they
    depend on the current directory.
    """
    for directory in (*os.environ.get("PATH", "").split(":"), *directories):
        path = os.path.join(directory, name)
        if not path.startswith("/") or not os.path.isfile(path) or not os.access(path, os.X_OK):
            continue
        real, doubt = _walk(path)
        if doubt:
            remedy = "install it where only root, or only you, can write; or take it out of PATH"
            raise errors.UnsupportedError(f"{path} is not safe to start: {doubt}; {remedy}")
        return real
    return None


def _walk(path: str) -> tuple[str, str]:
    """Resolve an absolute path as the kernel does. Returns where it ends, and why a part of the way
    is not safe, or "".
    """
    owners = _safe_owners()
    done, links = "", 0
    todo = deque(path.split("/"))
    while todo:
        part = todo.popleft()
        if part == "..":
            done = os.path.dirname(done.rstrip("/")).rstrip("/")
        if part in ("..", "."):
            continue
        done = f"{done}/{part}" if part else done
        try:
            status = os.lstat(done or "/")
        except OSError as error:
            return done, f"{done}: {error.strerror}"
        if doubt := _doubt(status, owners):
            return done, f"{done or '/'} {doubt}"
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _MOST_LINKS:
                return done, f"{done} is one of too many symbolic links"
            target = os.readlink(done)
            done = "" if target.startswith("/") else os.path.dirname(done).rstrip("/")
            todo.extendleft(reversed(target.split("/")))
    return done, ""


def _safe_owners() -> set[int]:
    """The uids of root and the caller. In a user namespace that does not map the machine's root,
    its files have the overflow uid. So have the files of every other user that is not mapped, and
    nothing tells them apart.
    """
    owners = {0, os.geteuid()}
    if machine.is_in_user_namespace():
        overflow = machine.read(_OVERFLOW_UID)
        owners.add(int(overflow) if overflow.isdigit() else 65534)
    return owners


def _doubt(status: os.stat_result, owners: set[int]) -> str:
    """Why another user can change this file, or "" if none can."""
    mode = status.st_mode
    if status.st_uid not in owners:
        return f"belongs to uid {status.st_uid}"
    if stat.S_ISLNK(mode):  # the mode of a link has no effect, only that of its directory
        return ""
    # In a sticky directory a group may add files, but not replace those of others (Nix's store).
    allowed = stat.S_IWGRP if stat.S_ISDIR(mode) and mode & stat.S_ISVTX else 0
    if mode & (stat.S_IWGRP | stat.S_IWOTH) & ~allowed:
        return f"can be written by others (mode {stat.S_IMODE(mode):04o})"
    return ""
