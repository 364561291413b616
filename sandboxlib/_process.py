# SPDX-License-Identifier: Apache-2.0
"""One run, from the spawn to its end."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from time import monotonic

from . import _native, _plan, _slots, errors
from ._plan import Job, Plan
from ._stubs import Stubs
from .sandbox import CAPTURE, STDOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    from .sandbox import Stream

    Outcome: TypeAlias = tuple[int, bytes | None, bytes | None, bool]

lib = _native.lib

# A signal that another thread took wakes nobody here, so look up from waiting now and then.
_LONGEST_WAIT = 100_000_000
_SIGKILL = 9  # signal(7)
_TARGET: int = lib.SBX_STEP_TARGET
_DONE: int = lib.SBX_PUMP_DONE
_FULL: int = lib.SBX_PUMP_FULL
_ERROR: int = lib.SBX_PUMP_ERROR
_NULL: int = lib.SBX_NULL
_CAPTURED: int = lib.SBX_CAPTURE
_MERGED: int = lib.SBX_STDOUT


def run(
    plan: Plan,
    job: Job,
    stdin: Stream | bytes,
    stdout: Stream,
    stderr: Stream,
    timeout: float | None,
    fresh: bool,
) -> Outcome:
    """Starts the job, moves its output, waits for its end: (exit, out, err, timed out).

    Nothing of the run is left afterwards, however it ends. fresh=False: in a slot, where runs of
    this plan may follow one another in one.
    """
    deadline = None if timeout is None else monotonic() + timeout
    outputs = _output("stdout", stdout), _output("stderr", stderr)
    choose = _run_fresh if fresh else _run
    if isinstance(stdin, (bytes, bytearray, memoryview)):
        with _memory_file(stdin) as fd:
            return choose(plan, job, (fd, *outputs), deadline)
    first = _NULL if stdin is None else _descriptor("stdin", stdin)
    return choose(plan, job, (first, *outputs), deadline)


def _run(plan: Plan, job: Job, stdio: tuple[int, int, int], deadline: float | None) -> Outcome:
    slots = plan.slots
    if slots is None:
        slots = plan.slots = _slots.Slots(plan) if _slots.can_stay(plan) else False
    if slots:
        try:
            return _run_in_slot(slots, plan, job, stdio, deadline)
        except _slots.NoSlot:
            pass  # the same isolation, all of it new; that also tells what is wrong
    return _run_fresh(plan, job, stdio, deadline)


def _run_in_slot(
    slots: _slots.Slots, plan: Plan, job: Job, stdio: tuple[int, int, int], deadline: float | None
) -> Outcome:
    workspace = _native.take_workspace()
    slot = None
    try:
        slot = _start_in_slot(slots, workspace, plan, job, stdio)
        return _finish(workspace, plan, job, stdio, deadline)
    except errors.SetupError as error:
        if error.step in ("source", "target", "mount"):  # the root changed beneath the slots
            slots.close()
            raise _slots.NoSlot from None
        raise
    finally:
        lib.sbx_end(workspace.run)
        if slot is not None:
            slots.give(slot)
        _native.give_back(workspace)


def _start_in_slot(
    slots: _slots.Slots,
    workspace: _native.Workspace,
    plan: Plan,
    job: Job,
    stdio: tuple[int, int, int],
) -> _slots.Slot:
    keep = _native.fill_job(
        workspace, job.blob, job.cwd_size, job.counts, stdio, -1, plan.held(()), -1, -1
    )
    for _ in range(_slots.MOST_IDLE + 2):  # as many may have died since
        workspace.slot = slot = slots.take()
        started = lib.sbx_spawn_in_slot(
            slot.struct, workspace.job, workspace.run, len(job.blob), job.cwd_size
        )
        if started == 0:
            del keep
            return slot
        slots.give(slot)
        if started < 0:
            raise plan.error(*_failure(workspace), job)
        slots.waste(slot)
    raise _slots.NoSlot


def _finish(
    workspace: _native.Workspace,
    plan: Plan,
    job: Job,
    stdio: tuple[int, int, int],
    deadline: float | None,
) -> Outcome:
    timed_out = _pump(workspace, plan, job, deadline)
    out = workspace.out.take() if stdio[1] == _CAPTURED else None
    err = workspace.err.take() if stdio[2] == _CAPTURED else None
    return _exit_status(workspace.run.wait_status), out, err, timed_out


def _run_fresh(
    plan: Plan, job: Job, stdio: tuple[int, int, int], deadline: float | None
) -> Outcome:
    workspace = _native.take_workspace()
    stubs = Stubs(plan.box.root, deadline)
    try:
        _start(workspace, plan, job, stdio, stubs)
        return _finish(workspace, plan, job, stdio, deadline)
    finally:
        # Whatever came, a KeyboardInterrupt too: kill, wait, close. Not interruptible, as it is
        # one call; should another exception get in before it, ffi.gc makes the same call.
        lib.sbx_end(workspace.run)
        stubs.release()
        _native.give_back(workspace)


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


@contextlib.contextmanager
def _memory_file(content: bytes | bytearray | memoryview) -> Iterator[int]:
    """A file in memory, not a pipe: nobody has to feed it while the command runs."""
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        rest = memoryview(content).cast("B")
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


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


# ---- output, status --------------------------------------------------------------------------


def _pump(workspace: _native.Workspace, plan: Plan, job: Job, deadline: float | None) -> bool:
    """Until the run is over; whether the deadline ended it."""
    timed_out = False
    wait = _LONGEST_WAIT
    while True:
        if deadline is not None:
            left = deadline - monotonic()
            if left <= 0:
                lib.sbx_signal(workspace.run, _SIGKILL)
                timed_out, deadline, left = True, None, 1.0
            wait = min(_LONGEST_WAIT, int(left * 1e9))
        result = lib.sbx_pump(workspace.run, wait)
        if result == _DONE:
            return timed_out
        if result == _FULL:
            workspace.out.enlarge()
            workspace.err.enlarge()
        elif result == _ERROR:
            raise plan.error(*_failure(workspace), job)


def _exit_status(wait_status: int) -> int:
    if wait_status == -1:
        raise errors.StatusLost("the command ended, but somebody else took its status")
    return os.waitstatus_to_exitcode(wait_status)
