# SPDX-License-Identifier: Apache-2.0
"""What a Tree consists of, its digest, and the patterns that leave something out of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandboxlib import File, SetupError, SpecError, Tree, _reapi
from sandboxlib._changes.child.globs import Globs
from sandboxlib._inputs.snapshot import Folder, Link


def test_the_digest_is_that_of_the_directory_message(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "sub" / "run").write_bytes(b"2")
    (tmp_path / "sub" / "run").chmod(0o755)
    (tmp_path / "b").write_bytes(b"1")
    (tmp_path / "l").symlink_to("../b")
    sub = _reapi.directory({b"run": _reapi.file_node(b"run", _reapi.digest_of(b"2"), True)}, {}, {})
    names = {b"sub": _reapi.digest_of(sub), b"empty": _reapi.EMPTY}
    wanted = _reapi.directory(
        {b"b": _reapi.file_node(b"b", _reapi.digest_of(b"1"))},
        {name: _reapi.directory_node(name, digest) for name, digest in names.items()},
        {b"l": _reapi.symlink_node(b"l", b"../b")},
    )
    assert Tree(tmp_path).digest() == _reapi.digest_of(wanted)


def test_a_tree_tells_names_contents_bits_and_links_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    digest = Tree(tmp_path).digest()
    os.utime(tmp_path / "a", (5, 5))
    (tmp_path / "a").chmod(0o600)
    assert Tree(tmp_path).digest() == Tree({"a": b"1"}).digest() == digest
    assert Tree({"a": File(b"1", executable=True)}).digest() != digest
    assert Tree({"a": b"2"}).digest() != digest
    assert Tree({"b": b"1"}).digest() != digest
    (tmp_path / "l").symlink_to("a")
    linked = Tree(tmp_path).digest()
    (tmp_path / "l").unlink()
    (tmp_path / "l").symlink_to("./a")
    assert len({digest, linked, Tree(tmp_path).digest()}) == 3


def test_a_tree_is_a_snapshot_at_its_first_use(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    (tmp_path / "a").write_bytes(b"1")
    digest = tree.digest()
    assert digest == Tree({"a": b"1"}).digest()
    (tmp_path / "a").write_bytes(b"2")
    assert tree.digest() == digest
    assert Tree(tmp_path).digest() == Tree({"a": b"2"}).digest()


def test_a_file_that_is_edited_with_its_size_and_mtime_kept_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    os.utime(path, ns=(0, 0))
    first = Tree(tmp_path).digest()
    path.write_bytes(b"2")
    os.utime(path, ns=(0, 0))
    assert Tree(tmp_path).digest() != first


def test_a_mapping_puts_longer_paths_over_trees(tmp_path: Path) -> None:
    (tmp_path / "x" / "deep").mkdir(parents=True)
    (tmp_path / "x" / "deep" / "old").write_bytes(b"1")
    tree = Tree({"t": Tree(tmp_path), "t/x/new": b"2", "t/x/deep": Tree({"only": b"3"})})
    assert tree.digest() == Tree({"t/x/new": b"2", "t/x/deep/only": b"3"}).digest()
    assert Tree(tmp_path).digest() == Tree({"x/deep/old": b"1"}).digest()


def test_a_file_replaces_a_file_and_never_a_directory() -> None:
    below = Tree({"d/a": b"1", "f": b"2"})
    assert Tree({"t": below, "t/f": b"3"}).digest() == Tree({"t/d/a": b"1", "t/f": b"3"}).digest()
    with pytest.raises(SpecError, match="a directory there"):
        Tree({"t": below, "t/d": b"3"}).digest()
    with pytest.raises(SpecError, match="is a file of a Tree"):
        Tree({"t": below, "t/f/g": b"3"}).digest()


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (["a.o"], {"d/a.o", "d/e/a.o", "d/e/.c"}),
        (["*/*.o"], {"a.o", "d/e/a.o", "d/e/.c"}),
        (["**/*.o"], {"d/e/.c"}),
        (["d/e"], {"a.o", "d/a.o"}),
        (["d/**"], {"a.o"}),
        (["**/e/*"], {"a.o", "d/a.o"}),
        (["d/?.o", "[a-c].o"], {"d/e/a.o", "d/e/.c"}),
        (["d/**/a.o"], {"a.o", "d/e/.c"}),
        (["[*].o", "[!d].o"], {"d/a.o", "d/e/a.o", "d/e/.c"}),
    ],
)
def test_exclude_leaves_out(tmp_path: Path, exclude: list[str], left: set[str]) -> None:
    for name in ("a.o", "d/a.o", "d/e/a.o", "d/e/.c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    assert _files(Tree(tmp_path, exclude=exclude)._snapshot()[0]) == left
    nested = Tree({"a.o": b"1", "d": Tree(tmp_path / "d")}, exclude=exclude)
    assert _files(nested._snapshot()[0]) == left


def _files(folder: Folder, above: str = "") -> set[str]:
    found = set()
    for name, node in folder.items():
        path = above + os.fsdecode(name)
        found |= _files(node, path + "/") if isinstance(node, Folder) else {path}
    return found


def test_a_hostile_directory_holds_nobody_up_and_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret").symlink_to("/etc/shadow")
    (tmp_path / "up").symlink_to("..")
    (tmp_path / os.fsdecode(b"\xff\n")).write_bytes(b"1")
    folder = Tree(tmp_path)._snapshot()[0]
    assert folder.keys() == {b"secret", b"up", b"\xff\n"}
    link = folder[b"secret"]
    assert isinstance(link, Link)
    assert link.target == b"/etc/shadow"
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SpecError, match="fifo is neither a file"):
        Tree(tmp_path).digest()
    assert Tree(tmp_path, exclude=["fifo"]).digest()


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="read the input /nowhere/x"):
        Tree("/nowhere/x").digest()
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        Tree(tmp_path / "f").digest()
    with pytest.raises(SetupError, match=r"Tree\('"):
        Tree({"a": tmp_path}).digest()


def test_a_pattern_takes_linear_time() -> None:
    globs = Globs(["*a*a*a*a*a*a*a*a*b", "**/x/**/x/**/x/y"])
    states = globs.start()
    globs.step(states, b"a" * 255)
    for _ in range(300):
        states, done = globs.step(states, b"x")
        assert not done
    assert globs.step(states, b"y")[1] == {1}
