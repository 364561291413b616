# SPDX-License-Identifier: Apache-2.0
"""Run: one run of a command, from the spawn to its end."""

from __future__ import annotations

import contextlib
import errno
import os
from _thread import _local
from time import monotonic

from .. import errors
from .._core import native
from .._core.workspace import Workspace, end_run, fill_job, give_back, take_workspace
from .._host import machine
from .._spec import streams
from .._spec.command import Command
from .._spec.streams import CAPTURE, STDOUT, is_capture
from .._values import check_descriptor
from ..result import Result
from . import explain
from .explain import error_of
from .extras import SINK, Extras
from .job import Job
from .mount_points import LEAST_SETUP, Silent, Stubs
from .overlay import RootOfRun
from .plan import Plan
from .slots import MOST_IDLE, NoSlot, Slot, Slots, can_stay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from threading import Event
    from typing import Any

    from .._core.handle import Handle

lib = native.lib

# Nanoseconds. The kernel may deliver a signal to another thread, which does not wake this one, so
# waiting stops now and then to let Python handle it.
LONGEST_WAIT = 100_000_000
_SIGTERM = 15  # signal(7)
_TARGET: int = lib.SBX_STEP_TARGET
_OF_THE_ROOT = (
    *(lib.SBX_STEP_SOURCE, lib.SBX_STEP_TARGET, lib.SBX_STEP_MOUNT),
    *(lib.SBX_STEP_UPPER, lib.SBX_STEP_LAYER, lib.SBX_STEP_OVERLAY),
)
_ORDER: int = lib.SBX_STEP_ORDER
_KILL: int = lib.SBX_STEP_KILL
#: Seconds that the kernel has to end processes that were killed.
LAST: float = lib.SBX_LAST_MS / 1000
_NEVER = float("inf")
_DONE: int = lib.SBX_PUMP_DONE
_FULL: int = lib.SBX_PUMP_FULL
_ERROR: int = lib.SBX_PUMP_ERROR
_NULL: int = lib.SBX_NULL
_OF_RUN: int = lib.SBX_OF_RUN
_CAPTURED: int = lib.SBX_CAPTURE
_MERGED: int = lib.SBX_STDOUT


class Stopped(BaseException):
    """Another thread asked to end the run of this thread; see this_thread."""


class _ThisThread(_local):
    """Attributes of which each thread has its own.

    stop: an event that ends the run of this thread within 100 ms once it is set, or None. A map
    puts one here for each of its worker threads (_concurrent/map.py).
    """

    stop: Event | None = None


this_thread = _ThisThread()


def check_stop() -> None:
    """Raises Stopped if another thread asked to end the run of this thread."""
    if (stop := this_thread.stop) is not None and stop.is_set():
        raise Stopped


def complete(
    run: Run,
    fresh: bool,
    executor: str,
    began: float,
    isolation: Mapping[str, str],
    started: Callable[[Run], None] | None = None,
) -> Result:
    """Starts a run, moves its output, and waits for its end. Nothing of the run is left afterwards,
    however it ends.

    began: when the call began, by monotonic(). started: called once the run has started, before any
    of its output is moved.
    """
    try:
        came = run.start(fresh, pump=started is None)
        if started is not None:
            started(run)
        while not run.follow(came):
            if (stop := this_thread.stop) is not None and stop.is_set():
                raise Stopped
            came = lib.sbx_pump(run.struct, run.wait())
        return run.result(executor, began, isolation)
    finally:
        # Kill, wait and close after every exception, KeyboardInterrupt too. No exception can
        # interrupt this, as it is one call; if one comes before it, ffi.gc makes the same call.
        run.end()
        run.release()


class Run:
    """One run: call `start`, then pump its `struct` until `follow` returns True, then `result`; in
    any case `end` and `release`. SpecError for a stdio that is wrong.

    job: the program to execute: the Command's own, or one that runs it. stdio: replaces the streams
    of the Command. extras: the keyword arguments of Extras.
    """

    __slots__ = (
        *("plan", "_job", "_stdio", "_captures", "deadline", "_timed_out", "_content", "_extras"),
        "command",
        *("_workspace", "_slots", "_slot", "_stubs", "_root", "unkillable"),
    )

    reaper = lib.SBX_OF_RUN  # of enum sbx_program
    last = LAST  # seconds from SIGKILL to the end of the run

    def __init__(
        self,
        plan: Plan,
        job: Job,
        command: Command,
        stdio: tuple[Any, Any, Any] | None = None,
        **extras: Any,
    ) -> None:
        timeout = command.timeout
        self.plan = plan
        self.deadline = None if timeout is None else monotonic() + timeout
        self._job, self.command = job, command
        stdin, stdout, stderr = stdio or (command.stdin, command.stdout, command.stderr)
        self._timed_out = False
        self._slots: Slots | None = None
        self._slot: Slot | None = None
        self._stubs: Stubs | None = None
        self._extras: Extras | None = None
        self._root = None if plan.overlay is None else RootOfRun(plan.overlay, command)
        self.unkillable: errors.Unkillable | None = None
        self._content = -1
        if stdout is CAPTURE and stderr is CAPTURE:  # most Commands: the shortest way
            outputs = _CAPTURED, _CAPTURED
        else:
            outputs = _output("stdout", stdout), _output("stderr", stderr)
        if extras or plan.is_limited or SINK in outputs or not command._is_plain:
            self._extras = Extras(plan, command, stdout, stderr, **extras)
            outputs = self._extras.outputs(outputs)
        stdin_fd = _NULL
        if isinstance(stdin, bytes):
            stdin_fd = self._content = memory_file("stdin", stdin)
        elif is_capture(stdin):
            raise errors.SpecError("stdin=CAPTURE takes start(): only a Process can write to it")
        elif stdin is not None:
            stdin_fd = check_descriptor("stdin", stdin)
        self._stdio = (stdin_fd, *outputs)
        self._captures = outputs[0] == _CAPTURED, outputs[1] == _CAPTURED
        self._workspace = take_workspace()

    @property
    def struct(self) -> Any:
        """The struct sbx_run. Only the workspace refers to it, and frees it before the slot that it
        points to. Freeing the struct ends a run that is still going on.
        """
        return self._workspace.run

    def may_start(self) -> bool:
        """Whether start() need not wait for another run that uses the same upper; after the timeout
        it does not wait either.
        """
        is_late = self.deadline is not None and monotonic() >= self.deadline
        return self._root is None or is_late or self._root.is_free()

    def start(self, fresh: bool, pump: bool = False) -> int:
        """Starts the job, in a slot if fresh is False and there can be one. SetupError if a step
        fails.

        pump: bool. True: the core also moves the output, as long as it needs no Python. Returns the
        argument for follow().
        """
        extras = self._extras
        is_plain = pump and (extras is None or extras.lets_core_pump)
        is_plain = is_plain and not self.plan.mapped_outside
        is_plain = is_plain and (self._root is None or not self._root.notes_process)
        pump_ns = setup_ns = 0
        if is_plain:  # do not read the struct: it still is that of the run before
            pump_ns = LONGEST_WAIT if self.deadline is None else self._wait_until(self.deadline)
        if self.deadline is not None:
            setup_ns = int(self._setup_time() * 1e9)
        job = self._workspace.job
        job.pump_ns, job.setup_ns = pump_ns, setup_ns
        if self._extras is not None:
            self._stdio = self._extras.prepare(self._workspace, self._stdio)
            fresh = fresh or self._extras.needs_fresh
        if self._root is not None:
            self._root.prepare(self._workspace, self.deadline, check_stop)
        if fresh or not self._start_in_slot():
            if self._extras is not None:
                self._extras.lease(self._workspace)
            self._start_fresh()
        if self._root is not None:
            self._root.started(self.struct.pid)
        if self._extras is not None:
            self._extras.started(self.struct)
        came: int = self.struct.first
        return came

    def _start_in_slot(self) -> bool:
        """False if no slot can be had. The caller then makes a fresh run; if that fails too, its
        SetupError says why.
        """
        plan, job, work = self.plan, self._job, self._workspace
        in_time = self.deadline is not None
        is_late = self._root is not None and bool(self._root.inputs)
        slots = slots_of(plan, in_time, is_late)
        if slots is None:
            return False
        keep = fill_job(
            work, job.blob, job.cwd_size, job.counts, self._stdio, -1, plan.stub_flags(()), -1
        )
        for _ in range(MOST_IDLE + 2):  # all idle slots may have died since
            try:
                setup = self._setup_time() if in_time else None
                self._slot = work.slot = slots.take(setup, plan.cgroup_limits)
            except NoSlot:
                return False
            self._slots = slots
            if self._extras is not None:
                self._extras.enter(self._slot, work)
            started = lib.sbx_spawn_in_slot(self._slot.struct, work.job, work.run)
            if started == 0:
                del keep
                return True
            slot = self._slot
            self._give_slot()
            if started < 0:
                raise error_of(plan, *_failure(work), job)
            if slots.is_pointless(slot):
                break
        return False

    def _start_fresh(self) -> None:
        """Starts the job in new namespaces, and makes mount points that the root lacks.

        It tries without looking for them: only a start that fails at one makes it, and tries again.
        """
        plan, work = self.plan, self._workspace
        for index in plan.stubs:
            self._hold(index)
        stubs = plan.stubs
        if self.deadline is not None:
            self._check_oom_score()
            work.job.setup_ns = int(self._setup_time() * 1e9)
        options = work, plan, self._job, self._stdio
        reaper = self.reaper
        if reaper == _OF_RUN and self._extras is not None and self._extras.takes_larger_reaper:
            reaper = lib.SBX_OF_CPU_TIME
        while _spawn(*options, plan.stub_flags(stubs), reaper) != 0:
            step, index, error = _failure(work)
            missing = step == _TARGET and error in (errno.ENOENT, errno.ESTALE)
            if not missing or index in stubs or not self._may_be_stub(index, error):
                raise error_of(plan, step, index, error, self._job)
            self._hold(index)
            stubs = (*stubs, index, *self._hold_missing(index + 1))
        plan.stubs = stubs

    def _check_oom_score(self) -> None:
        """UnsupportedError for oom_score_adj on a file system that may hang: with it the calling
        thread waits until the exec of the command, and could not keep the timeout.
        """
        limits = self.plan.box.limits
        if limits is None or limits.oom_score_adj is None:
            return
        if self.plan.may_hang():
            raise errors.UnsupportedError(
                "Limits.oom_score_adj with a timeout: the root or a source of a mount lies on a"
                " file system that may not answer, and then the timeout could not be kept"
            )

    def _hold_missing(self, first: int) -> list[int]:
        """Makes all missing mount points from the mount `first` on: each would take one more start.
        One that cannot be made is left out: the core knows the mounts before it, and reports it.
        """
        mounts, made = self.plan.mounts, []
        assert self._stubs is not None
        for index in range(first, len(mounts)):
            if mounts[index].needs_stub(self._stubs):
                with contextlib.suppress(errors.SetupError):
                    self._hold(index)
                    made.append(index)
        return made

    def _may_be_stub(self, index: int, error: int) -> bool:
        """Whether the mount point of a mount is to be a stub, as the core did not find it (ENOENT),
        or to be held, as it is the stub of another run (ESTALE).
        """
        mount = self.plan.mounts[index]
        if error == errno.ESTALE and mount.is_on_entry:
            return True
        if not mount.made_above:
            return mount.in_root
        return mount.needs_stub(self._all_stubs())

    def _all_stubs(self) -> Stubs:
        if self._stubs is None:
            self._stubs = Stubs(self.plan.box._directory, self.deadline, self.plan.may_hang())
        return self._stubs

    def _setup_time(self) -> float:
        """Seconds that the set-up may take; 0 means no limit."""
        return 0.0 if self.deadline is None else max(LEAST_SETUP, self.deadline - monotonic())

    def _hold(self, index: int) -> None:
        mount = self.plan.mounts[index]
        stubs = self._all_stubs()
        try:
            if mount.source:
                stubs.check("/", mount.source)
            stubs.hold(mount.target, mount.is_directory())
        except OSError as error:
            what, number = f"{mount.title}: make the mount point", error.errno or 0
            hint = explain.SILENT
            if not isinstance(error, Silent):
                plan = self.plan
                hint = explain.hint_of_stub(number, plan.box, mount.target, plan.mounts)
            raise errors.setup_error(number, mount.target, "target", what, hint) from error

    def wait(self) -> int:
        """How long the next pump may take, in ns."""
        if self.deadline is None and not self.struct.killed:
            return LONGEST_WAIT
        return self._wait_until(self.due())

    @staticmethod
    def _wait_until(due: float) -> int:
        return max(0, min(LONGEST_WAIT, int((due - monotonic()) * 1e9)))

    def due(self) -> float:
        """When the run next needs attention, even if no event comes; by monotonic()."""
        killed: int = self.struct.killed
        late = (killed / 1e9 + self.last) if killed else _NEVER
        return late if self.deadline is None else min(late, self.deadline)

    def follow(self, result: int) -> bool:
        """Handles what sbx_pump returned. True once the run is over. SetupError, Unkillable."""
        if result == _DONE:
            return True
        if (killed := self.struct.killed) and monotonic() >= killed / 1e9 + self.last:
            self._give_up()
        if result == _FULL:
            if self._extras is None or not self._extras.feed(self._workspace):
                self._workspace.out.enlarge()
                self._workspace.err.enlarge()
        elif result == _ERROR:
            failure = _failure(self._workspace)
            if failure[0] == _KILL:
                self._give_up()
            if self._slots is None or failure[0] not in (*_OF_THE_ROOT, _ORDER):
                raise error_of(self.plan, *failure, self._job)
            if failure[0] != _ORDER:  # at ORDER only a process in the slot was killed
                self._slots.close()  # the root has changed, so no slot is right any more
            self.end()
            self._give_slot()
            self.start(True)
        if self.deadline is not None and monotonic() >= self.deadline:
            self._be_late()
        return False

    def _give_up(self) -> None:
        """Raises Unkillable for a run that did not end LAST seconds after SIGKILL, unless it has
        ended by now.
        """
        slot = self._slot
        self.end()
        if self.unkillable is None and slot is not None:
            self._note(slot.close())
        if self.unkillable is not None:
            raise self.unkillable
        self.struct.failure.step = 0

    def end(self) -> None:
        """Kills the processes that are left, waits for their end up to LAST seconds, and closes all
        descriptors. If one does not end, `unkillable` becomes the exception that says so.
        """
        work = self._workspace
        if stuck := end_run(work.run, work):
            self._note(stuck)

    def _note(self, stuck: int) -> None:
        if stuck:
            try:
                pid = native.pid_of(stuck)
            except OSError:  # it has ended by now
                return
            self.unkillable = errors.Unkillable(*machine.what_waits(pid))

    def _be_late(self) -> None:
        grace = 0.0
        if self._extras is not None and not self._timed_out:
            grace = self._extras.grace
        if grace:
            lib.sbx_signal(self.struct, _SIGTERM)
        else:
            lib.sbx_stop(self.struct)
        self._timed_out = True
        self.deadline = monotonic() + grace if grace else None

    def result(self, executor: str, began: float, isolation: Mapping[str, str]) -> Result:
        """The Result of a run that is over. began: of the call, by monotonic(). StatusLost."""
        work, struct, extras = self._workspace, self.struct, self._extras
        captures = self._captures
        out = work.out.take() if captures[0] else None
        err = work.err.take() if captures[1] else None
        if extras is not None:
            out, err = extras.finish(out, err)
        exit = exit_status(struct.wait_status)
        result = Result(exit, out, err, self._timed_out, 0.0, executor, isolation)
        result.command = self.command
        result._rusage = native.usage_of(struct)
        if extras is not None:
            extras.complete(result, bool(struct.over_cpu_time))
        if self._root is not None:
            self._root.finish(result, native.was_left_alone(struct))
        result.began, result.wall = began, monotonic() - began
        return result

    def hand_over(self) -> tuple[Handle, Extras | None, Stubs | None, RootOfRun | None]:
        """Gives away a fresh run that has started, with what lasts as long as it does: whoever
        takes it has to end and release them. release() then gives back the rest.
        """
        from .._core.handle import Handle

        handle = Handle(self._workspace)
        extras, stubs, self._extras, self._stubs = self._extras, self._stubs, None, None
        root, self._root = self._root, None
        return handle, extras, stubs, root

    def release(self) -> None:
        """Gives back the workspace, the slot and the mount points, after end()."""
        if self._content >= 0:
            os.close(self._content)
        self._give_slot()
        if self._stubs is not None:
            self._stubs.release()
        if self._extras is not None:
            self._extras.release(self.unkillable is not None)
        if self._root is not None:
            self._root.release()
        give_back(self._workspace)

    def _give_slot(self) -> None:
        if self._slots is not None and self._slot is not None:
            slots, slot, self._slots, self._slot = self._slots, self._slot, None, None
            slots.give(slot)


def prepare(plan: Plan) -> None:
    """Opens a slot for the first run of a plan, if there can be one."""
    if (slots := slots_of(plan, in_time=True)) is not None:
        with contextlib.suppress(NoSlot):
            slots.give(slots.take(LEAST_SETUP, plan.cgroup_limits))


def slots_of(plan: Plan, in_time: bool = False, is_late: bool = False) -> Slots | None:
    """The slots for runs of a plan; None if its runs must not use slots.

    in_time: bool. True: None also if finding that out could take for ever. is_late: for runs whose
    inputs are known with the order only.
    """
    slots: Slots | None = plan.late_slots if is_late else plan.slots
    if slots is None and not plan.is_without_slots:
        if in_time and plan.may_hang():
            return None
        if can_stay(plan):
            slots = Slots(plan.base or plan, plan.cgroups, is_late)
            if is_late:
                plan.late_slots = slots
            else:
                plan.slots = slots
        else:
            plan.is_without_slots = True
    return slots


# ---- descriptors -----------------------------------------------------------------------------


def _output(name: str, value: Any) -> int:
    if value is None:
        return _NULL
    if is_capture(value):
        return _CAPTURED
    if type(value) is int and value == STDOUT and name == "stderr":
        return _MERGED
    return SINK if streams.is_sink(value) else check_descriptor(name, value)


def memory_file(name: str, content: bytes, flags: int = 0) -> int:
    """A memfd with the content. Unlike a pipe it needs no writer while the command runs. name: what
    it is, for people. flags: more of memfd_create(2). SetupError.
    """
    fd = -1
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | flags)
        unwritten = memoryview(content)
        while unwritten:
            unwritten = unwritten[os.write(fd, unwritten) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException as error:
        if fd >= 0:
            os.close(fd)
        if not isinstance(error, OSError):
            raise
        number = error.errno or 0
        what = f"keep {name}, {len(content)} bytes, in a file in memory"
        hint = explain.hint("stdio", 0, number)
        raise errors.setup_error(number, None, "stdio", what, hint) from None
    return fd


# ---- start -----------------------------------------------------------------------------------


def _spawn(
    workspace: Workspace,
    plan: Plan,
    job: Job,
    stdio: tuple[int, int, int],
    stub_flags: Any,
    reaper: int,
    mapper: int = -1,
) -> int:
    if plan.mapped_outside and mapper < 0:
        from .id_maps import Mapper

        with Mapper(workspace) as fd:
            return _spawn(workspace, plan, job, stdio, stub_flags, reaper, fd)
    init = native.init_descriptor(reaper) if plan.reaper else -1
    keep = fill_job(workspace, job.blob, job.cwd_size, job.counts, stdio, init, stub_flags, mapper)
    args = (plan.place, workspace.job, workspace.run, workspace.stack)
    if (guard := native.unreadable_for(plan.place)) is None:
        result: int = lib.sbx_spawn(*args)
    else:
        workspace.job.pump_ns = 0
        with guard:
            result = lib.sbx_spawn(*args)
    del keep
    return result


def _failure(workspace: Workspace) -> tuple[int, int, int]:
    failure = workspace.run.failure
    return failure.step, failure.index, failure.error


# ---- status ----------------------------------------------------------------------------------


def exit_status(wait_status: int) -> int:
    if wait_status == -errno.ECHILD:
        raise errors.StatusLost(
            "the command ended, but another waiter in this process took its status"
        )
    if wait_status == -errno.EPROTO:
        raise errors.StatusLost(
            "a process outside of the sandbox broke the slot of the run, which was ended"
        )
    if wait_status < 0:
        reason = f"{os.strerror(-wait_status)} ({errno.errorcode.get(-wait_status, -wait_status)})"
        raise errors.StatusLost(f"the run was ended, as we cannot wait for its command: {reason}")
    return os.waitstatus_to_exitcode(wait_status)
