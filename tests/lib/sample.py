# SPDX-License-Identifier: Apache-2.0
"""The marker sample: of a test with many sets of parameters the quick set runs a few, --all all.

    @pytest.mark.sample         each value of each parameter once, in as few sets as that takes
    @pytest.mark.sample(2)      two sets

Where to begin depends on the name of the test, so that tests over the same parameters (ways to run,
executors) run different ones of them, and together all.
"""

from __future__ import annotations

from binascii import crc32
from collections.abc import Iterable

import pytest


def beyond_the_sample(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """What the quick set leaves out of the tests that are marked sample."""
    by_test: dict[str, list[pytest.Function]] = {}
    for item in items:
        if item.get_closest_marker("sample") and not item.get_closest_marker("slow"):
            assert isinstance(item, pytest.Function)
            by_test.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out: list[pytest.Item] = []
    for name, sets in by_test.items():
        chosen = _choose(name, sets)
        left_out += [item for item in sets if item not in chosen]
    return left_out


def _choose(name: str, sets: list[pytest.Function]) -> list[pytest.Function]:
    marker = sets[0].get_closest_marker("sample")
    assert marker is not None
    most = marker.args[0] if marker.args else len(sets)
    first = crc32(name.rpartition("::")[2].encode()) % len(sets)
    todo = sets[first:] + sets[:first]
    missing = {value for item in sets for value in item.callspec.indices.items()}
    chosen: list[pytest.Function] = []
    while missing and len(chosen) < most:
        best = max(todo, key=lambda item: len(missing & set(item.callspec.indices.items())))
        chosen.append(best)
        missing -= set(best.callspec.indices.items())
    return chosen
