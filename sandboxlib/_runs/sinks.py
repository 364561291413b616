# SPDX-License-Identifier: Apache-2.0
"""Where output goes while a command runs: to functions, to a log, to a buffer of limited size."""

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
    """One output of one run.

    size: how many bytes came so far. eager: whether it wants them at once.
    """

    eager = True

    def __init__(self, most: int | None) -> None:
        self.size = 0
        self.limit(most)

    def limit(self, most: int | None) -> None:
        """How much is wanted; None: all."""
        self._most = _MOST if most is None else most

    def feed(self, data: bytes) -> None:
        """What the command wrote; beyond the most that is wanted it is counted only."""
        room = self._most - self.size
        self.size += len(data)
        if data and room > 0:
            self.take(data if len(data) <= room else data[:room])

    @property
    def is_over(self) -> bool:
        """Whether there was more than wanted."""
        return self.size > self._most

    def take(self, data: bytes) -> None:
        raise NotImplementedError

    def finish(self) -> bytes | None:
        """The end of it: what the Result is to have. It is called once."""
        return None


class _Buffer(Sink):
    """All of it, up to the most that is wanted."""

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
        self._rest: list[bytes] = []  # of a line whose end did not come yet

    def take(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._function(b"".join([*self._rest, line, b"\n"]))
            self._rest = []
        if rest:
            self._rest.append(rest)

    def finish(self) -> None:
        if self._rest:
            self._function(b"".join(self._rest))


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
        if len(self._tail) > 2 * tee.keep_tail + 65536:  # not a copy for every chunk
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
    """All of it, now. OSError."""
    if tee.text is not None:
        tee.text.flush()  # what was printed before comes before
    rest = memoryview(data)
    while rest:
        try:
            written = _write_some(tee.file, rest)
        except BlockingIOError as error:  # it is not for us to change how the file is open
            written = getattr(error, "characters_written", 0)
            _await_room(tee.file)
        rest = rest[written:]
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

    poll = select.poll()
    poll.register(file, select.POLLOUT)
    poll.poll()


def sink_for(value: Any, most: int | None, kill: bool) -> Sink | None:
    """The sink of an output; None where it is captured and nothing else."""
    if isinstance(value, Sink):  # that of a Process, which its owner reads
        value.limit(most)
        return value
    if isinstance(value, Lines):
        return _LineSink(value.function, most)
    if isinstance(value, Tee):
        _check_open(value)
        return _TeeSink(value, most)
    if callable(value) and not hasattr(value, "fileno"):
        return _Function(value, most)
    return None if most is None else _Buffer(most, kill)
