# SPDX-License-Identifier: Apache-2.0
"""A command that does not want its paths told cannot hurt, hang or fool whoever looks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from lib.machine import needs_root, require
from lib.roots import make_rootfs

from sandboxlib import Policy, Sandbox, Trace

pytest_plugins = ["lib.ways"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the program of trace_attacks.c."""
    require(shutil.which("cc"), "there is no compiler")
    root = make_rootfs(tmp_path_factory.mktemp("attacks") / "root")
    source = Path(__file__).with_name("trace_attacks.c")
    words = ["cc", "-O1", "-w", "-static", "-pthread", source, "-o", root / "bin/attack"]
    subprocess.run(words, check=True)
    return root


def attacked(root: Path, *words: str, paths: Any = "opens", **options: Any) -> Trace:
    return Sandbox(root, **options).trace(["/bin/attack", *words], paths=paths, timeout=60)


@pytest.mark.parametrize("paths", ["opens", "all"])
def test_pointers_and_lengths_that_are_wrong_are_no_paths(
    executor: str, root: Path, paths: str
) -> None:
    trace = attacked(root, "pointers", paths=paths)
    assert trace.result.ok
    short = [path for path in trace.missing if len(path) < 100]
    assert short == ["/etc/end", "/etc/how", "/etc/program"]
    assert trace.unknown == 0


def test_more_names_than_a_trace_holds_are_told_as_such(executor: str, root: Path) -> None:
    trace = attacked(root, "flood", "100000")
    assert trace.result.ok
    assert trace.truncated
    assert trace.missing[0] == "/etc/0"
    assert 90_000 < len(trace.missing) <= 98_304
    assert not attacked(root, "flood", "1000").truncated


@pytest.mark.parametrize("attack", ["changing", "dying", "threads", "interrupted"])
def test_memory_that_changes_and_processes_that_die_do_no_harm(
    executor: str, root: Path, attack: str
) -> None:
    trace = attacked(root, attack)
    assert trace.result.ok, trace.result
    assert not [each for each in threading.enumerate() if each.name == "sandboxlib-tracer"]
    known = {"/etc/dying", "/etc/threads", "/etc/interrupted"}
    if attack != "changing":
        assert set(trace.missing) <= known


def test_files_that_wait_are_not_opened(executor: str, root: Path) -> None:
    assert attacked(root, "odd_files", paths="all").result.ok


def test_a_process_that_nobody_may_trace_is_seen(executor: str, root: Path) -> None:
    assert attacked(root, "undumpable").missing == ("/etc/undumpable",)


def test_directories_that_are_gone_have_no_paths(executor: str, root: Path) -> None:
    trace = attacked(root, "gone")
    assert trace.missing == ("/etc/after",)


@needs_root
def test_a_file_system_of_the_run_that_never_answers_holds_up_nobody(root: Path) -> None:
    policy = Policy(capabilities=["sys_admin"], seccomp="none")
    box = Sandbox(root, policy=policy, devices=["/dev/fuse"])
    require(os.path.exists("/dev/fuse"), "there is no /dev/fuse")
    began = time.monotonic()
    trace = box.trace(["/bin/attack", "silent"], timeout=3)
    require(trace.result.exit != 7, "no FUSE can be mounted here")
    assert trace.result.timed_out
    assert trace.result.out == b"ok\n"
    assert time.monotonic() - began < 30
    assert "/etc/beside" in trace.missing
    assert "/tmp/silent/a/b" not in trace.missing
    assert trace.unknown > 0


def test_nothing_of_a_trace_keeps_a_command_that_is_killed(executor: str, root: Path) -> None:
    began = time.monotonic()
    trace = Sandbox(root).trace(["/bin/sh", "-c", "/bin/attack flood 100000000"], timeout=0.5)
    assert trace.result.timed_out
    assert time.monotonic() - began < 30


#: Renames a file back and forth, which makes the kernel give up look-ups with ".." (openat2(2)).
RENAMES = """
import os, sys
name = sys.argv[1]
open(name, "w").close()
print(flush=True)
while True:
    os.rename(name, name + "2")
    os.rename(name + "2", name)
"""


def test_renames_elsewhere_hide_no_path(executor: str, root: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-c", RENAMES, str(tmp_path / "a")]
    paths = [f"/etc/../tmp/../etc/{number}" for number in range(2000)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as renaming:
        assert renaming.stdout
        renaming.stdout.readline()
        trace = Sandbox(root).trace(["/bin/cat", *paths], timeout=60)
        renaming.kill()
    assert trace.unknown == 0
    assert set(trace.missing) - {"/etc/busybox.conf"} == {f"/etc/{n}" for n in range(2000)}
