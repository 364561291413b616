# SPDX-License-Identifier: Apache-2.0
"""Handle: a run that goes on while its caller does something else."""

from __future__ import annotations

import os

from .._sandbox import lib as lib
from . import native
from .workspace import Workspace, _ending, keep_stuck


class Handle:
    """Takes over the run that was started in a workspace, which is then free for another run.

    Any thread may call any method at any moment, a signal handler too: each is one call into C, and
    no lock outlives the call. A Handle that is garbage ends its run.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._memory, self.struct = _ending("struct sbx_handle *", lib.sbx_end_handle)
        self._outputs = workspace.run.out.fd, workspace.run.err.fd
        self.pid: int = workspace.run.pid
        lib.sbx_hand_over(workspace.run, self.struct)

    def take_outputs(self) -> tuple[int, int]:
        """Returns our ends of the captured outputs, once; -1: it is not captured."""
        outputs, self._outputs = self._outputs, (-1, -1)
        run = self.struct.run
        run.out.fd = run.err.fd = -1
        return outputs

    def wait(self, wait_ns: int) -> bool:
        """Waits for the end of the run, for so many nanoseconds, or until a signal comes. Returns
        whether it is over.
        """
        return bool(lib.sbx_await_handle(self.struct, wait_ns))

    def signal(self, signum: int) -> None:
        """Sends a signal to every process of the run. Does nothing if it is over."""
        lib.sbx_signal_handle(self.struct, signum)

    def pidfd(self) -> int:
        """Returns a new pidfd of the first process. OSError, ProcessLookupError if it is over."""
        fd: int = lib.sbx_pidfd_of_handle(self.struct)
        if fd < 0:
            raise OSError(-fd, os.strerror(-fd))
        return fd

    def end(self) -> int:
        """Kills the run, and waits for its end. Returns a pidfd if it does not end, otherwise 0."""
        lib.sbx_end_handle(self.struct)
        fd: int = lib.sbx_take_stuck(self.struct)
        if fd:
            keep_stuck(fd, self.struct)
        return fd

    @property
    def is_over(self) -> bool:
        """Whether the end of the run was seen. The fields below do not change any more then."""
        return bool(self.struct.is_over)

    @property
    def is_foreign(self) -> bool:
        """Whether this is a fork of the process that started the run."""
        owner: int = self.struct.run.owner
        return owner != os.getpid()

    @property
    def wait_status(self) -> int:
        status: int = self.struct.run.wait_status
        return status

    @property
    def killed(self) -> float:
        """When SIGKILL was sent, by monotonic(); 0.0: it was not."""
        killed: int = self.struct.run.killed
        return killed / 1e9

    @property
    def is_over_cpu_time(self) -> bool:
        """Whether the reaper ended the run because a process of it had used its CPU time."""
        return bool(self.struct.run.over_cpu_time)

    @property
    def was_left_alone(self) -> bool:
        """Whether nobody killed the run."""
        return native.was_left_alone(self.struct.run)

    def usage(self) -> bytes:
        """As native.usage_of() returns it."""
        return native.usage_of(self.struct.run)
