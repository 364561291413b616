# SPDX-License-Identifier: Apache-2.0
"""Mount: a mount inside the root, which only the command sees."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


_MOST_BYTES = (1 << 63) - 1


class Mount(Value):
    """A mount inside the root, which only the command sees. A frozen value.

    target: str or path   absolute, inside the root. Its missing parts are made for the run, and
                      removed afterwards, also those to which a symbolic link leads. Links stay
                      inside the root.
    source: str or path   bind: a file or directory of the caller's. None (the default) otherwise.
    type: str         'bind' (the default), 'tmpfs' (empty, private), 'proc' or 'dev' (a minimal
                      /dev).
    read_only: bool   bind: True: read-only, with every mount below it. False (the default): as the
                      source is.
    recursive: bool   bind: True (the default): with the mounts below the source. False: without.
    size              tmpfs: int, bytes, or a str like "200M". None (the default): half of the
                      memory (tmpfs(5)). It holds one file or directory for each 4 KiB of its size,
                      but at least 1,024 and at most 1,048,576.
    mode: int         tmpfs: the permissions of its root, 0o1777 by default.

    Raises SpecError (a ValueError) if a value is wrong, and SpecTypeError for a value of the wrong
    type, or an unknown keyword argument.
    """

    __module__ = "sandboxlib"  # as callers import it, and pickles name it

    _fields = ("target", "source", "type", "read_only", "recursive", "size", "mode")
    target: str
    source: str | None
    type: _types.Literal["bind", "tmpfs", "proc", "dev"]
    read_only: bool
    recursive: bool
    size: int | None
    mode: int

    def __init__(
        self,
        target: _types.Path,
        source: _types.Path | None = None,
        type: _types.Literal["bind", "tmpfs", "proc", "dev"] = "bind",
        read_only: bool = False,
        recursive: bool = True,
        size: int | str | None = None,
        mode: int = 0o1777,
        **unknown: _types.NoReturn,
    ) -> None:
        if unknown:
            raise unknown_keyword("Mount", unknown, self._fields)
        check_choice("the type of a mount", type, ("bind", "tmpfs", "proc", "dev"))
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
        check_number("the mode of a tmpfs", mode, 0, 0o7777)
        values = (target, source, type, read_only, recursive, size, mode)
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
        return cls(target, None, "tmpfs", size=size, mode=mode)

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
    def from_tuple(cls, fields: Sequence[object]) -> Mount:
        """Makes a Mount from the earlier form: (source, target, type[, options]).

        fields: list or tuple. A type of None, '' or 'none' needs the option 'bind' (without the
            mounts below the source) or 'rbind'. More options, separated by commas: 'ro', 'rw', and
            for tmpfs 'size=BYTES' (k, m, g) and 'mode=OCTAL'.

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
            elif name in ("size", "mode") and kind == "tmpfs" and value:
                values[name] = value if name == "size" else _octal(value)
            elif name not in ("", "rw"):
                raise SpecChoiceError(f"unknown option {option!r} of the mount {tuple(fields)!r}")
        if kind in ("tmpfs", "proc", "dev"):
            values["type"] = kind
        elif kind or "type" not in values:
            raise SpecChoiceError(f"neither tmpfs, proc, dev nor a bind: {tuple(fields)!r}")
        return cls(target if target.startswith("/") else "/" + target, **values)


def _tmpfs_size(type: str, size: object) -> int | None:
    if size is None:
        return None
    size = check_size("the size of a tmpfs", size, 1, _MOST_BYTES)
    if type != "tmpfs":
        raise SpecError(f"a {type} mount has no size: {size}")
    return size


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
