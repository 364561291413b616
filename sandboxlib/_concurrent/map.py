# SPDX-License-Identifier: Apache-2.0
"""Many commands, a few at a time: what Sandbox.map and sandboxlib.map do.

To start a run in a slot (see _runs/slots.py) takes one message. So those are started and moved by
the thread that asks for results, all in one wait. Every other kind of run keeps the thread that
starts it until its exec, so that each is given a thread of its own; so is what another program
runs. docs/benchmark.md has the figures, beside those of threads that call Sandbox.run.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from queue import SimpleQueue
from threading import Event, Thread, get_ident
from time import monotonic

from .._choice import choose
from .._choice.choose import run_command
from .._core import native, pump
from .._runs import job
from .._runs.run import LONGEST_WAIT, Run, Stopped, slots_of, stops
from .._spec.command import Command, command_of
from .._spec.spec import Spec
from .._values import check_flag
from ..errors import SandboxError, SpecError, SpecTypeError
from ..result import CommandFailed, Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    #: None: it was killed.
    Outcome: TypeAlias = Result | BaseException | None
    Progress: TypeAlias = Callable[[int, Any], object]

lib = native.lib

AHEAD = 4  # times jobs: results that are not handed over, and commands that run
_AGAIN: int = lib.SBX_PUMP_AGAIN
_SIGKILL = 9


def each_in(box: Spec, commands: Iterable[object]) -> Iterator[tuple[Spec, object]]:
    """The commands of one Sandbox as start() takes them."""
    _check_iterable(commands)
    return ((box, command) for command in commands)


def start(
    calls: Iterable[object],
    jobs: int | None,
    ordered: bool,
    on_failure: str,
    progress: Progress | None,
    options: Mapping[str, Any],
) -> Generator[Any, None, None]:
    """Results of (Sandbox, command) pairs; see Sandbox.map. SpecError."""
    _check_iterable(calls)
    if jobs is None:
        jobs = len(os.sched_getaffinity(0))
    if isinstance(jobs, bool) or not isinstance(jobs, int):
        raise SpecTypeError(f"jobs is not an int: {jobs!r}")
    if jobs < 1:
        raise SpecError(f"jobs is {jobs}, and has to be 1 at least")
    if on_failure not in ("stop", "continue"):
        raise SpecError(f"on_failure is {on_failure!r}, and has to be 'stop' or 'continue'")
    if not isinstance(ordered, bool):
        raise SpecTypeError(f"ordered is not a bool: {ordered!r}")
    if progress is not None and not callable(progress):
        raise SpecTypeError(f"progress is not a function: {progress!r}")
    options = dict(options)
    fresh = options.pop("fresh", False)
    check_flag("fresh", fresh)
    names = ("jobs", "ordered", "on_failure", "progress", "fresh")
    # Its argv is replaced by that of each command.
    model = command_of("map", "/", options, *names)
    stop = on_failure == "stop"
    group = _Group(jobs, stop, fresh)
    return _Map(iter(calls), group, ordered, stop, progress, model, options).results()


def _is_failure(outcome: object) -> bool:
    if isinstance(outcome, Result):
        return not outcome.ok
    return isinstance(outcome, SandboxError)


def _check_iterable(commands: object) -> None:
    if isinstance(commands, (str, bytes, Mapping)) or not isinstance(commands, Iterable):
        raise SpecTypeError(f"not several commands: {commands!r}")


def _as_error(failure: Result | SandboxError) -> SandboxError:
    return CommandFailed(failure) if isinstance(failure, Result) else failure


class _Map:
    """One map: which commands were started, what ended and is not handed over yet."""

    def __init__(
        self,
        calls: Iterator[object],
        group: _Group,
        ordered: bool,
        stop: bool,
        progress: Progress | None,
        model: Command,
        options: Mapping[str, Any],
    ) -> None:
        self._calls: Iterator[object] | None = calls  # None: no other is started
        self._group = group
        self._ordered = ordered
        self._stop = stop
        self._progress = progress
        self._model, self._options = model, options
        self._commands: dict[int, object] = {}  # of those that run
        self._ended: dict[int, Result | SandboxError] = {}
        self._failed: int | None = None  # stop: the first that failed
        self._n_started = self._n_ended = self._n_given = 0

    def results(self) -> Generator[Any, None, None]:
        try:
            try:
                yield from self._results()
            finally:
                self._group.close()
        finally:
            self._group.close()  # once more: Ctrl-C may have come in the midst of it

    def _results(self) -> Generator[Any, None, None]:
        while self._group or self._ended or self._calls is not None:
            self._start_some()
            self._wait()
            self._start_some()
            ready = self._next()
            if ready is not None:
                self._n_given += 1
                if ready == self._failed:
                    raise _as_error(self._ended.pop(ready))
                yield self._ended.pop(ready)

    def _wait(self) -> None:
        # Also where something is ready: the caller may have been away for long.
        for number, outcome in self._group.wait(blocking=self._next() is None):
            self._note(number, outcome)

    def _start_some(self) -> None:
        group = self._group
        while (
            self._calls is not None
            and group.has_room()
            and self._n_started - self._n_given < AHEAD * group.jobs
        ):
            try:
                call = next(self._calls)
            except StopIteration:
                self._calls = None
                return
            number = self._n_started
            self._n_started += 1
            self._start(number, call)

    def _start(self, number: int, call: object) -> None:
        self._commands[number] = call
        try:
            if not (isinstance(call, tuple) and len(call) == 2 and isinstance(call[0], Spec)):
                raise SpecTypeError(f"not a Sandbox and a command: {call!r}")
            box, argv = call
            self._commands[number] = argv
            if isinstance(argv, Command):
                command = command_of("map", argv, self._options)
            else:
                command = self._model._with_argv(argv)
            self._commands[number] = command
            self._group.start(number, box, command)
        except SandboxError as error:
            self._note(number, error.with_traceback(None))

    def _next(self) -> int | None:
        """Which result is to be handed over next, if it is there."""
        if self._ordered:
            return self._n_given if self._n_given in self._ended else None
        return next(iter(self._ended), None)

    def _note(self, number: int, outcome: Outcome) -> None:
        """A command ended."""
        command = self._commands.pop(number)
        if outcome is None:
            return
        if not isinstance(outcome, (Result, SandboxError)):
            raise outcome
        if self._failed is not None and (number > self._failed or not self._ordered):
            return
        outcome.number = number
        if isinstance(outcome, SandboxError):
            outcome.command = command
        self._ended[number] = outcome
        self._n_ended += 1
        if self._stop and _is_failure(outcome):
            self._fail(number)
        if self._progress is not None:
            self._progress(self._n_ended, outcome)

    def _fail(self, number: int) -> None:
        """No other is started. In order, those before it are waited for."""
        self._calls = None
        self._failed = number
        self._group.kill([n for n in self._commands if n > number or not self._ordered])


class _Group:
    """The commands that run, `jobs` of them at most; and some that threads take up next.

    stop: none is taken up once one failed.
    """

    def __init__(self, jobs: int, stop: bool, fresh: bool) -> None:
        self.jobs = jobs
        self._fresh = fresh
        self._stop = stop
        self._last: float = float("inf")  # threads take up none of a higher number
        self._owner = os.getpid()
        self._runs: dict[int, tuple[Run, str, float]] = {}  # executor, start
        self._threads: dict[int, Event] = {}  # an event that ends it; those that wait as well
        self._ended: deque[tuple[int, Outcome]] = deque()
        self._pump = pump.Pump(jobs + 1)
        self._bell: pump.Bell | None = None
        self._workers: list[Thread] = []
        self._tasks: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()

    def __len__(self) -> int:
        return len(self._runs) + len(self._threads)

    def has_room(self) -> bool:
        """Whether another may be started. A thread that is done finds one waiting for it: to wake
        two threads for each would take longer than a short command.
        """
        return len(self) < (self.jobs if self._runs else 2 * self.jobs)

    def start(self, number: int, box: Spec, command: Command) -> None:
        """Starts a run; SandboxError if it cannot be started."""
        began = monotonic()
        limited = box._for(command)
        executor = choose.executor_of(limited, choose.needs_native(command))
        plan = executor.plan_of(limited)
        is_full = len(self) >= self.jobs
        in_time = command.timeout is not None
        if self._fresh or is_full or plan is None or slots_of(plan, in_time) is None:
            self._start_thread(number, box, command)
            return
        run = Run(plan, job.job_of(command, limited), command)
        self._runs[number] = run, executor.name, began
        try:
            run.start(fresh=False)
        except SandboxError:
            self._end(number)
            raise

    def wait(self, blocking: bool) -> list[tuple[int, Outcome]]:
        """Which ended meanwhile, and how; waits 100 ms at most for the first of them."""
        runs = list(self._runs.items())
        structs = [run.struct for _, (run, _, _) in runs]
        if self._bell is not None:
            structs.append(self._bell.struct)
        if structs:
            wait_ns = 0
            if blocking and self and not self._ended:
                waits = [run.wait() for _, (run, _, _) in runs]
                wait_ns = min(waits, default=LONGEST_WAIT)
            results = self._pump(structs, wait_ns) or [_AGAIN] * len(structs)
            for (number, (run, _, _)), result in zip(runs, results, strict=False):
                if result != _AGAIN or run.deadline is not None or run.struct.killed:
                    self._follow(number, result)
            if self._bell is not None and results[-1] != _AGAIN:
                self._bell.reset()
        ended = []
        while self._ended:
            ended.append(self._ended.popleft())
            self._threads.pop(ended[-1][0], None)
        return ended

    def kill(self, numbers: Iterable[int]) -> None:
        """Kills some of the runs. Those that have threads end soon, with None for an outcome."""
        doomed = set(numbers)
        runs = [number for number in self._runs if number in doomed]
        for number in runs:
            if not self._runs[number][0].struct.ended:
                lib.sbx_signal(self._runs[number][0].struct, _SIGKILL)
        for number in runs:
            self._end(number)
            self._ended.append((number, None))
        for number in doomed & self._threads.keys():
            self._threads[number].set()

    def close(self) -> None:
        """Kills all, and waits until it is gone. A fork of the caller closes only."""
        if self._owner == os.getpid():
            self._last = -1
            self.kill([*self._runs, *self._threads])
            for _ in self._workers:
                self._tasks.put(None)
            for worker in self._workers:
                if worker.is_alive():  # not where its start was interrupted
                    worker.join()
            if self._bell is not None:
                self._bell.close()
        for number in list(self._runs):
            self._end(number)

    def _tell(self, number: int, outcome: Outcome) -> None:
        if self._stop and _is_failure(outcome):
            self._last = min(self._last, number)
        if isinstance(outcome, SandboxError):
            outcome.__traceback__ = None  # through its frames it would keep all of the map
        self._ended.append((number, outcome))

    # ---- runs in slots -----------------------------------------------------------------------

    def _follow(self, number: int, result: int) -> None:
        run, executor, began = self._runs[number]
        try:
            if not run.follow(result):
                return
            self._tell(number, run.result(executor, began, dict(run.plan.isolation)))
        except SandboxError as error:
            self._tell(number, error)
        self._end(number)

    def _end(self, number: int) -> None:
        run = self._runs[number][0]
        run.end()
        del self._runs[number]
        run.release()

    # ---- runs in threads ---------------------------------------------------------------------

    def _start_thread(self, number: int, box: Spec, command: Command) -> None:
        if self._bell is None:
            self._bell = pump.Bell()
        event = self._threads[number] = Event()
        self._tasks.put((number, event, box, command))
        if len(self._workers) < min(len(self._threads), self.jobs):
            # A daemon: at the end of the interpreter a map that nobody ended keeps nobody.
            self._workers.append(Thread(target=self._work, name="sandboxlib-map", daemon=True))
            self._workers[-1].start()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._run(*task)

    def _run(self, number: int, event: Event, box: Spec, command: Command) -> None:
        assert self._bell is not None
        stops[get_ident()] = event
        try:
            is_over = event.is_set() or number > self._last
            self._tell(
                number, None if is_over else run_command(box._for(command), command, self._fresh)
            )
        except Stopped:
            self._tell(number, None)
        except BaseException as error:  # it is the caller's, in whose thread it is raised
            self._tell(number, error)
        del stops[get_ident()]
        self._bell.ring()
