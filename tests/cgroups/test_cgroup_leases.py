# SPDX-License-Identifier: Apache-2.0
"""One lease of a cgroup leaves nothing to the next, and no other process gets into one.

A command that reaches cgroupfs (seccomp='none' as root) can change the cgroup that it is in: here
the test changes it, as such a command would.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.machine import needs_root, require
from lib.waiting import wait_until

from sandboxlib import Limits, Sandbox, UnsupportedError
from sandboxlib._cgroups import cgroups, hierarchies
from sandboxlib._cgroups.cgroups import Cgroup, CgroupLimits, Cgroups
from sandboxlib._runs import slots

MIB = 1 << 20
pytestmark = needs_root


@pytest.fixture
def pools() -> Iterator[list[Cgroups]]:
    made: list[Cgroups] = []
    yield made
    for pool in made:
        pool.end()


def make(pools: list[Cgroups], **words: Any) -> Cgroups:
    found = cgroups.controllers()
    for name in words:
        kind = "cpu" if name.startswith("cpu") else name
        require(kind in found or kind == "directory", f"no cgroup can have {name}: {found}")
    pools.append(Cgroups(CgroupLimits(**words)))
    return pools[-1]


def file_of(cgroup: Cgroup, *names: str) -> Path:
    """The first of these files that it has."""
    for path in cgroup.paths:
        for name in names:
            if os.path.exists(f"{path}/{name}"):
                return Path(path, name)
    raise AssertionError(f"none of {names} is in {cgroup.paths}")


# ---- a recycled cgroup is looked at before every lease ----------------------------------------

CHANGES = {
    "memory": ({"memory": 64 * MIB}, ("memory.max", "memory.limit_in_bytes"), str(1 << 40)),
    "pids": ({"pids": 9}, ("pids.max",), "max"),
    "cpu": ({"cpu_quota": 0.5}, ("cpu.cfs_quota_us", "cpu.max"), "100000"),
    "cpu weight": ({"cpu_weight": 50}, ("cpu.shares", "cpu.weight"), "2"),
    "swappiness": ({"memory": 64 * MIB}, ("memory.swappiness", "memory.swap.high"), "1"),
    "soft limit": ({"memory": 64 * MIB}, ("memory.soft_limit_in_bytes", "memory.high"), "0"),
    "oom": ({"memory": 64 * MIB}, ("memory.oom_control", "memory.oom.group"), "1"),
    "frozen": ({"hold": True}, ("cgroup.freeze",), "1"),
    "depth": ({"hold": True}, ("cgroup.max.descendants",), "0"),
    "threaded": ({"hold": True}, ("cgroup.type",), "threaded"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_is_not_leased_again(pools: list[Cgroups], name: str) -> None:
    words, files, value = CHANGES[name]
    pool = make(pools, **words)
    cgroup = pool.take()
    cgroup.begin()
    file = file_of(cgroup, *files)
    before = file.read_text()
    cgroup.release()
    again = pool.take()
    assert again is cgroup  # nobody changed it
    again.begin(1)  # as a fresh run does, which has one process more
    again.release()
    again = pool.take()
    assert again is cgroup
    again.begin()
    file.write_text(value)
    again.release()
    new = pool.take()
    assert new is not cgroup
    assert file_of(new, *files).read_text() == before
    assert not file.exists()


def test_the_freezer_of_v1_is_thawed_or_gone(
    pools: list[Cgroups], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = hierarchies.own_directories()
    require("freezer" in real, "no freezer of v1")
    without = {name: path for name, path in real.items() if name}
    monkeypatch.setattr(hierarchies, "own_directories", lambda: without)
    pool = make(pools, hold=True)
    cgroup = pool.take()
    state = file_of(cgroup, "freezer.state")
    cgroup.release()
    state.write_text("FROZEN")
    new = pool.take()
    assert new is not cgroup
    assert file_of(new, "freezer.state").read_text() == "THAWED\n"


def test_a_cgroup_below_and_other_owners_are_seen(pools: list[Cgroups]) -> None:
    pool = make(pools, hold=True)
    for change in ("below", "mode", "owner", "threads"):
        cgroup = pool.take()
        path = Path(cgroup.paths[0])
        cgroup.release()
        if change == "below":
            (path / "below").mkdir()
        elif change == "mode":
            path.chmod(0o777)
        elif change == "owner":
            os.chown(path / "cgroup.procs", 65534, -1)
        else:
            names = ("cgroup.threads", "tasks")
            next(path / name for name in names if (path / name).exists()).chmod(0o666)
        new = pool.take()
        assert new is not cgroup, change
        assert not path.exists()
        new.release()


@pytest.mark.parametrize("fresh", [False, True], ids=["slot", "fresh"])
def test_the_next_run_has_its_limits(shared_rootfs: Path, fresh: bool) -> None:
    require("pids" in cgroups.controllers(), "no cgroup can have pids here")
    many = "for i in 1 2 3 4 5 6 7 8 9; do sleep 1 & done; wait"
    with Sandbox(shared_rootfs, limits=Limits(pids=5)) as box:
        assert box.run(["sh", "-c", many], fresh=fresh).limits_hit == ("pids",)
        waiting = idle_cgroups(box, fresh)
        assert waiting
        for cgroup in waiting:
            file_of(cgroup, "pids.max").write_text("max")
        assert box.run(["sh", "-c", many], fresh=fresh).limits_hit == ("pids",)
        assert not any(cgroup.paths for cgroup in waiting)  # removed


def idle_cgroups(box: Sandbox, fresh: bool) -> list[Cgroup]:
    """The cgroups that wait for the next fresh run, or those of the slots that do."""
    (plan,) = box._plans.values()
    if fresh:
        return list(plan.cgroups._idle)
    return [slot.cgroup for slot in plan.slots._idle]


# ---- nobody else gets in ----------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o22, 0o777])
def test_others_cannot_join_whatever_the_umask_is(pools: list[Cgroups], umask: int) -> None:
    found = cgroups.controllers()
    words = {"memory": 64 * MIB, "pids": 9, "hold": True}
    pool = make(pools, **{name: value for name, value in words.items() if name in found})
    before = os.umask(umask)
    try:
        cgroup = pool.take()
    finally:
        os.umask(before)
    for path in cgroup.paths:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o755
        for name in os.listdir(path):
            if name != "cgroup.event_control":  # v1 has it as the kernel makes it; none joins by it
                assert os.stat(f"{path}/{name}").st_mode & 0o022 == 0, name


# ---- Limits(cgroup=) --------------------------------------------------------------------------


@pytest.fixture
def delegated() -> Iterator[Path]:
    own = hierarchies.own_directories().get("")
    require(own, "no cgroup of v2")
    path = Path(f"{own}/test-leases-{os.getpid()}")
    path.mkdir()
    yield path
    slots.close_all()
    cgroups.end_all()
    assert wait_until(lambda: cgroups._remove(str(path)))


def test_a_link_is_not_followed(delegated: Path, tmp_path: Path, shared_rootfs: Path) -> None:
    (tmp_path / "link").symlink_to(delegated)
    (tmp_path / "above").symlink_to(delegated.parent)
    for path in (tmp_path / "link", tmp_path / "above" / delegated.name):
        with pytest.raises(UnsupportedError, match="is a symbolic link"):
            Sandbox(shared_rootfs, limits=Limits(cgroup=path)).run(["true"])
    assert [p for p in delegated.iterdir() if p.is_dir()] == []
    with Sandbox(shared_rootfs, limits=Limits(cgroup=delegated)) as box:
        assert box.run(["true"]).exit == 0


def test_a_directory_that_only_looks_like_one_is_not_written(
    tmp_path: Path, shared_rootfs: Path
) -> None:
    for name in ("controllers", "subtree_control", "procs", "kill"):
        (tmp_path / f"cgroup.{name}").write_text("memory pids\n")
    (tmp_path / "memory.max").write_text("max\n")
    for limits in (Limits(cgroup=tmp_path), Limits(cgroup=tmp_path, pids=9)):
        with pytest.raises(UnsupportedError, match="file system of cgroups"):
            Sandbox(shared_rootfs, limits=limits).run(["true"])
    assert len(list(tmp_path.iterdir())) == 5
    assert (tmp_path / "cgroup.subtree_control").read_text() == "memory pids\n"


def test_a_link_that_comes_later_is_not_followed(
    delegated: Path, tmp_path: Path, pools: list[Cgroups]
) -> None:
    """Between two runs: the parent was looked at for the first."""
    pool = make(pools, hold=True, directory=str(delegated))
    first = pool.take()
    assert pool._parts is not None
    (part,) = pool._parts
    (tmp_path / "link").symlink_to(delegated)
    part.parents = [(str(tmp_path / "link"), "v2")]
    with pytest.raises(UnsupportedError, match="is a symbolic link"):
        pool.take()
    assert [p.name for p in delegated.iterdir() if p.is_dir()] == [os.path.basename(first.paths[0])]


# ---- kills without cgroup.kill ----------------------------------------------------------------


def test_a_number_that_is_used_again_is_not_hit(
    pools: list[Cgroups], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list is read, a process of it ends, and somebody else gets its number."""
    pool = make(pools, hold=True)
    cgroup = pool.take()
    inside = subprocess.Popen(["sleep", "1000"])
    bystander = subprocess.Popen(["sleep", "1000"])
    monkeypatch.setattr(os, "kill", lambda *words: pytest.fail(f"by number: {words}"))
    try:
        Path(cgroup.paths[0], "cgroup.procs").write_text(str(inside.pid))
        lists = iter([[bystander.pid, inside.pid]])
        real = cgroup.pids
        monkeypatch.setattr(cgroup, "pids", lambda: next(lists, None) or real())
        cgroup._kill_each()
        cgroup.resume()
        assert inside.wait(10) == -signal.SIGKILL
        assert bystander.poll() is None
    finally:
        monkeypatch.undo()
        for process in (inside, bystander):
            process.kill()
            process.wait()
