# SPDX-License-Identifier: Apache-2.0
"""What `pip install -e .` gives to the programs that import sandboxlib."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from lib.machine import require

TOP = Path(__file__).resolve().parents[2]
BUILD = "from setuptools import build_meta; print(build_meta.build_editable('made'))"


@pytest.mark.slow
def test_an_editable_install_is_found_by_type_checkers(tmp_path: Path) -> None:
    """They read the directories in .pth files, and run none of the lines that begin with import."""
    require((TOP / "setup.py").exists(), "this is not the source tree")
    require(importlib.util.find_spec("setuptools"), "there is no setuptools")
    ignored = shutil.ignore_patterns(".*", "build", "*.so", "*.o", "*.egg-info")
    tree = shutil.copytree(TOP, tmp_path / "tree", ignore=ignored)
    subprocess.run([sys.executable, "-c", BUILD], cwd=tree, check=True, timeout=300)
    (wheel,) = (tree / "made").glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        (pth,) = (name for name in files.namelist() if name.endswith(".pth"))
        line = files.read(pth).decode().strip()
    assert (Path(line) / "sandboxlib" / "py.typed").exists(), line
