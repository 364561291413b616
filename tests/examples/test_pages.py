# SPDX-License-Identifier: Apache-2.0
"""The examples on the pages of docs/ work: each block of Python and of the shell is run.

A block of `python` is a doctest, a block of `console` has commands behind `$ ` and what they print,
where `...` stands for anything. All blocks of a page run in one directory, in their order.
"""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lib.image_maker import aci, directory, file
from lib.machine import require
from lib.roots import find_busybox, make_rootfs

TOP = Path(__file__).resolve().parents[2]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
PAGES = sorted((TOP / "docs").glob("*.md"))
FENCE = re.compile(r"^(`{3,})(\S.*?)?\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
#: The server of docs/remote.md, in whose place a cluster on this machine answers.
SERVER = "grpc://buildgrid:8980"
#: Blocks that are shown, not run: text, and directives of the site.
SHOWN = ("text", "{toctree}", "{eval-rst}", "{literalinclude}", "{output-of}")


def blocks(page: Path) -> list[tuple[str, str, int]]:
    text = page.read_text()
    return [
        (match[2] or "", match[3], text.count("\n", 0, match.start()) + 1)
        for match in FENCE.finditer(text)
    ]


def run_python(source: str, variables: dict[str, object], page: Path, line: int) -> None:
    found = doctest.DocTestParser().get_doctest(source, variables, page.name, str(page), line)
    assert found.examples, f"{page.name}:{line}: a block of python without >>>"
    said: list[str] = []
    failed, _ = doctest.DocTestRunner(optionflags=FLAGS).run(
        found, out=said.append, clear_globs=False
    )
    variables.update(found.globs)
    assert not failed, "".join(said)


def commands(source: str) -> list[tuple[str, str]]:
    """Each command behind `$ `, and the lines below it."""
    found: list[tuple[str, str]] = []
    for line in source.splitlines(keepends=True):
        if line.startswith("$ "):
            found.append((line[2:].rstrip(), ""))
        else:
            found[-1] = (found[-1][0], found[-1][1] + line)
    return found


def run_console(source: str, page: Path, line: int) -> None:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command, expected in commands(source):
        done = subprocess.run(
            ["bash", "-c", command],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        if not doctest.OutputChecker().check_output(expected, done.stdout, FLAGS):
            pytest.fail(f"{page.name}:{line}: $ {command}\n{done.stdout}instead of\n{expected}")


def make_image(path: Path) -> None:
    """The image that docs/images.md runs: a static busybox that says hello."""
    busybox = find_busybox()
    require(busybox, "there is no static busybox (apt: busybox-static)")
    assert busybox is not None
    shell = file("rootfs/bin/sh", Path(busybox).read_bytes(), mode=0o755)
    app = {"exec": ["/bin/sh", "-c", "echo hello from the image"], "user": "0", "group": "0"}
    manifest = {"acKind": "ImageManifest", "name": "example.com/box", "app": app}
    aci(path, directory("rootfs/bin"), shell, manifest=manifest)


def test_no_block_of_a_page_is_passed_over() -> None:
    """One whose fence is indented would be: neither run, nor shown as it is meant."""
    for page in PAGES:
        marks = [line for line in page.read_text().splitlines() if line.lstrip().startswith("```")]
        assert len(marks) == 2 * len(blocks(page)), page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_is_what_happens(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    url = ""
    if page.name == "remote.md":
        url = request.getfixturevalue("cluster").url
    if page.name == "images.md":
        make_image(tmp_path / "box.aci")
    if page.name in ("changes.md", "remote.md"):
        make_rootfs(tmp_path / "rootfs")
    variables: dict[str, object] = {}
    for kind, source, line in blocks(page):
        if kind == "python":
            run_python(source.replace(SERVER, url or SERVER), variables, page, line)
        elif kind == "console":
            require(shutil.which("bash"), "there is no bash")
            run_console(source, page, line)
        else:
            assert kind.split()[0] in SHOWN, f"{page.name}:{line}: nothing runs a block of {kind!r}"


def test_every_example_is_on_a_page_and_is_run() -> None:
    shown = {
        path
        for page in PAGES
        for kind, _, _ in blocks(page)
        for path in re.findall(r"^\{literalinclude\} \.\./(examples/\S+)$", kind)
    }
    tests = (TOP / "tests" / "examples" / "test_examples.py").read_text()
    for path in shown:
        assert Path(path).stem in tests, f"no test runs {path}"
