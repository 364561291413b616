# SPDX-License-Identifier: Apache-2.0
"""Session: a long-lived place, in which several commands run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from time import monotonic

from .. import _types
from .._choice import choose
from .._runs.run import complete
from .._runs.session import OpenSession
from .._spec import command as _command
from .._spec.command import Command, command_of
from .._spec.spec import Spec
from .._types import Later, overload
from .._values import unknown_keyword
from ..errors import SandboxError, SpecError
from ..result import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from . import aio, async_process, process
    from . import map as _map
else:
    aio, async_process = Later("_concurrent.aio"), Later("_concurrent.async_process")
    process, _map = Later("_concurrent.process"), Later("_concurrent.map")


def open_session(box: Spec, options: dict[str, Any]) -> Session:
    """Opens a session; see Sandbox.session."""
    known = ("timeout", "inputs", "outputs", "changes")
    if unknown := options.keys() - known:
        raise unknown_keyword("session", sorted(unknown), known, "")
    if box.processes != "isolated" or not box.init:
        raise SpecError("a session takes processes='isolated' and init=True")
    executor = choose.native_executor_of(box)
    return Session(OpenSession(box, executor.plan_of, executor.name, options))


class Session:
    """A place in which several commands run, one after the other or at once. Sandbox.session opens
    one.

        with box.session() as s, s.start(["redis-server"]):
            s.run(["redis-cli", "ping"])

    The commands share the processes that they see, the network, /tmp, /dev/shm, IPC, and all that
    they mount or write. Each has a reaper of its own, which ends all descendants of the command
    after a timeout. What a command leaves behind when it ends by itself (a daemon) lives until the
    session ends.

    A Session is a context manager, also for `async with`. Leaving the block, close(), the garbage
    collector (with a ResourceWarning), and the end of the caller's process end it, and kill
    everything in it. Any number of threads may use a Session. It cannot be pickled.
    docs/sessions.md has more.
    """

    __module__ = "sandboxlib"  # as callers import it

    def __init__(self, session: OpenSession) -> None:
        self._session = session

    @property
    def pid(self) -> int:
        """The pid of pid 1 of the session, as the caller sees it. Raises SessionOver."""
        return self._session.pid

    @property
    def closed(self) -> bool:
        """True once the session is known to be over."""
        return self._session.is_over

    def run(
        self,
        command: _types.Argv | Command,
        /,
        *,
        check: bool = False,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> Result:
        """Runs a command in the session, and waits for its end; see Sandbox.run.

        command, check, options: as in Sandbox.run. Limits that take a cgroup belong to the session
            as a whole, and raise UnsupportedError here.

        Raises the errors of Sandbox.run, and SessionOver if the session is over, or ends while the
        command runs.
        """
        began = monotonic()
        made = command_of("run", command, options, "check")
        session = self._session
        run = session.run_of(made)
        result = complete(run, False, session.executor, began, session.isolation)
        return result.check() if check else result

    def start(
        self,
        command: _types.Argv | Command,
        /,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> process.Process:
        """Starts a command in the session, and returns a Process; see Sandbox.start.

        command, options: as in Sandbox.start.

        At the end of its `with` block a command that has not closed its outputs is ended: it gets
        SIGTERM, and SIGKILL five seconds later. Raises the errors of Sandbox.start, and
        SessionOver.
        """
        return process.start(self._session, command_of("start", command, options))

    async def run_async(
        self,
        command: _types.Argv | Command,
        /,
        *,
        check: bool = False,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> Result:
        """Does the same as run() in an event loop; see Sandbox.run_async.

        command, check, options, and the errors: as in run().
        """
        made = command_of("run_async", command, options, "check")
        result = await aio.run(self._session, made, False)
        return result.check() if check else result

    def start_async(
        self,
        command: _types.Argv | Command,
        /,
        *,
        limit: int = 65536,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> async_process.AsyncProcess:
        """Does the same as start() in an event loop; see Sandbox.start_async.

        command, limit, options: as in Sandbox.start_async. Raises SpecError at once, the other
        errors of start() at `async with`.
        """
        made = command_of("start_async", command, options, "limit")
        return async_process.start(self._session, made, limit)

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
        """Runs many commands in the session, a few at a time; see Sandbox.map.

        commands, jobs, ordered, on_failure, progress, options: as in Sandbox.map. Raises the errors
        of Sandbox.map, and SessionOver.
        """
        calls = _map.each_in(self._session, commands)
        return _map.start(calls, jobs, ordered, on_failure, progress, {**options})

    @property
    def outputs(self) -> _types.Outputs:
        """What the session left of the outputs that session(outputs=...) declared. Raises SpecError
        before the session is over, and SetupError if they cannot be read.
        """
        return self._left("outputs").outputs

    @property
    def changes(self) -> _types.Changes:
        """What all commands of the session changed in a root that is an Overlay, with
        session(changes='keep'). Raises SpecError before the session is over, or if the changes were
        not kept.
        """
        return self._left("changes").changes

    def _left(self, what: str) -> Result:
        session = self._session
        if session.failure is not None:
            raise session.failure
        if session.left is None:
            if session.is_over:
                raise SpecError(f"the session has no {what}: its root is no Overlay")
            raise SpecError(f"the {what} of a session are there when it is over: session.close()")
        return session.left

    def close(self) -> None:
        """Ends the session: kills everything in it, and waits until it is gone. Does nothing the
        second time. Raises Unkillable if the kernel does not end a process.
        """
        self._session.close()
        unkillable, self._session.unkillable = self._session.unkillable, None
        if unkillable is not None:
            raise unkillable

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> _types.NoReturn:
        raise TypeError("a Session cannot be pickled: it is open in this process")

    def __del__(self) -> None:
        session = getattr(self, "_session", None)
        if session is None or session.is_over or not session.is_ours:
            return
        import warnings

        warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
        session.close()

    def __repr__(self) -> str:
        state = "over" if self._session.is_over else "open"
        return f"<sandboxlib.Session in {self._session.box.root!r}, {state}>"


if TYPE_CHECKING:
    from .._runner import Runner

    def _session_is_a_runner(session: Session) -> Runner:
        return session
