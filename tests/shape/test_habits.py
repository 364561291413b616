# SPDX-License-Identifier: Apache-2.0
"""The files for newcomers are right: each task has a help line, each link leads to a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lib.machine import require

TOP = Path(__file__).resolve().parents[2]
PAGES = sorted([*TOP.glob("*.md"), *TOP.glob("docs/*.md"), *TOP.glob("tests/*.md")])
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(?:#([^)\s]+))?\)")

#: `sandboxlib/chroot.py`, `_seccomp/bpf.py`
FILE = re.compile(r"`((?:sandboxlib|csrc|tests|benchmarks|examples|docs|_[a-z]+)/[\w./-]+)`")


def prose(path: Path) -> str:
    """The text of a page without its blocks and literals."""
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_each_link_of_a_page_leads_to_a_file(page: Path) -> None:
    for target, _ in LINK.findall(prose(page)):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_each_file_that_a_page_names_is_there(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        pytest.skip("it tells of what there was")
    for name in FILE.findall(page.read_text()):
        assert any((folder / name).exists() for folder in (TOP, TOP / "sandboxlib")), name


def test_each_task_has_a_line_of_help() -> None:
    path = TOP / "justfile"
    require(path.exists(), "this is not the source tree")
    lines = path.read_text().splitlines()
    recipes = [n for n, line in enumerate(lines) if re.match(r"[a-z][\w-]*( [^=]*)?:(?!=)", line)]
    assert len(recipes) > 10
    for n in recipes:
        above = [line for line in lines[:n] if not line.startswith("[")][-1]
        assert re.match(r"# [A-Z]", above), f"no help: {lines[n]}"


def test_the_checks_before_a_commit_are_tasks_that_ci_runs() -> None:
    path = TOP / ".pre-commit-config.yaml"
    require(path.exists(), "this is not the source tree")
    hooks = re.findall(r"entry: \.venv/bin/just (\w+)", path.read_text())
    tasks = re.findall(r"^task (\w+)", (TOP / ".ci" / "run").read_text(), re.MULTILINE)
    assert set(hooks) == set(tasks)


def test_the_command_of_the_readme_that_ci_runs_is_there_once() -> None:
    found = [line for line in (TOP / "README.md").read_text().splitlines() if "-m pytest" in line]
    assert len(found) == 1
    assert found[0].startswith("python3 -m venv .venv && ")


def test_no_two_files_of_tests_have_one_name() -> None:
    names = [path.name for path in TOP.glob("tests/*/test_*.py")]
    assert len(names) == len(set(names))  # pytest imports them by their names
