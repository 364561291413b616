# SPDX-License-Identifier: Apache-2.0
"""The messages of the Remote Execution API, version 2, as bytes in the one canonical form.

A digest of the API is the SHA-256 of a message or of a file, with its size. The messages are
those of build.bazel.remote.execution.v2; the numbers of their fields are from its
remote_execution.proto. Encoded here, they take no package of protobuf's, and are the same bytes
with any version of it: fields in the order of their numbers, none that has its default, lists
sorted as the API wants them.

A digest is a str, "HASH/SIZE", as the tools of the API print it. Names are bytes: the kernel's may
be any. Where one is not UTF-8, the message has its bytes all the same, and so a digest of its own;
a server would refuse the message, as protobuf takes UTF-8 alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping

from .errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_VARINT, _LENGTH = 0, 2  # the wire types in use, protobuf.dev/programming-guides/encoding
_MOST_SIZE = (1 << 63) - 1  # size_bytes is an int64
_LARGE = 1 << 20  # bytes
_HEX = frozenset("0123456789abcdef")


def sha256(size: int) -> Any:
    """Returns a new hash, as hashlib.sha256() does. size: int, how many bytes it is going to have.

    OpenSSL's, which hashlib has, is several times as fast as that of Python, but it takes 4 ms to
    load, in which the other has done 1 MiB.
    """
    if size < _LARGE and "hashlib" not in sys.modules:
        try:
            if sys.version_info >= (3, 12):
                from _sha2 import sha256
            else:
                from _sha256 import sha256  # type: ignore[import-not-found]
            return sha256()
        except ImportError:  # a Python that was built without it
            pass
    from hashlib import sha256

    return sha256()


def digest_of(data: bytes) -> str:
    """Returns the digest of a message, or of the content of a file."""
    hash = sha256(len(data))
    hash.update(data)
    return f"{hash.hexdigest()}/{len(data)}"


EMPTY = digest_of(b"")


def check_digest(what: str, value: object) -> str:
    """A digest as digest_of() writes it; SpecError if it is anything else."""
    if isinstance(value, str):
        name, _, size = value.partition("/")
        is_hash = len(name) == 64 and _HEX.issuperset(name)
        is_number = size.isascii() and size.isdigit() and size == (size.lstrip("0") or "0")
        if is_hash and is_number and len(size) < 20 and int(size) <= _MOST_SIZE:
            return value
    raise SpecError(f"{what} is no digest, 64 hexadecimal digits, a slash and a size: {value!r}")


# ---- the wire format -------------------------------------------------------------------------


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _number(field: int, number: int) -> bytes:
    """A field of an integer or a bool, which 0 leaves out. An int64 below 0 has 64 bits."""
    number &= 0xFFFF_FFFF_FFFF_FFFF
    return _varint(field << 3 | _VARINT) + _varint(number) if number else b""


def _message(field: int, content: bytes) -> bytes:
    """A field of a message, which an empty one does not leave out: it says that it is there."""
    return _varint(field << 3 | _LENGTH) + _varint(len(content)) + content


def _text(field: int, content: bytes) -> bytes:
    """A field of a string or of bytes, which an empty one leaves out."""
    return _message(field, content) if content else b""


def _several(field: int, contents: Iterable[bytes]) -> bytes:
    return b"".join([_message(field, content) for content in contents])


# ---- files and directories -------------------------------------------------------------------


def _digest(text: str) -> bytes:
    name, _, size = text.partition("/")
    return _text(1, name.encode()) + _number(2, int(size))


def properties(
    named: Mapping[bytes, bytes] | None = None,
    mtime: tuple[int, int] | None = None,
    mode: int | None = None,
) -> bytes:
    """NodeProperties: what a file, directory or link has beside its content.

    named: pairs of a name and a value. mtime: seconds and nanoseconds. mode: permissions.
    """
    each = (_text(1, name) + _text(2, value) for name, value in sorted((named or {}).items()))
    encoded = _several(1, each)
    if mtime is not None:
        encoded += _message(2, _number(1, mtime[0]) + _number(2, mtime[1]))
    return encoded if mode is None else encoded + _message(3, _number(1, mode))


def _extra(field: int, encoded: bytes | None) -> bytes:
    return b"" if encoded is None else _message(field, encoded)


def file_node(
    name: bytes, digest: str, is_executable: bool = False, extra: bytes | None = None
) -> bytes:
    """FileNode: a file of a directory. extra: from properties()."""
    encoded = _text(1, name) + _message(2, _digest(digest)) + _number(4, is_executable)
    return encoded + _extra(6, extra)


def directory_node(name: bytes, digest: str) -> bytes:
    """DirectoryNode: a directory of a directory. digest: that of its directory()."""
    return _text(1, name) + _message(2, _digest(digest))


def symlink_node(name: bytes, target: bytes, extra: bytes | None = None) -> bytes:
    """SymlinkNode: a symbolic link of a directory. extra: from properties()."""
    return _text(1, name) + _text(2, target) + _extra(4, extra)


def directory(
    files: Mapping[bytes, bytes],
    directories: Mapping[bytes, bytes],
    symlinks: Mapping[bytes, bytes],
    extra: bytes | None = None,
) -> bytes:
    """Directory: what lies in a directory, each by its name. The mappings need not be sorted.

    files, directories, symlinks: the nodes, from the functions above, by their names.
    extra: from properties(). SpecError for a name that no directory has, or two things have.
    """
    encoded = b""
    names = {*files, *directories, *symlinks}
    if len(names) < len(files) + len(directories) + len(symlinks):
        twice = sorted(files.keys() & directories | (files.keys() | directories) & symlinks.keys())
        raise SpecError(f"two things in a directory have the name {twice[0]!r}")
    for name in names:
        if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
            raise SpecError(f"nothing in a directory has the name {name!r}")
    for field, nodes in ((1, files), (2, directories), (3, symlinks)):
        encoded += _several(field, [nodes[name] for name in sorted(nodes)])
    return encoded + _extra(5, extra)


def tree(root: bytes, children: Iterable[bytes]) -> bytes:
    """Tree: a directory() with all that lie below it, each once, sorted by their digests."""
    each = {digest_of(child): child for child in children}
    return _message(1, root) + _several(2, [each[digest] for digest in sorted(each)])


def output_directory(root: str) -> bytes:
    """The part of an OutputDirectory that has the digest of its directory(), in version 2.3."""
    return _message(5, _digest(root))


# ---- commands and actions --------------------------------------------------------------------


def platform(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Platform: what a command asks of the place where it runs; sorted by name, then by value."""
    return _several(1, [_text(1, name) + _text(2, value) for name, value in sorted(pairs)])


def command(
    arguments: Iterable[bytes],
    environment: Mapping[bytes, bytes],
    outputs: Iterable[bytes] = (),
    directory: bytes = b"",
    node_properties: Iterable[bytes] = (),
) -> bytes:
    """Command: argv, environment, paths of outputs and working directory.

    arguments keep their order; all other lists are sorted, and paths stand once. The platform is
    the Action's, where version 2.2 of the API has it.
    """
    variables = sorted(environment.items())
    return (
        _several(1, arguments)
        + _several(2, [_text(1, name) + _text(2, value) for name, value in variables])
        + _text(6, directory)
        + _several(7, sorted(set(outputs)))
        + _several(8, sorted(set(node_properties)))
    )


def action(
    command: str,
    input_root: str,
    timeout: float | None = None,
    salt: bytes = b"",
    platform: bytes = b"",
    do_not_cache: bool = False,
) -> bytes:
    """Action: a command with its inputs, by their digests, and the time that it may take.

    command, input_root: digests of a command() and a directory(). timeout: seconds, to the
    nanosecond; None: the server's. platform: from platform(); one that is empty is left out.
    """
    encoded = _message(1, _digest(command)) + _message(2, _digest(input_root))
    if timeout is not None:
        carry, nanoseconds = divmod(round(timeout % 1 * 1e9), 10**9)
        duration = _number(1, int(timeout) + carry) + _number(2, nanoseconds)
        encoded += _message(6, duration)
    return encoded + _number(7, do_not_cache) + _text(9, salt) + _text(10, platform)
