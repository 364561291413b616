# SPDX-License-Identifier: Apache-2.0
"""The definitions behind _types, with typing imported; and the protocol Runner."""

from __future__ import annotations

import os
import typing
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import IO as IO
from typing import Any as Any
from typing import Literal as Literal
from typing import NoReturn as NoReturn
from typing import Protocol, TypeAlias

from ._streams import Output
from .command import Command
from .errors import SandboxError
from .policy import Profile
from .result import Result as Result

Path: TypeAlias = str | os.PathLike[str]
#: A program with its arguments, or a program alone.
Argv: TypeAlias = Path | bytes | Sequence[Path | bytes]
Env: TypeAlias = Mapping[str, str]
Stdin: TypeAlias = int | IO[Any] | bytes | bytearray | memoryview | None
Sink: TypeAlias = int | IO[Any] | Callable[[bytes], object] | Output | None
Seccomp: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Profile
#: What a map calls as commands end.
Progress: TypeAlias = Callable[[int, Any], object]

if typing.TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._async import AsyncProcess as AsyncProcess
    from ._handle import Process as Process
    from .command import CommandOptions as CommandOptions
    from .sandbox import Sandbox

    def _sandbox_is_a_runner(box: Sandbox) -> Runner:
        return box
else:
    try:
        from typing import Unpack
    except ImportError:  # Python 3.10

        class Unpack:
            """`**options: Unpack[CommandOptions]` is CommandOptions for get_type_hints then."""

            def __class_getitem__(cls, item):
                return item

    def _command_options():
        """The keyword arguments of Command as a TypedDict; command.py has it for type checkers."""
        hints = typing.get_type_hints(Command.__init__)
        names = [name for name in Command._fields if name != "argv"]
        return typing.TypedDict("CommandOptions", {n: hints[n] for n in names}, total=False)

    CommandOptions = _command_options()

    def __getattr__(name):
        """Process and AsyncProcess import much more than an annotation is worth."""
        import importlib

        modules = {"Process": "._handle", "AsyncProcess": "._async"}
        if name not in modules:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name], __package__), name)


@typing.runtime_checkable
class Runner(Protocol):
    """Whatever runs Commands, as a Sandbox does.

    def build(runner: Runner) -> None:
        for result in runner.map(Command(["cc", "-c", name], "/src") for name in names):
            ...
    """

    def run(
        self, command: Argv | Command, /, *, check: bool = False, **options: Unpack[CommandOptions]
    ) -> Result:
        """Runs a command and waits for its end; see Sandbox.run."""
        ...

    async def run_async(
        self, command: Argv | Command, /, *, check: bool = False, **options: Unpack[CommandOptions]
    ) -> Result:
        """The same in an event loop; see Sandbox.run_async."""
        ...

    @typing.overload
    def map(
        self,
        commands: Iterable[Argv | Command],
        jobs: int | None = None,
        *,
        ordered: bool = True,
        on_failure: Literal["stop"] = "stop",
        progress: Callable[[int, Result], object] | None = None,
        **options: Unpack[CommandOptions],
    ) -> Generator[Result, None, None]: ...
    @typing.overload
    def map(
        self,
        commands: Iterable[Argv | Command],
        jobs: int | None = None,
        *,
        ordered: bool = True,
        on_failure: Literal["continue"],
        progress: Callable[[int, Result | SandboxError], object] | None = None,
        **options: Unpack[CommandOptions],
    ) -> Generator[Result | SandboxError, None, None]: ...
    def map(
        self,
        commands: Iterable[Argv | Command],
        jobs: int | None = None,
        *,
        ordered: bool = True,
        on_failure: str = "stop",
        progress: Progress | None = None,
        **options: Unpack[CommandOptions],
    ) -> Generator[Any, None, None]:
        """Runs many commands, a few at a time; see Sandbox.map."""
        ...
