# SPDX-License-Identifier: Apache-2.0
"""The sinks and files of a Command that runs elsewhere, and gives output before it is over."""

from __future__ import annotations

import hashlib

from .._runs.sinks import Sink
from .._spec.command import Command
from .._spec.streams import is_capture
from .keeping import sink_of, wanted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Outlet:
    """A sink or a file, and what it has got so far."""

    def __init__(self, name: str, value: Any, most: int | None) -> None:
        self.sink: Sink = sink_of(name, value, most)
        self._hash, self._n_fed = hashlib.sha256(), 0

    def feed(self, data: bytes) -> None:
        """Takes output while the command runs. Raises what a function or a file raises."""
        self._hash.update(data)
        self._n_fed += len(data)
        self.sink.feed(data)

    def rest(self, content: bytes) -> bytes:
        """What is still to come of all output. That is all of it, if what came was of another run
        of the command, whose worker was lost.
        """
        came = content[: self._n_fed]
        if len(came) == self._n_fed and hashlib.sha256(came).digest() == self._hash.digest():
            return content[self._n_fed :]
        return content


def outlets(command: Command) -> dict[str, Outlet]:
    """The Outlets of a Command, by 'stdout' and 'stderr': what is captured has none."""
    values = {name: getattr(command, name) for name in wanted(command)}
    return {
        name: Outlet(name, value, command.max_output)
        for name, value in values.items()
        if not is_capture(value)
    }
