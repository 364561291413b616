# SPDX-License-Identifier: Apache-2.0
"""Run many commands, a few at a time, for Sandbox.map and sandboxlib.map.

One message starts a run in a slot (see _runs/slots.py), so the thread that asks for results starts
those runs and pumps all of them in one wait. Any other run blocks the thread that starts it until
its exec, and an executor that drives a program blocks it until the end; each of these runs in a
worker thread. docs/benchmark.md compares this with threads that call Sandbox.run.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from operator import length_hint
from queue import SimpleQueue
from threading import Event, Thread
from time import monotonic
from weakref import WeakSet

from .._choice import choose
from .._choice.choose import run_command
from .._core import native, pump
from .._host import green
from .._runs import job
from .._runs.run import LONGEST_WAIT, Run, Stopped, slots_of, this_thread
from .._runs.session import OpenSession
from .._spec.command import Command, command_of
from .._spec.spec import Spec
from .._values import check_flag, short
from ..errors import SandboxError, SpecError, SpecTypeError, caller_error
from ..result import CommandFailed, Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    #: None: the map killed it.
    Outcome: TypeAlias = Result | BaseException | None
    Progress: TypeAlias = Callable[[int, Any], object]

lib = native.lib

AHEAD = 4  # at most 4 * jobs commands run, or have a result that the caller did not take yet
_AGAIN: int = lib.SBX_PUMP_AGAIN
_SIGKILL = 9
_EACH = "; each item of a map is a command: the words of one command are a list"


def each_in(
    box: Spec | OpenSession, commands: Iterable[object]
) -> Iterable[tuple[Spec | OpenSession, object]]:
    """Pair each command with the same Sandbox or session, as start() takes them."""
    _check_iterable(commands)
    if isinstance(commands, (list, tuple)):
        _refuse_one_argv(commands)
    return _Pairs(box, commands)


class _Pairs:
    """The commands, each with the same Sandbox, and as many as they are."""

    def __init__(self, box: Spec | OpenSession, commands: Iterable[object]) -> None:
        self._box, self._commands = box, commands

    def __iter__(self) -> Iterator[tuple[Spec | OpenSession, object]]:
        return ((self._box, command) for command in self._commands)

    def __length_hint__(self) -> int:
        hint = length_hint(self._commands, -1)
        return NotImplemented if hint < 0 else hint


def start(
    calls: Iterable[object],
    jobs: int | None,
    ordered: bool,
    on_failure: str,
    progress: Progress | None,
    options: Mapping[str, Any],
    make: Callable[[int], Any] | None = None,
) -> Generator[Any, None, None]:
    """A generator of the results of (Sandbox, command) pairs; see Sandbox.map. Raises SpecError.

    make: makes what has the methods of _Group, for so many jobs; None: the commands run here.
    """
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
    names = ["jobs", "ordered", "on_failure", "progress"]
    fresh = False
    if make is None:
        fresh = options.pop("fresh", False)
        check_flag("fresh", fresh)
        names.append("fresh")
    # This checks the options once. Each argv of the map then takes the place of "/".
    template = command_of("map", "/", options, *names)
    stop = on_failure == "stop"
    group = _Group(jobs, stop, fresh) if make is None else make(jobs)
    if progress is not None:
        announce(progress, calls)
    results = _Map(iter(calls), group, ordered, stop, progress, template, options).results()
    _unended.add(results)
    return results


def announce(progress: Progress, calls: Iterable[object]) -> None:
    """Tells a progress that has begin(), as sandboxlib.Progress has, how many calls there are."""
    begin = getattr(progress, "begin", None)
    if begin is not None:
        total = length_hint(calls, -1)
        begin(None if total < 0 else total)


#: The maps that may still have runs.
_unended: WeakSet[Generator[Any, None, None]] = WeakSet()


@atexit.register
def _end_maps() -> None:
    """Ends the maps that nobody ended, while their threads can still run: later the interpreter
    stops each thread at its next step, and waiting for one would take for ever.
    """
    for results in list(_unended):
        with contextlib.suppress(ValueError):  # another thread is in the middle of it
            results.close()


def _is_failure(outcome: object) -> bool:
    if isinstance(outcome, Result):
        return not outcome.ok
    return isinstance(outcome, SandboxError)


def _check_iterable(commands: object) -> None:
    if isinstance(commands, (str, bytes, Mapping)) or not isinstance(commands, Iterable):
        is_one = isinstance(commands, (str, bytes, Command))
        remedy = f"; one command is for run(), or [{short(commands)}]" if is_one else ""
        raise SpecTypeError(f"not several commands: {short(commands)}{remedy}")


def _refuse_one_argv(commands: Sequence[object]) -> None:
    """SpecTypeError for the words of one command: each word alone would be a program."""
    options = [word for word in commands[1:] if isinstance(word, str) and word.startswith("-")]
    if options and all(isinstance(word, (str, bytes, os.PathLike)) for word in commands):
        what = f"{options[0]!r} is an option and no command"
        remedy = f"one command is for run(), several are [{short(commands)}, ...]"
        raise SpecTypeError(f"these are the words of one command, as {what}: {remedy}")


def _as_error(failure: Result | SandboxError) -> SandboxError:
    return CommandFailed(failure) if isinstance(failure, Result) else failure


class _Map:
    """One map. It starts commands, keeps results until it is their turn, and yields them."""

    def __init__(
        self,
        calls: Iterator[object],
        group: _Group,
        ordered: bool,
        stop: bool,
        progress: Progress | None,
        template: Command,
        options: Mapping[str, Any],
    ) -> None:
        self._calls: Iterator[object] | None = calls  # None: start no more
        self._group = group
        self._ordered = ordered
        self._stop = stop
        self._progress = progress
        self._template, self._options = template, options
        self._commands: dict[int, object] = {}  # that run, by number
        self._ended: dict[int, Result | SandboxError] = {}  # that the caller did not take yet
        self._failed: int | None = None  # on_failure="stop": the number of the first failure
        self._has_words = False  # the last command was a str: the word of a longer one, perhaps
        self._n_started = self._n_ended = self._n_yielded = 0

    def results(self) -> Generator[Any, None, None]:
        try:
            try:
                yield from self._results()
            finally:
                self._group.close()
        finally:
            self._group.close()  # again, because Ctrl-C may have interrupted the first call

    def _results(self) -> Generator[Any, None, None]:
        while self._group or self._ended or self._calls is not None:
            self._start_some()
            self._wait()
            self._start_some()
            ready = self._next()
            if ready is not None:
                self._n_yielded += 1
                if ready == self._failed:
                    raise _as_error(self._ended.pop(ready))
                yield self._ended.pop(ready)

    def _wait(self) -> None:
        # Even if a result is ready: the caller may have been busy for long, and others may have
        # ended meanwhile.
        for number, outcome in self._group.wait(blocking=self._next() is None):
            self._note(number, outcome)

    def _start_some(self) -> None:
        group = self._group
        while (
            self._calls is not None
            and group.has_room()
            and self._n_started - self._n_yielded < AHEAD * group.jobs
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
            places = Spec, OpenSession
            if not (isinstance(call, tuple) and len(call) == 2 and isinstance(call[0], places)):
                text = f"not a Sandbox and a command: {short(call)}"
                raise SpecTypeError(f"{text}; write [(box, ['make']), ...], or box.map()")
            box, argv = call
            self._commands[number] = argv
            if isinstance(argv, Command):
                command = command_of("map", argv, self._options)
            else:
                command = self._template._with_argv(argv)
                self._has_words = isinstance(argv, (str, bytes))
            self._commands[number] = command
            self._group.start(number, box, command)
        except SandboxError as error:
            self._note(number, error.with_traceback(None))
        except OSError as error:
            self._note(number, error)

    def _next(self) -> int | None:
        """The number of the result to yield next, or None if it is not ready."""
        if self._ordered:
            return self._n_yielded if self._n_yielded in self._ended else None
        return next(iter(self._ended), None)

    def _note(self, number: int, outcome: Outcome) -> None:
        """Keep the outcome of a command that ended. Raises it if it is no SandboxError, such as an
        exception of the caller's sink. on_failure="continue" keeps an OSError too, as a
        SandboxError.
        """
        command = self._commands.pop(number)
        if outcome is None:
            return
        if not isinstance(outcome, (Result, SandboxError)):
            if self._stop or not isinstance(outcome, OSError):
                raise outcome
            outcome = caller_error(outcome)
        if self._failed is not None and (number > self._failed or not self._ordered):
            return
        outcome.number = number
        if isinstance(outcome, SandboxError):
            outcome.command = command
            if self._has_words and number and getattr(outcome, "step", "") == "exec":
                outcome.hint += _EACH  # type: ignore[attr-defined]
        self._ended[number] = outcome
        self._n_ended += 1
        if self._stop and _is_failure(outcome):
            self._fail(number)
        if self._progress is not None:
            self._progress(self._n_ended, outcome)

    def _fail(self, number: int) -> None:
        """Start no more commands, and kill those that run. If results come in order, the commands
        before the failure go on, because their results come first.
        """
        self._calls = None
        self._failed = number
        self._group.kill([n for n in self._commands if n > number or not self._ordered])


class _Group:
    """The commands that run, at most `jobs` of them, and a few that wait for a worker thread.

    stop: once a command has failed, the workers skip all with a higher number.
    """

    def __init__(self, jobs: int, stop: bool, fresh: bool) -> None:
        self.jobs = jobs
        self._fresh = fresh
        self._stop = stop
        self._last: float = float("inf")  # workers skip commands with a higher number
        self._owner = os.getpid()
        self._runs: dict[int, tuple[Run, str, float]] = {}  # with its executor and start time
        # The commands of the workers, also those that wait for one; setting the event ends it.
        self._threads: dict[int, Event] = {}
        self._ended: deque[tuple[int, Outcome]] = deque()
        self._pump = pump.Pump(jobs + 1)
        self._bell: pump.Bell | None = None
        self._workers: list[Thread] = []
        self._tasks: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()

    def __len__(self) -> int:
        return len(self._runs) + len(self._threads)

    def has_room(self) -> bool:
        """Return True if another command may be started. Up to `jobs` commands wait for a worker,
        so that one that is done has its next at once: waking this thread, and then the worker, for
        each would take longer than a short command.
        """
        return len(self) < (self.jobs if self._runs else 2 * self.jobs)

    def start(self, number: int, box: Spec | OpenSession, command: Command) -> None:
        """Start a run, or hand it to a worker. Raises SandboxError if it cannot be started."""
        began = monotonic()
        if isinstance(box, OpenSession):
            self._start_run(number, box.run_of(command), box.executor, began)
            return
        limited = box._for(command)
        executor = choose.executor_of(limited, choose.needs_native(command))
        plan = executor.plan_of(limited)
        is_full = len(self) >= self.jobs
        in_time = command.timeout is not None
        if self._fresh or is_full or plan is None or slots_of(plan, in_time) is None:
            self._start_thread(number, box, command)
            return
        run = Run(plan, job.job_of(command, limited), command)
        self._start_run(number, run, executor.name, began)

    def _start_run(self, number: int, run: Run, executor: str, began: float) -> None:
        self._runs[number] = run, executor, began
        try:
            run.start(fresh=False)
        except (SandboxError, OSError):
            self._end(number)
            raise

    def wait(self, blocking: bool) -> list[tuple[int, Outcome]]:
        """The commands that ended since the last call, with their outcomes. blocking: wait up to
        100 ms for the first of them.
        """
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
        """Kill some of the runs. Those of workers end a little later. Their outcome is None."""
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
        """Kill all runs, and wait until they are gone. A fork of the caller only closes its copies,
        because the runs belong to the parent.
        """
        if self._owner == os.getpid():
            self._last = -1
            self.kill([*self._runs, *self._threads])
            for _ in self._workers:
                self._tasks.put(None)
            for worker in self._workers:
                if worker.is_alive():  # False if Ctrl-C interrupted its start
                    worker.join()
            if self._bell is not None:
                self._bell.close()
        for number in list(self._runs):
            self._end(number)

    def _add_outcome(self, number: int, outcome: Outcome) -> None:
        if self._stop and _is_failure(outcome):
            self._last = min(self._last, number)
        if isinstance(outcome, SandboxError):
            outcome.__traceback__ = None  # its frames would keep the whole map alive
        self._ended.append((number, outcome))

    # ---- runs in slots -----------------------------------------------------------------------

    def _follow(self, number: int, result: int) -> None:
        run, executor, began = self._runs[number]
        try:
            if not run.follow(result):
                return
            self._add_outcome(number, run.result(executor, began, dict(run.plan.isolation)))
        except (SandboxError, OSError) as error:
            self._add_outcome(number, error)
        self._end(number)

    def _end(self, number: int) -> None:
        run = self._runs[number][0]
        run.end()
        del self._runs[number]
        run.release()

    # ---- runs in threads ---------------------------------------------------------------------

    def _start_thread(self, number: int, box: Spec, command: Command) -> None:
        green.refuse("a map whose runs use no slot")
        if self._bell is None:
            self._bell = pump.Bell()
        event = self._threads[number] = Event()
        self._tasks.put((number, event, box, command))
        if len(self._workers) < min(len(self._threads), self.jobs):
            # A daemon thread: a map that was never ended must not keep the interpreter from exit.
            self._workers.append(Thread(target=self._work, name="sandboxlib-map", daemon=True))
            self._workers[-1].start()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._run(*task)

    def _run(self, number: int, event: Event, box: Spec, command: Command) -> None:
        assert self._bell is not None
        this_thread.stop = event
        try:
            is_over = event.is_set() or number > self._last
            self._add_outcome(number, None if is_over else self._call(box, command))
        except Stopped:
            self._add_outcome(number, None)
        except BaseException as error:  # _note() raises it in the caller's thread
            self._add_outcome(number, error)
        this_thread.stop = None
        self._bell.ring()

    def _call(self, box: Spec, command: Command) -> Result:
        return run_command(box._for(command), command, self._fresh)
