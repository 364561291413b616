# SPDX-License-Identifier: Apache-2.0
"""Honest images are unpacked as their makers meant them; hostile images reach nothing.

Every hostile image is refused with an ImageError that says why. Nothing of it is left, and a
directory beside the target is as it was: content, modes, owners, times, links.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.hostile_archives import CUT, HOSTILE
from lib.image_maker import (
    END,
    Layout,
    aci,
    directory,
    docker,
    file,
    hardlink,
    header,
    pax,
    sha256,
    symlink,
    zstd,
)
from lib.machine import many, needs_root, require
from lib.roots import find_busybox
from lib.waiting import wait_until

import sandboxlib
from sandboxlib import ImageError, UnsupportedError, User, load
from sandboxlib._core import native
from sandboxlib._images import unpack
from sandboxlib.load import appc, oci

IS_ROOT = os.geteuid() == 0


def snapshot(top: Path) -> list[tuple[Any, ...]]:
    found = []
    for path in sorted([top, *top.rglob("*")]):
        at = path.lstat()
        told = path.read_bytes() if stat.S_ISREG(at.st_mode) else b""
        ids = at.st_uid, at.st_gid, at.st_nlink
        found.append((str(path), at.st_mode, *ids, at.st_mtime_ns, at.st_ctime_ns, told))
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A TMPDIR of the test's own, with a victim in it. Both are afterwards as they were."""
    require(not _why_not(), f"an image cannot be unpacked here: {_why_not()}")
    top = tmp_path / "tmp"
    victim = top / "victim"
    victim.mkdir(parents=True)
    (victim / "file").write_text("secret")
    (victim / "file").chmod(0o640)
    monkeypatch.setattr(tempfile, "tempdir", str(top))
    before = snapshot(victim)
    native.init_descriptor()  # one that stays
    descriptors = os.listdir("/proc/self/fd")
    yield top
    assert snapshot(victim) == before
    assert os.listdir(top) == ["victim"]
    assert os.listdir("/proc/self/fd") == descriptors


def _why_not() -> str:
    try:
        unpack.executor()
    except UnsupportedError as error:
        return str(error)
    return ""


# ---- hostile archives ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["aci", "oci"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_reaches_nothing(
    place: Path, tmp_path: Path, way: str, name: str, kind: str
) -> None:
    make, message = HOSTILE[name]
    prefix = "rootfs/" if kind == "aci" else ""
    bad = make(prefix, str(place / "victim"))
    end = b"" if name in CUT else END
    if kind == "aci":
        image = aci(tmp_path / "x.aci", file("rootfs/good", b"x" * 1000), bad, end=end)
    else:
        image = Layout(file("good") + END, bad + end).directory(tmp_path / "layout")
    with pytest.raises(ImageError, match=message), load.open_image(image):
        pytest.fail("it was unpacked")


BAD_ACI: dict[str, tuple[Callable[[Path, str], Path], str]] = {
    "a link for a rootfs": (
        lambda path, v: _raw(path, file("manifest", b"{}"), symlink("rootfs", "victim")),
        "is the root, and no directory",
    ),
    "a file for a rootfs": (
        lambda path, v: _raw(path, file("manifest", b"{}"), file("rootfs")),
        "is the root, and no directory",
    ),
    "a FIFO for a rootfs": (
        lambda path, v: _raw(path, file("manifest", b"{}"), header("rootfs", b"6")),
        "is the root, and no directory",
    ),
    "no rootfs": (lambda path, v: _raw(path, file("manifest", b"{}")), "it has no rootfs"),
    "nothing": (lambda path, v: _raw(path), "it has no rootfs"),
    "no byte": (lambda path, v: _raw(path, end=b""), "it has no rootfs|mark of its end"),
    "no end": (
        lambda path, v: aci(path, file("rootfs/x"), end=b""),
        "the mark of its end is missing",
    ),
    "no manifest": (lambda path, v: _raw(path, directory("rootfs")), "no manifest"),
    "a FIFO for a manifest": (
        lambda path, v: aci(path, manifest=header("manifest", b"6")),
        "manif",
    ),
    "a link for a manifest": (
        lambda path, v: aci(path, manifest=symlink("manifest", "../victim/file")),
        "manifest is no regular file",
    ),
    "a hard link for a manifest": (
        lambda path, v: aci(path, manifest=hardlink("manifest", "rootfs/x")),
        "manifest is no regular file",
    ),
    "a directory for a manifest": (
        lambda path, v: aci(path, manifest=directory("manifest")),
        "manifest is no regular file",
    ),
    "two manifests": (lambda path, v: aci(path, file("manifest", b"{}")), "two manifests"),
    "a manifest of 5 MB": (
        lambda path, v: aci(path, manifest=file("manifest", b" " * 5_000_000)),
        "too large",
    ),
    "a manifest that is none": (
        lambda path, v: aci(path, manifest=file("manifest", b"{")),
        "is no JSON",
    ),
    "a manifest not in UTF-8": (
        lambda path, v: aci(path, manifest=file("manifest", b'{"a": "\xff"}')),
        "is no JSON",
    ),
    "a manifest of brackets": (
        lambda path, v: aci(path, manifest=file("manifest", b"[" * 1_000_000)),
        "is no JSON",
    ),
    "a list for a manifest": (lambda path, v: aci(path, manifest=[1]), "a list, not a dict"),
    "a key that is there twice": (
        lambda path, v: aci(path, manifest=file("manifest", b'{"name": "a", "name": "b"}')),
        "'name' is there twice",
    ),
    "another file beside": (lambda path, v: aci(path, file("other")), "neither manifest nor in"),
    "a hard link to the manifest": (
        lambda path, v: aci(path, hardlink("rootfs/x", "manifest")),
        "leads out of 'rootfs'",
    ),
    "a hard link to the rootfs": (
        lambda path, v: aci(path, hardlink("rootfs/x", "rootfs")),
        "leads to the root",
    ),
    "dependencies": (
        lambda path, v: aci(path, manifest={"dependencies": [{"imageName": "x"}]}),
        "dependencies",
    ),
    "no command": (lambda path, v: aci(path, manifest={"app": {"exec": "sh"}}), "not a list"),
    "a number for a word": (
        lambda path, v: aci(path, manifest={"app": {"exec": [1]}}),
        "not a str",
    ),
    "a NUL in a word": (lambda path, v: aci(path, manifest={"app": {"exec": ["a\0"]}}), "NUL"),
    "a lone surrogate": (
        lambda path, v: aci(path, manifest={"app": {"exec": ["\ud800"]}}),
        "cannot be encoded",
    ),
    "a variable without a name": (
        lambda path, v: aci(path, manifest={"app": {"environment": [{"name": "", "value": ""}]}}),
        "not a name",
    ),
    "a user that is a path": (
        lambda path, v: aci(path, manifest={"app": {"user": f"{v}/file"}}),
        "no names or numbers",
    ),
}


def _raw(path: Path, *members: bytes, end: bytes = END) -> Path:
    path.write_bytes(b"".join(members) + end)
    return path


@pytest.mark.parametrize("name", BAD_ACI)
def test_an_aci_that_makes_no_sense_is_refused(place: Path, tmp_path: Path, name: str) -> None:
    make, message = BAD_ACI[name]
    image = make(tmp_path / "x.aci", str(place / "victim"))
    with pytest.raises(ImageError, match=message), load.open_image(image):
        pytest.fail("it was unpacked")


def test_an_aci_has_no_images_to_choose_among(place: Path, tmp_path: Path) -> None:
    image = aci(tmp_path / "x.aci")
    with pytest.raises(ImageError, match="holds one image, and none of the name 'latest'"):
        load.open_image(image, "latest").__enter__()


GOOD = file("good", b"good") + END
OTHER = file("other", b"other") + END


def _with(change: Callable[[Layout], object], *layers: bytes, **words: Any) -> Layout:
    layout = Layout(*layers or (GOOD, OTHER), **words)
    change(layout)
    return layout


def _set(name: str, value: Any) -> Callable[[Layout], object]:
    return lambda layout: setattr(layout, name, value)


def _descriptor(**words: Any) -> Callable[[Layout], object]:
    return lambda layout: layout.descriptors[0].update(words)


BAD_LAYOUT: dict[str, tuple[Callable[[], Layout], str]] = {
    "another digest": (
        lambda: _with(lambda x: x.files.update({f"blobs/sha256/{sha256(GOOD)[7:]}": _same_size()})),
        "the blob is not sha256:|the layer is not sha256:",
    ),
    "another size": (lambda: _with(_descriptor(size=5)), "bytes, and not 5"),
    "a size that is none": (lambda: _with(_descriptor(size="5")), "not a int"),
    "a size that is true": (lambda: _with(_descriptor(size=True)), "not a int"),
    "a digest that climbs": (
        lambda: _with(_descriptor(digest="sha256:../../../victim/file")),
        "not a sha256 digest",
    ),
    "a digest with a newline": (
        lambda: _with(_descriptor(digest="sha256:" + "0" * 64 + "\n")),
        "not a sha256 digest",
    ),
    "another algorithm": (lambda: _with(_descriptor(digest="sha512:" + "0" * 128)), "not a sha256"),
    "a blob that is missing": (
        lambda: _with(_descriptor(digest="sha256:" + "0" * 64)),
        "No such file|no such file",
    ),
    "a layer of another kind": (
        lambda: _with(_descriptor(mediaType="application/x-evil")),
        "unknown mediaType",
    ),
    "a layer of no kind": (lambda: _with(_descriptor(mediaType=None)), "not a str"),
    "layers in another order": (
        lambda: _with(lambda x: x.descriptors.reverse()),
        "the layer is not sha256:",
    ),
    "another diff_id": (
        lambda: _with(
            lambda x: x.config["rootfs"]["diff_ids"].__setitem__(0, "sha256:" + "0" * 64)
        ),
        "the layer is not sha256:",
    ),
    "a diff_id too few": (
        lambda: _with(lambda x: x.config["rootfs"]["diff_ids"].pop()),
        "2 layers, and diff_ids of 1",
    ),
    "a diff_id that is none": (
        lambda: _with(lambda x: x.config["rootfs"]["diff_ids"].__setitem__(0, "x")),
        "not a sha256 digest",
    ),
    "no rootfs": (lambda: _with(lambda x: x.config.pop("rootfs")), "rootfs is a NoneType"),
    "a config that is none": (lambda: _with(_set("config", b"[]")), "a list, not a dict"),
    "a config with a key twice": (lambda: _with(_set("config", b'{"a":1,"a":2}')), "twice"),
    "an index that is none": (lambda: _with(_set("index", b"x")), "is no JSON"),
    "an index of nothing": (lambda: _with(_set("index", {"manifests": []})), "there is nothing"),
    "an index of 5 MB": (lambda: _with(_set("index", b" " * 5_000_000)), "is longer than"),
    "an index with a key twice": (
        lambda: _with(_set("index", b'{"manifests": [], "manifests": []}')),
        "twice",
    ),
    "another version": (lambda: _with(_set("version", {"imageLayoutVersion": "2"})), "version"),
    "a manifest that is none": (lambda: _with(_set("manifest", b"7")), "an? int, not a dict"),
    "layers that are none": (
        lambda: _with(_set("manifest", {"config": {}, "layers": 7})),
        "not a list",
    ),
    "a variable without a name": (lambda: Layout(GOOD, Env=["=x"]), "not a name"),
    "a variable without a value": (lambda: Layout(GOOD, Env=["x"]), "not a name"),
    "an Env that is none": (lambda: Layout(GOOD, Env="x=y"), "not a list"),
    "a user that is nobody": (lambda: Layout(GOOD, User="nonesuch"), "not in its /etc/passwd"),
    "a group that is none": (lambda: Layout(GOOD, User="0:nonesuch"), "not in its /etc/group"),
    "a user of 2^32": (lambda: Layout(GOOD, User="4294967295"), "has the id '4294967295'"),
    "a user of many digits": (lambda: Layout(GOOD, User="9" * 5000), "has the id '999"),
    "a whiteout of nothing": (lambda: Layout(GOOD, file(".wh.") + END), "a whiteout of no name"),
    "a whiteout of two dots": (lambda: Layout(GOOD, file("a/.wh...") + END), "whiteout of no name"),
    "a whiteout of one dot": (lambda: Layout(GOOD, file("a/.wh..") + END), "whiteout of no name"),
    "a file in a whiteout": (lambda: Layout(GOOD, file(".wh.a/b") + END), "whiteout of no name"),
    "a passwd that is a FIFO's link": (
        lambda: Layout(symlink("etc/passwd", "/dev/stdin") + END, User="x"),
        "not in its /etc/passwd",
    ),
    "a passwd that is a directory": (
        lambda: Layout(directory("etc/passwd") + END, User="x"),
        "no regular file",
    ),
    "a passwd of 5 MB": (
        lambda: Layout(file("etc/passwd", b"\n" * 5_000_000) + END, User="x"),
        "is longer than",
    ),
    "a passwd with a bad number": (
        lambda: Layout(file("etc/passwd", b"x:*:-1:0:::\n") + END, User="x"),
        "has the id '-1'",
    ),
}


def _same_size() -> bytes:
    return file("good", b"evil") + END


@pytest.mark.parametrize("name", BAD_LAYOUT)
@pytest.mark.parametrize("form", ["directory", "tar"])
def test_a_layout_that_makes_no_sense_is_refused(
    place: Path, tmp_path: Path, name: str, form: str
) -> None:
    make, message = BAD_LAYOUT[name]
    image = getattr(make(), form)(tmp_path / "x.oci")
    with pytest.raises(ImageError, match=message), load.open_image(image):
        pytest.fail("it was unpacked")


@pytest.mark.parametrize("form", ["directory", "tar"])
@pytest.mark.parametrize("what", ["config", "manifest"])
def test_a_document_with_another_digest_is_refused(
    place: Path, tmp_path: Path, form: str, what: str
) -> None:
    layout = Layout(GOOD, Cmd=["good"])
    files = layout.whole()
    document = json.dumps(getattr(layout, what)).encode()
    name = f"blobs/sha256/{sha256(document)[7:]}"
    assert files[name] == document
    layout.files = {name: document.replace(b" ", b"\n", 1)}  # it means the same
    image = getattr(layout, form)(tmp_path / "x")
    with pytest.raises(ImageError, match=f"it is not sha256:{name[13:]}"), load.open_image(image):
        pytest.fail("it was unpacked")


@pytest.mark.parametrize("left", [700, 1100, 4000])
def test_a_tar_of_an_image_that_is_cut_is_refused(place: Path, tmp_path: Path, left: int) -> None:
    for image in (docker(tmp_path / "d.tar", GOOD), Layout(GOOD).tar(tmp_path / "o.tar")):
        image.write_bytes(image.read_bytes()[:left])
        with pytest.raises(ImageError, match=r"no uncompressed tar: it is trunc|no such file"):
            load.open_image(image).__enter__()


@pytest.mark.parametrize("file_of_it", ["index.json", "blob"])
@pytest.mark.parametrize("how", ["link", "absolute link", "FIFO", "directory"])
def test_a_file_of_a_layout_that_is_none_is_refused(
    place: Path, tmp_path: Path, how: str, file_of_it: str
) -> None:
    layout = Layout(GOOD).directory(tmp_path / "layout")
    name = "index.json" if file_of_it == "index.json" else f"blobs/sha256/{sha256(GOOD)[7:]}"
    path = layout / name
    secret = place / "victim" / "file"
    path.unlink()
    if how == "FIFO":
        os.mkfifo(path)
    elif how == "directory":
        path.mkdir()
    else:
        path.symlink_to(secret if how == "absolute link" else os.path.relpath(secret, path.parent))
    with pytest.raises(ImageError, match=r"No such file|no regular file"), load.open_image(layout):
        pytest.fail("it was unpacked")


@pytest.mark.parametrize("entry", ["l/.wh.file", "l/.wh..wh..opq", "l/.wh.x/../../y"])
def test_a_whiteout_through_a_link_reaches_nothing(
    place: Path, tmp_path: Path, way: str, entry: str
) -> None:
    victim = str(place / "victim")
    below = pax(linkpath=victim) + symlink("l", "x") + file("file", b"kept") + END
    layout = Layout(below, pax(path=entry) + file("x") + END).directory(tmp_path / "layout")
    try:
        with oci.unpack_oci_image(layout) as (root, _):
            assert Path(root, "file").read_bytes() == b"kept"
    except ImageError:
        pass  # the fixture looks at the victim in either case


def test_what_links_inside_lead_to_stays_inside(place: Path, tmp_path: Path, way: str) -> None:
    victim = str(place / "victim")
    members = [
        symlink("rootfs/up", "/"),
        file("rootfs/up/new", b"1"),
        directory("rootfs" + victim),
        pax(linkpath=victim) + symlink("rootfs/l", "x"),
        file("rootfs/l/file", b"2"),
        hardlink("rootfs/h", "rootfs/l"),
        file("rootfs/l", b"3"),
    ]
    with appc.unpack_app_container_image(aci(tmp_path / "x.aci", *members)) as (root, _):
        assert Path(root, "new").read_bytes() == b"1"
        assert Path(root + victim, "file").read_bytes() == b"2"
        assert os.readlink(f"{root}/h") == victim
        assert Path(root, "l").read_bytes() == b"3"


# ---- too much --------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, bz2.compress])
def test_a_bomb_is_refused_before_it_goes_off(
    place: Path, tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    image = tmp_path / "x.aci"
    content = (
        file("manifest", b"{}") + directory("rootfs") + file("rootfs/x", bytes(50 << 20)) + END
    )
    image.write_bytes(compress(content))
    with (
        pytest.raises(ImageError, match="larger than the rest of max_size"),
        appc.unpack_app_container_image(image, max_size=1 << 20),
    ):
        pytest.fail("it was unpacked")


def test_members_without_end_are_refused(place: Path, tmp_path: Path) -> None:
    image = aci(tmp_path / "x.aci", *(file(f"rootfs/{i}") for i in range(200)))
    with (
        pytest.raises(ImageError, match="more than max_members"),
        appc.unpack_app_container_image(image, max_members=100),
    ):
        pytest.fail("it was unpacked")


def test_directories_that_no_member_names_count_as_well(place: Path, tmp_path: Path) -> None:
    image = aci(tmp_path / "x.aci", pax(path="rootfs/" + "d/" * 200) + file("x"))
    with (
        pytest.raises(ImageError, match="more than max_members"),
        appc.unpack_app_container_image(image, max_members=100),
    ):
        pytest.fail("it was unpacked")


def test_the_limits_are_those_of_all_layers(place: Path, tmp_path: Path) -> None:
    layers = [file(f"{i}", bytes(100_000)) + END for i in range(5)]
    layout = Layout(*layers).directory(tmp_path / "layout")
    for words, message in (
        ({"max_size": 450_000}, "layer 4, .*max_size"),
        ({"max_members": 3}, "layer 3, .*max_members"),
    ):
        with pytest.raises(ImageError, match=message), oci.unpack_oci_image(layout, **words):
            pytest.fail("it was unpacked")
    with oci.unpack_oci_image(layout, max_size=500_000, max_members=5) as (root, _):
        assert sorted(os.listdir(root)) == list("01234")


@pytest.mark.parametrize("value", [0, -1, True, "5", 1.5])
def test_a_limit_that_is_none_is_refused(place: Path, tmp_path: Path, value: Any) -> None:
    image = aci(tmp_path / "x.aci")
    with pytest.raises(sandboxlib.SpecError), appc.unpack_app_container_image(image, value):
        pytest.fail("it was unpacked")


def test_padding_without_end_is_refused(place: Path, tmp_path: Path) -> None:
    image = aci(tmp_path / "x.aci", end=bytes(40 << 20))
    with pytest.raises(ImageError, match="follow its end"), load.open_image(image):
        pytest.fail("it was unpacked")


@pytest.mark.parametrize("cut", [10, 100, 1000, -8, -1])
def test_a_compressed_image_that_is_cut_is_refused(place: Path, tmp_path: Path, cut: int) -> None:
    image = aci(tmp_path / "x.aci", file("rootfs/x", os.urandom(5000)))
    image.write_bytes(image.read_bytes()[:cut])
    with pytest.raises(ImageError, match=r"truncated|damaged"), load.open_image(image):
        pytest.fail("it was unpacked")


def test_an_image_in_every_state_of_damage(place: Path, tmp_path: Path) -> None:
    """One byte of each header field is another; it is refused, or means something harmless."""
    good = file("manifest", b"{}") + directory("rootfs") + file("rootfs/x", b"y" * 600) + END
    refused = 0
    for at in range(1024, 1024 + 1536, 61):
        data = bytearray(good)
        data[at] ^= 0x55
        (tmp_path / "x.aci").write_bytes(data)
        try:
            with load.open_image(tmp_path / "x.aci"):
                pass
        except ImageError:
            refused += 1
    assert refused >= 10


def test_a_path_that_is_no_file(place: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), load.open_image(tmp_path / "none.aci"):
        pytest.fail("it was unpacked")
    os.mkfifo(tmp_path / "x.aci")
    os.mkfifo(tmp_path / "x.tar")
    for name in ("x.aci", "x.tar"):
        with pytest.raises(ImageError, match="no regular file"), load.open_image(tmp_path / name):
            pytest.fail("it was unpacked")
    with pytest.raises(ImageError, match=r"oci-layout|manifest"), load.open_image(tmp_path):
        pytest.fail("it was unpacked")


def test_an_exception_in_the_body_takes_the_image_away(place: Path, tmp_path: Path) -> None:
    image = aci(tmp_path / "x.aci", directory("rootfs/d", 0o000), file("rootfs/d/x", mode=0))

    def work() -> None:
        with load.open_image(image) as (root, _):
            assert os.path.isdir(root)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()


def test_what_a_command_left_in_it_goes_as_well(place: Path, tmp_path: Path, way: str) -> None:
    image = aci(tmp_path / "x.aci", directory("rootfs/bin"), directory("rootfs/d", 0o777))
    with load.open_image(image) as (root, _):
        deep = "/".join(["d" * 200] * 15)
        os.makedirs(f"{root}/d/{deep}", mode=0o700)
        os.symlink(place / "victim", f"{root}/d/link")
        os.chmod(f"{root}/d/{'d' * 200}", 0o000)


# ---- honest images ---------------------------------------------------------------------------


def tree(root: str) -> dict[str, bytes | str | None]:
    """The files of a root by content, its links by target, its directories as None."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(Path(root).rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = None if path.is_dir() else path.read_bytes()
    return found


def test_layers_lie_one_over_the_other(place: Path, tmp_path: Path, way: str) -> None:
    first = b"".join(
        [
            directory("usr"),
            file("usr/lib/old", b"old"),
            symlink("lib", "usr/lib"),
            file("gone", b"x"),
            file("dir/gone", b"x"),
            file("dir/kept", b"x"),
            file("opaque/gone", b"x"),
            file("opaque/sub/gone", b"x"),
            file("file", b"1"),
            file("becomes-dir", b"x"),
            file("becomes-file/x", b"x"),
            file("one", b"both"),
            hardlink("two", "one"),
        ]
    )
    second = b"".join(
        [
            file("lib/new", b"new"),  # through the link of the layer below
            file(".wh.gone"),
            file("dir/.wh.gone"),
            file("opaque/sub/new", b"new"),
            file("opaque/.wh..wh..opq"),  # after what it must not take
            file("file", b"2"),
            file("becomes-dir/x", b"2"),
            file("becomes-file", b"2"),
            file(".wh.never-there"),
            file(".wh..wh.plnk"),
            file("two", b"alone"),
        ]
    ).replace(file("becomes-dir/x", b"2"), directory("becomes-dir") + file("becomes-dir/x", b"2"))
    for image in (
        Layout(first + END, second + END).directory(tmp_path / "layout"),
        Layout(first + END, second + END).tar(tmp_path / "layout.tar"),
        docker(tmp_path / "docker.tar", first + END, second + END),
    ):
        with load.open_image(image) as (root, _):
            assert tree(root) == {
                "becomes-dir": None,
                "becomes-dir/x": b"2",
                "becomes-file": b"2",
                "dir": None,
                "dir/kept": b"x",
                "file": b"2",
                "lib": "usr/lib",
                "one": b"both",
                "opaque": None,
                "opaque/sub": None,
                "opaque/sub/new": b"new",
                "two": b"alone",
                "usr": None,
                "usr/lib": None,
                "usr/lib/new": b"new",
                "usr/lib/old": b"old",
            }


def test_an_aci_has_no_whiteouts(place: Path, tmp_path: Path) -> None:
    image = aci(tmp_path / "x.aci", file("rootfs/a"), file("rootfs/.wh.a"))
    with load.open_image(image) as (root, _):
        assert sorted(os.listdir(root)) == [".wh.a", "a"]


def test_modes_times_owners_and_names(place: Path, tmp_path: Path, way: str) -> None:
    name = b"rootfs/caf\xe9 \xff\n"
    members = [
        directory("rootfs/d", 0o1751, uid=3, gid=4, mtime=5),
        file("rootfs/d/f", b"x", mode=0o6754, uid=1, gid=2, mtime=77),
        pax(mtime="123.25", uid="70000", path=name) + file("x", mode=0o400),
        pax(path=f"rootfs/{'n' * 200}") + file("x", b"long"),
        symlink("rootfs/d/l", "f"),
        hardlink("rootfs/d/h", "rootfs/d/f"),
    ]
    with load.open_image(aci(tmp_path / "x.aci", *members)) as (root, _):
        d, f = os.stat(f"{root}/d"), os.stat(f"{root}/d/f")
        bytes_name = os.stat(os.path.join(os.fsencode(root), name[7:]))
        assert stat.S_IMODE(d.st_mode) == 0o1751
        assert (d.st_mtime, f.st_mtime, bytes_name.st_mtime) == (5, 77, 123.25)
        assert stat.S_IMODE(bytes_name.st_mode) == 0o400
        assert Path(root, "n" * 200).read_bytes() == b"long"
        assert os.stat(f"{root}/d/h").st_ino == f.st_ino
        assert f.st_nlink == 2
        owners = [(d.st_uid, d.st_gid), (f.st_uid, f.st_gid)]
        if way == "root":  # one owner, whom nobody shall become
            assert owners == [(os.geteuid(), os.getegid())] * 2
            assert stat.S_IMODE(f.st_mode) == 0o754
        else:
            assert stat.S_IMODE(f.st_mode) == 0o6754
        if way == "caller" or (IS_ROOT and way == "ranges"):
            assert owners == [(3, 4), (1, 2)]
            assert bytes_name.st_uid == 70000
        elif way == "ranges":
            assert (os.geteuid(), os.getegid()) not in owners


@pytest.mark.parametrize("kind", ["gnu", "posix"])
def test_sparse_files_of_gnu_tar(place: Path, tmp_path: Path, kind: str) -> None:
    require(shutil.which("tar"), "there is no tar")
    source = tmp_path / "s" / "rootfs"
    source.mkdir(parents=True)
    with open(source / "sparse", "wb") as out:
        for at in range(60):
            out.seek(at * 100_000)
            out.write(b"data")
        out.truncate(7_000_000)
    (tmp_path / "s" / "manifest").write_text("{}")
    image = tmp_path / "x.aci"
    argv = ["tar", f"--format={kind}", "-S", "-C", str(tmp_path / "s"), "-cf", str(image)]
    subprocess.run([*argv, "manifest", "rootfs"], check=True)
    assert image.stat().st_size < 3_000_000
    with load.open_image(image) as (root, _):
        assert Path(root, "sparse").read_bytes() == (source / "sparse").read_bytes()


@pytest.mark.parametrize(
    "compress",
    [bytes, gzip.compress, bz2.compress, lzma.compress, zstd, lambda x: zstd(x) + zstd(b"")],
    ids=["none", "gzip", "bzip2", "xz", "zstd", "zstd frames"],
)
@pytest.mark.parametrize("form", ["directory", "tar", "docker", "aci"])
@pytest.mark.sample(8)
def test_compressed_layers(
    place: Path, tmp_path: Path, compress: Callable[[bytes], bytes], form: str
) -> None:
    data = os.urandom(many(300_000, 3_000_000))
    layer = file("x", data) + END
    blobs = [compress(layer)]
    if form == "docker":
        image = docker(tmp_path / "x.tar", layer, blobs=blobs)
    elif form == "aci":
        whole = file("manifest", b"{}") + directory("rootfs") + file("rootfs/x", data) + END
        image = tmp_path / "x.aci"
        image.write_bytes(compress(whole))
    else:
        image = getattr(Layout(layer, blobs=blobs), form)(tmp_path / "x")
    with load.open_image(image) as (root, _):
        assert Path(root, "x").read_bytes() == data


def test_zstd_takes_the_extra(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = file("x") + END
    layout = Layout(layer, blobs=[zstd(layer)]).directory(tmp_path / "layout")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImageError, match=r"install sandboxlib\[zstd\]"), load.open_image(layout):
        pytest.fail("it was unpacked")


def test_one_of_several_images(place: Path, tmp_path: Path) -> None:
    layouts = {name: Layout(file(name) + END) for name in ("one", "two")}
    files: dict[str, bytes] = {}
    descriptors = []
    for name, layout in layouts.items():
        files |= layout.whole()
        described = layout.index["manifests"][0]
        descriptors.append(described | {"annotations": {"org.opencontainers.image.ref.name": name}})
    whole = Layout()
    whole.index, whole.files = {"manifests": descriptors}, {}
    whole.files = {k: v for k, v in files.items() if k.startswith("blobs")}
    image = whole.directory(tmp_path / "layout")
    with oci.unpack_oci_image(image, "two") as (root, _):
        assert os.listdir(root) == ["two"]
    for ref, message in ((None, "no ref is given.*'one.*'two"), ("three", "ref is 'three'")):
        with pytest.raises(ImageError, match=message), oci.unpack_oci_image(image, ref):
            pytest.fail("it was unpacked")


def test_the_image_of_this_machine_is_taken(place: Path, tmp_path: Path) -> None:
    here = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    mine, other = Layout(file("mine") + END), Layout(file("other") + END)
    files = mine.whole() | other.whole()
    descriptors = [
        other.index["manifests"][0] | {"platform": {"os": "linux", "architecture": "s390x"}},
        mine.index["manifests"][0] | {"platform": {"os": "linux", "architecture": here}},
    ]
    inner = json.dumps({"manifests": descriptors}).encode()
    whole = Layout()
    whole.index = {"manifests": [Layout.describe(inner)]}
    whole.files = {k: v for k, v in files.items() if k.startswith("blobs")}
    whole.files[f"blobs/sha256/{sha256(inner)[7:]}"] = inner
    with load.open_image(whole.tar(tmp_path / "x.tar")) as (root, _):
        assert os.listdir(root) == ["mine"]


def test_an_image_that_stays(place: Path, tmp_path: Path) -> None:
    layout = Layout(GOOD).directory(tmp_path / "layout")
    with oci.unpack_oci_image(layout, into=tmp_path / "root") as (root, _):
        assert root == str((tmp_path / "root").resolve())
    assert (tmp_path / "root" / "good").read_bytes() == b"good"
    with pytest.raises(FileExistsError), oci.unpack_oci_image(layout, into=tmp_path / "root"):
        pytest.fail("it was unpacked")
    assert (tmp_path / "root" / "good").read_bytes() == b"good"
    bad = Layout(GOOD, file("../x") + END).directory(tmp_path / "bad")
    with pytest.raises(ImageError), oci.unpack_oci_image(bad, into=tmp_path / "other"):
        pytest.fail("it was unpacked")
    assert not (tmp_path / "other").exists()


def test_what_is_an_image(place: Path, tmp_path: Path) -> None:
    layout = Layout(GOOD)
    assert load.is_image(layout.directory(tmp_path / "layout"))
    assert load.is_image(layout.tar(tmp_path / "layout.tar"))
    assert load.is_image(docker(tmp_path / "docker.tar", GOOD))
    assert load.appc.is_app_container_image("/none/such.aci")
    assert not load.is_image(tmp_path)
    (tmp_path / "text").write_text("no image")
    (tmp_path / "other.tar").write_bytes(file("x") + END)
    os.mkfifo(tmp_path / "fifo")
    for name in ("text", "other.tar", "fifo", "none"):
        assert not load.is_image(tmp_path / name)


# ---- the command -----------------------------------------------------------------------------

PASSWD = b"root:x:0:0::/:/bin/sh\nwww:x:33:44::/:\nbroken\n\xff\xfe:x:9:9::/:\n"
GROUP = b"root:x:0:\ntape:x:26:www\n"


@pytest.mark.parametrize(
    ("account", "ids"),
    [
        ("", None),
        ("root", None),
        ("0", None),
        ("0:0", None),
        ("www", (33, 44)),
        ("33", (33, 44)),
        ("34", (34, 0)),
        ("www:tape", (33, 26)),
        ("5:7", (5, 7)),
        ("5:tape", (5, 26)),
        (":tape", (0, 26)),
        ("4294967294:4294967294", (4294967294, 4294967294)),
    ],
)
def test_accounts_are_those_of_the_image(
    place: Path, tmp_path: Path, account: str, ids: tuple[int, int] | None
) -> None:
    layer = file("etc/passwd", PASSWD) + file("etc/group", GROUP) + END
    with load.open_image(Layout(layer, User=account).directory(tmp_path / "x")) as (_, process):
        found = process.user
        assert ((isinstance(found, User) and (found.uid, found.gid)) or None) == ids


def test_accounts_of_the_host_are_none_of_the_images(place: Path, tmp_path: Path) -> None:
    # A link leads to the file itself, in the root of the image, and not to the host's.
    for link in ("/etc/passwd", "/../../../../../../../etc/host-passwd"):
        image = Layout(symlink("etc/passwd", link) + END, User="nobody").directory(
            tmp_path / link[-9:]
        )
        with pytest.raises(ImageError), load.open_image(image):
            pytest.fail("it was unpacked")
    layer = symlink("etc/passwd", "../etc/inside") + file("etc/inside", b"me:x:8:9:::\n") + END
    with load.open_image(Layout(layer, User="me").directory(tmp_path / "y")) as (_, process):
        assert isinstance(process.user, User)
        assert (process.user.uid, process.user.gid) == (8, 9)


def test_a_link_is_followed_while_others_rename(tmp_path: Path) -> None:
    # Anywhere on the machine: the kernel then has ".." tried again (openat2(2), EAGAIN).
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "link").symlink_to("../../file")
    (tmp_path / "file").touch()
    rename = "import os\nwhile True: os.rename('file', 'other'); os.rename('other', 'file')"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    root = os.open(tmp_path, os.O_PATH)
    with subprocess.Popen([sys.executable, "-c", rename], cwd=elsewhere) as other:
        try:
            assert wait_until(lambda: not (elsewhere / "file").exists())
            for _ in range(20_000):
                os.close(native.open_in_root(root, "a/b/link", os.O_PATH))
            assert other.poll() is None
        finally:
            other.kill()
    os.close(root)


def _busybox(prefix: str = "") -> bytes:
    path = find_busybox()
    require(path, "there is no static busybox (apt: busybox-static)")
    assert path is not None
    return b"".join(
        [
            file(f"{prefix}bin/busybox", Path(path).read_bytes(), mode=0o755),
            symlink(f"{prefix}bin/sh", "busybox"),
            file(f"{prefix}etc/passwd", PASSWD),
            file(f"{prefix}etc/group", GROUP),
            directory(f"{prefix}work", uid=33),
            directory(f"{prefix}proc"),
        ]
    )


def call(place: Path, *words: object, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    argv = [sys.executable, "-m", "sandboxlib", "run", *map(str, words)]
    env = {**os.environ, "TMPDIR": str(place)}
    return subprocess.run(argv, input=given, capture_output=True, check=False, env=env)


SCRIPT = "busybox id -u; busybox id -g; pwd; echo $GREETING $AC_APP_NAME $1"


def _image(kind: str, tmp_path: Path, user: str = "0", group: str = "0", **words: Any) -> Path:
    argv = ["/bin/sh", "-c", SCRIPT, "sh", "word"]
    if kind == "aci":
        setting = {"name": "GREETING", "value": "hello"}
        app = {"exec": argv, "user": user, "group": group, "workingDirectory": "/work"}
        manifest = {"name": "example.com/box", "app": {**app, "environment": [setting], **words}}
        return aci(tmp_path / "box.aci", _busybox("rootfs/"), manifest=manifest)
    said = {"User": f"{user}:{group}", "WorkingDir": "/work", "Env": ["GREETING=hello"]}
    said |= {"Entrypoint": argv[:3], "Cmd": argv[3:], **words}
    layer = _busybox() + END
    if kind == "docker":
        return docker(tmp_path / "box.tar", layer, **said)
    return Layout(layer, **said).directory(tmp_path / "box")


@pytest.mark.parametrize("kind", ["aci", "oci", "docker"])
def test_the_command_of_an_image_runs_as_it_says(place: Path, tmp_path: Path, kind: str) -> None:
    done = call(place, _image(kind, tmp_path))
    name = "example.com/box " if kind == "aci" else ""
    assert done.stderr == b""
    assert done.stdout.decode() == f"0\n0\n/work\nhello {name}word\n"


@pytest.mark.parametrize("kind", ["aci", "oci"])
@pytest.mark.parametrize(
    ("user", "group", "seen"), [("www", "tape", "33\n26\n"), ("5", "7", "5\n7\n")]
)
def test_the_user_of_an_image_is_who_runs_it(
    place: Path, tmp_path: Path, kind: str, user: str, group: str, seen: str
) -> None:
    done = call(place, _image(kind, tmp_path, user, group))
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().startswith(seen)


@needs_root
def test_the_user_of_an_image_owns_what_it_says(place: Path, tmp_path: Path) -> None:
    image = _image("oci", tmp_path, "www", "tape")
    script = "echo x > /work/new && busybox stat -c %u:%g /work /work/new; echo x > /etc/passwd"
    done = call(place, image, "sh", "-c", script)
    assert done.stdout == b"33:0\n33:26\n"
    assert b"ermission denied" in done.stderr


def test_the_command_line_goes_before_the_image(place: Path, tmp_path: Path) -> None:
    image = _image("oci", tmp_path, "www", "tape")
    words = ["--env", "GREETING=bye", "--env", "X=y", "--cwd", "/bin", "--user", "root", image]
    done = call(place, *words, "sh", "-c", f"{SCRIPT}; echo $X; echo $PATH")
    path = sandboxlib.BASE_ENVIRONMENT["PATH"]
    assert done.stdout.decode() == f"0\n0\n/bin\nbye\ny\n{path}\n"
    assert call(place, image, "nonesuch").returncode == 127


def test_what_an_image_does_not_say(place: Path, tmp_path: Path) -> None:
    image = Layout(_busybox() + END).tar(tmp_path / "x.tar")
    done = call(place, "--json", image, given=b"pwd\n")
    assert json.loads(done.stdout)["out"] == "/\n"


def test_a_working_directory_that_leads_out_does_not(place: Path, tmp_path: Path) -> None:
    image = _image("oci", tmp_path, WorkingDir=f"../../../../../..{place}/victim")
    done = call(place, image)
    assert done.returncode == 125
    assert b"working directory" in done.stderr


def test_errors_of_images_on_the_command_line(place: Path, tmp_path: Path) -> None:
    bad = aci(tmp_path / "x.aci", file("rootfs/../x"))
    (tmp_path / "text").write_text("no image")
    for words in ([bad], [tmp_path / "text"], ["--ref", "x", bad], ["--ref", "x", "/"]):
        done = call(place, *words)
        assert done.returncode == 125
        assert done.stderr.startswith(b"python -m sandboxlib run: ")
        assert b"Traceback" not in done.stderr


def test_ids_that_cannot_be_given_are_refused(place: Path, tmp_path: Path) -> None:
    image = _image("oci", tmp_path, "www", "tape")
    for words in (["--no-init"], ["--processes", "undefined"]):
        done = call(place, *words, image)
        assert done.returncode == 125
        assert b"needs processes=" in done.stderr
    assert call(place, "--capabilities", "none", image).stdout.startswith(b"33\n26\n")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_takes_the_image_away(place: Path, tmp_path: Path, signum: signal.Signals) -> None:
    image = _image("oci", tmp_path)
    # Under nohup(1), or in the background of some shells, signals are ignored from the start.
    undo = f"import runpy, signal, sys; signal.signal({int(signum)}, signal.SIG_DFL); "
    undo += f"signal.signal({int(signal.SIGINT)}, signal.default_int_handler); "
    undo += "runpy.run_module('sandboxlib', run_name='__main__', alter_sys=True)"
    argv = [sys.executable, "-c", undo, "run", str(image), "sh", "-c", "echo on; sleep 60"]
    env = {**os.environ, "TMPDIR": str(place)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        process.send_signal(signum)
        assert process.wait(20) == 128 + signum


# ---- images of other programs ----------------------------------------------------------------


def _quietly(*argv: object, **words: Any) -> None:
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True, check=False, **words)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def umoci(tmp_path: Path) -> Path:
    """A layout by umoci: two layers, the second of which takes something away."""
    require(shutil.which("umoci"), "there is no umoci (apt: umoci)")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "sub").mkdir()
    (tmp_path / "one" / "sub" / "gone").write_text("x")
    (tmp_path / "one" / "sub" / "kept").write_text("kept")
    (tmp_path / "bin").mkdir()
    path = find_busybox()
    require(path, "there is no static busybox (apt: busybox-static)")
    assert path is not None
    shutil.copy(path, tmp_path / "bin" / "busybox")
    (tmp_path / "bin" / "sh").symlink_to("busybox")
    layout = tmp_path / "layout"
    image = f"{layout}:box"
    rootless = [] if IS_ROOT else ["--rootless"]
    _quietly("umoci", "init", "--layout", layout)
    _quietly("umoci", "new", "--image", image)
    _quietly("umoci", "insert", *rootless, "--image", image, tmp_path / "one", "/one")
    _quietly("umoci", "insert", *rootless, "--image", image, tmp_path / "bin", "/bin")
    _quietly("umoci", "insert", "--whiteout", "--image", image, "/one/sub/gone")
    words = ["--config.cmd", "sh", "--config.cmd", "-c", "--config.cmd", "pwd; echo $A"]
    words += ["--config.workingdir", "/one", "--config.env", "A=b"]
    _quietly("umoci", "config", "--image", image, *words)
    return layout


def test_an_image_by_umoci(place: Path, umoci: Path) -> None:
    with load.open_image(umoci) as (root, process):
        assert Path(root, "one/sub/kept").read_text() == "kept"
        assert not Path(root, "one/sub/gone").exists()
        assert (process.cwd, process.env["A"]) == ("/one", "b")
    assert call(place, umoci).stdout == b"/one\nb\n"


def test_what_umoci_repacks(place: Path, umoci: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    rootless = [] if IS_ROOT else ["--rootless"]
    _quietly("umoci", "unpack", *rootless, "--image", f"{umoci}:box", bundle)
    shutil.rmtree(bundle / "rootfs" / "one" / "sub")
    (bundle / "rootfs" / "new").write_text("new")
    _quietly("umoci", "repack", "--image", f"{umoci}:box", bundle)
    with load.open_image(umoci) as (root, _):
        assert tree(root).keys() == {"bin", "bin/busybox", "bin/sh", "new", "one"}
    shutil.rmtree(bundle)


def test_images_by_skopeo(place: Path, umoci: Path, tmp_path: Path) -> None:
    require(shutil.which("skopeo"), "there is no skopeo (apt: skopeo)")
    env = {**os.environ, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    for name in ("docker-archive:docker.tar:box:1", "oci-archive:oci.tar:box", "oci:copy:box"):
        argv = ["skopeo", "--insecure-policy", "copy", f"oci:{umoci}:box", name]
        _quietly(*argv, cwd=tmp_path, env=env)
        image = tmp_path / name.split(":")[1]
        with load.open_image(image) as (root, _):
            assert Path(root, "one/sub/kept").read_text() == "kept"
            assert not Path(root, "one/sub/gone").exists()
        assert call(place, image).stdout == b"/one\nb\n"


# ---- from many threads, and after installation -----------------------------------------------


def test_images_are_unpacked_at_the_same_time(place: Path, tmp_path: Path) -> None:
    image = aci(tmp_path / "x.aci", file("rootfs/x", b"x" * 100_000))
    seen = []

    def work() -> None:
        with load.open_image(image) as (root, _):
            seen.append(Path(root, "x").read_bytes())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [b"x" * 100_000] * 4


def test_the_child_can_write_nowhere_else(place: Path, tmp_path: Path, way: str) -> None:
    """Were its code subverted, it would still be in a sandbox: here it is another program."""
    program = tmp_path / "evil.py"
    program.write_text(
        "import json, os\n"
        "open('/dev/target/mine', 'w').close()\n"
        f"tried = ['{place}/victim/new', '{place}/new', '{tmp_path}/new', '/new']\n"
        "done = []\n"
        "for path in tried:\n"
        "    try:\n"
        "        open(path, 'w').close()\n"
        "        done.append(path)\n"
        "    except OSError:\n"
        "        pass\n"
        "print(json.dumps({'error': f'could write {done} of {len(tried)}'}))\n"
    )
    program.chmod(0o644)
    image = aci(tmp_path / "x.aci")
    before = unpack.extract.__file__
    unpack.extract.__file__ = str(program)
    try:
        with pytest.raises(ImageError, match=r"could write \[\] of 4"), load.open_image(image):
            pytest.fail("it was unpacked")
    finally:
        unpack.extract.__file__ = before


def test_unpacking_is_refused_where_it_cannot_be_confined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack.chroot.EXECUTOR, "why_not", lambda: "no")
    monkeypatch.setattr(unpack.user_namespace.EXECUTOR, "why_not", lambda: "forbidden here")
    image = aci(tmp_path / "x.aci")
    with pytest.raises(UnsupportedError, match="forbidden here"), load.open_image(image):
        pytest.fail("it was unpacked")
