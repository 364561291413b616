# SPDX-License-Identifier: Apache-2.0
"""Progress: how far a map is, as a bar on a terminal or as lines."""

from __future__ import annotations

import sys
from threading import Lock
from time import monotonic
from typing import Any, TextIO

from .. import _types
from .._values import check_seconds, check_text, unknown_keyword
from ..errors import SandboxError, SpecError, SpecTypeError, printable
from ..result import Result

Outcome = Result | SandboxError
_REFRESH = 0.1  # seconds between two pictures of the bar


class Progress:
    """Shows how far a map is: how many commands ended, failures, rate, hits of a cache. It is given
    to map() as `progress`:

        with Progress("compile") as progress:
            for result in box.map(commands, progress=progress):
                ...

    title: str, text that stands before the figures; "" by default.
    total: int, the number of commands. None (the default): map() tells it, if its commands have a
        length; otherwise nothing is shown of what is left.
    file: the text file to write to; None (the default): sys.stderr.
    every: float, seconds between two lines where file is no terminal; 10 by default.

    On a terminal it is a bar of rich, if that is installed (`sandboxlib[progress]`); elsewhere, and
    without rich, it is a line each `every` seconds and one at the end. Leaving `with` ends it, also
    after an exception; it ends by itself when all commands of the total have ended. Threads may
    share a Progress. Raises SpecError and SpecTypeError for a wrong argument.
    """

    __module__ = "sandboxlib"  # as callers import it

    def __init__(
        self,
        title: str = "",
        *,
        total: int | None = None,
        file: TextIO | None = None,
        every: float = 10.0,
        **unknown: _types.NoReturn,
    ) -> None:
        if unknown:
            raise unknown_keyword("Progress", unknown, ("title", "total", "file", "every"))
        self._title = printable(check_text("title", title))
        self._total = _checked_total(total)
        self._every = check_seconds("every", every)
        self._file = sys.stderr if file is None else file
        self._began = self._shown = 0.0
        self._ended = self._failures = self._hits = 0
        self._bar: Any = None
        self._is_over = False
        self._lock = Lock()

    def begin(self, total: int | None = None) -> None:
        """Starts the clock, and shows that nothing has ended yet. map() calls it; without a map the
        first command that ended does.

        total: int, the number of commands, if none was given to the Progress; None: unknown.

        Raises SpecError and SpecTypeError for a wrong total.
        """
        with self._lock:
            self._begin(_checked_total(total))

    def __call__(self, ended: int, outcome: Outcome) -> None:
        """Counts a command that ended, as map() calls it.

        ended: int, the number of commands that ended so far; it is not used.
        outcome: Result or SandboxError.
        """
        with self._lock:
            if self._began == 0.0:
                self._begin(None)
            self._ended += 1
            if isinstance(outcome, Result):
                self._failures += not outcome.ok
                self._hits += outcome.cached
            else:
                self._failures += 1
            if self._ended == self._total:
                self._end()
            elif not self._is_over:
                self._show()

    def end(self) -> None:
        """Shows the last figures, and ends. Does nothing the second time."""
        with self._lock:
            self._end()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def __str__(self) -> str:
        """Returns the figures as a line of them has them."""
        return f"{self._title}: {self._figures()}" if self._title else self._figures()

    def _begin(self, total: int | None) -> None:
        if self._began == 0.0:
            self._began = self._shown = monotonic()
            if self._total is None:
                self._total = total
            self._bar = _bar_on(self._file, self._title, self._total)

    def _show(self) -> None:
        now = monotonic()
        if now - self._shown < (self._every if self._bar is None else _REFRESH):
            return
        self._shown = now
        if self._bar is None:
            self._write()
        else:
            self._bar.show(self._ended, self._total, self._rest())

    def _end(self) -> None:
        if self._is_over or self._began == 0.0:
            return
        self._is_over = True
        if self._bar is None:
            self._write()
        else:
            self._bar.end(self._ended, self._total, self._rest())

    def _write(self) -> None:
        print(self, file=self._file, flush=True)

    def _figures(self) -> str:
        done = f"{self._ended}" if self._total is None else f"{self._ended}/{self._total}"
        return f"{done} {self._rest()}"

    def _rest(self) -> str:
        seconds = monotonic() - self._began if self._began else 0.0
        rate = self._ended / seconds if seconds > 0 else 0.0
        failed = f"{self._failures} failed, " if self._failures else ""
        hits = f"{self._hits} cached, " if self._hits else ""
        return f"({failed}{hits}{rate:.1f} a second, {seconds:.1f} s)"


def _checked_total(total: object) -> int | None:
    if total is None:
        return None
    if isinstance(total, bool) or not isinstance(total, int):
        raise SpecTypeError(f"total is not an int: {total!r}")
    if total < 0:
        raise SpecError(f"total is negative: {total}")
    return total


def _bar_on(file: TextIO, title: str, total: int | None) -> Any:
    """A bar of rich; None if file is no terminal, or rich is not installed."""
    if not file.isatty():
        return None
    try:
        from .bar import Bar
    except ImportError:
        return None
    return Bar(file, title, total)
