# SPDX-License-Identifier: Apache-2.0
"""Reads the members of a tar. Part of the child.

Python's tarfile module is not used: it takes a damaged header for the end of the archive, and in
some versions it loops for ever on a negative size, and takes seconds for a pax header of 64 KiB.
Names are bytes throughout, because they need not be UTF-8.

This module reads each byte of the archive a bounded number of times: everything that repeats has a
limit.
"""

from __future__ import annotations

import re

from .blobs import CHUNK, Refused, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .blobs import Stream

BLOCK = 512
NEWLINE = ord("\n")
MAX_EXTRA = 1 << 20  # bytes of a pax header, a long name or a sparse map, as in Go's archive/tar
MAX_EXTRAS = 16  # extended headers before a member
MAX_RECORDS = 100  # in a pax header: usually a few, and one for each extended attribute
MAX_NAME = 4095  # bytes of a name or a link: PATH_MAX without the NUL byte
REGULAR = (b"0", b"\0", b"7", b"S")
NAMES = (b"path", b"linkpath", b"GNU.sparse.name")
#: The keys that we use of a pax header: of a global one, and of any.
OF_ALL = {b"uid", b"gid", b"mtime"}
KNOWN = {*NAMES, *OF_ALL, b"size", b"GNU.sparse.major", b"GNU.sparse.map"}
KNOWN |= {b"GNU.sparse.realsize", b"GNU.sparse.size"}
SPARSE = b"GNU.sparse."
ATTRIBUTE = b"SCHILY.xattr."  # before the name of an extended attribute

_OCTAL = re.compile(rb" *([0-7]*) *(?:\0.*)?", re.DOTALL)
MAX_DIGITS = 19  # decimal digits of a 63-bit number
_DIGITS = re.compile(rb"[0-9]{1,19}")
_TIME = re.compile(rb"(-?)([0-9]{1,12})(?:\.([0-9]{0,40}))?")


class Member:
    """A member of the archive: its header, overridden by the pax and GNU headers before it."""

    def __init__(self, block: bytes, extra: dict[bytes, bytes]) -> None:
        self.kind = block[156:157]
        name = text(block[:100])
        if block[257:263] == b"ustar\0" and (prefix := text(block[345:500])):
            name = prefix + b"/" + name if name else prefix
        self.name = extra.get(b"GNU.sparse.name") or extra.get(b"path") or name
        self.link = extra.get(b"linkpath") or text(block[157:257])  # the target of a link
        self.mode = number(block[100:108]) & 0o7777
        self.uid = decimal(extra, b"uid", number(block[108:116]))
        self.gid = decimal(extra, b"gid", number(block[116:124]))
        self.mtime = nanoseconds(extra.get(b"mtime")) or number(block[136:148]) * 10**9
        self.stored = decimal(extra, b"size", number(block[124:136]))  # bytes in the archive
        self.size = self.stored  # bytes of the file
        self.map: list[tuple[int, int]] | None = None  # of a sparse file: (start, size)
        self.attributes: dict[bytes, bytes] = {}  # extended attributes
        if ATTRIBUTE in extra:
            start = len(ATTRIBUTE)
            names = [key for key in extra if key.startswith(ATTRIBUTE) and key != ATTRIBUTE]
            self.attributes = {key[start:]: extra[key] for key in names}
        if self.kind in REGULAR and self.name.endswith(b"/"):
            self.kind = b"5"
        if self.kind not in REGULAR:
            self.stored = self.size = 0
        if not (0 <= self.stored < 1 << 63 and abs(self.mtime) < 1 << 63):
            raise Refused(f"{shown(self.name)} has an impossible size or time")
        if not (0 <= self.uid < (1 << 32) - 1 and 0 <= self.gid < (1 << 32) - 1):
            raise Refused(f"{shown(self.name)} has an impossible owner")


class Archive:
    """Iterates over the members of a tar. content() reads the content of the current one."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.offset = 0  # the position in the stream
        self.left = 0  # bytes of the content that are not read yet
        self.padding = 0  # bytes after the content
        self.digest = ""  # of the whole stream, set by who reads it
        self.ended = False  # True: the mark of the end was read, not only the end of the stream

    def __iter__(self) -> Iterator[Member]:
        extra: dict[bytes, bytes] = {}
        everywhere: dict[bytes, bytes] = {}
        extras = 0
        while True:
            if self.left:
                self.skip(self.left)
            block = self.header() if not self.padding or self.pad() else None
            self.left = 0
            if block is None:
                return
            kind = block[156:157]
            if kind in b"xgXLK":
                extras += 1
                self.read_extra(block, extras, everywhere if kind == b"g" else extra)
                continue
            member = Member(block, {**everywhere, **extra} if everywhere else extra)
            self.left, self.padding = member.stored, -member.stored % BLOCK
            if member.kind == b"S":
                self.old_sparse(member, block)
            elif SPARSE in extra:
                self.pax_sparse(member, extra)
            extra, extras = {}, 0
            yield member

    def read_extra(self, block: bytes, count: int, extra: dict[bytes, bytes]) -> None:
        """Read an extended header, which is about the next member or about all that follow."""
        kind, size = block[156:157], number(block[124:136])
        if not 0 <= size <= MAX_EXTRA or count > MAX_EXTRAS:
            raise Refused(f"an extended header of {size} bytes, {count} in a row")
        data = self.take(size + -size % BLOCK)[:size]
        if kind in b"LK":
            values = {b"path" if kind == b"L" else b"linkpath": text(data)}
        else:
            values = pax(data)
        for key in NAMES:
            if len(values.get(key, b"")) > MAX_NAME:
                raise Refused(f"name too long: {shown(values[key])}")
        # A long global value would be copied to each member: much work for a small archive.
        if kind == b"g":
            values = {key: value for key, value in values.items() if ATTRIBUTE not in key}
        if kind == b"g" and not values.keys() <= OF_ALL:
            raise Refused("a global header gives all members the same name, size or map")
        extra.update(values)

    def header(self) -> bytes | None:
        start = self.offset
        block = self.stream.read(BLOCK)
        if not block:
            return None
        self.offset += len(block)
        if len(block) < BLOCK:
            block += self.take(BLOCK - len(block))
        if block.count(0) == BLOCK:
            self.ended = True
            return None
        checksum = number(block[148:156])
        total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
        if checksum != total:
            # Some old programs added the bytes up as signed numbers.
            high = sum(byte > 127 for byte in block[:148] + block[156:])
            if checksum != total - 256 * high:
                raise Refused(f"no header of a tar at byte {start}")
        return block

    def take(self, size: int) -> bytes:
        """Read exactly that many bytes of the stream. Raises Refused if it ends before."""
        parts = []
        while size > 0:
            data = self.stream.read(min(size, CHUNK))
            if not data:
                raise Refused("it is truncated")
            self.offset += len(data)
            size -= len(data)
            parts.append(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def skip(self, size: int) -> None:
        while size > 0:
            size -= len(self.take(min(size, CHUNK)))

    def pad(self) -> bool:
        """Skip the padding after the content. Returns False if the stream ends within it, as after
        the last file of an archive of umoci.
        """
        left, self.padding = self.padding, 0
        while left > 0 and (data := self.stream.read(left)):
            self.offset += len(data)
            left -= len(data)
        return left == 0

    def content(self, size: int) -> bytes:
        """Read exactly that many bytes of the current member's content."""
        if size > self.left:
            raise Refused("its map of a sparse file does not fit")
        self.left -= size
        return self.take(size)

    def old_sparse(self, member: Member, block: bytes) -> None:
        """Read the map of GNU tar's type S: 4 pairs in the header, 21 in each block after it."""
        member.size = number(block[483:495])
        pairs, is_continued = bytearray(block[386:482]), block[482]
        while is_continued:
            if len(pairs) > MAX_EXTRA:
                raise Refused(f"{shown(member.name)} has too long a map")
            block = self.take(BLOCK)
            pairs += block[:504]
            is_continued = block[504]
        numbers = [number(bytes(pairs[at : at + 12])) for at in range(0, len(pairs), 12)]
        self.set_map(member, numbers)

    def pax_sparse(self, member: Member, extra: dict[bytes, bytes]) -> None:
        """Read the map of GNU tar's pax formats: 0.1 has it in the header, 1.0 before the data."""
        if extra.get(b"GNU.sparse.major") == b"1":
            member.size = decimal(extra, b"GNU.sparse.realsize", -1)
            numbers = self.read_map(member)
        else:
            member.size = decimal(extra, b"GNU.sparse.size", -1)
            numbers = extra.get(b"GNU.sparse.map", b"").split(b",")
        if not (
            all(map(bytes.isdigit, numbers)) and max(map(len, numbers), default=0) <= MAX_DIGITS
        ):
            raise Refused(f"{shown(member.name)} has an impossible map: not a number in it")
        self.set_map(member, list(map(int, numbers)))

    def read_map(self, member: Member) -> list[bytes]:
        """Read the map before the content, in blocks: a line with the number of pairs, then a line
        for each number.
        """
        data = bytearray()
        lines, n_lines = 0, 1
        while lines < n_lines:
            if len(data) > MAX_EXTRA:
                raise Refused(f"{shown(member.name)} has too long a map")
            block = self.content(BLOCK)
            data += block
            lines += block.count(b"\n")
            if n_lines == 1 and lines:
                n_lines += 2 * digits(bytes(data[: data.index(b"\n")]))
        return bytes(data).split(b"\n", n_lines)[1:n_lines]

    def set_map(self, member: Member, numbers: list[int]) -> None:
        """Check the pairs of a map, and keep those that have content. Raises Refused."""
        member.map = []
        end = total = 0
        for start, size in zip(numbers[::2], numbers[1::2], strict=False):
            if size < 0 or (size and start < end):
                raise Refused(f"{shown(member.name)} has an impossible map")
            end = max(end, start + size)
            if size:
                member.map.append((start, size))
                total += size
        if end > member.size or total != self.left:
            raise Refused(f"{shown(member.name)} has an impossible map")


def text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def digits(field: bytes) -> int:
    if not _DIGITS.fullmatch(field):
        raise Refused(f"not a number: {shown(field)}")
    return int(field)


def decimal(extra: dict[bytes, bytes], key: bytes, default: int) -> int:
    return digits(extra[key]) if extra.get(key) else default


def nanoseconds(field: bytes | None) -> int:
    """A time in seconds, such as 1.5, as nanoseconds; 0 if there is none."""
    if not field:
        return 0
    match = _TIME.fullmatch(field)
    if not match:
        raise Refused(f"not a time: {shown(field)}")
    value = int(match[2]) * 10**9 + int((match[3] or b"").ljust(9, b"0")[:9])
    return -value if match[1] else value


def number(field: bytes) -> int:
    """The number in a field, which is octal, or binary if the highest bit is set."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(b"\0" * (field[0] == 0x80) + field[1:], "big", signed=True)
    match = _OCTAL.fullmatch(field)
    if not match:
        raise Refused(f"not an octal number: {shown(text(field))}")
    return int(match[1] or b"0", 8)


def pax(data: bytes) -> dict[bytes, bytes]:
    """The records of a pax header, which look like 'LENGTH KEY=VALUE\\n'. The key SPARSE is added
    if one of them is about a sparse file, and ATTRIBUTE if one is an extended attribute.
    """
    values = {}
    start, size, count = 0, len(data), 0
    while start < size:
        count += 1
        if count > MAX_RECORDS:
            raise Refused(f"a pax header of more than {MAX_RECORDS} records")
        space = data.find(b" ", start, start + 9)
        length = data[start : max(space, start)]
        end = start + int(length) if length.isdigit() else size + 1
        equals = data.find(b"=", space, end)
        if equals < 0 or end > size or data[end - 1] != NEWLINE:
            raise Refused("a damaged pax header")
        key = data[space + 1 : equals]
        if key in KNOWN:
            values[key] = data[equals + 1 : end - 1]
        elif key.startswith(ATTRIBUTE):
            values[key] = data[equals + 1 : end - 1]
            values[ATTRIBUTE] = b""
        if key.startswith(SPARSE):
            values[SPARSE] = b""
        start = end
    return values


def parts_of(name: bytes, what: str) -> list[bytes]:
    """The components of a relative name. Raises Refused if it could lead out of the root."""
    if not name or b"\0" in name:
        raise Refused(f"{what} is empty or contains a NUL byte: {shown(name)}")
    if name.startswith(b"/"):
        raise Refused(f"{what} is absolute: {shown(name)}")
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise Refused(f"{what} contains '..': {shown(name)}")
    return parts
