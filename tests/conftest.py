# SPDX-License-Identifier: Apache-2.0
"""What the tests share: a small root directory, and the rule for what a machine lacks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandboxlib import Result, _slots

MUST_WORK = os.environ.get("SANDBOXLIB_MUST_WORK") == "1"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the native executor takes root")


IS_SANITIZED = "SANDBOXLIB_SANITIZED" in os.environ
#: They ask of the core what the others ask of it, and are about something else.
NOT_OF_THE_CORE = (
    "test_bench test_command_line test_demo test_earlier_suite test_executors test_images "
    "test_ladder test_linux_user_chroot test_refusals test_tools test_tools_safety test_policy "
    "test_image_costs test_image_targets test_seccomp test_seccomp_profiles test_real_software "
    "test_nesting test_messages"
).split()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the tests marked slow as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        # The example of the README runs real sandboxes as well.
        if item.nodeid.startswith("README.md"):
            item.add_marker(needs_root)
        if IS_SANITIZED and _is_not_of_the_core(item):
            item.add_marker(pytest.mark.skip(reason="it is not about what the sanitizer sees"))
    is_named = config.option.markexpr or any("::" in word for word in config.args)
    if not config.getoption("--all") and not is_named:
        left_out = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def _is_not_of_the_core(item: pytest.Item) -> bool:
    drives_a_program = "linux_user_chroot" in item.nodeid or "bubblewrap" in item.nodeid
    by_map = item.nodeid.endswith("map]") and item.path.stem != "test_map"
    return item.path.stem in NOT_OF_THE_CORE or drives_a_program or by_map


#: For hosts: with {"map": True} in `mode`, Sandbox.run is a map of one command.
BY_MAP = """
def by_map(box, command, cwd=None, extra_env=None, **words):
    import threading
    from sandboxlib import _process
    if threading.get_ident() in _process.stops:  # a thread of a map, which runs what has no slot
        return run_itself(box, command, cwd, extra_env, **words)
    call = {"command": command, "cwd": cwd, "extra_env": extra_env, **words}
    (found,) = box.map([call], jobs=2, on_failure="continue")
    if isinstance(found, BaseException):
        raise found
    return found
run_itself = Sandbox.run
if mode.pop("map", False):
    from sandboxlib import _map  # not first of all in a signal handler
    Sandbox.run = by_map
"""


not_sanitized = pytest.mark.skipif(
    IS_SANITIZED, reason="an ordinary user cannot read the Python that the sanitizer is loaded into"
)


def require(present: object, reason: str) -> None:
    """Skips the test where something is missing; SANDBOXLIB_MUST_WORK=1 makes that a failure."""
    if present:
        return
    if MUST_WORK:
        pytest.fail(f"SANDBOXLIB_MUST_WORK=1, but {reason}")
    pytest.skip(reason)


def processes(mark: str) -> list[str]:
    """The pids of all processes that have this word in their command line."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if mark.encode() in words:
            found.append(pid)
    return found


def wait_until(true: Callable[[], object], seconds: float = 10.0) -> bool:
    """Whether it becomes true in time."""
    end = time.monotonic() + seconds
    while not true():  # a last look, however late it is
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def late(run: Callable[[float], Result], said: Callable[[Result], object]) -> Result:
    """A run that its timeout ends, and that had said something by then: a busy machine is given
    longer.
    """
    for timeout in (0.5, 5.0, 40.0):
        result = run(timeout)
        assert result.timed_out
        if said(result):
            break
    return result


def python() -> list[str]:
    """The words that start this Python with sandboxlib in an environment that is not the tests'.

    Over a sanitizer build its library has to come first, in Python alone: all that is started on
    the way there, and what runs in a sandbox, does without.
    """
    names = ("LD_PRELOAD", "ASAN_OPTIONS", "SANDBOXLIB_SANITIZED")
    if not IS_SANITIZED:
        return [sys.executable]
    settings = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    return ["/usr/bin/env", *settings, sys.executable]


def find_busybox() -> str | None:
    """A static busybox: it runs in an empty root."""
    for path in ("/bin/busybox", "/usr/bin/busybox"):
        if os.path.exists(path) and b"dynamically" not in _file_type(path):
            return path
    return None


def _file_type(path: str) -> bytes:
    found = subprocess.run(["readelf", "-l", path], capture_output=True, check=False).stdout
    return b"dynamically" if b"INTERP" in found else b"static"


def make_rootfs(path: Path) -> Path:
    """A root with busybox under every name that it knows, /proc, /dev, /tmp and /etc."""
    busybox = find_busybox()
    require(busybox, "there is no static busybox (apt: busybox-static)")
    assert busybox is not None
    for name in ("bin", "dev", "etc", "proc", "tmp"):
        (path / name).mkdir(parents=True)
    path.chmod(0o755)
    (path / "tmp").chmod(0o1777)
    shutil.copy(busybox, path / "bin" / "busybox")
    names = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout
    for name in names.split():
        if name != "busybox":
            (path / "bin" / name).symlink_to("busybox")
    return path


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
    source = Path(__file__).with_name("linux-user-chroot.c")
    # In a directory of /tmp, where others can write, no program is trusted.
    require(os.access("/var/lib", os.W_OK), "uid 0 of a user namespace has no place for a tool")
    with tempfile.TemporaryDirectory(prefix="sandboxlib-tool.", dir="/var/lib") as place:
        subprocess.run(["cc", "-O1", str(source), "-o", f"{place}/linux-user-chroot"], check=True)
        yield f"{place}:{found}"


@pytest.fixture(autouse=True)
def _no_slot_is_left_to_the_next_test() -> Iterator[None]:
    """A traceback may hold a Sandbox, and with it descriptors, until some later moment."""
    yield
    _slots.close_all()


@pytest.fixture
def host_mounts_unchanged() -> Iterator[None]:
    """Nothing is mounted in the caller's namespace afterwards that was not before."""
    before = Path("/proc/self/mountinfo").read_text()
    yield
    assert Path("/proc/self/mountinfo").read_text() == before
