# SPDX-License-Identifier: Apache-2.0
"""A root shows files of the host's kernel read-only: sysfs, cgroups, the caller's own proc.

Their files ask uid 0 for no capability: cgroup.kill ends the processes of others, core_pattern
names a program that the host starts. Here they are opened for writing, and nothing is written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import needs_root, require

import sandboxlib
from sandboxlib import Limits, Mount, Policy, Sandbox, bubblewrap, chroot, user_namespace
from sandboxlib._cgroups import cgroups, hierarchies

PYTHON = os.path.realpath(sys.executable)
OPEN = """
import os, sys
for path in sys.argv[1:]:
    try:
        os.close(os.open(path, os.O_WRONLY))
    except OSError as error:
        print(error.errno)
    else:
        print("writable")
"""
pytestmark = needs_root


def by_start(box: Sandbox, argv: list[str]) -> bytes:
    return box.start(argv, cwd="/").communicate()[0]


WAYS: dict[str, Callable[[Sandbox, list[str]], Any]] = {
    "slot": lambda box, argv: [box.run(argv, cwd="/").out for _ in range(2)][1],
    "fresh": lambda box, argv: box.run(argv, cwd="/", fresh=True).out,
    "map": lambda box, argv: next(iter(box.map([argv], cwd="/"))).out,
    "start": by_start,
    "chroot": lambda box, argv: chroot.run_in(box, argv, cwd="/").out,
    "bubblewrap": lambda box, argv: bubblewrap.run_in(box, argv, cwd="/").out,
    "user_namespace": lambda box, argv: user_namespace.run_in(box, argv, cwd="/").out,
}


def look(box: Sandbox, paths: list[str], way: str = "fresh") -> list[str]:
    argv = [PYTHON, "-I", "-S", "-c", OPEN, *paths]
    return [str(word) for word in WAYS[way](box, argv).decode().split()]


def of_cgroups() -> list[str]:
    found = set(hierarchies.mount_points().values())
    require(found, "no cgroups are mounted")
    require(os.path.exists("/sys/power/state"), "this sysfs has no /sys/power")
    return [f"{point}/cgroup.procs" for point in sorted(found)]


@pytest.mark.parametrize("way", WAYS)
def test_the_root_of_the_host_shows_them_read_only(way: str) -> None:
    require(way != "bubblewrap" or not bubblewrap.why_not(), "bwrap does not work here")
    paths = [*of_cgroups(), "/sys/power/state", "/proc/sys/kernel/core_pattern"]
    for words in (
        {},
        {"policy": Policy(capabilities="none")},
        {"filesystem_writable_paths": ["/sys", "/tmp"]},
    ):
        with open_box("/", **words) as box:  # type: ignore[arg-type]
            assert set(look(box, paths, way)) == {"30"}, words  # EROFS


@pytest.mark.parametrize("way", ["fresh", "bubblewrap"])
def test_the_caller_s_proc_is_covered_as_well(way: str) -> None:
    require(way != "bubblewrap" or not bubblewrap.why_not(), "bwrap does not work here")
    paths = ["/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches"]
    box = open_box("/", processes="undefined")
    assert look(box, paths, way) == ["30", "30"]
    assert look(box, ["/proc/self/comm"], way) == ["writable"]


@pytest.mark.parametrize("recursive", [True, False])
def test_what_is_bound_is_sealed_too(recursive: bool) -> None:
    of_cgroups()
    for source, path in (
        ("/sys", "power/state"),
        ("/sys/power", "state"),
        ("/proc", "sys/kernel/core_pattern"),
        ("/proc/sys", "kernel/core_pattern"),
        ("/", "sys/power/state"),
        ("/", "proc/sys/kernel/core_pattern"),
    ):
        mounts = [Mount.tmpfs("/tmp"), Mount.bind(source, "/tmp/x", recursive=recursive)]
        seen = look(open_box("/", extra_mounts=mounts), [f"/tmp/x/{path}"])
        assert seen == ["30"] or (not recursive and source == "/" and seen == ["2"]), source


def test_all_capabilities_leave_them_as_they_are() -> None:
    box = open_box("/", policy=Policy(capabilities="all"))
    assert set(look(box, [*of_cgroups(), "/sys/power/state"])) == {"writable"}


PARTS = """
import os
for name in os.listdir("/proc"):
    if not name.isdigit():
        flags = os.statvfs("/proc/" + name).f_flag
        print(name, "read-only" if flags & os.ST_RDONLY else "writable")
print("itself", "read-only" if os.statvfs("/proc").f_flag & os.ST_RDONLY else "writable")
"""


@pytest.mark.parametrize("way", ["slot", "fresh", "map", "chroot"])
def test_parts_of_a_new_proc_that_command_the_kernel_are_read_only(way: str) -> None:
    """Also where one that another proc lacked, or had empty, was asked for just before."""
    parts = "sys sysrq-trigger irq bus fs acpi asound scsi dynamic_debug latency_stats".split()
    there = {
        name
        for name in parts
        if os.path.isfile(f"/proc/{name}")
        or (os.path.isdir(f"/proc/{name}") and os.listdir(f"/proc/{name}"))
    }
    with open_box("/") as box:
        out = WAYS[way](box, [PYTHON, "-I", "-S", "-c", PARTS]).decode()
    found = dict(line.split() for line in out.splitlines())
    assert there == {name for name, flags in found.items() if flags == "read-only"}
    assert found["itself"] == "writable"


def test_other_files_stay_writable(tmp_path: Any) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    box = open_box("/", extra_mounts=[Mount.bind(tmp_path, "/mnt")])
    assert look(box, [str(file), "/mnt/file", "/dev/null"]) == ["writable"] * 3


# ---- a cgroup namespace that is rooted in the run's own cgroup --------------------------------


@pytest.mark.parametrize("init", [True, False])
@pytest.mark.parametrize("fresh", [False, True], ids=["slot", "fresh"])
def test_a_run_with_a_cgroup_sees_no_other(fresh: bool, init: bool) -> None:
    require("hold" in cgroups.controllers(), "no cgroups")
    argv = ["cat", "/proc/self/cgroup"]
    with open_box("/", limits=Limits(cgroup=True), init=init) as box:
        for _ in range(2):
            result = box.run(argv, cwd="/", fresh=fresh)
            lines = result.out.decode().splitlines()
            assert lines
            assert all(line.endswith(":/") for line in lines), lines
    assert sandboxlib.run_sandbox("/", argv).exit == 0  # and one without needs none
