# SPDX-License-Identifier: Apache-2.0
"""Where output goes while a command runs: to functions, to a log, to a buffer of limited size."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

from . import _types
from ._check import check_number
from .errors import SpecError, SpecTypeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any

#: The values of subprocess, without importing it.
CAPTURE = -1
STDOUT = -2

_MOST = 1 << 62


def is_capture(value: object) -> bool:
    """Whether an output is CAPTURE: the number, which no descriptor is equal to by chance."""
    return type(value) is int and value == CAPTURE


class Sink:
    """One output of one run.

    size: how many bytes came so far. eager: whether it wants them at once.
    """

    eager = True

    def __init__(self, most: int | None) -> None:
        self.size = 0
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
        self._tee.write(data)
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


class Output:
    """An output that is more than a buffer: for each run it gives a Sink."""

    def sink(self, most: int | None) -> Sink:
        raise NotImplementedError


class Lines(Output):
    """An output for a function that is called with each line as it comes: bytes, with its b'\\n',
    which the last one may lack.

        box.run(["make"], stdout=Lines(lambda line: print(line.decode(), end="")))
    """

    def __init__(self, function: Callable[[bytes], object]) -> None:
        if not callable(function):
            raise SpecTypeError(f"not a function: {function!r}")
        self.function = function

    def sink(self, most: int | None) -> Sink:
        return _LineSink(self.function, most)


class Tee(Output):
    """An output that is written to a file as it comes, and whose ends are kept for the Result.

        box.run(["make"], stdout=Tee(log, keep_head=4096, keep_tail=65536), stderr=STDOUT)

    file: a binary file (or a text file with a `buffer`, as sys.stdout), or a descriptor. What
        it raises when it is written to ends the run.
    keep_head, keep_tail: int, bytes; 0, the default of both, keeps nothing, and the Result has
        None. Where something in the middle is missing, a line between the two says how many bytes.
    """

    def __init__(
        self, file: _types.IO[_types.Any] | int, keep_head: int = 0, keep_tail: int = 0
    ) -> None:
        self.keep_head = check_number("keep_head", keep_head, 0, 1 << 40)
        self.keep_tail = check_number("keep_tail", keep_tail, 0, 1 << 40)
        self._text: Any = file if hasattr(file, "buffer") else None
        file = getattr(file, "buffer", file)
        if isinstance(file, bool) or not (isinstance(file, int) or hasattr(file, "write")):
            raise SpecTypeError(f"neither a file nor a descriptor: {file!r}")
        if isinstance(file, io.TextIOBase):
            raise SpecTypeError(f"a file of text, without a buffer for bytes: {file!r}")
        if isinstance(file, int) and not 0 <= file < 1 << 31:
            raise SpecError(f"the file of a Tee is {file}, which is no descriptor")
        self.file = file

    def write(self, data: bytes) -> None:
        """All of it, now. OSError."""
        if self._text is not None:
            self._text.flush()  # what was printed before comes before
        rest = memoryview(data)
        while rest:
            try:
                written = self._write_some(rest)
            except BlockingIOError as error:  # it is not for us to change how the file is open
                written = getattr(error, "characters_written", 0)
                _await_room(self.file)
            rest = rest[written:]
        if not isinstance(self.file, int) and hasattr(self.file, "flush"):
            self.file.flush()

    def _write_some(self, data: memoryview) -> int:
        if isinstance(self.file, int):
            return os.write(self.file, data)
        written = self.file.write(data)
        if written is None and isinstance(self.file, io.RawIOBase):
            raise BlockingIOError
        return written if isinstance(written, int) else len(data)

    def sink(self, most: int | None) -> Sink:
        self._check_open()
        return _TeeSink(self, most)

    def _check_open(self) -> None:
        """A number that is closed would soon be that of one of the run's own descriptors."""
        if isinstance(self.file, int):
            try:
                os.fstat(self.file)
            except OSError as error:
                raise SpecError(f"the file of a Tee is {self.file}: {error.strerror}") from None
        elif getattr(self.file, "closed", False):
            raise SpecError(f"the file of a Tee is closed: {self.file!r}")


def _await_room(file: IO[Any] | int) -> None:
    import select

    poll = select.poll()
    poll.register(file, select.POLLOUT)
    poll.poll()


def is_sink(value: object) -> bool:
    """Whether it is an output of this module, or a function."""
    return isinstance(value, Output) or (callable(value) and not hasattr(value, "fileno"))


def sink_for(value: Any, most: int | None, kill: bool) -> Sink | None:
    """The sink of an output; None where it is captured and nothing else."""
    if isinstance(value, Output):
        return value.sink(most)
    if callable(value) and not hasattr(value, "fileno"):
        return _Function(value, most)
    return None if most is None else _Buffer(most, kill)
