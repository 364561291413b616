# SPDX-License-Identifier: Apache-2.0
"""The values for outputs of a Command: CAPTURE, STDOUT, Lines and Tee."""

from __future__ import annotations

import io
from collections.abc import Callable

from .. import _types
from .._values import Output, check_number
from ..errors import SpecError, SpecTypeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The values of subprocess.PIPE, STDOUT and DEVNULL. (subprocess is slow to import.)
CAPTURE = -1
STDOUT = -2
DEVNULL = -3


def is_capture(value: object) -> bool:
    """Whether an output is CAPTURE: an int, so that a value that only compares equal is none."""
    return type(value) is int and value == CAPTURE


def is_devnull(value: object) -> bool:
    """Whether a stream is DEVNULL; Command keeps it as None, which says the same."""
    return type(value) is int and value == DEVNULL


class Lines(Output):
    """An output that calls a function with each line as it arrives.

        box.run(["make"], stdout=Lines(lambda line: print(line.decode(), end="")))

    function: called with bytes, a line with its b'\\n', which the last line may lack. An exception
        of it ends the run. Raises SpecTypeError if it is not callable.
    """

    __module__ = "sandboxlib"  # as callers import it, and pickles name it

    def __init__(self, function: Callable[[bytes], object]) -> None:
        if not callable(function):
            raise SpecTypeError(f"not a function: {function!r}")
        self.function = function


class Tee(Output):
    """An output that is copied to a file as it arrives. The Result has its beginning and its end.

        box.run(["make"], stdout=Tee(log, keep_head=4096, keep_tail=65536), stderr=STDOUT)

    file: a binary file (or a text file with a `buffer`, as sys.stdout), or a descriptor. An
        exception of its write() ends the run.
    keep_head, keep_tail: int, bytes to keep; 0 by default. If both are 0, the Result has None. If
        bytes in the middle are missing, a line between the two says how many.

    Raises SpecError if a value is wrong, and SpecTypeError if its type is.
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
    """Whether an output is a Lines, a Tee, or a function."""
    return isinstance(value, Output) or (callable(value) and not hasattr(value, "fileno"))
