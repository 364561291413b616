# SPDX-License-Identifier: Apache-2.0
"""What all tests have: the choice of tests, and fixtures. Their other tools are in lib/."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.machine import IS_SANITIZED, LIB, needs_root, require
from lib.names import check_name
from lib.roots import make_rootfs
from lib.sample import beyond_the_sample

from sandboxlib._runs import slots

#: They ask of the core what the others ask of it, and are about something else.
ROOMS_BEYOND_THE_CORE = {"unit", "executors", "images", "cli", "examples", "storms"}
NOT_OF_THE_CORE = {"test_nesting", "test_messages"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the tests marked slow as well")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # Where a process of pytest-xdist 3.8 dies, as by our own timeout, and a new one takes its
    # place, the last tests may be given to nobody, without end: then its death is the end of all.
    if getattr(config.option, "maxworkerrestart", "") is None:
        config.option.maxworkerrestart = "0"
    if config.getoption("--all"):
        os.environ["SANDBOXLIB_DEEP"] = "1"  # for many(), which modules call as they are imported


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
        # The example of the README runs real sandboxes as well.
        if item.nodeid.startswith("README.md"):
            item.add_marker(needs_root)
        if IS_SANITIZED and _is_not_of_the_core(item):
            item.add_marker(pytest.mark.skip(reason="it is not about what the sanitizer sees"))
    for item in beyond_the_sample(items):
        item.add_marker(pytest.mark.slow)
    is_named = config.option.markexpr or any("::" in word for word in config.args)
    if not config.getoption("--all") and not is_named:
        left_out = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_collection_finish() -> None:
    # Many tests collect garbage to look for what is left. Thousands of tests are none, and looking
    # through them takes 0.1 s each time.
    import hypothesis  # noqa: F401  it looks for referrers, which it does not find frozen

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
    """One root for all tests that leave nothing in it."""
    return make_rootfs(tmp_path_factory.mktemp("shared") / "root")


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """A root of the test's own, to be written to."""
    return make_rootfs(tmp_path / "root")


@pytest.fixture(scope="session")
def tool_path() -> Iterator[str]:
    """A PATH with linux-user-chroot in it, where the caller is root: it needs no set-user-ID."""
    found = os.environ["PATH"]
    if os.geteuid() != 0 or shutil.which("linux-user-chroot"):
        yield found
        return
    require(shutil.which("cc"), "there is no C compiler")
    source = LIB / "linux-user-chroot.c"
    # In a directory of /tmp, where others can write, no program is trusted.
    require(os.access("/var/lib", os.W_OK), "uid 0 of a user namespace has no place for a tool")
    with tempfile.TemporaryDirectory(prefix="sandboxlib-tool.", dir="/var/lib") as place:
        subprocess.run(["cc", "-O1", str(source), "-o", f"{place}/linux-user-chroot"], check=True)
        yield f"{place}:{found}"


@pytest.fixture(autouse=True)
def _no_slot_is_left_to_the_next_test() -> Iterator[None]:
    """A traceback may hold a Sandbox, and with it descriptors, until some later moment."""
    yield
    slots.close_all()


@pytest.fixture
def host_mounts_unchanged() -> Iterator[None]:
    """Nothing is mounted in the caller's namespace afterwards that was not before."""
    before = Path("/proc/self/mountinfo").read_text()
    yield
    assert Path("/proc/self/mountinfo").read_text() == before
