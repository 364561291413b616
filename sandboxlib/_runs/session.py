# SPDX-License-Identifier: Apache-2.0
"""Sessions: namespaces in which several commands run, one after the other or at once.

A session is a run whose reaper waits for commands (csrc/reaper/session.c). Each command is a run of
its own, with a reaper of its own, in the namespaces of that run.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import errno
import os
from _thread import RLock
from _weakref import ref  # weakref itself takes as long as ten of our modules

from .. import errors
from .._core import native
from .._core.files import Descriptor
from .._core.workspace import end_run, fill_job, fill_limits
from .._spec.command import Command
from .._spec.spec import Spec
from ..result import Result
from .explain import error_of
from .job import Job, job_of
from .plan import Plan
from .run import LAST, Run, _failure
from .running import Running

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from .._cgroups.cgroups import Cgroup

lib = native.lib

_CLOSED = "it was closed"
_REAPER_KILLED = (
    "a process killed the reaper of a command, or the reaper could not end all of it, and nobody"
    " knows which processes belonged to it"
)
_NOT_ENDED = "a command was killed, and its processes did not end in time"
_GONE = "its pid 1 is gone"
_SILENT = "its pid 1 did not answer for 5 s: somebody outside stopped it, or left it no CPU time"
_LATE = "pid 1 of the session had no CPU time, or is stopped; the session goes on, so try again"
#: What sbx_spawn_in_session() reports at step ORDER if pid 1 does not answer.
_NO_ANSWER = (
    errno.EPIPE,
    errno.ECONNRESET,
    errno.EOWNERDEAD,
    errno.EAGAIN,
    errno.EBADF,
)
_SIGKILL = 9
_ORDER: int = lib.SBX_STEP_ORDER
_PIPE: int = lib.SBX_STEP_PIPE
_all: dict[int, ref[OpenSession]] = {}


class _Keeper(Run):
    """The run whose reaper is pid 1 of a session."""

    __slots__ = ()
    reaper = lib.SBX_OF_SESSION


class OpenSession:
    """A session: pid 1 in its namespaces, and how commands are started there.

    plan_of: how the executor makes the Plan of a Sandbox. executor: its name. options: of Command:
    timeout, seconds that the set-up may take, inputs, outputs and changes. Raises the errors of a
    run.

    left: a Result with the outputs and the changes, once the session is over. failure: the
    exception that came in its place.
    """

    left: Result | None = None
    failure: Exception | None = None

    def __init__(
        self,
        box: Spec,
        plan_of: Callable[[Spec], Plan],
        executor: str,
        options: Mapping[str, Any],
    ) -> None:
        self.box = box
        self.executor = executor
        self._plan_of = plan_of
        self._lock = RLock()
        self._over = ""  # why no command can be started any more
        self._plan = _in_session(plan_of(box))
        command = Command("/", stdout=None, stderr=None, **options)
        job = Job([b"/"], "/", [], [])  # of which nothing is executed
        self._run: Run | None = None
        run = _Keeper(plan_of(box), job, command, announce=True)
        try:
            run.start(True)
            struct = run.struct
            self._files = lib.sbx_file_of(struct.status), lib.sbx_file_of(struct.pidfd)
        except BaseException:
            run.end()
            run.release()
            raise
        self._run = run
        _all[id(self)] = ref(self)

    @property
    def isolation(self) -> Mapping[str, str]:
        return self._plan.isolation

    @property
    def pid(self) -> int:
        """The pid of pid 1, as the caller sees it. SessionOver."""
        with self._lock:
            try:
                return native.pid_of(self._struct().pidfd)
            except OSError:
                pass
        raise self.end(_GONE)

    def run_of(self, command: Command, **extras: Any) -> RunInSession:
        """A Run of a Command in this session. UnsupportedError, SessionOver."""
        plan = self._plan
        if command.changes != "drop":
            text = "the session has the changes of all its commands"
            raise errors.SpecError(f"changes={command.changes!r} of a Command: {text}")
        if command.inputs or command.outputs:
            text = "the session has them: box.session(inputs=..., outputs=...)"
            raise errors.UnsupportedError(f"inputs or outputs of a Command in a session: {text}")
        if command.limits is not None:
            _check_limits(command)
            plan = _in_session(self._plan_of(self.box._for(command)), self._plan)
        with self._lock:
            self._struct()
        return RunInSession(self, plan, job_of(command, self.box), command, **extras)

    def control(self) -> Descriptor:
        """A copy of the socket to pid 1, which another thread cannot close. SessionOver."""
        copied = Descriptor()
        with self._lock:
            copied.open_in_root(self._struct().status, "", 0)
        return copied

    def counters(self) -> bytes:
        """The counters of the session's cgroup, for hits_since(); empty if it has none."""
        with self._lock:
            cgroup = self._cgroup()
            return b"" if cgroup is None else cgroup.now()

    def hits_since(self, counters: bytes) -> tuple[str, ...]:
        """The limits of the session that were reached since counters() returned this."""
        with self._lock:
            cgroup = self._cgroup()
            return () if cgroup is None or not counters else tuple(cgroup.hits_since(counters))

    def _cgroup(self) -> Cgroup | None:
        run = self._run
        return None if run is None or run._extras is None else run._extras.cgroup

    def _struct(self) -> Any:
        """The struct sbx_run of pid 1, under the lock. SessionOver."""
        run = self._run
        if run is None or self._over:
            raise errors.SessionOver(self._over or _CLOSED)
        struct = run.struct
        if struct.owner != os.getpid():
            raise errors.SessionOver("it belongs to the process that opened it")
        if (lib.sbx_file_of(struct.status), lib.sbx_file_of(struct.pidfd)) != self._files:
            self.end("its descriptors were closed by the program, or replaced")
            raise errors.SessionOver(self._over)
        return struct

    def end(self, why: str) -> errors.SessionOver:
        """Ends the session, if it is not over: kills pid 1, and with it all of the namespaces.
        Returns the exception for whoever wants to use it.
        """
        with self._lock:
            run, self._run = self._run, None
            self._over = self._over or why
            if run is not None:
                self._close(run)
                self.unkillable = run.unkillable
        return errors.SessionOver(self._over)

    unkillable: errors.Unkillable | None = None

    def _close(self, run: Run) -> None:
        struct = run.struct
        is_ours = struct.owner == os.getpid()
        if is_ours:
            # A host may have closed or replaced the descriptors: they are not ours any more.
            files = lib.sbx_file_of(struct.status), lib.sbx_file_of(struct.pidfd)
            struct.status = struct.status if files[0] == self._files[0] else -1
            struct.pidfd = struct.pidfd if files[1] == self._files[1] else -1
        run.end()
        if is_ours and run._root is not None and run.unkillable is None:
            try:
                left = Result(0, None, None)
                run._root.finish(left, self._over == _CLOSED)
                self.left = left
            except Exception as failure:
                self.failure = failure
        run.release()

    def close(self) -> None:
        """Ends the session. Does nothing the second time."""
        _all.pop(id(self), None)
        self.end(_CLOSED)

    @property
    def is_over(self) -> bool:
        return bool(self._over)

    @property
    def is_ours(self) -> bool:
        """Whether this very process opened the session; False in a fork of it."""
        run = self._run
        return run is not None and run.struct.owner == os.getpid()


class RunInSession(Run):
    """A run of a command in a session."""

    __slots__ = ("counters", "session")
    last = 2 * LAST  # the reaper has to find the processes that it kills

    def __init__(
        self, session: OpenSession, plan: Plan, job: Job, command: Command, **extras: Any
    ) -> None:
        super().__init__(plan, job, command, **extras)
        self.session = session
        self.counters = session.counters()

    def _start_in_slot(self) -> bool:
        self._start_fresh()
        return True

    def _start_fresh(self) -> None:
        """Starts the job in the session, whose namespaces are there already."""
        work, job, session = self._workspace, self._job, self.session
        try:
            control = session.control()
        except OSError as full:  # EMFILE
            raise error_of(self.plan, _PIPE, 0, full.errno or 0, job) from None
        try:
            stubs = native.held_flags(0, ())
            if self._extras is not None:
                fill_limits(work, self.plan.limits_in_slot)
            keep = fill_job(work, job.blob, job.cwd_size, job.counts, self._stdio, -1, stubs, -1)
            started = lib.sbx_spawn_in_session(control.number, work.job, work.run)
            del keep
        finally:
            control.close()
        if started == 0:
            return
        step, index, error = _failure(work)
        if step == _ORDER and error == errno.ETIMEDOUT:
            if self.deadline is None:
                raise session.end(_SILENT)
            # The reaper, once it is there, finds its socket closed, and starts nothing.
            raise errors.setup_error(error, None, "order", "start a command in the session", _LATE)
        if step == _ORDER and error in _NO_ANSWER:
            raise session.end(_GONE)
        raise error_of(self.plan, step, index, error, job)

    def _give_up(self) -> None:
        """Ends the session, and all of the command with it."""
        self.session.end(_NOT_ENDED)
        super()._give_up()

    def end(self) -> None:
        work = self._workspace
        if stuck := end_run(work.run, work):
            self.session.end(_NOT_ENDED)
            self._note(stuck)

    def result(self, executor: str, began: float, isolation: Mapping[str, str]) -> Result:
        """The Result of a run that is over. SessionOver, StatusLost."""
        if self.struct.wait_status == -errno.EOWNERDEAD:
            over = self.session.end(_REAPER_KILLED)
            if not self._timed_out:
                raise over
            self.struct.wait_status = _SIGKILL
        result = super().result(executor, began, isolation)
        result.limits_hit = (*self.session.hits_since(self.counters), *result.limits_hit)
        return result


class RunningInSession(Running):
    """A command in a session that goes on while its caller does something else."""

    is_service = True
    last = 2 * LAST  # as in RunInSession

    def __init__(self, run: RunInSession, executor: str, began: float) -> None:
        self._session, self._counters = run.session, run.counters
        with contextlib.suppress(OSError):  # it has ended by now
            run.struct.pid = native.pid_of(run.struct.pidfd)
        super().__init__(run, executor, began)

    def _make_result(self) -> Result:
        result = super()._make_result()
        result.limits_hit = (*self._session.hits_since(self._counters), *result.limits_hit)
        return result

    def _is_not_ending(self) -> None:
        self._session.end(_NOT_ENDED)

    def exit_status(self) -> int | None:
        """As Result.exit; None as long as the end was not seen. Raises SessionOver, StatusLost,
        Unkillable.
        """
        if self.handle.is_over and self.handle.wait_status == -errno.EOWNERDEAD:
            over = self._session.end(_REAPER_KILLED)
            if not self.handle.killed:
                raise over
            return -_SIGKILL
        return super().exit_status()


def _in_session(plan: Plan, base: Plan | None = None) -> Plan:
    """The plan of commands in a session: the cgroup belongs to the session as a whole. base: the
    plan of the session, if this one may have other limits.
    """
    plan = copy.copy(plan)
    plan.cgroups = plan.limits_in_slot = plan.overlay = None
    if base is not None and (limits := plan.values["limits"]) != base.values["limits"]:
        plan.limits_in_slot = native.new_limits(limits)
    return plan


#: Limits of a session as a whole: those of a cgroup, and one that a reaper would have to share.
_OF_THE_SESSION = (
    *("memory", "swap", "pids", "cpus", "cpu_weight", "io_weight", "cgroup"),
    "oom_score_adj",
)


def _check_limits(command: Command) -> None:
    """UnsupportedError if a Command has limits that belong to its session."""
    names = [name for name in _OF_THE_SESSION if getattr(command.limits, name) not in (None, False)]
    if names:
        raise errors.UnsupportedError(
            f"limits={command.limits!r} of a Command in a session: {names[0]} is a limit of the"
            f" session as a whole, Sandbox(root, limits=Limits({names[0]}=...)).session()"
        )


def _forget_all() -> None:
    """In a fork of the caller: the sessions belong to the parent."""
    for each in [r() for r in list(_all.values())]:
        if each is not None:
            each._lock = RLock()


def close_all() -> None:
    """Ends all sessions at the end of the interpreter."""
    for each in [r() for r in list(_all.values())]:
        if each is not None:
            each.close()


os.register_at_fork(after_in_child=_forget_all)
atexit.register(close_all)
