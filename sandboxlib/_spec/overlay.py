# SPDX-License-Identifier: Apache-2.0
"""Overlay: a root of layers, which each run changes in an upper directory of its own."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod

from .. import _types
from .._values import (
    AnyStore,
    Value,
    absolute,
    check_choice,
    check_path,
    short,
    unknown_keyword,
)
from ..errors import SpecError, SpecTypeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .user import User

MOST_LAYERS = 500  # OVL_MAX_STACK of fs/overlayfs/super.c


class Owners(Value):
    """Whose ids the files of layers and uppers have, as the caller sees them outside of a run.

    kind: 'real': the ids of the command are the ids of the machine (or of the user namespace that
        the caller itself is in). 'ranges': id 0 is the caller's, and those from 1 on are the ids of
        /etc/subuid and /etc/subgid. 'single': there is one id, which is the caller's.
    uid, gid: int, the caller's effective ids, to which id 0 ('ranges') or the one id ('single') of
        the command maps. With 'real' they say nothing of the files.
    """

    _fields = ("kind", "uid", "gid")
    kind: _types.Literal["real", "ranges", "single"]
    uid: int
    gid: int

    def __init__(
        self, kind: _types.Literal["real", "ranges", "single"], uid: int, gid: int
    ) -> None:
        self.__dict__.update(kind=kind, uid=uid, gid=gid)


class Lower:
    """A directory that a run stacks.

    path: str, absolute, of the caller's. lease: what keeps the directory from being removed as long
    as it is referred to; None: nothing does.
    """

    __slots__ = ("lease", "path")

    def __init__(self, path: str, lease: object = None) -> None:
        self.path, self.lease = path, lease


class Defaults:
    """What an image says of its commands: the whole environment, the working directory, and the
    value for Sandbox(user=).
    """

    __slots__ = ("cwd", "env", "user")

    def __init__(self, env: dict[str, str], cwd: str, user: _types.UserName | User) -> None:
        self.env, self.cwd, self.user = env, cwd, user


class Layers(ABC):
    """What an Overlay can stack beside a directory: a Layer, an Image, a Tree."""

    @abstractmethod
    def _lowers(self, owners: Owners, store: AnyStore | None = None) -> list[Lower]:
        """The directories, bottom first. It unpacks or stages them if that is still to be done,
        which may take long. store: that of the Sandbox; None: the default one. Raises SandboxError.
        """

    def _prepare(
        self, owners: Owners | None, store: AnyStore | None, timeout: float | None
    ) -> None:
        """Unpack or stage it, so that _lowers() has nothing left to do. owners: None: those that
        keep most. timeout: seconds for unpacking. Raises SandboxError.
        """
        if owners is not None:
            self._lowers(owners, store)

    def _defaults(self, store: AnyStore | None) -> Defaults | None:
        """What runs in a Sandbox whose root it is have if nobody says otherwise. Raises
        SandboxError.
        """
        return None

    @abstractmethod
    def _key(self, store: AnyStore | None = None) -> str:
        """A digest of the content. Two with the same key have the same content. store: as above."""

    def _keys(self, store: AnyStore | None = None) -> str | list[str]:
        """What the salt of an Action has: the digest of the one layer, or those of several."""
        return self._key(store)

    def _pinned(self, store: AnyStore | None) -> Layers:
        """The same layers, which will be no others, even if a file is replaced by another one."""
        return self


class Overlay(Value):
    """A root of layers (overlayfs): commands see them as one tree, and may change all of it. What
    they write goes to an upper directory, and never into a layer. A frozen value.

        Sandbox(Overlay("/srv/bookworm", "/srv/toolchain"))

    layers: the layers, bottom first: a file of a later one hides that of an earlier one. A str or
        path is a directory of the caller's; a Layer, an Image or a Tree unpacks itself. Without any
        the root is empty, and mounts furnish it.
    upper: str or path, a directory in which the changes stay from run to run, made if it is
        missing. One run at a time uses it, and always with the same layers: others are refused
        (SetupError, ESTALE). It takes processes='isolated'. None (the default): each run has a new
        upper, so it sees the layers as they are.
    busy: str, if another run uses `upper`. 'wait' (the default): the run waits for it, which counts
        for its timeout. 'refuse': SetupError, EBUSY.
    storage: where new uppers are. 'memory' (the default): a tmpfs, bounded by Limits(changes=...);
        without that by half of the machine's memory, as in tmpfs(5). 'disk': a directory of its own
        below TMPDIR, which is removed afterwards. A path (PathLike): the same, below that
        directory. With `upper` it has no meaning.

    Nobody may change a layer while runs use it: what they see then is undefined.

    Raises SpecError (a ValueError) if a value is wrong, and SpecTypeError for a value of the wrong
    type, or an unknown keyword argument.
    """

    __module__ = "sandboxlib"  # as callers import it, and pickles name it

    _fields = ("layers", "upper", "busy", "storage")
    layers: tuple[str | Layers, ...]
    upper: str | None
    busy: _types.Literal["wait", "refuse"]
    storage: str  # 'memory', 'disk', or a Directory

    def __init__(
        self,
        *layers: _types.Path | Layers,
        upper: _types.Path | None = None,
        busy: _types.Literal["wait", "refuse"] = "wait",
        storage: _types.Literal["memory", "disk"] | os.PathLike[str] = "memory",
        **unknown: _types.NoReturn,
    ) -> None:
        if unknown:
            raise unknown_keyword("Overlay", unknown, self._fields[1:])
        if len(layers) > MOST_LAYERS:
            raise SpecError(f"an Overlay of {len(layers)} layers, and the kernel stacks 500")
        check_choice("busy", busy, ("wait", "refuse"))
        if upper is not None:
            upper = absolute(check_path("upper", upper))
        self.__dict__.update(
            layers=tuple(map(_layer, layers)), upper=upper, busy=busy, storage=_storage(storage)
        )

    def replace(self, **changes: _types.Any) -> Overlay:
        """Returns an Overlay with other values: overlay.replace(upper="/var/tmp/work").

        changes: any keyword argument of Overlay, and `layers`, a list. Raises the errors of
        Overlay.
        """
        if not changes.keys() <= set(self._fields):
            raise unknown_keyword("Overlay.replace", changes, self._fields)
        values = {**self.__getstate__(), **changes}
        return Overlay(*values.pop("layers"), **values)

    __replace__ = replace  # copy.replace() of Python 3.13

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict) or state.keys() != set(self._fields):
            raise SpecTypeError("a pickle does not have what an Overlay is made of")
        values = dict(state)
        Overlay.__init__(self, *values.pop("layers"), **values)

    def __repr__(self) -> str:
        """Leaves out what is the default."""
        words = [repr(layer) for layer in self.layers]
        words += [] if self.upper is None else [f"upper={self.upper!r}"]
        words += [f"busy={self.busy!r}"] if self.busy != "wait" else []
        words += [f"storage={self.storage!r}"] if self.storage != "memory" else []
        return f"Overlay({', '.join(words)})"


class Directory(str):
    """The directory of Overlay.storage: a str that is a path too, as a str alone is a word."""

    __slots__ = ()

    def __fspath__(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"Path({str(self)!r})"


def _layer(value: Any) -> str | Layers:
    if isinstance(value, Layers):
        return value
    if isinstance(value, (list, tuple)):
        raise SpecTypeError(f"a layer is a list: {short(value)}; write Overlay(*layers)")
    if not isinstance(value, (str, os.PathLike)):
        text = "a layer is neither a directory nor a Layer, an Image or a Tree"
        raise SpecTypeError(f"{text}: {short(value)}")
    return absolute(check_path("a layer", value))


def _storage(value: Any) -> str:
    if isinstance(value, os.PathLike):
        return Directory(absolute(check_path("storage", value)))
    if isinstance(value, str) and value.startswith("/"):
        raise SpecError(f"storage is a word or a path: storage=Path({value!r})")
    check_choice("storage", value, ("memory", "disk"))
    return str(value)
