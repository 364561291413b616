# SPDX-License-Identifier: Apache-2.0
"""Reading the bytes of an image: parts of files, digests, decompression.

Part of the child, so it imports nothing of sandboxlib from outside this folder: see extract.py.
"""

from __future__ import annotations

import hashlib
import os
import sys
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    class Stream(Protocol):
        def read(self, size: int, /) -> bytes: ...


CHUNK = 1 << 16  # bytes of one read or write
INPUT = 1 << 14  # bytes for a decompressor, which copies the part that follows a gzip member
MAX_PADDING = 16 << 20  # bytes after the end of an archive
ZSTD = b"\x28\xb5\x2f\xfd"
MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", ZSTD)


class Refused(Exception):
    """The image is refused. The parent passes the message on to its caller."""


class Full(Refused):
    """The disk is full."""


def shown(name: bytes | str) -> str:
    """A name for a message: short, and without control characters for the terminal."""
    if isinstance(name, bytes):
        name = name[:400].decode(errors="backslashreplace")
    return ascii(name[:400]) if not name[:400].isprintable() else repr(name[:400])


class File:
    """A file of the image: `size` bytes of a descriptor from `offset` on."""

    def __init__(self, name: str, fd: int, offset: int, size: int) -> None:
        self.name, self.fd, self.offset, self.size = name, fd, offset, size

    def magic(self) -> bytes:
        """The first bytes, if they are those of a compressed file; b"" if it is not compressed."""
        head = os.pread(self.fd, min(self.size, 6), self.offset)
        return next((magic for magic in MAGIC if head.startswith(magic)), b"")

    def whole(self, most: int) -> bytes:
        """Read its content. Raises Refused if that is longer than `most` bytes."""
        if self.size > most:
            raise Refused(f"{shown(self.name)} is longer than {most} bytes")
        data = b""
        while len(data) < self.size and (chunk := self._next(len(data))):
            data += chunk
        if len(data) < self.size:
            raise Refused(f"{shown(self.name)} is truncated")
        return data

    def _next(self, at: int) -> bytes:
        return os.pread(self.fd, self.size - at, self.offset + at)


class Part:
    """A File as a stream. If the file is shorter than it says, the stream ends early; the digest or
    the tar shows it.
    """

    def __init__(self, file: File) -> None:
        self._fd, self._at, self._end = file.fd, file.offset, file.offset + file.size

    def read(self, size: int, /) -> bytes:
        data = os.pread(self._fd, min(size, self._end - self._at), self._at)
        self._at += len(data)
        return data


class Piped:
    """A pipe as a stream, whose first bytes can be looked at."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._head = b""
        while len(self._head) < 6 and (data := os.read(fd, 6 - len(self._head))):
            self._head += data

    def magic(self) -> bytes:
        """As File.magic."""
        return next((magic for magic in MAGIC if self._head.startswith(magic)), b"")

    def read(self, size: int, /) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        return os.read(self._fd, size)


class Counted:
    """A stream that hashes, counts and limits the bytes of another one, a chunk at a time."""

    def __init__(self, stream: Stream, limit: int) -> None:
        self._stream, self._limit = stream, limit
        self._past = "it is larger than max_size and max_members allow"
        self._hash = hashlib.sha256()
        self._buffer = b""
        self._at = 0  # in the buffer
        self.size = 0  # of what was read of the stream

    def read(self, size: int = CHUNK, /) -> bytes:
        """Read the next bytes, at most `size`; b"" only at the end."""
        if self._at >= len(self._buffer):
            self._fill()
        data = self._buffer[self._at : self._at + (CHUNK if size < 0 else size)]
        self._at += len(data)
        return data

    def _fill(self) -> None:
        self._buffer, self._at = self._stream.read(CHUNK), 0
        self._hash.update(self._buffer)
        self.size += len(self._buffer)
        if self.size > self._limit:
            raise Refused(self._past)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def check(self, digest: str, what: str) -> None:
        """Read the rest, which is padding, and compare the digest. Raises Refused."""
        self._limit = self.size + MAX_PADDING
        self._past = f"more than {MAX_PADDING} bytes follow its end"
        self._at = len(self._buffer)
        while self.read():
            self._at = len(self._buffer)
        actual = self.digest()
        if digest and actual != digest:
            raise Refused(f"the {what} is not {digest}, but {actual}")

    def digest(self) -> str:
        """The digest of what was read."""
        return f"sha256:{self._hash.hexdigest()}"


class Gzip:
    """The content of a gzip file. Python's gzip module is not used, because it reads names and
    padding byte by byte.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._input = b""
        self._member: Any = None

    def read(self, size: int, /) -> bytes:
        while True:
            if not self._input:
                self._input = self._stream.read(INPUT)
                if not self._input:
                    if self._member is not None:
                        raise Refused("it is truncated")
                    return b""
            if self._member is None:
                self._input = self._input.lstrip(b"\0")  # padding after a member
                if not self._input:
                    continue
                self._member = zlib.decompressobj(wbits=31)
            data: bytes = self._member.decompress(self._input, size)
            if self._member.eof:
                self._input, self._member = self._member.unused_data, None
            else:
                self._input = self._member.unconsumed_tail
            if data:
                return data


def decompressors(magics: set[bytes], zstd: str | None) -> dict[bytes, Callable[[Any], Stream]]:
    """A function that decompresses, for each of these magics. It imports the modules now, because
    later the root directory is that of the image.
    """
    known: dict[bytes, Callable[[Any], Stream]] = {b"": lambda stream: stream, b"\x1f\x8b": Gzip}
    if b"BZh" in magics:
        import bz2

        known[b"BZh"] = bz2.BZ2File
    if b"\xfd7zXZ\0" in magics:
        import lzma

        known[b"\xfd7zXZ\0"] = lzma.LZMAFile
    if ZSTD in magics:
        if zstd is None:
            raise Refused("it is compressed by zstd: install sandboxlib[zstd]")
        sys.path.append(zstd)
        import zstandard

        known[ZSTD] = lambda stream: zstandard.ZstdDecompressor().stream_reader(
            stream, read_across_frames=True
        )
    return known
