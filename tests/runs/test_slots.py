# SPDX-License-Identifier: Apache-2.0
"""Slots: what one run leaves to the next, and what is left when a Sandbox goes.

In these tests a Sandbox has a single slot, so that each run follows the one before.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import needs_root, require
from lib.roots import make_rootfs
from lib.waiting import processes, wait_until

from sandboxlib import Mount, Policy, Sandbox, SetupError, run_sandbox
from sandboxlib._core import native
from sandboxlib._runs import slots as _slots
from sandboxlib._runs.plan import plan_for

pytestmark = needs_root

PYTHON = os.path.realpath(sys.executable)  # for sandboxes: a venv may lie in /tmp


@pytest.fixture(autouse=True)
def _one_slot(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_slots, "MOST_SPARE", 0)
    yield
    gc.collect()


@pytest.fixture
def box(shared_rootfs: Path) -> Iterator[Sandbox]:
    mounts = [Mount.tmpfs("/tmp"), Mount.dev()]
    with Sandbox(shared_rootfs, network="isolated", extra_mounts=mounts) as made:
        yield made


def sh(box: Sandbox, script: str, **words: Any) -> str:
    result = box.run(["sh", "-c", script], **words)
    assert (result.exit, result.err) == (0, b""), result
    assert result.out is not None
    return result.out.decode().strip()


def python(box: Sandbox, script: str) -> str:
    result = box.run([PYTHON, "-I", "-S", "-c", script])
    assert (result.exit, result.err) == (0, b""), result
    assert result.out is not None
    return result.out.decode().strip()


def slot_of(box: Sandbox) -> str:
    """The namespaces that are leased."""
    return sh(box, "for n in net ipc uts cgroup; do readlink /proc/self/ns/$n; done")


def is_ours(host: str) -> bool:
    """A host that is this process, a child of it, or dead."""
    if int(host) in (-1, os.getpid()):
        return True
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{host}/stat").read_text()
        return int(status.rpartition(")")[2].split()[1]) == os.getpid()
    return True


def residents() -> list[int]:
    """Those of nobody else on the machine: descriptor 4 of a resident is a pidfd of its host."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if "sandboxlib-init" in os.readlink(f"/proc/{pid}/exe"):
                lifeline = Path(f"/proc/{pid}/fdinfo/4").read_text()
                if is_ours(lifeline.partition("Pid:")[2].split()[0]):
                    found.append(int(pid))
    return found


def resident_of(box: Sandbox) -> int:
    """The pid of the only one."""
    (slot,) = [s for r in plan_for(box).slots._shared._slots if (s := r()) and s.is_open]
    return native.pid_of(slot.struct.pidfd)


def kill_resident(box: Sandbox) -> None:
    """And waits until it is dead: /proc stops to name its program a little before that."""
    pid = resident_of(box)
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """The machine's own root, for commands in Python."""
    monkeypatch.chdir("/")  # the default cwd of a command; it may not lie in /tmp
    mounts = [Mount.tmpfs("/tmp"), Mount.dev()]
    words: dict[str, Any] = {"filesystem_writable_paths": "none", "extra_mounts": mounts}
    with open_box("/", network="isolated", **words) as made:
        require(not PYTHON.startswith("/tmp/"), "Python is in /tmp")
        yield made


# ---- what is leased, and what is new --------------------------------------------------------


def test_runs_that_change_nothing_follow_one_another_in_a_slot(box: Sandbox) -> None:
    assert slot_of(box) == slot_of(box)


def test_fresh_is_new(box: Sandbox) -> None:
    kept = slot_of(box).split()[0]  # lives on, so that its number is no other's
    seen = {sh(box, "readlink /proc/self/ns/net", fresh=True) for _ in range(3)}
    assert kept not in seen
    result = run_sandbox(box.root, ["readlink", "/proc/self/ns/net"], network="isolated")
    assert result.out not in {slot_of(box).split()[0]}


def test_every_run_has_processes_mounts_and_proc_of_its_own(box: Sandbox) -> None:
    script = (
        "echo $$; for n in pid mnt; do readlink /proc/self/ns/$n; done; ls /proc | grep -c '^[0-9]'"
    )
    first, second = (sh(box, script).split() for _ in range(2))
    assert first[0] == second[0] == "2"
    assert first[1] != second[1] or first[2] != second[2]
    assert int(first[3]) <= 4


def test_files_in_the_run_s_own_file_systems_are_gone(box: Sandbox) -> None:
    places = "/tmp /dev /dev/shm"
    assert sh(box, f"for d in {places}; do echo x > $d/left; done; ls /tmp") == "left"
    assert sh(box, f"for d in {places}; do test ! -e $d/left || echo $d; done") == ""


def test_processes_are_gone(box: Sandbox) -> None:
    sh(box, "for i in 1 2 3; do setsid sleep 1000 >/dev/null 2>&1 & done")
    assert int(sh(box, "ls /proc | grep -c '^[0-9]'")) <= 4


LIBRT = "import ctypes; c = ctypes.CDLL('librt.so.1')"


@pytest.mark.parametrize(
    ("leave", "look"),
    [
        (
            "import ctypes; c = ctypes.CDLL(None); assert c.shmget(77, 4096, 0o1600) >= 0",
            "print(sum(1 for _ in open('/proc/sysvipc/shm')) - 1)",
        ),
        (
            "import ctypes; c = ctypes.CDLL(None); assert c.semget(77, 1, 0o1600) >= 0",
            "print(sum(1 for _ in open('/proc/sysvipc/sem')) - 1)",
        ),
        (
            "import ctypes; c = ctypes.CDLL(None); assert c.msgget(77, 0o1600) >= 0",
            "print(sum(1 for _ in open('/proc/sysvipc/msg')) - 1)",
        ),
        (
            f"{LIBRT}; assert c.mq_open(b'/left', 0o102, 0o600, 0) >= 0",
            f"{LIBRT}; print(max(0, 1 + c.mq_open(b'/left', 0)))",
        ),
        (
            "import socket as s; a = s.socket(s.AF_INET, s.SOCK_DGRAM)\n"
            "a.sendto(b'x', ('127.0.0.1', 9))",
            "print(open('/proc/net/dev').read().split('lo:')[1].split()[1])",
        ),
        (
            "import socket as s; a = s.create_server(('127.0.0.1', 7)); b = s.socket()\n"
            "b.connect(('127.0.0.1', 7)); c = a.accept()[0]; c.close(); b.close()",
            "print(sum(1 for _ in open('/proc/net/tcp')) - 1)",
        ),
        (
            "import socket as s; a = s.socket(s.AF_UNIX); a.bind('\\0left'); a.listen()",
            "print(open('/proc/net/unix').read().count('@left'))",
        ),
        (
            "open('/proc/1/oom_score_adj', 'w').write('77')",
            "print(open('/proc/self/oom_score_adj').read())",
        ),
        (
            "open('/proc/1/coredump_filter', 'w').write('0x7f')",
            "print(int(open('/proc/self/coredump_filter').read(), 16) == 0x7f and 1 or 0)",
        ),
        (
            "import resource as r; import os\n"
            "r.prlimit(1, r.RLIMIT_CORE, (0, 0)); r.prlimit(1, r.RLIMIT_NOFILE, (64, 64))",
            "import resource as r; print(int(r.getrlimit(r.RLIMIT_NOFILE)[1] == 64))",
        ),
        (
            "import ctypes as c; k = c.CDLL(None).syscall\n"
            "assert k(248, b'user', b'left', b'x', 1, -3) > 0",  # add_key to the session keyring
            "import ctypes as c; print(max(0, c.CDLL(None).syscall(249, b'user', b'left', 0, -3)))",
        ),
    ],
    ids=(
        "shm sem msg mqueue traffic TIME_WAIT abstract oom_score_adj coredump_filter rlimits "
        "keyring"
    ).split(),
)
def test_nothing_that_a_command_leaves_is_found_by_the_next(
    whole: Sandbox, leave: str, look: str
) -> None:
    whole = whole.replace(policy=Policy(seccomp="none"))
    before = python(whole, look)
    python(whole, leave)
    assert python(whole, look) == before == "0"


@pytest.mark.parametrize(
    "script",
    [
        "import socket as s; s.socket(s.AF_INET, s.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
        "import ctypes; assert ctypes.CDLL(None).shmget(77, 4096, 0o1600) >= 0",
        "open('/proc/1/oom_score_adj', 'w').write('77')",
    ],
    ids=["network", "ipc", "memory"],
)
def test_a_slot_in_which_something_was_left_is_not_used_again(whole: Sandbox, script: str) -> None:
    ns = "import os; print(os.readlink('/proc/self/ns/net'))"
    before = python(whole, ns)
    assert python(whole, ns) == before
    # Held, so that none is given its number.
    namespace = os.open(f"/proc/{resident_of(whole)}/ns/net", os.O_RDONLY)
    python(whole, script)
    assert python(whole, ns) != before
    os.close(namespace)


def test_a_socket_that_somebody_outside_holds_ends_the_slot(whole: Sandbox, tmp_path: Path) -> None:
    import socket

    path = str(tmp_path / "socket")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    words = {"extra_mounts": [Mount.bind(tmp_path, "/mnt")], "network": "isolated"}
    with open_box("/", **words) as box:
        ns = "import os; print(os.readlink('/proc/self/ns/net'))"
        before = python(box, ns)
        python(
            box,
            "import socket as s; u = s.socket(s.AF_UNIX); u.connect('/mnt/socket')\n"
            "i = s.socket(); i.bind(('127.0.0.1', 77)); s.send_fds(u, [b'x'], [i.fileno()])",
        )
        connection = server.accept()[0]
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
        assert python(box, ns) != before
        os.close(descriptors[0])
        connection.close()
    server.close()


def test_sysctls_cannot_be_written(whole: Sandbox) -> None:
    script = "open('/proc/sys/net/ipv4/ip_forward', 'w').write('1')"
    assert b"Read-only" in (whole.run([PYTHON, "-c", script]).err or b"")


def test_a_second_proc_in_the_root_ends_the_lease_of_it(rootfs: Path) -> None:
    # Through it uid 0 could write the sysctls of the network.
    script = """
import os, subprocess, sys
from sandboxlib import Mount, Sandbox
from sandboxlib._runs.plan import plan_for
root = sys.argv[1]
os.mkdir(f"{root}/other")
subprocess.run(["mount", "-t", "proc", "x", f"{root}/other"], check=True)
box = Sandbox(root, network="isolated")
assert box.run(["true"]).exit == 0
slots = plan_for(box).slots
print(slots._may_stay, slots._shared.slots)
"""
    argv = ["unshare", "--mount", sys.executable, "-c", script, str(rootfs)]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "False 0\n"


def test_two_runs_at_once_cannot_reach_each_other(whole: Sandbox) -> None:
    listen = (
        "import socket as s, time, sys\n"
        "a = s.create_server(('127.0.0.1', 77)); b = s.socket(s.AF_UNIX); b.bind('\\0here')\n"
        "b.listen(); print(1, flush=True); time.sleep(20)"
    )
    reach = (
        "import socket as s\n"
        "for k, at in ((s.AF_INET, ('127.0.0.1', 77)), (s.AF_UNIX, '\\0here')):\n"
        "    try: s.socket(k).connect(at); print('reached', at)\n"
        "    except ConnectionRefusedError: pass"
    )
    reader, writer = os.pipe()
    argv = [PYTHON, "-c", listen]
    words = {"stdout": writer, "timeout": 10}
    thread = threading.Thread(target=lambda: whole.run(argv, **words))
    thread.start()
    try:
        assert os.read(reader, 1) == b"1"
        assert python(whole, reach) == ""
    finally:
        whole.close()
        os.close(writer)
        thread.join()
        os.close(reader)


# ---- the root and the sources ----------------------------------------------------------------


def test_a_root_that_was_made_anew_is_seen(tmp_path: Path) -> None:
    with open_box(make_rootfs(tmp_path / "root")) as box:
        sh(box, "echo one > /etc/mark")
        shutil.rmtree(tmp_path / "root")
        make_rootfs(tmp_path / "root")
        assert box.run(["cat", "/etc/mark"]).exit == 1


def test_a_source_that_was_made_anew_is_seen(rootfs: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "mark").write_text("one")
    with open_box(rootfs, extra_mounts=[Mount.bind(source, "/tmp/x")]) as box:
        assert sh(box, "cat /tmp/x/mark") == "one"
        source.rename(tmp_path / "old")
        source.mkdir()
        (source / "mark").write_text("two")
        assert sh(box, "cat /tmp/x/mark") == "two"


@pytest.mark.parametrize("mount", ["bind", "tmpfs", "hole"])
def test_a_mount_cannot_be_taken_from_later_runs(rootfs: Path, tmp_path: Path, mount: str) -> None:
    # A rename takes along what is mounted there, in every namespace.
    (rootfs / "opt" / "src").mkdir(parents=True)
    (rootfs / "opt" / "src" / "mark").write_text("root's")
    (tmp_path / "mark").write_text("bound")
    words: dict[str, Any] = {"extra_mounts": [Mount.bind(tmp_path, "/opt/src", read_only=True)]}
    if mount == "tmpfs":
        words = {"extra_mounts": [Mount.tmpfs("/opt/src")]}
    elif mount == "hole":
        words = {"filesystem_writable_paths": ["/opt/src"]}
    look = "cat /opt/src/mark 2>/dev/null; touch /opt/src/new && echo written; true"
    with open_box(rootfs, **words) as box, open_box(rootfs) as other:
        first = box.run(["sh", "-c", look])
        sh(box, "true")
        attack = "mv /opt /opt.old; mkdir -p /opt/src; echo evil > /opt/src/mark"
        for attacker in (box, other):
            attacker.run(["sh", "-c", attack])
            assert box.run(["sh", "-c", look]) == box.run(["sh", "-c", look], fresh=True)
        if mount != "hole":
            assert box.run(["sh", "-c", look])[:2] == first[:2]


def test_what_the_host_mounts_later_is_seen(rootfs: Path) -> None:
    script = """
import os, subprocess, sys
from sandboxlib import Sandbox
from sandboxlib._runs import slots as _slots
root = sys.argv[1]
os.mkdir(f"{root}/later")
box = Sandbox(root)
def seen():
    return box.run(["sh", "-c", "ls /later"]).out
assert seen() == seen() == b""
subprocess.run(["mount", "--bind", "/etc", f"{root}/later"], check=True)
assert b"passwd" in seen()
subprocess.run(["umount", f"{root}/later"], check=True)
assert seen() == b""
"""
    argv = ["unshare", "--mount", sys.executable, "-c", script, str(rootfs)]
    subprocess.run(argv, check=True)


def test_a_source_below_an_own_file_system_is_the_caller_s(rootfs: Path, tmp_path: Path) -> None:
    source = tmp_path / "tmp"
    source.mkdir()
    (source / "mark").write_text("host")
    (rootfs / str(source)[1:]).mkdir(parents=True)
    (rootfs / str(source)[1:] / "mark").write_text("inside")
    mounts = [Mount.tmpfs("/tmp"), Mount.bind(source, "/tmp/x")]
    with open_box(rootfs, extra_mounts=mounts) as box:
        assert [sh(box, "cat /tmp/x/mark") for _ in range(3)] == ["host"] * 3


def test_stdin_that_is_empty_is_nobody_else_s(whole: Sandbox) -> None:
    python(whole, "import fcntl, os; fcntl.flock(0, fcntl.LOCK_EX); os.set_blocking(0, False)")
    with open("/dev/null") as null:
        import fcntl

        fcntl.flock(null, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert python(whole, "import os; print(os.get_blocking(0))") == "True"


def test_after_many_slots_that_gained_nothing_runs_are_made_fresh(
    whole: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_slots, "REST", 5)
    send = "import socket as s; s.socket(s.AF_INET, s.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))"
    for _ in range(_slots.MOST_WASTED + 2):
        python(whole, send)
    assert wait_until(lambda: not residents())
    for _ in range(6):
        python(whole, "pass")
    assert residents()


def test_mounts_keep_their_order(rootfs: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "mark").write_text(name)
    (rootfs / "link").symlink_to("tmp")
    one, two = (str(tmp_path / name) for name in ("one", "two"))
    for mounts, there in (
        ([Mount.tmpfs("/tmp"), Mount.bind(one, "/tmp/x"), Mount.tmpfs("/tmp/x/sub")], "one"),
        ([Mount.bind(one, "/tmp"), Mount.tmpfs("/tmp"), Mount.bind(two, "/tmp/x")], "two"),
        ([Mount.tmpfs("/tmp/a"), Mount.bind(one, "/tmp"), Mount.bind(two, "/tmp/sub")], None),
        ([Mount.tmpfs("/tmp"), Mount.bind(one, "/etc"), Mount.bind(two, "/link")], None),
    ):
        script = "cat /tmp/x/mark /tmp/mark /tmp/sub/mark /etc/mark 2>/dev/null; true"
        with open_box(rootfs, extra_mounts=mounts) as box:
            said = sh(box, script)
            assert said == sh(box, script) == sh(box, script, fresh=True)
            assert there is None or there in said


def test_what_fails_in_a_run_is_told_as_ever(box: Sandbox) -> None:
    sh(box, "true")
    before = slot_of(box)
    for command, words, step in (
        (["nonesuch"], {}, "exec"),
        (["true"], {"cwd": "/none"}, "cwd"),
        (["true", "x" * 200_000], {}, "exec"),
    ):
        with pytest.raises(SetupError) as raised:
            box.run(command, **words)
        with pytest.raises(SetupError) as fresh:
            box.run(command, **words, fresh=True)
        assert raised.value.step in (step, fresh.value.step)
        assert (raised.value.errno, raised.value.filename) == (
            *(fresh.value.errno, raised.value.filename),
        )
        if step == "cwd":
            assert slot_of(box) == before  # after an order that long it is another one


def test_a_long_command_line_arrives_whole(box: Sandbox) -> None:
    words = [f"{i:0100}" for i in range(12_000)]
    result = box.run(["sh", "-c", 'echo $# "$1" "${12000}"', "sh", *words])
    assert result.out == f"12000 {words[0]} {words[-1]}\n".encode()


def test_without_a_slot_a_run_is_made_fresh(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(_slots.Slot):
        def __init__(self, *words: Any) -> None:
            raise OSError(24, "no")

    monkeypatch.setattr(_slots, "Slot", Broken)
    assert sh(box, "echo x") == "x"
    assert not residents()


@pytest.mark.parametrize(
    "words",
    [
        {"policy": Policy(capabilities="all")},
        {"policy": Policy(capabilities=["net_admin"])},
        {"policy": Policy(capabilities=["sys_admin", "chown"])},
        {"processes": "undefined"},
        {"mounts": "undefined", "processes": "undefined"},
        {"user": "ranges"},
    ],
    ids=str,
)
def test_who_could_change_a_slot_gets_none(shared_rootfs: Path, words: dict[str, Any]) -> None:
    with open_box(shared_rootfs, **words) as box:
        assert box.run(["true"]).exit == 0
        assert not residents()


# ---- the life of slots -----------------------------------------------------------------------


def test_close_ends_what_is_kept_and_the_next_run_begins_anew(box: Sandbox) -> None:
    before = slot_of(box)
    # Held, so that none is given its number.
    namespace = os.open(f"/proc/{resident_of(box)}/ns/net", os.O_RDONLY)
    box.close()
    assert wait_until(lambda: not residents())
    assert slot_of(box).split()[0] != before.split()[0]
    os.close(namespace)


def test_what_nobody_holds_any_more_is_closed(shared_rootfs: Path) -> None:
    native.init_descriptor()  # which is kept
    gc.collect()
    descriptors = sorted(os.listdir("/proc/self/fd"))
    sh(Sandbox(shared_rootfs), "true")
    gc.collect()
    assert wait_until(lambda: not residents())
    assert sorted(os.listdir("/proc/self/fd")) == descriptors


def test_what_lives_longer_than_the_modules_is_left_alone(
    shared_rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = _slots.Slots(plan_for(Sandbox(shared_rootfs)))
    with monkeypatch.context() as end:
        end.setattr(_slots, "_all", None)  # as the interpreter leaves it
        del slots
        gc.collect()


def test_a_resident_is_no_child_of_the_caller(box: Sandbox) -> None:
    sh(box, "true")
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert residents()
    assert not {str(pid) for pid in residents()} & set(children)


HOST = """
import os, signal, sys, threading, time
from sandboxlib import Mount, Sandbox
box = Sandbox(sys.argv[1], network="isolated", extra_mounts=[Mount.tmpfs("/tmp")])
for _ in range(3):
    box.run(["true"])
"""


@pytest.mark.parametrize(
    "end",
    [
        "print('up', flush=True); time.sleep(100)",
        "print('up', flush=True); box.run(['sleep', '100'])",
    ],
    ids=["idle", "in a run"],
)
def test_sigkill_of_the_caller_leaves_nothing(shared_rootfs: Path, end: str) -> None:
    argv = [sys.executable, "-c", HOST + end, str(shared_rootfs)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as host:
        assert host.stdout is not None
        assert host.stdout.readline() == b"up\n"
        assert residents()
        host.kill()
    assert wait_until(lambda: not residents())


def test_a_caller_that_ends_closes_its_slots(shared_rootfs: Path) -> None:
    argv = [sys.executable, "-c", HOST, str(shared_rootfs)]
    subprocess.run(argv, check=True)
    assert wait_until(lambda: not residents())


def test_a_fork_has_slots_of_its_own(shared_rootfs: Path) -> None:
    script = """
ns = lambda: box.run(["readlink", "/proc/self/ns/net"]).out
from sandboxlib._runs import slots as _slots
_slots.MOST_SPARE = 0
box.close()
before = ns()
pid = os.fork()
if pid == 0:
    ok = ns() != before and ns() != before
    box.close()
    os._exit(0 if ok else 1)
assert os.waitpid(pid, 0)[1] == 0
assert ns() == ns()
pid = os.fork()
if pid == 0:
    import gc
    del box; gc.collect()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert box.run(["true"]).exit == 0
"""
    argv = [sys.executable, "-c", HOST + script, str(shared_rootfs)]
    subprocess.run(argv, check=True)
    assert wait_until(lambda: not residents())


def test_a_resident_that_is_killed_is_told_as_that_and_replaced(box: Sandbox) -> None:
    results = []
    mark = f"86{os.getpid()}"
    thread = threading.Thread(target=lambda: results.append(box.run(["sleep", mark])))
    thread.start()
    assert wait_until(lambda: processes(mark))
    kill_resident(box)
    thread.join()
    assert results[0].exit == -9
    assert sh(box, "echo x") == "x"
    kill_resident(box)
    assert sh(box, "echo x") == "x"


def test_descriptors_that_the_host_replaced_are_left_alone(shared_rootfs: Path) -> None:
    script = """
files = [os.open("/etc/passwd", os.O_RDONLY) for _ in range(3)]
for name in os.listdir("/proc/self/fd"):
    if int(name) > 2 and os.path.exists(f"/proc/self/fd/{name}"):
        os.dup2(files[0], int(name))
assert box.run(["echo", "x"]).out == b"x\\n"
assert all(os.read(int(name), 0) == b"" for name in files)
"""
    argv = [sys.executable, "-c", HOST + script, str(shared_rootfs)]
    subprocess.run(argv, check=True)


def test_an_ordinary_user_has_slots_as_well(tmp_path: Path) -> None:
    if "SANDBOXLIB_SANITIZED" in os.environ:
        pytest.skip("what an ordinary user runs is not over the sanitizer")
    require(shutil.which("setpriv"), "there is no setpriv")
    script = """
import sys
from sandboxlib import Mount, Policy, Sandbox
from sandboxlib._runs import slots as _slots
_slots.MOST_SPARE = 0
box = Sandbox("/", network="isolated", filesystem_writable_paths="none")
ns = [box.run(["readlink", "/proc/self/ns/net", "/proc/self/ns/user"], cwd="/") for _ in range(3)]
assert ns[0].executor == "user_namespace", ns[0]
assert ns[0].out == ns[1].out == ns[2].out != box.run(
    ["readlink", "/proc/self/ns/net", "/proc/self/ns/user"], cwd="/", fresh=True).out
assert box.run(["id", "-u"], cwd="/").out == b"65534\\n"
assert b"CapEff:\\t0000000000000000" in box.run(["cat", "/proc/self/status"], cwd="/").out
root = box.replace(user="root")
assert root.run(["id", "-u"], cwd="/").out == b"0\\n"
dev = box.replace(extra_mounts=[Mount.dev(), Mount.tmpfs("/tmp")])
box = box.replace(policy=Policy(seccomp="none"))
for _ in range(3):
    out = dev.run(["sh", "-c", "echo x > /dev/null; head -c 3 /dev/zero"], cwd="/").out
    assert out == b"\\0\\0\\0"
(slots,) = [plan.slots for plan in dev._plans.values() if plan.slots]
assert slots._shared.slots == 1
def key(script):
    result = box.run([sys.executable, "-I", "-S", "-c", "import ctypes as c, struct\\n"
        "k = c.CDLL(None).syscall\\n" + script], cwd="/")
    assert result.exit == 0, result
    return result.out
find = "print(max(0, k(249, b'user', b'left', 0, 0)), k(250, 10, %s, b'user', b'left', 0) > 0)"
for ring in ("-4", "k(250, 22, -1, -3)"):
    assert key(find % ring) == b"0 False\\n"
    key(f"assert k(248, b'user', b'left', b'x', 1, {ring}) > 0")
    assert key(find % ring) == b"0 False\\n"
"""
    package = Path(native.__file__).resolve().parents[2]
    copy = tmp_path / "copy"
    shutil.copytree(package / "sandboxlib", copy / "sandboxlib")
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == 0 and not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o055)
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    import cffi

    env = {"PYTHONPATH": f"{copy}:{Path(cffi.__file__).parents[1]}", "PATH": os.environ["PATH"]}
    python = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
    done = subprocess.run(
        [*user, python, "-c", "import sandboxlib"],
        env=env,
        cwd="/",
        capture_output=True,
        check=False,
    )
    require(done.returncode == 0, f"an ordinary user cannot import it: {done.stderr[-300:]!r}")
    subprocess.run([*user, python, "-c", script], env=env, cwd="/", check=True)


@pytest.mark.slow
def test_a_soak_leaves_everything_as_it_was(shared_rootfs: Path) -> None:
    """SANDBOXLIB_SOAK=100000 is the whole of it; 2,000 runs show as much in ten seconds."""
    count = int(os.environ.get("SANDBOXLIB_SOAK", "2000"))
    script = f"""
def state():
    while len(os.listdir("/proc/self/task")) > 1:  # join() comes a little before that
        time.sleep(0.01)
    return (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")),
            [line for line in open("/proc/self/mountinfo") if " - fuse" not in line])
def memory():
    return int(open("/proc/self/statm").read().split()[1]) * 4
def storm(count):
    def go():
        for _ in range(count // 8):
            assert box.run(["true"]).exit == 0
    started = [threading.Thread(target=go) for _ in range(8)]
    [thread.start() for thread in started]
    [thread.join() for thread in started]
    box.close()
storm({min(count, 1000)})
before, size = state(), memory()
storm({count})
assert state() == before, (state(), before)
if "SANDBOXLIB_SANITIZED" not in os.environ:
    assert memory() - size < 4000, (memory(), size)
"""
    argv = [sys.executable, "-c", HOST + script, str(shared_rootfs)]
    subprocess.run(argv, check=True)
    assert wait_until(lambda: not residents())
