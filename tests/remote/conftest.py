# SPDX-License-Identifier: Apache-2.0
"""What the tests of remote execution share: servers in this process, and connections to them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lib.fake_server import FakeServer

from sandboxlib import Server


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """A server that does what the test says."""
    with FakeServer() as made:
        yield made


@pytest.fixture
def server(fake: FakeServer) -> Iterator[Server]:
    """A connection to it."""
    with Server(fake.url) as made:
        yield made


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between two tries are short."""
    from sandboxlib._remote import server as servers

    monkeypatch.setattr(servers, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(servers, "LONGEST_WAIT", 0.05)
