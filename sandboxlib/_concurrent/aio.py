# SPDX-License-Identifier: Apache-2.0
"""Runs in an event loop: see Sandbox.run_async.

Each run has an epoll descriptor on which the loop waits; then sbx_pump() moves the data, as in any
other run. No thread is needed.
"""

from __future__ import annotations

import select
from time import monotonic

from .._core import native, unpatched
from .._runs.run import Run
from .._runs.session import OpenSession
from .._spec.command import Command
from .._spec.spec import Spec
from ..result import Result
from . import loops, native_run

lib = native.lib
_LONGEST_WAIT = 1.0  # seconds
_PAUSE = 0.02  # seconds between two looks at the lock of an upper


class _Watch:
    """An epoll(7) descriptor that becomes readable when a run has something for sbx_pump()."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._epoll: select.epoll | None = None
        self._watched: list[int] = []

    def fileno(self) -> int:
        struct = self._run.struct
        pidfd, control = struct.pidfd, -1
        if struct.slot:
            pidfd, control = struct.slot.pidfd, struct.slot.control
        fds = [pidfd, control, struct.out.fd, struct.err.fd]
        # A descriptor that was closed has left the epoll. A new one means that the run was started
        # a second time, fresh, because its slot failed: then all of them are new.
        if self._epoll is None or any(f not in self._watched for f in fds if f >= 0):
            self.close()
            self._epoll = unpatched.epoll()
            for fd in fds:
                if fd >= 0:
                    self._epoll.register(fd, select.EPOLLIN)
            self._watched = fds
        return self._epoll.fileno()

    def close(self) -> None:
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None


async def run(box: Spec | OpenSession, command: Command, fresh: bool) -> Result:
    """Run a Command in the caller's event loop; see Sandbox.run_async and Session.run_async."""
    began = monotonic()
    loops.is_trio()  # raises RuntimeError before anything runs
    run, name = native_run.make(box, command)
    watch = _Watch(run)
    try:
        if not run.may_start():
            await _turn(run)
        run.start(fresh)
        while not run.follow(lib.sbx_pump(run.struct, 0)):
            await loops.ready(watch.fileno(), _patience(run))
        return run.result(name, began, run.plan.isolation)
    finally:  # after a cancellation too: kill the run, wait for its end, close its descriptors
        watch.close()
        run.end()
        run.release()


async def _turn(run: Run) -> None:
    """Waits until a run may start. The run that it waits for may be one of the same loop."""
    nothing = unpatched.epoll()
    try:
        while not run.may_start():
            await loops.ready(nothing.fileno(), _PAUSE)
    finally:
        nothing.close()


def _patience(run: Run) -> float:
    """Seconds until the next look at a run: a process that hangs in its exit makes no descriptor
    readable, so the wait has to end by itself.
    """
    return max(0.0, min(_LONGEST_WAIT, run.due() - monotonic()))
