# SPDX-License-Identifier: Apache-2.0
"""Extras: optional parts of a run, off the fast path: sinks, cgroups, terminals, descriptors."""

from __future__ import annotations

import os
import posix  # its close(): see _core/unpatched.py
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from .. import errors
from .._core import native, workspace
from .._spec import streams
from .._spec.command import Command
from .._spec.limits import Limits
from .._spec.streams import STDOUT, is_capture
from ..result import Result
from . import sinks
from .plan import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._cgroups.cgroups import Cgroup
    from .slots import Slot

lib = native.lib
_SIGKILL, _SIGXCPU, _SIGXFSZ = 9, 24, 25  # signal(7)
_NULL: int = lib.SBX_NULL
_CAPTURED: int = lib.SBX_CAPTURE
_NO_LIMITS = Limits()
SINK = -99  # an output that the core captures for a sink, not for the Result


class Extras:
    """Optional parts of a run, off the fast path: the options of a Command beside its streams and
    its timeout, the sinks, and the cgroup of Limits.

    stdout, stderr: the outputs of the run; start() has replaced CAPTURE. announce: bool, whether
    the start fails if the command does not begin. moved: a mapping, more descriptors for a
    run without a reaper: from their numbers in the command to the caller's. tracer: the socket of a
    trace; 0: there is none.
    """

    def __init__(
        self,
        plan: Plan,
        command: Command,
        stdout: Any,
        stderr: Any,
        announce: bool = False,
        moved: Mapping[int, int] = MappingProxyType({}),
        tracer: int = 0,
    ) -> None:
        self._plan = plan
        self.grace = command.grace
        self._limits = plan.box.limits or _NO_LIMITS
        self._cpu_time = self._limits.cpu_time
        self._kills = command.on_overflow == "kill"
        self._passed_from = (*command.pass_fds, *moved.values())
        self._passed = (*command.pass_fds, *moved)
        if command.inputs or command.outputs:
            _check_staged(command, plan)
        check_passed(command.pass_fds)
        _check_room(self._passed, self._limits)
        self._pty = command.pty
        self._is_apart = command.pty_stderr == "pipe"
        self._numbers = command._job_numbers()
        self._announce = announce
        self._tracer = tracer
        is_merged = stderr == STDOUT or (self._pty and not self._is_apart)
        wanted = [stdout, None if is_merged else stderr]
        self._sinks = [
            sinks.sink_for(value, command.max_output, self._kills)
            if is_capture(value) or streams.is_sink(value)
            else None
            for value in wanted
        ]
        self._has_sinks = any(sink is not None for sink in self._sinks)
        self._overflowed = False
        self._cgroup: Any = None
        self._is_leased = False
        self._terminal: tuple[int, int] | None = None

    def outputs(self, outputs: tuple[int, int]) -> tuple[int, int]:
        """The outputs for the core: it captures those with sinks. A terminal has one output."""
        out, err = (_CAPTURED if output == SINK else output for output in outputs)
        if self._pty:
            return _CAPTURED, err if self._is_apart else _NULL
        return out, err

    @property
    def lets_core_pump(self) -> bool:
        """Whether the core may move the output from the start: no sink, and no terminal of ours."""
        return not self._has_sinks and not self._pty

    @property
    def needs_fresh(self) -> bool:
        """Whether the run needs new namespaces, as a slot cannot pass descriptors, and its reaper
        does not watch the CPU time.
        """
        return bool(self._passed) or self.watches_cpu_time

    @property
    def watches_cpu_time(self) -> bool:
        """Whether cpu_time has a fraction, which the kernel does not count (setrlimit(2))."""
        return isinstance(self._cpu_time, float)

    @property
    def takes_larger_reaper(self) -> bool:
        """Whether the program of the reaper is the one that can do more than start a command."""
        return self.watches_cpu_time or self._tracer != 0

    def prepare(
        self, work: workspace.Workspace, stdio: tuple[int, int, int]
    ) -> tuple[int, int, int]:
        """Prepares the terminal and the outputs before the start. Returns the stdio."""
        for stream, sink in zip((work.out, work.err), self._sinks, strict=True):
            if sink is not None:
                stream.set_eager(sink.eager)
        if isinstance(self._pty, tuple) and self._terminal is None:
            self._terminal = _open_pty(*self._pty)
            slave = self._terminal[1]
            stdio = slave, slave, stdio[2] if self._is_apart else slave
        numbers = {**self._numbers, "announce": int(self._announce), "tracer": self._tracer}
        if self._cpu_time is not None and self._cpu_time < 1 << 31:  # else the place has it
            numbers["cpu_seconds"] = int(-(-self._cpu_time // 1))  # rounded up
        if self._cpu_time is not None and self.watches_cpu_time:
            numbers["cpu_ns"] = int(self._cpu_time * 1e9)
        workspace.fill_extras(work, self._passed, self._passed_from, numbers)
        return stdio

    def enter(self, slot: Slot, work: workspace.Workspace) -> None:
        """The run goes into a slot, whose cgroup counts it, and which may have other limits."""
        self._cgroup, self._is_leased = slot.cgroup, False
        workspace.fill_limits(work, self._plan.limits_in_slot)

    def lease(self, work: workspace.Workspace) -> None:
        """Leases a cgroup for a fresh run. The reaper joins it too: that allows one more pid."""
        self._cgroup = None
        workspace.fill_limits(work, None)
        if (cgroups := self._plan.cgroups) is not None:
            self._cgroup, self._is_leased = cgroups.take(self._plan.cgroup_limits), True
            self._cgroup.begin(int(self._plan.reaper))
            workspace.fill_cgroups(work, self._cgroup.procs, self._cgroup.unified)

    def started(self, struct: Any) -> None:
        """Makes our end of the terminal the output of the run."""
        if struct.stillborn and self._cgroup is not None:
            self._cgroup.unified = 0
        if self._terminal is not None:
            master, slave = self._terminal
            self._terminal = None
            struct.out.fd, struct.out.is_terminal = master, 1
            posix.close(slave)

    def feed(self, work: workspace.Workspace) -> bool:
        """Hands the output so far to the sinks; False if there are none."""
        if not self._has_sinks:
            return False
        for stream, sink in zip((work.out, work.err), self._sinks, strict=True):
            if sink is None:
                stream.enlarge()
                continue
            sink.feed(stream.take_chunk())
            if self._kills and sink.is_over and not self._overflowed:
                self._overflowed = True
                lib.sbx_stop(work.run)
        return True

    def finish(self, out: bytes | None, err: bytes | None) -> tuple[bytes | None, bytes | None]:
        """The outputs for the Result. out, err: the bytes that feed() has not seen."""
        contents = [out, err]
        for index, sink in enumerate(self._sinks):
            if sink is not None:
                sink.feed(contents[index] or b"")
                contents[index] = sink.finish()
        return contents[0], contents[1]

    @property
    def cgroup(self) -> Cgroup | None:
        """The cgroup that the run is in."""
        cgroup: Cgroup | None = self._cgroup
        return cgroup

    def complete(self, result: Result, is_over_cpu_time: bool) -> None:
        """Adds limits_hit, the sizes and the cgroup's report to the Result of a finished run.

        is_over_cpu_time: whether its reaper ended it for that.
        """
        hit = []
        if self._cgroup is not None:
            result._counts = self._cgroup.counts()
            hit += result._counts.hits()
        limits, cpu_time = self._limits, self._cpu_time
        killed = "memory" in hit or result.timed_out or self._overflowed
        if is_over_cpu_time or (
            cpu_time is not None and _ran_out(result, cpu_time, killed or self.watches_cpu_time)
        ):
            hit.append("cpu_time")
        if limits.file_size is not None and result.exit in (-_SIGXFSZ, 128 + _SIGXFSZ):
            hit.append("file_size")
        if any(sink is not None and sink.is_over for sink in self._sinks):
            hit.append("output")
        result.limits_hit = tuple(hit)
        result._sizes = tuple(None if sink is None else sink.size for sink in self._sinks)  # type: ignore[assignment]

    def release(self, is_stuck: bool = False) -> None:
        """Gives back the terminal and the cgroup. is_stuck: a process of the run did not end."""
        if self._terminal is not None:
            for fd in self._terminal:
                posix.close(fd)
            self._terminal = None
        if self._cgroup is not None:
            cgroup, self._cgroup = self._cgroup, None
            if not self._is_leased:
                return  # the slot has it
            if is_stuck:
                cgroup.leave()
            else:
                cgroup.release()


def _ran_out(result: Result, seconds: float, killed: bool) -> bool:
    """Whether a run reached its limit of CPU time: SIGXCPU ended it, also below a shell, or SIGKILL
    a second later.

    killed: whether something else may have killed it, as SIGKILL does not tell who sent it.
    """
    if result.exit in (-_SIGXCPU, 128 + _SIGXCPU):
        return True
    usage = result.usage
    if killed or usage is None or usage.user is None or usage.system is None:
        return False
    if result.exit not in (-_SIGKILL, 128 + _SIGKILL):
        return False
    # For the limit the kernel counts ticks: a process that runs at a tick is charged a whole one.
    # On a busy machine that may be far more than the time that getrusage(2) reports.
    return usage.user + usage.system >= seconds / 2


def _check_staged(command: Command, plan: Plan) -> None:
    """SpecError for inputs and outputs in a root that cannot have them."""
    overlay = plan.box._overlay
    if overlay is None:
        text = "inputs and outputs take a root that is an Overlay or an Image; Overlay(root) is one"
        raise errors.SpecError(text)
    if command.inputs and overlay.upper is not None:
        text = "what an earlier run left in the upper would hide them"
        raise errors.SpecError(f"inputs with Overlay(upper=...): {text}")


def check_passed(passed: Sequence[int]) -> None:
    """SpecError if one of pass_fds is closed."""
    for fd in passed:
        try:
            os.fstat(fd)
        except OSError as error:
            raise errors.SpecError(f"pass_fds has {fd}: {error.strerror}") from None


def _check_room(passed: tuple[int, ...], limits: Limits) -> None:
    """SpecError if a number of pass_fds is beyond open_files, which holds when they are placed."""
    most: int | None = getattr(limits, "open_files", None)
    if passed and most is not None and passed[-1] >= most:
        raise errors.SpecError(f"pass_fds has {passed[-1]}, and open_files is {most}")


def _open_pty(rows: int, columns: int) -> tuple[int, int]:
    """A pseudo-terminal: our end, and the end of the command."""
    try:
        master, slave = os.openpty()
    except OSError as error:
        what = "open a pseudo-terminal of the caller's"
        raise errors.setup_error(error.errno or 0, None, "terminal", what) from error
    try:
        os.set_blocking(master, False)  # a read could block: the command may flush its output
        set_window(slave, rows, columns)
    except BaseException:  # if the descriptors run out, termios cannot be imported
        posix.close(master)
        posix.close(slave)
        raise
    return master, slave


def set_window(terminal: int, rows: int, columns: int) -> None:
    """Tells a terminal its size."""
    import fcntl
    import struct
    import termios

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
