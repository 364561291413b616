# SPDX-License-Identifier: Apache-2.0
"""The default filter as a command meets it, in every way of running; what stays open under it.

test_seccomp.py has the programs themselves, judged by libseccomp and by the kernel.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import not_sanitized, python, require

import sandboxlib
from sandboxlib import Limits, Policy, Result, Sandbox, SetupError, bubblewrap, chroot
from sandboxlib._host import machine

pytestmark = pytest.mark.skipif(
    os.uname().machine != "x86_64", reason="the numbers below are those of x86_64"
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="it takes root")
PYTHON = shutil.which("python3", path="/usr/bin") or sys.executable
M, B = -1, 1 << 40  # a number that is nothing; an address where nothing is

#: Name: number, arguments that harm nothing where the call is open, errno under the filter.
CLOSED: dict[str, tuple[int, list[int], int]] = {
    "unshare NEWUSER": (272, [0x10000000], errno.EPERM),
    "clone NEWUSER": (56, [0x10000000 | 0x200, 0], errno.EPERM),  # CLONE_FS as well: EINVAL
    "clone3": (435, [0, 0], errno.ENOSYS),
    "setns": (308, [M, 0], errno.EPERM),
    "mount": (165, [0, 0, 0, 0, 0], errno.EPERM),
    "umount2": (166, [0, 0x100], errno.EPERM),
    "pivot_root": (155, [0, 0], errno.EPERM),
    "fsopen": (430, [0, 0], errno.EPERM),
    "fsmount": (432, [M, 0, 0], errno.EPERM),
    "open_tree": (428, [M, B, 1], errno.EPERM),
    "move_mount": (429, [M, B, M, B, 0], errno.EPERM),
    "mount_setattr": (442, [M, B, 0, B, 0], errno.EPERM),
    "add_key": (248, [B, B, 0, 0, 0], errno.EPERM),
    "request_key": (249, [B, B, 0, 0], errno.EPERM),
    "keyctl": (250, [0x7FFF], errno.EPERM),
    "bpf": (321, [0x7FFF, B, 0], errno.EPERM),
    "perf_event_open": (298, [B, 0, M, M, 0], errno.EPERM),
    "io_uring_setup": (425, [0, B], errno.ENOSYS),
    "userfaultfd": (323, [0x7FFFFFFF], errno.EPERM),
    "fanotify_init": (300, [0x7FFFFFFF, 0], errno.EPERM),
    "kexec_load": (246, [0, 100, B, 0], errno.EPERM),
    "init_module": (175, [B, 0, B], errno.EPERM),
    "finit_module": (313, [M, B, 0], errno.EPERM),
    "delete_module": (176, [B, 0], errno.EPERM),
    "swapon": (167, [B, 0], errno.EPERM),
    "quotactl": (179, [0x7FFFFFFF, B, 0, B], errno.EPERM),
    "acct": (163, [B], errno.EPERM),
    "settimeofday": (164, [B, 0], errno.EPERM),
    "clock_settime": (227, [99, B], errno.EPERM),
    "adjtimex": (159, [B], errno.EPERM),
    "iopl": (172, [4], errno.EPERM),
    "ioperm": (173, [1 << 20, 1, 0], errno.EPERM),
    "open_by_handle_at": (304, [M, B, 0], errno.EPERM),
    "kcmp": (312, [M, M, 99, 0, 0], errno.EPERM),
    "personality READ_IMPLIES_EXEC": (135, [0x400000], errno.EPERM),
    "ioctl TIOCSTI": (16, [M, 0x5412, 0], errno.EPERM),
    "ioctl TIOCLINUX": (16, [M, 0x541C, 0], errno.EPERM),
    "setsockopt IPV6_FLOWLABEL_MGR": (54, [M, 41, 32, 0, 0], errno.EPERM),
    "socket VSOCK": (41, [40, 1, 0], errno.EAFNOSUPPORT),
    "socket ALG": (41, [38, 5, 0], errno.EAFNOSUPPORT),
    "socketpair TIPC": (53, [30, 1, 0, B], errno.EAFNOSUPPORT),
    "x32 getpid": (0x40000000 | 39, [], errno.ENOSYS),
}
#: In a slot the kernel refuses what follows to who lacks CAP_SYS_ADMIN, after a look at arguments.
BY_THE_KERNEL = {"mount", "umount2", "open_tree", "move_mount", "mount_setattr", "pivot_root"}
#: Refused with the same errno where nothing filters: by privilege or by the kernel's build.
SAME_WITHOUT = {
    *("acct", "bpf", "clock_settime", "delete_module", "fanotify_init", "fsmount", "fsopen"),
    *("init_module", "finit_module", "ioperm", "iopl", "kexec_load", "mount_setattr", "open_tree"),
    *("pivot_root", "quotactl", "settimeofday", "swapon", "umount2", "mount", "move_mount"),
    *("open_by_handle_at", "perf_event_open", "setns", "x32 getpid", "io_uring_setup"),
    *("userfaultfd", "kcmp", "socketpair TIPC", "adjtimex", "socket ALG"),
}
OPEN: dict[str, tuple[int, list[int]]] = {
    "ptrace": (101, [16, 0x3FFFFFFF, 0, 0]),  # ATTACH to nobody
    "process_vm_readv": (310, [0x3FFFFFFF, 0, 0, 0, 0, 0]),
    "personality": (135, [0xFFFFFFFF]),
    "personality ADDR_NO_RANDOMIZE": (135, [0x40000]),
    "personality LINUX32": (135, [0x8]),
    "socket UNIX": (41, [1, 1, 0]),
    "socket INET6": (41, [10, 1, 0]),
    "socket NETLINK": (41, [16, 3, 0]),
    "socketpair UNIX": (53, [1, 1, 0, 0]),
    "memfd_create": (319, [0, 0]),
    "chroot": (161, [0]),
}
INSIDE = """
import ctypes, errno, json, sys
call = ctypes.CDLL(None, use_errno=True).syscall
call.restype = ctypes.c_long
def errno_of(number, words):
    ctypes.set_errno(0)
    result = call(ctypes.c_long(number), *[ctypes.c_long(word) for word in words])
    if number == 56 and result == 0:
        call(231, 0)
    return ctypes.get_errno() if result == -1 else 0
print(json.dumps({name: errno_of(*words) for name, words in json.loads(sys.argv[1]).items()}))
"""
Way = Callable[[Sandbox, list[str]], Result]


def asynchronous(box: Sandbox, argv: list[str]) -> Result:
    return asyncio.run(box.run_async(argv))


def started(box: Sandbox, argv: list[str]) -> Result:
    with box.start(argv) as process:
        out, err = process.communicate(timeout=60)
        return Result(process.returncode or 0, out, err)


def mapped(box: Sandbox, argv: list[str]) -> Result:
    results: list[Any] = list(box.map([argv, argv], on_failure="continue"))
    if isinstance(results[1], sandboxlib.SandboxError):
        raise results[1]
    done: Result = results[1]
    return done


WAYS: dict[str, tuple[dict[str, Any], Way]] = {
    "slot": ({}, lambda box, argv: [box.run(argv), box.run(argv)][1]),
    "slot, init=False": ({"init": False}, lambda box, argv: box.run(argv)),
    "slot, network": ({"network": "isolated"}, lambda box, argv: box.run(argv)),
    "fresh": ({}, lambda box, argv: box.run(argv, fresh=True)),
    "fresh, init=False": ({"init": False}, lambda box, argv: box.run(argv, fresh=True)),
    "fresh, loose": (
        {"policy": Policy(no_new_privs=False)},
        lambda box, argv: box.run(argv, fresh=True),
    ),
    "slot, loose": ({"policy": Policy(no_new_privs=False)}, lambda box, argv: box.run(argv)),
    "other ids": ({"user": 1000}, lambda box, argv: box.run(argv, fresh=True)),
    "user namespace": (
        {"user": "root"},
        lambda box, argv: sandboxlib.user_namespace.run_in(box, argv),
    ),
    "map": ({}, mapped),
    "start": ({}, started),
    "async": ({}, asynchronous),
    "processes undefined": ({"processes": "undefined"}, lambda box, argv: box.run(argv)),
    "chroot alone": (
        {"processes": "undefined", "mounts": "undefined", "ipc": "undefined"},
        lambda box, argv: box.run(argv),
    ),
    "bubblewrap": ({}, lambda box, argv: bubblewrap.run_in(box, argv)),
}


def seen(way: str, calls: dict[str, Any], **policy: Any) -> dict[str, int]:
    words, run = WAYS[way]
    if way == "bubblewrap":
        require(not bubblewrap.why_not(), bubblewrap.why_not())
    words = {**words, "policy": words.get("policy", Policy()).replace(**policy)}
    with open_box("/", **words) as box:
        result = run(box, [PYTHON, "-I", "-S", "-c", INSIDE, json.dumps(calls)])
    assert (result.exit, result.err) == (0, b"")
    errors: dict[str, int] = json.loads(result.out or b"")
    return errors


def closed() -> dict[str, tuple[int, list[int]]]:
    return {name: words[:2] for name, words in CLOSED.items()}


@needs_root
@pytest.mark.parametrize("way", WAYS)
def test_what_is_closed_is_refused(way: str) -> None:
    found = seen(way, closed())
    by_kernel = BY_THE_KERNEL if "slot" in way or way in ("map", "async") else set()
    for name, (_, _, expected) in CLOSED.items():
        if name in by_kernel:
            assert found[name] != 0, name
        else:
            assert found[name] == expected, (name, errno.errorcode.get(found[name], 0))


@needs_root
@pytest.mark.parametrize("way", ["slot", "fresh", "processes undefined"])
def test_without_a_filter_the_kernel_decides(way: str) -> None:
    found = seen(way, closed(), seccomp="none")
    same = {name for name, words in CLOSED.items() if found[name] == words[2]}
    assert same <= SAME_WITHOUT
    assert seen(way, {"unshare": [272, [0x10000000]]}, seccomp="none") == {"unshare": 0}


@needs_root
@pytest.mark.parametrize("way", WAYS)
def test_what_builds_need_is_open(way: str) -> None:
    found = seen(way, OPEN)
    closed = (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT)
    assert [name for name, error in found.items() if error in closed] == []


@needs_root
@pytest.mark.parametrize(
    ("name", "capability", "call"),
    [
        ("mount", "sys_admin", (165, [0, B, 0, 0, 0])),
        ("settimeofday", "sys_time", (164, [B, 0])),
        ("acct", "sys_pacct", (163, [B])),
        ("open_by_handle_at", "dac_read_search", (304, [M, B, 0])),
    ],
)
def test_a_capability_by_name_opens_its_calls(
    name: str, capability: str, call: tuple[int, list[int]]
) -> None:
    for way in ("slot", "fresh", "processes undefined"):
        opened = seen(way, {name: call}, capabilities=[capability])
        assert opened[name] not in (errno.EPERM, errno.ENOSYS), way


@needs_root
@pytest.mark.parametrize("way", ["slot", "fresh", "bubblewrap"])
def test_packets_take_net_raw(way: str) -> None:
    call = {"packet": (41, [17, 3, 0])}
    assert seen(way, call) == {"packet": 0}
    assert seen(way, call, capabilities=["kill"]) == {"packet": errno.EAFNOSUPPORT}


I386 = r"""
int main(int argc, char **argv) {
    (void)argv;
    static const struct { int number, a, b, want; } calls[] = {
        {39, 0, 0, 0},              /* mkdir(0): EFAULT, open */
        {310, 0x10000000, 0, 1},    /* unshare */
        {120, 0x10000000, 0, 1},    /* clone */
        {288, 0x7fff, 0, 1},        /* keyctl */
        {21, 0, 0, 1},              /* mount */
        {102, 1, 0, 38},            /* socketcall */
        {359, 40, 1, 97},           /* socket, VSOCK */
        {435, 0, 0, 38},            /* clone3 */
        {357, 0x7fff, 0, 1},        /* bpf */
    };
    for (unsigned i = 0; i < sizeof calls / sizeof *calls; i++) {
        int result;
        __asm__ volatile("int $0x80" : "=a"(result)
                         : "a"(calls[i].number), "b"(calls[i].a), "c"(calls[i].b), "d"(0), "S"(0)
                         : "memory", "r8", "r9", "r10", "r11");
        if (argc == 1 && calls[i].want && result != -calls[i].want)
            return (int)i + 1;
    }
    return 0;
}
"""


@needs_root
@pytest.mark.parametrize("way", ["slot", "fresh", "processes undefined", "bubblewrap"])
def test_calls_of_i386_are_closed_as_well(way: str, tmp_path: Path) -> None:
    require(shutil.which("cc"), "there is no C compiler")
    (tmp_path / "i386.c").write_text(I386)
    program = tmp_path / "i386"
    subprocess.run(["cc", "-static", "-o", program, tmp_path / "i386.c"], check=True)
    tmp_path.chmod(0o755)
    words, run = WAYS[way]
    bare = subprocess.run([program, "x"], check=False)
    require(bare.returncode == 0, "the kernel runs no 32-bit calls")
    if way == "bubblewrap":
        require(not bubblewrap.why_not(), bubblewrap.why_not())
    with open_box("/", **words) as box:
        assert run(box, [str(program)]).exit == 0


@needs_root
@pytest.mark.parametrize("fresh", [True, False])
def test_one_session_keyring_is_shared_where_none_can_reach_it(fresh: bool) -> None:
    with open_box("/") as box:
        status = box.run(["cat", "/proc/self/status"], fresh=fresh).out or b""
        assert b"Seccomp:\t2\nSeccomp_filters:\t" in status
        count = int(machine.status("Seccomp_filters") or "0")
        assert b"Seccomp_filters:\t%d\n" % (count + 1) in status


@needs_root
def test_the_isolation_says_which_filter_there_was() -> None:
    profile = {"defaultAction": "SCMP_ACT_ALLOW"}
    for asked, word in (
        ("default", "builds"),
        ("builds", "builds"),
        ("none", "none"),
        (profile, "profile"),
    ):
        box = open_box("/", policy=Policy(seccomp=asked))  # type: ignore[arg-type]
        with box:
            assert box.run(["true"]).isolation["seccomp"] == word
            if not bubblewrap.why_not():
                assert bubblewrap.run_in(box, ["true"]).isolation["seccomp"] == word
    assert chroot.maximum_possible_isolation()["seccomp"] == "builds"
    assert sandboxlib.maximum_possible_isolation()["seccomp"] == "builds"


MKDIR = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EOPNOTSUPP}
    ],
}
NO_EXEC = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "syscalls": [{"names": ["exit", "exit_group"], "action": "SCMP_ACT_ALLOW"}],
}
EXEC_ALONE = {
    "defaultAction": "SCMP_ACT_KILL",
    "syscalls": [{"names": ["exit", "exit_group", "execve"], "action": "SCMP_ACT_ALLOW"}],
}
NATIVE = [way for way in WAYS if way != "bubblewrap"]


@needs_root
@pytest.mark.parametrize("way", WAYS)
def test_a_profile_of_the_callers(way: str) -> None:
    words, run = WAYS[way]
    if way == "bubblewrap":
        require(not bubblewrap.why_not(), bubblewrap.why_not())
    policy = words.get("policy", Policy()).replace(seccomp=MKDIR)
    with open_box("/", **{**words, "policy": policy}) as box:
        result = run(box, ["mkdir", "/proc/none"])
    assert result.exit == 1
    assert b"Operation not supported" in (result.err or b"")


@needs_root
@pytest.mark.parametrize("way", [way for way in NATIVE if "loose" not in way])
def test_nothing_of_ours_comes_after_a_profile_but_exec(way: str) -> None:
    words, run = WAYS[way]
    for profile, program in ((NO_EXEC, "true"), (NO_EXEC, "/usr/bin/true"), (EXEC_ALONE, "true")):
        with open_box("/", **{**words, "policy": Policy(seccomp=profile)}) as box:
            if profile is EXEC_ALONE:
                assert run(box, [program]).exit == -31  # SIGSYS, in the loader
                continue
            with pytest.raises(SetupError) as caught:
                run(box, [program])
            assert (caught.value.step, caught.value.errno) == ("exec", errno.EPERM)
            assert sandboxlib.run_sandbox("/", ["true"]).exit == 0


@needs_root
@pytest.mark.parametrize("way", NATIVE)
def test_a_program_that_is_missing_is_missed_behind_a_profile(way: str) -> None:
    words, run = WAYS[way]
    policy = words.get("policy", Policy()).replace(seccomp=MKDIR)
    with open_box("/", **{**words, "policy": policy}) as box, pytest.raises(FileNotFoundError):
        run(box, ["nonesuch"])


USER = """
import json, sys
from sandboxlib import Mount, Policy, Sandbox
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
calls, script, python = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
found = []
for words in ({}, {"user": "root"}, {"init": False}):
    with open_box("/", **words) as box:
        for fresh in (True, False, False):
            argv = [python, "-I", "-S", "-c", script, json.dumps(calls)]
            result = box.run(argv, cwd="/", fresh=fresh)
            assert result.exit == 0, result
            assert result.isolation["seccomp"] == "builds"
            found.append(json.loads(result.out))
print(json.dumps(found))
"""


@needs_root
@not_sanitized
def test_an_ordinary_user_has_the_same_filter() -> None:
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *python(), "-c", USER]
    argv += [json.dumps(closed()), INSIDE, PYTHON]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, cwd="/")
    assert done.returncode == 0, done.stderr
    for number, found in enumerate(json.loads(done.stdout)):
        for name, (_, _, expected) in CLOSED.items():
            if number % 3 == 0 or name not in BY_THE_KERNEL:
                assert found[name] == expected, name


TOOLS = {
    "strace": ["strace", "-f", "-o", "/dev/null", "true"],
    "gdb": ["gdb", "-q", "-batch", "-ex", "run", "true"],
    "setarch": ["setarch", "linux32", "--addr-no-randomize", "uname", "-m"],
}


@needs_root
@pytest.mark.parametrize("name", TOOLS)
@pytest.mark.parametrize("way", ["slot", "fresh", "bubblewrap"])
def test_tools_that_look_into_processes_work(
    name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(shutil.which(name), f"there is no {name}")
    monkeypatch.chdir("/")  # the tests may lie in /tmp, which a tmpfs hides
    if way == "bubblewrap":
        require(not bubblewrap.why_not(), bubblewrap.why_not())
    words, run = WAYS[way]
    with open_box("/", **{"extra_mounts": [sandboxlib.Mount.tmpfs("/tmp")], **words}) as box:
        result = run(box, TOOLS[name])
    assert result.exit == 0, result
    if name == "gdb":
        assert b"exited normally" in (result.out or b"")
    if name == "setarch":
        assert result.out == b"i686\n"


@needs_root
def test_a_cgroup_of_its_own_goes_with_the_filter() -> None:
    box = open_box("/", limits=Limits(cgroup=True))
    try:
        result = box.run(["true"])
    except sandboxlib.UnsupportedError as error:
        pytest.skip(str(error))
    assert result.exit == 0
    box.close()
