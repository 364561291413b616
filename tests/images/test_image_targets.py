# SPDX-License-Identifier: Apache-2.0
"""The directory of an unpacked image: other users cannot swap it, and it is removed in time."""

from __future__ import annotations

import bz2
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.image_maker import END, Layout, aci, directory, docker, file, pax
from lib.machine import needs_root, require

import sandboxlib
from sandboxlib import ImageError, SandboxError, UnsupportedError, User, load, user_namespace
from sandboxlib._images import target, unpack
from sandboxlib._images.child import extract
from sandboxlib.errors import SetupError, printable
from sandboxlib.load import appc, oci

IS_ROOT = os.geteuid() == 0
OTHER = 54326  # a user that is none


def _executor() -> str:
    try:
        return str(unpack.executor()[1])
    except UnsupportedError as error:
        return f"none: {error}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A TMPDIR of the test's own, in which nothing is left."""
    require(not _executor().startswith("none"), _executor())
    top = tmp_path / "tmp"
    top.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(top))
    yield top
    assert os.listdir(top) == []


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that all users reach."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


# ---- set-user-ID -----------------------------------------------------------------------------

SET_IDS = (
    file("su", b"x", mode=0o4755)
    + file("wall", b"x", mode=0o2755, gid=5)
    + directory("mail", 0o2775, gid=8)
    + END
)


@pytest.mark.parametrize(
    ("where", "keep", "kept"),
    [
        ("public", False, False),
        ("public", True, True),
        pytest.param("of a group", False, False, marks=pytest.mark.every_way),
        ("private", False, True),
        ("private", True, True),
    ],
)
def test_set_ids_stay_only_where_nobody_else_reaches_them(
    place: Path, public: Path, way: str, where: str, keep: bool, kept: bool
) -> None:
    above = public / "above"
    above.mkdir(mode={"public": 0o755, "of a group": 0o750, "private": 0o700}[where])
    (above / "below").mkdir(mode=0o755)
    layout = Layout(SET_IDS).directory(public / "layout")
    into = above / "below" / "root"
    with oci.unpack_oci_image(layout, into=into, keep_set_ids=keep) as (root, _):
        kept = kept and way != "root"  # there is one owner, whom nobody shall become
        assert mode(f"{root}/su") == (0o4755 if kept else 0o755)
        assert mode(f"{root}/wall") == (0o2755 if kept else 0o755)
        assert mode(f"{root}/mail") == 0o2775  # it gives files a group, and nobody an id
    with load.open_image(layout) as (root, _):  # a temporary directory is private
        assert mode(f"{root}/su") == (0o4755 if way != "root" else 0o755)


@needs_root
@pytest.mark.parametrize("way", ["caller"], indirect=True)
def test_another_user_becomes_nobody_by_an_image(place: Path, public: Path, way: str) -> None:
    program = Path(shutil.which("id") or "/usr/bin/id").read_bytes()
    top = directory("./", 0o777, uid=OTHER + 1, gid=OTHER + 1)
    layout = Layout(top + file("id", program, mode=0o4755) + END).directory(public / "layout")
    for keep in (False, True):
        into = public / f"root-{keep}"
        with oci.unpack_oci_image(layout, into=into, keep_set_ids=keep):
            pass
        done = subprocess.run(
            [into / "id", "-u"], capture_output=True, user=OTHER, group=OTHER, check=True
        )
        assert int(done.stdout) == (0 if keep else OTHER)
        (into / "id").unlink()


@pytest.mark.parametrize("into", [False, True])
def test_the_top_is_the_callers(place: Path, public: Path, way: str, into: bool) -> None:
    top = directory("./", 0o4777, uid=1, gid=1)
    layout = Layout(top + file("x") + END).directory(public / "layout")
    words = {"into": public / "root"} if into else {}
    with oci.unpack_oci_image(layout, **words) as (root, _):  # type: ignore[arg-type]
        at = os.stat(root)
        assert (at.st_uid, stat.S_IMODE(at.st_mode)) == (os.geteuid(), 0o755)
        if not into:
            assert mode(os.path.dirname(root)) == 0o700


def test_the_umask_of_the_caller_is_no_matter(place: Path, public: Path, way: str) -> None:
    layout = Layout(directory("d", 0o777) + file("d/x", mode=0o666) + END)
    image = layout.directory(public / "layout")
    before = os.umask(0o777)
    try:
        with load.open_image(image) as (root, _):
            os.umask(before)
            assert [mode(f"{root}/{name}") for name in ("", "d", "d/x")] == [0o755, 0o777, 0o666]
    finally:
        os.umask(before)


# ---- a name that is swapped ------------------------------------------------------------------


def _swaps(monkeypatch: pytest.MonkeyPatch, when: str, swap: Callable[[], None]) -> None:
    """Somebody who can write the directory above acts after the mkdir, or before the child."""
    made = os.mkdir
    call = unpack.Child._call

    def mkdir(*words: Any, **more: Any) -> None:
        made(*words, **more)
        if "dir_fd" in more:
            monkeypatch.setattr(os, "mkdir", made)
            swap()

    def child(self: Any, settings: Any, *words: Any) -> Any:
        if settings["job"] != "empty":
            swap()
        return call(self, settings, *words)

    def after(self: Any, settings: Any, *words: Any) -> Any:
        answer = call(self, settings, *words)
        if settings["job"] != "empty":
            swap()
        return answer

    if when == "mkdir":
        monkeypatch.setattr(os, "mkdir", mkdir)
    else:
        monkeypatch.setattr(unpack.Child, "_call", child if when == "before" else after)


@pytest.mark.parametrize("by", ["link", "directory", "full directory"])
@pytest.mark.parametrize("when", ["mkdir", "before", "after"])
def test_a_target_that_is_swapped_is_told(
    place: Path, public: Path, way: str, monkeypatch: pytest.MonkeyPatch, when: str, by: str
) -> None:
    shared, victim = public / "shared", public / "victim"
    shared.mkdir()
    victim.mkdir(mode=0o700 if by == "full directory" else 0o755)
    (victim / "file").write_text("secret")
    into = shared / "root"

    def swap() -> None:
        into.rename(shared / "away")
        if by == "link":
            into.symlink_to(victim)
        elif by == "directory":
            into.mkdir(mode=0o700)
        else:
            victim.rename(into)

    layout = Layout(file("file", b"new") + END).directory(public / "layout")
    _swaps(monkeypatch, when, swap)
    if when == "mkdir" and by == "directory":
        # An empty directory of ours is as good as the other one.
        with oci.unpack_oci_image(layout, into=into):
            pass
        assert (into / "file").read_text() == "new"
        return
    with (
        pytest.raises(SandboxError) as caught,
        oci.unpack_oci_image(layout, into=into),
    ):
        pytest.fail("it was unpacked")
    assert isinstance(caught.value, SetupError)
    assert caught.value.errno in (errno.ESTALE, errno.ENOTDIR, errno.ELOOP)
    left = into if by == "full directory" else victim
    assert (left / "file").read_text() == "secret"
    assert os.listdir(left) == ["file"]
    assert not (shared / "away" / "file").exists()


def test_a_target_that_is_there_is_left_alone(place: Path, public: Path) -> None:
    layout = Layout(file("x") + END).directory(public / "layout")
    (public / "root").mkdir()
    (public / "link").symlink_to("nowhere")
    for name in ("root", "link"):
        with pytest.raises(FileExistsError) as caught:
            oci.unpack_oci_image(layout, into=public / name).__enter__()
        assert isinstance(caught.value, SetupError)
    assert os.listdir(public / "root") == []
    assert not (public / "nowhere").exists()
    with pytest.raises(FileNotFoundError) as missed:
        oci.unpack_oci_image(layout, into=public / "none" / "root").__enter__()
    assert isinstance(missed.value, SetupError)


@needs_root
def test_a_removal_enters_no_mount(tmp_path: Path) -> None:
    require(shutil.which("unshare"), "there is no unshare")
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("kept")
    (tmp_path / "top" / "inner" / "point").mkdir(parents=True)
    script = (
        "import os, sys\n"
        "from sandboxlib._images.child import layers as _layer\n"
        "try:\n"
        "    _layer.empty(os.open(sys.argv[1], os.O_RDONLY))\n"
        "except OSError as error:\n"
        "    sys.exit(error.errno)\n"
    )
    shell = 'mount --bind "$1" "$2/inner/point" && exec "$3" -c "$4" "$2"'
    words = ["unshare", "-m", "--propagation", "private", "sh", "-c", shell, "sh"]
    words += [str(victim), str(tmp_path / "top"), sys.executable, script]
    assert subprocess.run(words, check=False).returncode == errno.EBUSY
    assert (victim / "file").read_text() == "kept"


# ---- time ------------------------------------------------------------------------------------


def slow_image(path: Path) -> Path:
    """Three GiB of comments in a few KiB: honest in form, and seconds of work."""
    unit = bz2.compress(pax(comment="a" * 1_000_000) + file("rootfs/x"), 1)
    path.write_bytes(bz2.compress(file("manifest", b"{}") + directory("rootfs")) + unit * 3000)
    return path


def test_unpacking_ends_when_its_time_is_over(place: Path, tmp_path: Path, way: str) -> None:
    image = slow_image(tmp_path / "x.aci")
    began = time.monotonic()
    with pytest.raises(SetupError, match=r"not done after 0\.7 seconds") as caught:
        appc.unpack_app_container_image(image, timeout=0.7).__enter__()
    assert caught.value.errno == errno.ETIMEDOUT
    assert time.monotonic() - began < 60
    with pytest.raises(SetupError) as again:
        load.open_image(image, timeout=0.5).__enter__()
    assert again.value.errno == errno.ETIMEDOUT


def test_a_child_that_never_ends_is_killed(
    place: Path, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = public / "stuck.py"
    program.write_text("import time\nopen('/dev/target/x', 'w').close()\ntime.sleep(1000)\n")
    layout = Layout(file("x") + END).directory(public / "layout")
    monkeypatch.setattr(extract, "__file__", str(program))
    monkeypatch.setattr(unpack, "executor", _single_id)
    with pytest.raises(SetupError) as caught:
        oci.unpack_oci_image(layout, into=public / "root", timeout=0.5).__enter__()
    assert caught.value.errno == errno.ETIMEDOUT
    assert not (public / "root").exists()


def _single_id() -> tuple[Any, str]:
    if IS_ROOT:
        return sandboxlib.chroot.run_command, "caller"
    return user_namespace.run_command, "root"


def test_a_removal_that_takes_for_ever_is_told(place: Path, public: Path) -> None:
    fd = os.open(public, os.O_PATH)
    made = target.Target(fd, "root", str(public / "root"))
    os.close(fd)
    try:
        (public / "root" / "x").touch()
        with pytest.raises(SetupError) as caught:
            made.remove(-1)
        assert caught.value.errno == errno.ETIMEDOUT
        assert str(public / "root") in str(caught.value)
        made.remove(60)
        assert not (public / "root").exists()
    finally:
        made.close()


@pytest.mark.parametrize("value", [0, 0.0, -1, True, "5", float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(place: Path, tmp_path: Path, value: Any) -> None:
    image = aci(tmp_path / "x.aci")
    for call in (appc.unpack_app_container_image, oci.unpack_oci_image, load.open_image):
        with pytest.raises(sandboxlib.SpecError):
            call(image, timeout=value).__enter__()  # type: ignore[operator]
    with load.open_image(image, timeout=None):
        pass


def test_the_command_line_has_a_time_for_unpacking(place: Path, tmp_path: Path) -> None:
    done = call(place, "--unpack-timeout", "0.5", slow_image(tmp_path / "x.aci"))
    assert done.returncode == 125
    assert b"not done after 0.5 seconds" in done.stderr


def call(place: Path, *words: object) -> subprocess.CompletedProcess[bytes]:
    argv = [sys.executable, "-m", "sandboxlib", "run", *map(str, words)]
    env = {**os.environ, "TMPDIR": str(place)}
    return subprocess.run(argv, capture_output=True, check=False, env=env)


# ---- the child -------------------------------------------------------------------------------


def test_the_child_has_what_it_needs_and_no_more(place: Path, tmp_path: Path, way: str) -> None:
    program = (
        "import json, os\n"
        "status = dict(l.split(':', 1) for l in open('/proc/self/status') if ':' in l)\n"
        "told = {'capabilities': status['CapEff'].strip(), 'nnp': status['NoNewPrivs'].strip()}\n"
        "told['dev'] = sorted(os.listdir('/dev'))\n"
        "told['net'] = sorted(os.listdir('/proc/self/net/dev_snmp6')) or open("
        "'/proc/self/net/dev').read().count(':')\n"
        "told['ro'] = bool(os.statvfs('/').f_flag & os.ST_RDONLY)\n"
        "if os.path.exists('/dev/source'):  # it is not there for a removal\n"
        "    told['source'] = os.statvfs('/dev/source').f_flag & os.ST_RDONLY\n"
        "print(json.dumps({'error': json.dumps(told)}))\n"
    )
    with pytest.raises(ImageError) as caught:
        _with_program(program, tmp_path, Layout(file("x") + END))
    told = json.loads(str(caught.value).partition(": ")[2])
    needed = unpack._NEEDED | (unpack._FOR_OWNERS if way != "root" else set())
    mask = sum(1 << sandboxlib._spec.policy.CAPABILITIES.index(name) for name in needed)
    assert int(told["capabilities"], 16) == mask
    assert told["nnp"] == "1"
    assert not {"sda", "vda", "mem", "kmsg", "fuse"} & {*told["dev"]}
    assert {"null", "target", "source"} < {*told["dev"]}
    assert told["net"] in (["lo"], 1)
    assert told["ro"] is True
    assert told["source"]


def _with_program(program: str, tmp_path: Path, image: Layout) -> None:
    """Unpacks with another program as the child: what if its code were subverted?"""
    path = tmp_path / "other.py"
    path.write_text(program)
    before = extract.__file__
    extract.__file__ = str(path)
    try:
        with load.open_image(image.directory(tmp_path / "other")):
            pytest.fail("it was unpacked")
    finally:
        extract.__file__ = before


def test_the_child_gives_up_leaving_its_root(tmp_path: Path) -> None:
    script = (
        "from sandboxlib._images.child import roots\n"
        "drop = roots._dropper()\n"
        "drop()\n"
        "print([l for l in open('/proc/self/status') if l.startswith('CapEff')][0].split()[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    before = int(sandboxlib._host.machine.status("CapEff"), 16)  # type: ignore[attr-defined]
    assert int(done.stdout, 16) == before & ~(1 << 18)


@pytest.mark.parametrize(
    "said",
    [
        "'x'",
        "'[]'",
        "'{}'",
        "'{\"error\": 5}'",
        "'{\"value\": {}}'",
        '\'{"value": [], "ids": null}\'',
        '\'{"value": {}, "ids": [1]}\'',
        '\'{"value": {}, "ids": [true, 0]}\'',
        '\'{"value": {}, "ids": [-1, 0]}\'',
        '\'{"value": {}, "ids": [4294967295, 0]}\'',
        "'{\"value\": {\"a\": ' + '9' * 100000 + '}, \"ids\": null}'",
        "'[' * 100000",
        "'x' * 100_000_000",
    ],
)
def test_what_the_child_says_is_checked(place: Path, tmp_path: Path, said: str) -> None:
    program = f"import sys\nsys.stdout.write({said})\n"
    with pytest.raises(ImageError, match="the child that unpacks it"):
        _with_program(program, tmp_path, Layout(file("x") + END))


def test_nothing_is_imported_from_an_image(place: Path, tmp_path: Path) -> None:
    evil = b'import os\nos.write(1, b\'{"error": "mine"}\')\nos._exit(0)\n'
    library = os.path.dirname(os.__file__).lstrip("/")
    layout = Layout(file("x") + END)
    layout.index = "{}".encode("utf-32")
    layout.files = {f"{library}/encodings/utf_{n}.py": evil for n in ("16", "32", "32_le")}
    image = layout.directory(tmp_path / "layout")
    with pytest.raises(ImageError, match="no JSON"), load.open_image(image):
        pytest.fail("it was unpacked")


def test_the_caller_parses_no_byte_of_an_image(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that reads one is out of order here, and in order in the child."""
    from sandboxlib._images.child import accounts, documents, layers, tar

    def broken(*words: object, **more: object) -> None:
        raise AssertionError("the caller's process parses an image")

    for where, name in (
        (tar.Archive, "__init__"),
        (tar.Member, "__init__"),
        (documents, "parse_json"),
        (documents, "Tar"),
        (documents, "Layout"),
        (documents.File, "magic"),
        (layers.Layer, "__init__"),
        (accounts, "resolve"),
    ):
        monkeypatch.setattr(where, name, broken)
    layer = file("etc/passwd", b"me:x:8:9:::\n") + END
    for image in (
        Layout(layer, User="me").directory(tmp_path / "layout"),
        Layout(layer, User="me").tar(tmp_path / "layout.tar"),
        docker(tmp_path / "docker.tar", layer, User="me"),
    ):
        assert oci.is_oci_image(image)
        with load.open_image(image) as (_, process):
            assert isinstance(process.user, User)
            assert (process.user.uid, process.user.gid) == (8, 9)
    with load.open_image(aci(tmp_path / "x.aci")):
        pass


# ---- what a terminal is shown ----------------------------------------------------------------

EVIL = "\x1b]0;title\x07\x1b[2J\r\u202egnp\u2028\x9b31m"


def test_a_terminal_is_shown_no_commands(place: Path, tmp_path: Path) -> None:
    layer = file(f"{EVIL}/../x") + END
    images = [
        Layout(layer).directory(tmp_path / "a"),
        docker(tmp_path / "b.tar", layer),
        docker(tmp_path / f"{EVIL}.tar", layer),
        Layout(file("x") + END, User=EVIL).directory(tmp_path / "c"),
        Layout(file("x") + END, Env=[f"={EVIL}"]).directory(tmp_path / "d"),
        aci(tmp_path / "e.aci", manifest={"app": {"user": f"/{EVIL}"}}),
    ]
    bad = Layout(file("x") + END)
    bad.config["rootfs"]["diff_ids"] = [EVIL]
    images.append(bad.directory(tmp_path / "f"))
    bad = Layout(file("x") + END)
    bad.descriptors[0]["mediaType"] = EVIL
    images.append(bad.directory(tmp_path / "g"))
    for image in images:
        with pytest.raises(ImageError) as caught:
            load.open_image(image).__enter__()
        assert str(caught.value).isprintable()
        done = call(place, image)
        assert done.returncode == 125
        assert done.stderr.decode().rstrip("\n").isprintable()


def test_what_a_failed_command_wrote_is_escaped() -> None:
    result = sandboxlib.Result(3, b"", f"one\n\ttwo{EVIL}".encode())
    text = str(sandboxlib.CommandFailed(result))
    assert "one\n\ttwo\\x1b]0;title\\x07" in text
    assert text.replace("\n", "").replace("\t", "").isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain café 日本", "plain café 日本"),
        ("a\nb\x1b", "a\\nb\\x1b"),
        ("\u202e\udcff\x00", "\\u202e\\udcff\\x00"),
        ("'\"\\", "'\"\\"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable("a\nb", "\n") == "a\nb"
