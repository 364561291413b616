# SPDX-License-Identifier: Apache-2.0
"""The identity of a command: uid, gid, groups, umask; its caller keeps its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import needs_root, require
from lib.roots import make_rootfs

from sandboxlib import (
    Mount,
    Policy,
    Sandbox,
    SetupError,
    SpecError,
    SpecTypeError,
    UnsupportedError,
    User,
    chroot,
    user_namespace,
)
from sandboxlib._host import machine

WHO = ["sh", "-c", "grep -E '^(Uid|Gid|Groups):' /proc/self/status; umask"]


def who(box: Sandbox, fresh: bool, executor: Any = chroot) -> list[list[str]]:
    """Four uids, four gids, groups, umask."""
    result = executor.run_in(box, WHO, fresh=fresh)
    assert (result.exit, result.err) == (0, b""), result
    return [line.partition(":")[2].split() for line in _lines(result.out)]


def _lines(out: bytes) -> list[str]:
    return [line if ":" in line else f":{line}" for line in out.decode().splitlines()]


@pytest.fixture
def _many_ids() -> None:
    require(not machine.has_one_id(), "a user namespace has one id")


either_way = pytest.mark.parametrize("fresh", [False, True], ids=["slot", "fresh"])


@needs_root
@pytest.mark.usefixtures("_many_ids")
@either_way
@pytest.mark.parametrize(
    ("words", "uid", "gid", "groups"),
    [
        ({"user": 1000}, "1000", "1000", []),
        ({"user": User(1000, 7)}, "1000", "7", []),
        ({"user": User(1000, 7, [9, 8])}, "1000", "7", ["8", "9"]),
        ({"user": User(0, 0)}, "0", "0", []),
        ({"user": User(5, groups=range(100, 132))}, "5", "5", [str(n) for n in range(100, 132)]),
        ({"user": User((1 << 32) - 2, None, [(1 << 32) - 2])}, "4294967294", "4294967294", None),
    ],
    ids=str,
)
def test_ids_and_groups(
    shared_rootfs: Path, words: dict[str, Any], uid: str, gid: str, groups: Any, fresh: bool
) -> None:
    with open_box(shared_rootfs, umask=0o31, **words) as box:
        for _ in range(2):
            expected = [gid] if groups is None else groups
            assert who(box, fresh) == [[uid] * 4, [gid] * 4, expected, ["0031"]]


HOST = """
import ctypes, os, sys, threading
from pathlib import Path
from sandboxlib import Limits, Sandbox, User, chroot, user_namespace
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
prctl = ctypes.CDLL(None).prctl
def state():
    status = Path(f"/proc/self/task/{threading.get_native_id()}/status").read_text()
    names = ("Uid", "Gid", "Groups", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Cpus_allowed:")
    return (prctl(3, 0, 0, 0, 0), [l for l in status.splitlines() if l.startswith(names)],
            os.nice(0), os.getsid(0), Path("/proc/self/limits").read_text(),
            *(Path("/proc/self", name).read_text() for name in ("oom_score_adj", "personality")))
def each():
    before = state()
    assert before[0] == 1
    for words in ({"user": User(1000, None, [5])}, {"deterministic": True}, {}):
        for executor in (chroot, user_namespace):
            if executor is user_namespace and "user" in words:
                words = {"user": 1000}
            for ways in ({}, {"init": False}, {"processes": "undefined"}):
                if "user" in words and ways:
                    continue
                limits = Limits(open_files=50, core=0, nice=1, cpuset=1, oom_score_adj=10)
                with open_box(sys.argv[1], limits=limits, **words, **ways) as box:
                    for fresh in (False, True):
                        assert executor.run_in(box, ["true"], fresh=fresh).exit == 0
                        assert state() == before, (words, ways)
    umask = os.umask(0o22)
    assert umask == 0o22, umask
each()
thread = threading.Thread(target=each)
thread.start()
thread.join()
assert state()[0] == 1
"""


@needs_root
@pytest.mark.usefixtures("_many_ids")
def test_the_caller_stays_who_it_is(shared_rootfs: Path) -> None:
    argv = ["setpriv", "--clear-groups", sys.executable, "-c", HOST, str(shared_rootfs)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, umask=0o22)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


LEAK = """
import os, sys
from sandboxlib import Sandbox, User, chroot, user_namespace
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
os.setgroups([11, 12])
def groups(executor, **words):
    with open_box(sys.argv[1], **words) as box:
        said = {executor.run_in(box, ["sh", "-c", "grep Groups: /proc/self/status"], fresh=f).out
                for f in (False, True)}
    return [sorted(line.split()[1:]) for line in said]
assert groups(chroot) == [[b"11", b"12"]]
assert groups(chroot, user=1000) == [[]]
assert groups(chroot, user=0) == [[]]
assert groups(chroot, user=User(1000, groups=[13])) == [[b"13"]]
for user in (User(1000, groups=()), User(0, 0, [])):
    try:
        groups(user_namespace, user=user)
    except Exception as error:
        print(type(error).__name__, error)
    assert "other groups" in user_namespace.refusals(open_box(sys.argv[1], user=user))[0]
"""


@needs_root
@pytest.mark.usefixtures("_many_ids")
def test_groups_of_the_caller_do_not_come_with_ids(shared_rootfs: Path) -> None:
    argv = [sys.executable, "-c", LEAK, str(shared_rootfs)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("UnsupportedError user_namespace") == 2
    assert done.stdout.count("the command would keep the caller's other groups") == 2


@either_way
def test_the_one_id_of_a_user_namespace(shared_rootfs: Path, fresh: bool) -> None:
    if reason := user_namespace.why_not():
        pytest.skip(reason)
    with Sandbox(shared_rootfs, user=User(1000, 7), umask=0) as box:
        uid, gid, groups, umask = who(box, fresh, user_namespace)
    assert (set(uid), set(gid), umask) == ({"1000"}, {"7"}, ["0000"])
    assert set(groups) <= {"7", "65534"}  # the kernel shows others of the caller's as 65534
    with pytest.raises(UnsupportedError, match="groups="):
        who(Sandbox(shared_rootfs, user=User(1000, groups=[7])), fresh, user_namespace)


WITH_GROUPS = """
import ctypes, os, sys
from sandboxlib import Sandbox, User, UnsupportedError, get_executor
executor = get_executor(sys.argv[2])
if executor.why_not():
    sys.exit(executor.why_not())
os.setgroups([11, 12])
os.setresgid(50, 50, 50)
os.setresuid(60, 60, 60)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, which setresuid(2) clears
script = "id -u; id -g; id -G; cat /tmp/of-group"
for user in (1000, User(1000, 7), User(0, 0)):
    with Sandbox(sys.argv[1], user=user, tmp="root") as box:
        for fresh in (True, False, False):
            print(*executor.run_in(box, ["sh", "-c", script], fresh=fresh).out.decode().split())
for groups in ((), (11,)):
    try:
        executor.run_in(Sandbox(sys.argv[1], user=User(1000, groups=groups)), ["true"])
    except UnsupportedError as error:
        print("refused", error)
"""


@needs_root
@pytest.mark.usefixtures("_many_ids")
@pytest.mark.parametrize("executor", ["user_namespace", "bubblewrap"])
def test_a_caller_with_other_groups_gives_ids_and_keeps_the_groups(executor: str) -> None:
    # Root makes itself such a caller, who has to be able to reach the root.
    with tempfile.TemporaryDirectory(prefix="sandboxlib-groups.", dir="/var/tmp") as place:
        os.chmod(place, 0o755)
        rootfs = make_rootfs(Path(place) / "root")
        secret = rootfs / "tmp" / "of-group"
        secret.write_text("read\n")
        os.chown(secret, 0, 11)
        secret.chmod(0o640)
        argv = [sys.executable, "-c", WITH_GROUPS, str(rootfs), executor]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    require("user namespaces" not in done.stderr, done.stderr)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    shown = ["1000 1000", "1000 7", "0 0"]
    for ids, line in zip([ids for ids in shown for _ in range(3)], lines, strict=False):
        # The kernel shows the groups 11 and 12 as 65534; by one of them the file can be read.
        assert line == f"{ids} {ids.split()[1]} 65534 65534 read"
    assert [line.partition(": ")[0] for line in lines[9:]] == [f"refused {executor}"] * 2


@needs_root
@either_way
def test_umask(rootfs: Path, fresh: bool) -> None:
    with open_box(rootfs, umask=0o137) as box:
        assert box.run(["sh", "-c", "echo x > /tmp/file"], fresh=fresh).exit == 0
    assert (rootfs / "tmp" / "file").stat().st_mode & 0o777 == 0o640
    previous = os.umask(0o77)
    try:
        with open_box(rootfs, extra_mounts=[Mount.tmpfs("/new/place")]) as box:
            assert box.run(["sh", "-c", "umask"], fresh=fresh).out == b"0077\n"
            assert box.run(["stat", "-c", "%a", "/new"], fresh=fresh).out != b""
    finally:
        os.umask(previous)


@needs_root
@pytest.mark.usefixtures("_many_ids")
def test_ids_without_the_power_to_take_them(shared_rootfs: Path) -> None:
    words: dict[str, Any] = {"user": 1000, "policy": Policy(capabilities=["setuid", "setgid"])}
    assert who(open_box(shared_rootfs, **words), True)[0] == ["1000"] * 4
    argv = ["setpriv", "--bounding-set=-setgid", "--inh-caps=-setgid", sys.executable, "-c"]
    script = """
import sys
from sandboxlib import Sandbox, SetupError, chroot
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
try:
    chroot.run_in(Sandbox(sys.argv[1], user=1000), ["true"])
except SetupError as error:
    print(error.step, error.errno)
"""
    done = subprocess.run([*argv, script, str(shared_rootfs)], capture_output=True, check=True)
    assert done.stdout == b"user 1\n"
    assert issubclass(SetupError, OSError)


@pytest.mark.parametrize(
    "words",
    [
        {"user": -1},
        {"user": (1 << 32) - 1},
        {"user": True},
        {"user": 1.0},
        {"user": "1000"},
        {"user": (1000, 1000)},
        {"user": User(1000), "init": False},
        {"user": 1000, "init": False},
        {"user": 1000, "processes": "undefined"},
        {"umask": -1},
        {"umask": 0o1000},
        {"umask": "022"},
        {"deterministic": 1},
        {"deterministic": True, "mounts": "undefined"},
    ],
    ids=repr,
)
def test_what_makes_no_sense(words: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        open_box("/", **words)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ((-1,), {}),
        (((1 << 32) - 1,), {}),
        ((True,), {}),
        ((1.0,), {}),
        (("1000",), {}),
        ((1000, -1), {}),
        ((1000, "7"), {}),
        ((1000, True), {}),
        ((1000, None, [-1]), {}),
        ((1000, None, "7"), {}),
        ((1000, None, 7), {}),
        ((1000, None, ["7"]), {}),
        ((1000, None, range(33)), {}),
        ((1000,), {"ranges": 1}),
    ],
    ids=repr,
)
def test_a_user_that_makes_no_sense(words: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        User(*words, **options)


@pytest.mark.parametrize("name", ["ids", "group", "groups"])
def test_the_earlier_keywords_are_told_where_they_went(name: str) -> None:
    with pytest.raises(SpecTypeError, match=f"{name} belongs to User"):
        open_box("/", user=5, **{name: 5})  # type: ignore[arg-type]


def test_another_user_for_the_same_sandbox() -> None:
    box = open_box("/", user=User(1000, groups=[5]))
    assert box.user == User(1000, 1000, (5,))
    assert box.replace(user=7).user == User(7)
    assert box.replace(user="root").user == "root"
    assert box.replace(user=User(1000, 5)).user == User(1000, 5)
    assert box.replace(hostname="x").user == box.user
    assert open_box("/", user=1000) == open_box("/", user=User(1000))
    assert open_box("/").user == open_box("/", user=None).user == "caller"


def test_a_default_user_follows_deterministic() -> None:
    box = open_box("/", deterministic=True)
    assert box.user == "root"
    assert box.replace(deterministic=False).user == "caller"
    assert open_box("/").replace(deterministic=True) == box
    assert open_box("/", user="caller").replace(deterministic=True).user == "caller"
