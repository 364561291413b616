# SPDX-License-Identifier: Apache-2.0
"""Mount.directory, symlink and file: they are there in every way of running, and the host's
directories stay as they are.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import needs_root
from lib.users import as_nobody

from sandboxlib import CAPTURE, File, Mount, Overlay, Result, Sandbox, SandboxError, SetupError

pytest_plugins = ["lib.ways"]
pytestmark = pytest.mark.usefixtures("host_mounts_unchanged")

READ_ONLY: dict[str, Any] = {"filesystem_writable_paths": "none", "tmp": "private"}


def names_below(directory: Path) -> list[tuple[str, int, int]]:
    """All that lies below a directory, with the mode and time of the last change of each."""
    found = [directory, *directory.rglob("*")]
    return sorted((str(path), path.lstat().st_mode, path.lstat().st_mtime_ns) for path in found)


def sh(run: Callable[..., Result], root: Path | str, script: str, **options: Any) -> list[str]:
    """The lines of a script that works. SetupError."""
    result = run(root, ["/bin/sh", "-c", script], **{**READ_ONLY, **options})
    if isinstance(result, SandboxError):  # a map that goes on yields it
        raise result
    assert result.exit == 0, result.err
    return os.fsdecode(result.out or b"").splitlines()


def test_a_read_only_root_shows_entries_that_the_host_does_not_get(
    run: Callable[..., Result], rootfs: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.c").touch()
    before = names_below(rootfs)
    mounts = [
        Mount.directory("/src"),
        Mount.bind(source, "/src"),
        Mount.symlink("src/a.c", "/link"),
        Mount.file(b"content\n", "/etc/new/conf", mode=0o640),
        Mount.directory("/deep/er/est", mode=0o1770),
    ]
    script = (
        "ls /src; readlink /link; cat /etc/new/conf; stat -c %a /etc/new/conf /deep/er/est /deep"
    )
    assert sh(run, rootfs, script, extra_mounts=mounts) == [
        *("a.c", "src/a.c", "content", "640", "1770", "755"),
    ]
    assert names_below(rootfs) == before


def test_a_mirror_has_the_entries_that_the_directory_has(
    run: Callable[..., Result], rootfs: Path
) -> None:
    etc = rootfs / "etc"
    etc.chmod(0o751)
    (etc / "file").write_text("old\n")
    (etc / "dir").mkdir()
    (etc / "dir" / "inner").write_text("inner\n")
    (etc / "link").symlink_to("dir/inner")
    (etc / "dangling").symlink_to("/nowhere")
    os.mkfifo(etc / "fifo")
    odd = b"odd \xff\n name"
    (etc / os.fsdecode(odd)).touch()
    script = "cd /etc; stat -c %a .; cat file link; readlink dangling; test -p fifo"
    lines = sh(run, rootfs, script, extra_mounts=[Mount.directory("/etc/new")])
    assert lines == ["751", "old", "inner", "/nowhere"]
    listed = run(
        rootfs,
        ["sh", "-c", "cd /etc; printf '%s|' *"],
        **READ_ONLY,
        extra_mounts=[Mount.directory("/etc/new")],
    )
    names = [b"dangling", b"dir", b"fifo", b"file", b"link", b"new", odd]
    assert listed.out == b"".join(name + b"|" for name in names)


def test_nothing_can_be_changed_in_a_mirror(run: Callable[..., Result], rootfs: Path) -> None:
    mounts = [Mount.directory("/src"), Mount.file(b"x", "/file"), Mount.symlink("x", "/link")]
    tried = ["touch /new", "touch /src/new", "rmdir /src", "rm /file", "echo > /file", "rm /link"]
    tried += ["chmod 777 /src", "mv /bin /nib", "rmdir /etc", "touch /etc/new"]
    script = "; ".join(f"{each} 2>/dev/null && echo {each}" for each in tried) + "; true"
    assert sh(run, rootfs, script, extra_mounts=mounts) == []


def test_a_directory_that_is_there_stays_with_its_content(
    run: Callable[..., Result], rootfs: Path
) -> None:
    (rootfs / "etc" / "conf").write_text("conf\n")
    (rootfs / "etc").chmod(0o711)
    (rootfs / "way").symlink_to("etc")
    mounts = [Mount.directory("/etc", mode=0o777), Mount.directory("/way")]
    assert sh(run, rootfs, "cat /etc/conf; stat -c %a /etc", extra_mounts=mounts) == ["conf", "711"]


def test_a_file_hides_the_roots_and_is_read_only(run: Callable[..., Result], rootfs: Path) -> None:
    (rootfs / "etc" / "conf").write_text("of the root\n")
    mounts = [Mount.file(b"of the run\n", "/etc/conf")]
    script = "cat /etc/conf; echo x > /etc/conf || rm -f /etc/conf || cat /etc/conf"
    options: dict[str, Any] = {"filesystem_writable_paths": "all", "extra_mounts": mounts}
    assert sh(run, rootfs, script, **options) == ["of the run", "of the run"]
    assert (rootfs / "etc" / "conf").read_text() == "of the root\n"


def test_entries_go_into_file_systems_of_the_run(run: Callable[..., Result], rootfs: Path) -> None:
    mounts = [
        Mount.directory("/tmp/a/b"),
        Mount.symlink("a/b", "/tmp/link"),
        Mount.file(b"text\n", "/tmp/link/file"),
        Mount.tmpfs("/etc"),
        Mount.file(b"passwd\n", "/etc/passwd"),
    ]
    script = "cat /tmp/a/b/file /etc/passwd; touch /tmp/a/b/new && rm /tmp/link && ls /etc"
    assert sh(run, rootfs, script, extra_mounts=mounts) == ["text", "passwd", "passwd"]


def test_the_order_is_kept(run: Callable[..., Result], rootfs: Path) -> None:
    hidden = [Mount.file(b"first\n", "/d/file"), Mount.tmpfs("/d"), Mount.file(b"x\n", "/d/other")]
    assert sh(run, rootfs, "ls /d", extra_mounts=hidden) == ["other"]
    twice = [Mount.file(b"first\n", "/file"), Mount.file(b"second\n", "/file")]
    assert sh(run, rootfs, "cat /file", extra_mounts=twice) == ["second"]
    through = [Mount.symlink("/tmp", "/way"), Mount.directory("/way/new")]
    assert sh(run, rootfs, "ls /tmp", extra_mounts=through) == ["new"]


def test_a_large_file_arrives_whole(run: Callable[..., Result], rootfs: Path) -> None:
    content = os.urandom(1 << 20) * 5 + b"end"
    mounts = [Mount.file(content, "/blob"), Mount.file(b"", "/empty")]
    result = run(rootfs, ["cat", "/blob", "/empty"], **READ_ONLY, extra_mounts=mounts)
    assert result.out == content


def test_a_writable_directory_of_the_root_gets_no_mirror(
    run: Callable[..., Result], rootfs: Path
) -> None:
    for mount in (Mount.directory("/new"), Mount.file(b"", "/new"), Mount.symlink("x", "/new")):
        with pytest.raises(SetupError, match=r"Overlay\(root\)") as caught:
            sh(run, rootfs, "true", filesystem_writable_paths="all", extra_mounts=[mount])
        assert caught.value.errno == errno.ENOTSUP
        assert caught.value.step == "target"
    assert not (rootfs / "new").exists()


def test_a_source_that_is_writable_gets_no_mirror(
    run: Callable[..., Result], rootfs: Path, tmp_path: Path
) -> None:
    (rootfs / "mnt").mkdir()
    source = tmp_path / "source"
    source.mkdir()
    mounts = [Mount.bind(source, "/mnt"), Mount.directory("/mnt/new")]
    with pytest.raises(SetupError, match="would be lost"):
        sh(run, rootfs, "true", extra_mounts=mounts)
    mounts[0] = Mount.bind(source, "/mnt", read_only=True)
    assert sh(run, rootfs, "ls /mnt", extra_mounts=mounts) == ["new"]
    assert os.listdir(source) == []


@pytest.mark.parametrize(
    ("mount", "number"),
    [
        (Mount.symlink("other", "/etc/link"), errno.EEXIST),
        (Mount.symlink("x", "/etc"), errno.EEXIST),
        (Mount.directory("/etc/file"), errno.ENOTDIR),
        (Mount.directory("/etc/file/x"), errno.ENOTDIR),
        (Mount.symlink("x", "/etc/file/x"), errno.ENOTDIR),
    ],
)
def test_what_the_root_has_otherwise_is_an_error(
    run: Callable[..., Result], rootfs: Path, mount: Mount, number: int
) -> None:
    (rootfs / "etc" / "file").touch()
    (rootfs / "etc" / "link").symlink_to("somewhere")
    with pytest.raises(SetupError) as caught:
        sh(run, rootfs, "true", extra_mounts=[mount])
    assert (caught.value.errno, caught.value.step) == (number, "target")
    same = [Mount.symlink("somewhere", "/etc/link")]
    assert sh(run, rootfs, "readlink /etc/link", extra_mounts=same) == ["somewhere"]


def test_links_lead_nowhere_outside(
    run: Callable[..., Result], rootfs: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (rootfs / "etc" / "up").symlink_to("../" * 20 + str(outside))
    (rootfs / "etc" / "away").symlink_to(str(outside))
    mounts = [
        Mount.directory("/etc/up/a"),
        Mount.file(b"x", "/etc/away/b"),
        Mount.symlink("x", "/etc/away/c"),
    ]
    lines = sh(run, rootfs, f"ls {outside}", extra_mounts=mounts)
    assert lines == ["a", "b", "c"]
    assert os.listdir(outside) == []


def test_slots_notice_that_a_mirrored_directory_changes(executor: str, rootfs: Path) -> None:
    mounts = [Mount.directory("/etc/new")]
    with open_box(rootfs, **READ_ONLY, extra_mounts=mounts) as box:
        for name in ("a", "b", "c"):
            (rootfs / "etc" / name).touch()
            assert name in (box.run(["ls", "/etc"]).out or b"").decode().split()
        (rootfs / "etc" / "a").unlink()
        assert (box.run(["ls", "/etc"]).out or b"").split() == [b"b", b"c", b"new"]
        (rootfs / "etc" / "new").mkdir()
        (rootfs / "etc" / "new" / "inner").touch()
        assert (box.run(["ls", "/etc/new"]).out or b"").split() == [b"inner"]


@pytest.mark.parametrize("root", ["directory", "layers", "nothing"])
def test_slots_serve_runs_with_entries(executor: str, rootfs: Path, root: str) -> None:
    """The IPC namespace is that of the slot. After the first run there may be a second slot."""
    time.sleep(0.15)  # a directory that changed just now is looked at again
    mounts = [
        Mount.directory("/src"),
        Mount.file(b"text", "/file"),
        Mount.directory("/tmp/a/b"),
        Mount.symlink("a", "/tmp/link"),
    ]
    roots = {"directory": rootfs, "layers": Overlay(rootfs), "nothing": Overlay()}
    if root == "nothing":
        mounts = [Mount.bind(rootfs / "bin", "/bin"), Mount.directory("/proc"), *mounts]
    script = "readlink /proc/self/ns/ipc && [ ! -e /tmp/a/b/left ] && touch /tmp/link/b/left"
    with Sandbox(roots[root], extra_mounts=mounts) as box:
        seen = {box.run(["/bin/sh", "-c", script], check=True).out for _ in range(7)}
    assert len(seen) <= 3, "no slot served two of seven runs"


def test_a_directory_with_too_many_entries_is_refused(executor: str, rootfs: Path) -> None:
    for number in range(4100):
        os.symlink("x", rootfs / "etc" / str(number))
    with pytest.raises(SetupError, match="more than 4,096 entries") as caught:
        open_box(rootfs, **READ_ONLY, extra_mounts=[Mount.directory("/etc/new")]).run(["true"])
    assert caught.value.errno == errno.E2BIG


@needs_root
def test_an_ordinary_user_gets_a_directory_below_the_machines_root() -> None:
    script = """
import sys
from sandboxlib import Mount, Sandbox
mounts = [Mount.directory("/src"), Mount.bind(sys.argv[1], "/src")]
with Sandbox("/", extra_mounts=mounts) as box:
    for _ in range(2):
        print(box.run(["/bin/sh", "-c", "ls /src && : > /dev/null && ls /proc/self/exe"]).out)
"""
    with tempfile.TemporaryDirectory(prefix="sandboxlib-kinds.") as name:
        base = Path(name)
        base.chmod(0o755)
        (base / "needed").mkdir()
        (base / "source").mkdir()
        (base / "source" / "a").touch()
        argv = [*as_nobody(base / "needed"), sys.executable, "-c", script, str(base / "source")]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout == "b'a\\n/proc/self/exe\\n'\n" * 2, done.stderr
    assert not os.path.exists("/src")


def test_entries_are_modes_and_bytes_that_the_umask_does_not_change(
    executor: str, rootfs: Path
) -> None:
    before = os.umask(0o077)
    try:
        mounts = [Mount.directory("/d", mode=0o777), Mount.file(b"", "/f", mode=0o666)]
        with Sandbox(rootfs, extra_mounts=mounts) as box:
            out = box.run(["stat", "-c", "%a", "/d", "/f"]).out
    finally:
        os.umask(before)
    assert out == b"777\n666\n"
    assert stat.S_IMODE(rootfs.stat().st_mode) == 0o755


def test_a_file_may_be_a_file_of_the_callers(
    run: Callable[..., Result], rootfs: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho run\n")
    script.chmod(0o755)
    mounts = [Mount.file(File(script), "/run"), Mount.file(File(b"data"), "/data")]
    assert sh(run, rootfs, "/run; stat -c %a /run /data", extra_mounts=mounts) == [
        *("run", "555", "444"),
    ]
    script.unlink()
    with pytest.raises(SetupError, match="script"):
        sh(run, rootfs, "true", extra_mounts=[Mount.file(File(script), "/run")])


def test_a_directory_does_not_keep_the_sandboxs_own_mounts_away(
    run: Callable[..., Result], rootfs: Path
) -> None:
    for name in ("proc", "dev", "tmp"):
        os.rmdir(rootfs / name)
    mounts = [Mount.directory(f"/{name}") for name in ("tmp", "proc", "dev")]
    script = "echo > /dev/null && touch /tmp/x && ls -d /proc/self/exe && ! touch /dev/x"
    assert sh(run, rootfs, script, extra_mounts=mounts) == ["/proc/self/exe"]
    assert sh(run, rootfs, "ls", extra_mounts=mounts[:1]) == ["bin", "etc", "tmp"]
    with pytest.raises(OSError, match="proc"):
        os.stat(rootfs / "proc")
    script = "! (: > /proc/sysrq-trigger) 2>/dev/null"
    assert sh(run, "/", script, extra_mounts=mounts) == []


def test_a_writable_path_stays_writable_below_a_directory(
    run: Callable[..., Result], rootfs: Path
) -> None:
    mounts = [Mount.directory("/etc")]
    options: dict[str, Any] = {"filesystem_writable_paths": ["/etc"], "extra_mounts": mounts}
    assert sh(run, rootfs, "touch /etc/new && ls /etc", **options) == ["new"]


def test_a_mirror_of_the_root_keeps_holes_and_the_minimal_dev(
    run: Callable[..., Result], rootfs: Path
) -> None:
    (rootfs / "srv" / "out").mkdir(parents=True)
    mounts = [Mount.directory("/new")]
    options: dict[str, Any] = {"filesystem_writable_paths": ["/srv/out"], "extra_mounts": mounts}
    script = "touch /srv/out/x; ! touch /srv/x /dev/x /new/x /x 2>/dev/null && : > /dev/null"
    assert sh(run, rootfs, script, **options) == []
    assert os.listdir(rootfs / "srv" / "out") == ["x"]
    assert os.listdir(rootfs / "srv") == ["out"]
    mounts.append(Mount.file(b"mine\n", "/dev/mine"))
    assert sh(run, rootfs, "cat /dev/mine; ! touch /dev/x 2>/dev/null", **options) == ["mine"]


def test_a_proc_gets_no_mirror(run: Callable[..., Result], rootfs: Path) -> None:
    with pytest.raises(SetupError) as caught:
        sh(run, rootfs, "true", extra_mounts=[Mount.directory("/proc/new")])
    assert caught.value.errno == errno.ENOTSUP


@needs_root
def test_a_mount_point_of_another_run_does_not_vanish(
    executor: str, rootfs: Path, tmp_path: Path
) -> None:
    """The other run made /new in the root, and would remove it at its end."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").touch()
    other = Sandbox(rootfs, extra_mounts=[Mount.bind(source, "/new")])
    mounts = [Mount.directory("/new"), Mount.bind(source, "/new"), Mount.file(b"", "/new.file")]
    script = "echo here; read line; ls /new"
    with other.start(["sleep", "60"]) as first:
        box = Sandbox(rootfs, extra_mounts=mounts)
        with box.start(["sh", "-c", script], stdin=CAPTURE) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.read(5) == b"here\n"
            first.kill()
            first.wait()
            other.close()
            process.stdin.write(b"\n")
            process.stdin.close()
            assert process.stdout.read() == b"a\n"
    assert not (rootfs / "new").exists()
