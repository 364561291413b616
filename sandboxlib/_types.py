# SPDX-License-Identifier: Apache-2.0
"""The names that annotations use: `_types.Argv`, `_types.Any`.

Annotations are strings here, and nothing evaluates them while a program runs. So `import
sandboxlib` does not import typing, which would double its time. typing.get_type_hints evaluates
them: then this module imports typing, and takes from there what it has not itself.
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

    from typing_extensions import Unpack as Unpack  # of the type checkers; not installed by us

    Stdin: TypeAlias = int | IO[Any] | bytes | bytearray | memoryview | None
    Sink: TypeAlias = int | IO[Any] | Callable[[bytes], object] | Output | None
    #: What a map calls as commands end.
    Progress: TypeAlias = Callable[[int, Any], object]
else:

    def __getattr__(name):
        """Of typing, or made with what typing has."""
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
        return getattr(typing, name)

    class _Unpack:
        """`**options: Unpack[CommandOptions]` is CommandOptions for get_type_hints then."""

        def __class_getitem__(cls, item):
            return item

    def overload(function):
        """Stands for typing.overload, which only type checkers need."""
        return function
