# SPDX-License-Identifier: Apache-2.0
"""The names that annotations use: `_types.Argv`, `_types.Any`.

Annotations are strings here, and nothing evaluates them while a program runs. So `import
sandboxlib` does not import typing, which would double its time. typing.get_type_hints evaluates
them: then this module imports _typing, which has the real definitions.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO as IO
    from typing import Any as Any
    from typing import Literal as Literal
    from typing import NoReturn as NoReturn
    from typing import overload as overload

    from typing_extensions import Unpack as Unpack  # of the type checkers; not installed by us

    from ._typing import Argv as Argv
    from ._typing import AsyncProcess as AsyncProcess
    from ._typing import CommandOptions as CommandOptions
    from ._typing import Env as Env
    from ._typing import Path as Path
    from ._typing import Process as Process
    from ._typing import Progress as Progress
    from ._typing import Result as Result
    from ._typing import Seccomp as Seccomp
    from ._typing import Sink as Sink
    from ._typing import Stdin as Stdin
else:

    def __getattr__(name):
        """Imports _typing, and takes the name from there."""
        if name.startswith("__"):
            raise AttributeError(name)
        import importlib

        return getattr(importlib.import_module("._typing", __package__), name)

    def overload(function):
        """Stands for typing.overload, which only type checkers need."""
        return function
