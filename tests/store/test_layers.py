# SPDX-License-Identifier: Apache-2.0
"""Layers and images are unpacked once, as overlayfs wants them, and hostile ones reach nothing."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import pickle
import shutil
import stat
import threading
from collections.abc import Callable
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
    symlink,
)
from lib.stacks import View, view_of

from sandboxlib import (
    Image,
    ImageError,
    Layer,
    Overlay,
    SetupError,
    SpecError,
    SpecTypeError,
    Store,
    UnsupportedError,
    load,
)
from sandboxlib._images import known as known_module
from sandboxlib._images import unpack, unpack_image, unpack_layers
from sandboxlib._spec.overlay import Lower, Owners


def tar(path: Path, *members: bytes) -> Path:
    path.write_bytes(b"".join(members) + END)
    return path


def flat(image: Path) -> View:
    """What the same image is if it is unpacked as one tree."""
    found: View = {}
    with load.open_image(image) as (root, _):
        top = os.fsencode(root)
        for at, names, files in os.walk(top):
            for name in names + files:
                path = os.path.join(at, name)
                status = os.lstat(path)
                content = b""
                if stat.S_ISREG(status.st_mode):
                    content = Path(os.fsdecode(path)).read_bytes()
                elif stat.S_ISLNK(status.st_mode):
                    content = os.readlink(path)
                values = (oct(status.st_mode), status.st_uid, status.st_gid, content)
                found[path[len(top) :]] = values
    return found


def lowers_of(*layers: Any, owners: Owners, store: Store) -> list[Lower]:
    return [lower for layer in layers for lower in layer._lowers(owners, store)]


def kinds_left(store: Store) -> list[str]:
    return sorted(entry.kind.split("/")[0] for entry in store._entries())


# ---- layers ----------------------------------------------------------------------------------


def test_a_layer_has_the_digest_of_its_plain_tar(store: Store, tmp_path: Path) -> None:
    plain = tar(tmp_path / "x.tar", file("a", b"x"))
    packed = tmp_path / "x.tar.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    digest = f"sha256:{hashlib.sha256(plain.read_bytes()).hexdigest()}"
    assert Layer.from_tar(plain, store) == Layer.from_tar(packed, store) == Layer(digest, store)
    assert set(kinds_left(store)) == {"layers", "sources"}


def test_a_layer_is_a_value(store: Store, tmp_path: Path) -> None:
    layer = Layer.from_tar(tar(tmp_path / "x.tar", file("a", b"x")), store)
    assert pickle.loads(pickle.dumps(layer)) == layer
    assert Overlay(layer) == Overlay(Layer(layer.digest, store))
    assert layer._key() == layer.digest


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: Layer("sha256:short"), SpecError),
        (lambda: Layer("sha256:" + "x" * 64), SpecError),
        (lambda: Layer("sha256:" + "0" * 64, "/x"), SpecTypeError),  # type: ignore[arg-type]
        (lambda: Layer(5), SpecTypeError),  # type: ignore[arg-type]
        (lambda: Image(""), SpecError),
        (lambda: Image("x", 5), SpecTypeError),  # type: ignore[arg-type]
        (lambda: Image("x", tag="y"), SpecTypeError),  # type: ignore[arg-type]
    ],
)
def test_wrong_values_are_refused(make: Callable[[], object], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        make()


def test_what_a_tar_says_of_a_file_is_kept(store: Store, tmp_path: Path, owners: Owners) -> None:
    records = pax(SCHILY__xattr__user__colour=b"red\0blue")
    layer = Layer.from_tar(
        tar(
            tmp_path / "x.tar",
            directory("d", mode=0o1777, uid=1, gid=2, mtime=5),
            records + file("d/a", b"one", mode=0o4755, uid=3, gid=4, mtime=6),
            hardlink("b", "d/a"),
            symlink("l", "d/a"),
            header("fifo", b"6", mode=0o640),
            file(b"\xff\xfe", b"bytes"),
        ),
        store,
    )
    top = Path(layer._lowers(owners)[0].path)
    at = (top / "d/a").stat()
    assert ((top / "d").stat().st_mtime, at.st_mtime) == (5, 6)
    assert stat.S_IMODE((top / "d").stat().st_mode) == 0o1777
    assert os.path.samefile(top / "d/a", top / "b")
    assert os.readlink(top / "l") == "d/a"
    assert stat.S_ISFIFO((top / "fifo").stat().st_mode)
    assert os.getxattr(top / "d/a", "user.colour") == b"red\0blue"
    assert Path(os.fsdecode(os.fsencode(top) + b"/\xff\xfe")).read_bytes() == b"bytes"
    has_owners = owners.kind != "single"
    assert stat.S_IMODE(at.st_mode) == (0o4755 if has_owners else 0o755)
    if os.geteuid() == 0:
        assert (at.st_uid, at.st_gid) == ((3, 4) if has_owners else (0, 0))
    assert stat.S_IMODE(top.stat().st_mode) == 0o755


def test_attributes_of_overlays_are_no_business_of_a_layer(
    store: Store, tmp_path: Path, owners: Owners
) -> None:
    names = ("user.overlay.redirect", "trusted.overlay.redirect", "trusted.x", "user.overlay.x")
    records = b"".join(
        pax(**{f"SCHILY.xattr.{name}".replace(".", "__"): b"/etc"}) for name in names
    )
    layer = Layer.from_tar(tar(tmp_path / "x.tar", records + directory("d")), store)
    assert os.listxattr(f"{layer._lowers(owners)[0].path}/d") == []


def test_whiteouts_are_those_of_overlayfs(store: Store, tmp_path: Path, owners: Owners) -> None:
    members = [
        *(directory("d"), file("d/.wh.gone"), directory("e"), file("e/.wh..wh..opq")),
        # wherever in its layer it stands
        *(directory("both"), file("both/new"), file(".wh.both"), file(".wh.late"), file("late/x")),
        *(file(".wh.file"), file("file"), file("d/.wh..wh.plnk")),
    ]
    layer = Layer.from_tar(tar(tmp_path / "x.tar", *members), store)
    top = Path(layer._lowers(owners)[0].path)
    gone = (top / "d/gone").lstat()
    assert stat.S_ISCHR(gone.st_mode)
    assert gone.st_rdev == 0
    for name in ("e", "both", "late"):
        assert os.getxattr(top / name, "user.overlay.opaque") == b"y"
        if os.geteuid() == 0:
            assert os.getxattr(top / name, "trusted.overlay.opaque") == b"y"
    assert os.listxattr(top / "d") == []
    assert stat.S_ISREG((top / "file").lstat().st_mode)
    assert sorted(os.listdir(top / "d")) == ["gone"]


def test_a_device_is_left_out_and_hides_what_is_below(
    store: Store, tmp_path: Path, owners: Owners
) -> None:
    below = Layer.from_tar(tar(tmp_path / "a.tar", file("sda", b"x"), file("kept")), store)
    above = Layer.from_tar(
        tar(tmp_path / "b.tar", header("sda", b"4", tail=b""), header("null", b"3")), store
    )
    assert set(view_of(lowers_of(below, above, owners=owners, store=store))) == {b"/kept"}


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_tars_are_layers(
    store: Store, tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "x.tar.z"
    path.write_bytes(pack(file("a", b"x" * 100_000) + END))
    assert Layer.from_tar(path, store).digest.startswith("sha256:")


def test_a_layer_that_comes_from_a_pipe(store: Store, owners: Owners) -> None:
    data = file("a", b"x" * 300_000) + END
    ours, theirs = os.pipe()

    def write() -> None:
        with open(theirs, "wb") as pipe:
            pipe.write(data)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        way = unpack_layers.way_for(owners)
        digest = unpack_layers.from_stream(ours, "a pipe", store, None, way)
    finally:
        writer.join()
        os.close(ours)
    assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert Layer(digest, store)._lowers(owners)


def test_a_layer_that_is_not_there_is_told(store: Store, owners: Owners) -> None:
    with pytest.raises(SetupError, match="it was pruned"):
        Layer("sha256:" + "0" * 64, store)._lowers(owners)


def test_a_layer_that_hides_all_below_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="hides all layers"):
        Layer.from_tar(tar(tmp_path / "x.tar", file(".wh..wh..opq"), file("a")), store)


def test_a_layer_in_use_is_not_pruned(store: Store, tmp_path: Path, owners: Owners) -> None:
    layer = Layer.from_tar(tar(tmp_path / "x.tar", file("a", b"x")), store)
    lowers = layer._lowers(owners)
    store.prune()
    assert os.path.exists(f"{lowers[0].path}/a")
    del lowers
    assert store.prune() >= 0
    assert kinds_left(store) == []


# ---- directories ---


def test_a_directory_is_a_layer(store: Store, tmp_path: Path, owners: Owners) -> None:
    top = tmp_path / "top"
    (top / "d").mkdir(parents=True)
    (top / "d/a").write_bytes(b"x" * 100_000)
    (top / "d/a").chmod(0o640)
    os.utime(top / "d/a", (5, 6))
    os.link(top / "d/a", top / "b")
    os.symlink("../../out", top / "l")
    os.setxattr(top / "d/a", "user.colour", b"red")
    os.mkfifo(top / "fifo")
    Path(os.fsdecode(os.fsencode(top) + b"/\xff")).write_bytes(b"")
    (top / "d/closed").mkdir(mode=0o000)
    with open(top / "sparse", "wb") as sparse:
        sparse.truncate(5 << 20)
    layer = Layer.from_directory(top, store)
    (top / "d/a").write_text("changed")  # the layer is what it was
    made = Path(layer._lowers(owners)[0].path)
    assert (made / "d/a").read_bytes() == b"x" * 100_000
    assert ((made / "d/a").stat().st_mtime, (made / "d/a").stat().st_mode & 0o7777) == (6, 0o640)
    assert os.path.samefile(made / "d/a", made / "b")
    assert os.readlink(made / "l") == "../../out"
    assert os.getxattr(made / "d/a", "user.colour") == b"red"
    assert sorted(map(os.fsencode, os.listdir(made))) == sorted(
        [b"d", b"b", b"l", b"fifo", b"\xff", b"sparse"]
    )
    assert (made / "sparse").stat().st_size == 5 << 20
    assert (made / "sparse").stat().st_blocks < 100
    assert set(kinds_left(store)) == {"layers"}


def test_the_same_directory_has_the_same_digest(store: Store, tmp_path: Path) -> None:
    digests = set()
    for name, order in (("one", "abc"), ("two", "cab")):
        (tmp_path / name).mkdir()
        for letter in order:
            (tmp_path / name / letter).write_text(letter)
            os.utime(tmp_path / name / letter, (1, 1))
        digests.add(Layer.from_directory(tmp_path / name, store).digest)
    assert len(digests) == 1
    (tmp_path / "two" / "c").chmod(0o600)
    assert Layer.from_directory(tmp_path / "two", store).digest not in digests


def test_a_directory_that_is_none_is_told(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Layer.from_directory(tmp_path / "none", store)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        Layer.from_directory(tmp_path / "file", store)


def test_a_name_that_means_a_whiteout_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / ".wh.x").touch()
    with pytest.raises(UnsupportedError, match="the name means"):
        Layer.from_directory(tmp_path / "top", store)


# ---- what is damaged ---


@pytest.mark.parametrize(
    "damage", ["content", "mode", "a new file", "a lost file", "a link", "a lost mark"]
)
def test_verify_finds_what_is_damaged(
    store: Store, tmp_path: Path, owners: Owners, damage: str
) -> None:
    layers = []
    for name in "ab":
        members = [directory("d"), file("d/.wh..wh..opq"), file("d/x", b"data"), symlink("l", "x")]
        layers.append(Layer.from_tar(tar(tmp_path / name, *members, file(name)), store))
    top = Path(layers[0]._lowers(owners)[0].path)
    assert store.verify() == []
    at = (top / "d/x").stat()
    if damage == "content":
        (top / "d/x").write_bytes(b"DATA")
        os.utime(top / "d/x", ns=(at.st_mtime_ns, at.st_mtime_ns))
    elif damage == "mode":
        (top / "d/x").chmod(0o777)
    elif damage == "a new file":
        (top / "new").touch()
    elif damage == "a lost file":
        (top / "d/x").unlink()
    elif damage == "a link":
        (top / "l").unlink()
        os.symlink("y", top / "l")
    else:
        os.removexattr(top / "d", "user.overlay.opaque")
    assert store.verify() == [str(top.parent)]
    assert store.verify(remove=True) == [str(top.parent)]
    assert store.verify() == []
    with pytest.raises(SetupError):
        layers[0]._lowers(owners)
    assert layers[1]._lowers(owners)


@pytest.mark.parametrize(
    "damage", ["no tree", "a link as tree", "no fingerprint", "a FIFO", "junk"]
)
def test_verify_tells_entries_that_are_no_layers(
    store: Store, tmp_path: Path, owners: Owners, damage: str
) -> None:
    made = Layer.from_tar(tar(tmp_path / "a", file("a")), store)
    top = Path(made._lowers(owners)[0].path)
    bad = top.parent
    if damage.endswith("tree"):
        shutil.rmtree(top)
        if damage.startswith("a link"):
            top.symlink_to("/etc")
    elif damage == "no fingerprint":
        (bad / "fingerprint").unlink()
    elif damage == "a FIFO":
        (bad / "fingerprint").unlink()
        os.mkfifo(bad / "fingerprint")
    else:
        bad = bad.parent / "junk"
        bad.touch()
    assert store.verify(remove=True) == [str(bad)]
    assert store.verify() == []


# ---- hostile ones ----------------------------------------------------------------------------

#: What a layer may have, though images that become one tree may not.
HARMLESS = {"a character device", "a block device", "a FIFO"}
HARMLESS |= {"a link that climbs out", "a deeper link out"}


@pytest.mark.parametrize("mode", ["tar", "layout", "aci"])
@pytest.mark.parametrize("name", sorted(HOSTILE.keys() - HARMLESS))
def test_a_hostile_archive_reaches_nothing(
    store: Store, tmp_path: Path, owners: Owners, name: str, mode: str
) -> None:
    make, message = HOSTILE[name]
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("secret")
    before = [(path, path.lstat()) for path in (victim, victim / "file")]
    bad = make("rootfs/" if mode == "aci" else "", str(victim))
    end = b"" if name in CUT else END
    path = tmp_path / ("x.aci" if mode == "aci" else "x")
    use = lambda: Image(path)._lowers(owners, store)  # noqa: E731
    if mode == "tar":
        path.write_bytes(file("good") + bad + end)
        use = lambda: [Layer.from_tar(path, store)]  # type: ignore[list-item]  # noqa: E731
    elif mode == "layout":
        Layout(file("good") + END, bad + end).directory(path)
    else:
        aci(path, file("rootfs/good", b"x" * 1000), bad, end=end)
    with pytest.raises(ImageError, match=f"{message}|is a hard link to .*, no file"):
        use()
    assert [(path, path.lstat()) for path in (victim, victim / "file")] == before
    assert os.listdir(f"{store.directory}/tmp") == []
    assert kinds_left(store) in ([], ["layers"])  # the good one
    assert os.listdir(f"{store.directory}/locks") == []


WHITEOUTS = {
    "of two dots": [file(".wh...")],
    "of one dot": [file(".wh..")],
    "of nothing": [file(".wh.")],
    "below one": [file(".wh.a/b")],
    "that climbs": [file("../.wh.victim")],
    "through a link that leads out": [symlink("l", "/../victim"), file("l/.wh.file")],
    "through a file": [file("f"), file("f/.wh.x")],
    "as the target of a hard link": [file(".wh.x"), hardlink("y", "x")],
}


@pytest.mark.parametrize("name", WHITEOUTS)
def test_a_hostile_whiteout_reaches_nothing(
    store: Store, tmp_path: Path, owners: Owners, name: str
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("secret")
    with pytest.raises(ImageError):
        Layer.from_tar(tar(tmp_path / "x.tar", *WHITEOUTS[name]), store)
    assert (victim / "file").read_text() == "secret"
    assert kinds_left(store) == []


def test_what_the_child_says_is_not_trusted(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tar(tmp_path / "x.tar", directory("d"))
    honest = unpack.Child.run
    outside = tmp_path / "outside"
    outside.mkdir()
    os.setxattr(outside, "user.overlay.opaque", b"y")

    def lie(answer: dict[str, Any]) -> None:
        def run(self: unpack.Child, target: Any) -> dict[str, Any]:
            value = honest(self, target)["value"]
            os.symlink(outside, f"{target.path}/link")
            return {"value": value | answer, "ids": None}

        monkeypatch.setattr(unpack.Child, "run", run)
        with pytest.raises(ImageError):
            Layer.from_tar(path, store)

    digest = "sha256:" + "0" * 63
    for answer in (
        {"opaque": ["../../../outside"]},
        {"opaque": ["link"]},
        {"opaque": ["d/../link"]},
        {"opaque": ["a\0b"]},
        {"opaque": [5]},
        {"digest": digest + "/"},
        {"digest": 5},
        {"size": -1},
        {"size": True},
        {"fingerprint": "../x"},
    ):
        lie(answer) if os.geteuid() == 0 or "opaque" not in answer else None
    assert os.listxattr(outside) == ["user.overlay.opaque"]
    assert kinds_left(store) == []


# ---- images ----------------------------------------------------------------------------------

LOWER = [directory("etc"), file("etc/a", b"lower", uid=1), file("etc/b"), symlink("lib", "usr/lib")]
LOWER += [directory("usr"), directory("usr/lib", mode=0o750, uid=7), file("usr/lib/x", b"x")]
#: The members of a second layer over LOWER, each for a rule.
STACKS: dict[str, list[bytes]] = {
    "a file that hides one": [directory("etc"), file("etc/a", b"upper", mode=0o600, gid=5)],
    "a whiteout": [directory("etc"), file("etc/.wh.a")],
    "an opaque directory": [directory("etc"), file("etc/.wh..wh..opq"), file("etc/new")],
    "opaque, said at the end": [directory("etc"), file("etc/new"), file("etc/.wh..wh..opq")],
    "a whiteout of a directory": [file(".wh.usr")],
    "and a new one there": [file(".wh.etc"), directory("etc", mode=0o700), file("etc/c")],
    "the other way round": [directory("etc", mode=0o700), file("etc/c"), file(".wh.etc")],
    "a file for a directory": [file("etc", b"no directory")],
    "a directory for a file": [directory("etc"), directory("etc/a"), file("etc/a/x")],
    "a link for a directory": [symlink("etc", "usr")],
    "a directory that nobody names": [file("usr/lib/y", b"y")],
    "a path through a link below": [file("lib/y", b"y")],
    "a whiteout through a link below": [file("lib/.wh.x")],
    "a whiteout that nobody's directory has": [file("usr/lib/.wh.x")],
    "a directory for a link": [directory("lib", mode=0o711), file("lib/y", b"y")],
    "a whiteout of what is not there": [file("etc/.wh.none"), file("none/.wh.none")],
    "a link of its own to one below": [symlink("l", "lib"), file("l/z", b"z")],
    "a hard link to a file below": [hardlink("h", "usr/lib/x"), hardlink("i", "lib/x")],
    "nothing": [],
}


@pytest.mark.parametrize("name", STACKS)
def test_a_stack_shows_what_one_tree_does(
    store: Store, tmp_path: Path, owners: Owners, name: str
) -> None:
    layers = [b"".join(members) + END for members in (LOWER, STACKS[name])]
    path = Layout(*layers).tar(tmp_path / "x.tar")
    assert view_of(Image(path)._lowers(owners, store)) == flat(path)


def test_layers_that_hide_all_of_those_below(store: Store, tmp_path: Path, owners: Owners) -> None:
    layers = [file(f"{n}") + END for n in range(2)] + [file(".wh..wh..opq") + file("2") + END]
    lowers = Image(Layout(*layers, file("3") + END).tar(tmp_path / "x.tar"))._lowers(owners, store)
    assert set(view_of(lowers)) == {b"/2", b"/3"}


def test_a_layer_that_is_there_twice_counts_once(
    store: Store, tmp_path: Path, owners: Owners
) -> None:
    first, second = file("a", b"1") + END, file("a", b"2") + END
    lowers = Image(Layout(first, second, first).tar(tmp_path / "x.tar"))._lowers(owners, store)
    assert len(lowers) == len({lower.path for lower in lowers}) == 2
    assert view_of(lowers)[b"/a"][3] == b"1"


@pytest.mark.parametrize("make", ["layout", "layout tar", "docker", "aci"])
def test_every_kind_of_image_is_a_root(
    store: Store, tmp_path: Path, owners: Owners, make: str
) -> None:
    if make == "aci":
        path = aci(tmp_path / "x.aci", file("rootfs/a", b"x"), file("rootfs/.wh.b"))
    elif make == "docker":
        path = docker(tmp_path / "x.tar", file("a", b"x") + END)
    else:
        layout = Layout(file("a", b"x") + END)
        made = layout.tar if make == "layout tar" else layout.directory
        path = made(tmp_path / "x")
    for _ in range(2):
        assert view_of(Image(path)._lowers(owners, store))[b"/a"][3] == b"x"


def test_images_share_their_layers(store: Store, tmp_path: Path, owners: Owners) -> None:
    base, one, two = (file(name, b"x" * 10_000) + END for name in ("base", "one", "two"))
    for name, layers in (("1", (base, one)), ("2", (base, two))):
        Image(Layout(*layers).tar(tmp_path / name))._lowers(owners, store)
    assert kinds_left(store).count("layers") == 3


def test_the_second_start_opens_nothing_of_the_image(
    store: Store, tmp_path: Path, owners: Owners, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Layout(file("a") + END, Env=["A=b"]).tar(tmp_path / "x.tar")
    first = Image(path)._lowers(owners, store)
    monkeypatch.setattr(unpack_image, "unpacked", None)
    os.chmod(path, 0o644)  # ctime is another now, so it is made anew
    with pytest.raises(TypeError):
        Image(path)._lowers(owners, store)
    monkeypatch.undo()
    monkeypatch.setattr(unpack, "executor", lambda: pytest.fail("a child was started"))
    assert [lower.path for lower in first]


def test_an_image_that_changed_is_unpacked_anew(
    store: Store, tmp_path: Path, owners: Owners
) -> None:
    path = tmp_path / "x.tar"
    for text in (b"first", b"other"):  # of the same size
        Layout(file("a", text) + END).tar(path)
        assert view_of(Image(path)._lowers(owners, store))[b"/a"][3] == text


def test_an_image_whose_layers_were_pruned_is_unpacked_again(
    store: Store, tmp_path: Path, owners: Owners
) -> None:
    path = Layout(file("a") + END, file("b") + END).tar(tmp_path / "x.tar")
    Image(path)._lowers(owners, store)
    store.prune()
    assert kinds_left(store) == []
    assert len(Image(path)._lowers(owners, store)) == 2


def test_another_digest_than_the_image_says_is_refused(
    store: Store, tmp_path: Path, owners: Owners
) -> None:
    layout = Layout(file("a") + END, blobs=[file("b") + END])
    with pytest.raises(ImageError, match="the layer is not sha256"):
        Image(layout.tar(tmp_path / "x.tar"))._lowers(owners, store)
    assert kinds_left(store) == []


def test_the_command_of_an_image(store: Store, tmp_path: Path) -> None:
    words = {"Entrypoint": ["/bin/prog", "-v"], "Cmd": ["one", "two"]}
    image = Image(Layout(file("a") + END, **words).tar(tmp_path / "x.tar"))
    assert image.command(store=store).argv == ("/bin/prog", "-v", "one", "two")
    assert image.command("three", store=store).argv == ("/bin/prog", "-v", "three")
    bare = Image(Layout(file("a") + END).tar(tmp_path / "y.tar"))
    assert bare.command(store=store).argv == ("/bin/sh",)


PASSWD = b"root:x:0:0::/:/bin/sh\nwww:x:33:44::/:\n"


@pytest.mark.parametrize(
    ("account", "ids"),
    [("", None), ("0", None), ("5", (5, 0)), ("5:6", (5, 6)), ("www", (33, 44))],
)
def test_the_user_of_an_image_is_looked_up_in_its_layers(
    store: Store, tmp_path: Path, owners: Owners, account: str, ids: tuple[int, int] | None
) -> None:
    layers = [
        *(directory("etc") + symlink("etc/passwd", "../usr/passwd") + END,),
        *(directory("usr") + file("usr/passwd", PASSWD) + END, file("x") + END),
    ]
    image = Image(Layout(*layers, User=account).tar(tmp_path / "x.tar"))
    found = image._leases(owners, store)[0].ids
    assert found == ids


def test_a_user_that_the_image_lacks_is_told(store: Store, tmp_path: Path, owners: Owners) -> None:
    image = Image(Layout(file("x") + END, User="nobody").tar(tmp_path / "x.tar"))
    with pytest.raises(ImageError, match="which is not in its /etc/passwd"):
        image._lowers(owners, store)


def test_what_the_store_remembers_comes_back(tmp_path: Path) -> None:
    known = known_module.Known(["a", "b"], [], ["x", ""], {"A": "", "\udcff": "="}, "/", (5, 6))
    again = known_module.decoded(known.encoded())
    assert again is not None
    assert vars(again) == vars(known)
    for data in (b"", b"2\x000", b"1\x005\x00a", b"1\x00x"):
        assert known_module.decoded(data) is None


def test_a_missing_image_is_told(store: Store, owners: Owners, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Image(tmp_path / "none")._lowers(owners, store)
