# SPDX-License-Identifier: Apache-2.0
"""Sandbox.lacks() says what run() then does, in every executor, and changes nothing."""

from __future__ import annotations

import gc
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lib.machine import many, needs_root, python
from lib.roots import make_rootfs

import sandboxlib
from sandboxlib import Limits, Mount, Policy, Sandbox, SandboxError, User
from sandboxlib._choice import choose

pytest_plugins = ["lib.setuid_tool"]

NO_EXEC = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["execve"], "action": "SCMP_ACT_ERRNO"}],
}
#: What a Sandbox asks for; HERE is a directory of the caller's.
ASKED: dict[str, dict[str, Any]] = {
    "defaults": {},
    "a network": {"network": "undefined"},
    "no mounts": {
        **{"mounts": "undefined", "processes": "undefined"},
        "devices": "root",
    },
    "processes of the caller": {
        "processes": "undefined",
        "filesystem_writable_paths": "all",
    },
    "no init": {"init": False},
    "a hostname": {"hostname": "name"},
    "ids": {"user": 1000},
    "ids and groups": {"user": User(1000, 1000, [5])},
    "root": {"user": "root"},
    "ranges": {"user": "ranges"},
    "all capabilities": {"policy": Policy(capabilities="all")},
    "a capability": {"policy": Policy(capabilities=["net_raw"])},
    "all capabilities, other ids": {"user": 1000, "policy": Policy(capabilities="all")},
    "no no_new_privs": {"policy": Policy(no_new_privs=False)},
    "no filter": {"policy": Policy(seccomp="none")},
    "our filter": {"policy": Policy(seccomp="builds")},
    "a profile that closes execve": {"policy": Policy(seccomp=NO_EXEC)},
    "nesting": {"policy": Policy(nesting=True)},
    "nesting, other ids": {"policy": Policy(nesting=True), "user": 1000},
    "deterministic": {"deterministic": True},
    "linux32": {"personality": "linux32"},
    "umask": {"umask": 0o77},
    "the root's /tmp": {"tmp": "root"},
    "a device": {"devices": ["/dev/null"]},
    "a device that is none": {"devices": ["/dev/no-such-device"]},
    "all devices": {"devices": "root"},
    "the resolver": {"network": "undefined", "resolv_conf": True},
    "writable paths": {"filesystem_writable_paths": ["/etc", "/tmp/x"], "tmp": "root"},
    "a writable path that is not there": {"filesystem_writable_paths": ["/opt/none"]},
    "all is writable": {"filesystem_writable_paths": "all"},
    "memory": {"limits": Limits(memory="200M")},
    "pids": {"limits": Limits(pids=50)},
    "cpus": {"limits": Limits(cpus=0.5)},
    "CPUs that are not there": {"limits": Limits(cpuset=[1023])},
    "more CPUs than there are": {"limits": Limits(cpuset=1000)},
    "a lower nice": {"limits": Limits(nice=-5)},
    "an oom score": {"limits": Limits(oom_score_adj=-500)},
    "a real-time scheduler": {"limits": Limits(scheduler="batch")},
    "many open files": {"limits": Limits(open_files=1 << 40)},
    "an address space": {"limits": Limits(address_space="4G")},
    "processes of a user": {"limits": Limits(processes=4000)},
    "locked memory": {"limits": Limits(locked_memory=1 << 16)},
    "a cgroup that is none": {"limits": Limits(cgroup="/etc")},
    "a bind": {"extra_mounts": [("HERE", "/etc")]},
    "a bind on a path that is missing": {"extra_mounts": [("HERE", "/opt/new/x")]},
    "a bind of a file on a path that is missing": {"extra_mounts": [("HERE/file", "/opt/file")]},
    "a bind of nothing": {"extra_mounts": [("HERE/none", "/opt")]},
    "a bind of a file on a directory": {"extra_mounts": [("HERE/file", "/etc")]},
    "a bind below a bind": {"extra_mounts": [("HERE", "/opt"), ("HERE", "/opt/directory")]},
    "a bind below a bind that lacks it": {"extra_mounts": [("HERE", "/opt"), ("HERE", "/opt/no")]},
    "binds below each other": {"extra_mounts": [("HERE", "/a/b"), ("HERE", "/a/b/directory")]},
    "a bind behind a link to nothing": {"extra_mounts": [("HERE", "/etc/gone")]},
    "a bind in the private /tmp": {"extra_mounts": [("HERE", "/tmp/new/x")]},
    "a bind in /proc": {"extra_mounts": [("HERE", "/proc/new")]},
    "a bind below a file": {"extra_mounts": [("HERE", "/etc/file/x")]},
    "a tmpfs": {"extra_mounts": [Mount.tmpfs("/srv")]},
    "a small tmpfs": {"extra_mounts": [Mount.tmpfs("/etc", size="1M")]},
    "a bind in a tmpfs": {"extra_mounts": [Mount.tmpfs("/etc"), ("HERE", "/etc/x/y")]},
    "a proc": {"extra_mounts": [Mount.proc("/run/proc")]},
    "a dev": {"extra_mounts": [Mount.dev("/run/dev")]},
}
#: Other roots than one that has everything.
ROOTS = {
    "a root without a /tmp": "tmp",
    "a root without a /dev": "dev",
    "a root without an /etc": "etc",
}


@pytest.fixture(scope="module")
def places() -> Iterator[Path]:
    """Directories of the caller's: a root, and what is bound."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        base.chmod(0o755)
        root = make_rootfs(base / "root")
        (root / "etc" / "gone").symlink_to("/no/where")
        (root / "etc" / "file").write_text("")
        (base / "here" / "directory").mkdir(parents=True)
        (base / "here" / "file").write_text("")
        for kind, lacks in ROOTS.items():
            other = make_rootfs(base / lacks)
            subprocess.run(["rm", "-r", other / lacks], check=True)
            assert kind
        yield base


@pytest.fixture(params=[*choose.EXECUTORS, ""])
def executor(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tool_path: str
) -> ModuleType | None:
    """Each executor, also one that does not work here; None: the choice."""
    monkeypatch.setenv("PATH", tool_path)
    if not request.param:
        monkeypatch.delenv("SANDBOXLIB_BACKEND", raising=False)
        return None
    monkeypatch.setenv("SANDBOXLIB_BACKEND", request.param)
    return sandboxlib.get_executor(request.param)


def box_of(root: Path, here: Path, asked: dict[str, Any]) -> Sandbox:
    mounts = [
        mount
        if isinstance(mount, Mount)
        else Mount.bind(mount[0].replace("HERE", str(here)), mount[1])
        for mount in asked.get("extra_mounts", ())
    ]
    return Sandbox(root, **{**asked, "extra_mounts": mounts})


def state(directory: Path) -> dict[str, tuple[int, ...]]:
    """All that a change of files would leave, but for the times of reading."""
    found = {}
    for path in [directory, *directory.rglob("*")]:
        status = os.lstat(path)
        times = (status.st_mtime_ns, status.st_ctime_ns)
        found[str(path)] = (status.st_ino, status.st_mode, status.st_size, *times)
    return found


def check(box: Sandbox, base: Path) -> None:
    box.lacks()  # which may make what the process keeps, such as the program of the reaper
    gc.collect()
    before = state(base)
    descriptors = len(os.listdir("/proc/self/fd"))
    lacking = box.lacks()
    assert state(base) == before
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert not box._plans
    assert all(isinstance(reason, str) and reason for reason in lacking)
    for fresh in (False, True)[: many(1, 2)]:
        try:
            with box:
                result = box.run(["true"], cwd="/", fresh=fresh, timeout=100)
            why = "" if result.exit == 0 else str(result)
        except SandboxError as error:
            why = str(error)
        assert bool(lacking) == bool(why), (lacking, why)


@pytest.mark.parametrize("asked", ASKED)
def test_it_lacks_what_a_run_then_refuses(
    executor: ModuleType | None, places: Path, asked: str
) -> None:
    check(box_of(places / "root", places / "here", ASKED[asked]), places)


@pytest.mark.parametrize(
    "asked", ["defaults", "deterministic", "a device", "the resolver", "a bind in the private /tmp"]
)
@pytest.mark.parametrize("root", ROOTS)
def test_a_root_that_lacks_a_directory_is_tried_as_it_is(
    executor: ModuleType | None, places: Path, root: str, asked: str
) -> None:
    check(box_of(places / ROOTS[root], places / "here", ASKED[asked]), places)


@pytest.mark.parametrize("root", ["/no/such/root", "FILE"])
def test_a_root_that_is_none_is_lacking(
    executor: ModuleType | None, places: Path, root: str
) -> None:
    check(Sandbox(root.replace("FILE", str(places / "here" / "file"))), places)


def test_a_reason_names_the_mount_and_not_the_trial(places: Path) -> None:
    mounts = [Mount.tmpfs("/run/a"), Mount.bind("/no/such/source", "/opt/new/x")]
    (reason,) = Sandbox(places / "root", extra_mounts=mounts).lacks()
    assert "mount 1: bind /no/such/source on /opt/new/x: source" in reason
    assert "sandboxlib-" not in reason


def test_a_mount_point_that_cannot_be_made_has_its_remedy() -> None:
    if os.geteuid() != 0:
        (reason,) = Sandbox("/", extra_mounts=[Mount.tmpfs("/no-such-directory")]).lacks()
        assert "uid" in reason
        assert "may not make it there" in reason


def test_what_no_executor_can_promise_is_told_for_those_that_work(places: Path) -> None:
    box = Sandbox(places / "root", limits=Limits(cgroup="/etc"), policy=Policy(nesting=True))
    lacking = box.lacks()
    assert lacking
    working = [name for name in choose.EXECUTORS if not sandboxlib.get_executor(name).why_not()]
    assert {reason.partition(":")[0] for reason in lacking} <= set(working)


@needs_root
def test_a_cgroup_of_a_trial_is_gone_afterwards(places: Path) -> None:
    script = f"""
import os, pathlib, sys
from sandboxlib import Limits, Sandbox
def cgroups():
    mine = f"sandboxlib-{{os.getpid()}}-"
    return [d for d, _, _ in os.walk("/sys/fs/cgroup") if os.path.basename(d).startswith(mine)]
for executor in ("chroot", "user_namespace", "bubblewrap"):
    os.environ["SANDBOXLIB_BACKEND"] = executor
    Sandbox({str(places / "root")!r}, limits=Limits(pids=50)).lacks()
    assert not cgroups(), cgroups()
"""
    subprocess.run([*python(), "-c", script], check=True, timeout=100)
