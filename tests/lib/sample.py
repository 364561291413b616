# SPDX-License-Identifier: Apache-2.0
"""Chooses the sets of parameters that the quick set runs of a test; --all runs them all.

A parameter says either what a test does (an attack, a wrong value) or how a sandbox runs it; HOW
has the names of the second kind. The quick set does each thing once, each time in another way; if a
test does only one thing, in TWO ways. The first way depends on the name of the test, so that tests
over the same ways begin with different ones, and together they run all of them.

    @pytest.mark.every_way      the quick set runs all sets
    @pytest.mark.sample(2)      it runs two
"""

from __future__ import annotations

import os
from binascii import crc32
from collections.abc import Hashable, Iterable
from functools import cache

import pytest

import sandboxlib

HOW = frozenset("mode way place executor run box fresh init probe bwrap caller network".split())
TWO = 2
EXECUTORS = frozenset("chroot linux_user_chroot user_namespace bubblewrap".split())
Set = tuple[tuple[str, int], ...]


def beyond_the_sample(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The tests that the quick set leaves out, apart from those marked slow."""
    by_test: dict[str, list[pytest.Function]] = {}
    for item in items:
        is_whole = item.get_closest_marker("slow") or item.get_closest_marker("every_way")
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and not is_whole:
            by_test.setdefault(item.nodeid.partition("[")[0], []).append(item)
    return [item for name, sets in by_test.items() for item in _left_out(name, sets)]


def _left_out(name: str, all_sets: list[pytest.Function]) -> list[pytest.Function]:
    turn = crc32(name.rpartition("::")[2].encode())
    sets = [item for item in all_sets if _works(item)] or all_sets[:1]
    if marker := sets[0].get_closest_marker("sample"):
        chosen = _spread(sets, marker.args[0], turn)
    else:
        by_what: dict[Set, list[pytest.Function]] = {}
        for item in sets:
            by_what.setdefault(_what(item), []).append(item)
        each = TWO if len(by_what) == 1 else 1
        chosen = []
        for number, alike in enumerate(by_what.values()):
            chosen += _spread(alike, each, turn + number)
    return [item for item in all_sets if item not in chosen]


def _spread(sets: list[pytest.Function], count: int, turn: int) -> list[pytest.Function]:
    """Choose `count` of them, evenly apart."""
    count = min(count, len(sets))
    return [sets[(turn + number * len(sets) // count) % len(sets)] for number in range(count)]


def _what(item: pytest.Function) -> Set:
    # The ids of the values, because some values have no hash. Within a test a value is one object.
    return tuple(
        (name, id(value)) for name, value in item.callspec.params.items() if name not in HOW
    )


def _works(item: pytest.Function) -> bool:
    """Return False if the test names an executor that this caller cannot use."""
    for name in ("executor", "place"):
        value = item.callspec.params.get(name)
        value = value[0] if isinstance(value, tuple) else value
        if isinstance(value, Hashable) and value in EXECUTORS and not _is_here(str(value)):
            return False
    return True


@cache
def _is_here(executor: str) -> bool:
    if executor == "linux_user_chroot" and os.geteuid() == 0:
        return True  # the tests compile this program themselves
    return sandboxlib.get_executor(executor).why_not() == ""
