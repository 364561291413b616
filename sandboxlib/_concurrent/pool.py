# SPDX-License-Identifier: Apache-2.0
"""A concurrent.futures.Executor that runs commands in a Sandbox."""

from __future__ import annotations

import io
import locale
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NoReturn, overload

from .. import _types
from .._runner import Runner
from .._spec import command as _command
from .._spec.command import Command, command_of
from .._types import Argv, Env, Path, Sink
from .._values import unknown_keyword
from ..errors import SpecError, SpecTypeError
from ..result import Result

CompletedProcess = subprocess.CompletedProcess[Any]


def _itself() -> None:
    """A marker: map() has the base class pass it to submit() as the function, which then knows that
    its argument is the command itself.
    """


class SandboxExecutor(ThreadPoolExecutor):
    """A ThreadPoolExecutor that runs commands in a Sandbox.

        with SandboxExecutor(box, max_workers=8) as pool:
            futures = [pool.submit(["cc", "-c", name], cwd="/src") for name in names]

    box: Sandbox, or another Runner.
    max_workers: int, the highest number of commands that run at once. None (the default): the
        number of CPUs that this process may use.

    A program that submits subprocess.run to a ThreadPoolExecutor changes only the line that makes
    the pool: `pool.submit(subprocess.run, argv, ...)` runs argv in the sandbox, and the result is a
    CompletedProcess; see submit().

    Raises SpecTypeError if box is no Runner, or for an unknown keyword argument, and ValueError if
    max_workers is less than 1.
    """

    __module__ = "sandboxlib"  # as callers import it, and pickles name it

    def __init__(self, box: Runner, max_workers: int | None = None, **unknown: NoReturn) -> None:
        if unknown:
            raise unknown_keyword("SandboxExecutor", unknown, ("box", "max_workers"))
        if not isinstance(box, Runner):
            raise SpecTypeError(f"not a Sandbox, nor another Runner: {box!r}")
        workers = len(os.sched_getaffinity(0)) if max_workers is None else max_workers
        super().__init__(workers, "sandboxlib-pool")
        self._box = box

    @overload  # type: ignore[override]
    def submit(
        self,
        command: Argv | Command,
        /,
        *,
        fresh: bool = False,
        check: bool = False,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> Future[Result]: ...
    @overload
    def submit(
        self, function: Callable[..., CompletedProcess], /, *args: Any, **options: Any
    ) -> Future[CompletedProcess]: ...
    def submit(self, command: Any, /, *args: Any, **options: Any) -> Future[Any]:
        """Run a command in a worker thread, and return a Future of its Result.

        command: a Command; or an argv, a list of str, bytes or paths, or a str that names one
            program; or the function subprocess.run.
        options: the keyword arguments of Sandbox.run, `fresh` and `check` too. Beside a Command
            only those two.

        args: only with subprocess.run, whose arguments follow it. The Future then has a
        CompletedProcess, or the exceptions of subprocess.run. Three things differ: cwd is a path
        inside the root; with env=None the environment is BASE_ENVIRONMENT; shell, preexec_fn,
        pass_fds and other arguments that mean the caller's own process raise TypeError.

        Raises SpecError at once for values that make no sense, and SpecTypeError for any other
        function, because a Python function cannot run in the sandbox. The Future has the
        exceptions of Sandbox.run.
        """
        if command is _itself:
            command, *args = args  # type: ignore[assignment]
        if command is subprocess.run:
            return super().submit(_run_as_subprocess, self._box, *args, **options)
        if callable(command):
            raise SpecTypeError(f"neither a command nor subprocess.run: {command!r}")
        if args:
            raise SpecTypeError(f"submit takes one command; cwd and the rest by keyword: {args!r}")
        own = {name: options.pop(name) for name in ("fresh", "check") if name in options}
        made = command_of("submit", command, options, "fresh", "check")
        return super().submit(self._box.run, made, **own)

    @overload  # type: ignore[override]
    def map(
        self,
        commands: Iterable[Argv | Command],
        *,
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[Result]: ...
    @overload
    def map(
        self,
        function: Callable[..., CompletedProcess],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[CompletedProcess]: ...
    def map(
        self, commands: Any, *iterables: Any, timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[Any]:
        """Submit many commands at once, and iterate over their Results in the same order.

        commands: an iterable of Commands or argvs. Or the function subprocess.run; then the results
            are CompletedProcesses.
        iterables: only with subprocess.run, as with any executor: an iterable of argvs.
        timeout: float, seconds from the call of map() until the last result. None (the default):
            no limit.
        chunksize: ignored, as in a ThreadPoolExecutor.

        Iterating raises the exception of a command that could not be run, and TimeoutError after
        the timeout. map() itself raises SpecError as submit() does. Sandbox.map starts a command
        only when results are taken, and can stop at the first failure.
        """
        if not callable(commands):
            if isinstance(commands, (str, bytes)) or not isinstance(commands, Iterable):
                raise SpecTypeError(f"not several commands: {commands!r}")
            iterables = (commands, *iterables)
            commands = _itself
        return super().map(commands, *iterables, timeout=timeout, chunksize=chunksize)


def _run_as_subprocess(
    box: Runner,
    args: Argv,
    *,
    stdin: Sink = None,
    input: str | bytes | None = None,
    stdout: Sink = None,
    stderr: Sink = None,
    capture_output: bool = False,
    cwd: Path | None = None,
    env: Env | None = None,
    timeout: float | None = None,
    check: bool = False,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    universal_newlines: bool | None = None,
) -> CompletedProcess:
    """Do in a Sandbox what subprocess.run does; the arguments are those of that function."""
    if input is not None and stdin is not None:
        raise SpecError("stdin and input are both given")
    if capture_output and (stdout is not None or stderr is not None):
        raise SpecError("capture_output goes with neither stdout nor stderr")
    content: Any = _inherited(0, stdin)
    if isinstance(input, str):
        content = input.encode(encoding or locale.getpreferredencoding(False), errors or "strict")
    elif input is not None:
        content = input
    streams = [
        subprocess.PIPE if capture_output else _inherited(number, stream)
        for number, stream in ((1, stdout), (2, stderr))
    ]
    if type(content) is int and content == subprocess.PIPE:  # nobody could write to it
        content = None
    stdio = {"stdin": content, "stdout": streams[0], "stderr": streams[1]}
    result = box.run(Command(args, cwd, env=env, timeout=timeout, **stdio))
    out, err = result.out, result.err
    if result.timed_out and timeout is not None:
        raise subprocess.TimeoutExpired(args, timeout, out, err)
    if text or encoding or errors or universal_newlines:
        out, err = (_decoded(content, encoding, errors) for content in (out, err))
    if check and result.exit:
        raise subprocess.CalledProcessError(result.exit, args, out, err)
    return subprocess.CompletedProcess(args, result.exit, out, err)


def _inherited(number: int, stream: Sink) -> Sink:
    """A stream of subprocess.run as Command takes it. There None means the caller's own stream,
    which here its descriptor says.
    """
    if stream is None:
        return number
    return stream


def _decoded(content: bytes | None, encoding: str | None, errors: str | None) -> Any:
    if content is None:
        return None
    return io.TextIOWrapper(io.BytesIO(content), encoding or "locale", errors).read()
