# SPDX-License-Identifier: Apache-2.0
"""Words: a command with more words than bwrap takes, in a file in memory.

bwrap then runs a program of ours in the sandbox, by its descriptor in /proc, and that one reads the
words and executes the command (csrc/reaper/words.c). Nothing of it is left to the command: the exec
closes the two descriptors, and the file is sealed before.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Sequence

from .._core import native
from .._runs.run import memory_file
from .bwrap_tool import Descriptors

_HEAD = struct.Struct("=iiQQ")  # struct sbx_words of csrc/reaper/reaper.h
#: The descriptors that it takes: the program's and that of the words.
N_DESCRIPTORS = 2
#: The words that bwrap gets in their place.
N_ARGV = 3
#: With fewer words a command never needs it.
FEWEST = 1000


class Words:
    """The words of one command."""

    def __init__(
        self,
        paths: Sequence[bytes],
        argv: Sequence[bytes],
        descriptors: Descriptors,
        undo: contextlib.ExitStack,
    ) -> None:
        """paths: where the program is looked up, in order. descriptors: gets two more. undo: closes
        what is opened. SetupError.
        """
        program = descriptors.take(native.init_descriptor(native.lib.SBX_OF_SESSION))
        content = _content(int(program), paths, argv)
        self._fd = memory_file("the words of the command", content, os.MFD_ALLOW_SEALING)
        undo.callback(os.close, self._fd)
        #: What bwrap executes.
        self.program = f"/proc/self/fd/{program}"
        number = descriptors.take(self._fd)
        self.argv = [os.fsencode(word) for word in (self.program, number, str(len(content)))]

    def error(self) -> int:
        """The errno for which the command did not begin; -1 if its words were not read, 0 if it did
        begin. Valid once bwrap has executed our program.
        """
        return int(_HEAD.unpack(os.pread(self._fd, _HEAD.size, 0))[0])


def _content(program: int, paths: Sequence[bytes], argv: Sequence[bytes]) -> bytes:
    """A struct sbx_words, and the strings that it points to."""
    strings = [*paths, *argv]
    at, offsets = _HEAD.size + 8 * (len(strings) + 1), []
    for string in strings:
        offsets.append(at)
        at += len(string) + 1
    head = _HEAD.pack(-1, program, len(paths), len(argv))
    table = struct.pack(f"={len(strings) + 1}Q", *offsets, 0)
    return head + table + b"\0".join([*strings, b""])
