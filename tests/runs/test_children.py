# SPDX-License-Identifier: Apache-2.0
"""A process that a command starts never becomes a child of the caller."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import needs_root

PYTHON = os.path.realpath(sys.executable)
NUMBER = {"x86_64": 56, "aarch64": 220}.get(platform.machine(), 0)
CLONE = f"""
import ctypes, errno, os
call = ctypes.CDLL(None, use_errno=True).syscall
pid = call({NUMBER}, 0x8000 | 17, 0, 0, 0, 0)  # CLONE_PARENT, SIGCHLD
if pid == 0:
    os._exit(0)
print(errno.errorcode[ctypes.get_errno()] if pid < 0 else "made")
"""


@needs_root
@pytest.mark.skipif(not NUMBER, reason="another number of clone(2)")
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("words", [{}, {"processes": "undefined"}], ids=str)
def test_none_is_made_by_clone(words: dict[str, Any], fresh: bool) -> None:
    file = f"/proc/self/task/{os.getpid()}/children"
    with open_box("/", **words) as box, open(file) as children:
        before = children.read()
        assert box.run([PYTHON, "-I", "-S", "-c", CLONE], cwd="/", fresh=fresh).out == b"EPERM\n"
        children.seek(0)
        assert children.read() == before
