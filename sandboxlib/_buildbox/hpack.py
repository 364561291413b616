# SPDX-License-Identifier: Apache-2.0
"""HPACK (RFC 7541), as far as an answer of gRPC needs it: the status, and what it says.

What we send uses no table. What comes may use both tables; a text in Huffman's code is passed over
unless it is a number, as that of a status is.
"""

from __future__ import annotations

_MOST_TABLE = 4096  # bytes of the dynamic table, as the standard begins with
_STATIC = 61  # entries of the static table
_STATUS = {8: b"200", 9: b"204", 10: b"206", 11: b"304", 12: b"400", 13: b"404", 14: b"500"}
UNKNOWN = b"\0"  # a text that was not decoded

Header = tuple[bytes, bytes]


class Malformed(Exception):
    """The peer breaks the protocol."""


def encode(headers: list[Header]) -> bytes:
    """Headers as literals that no table keeps."""
    block = bytearray()
    for name, value in headers:
        block += b"\0" + _length(len(name)) + name + _length(len(value)) + value
    return bytes(block)


def _length(number: int) -> bytes:
    if number < 0x7F:
        return bytes((number,))
    encoded = bytearray((0x7F,))
    number -= 0x7F
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


class Decoder:
    """Decodes the header blocks of one connection, in their order."""

    def __init__(self) -> None:
        self._table: list[Header] = []  # the newest first
        self._size, self._limit = 0, _MOST_TABLE

    def decode(self, block: bytes) -> dict[bytes, bytes]:
        """The headers by their names. Malformed."""
        headers: dict[bytes, bytes] = {}
        at = 0
        try:
            while at < len(block):
                first = block[at]
                if first & 0x80:
                    index, at = _integer(block, at, 7)
                    name, value = self._entry(index)
                elif first & 0xE0 == 0x20:
                    self._limit, at = _integer(block, at, 5)
                    if self._limit > _MOST_TABLE:
                        raise Malformed("a table of headers that is larger than allowed")
                    self._shrink()
                    continue
                else:
                    keeps = bool(first & 0x40)
                    index, at = _integer(block, at, 6 if keeps else 4)
                    if index:
                        name = self._entry(index)[0]
                    else:
                        name, at = _text(block, at)
                    value, at = _text(block, at)
                    if keeps:
                        self._keep(name, value)
                headers[name] = value
        except IndexError:
            raise Malformed("a block of headers ends too early") from None
        return headers

    def _entry(self, index: int) -> Header:
        if not index:
            raise Malformed("a header with the number 0")
        if index <= _STATIC:
            return (b":status", _STATUS[index]) if index in _STATUS else (UNKNOWN, UNKNOWN)
        if index - _STATIC > len(self._table):
            raise Malformed(f"a header with the number {index}, which no table has")
        return self._table[index - _STATIC - 1]

    def _keep(self, name: bytes, value: bytes) -> None:
        self._table.insert(0, (name, value))
        self._size += len(name) + len(value) + 32
        self._shrink()

    def _shrink(self) -> None:
        while self._table and self._size > self._limit:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + 32


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    most = (1 << bits) - 1
    number = block[at] & most
    at += 1
    if number < most:
        return number, at
    for shift in range(0, 35, 7):
        byte = block[at]
        at += 1
        number += (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise Malformed("a number in the headers is too large")


def _text(block: bytes, at: int) -> tuple[bytes, int]:
    is_coded = block[at] & 0x80
    size, at = _integer(block, at, 7)
    text = block[at : at + size]
    if len(text) < size:
        raise Malformed("a text in the headers ends too early")
    return (_digits(text) if is_coded else text), at + size


def _digits(coded: bytes) -> bytes:
    """The digits that Huffman's code of the standard has for a number; UNKNOWN for any other text.

    0, 1 and 2 are five bits, of the values 0 to 2; 3 to 9 are six, from 25 on. Ones fill the end.
    """
    bits = "".join(f"{byte:08b}" for byte in coded)
    text = bytearray()
    while bits.strip("1") or len(bits) >= 8:
        five, six = int(bits[:5], 2), int(bits[:6].ljust(6, "1"), 2)
        if five < 3:
            text.append(0x30 + five)
            bits = bits[5:]
        elif 25 <= six < 32 and len(bits) >= 6:
            text.append(0x33 + six - 25)
            bits = bits[6:]
        else:
            return UNKNOWN
    return bytes(text)
