# SPDX-License-Identifier: Apache-2.0
"""Mount points that a root lacks: made for a run, gone after it.

Removing a directory takes away what other namespaces have mounted on it (mount_namespaces(7)), so
a stub has to stay while any run of any process uses it, whoever made it:

 - A stub is recognised by its mode: sticky, and writable by nobody. mkdir(2) sets that at once,
   so nobody ever sees a stub that does not look like one.
 - Whoever mounts on a stub holds a shared lock on it (flock(2)) for as long as the run lasts. The C
   core mounts on no stub that its caller does not hold.
 - Whoever lets go of a stub removes it if the exclusive lock is to be had, that is if nobody else
   holds it. So the last one removes it, and a stub whose run was killed goes with the next.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

from . import _native

_MODE, _MASK = _native.lib.SBX_STUB_MODE, _native.lib.SBX_STUB_MASK


class Stubs:
    """The stubs that one run holds in one root: none, as a rule, and then nothing is opened."""

    def __init__(self, root: str) -> None:
        self._path = root
        self._root = -1
        self._held: list[tuple[int, str, int]] = []  # parent, name, the stub itself

    def hold(self, path: str, directory: bool) -> None:
        """Makes what is missing of `path`, and keeps hold of every stub on it. OSError."""
        if self._root < 0:
            self._root = os.open(self._path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        parts = path.strip("/").split("/")
        for depth in range(1, len(parts) + 1):
            self._hold_one(parts[:depth], directory or depth < len(parts))

    def _hold_one(self, parts: list[str], directory: bool) -> None:
        path = "/" + "/".join(parts)
        parent = _native.open_in_root(self._root, os.path.dirname(path), os.O_PATH)
        try:
            while not self._hold_existing(path, parent, parts[-1]):
                _make(parent, parts[-1], directory)
        except BaseException:
            os.close(parent)
            raise

    def _hold_existing(self, path: str, parent: int, name: str) -> bool:
        """False where there is nothing."""
        try:
            found = _native.open_in_root(self._root, path, os.O_PATH)
        except FileNotFoundError:
            return False
        is_stub = os.fstat(found).st_mode & _MASK == _MODE
        os.close(found)
        if not is_stub:
            os.close(parent)
            return True
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            fcntl.flock(fd, fcntl.LOCK_SH)
            if _is_still(fd, parent, name):
                self._held.append((parent, name, fd))
                return True
            os.close(fd)  # its last holder removed it between the two lines
        return False

    def release(self) -> None:
        """Lets go of every stub, and removes those that nobody else holds."""
        while self._held:
            parent, name, fd = self._held.pop()
            try:
                _remove(parent, name, fd)
            finally:
                os.close(fd)
                os.close(parent)
        if self._root >= 0:
            os.close(self._root)
            self._root = -1


def _make(parent: int, name: str, directory: bool) -> None:
    try:
        if directory:
            os.mkdir(name, _MODE | 0o555, dir_fd=parent)
        else:
            flags = os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC
            os.close(os.open(name, flags, _MODE | 0o444, dir_fd=parent))
    except FileExistsError:
        if _is_link(parent, name):
            raise OSError(errno.ENOENT, "a symbolic link that leads to nothing", name) from None
        return  # somebody else was faster
    with contextlib.suppress(FileNotFoundError):
        # Again without the umask: other users of the sandbox may have to pass.
        os.chmod(name, _MODE | (0o555 if directory else 0o444), dir_fd=parent)


def _is_link(parent: int, name: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    return False


def _is_still(fd: int, parent: int, name: str) -> bool:
    try:
        there = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def _remove(parent: int, name: str, fd: int) -> None:
    # First let go, then try: of two that do this at once, one gets it.
    fcntl.flock(fd, fcntl.LOCK_UN)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    if not _is_still(fd, parent, name):
        return
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        os.unlink(name, dir_fd=parent)
        return
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        os.fchmod(fd, 0o755)  # the command left something in it: no stub any more
