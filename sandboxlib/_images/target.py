# SPDX-License-Identifier: Apache-2.0
"""A directory that we keep open, because another process may put something else under its name."""

from __future__ import annotations

import errno
import os
import stat
import time

from ..errors import setup_error
from .child import removal

_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Existing:
    """A directory of the caller's, in one that nobody else can write to, for a child to work in."""

    def __init__(self, path: str) -> None:
        self.path = path
        at = os.stat(path, follow_symlinks=False)
        self.identity = at.st_dev, at.st_ino


class Target:
    """A new directory of mode 0700. Raises SetupError if another process swaps it meanwhile.

    path: for messages, and for calls that take no descriptor. fd: a descriptor, for all others.
    """

    def __init__(self, parent: int, name: str, path: str) -> None:
        self.path = path
        self._name = name
        self.fd = self._parent = -1
        self.keep = False
        try:
            self._parent = os.dup(parent)
            os.mkdir(name, 0o700, dir_fd=parent)
            self._open()
        except OSError as error:
            self.close()
            if isinstance(error, RuntimeError):  # a SetupError
                raise
            what = f"make the directory {path}"
            hint = "name one that is not there yet" if error.errno == errno.EEXIST else ""
            raise setup_error(error.errno or 0, path, "target", what, hint) from error

    def _open(self) -> None:
        """Open it, and check that it is the new one: by now its name may lead to another directory,
        of any owner.
        """
        fd = os.open(self._name, os.O_PATH | _DIRECTORY, dir_fd=self._parent)
        try:
            at = os.fstat(fd)
            if at.st_uid != os.geteuid() or stat.S_IMODE(at.st_mode) & 0o077:
                raise self.swapped()
            os.chmod(f"/proc/self/fd/{fd}", 0o700)  # the umask may have removed some bits
            self.fd = os.open(".", os.O_RDONLY | _DIRECTORY, dir_fd=fd)
        finally:
            os.close(fd)
        if os.listdir(self.fd):
            raise self.swapped()
        self.identity = at.st_dev, at.st_ino

    def swapped(self) -> Exception:
        """The error for a directory that is not the one that we made."""
        what = f"use the directory {self.path}, which another process replaced"
        hint = "choose one that only you can write to"
        return setup_error(errno.ESTALE, self.path, "target", what, hint)

    def is_there(self) -> bool:
        """Return True if its name still leads to it."""
        try:
            at = os.stat(self._name, dir_fd=self._parent, follow_symlinks=False)
        except OSError:
            return False
        return (at.st_dev, at.st_ino) == self.identity

    def is_private(self) -> bool:
        """Return True if a directory above it is closed to other users, so that none reaches it."""
        at = os.dup(self._parent)
        try:
            while True:
                here = os.fstat(at)
                if here.st_uid == os.geteuid() and not here.st_mode & 0o077:
                    return True
                above = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
                os.close(at)
                at = above
                if os.path.samestat(here, os.fstat(at)):
                    return False
        finally:
            os.close(at)

    def publish(self) -> None:
        """Let other users in, because commands with other ids have it as their root directory."""
        os.fchmod(self.fd, 0o755)

    def remove(self, seconds: float) -> None:
        """Remove it and its content. Raises SetupError, also if it takes more than `seconds`."""
        try:
            os.fchmod(self.fd, 0o700)
            removal.empty(self.fd, time.monotonic() + seconds)
            if self.is_there():
                os.rmdir(self._name, dir_fd=self._parent)
        except OSError as error:
            what = f"remove the directory {self.path}"
            raise setup_error(error.errno or 0, self.path, "target", what) from error

    def close(self) -> None:
        for fd in (self.fd, self._parent):
            if fd >= 0:
                os.close(fd)
        self.fd = self._parent = -1
