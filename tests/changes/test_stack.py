# SPDX-License-Identifier: Apache-2.0
"""The merged view of layers, read without a mount, is the one that the kernel shows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lib.machine import needs_root
from lib.trees import contents, overlaid

from sandboxlib._changes.stack import TRUSTED, USER, Directory, Stack

KINDS = [pytest.param(False, marks=needs_root, id="root"), pytest.param(True, id="user")]

SCRIPT = """
import os, shutil
os.mkdir("new"); os.mkfifo("new/fifo"); os.symlink("../usr/a", "new/link")
shutil.rmtree("gone"); os.mkdir("gone"); open("gone/n", "w").close()
os.unlink("usr/lib/x"); os.chmod("usr/b", 0o600)
os.rename("new", "usr/new2")
os.unlink("file"); os.mkdir("file"); open("file/in", "w").close()
shutil.rmtree("dir"); open("dir", "w").close()
"""
RENAMES = """
import os
os.rename("usr", "us")
os.rename("us/share/doc", "doc")
os.mkdir("usr"); os.rename("doc", "usr/doc"); os.rename("usr/doc/deep", "usr/doc/deeper")
open("usr/doc/deeper/more", "w").close()
"""


@pytest.fixture
def lowers(tmp_path: Path) -> list[Path]:
    """Three layers, bottom first."""
    made = [tmp_path / f"l{n}" for n in range(3)]
    for number, names in enumerate(
        (
            ["usr/a", "usr/b", "usr/lib/x", "usr/lib/y", "gone/c", "dir/in/it", "file"],
            ["usr/share/doc/deep/one", "usr/share/doc/two", "usr/lib/y", "gone/d/e"],
            ["usr/share/doc/deep/two", "usr/share/x", "usr/a"],
        )
    ):
        for name in names:
            path = made[number] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} of {number}")
    return made


@contextmanager
def stack_of(place: Path, lowers: list[Path], user: bool) -> Iterator[Stack]:
    fds = [os.open(path, os.O_PATH) for path in (place / "u", *reversed(lowers))]
    try:
        yield Stack(fds, USER if user else TRUSTED)
    finally:
        for fd in fds:
            os.close(fd)


def walk_of(directory: Directory, path: str, found: dict[str, object]) -> None:
    with directory:
        for entry in directory.entries():
            name = os.path.join(path, os.fsdecode(entry.name))
            at = f"/proc/self/fd/{entry.directory}/{os.fsdecode(entry.name)}"
            found[name] = (entry.status.st_mode, contents(entry.status, at))
            if entry.is_directory():
                walk_of(directory.open(entry.name), name, found)


@pytest.mark.parametrize("user", KINDS)
@pytest.mark.parametrize("script", [SCRIPT, RENAMES], ids=["script", "renames"])
def test_a_stack_is_what_the_kernel_shows(
    tmp_path: Path, lowers: list[Path], user: bool, script: str
) -> None:
    if user and script is RENAMES:
        script = script.replace("os.rename", "shutil.move").replace(
            "import os", "import os, shutil"
        )
    shown = overlaid(tmp_path, lowers, script, user=user)
    expected = {name: (values[0], values[4]) for name, values in shown.items() if name != "."}
    found: dict[str, object] = {}
    with stack_of(tmp_path, lowers, user) as stack:
        walk_of(stack.root(), ".", found)
    assert found == expected


@pytest.mark.parametrize("user", KINDS)
def test_a_path_is_followed_inside_the_stack(
    tmp_path: Path, lowers: list[Path], user: bool
) -> None:
    script = """
import os
os.symlink("/usr/lib", "lib"); os.symlink("../../../../lib/y", "usr/lib/up")
os.symlink("/usr/none/../x", "dangling"); os.symlink("loop", "loop")
"""
    overlaid(tmp_path, lowers, script, user=user)
    with stack_of(tmp_path, lowers, user) as stack:
        found = stack.find(b"/lib/up")
        assert (found.path, found.missing, found.layer) == (b"/usr/lib/y", 0, 2)
        assert found.status is not None
        assert found.status.st_size == len("usr/lib/y of 1")
        assert stack.find(b"/lib/up", follow=False).path == b"/usr/lib/up"
        assert stack.find(b"lib/new/deep").path == b"/usr/lib/new/deep"
        assert stack.find(b"lib/new/deep").missing == 2
        assert stack.find(b"/../..").path == b"/"
        assert stack.find(b"usr/lib/..").path == b"/usr"
        assert stack.find(b"dangling").status is None
        with pytest.raises(OSError, match="Too many levels"):
            stack.find(b"/loop/x")
        with pytest.raises(NotADirectoryError):
            stack.find(b"/usr/a/x")


def test_nothing_that_is_no_file_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    top = os.open(tmp_path, os.O_PATH)
    try:
        with Stack([top], USER).root() as root:
            entry = root.look(b"fifo")
            assert entry is not None
            with pytest.raises(OSError, match="not a regular file"):
                entry.open()
    finally:
        os.close(top)
