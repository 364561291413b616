# SPDX-License-Identifier: Apache-2.0
"""The names that annotations use: `_types.Argv`, `_types.Any`.

Annotations are strings here, and a program that runs does not evaluate them. So `import sandboxlib`
does not import typing, which would double its time. typing.get_type_hints does evaluate them: then
this module imports typing, and takes the names from there. Later stands for the modules of some.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

from ._values import AnyStore as AnyStore
from ._values import Output

Path = str | os.PathLike[str]
#: A program with its arguments, or a program alone.
Argv = Path | bytes | Sequence[Path | bytes]
Env = Mapping[str, str | bytes] | Mapping[bytes, bytes]
Variables = Mapping[str, str]  # an Env as a Command keeps it


class Later:
    """Stands for a module, by its name below sandboxlib, and imports it at its first use. Modules
    that few programs need take longer to import than all others.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        import importlib

        return getattr(importlib.import_module(f"sandboxlib.{self._name}"), name)


TYPE_CHECKING = False
if TYPE_CHECKING:
    import pathlib
    from typing import IO as IO
    from typing import Any as Any
    from typing import Literal as Literal
    from typing import NoReturn as NoReturn
    from typing import TypeAlias, TypeVar
    from typing import overload as overload

    # of the type checkers; not installed by us
    from typing_extensions import Self as Self
    from typing_extensions import Unpack as Unpack

    from ._changes.changes import Changes as Changes
    from ._changes.layer import Layer as Layer
    from ._inputs.outputs import Outputs as Outputs
    from ._spec.inputs import File, Input
    from .api import Sandbox as Sandbox

    #: What a function of the caller's returns.
    T = TypeVar("T")
    #: 'isolated': of the sandbox's own; 'undefined': the caller's.
    Kind: TypeAlias = Literal["isolated", "undefined"]
    Tmp: TypeAlias = Literal["private", "root"]
    Writable: TypeAlias = Literal["all", "none"] | Iterable[Path]
    Devices: TypeAlias = Literal["minimal", "root"] | Iterable[Path]
    Keep: TypeAlias = Literal["drop", "keep", "on-failure"]
    Overflow: TypeAlias = Literal["truncate", "kill"]
    Depth: TypeAlias = Literal["opens", "all"]
    Capabilities: TypeAlias = Literal["default", "all", "none"] | Iterable[str]
    UserName: TypeAlias = Literal["caller", "root", "ranges"]
    FilterName: TypeAlias = Literal["default", "builds", "none"]
    MountType: TypeAlias = Literal["bind", "tmpfs", "proc", "dev", "directory", "symlink", "file"]

    #: The inputs of a Command, as it takes and as it keeps them; the content of a File.
    Inputs: TypeAlias = Mapping[str, File | os.PathLike[str] | bytes | Input]
    KeptInputs: TypeAlias = Mapping[str, File | Input]
    Content: TypeAlias = pathlib.Path | bytes
    Stdin: TypeAlias = int | IO[Any] | bytes | bytearray | memoryview | None
    Sink: TypeAlias = int | IO[Any] | Callable[[bytes], object] | Output | None
    #: The function that a map calls as each command ends.
    Progress: TypeAlias = Callable[[int, Any], object]
else:

    def __getattr__(name):
        """Takes a name from typing, or builds it with typing, when get_type_hints asks for it."""
        if name.startswith("__"):
            raise AttributeError(name)
        import typing

        if name in _CHOICES:
            words, other = _CHOICES[name]
            choice = typing.Literal[words]
            return choice if other is None else choice | other
        if name in _MADE:
            return _MADE[name](typing)
        if name in _OF_3_11 and not hasattr(typing, name):
            return _OF_3_11[name](typing)
        return getattr(typing, name)

    _OF_3_11 = {"Unpack": lambda t: _Unpack, "Self": lambda t: t.Any}
    _MADE = {
        "Stdin": lambda t: int | t.IO[t.Any] | bytes | bytearray | memoryview | None,
        "Sink": lambda t: int | t.IO[t.Any] | Callable[[bytes], object] | Output | None,
        "Inputs": lambda t: Mapping[str, t.Any],
        "KeptInputs": lambda t: Mapping[str, t.Any],
        "Outputs": lambda t: Mapping[str, t.Any],
        "Content": lambda t: os.PathLike[str] | bytes,
        "Progress": lambda t: Callable[[int, t.Any], object],
        "T": lambda t: t.TypeVar("T"),
        # of rooms above all that use them
        "Sandbox": lambda t: sys.modules["sandboxlib"].Sandbox,
        "Changes": lambda t: sys.modules["sandboxlib"].Changes,
        "Layer": lambda t: sys.modules["sandboxlib"].Layer,
    }
    #: The names for choices: the words, and what may stand in their place.
    _CHOICES = {
        "Kind": (("isolated", "undefined"), None),
        "Tmp": (("private", "root"), None),
        "Writable": (("all", "none"), Iterable[Path]),
        "Devices": (("minimal", "root"), Iterable[Path]),
        "Keep": (("drop", "keep", "on-failure"), None),
        "Overflow": (("truncate", "kill"), None),
        "Depth": (("opens", "all"), None),
        "Capabilities": (("default", "all", "none"), Iterable[str]),
        "UserName": (("caller", "root", "ranges"), None),
        "FilterName": (("default", "builds", "none"), None),
        "MountType": (("bind", "tmpfs", "proc", "dev", "directory", "symlink", "file"), None),
    }

    class _Unpack:
        """For Python 3.10, where get_type_hints gets CommandOptions for Unpack[CommandOptions]."""

        def __class_getitem__(cls, item):
            return item

    def overload(function):
        """Stands for typing.overload, which only type checkers need."""
        return function
