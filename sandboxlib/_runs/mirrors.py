# SPDX-License-Identifier: Apache-2.0
"""Mirrors: the directories of a root that slots keep a copy of, to notice when they change.

The core hides a directory of the caller's that lacks the name of an entry (Mount.directory and its
like) by a mirror, which shows what the directory had when the slot was opened.
"""

from __future__ import annotations

import os
import posix  # its close(): see _core/unpatched.py
from collections.abc import Sequence
from time import time_ns

from .._core import native
from .mounts import PlannedMount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_RECENT = 100_000_000  # ns. The clock of a file system may stand still for some milliseconds.


class Mirrored:
    """What the caller's directories are like that may have a mirror, and the entries that exist."""

    def __init__(self, root: str, entries: Sequence[PlannedMount]) -> None:
        self._seen: dict[str, Any] = {}
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for target in [entry.target for entry in entries]:
                path, is_entry = _nearest(fd, target)
                # One that changed just now may change again without another time.
                state = _state(path, is_entry)
                is_recent = not is_entry and state and time_ns() - state[-1] < _RECENT
                self._seen[path] = None if is_recent else state
        finally:
            posix.close(fd)

    def is_same(self) -> bool:
        """Whether a slot that is opened now would have the same entries and mirrors."""
        return all(seen == _state(path, len(seen or ()) == 2) for path, seen in self._seen.items())


def _nearest(root: int, target: str) -> tuple[str, bool]:
    """The caller's path of the target, if it exists, or else of the directory that would have a
    mirror; and whether it is the target.
    """
    path = target
    while True:
        try:
            fd = native.open_in_root(root, path, os.O_PATH)
        except OSError:
            path = os.path.dirname(path)
            continue
        try:
            return os.readlink(f"/proc/self/fd/{fd}"), path == target
        finally:
            posix.close(fd)


def _state(path: str, is_entry: bool) -> tuple[int, ...]:
    """What tells a change: of the entry, another file; of a directory, other names as well."""
    try:
        now = os.lstat(path)
    except OSError:
        return ()
    which = (now.st_dev, now.st_ino)
    return which if is_entry else (*which, now.st_mtime_ns, now.st_ctime_ns)
