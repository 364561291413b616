# SPDX-License-Identifier: Apache-2.0
"""The adapters of examples/ for fromager, pypa/build and nox, each over the real program.

The programs come from the package index when the tests run, into an environment of their own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lib.machine import not_sanitized, require

import sandboxlib

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROGRAMS = ["fromager>=0.77", "build>=1.2", "nox>=2024.4", "cffi"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), not_sanitized]


def run(argv: list[str | Path], place: Path, **env: str) -> subprocess.CompletedProcess[str]:
    ours = ("LD_PRELOAD", "PYTEST_ADDOPTS")
    names = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(
        argv, cwd=place, env={**names, **env}, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the programs, and with the sandboxlib of these tests."""
    place = tmp_path_factory.mktemp("adapters") / "environment"
    subprocess.run([sys.executable, "-m", "venv", place], check=True, capture_output=True)
    done = run([place / "bin" / "pip", "install", "-q", "--retries", "1", *PROGRAMS], place)
    said = done.stderr.strip().rpartition("\n")[2] or "?"
    require(done.returncode == 0, f"no fromager, build and nox from a package index: {said}")
    (place / "ours").mkdir()
    (place / "ours" / "sandboxlib").symlink_to(Path(sandboxlib.__file__).resolve().parent)
    return place


def program(environment: Path, place: Path, *args: str | Path) -> str:
    """What a program of the environment prints, which has to succeed."""
    path = f"{environment}/bin:{os.environ['PATH']}"
    argv = [environment / "bin" / "python", *args]
    done = run(argv, place, PATH=path, PYTHONPATH=str(environment / "ours"))
    said = done.stdout + done.stderr
    if done.returncode != 0 and re.search("Max retries|name resolution|ConnectTimeout", said):
        require(False, f"the package index does not answer the program: {said[-300:]}")
    assert done.returncode == 0, said[-3000:]
    return said


SETUP = """
import os, socket
try:
    print("the network:", socket.create_connection(("192.0.2.1", 80), 30))
except OSError as error:
    print("the network:", type(error).__name__)
try:
    print("the environment:", open(os.environ["OUTSIDE"], "w"))
except OSError as error:
    print("the environment:", error.strerror)
print("processes:", sum(name.isdigit() for name in os.listdir("/proc")) < 10)
from setuptools import setup
setup(py_modules=["told"])
"""


def test_pypa_build_makes_a_wheel_whose_hooks_are_confined(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "setup.py").write_text(SETUP)
    (source / "told.py").write_text("x = 1\n")
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools>=61"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "told"\nversion = "1"\n'
    )
    monkeypatch.setenv("OUTSIDE", str(environment / "written"))
    said = program(environment, tmp_path, EXAMPLES / "build_wheel.py", source, tmp_path / "out")
    assert "the network: ConnectionRefusedError" in said
    assert "the environment: Read-only file system" in said
    assert "processes: True" in said
    assert os.listdir(tmp_path / "out") == ["told-1-py3-none-any.whl"]


def test_fromager_builds_a_wheel_from_source_in_a_sandbox(
    environment: Path, tmp_path: Path
) -> None:
    args = ["--verbose", "bootstrap", "flit_core==3.9.0"]
    said = program(environment, tmp_path, EXAMPLES / "fromager_in_sandbox.py", *args)
    assert "--inside" in said  # it ran the hooks by the adapter
    wheels = [path.name for path in (tmp_path / "wheels-repo").rglob("*.whl")]
    assert any(name.startswith("flit_core-3.9.0") for name in wheels)


TEST = """
import os, socket, sys
import pytest

def test_it_is_confined():
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("192.0.2.1", 80), 30)
    with pytest.raises(OSError):
        open(os.path.join(sys.prefix, "written"), "w")
"""


def test_nox_runs_tests_in_a_sandbox(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(TEST)
    shutil.copy(EXAMPLES / "noxfile.py", tmp_path)
    assert "1 passed" in program(environment, tmp_path, "-m", "nox", "-s", "tests")
    (tmp_path / "tests" / "test_it.py").write_text("def test_it():\n    assert False\n")
    with pytest.raises(AssertionError, match="pytest failed"):
        program(environment, tmp_path, "-m", "nox", "-r", "-s", "tests")
