# SPDX-License-Identifier: Apache-2.0
"""The ids of parameters, which are a part of the names of tests."""

from __future__ import annotations

import re

import pytest


def name_of(value: object) -> str:
    """The repr of a value, without addresses, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def check_name(item: pytest.Item) -> None:
    """Refuse a name with an address: each process of pytest-xdist has to find the same names."""
    if " at 0x" in item.nodeid:
        raise pytest.UsageError(f"an address differs between processes: ids=name_of? {item.nodeid}")
