# SPDX-License-Identifier: Apache-2.0
"""The program that unpacks one archive: a child of ours, confined before it reads a byte.

It is run by path, with the archive as stdin and its settings as JSON in argv[1]; nothing of
sandboxlib is imported. The parent gives it a sandbox in which only the target is writable, and it
makes the target its root directory. So whatever an archive says stays inside; what is refused is
refused because no honest image has it.

It reads the tar itself. The tarfile module takes a damaged header for the end of the archive, and
in versions that are in use goes round in circles for a negative size, and takes seconds for a pax
header of 64 KiB. Names are bytes throughout, and need not be UTF-8.

Its stdout is one JSON document: {"error"}, or {"max_size", "max_members", "manifest"} with what is
left of the limits.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import resource
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Protocol

    class Stream(Protocol):
        def read(self, size: int, /) -> bytes: ...


BLOCK = 512
CHUNK = 1 << 20
MAX_EXTRA = 1 << 20  # bytes of a pax header or a long name
MAX_EXTRAS = 16  # of them before a member
MAX_PADDING = 16 << 20  # bytes after the end of an archive
MAX_JSON = 4 << 20
MEMORY = 2 << 30  # bytes of address space
REGULAR = (b"0", b"\0", b"7", b"S")
PAX = re.compile(rb"path|linkpath|size|uid|gid|mtime|GNU\.sparse\.\w+")  # what is looked at
OPAQUE = b".wh..wh..opq"
ZSTD = b"\x28\xb5\x2f\xfd"


class Refused(Exception):
    """What the parent tells its caller."""


def shown(name: bytes) -> str:
    """A name for a message: nothing that a terminal would obey."""
    return repr(name[:400].decode(errors="backslashreplace"))


# ---- streams ---------------------------------------------------------------------------------


class Counted:
    """A stream that is hashed, counted and limited while it is read."""

    def __init__(self, stream: Stream, limit: int) -> None:
        self._stream, self._limit = stream, limit
        self._past = "it is larger than max_size and max_members allow"
        self._hash = hashlib.sha256()
        self._size = 0

    def read(self, size: int = CHUNK, /) -> bytes:
        data = self._stream.read(CHUNK if size < 0 else size)
        self._hash.update(data)
        self._size += len(data)
        if self._size > self._limit:
            raise Refused(self._past)
        return data

    def check(self, digest: str, what: str) -> None:
        """Reads the rest, which is padding, and compares."""
        self._limit = self._size + MAX_PADDING
        self._past = f"more than {MAX_PADDING} bytes follow its end"
        while self.read():
            pass
        found = f"sha256:{self._hash.hexdigest()}"
        if digest and found != digest:
            raise Refused(f"the {what} is not {digest}, but {found}")


class Part:
    """The first bytes of a file. One that is shorter ends early: the digest or the tar tells."""

    def __init__(self, fd: int, size: int | None) -> None:
        self._fd, self._left = fd, size

    def read(self, size: int, /) -> bytes:
        if self._left is None:
            return os.read(self._fd, size)
        data = os.read(self._fd, min(size, self._left))
        self._left -= len(data)
        return data


class Prefixed:
    """A stream, the head of which has been read already, as the decompressors take it."""

    def __init__(self, head: bytes, stream: Stream) -> None:
        self._head, self._stream = head, stream

    def read(self, size: int = CHUNK, /) -> bytes:
        if not self._head:
            return self._stream.read(CHUNK if size < 0 else size)
        head = self._head if size < 0 else self._head[:size]
        self._head = self._head[len(head) :]
        return head

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


def decompressors(zstd: str | None) -> dict[bytes, Any]:
    """How to read what begins with these bytes. All is imported now: later there is no file."""
    import bz2
    import gzip
    import lzma

    found: dict[bytes, Any] = {
        b"\x1f\x8b": lambda stream: gzip.GzipFile(fileobj=stream),
        b"BZh": bz2.BZ2File,
        b"\xfd7zXZ\0": lzma.LZMAFile,
    }
    if zstd:
        sys.path.append(zstd)
        import zstandard

        sys.path.remove(zstd)
        found[ZSTD] = lambda stream: zstandard.ZstdDecompressor().stream_reader(
            stream, read_across_frames=True
        )
    return found


def decompressed(stream: Stream, known: dict[bytes, Any]) -> Stream:
    """The stream without its compression, which its first bytes name."""
    head = b""
    while len(head) < 6 and (data := stream.read(6 - len(head))):
        head += data
    whole = Prefixed(head, stream)
    for magic, make in known.items():
        if head.startswith(magic):
            opened: Stream = make(whole)
            return opened
    return whole


# ---- tar -------------------------------------------------------------------------------------


class Member:
    """A header of the archive, with what pax and GNU headers before it say instead."""

    def __init__(self, block: bytes, extra: dict[bytes, bytes]) -> None:
        self.kind = block[156:157]
        prefix = block[345:500] if block[257:263] == b"ustar\0" else b""
        name = b"/".join(part for part in (text(prefix), text(block[:100])) if part)
        self.name = extra.get(b"GNU.sparse.name") or extra.get(b"path") or name
        self.link = extra.get(b"linkpath") or text(block[157:257])  # where a link leads
        self.mode = number(block[100:108]) & 0o7777
        self.uid = decimal(extra, b"uid", number(block[108:116]))
        self.gid = decimal(extra, b"gid", number(block[116:124]))
        self.mtime = nanoseconds(extra.get(b"mtime")) or number(block[136:148]) * 10**9
        self.stored = decimal(extra, b"size", number(block[124:136]))  # bytes in the archive
        self.size = self.stored  # bytes of the file
        self.map: list[tuple[int, int]] | None = None  # of a sparse file: (start, size)
        if self.kind in REGULAR and self.name.endswith(b"/"):
            self.kind = b"5"
        if self.kind not in REGULAR:
            self.stored = self.size = 0
        if not (0 <= self.stored < 1 << 63 and abs(self.mtime) < 1 << 63):
            raise Refused(f"{shown(self.name)} has an impossible size or time")
        if not (0 <= self.uid < (1 << 32) - 1 and 0 <= self.gid < (1 << 32) - 1):
            raise Refused(f"{shown(self.name)} has an impossible owner")


class Archive:
    """The members of a tar, one after the other; read() gives the content of the last one."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.offset = 0  # in the stream
        self.left = 0  # of the content
        self.padding = 0  # after it
        self.ended = False  # by the mark of the end, not by the end of the stream

    def __iter__(self) -> Iterator[Member]:
        extra: dict[bytes, bytes] = {}
        everywhere: dict[bytes, bytes] = {}
        extras = 0
        while True:
            self.skip(self.left)
            block = self.header() if self.pad() else None
            self.left = 0
            if block is None:
                return
            kind = block[156:157]
            if kind in b"xgXLK":
                size = number(block[124:136])
                extras += 1
                if not 0 <= size <= MAX_EXTRA or extras > MAX_EXTRAS:
                    raise Refused(f"an extended header of {size} bytes, {extras} in a row")
                data = self.take(size + -size % BLOCK)[:size]
                if kind in b"LK":
                    extra[b"path" if kind == b"L" else b"linkpath"] = text(data)
                else:
                    (everywhere if kind == b"g" else extra).update(pax(data))
                continue
            member = Member(block, {**everywhere, **extra})
            self.left, self.padding = member.stored, -member.stored % BLOCK
            if member.kind == b"S":
                self.old_sparse(member, block)
            elif any(key.startswith(b"GNU.sparse.") for key in extra):
                self.pax_sparse(member, extra)
            extra, extras = {}, 0
            yield member

    def header(self) -> bytes | None:
        start = self.offset
        block = self.stream.read(BLOCK)
        if not block:
            return None
        self.offset += len(block)
        block += self.take(BLOCK - len(block))
        if not any(block):
            self.ended = True
            return None
        # Some old programs added the bytes up as signed ones.
        rest = block[:148] + b" " * 8 + block[156:]
        high = sum(byte > 127 for byte in rest)
        if number(block[148:156]) not in (sum(rest), sum(rest) - 256 * high):
            raise Refused(f"no header of a tar at byte {start}")
        return block

    def take(self, size: int) -> bytes:
        """Exactly that many bytes."""
        parts = []
        while size > 0:
            data = self.stream.read(min(size, CHUNK))
            if not data:
                raise Refused("it is truncated")
            self.offset += len(data)
            size -= len(data)
            parts.append(data)
        return b"".join(parts)

    def skip(self, size: int) -> None:
        while size > 0:
            size -= len(self.take(min(size, CHUNK)))

    def pad(self) -> bool:
        """Skips what follows the content; False where nothing does, as after umoci's last file."""
        left, self.padding = self.padding, 0
        while left > 0 and (data := self.stream.read(left)):
            self.offset += len(data)
            left -= len(data)
        return left == 0

    def read(self, size: int) -> bytes:
        """Of the content of the last member."""
        if size > self.left:
            raise Refused("its map of a sparse file does not fit")
        self.left -= size
        return self.take(size)

    def old_sparse(self, member: Member, block: bytes) -> None:
        """GNU tar's type S: 4 pairs in the header, 21 in each block that follows."""
        member.size = number(block[483:495])
        pairs, more = block[386:482], block[482]
        while more:
            if len(pairs) > MAX_EXTRA:
                raise Refused(f"{shown(member.name)} has too long a map")
            block = self.take(BLOCK)
            pairs, more = pairs + block[:504], block[504]
        numbers = [number(pairs[at : at + 12]) for at in range(0, len(pairs), 12)]
        self.place_content(member, numbers)

    def pax_sparse(self, member: Member, extra: dict[bytes, bytes]) -> None:
        """GNU tar's pax formats: 1.0 has the map before the content, 0.1 in the header."""
        if extra.get(b"GNU.sparse.major") == b"1":
            member.size = decimal(extra, b"GNU.sparse.realsize", -1)
            lines = self.read(BLOCK).split(b"\n")
            count = digits(lines[0])
            while len(lines) <= 2 * count + 1:
                if len(lines) > MAX_EXTRA:
                    raise Refused(f"{shown(member.name)} has too long a map")
                more = (lines.pop() + self.read(BLOCK)).split(b"\n")
                lines += more
            words = lines[1 : 2 * count + 1]
        else:
            member.size = decimal(extra, b"GNU.sparse.size", -1)
            words = extra.get(b"GNU.sparse.map", b"").split(b",")
        self.place_content(member, [digits(word) for word in words])

    def place_content(self, member: Member, numbers: list[int]) -> None:
        member.map = list(zip(numbers[::2], numbers[1::2], strict=False))
        end = 0
        for start, size in member.map:
            if size < 0 or (size and start < end):
                raise Refused(f"{shown(member.name)} has an impossible map")
            end = max(end, start + size)
        if end > member.size or sum(size for _, size in member.map) != self.left:
            raise Refused(f"{shown(member.name)} has an impossible map")


def text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def digits(word: bytes) -> int:
    if not re.fullmatch(rb"[0-9]{1,19}", word):
        raise Refused(f"not a number: {shown(word)}")
    return int(word)


def decimal(extra: dict[bytes, bytes], key: bytes, default: int) -> int:
    return digits(extra[key]) if extra.get(key) else default


def nanoseconds(word: bytes | None) -> int:
    """Of a time like 1.5; 0 where there is none."""
    match = re.fullmatch(rb"(-?)([0-9]{1,12})(?:\.([0-9]{0,40}))?", word or b"0")
    if not match:
        raise Refused(f"not a time: {shown(word or b'')}")
    value = int(match[2]) * 10**9 + int((match[3] or b"").ljust(9, b"0")[:9])
    return -value if match[1] else value


def number(field: bytes) -> int:
    """Octal, or binary where the highest bit says so."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(b"\0" * (field[0] == 0x80) + field[1:], "big", signed=True)
    word = text(field).strip(b" ")
    if not re.fullmatch(rb"[0-7]*", word):
        raise Refused(f"not an octal number: {shown(word)}")
    return int(word or b"0", 8)


def pax(data: bytes) -> dict[bytes, bytes]:
    """The records of a pax header: 'LENGTH KEY=VALUE\\n'."""
    found = {}
    start = 0
    while start < len(data):
        space = data.find(b" ", start, start + 9)
        end = start + digits(data[start : max(space, start)])
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or end > len(data) or data[end - 1 : end] != b"\n":
            raise Refused("a damaged pax header")
        if PAX.fullmatch(key):
            found[key] = value
        start = end
    return found


def parts_of(name: bytes, what: str) -> list[bytes]:
    """The components of a name inside; Refused where it would lead out."""
    if not name or b"\0" in name:
        raise Refused(f"{what} is empty or contains a NUL byte: {shown(name)}")
    if name.startswith(b"/"):
        raise Refused(f"{what} is absolute: {shown(name)}")
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise Refused(f"{what} contains '..': {shown(name)}")
    return parts


# ---- files -----------------------------------------------------------------------------------


def empty(top: int) -> None:
    """Takes away what is in the directory `top`, however deep, and whoever's it is.

    A directory is moved to the top before it is entered. So depth is no matter, no link is
    followed, and what is mounted somewhere is not entered: the kernel does not move it.
    """
    token = os.urandom(8).hex()
    todo = ["."]
    count = 0
    while todo:
        name = todo.pop()
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
        try:
            with os.scandir(fd) as found:
                entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
            for entry, is_directory in entries:
                if not is_directory:
                    os.unlink(entry, dir_fd=fd)
                    continue
                count += 1
                todo.append(f".{token}-{count}")
                if os.geteuid() != 0:
                    make_accessible(entry, fd)
                os.rename(entry, todo[-1], src_dir_fd=fd, dst_dir_fd=top)
        finally:
            os.close(fd)
        if name != ".":
            os.rmdir(name, dir_fd=top)


def make_accessible(name: str, directory: int) -> None:
    """A directory of the caller's; never what a link leads to, whoever puts it there meanwhile."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
    fd = os.open(name, flags, dir_fd=directory)
    try:
        os.chmod(f"/proc/self/fd/{fd}", 0o700)
    finally:
        os.close(fd)


class Layer:
    """One archive on its way to the root directory."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.whiteouts: bool = settings["whiteouts"]
        self.owners: bool = settings["owners"]
        self.prefix: bytes = settings["prefix"].encode()
        self.size: int = settings["max_size"]  # what is left of it
        self.members: int = settings["max_members"]
        self.manifest: bytes | None = None
        self.made: set[bytes] = set()  # by this layer: whiteouts are for what lies below it
        self.directories: dict[bytes, Member] = {}  # their modes and times come last
        self.real: dict[bytes, bytes] = {}  # where the directory of a member really is

    def extract(self, archive: Archive) -> None:
        for member in archive:
            self.count(member.name)
            try:
                self.place(archive, member)
            except OSError as error:
                raise Refused(f"{shown(member.name)}: {error.strerror or error}") from None
            except RecursionError:
                raise Refused(f"{shown(member.name)}: too many links") from None
        if self.prefix and self.prefix not in self.made:
            raise Refused("it has no rootfs")
        for path, member in self.directories.items():
            self.finish_directory(path, member)

    def count(self, name: bytes) -> None:
        """One more of what max_members limits."""
        self.members -= 1
        if self.members < 0:
            raise Refused(f"it has more than max_members members: {shown(name)}")

    def place(self, archive: Archive, member: Member) -> None:
        parts = parts_of(member.name, "the name of a member")
        if self.prefix and not self.strip(archive, member, parts):
            return
        if not parts:  # the root directory itself
            if member.kind != b"5":
                raise Refused(f"{shown(member.name)} is the root, and no directory")
            self.directories[b"/"] = member
            return
        if self.whiteouts and any(part.startswith(b".wh.") for part in parts):
            self.white_out(member, parts)
            return
        directory = self.directory_of(parts, member.name)
        path = directory + parts[-1]
        self.put(archive, member, path)
        while path not in self.made:
            self.made.add(path)
            path = os.path.dirname(path)

    def strip(self, archive: Archive, member: Member, parts: list[bytes]) -> bool:
        """An app container image: a manifest, and a rootfs, which alone is unpacked."""
        if parts == [b"manifest"]:
            if member.kind not in REGULAR or member.map is not None or member.size > MAX_JSON:
                raise Refused("its manifest is no regular file, or too large")
            if self.manifest is not None:
                raise Refused("it has two manifests")
            self.manifest = archive.read(archive.left)
        elif parts and parts[0] != self.prefix:
            raise Refused(f"{shown(member.name)} is neither manifest nor in {shown(self.prefix)}")
        elif parts:
            self.made.add(parts.pop(0))
            return True
        return False

    def directory_of(self, parts: list[bytes], name: bytes) -> bytes:
        """Where a member goes, with a slash at the end. What an archive does not name is made.

        Links in the root are followed, as layers that put files under /lib want it.
        """
        wanted = b"/".join(parts[:-1])
        known = self.real.get(wanted)
        if known is not None:
            return known
        path = b"/"
        for part in parts[:-1]:
            path += part
            try:
                os.mkdir(path, 0o755)
                self.count(name)
            except FileExistsError:
                # The kernel goes first: it follows 40 links at most.
                if not os.path.isdir(path):
                    raise Refused(f"{shown(name)} lies in something that is no directory") from None
                if os.path.islink(path):
                    path = os.path.realpath(path)
            path = path.rstrip(b"/") + b"/"
        self.real[wanted] = path
        return path

    def remove(self, path: bytes) -> None:
        """What is there, without following a link."""
        self.real.clear()
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
            return
        trash = f"/.{os.urandom(16).hex()}"
        os.mkdir(trash)
        os.rename(path, f"{trash}/x".encode())
        fd = os.open(trash, os.O_RDONLY | os.O_DIRECTORY)
        try:
            empty(fd)
        finally:
            os.close(fd)
        os.rmdir(trash)

    def put(self, archive: Archive, member: Member, path: bytes) -> None:
        make = {b"5": self.make_directory, b"1": self.make_link, b"2": self.make_symlink}
        if member.kind in REGULAR:
            self.reserve(member)
            self.make(lambda: self.write(archive, member, path), path)
        elif member.kind in make:
            make[member.kind](member, path)
        else:
            raise Refused(f"{shown(member.name)} is a device, a FIFO or the like")

    def make(self, make: Callable[[], None], path: bytes) -> None:
        """Tries, and takes away what is in the way."""
        try:
            make()
        except FileExistsError:
            self.remove(path)
            make()

    def make_directory(self, member: Member, path: bytes) -> None:
        if not (os.path.isdir(path) and not os.path.islink(path)):
            self.make(lambda: os.mkdir(path, 0o755), path)
        self.directories[path] = member

    def make_symlink(self, member: Member, path: bytes) -> None:
        if not member.link or b"\0" in member.link:
            raise Refused(f"the link {shown(member.name)} leads nowhere")
        depth = path.count(b"/") - 1
        for part in () if member.link.startswith(b"/") else member.link.split(b"/"):
            depth += (part not in (b"", b".")) - 2 * (part == b"..")
            if depth < 0:
                raise Refused(f"the link {shown(member.name)} leads out: {shown(member.link)}")
        self.make(lambda: os.symlink(member.link, path), path)
        self.own(member, path)
        os.utime(path, ns=(member.mtime, member.mtime), follow_symlinks=False)

    def make_link(self, member: Member, path: bytes) -> None:
        """A hard link to what is in the image; to a symbolic link itself, never through it."""
        parts = parts_of(member.link, f"the target of the link {shown(member.name)}")
        if self.prefix and parts and parts.pop(0) != self.prefix:
            raise Refused(f"the link {shown(member.name)} leads out of {shown(self.prefix)}")
        if not parts:
            raise Refused(f"the link {shown(member.name)} leads to the root")
        source = self.directory_of(parts, member.name) + parts[-1]
        if not os.path.lexists(source) or (os.path.isdir(source) and not os.path.islink(source)):
            raise Refused(f"{shown(member.name)} is a hard link to {shown(member.link)}, no file")
        if source != path:
            self.make(lambda: os.link(source, path, follow_symlinks=False), path)

    def reserve(self, member: Member) -> None:
        self.size -= member.size
        if self.size < 0:
            raise Refused(f"{shown(member.name)} is larger than what is left of max_size")

    def write(self, archive: Archive, member: Member, path: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(path, flags, 0o600), "wb") as file:
            for start, size in member.map or [(0, member.size)]:
                file.seek(start)
                for at in range(0, size, CHUNK):
                    file.write(archive.read(min(size - at, CHUNK)))
            file.truncate(member.size)
            file.flush()
            self.finish(member, file.fileno())

    def finish(self, member: Member, file: int) -> None:
        """Owner first: a change of it takes set-user-ID away.

        Where a file has another owner than in the archive, nobody is to become that one.
        """
        plain = self.own(member, file) or stat.S_ISDIR(os.fstat(file).st_mode)
        os.chmod(file, member.mode if plain else member.mode & 0o1777)
        os.utime(file, ns=(member.mtime, member.mtime))

    def finish_directory(self, path: bytes, member: Member) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # a later member took its place
            return
        try:
            self.finish(member, fd)
        finally:
            os.close(fd)

    def own(self, member: Member, file: int | bytes) -> bool:
        """Gives a file its owner; False where that is none here, and it stays the caller's."""
        if not self.owners:
            return False
        try:
            os.chown(file, member.uid, member.gid, follow_symlinks=isinstance(file, int))
        except OSError as error:
            if error.errno != errno.EINVAL:  # an id that this user namespace does not have
                raise
            return False
        return True

    def white_out(self, member: Member, parts: list[bytes]) -> None:
        """What layers below have: one name, or all of a directory."""
        name = parts[-1].removeprefix(b".wh.")
        if any(part.startswith(b".wh..wh.") and part != OPAQUE for part in parts):
            return  # bookkeeping of aufs
        if any(part.startswith(b".wh.") for part in parts[:-1]) or name in (b"", b".", b".."):
            raise Refused(f"a whiteout of no name: {shown(member.name)}")
        directory = os.path.realpath(b"/" + b"/".join(parts[:-1]))
        if os.path.isdir(directory):
            names = os.listdir(directory) if parts[-1] == OPAQUE else [name]
            self.clear([os.path.join(directory, each) for each in names])

    def clear(self, todo: list[bytes]) -> None:
        """Takes away what this layer did not put there."""
        while todo:
            path = todo.pop()
            if path not in self.made:
                if os.path.lexists(path):
                    self.remove(path)
            elif os.path.isdir(path) and not os.path.islink(path):
                todo += [os.path.join(path, name) for name in os.listdir(path)]


# ---- the program -----------------------------------------------------------------------------


def enter(target: str) -> None:
    """From here on there is nothing but the target."""
    os.chroot(target.encode("latin-1"))
    os.chdir("/")


def extract(settings: dict[str, Any]) -> dict[str, Any]:
    """The archive on stdin, into the target."""
    known = decompressors(settings["zstd"])
    enter(settings["target"])
    os.umask(0o022)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    limit = settings["max_size"] + 4096 * settings["max_members"] + CHUNK  # content, headers
    blob = Counted(Part(0, settings["length"]), limit + limit // 8)
    content = Counted(decompressed(blob, known), limit)
    archive, layer = Archive(content), Layer(settings)
    layer.extract(archive)
    content.check(settings["diff_id"], "layer")
    blob.check(settings["digest"], "blob")
    if not archive.ended and not settings["diff_id"]:
        raise Refused("it is truncated: the mark of its end is missing")
    manifest = None if layer.manifest is None else layer.manifest.decode("latin-1")
    return {"max_size": layer.size, "max_members": layer.members, "manifest": manifest}


def take_away(settings: dict[str, Any]) -> dict[str, Any]:
    """All that is in the target."""
    enter(settings["target"])
    os.chown("/", 0, 0)
    empty(os.open("/", os.O_RDONLY | os.O_DIRECTORY))
    return {}


def main() -> None:
    settings = json.loads(sys.argv[1])
    try:
        told = (take_away if settings["empty"] else extract)(settings)
    except Refused as error:
        told = {"error": str(error)}
    except MemoryError:
        told = {"error": "it takes more memory than there is for it"}
    except Exception as error:  # every decompressor has classes of its own
        told = {"error": f"it is damaged: {type(error).__name__}: {error}"}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
