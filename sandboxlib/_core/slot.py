# SPDX-License-Identifier: Apache-2.0
"""A slot of the core, and a watch over what its paths name."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .._sandbox import ffi as ffi
from .._sandbox import lib as lib
from .native import STEPS, init_descriptor, pid_of, unreadable_for
from .workspace import _ending, close_slot, end_run, fill_job, give_back, take_workspace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Slot:
    """A slot, opened for a place (of new_place); its resident does `inside` for each run. OSError
    where the kernel refuses. It closes itself when it is lost.
    """

    def __init__(self, place: Any, held: Any, inside: bytes, setup_ns: int = 0) -> None:
        self._memory, self.struct = _ending("struct sbx_slot *", lib.sbx_close_slot)
        workspace = take_workspace()
        run, stdio = workspace.run, (lib.SBX_NULL,) * 3
        try:
            init = init_descriptor()
            keep = fill_job(workspace, b"/\0", 2, (0, 0, 0, 0), stdio, init, held, -1)
            workspace.job.setup_ns, workspace.job.pump_ns = setup_ns, 0
            words = (place[0], workspace.job, run, workspace.stack, inside, len(inside))
            if (guard := unreadable_for(place[0])) is None:
                result = lib.sbx_open_slot(*words, self.struct)
            else:
                with guard:
                    result = lib.sbx_open_slot(*words, self.struct)
            del keep
            if result != 0:
                raise OSError(run.failure.error, STEPS[run.failure.step])
        finally:
            end_run(run, workspace)
            give_back(workspace)

    @property
    def is_open(self) -> bool:
        return bool(self.struct.owner)

    def close(self) -> int:
        """A pidfd if it does not end, otherwise 0."""
        return close_slot(self.struct)

    @property
    def pid(self) -> int:
        """Of the resident."""
        return pid_of(self.struct.pidfd)


class Watch:
    """What some paths name at the moment, and what the caller has mounted."""

    def __init__(self, paths: Sequence[str]) -> None:
        words = ffi.from_buffer(b"".join(os.fsencode(path) + b"\0" for path in paths))
        self._seen = words, len(paths), ffi.new("uint64_t[]", 3 * len(paths))
        self._memory, self._watch = _ending("struct sbx_watch *", lib.sbx_close_watch)
        lib.sbx_open_watch(*self._seen, self._watch)

    def is_same(self) -> bool:
        """Whether nothing changed since."""
        return bool(lib.sbx_is_watch_same(*self._seen, self._watch))

    def close(self) -> None:
        lib.sbx_close_watch(self._watch)
