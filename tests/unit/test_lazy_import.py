# SPDX-License-Identifier: Apache-2.0
"""`import sandboxlib` imports nothing, and all names are there all the same."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

import sandboxlib
from sandboxlib import _reapi


def printed(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_alone_imports_no_other_module() -> None:
    code = "import sys, sandboxlib; print([m for m in sys.modules if m.startswith('sandboxlib.')])"
    assert printed(code) == "[]\n"


def test_dir_has_every_name_and_each_can_be_had() -> None:
    assert {*sandboxlib.__all__, "map", "api", "errors", "__version__"} <= {*dir(sandboxlib)}
    code = """
import sandboxlib
for name in dir(sandboxlib):
    getattr(sandboxlib, name)
assert sandboxlib.map is not map and sandboxlib.api.map is sandboxlib.map
"""
    printed(code)


@pytest.mark.parametrize("name", ["Overlay", "Command", "chroot", "errors", "Tree", "__version__"])
def test_a_name_can_be_the_first_that_is_used(name: str) -> None:
    assert printed(f"import sandboxlib; sandboxlib.{name}; from sandboxlib import {name}") == ""


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'sandboxlib' has no attribute 'nothing'"):
        _ = sandboxlib.nothing  # type: ignore[attr-defined]


def test_a_digest_is_the_same_with_and_without_openssl() -> None:
    code = """
import sys
from sandboxlib import _reapi
print(_reapi.digest_of(b"x" * 1000), "_hashlib" in sys.modules)
print(_reapi.digest_of(b"x" * (1 << 20)), "_hashlib" in sys.modules)
"""
    small, large = (hashlib.sha256(b"x" * size).hexdigest() for size in (1000, 1 << 20))
    assert printed(code) == f"{small}/1000 False\n{large}/{1 << 20} True\n"
    hash = _reapi.sha256(3)
    hash.update(b"abc")
    assert hash.hexdigest() == hashlib.sha256(b"abc").hexdigest()
