# SPDX-License-Identifier: Apache-2.0
"""Stubs: mount points that a root lacks, made for a run and removed after it.

Removing a directory unmounts all that other namespaces have mounted on it (mount_namespaces(7)). So
a stub has to stay while any run of any process uses it:

 - The mode of a stub marks it, as no other file has it: set-user-ID, sticky, and writable by its
   owner alone. mkdir(2) cannot set the first of these bits. So a directory that is sticky and open
   to its owner alone counts as a stub as well, one in the making. At no moment does a stub look
   like another file.
 - A run that mounts on a stub holds a shared lock on it (flock(2)) until its end. The C core mounts
   on no stub that its caller does not hold.
 - A run that releases a stub removes it if it gets the exclusive lock, that is if no other run
   holds it. So the last run removes it, and the stub of a run that was killed goes with the next
   run. A stub with content is never removed.

Commands of other runs in the same root may change a stub in any way, at any moment. So we open its
name without following links and without waiting, and do all else by the descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import posix  # its close(): see _core/unpatched.py
import stat
from time import monotonic, sleep

from .._core import native, workspace
from .._host import machine

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# Seconds. Normally this takes microseconds; after 5 s some process holds the lock on purpose.
_LONGEST_WAIT = 5.0
MOST_LINKS = 40  # as many as the kernel follows, path_resolution(7)
#: Seconds that the start of a run may take, however short its timeout is. One that takes longer
#: hangs.
LEAST_SETUP = 1.0


class Silent(OSError):
    """ETIMEDOUT: a file system does not answer."""


class Stubs:
    """The stubs that one run holds in one root. Most runs need none, and then it opens nothing.

    deadline: of the run, by monotonic(). may_hang: whether a file system there may hang; None: ask
    the caller's mounts. If it may, a child process looks at each path first, with a time limit; and
    stubs stay if the file system does not answer any more.
    """

    def __init__(
        self, root: str, deadline: float | None = None, may_hang: bool | None = None
    ) -> None:
        self._path = root
        self._deadline = deadline
        self._may_hang = may_hang
        self._give_up = float("inf")
        if deadline is not None:
            self._give_up = max(deadline, monotonic() + LEAST_SETUP)
        self._root = -1
        self._held: list[_Stub] = []
        self._done: set[str] = set()  # paths that exist or are held, to treat each once

    def hold(self, path: str, directory: bool) -> None:
        """Makes the missing parts of `path`, and holds every stub on it. OSError."""
        if self._may_hang is None:
            self._may_hang = bool(machine.hanging_mounts())
        self.check(self._path, path)
        if self._root < 0:
            self._root = os.open(self._path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._hold_each(path.strip("/").split("/"), directory, MOST_LINKS)

    def check(self, root: str, path: str) -> None:
        """Raises Silent if the path lies on a file system that does not answer in time."""
        if not self._may_hang or self._deadline is None:
            return
        if not workspace.answers(root, path, max(LEAST_SETUP, self._deadline - monotonic())):
            raise Silent(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), path)

    def is_missing(self, path: str) -> bool:
        """Whether the root lacks the path, or it is a stub. False also if we cannot tell."""
        try:
            if self._root < 0:
                self._root = os.open(self._path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            fd = native.open_in_root(self._root, path, os.O_PATH)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        try:
            return _is_stub(os.fstat(fd))
        finally:
            posix.close(fd)

    def _hold_each(self, parts: list[str], directory: bool, links: int) -> None:
        for depth in range(1, len(parts) + 1):
            self._hold_one(parts[:depth], directory or depth < len(parts), links)

    def _hold_one(self, parts: list[str], directory: bool, links: int) -> None:
        """links: how many symbolic links that lead to nothing may be on the way."""
        path = "/" + "/".join(parts)
        if path in self._done:
            return
        give_up = min(monotonic() + _LONGEST_WAIT, self._give_up)
        stub = _Stub(path)
        self._held.append(stub)  # first of all, so that release() sees it after any interrupt
        stub.parent = native.open_in_root(self._root, os.path.dirname(path), os.O_PATH)
        while not self._hold_existing(path, stub):
            if (leads_to := _make(stub.parent, stub.name, directory)) is not None:
                if links == 0:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                self._held.remove(stub)
                stub.close()
                above = [] if leads_to.startswith("/") else parts[:-1]
                names = [name for name in leads_to.split("/") if name not in ("", ".")]
                self._hold_each([*above, *names], directory, links - 1)
                break
            if monotonic() >= give_up:
                raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), path)
        self._done.add(path)

    def _hold_existing(self, path: str, stub: _Stub) -> bool:
        """Holds a path that exists. False if it does not, or changes at the moment: try again."""
        try:
            fd = native.open_in_root(self._root, path, os.O_PATH)
        except FileNotFoundError:
            return False
        status = os.fstat(fd)
        posix.close(fd)
        if not _is_stub(status):
            self._held.pop().close()
            return True
        if stub.open() and os.path.samestat(status, os.fstat(stub.fd)) and stub.lock():
            stub.is_directory = stat.S_ISDIR(status.st_mode)
            return True
        sleep(0.0005)
        return False

    def release(self) -> None:
        """Releases every stub, and removes those that no other run holds."""
        self._done.clear()
        if self._root >= 0:  # first: opening a stub below may need the descriptor
            root, self._root = self._root, -1
            posix.close(root)
        silent = False  # checked without a deadline too: a run that is over must not hang
        while self._held:
            stub = self._held.pop()
            if silent or (self._may_hang and stub.parent >= 0):
                silent = silent or not workspace.answers(self._path, stub.path, LEAST_SETUP)
            if silent:
                stub.leave()
                continue
            try:
                # A stub that we cannot remove (of another user, for example) goes with the next run
                # that can.
                with contextlib.suppress(OSError):
                    stub.remove()
            finally:
                stub.close()

    def abandon(self) -> None:
        """Closes the inherited descriptors in a fork of the caller, which still holds the stubs."""
        stubs, self._held = self._held, []
        for stub in stubs:
            stub.close()
        self.release()


_left: list[int] = []  # descriptors of files whose server does not answer


class _Stub:
    """A stub that exists, or will: its name, and the descriptors of it and its parent."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.parent = -1
        self.name = os.path.basename(path)
        self.is_directory = False
        self.fd = -1

    def leave(self) -> None:
        """Gives up a stub whose file system does not answer: close(2) would ask its server."""
        if self.fd >= 0 and not self.is_directory:
            _left.append(self.fd)
            self.fd = -1
        self.close()

    def open(self) -> bool:
        """False if it is gone, is no stub, or another user is still making it."""
        self._close_fd()
        try:
            self.fd = os.open(self.name, _READ, dir_fd=self.parent)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise
        return self.fd >= 0

    def lock(self, how: int = fcntl.LOCK_SH) -> bool:
        """False if another run has the lock, or the name is another file by now."""
        try:
            fcntl.flock(self.fd, how | fcntl.LOCK_NB)
            there = os.stat(self.name, dir_fd=self.parent, follow_symlinks=False)
        except (BlockingIOError, FileNotFoundError):
            return False
        return os.path.samestat(there, os.fstat(self.fd))

    def remove(self) -> None:
        """Removes the stub, unless another run holds it, or it has content."""
        if self.parent < 0 or (self.fd < 0 and not self.open()):
            return
        status = os.fstat(self.fd)
        # Unlock first: of two runs that release it at the same time one then gets the lock.
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        if not _is_stub(status) or not self.lock(fcntl.LOCK_EX):
            return
        if stat.S_ISREG(status.st_mode):
            if os.fstat(self.fd).st_size == 0:
                os.unlink(self.name, dir_fd=self.parent)
            else:
                os.fchmod(self.fd, 0o644)  # a command wrote to it: it stays as a normal file
            return
        try:
            os.rmdir(self.name, dir_fd=self.parent)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            os.fchmod(self.fd, 0o755)  # a command left files in it: it stays as a normal directory

    def close(self) -> None:
        self._close_fd()
        parent, self.parent = self.parent, -1
        if parent >= 0:
            posix.close(parent)

    def _close_fd(self) -> None:
        fd, self.fd = self.fd, -1  # never twice: the number may be in use again by then
        if fd >= 0:
            posix.close(fd)


def _is_stub(status: os.stat_result) -> bool:
    mode = status.st_mode
    return bool(native.lib.sbx_is_stub(mode)) and (stat.S_ISDIR(mode) or stat.S_ISREG(mode))


def _make(parent: int, name: str, directory: bool) -> str | None:
    """Makes a stub. If the name is a symbolic link, it returns the link's text, and makes nothing.
    None also if another run was faster.
    """
    try:
        if directory:
            os.mkdir(name, 0o1500, dir_fd=parent)
            fd = os.open(name, _READ | os.O_DIRECTORY, dir_fd=parent)
        else:
            fd = os.open(name, _READ | os.O_CREAT | os.O_EXCL, 0o5644, dir_fd=parent)
    except FileExistsError:
        with contextlib.suppress(OSError):  # EINVAL: it is no link
            return os.readlink(name, dir_fd=parent)
        return None
    except FileNotFoundError:
        return None  # another run has removed it already
    try:
        # Set the mode despite the umask: other users in the sandbox may have to pass.
        if _is_stub(os.fstat(fd)):
            os.fchmod(fd, 0o5755 if directory else 0o5644)
    finally:
        posix.close(fd)
    return None
