# SPDX-License-Identifier: Apache-2.0
"""The properties of this machine and this caller, and the rule for tools that are missing."""

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
    """How often a test repeats something: `quick` times, or `deep` times with --all."""
    return deep if "SANDBOXLIB_DEEP" in os.environ else quick


def host_mounts() -> list[str]:
    """The lines of mountinfo, but for FUSE: programs of tests beside this one mount it, where the
    whole machine sees it, and none of ours does.
    """
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if " - fuse" not in line]


def require(present: object, reason: str) -> None:
    """Skip the test if something is missing; with SANDBOXLIB_MUST_WORK=1, fail."""
    if present:
        return
    if MUST_WORK:
        pytest.fail(f"SANDBOXLIB_MUST_WORK=1, but {reason}")
    pytest.skip(reason)


def python() -> list[str]:
    """The argv that starts this Python with sandboxlib from a program with another environment.

    With a sanitizer build, Python must load the sanitizer's library first. Only this Python gets
    it: neither the programs that start it nor the commands in a sandbox.
    """
    names = ("LD_PRELOAD", "ASAN_OPTIONS", "SANDBOXLIB_SANITIZED")
    if not IS_SANITIZED:
        return [sys.executable]
    settings = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    return ["/usr/bin/env", *settings, sys.executable]
