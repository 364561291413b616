# SPDX-License-Identifier: Apache-2.0
"""Timeline: when each command of a map ran, and where, as a trace that browsers show."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from time import monotonic, time
from typing import Any

from .. import _types
from .._spec.command import Command
from .._values import check_path, unknown_keyword
from .._version import __version__
from ..errors import SandboxError, SpecTypeError
from ..result import Result
from .trace_events import Noted, events_of

Outcome = Result | SandboxError


class Timeline:
    """Notes when each command ran, and where. It is given to map() as `progress`:

        timeline = Timeline()
        for result in box.map(commands, jobs=8, progress=timeline):
            ...
        timeline.save("build.json")

    Chrome (about:tracing) and ui.perfetto.dev show the file.

    name: a function that returns the text of a command's bar, of its Result or SandboxError. None
        (the default): its argv, in short.

    A bar is as long as its call took. A row has one bar at a time, so a map with jobs=8 has 8 rows
    at most. The rows of a worker (Result.worker) are together, and so are the commands that a cache
    answered (Result.cached). Of each command it keeps what the file has, and no outputs. Threads
    may share a Timeline. Raises SpecTypeError if name is no function.
    """

    __module__ = "sandboxlib"  # as callers import it

    def __init__(
        self, *, name: Callable[[_types.Any], str] | None = None, **unknown: _types.NoReturn
    ) -> None:
        if unknown:
            raise unknown_keyword("Timeline", unknown, ("name",))
        if name is not None and not callable(name):
            raise SpecTypeError(f"name is not a function: {name!r}")
        self._name = name
        self._noted: list[Noted] = []
        self._clock = time() - monotonic()

    def __call__(self, ended: int, outcome: Outcome) -> None:
        """Does the same as add(), as map() calls it.

        ended: int, the number of commands that ended so far; it is not used.
        outcome: Result or SandboxError.
        """
        self.add(outcome)

    def add(self, outcome: Outcome) -> None:
        """Notes a command that just ended, of run() as of map().

        outcome: its Result; or the SandboxError that it raised, which is a mark without a length,
            at this moment.

        Raises SpecTypeError for anything else, or if the function `name` returns no str.
        """
        if not isinstance(outcome, (Result, SandboxError)):
            raise SpecTypeError(f"neither a Result nor a SandboxError: {outcome!r}")
        name = None if self._name is None else self._name(outcome)
        if name is not None and not isinstance(name, str):
            raise SpecTypeError(f"the function name returned no str: {name!r}")
        argv = outcome.command._argv if isinstance(outcome.command, Command) else ()
        if isinstance(outcome, SandboxError):
            self._noted.append(Noted(name, argv, monotonic(), None, str(outcome)))
            return
        kept = Result(outcome.exit, None, None)  # without the outputs
        kept.__dict__.update(outcome.__dict__, command=None, _outputs=None, _changes=None)
        began = outcome.began or monotonic() - outcome.wall
        self._noted.append(Noted(name, argv, began, kept, ", ".join(outcome._missing)))

    def save(self, file: _types.Path) -> None:
        """Writes the trace, JSON in the Trace Event Format.

        file: str or path. It takes the place of an earlier one once it is whole.

        Raises OSError if it cannot be written.
        """
        path = check_path("file", file)
        directory, name = os.path.split(path)
        new = os.path.join(directory, f".{name[:200]}.{os.urandom(6).hex()}")
        try:
            with open(new, "x", encoding="ascii") as out:
                json.dump(self.trace(), out, separators=(",", ":"), allow_nan=False)
            os.replace(new, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise

    def trace(self) -> dict[str, Any]:
        """Returns what save() writes, to be merged with the events of a program of yours: a dict
        with the list 'traceEvents'. Its times are microseconds of time.monotonic();
        otherData['epoch'] is what to add to them, in seconds, for those of time.time().
        """
        return {
            "traceEvents": events_of(list(self._noted)),
            "displayTimeUnit": "ms",
            "otherData": {"program": f"sandboxlib {__version__}", "epoch": self._clock},
        }
