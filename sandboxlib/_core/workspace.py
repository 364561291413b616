# SPDX-License-Identifier: Apache-2.0
"""The memory of one run, and the runs that SIGKILL did not end."""

from __future__ import annotations

import contextlib
import errno
import os
from _weakref import ref  # weakref itself takes as long as ten of our modules
from collections.abc import Mapping, Sequence
from io import BytesIO

from .._sandbox import ffi as ffi
from .._sandbox import lib as lib
from .native import MOUNTS_SIZE, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SCRATCH_SIZE = 65536  # as much as a pipe holds (pipe(7)); most commands write less
GROWTH = 1 << 20
VEC_SIZE = 256  # pointers to argv, environment and paths; a run with more allocates its own


class OutputBuffer:
    """An output of a run. C reads it into scratch memory, and once that is full into a BytesIO.

    A BytesIO grows by realloc, and getvalue() of one that is exactly full hands its bytes over, so
    a long output is not copied.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._scratch = ffi.new("char[]", SCRATCH_SIZE)
        self._file: BytesIO | None = None
        self.is_long = False
        self._view: Any = None
        stream.eager = 0
        stream.buffer, stream.size = self._scratch, SCRATCH_SIZE

    def enlarge(self) -> None:
        """If the buffer is full, make room for as much as a large pipe holds. BytesIO fills the new
        room with zeros, which brings it into the CPU's cache before C reads into it; and it asks
        malloc for more than that, so the next enlarge() is cheap.
        """
        stream = self._stream
        if stream.length < stream.size:
            return
        if self._file is None:
            self.is_long = True
            self._file = BytesIO()
            self._file.write(ffi.buffer(self._scratch, stream.length))
        self._release()
        self._file.seek(stream.length + GROWTH - 1)
        self._file.write(b"\0")
        self._view = ffi.from_buffer("char[]", self._file.getbuffer())
        stream.buffer, stream.size = self._view, len(self._view)

    def take_chunk(self) -> bytes:
        """Take the bytes that the scratch memory holds, and empty it."""
        content: bytes = ffi.buffer(self._scratch, self._stream.length)[:]
        self._stream.length = 0
        return content

    def set_eager(self, eager: bool) -> None:
        """True: sbx_pump() returns as soon as it has read something. It holds until reset()."""
        self._stream.eager, self.is_long = int(eager), True

    def take(self) -> bytes:
        """Return all that the run wrote."""
        length: int = self._stream.length
        if not length:
            return b""
        if self._file is None:
            content: bytes = ffi.buffer(self._scratch, length)[:]
            return content
        self._release()
        self._file.truncate(length)
        return self._file.getvalue()

    def _release(self) -> None:
        if self._view is not None:
            ffi.release(self._view)
            self._view = None

    def reset(self) -> None:
        """Make the stream ready for the next run. Only a stream that is_long needs it."""
        self._release()
        self._file, self.is_long = None, False
        self._stream.eager = 0
        self._stream.buffer, self._stream.size = self._scratch, SCRATCH_SIZE


#: Processes that were killed and do not end: the pidfd, the identity of its file, and the memory
#: that the process may still use.
_stuck: list[tuple[int, int, tuple[object, ...]]] = []

#: Structs that were garbage and have been ended. reap_stuck() checks whether SIGKILL ended theirs.
_lost: list[Any] = []


def _ending(kind: str, end: Any) -> tuple[Any, Any]:
    """Allocate a struct that calls `end` on itself when it is garbage. Returns its memory and the
    struct; the owner keeps both.

    In a cycle of garbage the struct may be collected before the __del__ of another object in the
    cycle, which may still use it. So `end` runs first, and then _lost keeps the memory alive.
    Neither finalizer is Python code: a signal handler or another thread could raise an exception in
    the midst of it, and Python drops what a finalizer raises.
    """
    memory = ffi.new(kind)
    owner = memory if kind == "struct sbx_watch *" else ffi.gc(memory, _lost.append)
    return memory, ffi.gc(owner, end)


class Workspace:
    """The C memory of one run at a time: a stack for the child, the run itself, two outputs.

    A later run reuses it, because making it takes longer than using it.
    """

    def __init__(self) -> None:
        # Python clears a weak reference that has a callback before it calls the finalizers of a
        # cycle of garbage. The callback has no effect; id is C code, so no exception can interrupt
        # it.
        self.alive = ref(self, id)
        stack = lib.sbx_new_stack()
        if not stack:
            raise MemoryError("no memory for the stack of a child")
        self.stack = ffi.gc(stack, lib.sbx_free_stack)
        # The struct ends its run by itself if this object is lost.
        self._memory, self.run = _ending("struct sbx_run *", lib.sbx_end)
        self.slot: object = None  # keeps the slot alive: the run has a pointer to it
        self.job = ffi.new("struct sbx_job *")
        # The arrays and the names of the fields that fill_extras() filled.
        self.extras: tuple[list[Any], tuple[str, ...]] | None = None
        self.root: Any = None  # what fill_root() filled the job with
        self.out, self.err = OutputBuffer(self.run.out), OutputBuffer(self.run.err)
        self.vec = ffi.new("const char *[]", VEC_SIZE)
        self.sources = ffi.new("int[]", MOUNTS_SIZE)


# ---- processes that SIGKILL did not end ------------------------------------------------------


def end_run(struct: Any, *keep: object) -> int:
    """End a struct sbx_run. Returns a pidfd if its process does not end, otherwise 0.

    keep: the memory that the process may use until it is gone.
    """
    lib.sbx_end(struct)
    return _take_over(struct, (struct, *keep)) if struct.stuck else 0


def close_slot(struct: Any) -> int:
    """Close a struct sbx_slot. Returns as end_run() does."""
    lib.sbx_close_slot(struct)
    return _take_over(struct, (struct,))


def _take_over(struct: Any, keep: tuple[object, ...]) -> int:
    fd: int = struct.stuck
    if fd > 0:
        struct.stuck = 0
        keep_stuck(fd, *keep)
    return fd


def keep_stuck(fd: int, *keep: object) -> None:
    """Keep a pidfd until its process is gone, for reap_stuck(), and the memory that it may use."""
    _stuck.append((fd, lib.sbx_file_of(fd), keep))


def reap_stuck() -> None:
    """Reap the stuck processes that ended meanwhile. Nothing ever waits for the others."""
    while _lost:
        with contextlib.suppress(IndexError):  # another thread was faster
            _take_over(lost := _lost.pop(), (lost,))
    for entry in list(_stuck):
        fd, file, _ = entry
        if lib.sbx_file_of(fd) == file:  # otherwise the host closed our descriptor, or reused it
            if not lib.sbx_reap_stuck(fd):
                continue
            os.close(fd)
        with contextlib.suppress(ValueError):  # another thread was faster
            _stuck.remove(entry)


def _forget_stuck() -> None:
    for fd, file, _ in _stuck:
        if lib.sbx_file_of(fd) == file:
            os.close(fd)
    _stuck.clear()
    _lost.clear()


os.register_at_fork(after_in_child=_forget_stuck)


_free: list[Workspace] = []


def take_workspace() -> Workspace:
    """Take a free workspace, or make one."""
    if _stuck or _lost:
        reap_stuck()
    try:
        return _free.pop()
    except IndexError:
        return Workspace()


def give_back(workspace: Workspace) -> None:
    """Return a workspace, after end_run() ended its run, for a later run to take."""
    if workspace.alive() is None:  # it is garbage, and its stack may be freed already
        return
    # If the process of the run is stuck, it may still use the workspace.
    if _stuck and any(workspace in keep for _, _, keep in _stuck):
        return
    workspace.slot = None
    if workspace.extras is not None:
        _, numbers = workspace.extras
        workspace.extras = None
        workspace.job.limits = ffi.NULL
        for name in ("n_passed", "n_cgroups", "unified", *numbers):
            setattr(workspace.job, name, 0)
    if workspace.root is not None:
        workspace.root = None
        job = workspace.job
        job.lowers = job.upper = ffi.NULL
        job.inputs = ffi.NULL
        job.n_lowers = job.upper_socket = job.n_inputs = job.inputs_size = 0
    for stream in (workspace.out, workspace.err):
        if stream.is_long:
            stream.reset()
    if len(_free) < 64:
        _free.append(workspace)


def answers(root: str, path: str, seconds: float) -> bool:
    """Return False if the file system of a path's directory, inside the root, does not answer in so
    many seconds. A child looks at it, because a dead server would block the caller. Any other error
    counts as an answer: the run itself will report it.
    """
    workspace = take_workspace()
    paths = text(root), text(path)
    timeout_ns = int(seconds * 1e9)
    try:
        result: int = lib.sbx_filesystem_answers(workspace.run, *paths, timeout_ns, workspace.stack)
        return result != -errno.ETIMEDOUT
    finally:
        end_run(workspace.run, workspace, paths)
        give_back(workspace)


def fill_job(
    workspace: Workspace,
    blob: bytes,
    cwd_size: int,
    counts: tuple[int, int, int, int],
    stdio: tuple[int, int, int],
    init_fd: int,
    stubs: Any,
    mapper: int,
) -> tuple[Any, ...]:
    """Fill the job of a workspace. Returns the memory that must stay alive until the spawn is over.

    blob: the cwd, which takes cwd_size bytes, and then the strings of struct sbx_job. counts: the
    numbers of candidates, arguments and variables among them, and the flag cwd_or_root. stubs: what
    held_flags() returns.
    """
    job = workspace.job
    job.n_candidates, job.n_args, job.n_env, job.cwd_or_root = counts
    size = sum(counts) + 3
    vec = workspace.vec if size <= VEC_SIZE else ffi.new("const char *[]", size)
    strings = ffi.from_buffer(blob)
    job.cwd, job.strings, job.vec, job.held = strings, strings + cwd_size, vec, stubs
    job.size, job.cwd_size = len(blob), cwd_size
    sources = workspace.sources if len(stubs) <= MOUNTS_SIZE else ffi.new("int[]", len(stubs))
    job.stdio = stdio
    job.init_fd, job.mapper, job.sources = init_fd, mapper, sources
    return (vec, strings, stubs, sources)


def fill_extras(
    workspace: Workspace,
    passed: Sequence[int],
    passed_from: Sequence[int],
    numbers: Mapping[str, int],
) -> None:
    """Fill the fields that few jobs have; give_back() clears them. numbers: those fields of struct
    sbx_job that are numbers; each of them is 0 otherwise.
    """
    job = workspace.job
    arrays = [ffi.new("int[]", fds) for fds in (passed, passed_from)]
    job.passed, job.passed_from = arrays
    job.n_passed = len(passed)
    for name, number in numbers.items():
        setattr(job, name, number)
    workspace.extras = arrays, tuple(numbers)


def fill_root(
    workspace: Workspace,
    lowers: Sequence[str],
    upper: str | None,
    upper_socket: int,
    inputs: Sequence[str] = (),
) -> None:
    """Fill what a job says of its root of layers; give_back() clears it.

    lowers: the directories, the top first. upper: as in struct sbx_job; None: in memory.
    upper_socket: as in struct sbx_job. inputs: where a slot has those that it does not know
    beforehand, the top first.
    """
    job = workspace.job
    names = ffi.from_buffer(_ended(lowers))
    more = _ended(inputs)
    named = ffi.from_buffer(more)
    job.inputs, job.n_inputs, job.inputs_size = named, len(inputs), len(more)
    above = ffi.NULL if upper is None else text(upper)
    job.lowers, job.n_lowers, job.upper, job.upper_socket = names, len(lowers), above, upper_socket
    workspace.root = names, above, named


def _ended(paths: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(path) + b"\0" for path in paths)


def fill_limits(workspace: Workspace, limits: Any) -> None:
    """Fill the limits of a run in a slot, or with None those of its place; give_back() clears them,
    as fill_extras() was called too. limits: what new_limits() returns, which the caller keeps.
    """
    workspace.job.limits = ffi.NULL if limits is None else limits


def fill_cgroups(workspace: Workspace, cgroups: Sequence[int], unified: int) -> None:
    """Fill the cgroups of a fresh run; give_back() clears them, as fill_extras() was called too.

    cgroups: what a process writes to, to join. unified: the directory of the last, if it is of v2.
    """
    assert workspace.extras is not None
    job, array = workspace.job, ffi.new("int[]", cgroups)
    job.cgroups, job.n_cgroups, job.unified = array, len(cgroups), unified
    workspace.extras[0].append(array)
