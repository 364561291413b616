# SPDX-License-Identifier: Apache-2.0
"""File, the base of Tree, and the checks of Command(inputs=, outputs=)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from operator import attrgetter

from .. import _types
from .._values import (
    Value,
    absolute,
    check_flag,
    check_inside,
    check_path,
    is_several,
    short,
    unknown_keyword,
)
from ..errors import SpecError, SpecTypeError, setup_error
from .overlay import Layers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

CHUNK = 1 << 20  # bytes that are read at once


class File(Value):
    """The content of a file, with its executable bit. A frozen value, which names its source, and
    reads it when it is used.

    content: PathLike, a file of the caller's, to which a symbolic link may lead; or bytes. A str is
        refused, as it could be meant as either.
    executable: bool, whether its mode is 0755 in place of 0644. None (the default): as the file is
        for its owner; bytes are not.

    A relative path starts at the caller's directory at the time when the File is made.

    Raises SpecError (a ValueError) if a value is wrong, and SpecTypeError for a value of the wrong
    type, or an unknown keyword argument.
    """

    __module__ = "sandboxlib"  # as callers import it, and pickles name it

    _fields = ("content", "executable")
    content: _types.Content
    _executable: bool | None

    def __init__(
        self,
        content: os.PathLike[str] | bytes,
        *,
        executable: bool | None = None,
        **unknown: _types.NoReturn,
    ) -> None:
        if unknown:
            raise unknown_keyword("File", unknown, self._fields)
        if executable is not None:
            check_flag("executable", executable)
        self.__dict__.update(content=_content(content), _executable=executable)

    @property
    def executable(self) -> bool:
        """Whether it is executable. SetupError if the file cannot be looked at."""
        if self._executable is not None:
            return self._executable
        return type(self.content) is not bytes and bool(self._status().st_mode & stat.S_IXUSR)

    @property
    def size(self) -> int:
        """Bytes. SetupError if the file cannot be looked at."""
        return len(self.content) if isinstance(self.content, bytes) else self._status().st_size

    def read_bytes(self) -> bytes:
        """The content. SetupError if the file is missing, or no regular file."""
        if isinstance(self.content, bytes):
            return self.content
        return b"".join(self._chunks())

    def digest(self) -> str:
        """The SHA-256 of the content in hexadecimal, a slash, and its size, as the Remote Execution
        API writes a digest. It does not tell the executable bit. SetupError as read_bytes().
        """
        from hashlib import sha256

        hash, size = sha256(), 0
        for chunk in self._chunks():
            hash.update(chunk)
            size += len(chunk)
        return f"{hash.hexdigest()}/{size}"

    def _chunks(self) -> Iterator[bytes]:
        """The content, piece by piece."""
        if isinstance(self.content, bytes):
            yield self.content
            return
        fd = open_regular(self.content)
        try:
            while chunk := os.read(fd, CHUNK):
                yield chunk
        except OSError as error:  # EIO, EISDIR
            raise source_error(error, self.content) from None
        finally:
            os.close(fd)

    def _status(self) -> os.stat_result:
        try:
            return os.stat(self.content)
        except OSError as error:
            raise source_error(error, self.content) from None

    def __getstate__(self) -> dict[str, Any]:
        return {"content": self.content, "executable": self._executable}

    def __repr__(self) -> str:
        """Leaves out the content, which may be long, or secret."""
        content = self.content
        text = f"<{len(content)} bytes>" if isinstance(content, bytes) else repr(content)
        bit = "" if self._executable is None else f", executable={self._executable}"
        return f"File({text}{bit})"


# The field as it was given: None stays None when the mode of the file changes.
File._values_of = staticmethod(attrgetter("content", "_executable"))


class Input(Layers):
    """What a Command may have as an input beside a File: a Tree, whose room is above this one."""


def _content(value: Any) -> Path | bytes:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, str):
        text = f"the content of a File is a str: {short(value)}"
        raise SpecTypeError(f"{text}; write Path(...) for a file, or .encode() for a text")
    if not isinstance(value, os.PathLike):
        raise SpecTypeError(f"the content of a File is neither a path nor bytes: {short(value)}")
    from pathlib import Path

    return Path(absolute(check_path("the path of a File", os.fsdecode(value))))


def open_regular(path: os.PathLike[str] | str, dir_fd: int | None = None, flags: int = 0) -> int:
    """Opens a regular file for reading. Nothing else is opened: a FIFO could keep us waiting, and
    opening a device may do something.

    dir_fd: as in os.open. flags: more flags, as O_NOFOLLOW. SetupError.
    """
    named = -1
    try:
        named = os.open(path, os.O_PATH | os.O_CLOEXEC | flags, dir_fd=dir_fd)
        if not stat.S_ISREG(mode := os.fstat(named).st_mode):
            number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            raise OSError(number, os.strerror(number))
        return os.open(f"/proc/self/fd/{named}", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise source_error(error, path) from None
    finally:
        if named >= 0:
            os.close(named)


def source_error(error: OSError, path: object) -> Exception:
    """The SetupError for a source that cannot be read."""
    if hasattr(error, "step"):
        return error
    hints = {
        errno.EISDIR: f"a directory is a Tree: Tree({os.fspath(path)!r})",  # type: ignore[call-overload]
        errno.ENOTDIR: "a Tree is of a directory; a file is File(Path(...))",
        errno.EINVAL: "it is no regular file",
    }
    number = error.errno or 0
    name = os.fsdecode(path)  # type: ignore[arg-type]
    return setup_error(number, name, "inputs", f"read the input {name}", hints.get(number, ""))


# ---- the checks of Command -------------------------------------------------------------------


def inside(path: str, cwd: str | None) -> str:
    """The path of an input or output from '/' on; one that is relative starts at the cwd."""
    if path.startswith("/"):
        return path
    return check_inside("the path of an input or output", f"/{cwd or ''}/{path}")


def check_target(what: str, value: object) -> str:
    """A path inside the root, normalised; a relative one starts at the cwd of the command."""
    path = check_path(what, value)
    if path.startswith("/"):
        return check_inside(what, path)
    return check_inside(what, "/" + path)[1:]


def check_inputs(value: object, cwd: str | None) -> dict[str, File | Input]:
    """The inputs of a Command, by their paths."""
    if not isinstance(value, Mapping):
        example = "inputs={'/src/a.c': Path('a.c')}"
        raise SpecTypeError(f"inputs is a {type(value).__name__}, and not a mapping: {example}")
    inputs: dict[str, File | Input] = {}
    places: dict[str, File | Input] = {}
    for name, content in value.items():
        path = check_target("the path of an input", name)
        place = inside(path, cwd)
        if place == "/":
            raise SpecError("the path of an input is the root itself; write Overlay(..., tree)")
        if place in places:
            raise SpecError(f"two inputs have the path {place!r}")
        inputs[path] = places[place] = check_input(name, content)
    check_nesting(places)
    return inputs


def check_input(name: object, value: object) -> File | Input:
    """A File or a Tree; bytes and paths are short for a File."""
    if isinstance(value, (File, Input)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview, os.PathLike)):
        return File(value)  # type: ignore[arg-type]
    remedy = "; write Path(...) for a file, or .encode() for a text" * isinstance(value, str)
    what = f"the input {name!r} is neither a File, a Tree, a path nor bytes"
    raise SpecTypeError(f"{what}: {short(value)}{remedy}")


def check_nesting(places: Mapping[str, object]) -> None:
    """SpecError if a path lies below that of a File. places: absolute or relative paths."""
    files = {place for place, content in places.items() if isinstance(content, File)}
    for place in places:
        above = place
        while above := above.rpartition("/")[0]:
            if above in files:
                raise SpecError(f"the input {place!r} lies below {above!r}, which is a File")


def check_outputs(value: object, cwd: str | None) -> tuple[str, ...]:
    """The outputs of a Command: checked patterns, each once."""
    if not is_several(value):
        one = f"; one is [{value!r}]" if isinstance(value, (str, os.PathLike)) else ""
        raise SpecTypeError(f"outputs is no list of paths: {short(value)}{one}")
    patterns = tuple(dict.fromkeys(check_pattern("an output", each) for each in value))
    for pattern in patterns:
        inside(pattern, cwd)
    return patterns


def check_pattern(what: str, value: object) -> str:
    """A path with wildcards: `*` and `?` stop at '/', `**` between two slashes does not, [...] is a
    set of characters, and [*] a star.
    """
    pattern = check_target(what, value)
    if pattern in ("", "/"):
        raise SpecError(f"{what} is the whole root")
    for part in pattern.split("/"):
        if "**" in part and part != "**":
            raise SpecError(f"{what} has '**' in {part!r}: it stands alone between two slashes")
    return pattern


def is_wild(part: str) -> bool:
    """Whether a part of a path has a wildcard."""
    return any(each in part for each in "*?[")
