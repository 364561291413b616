# SPDX-License-Identifier: Apache-2.0
"""How layers are unpacked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.machine import require

import sandboxlib
from sandboxlib import Store, UnsupportedError, user_namespace
from sandboxlib._images import unpack
from sandboxlib._spec.overlay import Owners


@pytest.fixture(params=["real", "single", "ranges"])
def way(request: pytest.FixtureRequest) -> str:
    """For whom layers are unpacked: root, a user namespace of one id, or of several."""
    return str(request.param)


@pytest.fixture
def owners(way: str, monkeypatch: pytest.MonkeyPatch) -> Owners:
    """The same as Owners; unpacking goes that way."""
    kind: Any = way
    if kind == "real":
        if os.geteuid() != 0:
            pytest.skip("only root keeps owners without a user namespace")
    else:
        if user_namespace.why_not():
            pytest.skip(user_namespace.why_not())
        user: Any = {"single": "root", "ranges": "ranges"}[kind]
        if refused := user_namespace.refusals(sandboxlib.Sandbox("/", user=user)):
            pytest.skip(refused[0])
        monkeypatch.setattr(unpack, "executor", lambda: (user_namespace.run_command, user))
    return Owners(kind, os.geteuid(), os.getegid())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store that is empty afterwards: pytest could not remove files of the caller's ranges."""
    try:
        unpack.executor()
    except UnsupportedError as error:
        require(False, f"a layer cannot be unpacked here: {error}")
    made = Store(tmp_path / "store")
    yield made
    if os.path.isdir(made.directory) and os.geteuid() != 0:
        made.prune()
