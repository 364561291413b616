# SPDX-License-Identifier: Apache-2.0
"""A directory of ours, held by a descriptor: others may swap its name for something else."""

from __future__ import annotations

import errno
import os
import stat
import time

from ..errors import setup_error
from .child import layers

_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Target:
    """Makes a directory of mode 0700. SetupError if somebody swaps it for another meanwhile.

    path: for messages, and for those who take no descriptor. fd: where all is done.
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
        """Its name may lead to a directory of somebody else's by now, or to another of ours."""
        fd = os.open(self._name, os.O_PATH | _DIRECTORY, dir_fd=self._parent)
        try:
            at = os.fstat(fd)
            if at.st_uid != os.geteuid() or stat.S_IMODE(at.st_mode) & 0o077:
                raise self.swapped()
            os.chmod(f"/proc/self/fd/{fd}", 0o700)  # whatever the umask is
            self.fd = os.open(".", os.O_RDONLY | _DIRECTORY, dir_fd=fd)
        finally:
            os.close(fd)
        if os.listdir(self.fd):
            raise self.swapped()
        self.identity = at.st_dev, at.st_ino

    def swapped(self) -> Exception:
        what = f"the directory {self.path}, which somebody swapped for another"
        hint = "take one below which nobody else can write"
        return setup_error(errno.ESTALE, self.path, "target", what, hint)

    def is_there(self) -> bool:
        """Whether its name still leads to it."""
        try:
            at = os.stat(self._name, dir_fd=self._parent, follow_symlinks=False)
        except OSError:
            return False
        return (at.st_dev, at.st_ino) == self.identity

    def is_private(self) -> bool:
        """Whether a directory above it is closed to all others, so that nobody reaches it."""
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
        """Lets others in: commands of other ids have it as their root directory."""
        os.fchmod(self.fd, 0o755)

    def remove(self, seconds: float) -> None:
        """Takes it away with all that is in it. SetupError, also when the time is over."""
        try:
            os.fchmod(self.fd, 0o700)
            layers.empty(self.fd, time.monotonic() + seconds)
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
