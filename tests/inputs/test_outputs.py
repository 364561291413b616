# SPDX-License-Identifier: Apache-2.0
"""Outputs: which files of a merged view the patterns find, and what a caller does with them."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandboxlib import File, SetupError, SpecError, Store, Tree
from sandboxlib._inputs import reading
from sandboxlib._inputs.outputs import Outputs
from sandboxlib._inputs.placing import Wanted
from sandboxlib._spec.overlay import Lower

Read = Callable[..., Outputs]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    """An upper directory, with a few outputs."""
    upper = tmp_path / "upper"
    (upper / "out" / "sub" / "empty").mkdir(parents=True)
    (upper / "out" / "a.o").write_bytes(b"a")
    (upper / "out" / ".hidden.o").write_bytes(b"h")
    (upper / "out" / "sub" / "b.o").write_bytes(b"b")
    (upper / "out" / "run").write_bytes(b"r")
    (upper / "out" / "run").chmod(0o700)
    (upper / "out" / "a*b").write_bytes(b"star")
    (upper / "out" / "link").symlink_to("/etc")
    (upper / "out" / "sub" / "up").symlink_to("..")
    return upper


@pytest.fixture
def read(tmp_path: Path, upper: Path, store: Store) -> Read:
    lower = tmp_path / "lower"
    (lower / "out" / "old").mkdir(parents=True)
    (lower / "out" / "old" / "c.o").write_bytes(b"c")
    (lower / "etc").mkdir()
    (lower / "etc" / "passwd").write_bytes(b"p")

    def read(*patterns: str, cwd: str | None = None) -> Outputs:
        wanted = [Wanted(pattern, cwd) for pattern in patterns]
        with opened(upper) as fd:
            return reading.read_outputs(fd, [Lower(str(lower))], b"user.overlay.", wanted, store)

    return read


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    before = len(os.listdir("/proc/self/fd"))
    try:
        yield fd
    finally:
        assert len(os.listdir("/proc/self/fd")) <= before + 1  # the lease of what is in the store
        os.close(fd)


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["/out/*.o"], {"/out/a.o", "/out/.hidden.o"}),
        (["/out/**/*.o"], {"/out/a.o", "/out/.hidden.o", "/out/sub/b.o", "/out/old/c.o"}),
        (["/out/sub"], {"/out/sub/b.o"}),
        (["/out/a[*]b"], {"/out/a*b"}),
        (["/out/a*b"], {"/out/a*b"}),
        (["/o?t/a.o"], {"/out/a.o"}),
        (["/etc/passwd"], {"/etc/passwd"}),
        (["/out/old/*", "/**/run"], {"/out/old/c.o", "/out/run"}),
        (["/*/run", "/out/run"], {"/out/run"}),
    ],
)
def test_patterns_find_files_of_the_merged_view(
    read: Read, patterns: list[str], found: set[str]
) -> None:
    outputs = read(*patterns)
    assert set(outputs) == found
    assert outputs.missing == ()


def test_links_are_not_followed_and_directories_are_taken_whole(read: Read) -> None:
    outputs = read("/out")
    assert outputs.links == {"/out/link": "/etc", "/out/sub/up": ".."}
    assert {"/out", "/out/sub", "/out/sub/empty", "/out/old"} == set(outputs.directories)
    assert outputs["/out/run"].executable
    assert not outputs["/out/a.o"].executable
    assert read("/out/link/passwd", "/out/link/*").missing == ("/out/link/passwd", "/out/link/*")


def test_what_nothing_matched_is_missing(read: Read, upper: Path) -> None:
    os.mkfifo(upper / "out" / "fifo")
    outputs = read("/out/*.so", "/nowhere/x", "/out/fifo", "/out/a.o", "/etc/passwd/x")
    assert outputs.missing == ("/out/*.so", "/nowhere/x", "/out/fifo", "/etc/passwd/x")
    assert set(outputs) == {"/out/a.o"}


def test_relative_patterns_start_at_the_directory_of_the_command(read: Read) -> None:
    assert set(read("a.o", "sub/*.o", cwd="/out")) == {"/out/a.o", "/out/sub/b.o"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")
def test_a_whiteout_and_an_opaque_directory_hide_what_is_below(read: Read, upper: Path) -> None:
    os.mknod(upper / "etc", 0o20000, 0)
    (upper / "out" / "old").mkdir()
    os.setxattr(upper / "out" / "old", "user.overlay.opaque", b"y")
    outputs = read("/etc/*", "/out/old/*")
    assert outputs.missing == ("/etc/*", "/out/old/*")


def test_a_large_output_is_in_the_store_as_long_as_it_is_used(
    read: Read, upper: Path, store: Store
) -> None:
    content = os.urandom(1 << 20)
    (upper / "out" / "large").write_bytes(content)
    outputs = read("/out/large")
    file = outputs["/out/large"]
    assert isinstance(file.content, Path)
    assert str(file.content).startswith(store.directory)
    store.prune()
    assert file.read_bytes() == content
    assert file.size == 1 << 20
    del outputs, file
    assert store.prune() >= 1 << 20


def test_small_outputs_beyond_what_is_kept_in_memory_go_to_the_store(
    read: Read, upper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_MOST_IN_MEMORY", 150)
    for name in "xyz":
        (upper / "out" / name).write_bytes(name.encode() * 100)
    outputs = read("/out/[xyz]")
    kinds = [type(file.content) for file in outputs.values()]
    assert kinds.count(bytes) == 1
    assert {file.read_bytes()[:1] for file in outputs.values()} == {b"x", b"y", b"z"}


def test_a_hole_takes_no_space(read: Read, upper: Path) -> None:
    with open(upper / "out" / "sparse", "wb") as file:
        file.seek(1 << 34)
        file.write(b"end")
    stored = read("/out/sparse")["/out/sparse"]
    assert stored.size == (1 << 34) + 3
    assert isinstance(stored.content, Path)
    assert os.stat(stored.content).st_blocks * 512 < 1 << 20
    fd = os.open(stored.content, os.O_RDONLY)
    assert os.pread(fd, 3, 1 << 34) == b"end"
    os.close(fd)


def test_what_a_hostile_command_left_is_bounded(
    read: Read, upper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = upper / "out"
    for _ in range(250):
        deep /= "d"
        deep.mkdir()
    with pytest.raises(SetupError, match="more than 200 directories"):
        read("/out/**")
    monkeypatch.setattr(reading, "MOST_NAMES", 5)
    with pytest.raises(SetupError, match="too many names"):
        read("/out/*")
    monkeypatch.setattr(reading, "MOST", 1)
    with pytest.raises(SetupError, match="too many outputs"):
        read("/out/a.o", "/out/run")


def test_names_of_any_bytes(read: Read, upper: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\n\x1b")
    (upper / "out" / name).write_bytes(b"1")
    outputs = read("/out/\udcff*")
    assert set(outputs) == {f"/out/{name}"}
    assert outputs.collect(tmp_path / "to", below="/out") == [f"{tmp_path}/to/{name}"]


def test_collect_writes_files_links_and_directories(read: Read, tmp_path: Path) -> None:
    outputs = read("/out")
    to = tmp_path / "to" / "deep"
    old = os.umask(0o027)
    try:
        written = outputs.collect(to, below="/out")
    finally:
        os.umask(old)
    assert sorted(written) == sorted(
        f"{to}/{name}" for name in ("a.o", ".hidden.o", "run", "a*b", "sub/b.o", "old/c.o")
    )
    assert (to / "run").stat().st_mode & 0o777 == 0o750
    assert (to / "a.o").stat().st_mode & 0o777 == 0o640
    assert os.readlink(to / "link") == "/etc"
    assert (to / "sub" / "empty").is_dir()
    assert read("/out/sub", "/out/a.o").collect(tmp_path / "s", below="/out/sub") == [
        f"{tmp_path}/s/b.o"
    ]
    assert outputs.collect(tmp_path / "n", below="/ou") == []


def test_collect_replaces_a_file_at_once_and_follows_no_link(read: Read, tmp_path: Path) -> None:
    to = tmp_path / "to"
    to.mkdir()
    (to / "a.o").write_bytes(b"old")
    (to / "run").symlink_to(tmp_path / "elsewhere")
    outputs = read("/out/a.o", "/out/run", "/out/sub")
    with open(to / "a.o", "rb") as reader:
        outputs.collect(to, below="/out")
        assert reader.read() == b"old"
    assert (to / "a.o").read_bytes() == b"a"
    assert (to / "run").read_bytes() == b"r"
    assert not (tmp_path / "elsewhere").exists()
    (to / "sub" / "up").unlink()
    for name in ("b.o", "empty"):
        os.rename(to / "sub" / name, tmp_path / name)
    (to / "sub").rmdir()
    (to / "sub").symlink_to(tmp_path)
    with pytest.raises(SetupError, match="through a link"):
        outputs.collect(to, below="/out")
    assert (tmp_path / "b.o").read_bytes() == b"b"
    assert not [name for name in os.listdir(to) if name.startswith(".sandboxlib")]


def test_a_failed_collect_leaves_no_half_file(read: Read, tmp_path: Path) -> None:
    to = tmp_path / "to"
    (to / "a.o").mkdir(parents=True)
    with pytest.raises(SetupError, match=r"collect the output .*a\.o"):
        read("/out/a.o").collect(to, below="/out")
    assert os.listdir(to) == ["a.o"]
    with pytest.raises(SpecError, match="relative"):
        read("/out/a.o").collect(to, below="out")


def test_a_tree_of_outputs(read: Read) -> None:
    tree = read("/out").tree(below="/out")
    collected = {
        "a.o": b"a",
        "sub/b.o": b"b",
        "sub/empty": Tree({}),
        "run": File(b"r", executable=True),
    }
    rest = {".hidden.o": b"h", "a*b": b"star", "old/c.o": b"c"}
    folder = tree._snapshot()[0]
    assert folder[b"link"].target == b"/etc"  # type: ignore[union-attr]
    assert pickle.loads(pickle.dumps(tree)) == tree
    assert (
        read("/out/a.o", "/out/sub/b.o").tree().digest()
        == Tree({"out/a.o": b"a", "out/sub/b.o": b"b"}).digest()
    )
    plain = Tree({**collected, **rest})
    assert plain._snapshot()[0].keys() | {b"link"} == folder.keys()
    assert read("/nothing").tree().digest() == Tree({}).digest()


def test_outputs_are_a_frozen_mapping(read: Read) -> None:
    outputs = read("/out/*.o", "/none")
    copied = pickle.loads(pickle.dumps(outputs))
    assert copied == outputs
    assert copied.missing == ("/none",)
    assert dict(outputs) == {
        "/out/a.o": File(b"a", executable=False),
        "/out/.hidden.o": File(b"h", executable=False),
    }
    with pytest.raises(AttributeError):
        outputs.missing = ()
    assert "/none" in repr(outputs)
