# SPDX-License-Identifier: Apache-2.0
"""A concurrent.futures.Executor whose work is commands in a Sandbox."""

from __future__ import annotations

import io
import locale
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from .._runner import Runner
from .._spec.command import Command, command_of
from .._types import Argv, Path, Sink
from ..errors import SpecError, SpecTypeError


def _itself() -> None:
    """What map() of the base class hands to submit() as the function."""


class SandboxExecutor(ThreadPoolExecutor):
    """A ThreadPoolExecutor that runs commands in a Sandbox.

        with SandboxExecutor(box, max_workers=8) as pool:
            futures = [pool.submit(["cc", "-c", name], cwd="/src") for name in names]

    box: Sandbox, or another Runner.
    max_workers: how many run at once; None: as many as there are CPUs for this process.

    A builder that submits subprocess.run needs nothing changed but the line that makes the pool:
    `pool.submit(subprocess.run, argv, ...)` runs argv in the sandbox, and its result is a
    CompletedProcess; see submit().
    """

    __module__ = "sandboxlib"  # as callers import it, and pickles name it

    def __init__(self, box: Runner, max_workers: int | None = None) -> None:
        if not isinstance(box, Runner):
            raise SpecTypeError(f"not a Sandbox, nor another Runner: {box!r}")
        workers = len(os.sched_getaffinity(0)) if max_workers is None else max_workers
        super().__init__(workers, "sandboxlib-pool")
        self._box = box

    def submit(self, command: Any, /, *args: Any, **options: Any) -> Future[Any]:
        """A Command, or an argv and keyword arguments of Sandbox.run: a Future of its Result.

        Or subprocess.run, and its arguments: a Future of a CompletedProcess, or of the exceptions
        of subprocess.run. Differences: cwd is inside the root; with env=None the environment is
        BASE_ENVIRONMENT; shell, preexec_fn, pass_fds and the like are refused (TypeError).

        SpecTypeError for any other function: it could not be run in the sandbox.
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

    def map(
        self, commands: Any, *iterables: Any, timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[Any]:
        """Results of commands, in their order, all of which are submitted at once. Or, as in any
        executor: map(subprocess.run, commands). timeout: seconds, for all of it.

        Sandbox.map starts commands as their results are taken, and has more to say on failures.
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
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    check: bool = False,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    universal_newlines: bool | None = None,
) -> subprocess.CompletedProcess[Any]:
    """subprocess.run in a Sandbox."""
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
    if content == subprocess.PIPE:
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
    """None is the caller's own, and DEVNULL is nothing."""
    if stream is None:
        return number
    return None if stream is subprocess.DEVNULL or stream == subprocess.DEVNULL else stream


def _decoded(content: bytes | None, encoding: str | None, errors: str | None) -> Any:
    if content is None:
        return None
    return io.TextIOWrapper(io.BytesIO(content), encoding or "locale", errors).read()
