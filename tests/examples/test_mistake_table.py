# SPDX-License-Identifier: Apache-2.0
"""The table of mistakes in docs/troubleshooting.md: each mistake, made, says what stands there.

ROOT is a root with programs that cannot be executed, tools = Sandbox(ROOT), and layers =
Sandbox(Overlay(ROOT)). `...` stands for
what differs from machine to machine.
"""

from __future__ import annotations

import doctest
import io
import os
import re
from pathlib import Path
from typing import Any

import pytest
from lib.roots import make_rootfs

import sandboxlib
from sandboxlib import Overlay, Sandbox, SandboxError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md"
ROW = re.compile(r"^\| `(?P<code>.+?)` \| `(?P<message>.+)` \|$", re.MULTILINE)
ROWS = {found["code"]: found["message"] for found in ROW.finditer(PAGE.read_text())}

PROGRAMS = {
    "crlf": (b"#!/bin/sh\r\n", 0o755),
    "python9": (b"#!/usr/bin/python9\n", 0o755),
    "no-x": (b"#!/bin/sh\n", 0o644),
    "text": (b"echo\n", 0o755),
}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the mistakes of the table may name."""
    root = make_rootfs(tmp_path_factory.mktemp("mistakes") / "root")
    for name, (content, mode) in PROGRAMS.items():
        (root / "bin" / name).write_bytes(content)
        (root / "bin" / name).chmod(mode)
    machine = 183 if os.uname().machine == "x86_64" else 62
    header = bytearray((root / "bin" / "busybox").read_bytes()[:4096])
    header[18:20] = machine.to_bytes(2, "little")
    (root / "bin" / "foreign").write_bytes(header)
    (root / "bin" / "foreign").chmod(0o755)
    everything = {name: getattr(sandboxlib, name) for name in sandboxlib.__all__}
    return {
        **everything,
        "io": io,
        "box": Sandbox("/"),
        "ROOT": root,
        "tools": Sandbox(root),
        "Path": Path,
        "layers": Sandbox(Overlay(root)),
    }


def test_the_page_has_the_table() -> None:
    assert len(ROWS) >= 25


@pytest.mark.parametrize("code", ROWS)
def test_a_mistake_says_what_the_table_says(names: dict[str, Any], code: str) -> None:
    with pytest.raises(SandboxError) as caught:
        next(iter(eval(code, dict(names))))  # iter: of a map
    said = str(caught.value).replace(str(names["ROOT"]), "ROOT")
    checker = doctest.OutputChecker()
    is_same = checker.check_output(f"{ROWS[code]}\n", f"{said}\n", doctest.ELLIPSIS)
    assert is_same, f"the row of the table has to be\n| `{code}` | `{said}` |"
