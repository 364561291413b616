# SPDX-License-Identifier: Apache-2.0
"""mypy --strict and pyright (strict) over the programs of the cookbook, and over lib/typed.py."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from lib.machine import require

TOP = Path(__file__).resolve().parents[2]
PROGRAMS = [*sorted((TOP / "examples").glob("*.py")), TOP / "tests" / "lib" / "typed.py"]
#: These import packages that need not be installed, and have no types.
WITHOUT_TYPES = {"dask_example.py", "build_wheel.py", "fromager_in_sandbox.py", "noxfile.py"}


def check(*argv: object) -> str:
    words = [sys.executable, "-m", *map(str, argv)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_mypy_is_content(tmp_path: Path) -> None:
    require(find_spec("mypy"), "there is no mypy")
    config = tmp_path / "mypy.ini"
    lines = ["strict = True", f"cache_dir = {tmp_path}", f"mypy_path = {TOP}"]
    lines += ["[mypy-dask.*,build.*,fromager.*,nox.*]", "ignore_missing_imports = True"]
    lines += ["[mypy-grpc.*,google.*,buildgrid.*,rich.*]", "ignore_missing_imports = True"]
    # Whether the packages that these take are installed makes no difference.
    lines += ["[mypy-build_wheel,dask_example,fromager_in_sandbox,noxfile]"]
    lines += ["disallow_untyped_decorators = False", "disallow_untyped_calls = False"]
    lines += ["warn_return_any = False"]
    config.write_text("\n".join(["[mypy]", *lines]))
    assert not check("mypy", "--config-file", config, *PROGRAMS)


@pytest.mark.slow
def test_pyright_is_content(tmp_path: Path) -> None:
    """It is no requirement of the tests, as its package fetches the program from elsewhere."""
    if not find_spec("pyright"):
        pytest.skip("there is no pyright: pip install -e '.[dev]'")
    if "Traceback" in check("pyright", "--version"):
        pytest.skip("pyright could not fetch its program")
    for path in PROGRAMS:
        if path.name not in WITHOUT_TYPES:
            (tmp_path / path.name).write_text(path.read_text())
    config = {
        **{"typeCheckingMode": "strict", "include": ["*.py"], "extraPaths": [str(TOP)]},
        **{"reportUnnecessaryTypeIgnoreComment": "error"},
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    assert not check("pyright", "--pythonpath", sys.executable, "-p", tmp_path)
