# SPDX-License-Identifier: Apache-2.0
"""Devices of a run: none of the root's, a minimal /dev, and those that were asked for; and that
what a slot keeps of it carries nothing from run to run.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lib.boxes import open_box
from lib.machine import needs_root, require

from sandboxlib import Mount, Result, Sandbox, SetupError, SpecError, UnsupportedError, run_sandbox
from sandboxlib.__main__ import run_sandbox_command
from sandboxlib._runs import slots

pytestmark = needs_root
pytest_plugins = ["lib.ways"]

PYTHON = "/usr/bin/python3"
MINIMAL = "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero".split()


@pytest.fixture
def node(rootfs: Path) -> Path:
    """A device node in the root, outside /dev: another null."""
    try:
        os.mknod(rootfs / "node", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        require(False, "this root may make no device")
    os.chmod(rootfs / "node", 0o666)
    require(
        not os.statvfs(rootfs).f_flag & 4, "the directory of the tests is on a mount with nodev"
    )
    return rootfs / "node"


# ---- what there is -----------------------------------------------------------------------------


def test_no_device_of_the_root_works(rootfs: Path, node: Path, run: Callable[..., Result]) -> None:
    for words in (
        {},
        {"filesystem_writable_paths": "none"},
        {"filesystem_writable_paths": ["/node", "/tmp"]},
        {"extra_mounts": [Mount.dev()]},
        {"devices": ["/dev/full"]},
    ):
        found = run(rootfs, ["cat", "/node"], **words)
        assert found.exit != 0, words
        assert b"Permission denied" in found.err
    assert run(rootfs, ["cat", "/node"], devices="root").exit == 0


def test_a_device_that_is_bound_works(rootfs: Path, node: Path, run: Callable[..., Result]) -> None:
    mounts = [Mount.bind("/dev/null", "/tmp/x")]
    assert run(rootfs, ["cat", "/tmp/x"], extra_mounts=mounts).exit == 0


def test_a_root_with_dev_gets_the_minimal_one(rootfs: Path, run: Callable[..., Result]) -> None:
    (rootfs / "dev" / "sda").touch()
    script = "ls /dev; test -c /dev/null && echo x > /dev/null && head -c 1 /dev/zero | wc -c"
    for words in ({}, {"filesystem_writable_paths": "none"}, {"filesystem_writable_paths": None}):
        found = run(rootfs, ["sh", "-c", script], **words)
        assert found.exit == 0, found
        assert found.out.decode().split() == [*MINIMAL, "1"]
    assert run(rootfs, ["ls", "/dev"], devices="root").out == b"sda\n"


def test_of_the_machine_no_disk_is_seen(run: Callable[..., Result]) -> None:
    assert run("/", ["ls", "/dev"]).out.decode().split() == MINIMAL


@pytest.mark.parametrize("there", ["nothing", "a file", "a link to nothing"])
def test_a_root_without_the_directory_gets_none(rootfs: Path, executor: str, there: str) -> None:
    (rootfs / "dev").rmdir()
    if there == "a file":
        (rootfs / "dev").touch()
    elif there == "a link to nothing":
        (rootfs / "dev").symlink_to("/nothing")
    for fresh in (True, False, False):
        with open_box(rootfs) as box:
            points = box.run(["cut", "-d ", "-f5", "/proc/self/mountinfo"], fresh=fresh).out
            assert points is not None
            assert b"/dev\n" not in points
    if there == "nothing":
        assert "dev" not in os.listdir(rootfs)


def test_one_that_appears_is_used_by_the_next_run(rootfs: Path, executor: str) -> None:
    (rootfs / "dev").rmdir()
    with open_box(rootfs) as box:
        assert box.run(["ls", "/dev"]).exit != 0
        assert box.run(["mkdir", "/dev"]).exit == 0
        for _ in range(3):
            assert box.run(["ls", "/dev"]).out.decode().split() == MINIMAL


def test_it_cannot_be_changed(rootfs: Path, run: Callable[..., Result]) -> None:
    for script in ("touch /dev/x", "rm /dev/null", "chmod 600 /dev/null", "mv /dev/null /dev/x"):
        found = run(rootfs, ["sh", "-c", script])
        assert found.exit != 0, script
        assert b"Read-only file system" in found.err
    assert stat.S_IMODE(os.stat("/dev/null").st_mode) & 0o600 == 0o600


def test_one_that_was_asked_for_can_be_written_to(rootfs: Path, run: Callable[..., Result]) -> None:
    for words in (
        {"extra_mounts": [Mount.dev()]},
        {"filesystem_writable_paths": ["/dev"]},
        {"filesystem_writable_paths": ["/tmp", "/dev/new"]},
    ):
        if words.get("filesystem_writable_paths") == ["/tmp", "/dev/new"]:
            (rootfs / "dev" / "new").touch()
        script = "touch /dev/x && ls /dev"
        found = run(rootfs, ["sh", "-c", script], **words)
        assert found.out.decode().split() == sorted([*MINIMAL, "x"]), words
    assert "x" not in os.listdir(rootfs / "dev")


def test_what_lies_below_dev_is_mounted_there(
    rootfs: Path, tmp_path: Path, run: Callable[..., Result]
) -> None:
    (tmp_path / "f").write_text("f\n")
    shm = Mount.tmpfs("/dev/shm", size=1 << 20)
    script = "cat /dev/a/f; stat -f -c %b /dev/shm; touch /dev/b/c/x && ls /dev"
    mounts = [shm, Mount.bind(tmp_path / "f", "/dev/a/f"), Mount.tmpfs("/dev/b/c")]
    found = run(rootfs, ["sh", "-c", script], extra_mounts=mounts)
    assert found.out.decode().split() == ["f", "256", *sorted([*MINIMAL, "a", "b"])]
    assert os.listdir(rootfs / "dev") == []
    found = run(rootfs, ["stat", "-f", "-c", "%b", "/dev/shm"], extra_mounts=[shm])
    assert found.out == b"256\n"


def test_where_it_is_missing_what_lies_below_takes_one_along(
    rootfs: Path, run: Callable[..., Result]
) -> None:
    (rootfs / "dev").rmdir()
    found = run(rootfs, ["ls", "/dev"], extra_mounts=[Mount.tmpfs("/dev/shm")])
    assert found.out.decode().split() == MINIMAL
    assert "dev" not in os.listdir(rootfs)


def test_a_mount_on_dev_takes_its_place(
    rootfs: Path, tmp_path: Path, run: Callable[..., Result]
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").touch()
    mounts = [Mount.bind(tmp_path / "other", "/dev")]
    assert run(rootfs, ["ls", "/dev"], extra_mounts=mounts).out == b"mine\n"


def test_shm_is_as_large_as_elsewhere_and_programs_run_there(
    rootfs: Path, run: Callable[..., Result]
) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    script = "stat -f -c '%b %S' /dev/shm; cp /bin/busybox /dev/shm/ && /dev/shm/busybox echo ran"
    for words in ({}, {"extra_mounts": [Mount.dev()]}):
        blocks, size, ran = run(rootfs, ["sh", "-c", script], **words).out.split()
        assert ran == b"ran"
        assert int(blocks) * int(size) > memory // 4


def test_a_shared_memory_and_a_terminal_can_be_had(run: Callable[..., Result]) -> None:
    require(os.path.exists(PYTHON), f"there is no {PYTHON}")
    program = """
import os
from multiprocessing import shared_memory
memory = shared_memory.SharedMemory(create=True, size=8 << 20)
memory.buf[:] = bytes(8 << 20)
memory.close()
memory.unlink()
master, slave = os.openpty()
print(os.ttyname(slave))
"""
    assert run("/", [PYTHON, "-c", program]) == (0, b"/dev/pts/0\n", b"")


# ---- by name -----------------------------------------------------------------------------------


def test_a_device_is_had_by_its_name(rootfs: Path, run: Callable[..., Result]) -> None:
    require(os.path.exists("/dev/kmsg"), "there is no /dev/kmsg")
    for words in ({}, {"filesystem_writable_paths": "none"}):
        found = run(rootfs, ["ls", "/dev"], devices=["/dev/kmsg", Path("/dev/full")], **words)
        assert found.out.decode().split() == sorted([*MINIMAL, "kmsg"])
    assert os.listdir(rootfs / "dev") == []


def test_one_in_a_directory_is_had_as_well(rootfs: Path, run: Callable[..., Result]) -> None:
    require(os.path.exists("/dev/net/tun"), "there is no /dev/net/tun")
    (rootfs / "dev").rmdir()
    found = run(rootfs, ["sh", "-c", "test -c /dev/net/tun"], devices=["/dev/net/tun"])
    assert found.exit == 0
    assert "dev" not in os.listdir(rootfs)


def test_the_hosts_node_does_not_change(rootfs: Path, run: Callable[..., Result]) -> None:
    require(os.path.exists("/dev/full"), "there is no /dev/full")
    before = os.stat("/dev/full")
    for script in ("chmod 666 /dev/full", "chown 0:0 /dev/full", "touch /dev/full"):
        found = run(rootfs, ["sh", "-c", script], devices=["/dev/full"])
        assert b"Read-only file system" in found.err
    after = os.stat("/dev/full")
    assert (before.st_mode, before.st_ctime_ns) == (after.st_mode, after.st_ctime_ns)


@pytest.mark.parametrize(
    ("path", "error", "said"),
    [("/dev/nonesuch", errno.ENOENT, "nonesuch"), ("/dev/shm", errno.ENODEV, "no device")],
)
def test_what_is_no_device_is_named(
    rootfs: Path, executor: str, path: str, error: int, said: str
) -> None:
    for fresh in (True, False):
        with pytest.raises(SetupError, match=said) as caught, open_box(rootfs, devices=[path]) as b:
            b.run(["true"], fresh=fresh)
        assert (caught.value.errno, caught.value.step) == (error, "source")
        assert caught.value.filename == path


def test_what_makes_no_sense_is_refused(rootfs: Path) -> None:
    for devices in ("all", "", "/dev/kvm", ["kvm"], ["/etc/passwd"], [""], ["/dev/../x"], ["/dev"]):
        with pytest.raises(SpecError):
            open_box(rootfs, devices=devices)
    for words in (None, 5, {"/dev/kvm": 1}):
        with pytest.raises(SpecError):
            open_box(rootfs, devices=words)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="isolated"):
        open_box(rootfs, devices=["/dev/full"], mounts="undefined")
    with pytest.raises(SpecError, match="hides"):
        open_box(rootfs, devices=["/dev/full"], extra_mounts=[Mount.dev()])
    assert open_box(rootfs, devices=[]) == open_box(rootfs)
    assert open_box(rootfs, devices=["/dev//b", Path("/dev/a")]).devices == ("/dev/a", "/dev/b")


def test_every_form_of_a_call_has_them(rootfs: Path, node: Path) -> None:
    command = ["sh", "-c", "cat /node && ls /dev"]
    assert run_sandbox(rootfs, command).exit != 0
    assert run_sandbox(rootfs, ["ls", "/dev"], devices=["/dev/full"]).exit == 0
    assert run_sandbox(rootfs, command, devices="root").out == b""
    earlier = {"filesystem_root": str(rootfs), "mounts": "isolated"}
    assert run_sandbox(command, **earlier) == (0, b"", b"")
    assert run_sandbox(command, **earlier, devices="minimal").exit != 0
    for words, expected in (
        ([], 1),
        (["--devices", "root"], 0),
        (["--devices", "/dev/full"], 1),
        (["--devices", "/dev/nonesuch"], 125),
        (["--devices", "root", "--devices", "/dev/full"], 125),
        (["--devices", "none"], 125),
    ):
        assert run_sandbox_command([*words, "--", str(rootfs), "cat", "/node"]) == expected, words


def test_bubblewrap_has_them_as_well(
    rootfs: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(shutil.which("bwrap"), "there is no bwrap")
    monkeypatch.setenv("SANDBOXLIB_BACKEND", "bubblewrap")
    assert run_sandbox(rootfs, ["cat", "/node"]).exit != 0
    assert run_sandbox(rootfs, ["cat", "/node"], devices="root").exit == 0
    assert {"null", "shm"} <= set(run_sandbox(rootfs, ["ls", "/dev"]).out.decode().split())
    with pytest.raises(UnsupportedError, match="/dev/full"):
        run_sandbox(rootfs, ["true"], devices=["/dev/full"])
    found = run_sandbox(rootfs, ["ls", "/dev"], extra_mounts=[Mount.tmpfs("/dev/shm")])
    assert "null" in found.out.decode().split()
    assert os.listdir(rootfs / "dev") == []


# ---- bounds ------------------------------------------------------------------------------------


def test_files_of_a_tmpfs_are_bounded(rootfs: Path, run: Callable[..., Result]) -> None:
    sizes = {"/a": 4096, "/b": 64 << 20, "/c": None}
    mounts = [Mount.tmpfs(target, size=size) for target, size in sizes.items()]
    places = [*sizes, "/dev", "/dev/shm"]
    script = "for i in " + " ".join(places) + "; do stat -f -c %c $i; done"
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    most = min(max(memory // 4096, 1024), 1 << 20)
    found = run(rootfs, ["sh", "-c", script], extra_mounts=mounts).out.split()
    assert [int(n) for n in found] == [1024, 16384, most, 1024, most]


def test_beyond_its_bound_a_tmpfs_is_full(rootfs: Path, executor: str) -> None:
    script = "cd /tmp; i=0; while true > f$i; do i=$((i+1)); done; ls | wc -l"
    found = run_sandbox(rootfs, ["sh", "-c", script], extra_mounts=[Mount.tmpfs("/tmp", 4096)])
    assert b"No space left" in found.err
    assert int(found.out) < 1100


@pytest.mark.slow
def test_terminals_of_a_run_are_bounded(executor: str) -> None:
    require(os.path.exists(PYTHON), f"there is no {PYTHON}")
    program = """
import os, resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096),) * 2)
count = 0
try:
    while count < 1200:
        os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
        count += 1
except OSError as error:
    print(error.strerror)
print(count)
"""
    found = run_sandbox("/", [PYTHON, "-c", program], "/")
    *_, count = found.out.split()
    assert int(count) <= 1024


# ---- what a slot keeps -------------------------------------------------------------------------


@pytest.fixture
def box(executor: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    require(os.path.exists(PYTHON), f"there is no {PYTHON}")
    # Of two slots that take turns, one would have the changes and the other all the looks.
    monkeypatch.setattr(slots, "MOST_SPARE", 0)
    with open_box("/", network="isolated") as made:
        yield made


RECORDER = """
import array, fcntl, os, stat
def look(path):
    s = os.lstat(path)
    times = (s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns)
    return path, oct(s.st_mode), s.st_uid, s.st_gid, s.st_nlink, s.st_size, s.st_ino, times
print(sorted(os.listdir("/dev/shm")), sorted(os.listdir("/dev/pts")))
print(os.listxattr("/dev/shm"), os.listxattr("/dev/pts"))
print(os.statvfs("/dev/shm")[:8])
fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
number = os.fstat(fd).st_ino
flags = array.array("i", [0])
try:
    fcntl.ioctl(os.open("/dev/shm", os.O_RDONLY), 0x80086601, flags)  # FS_IOC_GETFLAGS
except OSError:
    pass
print(number, flags[0])
for path in ("/dev", "/dev/shm", "/dev/pts", "/dev/pts/ptmx", "/dev/null"):
    print(look(path)[:-1])
"""
#: Changes that a run may make to the file systems that its slot keeps.
MARKS = {
    "a file": "open('/dev/shm/left', 'w').write('x')",
    "a file that is gone": "open('/dev/shm/x', 'w'); os.unlink('/dev/shm/x')",
    "a file without a name": "os.open('/dev/shm', os.O_TMPFILE | os.O_RDWR)",
    "its mode": "os.chmod('/dev/shm', 0o700)",
    "its mode, and back": "os.chmod('/dev/shm', 0o700); os.chmod('/dev/shm', 0o1777)",
    "its times": "os.utime('/dev/shm', (5, 5))",
    "an attribute": "os.setxattr('/dev/shm', 'user.x', b'x')",
    "a file system that is full": "open('/dev/shm/x', 'wb').write(bytes(1 << 20))",
    "the mode of pts": "os.chmod('/dev/pts', 0o700)",
    "the times of pts": "os.utime('/dev/pts', (5, 5))",
    "the mode of ptmx": "os.chmod('/dev/pts/ptmx', 0)",
    "a terminal": "m, s = os.openpty(); os.write(m, b'x'); os.write(s, b'x')",
}


def python(box: Sandbox, program: str) -> Result:
    return box.run([PYTHON, "-c", "import os\n" + program], cwd="/")


@pytest.mark.parametrize("mark", MARKS)
def test_a_run_leaves_nothing_to_the_next(box: Sandbox, mark: str) -> None:
    # The number of the next file in shm tells whether the run before used shm: RECORDER does.
    known = [python(box, RECORDER)]
    assert known[0].exit == 0, known[0].err
    assert python(box, "pass").exit == 0
    known.append(python(box, RECORDER))
    for _ in range(3):
        done = python(box, MARKS[mark])
        if done.exit and b"Operation not supported" in done.err:
            pytest.skip("this kernel has no such attribute")
        assert done.exit == 0, done.err
        assert python(box, RECORDER) in known


def test_what_uses_none_of_it_keeps_its_slot(box: Sandbox) -> None:
    """The /dev is the same one: its number tells."""
    program = "import os; print(os.stat('/dev').st_dev, os.stat('/dev/shm').st_dev)"
    seen = {python(box, program).out for _ in range(8)}
    assert len(seen) == 1


def test_what_uses_it_keeps_its_slot_and_has_a_new_one(box: Sandbox) -> None:
    program = "import os; print(os.stat('/dev').st_dev); open('/dev/shm/x', 'x')"
    found = [python(box, program) for _ in range(8)]
    assert {result.exit for result in found} == {0}
    assert len({result.out for result in found}) == 1


def test_what_somebody_else_still_holds_is_not_kept(box: Sandbox, tmp_path: Path) -> None:
    """A descriptor that got out of the run, by a socket that is bound into it."""
    program = f"""
import os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind({str(tmp_path / "s")!r})
server.listen()
print(flush=True)
connection, _ = server.accept()
_, held, _, _ = socket.recv_fds(connection, 1, 8)
print(len(held), flush=True)
sys.stdin.read()
"""
    pipe = subprocess.PIPE
    other = subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe)
    assert other.stdin is not None
    assert other.stdout is not None
    other.stdout.readline()
    send = f"""
import socket
fds = [os.open('/dev/shm', os.O_TMPFILE | os.O_RDWR), *os.openpty()]
s = socket.socket(socket.AF_UNIX)
s.connect({str(tmp_path / "s")!r})
socket.send_fds(s, [b'x'], fds)
"""
    try:
        first = python(box, RECORDER)
        done = python(box, send)
        assert done.exit == 0, done.err
        assert other.stdout.readline() == b"3\n"
        for _ in range(3):
            assert python(box, RECORDER) == first
    finally:
        other.communicate()


@needs_root
@pytest.mark.parametrize("place", ["/dev/shm", "/dev/pts"])
def test_a_slot_leaves_what_the_caller_binds_into_dev_alone(
    place: str, rootfs: Path, tmp_path: Path
) -> None:
    """The resident looks at what runs leave in its own shm and pts, and at nobody else's."""
    source = tmp_path / "source"
    source.mkdir()
    os.utime(source, (1, 1))
    before = source.stat()
    with open_box(rootfs, extra_mounts=[Mount.bind(source, place)]) as box:
        for _ in range(4):
            assert box.run(["true"], cwd="/").exit == 0
        after = source.stat()
        assert after.st_mtime == 1
        assert after.st_ctime == before.st_ctime
        for name in ("a", "b", "c"):
            seen = box.run(["sh", "-c", f"touch {place}/{name} && ls {place}"], cwd="/").out.split()
            assert seen[-1] == name.encode()
        assert len(os.listdir(source)) == 3
