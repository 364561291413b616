# SPDX-License-Identifier: Apache-2.0
"""The outputs that a Command can name: CAPTURE, STDOUT, Lines and Tee."""

from __future__ import annotations

import io
from collections.abc import Callable

from .. import _types
from .._values import Output, check_number
from ..errors import SpecError, SpecTypeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The values of subprocess, without importing it.
CAPTURE = -1
STDOUT = -2


def is_capture(value: object) -> bool:
    """Whether an output is CAPTURE: the number, which no descriptor is equal to by chance."""
    return type(value) is int and value == CAPTURE


class Lines(Output):
    """An output for a function that is called with each line as it comes: bytes, with its b'\\n',
    which the last one may lack.

        box.run(["make"], stdout=Lines(lambda line: print(line.decode(), end="")))
    """

    __module__ = "sandboxlib"  # as callers import it, and pickles name it

    def __init__(self, function: Callable[[bytes], object]) -> None:
        if not callable(function):
            raise SpecTypeError(f"not a function: {function!r}")
        self.function = function


class Tee(Output):
    """An output that is written to a file as it comes, and whose ends are kept for the Result.

        box.run(["make"], stdout=Tee(log, keep_head=4096, keep_tail=65536), stderr=STDOUT)

    file: a binary file (or a text file with a `buffer`, as sys.stdout), or a descriptor. What
        it raises when it is written to ends the run.
    keep_head, keep_tail: int, bytes; 0, the default of both, keeps nothing, and the Result has
        None. Where something in the middle is missing, a line between the two says how many bytes.
    """

    __module__ = "sandboxlib"  # as callers import it, and pickles name it

    def __init__(
        self, file: _types.IO[_types.Any] | int, keep_head: int = 0, keep_tail: int = 0
    ) -> None:
        self.keep_head = check_number("keep_head", keep_head, 0, 1 << 40)
        self.keep_tail = check_number("keep_tail", keep_tail, 0, 1 << 40)
        self.text: Any = file if hasattr(file, "buffer") else None
        file = getattr(file, "buffer", file)
        if isinstance(file, bool) or not (isinstance(file, int) or hasattr(file, "write")):
            raise SpecTypeError(f"neither a file nor a descriptor: {file!r}")
        if isinstance(file, io.TextIOBase):
            raise SpecTypeError(f"a file of text, without a buffer for bytes: {file!r}")
        if isinstance(file, int) and not 0 <= file < 1 << 31:
            raise SpecError(f"the file of a Tee is {file}, which is no descriptor")
        self.file = file


def is_sink(value: object) -> bool:
    """Whether it is an output of this module, or a function."""
    return isinstance(value, Output) or (callable(value) and not hasattr(value, "fileno"))
