# SPDX-License-Identifier: Apache-2.0
"""The names that annotations use: `_types.Argv`, `_types.Any`.

Annotations are strings here, and a program that runs does not evaluate them. So `import sandboxlib`
does not import typing, which would double its time. typing.get_type_hints does evaluate them: then
this module imports typing, and takes the names from there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from ._values import Output

Path = str | os.PathLike[str]
#: A program with its arguments, or a program alone.
Argv = Path | bytes | Sequence[Path | bytes]
Env = Mapping[str, str]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO as IO
    from typing import Any as Any
    from typing import Literal as Literal
    from typing import NoReturn as NoReturn
    from typing import TypeAlias
    from typing import overload as overload

    # of the type checkers; not installed by us
    from typing_extensions import Self as Self
    from typing_extensions import Unpack as Unpack

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

        if name == "Stdin":
            return int | typing.IO[typing.Any] | bytes | bytearray | memoryview | None
        if name == "Sink":
            return int | typing.IO[typing.Any] | Callable[[bytes], object] | Output | None
        if name == "Progress":
            return Callable[[int, typing.Any], object]
        if name == "Unpack" and not hasattr(typing, name):  # Python 3.10
            return _Unpack
        if name == "Self" and not hasattr(typing, name):  # Python 3.10
            return typing.Any
        return getattr(typing, name)

    class _Unpack:
        """For Python 3.10, where get_type_hints gets CommandOptions for Unpack[CommandOptions]."""

        def __class_getitem__(cls, item):
            return item

    def overload(function):
        """Stands for typing.overload, which only type checkers need."""
        return function
