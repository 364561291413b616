# SPDX-License-Identifier: Apache-2.0
"""What this machine and this caller have, and the rule for what is missing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

LIB = Path(__file__).resolve().parent
MUST_WORK = os.environ.get("SANDBOXLIB_MUST_WORK") == "1"
IS_SANITIZED = "SANDBOXLIB_SANITIZED" in os.environ

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the native executor takes root")
not_sanitized = pytest.mark.skipif(
    IS_SANITIZED, reason="an ordinary user cannot read the Python that the sanitizer is loaded into"
)


def many(quick: int, deep: int) -> int:
    """How often a test repeats something: a few times, or, with --all, for depth."""
    return deep if "SANDBOXLIB_DEEP" in os.environ else quick


def require(present: object, reason: str) -> None:
    """Skips the test where something is missing; SANDBOXLIB_MUST_WORK=1 makes that a failure."""
    if present:
        return
    if MUST_WORK:
        pytest.fail(f"SANDBOXLIB_MUST_WORK=1, but {reason}")
    pytest.skip(reason)


def python() -> list[str]:
    """The words that start this Python with sandboxlib in an environment that is not the tests'.

    Over a sanitizer build its library has to come first, in Python alone: all that is started on
    the way there, and what runs in a sandbox, does without.
    """
    names = ("LD_PRELOAD", "ASAN_OPTIONS", "SANDBOXLIB_SANITIZED")
    if not IS_SANITIZED:
        return [sys.executable]
    settings = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    return ["/usr/bin/env", *settings, sys.executable]
