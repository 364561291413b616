# SPDX-License-Identifier: Apache-2.0
"""The protocol Runner, imported at its first use: typing takes longer than all of sandboxlib."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Protocol, overload, runtime_checkable

from . import _types
from ._spec import command as _command
from ._spec.command import Command
from .errors import SandboxError
from .result import Result


@runtime_checkable
class Runner(Protocol):
    """The protocol of objects that run Commands, as a Sandbox does.

        def build(runner: Runner) -> None:
            for result in runner.map(Command(["cc", "-c", name], "/src") for name in names):
                ...

    SandboxExecutor takes any of them.
    """

    def run(
        self,
        command: _types.Argv | Command,
        /,
        *,
        check: bool = False,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> Result:
        """Runs a command and waits for its end.

        command, check, options, and the errors: as in Sandbox.run.
        """
        ...

    async def run_async(
        self,
        command: _types.Argv | Command,
        /,
        *,
        check: bool = False,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> Result:
        """Does the same in an event loop.

        command, check, options, and the errors: as in Sandbox.run_async.
        """
        ...

    @overload
    def map(
        self,
        commands: Iterable[_types.Argv | Command],
        jobs: int | None = None,
        *,
        ordered: bool = True,
        on_failure: _types.Literal["stop"] = "stop",
        progress: Callable[[int, Result], object] | None = None,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> Generator[Result, None, None]: ...
    @overload
    def map(
        self,
        commands: Iterable[_types.Argv | Command],
        jobs: int | None = None,
        *,
        ordered: bool = True,
        on_failure: _types.Literal["continue"],
        progress: Callable[[int, Result | SandboxError], object] | None = None,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> Generator[Result | SandboxError, None, None]: ...
    def map(
        self,
        commands: Iterable[_types.Argv | Command],
        jobs: int | None = None,
        *,
        ordered: bool = True,
        on_failure: str = "stop",
        progress: _types.Progress | None = None,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> Generator[_types.Any, None, None]:
        """Runs many commands, a few at a time.

        commands, jobs, ordered, on_failure, progress, options, and the errors: as in Sandbox.map.
        """
        ...
