# SPDX-License-Identifier: Apache-2.0
"""The messages that the runner reads and writes, without the packages of protobuf, whose import
takes as long as a small command.

Numbers of fields are from remote_execution.proto and local_cas.proto.
"""

from __future__ import annotations

from .. import _reapi
from .._inputs.snapshot import Folder, Leaf, Link, Properties, Total
from ..errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_MOST_VARINT = 10  # bytes
_LONGEST_NAME, _LONGEST_TARGET = 255, 4095

#: The values of each field: int for a number, bytes for all that has a length.
Fields = dict[int, list["int | bytes"]]


def fields(data: bytes) -> Fields:
    """The fields of a message. SpecError if it is none."""
    found: Fields = {}
    at, end = 0, len(data)
    try:
        while at < end:
            key, at = _varint(data, at)
            kind = key & 7
            if kind == 0:
                value: int | bytes
                value, at = _varint(data, at)
            else:
                if kind == 2:
                    size, at = _varint(data, at)
                else:
                    size = {1: 8, 5: 4}[kind]
                value = data[at : at + size]
                at += size
                if at > end:
                    raise IndexError
            found.setdefault(key >> 3, []).append(value)
    except (IndexError, KeyError):
        raise SpecError(f"a message of {end} bytes is no message of protobuf") from None
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = data[at]
    at += 1
    if number < 0x80:
        return number, at
    number &= 0x7F
    for shift in range(7, 7 * _MOST_VARINT, 7):
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise IndexError


def blob(found: Fields, number: int) -> bytes:
    """The last value of a field that has a length; b"" without one. SpecError."""
    value = found.get(number, [b""])[-1]
    if isinstance(value, int):
        raise SpecError(f"the field {number} of a message has another type")
    return value


def blobs(found: Fields, number: int) -> list[bytes]:
    values = found.get(number, [])
    if any(isinstance(value, int) for value in values):
        raise SpecError(f"the field {number} of a message has another type")
    return values  # type: ignore[return-value]


def number_of(found: Fields, number: int) -> int:
    """The last value of a field that is a number; 0 without one. SpecError."""
    value = found.get(number, [0])[-1]
    if not isinstance(value, int):
        raise SpecError(f"the field {number} of a message has another type")
    return value - (1 << 64) if value >> 63 else value


def text_of(found: Fields, number: int) -> str:
    try:
        return blob(found, number).decode()
    except UnicodeDecodeError:
        raise SpecError(f"the field {number} of a message is no text") from None


def digest_of(found: Fields, number: int, what: str) -> str:
    """A digest, "HASH/SIZE". SpecError."""
    inner = fields(blob(found, number))
    return _reapi.check_digest(what, f"{text_of(inner, 1)}/{number_of(inner, 2)}")


class Action:
    """An Action message. timeout: seconds; None: it names none."""

    def __init__(self, data: bytes) -> None:
        found = fields(data)
        self.command = digest_of(found, 1, "the command of the Action")
        self.root = digest_of(found, 2, "the input root of the Action")
        duration = fields(blob(found, 6))
        seconds = number_of(duration, 1) + number_of(duration, 2) / 1e9
        if seconds < 0:
            raise SpecError(f"the timeout of the Action is {seconds} s")
        self.timeout = seconds or None
        self.platform = _pairs(blob(found, 10))

    @property
    def asks_for_ids(self) -> bool:
        return any(name in ("unixUID", "unixGID") for name, _ in self.platform)


class Command:
    """A Command message. outputs: (path, kinds), the kinds out of "file" and "directory"."""

    def __init__(self, data: bytes) -> None:
        found = fields(data)
        self.argv = blobs(found, 1)
        self.environment = dict(_pair(each) for each in blobs(found, 2))
        self.platform = _pairs(blob(found, 5))
        self.directory = text_of(found, 6)
        both = frozenset(("file", "directory"))
        paths = [(each.decode(), both) for each in blobs(found, 7)]
        if not paths:  # version 2.0 of the API
            paths = [(each.decode(), frozenset(("file",))) for each in blobs(found, 3)]
            paths += [(each.decode(), frozenset(("directory",))) for each in blobs(found, 4)]
        self.outputs = paths
        self.properties = frozenset(each.decode() for each in blobs(found, 8))
        self.format = number_of(found, 9)  # 0: Tree, 1: Directory, 2: both
        if not self.argv:
            raise SpecError("the Command has no arguments")


def _pair(data: bytes) -> tuple[bytes, bytes]:
    found = fields(data)
    return blob(found, 1), blob(found, 2)


def _pairs(platform: bytes) -> list[tuple[str, str]]:
    pairs = map(_pair, blobs(fields(platform), 1))
    return [(name.decode(), value.decode()) for name, value in pairs]


class Known(Folder):
    """A directory of the input root, whose message is read when somebody looks for a name.

    fetch: returns the content of a digest.
    """

    __slots__ = ("_fetch", "_is_read")

    def __init__(self, digest: str, fetch: Callable[[str], bytes]) -> None:
        super().__init__()
        self.digest, self._fetch, self._is_read = digest, fetch, False
        self.total = Total(0, 0, 0, True, True)  # whoever made the input root has all below it

    def get(self, name: bytes, default: object = None) -> object:  # type: ignore[override]
        self.read()
        return super().get(name, default)

    def read(self) -> Known:
        """Reads the message, if that is still to be done. SpecError if it is hostile."""
        if not self._is_read:
            self._is_read = True
            found = fields(self._fetch(self.digest))
            for node in blobs(found, 1):
                inner = fields(node)
                content = digest_of(inner, 2, "a file of the input root")
                extra = _properties(inner, 6)
                self._add(inner, Leaf(content, bool(number_of(inner, 4)), b"", 0, extra))
            for node in blobs(found, 2):
                inner = fields(node)
                content = digest_of(inner, 2, "a directory of the input root")
                self._add(inner, Known(content, self._fetch))
            for node in blobs(found, 3):
                inner = fields(node)
                target = blob(inner, 2)
                if not target or b"\0" in target or len(target) > _LONGEST_TARGET:
                    raise SpecError("a symbolic link of the input root has no target")
                self._add(inner, Link(target, _properties(inner, 4)))
            if 5 in found:
                self.properties = _properties(found, 5)
            # BuildStream's marks, and times that nobody asks for, are no part of an output.
            entries = [
                self.properties,
                *(getattr(each, "properties", None) for each in self.values()),
            ]
            if any(each is not None for each in entries):
                self.total = Total(0, 0, 0, False, True)
        return self

    def _add(self, found: Fields, node: Leaf | Link | Folder) -> None:
        name = blob(found, 1)
        if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
            raise SpecError(f"nothing in a directory has the name {name[:300]!r}")
        if len(name) > _LONGEST_NAME or name in self:
            raise SpecError(f"a directory has the name {name[:300]!r}, too long or twice")
        self[name] = node


def _properties(found: Fields, number: int) -> Properties | None:
    if number not in found:
        return None
    inner = fields(blob(found, number))
    named = tuple(sorted(_pair(each) for each in blobs(inner, 1)))
    time = fields(blob(inner, 2))
    mtime = (number_of(time, 1), number_of(time, 2)) if 2 in inner else None
    mode = number_of(fields(blob(inner, 3)), 1) if 3 in inner else None
    return Properties(mode, mtime, named)


# ---- what is written -------------------------------------------------------------------------


def digest_field(number: int, digest: str) -> bytes:
    return _reapi._message(number, _reapi._digest(digest))


def time_field(number: int, nanoseconds: int) -> bytes:
    seconds, rest = divmod(nanoseconds, 10**9)
    return _reapi._message(number, _reapi._number(1, seconds) + _reapi._number(2, rest))


def struct(values: Iterable[tuple[str, float | str]]) -> bytes:
    """A google.protobuf.Any of a Struct of numbers and texts."""
    from struct import pack

    encoded = b""
    for name, value in values:
        if isinstance(value, str):
            inner = _reapi._message(3, value.encode())
        else:
            inner = b"\x11" + pack("<d", value)
        encoded += _reapi._message(1, _reapi._text(1, name.encode()) + _reapi._message(2, inner))
    kind = b"type.googleapis.com/google.protobuf.Struct"
    return _reapi._text(1, kind) + _reapi._text(2, encoded)
