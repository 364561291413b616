# SPDX-License-Identifier: Apache-2.0
"""The compiled core: its constants, its structs, and functions that need no memory of a run."""

from __future__ import annotations

import contextlib
import errno
import os
from _thread import allocate_lock
from collections.abc import Iterable, Iterator, Sequence

from .. import errors
from .._sandbox import ffi as ffi
from .._sandbox import lib as lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Names of the steps, by number: 'SBX_STEP_NO_NEW_PRIVS' is step 'no_new_privs'.
STEPS: dict[int, str] = {
    number: name.removeprefix("SBX_STEP_").lower()
    for number, name in ffi.typeof("enum sbx_step").elements.items()
}
MOUNTS_SIZE = 32  # a workspace has room for this many mounts; a run with more allocates its own
_EMPTY = ffi.new("unsigned char[1]")


def text(string: str) -> Any:
    """A C string; the caller keeps it alive as long as C has a pointer to it."""
    return ffi.new("char[]", os.fsencode(string))


# ---- the reaper's program --------------------------------------------------------------------

_programs: dict[int, tuple[int, int]] = {}
_SHIPPED = {
    lib.SBX_OF_RUN: "_init",
    lib.SBX_OF_SESSION: "_init_session",
    lib.SBX_OF_CPU_TIME: "_init_cpu_time",
    lib.SBX_OF_LAYERS: "_init_layers",
}


def init_descriptor(which: int = lib.SBX_OF_RUN) -> int:
    """A descriptor of a reaper's program, of enum sbx_program, opened once. A host may close
    descriptors that are not its own and reuse the number, so every run checks that the number still
    names the same file: only our program may run as pid 1.
    """
    program = _programs.get(which)
    if program is not None and lib.sbx_file_of(program[0]) == program[1]:
        return program[0]
    fd: int = lib.sbx_open_init(which)
    # sysctl vm.memfd_noexec, or RLIMIT_FSIZE of the caller
    if fd in (-errno.EACCES, -errno.EPERM, -errno.EFBIG):
        fd = _open_shipped(_SHIPPED[which])
    if fd < 0:
        raise errors.setup_error(-fd, None, "reaper", "open the reaper's program")
    _programs[which] = fd, lib.sbx_file_of(fd)
    return fd


def _open_shipped(name: str) -> int:
    import fcntl

    path = os.path.join(os.path.dirname(errors.__file__), name)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 5)
    finally:
        os.close(fd)


def open_in_root(directory: int, path: str, flags: int) -> int:
    """os.open(path), except that every symbolic link is resolved with `directory` as the root."""
    fd: int = lib.sbx_open_in_root(directory, os.fsencode(path), flags)
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd), path)
    return fd


# ---- structs ---------------------------------------------------------------------------------


def pid_of(pidfd: int) -> int:
    """The pid of a living process, as the caller's pid namespace numbers it. Raises OSError if the
    process is dead.
    """
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        pid = int(file.read().partition("Pid:")[2].split()[0])
    if pid <= 0:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    return pid


def usage_of(run: Any) -> bytes:
    """The struct rusage of a run that is over, or b"" if the kernel gave none."""
    usage: bytes = ffi.buffer(run.usage)[:] if run.has_usage else b""
    return usage


def was_left_alone(run: Any) -> bool:
    """Whether nobody killed a run that is over: its command wrote all that it wanted to."""
    return not ((run.killed and not run.reported) or run.asked or run.over_cpu_time)


def new_limits(values: dict[str, Any]) -> Any:
    """Make a struct sbx_limits of values that have no oom_score_adj."""
    return ffi.new("struct sbx_limits *", values)


def new_place(values: dict[str, Any], mounts: Sequence[dict[str, Any]]) -> tuple[Any, Any]:
    """Make a struct sbx_place of the values. Returns it, and the memory that it points to."""
    memory: list[Any] = []

    def convert(values: dict[str, Any]) -> dict[str, Any]:
        pointers = {key: text(value) for key, value in values.items() if isinstance(value, str)}
        for key, value in values.items():
            if isinstance(value, bytes):
                pointers[key] = ffi.from_buffer(value)
        memory.extend(pointers.values())
        structs = {key: convert(value) for key, value in values.items() if isinstance(value, dict)}
        return {**values, **pointers, **structs}

    array = ffi.new("struct sbx_mount[]", [convert(mount) for mount in mounts])
    memory.append(array)
    fields = {**convert(values), "mounts": array, "n_mounts": len(mounts)}
    return ffi.new("struct sbx_place *", fields), memory


def pack_place(values: dict[str, Any], mounts: Sequence[dict[str, Any]], stubs: bytes) -> bytes:
    """A struct sbx_place in one piece, as a resident takes it: the struct, the mounts, the flags of
    held_flags() (stubs), the strings. Pointers are offsets from its start.
    """
    mounts_at = ffi.sizeof("struct sbx_place")
    strings_at = mounts_at + len(mounts) * ffi.sizeof("struct sbx_mount") + len(stubs)
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
    fields = {**convert(values), "n_mounts": len(mounts)}
    fields["mounts"] = ffi.cast("struct sbx_mount *", mounts_at)
    struct = ffi.new("struct sbx_place *", fields)
    return b"".join([bytes(ffi.buffer(struct)), bytes(ffi.buffer(array)), stubs, strings])


@contextlib.contextmanager
def _closed_by_exec() -> Iterator[None]:
    """Wait, on leaving the block, until every process started in it has called exec: that closes
    its copies of a pipe. The wait ends after a second, because a fork of the host may have
    inherited a copy that it never closes.
    """
    import fcntl
    import select

    from . import unpatched

    reader, writer = os.pipe()
    high = -1
    try:
        # The child puts other descriptors at low numbers: a high number keeps this one open.
        high = fcntl.fcntl(writer, fcntl.F_DUPFD_CLOEXEC, 64)
        unpatched.close(writer)
        writer = -1
        yield
        unpatched.close(high)
        high = -1
        poll = unpatched.poll()
        poll.register(reader, select.POLLIN)
        poll.poll(1000)
    finally:
        for fd in (reader, writer, high):
            if fd >= 0:
                os.close(fd)


class _Unreadable:
    """Makes the caller not dumpable while a child that shares its memory enters a user namespace.

    Another command with our uid has every capability over a user namespace that our uid owns, so it
    could trace the child and read our memory. It cannot if the memory is not dumpable: the kernel
    then asks for CAP_SYS_PTRACE in the namespace that the memory belongs to. A spawn returns a
    little before exec replaces the memory; a descriptor that exec closes shows when that is done.
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
        """Undo it in a fork of the caller: the children belong to the parent."""
        if self._count and self._before == 1:
            lib.sbx_set_dumpable(1)
        self.reset()


_unreadable = _Unreadable()
os.register_at_fork(after_in_child=_unreadable.restore)
_NEWUSER = 0x10000000  # clone(2)


def unreadable_for(place: Any) -> contextlib.AbstractContextManager[None] | None:
    """The context in which to spawn with this struct sbx_place; None if it needs no protection.

    Only root needs it. The kernel lets every other user trace processes of their own anyway.
    """
    return _unreadable() if place.namespaces & _NEWUSER and os.geteuid() == 0 else None


def held_flags(n_mounts: int, held: Iterable[int]) -> Any:
    """One byte for each mount: 1 if its target is a stub that the caller keeps locked."""
    if n_mounts == 0:
        return _EMPTY
    flags = ffi.new("unsigned char[]", n_mounts)
    for index in held:
        flags[index] = 1
    return flags
