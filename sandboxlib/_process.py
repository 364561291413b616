# SPDX-License-Identifier: Apache-2.0
"""One run, from the spawn to its end."""

from __future__ import annotations

import errno
import os
from _thread import get_ident
from time import monotonic

from . import _native, _plan, _slots, errors
from ._plan import Job, Plan
from ._stubs import Stubs
from .sandbox import CAPTURE, STDOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from threading import Event
    from typing import Any, TypeAlias

    from .sandbox import Stream

    Outcome: TypeAlias = tuple[int, bytes | None, bytes | None, bool]

lib = _native.lib

# A signal that another thread took wakes nobody here, so look up from waiting now and then.
_LONGEST_WAIT = 100_000_000
_SIGKILL = 9  # signal(7)
_TARGET: int = lib.SBX_STEP_TARGET
_OF_THE_ROOT = (lib.SBX_STEP_SOURCE, lib.SBX_STEP_TARGET, lib.SBX_STEP_MOUNT)
_DONE: int = lib.SBX_PUMP_DONE
_FULL: int = lib.SBX_PUMP_FULL
_ERROR: int = lib.SBX_PUMP_ERROR
_NULL: int = lib.SBX_NULL
_CAPTURED: int = lib.SBX_CAPTURE
_MERGED: int = lib.SBX_STDOUT


class Stopped(BaseException):
    """The run of this thread was ended because somebody else wanted it."""


#: By thread: an event that ends the run there, within 100 ms. See _map.py.
stops: dict[int, Event] = {}


def complete(run: Run, fresh: bool) -> Outcome:
    """Starts a run, moves its output, waits for its end: (exit, out, err, timed out).

    Nothing of the run is left afterwards, however it ends.
    """
    try:
        run.start(fresh)
        while not run.follow(lib.sbx_pump(run.struct, run.wait())):
            if stops and (event := stops.get(get_ident())) is not None and event.is_set():
                raise Stopped
        return run.outcome()
    finally:
        # Whatever came, a KeyboardInterrupt too: kill, wait, close. Not interruptible, as it is
        # one call; should another exception get in before it, ffi.gc makes the same call.
        lib.sbx_end(run.struct)
        run.release()


class Run:
    """One run: `start`, then pump its `struct` until `follow` says that it is over, then `outcome`;
    in any case lib.sbx_end and `release`. SpecError for a stdio that is none.
    """

    __slots__ = (
        *("plan", "_job", "_stdio", "deadline", "_timed_out", "_content"),
        *("_workspace", "struct", "_slots", "_slot", "_stubs"),
    )

    def __init__(
        self,
        plan: Plan,
        job: Job,
        stdin: Stream | bytes,
        stdout: Stream,
        stderr: Stream,
        timeout: float | None,
    ) -> None:
        self.plan = plan
        self.deadline = None if timeout is None else monotonic() + timeout
        self._job = job
        self._timed_out = False
        self._slots: _slots.Slots | None = None
        self._slot: _slots.Slot | None = None
        self._stubs: Stubs | None = None
        self._content = -1
        outputs = _output("stdout", stdout), _output("stderr", stderr)
        if isinstance(stdin, (bytes, bytearray, memoryview)):
            first = self._content = _memory_file(stdin)
        else:
            first = _NULL if stdin is None else _descriptor("stdin", stdin)
        self._stdio = (first, *outputs)
        self._workspace = _native.take_workspace()
        self.struct = self._workspace.run

    def start(self, fresh: bool) -> None:
        """Starts the job, or raises why not: a SetupError. fresh=False: in a slot, if it can be."""
        if fresh or not self._start_in_slot():
            self._stubs = Stubs(self.plan.box.root, self.deadline)
            _start(self._workspace, self.plan, self._job, self._stdio, self._stubs)

    def _start_in_slot(self) -> bool:
        """False where there is none: then the same isolation, all of it new, also tells why."""
        plan, job, work = self.plan, self._job, self._workspace
        slots = slots_of(plan)
        if slots is None:
            return False
        keep = _native.fill_job(
            work, job.blob, job.cwd_size, job.counts, self._stdio, -1, plan.held(()), -1, -1
        )
        for _ in range(_slots.MOST_IDLE + 2):  # as many may have died since
            try:
                self._slot = work.slot = slots.take()
            except _slots.NoSlot:
                return False
            self._slots = slots
            started = lib.sbx_spawn_in_slot(
                self._slot.struct, work.job, work.run, len(job.blob), job.cwd_size
            )
            if started == 0:
                del keep
                return True
            slot = self._slot
            self._give_slot()
            if started < 0:
                raise plan.error(*_failure(work), job)
            if slots.is_pointless(slot):
                break
        return False

    def wait(self) -> int:
        """How long to pump before looking up, in ns."""
        if self.deadline is None:
            return _LONGEST_WAIT
        return max(0, min(_LONGEST_WAIT, int((self.deadline - monotonic()) * 1e9)))

    def follow(self, result: int) -> bool:
        """Does what the pump came back for; whether the run is over. SetupError."""
        if result == _DONE:
            return True
        if result == _FULL:
            self._workspace.out.enlarge()
            self._workspace.err.enlarge()
        elif result == _ERROR:
            failure = _failure(self._workspace)
            if self._slots is None or failure[0] not in _OF_THE_ROOT:
                raise self.plan.error(*failure, self._job)
            self._slots.close()  # the root changed beneath the slots
            lib.sbx_end(self.struct)
            self._give_slot()
            self.start(True)
        if self.deadline is not None and monotonic() >= self.deadline:
            lib.sbx_signal(self.struct, _SIGKILL)
            self._timed_out, self.deadline = True, None
        return False

    def outcome(self) -> Outcome:
        """Of a run that is over. StatusLost."""
        out = self._workspace.out.take() if self._stdio[1] == _CAPTURED else None
        err = self._workspace.err.take() if self._stdio[2] == _CAPTURED else None
        return _exit_status(self.struct.wait_status), out, err, self._timed_out

    def release(self) -> None:
        """Gives back what it used. It was ended by lib.sbx_end."""
        if self._content >= 0:
            os.close(self._content)
        self._give_slot()
        if self._stubs is not None:
            self._stubs.release()
        _native.give_back(self._workspace)

    def _give_slot(self) -> None:
        if self._slots is not None and self._slot is not None:
            slots, slot, self._slots, self._slot = self._slots, self._slot, None, None
            slots.give(slot)


def slots_of(plan: Plan) -> _slots.Slots | None:
    """Those that runs of a plan follow one another in; None where they may not."""
    slots: _slots.Slots | bool | None = plan.slots
    if slots is None:
        slots = plan.slots = _slots.Slots(plan) if _slots.can_stay(plan) else False
    return slots or None  # type: ignore[return-value]


# ---- descriptors -----------------------------------------------------------------------------


def _descriptor(name: str, value: Any) -> int:
    if isinstance(value, bool) or not (isinstance(value, int) or hasattr(value, "fileno")):
        raise errors.SpecTypeError(f"{name} is neither a file nor a descriptor: {value!r}")
    try:
        fd = value if isinstance(value, int) else value.fileno()
    except (OSError, ValueError) as error:
        raise errors.SpecError(f"{name} has no descriptor: {error}") from None
    if not 0 <= fd < 1 << 31:
        raise errors.SpecError(f"{name} is {fd}, which is no descriptor")
    return int(fd)


def _output(name: str, value: Stream) -> int:
    if value is None:
        return _NULL
    if type(value) is int and value == CAPTURE:
        return _CAPTURED
    if type(value) is int and value == STDOUT and name == "stderr":
        return _MERGED
    return _descriptor(name, value)


def _memory_file(content: bytes | bytearray | memoryview) -> int:
    """A file in memory, not a pipe: nobody has to feed it while the command runs."""
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        rest = memoryview(content).cast("B")
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


# ---- start -----------------------------------------------------------------------------------


def _start(
    workspace: _native.Workspace,
    plan: Plan,
    job: Job,
    stdio: tuple[int, int, int],
    stubs: Stubs,
) -> None:
    """Starts the job, or raises why not: a SetupError.

    Mount points that the root lacks are made on the way. Whether there are any is found by doing:
    a run that needs none never looks.
    """
    for index in plan.stubs:
        _hold(stubs, plan, index)
    held = plan.stubs
    while _spawn(workspace, plan, job, stdio, plan.held(held)) != 0:
        step, index, error = _failure(workspace)
        missing = step == _TARGET and error in (errno.ENOENT, errno.ESTALE)
        if not missing or index in held or not plan.mounts[index].in_root:
            raise plan.error(step, index, error, job)
        _hold(stubs, plan, index)
        held = (*held, index)
    plan.stubs = held


def _spawn(
    workspace: _native.Workspace,
    plan: Plan,
    job: Job,
    stdio: tuple[int, int, int],
    held: Any,
    mapper: int = -1,
) -> int:
    if plan.mapped_outside and mapper < 0:
        from ._mapper import Mapper

        with Mapper(workspace) as fd:
            return _spawn(workspace, plan, job, stdio, held, fd)
    init = _native.init_descriptor() if plan.reaper else -1
    keep = _native.fill_job(
        workspace, job.blob, job.cwd_size, job.counts, stdio, init, held, job.passed, mapper
    )
    result: int = lib.sbx_spawn(plan.place, workspace.job, workspace.run, workspace.stack)
    del keep
    return result


def _hold(stubs: Stubs, plan: Plan, index: int) -> None:
    mount = plan.mounts[index]
    try:
        stubs.hold(mount.target, mount.is_directory())
    except OSError as error:
        what, number = f"{mount.words}: make the mount point", error.errno or 0
        hint = _plan.hint("target", index, number)
        raise errors.setup_error(number, mount.target, "target", what, hint) from error


def _failure(workspace: _native.Workspace) -> tuple[int, int, int]:
    failure = workspace.run.failure
    return failure.step, failure.index, failure.error


# ---- status ----------------------------------------------------------------------------------


def _exit_status(wait_status: int) -> int:
    if wait_status == -1:
        raise errors.StatusLost("the command ended, but somebody else took its status")
    return os.waitstatus_to_exitcode(wait_status)
