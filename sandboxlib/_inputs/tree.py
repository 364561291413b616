# SPDX-License-Identifier: Apache-2.0
"""Tree: a directory as an input, or as a layer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from .. import _types
from .._changes.child.globs import Globs
from .._spec.inputs import File, Input, check_input, check_nesting, check_pattern, check_target
from .._spec.overlay import Lower
from .._store.storage import Storage
from .._values import Value, absolute, check_path, is_several, short, unknown_keyword
from ..errors import SpecError, SpecTypeError
from .snapshot import Folder, Link, Node, encoded, leaf_of, merged, read_folder, without
from .staging import Layer, Owner, source_date

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._spec.overlay import Owners
    from .._values import AnyStore


class Tree(Value, Input):
    """A directory with all that lies below it: an input of commands, or a layer of an Overlay. A
    frozen value.

        Command(["make"], "/src", inputs={"/src": Tree("src", exclude=["**/*.o"])})

    content: str or path, a directory of the caller's; or a mapping from relative paths to what lies
        there: File, Tree, a path (PathLike) or bytes, both short for a File. A longer path goes
        over a Tree at a shorter one.
    exclude: iterable of str, patterns of what is left out, relative to the Tree: `*` and `?` stop
        at '/', `**` between two slashes does not. A directory that matches is left out as a whole.
        () by default.

    It has regular files, with their executable bits, directories and symbolic links; a link stays
    as it is, and nothing follows it. A relative path starts at the caller's directory at the time
    when the Tree is made.

    A Tree is a snapshot: the first use reads the directory, and later ones do not look at it again.
    A new Tree, or one out of a pickle, is a new snapshot.

    Raises SpecError (a ValueError) if a value is wrong, and SpecTypeError for a value of the wrong
    type, or an unknown keyword argument.
    """

    __module__ = "sandboxlib"  # as callers import it, and pickles name it

    _fields = ("content", "exclude")
    content: str | _types.KeptInputs
    exclude: tuple[str, ...]
    _taken: _types.Any = (
        None  # a tuple of Folder and str: the snapshot and its digest, after the first use
    )

    def __init__(
        self,
        content: _types.Path | Mapping[str, File | os.PathLike[str] | bytes | Tree],
        *,
        exclude: Iterable[str] = (),
        **unknown: _types.NoReturn,
    ) -> None:
        if unknown:
            raise unknown_keyword("Tree", unknown, self._fields)
        if not is_several(exclude):
            one = f"; one is [{exclude!r}]" if isinstance(exclude, str) else ""
            raise SpecTypeError(f"exclude is no list of patterns: {short(exclude)}{one}")
        patterns = tuple(check_pattern("a pattern of exclude", each) for each in exclude)
        for pattern in patterns:
            if pattern.startswith("/"):
                raise SpecError(f"a pattern of exclude is relative to the Tree: {pattern!r}")
        self.__dict__.update(content=_content(content), exclude=patterns)

    @classmethod
    def _of(cls, folder: Folder) -> Tree:
        """The Tree of a Folder that does not change."""
        return _FolderTree(folder)

    def digest(self) -> str:
        """The digest of the Directory message that the Remote Execution API has for the Tree. It
        tells names, contents, executable bits and links. SetupError if something cannot be read.
        """
        return self._snapshot()[1]

    def _snapshot(self) -> tuple[Folder, str]:
        """What the Tree consists of, and the digest of that; read at the first use."""
        if self._taken is None:
            exclude, content = Globs(self.exclude), self.content
            if isinstance(content, str):
                folder = read_folder(content, exclude)
            else:
                folder = merged(content, node_of)
                if self.exclude:
                    folder = without(folder, exclude, exclude.start())
            # Of two threads the first one counts.
            self.__dict__.setdefault("_taken", (folder, encoded(folder)))
        taken: tuple[Folder, str] = self._taken
        return taken

    def _key(self, store: AnyStore | None = None) -> str:
        return self.digest()

    def _lowers(self, owners: Owners, store: AnyStore | None = None) -> list[Lower]:
        folder, digest = self._snapshot()
        owner = Owner(owners.uid, owners.gid, source_date())
        storage = store if isinstance(store, Storage) else Storage()
        lease = Layer(folder, digest, owner, {}).stage(storage)
        if folder.staged is None:
            folder.staged = lease.path, lease  # the snapshot stays whole
        return [Lower(lease.path, lease)]

    def __hash__(self) -> int:
        content = self.content
        if not isinstance(content, str):
            return hash((frozenset(content.items()), self.exclude))
        return hash((content, self.exclude))

    def __getstate__(self) -> dict[str, Any]:
        content = self.content
        if not isinstance(content, str):
            content = dict(content)
        return {"content": content, "exclude": self.exclude}

    def __repr__(self) -> str:
        content = self.content
        text = repr(content) if isinstance(content, str) else short(dict(content))
        return f"Tree({text}{f', exclude={list(self.exclude)}' if self.exclude else ''})"


class _FolderTree(Tree):
    """A Tree of a Folder, which is no directory of the caller's. Two are equal if their digests
    are.
    """

    _fields = ("key",)  # type: ignore[assignment]
    key: str

    def __init__(self, folder: Folder) -> None:
        digest = encoded(folder)
        self.__dict__.update(key=digest, content="", exclude=(), _taken=(folder, digest))

    def __hash__(self) -> int:
        return hash(self.key)

    def __reduce__(self) -> _types.NoReturn:
        raise TypeError("the Tree of a Folder cannot be pickled: its contents are elsewhere")

    def __repr__(self) -> str:
        return f"<Tree {self.key}>"


class Symlink(Value):
    """A symbolic link in a Tree of Outputs. target: str."""

    _fields = ("target",)
    target: str

    def __init__(self, target: str) -> None:
        self.__dict__.update(target=target)


def node_of(value: object) -> Node:
    """The node of an input."""
    if isinstance(value, File):
        return leaf_of(value)
    if isinstance(value, Symlink):
        return Link(os.fsencode(value.target))
    assert isinstance(value, Tree)
    return value._snapshot()[0]


def _content(value: Any) -> str | Mapping[str, File | Input]:
    if isinstance(value, (str, os.PathLike)):
        return absolute(check_path("the directory of a Tree", os.fsdecode(value)))
    if not isinstance(value, Mapping):
        text = "the content of a Tree is neither a directory nor a mapping"
        raise SpecTypeError(f"{text}: {short(value)}")
    entries: dict[str, File | Input] = {}
    for name, content in value.items():
        path = check_target("a path of a Tree", name)
        if path.startswith("/") or not path:
            raise SpecError(f"a path of a Tree is relative to it: {name!r}")
        if path in entries:
            raise SpecError(f"a Tree has the path {path!r} twice")
        is_link = isinstance(content, Symlink)
        entries[path] = content if is_link else check_input(path, content)
    check_nesting(entries)
    return MappingProxyType(entries)
