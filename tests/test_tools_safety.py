# SPDX-License-Identifier: Apache-2.0
"""bwrap and linux-user-chroot resolve names on the host, and say how it went.

Commands of other runs in the same root change these names meanwhile, and the command itself lies
about the rest: nothing of it leads out of the root, is left behind, or is believed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import python, require

import sandboxlib
from sandboxlib import Mount, Policy, Sandbox, SetupError, UnsupportedError, _bwrap, bubblewrap

pytest_plugins = ["setuid_tool"]

#: A newer bwrap than the machine's own, from the package index.
NEWER = os.environ.get("SANDBOXLIB_BWRAP_NEWER", "")

SWAP = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int argc, char **argv) {
    for (;;) {
        syscall(SYS_renameat2, AT_FDCWD, argv[1], AT_FDCWD, argv[2], 2);
        usleep(argc > 3 ? 20 : 200);
    }
}
"""


@pytest.fixture(scope="session")
def swapper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static program that exchanges two names, again and again."""
    require(shutil.which("cc"), "there is no C compiler")
    place = tmp_path_factory.mktemp("swapper")
    (place / "swap.c").write_text(SWAP)
    argv = ["cc", "-w", "-O1", "-static", "-o", str(place / "swap"), str(place / "swap.c")]
    subprocess.run(argv, check=True)
    return place / "swap"


@pytest.fixture(params=["installed", "newer"])
def bwrap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each bwrap there is, the first of PATH."""
    if request.param == "installed":
        if reason := bubblewrap.why_not():
            pytest.skip(reason)
        yield _bwrap.find_tool().path
        return
    if not NEWER:
        pytest.skip("SANDBOXLIB_BWRAP_NEWER names no newer bwrap")
    sandboxlib._executor.trial.cache_clear()
    monkeypatch.setenv("PATH", f"{os.path.dirname(NEWER)}:{os.environ['PATH']}")
    if reason := bubblewrap.why_not():
        pytest.skip(reason)
    assert _bwrap.find_tool().path == os.path.realpath(NEWER)
    yield NEWER
    sandboxlib._executor.trial.cache_clear()


def run(box: Sandbox, *command: str, **words: Any) -> sandboxlib.Result:
    return bubblewrap.run_in(box, list(command), **words)


def tree(path: Path) -> list[str]:
    """All names below a directory."""
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


# ---- names that commands change ----------------------------------------------------------------


@pytest.fixture
def host(rootfs: Path, tmp_path: Path) -> Path:
    """A directory outside of the root that commands are not to reach, with a file in it."""
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "file").write_text("the host's")
    (tmp_path / "host").chmod(0o777)
    (tmp_path / "host" / "file").chmod(0o666)
    return tmp_path / "host"


def race(root: Path, swapper: Path, names: tuple[str, str], box: Sandbox, *command: str) -> int:
    """Runs a command while one of another run exchanges two names; how many of 40 came to run."""
    shutil.copy(swapper, root / "bin" / "swap")
    ran = 0
    with Sandbox(root) as other, other.start(["swap", *names]) as attacker:
        for _ in range(40):
            try:
                run(box, *command)
                ran += 1
            except SetupError:
                pass
        attacker.kill()
    return ran


@pytest.mark.parametrize("way", ["absolute", "relative", "by the machine's own root"])
def test_a_writable_path_is_never_what_a_link_leads_to(
    rootfs: Path, host: Path, swapper: Path, bwrap: str, way: str
) -> None:
    (rootfs / "data").mkdir()
    leads_to = {"absolute": str(host), "relative": f"{'../' * 20}{str(host)[1:]}"}
    (rootfs / "evil").symlink_to(leads_to.get(way, f"/oldroot{host}"))
    box = Sandbox(rootfs, filesystem_writable_paths=["/data"])
    race(
        rootfs, swapper, ("/data", "/evil"), box, "sh", "-c", "echo x > /data/file; echo y > /file"
    )
    assert (host / "file").read_text() == "the host's"
    assert tree(host) == ["file"]


@pytest.mark.parametrize("kind", ["tmpfs", "directory", "file"])
def test_no_target_is_made_where_a_link_leads_to(
    rootfs: Path, host: Path, swapper: Path, bwrap: str, tmp_path: Path, kind: str
) -> None:
    (rootfs / "a" / "b").mkdir(parents=True)
    (rootfs / "evil").symlink_to(f"/oldroot{host}")
    (tmp_path / "source").mkdir()
    (tmp_path / "text").write_text("text")
    mount = {
        "tmpfs": Mount.tmpfs("/a/b/c"),
        "directory": Mount.bind(tmp_path / "source", "/a/b/c"),
        "file": Mount.bind(tmp_path / "text", "/a/b/c"),
    }[kind]
    box = Sandbox(rootfs, extra_mounts=[mount])
    race(rootfs, swapper, ("/a", "/evil"), box, "true")
    assert tree(host) == ["file"]
    assert tree(tmp_path / "source") == []


def test_a_mount_that_missed_its_place_ends_the_run(
    rootfs: Path, host: Path, swapper: Path, bwrap: str
) -> None:
    (rootfs / "data").mkdir()
    (rootfs / "data" / "secret").touch()
    (rootfs / "other").mkdir()
    box = Sandbox(rootfs, extra_mounts=[Mount.tmpfs("/data")])
    shutil.copy(swapper, rootfs / "bin" / "swap")
    with Sandbox(rootfs) as other, other.start(["swap", "/data", "/other", "fast"]) as attacker:
        for _ in range(40):
            try:
                seen = run(box, "sh", "-c", "cat /proc/self/mountinfo").out.decode()
            except SetupError:
                continue
            # Names may change again, but the mount was made, and in the root.
            assert " - tmpfs " in seen
        attacker.kill()


def test_a_link_that_stays_in_the_root_is_followed(
    rootfs: Path, bwrap: str, tmp_path: Path
) -> None:
    (rootfs / "usr" / "data").mkdir(parents=True)
    (rootfs / "absolute").symlink_to("/usr/data")
    (rootfs / "relative").symlink_to("usr/data")
    (tmp_path / "text").write_text("text")
    for name in ("absolute", "relative"):
        mount = Mount.bind(tmp_path / "text", f"/{name}/file")
        assert run(Sandbox(rootfs, extra_mounts=[mount]), "cat", "/usr/data/file").out == b"text"
        box = Sandbox(rootfs, filesystem_writable_paths=[f"/{name}"])
        assert run(box, "sh", "-c", f"echo > /{name}/written").exit == 0
        assert run(box, "sh", "-c", "echo > /written").exit == 1
        assert tree(rootfs / "usr") == ["data", "data/written"]


# ---- nothing is left ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "directories", "tmpfs in a tmpfs"])
def test_nothing_is_made_in_a_source_nor_left_in_the_root(
    rootfs: Path, tmp_path: Path, bwrap: str, kind: str
) -> None:
    (tmp_path / "source").mkdir()
    work = Mount.bind(tmp_path / "source", "/ws")
    mounts = {
        "file": [work, Mount.bind("/dev/null", "/ws/.git", read_only=True)],
        "directories": [work, Mount.tmpfs("/ws/a/b/c")],
        "tmpfs in a tmpfs": [Mount.tmpfs("/new"), Mount.tmpfs("/new/a/b")],
    }[kind]
    before = tree(rootfs)
    if kind == "tmpfs in a tmpfs":
        assert run(Sandbox(rootfs, extra_mounts=mounts), "ls", "/new/a").out == b"b\n"
    else:
        with pytest.raises(FileNotFoundError) as caught:
            run(Sandbox(rootfs, extra_mounts=mounts), "true")
        assert getattr(caught.value, "step", "") == "target"
    assert tree(tmp_path / "source") == []
    assert tree(rootfs) == before


def test_a_target_in_a_source_that_is_there_serves(
    rootfs: Path, tmp_path: Path, bwrap: str
) -> None:
    (tmp_path / "source" / "in").mkdir(parents=True)
    mounts = [Mount.bind(tmp_path / "source", "/ws"), Mount.tmpfs("/ws/in")]
    box = Sandbox(rootfs, extra_mounts=mounts)
    assert run(box, "sh", "-c", "echo > /ws/in/file; echo > /ws/file").exit == 0
    assert tree(tmp_path / "source") == ["file", "in"]


def test_a_caller_that_is_killed_while_bwrap_sets_up_leaves_no_command(
    rootfs: Path, tmp_path: Path, bwrap: str
) -> None:
    # The gate is closed by its death, not opened: the command would leave a file.
    script = """
import os, sys, signal
from sandboxlib import Sandbox, _bwrap, bubblewrap
def die(entries, wanted):
    os.kill(os.getpid(), signal.SIGKILL)
_bwrap.find_fault = die
bubblewrap.run_in(Sandbox(sys.argv[1]), ["touch", "/tmp/ran"])
"""
    done = subprocess.run([*python(), "-c", script, str(rootfs)], check=False)
    assert done.returncode == -9
    time.sleep(0.5)
    assert tree(rootfs / "tmp") == []


# ---- what commands could say -------------------------------------------------------------------


def test_a_command_that_ends_bwrap_is_no_failed_set_up(rootfs: Path, bwrap: str) -> None:
    line = "bwrap: Creating new namespace failed: No space left on device"
    script = f"echo '{line}' >&2; kill -9 $PPID; sleep 1; exit 5"
    for processes, exit in (("isolated", 5), ("undefined", -9)):
        result = run(Sandbox(rootfs, processes=processes), "sh", "-c", script)
        assert result == (exit, b"", f"{line}\n".encode())


def test_words_and_a_status_like_those_of_bwrap_are_the_commands_own(
    rootfs: Path, bwrap: str
) -> None:
    line = "bwrap: execvp sh: No such file or directory"
    result = run(Sandbox(rootfs), "sh", "-c", f"echo '{line}' >&2; exit 1")
    assert result == (1, b"", f"{line}\n".encode())


def test_variables_reach_the_command_and_not_bwrap(rootfs: Path, bwrap: str) -> None:
    odd = dict.fromkeys(
        "LD_PRELOAD LD_AUDIT LD_LIBRARY_PATH GCONV_PATH LOCPATH MALLOC_TRACE".split(), "/nonesuch/x"
    )
    odd |= {"LD_TRACE_LOADED_OBJECTS": "1", "GLIBC_TUNABLES": "glibc.malloc.check=3"}
    result = run(Sandbox(rootfs), "env", extra_env=odd)
    assert result.err == b""
    seen = dict(line.split("=", 1) for line in result.out.decode().splitlines())
    assert odd.items() <= seen.items()
    assert set(seen) - set(odd) <= {"PATH", "PWD"}
    assert run(Sandbox(rootfs), "/bin/env", env={}).out in (b"", b"PWD=/\n")


def test_too_many_words_are_refused_before_anything_runs(rootfs: Path, bwrap: str) -> None:
    assert run(Sandbox(rootfs), "sh", "-c", "echo $#", *["x"] * 8000).out == b"7999\n"
    with pytest.raises(UnsupportedError, match="9000 words"):
        run(Sandbox(rootfs), "true", *["x"] * 9000)
    with pytest.raises(UnsupportedError, match="9000 words"):
        run(Sandbox(rootfs), "true", extra_env={f"V{i}": "" for i in range(3000)})


# ---- what uid 0 could command ------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"policy": Policy(capabilities="none")},
        {"user": "root"},
        {"extra_mounts": [Mount.proc()]},
    ],
    ids=["default", "none", "root", "proc"],
)
def test_what_commands_the_kernel_is_read_only(
    rootfs: Path, bwrap: str, words: dict[str, Any]
) -> None:
    names = "sys/vm/stat_interval sys/kernel/core_pattern sysrq-trigger irq/default_smp_affinity"
    written = "[ -e /proc/$name ] && (: >> /proc/$name) 2>/dev/null && echo $name"
    script = f"for name in {names}; do {written}; done; cat /proc/sys/kernel/ostype"
    assert run(Sandbox(rootfs, **words), "sh", "-c", script).out == b"Linux\n"
