# SPDX-License-Identifier: Apache-2.0
"""The mounts of a run: each is in its place, and none stays afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import many, needs_root
from lib.waiting import wait_until

from sandboxlib import Mount, Policy, SetupError, run_sandbox

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


FLAGS = """
import os, stat, subprocess, sys
from sandboxlib import Mount, run_sandbox
root, source, flag, read_only = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", flag, "x", source], check=True)
os.mkdir(source + "/sub")
subprocess.run(["mount", "-t", "tmpfs", "-o", flag, "x", source + "/sub"], check=True)
script = "grep /dst /proc/self/mountinfo | cut -d' ' -f6; /dst/sub/program; : < /dst/sub/null"
for place in (source, source + "/sub"):
    open(place + "/program", "w").write("#!/bin/sh\\necho runs\\n")
    os.chmod(place + "/program", 0o755)
    os.mknod(place + "/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
mounts = [Mount.bind(source, "/dst", read_only=read_only == "True")]
result = run_sandbox(root, ["sh", "-c", script], extra_mounts=mounts, capabilities="all")
print((result.out + result.err).decode())
"""


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("flag", ["nosuid", "nodev", "noexec", "ro", "noatime"])
def test_no_flag_of_a_source_is_lost(
    rootfs: Path, tmp_path: Path, flag: str, read_only: bool
) -> None:
    (tmp_path / "src").mkdir()
    if flag == "ro":
        script = FLAGS.replace('"-o", flag', '"-o", "rw"').replace(
            "mounts =",
            "[subprocess.run(['mount', '-o', 'remount,bind,ro', p], check=True)"
            " for p in (source, source + '/sub')]\nmounts =",
        )
    else:
        script = FLAGS
    said = in_namespace(script, rootfs, tmp_path / "src", flag, read_only)
    kept = [line.split(",") for line in said.splitlines()[:2]]
    assert all(flag in flags for flags in kept)
    assert all(("ro" in flags) == (read_only or flag == "ro") for flags in kept)
    assert ("runs" in said) == (flag != "noexec")
    assert (": can't open" in said) == (flag == "nodev")


READ_ONLY_ROOT = """
import os, subprocess, sys
from sandboxlib import Mount, run_sandbox
root = sys.argv[1]
for name in ("work", "work/deep", "other"):
    os.mkdir(f"{root}/{name}")
    subprocess.run(["mount", "-t", "tmpfs", "x", f"{root}/{name}"], check=True)
script = "for p in / /work /work/deep /other /tmp; do touch $p/x && echo $p; done"
for writable in ("all", "none", ["/work"], ["/work/deep"], ["/other", "/tmp"], ["/"]):
    result = run_sandbox(root, ["sh", "-c", script], filesystem_writable_paths=writable)
    print(" ".join(result.out.decode().split()))
"""


def test_a_read_only_root_is_so_on_every_mount_below_it(rootfs: Path) -> None:
    said = in_namespace(READ_ONLY_ROOT, rootfs).splitlines()
    everything = "/ /work /work/deep /other /tmp"
    assert said == [
        *(everything, "", "/work /work/deep", "/work/deep", "/other /tmp", everything),
    ]


def test_a_hole_may_be_a_file_or_lie_behind_a_link_that_stays_inside(rootfs: Path) -> None:
    (rootfs / "etc" / "file").touch()
    (rootfs / "tmp" / "real").mkdir()
    (rootfs / "link").symlink_to("/tmp/real")
    words = {"filesystem_writable_paths": ["/etc/file", "link"]}
    sh(rootfs, "echo x > /etc/file; touch /tmp/real/x /link/y", **words)
    assert (rootfs / "etc" / "file").read_text() == "x\n"
    assert sorted(os.listdir(rootfs / "tmp" / "real")) == ["x", "y"]
    err = fails(rootfs, "touch /etc/y; touch /tmp/y; rm /link; false", **words)
    assert err.count(b"Read-only") == 3


@pytest.mark.parametrize("up", ["", "../../../../../../.."])
def test_a_hole_behind_a_link_out_of_the_root_is_an_error(
    rootfs: Path, tmp_path: Path, up: str
) -> None:
    (tmp_path / "outside").mkdir()
    (rootfs / "link").symlink_to(f"{up}{tmp_path}/outside")
    with pytest.raises(FileNotFoundError, match="writable path /link"):
        run_sandbox(rootfs, ["touch", "/link/x"], filesystem_writable_paths=["/link"])
    assert os.listdir(tmp_path / "outside") == []


def test_a_writable_mount_may_lie_in_a_read_only_one(rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "src" / "out").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    mounts = [
        Mount.bind(tmp_path / "src", "/src", read_only=True),
        Mount.bind(tmp_path / "out", "/src/out"),
    ]
    assert b"Read-only" in fails(rootfs, "touch /src/out/x; touch /src/x", extra_mounts=mounts)
    assert os.listdir(tmp_path / "out") == ["x"]
    assert os.listdir(tmp_path / "src") == ["out"]


def test_what_the_source_of_a_mount_lacks_is_not_made_there(rootfs: Path, tmp_path: Path) -> None:
    mounts = [Mount.bind(tmp_path / "src", "/src"), Mount.tmpfs("/src/none")]
    (tmp_path / "src").mkdir()
    with pytest.raises(FileNotFoundError, match="mount 1: tmpfs on /src/none: target"):
        run_sandbox(rootfs, ["true"], extra_mounts=mounts)
    assert os.listdir(tmp_path / "src") == []
    assert not (rootfs / "src").exists()


def test_the_order_of_the_mounts_is_the_order_of_the_list(rootfs: Path, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    one, two = (Mount.bind(tmp_path / name, "/mnt") for name in "ab")
    assert sh(rootfs, "ls /mnt", extra_mounts=[one, two]) == b"b\n"
    assert sh(rootfs, "ls /mnt", extra_mounts=[two, one]) == b"a\n"
    assert sh(rootfs, "ls /mnt", extra_mounts=[one, Mount.tmpfs("/mnt")]) == b""


@pytest.mark.parametrize(
    ("words", "script", "out"),
    [
        (("{src}", "/mnt", None, "bind"), "cat /mnt/file; ls /mnt/sub", b"text\n"),
        (("{src}", "mnt", "", "rbind"), "touch /mnt/new; cat /mnt/file", b"text\n"),
        (("{src}", "/mnt", None, "bind,ro"), "touch /mnt/x || cat /mnt/file", b"text\n"),
        (("{src}/file", "/etc/f", None, "bind"), "cat /etc/f", b"text\n"),
        ((None, "/mnt", "tmpfs"), "stat -c %a /mnt; ls /mnt", b"1777\n"),
        (("tmpfs", "/mnt", "tmpfs", "mode=700,size=4k"), "stat -c %a /mnt", b"700\n"),
        (("proc", "/proc", "proc"), "test -d /proc/1 && echo p", b"p\n"),
        (("dev", "/dev", "dev"), "test -c /dev/null && echo d", b"d\n"),
    ],
)
def test_the_earlier_tuples_mount_what_they_did(
    rootfs: Path, tmp_path: Path, words: tuple[str | None, ...], script: str, out: bytes
) -> None:
    (tmp_path / "src" / "sub").mkdir(parents=True)
    (tmp_path / "src" / "file").write_text("text\n")
    before = names(rootfs)
    source = words[0].format(src=tmp_path / "src") if words[0] else None
    script = f"exec 2> /dev/null; {script}" if words[2] == "dev" else script
    result = run_sandbox(rootfs, ["sh", "-c", script], extra_mounts=[(source, *words[1:])])
    assert (result.exit, result.out) == (0, out)
    assert names(rootfs) == before


# ---- devices, networks, IPC ------------------------------------------------------------------


@pytest.mark.parametrize("capabilities", ["default", "none"])
def test_a_terminal_can_be_opened(capabilities: str) -> None:
    script = """
import os, sys
master, slave = os.openpty()
os.write(slave, b"x\\n")
print(os.ttyname(slave), os.read(master, 9), oct(os.stat("/dev/ptmx").st_mode & 0o777))
print(sorted(os.listdir("/dev/pts")))
"""
    # The root "/" has a Python.
    argv = [sys.executable, "-I", "-c", script]
    words = {"extra_mounts": [Mount.dev()], "policy": Policy(capabilities=capabilities)}
    exit, out, err = run_sandbox("/", argv, **words)
    assert (exit, err) == (0, b"")
    assert out == b"/dev/pts/0 b'x\\r\\n' 0o666\n['0', 'ptmx']\n"


def test_nothing_else_is_in_dev(shared_rootfs: Path) -> None:
    script = "cd /dev; for f in $(find . -type c -o -type b); do stat -c '%n %t:%T %a %u' $f; done"
    old = os.umask(0o077)
    try:
        said = sh(shared_rootfs, script, extra_mounts=[Mount.dev()]).decode().splitlines()
    finally:
        os.umask(old)
    assert sorted(said) == [
        *("./full 1:7 666 0", "./null 1:3 666 0", "./pts/ptmx 5:2 666 0"),
        *("./random 1:8 666 0", "./tty 5:0 666 0", "./urandom 1:9 666 0", "./zero 1:5 666 0"),
    ]


def greet(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(b"tcp\n")


def test_an_isolated_network_has_no_address_but_its_own(shared_rootfs: Path) -> None:
    abstract = f"sandboxlib-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(f"\0{abstract}")
        local.listen()
        port = server.getsockname()[1]
        threading.Thread(target=greet, args=(server,), daemon=True).start()
        script = (
            f"timeout 20 nc 127.0.0.1 {port} < /dev/null | cat;"
            f"grep -c {abstract} /proc/net/unix; ip -o link | wc -l; "
            "ip -4 -o addr | awk '{print $4}'; ip route"
        )
        words = {"extra_mounts": [Mount.dev()]}
        shown = sh(shared_rootfs, script, **words).split()
        assert shown[:2] == [b"tcp", b"1"]
        hidden = sh(shared_rootfs, script, network="isolated", **words).split()
        assert hidden[:4] == [b"0", b"1", b"127.0.0.1/8", b"10.0.2.15/32"]
        assert hidden[4:8] == [b"local", b"default", b"dev", b"lo"]


@pytest.mark.parametrize("kind", ["msg", "sem", "shm"])
def test_system_v_ipc_of_the_host_is_not_there(kind: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    make: dict[str, Any] = {
        "msg": lambda: libc.msgget(0, 0o600),
        "sem": lambda: libc.semget(0, 1, 0o600),
        "shm": lambda: libc.shmget(0, 4096, 0o600),
    }
    remove: dict[str, Any] = {
        "msg": lambda number: libc.msgctl(number, 0, None),
        "sem": lambda number: libc.semctl(number, 0, 0),
        "shm": lambda number: libc.shmctl(number, 0, None),
    }
    number = make[kind]()
    assert number >= 0, ctypes.get_errno()
    try:
        command = ["cat", f"/proc/sysvipc/{kind}"]
        assert run_sandbox("/", command).out.count(b"\n") == 1  # the heading
        assert run_sandbox("/", command, ipc="undefined").out.count(b"\n") > 1
    finally:
        remove[kind](number)


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
    for timeout in (0, 0.1):
        assert run_sandbox(rootfs, ["sleep", "99"], extra_mounts=mounts, timeout=timeout).timed_out
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
    box = open_box(rootfs, extra_mounts=[Mount.bind(tmp_path, "/deep/mount")])
    script = "for i in 1 2 3 4 5; do test -e /deep/mount/mark || exit 1; done"

    def one(number: int) -> int:
        return box.run(["sh", "-c", script + f"; exec usleep {number % 7 * 1000}"]).exit

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(one, range(300))) == {0}
    assert (rootfs / "deep" / "mount").is_dir()  # for as long as the Sandbox keeps slots
    box.close()
    assert names(rootfs) == before


WORKER = """
import sys
from sandboxlib import Mount, Sandbox
box = Sandbox(
    sys.argv[1],
    extra_mounts=[Mount.bind(sys.argv[2], "/deep/mount")],
    filesystem_writable_paths="all",
)
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
    assert wait_until((rootfs / "up").exists)
    host.kill()
    host.wait()
    (rootfs / "up").unlink()
    assert (rootfs / "deep" / "mount").is_dir()
    sh(rootfs, "true", extra_mounts=[Mount.bind(tmp_path, "/deep/mount")])
    assert names(rootfs) == before


LIVES = """
import sys, threading
from sandboxlib import Mount, Sandbox, SetupError
root, source = sys.argv[1:]
mounts = [Mount.bind(source, "/deep/mount"), Mount.bind(source + "/mark", "/deep/file")]
box = Sandbox(root, extra_mounts=mounts)
broken = Sandbox(root, extra_mounts=[*mounts, Mount.bind("/none/such", "/deep/more")])
there = "test -s /deep/mount/mark && test -s /deep/file || exit 1"
wrong = []
def life(number):
    for i in range(12):
        script = f"{there}; usleep {(number * 7 + i) % 9 * 2000}; {there}"
        if box.run(["sh", "-c", script]).exit != 0:
            wrong.append("the mount went away")
        for bad in (lambda: broken.run(["true"]), lambda: box.run(["nonesuch"])):
            try:
                wrong.append(bad())
            except SetupError as error:
                wrong.extend([] if error.errno == 2 else [error])
        if not box.run(["sleep", "9"], timeout=0.01).timed_out:
            wrong.append("no timeout")
threads = [threading.Thread(target=life, args=(i,)) for i in range(16)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not wrong, wrong[:3]
"""


@pytest.mark.slow
def test_every_run_has_its_mounts_for_its_whole_life(rootfs: Path, tmp_path: Path) -> None:
    # 3 hosts with 16 threads each, of good runs, failures and timeouts, share the same stubs.
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "mark").write_text("mark\n")
    before = names(rootfs)
    argv = [sys.executable, "-c", LIVES, str(rootfs), str(tmp_path / "src")]
    hosts = [subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [host.communicate()[1] for host in hosts]
    assert said == ["", "", ""]
    assert names(rootfs) == before


def test_a_read_only_root_can_lack_mount_points(rootfs: Path, tmp_path: Path) -> None:
    before = names(rootfs)
    mounts = [Mount.bind(tmp_path, "/new/deep"), Mount.tmpfs("/new/tmp")]
    words = {"extra_mounts": mounts, "filesystem_writable_paths": "none"}
    sh(rootfs, "touch /new/deep/made /new/tmp/x", **words)
    assert (tmp_path / "made").exists()
    assert names(rootfs) == before


def test_a_mount_point_that_cannot_be_made_is_told(rootfs: Path, tmp_path: Path) -> None:
    script = """
import subprocess, sys
from sandboxlib import Mount, run_sandbox
subprocess.run(["mount", "--bind", "-o", "ro", sys.argv[1], sys.argv[1]], check=True)
try:
    run_sandbox(sys.argv[1], ["true"], extra_mounts=[Mount.tmpfs("/new/deep")])
except OSError as error:
    print(error.step, error.errno, error.filename, error)
"""
    said = in_namespace(script, rootfs)
    assert said.startswith("target 30 /new/deep mount 0: tmpfs on /new/deep: make the mount point")


@pytest.mark.parametrize("directory", [True, False])
def test_what_stands_there_already_stays_as_it_is(
    rootfs: Path, tmp_path: Path, directory: bool
) -> None:
    target, source = rootfs / "target", tmp_path / "source"
    for path in (target, source):
        path.mkdir() if directory else path.write_text(path.name)
    for mode in (0o700, 0o555, 0o1777, 0o7777) if directory else (0o600, 0o444, 0o4755):
        target.chmod(mode)
        before = target.stat()
        sh(rootfs, "true", extra_mounts=[Mount.bind(source, "/target")])
        assert target.stat() == before


@pytest.mark.parametrize("directory", [True, False])
def test_a_target_of_the_roots_own_with_the_mode_of_a_stub_stays(
    rootfs: Path, tmp_path: Path, directory: bool
) -> None:
    target, source = rootfs / "target", tmp_path / "source"
    for path in (target, source):
        path.mkdir() if directory else path.write_text(path.name)
    target.chmod(0o1555 if directory else 0o1444)
    sh(rootfs, "true", extra_mounts=[Mount.bind(source, "/target")])
    assert target.exists()


# ---- hostile roots ---------------------------------------------------------------------------


@pytest.mark.parametrize("link", ["/outside", "../../../../outside", "/proc/1/root/outside"])
def test_a_target_that_is_a_link_out_of_the_root_stays_inside(
    rootfs: Path, tmp_path: Path, link: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "seen").touch()
    (rootfs / "target").symlink_to(link.replace("/outside", str(outside)))
    before = sorted(os.walk(rootfs))
    mounts = [Mount.bind(tmp_path, "/target/new"), Mount.tmpfs("/target")]
    for mount in mounts:
        if link.startswith("/proc"):  # the run's own, in which nothing can be made
            with pytest.raises(SetupError):
                run_sandbox(rootfs, ["true"], extra_mounts=[mount])
        else:
            script = f"ls {mount.target}/. {outside}"
            assert b"seen" not in sh(rootfs, script, extra_mounts=[mount])
    assert os.listdir(outside) == ["seen"]
    assert sorted(os.walk(rootfs)) == before


def test_a_stub_that_is_swapped_for_a_link_changes_nothing_outside(
    rootfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("secret\n")
    victim.chmod(0o600)
    mkdir = os.mkdir

    def swapped(name: str, *words: int, dir_fd: int) -> None:
        """Do what a command in the same root could do between mkdir(2) and the next call."""
        mkdir(name, *words, dir_fd=dir_fd)
        os.rename(name, "moved", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        os.symlink(victim, name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", swapped)
    with contextlib.suppress(OSError):
        run_sandbox(rootfs, ["true"], extra_mounts=[Mount.tmpfs("/new")])
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600


SWAPPER = """
import ctypes, os, sys, time
ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: pytest-timeout ends the parent without clean-up
os.chdir(sys.argv[1])
renameat2 = ctypes.CDLL(None).renameat2
print("up", flush=True)
while True:
    if renameat2(-100, b"new", -100, b"evil", 2) == 0:  # RENAME_EXCHANGE
        time.sleep(0.0003)
        try:
            os.unlink("new")
            os.rmdir("evil")
        except OSError:
            pass
        if not os.path.lexists("evil"):
            os.symlink(sys.argv[2], "evil")
"""


@pytest.mark.parametrize("directory", [True, False])
def test_a_race_for_the_stubs_changes_nothing_outside(
    rootfs: Path, tmp_path: Path, directory: bool
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir() if directory else victim.write_text("secret\n")
    victim.chmod(0o600)
    (rootfs / "evil").symlink_to(victim)
    argv = [sys.executable, "-c", SWAPPER, str(rootfs), str(victim)]
    swapper = subprocess.Popen(argv, stdout=subprocess.PIPE)
    try:
        assert swapper.stdout is not None
        swapper.stdout.readline()
        boxes = [open_box(rootfs, extra_mounts=[Mount.tmpfs(path)]) for path in ("/new", "/new/x")]
        for number in range(many(100, 400)):
            with contextlib.suppress(OSError):
                boxes[number % 2].run(["touch", "/new/x/here"], timeout=20)
            assert stat.S_IMODE(victim.stat().st_mode) == 0o600
    finally:
        swapper.kill()
        swapper.communicate()
    assert not directory or os.listdir(victim) == []


HANGS = """
import sys
from sandboxlib import Mount, run_sandbox
mount = Mount.bind("/etc/passwd", "/target") if sys.argv[2] == "file" else Mount.tmpfs("/target")
try:
    print(run_sandbox(sys.argv[1], ["true"], extra_mounts=[mount], timeout=1).exit)
except OSError as error:
    print(error.step)
"""


def returns(rootfs: Path, kind: str) -> bool:
    """Whether a run with a timeout of a second comes back."""
    argv = [sys.executable, "-c", HANGS, str(rootfs), kind]
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, timeout=60)
        return True
    return False


def test_a_fifo_that_looks_like_a_stub_does_not_hold_the_caller(rootfs: Path) -> None:
    # As a command of an earlier run can leave it.
    sh(rootfs, "mkfifo /target; chmod 1444 /target")
    assert returns(rootfs, "file")


def test_a_stub_that_somebody_locks_does_not_hold_the_caller(rootfs: Path) -> None:
    # The test stands in for a command of another run in the same root.
    sh(rootfs, "mkdir /target; chmod 1555 /target")
    fd = os.open(rootfs / "target", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert returns(rootfs, "directory")
    finally:
        os.close(fd)


def test_a_target_that_is_a_link_to_the_root_is_no_silent_nothing(rootfs: Path) -> None:
    (rootfs / "target").symlink_to("/")
    before = names(rootfs)
    mounts = [Mount.tmpfs("/target"), Mount.bind("/etc", "/target/new")]
    try:
        out = run_sandbox(rootfs, ["/bin/ls", "/"], extra_mounts=mounts).out
    except OSError:
        out = b"refused"
    assert names(rootfs) == before  # /new is made in the root itself, and stays
    assert b"bin\n" not in out


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
    box = open_box(rootfs, extra_mounts=[Mount.tmpfs("/a/victim")])
    for _ in range(many(60, 300)):
        with contextlib.suppress(SetupError):
            box.run(["touch", "/a/victim/here"])
    stop.set()
    swapper.join()
    assert os.listdir(victim) == []


def test_a_target_that_changes_is_no_error_of_python_s(
    rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def readlink(path: str, **_: object) -> str:
        raise OSError(errno.EINVAL, "it was a link a moment ago", path)

    (rootfs / "link").symlink_to("tmp")
    box = open_box(rootfs, extra_mounts=[Mount.tmpfs("/link/x")])
    monkeypatch.setattr(os, "readlink", readlink)
    assert box.run(["true"]).exit == 0


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
