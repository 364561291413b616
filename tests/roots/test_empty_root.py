# SPDX-License-Identifier: Apache-2.0
"""Overlay(), the empty root: it has what the mounts put there, each run anew, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib.machine import needs_root
from lib.users import as_nobody

from sandboxlib import Limits, Mount, Overlay, Result, Sandbox, SandboxError, SetupError

pytest_plugins = ["lib.ways"]
pytestmark = pytest.mark.usefixtures("host_mounts_unchanged")


@pytest.fixture
def furniture(shared_rootfs: Path) -> list[Mount]:
    """What makes an empty root one in which a shell runs."""
    return [
        Mount.bind(shared_rootfs / "bin", "/usr/bin", read_only=True),
        Mount.symlink("usr/bin", "/bin"),
        *(Mount.directory(f"/{name}") for name in ("proc", "dev")),
        Mount.directory("/tmp", mode=0o1777),
        Mount.file(b"box:x:0:0::/:/bin/sh\n", "/etc/passwd"),
    ]


@pytest.fixture
def sh(executor: str, request: pytest.FixtureRequest, furniture: list[Mount]) -> Callable[..., Any]:
    """Runs a script in an empty root; the lines that it prints. SetupError."""
    from lib.ways import WAYS  # a plugin, which pytest imports first

    def call(way: str, script: str, *mounts: Mount, **options: Any) -> list[str]:
        with Sandbox(Overlay(), extra_mounts=[*furniture, *mounts], **options) as box:
            result: Result | SandboxError = WAYS[way](box, ["/bin/sh", "-c", script])
        if isinstance(result, SandboxError):  # a map that goes on yields it
            raise result
        assert result.exit == 0, result.err
        return os.fsdecode(result.out or b"").splitlines()

    return call


ways = pytest.mark.parametrize("way", ["fresh", "slot", "map", "start", "async"])


@ways
def test_the_root_has_what_the_mounts_put_there(sh: Callable[..., Any], way: str) -> None:
    script = "ls -A /; cat /etc/passwd; echo > /dev/null; ls -d /proc/self/exe; stat -c %a / /etc"
    expected = ["bin", "dev", "etc", "proc", "tmp", "usr", "box:x:0:0::/:/bin/sh"]
    assert sh(way, script) == [*expected, "/proc/self/exe", "755", "755"]


@ways
def test_each_run_begins_with_the_same(sh: Callable[..., Any], way: str) -> None:
    script = """
        [ ! -e /left ] && [ ! -e /usr/left ] && [ ! -e /new/left ] && [ -L /bin ] || exit 1
        touch /left /usr/left /new/left && rm /bin && mv /usr /moved 2>/dev/null
        rm -rf /new && ! rm /etc/passwd 2>/dev/null
    """
    assert sh(way, script, Mount.directory("/new", mode=0o700)) == []


@ways
def test_a_read_only_one_can_be_written_to_nowhere(sh: Callable[..., Any], way: str) -> None:
    script = "for d in / /usr /etc /new; do touch $d/x 2>/dev/null && echo $d; done; touch /tmp/x"
    none = {"filesystem_writable_paths": "none"}
    assert sh(way, script, Mount.directory("/new", mode=0o777), **none) == []


@ways
def test_the_order_is_kept(sh: Callable[..., Any], way: str) -> None:
    mounts = [
        Mount.directory("/a/b"),
        Mount.file(b"hidden", "/a/b/hidden"),
        Mount.tmpfs("/a/b"),
        Mount.file(b"shown\n", "/a/b/shown"),
        Mount.symlink("/a/b", "/way"),
        Mount.directory("/way/through"),
        Mount.directory("/beside"),
    ]
    assert sh(way, "ls /a/b; cat /way/shown; ls -d /beside", *mounts) == [
        *("shown", "through", "shown", "/beside"),
    ]


def test_a_session_shares_one_root(executor: str, furniture: list[Mount]) -> None:
    with Sandbox(Overlay(), extra_mounts=furniture) as box:
        for _ in range(2):
            with box.session() as session:
                assert session.run(["sh", "-c", "[ ! -e /left ] && touch /left"]).exit == 0
                assert session.run(["ls", "/left"]).exit == 0


@ways
def test_the_host_is_out_of_reach(sh: Callable[..., Any], way: str, tmp_path: Path) -> None:
    (tmp_path / "secret").touch()
    script = f"""
        for up in . .. ../.. /.. /../.. /proc/self/root/.. /proc/1/root/..; do
            [ -e $up{tmp_path}/secret ] && echo $up
        done
        cd / && ls -A .. | sort | head -n 1
    """
    assert sh(way, script) == ["bin"]


def test_its_size_is_bounded(executor: str, furniture: list[Mount]) -> None:
    limits = Limits(changes="1M")
    with Sandbox(Overlay(), extra_mounts=furniture, limits=limits) as box:
        result = box.run(["dd", "if=/dev/zero", "of=/big", "bs=64k", "count=64"])
    assert result.exit != 0
    assert b"No space" in (result.err or b"")


def test_a_program_that_no_mount_brings_is_not_found(executor: str) -> None:
    with Sandbox(Overlay()) as box, pytest.raises(SetupError) as caught:
        box.run(["/bin/true"])
    assert (caught.value.step, caught.value.errno) == ("exec", 2)


@needs_root
def test_nobody_has_one_too(shared_rootfs: Path) -> None:
    script = """
from sandboxlib import Mount, Overlay, Sandbox
mounts = [Mount.file(open(0, "rb").read(), "/bin/busybox", mode=0o555), Mount.directory("/new")]
with Sandbox(Overlay(), extra_mounts=mounts) as box:
    for _ in range(2):
        result = box.run(["/bin/busybox", "sh", "-c", "touch /new/x && echo /* /new/*"])
        print(result.out, result.err)
"""
    with (
        tempfile.TemporaryDirectory(prefix="sandboxlib-empty.") as needed,
        open(shared_rootfs / "bin" / "busybox", "rb") as busybox,
    ):
        argv = [*as_nobody(Path(needed)), sys.executable, "-c", script]
        done = subprocess.run(argv, stdin=busybox, capture_output=True, text=True, check=False)
    assert done.stdout == "b'/bin /new /new/x\\n' b''\n" * 2, done.stderr


def test_what_the_mounts_put_there_is_no_change(executor: str, furniture: list[Mount]) -> None:
    mounts = [*furniture, Mount.symlink("x", "/to/be/replaced"), Mount.directory("/deep/er")]
    script = "touch /new /deep/er/file /tmp/x; ln -sf y /to/be/replaced"
    with (
        Sandbox(Overlay(), extra_mounts=mounts) as box,
        box.run(["/bin/sh", "-c", script], changes="keep", check=True).changes as changes,
    ):
        paths = [change.path for change in changes]
    assert paths == [
        *("/deep", "/deep/er", "/deep/er/file", "/new"),
        *("/to", "/to/be", "/to/be/replaced"),
    ]
