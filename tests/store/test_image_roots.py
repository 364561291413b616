# SPDX-License-Identifier: Apache-2.0
"""Runs in images and layers: what they see, their defaults, and how many share a store."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lib.image_maker import END, Layout, directory, file, symlink
from lib.machine import require
from lib.roots import find_busybox

from sandboxlib import (
    Image,
    Layer,
    Overlay,
    Result,
    Sandbox,
    SetupError,
    SpecError,
    Store,
    UnsupportedError,
    user_namespace,
)

PASSWD = b"root:x:0:0::/:/bin/sh\nwww:x:33:44::/:\n"
ENV = ["PATH=/bin", "GREETING=hello"]
SEE = 'id -u; id -g; pwd; echo "$GREETING" "$MORE"; cat /etc/name; echo new > /new && cat /new'


def base() -> bytes:
    """A layer with a shell, and the directories that runs mount something on."""
    names = ("sh", "cat", "id", "ls", "true", "touch", "rm")
    busybox = find_busybox()
    require(busybox, "there is no static busybox")
    links = b"".join(symlink(f"bin/{name}", "busybox") for name in names)
    places = b"".join(directory(name) for name in ("bin", "etc", "proc", "dev", "tmp", "work"))
    program = file("bin/busybox", Path(str(busybox)).read_bytes(), mode=0o755)
    return places + program + links + file("etc/passwd", PASSWD) + file("etc/name", b"base\n") + END


@pytest.fixture
def image(tmp_path: Path, store: Store) -> Image:
    upper = directory("etc") + file("etc/name", b"image\n") + END
    layout = Layout(base(), upper, Env=ENV, WorkingDir="/work", Cmd=["sh", "-c", SEE])
    return Image(layout.tar(tmp_path / "image.tar"))


def lines(result: Result) -> list[str]:
    assert result.exit == 0, result
    return (result.out or b"").decode().split("\n")


@pytest.mark.parametrize("fresh", [True, False])
def test_an_image_is_a_root_with_defaults(image: Image, store: Store, fresh: bool) -> None:
    with Sandbox(image, store=store) as box:
        for _ in range(2):  # each begins with the image as it is
            result = box.run(image.command(store=store), fresh=fresh)
            assert lines(result)[2:] == ["/work", "hello ", "image", "new", ""]
            assert lines(result)[0] == "0" if os.geteuid() == 0 else True


def test_what_a_command_says_goes_before_the_image(image: Image, store: Store) -> None:
    with Sandbox(image, store=store) as box:
        argv = ["/bin/sh", "-c", SEE]
        assert lines(box.run(argv, extra_env={"MORE": "x"}))[2:4] == ["/work", "hello x"]
        assert lines(box.run(argv, cwd="/", env={"PATH": "/bin"}))[2:4] == ["/", " "]


def test_an_overlay_with_an_image_in_it_has_no_defaults(image: Image, store: Store) -> None:
    with Sandbox(Overlay(image), store=store) as box:
        assert lines(box.run(["/bin/sh", "-c", SEE]))[2:4] == ["/", " "]


@pytest.mark.parametrize("way", ["run", "map", "session", "start", "async"])
def test_the_user_of_an_image(tmp_path: Path, store: Store, way: str) -> None:
    image = Image(Layout(base(), User="www", Env=ENV).tar(tmp_path / "image.tar"))
    argv = ["sh", "-c", "id -u; id -g"]
    with Sandbox(image, store=store) as box:
        out: bytes | None
        if way == "run":
            out = box.run(argv).out
        elif way == "map":
            out = next(iter(box.map([argv]))).out
        elif way == "session":
            with box.session() as session:
                out = session.run(argv).out
        elif way == "start":
            with box.start(argv) as process:
                out = process.communicate()[0]
        else:
            out = asyncio.run(box.run_async(argv)).out
    assert (out or b"").split() == [b"33", b"44"]
    with Sandbox(image, store=store, user="root") as box:
        assert (box.run(argv).out or b"").split() == [b"0", b"0"]


def test_owners_are_those_of_the_image(tmp_path: Path, store: Store) -> None:
    layer = file("mine", uid=33, gid=44, mode=0o600) + file("others", uid=5, mode=0o600) + END
    image = Image(Layout(base(), layer, User="www", Env=ENV).tar(tmp_path / "image.tar"))
    has_ranges = not user_namespace.refusals(Sandbox("/", user="ranges"))
    with Sandbox(image, store=store) as box:
        assert box.run(["cat", "/mine"]).exit == 0
        if os.geteuid() == 0 or has_ranges:
            assert box.run(["cat", "/others"]).exit == 1


def test_layers_are_stacked_over_each_other(tmp_path: Path, store: Store) -> None:
    (tmp_path / "a").write_bytes(base())
    (tmp_path / "b").write_bytes(file("etc/.wh.passwd") + file("etc/new") + END)
    layers = [Layer.from_tar(tmp_path / name, store) for name in "ab"]
    with Sandbox(Overlay(*layers), store=store) as box:
        assert (box.run(["/bin/ls", "/etc"]).out or b"").split() == [b"name", b"new"]
    with Sandbox(Overlay(*layers), store=store, user="root") as box:
        assert (box.run(["/bin/ls", "/etc"]).out or b"").split() == [b"name", b"new"]


def test_a_new_directory_hides_the_one_below(tmp_path: Path, store: Store) -> None:
    layer = directory("etc") + file("etc/.wh..wh..opq") + file("etc/new") + END
    image = Image(Layout(base(), layer, Env=ENV).tar(tmp_path / "image.tar"))
    for user in (None, "root", "ranges"):
        with Sandbox(image, store=store, user=user) as box:  # type: ignore[arg-type]
            try:
                result = box.run(["ls", "/etc"])
            except UnsupportedError:  # there are no ranges here
                continue
            assert (result.out or b"").split() == [b"new"]


def test_a_run_keeps_its_layers_from_being_pruned(image: Image, store: Store) -> None:
    with Sandbox(image, store=store) as box:
        box.run(["true"])
        store.prune()
        assert box.run(["true"]).exit == 0


def test_prepare_leaves_the_run_nothing_to_unpack(
    image: Image, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Sandbox(image, store=store)
    box.prepare()
    before = {entry.path for entry in store._entries()}
    assert box.run(image.command(store=store)).exit == 0
    assert {entry.path for entry in store._entries()} == before
    Sandbox("/").prepare()


def test_an_image_that_takes_too_long_to_unpack_is_told(tmp_path: Path, store: Store) -> None:
    rest = bytes(30_000_000)
    layers = [b"".join(file(f"{n}", b"x") for n in range(20_000)) + file("x", rest) + END]
    box = Sandbox(Image(Layout(*layers).tar(tmp_path / "image.tar")), store=store)
    for timeout in (0, -1, "x"):
        with pytest.raises(SpecError):
            box.prepare(timeout)  # type: ignore[arg-type]
    with pytest.raises(SetupError) as caught:
        box.prepare(0.4)
    assert caught.value.errno == errno.ETIMEDOUT
    assert list(store._entries()) == []
    assert os.listdir(f"{store.directory}/tmp") == []


def test_a_sandbox_that_is_closed_lets_go_of_its_layers(image: Image, store: Store) -> None:
    with Sandbox(image, store=store) as box:
        box.run(["true"])
    box.run(["true"])
    box.close()
    store.prune()
    assert list(store._entries()) == []
    with box:
        assert box.run(["true"]).exit == 0


def test_the_limits_of_a_command_go_with_the_user_of_an_image(tmp_path: Path, store: Store) -> None:
    from sandboxlib import Limits

    image = Image(Layout(base(), User="www", Env=ENV).tar(tmp_path / "image.tar"))
    with Sandbox(image, store=store) as box:
        result = box.run(["sh", "-c", "id -u; ulimit -n"], limits=Limits(open_files=99))
        assert (result.out or b"").split() == [b"33", b"99"]


#: A process that runs something in an image.
HOST = """
import sys, time
from sandboxlib import Image, Sandbox, Store
start = time.monotonic()
with Sandbox(Image(sys.argv[1]), store=Store(sys.argv[2])) as box:
    result = box.run(["true"])
print(result.exit, len(result.executor) > 0, flush=True)
"""


def hosts(image: Image, store: Store, number: int) -> list[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", HOST, image.path, store.directory]
    return [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(number)]


@pytest.mark.sample(1)
@pytest.mark.parametrize("delay", [0.15, 0.3, 0.45])
def test_eight_processes_share_a_store_and_one_is_killed(
    image: Image, store: Store, delay: float
) -> None:
    started = hosts(image, store, 8)
    time.sleep(delay)
    started[0].send_signal(signal.SIGKILL)
    outputs = [host.communicate()[0] for host in started]
    assert outputs[1:] == ["0 True\n"] * 7
    store.prune(1 << 40)
    assert os.listdir(f"{store.directory}/tmp") == []
    assert sorted(entry.kind.split("/")[0] for entry in store._entries()) == [
        *("images", "layers", "layers")
    ]


def test_a_full_disk_is_told_and_leaves_nothing(image: Image, tmp_path: Path) -> None:
    script = """
import json, os, subprocess, sys
from sandboxlib import Image, Sandbox, SetupError, Store
image, place = sys.argv[1:]
told = []
for size in range(1, 40):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size * 64}k", "tmpfs", place], check=True)
    store = Store(place + "/store")
    try:
        with Sandbox(Image(image), store=store) as box:
            box.run(["true"], check=True)
        told.append("ran")
    except SetupError as error:
        told.append(f"{error.errno}")
        assert "No space left" in str(error), error
    if os.path.isdir(store.directory + "/tmp"):
        assert os.listdir(store.directory + "/tmp") == [], told
        for entry in store._entries():
            assert entry.kind == "images" or os.path.exists(entry.path + "/fingerprint"), entry.path
    subprocess.run(["umount", "-l", place], check=True)
    if told[-1] == "ran":
        break
print(json.dumps(told))
"""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs takes root")
    place = tmp_path / "place"
    place.mkdir()
    argv = ["unshare", "-m", sys.executable, "-c", script, image.path, str(place)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told[-1] == "ran", told
    assert set(told[:-1]) == {"28"}


def test_a_store_that_cannot_be_made_is_told(image: Image, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Sandbox(image, store=Store(tmp_path / "file" / "store")) as box:
        with pytest.raises(SetupError) as caught:
            box.run(["true"])
        assert caught.value.step == "store"


def test_a_path_that_is_no_image_is_told_with_a_remedy(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "directory").mkdir()
    with pytest.raises(FileNotFoundError, match=r"none: No such file .*skopeo"):
        Sandbox(Image(tmp_path / "none"), store=store).run(["true"])
    with pytest.raises(FileNotFoundError, match=r"directory/index.json: .* OCI layout; another"):
        Sandbox(Image(tmp_path / "directory"), store=store).run(["true"])
