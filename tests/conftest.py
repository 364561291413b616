# SPDX-License-Identifier: Apache-2.0
"""The choice of the tests that run, and the fixtures of all tests. lib/ has their other tools."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.machine import IS_SANITIZED, LIB, host_mounts, needs_root, require
from lib.names import check_name
from lib.roots import make_rootfs
from lib.sample import beyond_the_sample

from sandboxlib._runs import slots

#: These test something else than the core, and call it only as the others do.
ROOMS_BEYOND_THE_CORE = {
    *("unit", "executors", "images", "cli", "examples", "storms"),
    *("store", "digest", "changes"),
    *("remote", "actions", "worker", "buildbox", "timeline"),  # and they bring gRPC, in C++
}
NOT_OF_THE_CORE = {"test_nesting", "test_messages"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the tests marked slow as well")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # If a process of pytest-xdist 3.8 dies (our own timeout may kill it) and a new one takes its
    # place, the last tests may never be given to a process, and the run hangs. So a death ends it.
    if getattr(config.option, "maxworkerrestart", "") is None:
        config.option.maxworkerrestart = "0"
    # A shell makes what it starts in the background ignore SIGINT, and hosts would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--all"):
        os.environ["SANDBOXLIB_DEEP"] = "1"  # many() reads it while the modules are imported


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if config.option.dist == "load":
        from lib.beside import Scheduling

        return Scheduling(config, log)
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        check_name(item)
        # The example of the README runs real sandboxes too.
        if item.nodeid.startswith("README.md"):
            item.add_marker(needs_root)
        if IS_SANITIZED and _is_not_of_the_core(item):
            item.add_marker(pytest.mark.skip(reason="it tests no code that the sanitizer checks"))
    for item in beyond_the_sample(items):
        item.add_marker(pytest.mark.slow)
    is_named = config.option.markexpr or any("::" in word for word in config.args)
    if not config.getoption("--all") and not is_named:
        left_out = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_collection_finish() -> None:
    # Many tests collect garbage to find leaks. Freeze the thousands of test items, because
    # searching them takes 0.1 s each time.
    import hypothesis  # noqa: F401  its import searches for referrers, and finds no frozen ones

    gc.collect()
    gc.freeze()


def _is_not_of_the_core(item: pytest.Item) -> bool:
    drives_a_program = "linux_user_chroot" in item.nodeid or "bubblewrap" in item.nodeid
    by_map = item.nodeid.endswith("map]") and item.path.stem != "test_map"
    room, name = item.path.parent.name, item.path.stem
    is_beyond = room in ROOMS_BEYOND_THE_CORE or name in NOT_OF_THE_CORE
    return is_beyond or drives_a_program or by_map


@pytest.fixture(scope="session")
def shared_rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One root for all the tests that write nothing to it."""
    return make_rootfs(tmp_path_factory.mktemp("shared") / "root")


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """A new root, which the test may write to."""
    return make_rootfs(tmp_path / "root")


@pytest.fixture(scope="session")
def tool_path() -> Iterator[str]:
    """A PATH with linux-user-chroot in it if the caller is root, who needs no set-user-ID bit."""
    path = os.environ["PATH"]
    if os.geteuid() != 0 or shutil.which("linux-user-chroot"):
        yield path
        return
    require(shutil.which("cc"), "there is no C compiler")
    source = LIB / "linux-user-chroot.c"
    # Not in /tmp: sandboxlib trusts no program in a directory that others can write to.
    require(os.access("/var/lib", os.W_OK), "uid 0 of a user namespace cannot install a tool")
    with tempfile.TemporaryDirectory(prefix="sandboxlib-tool.", dir="/var/lib") as directory:
        program = f"{directory}/linux-user-chroot"
        subprocess.run(["cc", "-O1", str(source), "-o", program], check=True)
        yield f"{directory}:{path}"


@pytest.fixture(scope="session", autouse=True)
def _the_default_store(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The store that is nobody's: tests leave the caller's own alone, also those of other processes
    that they start.
    """
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A BuildGrid with its database, one for all tests of a process of pytest's: a
    sandboxlib._cluster.cluster.Cluster. A test that stops a server starts it again.
    """
    from lib.cluster import new_cluster

    with new_cluster(tmp_path_factory.mktemp("cluster"), instances=("", "other/one")) as made:
        yield made


@pytest.fixture(autouse=True)
def _no_slot_is_left_to_the_next_test() -> Iterator[None]:
    """Close all slots after each test: a traceback may keep a Sandbox and its descriptors alive."""
    yield
    slots.close_all()


@pytest.fixture
def host_mounts_unchanged() -> Iterator[None]:
    """Check that the caller's mounts are the same before and after the test."""
    before = host_mounts()
    yield
    assert host_mounts() == before
