# SPDX-License-Identifier: Apache-2.0
"""A path means what its caller meant: a source in the caller's root, a target and a writable path
in that of the sandbox, whatever ".." and links they contain.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import needs_root

from sandboxlib import Mount, Result, SetupError, run_sandbox

pytestmark = needs_root
pytest_plugins = ["lib.ways"]

UP = "../" * 40


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A directory of the caller's, with links to it that go up too far."""
    place = tmp_path / "host"
    place.mkdir()
    (place / "f").write_text("host\n")
    for name, leads_to in (("file", place / "f"), ("directory", place)):
        os.symlink(f"{UP}{str(leads_to)[1:]}", tmp_path / name)
    return place


def sources(tmp_path: Path, host: Path) -> list[tuple[str, str, str]]:
    """(source, target, what to read there)."""
    return [
        (f"{tmp_path}/file", "/etc/f", "/etc/f"),
        (f"{tmp_path}/directory", "/tmp", "/tmp/f"),
        (f"/../..{host}/f", "/etc/f", "/etc/f"),
        (f"{host}/{UP}{host}", "/tmp", "/tmp/f"),
    ]


@pytest.mark.parametrize("case", range(4))
def test_a_source_with_too_many_dots_is_the_callers(
    rootfs: Path, tmp_path: Path, host: Path, run: Callable[..., Result], case: int
) -> None:
    inside = rootfs / str(host)[1:]
    inside.mkdir(parents=True)
    (inside / "f").write_text("root\n")
    (rootfs / "etc" / "f").touch()
    source, target, read = sources(tmp_path, host)[case]
    for read_only in (False, True):
        mounts = [Mount.bind(source, target, read_only=read_only)]
        assert run(rootfs, ["cat", read], extra_mounts=mounts) == (0, b"host\n", b"")


@pytest.mark.parametrize("case", range(4))
def test_it_need_not_exist_in_the_sandbox(
    rootfs: Path, tmp_path: Path, host: Path, executor: str, case: int
) -> None:
    source, target, read = sources(tmp_path, host)[case]
    (rootfs / "etc" / "f").touch()
    for fresh in (True, False):
        with open_box(rootfs, extra_mounts=[Mount.bind(source, target)]) as box:
            assert box.run(["cat", read], fresh=fresh).out == b"host\n"


def test_where_the_root_is_the_callers_a_source_does_not_become_read_only(
    tmp_path: Path, host: Path, run: Callable[..., Result]
) -> None:
    """The copy of the root is, and a surplus ".." led into it."""
    mounts = [Mount.bind(f"{tmp_path}/directory", "/mnt")]
    words = {"extra_mounts": mounts, "filesystem_writable_paths": "none"}
    assert run("/", ["touch", "/mnt/new"], **words).exit == 0
    assert (host / "new").exists()


@pytest.mark.parametrize("link", [f"{UP}real", "/../../real", "/real", "real", "chain"])
def test_a_writable_path_and_a_target_stay_in_the_root(
    rootfs: Path, tmp_path: Path, run: Callable[..., Result], link: str
) -> None:
    (rootfs / "real").mkdir()
    (rootfs / "chain").symlink_to("real")
    (rootfs / "link").symlink_to(link)
    script = "touch /real/new && touch /etc/new"
    words: dict[str, Any] = {"filesystem_writable_paths": ["/link"]}
    assert run(rootfs, ["sh", "-c", script], **words).exit == 1
    assert os.listdir(rootfs / "real") == ["new"]
    assert not (rootfs / "etc" / "new").exists()
    words = {"extra_mounts": [Mount.tmpfs("/link")]}
    assert run(rootfs, ["ls", "/real"], **words).out == b""


def test_of_the_callers_root_a_writable_path_goes_up_too_far(
    tmp_path: Path, run: Callable[..., Result]
) -> None:
    (tmp_path / "hole").mkdir()
    os.symlink(f"{UP}{str(tmp_path)[1:]}/hole", tmp_path / "link")
    script = f"touch {tmp_path}/hole/new && touch {tmp_path}/new"
    words = {"filesystem_writable_paths": [f"{tmp_path}/link"]}
    assert run("/", ["sh", "-c", script], **words).exit == 1
    assert os.listdir(tmp_path / "hole") == ["new"]
    assert not (tmp_path / "new").exists()


def test_a_source_by_a_descriptor_is_refused(rootfs: Path, host: Path, executor: str) -> None:
    """It names a mount of the caller's namespace, and the run has one of its own."""
    fd = os.open(host, os.O_PATH)
    try:
        for fresh in (True, False):
            mounts = [Mount.bind(f"/proc/{os.getpid()}/fd/{fd}", "/tmp")]
            with pytest.raises(SetupError) as caught, open_box(rootfs, extra_mounts=mounts) as box:
                box.run(["cat", "/tmp/f"], fresh=fresh)
            assert caught.value.step == "source"
    finally:
        os.close(fd)


# ---- into what the run mounted -----------------------------------------------------------------


def test_a_mount_may_lie_in_a_tmpfs_that_a_link_leads_to(
    rootfs: Path, host: Path, run: Callable[..., Result]
) -> None:
    (rootfs / "run").mkdir()
    (rootfs / "var").mkdir()
    (rootfs / "var" / "run").symlink_to("/run")
    for first, second in (("/run", "/var/run/a/b"), ("/var/run", "/run/a/b"), ("/run", "/run/a/b")):
        mounts = [Mount.tmpfs(first), Mount.bind(host, second)]
        assert run(rootfs, ["cat", "/run/a/b/f"], extra_mounts=mounts).out == b"host\n"
    assert os.listdir(rootfs / "run") == []


def test_nothing_is_made_in_a_source_that_lies_over_a_tmpfs(
    rootfs: Path, host: Path, executor: str
) -> None:
    """By the names alone /link/new would lie in the tmpfs."""
    (rootfs / "real").mkdir()
    (rootfs / "link").symlink_to("real")
    mounts = [Mount.tmpfs("/link"), Mount.bind(host, "/real"), Mount.tmpfs("/link/new")]
    for fresh in (True, False):
        with pytest.raises(SetupError), open_box(rootfs, extra_mounts=mounts) as box:
            box.run(["true"], fresh=fresh)
        assert os.listdir(host) == ["f"]


def test_what_is_made_on_the_way_can_be_passed_by_all(rootfs: Path, host: Path) -> None:
    before = os.umask(0o777)
    try:
        mounts = [Mount.tmpfs("/tmp", mode=0o755), Mount.bind(host, "/tmp/a/b")]
        words: dict[str, Any] = {"extra_mounts": mounts, "user": 1000, "umask": 0o22}
        os.chmod(host, 0o755)
        os.chmod(host / "f", 0o644)
        for fresh in (True, False):
            with open_box(rootfs, **words) as box:
                assert box.run(["cat", "/tmp/a/b/f"], fresh=fresh).out == b"host\n"
    finally:
        os.umask(before)


DANGLING = {
    "etc/resolv.conf": "../run/systemd/resolve/stub-resolv.conf",
    "etc/localtime": "/usr/share/zoneinfo/none",
    "etc/chain": "localtime",
    "gone": "/nothing/../nothing//at/all",
    "over": "../../../there",
}


@pytest.fixture
def dangling(rootfs: Path) -> Iterator[Path]:
    """A root with links that lead to nothing, which is as before after the test."""
    for name, leads_to in DANGLING.items():
        (rootfs / name).symlink_to(leads_to)
    before = sorted(os.walk(rootfs))
    yield rootfs
    assert sorted(os.walk(rootfs)) == before


@pytest.mark.parametrize("target", ["/etc/resolv.conf", "/etc/chain", "/gone/x", "/over"])
@pytest.mark.parametrize("hidden", ["", "/run", "/usr", "/nothing"])
def test_a_mount_goes_to_where_a_link_leads_even_to_nothing(
    dangling: Path, host: Path, run: Callable[..., Result], target: str, hidden: str
) -> None:
    """In the root, and in a tmpfs of the run that lies over the place."""
    mounts = [Mount.tmpfs(hidden)] if hidden else []
    mounts.append(Mount.bind(host / "f", target))
    script = f"cat {target}; readlink /etc/resolv.conf"
    found = run(dangling, ["sh", "-c", script], extra_mounts=mounts)
    assert found == (0, f"host\n{DANGLING['etc/resolv.conf']}\n".encode(), b"")


def test_runs_at_once_share_what_is_made_behind_a_link(
    dangling: Path, host: Path, executor: str
) -> None:
    mounts = [Mount.bind(host / "f", "/etc/resolv.conf")]
    with ThreadPoolExecutor(4) as pool:
        boxes = [open_box(dangling, extra_mounts=mounts) for _ in range(4)]
        runs = [pool.submit(box.run, ["cat", "/etc/resolv.conf"], fresh=True) for box in boxes * 4]
        assert {run.result().out for run in runs} == {b"host\n"}


def test_a_loop_of_links_is_named(rootfs: Path, host: Path, executor: str) -> None:
    (rootfs / "etc" / "loop").symlink_to("loop")
    for fresh in (True, False):
        mounts = [Mount.bind(host / "f", "/etc/loop")]
        with (
            pytest.raises(SetupError, match="a loop of symbolic links"),
            open_box(rootfs, extra_mounts=mounts) as box,
        ):
            box.run(["true"], fresh=fresh)


# ---- many of them ------------------------------------------------------------------------------


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_binds_than_the_soft_limit_on_open_files(
    rootfs: Path, host: Path, executor: str, limits: tuple[int, int]
) -> None:
    """The child raises its own, and the caller and the command keep theirs."""
    if limits[1] < 2048:
        pytest.skip("the hard limit on open files is below 2,048")
    mounts = [Mount.bind(host, "/tmp") for _ in range(600)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    for fresh in (True, False):
        with open_box(rootfs, extra_mounts=mounts) as box:
            found = box.run(["sh", "-c", "cat /tmp/f; ulimit -n; ulimit -Hn"], fresh=fresh)
        assert found.out == f"host\n256\n{limits[1]}\n".encode()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 256


def test_more_binds_than_the_hard_limit_are_a_setup_error(rootfs: Path, host: Path) -> None:
    script = f"""
import resource, sys
from sandboxlib import Mount, SetupError, run_sandbox
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
try:
    run_sandbox(sys.argv[1], ["true"], extra_mounts=[Mount.bind({str(host)!r}, "/tmp")] * 600)
except SetupError as error:
    print(error.step, "ulimit -Hn" in str(error))
"""
    import subprocess
    import sys

    argv = [sys.executable, "-c", script, str(rootfs)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout == "source True\n", done.stderr


def test_the_two_forms_know_the_same_paths(rootfs: Path, tmp_path: Path, host: Path) -> None:
    mounts = [(f"{tmp_path}/directory", "tmp", None, "bind")]
    found = run_sandbox(["cat", "/tmp/f"], filesystem_root=str(rootfs), extra_mounts=mounts)
    assert found.out == b"host\n"
