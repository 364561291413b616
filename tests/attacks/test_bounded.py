# SPDX-License-Identifier: Apache-2.0
"""The host never waits for what a command can withhold, whichever way it runs the command."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import pickle
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import LIB, needs_root, python, require
from lib.roots import find_busybox, make_rootfs
from lib.waiting import wait_until

import sandboxlib
from sandboxlib import CAPTURE, Command, Mount, Process, Result, Sandbox, Unkillable
from sandboxlib._core import native, workspace
from sandboxlib._runs import slots

pytestmark = needs_root
Way = Callable[..., Result]


def by_map(box: Sandbox, command: list[str], **words: Any) -> Result:
    found = list(box.map([command] * 2, jobs=2, on_failure="continue", **words))
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return found[-1]


def by_start(box: Sandbox, command: list[str], timeout: float, **words: Any) -> Result:
    for name in ("max_output", "on_overflow"):  # which start() does not take
        words.pop(name, None)
    with box.start(command, **words) as process:
        late = False
        try:
            process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            late = True
            process.kill()
            process.communicate()
        result = process.result()
        result.timed_out = late
        return result


def by_async(box: Sandbox, command: list[str], **words: Any) -> Result:
    return asyncio.run(box.run_async(command, **words))


WAYS: dict[str, Way] = {
    "slot": lambda box, command, **words: box.run(command, **words),
    "fresh": lambda box, command, **words: box.run(command, fresh=True, **words),
    "map": by_map,
    "start": by_start,
    "async": by_async,
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


@pytest.fixture
def box(shared_rootfs: Path) -> Iterator[Sandbox]:
    with Sandbox(shared_rootfs) as made:
        yield made


def compiled(tmp_path: Path, source: str) -> Path:
    """A root with the static program /bin/probe and busybox."""
    require(shutil.which("cc"), "there is no C compiler")
    busybox = find_busybox()
    require(busybox, "there is no static busybox (apt: busybox-static)")
    assert busybox is not None
    root = tmp_path / "probe"
    for name in ("bin", "proc", "tmp", "dev", "mnt"):
        (root / name).mkdir(parents=True)
    root.chmod(0o755)
    (tmp_path / "probe.c").write_text(source)
    flags = ["-O1", "-static", "-pthread", "-o", str(root / "bin" / "probe")]
    subprocess.run(["cc", "-w", *flags, str(tmp_path / "probe.c")], check=True)
    shutil.copy(busybox, root / "bin" / "busybox")
    (root / "bin" / "sh").symlink_to("busybox")
    return root


# ---- output that is taken back -----------------------------------------------------------------

O_NONBLOCK = 0o4000


def pipes() -> dict[int, int]:
    """The flags of the pipes and terminals that this process has open, by descriptor."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith(("pipe:", "/dev/p")):
                text = Path(f"/proc/self/fdinfo/{name}").read_text()
                found[int(name)] = int(text.partition("flags:")[2].split()[0], 8)
    return found


@ways
@pytest.mark.parametrize("pty", [False, True])
def test_the_hosts_ends_do_not_block_and_the_commands_do(box: Sandbox, way: Way, pty: bool) -> None:
    if way is WAYS["start"]:
        pytest.skip("the files of a Process are the caller's, and block as those of a Popen do")
    before = pipes()
    seen: list[tuple[int, int]] = []
    said = bytearray()

    def take(data: bytes) -> None:
        said.extend(data)
        seen.extend((fd, flags) for fd, flags in pipes().items() if fd not in before)

    words: dict[str, Any] = {"pty": True} if pty else {"stderr": take}
    script = "grep flags /proc/self/fdinfo/1; echo x >&2; sleep 0.1"
    result = way(box, ["sh", "-c", script], stdout=take, timeout=60, **words)
    assert result.exit == 0, result
    assert seen
    assert all(flags & O_NONBLOCK for _, flags in seen), seen
    flags = [int(line.split()[1], 8) for line in said.decode().splitlines() if "flags" in line]
    assert flags
    assert not any(f & O_NONBLOCK for f in flags)


THIEF = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <unistd.h>
int main(void) { /* takes back what it wrote, as soon as the host was told of it */
    int out = open("/proc/self/fd/1", O_RDONLY | O_NONBLOCK);
    int err = open("/proc/self/fd/2", O_RDONLY | O_NONBLOCK);
    char byte[64];
    if (out < 0 || err < 0)
        return 3;
    if (fork()) {
        for (;;)
            read(out, byte, sizeof byte), read(err, byte, sizeof byte);
    }
    for (;;)
        write(1, "x", 1), write(2, "x", 1);
}
"""


@ways
@pytest.mark.slow
@pytest.mark.parametrize("words", [{}, {"max_output": 1 << 40, "on_overflow": "kill"}])
def test_output_that_is_taken_back_delays_no_timeout(
    tmp_path: Path, way: Way, words: dict[str, Any]
) -> None:
    with open_box(compiled(tmp_path, THIEF)) as box:
        began = time.monotonic()
        assert way(box, ["/bin/probe"], timeout=0.7, **words).timed_out
        assert time.monotonic() - began < 20


# ---- stdin that is not read --------------------------------------------------------------------

FILLED = "exec yes 1<>/proc/self/fd/0"


@pytest.fixture
def filled(shared_rootfs: Path) -> Iterator[Any]:
    """A Process whose command has filled the pipe of its stdin itself."""
    with Sandbox(shared_rootfs) as box:
        process = box.start(["sh", "-c", FILLED], stdin=CAPTURE)
        poll = select.poll()
        poll.register(process.stdin, select.POLLOUT)
        try:
            assert wait_until(lambda: not poll.poll(0))
            yield process
        finally:
            process.close()


def test_communicate_obeys_its_timeout_where_stdin_is_full(filled: Any) -> None:
    for input in (b"x", None):
        began = time.monotonic()
        with pytest.raises(subprocess.TimeoutExpired):
            filled.communicate(input, timeout=0.2)
        assert time.monotonic() - began < 20
    filled.kill()
    assert filled.wait(60) == -9


def test_what_was_not_written_does_not_keep_the_end(filled: Any) -> None:
    filled.stdin.write(b"x")  # buffered
    filled.close()
    assert filled.stdin.closed


def test_an_exception_in_the_block_does_not_wait_for_stdin(filled: Any) -> None:
    filled.stdin.write(b"x")
    with pytest.raises(KeyError), filled:
        raise KeyError
    assert filled.stdin.closed


def test_a_write_waits_for_room_and_ends_with_the_run(filled: Any) -> None:
    raised: list[BaseException] = []

    def write() -> None:
        try:
            filled.stdin.raw.write(b"x")
        except BrokenPipeError as error:
            raised.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    filled.kill()
    filled.wait(60)
    thread.join(60)
    assert not thread.is_alive()
    assert len(raised) == 1


# ---- the end of a run --------------------------------------------------------------------------

#: Seconds that the kernel has to end a run, with much slack for a busy machine.
END = 1.9 + 30

#: Mounts FUSE on itself and waits on it, when the server has taken the request: SIGKILL does not
#: end that. argv: "both": then it says so and exits, while a child of it hangs.
HANG = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
static int fd, hangs[2];
static void put(const char *path, const char *text) {
    int file = open(path, O_WRONLY);
    write(file, text, strlen(text));
    close(file);
}
static void *serve(void *none) {
    static char buffer[1 << 17];
    for (;;) {
        struct fuse_in_header *in = (void *)buffer;
        if (read(fd, buffer, sizeof buffer) < 0)
            return NULL;
        if (in->opcode == FUSE_INIT) {
            struct { struct fuse_out_header head; struct fuse_init_out out; } answer = {0};
            answer.head.len = sizeof answer;
            answer.head.unique = in->unique;
            answer.out.major = 7;
            answer.out.minor = 31;
            answer.out.max_write = 4096;
            write(fd, &answer, sizeof answer);
        } else {
            write(hangs[1], "x", 1);
            pause();
        }
    }
}
int main(int argc, char **argv) {
    char options[100], byte;
    struct statx status;
    pthread_t thread;
    pipe(hangs);
    if (argc > 1 && fork()) { /* the child hangs, we end */
        read(hangs[0], &byte, 1);
        return 7;
    }
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS))
        return 2;
    put("/proc/self/setgroups", "deny");
    put("/proc/self/uid_map", "0 0 1");
    put("/proc/self/gid_map", "0 0 1");
    if ((fd = open("/dev/fuse", O_RDWR)) < 0)
        return 3;
    sprintf(options, "fd=%d,rootmode=40000,user_id=0,group_id=0", fd);
    if (mount("x", "/mnt", "fuse", 0, options)
        || statx(AT_FDCWD, "/mnt", AT_STATX_DONT_SYNC, STATX_TYPE, &status))
        return 4;
    printf("connection %u\n", status.stx_dev_minor);
    fflush(stdout);
    pthread_create(&thread, NULL, serve, NULL);
    access("/mnt/x", F_OK);
    return 0;
}
"""


def without_filter() -> dict[str, Any]:
    """Words of a Sandbox whose commands may do all that they could do without a filter."""
    words: dict[str, Any] = {}
    if "devices" in Sandbox._fields:
        words["devices"] = "root"
    if "policy" in Sandbox._fields:
        words["policy"] = sandboxlib.Policy(seccomp="none")  # type: ignore[attr-defined]
    return words


class Hanging:
    """A root whose /bin/probe hangs for ever; abort() lets all of them end."""

    def __init__(self, tmp_path: Path) -> None:
        require(os.path.exists("/dev/fuse"), "there is no /dev/fuse")
        self.root = compiled(tmp_path, HANG)
        os.mknod(self.root / "dev" / "fuse", 0o20666, os.stat("/dev/fuse").st_rdev)
        self.said = tmp_path / "said"
        self.said.touch()

    def run(self, way: Way, box: Sandbox, *argv: str, **words: Any) -> Result:
        with open(self.said, "ab") as file:
            return way(box, ["/bin/probe", *argv], stdout=file, **words)

    def abort(self) -> None:
        numbers = self.said.read_text().replace("connection", "").split()
        place = self.root / "mnt"
        script = f'mount -t fusectl x {place}; for n; do echo 1 > "{place}/$n/abort"; done; true'
        argv = ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh", *numbers]
        subprocess.run(argv, check=True, stderr=subprocess.DEVNULL)


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Hanging]:
    made = Hanging(tmp_path)
    native.init_descriptor()  # it stays
    before = set(os.listdir("/proc/self/fd"))
    try:
        yield made
    finally:
        made.abort()
    slots.close_all()
    assert wait_until(lambda: workspace.reap_stuck() or not workspace._stuck)  # type: ignore[func-returns-value]
    assert set(os.listdir("/proc/self/fd")) <= before


MODES: dict[str, dict[str, Any]] = {
    "reaper": {},
    "init=False": {"init": False},
    "processes=undefined": {
        "processes": "undefined",
        "extra_mounts": [Mount.bind("/proc", "/proc")],
    },
}


@ways
@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_a_run_that_sigkill_does_not_end_is_told(
    hanging: Hanging, way: Way, mode: dict[str, Any]
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with open_box(hanging.root, **mode, **without_filter()) as box:
        began = time.monotonic()
        with pytest.raises(Unkillable) as caught:
            hanging.run(way, box, timeout=1)
        assert time.monotonic() - began < 1 + END
        error = caught.value
        assert Path(f"/proc/{error.pid}/comm").read_text() == "probe\n"
        assert error.waits_in == "request_wait_answer"
        assert str(error.pid) in str(error)
        again = pickle.loads(pickle.dumps(error))
        assert (again.pid, again.waits_in) == (error.pid, error.waits_in)
        result = way(box, ["/bin/busybox", "true"], timeout=60)  # the next one is not disturbed
        assert result.exit == 0
    slots.close_all()
    # What is needed to reap it is all that is left: of a map two of them.
    assert len(os.listdir("/proc/self/fd")) <= before + 2


@ways
@pytest.mark.slow
def test_what_a_command_leaves_hanging_is_told(hanging: Hanging, way: Way) -> None:
    with open_box(hanging.root, **without_filter()) as box:
        began = time.monotonic()
        with pytest.raises(Unkillable) as caught:
            hanging.run(way, box, "both", timeout=1e6)
        assert time.monotonic() - began < 50
        assert caught.value.waits_in == "request_wait_answer"


def _end_by(process: Process, end: str) -> None:
    if end == "close":
        process.close()
    process.kill()
    if end == "with":
        with process:
            pass
    while end == "poll":
        process.poll()
    process.wait()


@pytest.mark.slow
def test_a_process_tells_it_in_every_method_that_waits(hanging: Hanging) -> None:
    for end in ("wait", "close", "with", "poll"):
        with open_box(hanging.root, **without_filter()) as box, open(hanging.said, "ab") as file:
            size = hanging.said.stat().st_size
            process = box.start(["/bin/probe"], stdout=file)
            assert wait_until(lambda size=size: hanging.said.stat().st_size > size)
            time.sleep(0.2)
            began = time.monotonic()
            with pytest.raises(Unkillable):
                _end_by(process, end)
            assert time.monotonic() - began < END
            process.close()
            process.kill()


EXIT = """
import sys, time
from sandboxlib import Sandbox, Unkillable
from sandboxlib._core import native as _native
from sandboxlib._core import workspace as _workspace
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
sys.path.insert(0, sys.argv[3])
from attacks.test_bounded import without_filter
box = open_box(sys.argv[1], **without_filter())
with open(sys.argv[2], "ab") as file:
    for fresh in (False, True):
        try:
            box.run(["/bin/probe"], timeout=0.5, stdout=file, fresh=fresh)
        except Unkillable as error:
            print(error.waits_in, flush=True)
"""


@pytest.mark.slow
def test_the_end_of_the_interpreter_waits_for_nothing(hanging: Hanging) -> None:
    argv = [*python(), "-c", EXIT, str(hanging.root), str(hanging.said), str(LIB.parent)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "request_wait_answer\n" * 2


@pytest.mark.slow
def test_a_map_goes_on_beside_it(hanging: Hanging) -> None:
    with open_box(hanging.root, **without_filter()) as box, open(hanging.said, "ab") as file:
        commands = [Command(["/bin/probe"], timeout=0.5, stdout=file)]
        commands += [Command(["/bin/busybox", "echo", str(i)]) for i in range(20)]
        for fresh in (False, True):
            found: list[Any] = [*box.map(commands, 3, on_failure="continue", fresh=fresh)]
            assert type(found[0]) is Unkillable
            assert [each.number for each in found] == list(range(21))
            assert [each.out for each in found[1:]] == [b"%d\n" % i for i in range(20)]


# ---- attacks on the end ------------------------------------------------------------------------

ATTACKS = r"""
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
int main(int argc, char **argv) {
    static char page[65536];
    struct sched_param none = {0};
    if (!strcmp(argv[1], "stop"))
        kill(-1, SIGSTOP), raise(SIGSTOP);
    if (!strcmp(argv[1], "flood"))
        for (;;)
            write(1, page, sizeof page), write(2, page, sizeof page);
    if (!strcmp(argv[1], "starve")) {
        sched_setscheduler(1, SCHED_IDLE, &none);
        setpriority(PRIO_PROCESS, 1, 19);
        for (int i = 0; i < 3; i++)
            fork();
        for (;;)
            ;
    }
    int n = !strcmp(argv[1], "bomb") ? 5000 : 10000;
    for (int i = 0; i < n; i++)
        if (fork() == 0) {
            if (strcmp(argv[1], "bomb"))
                _exit(0); /* a zombie, as nobody waits */
            for (;;)
                pause();
        }
    for (;;)
        pause();
}
"""


@ways
@pytest.mark.parametrize("attack", ["stop", "flood", "starve", "bomb", "zombies"])
def test_no_command_puts_off_its_end(tmp_path: Path, way: Way, attack: str) -> None:
    with open_box(compiled(tmp_path, ATTACKS)) as box:
        words: dict[str, Any] = {"max_output": 1000} if attack == "flood" else {}
        began = time.monotonic()
        with contextlib.suppress(Unkillable):  # a busy machine may take longer than it is given
            assert way(box, ["/bin/probe", attack], timeout=1, **words).timed_out
        assert time.monotonic() - began < 1 + END
        assert way(box, ["/bin/busybox", "echo", "x"], timeout=60).out == b"x\n"


# ---- a host that may not send signals by pidfd -------------------------------------------------

FILTERED = r"""
import ctypes, json, struct, sys, time
sys.path.insert(0, sys.argv[2])
from sandboxlib import Sandbox
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
from attacks.test_bounded import WAYS
# seccomp(2): pidfd_send_signal, and nothing else, answers EPERM.
code = [(0x20, 0, 0, 0), (0x15, 0, 1, 424), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
program = b"".join(struct.pack("=HBBI", *each) for each in code)
memory = ctypes.create_string_buffer(program)
filter = ctypes.create_string_buffer(struct.pack("@HxxxxxxP", len(code), ctypes.addressof(memory)))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, filter) == 0
took = {}
for name, way in WAYS.items():
    for mode in ({}, {"init": False}, {"processes": "undefined"}):
        began = time.monotonic()
        with open_box(sys.argv[1], **mode) as box:
            assert way(box, ["sleep", "1000"], timeout=0.3).timed_out
            assert way(box, ["echo", "x"], timeout=60).out == b"x\n"
        took[name + str(mode)] = time.monotonic() - began
print(json.dumps(took))
"""


@pytest.mark.slow
def test_a_host_that_may_not_signal_by_pidfd_ends_its_runs(shared_rootfs: Path) -> None:
    argv = [*python(), "-c", FILTERED, str(shared_rootfs), str(LIB.parent)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    took = json.loads(done.stdout)
    assert len(took) == 15
    assert max(took.values()) < END, took


# ---- a set-up that hangs -----------------------------------------------------------------------

#: In a mount namespace of its own: a FUSE of directories in memory, which answers until it is told
#: to stop: then it takes every request, and the kernel ends nobody who waits for one.
SERVER = """
import ctypes, errno, faulthandler, json, os, struct, sys, threading, time
faulthandler.dump_traceback_later(150, exit=True)
sys.path.insert(0, sys.argv[3])
from sandboxlib import Mount, Sandbox, SandboxError, SetupError
from sandboxlib._core import native as _native
from sandboxlib._core import workspace as _workspace
from sandboxlib._runs import slots as _slots
from sandboxlib._runs import mount_points as _stubs
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
from attacks.test_bounded import WAYS
base, way = sys.argv[1], WAYS[sys.argv[2]]
libc = ctypes.CDLL(None, use_errno=True)
gate = base + "/gate"

def mount(source, target, kind, flags, data):
    words = [word.encode() for word in (source, target, kind)]
    assert libc.mount(*words, flags, data.encode()) == 0, os.strerror(ctypes.get_errno())

def serve(fd):
    nodes, names = {1: 0o40755}, {}
    def attributes(node):
        return struct.pack("=6Q10I", node, *[0] * 8, nodes[node], 2, 0, 0, 0, 4096, 0)
    def entry(node):
        return struct.pack("=4Q2I", node, 0, 0, 0, 0, 0) + attributes(node)
    while True:
        try:
            request = os.read(fd, 200000)
        except OSError:
            os._exit(0)
        while os.path.exists(gate):
            time.sleep(0.1)
        _, opcode, unique, node, *_ = struct.unpack("=2I2Q4I", request[:40])
        body, error, out = request[40:], 0, b""
        name = (node, body.split(b"\\0")[0])
        if opcode == 26:  # INIT
            out = struct.pack("=4I2H2I2H8I", 7, 31, 65536, 0, 0, 0, 65536, 1, 0, 0, *[0] * 8)
        elif opcode == 1:  # LOOKUP
            error, out = (0, entry(names[name])) if name in names else (errno.ENOENT, b"")
        elif opcode in (3, 4):  # GETATTR, SETATTR
            if opcode == 4 and struct.unpack("=I", body[:4])[0] & 1:
                nodes[node] = nodes[node] & 0o170000 | struct.unpack("=I", body[68:72])[0] & 0o7777
            out = struct.pack("=Q2I", 0, 0, 0) + attributes(node)
        elif opcode == 9:  # MKDIR
            new, name = max(nodes) + 1, (node, body[8:].split(b"\\0")[0])
            nodes[new] = 0o40000 | struct.unpack("=I", body[:4])[0] & 0o7777
            names[name] = new
            out = entry(new)
        elif opcode == 11:  # RMDIR
            error = 0 if names.pop(name, None) else errno.ENOENT
        elif opcode in (14, 27):  # OPEN, OPENDIR
            out = struct.pack("=Q2I", 1, 0, 0)
        elif opcode in (2, 42):  # FORGET, BATCH_FORGET: nobody waits
            continue
        elif opcode not in (18, 25, 28, 29):  # RELEASE, FLUSH, READDIR, RELEASEDIR
            error = errno.ENOSYS
        try:
            os.write(fd, struct.pack("=IiQ", 16 + len(out), -error, unique) + out)
        except OSError:
            pass

def start(target):
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    mount("mem", target, "fuse.mem", 6, f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other")
    pid = os.fork()
    if pid == 0:
        try:
            serve(fd)
        finally:
            os._exit(1)
    os.close(fd)
    return pid

def attempt(box, timeout=0.5, **words):
    began = time.monotonic()
    try:
        return way(box, ["echo", "x"], timeout=timeout, **words).out.decode()
    except SetupError as error:
        return [error.errno, error.step]
    finally:
        took.append(time.monotonic() - began - timeout)

took, said = [], {}
root, hung = base + "/root", base + "/hung"
os.mkdir(hung)
os.mkdir(root + "/net")
os.symlink(hung, base + "/link")
os.symlink(hung + "/sub", base + "/below")
os.symlink("/net/sub", root + "/inner")
servers = [start(hung), start(root + "/net")]
boxes = {
    "stub": Sandbox(root, extra_mounts=[Mount.tmpfs("/net/stub")]),
    "stub behind a link": Sandbox(root, extra_mounts=[Mount.tmpfs("/inner/stub")]),
    "target": Sandbox(root, extra_mounts=[Mount.tmpfs("/net/target")]),
    "hole": Sandbox(root, filesystem_writable_paths=["/net/target"]),
    "root": Sandbox(hung + "/target"),
    "root by a link": Sandbox(base + "/below/target"),
}
os.mkdir(hung + "/target")
os.mkdir(hung + "/sub")
os.mkdir(root + "/net/target")
os.mkdir(root + "/net/sub")
os.chdir(base)
for name, source in {
    "source": hung + "/target",
    "source by a link": "link/target",
    "source by a link below": "below/x",
    "source by ..": base + "/root/../hung/target",
    "source by //": base + "//hung//target",
}.items():
    boxes[name] = Sandbox(root, extra_mounts=[Mount.bind(source, "/mnt/x")])
boxes["covered"] = Sandbox(
    root, extra_mounts=[Mount.tmpfs("/net"), Mount.tmpfs("/net/target/a")]
)
os.mkdir(hung + "/sub/x")
for name in ("stub", "stub behind a link", "target", "hole", "source", "covered"):
    assert attempt(boxes[name], 60) == "x\\n", name
assert sorted(os.listdir(root + "/net")) == []  # as the server says: no listing
for name in ("stub", "sub/stub"):
    assert not os.path.exists(root + "/net/" + name), name
open(gate, "w").close()
took.clear()
for name, box in boxes.items():
    said[name] = [attempt(box) for _ in range(2)]
print(json.dumps([said, max(took)]), flush=True)
for pid in servers:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
end = time.monotonic() + 30
_slots.close_all()
while _workspace._stuck:
    _workspace.reap_stuck()
    assert time.monotonic() < end, _workspace._stuck
os._exit(0)
"""


@pytest.mark.slow
@ways
def test_a_set_up_that_hangs_ends_in_time_by_whatever_way_it_leads_there(
    tmp_path: Path, way: Way
) -> None:
    require(os.path.exists("/dev/fuse"), "there is no /dev/fuse")
    if way is WAYS["start"]:
        pytest.skip("start() has no timeout")
    make_rootfs(tmp_path / "root")
    (tmp_path / "root" / "mnt" / "x").mkdir(parents=True)
    name = next(name for name, value in WAYS.items() if value is way)
    argv = ["unshare", "--mount", "--propagation", "private", *python(), "-c", SERVER]
    argv += [str(tmp_path), name, str(LIB.parent)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    said, longest = json.loads(done.stdout)
    assert said.pop("covered") == ["x\n"] * 2
    for place, ends in said.items():
        assert [end[0] for end in ends] == [errno.ETIMEDOUT] * 2, (place, ends)
    assert longest < 1 + END
