# SPDX-License-Identifier: Apache-2.0
"""Random walks: operations on files, done over layers and in a copy, leave the same tree; and the
layers with what was kept of the walk are that tree too.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from lib.machine import LIB, many, require

from sandboxlib import Mount, Overlay, Result, Sandbox, Store

pytest_plugins = ["lib.ways"]

WALK = (LIB / "walk.py").read_text()
PYTHON = os.path.realpath(sys.executable)
#: What Python needs.
SYSTEM = [
    path for path in ("/usr", "/lib", "/lib64", "/bin", sys.base_prefix) if Path(path).exists()
]

Operation = list[Any]


# ---- a tree, and operations on it ------------------------------------------------------------


def make_base(root: Path) -> Path:
    """A root with some of everything in /w, and a mount point for each part of the system."""
    for path in SYSTEM:
        (root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
    for name in ("w/a/b/c", "w/b", "w/é", "tmp", "proc", "dev"):
        (root / name).mkdir(parents=True)
    for name in ("w/a/f", "w/a/b/f", "w/a/b/c/f", "w/d", "w/é/f", "w/z"):
        (root / name).write_text(name)
    (root / "w" / "c").symlink_to("a/f")
    (root / "w" / "s").touch()
    os.truncate(root / "w" / "s", 1 << 20)
    os.mkfifo(root / "w" / "e")
    (root / "w" / "a" / "b" / "link").symlink_to("/none")
    os.setxattr(root / "w" / "d", "user.k", b"of the layer")
    os.setxattr(root / "w" / "a" / "b", "user.k", b"of the layer")
    os.utime(root / "w" / "a" / "f", (1_000_000, 1_000_000))
    (root / "w" / "z").chmod(0 if os.geteuid() == 0 else 0o400)  # `cp` has to read it
    (root / "w" / "a" / "b" / "c").chmod(0o2750)
    return root


DIRECTORIES = ["", "a/", "a/b/", "a/b/c/", "b/", "d/", "é/"]
NAMES = [
    *(f"{directory}{name}" for directory, name in itertools.product(DIRECTORIES, "abcdfsz")),
    *("e", "é", "a/\udcff\n", "a/b/link", "a/.wh", "b/" + "n" * 250),
]
name = st.sampled_from(NAMES)
text = st.sampled_from(["", "x", "some text", "y" * 5000])
number = st.sampled_from([0, 1, 4096, 100_000])
key = st.sampled_from(["k", "other"])
# An ordinary user cannot look into each directory, and the layers of one keep no set-user-ID bits.
OF_ROOT = [0o644, 0o600, 0o4755, 0o2770, 0o400, 0] if os.geteuid() == 0 else []
mode = st.sampled_from([0o755, 0o700, 0o1777, *OF_ROOT])
operations = st.lists(
    st.one_of(
        st.tuples(st.just("write"), name, text),
        st.tuples(st.just("append"), name, text),
        st.tuples(st.just("sparse"), name, number),
        st.tuples(st.just("truncate"), name, number),
        *(st.tuples(st.just(word), name) for word in ("mkdir", "rmdir", "remove", "renew")),
        *(st.tuples(st.just(word), name) for word in ("unlink", "fifo", "socket")),
        *(st.tuples(st.just(word), name, name) for word in ("rename", "rename", "rename", "link")),
        st.tuples(st.just("symlink"), st.sampled_from(["a", "../b", "/w/d", "none"]), name),
        st.tuples(st.just("chmod"), name, mode),
        st.tuples(st.just("time"), name, st.sampled_from([1_000_000, 1_500_000])),
        st.tuples(st.just("setxattr"), name, key, text.filter(lambda value: len(value) < 100)),
        st.tuples(st.just("removexattr"), name, key),
    ).map(list),
    min_size=1,
    max_size=25,
)


# ---- who walks -------------------------------------------------------------------------------


def box_of(root: Any) -> Sandbox:
    mounts = [Mount.bind(os.path.realpath(path), path, read_only=True) for path in SYSTEM]
    return Sandbox(root, extra_mounts=mounts, filesystem_writable_paths="all")


def walk(box: Sandbox, done: list[Operation], **options: Any) -> tuple[dict[str, Any], Result]:
    """Does the operations on /w, in a sandbox."""
    words = json.dumps(done).encode()
    argv = [PYTHON, "-I", "-S", "-c", WALK, "/w"]
    result = box.run(argv, stdin=words, timeout=60, **options)
    assert (result.exit, result.err) == (0, b""), result
    told: dict[str, Any] = json.loads(result.out or b"")
    return told, result


def copy(base: Path, to: Path) -> Path:
    subprocess.run(["cp", "-a", "--", base, to], check=True)
    return to


class Walks:
    """The places of the walks of one test. executor: by name."""

    def __init__(self, place: Path, executor: str) -> None:
        self.place, self.executor = place, executor
        self.base = make_base(place / "base")
        self.numbers = itertools.count()

    def seen(self, told: dict[str, Any]) -> Any:
        """The tree. Names of one file have the same content and number of links, but not always
        one number of an inode: in a user namespace the kernel does not find the lower file that
        one of them was copied from (overlayfs.rst, "Inode properties").
        """
        return told["tree"] if self.executor == "chroot" else told["tree"]["files"]

    def new(self) -> Path:
        """A new directory for a walk."""
        made = self.place / str(next(self.numbers))
        made.mkdir()
        return made


@pytest.fixture
def walks(tmp_path: Path, executor: str) -> Walks:
    return Walks(tmp_path, executor)


@pytest.fixture
def stored(walks: Walks) -> Walks:
    """The walks of whom a store has the layers."""
    return walks


def in_a_copy(base: Path, to: Path, done: list[Operation], told: list[int]) -> dict[str, Any]:
    """The same in a copy, but for renames that overlays refuse (EXDEV)."""
    with box_of(copy(base, to)) as box:
        rest = [each for each, number in zip(done, told, strict=True) if number != errno.EXDEV]
        return walk(box, rest)[0]


def extracted(tar: Path, base: Path, to: Path) -> Path:
    """A copy of the base over which a layer was extracted, by a tar that knows nothing of layers.
    What the whiteouts name is removed first (OCI image-spec, layer.md).
    """
    copy(base, to)
    with tarfile.open(tar) as layer:
        for entry in layer:
            there, (above, _, last) = to / entry.name, entry.name.rpartition("/")
            if last == ".wh..wh..opq":
                for inner in (to / above).iterdir():
                    _remove(inner)
            elif last.startswith(".wh."):
                _remove(to / above / last[4:])
            elif os.path.lexists(there) and entry.isdir() != _is_directory(there):
                _remove(there)
            elif entry.isdir() and there.exists():  # tar adds attributes, and removes none
                for key in os.listxattr(there):
                    os.removexattr(there, key)
    words = ["--xattrs", "--xattrs-include=user.*", "--exclude=.wh.*", "--numeric-owner", "-p"]
    argv = ["tar", "-x", "-f", tar, "-C", to, *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return to


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove(path: Path) -> None:
    if _is_directory(path):
        shutil.rmtree(path)
    else:
        path.unlink()


# ---- the walks -------------------------------------------------------------------------------

slow_walk = settings(
    max_examples=many(8, 150), deadline=None, suppress_health_check=list(HealthCheck)
)


@slow_walk
@given(done=operations)
@example(done=[["renew", "a"], ["rename", "a", "b"], ["write", "a", "x"]])
@example(done=[["rename", "a/b", "b/b"], ["unlink", "b/b/f"], ["mkdir", "a/b"]])
@example(done=[["link", "d", "a/d"], ["append", "d", "x"], ["chmod", "a/b", 0]])
def test_a_walk_over_layers_leaves_the_tree_that_it_leaves_in_a_copy(
    walks: Walks, done: list[Operation]
) -> None:
    place = walks.new()
    with box_of(Overlay(walks.base)) as box:
        told, _ = walk(box, done)
    errors = told["done"]
    for each, number in zip(done, errors, strict=True):
        assert number != errno.EXDEV or each[0] == "rename"
    there = in_a_copy(walks.base, place / "copy", done, errors)
    assert walks.seen(told) == walks.seen(there)
    assert [number for number in errors if number != errno.EXDEV] == there["done"]


def without_sockets(done: list[Operation]) -> list[Operation]:
    """A tar has none of them."""
    return [each for each in done if each[0] != "socket"]


@slow_walk
@given(done=operations.map(without_sockets))
@example(done=[["renew", "a"], ["rename", "a", "b"], ["write", "a", "x"]])
@example(done=[["remove", "a"], ["symlink", "none", "a"], ["remove", "b"], ["write", "b", "x"]])
def test_the_base_and_the_changes_are_the_result(stored: Walks, done: list[Operation]) -> None:
    walks = stored
    place = walks.new()
    store = Store(walks.place / "store")
    with box_of(Overlay(walks.base)) as box:
        told, result = walk(box, done, changes="keep")
    with result.changes as changes:
        layer = changes.commit(store)
        changes.save(place / "layer.tar")
    with box_of(Overlay(walks.base, layer)) as box:
        assert walks.seen(walk(box, [])[0]) == walks.seen(told)
    with box_of(extracted(place / "layer.tar", walks.base, place / "extracted")) as box:
        assert walks.seen(walk(box, [])[0]) == walks.seen(told)


def test_a_directory_of_a_layer_is_renamed_by_root_alone(walks: Walks, executor: str) -> None:
    # As the kernel has it: redirects are for those who are trusted.
    with box_of(Overlay(walks.base)) as box:
        told, _ = walk(box, [["rename", "a", "new"], ["mkdir", "x"], ["rename", "x", "y"]])
    is_renamed = "/new/b/c/f" in told["tree"]["files"]
    if executor == "chroot":
        assert (told["done"], is_renamed) == ([0, 0, 0], True)
    else:
        assert (told["done"], is_renamed) == ([errno.EXDEV, 0, 0], False)


# ---- by the tools of others ------------------------------------------------------------------

#: A walk with each kind of change in it.
WHOLE: list[Operation] = [
    *(["renew", "a/b"], ["append", "a/f", "x"], ["unlink", "d"], ["write", "new", "text"]),
    *(["link", "new", "also"], ["symlink", "none", "b/s"], ["fifo", "b/f"], ["remove", "é"]),
    *(["mkdir", "d"], ["chmod", "d", 0o2770], ["setxattr", "a", "k", "x"], ["sparse", "s", 4096]),
    *(["write", "a/\udcff\n", "a name of bytes"], ["write", "b/" + "n" * 250, "a long name"]),
]


def by_umoci(base: Path, layer: Path, place: Path) -> Path:
    """The root that umoci makes of an image of two layers."""
    subprocess.run(["tar", "-C", base, "--xattrs", "-cf", place / "base.tar", "."], check=True)
    image, rootless = f"{place}/image:tag", ["--rootless"] if os.geteuid() else []
    for words in (
        ["init", "--layout", f"{place}/image"],
        ["new", "--image", image],
        ["raw", "add-layer", "--image", image, str(place / "base.tar")],
        ["raw", "add-layer", "--image", image, str(layer)],
        ["unpack", *rootless, "--image", image, str(place / "bundle")],
    ):
        done = subprocess.run(["umoci", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return place / "bundle" / "rootfs"


def test_umoci_makes_the_tree_of_the_base_and_the_changes(walks: Walks) -> None:
    require(shutil.which("umoci"), "there is no umoci (apt: umoci)")
    place = walks.new()
    with box_of(Overlay(walks.base)) as box:
        told, result = walk(box, WHOLE, changes="keep")
    assert set(told["done"]) == {0}
    with result.changes as changes:
        changes.save(place / "layer.tar")
    with box_of(by_umoci(walks.base, place / "layer.tar", place)) as box:
        assert walks.seen(walk(box, [])[0]) == walks.seen(told)
