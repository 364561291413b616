# SPDX-License-Identifier: Apache-2.0
"""Writes items as a layer of OCI: a tar in the pax format of POSIX.1-2001, with whiteouts.

Equal items give equal bytes: they come in the order of their names, owners are numbers, a field has
one way of being written, and holes are found by their content. Python's tarfile module is not used:
it is slower, it takes names as str, and it writes no sparse files.

https://github.com/opencontainers/image-spec/blob/v1.1.0/layer.md: writers name what is gone one by
one, ahead of what is there.
"""

from __future__ import annotations

import os
import stat
from zlib import adler32

from ..errors import UnsupportedError, printable
from .stream import Nonsense

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .change import Change
    from .stream import Item

BLOCK = 512
WHITEOUT = ".wh."
#: Whoever unpacks a layer as a lower directory would make marks of overlay of these.
MARKS = ("trusted.overlay.", "user.overlay.")
END = bytes(2 * BLOCK)
PIECE = 1 << 18  # bytes that are hashed and written at once
_MOST_OCTAL = {8: 0o7777777, 12: 0o77777777777}  # in fields of so many bytes, with a NUL at the end
_FLAGS = {"file": b"0", "symlink": b"2", "directory": b"5", "fifo": b"6"}
_TAIL = bytes(167)
_NO_DEVICE = bytes(16)


class Gathered:
    """Passes bytes on in larger pieces."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size >= PIECE:
            self.flush()

    def flush(self) -> None:
        data, self._parts, self._size = b"".join(self._parts), [], 0
        if data:
            self._write(data)


class Archive:
    """A consumer of a stream that writes a tar. write: takes its bytes. mtime: seconds, of all
    members; None: they keep their own. with_root: whether the root has a member of its own, `./`.
    """

    def __init__(
        self, write: Callable[[bytes], object], mtime: int | None, with_root: bool = True
    ) -> None:
        self._write, self._mtime, self._with_root = write, mtime, with_root
        self._padding = b""
        self._pax: dict[int, bytes] = {}  # the block of a pax header by the size of its records

    def begin(self, item: Item) -> None:
        change = item.change
        self._padding = b""
        if change.path == "/" and not self._with_root:
            return
        if f"/{WHITEOUT}" in change.path:
            path = printable(change.path)
            text = f"a layer cannot hold {path}: the name means that something is gone"
            raise UnsupportedError(text)
        if change.kind == "deleted":
            self._add_whiteout(change)
            return
        name = os.fsencode(change.path[1:]) or b"."
        if change.link is not None:
            self._header(name, change, b"1", 0, link=os.fsencode(change.link[1:]))
        elif change.type == "socket":  # no tar holds one
            if change.kind == "modified":
                self._add_whiteout(change)
        elif change.type == "file":
            self._add_file(name, item)
        elif change.type == "device":
            is_block = stat.S_ISBLK(change.mode)
            self._header(name, change, b"4" if is_block else b"3", 0)
        else:
            is_directory = change.type == "directory"
            link = os.fsencode(change.target or "")
            self._header(name + b"/" * is_directory, change, _FLAGS[change.type], 0, link=link)

    def content(self, data: bytes) -> None:
        self._write(data)

    def end(self, item: Item) -> None:
        if self._padding:
            self._write(self._padding)

    def close(self) -> None:
        self._write(END)

    # ---- members ----

    def _add_whiteout(self, change: Change) -> None:
        directory, _, name = change.path[1:].rpartition("/")
        path = f"{directory}/{WHITEOUT}{name}" if directory else f"{WHITEOUT}{name}"
        self._header(os.fsencode(path), None, b"0", 0)

    def _add_file(self, name: bytes, item: Item) -> None:
        change, parts = item.change, item.parts
        if parts is None:
            raise Nonsense("a file without its content")
        total = sum(length for _, length in parts)
        if total == change.size:
            self._header(name, change, b"0", total)
            self._padding = bytes(-total % BLOCK)
            return
        # Format 1.0 of sparse files of GNU tar: the map is in front of the data.
        parts = [*parts]
        if not parts or sum(parts[-1]) < change.size:
            parts.append((change.size, 0))
        numbers = [len(parts), *(number for part in parts for number in part)]
        table = b"".join(b"%d\n" % number for number in numbers)
        table += bytes(-len(table) % BLOCK)
        more = {
            b"GNU.sparse.major": b"1",
            b"GNU.sparse.minor": b"0",
            b"GNU.sparse.name": name,
            b"GNU.sparse.realsize": b"%d" % change.size,
        }
        stored = len(table) + total
        short = b"GNUSparseFile.0/" + name.rpartition(b"/")[2]
        self._header(short, change, b"0", stored, more=more)
        self._write(table)
        self._padding = bytes(-stored % BLOCK)

    # ---- headers ----

    def _header(
        self,
        name: bytes,
        change: Change | None,
        flag: bytes,
        size: int,
        *,
        link: bytes = b"",
        more: dict[bytes, bytes] | None = None,
    ) -> None:
        """Write the header of a member. change: None for a whiteout."""
        records = more or {}
        uid = gid = time = 0
        mode = 0o600
        if change is not None:
            uid, gid, mode, time = change.uid, change.gid, change.mode & 0o7777, change.mtime_ns
        if self._mtime is not None:
            time = self._mtime * 10**9
        seconds, fraction = divmod(time, 10**9)
        if fraction or not 0 <= seconds <= _MOST_OCTAL[12]:
            records[b"mtime"] = _seconds(time)
            seconds = min(max(seconds, 0), _MOST_OCTAL[12])
        for key, value, limit in (
            (b"uid", uid, _MOST_OCTAL[8]),
            (b"gid", gid, _MOST_OCTAL[8]),
            (b"size", size, _MOST_OCTAL[12]),
        ):
            if value > limit:
                records[key] = b"%d" % value
        if len(name) > 100:
            records[b"path"] = name
        if len(link) > 100:
            records[b"linkpath"] = link
        if change is not None and change.xattrs and flag != b"1":
            self._add_attributes(change, records)
        if records:
            self._write_records(records)
        device = change.device if change is not None and flag in b"34" else None
        self._write(_block(name, mode, uid, gid, size, seconds, flag, link, device))

    def _add_attributes(self, change: Change, records: dict[bytes, bytes]) -> None:
        for name, value in change.xattrs:
            if name.startswith(MARKS):
                continue
            if "=" in name:
                path, text = printable(change.path), printable(name)
                reason = f"its attribute {text!r} has '=' in its name"
                raise UnsupportedError(f"a layer cannot hold {path}: {reason}")
            records[b"SCHILY.xattr." + os.fsencode(name)] = value

    def _write_records(self, records: dict[bytes, bytes]) -> None:
        for key in (b"path", b"linkpath", b"GNU.sparse.name"):
            if key in records and not _is_utf8(records[key]):
                records[b"hdrcharset"] = b"BINARY"
        data = b"".join(_record(key, records[key]) for key in sorted(records))
        block = self._pax.get(len(data))
        if block is None:
            block = _block(b"PaxHeaders/0", 0o644, 0, 0, len(data), 0, b"x", b"", None)
            self._pax[len(data)] = block
        self._write(block + data + bytes(-len(data) % BLOCK))


def _block(
    name: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    flag: bytes,
    link: bytes,
    device: tuple[int, int] | None,
) -> bytes:
    """A ustar header. What does not fit is in a pax header before it."""
    start = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0" % (
        name[:100].ljust(100, b"\0"),
        *(mode, min(uid, _MOST_OCTAL[8]), min(gid, _MOST_OCTAL[8])),
        *(min(size, _MOST_OCTAL[12]), mtime),
    )
    devices = _NO_DEVICE if device is None else b"%07o\0%07o\0" % device
    rest = b"%s%sustar\00000%s%s%s" % (
        flag,
        link[:100].ljust(100, b"\0"),
        bytes(64),
        devices,
        _TAIL,
    )
    # The sum of the bytes, with its own field as spaces. The low half of an adler32 is the sum of
    # up to 256 bytes and 1, and faster than sum().
    total = sum(adler32(part) & 0xFFFF for part in (start, rest[:256])) - 2 + 8 * 32
    total += sum(rest[256:])
    return b"%s%06o\0 %s" % (start, total, rest)


def _record(key: bytes, value: bytes) -> bytes:
    """'LENGTH KEY=VALUE\\n', where the length counts itself."""
    size = len(key) + len(value) + 3
    length = size + len(str(size))
    length = size + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _seconds(time: int) -> bytes:
    """A time in nanoseconds as seconds with a fraction, without zeros at its end."""
    sign = "-" if time < 0 else ""
    seconds, fraction = divmod(abs(time), 10**9)
    return f"{sign}{seconds}.{fraction:09}".rstrip("0").rstrip(".").encode()


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
