# SPDX-License-Identifier: Apache-2.0
"""The tars of layers, which go to workers of sandboxlib, and the actions that name them."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lib.executions import Executions, executions
from lib.image_maker import END, docker, file
from lib.machine import require
from lib.roots import find_busybox

from sandboxlib import (
    Command,
    Image,
    Layer,
    Limits,
    Overlay,
    Remote,
    Sandbox,
    Server,
    SpecError,
    Store,
    Tree,
    UnsupportedError,
)
from sandboxlib._remote.described import decode
from sandboxlib._remote.layers import Tar, tars_of

OURS = {"sandboxlib": "1"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def fake() -> Iterator[Executions]:
    with executions() as server:
        yield server


def check(tars: list[Tar]) -> list[str]:
    """The digests of tars, each of which has the content of its own."""
    for tar in tars:
        content = Path(tar.path).read_bytes()
        assert tar.key == f"{hashlib.sha256(content).hexdigest()}/{len(content)}"
        assert tar.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    return [tar.digest for tar in tars]


def directory(path: Path) -> Path:
    busybox = find_busybox()
    require(busybox, "there is no static busybox")
    (path / "bin").mkdir(parents=True)
    (path / "bin/busybox").write_bytes(Path(busybox or "").read_bytes())
    (path / "bin/busybox").chmod(0o755)
    (path / "bin/sh").symlink_to("busybox")
    (path / "gone").write_text("x")
    return path


def test_the_tar_of_a_directory_is_made_again(store: Store, tmp_path: Path) -> None:
    layer = Layer.from_directory(directory(tmp_path / "root"), store)
    assert check(tars_of([layer], store)) == [layer.digest]


def test_the_tar_of_changes_has_what_they_deleted(store: Store, tmp_path: Path) -> None:
    base = Layer.from_directory(directory(tmp_path / "root"), store)
    with Sandbox(Overlay(base), store=store) as box:
        ran = box.run(["sh", "-c", "busybox rm /gone; echo new > /new"], changes="keep", check=True)
        with ran.changes as changes:
            top = changes.commit(store)
    assert check(tars_of([base, top], store)) == [base.digest, top.digest]


def foreign(path: Path) -> Path:
    """A tar that this package would write in another way."""
    with tarfile.open(path, "w:gz", format=tarfile.GNU_FORMAT) as tar:
        for name in ("z", "a"):
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.uname = 2, int(time.time()), "somebody"
            tar.addfile(member, io.BytesIO(b"xy"))
    return path


def test_a_foreign_tar_is_read_out_of_its_file(store: Store, tmp_path: Path) -> None:
    path = foreign(tmp_path / "layer.tar.gz")
    layer = Layer.from_tar(path, store)
    (tar,) = tars_of([layer], store)
    assert Path(tar.path).read_bytes() == gzip.decompress(path.read_bytes())
    assert check([tar]) == [layer.digest]
    path.unlink()  # the store has it now
    assert check(tars_of([layer], store)) == [layer.digest]


def test_a_foreign_tar_whose_file_is_another_is_refused(store: Store, tmp_path: Path) -> None:
    path = foreign(tmp_path / "layer.tar.gz")
    layer = Layer.from_tar(path, store)
    time.sleep(1.1)  # times in a tar have seconds
    foreign(path)
    with pytest.raises(ValueError, match=layer.digest):
        tars_of([layer], store)


def test_the_tars_of_an_image_are_read_out_of_it(store: Store, tmp_path: Path) -> None:
    path = docker(tmp_path / "image.tar", file("a", b"1") + END, file("b", b"2") + END)
    digests = check(tars_of([Image(path)], store))
    assert len(digests) == 2


def test_an_action_of_ours_names_what_its_worker_needs(
    fake: Executions, store: Store, tmp_path: Path
) -> None:
    layer = Layer.from_directory(directory(tmp_path / "root"), store)
    tree = Tree({"t": b"tree"})
    box = Sandbox(
        Overlay(layer, tree), store=store, user=1000, deterministic=True, limits=Limits(pids=9)
    )
    command = Command(
        ["cc"],
        "/src",
        stdin=b"given",
        inputs={"/etc/x": b"absolute"},
        outputs=["/out/*.o"],
        limits=Limits(memory="64M"),
    )
    with Server(fake.url) as server:
        Remote(box, server, platform=OURS).run(command)
    action = fake.action()
    contents = dict(fake.blobs)
    told = decode(action.salt, contents.__getitem__, frozenset({"sizes", "limits"}))
    assert told.layers == [layer.digest, tree.digest()]
    size = told.more["sizes"][layer.digest]
    assert f"{layer.digest[7:]}/{size}" in fake.blobs
    assert tree.digest() in fake.blobs
    assert told.more["limits"] == {"memory": 64 << 20, "pids": 9}
    assert told.stdin in fake.blobs
    assert list(fake.command().output_paths) == ["/out/*.o"]
    assert fake.files()["etc/x"] == b"absolute"
    assert [(each.name, each.value) for each in action.platform.properties] == [*OURS.items()]


def test_what_has_no_digest_is_refused(fake: Executions, store: Store) -> None:
    with Server(fake.url) as server:
        with pytest.raises(SpecError, match="hostname"):
            Remote(Sandbox(Overlay(), store=store), server, platform=OURS).run(["cc"])
        names = ["hostname", "umask", "user"]
        Remote(Sandbox(Overlay(), store=store), server, platform=OURS, assume=names).run(["cc"])
        assumed = Remote(
            Sandbox(Overlay("/srv"), store=store), server, platform=OURS, assume=[*names, "layers"]
        )
        with pytest.raises(UnsupportedError, match="from_directory"):
            assumed.run(["cc"])
