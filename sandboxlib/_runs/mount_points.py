# SPDX-License-Identifier: Apache-2.0
"""Mount points that a root lacks: made for a run, gone after it.

Removing a directory takes away what other namespaces have mounted on it (mount_namespaces(7)), so
a stub has to stay while any run of any process uses it, whoever made it:

 - A stub is recognised by its mode, one that nobody gives to anything else: set-user-ID, sticky,
   and writable by its owner alone. mkdir(2) cannot set the first; so until it is there, a directory
   in the making is known by being sticky and open to its owner alone. Nobody ever sees a stub that
   does not look like one.
 - Whoever mounts on a stub holds a shared lock on it (flock(2)) for as long as the run lasts. The C
   core mounts on no stub that its caller does not hold.
 - Whoever lets go of a stub removes it if the exclusive lock is to be had, that is if nobody else
   holds it. So the last one removes it, and a stub whose run was killed goes with the next. What
   has something in it is never removed.

Commands of other runs in the same root may do to a stub whatever they like, at any moment. So a
name is opened without following links and without waiting, and all else is done to what was opened.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from time import monotonic, sleep

from .._core import native, workspace
from .._host import machine

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# Honest runs make, lock and remove a stub within microseconds.
_LONGEST_WAIT = 5.0  # seconds
#: Seconds that the start of a run may take, however short its timeout: what takes longer hangs.
LEAST_SETUP = 1.0


class Silent(OSError):
    """ETIMEDOUT: a file system does not answer."""


class Stubs:
    """The stubs that one run holds in one root: none, as a rule, and then nothing is opened.

    deadline: of the run, by monotonic(). may_hang: whether a file system there may not answer;
    None: as the caller's mounts are. Then a child looks first, in time, before anything is done
    there; and what was made stays if nothing answers any more.
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
        self._there: set[str] = set()  # paths that were seen to, so that each is once

    def hold(self, path: str, directory: bool) -> None:
        """Makes what is missing of `path`, and keeps hold of every stub on it. OSError."""
        if self._may_hang is None:
            self._may_hang = bool(machine.hanging_mounts())
        self.check(self._path, path)
        if self._root < 0:
            self._root = os.open(self._path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        parts = path.strip("/").split("/")
        for depth in range(1, len(parts) + 1):
            self._hold_one(parts[:depth], directory or depth < len(parts))

    def check(self, root: str, path: str) -> None:
        """OSError where the path lies in a file system that does not answer in time."""
        if not self._may_hang or self._deadline is None:
            return
        if not workspace.answers(root, path, max(LEAST_SETUP, self._deadline - monotonic())):
            raise Silent(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), path)

    def is_missing(self, path: str) -> bool:
        """Whether there is nothing in the root, or a stub. False also where that cannot be told."""
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
            os.close(fd)

    def _hold_one(self, parts: list[str], directory: bool) -> None:
        path = "/" + "/".join(parts)
        if path in self._there:
            return
        give_up = min(monotonic() + _LONGEST_WAIT, self._give_up)
        stub = _Stub(path)
        self._held.append(stub)  # first of all: an interrupt may come at any moment
        stub.parent = native.open_in_root(self._root, os.path.dirname(path), os.O_PATH)
        while not self._hold_existing(path, stub):
            _make(stub.parent, stub.name, directory)
            if monotonic() >= give_up:
                raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), path)
        self._there.add(path)

    def _hold_existing(self, path: str, stub: _Stub) -> bool:
        """False where there is nothing, or something that is changing: to be tried again."""
        try:
            found = native.open_in_root(self._root, path, os.O_PATH)
        except FileNotFoundError:
            return False
        status = os.fstat(found)
        os.close(found)
        if not _is_stub(status):
            self._held.pop().close()
            return True
        if stub.open() and os.path.samestat(status, os.fstat(stub.fd)) and stub.lock():
            stub.is_directory = stat.S_ISDIR(status.st_mode)
            return True
        sleep(0.0005)
        return False

    def release(self) -> None:
        """Lets go of every stub, and removes those that nobody else holds."""
        self._there.clear()
        if self._root >= 0:  # first, as a stub may not have been opened for want of a descriptor
            root, self._root = self._root, -1
            os.close(root)
        silent = False  # also without a deadline: what is over is not to hang
        while self._held:
            stub = self._held.pop()
            if silent or (self._may_hang and stub.parent >= 0):
                silent = silent or not workspace.answers(self._path, stub.path, LEAST_SETUP)
            if silent:
                stub.leave()
                continue
            try:
                # What cannot be removed now (another user's, say) goes with the next run of
                # somebody who may.
                with contextlib.suppress(OSError):
                    stub.remove()
            finally:
                stub.close()

    def abandon(self) -> None:
        """In a fork of the caller, whose stubs they are: closes what was inherited."""
        held, self._held = self._held, []
        for stub in held:
            stub.close()
        self.release()


_left: list[int] = []  # descriptors of files whose server does not answer


class _Stub:
    """A name that is made, or about to be, and what was opened by it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.parent = -1
        self.name = os.path.basename(path)
        self.is_directory = False
        self.fd = -1

    def leave(self) -> None:
        """Where nothing answers any more. To close a file there would be to ask the server too."""
        if self.fd >= 0 and not self.is_directory:
            _left.append(self.fd)
            self.fd = -1
        self.close()

    def open(self) -> bool:
        """False where it is gone, something else, or another user's that is still in the making."""
        self._close_fd()
        try:
            self.fd = os.open(self.name, _READ, dir_fd=self.parent)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise
        return self.fd >= 0

    def lock(self, how: int = fcntl.LOCK_SH) -> bool:
        """False where somebody else is in the way, or has put something else there."""
        try:
            fcntl.flock(self.fd, how | fcntl.LOCK_NB)
            there = os.stat(self.name, dir_fd=self.parent, follow_symlinks=False)
        except (BlockingIOError, FileNotFoundError):
            return False
        return os.path.samestat(there, os.fstat(self.fd))

    def remove(self) -> None:
        """Unless somebody else holds it, or it has something in it."""
        if self.parent < 0 or (self.fd < 0 and not self.open()):
            return
        status = os.fstat(self.fd)
        # First let go, then try: of two that do this at once, one gets it.
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        if not _is_stub(status) or not self.lock(fcntl.LOCK_EX):
            return
        if stat.S_ISREG(status.st_mode):
            if os.fstat(self.fd).st_size == 0:
                os.unlink(self.name, dir_fd=self.parent)
            else:
                os.fchmod(self.fd, 0o644)  # somebody wrote to it: no stub any more
            return
        try:
            os.rmdir(self.name, dir_fd=self.parent)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            os.fchmod(self.fd, 0o755)  # the command left something in it

    def close(self) -> None:
        self._close_fd()
        parent, self.parent = self.parent, -1
        if parent >= 0:
            os.close(parent)

    def _close_fd(self) -> None:
        fd, self.fd = self.fd, -1  # never twice: the number may be somebody else's by then
        if fd >= 0:
            os.close(fd)


def _is_stub(status: os.stat_result) -> bool:
    mode = status.st_mode
    return bool(native.lib.sbx_is_stub(mode)) and (stat.S_ISDIR(mode) or stat.S_ISREG(mode))


def _make(parent: int, name: str, directory: bool) -> None:
    try:
        if directory:
            os.mkdir(name, 0o1500, dir_fd=parent)
            fd = os.open(name, _READ | os.O_DIRECTORY, dir_fd=parent)
        else:
            fd = os.open(name, _READ | os.O_CREAT | os.O_EXCL, 0o5644, dir_fd=parent)
    except FileExistsError:
        if _is_link(parent, name):
            raise OSError(errno.ENOENT, "a symbolic link that leads to nothing", name) from None
        return  # somebody else was faster
    except FileNotFoundError:
        return  # its first holder has removed it already
    try:
        # Whatever the umask: other users of the sandbox may have to pass.
        if _is_stub(os.fstat(fd)):
            os.fchmod(fd, 0o5755 if directory else 0o5644)
    finally:
        os.close(fd)


def _is_link(parent: int, name: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    return False
