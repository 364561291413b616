# SPDX-License-Identifier: Apache-2.0
"""The output of commands whose results a cache keeps: all of it is taken while the command runs,
wherever it goes, and what the cache has goes there again.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .._runs.sinks import Sink, sink_for
from .._spec.command import Command
from .._spec.streams import STDOUT, Tee, is_capture, is_sink
from .._values import check_descriptor
from ..result import Result
from .results import MOST_STREAM, Answer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .outlets import Outlet

_NONE: Mapping[str, Outlet] = MappingProxyType({})


class Keeper:
    """Takes all output of a run: `command` is to be run in place of the Command, and finish() makes
    the Result that the Command would have had.

    stdout and stderr have all of it after finish(); None: it was too much.
    """

    def __init__(self, command: Command) -> None:
        self._given = command
        self._out, self._err = _Stream("stdout", command.stdout), _Stream("stderr", command.stderr)
        self.command = object.__new__(Command)
        streams = {"stdout": self._out.taker, "stderr": self._err.taker}
        self.command.__dict__.update(command.__dict__, **streams)

    def finish(self, result: Result) -> Result:
        """The Result of the Command. Raises what its functions raise."""
        made = Result(result.exit, self._out.finish(result.out), self._err.finish(result.err))
        made.__dict__.update(result.__dict__, command=self._given)
        return made

    def whole(self, result: Result) -> Result | None:
        """The Result with all output, for a cache; None if a cache does not keep so much."""
        out, err = self._out.all, self._err.all
        if out is None or err is None or max(len(out), len(err)) > MOST_STREAM:
            return None
        made = Result(result.exit, out, err)
        made.__dict__.update(result.__dict__)
        return made


def can_keep(command: Command) -> bool:
    """Whether a Keeper can take all output. With max_output, which would bound that too, it cannot
    take what is discarded, or goes to a file without a bound.
    """
    return command.max_output is None or not any(
        value is None or not (is_capture(value) or is_sink(value) or _is_merged(value))
        for value in (command.stdout, command.stderr)
    )


def _is_merged(value: object) -> bool:
    return type(value) is int and value == STDOUT


class _Stream:
    """One output. taker: what takes it in the run. all: bytes; None: it was too much."""

    def __init__(self, name: str, value: Any) -> None:
        self.all: bytes | None = b""
        self._chunks: list[bytes] = []
        self._size = 0
        self._sink: Sink | None = None
        self.taker: Any = value
        if is_capture(value) or _is_merged(value):
            return
        self.taker = self._take
        if value is not None:
            self._sink = sink_of(name, value, None)

    def _take(self, data: bytes) -> None:
        if self._sink is not None:
            self._sink.feed(data)
        self._size += len(data)
        if self._size <= MOST_STREAM:
            self._chunks.append(data)
        else:
            self._chunks.clear()

    def finish(self, captured: bytes | None) -> bytes | None:
        """What the Result has. captured: what that of the run has."""
        if self.taker != self._take:
            self.all = captured or b""
            return captured
        self.all = b"".join(self._chunks) if self._size <= MOST_STREAM else None
        return None if self._sink is None else self._sink.finish()


def sink_of(name: str, value: Any, most: int | None) -> Sink:
    """The sink of an output that is not captured; a file has no bound."""
    if not is_sink(value):
        value, most = Tee(check_descriptor(name, value)), None
    sink = sink_for(value, most, False)
    assert sink is not None
    return sink


# ---- what a cache has ------------------------------------------------------------------------


def wanted(command: Command) -> list[str]:
    """Which of 'stdout' and 'stderr' the Command takes."""
    pairs = (("stdout", command.stdout), ("stderr", command.stderr))
    return [name for name, value in pairs if not (value is None or _is_merged(value))]


def would_be_killed(command: Command, answer: Answer) -> bool:
    """Whether a run with this output would end early, as it is more than the Command takes."""
    most = command.max_output
    if command.on_overflow != "kill" or most is None:
        return False
    return any(len(getattr(answer, name)) > most for name in wanted(command))


def replayed(
    command: Command, answer: Answer, executor: str, outlets: Mapping[str, Outlet] = _NONE
) -> Result:
    """The Result of an Answer. Functions, Lines, Tees and files get the output first. Raises what
    they raise.

    outlets: those that have got some of it while the command ran.
    """
    contents: list[bytes | None] = [None, None]
    sizes: list[int | None] = [None, None]
    is_over = False
    names = wanted(command)
    for index, name in enumerate(("stdout", "stderr")):
        if name not in names:
            continue
        value, content = getattr(command, name), getattr(answer, name)
        sink: Sink | None
        if is_capture(value):
            sink = sink_for(value, command.max_output, False)
        elif name in outlets:
            sink, content = outlets[name].sink, outlets[name].rest(content)
        else:
            sink = sink_of(name, value, command.max_output)
        if sink is None:
            contents[index] = content
            continue
        sink.feed(content)
        contents[index] = sink.finish()
        sizes[index] = sink.size if is_capture(value) or is_sink(value) else None
        is_over = is_over or sink.is_over
    result = Result(answer.exit, contents[0], contents[1], executor=executor)
    result.isolation, result.worker = answer.isolation, answer.worker
    result.command, result._outputs, result._usage = command, answer.outputs, answer.usage
    result._sizes = sizes[0], sizes[1]
    result.limits_hit = (*answer.limits_hit, *(("output",) if is_over else ()))
    return result
