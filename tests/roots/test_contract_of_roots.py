# SPDX-License-Identifier: Apache-2.0
"""One contract over all kinds of root, in every way of running, by both executors of the core."""

from __future__ import annotations

import gc
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.machine import host_mounts, needs_root
from lib.places import PLACES, Place
from lib.waiting import late

from sandboxlib import Mount, Overlay, Result, Sandbox, SetupError, UnsupportedError
from sandboxlib._runs import slots

pytest_plugins = ["lib.ways"]

Way = Callable[[Sandbox, list[str]], Result]


@pytest.fixture
def root(rootfs: Path) -> Path:
    (rootfs / "etc" / "known").write_text("as it was\n")
    return rootfs


@pytest.fixture(params=PLACES)
def place(
    request: pytest.FixtureRequest, root: Path, tmp_path: Path, executor: str
) -> Iterator[Place]:
    """A root of each kind. No run changes what it is made of."""
    (tmp_path / "beside").mkdir()
    place = PLACES[request.param](root, tmp_path / "beside")
    before = content(place.sources)
    yield place
    assert content(place.sources) == before


def content(places: tuple[Path, ...]) -> list[tuple[str, int, int, int]]:
    """What is there, and when it changed."""
    found = [(path, path.lstat()) for place in places for path in [place, *place.rglob("*")]]
    return sorted((str(path), s.st_mode, s.st_size, s.st_ctime_ns) for path, s in found)


def test_a_run_tells_how_it_ended_and_what_it_wrote(place: Place, way: Way) -> None:
    with place.box() as box:
        result = way(box, ["sh", "-c", "cat /etc/known; echo err >&2; exit 3"])
    assert (result.exit, result.out, result.err) == (3, b"as it was\n", b"err\n")


def test_each_run_finds_the_root_as_it_is_unless_it_is_kept(place: Place, way: Way) -> None:
    script = "echo x >> /etc/new; mkdir -p /dir/dir; wc -l < /etc/new; ls /"
    with place.box() as box:
        first = box.run(["sh", "-c", script], fresh=True)
        second = way(box, ["sh", "-c", script])
    assert first.out is not None
    assert second.out is not None
    assert (first.exit, first.err) == (second.exit, second.err) == (0, b"")
    assert first.out.split(b"\n", 1)[0] == b"1"
    number = int(second.out.split(b"\n", 1)[0])
    assert number > 1 if place.keeps else number == 1
    assert b"dir\n" in second.out


def test_what_is_there_can_be_changed_and_removed(
    place: Place, way: Way, request: pytest.FixtureRequest
) -> None:
    if place.is_furnished:
        pytest.skip("its files are mounts")
    if place.keeps and request.node.callspec.params["way"] == "map":
        pytest.skip("the runs of a map would meet")
    script = "echo x > /etc/known && cat /etc/known && mv /bin/wc /bin/other && "
    script += "rm -r /etc && mkdir /etc && ls -A /etc; mv /bin/other /bin/wc; touch /etc/known"
    with place.box() as box:
        assert way(box, ["sh", "-c", script]) == (0, b"x\n", b"")


def test_a_program_that_is_not_there_is_told(place: Place, way: Way) -> None:
    with place.box() as box:
        try:
            error: object = way(box, ["none-such"])
        except FileNotFoundError as caught:
            error = caught
    assert isinstance(error, SetupError)  # a map hands it on
    assert isinstance(error, FileNotFoundError)
    assert (error.step, error.filename) == ("exec", "none-such")


def test_a_root_can_be_read_only(place: Place, way: Way) -> None:
    script = "touch /tmp/x && ! touch /etc/x && ! mkdir /x && ! rm -f /etc/known"
    with place.box(filesystem_writable_paths="none") as box:
        result = way(box, ["sh", "-c", script])
    assert result.exit == 0
    assert (result.err or b"").count(b"Read-only file system") == 3


def test_writable_paths_are_those(place: Place, way: Way) -> None:
    if place.is_furnished:
        pytest.skip("the root that is to be writable there is empty")
    script = "echo x > /etc/new; cat /etc/new /etc/known; ! touch /x"
    with place.box(filesystem_writable_paths=["/etc"]) as box:
        result = way(box, ["sh", "-c", script])
    assert (result.exit, result.out) == (0, b"x\nas it was\n")


def test_a_writable_path_that_is_not_there_is_told(place: Place) -> None:
    for fresh in (True, False, False):
        with (
            place.box(filesystem_writable_paths=["/none"]) as box,
            pytest.raises(FileNotFoundError, match="writable path /none") as caught,
        ):
            box.run(["true"], fresh=fresh)
        assert isinstance(caught.value, SetupError)
        assert caught.value.step == "source"


def test_mounts_lie_where_there_was_nothing(place: Place, way: Way, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("bound\n")
    mounts = [
        Mount.bind(tmp_path / "source", "/deep/down/here", read_only=True),
        Mount.bind(tmp_path / "source" / "file", "/etc/bound"),
        Mount.tmpfs("/space"),
    ]
    script = "cat /deep/down/here/file /etc/bound; echo x > /space/x; ! touch /deep/down/here/x"
    with place.box(extra_mounts=mounts) as box:
        result = way(box, ["sh", "-c", script])
    assert (result.exit, result.out) == (0, b"bound\nbound\n")


def test_proc_dev_and_tmp_are_the_runs_own(place: Place, way: Way) -> None:
    script = "cat /proc/1/comm; ls /tmp; echo x > /dev/null; head -c 2 /dev/zero | wc -c; tty"
    with place.box() as box:
        box.run(["touch", "/tmp/left"])
        result = way(box, ["sh", "-c", script])
    assert result.out is not None
    assert result.out.split(b"\n", 1)[1] == b"2\nnot a tty\n"


@needs_root
def test_no_device_of_the_root_opens(root: Path, tmp_path: Path, executor: str) -> None:
    for name in ("directory", "layer", "two layers", "disk", "upper"):
        (tmp_path / name).mkdir()
        place = PLACES[name](root, tmp_path / name)  # which copies files of the root
        for source in place.sources or (root,):
            device = source / "etc" / "zero"
            if not device.exists() and (source / "etc").is_dir():
                os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 5))
        with place.box() as box:
            for fresh in (True, False, False):
                result = box.run(["sh", "-c", "head -c 1 /etc/zero | wc -c"], fresh=fresh)
                assert result.out == b"0\n", name
        for device in tmp_path.rglob("etc/zero"):
            device.unlink()


def test_devices_of_layers_are_refused_where_none_opens(root: Path, executor: str) -> None:
    box = Sandbox(Overlay(root), devices="root")
    if executor == "chroot":
        assert box.run(["true"]).exit == 0
        return
    with pytest.raises(UnsupportedError, match="devices='root' with an Overlay"):
        box.run(["true"])


def test_a_timeout_ends_it(place: Place) -> None:
    script = "echo x > /etc/new; echo began; sleep 1000"
    with place.box() as box:
        result = late(
            lambda timeout: box.run(["sh", "-c", script], timeout=timeout),
            lambda result: result.out == b"began\n",
        )
        assert result.timed_out
        assert box.run(["cat", "/etc/known"]).out == b"as it was\n"


def test_runs_beside_each_other_do_not_meet(place: Place) -> None:
    if place.keeps:
        pytest.skip("they would meet")
    script = "echo $$ > /etc/mine; read line; ls /etc/other; cat /etc/mine"
    with place.box() as box, box.start(["sh", "-c", script], stdin=-1) as process:
        assert box.run(["sh", "-c", "echo x > /etc/other; ls /etc/mine"]).exit == 1
        out, err = process.communicate(b"\n", timeout=60)
    assert b"/etc/other" in (err or b"")
    assert len(out.split()) == 1


@pytest.mark.parametrize("user", ["caller", "root"])
def test_a_file_has_the_owner_that_it_had(place: Place, way: Way, user: Any) -> None:
    with place.box(user=user) as box:
        result = way(box, ["sh", "-c", "stat -c '%u %a' /bin/busybox /etc/known; id -u"])
    assert result.out is not None
    owner = result.out.split()[-1]
    assert result.out.split()[0::2][:2] == [owner, owner]


def test_the_sandbox_leaves_nothing(place: Place, way: Way, tmp_path: Path) -> None:
    gc.collect()  # what earlier tests left may go at any moment
    descriptors = set(os.listdir("/proc/self/fd"))
    mounts = host_mounts()
    with place.box() as box:
        way(box, ["sh", "-c", "echo x > /etc/new; mkdir -m 0 /closed; mkfifo /fifo"])
    slots.close_all()
    del box  # which keeps its layers in the store
    gc.collect()
    assert not [*tmp_path.glob("beside/storage/*")]
    assert set(os.listdir("/proc/self/fd")) <= descriptors
    assert host_mounts() == mounts
