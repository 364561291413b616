# SPDX-License-Identifier: Apache-2.0
"""The steps of the core: what the kernel's refusal of each of them looks like."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import needs_root, require

from sandboxlib import Mount, SetupError, User, run_sandbox
from sandboxlib._core import native
from sandboxlib._runs import run
from sandboxlib._runs.plan import Plan

BARE = {"mounts": "undefined", "processes": "undefined", "ipc": "undefined"}
ALL = {
    "network": "isolated",
    "hostname": "box",
    "filesystem_writable_paths": "none",
    "extra_mounts": [
        ["/etc", "/etc", None, "bind,ro"],
        ["x", "/tmp", "tmpfs"],
        ["x", "/dev", "dev"],
    ],
}
NO_REAPER = {**ALL, "init": False}
LAYERS = {"network": "isolated", "layers": 1}
UNCUT = {**NO_REAPER, "capabilities": "all"}  # the first prctl(2) is that of no_new_privs

# One host, which runs one sandbox: what it says of the failure, and whether anything is left.
HOST = """
import ctypes, json, os, sys
import sandboxlib
sandboxlib.Sandbox  # the first name imports the rest, which may not be readable as another user
root, words = sys.argv[1], json.loads(sys.argv[2])
words["extra_mounts"] = [tuple(mount) for mount in words.get("extra_mounts", ())]
if "limits" in words:
    import sandboxlib._cgroups.cgroups
    words["limits"] = sandboxlib.Limits(**words["limits"])
if words.get("processes") != "undefined" and words.get("init", True):
    sandboxlib._core.native.init_descriptor()
if words.pop("layers", 0):
    root = sandboxlib.Overlay(root)
if "uid" in words:
    os.setgroups([])
    os.setresgid(words["uid"], words["uid"], words["uid"])
    os.setresuid(*[words.pop("uid")] * 3)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self is its own again
before = os.listdir("/proc/self/fd")
try:
    executor = sandboxlib.get_executor(words.pop("executor", "chroot"))
    said = list(executor.run_sandbox(root, ["/bin/true"], **words))[:1]
except sandboxlib.SetupError as error:
    said = [error.step, error.errno, str(error)]
if "limits" in words:
    sandboxlib._cgroups.cgroups.end_all()  # the idle ones have descriptors
assert os.listdir("/proc/self/fd") == before
assert open(f"/proc/self/task/{os.getpid()}/children").read() == ""
try:
    os.waitpid(-1, os.WNOHANG)
    said = "a child is left"
except ChildProcessError:
    pass
print(json.dumps(said))
"""


def host(root: Path, words: dict[str, Any], *wrapper: str, **options: Any) -> Any:
    argv = [*wrapper, sys.executable, "-c", HOST, str(root), json.dumps(words)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@needs_root
@pytest.mark.parametrize(
    ("call", "error", "step", "words"),
    [
        ("pipe2", "EMFILE", "pipe", ALL),
        ("pidfd_open", "EMFILE", "lifeline", ALL),
        ("clone3", "ENOSPC", "clone", ALL),
        ("clone3", "EAGAIN", "clone", BARE),
        ("dup3", "EINTR", "stdio", ALL),
        ("write:when=1", "EPERM", "ids", {**ALL, "executor": "user_namespace"}),
        ("openat:when=2", "EACCES", "ids", {**ALL, "executor": "user_namespace"}),
        ("setsid", "EPERM", "session", ALL),
        ("keyctl", "EDQUOT", "keyring", ALL),
        ("socket", "EAFNOSUPPORT", "loopback", ALL),
        ("sethostname", "EPERM", "hostname", ALL),
        ("mount", "EINVAL", "private", ALL),
        ("open_tree:when=1", "ENOMEM", "root", ALL),
        ("mount_setattr:when=1", "ENOSYS", "read_only", ALL),
        ("move_mount:when=1", "EINVAL", "attach", ALL),
        ("mount:when=2", "EACCES", "mount", ALL),  # the first cover of the new /proc
        ("fsopen:when=1", "ENODEV", "source", ALL),
        ("fsconfig", "EINVAL", "source", ALL),
        ("fsmount", "EPERM", "source", ALL),
        ("move_mount:when=2", "EINVAL", "mount", ALL),
        ("mknodat", "EPERM", "mount", ALL),
        ("symlinkat", "ENOSPC", "mount", ALL),
        ("pivot_root", "EINVAL", "pivot", ALL),
        ("umount2", "EBUSY", "pivot", ALL),
        ("chroot", "EPERM", "chroot", BARE),
        ("capget", "EFAULT", "capabilities", ALL),
        ("capset", "EPERM", "capabilities", ALL),
        ("execveat", "EACCES", "reaper", ALL),
        ("execveat", "ENOMEM", "reaper", ALL),
        ("sendto:when=1", "EPERM", "loopback", ALL),
        ("statx", "EIO", "target", ALL),
        ("openat2:when=1", "EIO", "target", ALL),  # that of a seal; EACCES there is none's concern
        ("mount_setattr:when=2", "EINVAL", "source", ALL),  # a read-only bind
        ("mount_setattr:when=3", "EINVAL", "mount", ALL),
        ("fchdir:when=2", "EACCES", "pivot", ALL),  # the first leads into the new /proc
        ("fsopen:when=1", "ENODEV", "upper", LAYERS),
        ("mkdirat:when=1", "ENOSPC", "upper", LAYERS),
        ("open_tree:when=1", "EACCES", "layer", LAYERS),
        ("fsopen:when=2", "ENODEV", "overlay", LAYERS),
        ("fsmount:when=2", "EPERM", "overlay", LAYERS),
        ("chdir", "EACCES", "root", BARE),
        ("openat2:when=1", "EACCES", "cwd", {**BARE, "cwd": "/tmp"}),
        ("openat2", "EAGAIN", "target", ALL),  # somebody renames there all the time
        ("openat2", "EAGAIN", "cwd", {**BARE, "cwd": "/tmp"}),
        ("fchdir", "EACCES", "cwd", {**BARE, "cwd": "/tmp"}),
        ("prctl:when=3", "EPERM", "capabilities", {**ALL, "capabilities": "none"}),
        ("seccomp", "ENOSYS", "seccomp", ALL),
        ("seccomp", "ENOMEM", "seccomp", BARE),
        ("seccomp", "EACCES", "parent_keyring", {**BARE, "seccomp": "none"}),
        ("prctl:when=2", "EINVAL", "no_new_privs", UNCUT),
        ("prctl:when=3", "EINVAL", "parent_death", UNCUT),
        ("close_range", "EPERM", "reaper", ALL),
        ("close_range", "EPERM", "exec", BARE),
        ("clone", "EAGAIN", "fork", ALL),
        ("clone", "ENOMEM", "fork", ALL),
        ("setpriority", "EACCES", "limits", {**ALL, "limits": {"nice": -1}}),
        ("sched_setscheduler", "EPERM", "limits", {**BARE, "limits": {"scheduler": "batch"}}),
        ("write:when=1", "EACCES", "oom_score", {**ALL, "limits": {"oom_score_adj": 1}}),
        (
            *("clone3:when=1+write:when=1", "EACCES", "cgroup"),
            {**ALL, "limits": {"cgroup": True}},
        ),
        ("ioctl:when=1", "EPERM", "terminal", {**BARE, "pty": True}),
        ("setgroups", "EPERM", "user", {**ALL, "user": 5}),
        ("setresgid", "EINVAL", "user", {**ALL, "user": 5}),
        ("setresuid", "EAGAIN", "user", {**ALL, "user": 5}),
        ("execve:when=1", "ENOEXEC", "exec", ALL),
        ("execve:when=1", "EIO", "exec", BARE),
    ],
)
def test_a_step_that_the_kernel_refuses_is_named_and_undone(
    shared_rootfs: Path, call: str, error: str, step: str, words: dict[str, Any]
) -> None:
    require(shutil.which("strace"), "there is no strace")
    names, injected = [], []
    for each in call.split("+"):
        name, _, when = each.partition(":")
        names.append(name)
        injected += ["-e", f"inject={name}:error={error}" + (f":{when}" if when else "")]
    trace = f"trace={','.join(names)}"
    wrapper = ["strace", "-f", "-qq", "-e", trace, *injected, "-o", "/dev/null"]
    said = host(shared_rootfs, words, *wrapper)
    assert said[:2] == [step, getattr(errno, error)]
    assert os.strerror(getattr(errno, error)) in said[2]


@needs_root
@pytest.mark.parametrize("words", [ALL, NO_REAPER, BARE], ids=["all", "no reaper", "bare"])
def test_where_nothing_is_refused_it_runs(shared_rootfs: Path, words: dict[str, Any]) -> None:
    assert host(shared_rootfs, words) == [0]


@needs_root
def test_a_seccomp_filter_that_knows_no_clone3_is_no_hindrance(shared_rootfs: Path) -> None:
    require(shutil.which("strace"), "there is no strace")
    wrapper = ["strace", "-f", "-qq", "-e", "trace=clone3", "-e", "inject=clone3:error=ENOSYS"]
    assert host(shared_rootfs, ALL, *wrapper, "-o", "/dev/null") == [0]


@needs_root
@pytest.mark.parametrize(
    "inject",
    [
        "keyctl:error=ENOSYS",  # a kernel without keyrings has none to share
        "openat2:error=EAGAIN:when=1",  # something was renamed under the look-up
        "pidfd_send_signal:error=EINVAL:when=1",
        "clone3:error=ENOSYS:when=1",
    ],
)
@pytest.mark.parametrize("words", [ALL, BARE], ids=["all", "bare"])
def test_a_refusal_that_does_not_matter_is_no_hindrance(
    shared_rootfs: Path, words: dict[str, Any], inject: str
) -> None:
    require(shutil.which("strace"), "there is no strace")
    trace = f"trace={inject.partition(':')[0]}"
    wrapper = ["strace", "-f", "-qq", "-e", trace, "-e", f"inject={inject}", "-o", "/dev/null"]
    assert host(shared_rootfs, words, *wrapper) == [0]


@needs_root
def test_too_few_descriptors_are_told(shared_rootfs: Path) -> None:
    def limit(count: int) -> None:
        for fd in range(3, 8):  # the reaper's program has a number above them
            os.dup2(0, fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))

    seen = []
    for count in range(14, 38, 2):
        said = host(shared_rootfs, ALL, preexec_fn=lambda n=count: limit(n), close_fds=False)
        assert said == [0] or said[1] == errno.EMFILE
        seen.append(said[0])
    assert "pipe" in seen
    assert 0 in seen


@needs_root
@pytest.mark.parametrize("kind", ["mnt", "pid", "ipc", "uts", "net"])
def test_a_limit_on_namespaces_is_not_called_a_full_disk(shared_rootfs: Path, kind: str) -> None:
    script = f'echo 0 > /proc/sys/user/max_{kind}_namespaces && exec "$@"'
    wrapper = ["unshare", "-Ur", "sh", "-c", script, "sh"]
    step, error, text = host(shared_rootfs, ALL, *wrapper)
    assert (step, error) == ("clone", errno.ENOSPC)
    assert "user.max_*_namespaces" in text


def test_a_caller_without_privilege_is_told_what_it_takes(tmp_path: Path) -> None:
    wrapper: list[str] = []
    if os.geteuid() == 0:
        require(shutil.which("setpriv"), "there is no setpriv")
        wrapper = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    step, error, text = host(Path("/"), ALL, *wrapper)
    assert (step, error) == ("clone", errno.EPERM)
    assert "CAP_SYS_ADMIN" in text


@needs_root
def test_an_ordinary_user_is_told_what_it_takes(shared_rootfs: Path) -> None:
    user = {"uid": 65534}  # it starts as root, because Python may lie where only root can read
    assert host(shared_rootfs, user)[:2] == ["clone", errno.EPERM]
    said = host(Path("/"), {**BARE, **user, "cwd": "/"})
    assert said[:2] == ["capabilities", errno.EPERM]
    closed = host(shared_rootfs, {**BARE, **user})  # pytest keeps its directories to itself
    assert closed[:2] == ["root", errno.EACCES]


@needs_root
def test_capabilities_that_the_caller_lacks_are_not_given(shared_rootfs: Path) -> None:
    require(shutil.which("setpriv"), "there is no setpriv")
    wrapper = ["setpriv", "--bounding-set=-net_admin"]
    assert host(shared_rootfs, {"capabilities": ["kill"]}, *wrapper) == [0]
    said = host(shared_rootfs, {"capabilities": ["kill", "net_admin"]}, *wrapper)
    assert said[:2] == ["capabilities", errno.EPERM]


@needs_root
@pytest.mark.parametrize("mode", [{}, {"init": False}, BARE])
def test_words_that_are_too_long_for_exec_are_told_briefly(
    shared_rootfs: Path, mode: dict[str, Any]
) -> None:
    with pytest.raises(SetupError) as caught:
        run_sandbox(shared_rootfs, ["true", "x" * 200_000], **mode)
    assert caught.value.errno == errno.E2BIG
    assert len(str(caught.value)) < 500
    many = {f"V{i}": "x" * 20 for i in range(20_000)}
    assert run_sandbox(shared_rootfs, ["true"], extra_env=many, **mode).exit == 0


@needs_root
def test_a_closed_descriptor_is_told(shared_rootfs: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    for name, text in (("stdin", "stdin"), ("stdout", "stdout"), ("stderr", "stderr")):
        with pytest.raises(SetupError, match=text) as caught:
            run_sandbox(shared_rootfs, ["true"], **{name: writer})
        assert (caught.value.step, caught.value.errno) == ("stdio", errno.EBADF)


@needs_root
@pytest.mark.parametrize(
    ("mount", "step", "error"),
    [
        (Mount.bind("/none/such", "/etc"), "source", errno.ENOENT),
        (Mount.bind("/etc/passwd/x", "/etc"), "source", errno.ENOTDIR),
        (Mount.bind("/etc", "/bin/busybox"), "mount", errno.EINVAL),
        (Mount.bind("/etc/passwd", "/etc"), "mount", errno.EINVAL),
        (Mount.bind("/etc", "/bin/busybox/x"), "target", errno.ENOTDIR),
    ],
)
def test_a_mount_that_fails_names_its_number_and_paths(
    shared_rootfs: Path, mount: Mount, step: str, error: int
) -> None:
    with pytest.raises(SetupError) as caught:
        run_sandbox(shared_rootfs, ["true"], extra_mounts=[Mount.tmpfs("/tmp"), mount])
    assert (caught.value.step, caught.value.errno) == (step, error)
    assert f"mount 1: bind {mount.source} on {mount.target}" in str(caught.value)


@needs_root
@pytest.mark.parametrize("init", [True, False])
def test_the_index_says_which_of_them_failed(
    shared_rootfs: Path, monkeypatch: pytest.MonkeyPatch, init: bool
) -> None:
    (closed, other) = os.pipe()
    os.close(closed)
    os.close(other)
    seen = []
    told = run.error_of

    def record(plan: Plan, step: int, index: int, *rest: Any) -> SetupError:
        seen.append((native.STEPS[step], index))
        return told(plan, step, index, *rest)

    monkeypatch.setattr(run, "error_of", record)
    bad, good = Mount.bind("/none/such", "/etc"), Mount.tmpfs("/tmp")
    hole = "/tmp/none"
    table: list[tuple[dict[str, Any], tuple[str, int]]] = [
        ({"stdin": closed}, ("stdio", 0)),
        ({"stdout": closed}, ("stdio", 1)),
        ({"stderr": closed}, ("stdio", 2)),
        # 0 is the seal of /sys, 1 and 2 the run's own /proc and /dev, unless mounted by hand.
        ({"extra_mounts": [bad]}, ("source", 3)),
        ({"extra_mounts": [good, good, bad]}, ("source", 5)),
        ({"extra_mounts": [Mount.proc(), bad]}, ("source", 3)),
        ({"extra_mounts": [good, Mount.bind("/etc", "/bin/sh/x")]}, ("target", 4)),
        ({"extra_mounts": [good, Mount.bind("/etc", "/bin/busybox")]}, ("mount", 4)),
        ({"filesystem_writable_paths": ["/etc", hole]}, ("source", 1)),
        ({"command": ["nonesuch"]}, ("exec", -1)),
        ({"command": ["etc"], "extra_env": {"PATH": "/none:/bin/sh:/"}}, ("exec", 2)),
        ({"command": ["/etc"]}, ("exec", 0)),
    ]
    for words, _ in table:
        with pytest.raises(SetupError):
            run_sandbox(shared_rootfs, **{"command": ["true"], "init": init, **words})
    assert seen == [expected for _, expected in table]


@needs_root
@pytest.mark.parametrize("words", [{}, {"init": False}, BARE])
def test_a_failure_is_the_same_the_second_time_and_then_it_works(
    shared_rootfs: Path, words: dict[str, Any]
) -> None:
    box = open_box(shared_rootfs, **words)
    for _ in range(2):
        for command, cwd in ((["nonesuch"], None), (["true"], "/none"), (["/etc"], None)):
            with pytest.raises(SetupError):
                box.run(command, cwd=cwd)
        assert box.run(["echo", "x"]) == (0, b"x\n", b"")


# ---- what is seen from inside ----------------------------------------------------------------


def status(root: Path, **words: Any) -> dict[str, str]:
    out = run_sandbox(root, ["cat", "/proc/self/status"], **words).out
    assert out is not None
    return dict(line.split(":\t", 1) for line in out.decode().splitlines())


def bits(*names: str) -> str:
    from sandboxlib._spec.policy import CAPABILITIES

    return f"{sum(1 << CAPABILITIES.index(name) for name in names):016x}"


@needs_root
@pytest.mark.parametrize(
    ("asked", "names"),
    [
        (
            "default",
            "chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw "
            "sys_chroot setfcap",
        ),
        ("none", ""),
        (["CAP_KILL", "net_raw"], "kill net_raw"),
    ],
)
@pytest.mark.parametrize("init", [True, False])
def test_the_command_has_exactly_these_capabilities(
    shared_rootfs: Path, asked: str | list[str], names: str, init: bool
) -> None:
    seen = status(shared_rootfs, capabilities=asked, init=init)
    assert {seen[name] for name in ("CapPrm", "CapEff", "CapBnd")} == {bits(*names.split())}
    assert {seen[name] for name in ("CapInh", "CapAmb")} == {bits()}


@needs_root
@pytest.mark.parametrize("words", [{}, {"ranges": True}], ids=repr)
def test_the_ids_are_those_that_were_asked_for(shared_rootfs: Path, words: dict[str, Any]) -> None:
    dumpable = ctypes.CDLL(None).prctl
    assert dumpable(3, 0, 0, 0, 0) == 1  # PR_GET_DUMPABLE
    seen = status(shared_rootfs, user=User(5, 4294967294, **words))
    assert seen["Uid"].split() == ["5"] * 4
    assert seen["Gid"].split() == ["4294967294"] * 4
    assert seen["Groups"].split() == []
    assert seen["CapPrm"] == seen["CapEff"] == seen["CapAmb"] == bits()
    assert dumpable(3, 0, 0, 0, 0) == 1
    script = "kill -9 1; ls /proc/1/fd; echo x > /proc/1/oom_score_adj; echo alive"
    done = run_sandbox(shared_rootfs, ["sh", "-c", script], user=User(5, 6))
    assert done[:2] == (0, b"alive\n")
    assert done.err is not None
    assert done.err.count(b"ermi") + done.err.count(b"denied") >= 3


@needs_root
def test_all_capabilities_are_the_callers(shared_rootfs: Path) -> None:
    own = Path("/proc/self/status").read_text()
    assert f"CapEff:\t{status(shared_rootfs, capabilities='all')['CapEff']}\n" in own


@needs_root
@pytest.mark.parametrize("asked", [True, False])
def test_no_new_privs_is_as_asked(shared_rootfs: Path, asked: bool) -> None:
    assert status(shared_rootfs, no_new_privs=asked)["NoNewPrivs"] == str(int(asked))


NAMESPACES = ("mnt", "pid", "ipc", "uts", "net", "cgroup", "user")


@needs_root
@pytest.mark.parametrize(
    ("words", "new"),
    [
        (BARE, set()),
        ({**BARE, "mounts": "isolated"}, {"mnt"}),
        ({**BARE, "ipc": "isolated"}, {"ipc", "uts"}),
        ({**BARE, "hostname": "box"}, {"uts"}),
        ({**BARE, "network": "isolated"}, {"net"}),
        ({}, {"mnt", "pid", "ipc", "uts", "cgroup"}),
        ({"init": False, "network": "isolated"}, set(NAMESPACES) - {"user"}),
    ],
)
def test_the_namespaces_are_those_that_were_asked_for(words: dict[str, Any], new: set[str]) -> None:
    # In the root "/" a fresh /proc shows every process its own namespaces.
    script = " ".join(f"/proc/self/ns/{name}" for name in NAMESPACES)
    out = run_sandbox("/", ["sh", "-c", f"readlink {script}"], **words).out
    assert out is not None
    seen = dict(zip(NAMESPACES, out.decode().split(), strict=True))
    assert {
        name for name in NAMESPACES if seen[name] != os.readlink(f"/proc/self/ns/{name}")
    } == new


@needs_root
def test_an_isolated_network_has_lo_up_and_nothing_else(shared_rootfs: Path) -> None:
    script = "tail -n +3 /proc/net/dev | cut -d: -f1; ping -c1 -W1 127.0.0.1 > /dev/null && echo up"
    words = {"network": "isolated", "extra_mounts": [Mount.dev()]}
    out = run_sandbox(shared_rootfs, ["sh", "-c", script], **words).out
    assert out is not None
    assert out.split() == [b"lo", b"up"]


@needs_root
def test_the_hostname_is_the_runs_own(shared_rootfs: Path) -> None:
    before = os.uname().nodename
    assert run_sandbox(shared_rootfs, ["hostname"], hostname="box").out == b"box\n"
    assert os.uname().nodename == before
    assert run_sandbox(shared_rootfs, ["hostname"]).out == f"{before}\n".encode()


@needs_root
def test_the_session_and_the_process_group_are_the_commands_own(shared_rootfs: Path) -> None:
    for words in ({}, {"init": False}, BARE):
        out = run_sandbox("/", ["sh", "-c", "cat /proc/$$/stat; echo; echo $$"], **words).out
        assert out is not None
        fields, pid = out.decode().rsplit(")", 1)[1].split(), out.decode().split()[-1]
        assert fields[2] == fields[3] == pid


@needs_root
@pytest.mark.parametrize(
    ("words", "parent"),
    [({}, "1"), ({"init": False}, "0"), ({"processes": "undefined"}, None)],
)
def test_the_command_is_the_child_of(words: dict[str, Any], parent: str | None) -> None:
    # With the reaper of pid 1; without it of nobody inside; not isolated, of the caller.
    out = run_sandbox("/", ["cat", "/proc/self/status"], cwd="/", **words).out
    assert out is not None
    seen = dict(line.split(":\t", 1) for line in out.decode().splitlines() if ":\t" in line)
    assert seen["PPid"] == (parent or str(os.getpid()))
    assert (seen["Pid"] == "1") == (parent == "0")


@needs_root
@pytest.mark.parametrize("words", [{}, {"init": False}, BARE])
def test_the_root_is_the_one_that_was_asked_for(rootfs: Path, words: dict[str, Any]) -> None:
    (rootfs / "mark").touch()
    script = "ls -d /mark /../mark /../../../mark; cd /; cd ..; pwd; ls -d mark"
    out = run_sandbox(rootfs, ["sh", "-c", script], **words).out
    assert out == b"/../../../mark\n/../mark\n/mark\n/\nmark\n"
    assert run_sandbox(rootfs, ["ls", f"{rootfs}/mark"], **words).exit != 0


@needs_root
def test_the_old_root_is_mounted_nowhere_inside(shared_rootfs: Path) -> None:
    out = run_sandbox(shared_rootfs, ["cat", "/proc/self/mountinfo"]).out
    assert out is not None
    points = [line.split()[4] for line in out.decode().splitlines()]
    assert points[0] == "/"
    assert all(point == "/" or point.startswith(("/proc", "/dev")) for point in points)
    assert points.count("/") == 1
    assert b" shared:" not in out
    assert b" master:" not in out


CANNOT_FAIL = {"none", "signals"}
#: A run that cannot have a slot is made fresh, and nobody is told; see test_slots.py.
OF_A_SLOT = {"watch", "order"}


def test_every_step_that_can_fail_does_so_in_a_test() -> None:
    (table,) = (
        mark
        for mark in test_a_step_that_the_kernel_refuses_is_named_and_undone.pytestmark
        if mark.name == "parametrize"
    )
    assert {row[2] for row in table.args[1]} == (
        set(native.STEPS.values())
        - CANNOT_FAIL
        - OF_A_SLOT
        - {"kill", "trace"}  # see test_bounded.py, and tests/trace
    )


def test_every_step_has_a_name_in_the_order_of_the_contract() -> None:
    names = [native.STEPS[number] for number in sorted(native.STEPS)]
    assert names[:6] == ["none", "pipe", "lifeline", "clone", "ids", "stdio"]
    assert names[-5:] == ["reaper", "fork", "user", "exec", "kill"]
