# SPDX-License-Identifier: Apache-2.0
"""What `pip install -e .` gives to the programs that import sandboxlib."""

from __future__ import annotations

import runpy
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


@pytest.mark.parametrize("is_free_threaded", [False, True])
def test_a_free_threaded_python_gets_no_limited_api(
    is_free_threaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No such Python is needed: what setup.py chooses is looked at."""
    setuptools = pytest.importorskip("setuptools")
    script = Path(__file__).resolve().parents[2] / "setup.py"
    given: dict[str, object] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **options: given.update(options))
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: int(is_free_threaded))
    runpy.run_path(str(script))
    limited = {} if is_free_threaded else {"bdist_wheel": {"py_limited_api": "cp310"}}
    assert given["options"] == limited
