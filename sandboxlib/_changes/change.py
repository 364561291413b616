# SPDX-License-Identifier: Apache-2.0
"""Change: a path that a run changed, as a value."""

from __future__ import annotations

from .. import _types
from .._values import Value, check_choice, unknown_keyword
from ..errors import SpecError, SpecTypeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

KINDS = ("added", "modified", "deleted", "metadata")
TYPES = ("file", "directory", "symlink", "fifo", "socket", "device")


class Change(Value):
    """A path that a run changed. A frozen value.

    path: str, absolute, as the command saw it. Bytes that are not UTF-8 are as os.fsdecode() has
        them; os.fsencode(path) gives them back.
    kind: 'added': the path did not exist. 'modified': the content is another one (for a symbolic
    link
        its target), or it is another type of file. 'metadata': the content is the same, and the
        mode, an owner, the time or an extended attribute is not. 'deleted': the path is gone, and
        all that was below it.
    type: 'file', 'directory', 'symlink', 'fifo', 'socket' or 'device'; for a deleted path, of what
    was
        there.
    mode: int, with the type, as st_mode of stat(2).
    size: int, bytes of a file, or of a symbolic link's target; otherwise 0.
    uid, gid: int, as the command saw them. If it had a single id, all files have 0.
    mtime_ns: int, nanoseconds since 1970; mtime is the same in seconds, as a float.
    target: str, of a symbolic link that is still there; otherwise None.
    link: str, the first path, in the order of the list, that is the same file (a hard link), if
    this is a
        later one; otherwise None. The first one is not in the list if it did not change itself.
    device: (major, minor) of a device; otherwise None.
    xattrs: a tuple of (name, bytes), the extended attributes, without labels of security modules.
    """

    __module__ = "sandboxlib"  # as callers import it, and pickles name it

    _fields = (
        *("path", "kind", "type", "mode", "size", "uid", "gid", "mtime_ns", "target", "link"),
        *("device", "xattrs"),
    )
    __slots__ = _fields  # there may be a million of them
    path: str
    kind: _types.Literal["added", "modified", "deleted", "metadata"]
    type: _types.Literal["file", "directory", "symlink", "fifo", "socket", "device"]
    mode: int
    size: int
    uid: int
    gid: int
    mtime_ns: int
    target: str | None
    link: str | None
    device: tuple[int, int] | None
    xattrs: tuple[tuple[str, bytes], ...]

    def __init__(
        self,
        path: str,
        kind: str,
        type: str,
        *,
        mode: int = 0,
        size: int = 0,
        uid: int = 0,
        gid: int = 0,
        mtime_ns: int = 0,
        target: str | None = None,
        link: str | None = None,
        device: tuple[int, int] | None = None,
        xattrs: tuple[tuple[str, bytes], ...] = (),
        **unknown: _types.NoReturn,
    ) -> None:
        if unknown:
            raise unknown_keyword("Change", unknown, self._fields)
        if not isinstance(path, str) or not path.startswith("/"):
            raise SpecError(f"the path of a change is not absolute: {path!r}")
        check_choice("kind", kind, KINDS)
        check_choice("type", type, TYPES)
        if not all(isinstance(each, int) for each in (mode, size, uid, gid, mtime_ns)):
            raise SpecTypeError("mode, size, uid, gid and mtime_ns of a change are int")
        values = (path, kind, type, mode, size, uid, gid, mtime_ns, target, link, device)
        self._put((*values, tuple(xattrs)))

    @classmethod
    def _of(cls, values: tuple[object, ...]) -> Change:
        """The Change of these values of the fields, which the caller has checked."""
        made = object.__new__(cls)
        made._put(values)
        return made

    def _put(self, values: tuple[object, ...]) -> None:
        for setter, value in zip(_SETTERS, values, strict=True):
            setter(self, value)

    @property
    def mtime(self) -> float:
        """The time of the last change, in seconds since 1970."""
        return self.mtime_ns / 1e9

    def __repr__(self) -> str:
        link = f" -> {self.target!r}" if self.target is not None else ""
        return f"<Change {self.kind} {self.type} {self.path!r}{link}>"


_SETTERS: list[Any] = [getattr(Change, name).__set__ for name in Change._fields]
