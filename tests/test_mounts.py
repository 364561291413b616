# SPDX-License-Identifier: Apache-2.0
"""What is mounted in a run, where, and that nothing of it stays."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import needs_root

from sandboxlib import Mount, Sandbox, SetupError, run_sandbox

pytestmark = [needs_root, pytest.mark.usefixtures("host_mounts_unchanged")]


def sh(root: Path, script: str, **words: object) -> bytes:
    """The output of a script that works."""
    exit, out, err = run_sandbox(root, ["sh", "-c", script], **words)
    assert exit == 0, err
    return out


def fails(root: Path, script: str, **words: object) -> bytes:
    exit, _, err = run_sandbox(root, ["sh", "-c", script], **words)
    assert exit != 0
    return err


def in_namespace(script: str, *words: object, shared: bool = False) -> str:
    """Runs a Python script in a mount namespace of its own, where it may mount what it likes."""
    argv = ["unshare", "-m", "--propagation", "shared" if shared else "private"]
    argv += [sys.executable, "-c", script, *map(str, words)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def test_a_bind_shows_the_callers_files_and_takes_writes(rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a").write_text("a\n")
    (rootfs / "dst").mkdir()
    mounts = [Mount.bind(tmp_path / "src", "/dst")]
    assert sh(rootfs, "cat /dst/a; echo b > /dst/b", extra_mounts=mounts) == b"a\n"
    assert (tmp_path / "src" / "b").read_text() == "b\n"
    mounts = [Mount.bind(tmp_path / "src", "/dst", read_only=True)]
    assert b"Read-only" in fails(rootfs, "echo c > /dst/c", extra_mounts=mounts)


def test_a_file_can_be_bound(rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text\n")
    mounts = [Mount.bind(tmp_path / "file", "/etc/new", read_only=True)]
    assert sh(rootfs, "cat /etc/new", extra_mounts=mounts) == b"text\n"
    assert not (rootfs / "etc" / "new").exists()


SUBMOUNTS = """
import os, subprocess, sys
from pathlib import Path
from sandboxlib import Mount, run_sandbox
root, source = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "nosuid,nodev,noexec", "x", source], check=True)
os.mkdir(source + "/sub")
subprocess.run(["mount", "-t", "tmpfs", "-o", "nosuid,nodev", "x", source + "/sub"], check=True)
Path(source, "sub", "file").touch()
for words in ({"read_only": True}, {"recursive": False}):
    script = "ls /dst/sub; touch /dst/x /dst/sub/x; grep /dst /proc/self/mountinfo"
    mounts = [Mount.bind(source, "/dst", **words)]
    result = run_sandbox(root, ["sh", "-c", script], extra_mounts=mounts)
    print(result.out.decode(), result.err.count(b"Read-only file system"))
"""


def test_read_only_covers_the_mounts_below_and_keeps_their_flags(
    rootfs: Path, tmp_path: Path
) -> None:
    (tmp_path / "src").mkdir()
    both, alone = in_namespace(SUBMOUNTS, rootfs, tmp_path / "src").split(" 2\n")[:2]
    assert both.startswith("file\n")
    assert both.count(" ro,nosuid,nodev,noexec,") == 1
    assert both.count(" ro,nosuid,nodev,relatime") == 1
    assert "file" not in alone
    assert alone.count(" /dst") == 1


def test_a_tmpfs_is_empty_private_and_as_large_as_said(rootfs: Path) -> None:
    (rootfs / "tmp" / "hidden").touch()
    mounts = [Mount.tmpfs("/tmp", size=65536, mode=0o750)]
    assert sh(rootfs, "ls /tmp; stat -c %a /tmp; touch /tmp/x", extra_mounts=mounts) == b"750\n"
    script = "head -c 100000 /bin/busybox > /tmp/x || stat -c %s /tmp/x"
    assert sh(rootfs, script, extra_mounts=mounts) == b"65536\n"
    assert os.listdir(rootfs / "tmp") == ["hidden"]


def test_proc_shows_the_runs_own_processes_alone(shared_rootfs: Path) -> None:
    pids = sh(shared_rootfs, "cd /proc; ls -d [0-9]*").split()
    assert set(pids) <= {b"1", b"2", b"3", b"4"}
    assert b"Read-only" in fails(shared_rootfs, "echo x > /proc/sys/kernel/hostname")


def test_a_root_without_proc_gets_none(rootfs: Path) -> None:
    (rootfs / "proc").rmdir()
    assert b"proc" not in sh(rootfs, "ls /")


def test_dev_has_what_programs_count_on(shared_rootfs: Path) -> None:
    script = """
        set -e
        echo x > /dev/null; test "$(cat /dev/null)" = ""
        test "$(head -c 4 /dev/zero | od -An -tx1)" = " 00 00 00 00"
        head -c 4 /dev/random > /dev/null; head -c 4 /dev/urandom > /dev/null
        ! echo x > /dev/full
        echo y | cat /dev/stdin; echo z > /dev/stdout
        : < /dev/ptmx
        echo q > /dev/shm/q
        ls /dev
    """
    words = sh(shared_rootfs, script, extra_mounts=[Mount.dev()]).split()
    names = "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero"
    assert words == [b"y", b"z", *names.encode().split()]
    assert b"q" not in sh(shared_rootfs, "ls /dev/shm", extra_mounts=[Mount.dev()])
    assert not os.path.exists("/dev/shm/q")


def test_a_read_only_root_has_holes_where_asked(rootfs: Path) -> None:
    (rootfs / "work" / "in").mkdir(parents=True)
    words = {"filesystem_writable_paths": ["/work", "tmp"]}
    assert sh(rootfs, "echo w > /work/in/w; echo t > /tmp/t", **words) == b""
    assert (rootfs / "work" / "in" / "w").read_text() == "w\n"
    assert b"Read-only" in fails(rootfs, "touch /etc/x", **words)
    for nothing in ("none", None, []):
        err = fails(rootfs, "touch /work/x; touch /x", filesystem_writable_paths=nothing)
        assert err.count(b"Read-only") == 2
    sh(rootfs, "touch /etc/x")


def test_a_hole_that_is_not_there_is_an_error(rootfs: Path) -> None:
    with pytest.raises(FileNotFoundError, match="writable path /none"):
        run_sandbox(rootfs, ["true"], filesystem_writable_paths=["/none"])


def test_extra_mounts_stay_writable_in_a_read_only_root(rootfs: Path, tmp_path: Path) -> None:
    mounts = [Mount.bind(tmp_path, "/build"), Mount.tmpfs("/tmp")]
    words = {"extra_mounts": mounts, "filesystem_writable_paths": "none"}
    sh(rootfs, "touch /build/made /tmp/x", **words)
    assert (tmp_path / "made").exists()


def test_later_mounts_lie_in_earlier_ones(rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text\n")
    mounts = [
        Mount.tmpfs("/tmp"),
        Mount.bind(tmp_path, "/tmp/a/b/c"),
        Mount.bind(tmp_path / "file", "/tmp/a/f", read_only=True),
        Mount.tmpfs("/tmp/a/b/c"),
    ]
    out = sh(rootfs, "cat /tmp/a/f; ls /tmp/a/b/c; ls /tmp/a", extra_mounts=mounts)
    assert out == b"text\nb\nf\n"
    assert os.listdir(rootfs / "tmp") == []


def test_hundreds_of_mounts_need_no_more_descriptors(rootfs: Path, tmp_path: Path) -> None:
    mounts = [Mount.tmpfs("/tmp")]
    mounts += [Mount.bind(tmp_path, f"/tmp/{i}", read_only=True) for i in range(1500)]
    assert sh(rootfs, "ls /tmp | wc -l", extra_mounts=mounts) == b"1500\n"


# ---- mount points that the root lacks --------------------------------------------------------


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_made_mount_points_are_not_left_behind(rootfs: Path, tmp_path: Path) -> None:
    before = names(rootfs)
    mounts = [Mount.bind(tmp_path, "/a/b/c"), Mount.tmpfs("/a/d"), Mount.bind("/etc/passwd", "/p")]
    for _ in range(2):
        out = sh(rootfs, "ls -d /a/b/c /a/d /p", extra_mounts=mounts)
        assert out == b"/a/b/c\n/a/d\n/p\n"
        assert names(rootfs) == before
    with pytest.raises(FileNotFoundError):
        run_sandbox(rootfs, ["nonesuch"], extra_mounts=mounts)
    with pytest.raises(FileNotFoundError):
        run_sandbox(rootfs, ["true"], extra_mounts=[*mounts, Mount.bind("/none/such", "/q")])
    assert run_sandbox(rootfs, ["sleep", "9"], extra_mounts=mounts, timeout=0.1).timed_out
    assert names(rootfs) == before


def test_they_can_be_passed_through_without_capabilities(rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text\n")
    tmp_path.chmod(0o755)
    old = os.umask(0o077)
    try:
        mounts = [Mount.bind(tmp_path, "/a/b")]
        out = sh(rootfs, "cat /a/b/file", extra_mounts=mounts, capabilities="none")
    finally:
        os.umask(old)
    assert out == b"text\n"


def test_what_the_command_put_beside_a_mount_stays(rootfs: Path, tmp_path: Path) -> None:
    mounts = [Mount.bind(tmp_path, "/a/b")]
    sh(rootfs, "echo kept > /a/kept", extra_mounts=mounts)
    assert (rootfs / "a" / "kept").read_text() == "kept\n"
    assert stat.S_IMODE((rootfs / "a").stat().st_mode) == 0o755
    assert not (rootfs / "a" / "b").exists()


def test_concurrent_runs_share_a_mount_point_that_is_missing(rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "mark").touch()
    before = names(rootfs)
    box = Sandbox(rootfs, extra_mounts=[Mount.bind(tmp_path, "/deep/mount")])
    script = "for i in 1 2 3 4 5; do test -e /deep/mount/mark || exit 1; done"

    def one(number: int) -> int:
        return box.run(["sh", "-c", script + f"; exec usleep {number % 7 * 1000}"]).exit

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(one, range(300))) == {0}
    assert names(rootfs) == before


WORKER = """
import sys
from sandboxlib import Mount, Sandbox
box = Sandbox(sys.argv[1], extra_mounts=[Mount.bind(sys.argv[2], "/deep/mount")])
for i in range(60):
    script = f"usleep {i % 5 * 1000}; test -e /deep/mount/mark"
    assert box.run(["sh", "-c", script]).exit == 0
"""


def test_so_do_runs_of_several_processes(rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "mark").touch()
    before = names(rootfs)
    argv = [sys.executable, "-c", WORKER, str(rootfs), str(tmp_path)]
    workers = [subprocess.Popen(argv) for _ in range(4)]
    assert [worker.wait() for worker in workers] == [0, 0, 0, 0]
    assert names(rootfs) == before


def test_the_next_run_removes_what_a_killed_host_left(rootfs: Path, tmp_path: Path) -> None:
    before = names(rootfs)
    script = WORKER.replace("usleep {i % 5 * 1000}", "echo up > /up; sleep 60")
    host = subprocess.Popen([sys.executable, "-c", script, str(rootfs), str(tmp_path)])
    while not (rootfs / "up").exists():
        signal.sigtimedwait([], 0.01)
    host.kill()
    host.wait()
    (rootfs / "up").unlink()
    assert (rootfs / "deep" / "mount").is_dir()
    sh(rootfs, "true", extra_mounts=[Mount.bind(tmp_path, "/deep/mount")])
    assert names(rootfs) == before


# ---- hostile roots ---------------------------------------------------------------------------


@pytest.mark.parametrize("link", ["/outside", "../../../../outside", "/proc/1/root/outside"])
def test_a_target_that_is_a_link_out_of_the_root_stays_inside(
    rootfs: Path, tmp_path: Path, link: str
) -> None:
    (tmp_path / "outside").mkdir()
    (rootfs / "target").symlink_to(link.replace("/outside", f"{tmp_path}/outside"))
    mounts = [Mount.bind(tmp_path, "/target/new"), Mount.tmpfs("/target")]
    for mount in mounts:
        with pytest.raises(SetupError):
            run_sandbox(rootfs, ["true"], extra_mounts=[mount])
    assert os.listdir(tmp_path / "outside") == []


def test_a_link_that_leads_somewhere_inside_is_followed(rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "mark").touch()
    (rootfs / "real").mkdir()
    (rootfs / "target").symlink_to("/real")
    assert sh(rootfs, "ls /real", extra_mounts=[Mount.bind(tmp_path, "/target")]).count(b"mark")


def test_a_target_that_changes_all_the_time_leads_nowhere_else(
    rootfs: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (rootfs / "a").mkdir()
    (rootfs / "b").symlink_to(f"../../../../../../..{tmp_path}")
    stop = threading.Event()
    names = (os.fsencode(rootfs / "a"), os.fsencode(rootfs / "b"))

    def swap() -> None:
        renameat2 = ctypes.CDLL(None).renameat2
        while not stop.is_set():
            assert renameat2(-100, names[0], -100, names[1], 2) == 0  # RENAME_EXCHANGE

    swapper = threading.Thread(target=swap)
    swapper.start()
    box = Sandbox(rootfs, extra_mounts=[Mount.tmpfs("/a/victim")])
    for _ in range(300):
        with contextlib.suppress(SetupError):
            box.run(["touch", "/a/victim/here"])
    stop.set()
    swapper.join()
    assert os.listdir(victim) == []


# ---- the caller's namespace ------------------------------------------------------------------

PROPAGATION = """
import sys
from pathlib import Path
from sandboxlib import Mount, run_sandbox
before = Path("/proc/self/mountinfo").read_text()
assert "shared:" in before
seen = set()
mounts = [Mount.tmpfs("/tmp"), Mount.bind("/etc", "/mnt"), Mount.dev()]
for words in ({"extra_mounts": mounts}, {"filesystem_writable_paths": "none"}):
    for root in (sys.argv[1], "/"):
        assert run_sandbox(root, ["true"], cwd="/", **words).exit == 0
        assert Path("/proc/self/mountinfo").read_text() == before
"""


def test_no_mount_event_reaches_a_caller_with_shared_mounts(rootfs: Path) -> None:
    in_namespace(PROPAGATION, rootfs, shared=True)


def test_the_host_can_unmount_what_it_likes_meanwhile(rootfs: Path, tmp_path: Path) -> None:
    script = """
import os, subprocess, sys, threading
from sandboxlib import run_sandbox
root, place = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "x", place], check=True)
reader, writer = os.pipe()
run = lambda: run_sandbox(root, ["sh", "-c", "echo up; sleep 1"], stdout=writer)
thread = threading.Thread(target=run)
thread.start()
assert os.read(reader, 3) == b"up\\n"
subprocess.run(["umount", place], check=True)
os.rmdir(place)
thread.join()
"""
    (tmp_path / "place").mkdir()
    in_namespace(script, rootfs, tmp_path / "place", shared=True)


def test_the_root_slash_can_be_read_only(tmp_path: Path) -> None:
    err = fails(Path("/"), f"touch {tmp_path}/x", filesystem_writable_paths="none")
    assert b"Read-only" in err
    sh(Path("/"), f"touch {tmp_path}/y", filesystem_writable_paths=[str(tmp_path)])
    assert os.listdir(tmp_path) == ["y"]
