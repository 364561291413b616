# SPDX-License-Identifier: Apache-2.0
"""The compiled core, and the memory of a run: the only module that says ffi."""

from __future__ import annotations

import contextlib
import errno
import os
from _thread import allocate_lock
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from weakref import ref

from . import errors
from ._sandbox import ffi as ffi
from ._sandbox import lib as lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Names of the steps, by number: 'SBX_STEP_NO_NEW_PRIVS' is step 'no_new_privs'.
STEPS: dict[int, str] = {
    number: name.removeprefix("SBX_STEP_").lower()
    for number, name in ffi.typeof("enum sbx_step").elements.items()
}

SCRATCH_SIZE = 65536  # what a pipe holds (pipe(7)): most commands write less
GROWTH = 1 << 20
VEC_SIZE = 256  # pointers to argv, environment and paths; more are made where they are needed
MOUNTS_SIZE = 32  # descriptors, of one mount each; more are made where they are needed
_EMPTY = ffi.new("unsigned char[1]")


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
        self.slot: Slot | None = None  # C has a pointer to it
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


def text(string: str) -> Any:
    """A C string for a file name or the like; keep it alive as long as the pointer to it."""
    return ffi.new("char[]", os.fsencode(string))


# ---- the reaper's program --------------------------------------------------------------------

_init: tuple[int, int] | None = None


def init_descriptor() -> int:
    """The reaper's program, open; made once. A host may close descriptors that are not its own, so
    the number is looked at again in every run: what runs as pid 1 has to be ours.
    """
    global _init  # noqa: PLW0603
    if _init is not None and lib.sbx_file_of(_init[0]) == _init[1]:
        return _init[0]
    fd: int = lib.sbx_open_init()
    if fd in (-errno.EACCES, -errno.EPERM):  # sysctl vm.memfd_noexec
        fd = _open_shipped()
    if fd < 0:
        raise errors.setup_error(-fd, None, "reaper", "open the reaper's program")
    _init = fd, lib.sbx_file_of(fd)
    return fd


def _open_shipped() -> int:
    import fcntl

    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_init")
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 5)
    finally:
        os.close(fd)


def open_in_root(directory: int, path: str, flags: int) -> int:
    """os.open, with `directory` as the root for every symbolic link."""
    fd: int = lib.sbx_open_in_root(directory, os.fsencode(path), flags)
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd), path)
    return fd


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


# ---- several runs at once ----------------------------------------------------------------------


class Pump:
    """One wait for several runs, `most` of them."""

    def __init__(self, most: int) -> None:
        self._runs = ffi.new("struct sbx_run *[]", most)
        self._results = ffi.new("enum sbx_pump_result[]", most)
        self._room = ffi.new("uint64_t[]", 4 * most)

    def __call__(self, structs: Sequence[Any], wait_ns: int) -> list[int]:
        """What there is to be done for each of the runs, as by sbx_pump; [] where there is nothing
        for any.
        """
        count = len(structs)
        self._runs[0:count] = structs
        if not lib.sbx_pump_any(self._runs, count, self._results, self._room, wait_ns):
            return []
        results: list[int] = ffi.unpack(self._results, count)
        return results


class Bell:
    """By which a thread wakes one that pumps: in the form of a run, whose output is full then."""

    def __init__(self) -> None:
        self._buffer = ffi.new("char[]", 8)  # eventfd(2)
        self._lock = allocate_lock()
        self._memory, self.struct = _ending("struct sbx_run *", lib.sbx_end)
        self.struct.out.buffer, self.struct.out.size = self._buffer, 8
        error = lib.sbx_open_bell(self.struct)
        if error < 0:
            raise OSError(-error, os.strerror(-error))

    def ring(self) -> None:
        """Does nothing once it is closed."""
        with self._lock:
            if self.struct.out.fd >= 0:
                os.eventfd_write(self.struct.out.fd, 1)

    def reset(self) -> None:
        """Was heard."""
        self.struct.out.length = 0

    def close(self) -> None:
        with self._lock:
            end_run(self.struct)


# ---- structs ---------------------------------------------------------------------------------


def pid_of(pidfd: int) -> int:
    """The pid of a process that lives, in the caller's pid namespace. OSError: it is dead."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        pid = int(file.read().partition("Pid:")[2].split()[0])
    if pid <= 0:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    return pid


def usage_of(run: Any) -> bytes:
    """The struct rusage of a run that is over; b"" where there is none."""
    usage: bytes = ffi.buffer(run.usage)[:] if run.has_usage else b""
    return usage


def new_place(values: dict[str, Any], mounts: Sequence[dict[str, Any]]) -> tuple[Any, Any]:
    """A struct sbx_place of the values, and whatever has to stay alive with it."""
    kept: list[Any] = []

    def convert(values: dict[str, Any]) -> dict[str, Any]:
        words = {key: text(value) for key, value in values.items() if isinstance(value, str)}
        for key, value in values.items():
            if isinstance(value, bytes):
                words[key] = ffi.from_buffer(value)
        kept.extend(words.values())
        inner = {key: convert(value) for key, value in values.items() if isinstance(value, dict)}
        return {**values, **words, **inner}

    array = ffi.new("struct sbx_mount[]", [convert(mount) for mount in mounts])
    kept.append(array)
    whole = {**convert(values), "mounts": array, "n_mounts": len(mounts)}
    return ffi.new("struct sbx_place *", whole), kept


def pack_place(values: dict[str, Any], mounts: Sequence[dict[str, Any]], held: bytes) -> bytes:
    """A struct sbx_place in one piece, as a resident takes it: then the mounts, a byte for each of
    them, and the strings. Pointers are offsets from its start.
    """
    mounts_at = ffi.sizeof("struct sbx_place")
    strings_at = mounts_at + len(mounts) * ffi.sizeof("struct sbx_mount") + len(held)
    strings = bytearray()

    def convert(values: dict[str, Any]) -> dict[str, Any]:
        converted = dict(values)
        for key, value in values.items():
            if isinstance(value, str):
                converted[key] = ffi.cast("char *", strings_at + len(strings))
                strings.extend(os.fsencode(value) + b"\0")
            if isinstance(value, bytes):
                converted[key] = ffi.cast("void *", strings_at + len(strings))
                strings.extend(value)
        return converted

    array = ffi.new("struct sbx_mount[]", [convert(mount) for mount in mounts])
    whole = {**convert(values), "n_mounts": len(mounts)}
    whole["mounts"] = ffi.cast("struct sbx_mount *", mounts_at)
    place = ffi.new("struct sbx_place *", whole)
    return b"".join([bytes(ffi.buffer(place)), bytes(ffi.buffer(array)), held, strings])


@contextlib.contextmanager
def _closed_by_exec() -> Iterator[None]:
    """Waits for the exec of whatever is started in between; a second at most, as a fork of the host
    may have what the exec closes.
    """
    import fcntl
    import select

    reader, writer = os.pipe()
    high = -1
    try:
        # Out of the way of what the child puts in its place.
        high = fcntl.fcntl(writer, fcntl.F_DUPFD_CLOEXEC, 64)
        os.close(writer)
        writer = -1
        yield
        os.close(high)
        high = -1
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        poll.poll(1000)
    finally:
        for fd in (reader, writer, high):
            if fd >= 0:
                os.close(fd)


class _Unreadable:
    """Keeps others from our memory while a child that shares it is in a user namespace of its own.

    A command with our uid owns that namespace, and has all capabilities over it: only a process
    that is not dumpable takes CAP_SYS_PTRACE over the namespace that its memory belongs to. The
    spawn returns a little before the exec changes the memory; a descriptor that the exec closes
    tells when that is done.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._lock = allocate_lock()
        self._count = self._before = 0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._count == 0:
                self._before = lib.sbx_set_dumpable(0)
            self._count += 1
        try:
            with _closed_by_exec():
                yield
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._count -= 1
            if self._count == 0 and self._before == 1:
                lib.sbx_set_dumpable(1)

    def restore(self) -> None:
        """In a fork of the caller, where no child is."""
        if self._count and self._before == 1:
            lib.sbx_set_dumpable(1)
        self.reset()


_unreadable = _Unreadable()
os.register_at_fork(after_in_child=_unreadable.restore)
_NEWUSER = 0x10000000  # clone(2)


def unreadable_for(place: Any) -> contextlib.AbstractContextManager[None] | None:
    """What to enter for the time of a spawn; None: the place needs no such thing. Others than root
    are not kept from the memory of their own processes by the kernel in any case.
    """
    return _unreadable() if place.namespaces & _NEWUSER and os.geteuid() == 0 else None


class Slot:
    """A slot, opened for a place (of new_place); its resident does `inside` for each run. OSError
    where the kernel refuses. It closes itself when it is lost.
    """

    def __init__(self, place: Any, held: Any, inside: bytes, setup_ns: int = 0) -> None:
        self._memory, self.struct = _ending("struct sbx_slot *", lib.sbx_close_slot)
        workspace = take_workspace()
        run, stdio = workspace.run, (lib.SBX_NULL,) * 3
        try:
            init = init_descriptor()
            keep = fill_job(workspace, b"/\0", 2, (0, 0, 0, 0), stdio, init, held, -1)
            workspace.job.setup_ns, workspace.job.pump_ns = setup_ns, 0
            words = (place[0], workspace.job, run, workspace.stack, inside, len(inside))
            if (guard := unreadable_for(place[0])) is None:
                result = lib.sbx_open_slot(*words, self.struct)
            else:
                with guard:
                    result = lib.sbx_open_slot(*words, self.struct)
            del keep
            if result != 0:
                raise OSError(run.failure.error, STEPS[run.failure.step])
        finally:
            end_run(run, workspace)
            give_back(workspace)

    @property
    def is_open(self) -> bool:
        return bool(self.struct.owner)

    def close(self) -> int:
        """A pidfd if it does not end, otherwise 0."""
        return close_slot(self.struct)

    @property
    def pid(self) -> int:
        """Of the resident."""
        return pid_of(self.struct.pidfd)


class Watch:
    """What some paths name at the moment, and what the caller has mounted."""

    def __init__(self, paths: Sequence[str]) -> None:
        words = ffi.from_buffer(b"".join(os.fsencode(path) + b"\0" for path in paths))
        self._seen = words, len(paths), ffi.new("uint64_t[]", 3 * len(paths))
        self._memory, self._watch = _ending("struct sbx_watch *", lib.sbx_close_watch)
        lib.sbx_open_watch(*self._seen, self._watch)

    def is_same(self) -> bool:
        """Whether nothing changed since."""
        return bool(lib.sbx_is_watch_same(*self._seen, self._watch))

    def close(self) -> None:
        lib.sbx_close_watch(self._watch)


def held_flags(n_mounts: int, held: Iterable[int]) -> Any:
    """One byte for each mount: 1 where its target is a stub that the caller holds."""
    if n_mounts == 0:
        return _EMPTY
    flags = ffi.new("unsigned char[]", n_mounts)
    for index in held:
        flags[index] = 1
    return flags


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
