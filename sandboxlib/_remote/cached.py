# SPDX-License-Identifier: Apache-2.0
"""Cached: a Runner that looks for results in the cache of a server before it runs a command."""

from __future__ import annotations

import os
from _thread import allocate_lock
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from time import monotonic

from .. import _types
from .._choice.choose import run_command
from .._concurrent import aio
from .._concurrent import map as _map
from .._concurrent.threads import in_thread
from .._digest.hermetic import check_assume
from .._inputs.frozen import frozen_box
from .._runs.run import this_thread
from .._spec import command as _command
from .._spec.command import Command, command_of
from .._spec.spec import Spec
from .._values import check_choice, check_flag, short, unknown_keyword
from ..errors import RemoteError, SandboxError, SpecError, SpecTypeError
from ..result import Result
from .entries import Entries, Keyed
from .keeping import Keeper, can_keep, replayed, would_be_killed
from .results import Answer
from .server import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_THREADS = 32  # for event loops: each waits for a server
_AWAY = 30.0  # seconds for which a server that did not answer is not asked again
_KEYWORDS = ("box", "server", "write", "assume", "unreachable")
_OF_CALLS = ("fresh", "do_not_cache", "check")


class Cached:
    """A Runner that runs commands in a Sandbox, on this machine, unless a server of the Remote
    Execution API has the result in its cache.

        with Server("grpc://cache:8980") as server:
            cached = Cached(box, server, write=True)
            cached.run(Command(["cc", "-c", "a.c"], "/src", inputs=..., outputs=["a.o"]))

    The key of a result is Command.digest(box). A hit has what the run had: stdout and stderr, which
    go to functions, Lines, Tees and files too, and the outputs. Result.cached says whether it is
    one; then executor is 'cache', usage is that of the run, and wall what the caller waited.

    box: Sandbox. A Mount.file of it, and an Image, are read at the first run, and stay what they
        were then; so do the inputs of a Command from the call on.
    server: Server, whose action cache and store are used.
    write: bool. True: the results of runs go to the cache, if they are ok, whole, and reached no
        limit. False (the default): the cache is only read.
    assume: iterable of str, as in Command.digest: names of what has no digest, and is the same
        wherever this cache is used; () by default.
    unreachable: str, if the server is not available, after several tries. 'refuse' (the default):
        RemoteError. 'run': the command runs here, and nothing is written; for 30 seconds the server
        is not asked again.

    Any number of threads may use a Cached. As a context manager it closes what it opened itself,
    and neither the Sandbox nor the Server. It cannot be pickled. docs/remote.md has more.

    Raises SpecError (a ValueError) if a value is wrong, and SpecTypeError for a value of the wrong
    type, or an unknown keyword argument.
    """

    __module__ = "sandboxlib"  # as callers import it

    def __init__(
        self,
        box: _types.Sandbox,
        server: Server,
        *,
        write: bool = False,
        assume: Iterable[str] = (),
        unreachable: _types.Literal["refuse", "run"] = "refuse",
        **unknown: _types.NoReturn,
    ) -> None:
        if unknown:
            raise unknown_keyword("Cached", unknown, _KEYWORDS)
        if not isinstance(box, Spec):
            raise SpecTypeError(f"box is not a Sandbox: {short(box)}")
        if not isinstance(server, Server):
            raise SpecTypeError(f"server is not a Server: {short(server)}; Server(url) makes one")
        check_flag("write", write)
        check_choice("unreachable", unreachable, ("refuse", "run"))
        self.box, self.server, self.write = box, server, write
        self._assume = check_assume(assume)
        self._may_run = unreachable == "run"
        self._away_until = 0.0
        self._lock = allocate_lock()
        self._frozen: Spec | None = None
        self._pool: tuple[int, ThreadPoolExecutor] | None = None  # with the pid of its process

    # ---- as every Runner ----

    def run(
        self,
        command: _types.Argv | Command,
        /,
        *,
        fresh: bool = False,
        check: bool = False,
        do_not_cache: bool = False,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> Result:
        """Returns the result that the cache has; or else runs the command, and waits for its end.

        command, fresh, check, options: as in Sandbox.run. do_not_cache: bool. True: the command is
        run, and its result is not written. False (the default): the cache is asked first.

        Raises the errors of Sandbox.run; SpecError, which names all of box.not_hermetic(command),
        for what has no digest, and for changes='keep', which no cache has; RemoteError if the
        server fails, or what it says cannot be true.
        """
        made = command_of("run", command, options, *_OF_CALLS)
        result = self._run(made, _flag("fresh", fresh), _flag("do_not_cache", do_not_cache))
        return result.check() if check else result

    async def run_async(
        self,
        command: _types.Argv | Command,
        /,
        *,
        fresh: bool = False,
        check: bool = False,
        do_not_cache: bool = False,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> Result:
        """Does the same in an event loop: that of asyncio, uvloop or trio. The server is asked by
        threads, at most 32; functions get output in the thread of the loop.

        command, fresh, check, do_not_cache, options, and the errors: as in run(). A cancellation
        kills the run, as in Sandbox.run_async, and does not wait for the server.
        """
        made = command_of("run_async", command, options, *_OF_CALLS)
        _flag("fresh", fresh)
        if _flag("do_not_cache", do_not_cache):
            result = await aio.run(self.box, made, fresh)
        else:
            result = await self._run_async(made, fresh)
        return result.check() if check else result

    @_types.overload
    def map(
        self,
        commands: Iterable[_types.Argv | Command],
        jobs: int | None = None,
        *,
        ordered: bool = True,
        on_failure: _types.Literal["stop"] = "stop",
        progress: Callable[[int, Result], object] | None = None,
        fresh: bool = False,
        do_not_cache: bool = False,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> Generator[Result, None, None]: ...
    @_types.overload
    def map(
        self,
        commands: Iterable[_types.Argv | Command],
        jobs: int | None = None,
        *,
        ordered: bool = True,
        on_failure: _types.Literal["continue"],
        progress: Callable[[int, Result | SandboxError], object] | None = None,
        fresh: bool = False,
        do_not_cache: bool = False,
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
        fresh: bool = False,
        do_not_cache: bool = False,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> Generator[_types.Any, None, None]:
        """Runs many commands, a few at a time, of which each is looked up first.

        commands, jobs, ordered, on_failure, progress, fresh, options: as in Sandbox.map.
        do_not_cache: as in run(), for each command. The commands run in threads, `jobs` at most.

        Raises the errors of run(), as Sandbox.map does.
        """
        how = _flag("fresh", fresh), _flag("do_not_cache", do_not_cache)
        calls = _map.each_in(self.box, commands)
        return _map.start(
            *(calls, jobs, ordered, on_failure, progress, {**options}),
            make=lambda jobs: _Calls(self, jobs, on_failure == "stop", how),
        )

    # ---- one command ----

    def _run(self, command: Command, fresh: bool, do_not_cache: bool) -> Result:
        began = monotonic()
        if do_not_cache:
            return run_command(self.box._for(command), command, fresh)
        entries, keyed, answer = self._look_up(command, this_thread.stop)
        if answer is not None:
            return _hit(command, answer, began)
        keeper = self._keeper(keyed)
        chosen = keyed.command if keeper is None else keeper.command
        result = run_command(entries.box._for(chosen), chosen, fresh)
        whole = None
        if keeper is not None:
            result = keeper.finish(result)
            whole = keeper.whole(result)
        if whole is not None:
            self._put(entries, keyed, whole, this_thread.stop)
        return _missed(result, command, began)

    async def _run_async(self, command: Command, fresh: bool) -> Result:
        began = monotonic()
        pool, stop = self._threads(), Event()

        def look_up() -> tuple[Entries, Keyed, Answer | None]:
            return self._look_up(command, stop)

        entries, keyed, answer = await in_thread(pool, look_up, stop.set)
        if answer is not None:
            return _hit(command, answer, began)
        keeper = self._keeper(keyed)
        chosen = keyed.command if keeper is None else keeper.command
        result = await aio.run(entries.box, chosen, fresh)
        if keeper is not None:
            result = keeper.finish(result)
            if (whole := keeper.whole(result)) is not None:
                put = lambda: self._put(entries, keyed, whole, stop)  # noqa: E731
                await in_thread(pool, put, stop.set)
        return _missed(result, command, began)

    def _keeper(self, keyed: Keyed) -> Keeper | None:
        """What takes all output of a run; None if it does not go to the cache anyway."""
        return Keeper(keyed.command) if self.write and can_keep(keyed.command) else None

    def _look_up(
        self, command: Command, stop: Event | None
    ) -> tuple[Entries, Keyed, Answer | None]:
        """What a run takes, and what the cache has in place of one."""
        if command.changes == "keep":
            text = "no cache keeps the changes of a run; do_not_cache=True runs it all the same"
            raise SpecError(f"{command} has changes='keep': {text}")
        entries = Entries(self._box(), self.server, self._assume, stop)
        keyed = entries.keyed(command)
        answer: Answer | None = None
        if monotonic() >= self._away_until:
            try:
                answer = entries.get(keyed)
            except RemoteError as error:
                self._note(error)
        if answer is not None and would_be_killed(command, answer):
            answer = None
        return entries, keyed, answer

    def _put(self, entries: Entries, keyed: Keyed, result: Result, stop: Event | None) -> None:
        if not result.ok or result.limits_hit or monotonic() < self._away_until:
            return
        try:
            entries.put(keyed, result)
        except RemoteError as error:
            self._note(error)

    def _note(self, error: RemoteError) -> None:
        """Goes on without the server for a while, if that was asked for; raises the error."""
        if not (self._may_run and error.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")):
            raise error
        self._away_until = monotonic() + _AWAY

    def _box(self) -> Spec:
        """The Sandbox of runs, with what it shows to commands as it was at the first run."""
        found = self._frozen
        if found is None:
            with self._lock:
                found = self._frozen
                if found is None:
                    found = self._frozen = frozen_box(self.box)
        return found

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None or self._pool[0] != os.getpid():
                made = ThreadPoolExecutor(_THREADS, "sandboxlib-cached")
                self._pool = os.getpid(), made
            return self._pool[1]

    # ---- its life ----

    def close(self) -> None:
        """Ends the slots and threads that are not those of the Sandbox; the next run makes and
        reads all anew.
        """
        with self._lock:
            box, pool, self._frozen, self._pool = self._frozen, self._pool, None, None
        if pool is not None and pool[0] == os.getpid():
            pool[1].shutdown(wait=True, cancel_futures=True)
        if box is not None and box is not self.box:
            box.close()  # type: ignore[attr-defined]

    def __enter__(self) -> _types.Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> _types.NoReturn:
        raise TypeError("a Cached cannot be pickled: its Server is of this process")

    def __repr__(self) -> str:
        write = ", write=True" if self.write else ""
        return f"<sandboxlib.Cached {self.server!r}{write}>"


class _Calls(_map._Group):
    """The commands of a map, each of which takes a thread while it is looked up and run."""

    def __init__(self, cached: Cached, jobs: int, stop: bool, how: tuple[bool, bool]) -> None:
        super().__init__(jobs, stop, how[0])
        self._cached, self._how = cached, how

    def start(self, number: int, box: Any, command: Command) -> None:
        self._start_thread(number, box, command)

    def _call(self, box: Spec, command: Command) -> Result:
        return self._cached._run(command, *self._how)


def _flag(name: str, value: bool) -> bool:
    check_flag(name, value)
    return value


def _hit(command: Command, answer: Answer, began: float) -> Result:
    result = replayed(command, answer, "cache")
    result.cached = True
    result.began, result.wall = began, monotonic() - began
    return result


def _missed(result: Result, command: Command, began: float) -> Result:
    result.command, result.began, result.wall = command, began, monotonic() - began
    return result


if TYPE_CHECKING:
    from .._runner import Runner

    def _cached_is_a_runner(cached: Cached) -> Runner:
        return cached
