# SPDX-License-Identifier: Apache-2.0
"""The bwrap of the machine, and a newer one.

A pytest plugin: `pytest_plugins = ["lib.bwraps"]`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest
from lib.machine import require

from sandboxlib import bubblewrap
from sandboxlib._executors import bwrap_tool, trial

#: A newer bwrap than the machine's own, from the package index.
NEWER = os.environ.get("SANDBOXLIB_BWRAP_NEWER", "")


@contextlib.contextmanager
def newer_bwrap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The newer bwrap is the first of PATH."""
    require(NEWER, "SANDBOXLIB_BWRAP_NEWER names no newer bwrap")
    trial.trial.cache_clear()
    monkeypatch.setenv("PATH", f"{os.path.dirname(NEWER)}:{os.environ['PATH']}")
    if reason := bubblewrap.why_not():
        pytest.skip(reason)
    assert bwrap_tool.find_tool().path == os.path.realpath(NEWER)
    yield
    trial.trial.cache_clear()


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with newer_bwrap(monkeypatch):
        yield


@pytest.fixture(params=["installed", "newer"])
def bwrap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each bwrap there is, the first of PATH."""
    if request.param == "installed":
        if reason := bubblewrap.why_not():
            pytest.skip(reason)
        yield bwrap_tool.find_tool().path
        return
    require(NEWER, "SANDBOXLIB_BWRAP_NEWER names no newer bwrap")
    with newer_bwrap(monkeypatch):
        yield NEWER
