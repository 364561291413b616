# SPDX-License-Identifier: Apache-2.0
"""Globs: paths with wildcards, matched name by name while somebody walks a tree."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Iterable

#: How far each pattern has come: (number of the pattern, number of its next part).
States = frozenset[tuple[int, int]]


class Globs:
    """Several patterns at once. Each was checked by _spec.inputs.check_pattern.

    A `*` matches any name or part of one, leading dots as well; a part that is `**` matches any
    number of directories, none among them. At the end it matches everything below.

    A walk takes start(), and for each name that it comes to step(). So it knows which directories
    are worth entering, and a name is looked at once: no name makes the matching slow.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._parts: list[list[str | re.Pattern[str]]] = []
        for pattern in patterns:
            parts = [part for part in pattern.split("/") if part]
            if parts[-1:] == ["**"]:
                parts.append("*")  # what lies below, and not the directory itself
            self._parts.append([_compiled(part) for part in parts])

    def start(self) -> States:
        """The states above the first name."""
        return self._closed({(number, 0) for number in range(len(self._parts))})

    def step(self, states: States, name: bytes | str) -> tuple[States, set[int]]:
        """The states below a name, and the numbers of the patterns that it completes."""
        text = os.fsdecode(name)
        found: set[tuple[int, int]] = set()
        done: set[int] = set()
        for number, at in states:
            parts = self._parts[number]
            part = parts[at]
            if part == "**":
                found.add((number, at))
            elif part == text if isinstance(part, str) else part.match(text):
                if at + 1 == len(parts):
                    done.add(number)
                else:
                    found.add((number, at + 1))
        return self._closed(found), done

    def matches(self, path: str) -> bool:
        """Whether a pattern matches a path, or a directory above it."""
        states = self.start()
        for name in path.split("/"):
            states, done = self.step(states, name)
            if done:
                return True
        return False

    def names(self, states: States) -> set[str] | None:
        """The names that can match; None if a wildcard could match any."""
        parts = {self._parts[number][at] for number, at in states}
        names = {part for part in parts if isinstance(part, str) and part != "**"}
        return names if len(names) == len(parts) else None

    def _closed(self, states: set[tuple[int, int]]) -> States:
        """With the states behind each `**`, which matches no directory at all as well."""
        for number, first in list(states):
            at, parts = first, self._parts[number]
            while parts[at] == "**":
                at += 1
                states.add((number, at))
        return frozenset(states)


def _compiled(part: str) -> str | re.Pattern[str]:
    """A part of a pattern: a str without wildcards, "**", or a regular expression.

    fnmatch translates `*` so that matching takes linear time.
    """
    if part == "**" or not any(each in part for each in "*?["):
        return part
    import re
    from fnmatch import translate

    return re.compile(translate(part))
