# SPDX-License-Identifier: Apache-2.0
"""Names with every byte that a name may have, links without end, many missing mount points: a run
does what was asked, or there is one SandboxError.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lib.boxes import open_box
from lib.machine import needs_root

import sandboxlib
from sandboxlib import (
    Limits,
    Mount,
    Policy,
    Sandbox,
    SandboxError,
    SetupError,
    SpecError,
    User,
    run_sandbox,
)
from sandboxlib._host import machine

pytestmark = needs_root

#: Characters that str.split(), str.splitlines() or the escapes of mountinfo would mistake.
NAMES = (
    *("sp ace", "tab\t", "new\nline", "back\\slash", "\\040x", "\\134040", "cr\rx", "vt\x0bx"),
    *(
        "ff\x0cx",
        "fs\x1cx",
        "nel\x85x",
        "ls\u2028x",
        "nbsp\xa0x",
        "hash#x",
        "-",
        " - ",
        "bad\udcff",
    ),
    *("quote'\"", "deleted (deleted)", "*", "$(x)", "\x01"),
)

MOUNTED = """
import os, subprocess, sys
from sandboxlib import Sandbox
from sandboxlib._host import machine as _machine
root, *names = [os.fsencode(word) for word in sys.argv[1:]]
for name in names:
    place = root + b"/" + name
    os.mkdir(place)
    subprocess.run(["mount", "-t", "tmpfs", "x#y", place], check=True)
    assert os.fsdecode(place) in [mount.point for mount in _machine.mounts()], place
    for writable, expected in (("all", 0), ("none", 1)):
        with Sandbox(os.fsdecode(root), filesystem_writable_paths=writable) as box:
            for fresh in (True, False, False):
                found = box.run(["touch", b"/" + name + b"/x"], fresh=fresh)
                assert found.exit == expected, (name, writable, found)
print("right")
"""


@pytest.mark.slow
def test_what_the_host_mounted_below_the_root_may_have_any_name(rootfs: Path) -> None:
    argv = ["unshare", "-m", sys.executable, "-c", MOUNTED, rootfs, *map(os.fsencode, NAMES)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout == "right\n", done.stderr


@pytest.mark.parametrize("fresh", [True, False])
def test_mounts_may_have_any_name(rootfs: Path, tmp_path: Path, fresh: bool) -> None:
    before = sorted(os.listdir(rootfs))
    for name in NAMES:
        source = tmp_path / f"src{name}"
        source.mkdir()
        (source / "f").write_text("F\n")
        mounts = [Mount.bind(source, f"/x{name}"), Mount.tmpfs(f"/y{name}")]
        script = 'cat "$1/f"; touch "$2/new"'
        with open_box(rootfs, extra_mounts=mounts) as box:
            argv = ["sh", "-c", script, "sh", f"/x{name}", f"/y{name}"]
            for _ in range(2):
                assert box.run(argv, fresh=fresh) == (0, b"F\n", b""), name
    assert sorted(os.listdir(rootfs)) == before


@pytest.mark.parametrize("name", NAMES)
def test_mountinfo_is_read_as_the_kernel_writes_it(name: str, tmp_path: Path) -> None:
    """Of the kernel's own: its escapes of a path that this process has mounted nowhere."""
    escaped = os.fsencode(f"/a{name}")
    for character in b"\\ \t\n":  # the backslash first: it stands in all the others
        escaped = escaped.replace(bytes([character]), b"\\%03o" % character)
    assert machine._unescape(escaped) == f"/a{name}"


@pytest.mark.parametrize("count", [41, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fresh", [True, False])
def test_a_chain_of_links_is_a_setup_error(rootfs: Path, count: int, fresh: bool) -> None:
    for i in range(count):
        os.symlink(f"l{i + 1}", rootfs / f"l{i}")
    os.symlink("l0", rootfs / "mnt")
    here = os.fspath(rootfs)
    for words in (
        {"extra_mounts": [Mount.tmpfs("/mnt")]},
        {"extra_mounts": [Mount.bind(f"{here}/mnt", "/tmp")]},
        {"filesystem_writable_paths": ["/mnt"]},
    ):
        with pytest.raises(SetupError) as caught, open_box(rootfs, **words) as box:
            box.run(["true"], fresh=fresh)
        assert "symbolic links" in str(caught.value)
    with pytest.raises(SetupError):
        run_sandbox(f"{here}/mnt", ["true"])


def test_as_many_links_as_the_kernel_follows_are_followed(rootfs: Path, tmp_path: Path) -> None:
    for i in range(39):
        os.symlink(f"l{i + 1}", rootfs / f"l{i}")
    (rootfs / "l39").mkdir()
    for fresh in (True, False):
        with open_box(rootfs, extra_mounts=[Mount.tmpfs("/l0")]) as box:
            assert box.run(["touch", "/l39/x"], fresh=fresh).exit == 0
    assert os.listdir(rootfs / "l39") == []
    assert machine.real_path(f"{rootfs}/l0/../l38/.") == f"{rootfs.resolve()}/l39"


@pytest.fixture
def many_descriptors() -> object:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def seconds(root: Path, source: Path, count: int) -> float:
    mounts = [Mount.bind(source, f"/m/{i}") for i in range(count)]
    start = time.monotonic()
    assert run_sandbox(root, ["ls", f"/m/{count - 1}"], extra_mounts=mounts).exit == 0
    return time.monotonic() - start


@pytest.mark.slow
def test_missing_mount_points_are_made_in_one_pass(
    rootfs: Path, tmp_path: Path, many_descriptors: int
) -> None:
    if many_descriptors < 4096:
        pytest.skip("the hard limit on open files is below 4,096")
    (tmp_path / "f").touch()
    few, many = seconds(rootfs, tmp_path / "f", 150), seconds(rootfs, tmp_path / "f", 1500)
    assert many < 40 * few  # a hundred times, where each takes a start of its own
    assert not (rootfs / "m").exists()


def test_too_many_missing_mount_points_are_one_setup_error(rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with pytest.raises(SetupError, match="ulimit -n"):
            seconds(rootfs, tmp_path / "f", 1500)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not (rootfs / "m").exists()


def test_an_empty_path_names_nothing(rootfs: Path) -> None:
    for words in (
        {"filesystem_writable_paths": [""]},
        {"filesystem_writable_paths": ["/tmp", ""]},
        {"extra_mounts": [("", "/tmp", None, "bind")]},
        {"extra_mounts": [("/etc", "", None, "bind")]},
        {"extra_mounts": [("x", "", "tmpfs")]},
    ):
        with pytest.raises(SpecError, match="empty"):
            open_box(rootfs, **words)  # type: ignore[arg-type]
    for make in (
        lambda: Mount.bind("", "/tmp"),
        lambda: Mount.bind("/etc", ""),
        lambda: Mount.tmpfs(""),
        lambda: Sandbox(""),
        lambda: run_sandbox("", ["true"]),
        lambda: run_sandbox(rootfs, ["true"], cwd=""),
        lambda: run_sandbox(["true"], filesystem_root=""),
    ):
        with pytest.raises(SpecError, match="empty"):
            make()
    assert issubclass(SpecError, SandboxError)


# ---- whatever is asked -------------------------------------------------------------------------

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

COUNT = int(os.environ.get("SANDBOXLIB_EXAMPLES", "150"))
_odd = st.sampled_from(["", "/", ".", "..", "/..", "\0", "\udcff", "a\nb", "x\x0cy", "\u2028", "é"])
_names = st.one_of(_odd, st.text(max_size=6), st.sampled_from(["x" * 300, "/" * 5000, "/a" * 2100]))
_paths = st.one_of(
    _names,
    st.sampled_from(["/tmp", "/etc/x", "/dev", "/dev/shm", "/proc", "/link", "/loop/x", "/bin/sh"]),
    st.builds("/{}".format, _names),
    st.builds("/{}/{}".format, _names, _names),
)
_values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), _names, st.binary(max_size=3),
    st.lists(_names, max_size=2), st.just({}), st.just(object()),
)  # fmt: skip
_mounts = st.one_of(
    st.tuples(_paths, _paths, st.sampled_from([None, "", "bind", "tmpfs", "proc", "dev", "x"])),
    st.tuples(_paths, _paths, _values, _values),
    st.builds(lambda target, size: ("x", target, "tmpfs", f"size={size}"), _paths, _values),
    _values,
)
OPTIONS = {
    "network": st.sampled_from(["isolated", "undefined", ""]),
    "mounts": st.sampled_from(["isolated", "undefined"]),
    "processes": st.sampled_from(["isolated", "undefined"]),
    "hostname": _values,
    "extra_mounts": st.lists(_mounts, max_size=3),
    "filesystem_writable_paths": st.one_of(st.lists(_paths, max_size=3), _values),
    "devices": st.one_of(
        st.sampled_from(["root", "minimal"]), st.lists(_paths, max_size=2), _values
    ),
    "capabilities": st.one_of(st.sampled_from(["all", "none"]), _values),
    "user": st.one_of(st.sampled_from(["root", "caller", 1000]), _values),
    "umask": _values,
    "init": st.booleans(),
    "cwd": st.one_of(_paths, _values),
    "extra_env": st.one_of(st.dictionaries(_names, _names, max_size=2), _values),
    "env": st.one_of(st.dictionaries(_names, _names, max_size=2), st.none()),
    "stdin": st.one_of(st.binary(max_size=9), st.none(), _names),
    "stdout": st.sampled_from([None, -1]),
    "max_output": _values,
    "grace": _values,
    "cpu_time": _values,
    "deterministic": st.booleans(),
}
_words = st.fixed_dictionaries({}, optional=OPTIONS)
# No program of the root has such a name, so no command runs.
_programs = st.builds("\u2028{}".format, _names)
_commands = st.one_of(st.just(["true"]), st.lists(_programs, max_size=3), _values, _paths)


def _is_told(call: Callable[[], object]) -> None:
    """It does what was asked, or raises a SandboxError."""
    with contextlib.suppress(SandboxError, DeprecationWarning):
        call()


@pytest.fixture(scope="module")
def odd_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lib.roots import make_rootfs

    root = make_rootfs(tmp_path_factory.mktemp("odd") / "root")
    (root / "link").symlink_to("../../../../etc")
    (root / "loop").symlink_to("loop")
    return root


@pytest.mark.slow
@settings(
    max_examples=COUNT,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(words=_words, command=_commands, fresh=st.booleans())
def test_nothing_but_a_sandbox_error_leaves_a_run(
    odd_root: Path, words: dict[str, object], command: object, fresh: bool
) -> None:
    _is_told(lambda: run_sandbox(odd_root, command, timeout=20, **words))  # type: ignore[arg-type]
    place = ("cwd extra_env env stdin stdout max_output grace cpu_time").split()
    of_run = {name: words[name] for name in place if name in words}
    of_box = {name: value for name, value in words.items() if name not in place}
    of_box.pop("capabilities", None)

    def call() -> None:
        with open_box(odd_root, **of_box) as box:  # type: ignore[arg-type]
            for _ in range(2):
                box.run(command, timeout=20, fresh=fresh, **of_run)  # type: ignore[arg-type]

    _is_told(call)


@pytest.mark.slow
@settings(
    max_examples=COUNT * 4,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(root=st.one_of(_paths, _values), mounts=st.lists(_mounts, max_size=3), words=_values)
def test_nothing_but_a_sandbox_error_leaves_what_is_made(
    root: object, mounts: list[object], words: object
) -> None:
    _is_told(lambda: open_box(root, extra_mounts=mounts))  # type: ignore[arg-type]
    _is_told(lambda: open_box("/", extra_mounts=words))  # type: ignore[arg-type]
    _is_told(lambda: open_box("/", filesystem_writable_paths=words))  # type: ignore[arg-type]
    _is_told(lambda: open_box("/", devices=words))  # type: ignore[arg-type]
    _is_told(lambda: open_box("/", user=words))  # type: ignore[arg-type]
    _is_told(lambda: Limits(cgroup=words, cpuset=words, memory=words))  # type: ignore[arg-type]
    _is_told(lambda: Limits(cpus=words, cpu_time=words))  # type: ignore[arg-type]
    _is_told(lambda: User(words, words, words))  # type: ignore[arg-type]
    _is_told(lambda: Policy(capabilities=words))  # type: ignore[arg-type]
    _is_told(lambda: Policy(seccomp=words))  # type: ignore[arg-type]
    _is_told(lambda: sandboxlib.validate_extra_mounts(mounts))  # type: ignore[arg-type]
    for make in (Mount.bind, Mount.tmpfs):
        _is_told(lambda make=make: make(words, root))  # type: ignore[misc]
    _is_told(lambda: Mount.from_tuple(words))  # type: ignore[arg-type]
