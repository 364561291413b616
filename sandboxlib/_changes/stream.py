# SPDX-License-Identifier: Apache-2.0
"""Takes apart what the confined reader writes; child/jobs.py has its form. Nothing of it is
trusted.
"""

from __future__ import annotations

import os
import re
import stat

from .change import KINDS, TYPES, Change

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Consumer(Protocol):
        """Takes the items one by one."""

        def begin(self, item: Item) -> None: ...
        def content(self, data: bytes) -> None: ...
        def end(self, item: Item) -> None: ...


SAME = (
    ""  # the kind of what did not change: a directory on the way, the first name of a linked file
)
MOST_RECORD = (
    1 << 26
)  # bytes: a file has up to 64 KiB in names of attributes, 64 KiB in each of them
_FORMATS = {
    "file": (stat.S_IFREG,),
    "directory": (stat.S_IFDIR,),
    "symlink": (stat.S_IFLNK,),
    "fifo": (stat.S_IFIFO,),
    "socket": (stat.S_IFSOCK,),
    "device": (stat.S_IFCHR, stat.S_IFBLK),
}
_NUMBERS = re.compile(rb"(\d{1,5}) (\d{1,19}) (\d{1,10}) (\d{1,10}) (-?\d{1,19})")
_PARTS = re.compile(rb"\d{1,19} \d{1,19}(?: \d{1,19} \d{1,19})*")
_DEVICE = re.compile(rb"(\d{1,10}):(\d{1,10})")
_MOST_ID = (1 << 32) - 1
_MOST_SIZE = (1 << 63) - 1


class Nonsense(Exception):
    """The child said something that an honest one never says."""


class Item:
    """A path, and what became of it.

    change: with the kind SAME too. parts: where a regular file has content, as (start, length); the
    rest of it is a hole. None: its content was left out.
    """

    __slots__ = ("change", "parts")

    def __init__(self, change: Change, parts: list[tuple[int, int]] | None) -> None:
        self.change, self.parts = change, parts


class Stream:
    """Gives the items to a consumer as the bytes come. Raises Nonsense."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._rest = b""
        self._item: Item | None = None
        self._left = 0  # bytes of content of the item
        self._ended = False

    def take(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        at, size = 0, len(data)
        while at < size:
            if self._item is not None:
                part = data[at : at + self._left]
                at += len(part)
                self._left -= len(part)
                self._consumer.content(part)
                if self._left:
                    break
                self._finish()
                continue
            if self._ended:
                raise Nonsense("something after the end")
            length = int.from_bytes(data[at : at + 4], "big")
            if length > MOST_RECORD:
                raise Nonsense(f"a record of {length} bytes")
            if size - at < 4 + length:
                break
            at += 4 + length
            if length == 0:
                self._ended = True
                continue
            self._begin(data[at - length : at])
        self._rest = data[at:]

    def close(self) -> None:
        """Raises Nonsense if that was not all."""
        if not self._ended or self._rest:
            raise Nonsense("it ended too early")

    def _begin(self, record: bytes) -> None:
        item = parse(record)
        self._item = item
        self._left = sum(length for _, length in item.parts) if item.parts else 0
        self._consumer.begin(item)
        if not self._left:
            self._finish()

    def _finish(self) -> None:
        item, self._item = self._item, None
        assert item is not None
        self._consumer.end(item)


def parse(record: bytes) -> Item:
    """The item in a record. Raises Nonsense."""
    fields = record.split(b"\0")
    numbers = _NUMBERS.fullmatch(fields[3]) if len(fields) >= 9 else None
    if numbers is None or fields.pop() or not len(fields) & 1 == 0:
        raise Nonsense(repr(record[:200]))
    path, kind, kind_of_file = map(os.fsdecode, fields[:3])
    target, link = (os.fsdecode(field) or None for field in fields[4:6])
    device, parts = fields[6:8]
    mode, size, uid, gid, mtime = map(int, numbers.groups())
    is_honest = (
        is_path(path)
        and (kind in KINDS or kind == SAME)
        and kind_of_file in TYPES
        and stat.S_IFMT(mode) in _FORMATS[kind_of_file]
        and mode < 1 << 16
        and size <= _MOST_SIZE
        and max(uid, gid) <= _MOST_ID
        and (link is None or is_path(link))
    )
    pair = _DEVICE.fullmatch(device) if device else None
    if not is_honest or (device and not pair):
        raise Nonsense(repr(record[:200]))
    values = path, kind, kind_of_file, mode, size, uid, gid, mtime, target, link
    device_of = (int(pair[1]), int(pair[2])) if pair else None
    attributes = _attributes(fields[8:]) if len(fields) > 8 else ()
    made = Change._of((*values, device_of, attributes))
    return Item(made, _parts(parts, size, kind_of_file))


def is_path(path: str) -> bool:
    """Return True for an absolute path without `.`, `..` and empty components."""
    if path == "/":
        return True
    return path[:1] == "/" and not {"", ".", ".."} & set(path[1:].split("/"))


def _attributes(fields: list[bytes]) -> tuple[tuple[str, bytes], ...]:
    names = map(os.fsdecode, fields[::2])
    try:
        values = [bytes.fromhex(value.decode("ascii")) for value in fields[1::2]]
    except ValueError:
        raise Nonsense("an attribute that is not hexadecimal") from None
    return tuple(zip(names, values, strict=True))


def _parts(field: bytes, size: int, kind: str) -> list[tuple[int, int]] | None:
    if field == b"?":
        return None
    if not field or field == b"-":
        return []
    if kind != "file" or not _PARTS.fullmatch(field):
        raise Nonsense(f"parts that are none: {field[:200]!r}")
    numbers = list(map(int, field.split()))
    parts = list(zip(numbers[::2], numbers[1::2], strict=True))
    end = 0
    for start, length in parts:
        if start < end or not length:
            raise Nonsense(f"parts that overlap: {field[:200]!r}")
        end = start + length
    if end > size:
        raise Nonsense(f"parts beyond the end: {field[:200]!r}")
    return parts
