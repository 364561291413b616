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
    """Looks for what the patterns of a group match. most_names: how many names it may come by;
    most: how many may match. Beyond that it raises OSError (E2BIG), before it keeps more.
    """

    def __init__(self, stack: Stack, most_names: int, most: int) -> None:
        self._stack, self._names, self._left = stack, most_names, most

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
            for entry, below, done in self._matching(directory, globs, states, whole):
                path = above + entry.name
                if done and stat.S_IFMT(entry.status.st_mode) in _KINDS:
                    yield path, entry, done
                if entry.is_directory():
                    if not room:
                        text = f"more than {_DEEPEST} directories in each other"
                        raise OSError(errno.E2BIG, text)
                    inner = directory.open(entry.name)
                    yield from self._below(inner, globs, below, done, path + b"/", room - 1)

    def _matching(
        self, directory: Directory, globs: Globs, states: States, whole: set[int]
    ) -> list[tuple[Entry, States, set[int]]]:
        """The entries that match, or directories below which something may, sorted by name."""
        found = []
        for entry in self._entries(directory, None if whole else globs.names(states)):
            below, done = globs.step(states, entry.name)
            done |= whole
            if done or (below and entry.is_directory()):
                self._left -= 1
                if self._left < 0:
                    raise OSError(errno.E2BIG, "too many outputs")
                found.append((entry, below, done))
        found.sort(key=lambda each: each[0].name)
        return found

    def _entries(self, directory: Directory, names: set[str] | None) -> Iterator[Entry]:
        """The entries of a directory; if names are given, it looks at no others."""
        if names is not None:
            for name in names:
                entry = directory.look(os.fsencode(name))
                if entry is not None:
                    yield entry
            return
        for entry in directory.entries():
            self._names -= 1
            if self._names < 0:
                raise OSError(errno.E2BIG, "too many names where outputs are looked for")
            yield entry
