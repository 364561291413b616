# SPDX-License-Identifier: Apache-2.0
"""Landing: what a command that was executed elsewhere comes back as, in the thread of its owner."""

from __future__ import annotations

from .._spec.command import Command
from ..result import Result
from .keeping import replayed
from .outlets import outlets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .flight import Flight, Landed


class Landing:
    """Takes what a Flight tells.

    is_live: whether something takes the output while the command runs.
    """

    def __init__(self, command: Command) -> None:
        self._command = command
        self._outlets = outlets(command)
        self.is_live = bool(self._outlets)

    def heard(self, flight: Flight, kind: str, value: Any) -> Result | None:
        """The Result, if it is there. Raises what the flight ended with, and what a function or a
        file raises.
        """
        if kind != "end":
            flight.read(len(value))
            if kind in self._outlets:
                self._outlets[kind].feed(value)
            return None
        if isinstance(value, BaseException):
            raise value
        return self._result(value, flight)

    def _result(self, landed: Landed, flight: Flight) -> Result:
        result = replayed(self._command, landed.answer, "remote", self._outlets)
        result.began, result.wall = flight.began, flight.wall
        result.cached, result.timed_out = landed.cached, landed.timed_out
        return result
