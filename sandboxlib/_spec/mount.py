# SPDX-License-Identifier: Apache-2.0
"""Mount: a mount inside the root, which only the command sees."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from .. import _types
from .._values import (
    Value,
    absolute,
    check_choice,
    check_flag,
    check_inside,
    check_number,
    check_path,
    check_size,
    check_text,
    short,
    unknown_keyword,
)
from ..errors import SpecChoiceError, SpecError, SpecTypeError
from .inputs import File

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


_MOST_BYTES = (1 << 63) - 1
#: How much a Mount.file may hold: it stays in the memory of the caller, and of each slot.
MOST_CONTENT = 64 << 20
_KINDS = ("bind", "tmpfs", "proc", "dev", "directory", "symlink", "file")
#: The permissions that each type has by default, and the highest that it takes. A bind has those of
#: its source. mkdir(2) gives a directory no other bits; set-user-ID would not work in a file.
_MODES = {"tmpfs": (0o1777, 0o7777), "directory": (0o755, 0o1777), "file": (0o444, 0o777)}


class Mount(Value):
    """What the command finds at a path of the root, and nobody else. A frozen value.

    target: str or path   absolute, inside the root. Its missing parts are made for the run, and
                      removed afterwards, also those to which a symbolic link leads. Links stay
                      inside the root.
    source: str or path   bind: a file or directory of the caller's. None (the default) otherwise.
    type: str         'bind' (the default), 'tmpfs' (empty, private), 'proc', 'dev' (a minimal
                      /dev), 'directory', 'symlink' or 'file' (with a content of the caller's).
    read_only: bool   bind: True: read-only, with every mount below it. False (the default): as the
                      source is.
    recursive: bool   bind: True (the default): with the mounts below the source. False: without.
    size              tmpfs: int, bytes, or a str like "200M". None (the default): half of the
                      memory (tmpfs(5)). It holds one file or directory for each 4 KiB of its size,
                      but at least 1,024 and at most 1,048,576.
    mode: int         tmpfs, directory, file: the permissions; the umask does not matter. None (the
                      default): 0o1777, 0o755 and 0o444.
    content           file: bytes, or a File: what it holds, 64 MiB at most. None (the default)
                      otherwise.
    to: str or path   symlink: where it leads, inside the root. None (the default) otherwise.

    Raises SpecError (a ValueError) if a value is wrong, and SpecTypeError for a value of the wrong
    type, or an unknown keyword argument.
    """

    __module__ = "sandboxlib"  # as callers import it, and pickles name it

    _fields = (
        *("target", "source", "type", "read_only", "recursive", "size", "mode"),
        *("content", "to"),
    )
    target: str
    source: str | None
    type: _types.MountType
    read_only: bool
    recursive: bool
    size: int | None
    mode: int
    content: bytes | File | None
    to: str | None

    def __init__(
        self,
        target: _types.Path,
        source: _types.Path | None = None,
        type: _types.MountType = "bind",
        read_only: bool = False,
        recursive: bool = True,
        size: int | str | None = None,
        mode: int | None = None,
        content: bytes | File | None = None,
        to: _types.Path | None = None,
        **unknown: _types.NoReturn,
    ) -> None:
        if unknown:
            raise unknown_keyword("Mount", unknown, self._fields)
        check_choice("the type of a mount", type, _KINDS)
        target = check_inside("the target of a mount", target)
        if target == "/":
            raise SpecError("the target of a mount is the root itself")
        check_flag("read_only", read_only)
        check_flag("recursive", recursive)
        if type == "bind":
            source = absolute(check_path("the source of a mount", source))
        elif source is not None:
            raise SpecError(f"a {type} mount has no source: {source!r}")
        if read_only and type != "bind":
            raise SpecError(f"a {type} mount cannot be asked to be read-only")
        size = _tmpfs_size(type, size)
        usual, _ = _MODES.get(type, _MODES["tmpfs"])
        mode = usual if mode is None else _check_mode(type, mode)
        content, to = _content(type, content), _link(type, to)
        values = (target, source, type, read_only, recursive, size, mode, content, to)
        self.__dict__.update(zip(self._fields, values, strict=True))

    @classmethod
    def bind(
        cls,
        source: _types.Path,
        target: _types.Path,
        read_only: bool = False,
        recursive: bool = True,
        **unknown: _types.NoReturn,
    ) -> Mount:
        """Shows a file or directory of the caller at a path inside the root.

        source, target, read_only, recursive: as in Mount. Raises the errors of Mount.
        """
        if unknown:
            known = ("source", "target", "read_only", "recursive")
            raise unknown_keyword("Mount.bind", unknown, known)
        return cls(target, source, "bind", read_only, recursive)

    def replace(self, **changes: _types.Any) -> Mount:
        """Returns a Mount with other values: mount.replace(read_only=True).

        changes: any keyword argument of Mount. Raises the errors of Mount.
        """
        mount: Mount = self._replaced(changes)
        return mount

    __replace__ = replace  # copy.replace() of Python 3.13

    @classmethod
    def tmpfs(
        cls,
        target: _types.Path,
        size: int | str | None = None,
        mode: int = 0o1777,
        **unknown: _types.NoReturn,
    ) -> Mount:
        """Mounts an empty directory in memory, which only the command sees.

        target, size, mode: as in Mount. Raises the errors of Mount.
        """
        if unknown:
            raise unknown_keyword("Mount.tmpfs", unknown, ("target", "size", "mode"))
        return cls(target, None, "tmpfs", size=size, mode=_check_mode("tmpfs", mode))

    @classmethod
    def proc(cls, target: _types.Path = "/proc") -> Mount:
        """Mounts proc(5). With processes='isolated' it shows only the processes of the run.

        target: as in Mount, '/proc' by default. Raises the errors of Mount.
        """
        return cls(target, None, "proc")

    @classmethod
    def dev(cls, target: _types.Path = "/dev") -> Mount:
        """Mounts a /dev with null, zero, full, random, urandom, tty, pts, shm and the links to
        /proc/self/fd. It is new for each run, and writable; shm is a tmpfs, and pts has at most
        1,024 terminals.

        target: as in Mount, '/dev' by default. Raises the errors of Mount.
        """
        return cls(target, None, "dev")

    @classmethod
    def directory(cls, target: _types.Path, mode: int = 0o755, **unknown: _types.NoReturn) -> Mount:
        """Makes a directory for the run, and what is missing above it. A directory that the root
        has there stays as it is.

        It is part of the file system around it: of one that the run has for itself (a tmpfs, the
        upper directory of an Overlay, an empty root) as any other directory there. Over a directory
        of the caller's that the command may not write to, as in a read-only root, the command sees
        another directory, with the same entries and the new one; nothing can be made or removed
        right in it. Where the command may write to that directory, what it writes would be lost,
        so the run fails (ENOTSUP).

        target, mode: as in Mount. It belongs to the caller, or to the uid that the command has for
        it. Raises the errors of Mount.
        """
        if unknown:
            raise unknown_keyword("Mount.directory", unknown, ("target", "mode"))
        return cls(target, None, "directory", mode=_check_mode("directory", mode))

    @classmethod
    def symlink(cls, to: _types.Path, target: _types.Path, **unknown: _types.NoReturn) -> Mount:
        """Makes a symbolic link for the run, as Mount.directory makes a directory. If the root has
        the same link there, it stays; something else there makes the run fail (EEXIST).

        to: what the link says: a path inside the root, or one from the directory of the link; it
        may lead to nothing. target: the link itself, as in Mount. Raises the errors of Mount.
        """
        if unknown:
            raise unknown_keyword("Mount.symlink", unknown, ("to", "target"))
        return cls(target, None, "symlink", to=to)

    @classmethod
    def file(
        cls,
        content: bytes | File,
        target: _types.Path,
        mode: int = 0o444,
        **unknown: _types.NoReturn,
    ) -> Mount:
        """Shows a file with this content, which nobody can change or remove. It hides a file that
        the root has there; otherwise it is made as Mount.directory makes a directory.

        content: bytes, or a File, which is read when the first command runs. target, mode: as in
        Mount; a File that is executable may also be executed by all who may read it. Raises the
        errors of Mount.
        """
        if unknown:
            raise unknown_keyword("Mount.file", unknown, ("content", "target", "mode"))
        return cls(target, None, "file", mode=_check_mode("file", mode), content=content)

    @classmethod
    def from_tuple(cls, fields: Sequence[object]) -> Mount:
        """Makes a Mount from the earlier form: (source, target, type[, options]).

        fields: list or tuple. A type of None, '' or 'none' needs the option 'bind' (without the
            mounts below the source) or 'rbind'. 'symlink' has where it leads as its source, and
            'file' its content, as bytes. More options, separated by commas: 'ro', 'rw', for tmpfs
            'size=BYTES' (k, m, g), and for tmpfs, directory and file 'mode=OCTAL'.

        Raises SpecChoiceError, an AssertionError, for any other form or option, also for 'remount',
        which filesystem_writable_paths replaces; and the errors of Mount.
        """
        if not isinstance(fields, (list, tuple)) or not 3 <= len(fields) <= 4:
            text = f"a tuple is no (source, target, type[, options]): {short(fields)}"
            is_pair = isinstance(fields, (list, tuple)) and len(fields) == 2
            pair = ", ".join(map(repr, fields)) if is_pair else ""
            raise SpecChoiceError(f"{text}; write Mount.bind({pair})" if pair else text)
        source, target, kind, options = (*fields, None)[:4]
        kind, options = (None if text == "none" else text for text in (kind, options))
        if not isinstance(target, (str, os.PathLike)):
            raise SpecChoiceError(f"the target of the mount {tuple(fields)!r} is no path")
        target = check_path("the target of a mount", target)
        values: dict[str, Any] = {}
        for option in check_text("options", options or "").split(","):
            name, _, value = option.partition("=")
            if name in ("bind", "rbind") and not kind:
                values |= {"type": "bind", "source": source, "recursive": name == "rbind"}
            elif name == "ro":
                values["read_only"] = True
            elif name == "size" and kind == "tmpfs" and value:
                values[name] = value
            elif name == "mode" and kind in _MODES and value:
                values[name] = _octal(value)
            elif name not in ("", "rw"):
                raise SpecChoiceError(f"unknown option {option!r} of the mount {tuple(fields)!r}")
        if kind in _KINDS[1:]:
            values["type"] = kind
            if kind in ("symlink", "file"):
                values["to" if kind == "symlink" else "content"] = source
        elif kind or "type" not in values:
            kinds = ", ".join(_KINDS[1:])
            raise SpecChoiceError(f"neither {kinds} nor a bind: {short(tuple(fields))}")
        return cls(target if target.startswith("/") else "/" + target, **values)


def _check_mode(type: str, mode: int) -> int:
    kind = type if type in _MODES else "tmpfs"
    return check_number(f"the mode of a {kind}", mode, 0, _MODES[kind][1])


def _tmpfs_size(type: str, size: object) -> int | None:
    if size is None:
        return None
    size = check_size("the size of a tmpfs", size, 1, _MOST_BYTES)
    if type != "tmpfs":
        raise SpecError(f"a {type} mount has no size: {size}")
    return size


def hidden(mounts: Iterable[Mount]) -> list[str]:
    """The targets at which a mount hides what the root has: all but those of directories, which
    stay as they are, and of links.
    """
    return [mount.target for mount in mounts if mount.type not in ("directory", "symlink")]


def _content(type: str, content: object) -> bytes | File | None:
    """Checks what a file holds."""
    if type != "file":
        if content is not None:
            raise SpecError(f"a {type} mount has no content: {short(content)}")
        return None
    if isinstance(content, (bytearray, memoryview)):
        content = bytes(content)
    if isinstance(content, os.PathLike):
        text = f"the content of a file is a path, {content!r}, and not what is there"
        raise SpecTypeError(f"{text}: give File(path), or Mount.bind the path")
    if not isinstance(content, (bytes, File)):
        remedy = "; text is text.encode()" if isinstance(content, str) else ""
        raise SpecTypeError(
            f"the content of a file is neither bytes nor a File: {short(content)}{remedy}"
        )
    if isinstance(content, bytes):
        check_content(len(content))
    return content


def check_content(size: int) -> None:
    """SpecError if a Mount.file would hold too much."""
    if size > MOST_CONTENT:
        text = f"the content of a file has {size} bytes, and {MOST_CONTENT} at most"
        raise SpecError(f"{text}: Mount.bind shows a file of any size")


def _link(type: str, to: object) -> str | None:
    """Checks where a symbolic link leads."""
    if type != "symlink":
        if to is not None:
            raise SpecError(f"a {type} mount leads nowhere: to={short(to)}")
        return None
    to = check_path("where a symbolic link leads", to)
    if len(os.fsencode(to)) > 4095:  # symlink(2)
        raise SpecError("a symbolic link is longer than the 4,095 bytes of a path")
    return to


def _octal(text: str) -> int:
    try:
        return int(text, 8)
    except ValueError:
        raise SpecError(f"not an octal mode: {text!r}") from None


def _mount(value: object) -> Mount:
    if isinstance(value, Mount):
        return value
    if isinstance(value, (tuple, list)):
        return Mount.from_tuple(value)
    remedy = ""
    if isinstance(value, (str, os.PathLike)):
        remedy = f"; write {as_call(os.fspath(value))}"
    elif isinstance(value, Mapping):
        names = ("src", "dst", "destination", "options")
        known = Mount._fields if not any(name in value for name in names) else ()
        named = ", ".join(f"{name}={value[name]!r}" for name in known if name in value)
        remedy = f"; write Mount({named or 'target=..., source=...'})"
    raise SpecTypeError(f"a mount is neither a Mount nor a tuple: {short(value)}{remedy}")


def as_call(text: str) -> str:
    """The call for a mount that somebody wrote as "SOURCE:TARGET[:ro]", as for docker run -v."""
    source, _, rest = text.partition(":")
    target, _, options = rest.partition(":")
    read_only = ", read_only=True" if "ro" in options.split(",") else ""
    return f"Mount.bind({source!r}, {target or source!r}{read_only})"
