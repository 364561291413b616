# SPDX-License-Identifier: Apache-2.0
"""Many commands in flight, for Remote.map: what _concurrent/map.py takes in place of local runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from queue import Empty, SimpleQueue
from time import monotonic

from .._spec.command import Command
from ..errors import SandboxError
from .flight import Flight

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._concurrent.map import Outcome
    from .remote import Remote

_WAIT = 0.1  # seconds, the longest wait of one call of wait()
_CLOSING = 10.0  # seconds for the cancelling of all


class Flights:
    """The commands of a map that are in flight, at most `jobs`."""

    def __init__(self, remote: Remote, jobs: int) -> None:
        self.jobs = jobs
        self._remote = remote
        self._events: SimpleQueue[tuple[Flight, str, Any]] = SimpleQueue()
        self._flights: dict[int, tuple[Flight, Any]] = {}  # with the Landing of each
        self._numbers: dict[Flight, int] = {}
        self._leaving: set[Flight] = set()  # were cancelled, and have not ended yet
        self._ended: deque[tuple[int, Outcome]] = deque()

    def __len__(self) -> int:
        return len(self._flights)

    def has_room(self) -> bool:
        """Whether another command may be started."""
        return len(self._flights) < self.jobs

    def start(self, number: int, box: object, command: Command) -> None:
        """Starts a command. SandboxError if it cannot be sent."""
        landing = self._remote._landing(command)
        flight = Flight(self._remote, command, self._tell, landing.is_live)
        self._flights[number] = flight, landing
        self._numbers[flight] = number
        flight.start()

    def _tell(self, flight: Flight, kind: str, value: Any) -> None:
        self._events.put((flight, kind, value))

    def wait(self, blocking: bool) -> list[tuple[int, Outcome]]:
        """The commands that ended since the last call, with their outcomes. blocking: wait up to
        100 ms for the first of them.
        """
        until = monotonic() + (_WAIT if blocking and self._flights and not self._ended else 0.0)
        while True:
            left = 0.0 if self._ended else max(0.0, until - monotonic())
            try:
                self._heard(*self._events.get(timeout=left) if left else self._events.get_nowait())
            except Empty:
                break
        ended = list(self._ended)
        self._ended.clear()
        return ended

    def _heard(self, flight: Flight, kind: str, value: Any) -> None:
        number = self._numbers.get(flight)
        if number is None:
            if kind == "end":
                self._leaving.discard(flight)
            return
        landing = self._flights[number][1]
        try:
            outcome = landing.heard(flight, kind, value)
        except Exception as error:  # of a function or a file that takes output, too
            outcome = error.with_traceback(None) if isinstance(error, SandboxError) else error
        if outcome is not None:
            self._end(number, outcome, kind == "end")

    def _end(self, number: int, outcome: Outcome, has_ended: bool) -> None:
        flight, _ = self._flights.pop(number)
        del self._numbers[flight]
        self._ended.append((number, outcome))
        if not has_ended:
            self._leaving.add(flight)
            flight.cancel()

    def kill(self, numbers: Iterable[int]) -> None:
        """Ends some of them; their outcome is None."""
        for number in set(numbers) & self._flights.keys():
            self._end(number, None, False)

    def close(self) -> None:
        """Ends all of them, and waits until the server was told, or does not answer."""
        self.kill(list(self._flights))
        until = monotonic() + _CLOSING
        while self._leaving and (left := until - monotonic()) > 0:
            try:
                self._heard(*self._events.get(timeout=left))
            except Empty:
                break
