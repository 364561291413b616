# SPDX-License-Identifier: Apache-2.0
"""Compares the mounts that bwrap made with those that the Sandbox asks for."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections import namedtuple
from collections.abc import Sequence

from .. import errors
from .._host import machine
from .._host.machine import is_below
from ..errors import UnsupportedError

# ---- the mounts of a process -----------------------------------------------------------------

Entry = namedtuple("Entry", "number parent device root point is_read_only type")


def table(pid: int | str = "self") -> list[Entry]:
    """The mounts of a process, by /proc/PID/mountinfo (proc(5)); [] if the process is gone."""
    try:
        with open(f"/proc/{pid}/mountinfo", "rb") as file:
            lines = file.read().split(b"\n")
    except OSError:
        return []
    return [_entry(line.split(b" ")) for line in lines if line]


def _entry(fields: list[bytes]) -> Entry:
    kind = fields.index(b"-", 6) + 1  # there are optional fields before it
    root, point = (_OCTAL.sub(_character, field) for field in fields[3:5])
    flags = fields[5].split(b",")
    names = os.fsdecode(root), os.fsdecode(point)
    numbers = int(fields[0]), int(fields[1])
    return Entry(*numbers, fields[2], *names, b"ro" in flags, os.fsdecode(fields[kind]))


_OCTAL = re.compile(rb"\\([0-7]{3})")


def _character(match: re.Match[bytes]) -> bytes:
    return bytes([int(match[1], 8)])


class BindSource:
    """A file or directory of the caller that bwrap binds: its path, and its place on its device."""

    def __init__(self, fd: int, entries: Sequence[Entry]) -> None:
        self.path = os.readlink(f"/proc/self/fd/{fd}")
        with open(f"/proc/self/fdinfo/{fd}") as lines:
            number = next(int(line.split()[1]) for line in lines if line.startswith("mnt_id:"))
        on = next((entry for entry in entries if entry.number == number), None)
        if on is None or not is_below(self.path, on.point):
            raise UnsupportedError(f"{self.path} cannot be found among the mounts of the caller")
        self.device = on.device
        self.inner = _below(on.root, self.path[len(on.point.rstrip("/")) :])

    def is_at(self, entry: Entry) -> bool:
        return bool(entry.device == self.device and entry.root == self.inner)


def _below(above: str, rest: str) -> str:
    """Joins a path and the rest of one, which is empty or begins with a slash."""
    return above.rstrip("/") + rest or "/"


class Wanted:
    """One mount that the Sandbox asks for: its target, and how to recognise it.

    source: of a bind mount. type: of any other mount, its file system; is_new: bool, whether that
    must not be one of the caller's.
    """

    def __init__(
        self,
        target: str,
        source: BindSource | None = None,
        type: str = "",
        read_only: bool = False,
        is_new: bool = True,
    ) -> None:
        self.target = target
        self.source = source
        self.type = type
        self.read_only = read_only
        self.is_new = is_new

    def is_it(self, entry: Entry, host: Sequence[Entry]) -> bool:
        if entry.point != self.target or (self.read_only and not entry.is_read_only):
            return False
        if self.source is not None:
            return self.source.is_at(entry)
        if self.is_new and any(one.device == entry.device for one in host):
            return False
        if self.type == "data":  # a file of bwrap's own tmpfs, which has no name by now
            return bool(entry.type == "tmpfs" and entry.root != "/")
        kind = "tmpfs" if self.type == "dev" else self.type
        return bool(entry.type == kind and entry.root == "/")

    def comes_with_it(self, entry: Entry, host: Sequence[Entry], is_seen: bool) -> bool:
        """Whether a mount below the target belongs to this one. is_seen: no mount covers it."""
        if not is_below(entry.point, self.target):
            return False
        if self.source is None:
            return self.type in ("proc", "dev") and entry.point != self.target
        rest = entry.point[len(self.target.rstrip("/")) :]
        point = _below(self.source.path, rest)
        # bwrap leaves a mount writable that the caller cannot reach; nor can a command reach it.
        return any(
            one.point == point and one.device == entry.device and one.root == entry.root
            for one in host
        ) and (entry.is_read_only or not (self.read_only and is_seen and os.path.exists(point)))


def find_fault(entries: Sequence[Entry], wanted: Sequence[Wanted]) -> str:
    """Says how the mounts of a process differ from the wanted ones; "" if they do not."""
    host = table()
    left = list(entries)
    for one in wanted:
        entry = next((entry for entry in left if one.is_it(entry, host)), None)
        if entry is None:
            return f"what belongs on {one.target} is not there"
        left.remove(entry)
    covered = {(entry.parent, entry.point) for entry in entries}
    for entry in left:
        is_seen = (entry.number, entry.point) not in covered
        if not any(one.comes_with_it(entry, host, is_seen) for one in wanted):
            return f"something else is mounted on {entry.point}"
    return ""


def protect_devices(pid: int, wanted: Sequence[Wanted], no_devices: bool) -> None:
    """Makes the mounts of device nodes read-only, which still lets commands use them; and lets no
    device of an overlay open.

    bwrap binds the host's own nodes, and cannot bind them read-only itself: commands of root could
    change their modes and owners. It mounts an overlay without nodev. SetupError.

    no_devices: bool, whether no device of the root may open.
    """
    devs = [one.target for one in wanted if one.type == "dev"]
    changes = [
        (entry.point, _MOUNT_ATTR_RDONLY)
        for entry in table(pid)
        if entry.type not in ("tmpfs", "devpts") and any(is_below(entry.point, dev) for dev in devs)
    ]
    if no_devices:
        overlays = [one.target for one in wanted if one.type == "overlay"]
        changes += [(target, _MOUNT_ATTR_NODEV) for target in overlays]
    failures: list[int] = []
    if changes:
        # setns(2) needs a thread that shares its root with no other; this one ends afterwards.
        thread = threading.Thread(target=_change, args=(pid, changes, failures), daemon=True)
        thread.start()
        thread.join()
    if failures:
        what = "bwrap: make the device nodes of its /dev read-only, and those of the root useless"
        hint = machine.closed_by_a_filter("read_only", failures[0])
        raise errors.setup_error(failures[0], None, "mount", what, hint)


_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NODEV = 1, 4  # linux/mount.h


def _change(pid: int, changes: Sequence[tuple[str, int]], failures: list[int]) -> None:
    """Sets an attribute of each of these mounts of a process; one errno in failures if it fails."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    try:
        fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        failures.append(error.errno or errno.EIO)
        return
    # unshare(CLONE_FS), setns(CLONE_NEWNS)
    result = libc.unshare(0x200) or libc.setns(fd, 0x20000)
    for path, flag in () if result else changes:  # mount_setattr(2), AT_FDCWD, AT_SYMLINK_NOFOLLOW
        attr = (ctypes.c_uint64 * 4)(flag, 0, 0, 0)  # struct mount_attr
        name = ctypes.c_char_p(os.fsencode(path))
        size = ctypes.c_size_t(ctypes.sizeof(attr))
        result = result or libc.syscall(442, -100, name, 0x100, attr, size)
    if result:
        failures.append(ctypes.get_errno())
    os.close(fd)
