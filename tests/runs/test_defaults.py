# SPDX-License-Identifier: Apache-2.0
"""Two sets of defaults: Sandbox is safe at the first try, run_sandbox is as its callers know it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import OPEN, open_box
from lib.machine import needs_root, require

import sandboxlib
from sandboxlib import (
    Mount,
    Policy,
    Result,
    Sandbox,
    SandboxExecutor,
    SetupError,
    SpecError,
    UnsupportedError,
    run_sandbox,
)
from sandboxlib.__main__ import run_sandbox_command

SEE = """
ls /sys/class/net 2>/dev/null || echo none; ls -A /tmp; ls /dev
touch /file 2>/dev/null && echo wrote /file; touch /tmp/made 2>/dev/null && echo wrote /tmp/made
grep -E '^(CapEff|Seccomp):' /proc/self/status; echo "$HOME"
"""
#: The defaults of a Sandbox, and those of run_sandbox.
TABLE: dict[str, tuple[object, object]] = {
    "network": ("isolated", "undefined"),
    "mounts": ("isolated", "isolated"),
    "processes": ("isolated", "isolated"),
    "ipc": ("isolated", "isolated"),
    "hostname": (None, None),
    "extra_mounts": ((), ()),
    "filesystem_writable_paths": ("none", "all"),
    "tmp": ("private", "root"),
    "devices": ("minimal", "minimal"),
    "resolv_conf": (False, False),
    "policy": (Policy(), Policy()),
    "init": (True, True),
    "user": ("caller", "caller"),
    "umask": (None, None),
    "limits": (None, None),
    "deterministic": (False, False),
    "personality": (None, None),
    "store": (None, None),
}


def _map(box: Sandbox, argv: list[str]) -> Result:
    found: Result = next(iter(box.map([argv])))
    return found


def _executor(box: Sandbox, argv: list[str]) -> Result:
    with SandboxExecutor(box, 1) as pool:
        found: Result = pool.submit(argv).result()
    return found


def _slot(box: Sandbox, argv: list[str]) -> Result:
    box.run(["sh", "-c", "echo left > /tmp/left"])
    return box.run(argv)


WAYS: dict[str, Callable[[Sandbox, list[str]], Result]] = {
    "slot": _slot,
    "fresh": lambda box, argv: box.run(argv, fresh=True),
    "map": _map,
    "executor": _executor,
    "async": lambda box, argv: asyncio.run(box.run_async(argv)),
}


@pytest.fixture
def root(rootfs: Path) -> Path:
    (rootfs / "tmp" / "of-the-root").touch()
    return rootfs


def test_the_values_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sandbox] = []

    def run_command(box: Sandbox, *_: object) -> Any:
        seen.append(box)

    monkeypatch.setattr(sandboxlib._choice.choose.api, "_run", run_command)
    run_sandbox("/x", ["true"])
    assert set(TABLE) == set(Sandbox._fields) - {"root"}
    for name, (safe, earlier) in TABLE.items():
        assert getattr(Sandbox("/x"), name) == safe, name
        assert getattr(seen[0], name) == earlier, name


@needs_root
@pytest.mark.parametrize("way", WAYS)
def test_a_sandbox_is_safe_at_the_first_try(root: Path, way: str) -> None:
    with Sandbox(root) as box:
        result = WAYS[way](box, ["sh", "-c", SEE])
    lines = (result.out or b"").decode().split("\n")
    assert "of-the-root" not in lines
    assert "left" not in lines
    assert "null" in lines
    assert "wrote /file" not in lines
    assert "wrote /tmp/made" in lines
    assert "Seccomp:\t2" in lines
    assert result.isolation["network"] == "isolated"
    assert os.listdir(root / "tmp") == ["of-the-root"]
    assert not (root / "file").exists()


@needs_root
def test_run_sandbox_keeps_what_its_callers_have(root: Path) -> None:
    result = run_sandbox(root, ["sh", "-c", SEE])
    lines = (result.out or b"").decode().split("\n")
    assert {"of-the-root", "null", "wrote /file", "wrote /tmp/made", "Seccomp:\t2"} <= set(lines)
    assert result.isolation["network"] == "undefined"
    assert (root / "file").exists()
    assert (root / "tmp" / "made").exists()


@needs_root
def test_the_command_line_is_safe(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_sandbox_command([str(root), "sh", "-c", SEE]) == 0
    lines = capfd.readouterr().out.split("\n")
    assert "wrote /tmp/made" in lines
    assert not {"wrote /file", "of-the-root"} & set(lines)
    options = ["--writable", "all", "--tmp", "root", "--network", "undefined"]
    assert run_sandbox_command([*options, str(root), "sh", "-c", SEE]) == 0
    assert {"wrote /file", "of-the-root"} <= set(capfd.readouterr().out.split("\n"))
    assert run_sandbox_command(["--mounts", "undefined", str(root), "ls", "/tmp"]) == 0
    assert "of-the-root" in capfd.readouterr().out


# ---- /tmp ------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("fresh", [False, True], ids=["slot", "fresh"])
def test_extra_mounts_come_after_tmp(root: Path, tmp_path: Path, fresh: bool) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").touch()
    with Sandbox(root, extra_mounts=[Mount.bind(source, "/tmp/deep/er")]) as box:
        listed = box.run(["sh", "-c", "ls /tmp; ls /tmp/deep; ls /tmp/deep/er"], fresh=fresh)
        assert listed.out == b"deep\ner\nfile\n"
    assert os.listdir(root / "tmp") == ["of-the-root"]
    with Sandbox(root, extra_mounts=[Mount.bind(source, "/tmp")]) as box:
        assert box.run(["ls", "/tmp"], fresh=fresh).out == b"file\n"


@needs_root
@pytest.mark.parametrize("fresh", [False, True], ids=["slot", "fresh"])
def test_a_root_without_tmp_gets_none(root: Path, fresh: bool) -> None:
    (root / "tmp" / "of-the-root").unlink()
    (root / "tmp").rmdir()
    with Sandbox(root) as box:
        assert box.run(["ls", "-d", "/tmp"], fresh=fresh).exit == 1
    assert not (root / "tmp").exists()


@pytest.mark.parametrize("name", ["chroot", "linux_user_chroot", "user_namespace", "bubblewrap"])
def test_every_executor_has_a_private_tmp_or_refuses(root: Path, name: str) -> None:
    executor = sandboxlib.get_executor(name)
    if reason := executor.why_not():
        pytest.skip(reason)  # chroot takes root, and linux-user-chroot is on few machines
    (root / "tmp").chmod(0o1777)
    policy = Policy(capabilities="all" if name == "linux_user_chroot" else "default")
    box = open_box(root, tmp="private", policy=policy)
    try:
        result = executor.run_in(box, ["sh", "-c", "touch /tmp/made; ls /tmp"])
    except UnsupportedError:
        assert executor.refusals(box)
        return
    assert result[:2] == (0, b"made\n")
    assert os.listdir(root / "tmp") == ["of-the-root"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"tmp": "mine"}, "tmp is 'mine'"),
        ({"tmp": "private", "mounts": "undefined"}, "tmp='private' needs mounts='isolated'"),
        ({"filesystem_writable_paths": ["/tmp/x"]}, "/tmp/x lies in the private /tmp.*tmp='root'"),
        ({"filesystem_writable_paths": ["tmp"]}, "lies in the private /tmp"),
        ({"resolv_conf": True}, "resolv_conf needs network='undefined'"),
        ({"resolv_conf": True, **OPEN, "mounts": "undefined"}, "needs mounts='isolated'"),
        ({"resolv_conf": 1}, "resolv_conf is a int"),
        ({"personality": "linux64"}, "personality is 'linux64'"),
    ],
    ids=str,
)
def test_what_makes_no_sense_says_what_would(words: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        Sandbox("/", **words)


def test_defaults_follow_what_they_depend_on() -> None:
    """Without a mount namespace nothing can be mounted, and nothing be read-only."""
    bare = Sandbox("/", mounts="undefined")
    assert (bare.filesystem_writable_paths, bare.tmp) == ("all", "root")
    assert bare.replace(mounts="isolated") == Sandbox("/")
    assert Sandbox("/").replace(mounts="undefined") == bare
    given = Sandbox("/", tmp="root", filesystem_writable_paths="all")
    assert given.replace(hostname="x").tmp == "root"
    assert Sandbox("/") == Sandbox("/", tmp="private", filesystem_writable_paths="none")
    with pytest.raises(SpecError):
        Sandbox("/", tmp="private").replace(mounts="undefined")


def test_shared_processes_take_a_root_that_can_be_written_to() -> None:
    if os.geteuid() != 0:
        pytest.skip("others run in a user namespace of their own")
    with pytest.raises(UnsupportedError, match="say filesystem_writable_paths='all'"):
        sandboxlib.chroot.plan_of(Sandbox("/", processes="undefined"))


# ---- cwd -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chroot", "user_namespace", "bubblewrap"])
def test_a_default_cwd_that_is_not_there_is_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    executor = sandboxlib.get_executor(name)
    if reason := executor.why_not():
        pytest.skip(reason)  # chroot takes root, and linux-user-chroot is on few machines
    require(str(tmp_path).startswith("/tmp/"), "it is not in /tmp")
    box = Sandbox("/")
    monkeypatch.chdir(tmp_path)
    for fresh in (True, False):
        assert executor.run_in(box, ["pwd"], fresh=fresh).out == b"/\n"
    assert executor.run_in(open_box("/"), ["pwd"]).out == os.fsencode(tmp_path) + b"\n"
    monkeypatch.chdir("/usr")
    assert executor.run_in(box, ["pwd"]).out == b"/usr\n"
    with pytest.raises(SetupError) as caught:
        executor.run_in(box, ["pwd"], cwd=str(tmp_path))
    assert caught.value.step == "cwd"


# ---- resolv_conf, personality ----------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("fresh", [False, True], ids=["slot", "fresh"])
def test_resolv_conf_is_the_callers(root: Path, fresh: bool) -> None:
    require(os.path.isfile("/etc/resolv.conf"), "the machine has no resolv.conf")
    script = ["sh", "-c", "cat /etc/resolv.conf; echo x >> /etc/resolv.conf"]
    with Sandbox(root, network="undefined", resolv_conf=True) as box:
        result = box.run(script, fresh=fresh)
    assert result.out == Path("/etc/resolv.conf").read_bytes()
    assert result.exit != 0


@needs_root
@pytest.mark.parametrize("fresh", [False, True], ids=["slot", "fresh"])
@pytest.mark.parametrize("lacks", ["the file", "the directory", "where a link leads"])
def test_resolv_conf_is_there_in_any_root(rootfs: Path, fresh: bool, lacks: str) -> None:
    require(os.path.isfile("/etc/resolv.conf"), "the machine has no resolv.conf")
    if lacks == "the directory":
        (rootfs / "etc").rmdir()
    elif lacks == "where a link leads":
        link = rootfs / "etc" / "resolv.conf"
        link.symlink_to("../run/systemd/resolve/stub-resolv.conf")
    before = sorted(os.walk(rootfs))
    with Sandbox(rootfs, network="undefined", resolv_conf=True) as box:
        result = box.run(["cat", "/etc/resolv.conf"], fresh=fresh)
    assert result.out == Path("/etc/resolv.conf").read_bytes()
    assert sorted(os.walk(rootfs)) == before


LINKED = """
mount -t tmpfs x /run && mkdir /run/resolver && echo nameserver 192.0.2.53 > /run/resolver/conf
mount -t tmpfs x /etc && ln -s ../run/resolver/conf /etc/resolv.conf
exec "$@"
"""
SHOW = """
import sys
from sandboxlib import Sandbox
box = Sandbox(sys.argv[1], network="undefined", resolv_conf=True)
for fresh in (True, False):
    print(box.run(["cat", "/etc/resolv.conf"], fresh=fresh).out)
"""


@needs_root
def test_resolv_conf_is_the_file_to_which_the_callers_link_leads(root: Path) -> None:
    argv = ["unshare", "-m", "sh", "-c", LINKED, "sh", sys.executable, "-c", SHOW, str(root)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout == "b'nameserver 192.0.2.53\\n'\n" * 2, done.stderr


@needs_root
@pytest.mark.parametrize("fresh", [False, True], ids=["slot", "fresh"])
def test_linux32(root: Path, fresh: bool) -> None:
    script = ["sh", "-c", "uname -m; cat /proc/self/personality"]
    for words, number in (({}, "00000008"), ({"deterministic": True}, "00040008")):
        with Sandbox(root, personality="linux32", **words) as box:  # type: ignore[arg-type]
            machine, personality = (box.run(script, fresh=fresh).out or b"").decode().split()
        assert (machine != os.uname().machine, personality) == (True, number)
    assert Sandbox(root).run(script).out == f"{os.uname().machine}\n00000000\n".encode()
