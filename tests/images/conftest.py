# SPDX-License-Identifier: Apache-2.0
"""How images are unpacked."""

from __future__ import annotations

import os

import pytest

import sandboxlib
from sandboxlib import user_namespace
from sandboxlib._images import unpack


@pytest.fixture(params=["caller", "root", "ranges"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How it is unpacked: by root, or in a user namespace of one id, or of several."""
    name: str = request.param
    if name == "caller":
        if os.geteuid() != 0:
            pytest.skip("only root keeps owners without a user namespace")
        return name
    if user_namespace.why_not():
        pytest.skip(user_namespace.why_not())
    if refused := user_namespace.refusals(sandboxlib.Sandbox("/", user=name)):
        pytest.skip(refused[0])
    monkeypatch.setattr(unpack, "executor", lambda: (user_namespace.run_command, name))
    return name
