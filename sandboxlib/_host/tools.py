# SPDX-License-Identifier: Apache-2.0
"""Programs that sandboxlib starts on the host: which of them are safe to start."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterable

from .. import errors
from . import machine

#: Where programs are usually installed, for callers whose PATH is short.
PLACES = ("/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin", "/sbin")
#: What a tool finds in its environment: nothing of the caller's may steer it.
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_MOST_LINKS = 40  # path_resolution(7)
_OVERFLOW_UID = "/proc/sys/kernel/overflowuid"


def trusted_tool(name: str, places: Iterable[str] = PLACES) -> str | None:
    """The real path of the program that the caller's PATH, or else one of `places`, has by this
    name; None if there is none.

    UnsupportedError if somebody else could have put it there: the file, every directory on the way
    to it, and every link on that way have to belong to root or to the caller's effective uid, and
    nobody else may write there. It is not skipped for the next one, as the caller meant the first.
    Entries of PATH that are empty or relative are skipped: they depend on the current directory.
    """
    for place in (*os.environ.get("PATH", "").split(":"), *places):
        path = os.path.join(place, name)
        if not path.startswith("/") or not os.path.isfile(path) or not os.access(path, os.X_OK):
            continue
        real, doubt = _walk(path)
        if doubt:
            remedy = "install it where only root, or only you, can write; or take it out of PATH"
            raise errors.UnsupportedError(f"{path} is not safe to start: {doubt}; {remedy}")
        return real
    return None


def _walk(path: str) -> tuple[str, str]:
    """Goes an absolute path as the kernel does: where it ends, and what on the way is not safe."""
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
    """Root and the caller. In a user namespace that has no root of the machine, files of root
    appear with the overflow uid, as all others do that are not mapped: they cannot be told apart.
    """
    owners = {0, os.geteuid()}
    if machine.is_in_user_namespace():
        overflow = machine.read(_OVERFLOW_UID)
        owners.add(int(overflow) if overflow.isdigit() else 65534)
    return owners


def _doubt(status: os.stat_result, owners: set[int]) -> str:
    """Why somebody else may change what is there, or ""."""
    mode = status.st_mode
    if status.st_uid not in owners:
        return f"belongs to uid {status.st_uid}"
    if stat.S_ISLNK(mode):  # its own mode means nothing, that of its directory does
        return ""
    # In a sticky directory a group may add files, and not replace those of others (Nix's store).
    kept = stat.S_IWGRP if stat.S_ISDIR(mode) and mode & stat.S_ISVTX else 0
    if mode & (stat.S_IWGRP | stat.S_IWOTH) & ~kept:
        return f"can be written by others (mode {stat.S_IMODE(mode):04o})"
    return ""
