# SPDX-License-Identifier: Apache-2.0
"""Commands of other runs change the root while entries are added to it; a command wants to change
what its mirror shows, or leave something there for the next run.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lib.boxes import open_box
from lib.machine import many, needs_root

from sandboxlib import Mount, Policy, Sandbox, SetupError

pytest_plugins = ["lib.ways"]
pytestmark = pytest.mark.usefixtures("host_mounts_unchanged")


@contextlib.contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[None]:
    """Does some work again and again, in another thread."""
    is_over = threading.Event()

    def repeat() -> None:
        while not is_over.is_set():
            work()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def content(directory: Path) -> list[str]:
    return sorted(str(path) for path in directory.rglob("*"))


@pytest.mark.parametrize("fresh", [True, False])
def test_a_name_that_becomes_a_link_leads_nowhere(
    executor: str, rootfs: Path, tmp_path: Path, fresh: bool
) -> None:
    """What the entries go through is a directory or a link out of the root, by turns."""
    outside, etc = tmp_path / "outside", rootfs / "etc"
    (outside / "kept").mkdir(parents=True)
    (etc / "way" / "kept").mkdir(parents=True)
    (etc / "link").symlink_to(outside)

    def swap() -> None:
        os.rename(etc / "way", etc / "aside")
        os.rename(etc / "link", etc / "way")
        os.rename(etc / "way", etc / "link")
        os.rename(etc / "aside", etc / "way")

    mounts = [
        Mount.directory("/etc/way/new/er"),
        Mount.file(b"x", "/etc/way/file"),
        Mount.symlink("x", "/etc/way/link"),
        Mount.directory("/etc/way/kept/new"),
    ]
    ended = 0
    with meanwhile(swap), Sandbox(rootfs, extra_mounts=mounts) as box:
        for _ in range(many(20, 200)):
            with contextlib.suppress(SetupError):
                box.run(["sh", "-c", "touch /etc/way/x /etc/way/new/x; true"], fresh=fresh)
                ended += 1
    assert ended
    assert content(outside) == [str(outside / "kept")]
    assert content(etc / "way") == [str(etc / "way" / "kept")]


def test_an_entry_that_is_swapped_shows_what_was_opened(
    executor: str, rootfs: Path, tmp_path: Path
) -> None:
    """A file of the root is a link to a secret of the host by turns: the link stays a link."""
    (tmp_path / "secret").write_text("secret")
    etc = rootfs / "etc"
    (etc / "a").write_text("public")
    (etc / "b").symlink_to(tmp_path / "secret")

    def swap() -> None:
        for old, new in (("a", "c"), ("b", "a"), ("c", "b")):
            os.rename(etc / old, etc / new)

    with meanwhile(swap):
        for _ in range(many(20, 200)):
            box = Sandbox(rootfs, extra_mounts=[Mount.directory("/etc/new")])
            with contextlib.suppress(SetupError):
                out = box.run(["sh", "-c", "cat /etc/a /etc/b /etc/c"], fresh=True).out or b""
                assert b"secret" not in out


def test_a_storm_of_names_ends_in_a_mirror_or_an_error(executor: str, rootfs: Path) -> None:
    numbers = iter(range(1 << 30))
    etc = rootfs / "etc"

    def make() -> None:
        number = next(numbers)
        (etc / f"{number}").mkdir()
        (etc / f"{number - 50}").exists() and (etc / f"{number - 50}").rmdir()

    with meanwhile(make), Sandbox(rootfs, extra_mounts=[Mount.directory("/etc/new")]) as box:
        for _ in range(many(20, 100)):
            assert box.run(["test", "-d", "/etc/new"]).exit == 0


@needs_root
def test_no_capability_makes_a_mirror_writable_for_the_next_run(rootfs: Path) -> None:
    """A command that may mount gets no slot, so what it does to the scratch ends with it."""
    policy = Policy(capabilities="all", seccomp="none")
    mounts = [Mount.directory("/new"), Mount.file(b"content\n", "/file")]
    script = "mount -o remount,rw / ; mount -o remount,rw /file; echo x > /file; touch /left; ls /"
    with open_box(rootfs, filesystem_writable_paths="none", extra_mounts=mounts) as box:
        other = box.replace(policy=policy)
        for _ in range(2):
            other.run(["sh", "-c", script])
            result = box.run(["sh", "-c", "cat /file; ls / | grep left; touch /x || true"])
            assert result.out == b"content\n"
        other.close()
    assert not (rootfs / "left").exists()
    assert not (rootfs / "file").exists()


@pytest.mark.parametrize("number", range(4))
def test_the_host_is_not_behind_a_mirror(
    executor: str, rootfs: Path, tmp_path: Path, number: int
) -> None:
    (tmp_path / "secret").write_text("secret")
    mounts = [
        *(Mount.directory("/new"), Mount.file(b"x", "/etc/file"), Mount.symlink("..", "/up")),
        Mount.directory("/etc/new"),
    ]
    script = f"""
        for up in . .. ../.. /.. /up /up/.. /new/../.. /etc/new/../../.. /proc/1/root/..; do
            [ -e $up{tmp_path}/secret ] && echo $up
            [ -e $up/f00000 ] && echo $up scratch
        done
    """
    with Sandbox(rootfs, extra_mounts=mounts[number:]) as box:
        for fresh in (True, False, False):
            assert box.run(["sh", "-c", script], fresh=fresh).out == b""
