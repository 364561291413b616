# SPDX-License-Identifier: Apache-2.0
"""What `pip install -e .` gives to the programs that import sandboxlib."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest


@pytest.mark.slow  # not slow, but an environment may be older than this line of pyproject.toml
def test_an_editable_install_is_found_by_type_checkers() -> None:
    """They read the directories in .pth files, and run none of the lines that begin with import."""
    files = metadata.files("sandboxlib") or []
    paths = [Path(str(each.locate())) for each in files if each.name.endswith(".pth")]
    for path in paths:  # none of a wheel
        line = path.read_text().strip()
        assert (Path(line) / "sandboxlib" / "py.typed").exists(), f"{line}: pip install -e . again"
