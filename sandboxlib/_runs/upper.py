# SPDX-License-Identifier: Apache-2.0
"""Upper: what a run changed in its overlay, as a descriptor of the directory where that is."""

from __future__ import annotations

import posix  # its close(): see _core/unpatched.py
from collections.abc import Callable

from .._spec.overlay import Lower, Owners

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Upper:
    """The upper directory of a run that is over, and the layers below it. Whoever has it closes it.

    The command may have written anything there: names, links, FIFOs, device nodes, files that the
    caller may not read. So no name leads to it, and it is read by this descriptor alone.

    fd: int, the upper directory, open for reading.
    prefix: bytes, of the overlay's own attributes: b"trusted.overlay." or b"user.overlay.".
    lowers: a tuple of Lower, bottom first: the layers of the root, then those of the inputs.
    owners: Owners, which say what kind of process can read all of it.
    complete: bool, False if the run was killed (timeout, limits), maybe in the midst of a write.
    targets: a tuple of str: where the run's own mounts lay, inside the root. A mount point that the
        layers lack was made in the upper: an empty directory, or an empty file. A symbolic link
        that the Sandbox adds is there too, with "//" and its text behind the path.
    """

    def __init__(
        self,
        fd: int,
        prefix: bytes,
        lowers: tuple[Lower, ...],
        owners: Owners,
        complete: bool,
        targets: tuple[str, ...],
        release: Callable[[], object] | None = None,
    ) -> None:
        self.fd, self.prefix, self.lowers, self.owners = fd, prefix, lowers, owners
        self.complete, self.targets = complete, targets
        self._release = release

    def close(self) -> None:
        """Closes the descriptor: an upper in memory is gone then, and one on disk is removed, but
        not one that was given as Overlay.upper. Does nothing the second time.
        """
        fd, self.fd = self.fd, -1
        release, self._release = self._release, None
        if fd >= 0:
            posix.close(fd)
        if release is not None:
            release()

    def __del__(self, close: Any = posix.close) -> None:
        if self.fd >= 0:
            self.close()
