# SPDX-License-Identifier: Apache-2.0
"""Slot opens a slot of the core; Watch notices that its paths name other files by now."""

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


class OpenSlot:
    """An open slot: a resident in namespaces that serve one run after the other.

    place: what new_place() returns, for the resident. stubs: what held_flags() returns.
    run_place: what pack_place() returns; the resident sets this up anew for every run. cgroups:
    what the process of each command writes to, to join. setup_ns: the time limit of the set-up in
    nanoseconds, 0 for none. reaper: of enum sbx_program. Raises OSError if the kernel refuses. A
    Slot that is garbage closes itself.
    """

    def __init__(
        self,
        place: Any,
        stubs: Any,
        run_place: bytes,
        cgroups: Sequence[int] = (),
        setup_ns: int = 0,
        reaper: int = lib.SBX_OF_RUN,
    ) -> None:
        self._memory, self.struct = _ending("struct sbx_slot *", lib.sbx_close_slot)
        workspace = take_workspace()
        run, stdio = workspace.run, (lib.SBX_NULL,) * 3
        try:
            init = init_descriptor(reaper)
            keep = fill_job(workspace, b"/\0", 2, (0, 0, 0, 0), stdio, init, stubs, -1)
            workspace.job.setup_ns, workspace.job.pump_ns = setup_ns, 0
            joined = ffi.new("int[]", cgroups)
            self.struct.cgroups, self.struct.n_cgroups = joined, len(cgroups)
            args = (place[0], workspace.job, run, workspace.stack, run_place, len(run_place))
            if (guard := unreadable_for(place[0])) is None:
                result = lib.sbx_open_slot(*args, self.struct)
            else:
                with guard:
                    result = lib.sbx_open_slot(*args, self.struct)
            del keep, joined
            if result != 0:
                raise OSError(run.failure.error, STEPS[run.failure.step])
        finally:
            end_run(run, workspace)
            give_back(workspace)

    @property
    def is_open(self) -> bool:
        return bool(self.struct.owner)

    def close(self) -> int:
        """Close the slot. Returns a pidfd of the resident if it does not end, otherwise 0."""
        return close_slot(self.struct)

    @property
    def pid(self) -> int:
        """The pid of the resident."""
        return pid_of(self.struct.pidfd)


class Watch:
    """Remembers which files some paths name, and what the caller has mounted."""

    def __init__(self, paths: Sequence[str]) -> None:
        strings = ffi.from_buffer(b"".join(os.fsencode(path) + b"\0" for path in paths))
        self._files = strings, len(paths), ffi.new("uint64_t[]", 3 * len(paths))
        self._memory, self._watch = _ending("struct sbx_watch *", lib.sbx_close_watch)
        lib.sbx_open_watch(*self._files, self._watch)

    def is_same(self) -> bool:
        """Return True if nothing changed since the Watch was made."""
        return bool(lib.sbx_is_watch_same(*self._files, self._watch))

    def close(self) -> None:
        lib.sbx_close_watch(self._watch)
