# SPDX-License-Identifier: Apache-2.0
"""The manual page of run-sandbox, and what a shell completes."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from lib.machine import require

from sandboxlib._cli import options

TOP = Path(__file__).resolve().parents[2]
PAGE = TOP / "docs" / "run-sandbox.1"


def test_the_page_is_made_from_the_options_of_today() -> None:
    made = runpy.run_path(str(TOP / "docs" / "site" / "man_page.py"))["page"]()
    assert PAGE.read_text() == made, "just man"


def test_the_page_has_each_option() -> None:
    text = PAGE.read_text().replace("\\-", "-")
    for action in options.run_parser("run-sandbox")._actions:
        for name in action.option_strings:
            assert f"\\fB{name}\\fR" in text


def test_man_shows_the_page_without_a_warning() -> None:
    if not (shutil.which("man") and shutil.which("groff")):
        pytest.skip("there is no man")
    env = {**os.environ, "LC_ALL": "C", "MANWIDTH": "80", "MANPAGER": "cat"}
    argv = ["man", "--warnings", "-l", str(PAGE)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "--memory SIZE" in done.stdout


#: What bash does at a TAB, with the function that argcomplete gives it.
TAB = """
eval "$(register-python-argcomplete run-sandbox)"
COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9 IFS=$'\\n'
_python_argcomplete run-sandbox '' ''
echo "${COMPREPLY[*]}"
"""


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("--mem", ["--memory"]),
        ("--network ", ["isolated", "undefined"]),
        ("-e c", ["chroot"]),
        ("--user r", ["root", "ranges"]),
        ("--seccomp b", ["builds"]),
        ("/etc/passw", ["/etc/passwd"]),
    ],
)
def test_a_shell_completes_options_and_words(
    typed: str, offered: list[str], tmp_path: Path
) -> None:
    require(find_spec("argcomplete"), "there is no argcomplete")
    require(shutil.which("bash"), "there is no bash")
    tools = Path(sys.executable).parent
    require((tools / "run-sandbox").exists(), "run-sandbox is not installed beside this Python")
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    argv = ["bash", "-c", TAB, "tab", f"run-sandbox {typed}"]
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    words = {word.strip() for word in done.stdout.splitlines()} - {""}
    assert set(offered) <= words, done.stderr
    assert not [word for word in words if word not in offered and not word.startswith("/etc/")]
