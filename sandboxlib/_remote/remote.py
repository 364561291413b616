# SPDX-License-Identifier: Apache-2.0
"""Remote: a Runner whose commands are executed by the workers of a server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from queue import SimpleQueue
from types import MappingProxyType

from .. import _types
from .._concurrent import map as _map
from .._digest.hermetic import check_assume
from .._images.store import store_of
from .._inputs.frozen import frozen, frozen_box
from .._spec import command as _command
from .._spec.command import Command, command_of
from .._spec.spec import Spec
from .._values import check_flag, check_seconds, short, unknown_keyword
from ..errors import SandboxError, SpecError, SpecTypeError, UnsupportedError
from ..result import Result
from . import ours, portable
from .landing import Landing
from .portable import OURS, Sent
from .results import Answer, answer_of
from .server import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._inputs.snapshot import Folder
    from .layers import Tar
    from .many import Flights

JOBS = 16
_NONE: Mapping[str, str] = MappingProxyType({})


class Remote:
    """A Runner: its commands are executed by the workers of a server of the Remote Execution API.

        with Server("grpc://build:8980") as server:
            remote = Remote(Sandbox(Overlay()), server, platform={"OSFamily": "linux"})
            remote.run(["cc", "-c", "a.c"], inputs={"a.c": Path("a.c")}, outputs=["a.o"])

    box: Sandbox, where the commands run. server: Server.
    platform: mapping of str to str, the properties that a worker has to have, as its server names
        them; {} by default. With "sandboxlib": "1" only workers of sandboxlib execute the actions,
        which keep all of the Sandbox. Without it the actions are portable: any worker executes
        them, and what it could not keep is refused (UnsupportedError names each, and the remedy).
    assume: iterable of str, as in Command.digest: names of what has no digest, and is the same at
        the workers; () by default. Portable actions take none.
    skip_cache_lookup: bool, True: a result that the server has cached is not taken. False by
        default.
    do_not_cache: bool, True: the server does not keep the results, and does not execute equal
        actions of several callers once for all of them. False by default.
    deadline: float, seconds from the call to the Result, the time in the server's queue included;
        then the action is cancelled, and RemoteError says DEADLINE_EXCEEDED. None (the default): no
        bound, but the timeout of a Command is kept by the worker, and if no result came 600 seconds
        after that, the action is cancelled too.
    patience: float, seconds for which the server may be unavailable while a command is on its way;
        180 by default.

    docs/remote.md says what is portable, and what happens if something on the way is lost.

    Raises SpecError (a ValueError) if a value is wrong, and SpecTypeError for a value of the wrong
    type, or an unknown keyword argument.
    """

    __module__ = "sandboxlib"  # as callers import it

    def __init__(
        self,
        box: _types.Sandbox,
        server: Server,
        *,
        platform: Mapping[str, str] = _NONE,
        assume: Iterable[str] = (),
        skip_cache_lookup: bool = False,
        do_not_cache: bool = False,
        deadline: float | None = None,
        patience: float = 180.0,
        **unknown: _types.NoReturn,
    ) -> None:
        if unknown:
            raise unknown_keyword("Remote", unknown, _KEYWORDS)
        if not isinstance(box, Spec):
            raise SpecTypeError(f"box is not a Sandbox: {short(box)}")
        if not isinstance(server, Server):
            raise SpecTypeError(f"server is not a Server: {short(server)}; Server(url) makes one")
        self.box, self.server = box, server
        self.platform = _check_platform(platform)
        self.is_ours = self.platform.get(OURS) == "1"
        self._assume = check_assume(assume)
        if self._assume and not self.is_ours:
            raise SpecError("assume takes workers of sandboxlib: platform={'sandboxlib': '1'}")
        check_flag("skip_cache_lookup", skip_cache_lookup)
        check_flag("do_not_cache", do_not_cache)
        self.skip_cache_lookup, self.do_not_cache = skip_cache_lookup, do_not_cache
        self.deadline = None if deadline is None else check_seconds("deadline", deadline)
        if self.deadline == 0:
            raise SpecError("deadline is 0 seconds")
        self.patience = check_seconds("patience", patience)
        self._lock = threading.Lock()
        self._base: Folder | None = None
        self._tars: tuple[Tar, ...] | None = None
        self._frozen: Spec | None = None

    # ---- as every Runner ----

    def run(
        self,
        command: _types.Argv | Command,
        /,
        *,
        check: bool = False,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> Result:
        """Has a command executed, and waits for its end.

        command, check, options: as in Sandbox.run. Result.executor is 'remote', cached says whether
        the server had the result, usage is what the worker told, and wall what the caller waited.
        A function, Lines, Tee or a file as stdout or stderr gets the output while the command runs
        if the server has a stream for it, and at the end otherwise.

        If the call is interrupted (Ctrl-C, or an exception of such a function), the action is
        cancelled.

        Raises UnsupportedError for what the workers cannot keep; SpecError for what has no digest;
        SetupError if an input cannot be read; RemoteError if the server or a worker fails: its code
        and its text are those of the server.
        """
        from .flight import Flight

        check_flag("check", check)
        made = command_of("run", command, options, "check")
        landing = self._landing(made)
        events: SimpleQueue[tuple[Flight, str, Any]] = SimpleQueue()
        flight = Flight(self, made, lambda *event: events.put(event), landing.is_live)
        flight.start()
        has_ended = False
        try:
            while True:
                _, kind, value = events.get()
                has_ended = kind == "end"
                outcome = landing.heard(flight, kind, value)
                if outcome is not None:
                    return outcome.check() if check else outcome
        finally:
            if not has_ended:
                flight.end(lambda seconds: events.get(timeout=seconds)[1])

    async def run_async(
        self,
        command: _types.Argv | Command,
        /,
        *,
        check: bool = False,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> Result:
        """Does the same in an event loop, of asyncio or trio. A cancellation cancels the action.

        command, check, options, and the errors: as in run().
        """
        from . import waiting

        check_flag("check", check)
        made = command_of("run_async", command, options, "check")
        result = await waiting.run(self, made, self._landing(made))
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
        """Has many commands executed, a few at a time.

        jobs: int, the highest number of actions in flight; 16 by default. Each of them has a stream
            of the server, for which BuildGrid keeps a thread (`thread-pool-size`); here all of them
            take nine threads.
        commands, ordered, on_failure, progress, options: as in Sandbox.map. What several commands
            need is sent once.

        Raises the errors of run(), as Sandbox.map does.
        """
        jobs = JOBS if jobs is None else jobs
        calls = _map.each_in(self.box, commands)

        def make(jobs: int) -> Flights:
            from .many import Flights

            return Flights(self, jobs)

        return _map.start(calls, jobs, ordered, on_failure, progress, options, make)

    def __reduce__(self) -> _types.NoReturn:
        raise TypeError("a Remote cannot be pickled: its Server is of this process")

    def __repr__(self) -> str:
        platform = f", platform={dict(self.platform)!r}" if self.platform else ""
        return f"<sandboxlib.Remote {self.server!r}{platform}>"

    # ---- for a flight ----

    def _landing(self, command: Command) -> Landing:
        """What takes the output and the result of a command. Raises UnsupportedError for one that
        no worker can execute.
        """
        if reasons := list(portable.unsent(command)):
            lines = "\n".join(f"  {name}: {reason}" for name, reason in reasons)
            raise UnsupportedError(f"{command} asks for what no worker can keep:\n{lines}")
        return Landing(command)

    def _sent(self, command: Command) -> tuple[Command, Sent]:
        """The Command with the inputs as they are now, and its action."""
        made = frozen(command)
        with self._lock:  # the first one reads the layers
            if self._frozen is None:
                self._frozen = frozen_box(self.box)
            box = self._frozen
            if self.is_ours and self._tars is None:
                self._tars = ours.tars(box)
            elif self._base is None and not self.is_ours:
                self._base = portable.base_of(box)
        if self.is_ours:
            layers = self._tars or ()
            options = self.platform, self._assume, self.do_not_cache
            return made, ours.ours(made, box, layers, *options)
        assert self._base is not None
        return made, portable.portable(made, box, self._base, self.platform, self.do_not_cache)

    def _answer(self, command: Command, message: Any) -> Answer:
        """What an ActionResult says of a command."""
        cwd = self.box._cwd_of(command)
        asked = None if self.is_ours else portable.asked(command, cwd)
        return answer_of(
            self.server, message, command, cwd, store_of(self.box.store), declared=asked
        )


_KEYWORDS = (
    *("box", "server", "platform", "assume", "skip_cache_lookup", "do_not_cache"),
    *("deadline", "patience"),
)


def _check_platform(value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise SpecTypeError(f"platform is no mapping: {short(value)}; {{'OSFamily': 'linux'}} is")
    for name, text in value.items():
        if not (isinstance(name, str) and isinstance(text, str)):
            raise SpecTypeError(f"platform has {name!r}: {text!r}, and takes a str for both")
        if not name:
            raise SpecError("platform has a property without a name")
    return MappingProxyType(dict(value))
