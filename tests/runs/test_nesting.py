# SPDX-License-Identifier: Apache-2.0
"""Sandboxes within sandboxes: Policy(nesting=True), and who is refused it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import needs_root, python, require

import sandboxlib
from sandboxlib import Mount, Policy, Sandbox, SpecError, UnsupportedError, bubblewrap
from sandboxlib._cgroups import hierarchies
from sandboxlib._executors import nesting
from sandboxlib._host import machine

PYTHON = "/usr/bin/python3"
PACKAGE = str(Path(sandboxlib.__file__).resolve().parent.parent)
NESTED = """
import sys
sys.path.insert(0, sys.argv[1])
from sandboxlib import Sandbox
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
script = "id -u; set -- /proc/[0-9]*; echo $#"
with Sandbox("/") as box:
    for fresh in (True, False, False):
        result = box.run(["sh", "-c", script], cwd="/", fresh=fresh)
        uid, processes = result.out.split()
        assert int(processes) < 6, result
        assert result.executor == "user_namespace"
        assert result.isolation["seccomp"] == "builds"
print("nested", uid.decode())
"""
#: The expected output of each; the second also shows that it can mount a new proc.
COMMANDS = {
    "unshare": (["unshare", "-Urmpf", "--mount-proc", "sh", "-c", "echo /proc/[0-9]* | wc -w"], 3),
    "bwrap": (
        [
            *"bwrap --unshare-all --ro-bind / / --proc /proc --dev /dev sh -c".split(),
            "echo /proc/[0-9]* | wc -w",
        ],
        5,
    ),
    "sandboxlib": ([PYTHON, "-c", NESTED, PACKAGE], 0),
}
HOST = """
import json, sys
from sandboxlib import Policy, Sandbox
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
words, commands = json.loads(sys.argv[1])
for nesting in (True, False):
    with open_box("/", policy=Policy(nesting=nesting), **words) as box:
        for name, (argv, most) in commands.items():
            for fresh in (True, False, False):
                result = box.run(argv, cwd="/", fresh=fresh)
                assert (result.exit == 0) == nesting, (name, fresh, result)
                if nesting and most:
                    assert int(result.out) <= most, (name, result)
                elif nesting:
                    assert result.out.startswith(b"nested "), result
"""


def commands() -> dict[str, Any]:
    found = {name: words for name, words in COMMANDS.items() if shutil.which(words[0][0])}
    probe = [PYTHON, "-c", f"import sys; sys.path.insert(0, {PACKAGE!r}); import sandboxlib"]
    user = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]
    done = subprocess.run([*user, *probe], check=False, cwd="/", capture_output=True)
    if done.returncode != 0:  # another version than that which built the core
        del found["sandboxlib"]
    return found


def userns_works() -> bool:
    return not sandboxlib.user_namespace.why_not()


@needs_root
@pytest.mark.parametrize(
    ("uid", "words"),
    [(0, {"user": 1000}), (1000, {}), (1000, {"user": "root"}), (1000, {"network": "isolated"})],
    ids=str,
)
def test_sandboxes_within_sandboxes(uid: int, words: dict[str, Any]) -> None:
    require(userns_works(), "there are no user namespaces")
    become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"] if uid else []
    argv = [*become, *python(), "-c", HOST, json.dumps([words, commands()])]
    env = {**os.environ, "PYTHONPATH": PACKAGE}
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=250, cwd="/", env=env
    )
    if "delegated" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr


@needs_root
@pytest.mark.parametrize(
    "words",
    [
        {},
        {"user": "root"},
        {"user": "ranges"},
        {"user": 1000, "no_new_privs": False},
        {"capabilities": "all"},
        {"user": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["chroot", "user_namespace", ""])
def test_root_of_the_machine_is_refused(name: str, words: dict[str, Any]) -> None:
    if not machine.is_root_of_the_machine():
        pytest.skip("the caller is not root of the machine")
    executor = sandboxlib.get_executor(name) if name else sandboxlib
    with pytest.raises(UnsupportedError, match="nesting=True"):
        executor.run_sandbox("/", ["true"], nesting=True, **words)


@needs_root
def test_programs_that_others_wrote_are_no_way(tmp_path: Path) -> None:
    for executor in (bubblewrap, sandboxlib.linux_user_chroot):
        box = open_box("/", user=1000, policy=Policy(nesting=True))
        assert any("nesting" in text or "no " in text for text in executor.refusals(box))


def test_a_chroot_has_none(tmp_path: Path) -> None:
    box = Sandbox(tmp_path, mounts="undefined", policy=Policy(nesting=True))
    (said,) = nesting.refused(box, True, 1000)
    assert "mounts='isolated'" in said


def test_a_cgroup_of_the_commands_uid_is_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "user.slice" / "delegated"
    place.mkdir(parents=True)
    (place / "cgroup.procs").touch()
    monkeypatch.setattr(hierarchies, "mount_points", lambda: {"": str(tmp_path)})
    me = os.geteuid()
    owner = nesting._outside(me)
    assert nesting._writable([range(owner, owner + 1)]) == str(place)
    assert nesting._writable([range(owner + 5, owner + 9)]) == ""
    (place / "cgroup.procs").chmod(0o666)
    assert nesting._writable([range(owner + 5, owner + 9)]) == str(place)


def test_it_stands_without_a_profile() -> None:
    with pytest.raises(SpecError):
        Policy(nesting=True, seccomp={"defaultAction": "SCMP_ACT_ALLOW"})


@needs_root
def test_the_covers_of_proc_stay_where_they_protect() -> None:
    script = "grep -c '/proc/sys ro\\|/proc/sys .*ro,' /proc/self/mountinfo || true"
    for words in ({}, {"extra_mounts": [Mount.proc()]}):
        default = open_box("/", user=1000, **words)  # type: ignore[arg-type]
        nested = default.replace(policy=Policy(nesting=True))
        for fresh in (True, False):
            with default, nested:
                assert default.run(["sh", "-c", script], cwd="/", fresh=fresh).out == b"1\n"
                if not userns_works():
                    continue
                assert nested.run(["sh", "-c", script], cwd="/", fresh=fresh).out == b"0\n"
                shut = nested.run(["sh", "-c", "echo x > /proc/sys/kernel/core_pattern"], cwd="/")
                assert shut.exit != 0


SYSCTLS = """
from sandboxlib import Policy, Sandbox
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
script = "cat /proc/sys/kernel/shmmni; echo 77 > /proc/sys/kernel/shmmni"
for user in ("root", 0):
    with Sandbox("/", user=user, policy=Policy(nesting=True)) as box:
        seen = {box.run(["sh", "-c", script], cwd="/").out for _ in range(4)}
        assert len(seen) == 1, seen
"""


@needs_root
def test_sysctls_of_a_run_are_not_those_of_the_next() -> None:
    """As /proc is whole, uid 0 of a namespace may write what its IPC namespace has."""
    require(userns_works(), "there are no user namespaces")
    become = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]
    env = {**os.environ, "PYTHONPATH": PACKAGE}
    done = subprocess.run(
        [*become, *python(), "-c", SYSCTLS],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=env,
    )
    if "delegated" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
