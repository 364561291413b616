# SPDX-License-Identifier: Apache-2.0
"""The tools that people have take a saved layer: umoci, skopeo, tar."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from changes.test_changes import IMPORTS, is_same_tree, merge
from lib.machine import require
from lib.trees import walk
from lib.uppers import changed, without_owners

ALL = """
open('usr/new', 'w').write('x'); open('usr/a', 'a').write('x'); os.unlink('usr/lib/y')
shutil.rmtree('usr/share'); os.chmod('usr/b', 0o4711); os.utime('etc', (5, 5))
os.unlink('file'); os.mkdir('file'); open('file/in', 'w').close()
shutil.rmtree('dir'); open('dir', 'w').close()
shutil.rmtree('gone'); os.mkdir('gone'); open('gone/n', 'w').close()
os.link('usr/b', 'usr/b2'); os.symlink('t' * 200, 'link'); os.mkfifo('fifo')
deep = 'n' * 90 + '/' + 'm' * 90
os.makedirs(deep + '/\\U0001f600'); open(deep + '/x', 'w').close()
open(b'bad\\xff', 'w').close(); os.setxattr('same', 'user.name', b'value\\n=\\0')
f = open('sparse', 'wb'); f.truncate(1 << 24); f.seek(1 << 22); f.write(b'hi'); f.close()
"""


def call(*argv: str | Path, cwd: Path | None = None) -> bytes:
    done = subprocess.run(argv, capture_output=True, check=False, cwd=cwd)
    assert done.returncode == 0, (argv, done.stderr)
    return done.stdout


def found(name: str) -> str:
    path = shutil.which(name)
    require(path, f"{name} is not installed (apt: {name})")
    assert path is not None
    return path


@pytest.fixture
def layers(tmp_path: Path, base: list[Path]) -> tuple[Path, Path, dict[str, tuple[object, ...]]]:
    """The tar of a base, that of what a command did, and the tree that it saw."""
    changes, seen = changed(tmp_path / "run", base, IMPORTS + ALL, user=os.geteuid() != 0)
    if os.geteuid() != 0:  # a file that was copied up keeps another number of an inode
        seen["./usr/b2"] = (*seen["./usr/b2"][:6], "./usr/b")
    with changes:
        changes.save(tmp_path / "layer.tar")
    merged = merge(base, tmp_path / "merged")
    options = ["--format=pax", "--numeric-owner", "--owner=0", "--group=0"]
    call("tar", "-C", merged, *options, "-cf", tmp_path / "base.tar", ".")
    return tmp_path / "base.tar", tmp_path / "layer.tar", seen


def image(tmp_path: Path, layers: tuple[Path, ...]) -> str:
    umoci = found("umoci")
    call(umoci, "init", "--layout", tmp_path / "oci")
    name = f"{tmp_path}/oci:test"
    call(umoci, "new", "--image", name)
    for layer in layers:
        call(umoci, "raw", "add-layer", "--image", name, layer)
    return name


def test_umoci_makes_the_tree_of_a_saved_layer(
    tmp_path: Path, layers: tuple[Path, Path, dict[str, tuple[object, ...]]]
) -> None:
    *tars, seen = layers
    name = image(tmp_path, tuple(tars))
    rootless = ["--rootless"] if os.geteuid() else []
    call(found("umoci"), "unpack", *rootless, "--image", name, tmp_path / "bundle")
    is_same_tree(tmp_path / "bundle" / "rootfs", seen)


def test_skopeo_copies_a_saved_layer_with_its_digest(
    tmp_path: Path, layers: tuple[Path, Path, dict[str, tuple[object, ...]]]
) -> None:
    *tars, _ = layers
    skopeo = found("skopeo")
    name = image(tmp_path, tuple(tars))
    call(skopeo, "copy", "--insecure-policy", f"oci:{name}", f"docker-archive:{tmp_path}/archive")
    config = json.loads(call(skopeo, "inspect", "--config", f"docker-archive:{tmp_path}/archive"))
    digests = [call("sha256sum", tar).split()[0].decode() for tar in tars]
    assert config["rootfs"]["diff_ids"] == [f"sha256:{digest}" for digest in digests]


def test_tar_unpacks_a_saved_layer(
    tmp_path: Path, layers: tuple[Path, Path, dict[str, tuple[object, ...]]]
) -> None:
    _, layer, seen = layers
    (tmp_path / "out").mkdir()
    options = ["--xattrs", "--numeric-owner", "-p"]
    call("tar", "-C", tmp_path / "out", *options, "-xf", layer)
    out, expected = without_owners(walk(tmp_path / "out")), without_owners(seen)
    whiteouts = {name for name in out if "/.wh." in name}
    assert whiteouts == {"./usr/lib/.wh.y", "./usr/.wh.share", "./gone/.wh.c", "./gone/.wh.d"}
    for name in whiteouts | {"."}:
        del out[name]
    wrong = {name: (values, expected.get(name)) for name, values in out.items()}
    assert {name: pair for name, pair in wrong.items() if pair[0] != pair[1]} == {}
    assert "./usr/new" in out
