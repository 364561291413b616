# SPDX-License-Identifier: Apache-2.0
"""One contract for every executor, for root, for an ordinary user and inside a user namespace.

Where executors differ, docs/executors.md has a table. AFTER_SIGTERM, PID_1 and is_refused say the
same: what they do not name is delivered, and what they name is refused before anything runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import host_mounts, python, require
from lib.waiting import late, processes, wait_until

import sandboxlib
from sandboxlib import CAPTURE, STDOUT, Mount, Policy, Sandbox, UnsupportedError, User
from sandboxlib._choice import choose
from sandboxlib._executors import trial
from sandboxlib._host import machine

pytest_plugins = ["lib.setuid_tool"]

HERE = Path(__file__).resolve().parents[1]
NESTED = os.environ.get("SANDBOXLIB_TEST_NESTED")

#: The exit status of a command that SIGTERM ends: the programs tell less.
AFTER_SIGTERM = {"chroot": -15, "user_namespace": -15, "linux_user_chroot": 1, "bubblewrap": 143}

#: Whether the command is pid 1 of its namespace though a reaper is asked for.
PID_1 = {"chroot": False, "user_namespace": False, "linux_user_chroot": True, "bubblewrap": False}


def is_refused(executor: ModuleType, box: Sandbox) -> bool | None:
    """Whether docs/executors.md has it as refused; None where the machine decides."""
    is_root = os.geteuid() == 0
    if executor.NAME == "linux_user_chroot":
        return (
            box.hostname is not None
            or not box.policy.no_new_privs
            or box.user == "ranges"
            or (box.user == "root" and not is_root)
            or isinstance(box.policy.capabilities, tuple)
            or (is_root and box.policy.capabilities != "all")
            # The roots of these tests belong to the caller, and so to commands of other runs.
            or isinstance(box.filesystem_writable_paths, tuple)
            or any(mount.size for mount in box.extra_mounts)
            or any(mount.source and os.path.isfile(mount.source) for mount in box.extra_mounts)
        )
    if executor.NAME == "bubblewrap":
        by_name = isinstance(box.policy.capabilities, tuple)
        shallow = [mount for mount in box.extra_mounts if not mount.recursive]
        return (
            not box.policy.no_new_privs
            or box.user == "ranges"
            or (by_name and not is_root and box.user != "root")
            or any(machine.mounts_below(mount.source or "/none") for mount in shallow)
        )
    if box.user == "ranges" and is_root:
        return machine.has_one_id()
    return None if box.user == "ranges" else False


@pytest.fixture(params=choose.EXECUTORS)
def executor(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tool_path: str
) -> ModuleType:
    """Each executor that works here; skipped with its own words where it does not."""
    monkeypatch.setenv("PATH", tool_path)
    found = sandboxlib.get_executor(request.param)
    reason = found.why_not()
    if reason:
        pytest.skip(reason)
    return found


@pytest.fixture
def root(shared_rootfs: Path) -> Path:
    return shared_rootfs


def run(executor: ModuleType, *args: Any, **words: Any) -> sandboxlib.Result:
    """A run with what the executor can promise."""
    result: sandboxlib.Result = executor.run_sandbox(*args, **{**least(executor), **words})
    return result


def box_of(executor: ModuleType, root: Path | str, words: dict[str, Any]) -> Sandbox:
    return open_box(root, **{**least(executor), **words})


def least(executor: ModuleType) -> dict[str, Any]:
    """For root, linux-user-chroot cuts no capability."""
    is_tool = executor.NAME == "linux_user_chroot" and os.geteuid() == 0
    return {"policy": Policy(capabilities="all")} if is_tool else {}


def sh(executor: ModuleType, root: Path | str, script: str, **words: Any) -> str:
    """Run a shell in a sandbox, which must succeed; return its output. Skip if it is refused."""
    try:
        result = run(executor, root, ["sh", "-c", script], **words)
    except UnsupportedError as error:
        refused = str(error)
    else:
        refused = ""
    box = {k: v for k, v in words.items() if k not in ("cwd", "extra_env", "env", "timeout")}
    # It says so beforehand as well: the ladder goes by that.
    place = box_of(executor, root, box)
    assert bool(refused) == bool(executor.refusals(place))
    assert is_refused(executor, place) in (bool(refused), None)
    if refused:
        pytest.skip(f"refused: {refused}")
    assert (result.exit, result.err) == (0, b""), result
    return str(result.out.decode())


# ---- the run ---------------------------------------------------------------------------------


def test_the_result_is_whole(executor: ModuleType, root: Path) -> None:
    result = run(executor, root, ["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert result == (7, b"out\n", b"err\n")
    assert result.executor == executor.NAME
    assert result.isolation["mounts"] == "isolated"
    assert not result.timed_out


def test_a_long_output_is_whole(executor: ModuleType, root: Path) -> None:
    script = "head -c 5000000 /dev/zero | tee /proc/self/fd/2"
    words = {"extra_mounts": [Mount.dev()]}
    result = run(executor, root, ["sh", "-c", script], **words)
    assert [len(result.out), len(result.err)] == [5_000_000, 5_000_000]


def test_the_end_by_a_signal_is_told_as_far_as_it_is_known(
    executor: ModuleType, root: Path
) -> None:
    script = "import os; os.kill(os.getpid(), 15)"
    argv = [sys.executable, "-I", "-c", script]
    result = run(executor, "/", argv, processes="undefined")
    assert result.exit == AFTER_SIGTERM[executor.NAME]


def test_stdin_is_empty_or_what_is_given(executor: ModuleType, root: Path) -> None:
    assert run(executor, root, ["cat"]) == (0, b"", b"")
    assert run(executor, root, ["cat"], stdin=b"text") == (0, b"text", b"")


def test_outputs_go_where_they_are_sent(executor: ModuleType, root: Path, tmp_path: Path) -> None:
    argv = ["sh", "-c", "echo out; echo err >&2"]
    assert run(executor, root, argv, stderr=STDOUT) == (0, b"out\nerr\n", None)
    assert run(executor, root, argv, stdout=None) == (0, None, b"err\n")
    with open(tmp_path / "log", "ab") as log:
        log.write(b"before\n")
        log.flush()
        assert run(executor, root, argv, stdout=log, stderr=STDOUT) == (0, None, None)
    assert (tmp_path / "log").read_bytes() == b"before\nout\nerr\n"


def test_the_environment_is_what_is_asked_for(executor: ModuleType, root: Path) -> None:
    path = sandboxlib.BASE_ENVIRONMENT["PATH"]
    odd = {"LD_LIBRARY_PATH": "/x", "TMPDIR": "/tmp/y", "A": "two words\nand a line"}
    seen = run(executor, root, ["env", "-0"], extra_env=odd).out.split(b"\0")
    ours = {f"{name}={value}".encode() for name, value in {**odd, "PATH": path}.items()}
    assert ours <= set(seen)
    assert {word.partition(b"=")[0] for word in set(seen) - ours} <= {b"PWD", b"SHLVL", b"_", b""}
    assert b"PATH=/bin\0" in run(executor, root, ["env", "-0"], env={"PATH": "/bin"}).out


def test_the_directory_is_inside(executor: ModuleType, root: Path) -> None:
    for cwd, expected in ((None, b"/\n"), ("/tmp", b"/tmp\n"), ("tmp", b"/tmp\n")):
        assert run(executor, root, ["pwd"], cwd=cwd) == (0, expected, b"")


@pytest.mark.parametrize(
    ("words", "kind", "step"),
    [
        ({"command": ["nonesuch"]}, FileNotFoundError, "exec"),
        ({"command": ["/none/such"]}, FileNotFoundError, "exec"),
        ({"command": ["/etc"]}, PermissionError, "exec"),
        ({"command": ["true"], "cwd": "/none"}, FileNotFoundError, "cwd"),
        ({"command": ["true"], "rootfs_path": "/none/such"}, FileNotFoundError, "root"),
        (
            {"command": ["true"], "extra_mounts": [Mount.bind("/none/such", "/tmp")]},
            FileNotFoundError,
            "source",
        ),
    ],
)
def test_what_cannot_begin_is_an_error_with_its_step(
    executor: ModuleType, root: Path, words: dict[str, Any], kind: type[OSError], step: str
) -> None:
    with pytest.raises(kind) as caught:
        run(executor, **{"rootfs_path": root, **words})
    assert isinstance(caught.value, sandboxlib.SetupError)
    assert caught.value.step == step


def test_an_exit_status_is_no_error(executor: ModuleType, root: Path) -> None:
    # 1 is what the programs end with when they fail themselves.
    for status in (1, 2, 125, 126, 127, 255):
        result = run(executor, root, ["sh", "-c", f"exit {status}"])
        assert result == (status, b"", b"")


def test_a_timeout_ends_the_tree_and_keeps_the_output(executor: ModuleType, root: Path) -> None:
    seconds = f"7{os.getpid()}{choose.EXECUTORS.index(executor.NAME)}"
    script = f"echo begun; sleep {seconds} & sleep {seconds}"
    result = late(
        lambda timeout: run(executor, root, ["sh", "-c", script], timeout=timeout),
        lambda result: result.out,
    )
    assert result.out == b"begun\n"
    assert wait_until(lambda: not processes(seconds))


# ---- each kind of isolation, seen from inside ------------------------------------------------


def test_a_network_of_its_own(executor: ModuleType, root: Path) -> None:
    seen = sh(executor, root, "cat /proc/net/dev", network="isolated").splitlines()
    assert [line.split(":")[0].strip() for line in seen[2:]] == ["lo"]
    flags = sh(executor, root, "ip -o link show lo", network="isolated").partition("<")[2]
    is_up = "UP" in flags.partition(">")[0].split(",")
    assert is_up == (executor.NAME != "linux_user_chroot")


def test_a_caller_that_is_killed(executor: ModuleType, root: Path) -> None:
    mark = f"6{os.getpid()}{choose.EXECUTORS.index(executor.NAME)}"
    script = """
import json, sys, sandboxlib
name, root, mark, words = sys.argv[1:]
sandboxlib.get_executor(name).run_sandbox(root, ["sleep", mark], **json.loads(words))
"""
    words = [executor.NAME, str(root), mark, json.dumps({"capabilities": "all"})]
    with subprocess.Popen([*python(), "-c", script, *words]) as host:
        assert wait_until(lambda: running(mark))
        host.kill()
    if executor.NAME == "linux_user_chroot":
        time.sleep(0.3)
        assert running(mark)
        for pid in running(mark):
            os.kill(int(pid), signal.SIGKILL)
    assert wait_until(lambda: not running(mark))


def running(mark: str) -> list[str]:
    """The commands; a host, or the program of an executor, has the word among others."""
    found = []
    for pid in processes(mark):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] == b"sleep":
                found.append(pid)
    return found


def test_processes_of_its_own(executor: ModuleType, root: Path) -> None:
    mark = f"8{os.getpid()}{choose.EXECUTORS.index(executor.NAME)}"
    script = f"ls /proc | grep -c '^[0-9]*$'; setsid sleep {mark} & true"
    seen = sh(executor, root, script, processes="isolated", extra_mounts=[Mount.dev()])
    assert int(seen) < 8
    assert wait_until(lambda: not processes(mark))


def test_ipc_and_hostname_of_its_own(executor: ModuleType, root: Path) -> None:
    links = "readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts"
    ours = [os.readlink(f"/proc/self/ns/{name}") for name in ("ipc", "uts")]
    seen = sh(executor, root, links, ipc="isolated").split()
    assert all(a != b for a, b in zip(seen, ours, strict=True))


def test_a_hostname(executor: ModuleType, root: Path) -> None:
    before = os.uname().nodename
    assert sh(executor, root, "hostname", hostname="box") == "box\n"
    assert os.uname().nodename == before


@pytest.mark.parametrize("kind", ["network", "processes", "ipc"])
def test_what_is_not_isolated_is_the_callers(executor: ModuleType, root: Path, kind: str) -> None:
    name = {"network": "net", "processes": "pid", "ipc": "ipc"}[kind]
    words = {"extra_mounts": [Mount.bind("/proc", "/proc")]} if kind == "processes" else {}
    seen = sh(executor, root, f"readlink /proc/self/ns/{name}", **{kind: "undefined"}, **words)
    assert seen.strip() == os.readlink(f"/proc/self/ns/{name}")


@pytest.mark.parametrize("kind", trial.ISOLATED)
def test_the_result_tells_what_the_run_had(executor: ModuleType, root: Path, kind: str) -> None:
    name = {"network": "net", "processes": "pid", "ipc": "ipc", "mounts": "mnt"}[kind]
    for value in ("isolated", "undefined"):
        words = {**trial.UNDEFINED, kind: value}
        result = run(executor, "/", ["readlink", f"/proc/self/ns/{name}"], **words)
        is_own = result.out.decode().strip() != os.readlink(f"/proc/self/ns/{name}")
        assert result.isolation[kind] == ("isolated" if is_own else "undefined")
        assert is_own or value == "undefined"


@pytest.mark.parametrize("init", [True, False])
def test_a_reaper_or_none(executor: ModuleType, root: Path, init: bool) -> None:
    pid = int(sh(executor, root, "echo $$", init=init))
    assert (pid == 1) == (PID_1[executor.NAME] or not init)


def test_a_root_that_is_read_only(executor: ModuleType, root: Path) -> None:
    script = "for p in / /tmp /etc; do touch $p/x 2> /proc/self/fd/1; done; true"
    said = sh(executor, root, script, filesystem_writable_paths="none")
    assert said.count("Read-only file system") == 3


def test_a_root_that_is_read_only_but_for_a_path(executor: ModuleType, rootfs: Path) -> None:
    script = "touch /tmp/y; touch /etc/x 2> /proc/self/fd/1; true"
    said = sh(executor, rootfs, script, filesystem_writable_paths=["/tmp"])
    assert said.count("Read-only file system") == 1
    assert (rootfs / "tmp" / "y").exists()
    assert not (rootfs / "etc" / "x").exists()


def test_no_capability_is_left(executor: ModuleType, root: Path) -> None:
    seen = sh(executor, root, "grep CapEff /proc/self/status", policy=Policy(capabilities="none"))
    assert int(seen.split()[1], 16) == 0


def test_the_default_capabilities_are_no_more_than_promised(
    executor: ModuleType, root: Path
) -> None:
    seen = sh(
        executor,
        root,
        "grep -E 'Cap(Eff|Prm)' /proc/self/status",
        policy=Policy(capabilities="default"),
    )
    allowed = sum(
        1 << sandboxlib._spec.policy.CAPABILITIES.index(name)
        for name in sandboxlib._spec.policy.DEFAULT_CAPABILITIES
    )
    assert all(int(line.split()[1], 16) & ~allowed == 0 for line in seen.splitlines())


def test_all_capabilities_of_the_caller(executor: ModuleType, root: Path) -> None:
    seen = sh(executor, root, "grep CapEff /proc/self/status", policy=Policy(capabilities="all"))
    ours = int(machine.status("CapEff"), 16)
    assert int(seen.split()[1], 16) & ours == ours


def test_a_capability_by_name(executor: ModuleType, root: Path) -> None:
    script = "ip link set lo down; grep CapEff /proc/self/status"
    words = {"policy": Policy(capabilities=["net_admin"]), "network": "isolated"}
    assert int(sh(executor, root, script, **words).split()[1], 16) == 1 << 12


@pytest.mark.parametrize("wanted", [True, False])
def test_no_new_privs(executor: ModuleType, root: Path, wanted: bool) -> None:
    seen = sh(
        executor, root, "grep NoNewPrivs /proc/self/status", policy=Policy(no_new_privs=wanted)
    )
    assert int(seen.split()[1]) == wanted or int(seen.split()[1]) == _own_no_new_privs()


def _own_no_new_privs() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("NoNewPrivs:"):
            return int(line.split()[1])
    raise AssertionError("the kernel is older than 4.10")


@pytest.mark.parametrize("user", ["caller", "root"])
def test_the_ids_are_the_callers_or_roots(executor: ModuleType, root: Path, user: str) -> None:
    seen = sh(executor, root, "id -u; id -g", user=user).split()
    assert seen == (["0", "0"] if user == "root" else [str(os.geteuid()), str(os.getegid())])


def test_ranges_of_ids(executor: ModuleType, rootfs: Path) -> None:
    if executor.NAME == "user_namespace":
        refused = executor.refusals(open_box(rootfs, user="ranges"))
        require(not refused, f"this user has one id: {refused}")
    script = "touch /tmp/f; chown 1:2 /tmp/f; stat -c %u:%g /tmp/f; rm /tmp/f"
    assert sh(executor, rootfs, script, user="ranges") == "1:2\n"


def test_ids_are_given_or_refused(executor: ModuleType, rootfs: Path) -> None:
    for user in (User(5, 7), User(5, 7, ranges=True)):
        box = open_box(rootfs, user=user)
        if refused := executor.refusals(box):
            with pytest.raises(UnsupportedError):
                executor.run_in(box, ["true"])
            assert refused
        else:
            assert sh(executor, rootfs, "id -u; id -g; id -G", user=user) == "5\n7\n7\n"


# ---- mounts ----------------------------------------------------------------------------------


def test_binds_are_where_they_belong_and_gone_afterwards(
    executor: ModuleType, rootfs: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "file").write_text("text\n")
    before = sorted(os.listdir(rootfs))
    mounts = [Mount.bind(source, "/made/here"), Mount.bind(source, "/tmp/ro", read_only=True)]
    script = "cat /made/here/file; touch /made/here/new; touch /tmp/ro/x 2> /proc/self/fd/1; true"
    said = sh(executor, rootfs, script, extra_mounts=mounts)
    assert said.startswith("text\n")
    assert "Read-only file system" in said
    assert sorted(os.listdir(source)) == ["file", "new", "sub"]
    assert sorted(os.listdir(rootfs)) == before
    assert os.listdir(rootfs / "tmp") == []


def test_a_file_can_be_bound(executor: ModuleType, rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text\n")
    mounts = [Mount.bind(tmp_path / "file", "/etc/file")]
    assert sh(executor, rootfs, "cat /etc/file", extra_mounts=mounts) == "text\n"
    assert not (rootfs / "etc" / "file").exists()


def test_a_tmpfs_is_empty_and_private(executor: ModuleType, rootfs: Path) -> None:
    (rootfs / "tmp" / "old").touch()
    script = "ls -A /tmp; echo x > /tmp/new; cat /tmp/new; stat -c %a /tmp"
    assert sh(executor, rootfs, script, extra_mounts=[Mount.tmpfs("/tmp")]) == "x\n1777\n"
    assert os.listdir(rootfs / "tmp") == ["old"]


def test_a_tmpfs_with_a_limit(executor: ModuleType, root: Path) -> None:
    mounts = [Mount.dev(), Mount.tmpfs("/tmp", size=1 << 20, mode=0o700)]
    script = "stat -c %a /tmp; head -c 2000000 /dev/zero 2> /dev/null > /tmp/x; stat -c %s /tmp/x"
    assert sh(executor, root, script, extra_mounts=mounts).split() == ["700", str(1 << 20)]


def test_a_proc_is_of_the_run(executor: ModuleType, root: Path) -> None:
    script = "ls /tmp/in/proc | grep -c '^[0-9]*$'; test -e /tmp/in/proc/self/fd"
    mounts = [Mount.tmpfs("/tmp/in"), Mount.proc("/tmp/in/proc")]
    assert int(sh(executor, root, script, extra_mounts=mounts)) < 8


def sh_or_kernel(executor: ModuleType, root: Path, script: str, hint: str, **words: Any) -> str:
    """The same for what a user namespace is denied by the kernel, not by us; "" then."""
    refused = contextlib.nullcontext()
    if executor.NAME == "user_namespace" or (executor.NAME == "chroot" and machine.has_one_id()):
        refused = pytest.raises(sandboxlib.SetupError, match=hint)  # type: ignore[assignment]
    with refused:
        return sh(executor, root, script, **words)
    return ""


def test_a_proc_of_the_callers_processes(executor: ModuleType, root: Path) -> None:
    words = {"processes": "undefined", "extra_mounts": [Mount.proc()]}
    script = f"test -e /proc/{os.getpid()} && echo seen"
    seen = sh_or_kernel(executor, root, script, "processes='isolated'", **words)
    assert seen in ("seen\n", "")


def test_a_bind_without_what_is_mounted_below(executor: ModuleType, root: Path) -> None:
    (below, *_) = machine.mounts_below("/dev") or [""]
    require(below, "nothing is mounted below /dev")
    mounts = [Mount.bind("/dev", "/tmp", recursive=False)]
    script = "cat /proc/self/mountinfo"
    seen = sh_or_kernel(executor, root, script, "recursively", extra_mounts=mounts)
    assert not [line for line in seen.splitlines() if line.split()[4].startswith("/tmp/")]


def test_a_bind_with_what_is_mounted_below(executor: ModuleType, root: Path) -> None:
    (below, *_) = machine.mounts_below("/dev") or [""]
    require(below, "nothing is mounted below /dev")
    mounts = [Mount.bind("/dev", "/tmp", read_only=True)]
    script = "cat /proc/self/mountinfo"
    seen = sh(executor, root, script, extra_mounts=mounts).splitlines()
    points = {line.split()[4]: line.split()[5].split(",") for line in seen}
    assert "ro" in points["/tmp"]
    assert "ro" in points["/tmp" + below[len("/dev") :]]


def test_devices(executor: ModuleType, root: Path) -> None:
    script = "echo x > /dev/null; head -c 3 /dev/zero | wc -c; cat /dev/stdin"
    assert sh(executor, root, script, extra_mounts=[Mount.dev()]) == "3\n"


def test_a_mount_leads_nowhere_out_of_the_root(
    executor: ModuleType, rootfs: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (rootfs / "link").symlink_to(outside)
    (rootfs / "up").symlink_to("../../../../../../../../" + str(outside))
    for target in ("/link/x", "/up/x", "/link", "/up"):
        with contextlib.suppress(OSError, UnsupportedError):
            run(executor, rootfs, ["true"], extra_mounts=[Mount.tmpfs(target)])
    assert os.listdir(outside) == []


def promises_paths(executor: ModuleType) -> bool:
    """Whether writable paths are delivered in a root whose owner is the caller."""
    return executor.NAME != "linux_user_chroot"


def test_nothing_is_left(executor: ModuleType, rootfs: Path) -> None:
    def state() -> list[Any]:
        return [
            host_mounts(),
            sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
            Path(f"/proc/self/task/{os.getpid()}/children").read_text(),
            sorted(str(p) for p in rootfs.rglob("*") if "bin" not in p.parts),
        ]

    box = {"network": "isolated", "extra_mounts": [Mount.tmpfs("/made/x")]}
    run(executor, rootfs, ["true"], **box)
    before = state()
    some = {"filesystem_writable_paths": ["/tmp"]}
    for words in (box, {}, some if promises_paths(executor) else {}):
        for command in (["true"], ["false"], ["nonesuch"]):
            with contextlib.suppress(FileNotFoundError):
                run(executor, rootfs, command, **words)
    assert state() == before


# ---- both forms of a call --------------------------------------------------------------------


def test_the_form_of_0_3(executor: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARK", "inherited")
    run = executor.run_sandbox
    assert run(["sh", "-c", "echo $MARK"], filesystem_root=root) == (0, b"inherited\n", b"")
    assert run(["/bin/sh", "-c", "echo $MARK"], None, {}, root) == (0, b"\n", b"")
    with pytest.warns(sandboxlib.HostRootWarning):
        assert run("pwd", cwd="/tmp").out == b"/tmp\n"
    assert run(["pwd"], "tmp", filesystem_root=root).out == b"/tmp\n"
    assert run(["echo", "x"], filesystem_root="/", stdout=None, stderr=None) == (0, None, None)


def test_a_value_that_there_is_not_is_an_assertion_as_it_was(executor: ModuleType) -> None:
    for words in ({"network": "some"}, {"mounts": "some"}, {"filesystem_writable_paths": "some"}):
        with pytest.raises(AssertionError, match="'some'") as caught:
            executor.run_sandbox(["true"], filesystem_root="/", **words)
        assert isinstance(caught.value, sandboxlib.SpecError)


def test_only_the_status(executor: ModuleType, root: Path, tmp_path: Path) -> None:
    with open(tmp_path / "log", "a") as log:
        words = {"stdout": log, "stderr": STDOUT, "filesystem_root": root}
        script = ["sh", "-c", "echo out; echo err >&2; exit 3"]
        assert executor.run_sandbox_with_redirection(script, **words) == 3
    assert (tmp_path / "log").read_text() == "out\nerr\n"
    assert executor.run_sandbox_with_redirection(["true"], filesystem_root="/", stdout=CAPTURE) == 0


def test_what_is_possible_can_be_splatted(executor: ModuleType, root: Path) -> None:
    words = executor.maximum_possible_isolation()
    assert words["mounts"] == "isolated"
    names = {"capabilities": "all"} if least(executor) else {}
    assert executor.run_sandbox(root, ["true"], **names, **words).exit == 0
    assert executor.run_sandbox(["true"], filesystem_root=root, **names, **words).exit == 0


def test_degrading_a_config_that_is_possible_changes_nothing(executor: ModuleType) -> None:
    config = {"mounts": "isolated", "network": "isolated", "filesystem_writable_paths": ["/tmp"]}
    assert executor.degrade_config_for_capabilities(config) == config


# ---- as YBD calls it -------------------------------------------------------------------------


def ybd(executor: ModuleType, config: dict[str, Any], log: Path, command: str) -> int:
    """A step of a build, in YBD's own words (ybd/sandbox.py with sandboxlib 0.3)."""
    env = {"PATH": "/bin:/usr/bin", "TMPDIR": "/tmp"}
    config = executor.degrade_config_for_capabilities(config, warn=False)
    with open(log, "a") as file:
        status: int = executor.run_sandbox_with_redirection(
            ["sh", "-c", "-e", command], stdout=file, stderr=sandboxlib.STDOUT, env=env, **config
        )
    return status


def ybd_mounts(tmp_path: Path) -> list[Any]:
    (tmp_path / "ccache").mkdir()
    cache = (str(tmp_path / "ccache"), "/tmp/ccache", None, "bind")
    return [cache, ("tmpfs", "/dev/shm", "tmpfs"), ("proc", "/proc", "proc")]


def ybd_root(rootfs: Path) -> dict[str, Any]:
    for name in ("foo.build", "foo.inst"):
        (rootfs / name).mkdir()
    isolated = {"mounts": "isolated", "network": "isolated"}
    return {"cwd": "foo.build", "filesystem_root": str(rootfs), **isolated}


def test_a_chunk_of_ybd(executor: ModuleType, rootfs: Path, tmp_path: Path) -> None:
    writable = ["foo.build", "foo.inst", "/dev", "/proc", "/tmp"]
    config = ybd_root(rootfs) | {
        "filesystem_writable_paths": writable,
        "extra_mounts": ybd_mounts(tmp_path),
    }
    log = tmp_path / "log"
    if not promises_paths(executor):
        with pytest.raises(UnsupportedError, match="commands can rename"):
            ybd(executor, config, log, "true")
        return
    command = "pwd; touch made /foo.inst/made /tmp/ccache/object /dev/shm/x; echo $TMPDIR >&2"
    assert ybd(executor, config, log, command) == 0
    assert ybd(executor, config, log, "touch /etc/x") == 1
    assert ybd(executor, config, log, "ls /dev/shm; tail -n +3 /proc/net/dev | cut -d: -f1") == 0
    assert ybd(executor, config, log, "false; exit 3") == 1
    assert ybd(executor, config, log, "exit 7") == 7
    said = [line.strip() for line in log.read_text().splitlines()]
    assert said == ["/foo.build", "/tmp", "touch: /etc/x: Read-only file system", "lo"]
    assert (rootfs / "foo.build" / "made").exists()
    assert (rootfs / "foo.inst" / "made").exists()
    assert os.listdir(tmp_path / "ccache") == ["object"]
    assert os.listdir(rootfs / "dev") == []


def test_a_chunk_of_ybd_in_a_root_that_lacks_writable_paths(
    executor: ModuleType, rootfs: Path, tmp_path: Path
) -> None:
    (rootfs / "proc").rmdir()
    config = ybd_root(rootfs) | {
        "filesystem_writable_paths": ["foo.build", "/dev", "/proc", "/tmp", "/none", "/etc/none/x"],
        "extra_mounts": ybd_mounts(tmp_path),
    }
    if not promises_paths(executor):
        config["filesystem_writable_paths"] = "all"
    log = tmp_path / "log"
    assert ybd(executor, config, log, "cat /proc/self/comm; touch made; ls -d /none || pwd") == 0
    said = log.read_text().splitlines()
    assert [said[0], said[-1]] == ["cat", "/foo.build"]
    assert (rootfs / "foo.build" / "made").exists()
    assert not {"proc", "none"} & set(os.listdir(rootfs))


def test_a_writable_path_that_the_root_lacks_is_told_unless_a_mount_lies_there(
    executor: ModuleType, rootfs: Path
) -> None:
    if not promises_paths(executor):
        pytest.skip("it refuses writable paths in a root of the caller's")
    mounts = [Mount.tmpfs("/made")]
    result = run(
        executor,
        rootfs,
        ["sh", "-c", "touch /made/x && ls /made"],
        extra_mounts=mounts,
        filesystem_writable_paths=["/made", "/made/x/y"],
    )
    assert result == (0, b"x\n", b"")
    with pytest.raises(FileNotFoundError, match="/madness"):
        run(executor, rootfs, ["true"], filesystem_writable_paths=["/madness"], extra_mounts=mounts)
    assert not {"made", "madness"} & set(os.listdir(rootfs))


def test_a_system_of_ybd(executor: ModuleType, rootfs: Path, tmp_path: Path) -> None:
    config = ybd_root(rootfs) | {
        "filesystem_writable_paths": "all",
        "extra_mounts": ybd_mounts(tmp_path),
    }
    # As root it makes devices and gives files away.
    command = "touch /etc/made"
    if os.geteuid() == 0 and executor.NAME == "chroot" and not machine.has_one_id():
        command += "; chown 12:34 /etc/made; mknod /dev/made c 1 3"
    assert ybd(executor, config, tmp_path / "log", command) == 0, (tmp_path / "log").read_text()
    found = (rootfs / "etc" / "made").stat()
    assert (found.st_uid == 12) == ("chown" in command)
    assert (rootfs / "dev" / "made").is_char_device() == ("mknod" in command)


def test_a_bootstrap_of_ybd(executor: ModuleType, tmp_path: Path) -> None:
    tmp_path = tmp_path.resolve()
    writable = [str(tmp_path / name) for name in ("foo.build", "foo.inst", "tmp")]
    for path in writable:
        os.mkdir(path)
    config = {
        "cwd": writable[0],
        "filesystem_root": "/",
        "filesystem_writable_paths": writable,
        "mounts": "isolated",
        "network": "isolated",
        "extra_mounts": [],
    }
    command = f"pwd; touch made {writable[1]}/made {writable[2]}/made"
    log = tmp_path / "log"
    if not promises_paths(executor):
        with pytest.raises(UnsupportedError, match="commands can rename"):
            ybd(executor, config, log, "true")
        return
    assert ybd(executor, config, log, command) == 0, log.read_text()
    assert log.read_text() == f"{writable[0]}\n"
    assert ybd(executor, config, log, f"touch {tmp_path}/x 2> {writable[2]}/said") == 1
    assert "Read-only file system" in Path(writable[2], "said").read_text()
    assert [os.listdir(path) for path in writable[:2]] == [["made"], ["made"]]


# ---- who runs all of this --------------------------------------------------------------------


def run_nested(run: Callable[..., subprocess.CompletedProcess[str]], what: str) -> None:
    """This file again; as many tests have to pass as say something."""
    argv = [*python(), "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__))]
    done = run(argv)
    if done.returncode != 0:
        telling = [line for line in done.stdout.splitlines() if line.startswith(("E  ", "FAILED"))]
        pytest.fail("\n".join([what, *telling, done.stderr[-2000:]]))


@pytest.mark.skipif(NESTED is not None, reason="it is run by the same suite outside")
@pytest.mark.timeout(300)
def test_the_contract_inside_a_user_namespace(tmp_path: Path) -> None:
    works = subprocess.run(["unshare", "-Ur", "true"], capture_output=True, check=False)
    require(works.returncode == 0, f"there are no user namespaces: {works.stderr.decode()}")

    def run(argv: list[str]) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "SANDBOXLIB_TEST_NESTED": "1", "SANDBOXLIB_MUST_WORK": ""}
        env["PYTEST_DEBUG_TEMPROOT"] = str(tmp_path)  # /tmp/pytest-of-root may be real root's
        return subprocess.run(
            ["unshare", "-Ur", *argv], env=env, capture_output=True, text=True, check=False
        )

    run_nested(run, "in a user namespace")


@pytest.mark.skipif(NESTED is not None, reason="it is run by the same suite outside")
@pytest.mark.timeout(300)
def test_the_contract_for_an_ordinary_user_with_the_set_user_id_program(
    setuid_tool: Any,
) -> None:
    def run(argv: list[str]) -> subprocess.CompletedProcess[str]:
        env = {
            "SANDBOXLIB_TEST_NESTED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": f"{Path(sandboxlib.__file__).resolve().parents[1]}:{HERE}",
            "HOME": "/tmp",
        }
        done: subprocess.CompletedProcess[str] = setuid_tool.run(*argv, timeout=290, **env)
        return done

    run_nested(run, "as an ordinary user")
