# SPDX-License-Identifier: Apache-2.0
"""What an overlay of layers shows, without a mount."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Any

from sandboxlib._changes.child.stack import Directory, Stack
from sandboxlib._spec.overlay import Lower

#: By path: mode, ids, and content or target.
View = dict[bytes, tuple[Any, ...]]


def view_of(lowers: Sequence[Lower]) -> View:
    fds = [os.open(lower.path, os.O_RDONLY | os.O_DIRECTORY) for lower in reversed(lowers)]
    found: View = {}
    try:
        _look(Stack(fds, b"user.overlay.").root(), b"", found)
    finally:
        for fd in fds:
            os.close(fd)
    return found


def _look(directory: Directory, path: bytes, found: View) -> None:
    with directory:
        for entry in directory.entries():
            name, at = path + b"/" + entry.name, entry.status
            content: bytes = b""
            if stat.S_ISREG(at.st_mode):
                fd = entry.open()
                content = os.read(fd, 1 << 20)
                os.close(fd)
            elif stat.S_ISLNK(at.st_mode):
                content = entry.link()
            found[name] = (oct(at.st_mode), at.st_uid, at.st_gid, content)
            if entry.is_directory():
                _look(directory.open(entry.name), name, found)
