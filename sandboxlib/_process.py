# SPDX-License-Identifier: Apache-2.0
"""One run, from the spawn to its end."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Iterator
from time import monotonic
from typing import Any

from . import _native, errors
from ._plan import Job, Plan
from ._stubs import Stubs
from .sandbox import CAPTURE, STDOUT, Stream

lib = _native.lib

# A signal that another thread took wakes nobody here, so look up from waiting now and then.
_LONGEST_WAIT = 100_000_000
_TARGET = lib.SBX_STEP_TARGET
_NULL, _CAPTURED, _MERGED = lib.SBX_NULL, lib.SBX_CAPTURE, lib.SBX_STDOUT


class Outcome:
    """What a run came to: an exit status and bytes."""

    def __init__(self, exit: int, out: bytes | None, err: bytes | None, timed_out: bool) -> None:
        self.exit, self.out, self.err, self.timed_out = exit, out, err, timed_out


def run(
    plan: Plan,
    job: Job,
    stdin: Stream | bytes,
    stdout: Stream,
    stderr: Stream,
    timeout: float | None,
) -> Outcome:
    """Starts the job, moves its output, waits for its end. Nothing of it is left afterwards."""
    deadline = None if timeout is None else monotonic() + timeout
    outs = (_output("stdout", stdout), _output("stderr", stderr))
    with contextlib.ExitStack() as stack:
        fds = (_input(stdin, stack), *outs)
        workspace = _native.take_workspace()
        try:
            if plan.mounts:
                stack.enter_context(_spawned_on_stubs(workspace, plan, job, fds))
            else:
                _spawn(workspace, plan, job, fds, ())
            streams = _Streams(workspace)
            timed_out = _pump(workspace, plan, job, streams, deadline)
            outcome = Outcome(
                _exit_status(workspace.run.wait_status),
                streams.out() if outs[0] == _CAPTURED else None,
                streams.err() if outs[1] == _CAPTURED else None,
                timed_out,
            )
        finally:
            # Whatever came, a KeyboardInterrupt too: kill, wait, close. Not interruptible, as it
            # is one call; should another exception get in before it, ffi.gc makes the same call.
            lib.sbx_end(workspace.run)
            _native.give_back(workspace)
    return outcome


# ---- descriptors -----------------------------------------------------------------------------


def _descriptor(name: str, value: Any) -> int:
    if isinstance(value, bool) or not (isinstance(value, int) or hasattr(value, "fileno")):
        raise errors.SpecTypeError(f"{name} is neither a file nor a descriptor: {value!r}")
    try:
        fd = value if isinstance(value, int) else value.fileno()
    except (OSError, ValueError) as error:
        raise errors.SpecError(f"{name} has no descriptor: {error}") from None
    if fd < 0:
        raise errors.SpecError(f"{name} is {fd}, which is no descriptor")
    return int(fd)


def _output(name: str, value: Stream) -> int:
    if value is None:
        return _NULL
    if value is CAPTURE or value == CAPTURE:
        return _CAPTURED
    if value == STDOUT and name == "stderr":
        return _MERGED
    return _descriptor(name, value)


def _input(value: Stream | bytes, stack: contextlib.ExitStack) -> int:
    if value is None:
        return _NULL
    if not isinstance(value, (bytes, bytearray, memoryview)):
        return _descriptor("stdin", value)
    # A file in memory, not a pipe: nobody has to feed it while the command runs.
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    rest = memoryview(value)
    while rest:
        rest = rest[os.write(fd, rest) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


# ---- start -----------------------------------------------------------------------------------


def _spawn(
    workspace: _native.Workspace, plan: Plan, job: Job, fds: tuple[int, ...], held: tuple[int, ...]
) -> None:
    """Starts the job, or raises why not: a SetupError."""
    if _try_spawn(workspace, plan, job, fds, held) != 0:
        failure = workspace.run.failure
        raise plan.error(failure.step, failure.index, failure.error, job)


def _try_spawn(
    workspace: _native.Workspace, plan: Plan, job: Job, fds: tuple[int, ...], held: tuple[int, ...]
) -> int:
    values = workspace.job
    n_paths, n_args, n_env = len(job.paths), job.n_args, job.n_env
    keep = _native.fill_job(
        workspace,
        job.blob,
        job.cwd,
        (n_paths, n_args, n_env),
        fds,
        _native.init_descriptor() if plan.reaper else -1,
        _native.held_flags(len(plan.mounts), held),
    )
    result: int = lib.sbx_spawn(plan.place, values, workspace.run, workspace.stack)
    del keep
    return result


@contextlib.contextmanager
def _spawned_on_stubs(
    workspace: _native.Workspace, plan: Plan, job: Job, fds: tuple[int, ...]
) -> Iterator[None]:
    """Starts the job; mount points that its root lacks are there until the end of the context.

    Whether one is missing is found by doing: the hot path never looks.
    """
    held: list[int] = []
    stubs: Stubs | None = None
    try:
        for index in plan.stubs:
            stubs = stubs or Stubs(plan.box.root)
            _hold(stubs, plan, index, held)
        while _try_spawn(workspace, plan, job, fds, tuple(held)) != 0:
            step, index, error = _failure(workspace)
            missing = step == _TARGET and error in (errno.ENOENT, errno.ESTALE)
            if not missing or not plan.mounts[index].in_root or held.count(index) > 2:
                raise plan.error(step, index, error, job)
            stubs = stubs or Stubs(plan.box.root)
            _hold(stubs, plan, index, held)
        plan.stubs = tuple(sorted(set(held)))
        yield
    finally:
        lib.sbx_end(workspace.run)  # before its mount points go
        if stubs is not None:
            stubs.release()


def _hold(stubs: Stubs, plan: Plan, index: int, held: list[int]) -> None:
    mount = plan.mounts[index]
    try:
        stubs.hold(mount.target, mount.source is None or os.path.isdir(mount.source))
    except OSError as error:
        what = f"{mount.words}: make the mount point"
        raise errors.setup_error(error.errno or 0, mount.target, "target", what) from error
    held.append(index)


def _failure(workspace: _native.Workspace) -> tuple[int, int, int]:
    failure = workspace.run.failure
    return failure.step, failure.index, failure.error


# ---- output, status --------------------------------------------------------------------------


class _Streams:
    """The two buffers that a run fills: scratch first, bytes of their own once that is full."""

    def __init__(self, workspace: _native.Workspace) -> None:
        self._workspace = workspace
        self._grown: dict[str, _native.Grown] = {}
        run = workspace.run
        for stream, scratch in ((run.out, workspace.out), (run.err, workspace.err)):
            stream.buffer, stream.size = scratch, _native.SCRATCH_SIZE

    def enlarge(self) -> None:
        """Gives every buffer that is full more room."""
        for name in ("out", "err"):
            stream = getattr(self._workspace.run, name)
            if stream.length == stream.size:
                if name not in self._grown:
                    self._grown[name] = _native.Grown(self._scratch(name))
                view = self._grown[name].enlarge(stream.length)
                stream.buffer, stream.size = view, len(view)

    def _scratch(self, name: str) -> bytes:
        length = getattr(self._workspace.run, name).length
        return _native.some_bytes(getattr(self._workspace, name), length)

    def _take(self, name: str) -> bytes:
        grown = self._grown.get(name)
        if grown is None:
            return self._scratch(name)
        return grown.finish(getattr(self._workspace.run, name).length)

    def out(self) -> bytes:
        return self._take("out")

    def err(self) -> bytes:
        return self._take("err")


def _pump(
    workspace: _native.Workspace, plan: Plan, job: Job, streams: _Streams, deadline: float | None
) -> bool:
    """Until the run is over; whether the deadline ended it."""
    run = workspace.run
    timed_out = False
    wait = _LONGEST_WAIT
    while True:
        if deadline is not None and not timed_out:
            left = deadline - monotonic()
            if left <= 0:
                lib.sbx_signal(run, signal.SIGKILL)
                timed_out = True
            wait = max(0, min(_LONGEST_WAIT, int(left * 1e9)))
        result = lib.sbx_pump(run, _LONGEST_WAIT if timed_out else wait)
        if result == lib.SBX_PUMP_DONE:
            return timed_out
        if result == lib.SBX_PUMP_FULL:
            streams.enlarge()
        elif result == lib.SBX_PUMP_ERROR:
            raise plan.error(*_failure(workspace), job)


def _exit_status(wait_status: int) -> int:
    if wait_status == -1:
        raise errors.StatusLost("the command ended, but somebody else took its status")
    return os.waitstatus_to_exitcode(wait_status)
