# SPDX-License-Identifier: Apache-2.0
"""Small static programs for sandboxes, and a root that other users can reach.

A pytest plugin: `pytest_plugins = ["lib.probes"]`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from lib.machine import require
from lib.roots import make_rootfs


@pytest.fixture(scope="session")
def compile_static(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    directory = tmp_path_factory.mktemp("compiled")

    @cache
    def build(source: str) -> Path:
        require(shutil.which("cc"), "there is no C compiler")
        name = f"probe-{abs(hash(source))}"
        program, file = directory / name, directory / f"{name}.c"
        file.write_text(source)
        argv = ["cc", "-static", "-w", "-O1", "-pthread", "-o", program, file]
        done = subprocess.run(argv, capture_output=True, check=False)
        require(done.returncode == 0, "there is no static libc")
        return program

    return build


@pytest.fixture
def public_rootfs() -> Iterator[Path]:
    """A root that other users can reach."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield make_rootfs(Path(directory) / "root")
