# SPDX-License-Identifier: Apache-2.0
"""How inputs become layers in the store."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from sandboxlib import Command, File, Overlay, SetupError, SpecError, Store, Tree, UnsupportedError
from sandboxlib._inputs import hashes, staging
from sandboxlib._inputs.placing import Placer
from sandboxlib._spec.overlay import Lower, Owners

IDS = os.geteuid(), os.getegid()
PREFIX = b"user.overlay."
Make = Callable[..., Placer]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a merged /usr."""
    root = tmp_path / "root"
    (root / "usr" / "lib" / "old").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    (root / "etc").mkdir()
    (root / "etc" / "passwd").write_text("x")
    (root / "etc" / "localtime").symlink_to("../usr/zone")
    (root / "etc").chmod(0o751)
    return root


@pytest.fixture
def placer(store: Store, root: Path) -> Make:
    def make(kind: Any = "single", ids: tuple[int, int] | None = None) -> Placer:
        layers = [Lower(str(root))]
        return Placer(store, lambda: layers, PREFIX, Owners(kind, *IDS), ids, ("/tmp", "/mnt/x"))

    return make


def staged(placer: Placer, inputs: Mapping[str, Any], outputs: Any = ()) -> list[dict[str, str]]:
    """The paths of each layer with their kind and permissions, bottom first."""
    ready = placer.ready(Command("x", inputs=inputs, outputs=outputs))
    return [_listed(Path(lower.path)) for lower in ready.lowers]


def _listed(top: Path) -> dict[str, str]:
    paths = sorted(top.rglob("*"))
    return {f"/{path.relative_to(top)}": stat.filemode(path.lstat().st_mode) for path in paths}


def test_targets_are_resolved_in_the_root(placer: Make) -> None:
    inputs = {"/lib/x/a": b"1", "/etc/localtime": b"2", "/lib/tree": Tree({"b": b"3"})}
    tree, files = staged(placer(), inputs)
    assert tree == {
        "/usr": "drwxr-xr-x",
        "/usr/lib": "drwxr-xr-x",
        "/usr/lib/tree": "drwxr-xr-x",
        "/usr/lib/tree/b": "-rw-r--r--",
    }
    assert {"/usr/zone", "/usr/lib/x/a"} <= files.keys()
    assert "/etc" not in files


def test_the_directories_above_are_those_of_the_root(placer: Make, root: Path) -> None:
    os.utime(root / "etc", (5, 5))
    ready = placer().ready(Command("x", inputs={"/etc/passwd": b"1", "/new/dir/a": b"2"}))
    top = Path(ready.lowers[0].path)
    at = (top / "etc").stat()
    assert (stat.S_IMODE(at.st_mode), at.st_mtime) == (0o751, 5)
    assert stat.S_IMODE(top.stat().st_mode) == stat.S_IMODE(root.stat().st_mode)
    assert (top / "new" / "dir").stat().st_mtime == 315532800


def test_modes_times_and_links(placer: Make, tmp_path: Path, monkeypatch: Any) -> None:
    source = tmp_path / "source"
    source.mkdir(mode=0o700)
    (source / "run").write_bytes(b"1")
    (source / "run").chmod(0o500)
    (source / "secret").write_bytes(b"1")
    (source / "secret").chmod(0o600)
    (source / "link").symlink_to("/etc/shadow")
    (tmp_path / "named").symlink_to("source/run")
    inputs = {"/src": Tree(source), "/a": File(tmp_path / "named")}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "7")
    ready = placer().ready(Command("x", inputs=inputs))
    tree, files = (Path(lower.path) for lower in ready.lowers)
    modes = {"src": 0o755, "src/run": 0o755, "src/secret": 0o644}
    for name, mode in modes.items():
        at = (tree / name).lstat()
        assert (stat.S_IMODE(at.st_mode), at.st_mtime) == (mode, 7), name
    assert os.readlink(tree / "src" / "link") == "/etc/shadow"
    assert (tree / "src" / "link").lstat().st_mtime == 7
    assert stat.S_IMODE((files / "a").lstat().st_mode) == 0o755
    assert os.getxattr(tree / "src", "user.overlay.opaque") == b"y"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "soon")
    with pytest.raises(SpecError, match="no number of seconds"):
        placer().ready(Command("x", inputs=inputs))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_inputs_belong_to_the_user_of_the_command(placer: Make) -> None:
    ready = placer("real", (1000, 1001)).ready(
        Command("x", inputs={"/src": Tree({"a": b"1"}), "/etc/b": b"2"}, outputs=["/out/x"])
    )
    owners = {
        f"/{path.relative_to(lower.path)}": (path.lstat().st_uid, path.lstat().st_gid)
        for lower in ready.lowers
        for path in Path(lower.path).rglob("*")
    }
    assert owners == {
        **dict.fromkeys(("/src", "/src/a", "/etc/b", "/out"), (1000, 1001)),
        "/etc": (0, 0),
    }


def test_other_ids_of_ranges_are_refused_by_name(placer: Make) -> None:
    with pytest.raises(UnsupportedError, match="uid 1000 of the caller's ranges"):
        staged(placer("ranges", (1000, 1000)), {"/a": b"1"})
    assert staged(placer("ranges"), {"/a": b"1"})


def test_a_tree_is_staged_once_for_all_that_name_it(placer: Make, store: Store) -> None:
    tree = Tree({f"d/{number}": b"%d" % number for number in range(20)})
    first = placer().ready(Command("x", inputs={"/src": tree, "/a": b"1"}))
    second = placer().ready(Command("y", inputs={"/a": b"2", "/src": Tree(tree.content)}))
    assert first.lowers[0].path == second.lowers[0].path
    assert first.lowers[1].path != second.lowers[1].path
    same = placer()
    assert same.ready(Command("x", inputs={"/a": b"1"})) is same.ready(
        Command("z", inputs={"/a": File(b"1")})
    )


def test_outputs_get_their_directories(placer: Make) -> None:
    made = staged(placer(), {}, ["/out/deep/*.o", "/lib/x/**", "/etc/a", "/one", "/w*/x/y"])
    assert [layer.keys() for layer in made] == [
        {"/out", "/out/deep", "/usr", "/usr/lib", "/usr/lib/x"}
    ]
    assert staged(placer(), {}, ["/etc/*", "/lib/old/x"]) == []
    ready = placer().ready(Command("x", "/src", outputs=["o/*/x", "/lib/a*"]))
    assert [(each.where, each.rest) for each in ready.outputs] == [
        ("/src/o", "*/x"),
        ("/usr/lib", "a*"),
    ]


def test_a_longer_path_goes_over_a_tree(placer: Make) -> None:
    tree = Tree({"sub/a": b"1", "b": b"2"})
    inputs = {"/src": tree, "/src/sub/a": b"3", "/src/sub/deep": Tree({"c": b"4"})}
    below, middle, top = staged(placer(), inputs, ["/src/out/*"])
    assert below.keys() == {"/src", "/src/sub", "/src/sub/a", "/src/b"}
    assert middle.keys() == {"/src", "/src/sub", "/src/sub/deep", "/src/sub/deep/c"}
    assert top.keys() == {"/src", "/src/sub", "/src/sub/a", "/src/out"}


@pytest.mark.parametrize(
    ("inputs", "outputs", "kind", "text"),
    [
        ({"/etc": b"1"}, (), SetupError, "never a directory"),
        ({"/lib": b"1"}, (), SetupError, "never a directory"),
        ({"/etc/passwd/x": b"1"}, (), NotADirectoryError, "place /etc/passwd/x in the root"),
        ({}, ["/etc/passwd/*"], NotADirectoryError, "a file there"),
        ({"/lib/a": b"1", "/usr/lib/a": b"2"}, (), SpecError, "two inputs have the path '/usr/lib"),
        ({"/tmp/a": b"1"}, (), SpecError, r"below '/tmp'.*tmp='root'"),
        ({"/mnt/x": Tree({})}, (), SpecError, "below '/mnt/x'"),
        ({}, ["/mnt/x/**"], SpecError, "below '/mnt/x'"),
        ({}, ["/mnt/x"], SpecError, "below '/mnt/x'"),
        ({"/t": Tree({"f": b"1"}), "/t/f/g": b"2"}, (), SpecError, "is a file of a Tree"),
        ({"/t": Tree({"d/f": b"1"}), "/t/d": b"2"}, (), SpecError, "a directory there"),
        ({"/a": b"1"}, ["/a/*"], SpecError, "below '/a', which is a File"),
    ],
)
def test_what_cannot_be_placed_is_refused(
    placer: Make, store: Store, inputs: Any, outputs: Any, kind: Any, text: str
) -> None:
    with pytest.raises(kind, match=text):
        staged(placer(), inputs, outputs)
    assert not Path(store.directory, "inputs").exists()


def test_an_edit_after_the_snapshot_is_an_error_and_never_another_content(
    placer: Make, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"1")
    tree = Tree(source)
    tree.digest()
    (source / "a").write_bytes(b"2")
    with pytest.raises(SetupError, match="has changed since") as caught:
        staged(placer(), {"/src": tree})
    assert caught.value.step == "inputs"
    (source / "a").write_bytes(b"1")
    lower = placer().ready(Command("x", inputs={"/src": tree})).lowers[0]
    (source / "a").write_bytes(b"2")
    assert placer().ready(Command("x", inputs={"/src": tree})).lowers[0].path == lower.path
    assert Path(lower.path, "src", "a").read_bytes() == b"1"


def test_a_file_is_read_again_when_it_changed(placer: Make, tmp_path: Path) -> None:
    source = tmp_path / "a"
    made = placer()
    for content in (b"1", b"2"):
        source.write_bytes(content)
        os.utime(source, (5, 5))
        ready = made.ready(Command("x", inputs={"/a": source}))
        assert Path(ready.lowers[0].path, "a").read_bytes() == content


def test_a_file_that_changed_a_moment_ago_is_not_remembered(tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"1")
    _, status = hashes.digest_of_file(source)
    assert not hashes.known_digest(status)
    hashes.remember(status, "x/1", status.st_ctime_ns + 3 * 10**9)
    assert hashes.known_digest(status) == "x/1"


def test_threads_stage_a_tree_once(placer: Make, store: Store) -> None:
    tree = Tree({f"{number}": b"%d" % number for number in range(200)})
    paths: list[str] = []

    def stage() -> None:
        paths.append(placer().ready(Command("x", inputs={"/src": tree})).lowers[0].path)

    threads = [threading.Thread(target=stage) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 8
    assert len(set(paths)) == 1
    assert os.listdir(f"{store.directory}/tmp") == []
    assert len(os.listdir(f"{store.directory}/inputs")) == 1


def test_the_wait_for_who_stages_the_same_tree_has_an_end(
    placer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"/src": Tree({"a": b"1"})}
    begun, goes_on = threading.Event(), threading.Event()
    fill = staging.Layer._fill

    def slow(self: staging.Layer, *args: Any) -> int:
        begun.set()
        assert goes_on.wait(60)
        return fill(self, *args)

    monkeypatch.setattr(staging.Layer, "_fill", slow)
    first = threading.Thread(target=staged, args=(placer(), inputs))
    first.start()
    try:
        assert begun.wait(60)
        monkeypatch.setattr(staging, "_LONGEST", 0.1)
        with pytest.raises(SetupError) as caught:
            staged(placer(), inputs)
    finally:
        goes_on.set()
        first.join()
    assert (caught.value.errno, caught.value.step) == (errno.ETIMEDOUT, "store")
    assert staged(placer(), inputs)


def test_prune_leaves_what_is_in_use_and_takes_the_rest(placer: Make, store: Store) -> None:
    made = placer()
    ready = made.ready(Command("x", inputs={"/src": Tree({"a": b"x" * 100_000})}))
    store.prune()
    assert Path(ready.lowers[0].path, "src", "a").stat().st_size == 100_000
    del ready, made
    assert store.prune() >= 100_000
    assert os.listdir(f"{store.directory}/inputs") == []


def test_no_two_inputs_are_one_file(placer: Make) -> None:
    tree = Tree({"a": b"same", "b": b"same"})
    inputs = {"/x": tree, "/y": tree, "/c": b"same", "/d": b"same"}
    lowers = placer().ready(Command("x", inputs=inputs)).lowers
    files = [path for lower in lowers for path in Path(lower.path).rglob("*") if path.is_file()]
    assert len({path.stat().st_ino for path in files}) == len(files) == 6
    assert {path.stat().st_nlink for path in files} == {1}


def test_a_snapshot_stays_whole_after_its_source_is_gone(
    placer: Make, store: Store, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "d" / "a").write_bytes(b"1")
    tree = Tree(source)
    placer().ready(Command("x", inputs={"/src": tree}))
    shutil.rmtree(source)
    store.prune()
    ready = placer().ready(Command("x", inputs={"/other": Tree({"sub": tree})}))
    assert Path(ready.lowers[0].path, "other", "sub", "d", "a").read_bytes() == b"1"


def test_a_hole_takes_no_space_in_the_store(placer: Make, tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.seek(100 << 20)
        file.write(b"end")
    ready = placer().ready(Command("x", inputs={"/a": tmp_path / "sparse"}))
    at = Path(ready.lowers[0].path, "a").stat()
    assert at.st_size == (100 << 20) + 3
    assert at.st_blocks * 512 <= 2 << 20


def test_a_full_disk_is_told_and_leaves_nothing(
    placer: Make, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(staging, "write_all", full)
    with pytest.raises(SetupError, match=r"Store\.prune\(\)"):
        placer().ready(Command("x", inputs={"/a": b"1"}))
    assert os.listdir(f"{store.directory}/tmp") == []
    monkeypatch.undo()
    assert placer().ready(Command("x", inputs={"/a": b"1"})).lowers


def test_a_tree_is_a_layer(store: Store) -> None:
    tree = Tree({"etc/passwd": b"1"})
    assert Overlay(tree, "/b").layers == (tree, "/b")
    (lower,) = tree._lowers(Owners("single", *IDS), store)
    assert _listed(Path(lower.path)) == {"/etc": "drwxr-xr-x", "/etc/passwd": "-rw-r--r--"}
    assert stat.S_IMODE(Path(lower.path).stat().st_mode) == 0o755
    assert tree._key() == tree.digest()


def test_an_empty_root_takes_inputs(store: Store) -> None:
    made = Placer(store, list, PREFIX, Owners("single", *IDS), None, ())
    assert staged(made, {"/a/b": b"1"}, ["/c/d"]) == [
        {"/a": "drwxr-xr-x", "/a/b": "-rw-r--r--", "/c": "drwxr-xr-x"}
    ]
