# SPDX-License-Identifier: Apache-2.0
"""The memory of one run, and what becomes of runs that SIGKILL did not end."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from weakref import ref

from .._sandbox import ffi as ffi
from .._sandbox import lib as lib
from .native import MOUNTS_SIZE, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SCRATCH_SIZE = 65536  # what a pipe holds (pipe(7)): most commands write less
GROWTH = 1 << 20
VEC_SIZE = 256  # pointers to argv, environment and paths; more are made where they are needed


class Stream:
    """An output of a run: scratch memory first; once that is full, bytes that C reads into where
    they stay. BytesIO grows by realloc, and hands its bytes over without a copy when they are
    exactly full.
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
        """Makes room, if there is none, for as much as a large pipe holds. BytesIO writes zeros
        there, which then are in the cache of the CPU, and for more it has asked malloc already.
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
        """What there is; the buffer is empty then."""
        content: bytes = ffi.buffer(self._scratch, self._stream.length)[:]
        self._stream.length = 0
        return content

    def set_eager(self, eager: bool) -> None:
        """Whether what comes is handed over at once; until the next run."""
        self._stream.eager, self.is_long = int(eager), True

    def take(self) -> bytes:
        """What the run wrote."""
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
        """Ready for the next run, where it is_long: where there is something to be undone."""
        self._release()
        self._file, self.is_long = None, False
        self._stream.eager = 0
        self._stream.buffer, self._stream.size = self._scratch, SCRATCH_SIZE


#: Processes that were killed and do not end: a pidfd, which file that is, what they may use.
_stuck: list[tuple[int, int, tuple[object, ...]]] = []

#: Structs that were garbage, and ended. reap_stuck() looks whether SIGKILL did not end a process.
_lost: list[Any] = []


def _ending(kind: str, end: Any) -> tuple[Any, Any]:
    """Memory, and the same as a struct for which `end` is called when it is lost; keep both.

    With a cycle of garbage it is lost, and its memory freed, before methods of the others in the
    cycle are called for the last time, which may still use it. So `end` comes first, then _lost
    keeps the memory. Neither is written in Python: an exception from a signal handler or another
    thread would come up in their midst, and Python drops what a finalizer raises.
    """
    memory = ffi.new(kind)
    kept = memory if kind == "struct sbx_watch *" else ffi.gc(memory, _lost.append)
    return memory, ffi.gc(kept, end)


class Workspace:
    """The C memory of one run at a time: a stack for the child, the run itself, two outputs.

    They are kept for the next run, because making them costs more than using them.
    """

    def __init__(self) -> None:
        # With a callback it is cleared before the finalizers of a cycle of garbage are called. This
        # one does nothing, and no exception can come up in it, since it is not written in Python.
        self.alive = ref(self, id)
        stack = lib.sbx_new_stack()
        if not stack:
            raise MemoryError("no memory for the stack of a child")
        self.stack = ffi.gc(stack, lib.sbx_free_stack)
        # The struct knows how to end itself, whatever happens to this object and whenever.
        self._memory, self.run = _ending("struct sbx_run *", lib.sbx_end)
        self.slot: object = None  # C has a pointer to it
        self.job = ffi.new("struct sbx_job *")
        self.rare: tuple[list[Any], tuple[str, ...]] | None = None  # of fill_rare()
        self.out, self.err = Stream(self.run.out), Stream(self.run.err)
        self.vec = ffi.new("const char *[]", VEC_SIZE)
        self.sources = ffi.new("int[]", MOUNTS_SIZE)


# ---- what SIGKILL did not end ----------------------------------------------------------------


def end_run(struct: Any, *keep: object) -> int:
    """lib.sbx_end of a struct sbx_run: a pidfd if its process does not end, otherwise 0.

    keep: what that process may use until it is gone.
    """
    lib.sbx_end(struct)
    return _take_over(struct, (struct, *keep)) if struct.stuck else 0


def close_slot(struct: Any) -> int:
    """The same for a struct sbx_slot."""
    lib.sbx_close_slot(struct)
    return _take_over(struct, (struct,))


def _take_over(struct: Any, keep: tuple[object, ...]) -> int:
    fd: int = struct.stuck
    if fd:
        struct.stuck = 0
        _stuck.append((fd, lib.sbx_file_of(fd), keep))
    return fd


def reap_stuck() -> None:
    """Reaps those that ended meanwhile. Nobody waits for the others, also not in the end."""
    while _lost:
        with contextlib.suppress(IndexError):  # another thread was faster
            _take_over(lost := _lost.pop(), (lost,))
    for entry in list(_stuck):
        fd, file, _ = entry
        if lib.sbx_file_of(fd) == file:  # else the host closed, or replaced, what is not its own
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
    """A workspace that no other run is using."""
    if _stuck or _lost:
        reap_stuck()
    try:
        return _free.pop()
    except IndexError:
        return Workspace()


def give_back(workspace: Workspace) -> None:
    """The workspace of a run that was ended by end_run()."""
    if workspace.alive() is None:  # garbage, whose stack may be gone already
        return
    # The child of one that is stuck may still use it.
    if _stuck and any(workspace in keep for _, _, keep in _stuck):
        return
    workspace.slot = None
    if workspace.rare is not None:
        _, numbers = workspace.rare
        workspace.rare = None
        for name in ("n_passed", "n_cgroups", *numbers):
            setattr(workspace.job, name, 0)
    for stream in (workspace.out, workspace.err):
        if stream.is_long:
            stream.reset()
    if len(_free) < 64:
        _free.append(workspace)


def answers(root: str, path: str, seconds: float) -> bool:
    """Whether the file system answers in which the directory of a path lies, inside the root: a
    child looks. What else is wrong there is for others to find.
    """
    work = take_workspace()
    words = text(root), text(path)
    try:
        result: int = lib.sbx_filesystem_answers(work.run, *words, int(seconds * 1e9), work.stack)
        return result != -errno.ETIMEDOUT
    finally:
        end_run(work.run, work, words)
        give_back(work)


def fill_job(
    workspace: Workspace,
    blob: bytes,
    cwd_size: int,
    counts: tuple[int, int, int, int],
    stdio: tuple[int, int, int],
    init_fd: int,
    held: Any,
    mapper: int,
) -> tuple[Any, ...]:
    """Fills the job of a workspace; returns what has to stay alive until the spawn is over.

    The blob is the cwd, cwd_size bytes, and then the strings of struct sbx_job. counts: how many
    candidates, arguments and variables these are, and then cwd_or_root.
    """
    job = workspace.job
    job.n_candidates, job.n_args, job.n_env, job.cwd_or_root = counts
    size = sum(counts) + 3
    vec = workspace.vec if size <= VEC_SIZE else ffi.new("const char *[]", size)
    strings = ffi.from_buffer(blob)
    job.cwd, job.strings, job.vec, job.held = strings, strings + cwd_size, vec, held
    job.size, job.cwd_size = len(blob), cwd_size
    sources = workspace.sources if len(held) <= MOUNTS_SIZE else ffi.new("int[]", len(held))
    job.stdio = stdio
    job.init_fd, job.mapper, job.sources = init_fd, mapper, sources
    return (vec, strings, held, sources)


def fill_rare(
    workspace: Workspace,
    passed: Sequence[int],
    passed_from: Sequence[int],
    cgroups: Sequence[int],
    numbers: Mapping[str, int],
) -> None:
    """What few jobs have, until the workspace is given back. numbers: fields of struct sbx_job that
    are numbers, each 0 otherwise.
    """
    job = workspace.job
    arrays = [ffi.new("int[]", fds) for fds in (passed, passed_from, cgroups)]
    job.passed, job.passed_from, job.cgroups = arrays
    job.n_passed, job.n_cgroups = len(passed), len(cgroups)
    for name, number in numbers.items():
        setattr(job, name, number)
    workspace.rare = arrays, tuple(numbers)
