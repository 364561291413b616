# SPDX-License-Identifier: Apache-2.0
"""deterministic=True, field by field, and what the caller says besides."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import require

import sandboxlib
from sandboxlib import Mount, Policy, Sandbox, SetupError, SpecError, UnsupportedError

PYTHON = os.path.realpath(sys.executable)
OURS = Path(sandboxlib.__file__).parent / "_etc"

LOOK = """
id -u; id -g; hostname; umask; cat /proc/self/personality
echo "$TZ $LC_ALL $SOURCE_DATE_EPOCH"
id -un; id -gn; date
"""
FIXED = ["0", "0", "sandbox", "0022", "00040000", "UTC C 315532800", "root", "root"]

either_way = pytest.mark.parametrize("fresh", [False, True], ids=["slot", "fresh"])


@pytest.fixture(params=["chroot", "user_namespace"])
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name in ("TZ", "LC_ALL", "SOURCE_DATE_EPOCH"):
        monkeypatch.delenv(name, raising=False)
    found = sandboxlib.get_executor(request.param)
    if reason := found.why_not():
        pytest.skip(reason)
    return found


@pytest.fixture
def _another_umask() -> Iterator[None]:
    previous = os.umask(0o77)
    yield
    os.umask(previous)


def sh(executor: ModuleType, box: Sandbox, script: str, **words: Any) -> str:
    result = executor.run_in(box, ["sh", "-c", script], **words)
    assert (result.exit, result.err) == (0, b""), result
    return str(result.out.decode())


@either_way
@pytest.mark.usefixtures("_another_umask")
def test_each_field(executor: ModuleType, shared_rootfs: Path, fresh: bool) -> None:
    with Sandbox(shared_rootfs, deterministic=True) as box:
        *seen, date = sh(executor, box, LOOK, fresh=fresh).splitlines()
        passwd = sh(executor, box, "cat /etc/passwd; echo; cat /etc/group", fresh=fresh)
    assert seen == FIXED
    assert " UTC " in date
    assert passwd == "\n".join((OURS / name).read_text() for name in ("passwd", "group"))
    assert not list((shared_rootfs / "etc").iterdir())


@either_way
def test_what_the_caller_says_comes_first(
    executor: ModuleType, shared_rootfs: Path, fresh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1234567890")
    monkeypatch.setenv("TZ", "Asia/Tokyo")  # of the caller's environment this does not count
    with Sandbox(shared_rootfs, deterministic=True, hostname="mine", umask=0o27) as box:
        seen = sh(executor, box, LOOK, fresh=fresh, extra_env={"LC_ALL": "de"}).splitlines()
        assert seen[2:6] == ["mine", "0027", "00040000", "UTC de 1234567890"]
        env = {"PATH": "/bin", "TZ": "JST-9", "LC_ALL": "ja"}
        seen = sh(executor, box, LOOK, fresh=fresh, env=env, extra_env={"LC_ALL": "x"}).splitlines()
        assert seen[5] == "JST-9 x 1234567890"
        assert " JST " in seen[-1]
    if executor.NAME == "chroot" or set(os.getgroups()) <= {os.getegid()}:
        with Sandbox(shared_rootfs, deterministic=True, user=1000) as box:
            seen = sh(executor, box, LOOK, fresh=fresh).splitlines()
            assert seen[:2] + seen[6:8] == ["1000", "1000", "build", "build"]


def test_an_environment_that_is_none(executor: ModuleType, shared_rootfs: Path) -> None:
    box = Sandbox(shared_rootfs, deterministic=True)
    for words in ({"extra_env": 5}, {"env": "PATH=/bin"}, {"extra_env": {"TZ": 5}}):
        with pytest.raises(SpecError):
            executor.run_in(box, ["true"], **words)


@either_way
def test_addresses_are_the_same(executor: ModuleType, fresh: bool) -> None:
    require(not PYTHON.startswith("/tmp/"), "Python is in /tmp")
    script = "print([l for l in open('/proc/self/maps')])"
    argv = [PYTHON, "-I", "-S", "-c", script]
    seen: dict[bool, set[bytes]] = {True: set(), False: set()}
    for deterministic in (True, False):
        with open_box("/", deterministic=deterministic, extra_mounts=[]) as box:
            for _ in range(3):
                result = executor.run_in(box, argv, cwd="/", fresh=fresh)
                assert result.exit == 0, result
                seen[deterministic].add(result.out)
    (same,) = seen[True]
    for part in (b"[stack]", b"[heap]", b"[vdso]", b"libc"):
        assert part in same
    assert len(seen[False]) == 3


@either_way
def test_a_root_without_accounts(executor: ModuleType, rootfs: Path, fresh: bool) -> None:
    """Mount points are made for the run."""
    (rootfs / "etc").rmdir()
    for words in ({}, {"filesystem_writable_paths": "none"}):
        with open_box(rootfs, deterministic=True, **words) as box:  # type: ignore[arg-type]
            assert "build" in sh(executor, box, "cat /etc/passwd /etc/group", fresh=fresh)
            assert sh(executor, box, "ls /etc", fresh=fresh) == "group\npasswd\n"
        assert not (rootfs / "etc").exists()


@either_way
def test_a_root_with_accounts(executor: ModuleType, rootfs: Path, fresh: bool) -> None:
    for name in ("passwd", "group"):
        (rootfs / "etc" / name).write_text("theirs:x:0:\n")
    with open_box(rootfs, deterministic=True) as box:
        assert "theirs" not in sh(executor, box, "cat /etc/passwd /etc/group", fresh=fresh)
        result = executor.run_in(box, ["sh", "-c", "echo x >> /etc/passwd"], fresh=fresh)
        assert b"Read-only" in result.err
    assert (rootfs / "etc" / "passwd").read_text() == "theirs:x:0:\n"
    mine = rootfs.parent / "mine"
    mine.write_text("mine:x:0:0:::\n")
    with open_box(
        rootfs, deterministic=True, extra_mounts=[Mount.bind(mine, "/etc/passwd")]
    ) as box:
        assert sh(executor, box, "id -un; cat /etc/group", fresh=fresh).startswith("mine\nroot:")


def test_accounts_that_cannot_be_there(executor: ModuleType, rootfs: Path) -> None:
    (rootfs / "etc").rmdir()
    (rootfs / "etc").write_text("a file")
    with pytest.raises(SetupError, match=r"deterministic: bind .*_etc/passwd on /etc/passwd"):
        executor.run_in(open_box(rootfs, deterministic=True), ["true"])


def test_an_archive_is_the_same_byte_for_byte(
    executor: ModuleType, shared_rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made by a caller with another umask, time zone and locale, in a slot and fresh."""
    script = """
mkdir /tmp/d; cd /tmp/d; hostname > name; date -r /bin/busybox +%Z > zone; id > ids
find . -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
tar -c -f - .
"""
    mounts = [Mount.tmpfs("/tmp", mode=0o1777)]
    seen = set()
    for umask, zone, fresh in ((0o22, "UTC", False), (0o77, "Asia/Tokyo", True)):
        monkeypatch.setenv("TZ", zone)
        previous = os.umask(umask)
        try:
            with Sandbox(shared_rootfs, deterministic=True, extra_mounts=mounts) as box:
                result = executor.run_in(box, ["sh", "-c", script], fresh=fresh)
        finally:
            os.umask(previous)
        assert (result.exit, result.err) == (0, b"")
        seen.add(result.out)
    (archive,) = seen
    assert b"ustar" in archive
    assert b"root" in archive


def test_who_cannot_do_all_of_it_refuses(shared_rootfs: Path) -> None:
    with pytest.raises(SpecError, match="mounts"):
        Sandbox(shared_rootfs, deterministic=True, mounts="undefined")
    box = Sandbox(shared_rootfs, deterministic=True, policy=Policy(capabilities="all"))
    for name in ("bubblewrap", "linux_user_chroot"):
        executor = sandboxlib.get_executor(name)
        if not executor.why_not():
            assert "deterministic=True" in " ".join(executor.refusals(box))
            with pytest.raises(UnsupportedError, match="deterministic=True"):
                executor.run_in(box, ["true"])
