# SPDX-License-Identifier: Apache-2.0
"""The compiled core, and the memory of a run: the only module that says ffi."""

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
MOUNTS_SIZE = 32  # descriptors, of one mount each; more are made where they are needed
_EMPTY = ffi.new("unsigned char[1]")


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

    path = os.path.join(os.path.dirname(errors.__file__), "_init")
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


def held_flags(n_mounts: int, held: Iterable[int]) -> Any:
    """One byte for each mount: 1 where its target is a stub that the caller holds."""
    if n_mounts == 0:
        return _EMPTY
    flags = ffi.new("unsigned char[]", n_mounts)
    for index in held:
        flags[index] = 1
    return flags
