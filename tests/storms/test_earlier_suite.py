# SPDX-License-Identifier: Apache-2.0
"""The tests of sandboxlib 0.3.1, unmodified, over this package.

They come from the package index when the tests run, and are not part of this project. Of the
archive its tests/ alone is unpacked, so there is no other sandboxlib that they could find.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lib.machine import python, require

import sandboxlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lib.setuid_tool import SetuidTool

pytest_plugins = ["lib.setuid_tool"]

PACKAGE = str(Path(sandboxlib.__file__).resolve().parents[1])

REQUIREMENT = (
    "sandboxlib==0.3.1 "
    "--hash=sha256:3090d56123b1e1dc5245b1ab21a49fb86dd7c6d18e4d7c599f0d537f17445233\n"
)
WRITABLE_ROOT = (
    "The program writes to the root directory itself, not to the path that it is given. 0.3.1 left "
    "that directory writable as soon as a path below it was; here the paths that are named are."
)
#: env=None hands on the caller's environment, and roots without /usr/bin/env do not take all of it.
START = """
import os, sys, pytest
from sandboxlib.linux_user_chroot import STRIPPED
for name in STRIPPED & os.environ.keys():
    del os.environ[name]
sys.exit(pytest.main(sys.argv[1:]))
"""
#: The tests that cannot pass, and why, as in docs/executors.md. All others must pass.
DIFFERENCES = {
    "TestWriteablePaths::test_some_writable[linux_user_chroot]": WRITABLE_ROOT,
    "TestWriteablePaths::test_mount_point_writable[linux_user_chroot]": WRITABLE_ROOT,
}


@pytest.fixture(scope="module")
def suite() -> Iterator[Path]:
    """Its directory, where everybody can read it."""
    if os.geteuid() != 0 and sandboxlib.linux_user_chroot.why_not():
        pytest.skip("without root it takes linux-user-chroot, set-user-ID root")
    with tempfile.TemporaryDirectory(prefix="sandboxlib-earlier.", dir="/var/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "requirement").write_text(REQUIREMENT)
        words = ["--no-deps", "--no-binary", ":all:", "--retries", "1", "-d", name]
        argv = [sys.executable, "-m", "pip", "download", *words, "-r", str(place / "requirement")]
        env = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
        try:
            done = subprocess.run(
                argv, env=env, capture_output=True, text=True, check=False, timeout=150
            )
            said = "" if done.returncode == 0 else done.stderr.strip().rpartition("\n")[2] or "?"
        except subprocess.TimeoutExpired as error:
            said = str(error)
        require(not said, f"no sandboxlib 0.3.1 from a package index: {said}")
        (archive,) = place.glob("sandboxlib-0.3.1.tar.gz")
        with tarfile.open(archive) as members:
            for module in ("test_all.py", "programs.py"):
                file = members.extractfile(f"sandboxlib-0.3.1/tests/{module}")
                assert file is not None
                (place / module).write_bytes(file.read())
        yield place


def words_of(suite: Path) -> list[str]:
    """pytest over it, without the settings of this project."""
    options = ["-rA", "-p", "no:cacheprovider", "-c", "/dev/null", f"--rootdir={suite}"]
    return [*python(), "-c", START, "-q", *options, str(suite / "test_all.py")]


def results(done: subprocess.CompletedProcess[str]) -> dict[str, set[str]]:
    """The names of the tests by PASSED, FAILED, ERROR, ..."""
    found: dict[str, set[str]] = {}
    for word, name in re.findall(r"^([A-Z]+) \S*test_all\.py::(\S+)", done.stdout, re.MULTILINE):
        found.setdefault(word, set()).add(name)
    assert found, done.stdout + done.stderr
    return found


def telling(done: subprocess.CompletedProcess[str]) -> str:
    return "\n".join(line for line in done.stdout.splitlines() if line.startswith(("E  ", "FAIL")))


def assert_as_expected(done: subprocess.CompletedProcess[str], is_root: bool) -> None:
    found = results(done)
    assert found.pop("FAILED", set()) == set(DIFFERENCES), telling(done)
    # "chroot backend doesn't support read-only paths": not even tried. test_executors.py does.
    assert len(found.pop("XFAIL", ())) == (4 if is_root else 0)
    assert len(found.pop("PASSED")) == (17 if is_root else 10)
    assert not found, found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_suite_of_0_3_1_as_the_caller(suite: Path, tool_path: str) -> None:
    env = {**os.environ, "PATH": tool_path, "PYTHONPATH": PACKAGE}
    done = subprocess.run(
        words_of(suite), env=env, cwd=suite, capture_output=True, text=True, check=False
    )
    assert_as_expected(done, is_root=os.geteuid() == 0)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_suite_of_0_3_1_as_an_ordinary_user(suite: Path, setuid_tool: SetuidTool) -> None:
    env = {"PYTHONPATH": PACKAGE, "PYTHONDONTWRITEBYTECODE": "1"}
    assert_as_expected(setuid_tool.run(*words_of(suite), **env), is_root=False)
