# SPDX-License-Identifier: Apache-2.0
"""Finds the outputs of a run in the merged view: what the patterns match, and all that lies below a
directory which one matches. No link is followed.
"""

from __future__ import annotations

import errno
import os
import stat

from .globs import Globs
from .stack import Directory, Entry, Stack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .globs import States

_DEEPEST = 200  # directories in each other; each is open, in every layer that has it
_KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)


class Group:
    """Patterns that begin in one directory. where: its path, without links."""

    __slots__ = ("globs", "where")

    def __init__(self, where: bytes, patterns: Sequence[str]) -> None:
        self.where, self.globs = where, Globs(patterns)


class Search:
    """Looks for what the patterns of a group match. most: how many names it may come by; beyond it
    raises OSError (E2BIG).
    """

    def __init__(self, stack: Stack, most: int) -> None:
        self._stack, self._left = stack, most

    def find(self, group: Group) -> Iterator[tuple[bytes, Entry, set[int]]]:
        """Each file, directory and link, with its path below the directory of the group, and the
        numbers of the patterns that have it. The Entry counts until the next one is asked for.
        """
        directory = self._stack.root()
        try:
            for name in group.where.split(b"/"):
                if name:
                    below = directory.open(name)
                    directory.close()
                    directory = below
        except (FileNotFoundError, NotADirectoryError):
            directory.close()
            return
        except BaseException:
            directory.close()
            raise
        yield from self._below(directory, group.globs, group.globs.start(), set(), b"", _DEEPEST)

    def _below(
        self,
        directory: Directory,
        globs: Globs,
        states: States,
        whole: set[int],
        above: bytes,
        room: int,
    ) -> Iterator[tuple[bytes, Entry, set[int]]]:
        """whole: the patterns that took the directory as a whole. It closes the directory."""
        with directory:
            for entry in self._entries(directory, globs, states, bool(whole)):
                below, done = globs.step(states, entry.name)
                done |= whole
                path = above + entry.name
                if done and stat.S_IFMT(entry.status.st_mode) in _KINDS:
                    yield path, entry, done
                if entry.is_directory() and (below or done):
                    if not room:
                        text = f"more than {_DEEPEST} directories in each other"
                        raise OSError(errno.E2BIG, text)
                    inner = directory.open(entry.name)
                    yield from self._below(inner, globs, below, done, path + b"/", room - 1)

    def _entries(
        self, directory: Directory, globs: Globs, states: States, whole: bool
    ) -> Iterator[Entry]:
        """The entries that may match, sorted. Without wildcards it looks at no other name."""
        names = None if whole else globs.names(states)
        if names is not None:
            for name in sorted(names):
                entry = directory.look(os.fsencode(name))
                if entry is not None:
                    yield entry
            return
        found = []
        for entry in directory.entries():
            self._left -= 1
            if self._left < 0:
                raise OSError(errno.E2BIG, "too many names where outputs are looked for")
            found.append(entry)
        yield from sorted(found, key=lambda entry: entry.name)
