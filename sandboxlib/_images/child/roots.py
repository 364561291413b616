# SPDX-License-Identifier: Apache-2.0
"""The root directories of the child, and how it gives up the way out of the last one."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

SOURCE, TARGET = "/dev/source", "/dev/target"
_SYS_CHROOT = 18  # capabilities(7)
_VERSION_3 = 0x20080522


class Moved(Exception):
    """The directory at TARGET is not the one that the parent made."""


class Roots:
    """The root directories of this process: that of the sandbox, later the image or the target.

    While the root is one of the last two, imports are switched off, because Python would import
    modules of the image.
    """

    def __init__(self, identity: list[int]) -> None:
        self._finders = list(sys.meta_path)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._ours = os.open("/", flags)
        self._target = os.open(TARGET, flags)
        status = os.fstat(self._target)
        if [status.st_dev, status.st_ino] != identity:
            raise Moved

    def enter_source(self) -> None:
        sys.meta_path.clear()
        os.chroot(SOURCE)
        os.chdir("/")

    def leave_source(self) -> None:
        os.fchdir(self._ours)
        os.chroot(".")
        sys.meta_path[:] = self._finders

    def enter_target(self) -> None:
        """Make the target the root directory, and drop the capability that leads out of it."""
        drop = _dropper()
        sys.meta_path.clear()
        os.fchdir(self._target)
        os.chroot(".")
        os.close(self._target)
        os.close(self._ours)
        drop()


def _dropper() -> Callable[[], None]:
    """A function that drops CAP_SYS_CHROOT, by which a process can leave its root directory. It is
    made before the imports are switched off.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    head = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: the low words, the high

    def call(function: Any) -> None:
        if function(head, sets) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def drop() -> None:
        call(libc.capget)
        for at in range(3):
            sets[at] &= ~(1 << _SYS_CHROOT)
        call(libc.capset)

    return drop
