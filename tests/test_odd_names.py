# SPDX-License-Identifier: Apache-2.0
"""Names with every byte that a name may have, links without end, many missing mount points: a run
does what was asked, or there is one SandboxError.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import needs_root

from sandboxlib import Mount, Sandbox, SandboxError, SetupError, SpecError, _machine, run_sandbox

pytestmark = needs_root

#: What str.split(), str.splitlines() or mountinfo's own escapes would take for something else.
NAMES = (
    *("sp ace", "tab\t", "new\nline", "back\\slash", "\\040x", "\\134040", "cr\rx", "vt\x0bx"),
    *(
        "ff\x0cx",
        "fs\x1cx",
        "nel\x85x",
        "ls\u2028x",
        "nbsp\xa0x",
        "hash#x",
        "-",
        " - ",
        "bad\udcff",
    ),
    *("quote'\"", "deleted (deleted)", "*", "$(x)", "\x01"),
)

MOUNTED = """
import os, subprocess, sys
from sandboxlib import Sandbox, _machine
root, *names = [os.fsencode(word) for word in sys.argv[1:]]
for name in names:
    place = root + b"/" + name
    os.mkdir(place)
    subprocess.run(["mount", "-t", "tmpfs", "x#y", place], check=True)
    assert os.fsdecode(place) in [mount.point for mount in _machine.mounts()], place
    for writable, expected in (("all", 0), ("none", 1)):
        with Sandbox(os.fsdecode(root), filesystem_writable_paths=writable) as box:
            for fresh in (True, False, False):
                found = box.run(["touch", b"/" + name + b"/x"], fresh=fresh)
                assert found.exit == expected, (name, writable, found)
print("right")
"""


@pytest.mark.slow
def test_what_the_host_mounted_below_the_root_may_have_any_name(rootfs: Path) -> None:
    argv = ["unshare", "-m", sys.executable, "-c", MOUNTED, rootfs, *map(os.fsencode, NAMES)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout == "right\n", done.stderr


@pytest.mark.parametrize("fresh", [True, False])
def test_mounts_may_have_any_name(rootfs: Path, tmp_path: Path, fresh: bool) -> None:
    before = sorted(os.listdir(rootfs))
    for name in NAMES:
        source = tmp_path / f"src{name}"
        source.mkdir()
        (source / "f").write_text("F\n")
        mounts = [Mount.bind(source, f"/x{name}"), Mount.tmpfs(f"/y{name}")]
        script = 'cat "$1/f"; touch "$2/new"'
        with Sandbox(rootfs, extra_mounts=mounts) as box:
            argv = ["sh", "-c", script, "sh", f"/x{name}", f"/y{name}"]
            for _ in range(2):
                assert box.run(argv, fresh=fresh) == (0, b"F\n", b""), name
    assert sorted(os.listdir(rootfs)) == before


@pytest.mark.parametrize("name", NAMES)
def test_mountinfo_is_read_as_the_kernel_writes_it(name: str, tmp_path: Path) -> None:
    """Of the kernel's own: its escapes of a path that this process has mounted nowhere."""
    escaped = os.fsencode(f"/a{name}")
    for character in b"\\ \t\n":  # the backslash first: it stands in all the others
        escaped = escaped.replace(bytes([character]), b"\\%03o" % character)
    assert _machine._plain(escaped) == f"/a{name}"


@pytest.mark.parametrize("count", [41, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fresh", [True, False])
def test_a_chain_of_links_is_a_setup_error(rootfs: Path, count: int, fresh: bool) -> None:
    for i in range(count):
        os.symlink(f"l{i + 1}", rootfs / f"l{i}")
    os.symlink("l0", rootfs / "mnt")
    here = os.fspath(rootfs)
    for words in (
        {"extra_mounts": [Mount.tmpfs("/mnt")]},
        {"extra_mounts": [Mount.bind(f"{here}/mnt", "/tmp")]},
        {"filesystem_writable_paths": ["/mnt"]},
    ):
        with pytest.raises(SetupError) as caught, Sandbox(rootfs, **words) as box:
            box.run(["true"], fresh=fresh)
        assert "symbolic links" in str(caught.value)
    with pytest.raises(SetupError):
        run_sandbox(f"{here}/mnt", ["true"])


def test_as_many_links_as_the_kernel_follows_are_followed(rootfs: Path, tmp_path: Path) -> None:
    for i in range(39):
        os.symlink(f"l{i + 1}", rootfs / f"l{i}")
    (rootfs / "l39").mkdir()
    for fresh in (True, False):
        with Sandbox(rootfs, extra_mounts=[Mount.tmpfs("/l0")]) as box:
            assert box.run(["touch", "/l39/x"], fresh=fresh).exit == 0
    assert os.listdir(rootfs / "l39") == []
    assert _machine.real_path(f"{rootfs}/l0/../l38/.") == f"{rootfs.resolve()}/l39"


@pytest.fixture
def many_descriptors() -> object:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def seconds(root: Path, source: Path, count: int) -> float:
    mounts = [Mount.bind(source, f"/m/{i}") for i in range(count)]
    start = time.monotonic()
    assert run_sandbox(root, ["ls", f"/m/{count - 1}"], extra_mounts=mounts).exit == 0
    return time.monotonic() - start


@pytest.mark.slow
def test_missing_mount_points_are_made_in_one_pass(
    rootfs: Path, tmp_path: Path, many_descriptors: int
) -> None:
    if many_descriptors < 4096:
        pytest.skip("the hard limit on open files is below 4,096")
    (tmp_path / "f").touch()
    few, many = seconds(rootfs, tmp_path / "f", 150), seconds(rootfs, tmp_path / "f", 1500)
    assert many < 40 * few  # a hundred times, where each takes a start of its own
    assert not (rootfs / "m").exists()


def test_too_many_missing_mount_points_are_one_setup_error(rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with pytest.raises(SetupError, match="ulimit -n"):
            seconds(rootfs, tmp_path / "f", 1500)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not (rootfs / "m").exists()


def test_an_empty_path_names_nothing(rootfs: Path) -> None:
    for words in (
        {"filesystem_writable_paths": [""]},
        {"filesystem_writable_paths": ["/tmp", ""]},
        {"extra_mounts": [("", "/tmp", None, "bind")]},
        {"extra_mounts": [("/etc", "", None, "bind")]},
        {"extra_mounts": [("x", "", "tmpfs")]},
    ):
        with pytest.raises(SpecError, match="empty"):
            Sandbox(rootfs, **words)  # type: ignore[arg-type]
    for make in (
        lambda: Mount.bind("", "/tmp"),
        lambda: Mount.bind("/etc", ""),
        lambda: Mount.tmpfs(""),
        lambda: Sandbox(""),
        lambda: run_sandbox("", ["true"]),
        lambda: run_sandbox(rootfs, ["true"], cwd=""),
        lambda: run_sandbox(["true"], filesystem_root=""),
    ):
        with pytest.raises(SpecError, match="empty"):
            make()
    assert issubclass(SpecError, SandboxError)
