# SPDX-License-Identifier: Apache-2.0
"""Sinks take the output while a command runs: functions, logs, buffers of limited size."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

from .._spec.streams import Lines, Tee
from ..errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any

_MOST = 1 << 62


class Sink:
    """The consumer of one output of one run.

    size: int, how many bytes came so far. eager: bool, whether it needs them at once.
    """

    eager = True

    def __init__(self, most: int | None) -> None:
        self.size = 0
        self._most = _MOST if most is None else most

    def feed(self, data: bytes) -> None:
        """Takes output of the command. Bytes beyond the limit are counted only."""
        room = self._most - self.size
        self.size += len(data)
        if data and room > 0:
            self.take(data if len(data) <= room else data[:room])

    @property
    def is_over(self) -> bool:
        """Whether there was more output than the limit."""
        return self.size > self._most

    def take(self, data: bytes) -> None:
        """Handles output within the limit; each class of sinks has its own."""
        raise NotImplementedError

    def finish(self) -> bytes | None:
        """Ends the output, once; returns the bytes for the Result, or None."""
        return None


class _Buffer(Sink):
    """Keeps all output up to the limit."""

    def __init__(self, most: int | None, eager: bool) -> None:
        super().__init__(most)
        self.eager = eager
        self._chunks: list[bytes] = []

    def take(self, data: bytes) -> None:
        self._chunks.append(data)

    def finish(self) -> bytes:
        return b"".join(self._chunks)


class _Function(Sink):
    def __init__(self, function: Callable[[bytes], object], most: int | None) -> None:
        super().__init__(most)
        self.take = function  # type: ignore[assignment, method-assign]


class _LineSink(Sink):
    def __init__(self, function: Callable[[bytes], object], most: int | None) -> None:
        super().__init__(most)
        self._function = function
        self._line: list[bytes] = []  # the parts of a line whose end has not come yet

    def take(self, data: bytes) -> None:
        *lines, begun = data.split(b"\n")
        for line in lines:
            self._function(b"".join([*self._line, line, b"\n"]))
            self._line = []
        if begun:
            self._line.append(begun)

    def finish(self) -> None:
        if self._line:
            self._function(b"".join(self._line))


class _TeeSink(Sink):
    def __init__(self, tee: Tee, most: int | None) -> None:
        super().__init__(most)
        self._tee = tee
        self._head = bytearray()
        self._tail = bytearray()
        self._n_taken = 0

    def take(self, data: bytes) -> None:
        _write(self._tee, data)
        tee = self._tee
        self._n_taken += len(data)
        room = tee.keep_head - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data[-tee.keep_tail :] if tee.keep_tail else b""
        if len(self._tail) > 2 * tee.keep_tail + 65536:  # so rarely that most chunks need no copy
            del self._tail[: -tee.keep_tail]

    def finish(self) -> bytes | None:
        tee = self._tee
        if not tee.keep_head and not tee.keep_tail:
            return None
        tail = self._tail[-tee.keep_tail :] if tee.keep_tail else b""
        missing = self._n_taken - len(self._head) - len(tail)
        if missing:
            return b"%b\n... %d bytes left out ...\n%b" % (bytes(self._head), missing, bytes(tail))
        return bytes(self._head + tail)


def _check_open(tee: Tee) -> None:
    """SpecError if the file of a Tee is closed: a descriptor of ours could get its number."""
    if isinstance(tee.file, int):
        try:
            os.fstat(tee.file)
        except OSError as error:
            raise SpecError(f"the file of a Tee is {tee.file}: {error.strerror}") from None
    elif getattr(tee.file, "closed", False):
        raise SpecError(f"the file of a Tee is closed: {tee.file!r}")


def _write(tee: Tee, data: bytes) -> None:
    """Writes all of the data at once. OSError."""
    if tee.text is not None:
        tee.text.flush()  # text that was printed before comes first
    unwritten = memoryview(data)
    while unwritten:
        try:
            written = _write_some(tee.file, unwritten)
        except BlockingIOError as error:  # the file is the caller's: leave O_NONBLOCK as it is
            written = getattr(error, "characters_written", 0)
            _await_room(tee.file)
        unwritten = unwritten[written:]
    if not isinstance(tee.file, int) and hasattr(tee.file, "flush"):
        tee.file.flush()


def _write_some(file: Any, data: memoryview) -> int:
    if isinstance(file, int):
        return os.write(file, data)
    written = file.write(data)
    if written is None and isinstance(file, io.RawIOBase):
        raise BlockingIOError
    return written if isinstance(written, int) else len(data)


def _await_room(file: IO[Any] | int) -> None:
    import select

    from .._core import unpatched

    poll = unpatched.poll()
    poll.register(file, select.POLLOUT)
    poll.poll()


def sink_for(value: Any, most: int | None, kill: bool) -> Sink | None:
    """The sink of an output; None if it is captured without a limit."""
    if isinstance(value, Lines):
        return _LineSink(value.function, most)
    if isinstance(value, Tee):
        _check_open(value)
        return _TeeSink(value, most)
    if callable(value) and not hasattr(value, "fileno"):
        return _Function(value, most)
    return None if most is None else _Buffer(most, kill)
