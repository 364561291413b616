# SPDX-License-Identifier: Apache-2.0
"""bwrap and linux-user-chroot resolve names on the host, and say how it went.

Commands of other runs in the same root change these names meanwhile, and the command itself lies
about the rest: nothing of it leads out of the root, is left behind, or is believed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import needs_root, python, require
from lib.roots import make_rootfs

import sandboxlib
from sandboxlib import Limits, Mount, Policy, Sandbox, SetupError, UnsupportedError, bubblewrap

pytest_plugins = ["lib.setuid_tool", "lib.bwraps"]

HERE = Path(__file__).resolve().parents[1]
PACKAGE = Path(sandboxlib.__file__).resolve().parent.parent
NESTED = "SANDBOXLIB_TEST_NESTED" in os.environ
NEWER = os.environ.get("SANDBOXLIB_BWRAP_NEWER", "")

SWAP = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int argc, char **argv) {
    for (;;) {
        syscall(SYS_renameat2, AT_FDCWD, argv[1], AT_FDCWD, argv[2], 2);
        usleep(argc > 3 ? 20 : 200);
    }
}
"""


@pytest.fixture(scope="session")
def swapper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static program that exchanges two names, again and again."""
    require(shutil.which("cc"), "there is no C compiler")
    place = tmp_path_factory.mktemp("swapper")
    (place / "swap.c").write_text(SWAP)
    argv = ["cc", "-w", "-O1", "-static", "-o", str(place / "swap"), str(place / "swap.c")]
    subprocess.run(argv, check=True)
    return place / "swap"


def run(box: Sandbox, *command: str, **words: Any) -> sandboxlib.Result:
    return bubblewrap.run_in(box, list(command), **words)


def tree(path: Path) -> list[str]:
    """All names below a directory."""
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


# ---- names that commands change ----------------------------------------------------------------


@pytest.fixture
def host(rootfs: Path, tmp_path: Path) -> Path:
    """A directory outside of the root that commands are not to reach, with a file in it."""
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "file").write_text("the host's")
    (tmp_path / "host").chmod(0o777)
    (tmp_path / "host" / "file").chmod(0o666)
    return tmp_path / "host"


def race(root: Path, swapper: Path, names: tuple[str, str], box: Sandbox, *command: str) -> int:
    """Runs a command while one of another run exchanges two names; how many of 40 came to run."""
    shutil.copy(swapper, root / "bin" / "swap")
    ran = 0
    with open_box(root) as other, other.start(["swap", *names]) as attacker:
        for _ in range(40):
            try:
                run(box, *command)
                ran += 1
            except SetupError:
                pass
        attacker.kill()
    return ran


@pytest.mark.parametrize("way", ["absolute", "relative", "by the machine's own root"])
def test_a_writable_path_is_never_what_a_link_leads_to(
    rootfs: Path, host: Path, swapper: Path, bwrap: str, way: str
) -> None:
    (rootfs / "data").mkdir()
    leads_to = {"absolute": str(host), "relative": f"{'../' * 20}{str(host)[1:]}"}
    (rootfs / "evil").symlink_to(leads_to.get(way, f"/oldroot{host}"))
    box = open_box(rootfs, filesystem_writable_paths=["/data"])
    race(
        rootfs, swapper, ("/data", "/evil"), box, "sh", "-c", "echo x > /data/file; echo y > /file"
    )
    assert (host / "file").read_text() == "the host's"
    assert tree(host) == ["file"]


@pytest.mark.parametrize("kind", ["tmpfs", "directory", "file"])
def test_no_target_is_made_where_a_link_leads_to(
    rootfs: Path, host: Path, swapper: Path, bwrap: str, tmp_path: Path, kind: str
) -> None:
    (rootfs / "a" / "b").mkdir(parents=True)
    (rootfs / "evil").symlink_to(f"/oldroot{host}")
    (tmp_path / "source").mkdir()
    (tmp_path / "text").write_text("text")
    mount = {
        "tmpfs": Mount.tmpfs("/a/b/c"),
        "directory": Mount.bind(tmp_path / "source", "/a/b/c"),
        "file": Mount.bind(tmp_path / "text", "/a/b/c"),
    }[kind]
    box = open_box(rootfs, extra_mounts=[mount])
    race(rootfs, swapper, ("/a", "/evil"), box, "true")
    assert tree(host) == ["file"]
    assert tree(tmp_path / "source") == []


def test_a_mount_that_missed_its_place_ends_the_run(
    rootfs: Path, host: Path, swapper: Path, bwrap: str
) -> None:
    (rootfs / "data").mkdir()
    # A directory of bwrap's own while it sets up: what is mounted there is lost.
    (rootfs / "other").symlink_to("/oldroot")
    box = open_box(rootfs, extra_mounts=[Mount.tmpfs("/data")])
    shutil.copy(swapper, rootfs / "bin" / "swap")
    with open_box(rootfs) as other, other.start(["swap", "/data", "/other", "fast"]) as attacker:
        for _ in range(40):
            try:
                seen = run(box, "sh", "-c", "cat /proc/self/mountinfo").out.decode()
            except SetupError:
                continue
            assert " - tmpfs " in seen  # names may change again, but it is in the root
        attacker.kill()


def test_a_link_that_stays_in_the_root_is_followed(
    rootfs: Path, bwrap: str, tmp_path: Path
) -> None:
    (rootfs / "usr" / "data").mkdir(parents=True)
    (rootfs / "absolute").symlink_to("/usr/data")
    (rootfs / "relative").symlink_to("usr/data")
    (tmp_path / "text").write_text("text")
    for name in ("absolute", "relative"):
        mount = Mount.bind(tmp_path / "text", f"/{name}/file")
        assert run(open_box(rootfs, extra_mounts=[mount]), "cat", "/usr/data/file").out == b"text"
        box = open_box(rootfs, filesystem_writable_paths=[f"/{name}"])
        assert run(box, "sh", "-c", f"echo > /{name}/written").exit == 0
        assert run(box, "sh", "-c", "echo > /written").exit == 1
        assert tree(rootfs / "usr") == ["data", "data/written"]


# ---- nothing is left ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "directories", "tmpfs in a tmpfs"])
def test_nothing_is_made_in_a_source_nor_left_in_the_root(
    rootfs: Path, tmp_path: Path, bwrap: str, kind: str
) -> None:
    (tmp_path / "source").mkdir()
    work = Mount.bind(tmp_path / "source", "/ws")
    mounts = {
        "file": [work, Mount.bind("/dev/null", "/ws/.git", read_only=True)],
        "directories": [work, Mount.tmpfs("/ws/a/b/c")],
        "tmpfs in a tmpfs": [Mount.tmpfs("/new"), Mount.tmpfs("/new/a/b")],
    }[kind]
    before = tree(rootfs)
    if kind == "tmpfs in a tmpfs":
        assert run(open_box(rootfs, extra_mounts=mounts), "ls", "/new/a").out == b"b\n"
    else:
        with pytest.raises(FileNotFoundError) as caught:
            run(open_box(rootfs, extra_mounts=mounts), "true")
        assert getattr(caught.value, "step", "") == "target"
    assert tree(tmp_path / "source") == []
    assert tree(rootfs) == before


def test_a_target_in_a_source_that_is_there_serves(
    rootfs: Path, tmp_path: Path, bwrap: str
) -> None:
    (tmp_path / "source" / "in").mkdir(parents=True)
    mounts = [Mount.bind(tmp_path / "source", "/ws"), Mount.tmpfs("/ws/in")]
    box = open_box(rootfs, extra_mounts=mounts)
    assert run(box, "sh", "-c", "echo > /ws/in/file; echo > /ws/file").exit == 0
    assert tree(tmp_path / "source") == ["file", "in"]


def test_a_caller_that_is_killed_while_bwrap_sets_up_leaves_no_command(
    rootfs: Path, tmp_path: Path, bwrap: str
) -> None:
    # The gate is closed by its death, not opened: the command would leave a file.
    script = """
import os, sys, signal
from sandboxlib import Sandbox, bubblewrap
from sandboxlib._executors import bwrap_look
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
def die(entries, wanted):
    os.kill(os.getpid(), signal.SIGKILL)
bwrap_look.find_fault = die
box = Sandbox(sys.argv[1], filesystem_writable_paths="all", tmp="root")
bubblewrap.run_in(box, ["touch", "/tmp/ran"])
"""
    done = subprocess.run([*python(), "-c", script, str(rootfs)], check=False)
    assert done.returncode == -9
    time.sleep(0.5)
    assert tree(rootfs / "tmp") == []


# ---- what commands could say -------------------------------------------------------------------


def test_a_command_that_ends_bwrap_is_no_failed_set_up(rootfs: Path, bwrap: str) -> None:
    line = "bwrap: Creating new namespace failed: No space left on device"
    script = f"echo '{line}' >&2; kill -9 $PPID; sleep 1; exit 5"
    for processes, exit in (("isolated", 5), ("undefined", -9)):
        result = run(open_box(rootfs, processes=processes), "sh", "-c", script)
        assert result == (exit, b"", f"{line}\n".encode())


def test_words_and_a_status_like_those_of_bwrap_are_the_commands_own(
    rootfs: Path, bwrap: str
) -> None:
    line = "bwrap: execvp sh: No such file or directory"
    result = run(open_box(rootfs), "sh", "-c", f"echo '{line}' >&2; exit 1")
    assert result == (1, b"", f"{line}\n".encode())


def test_variables_reach_the_command_and_not_bwrap(rootfs: Path, bwrap: str) -> None:
    odd = dict.fromkeys(
        "LD_PRELOAD LD_AUDIT LD_LIBRARY_PATH GCONV_PATH LOCPATH MALLOC_TRACE".split(), "/nonesuch/x"
    )
    odd |= {"LD_TRACE_LOADED_OBJECTS": "1", "GLIBC_TUNABLES": "glibc.malloc.check=3"}
    result = run(open_box(rootfs), "env", extra_env=odd)
    assert result.err == b""
    seen = dict(line.split("=", 1) for line in result.out.decode().splitlines())
    assert odd.items() <= seen.items()
    assert set(seen) - set(odd) <= {"PATH", "PWD"}
    assert run(open_box(rootfs), "/bin/env", env={}).out in (b"", b"PWD=/\n")


def test_too_many_arguments_are_refused_before_anything_runs(rootfs: Path, bwrap: str) -> None:
    assert run(open_box(rootfs), "sh", "-c", "echo $#", *["x"] * 8000).out == b"7999\n"
    assert run(open_box(rootfs), "sh", "-c", "echo $#", *["x"] * 9000).out == b"8999\n"
    with pytest.raises(UnsupportedError, match="9000 arguments"):
        run(open_box(rootfs), "true", extra_env={f"V{i}": "" for i in range(3000)})


def test_descriptors_of_bwrap_fit_a_low_limit_of_open_files(rootfs: Path, bwrap: str) -> None:
    many = [os.open("/dev/null", os.O_RDONLY) for _ in range(40)]
    try:
        words: dict[str, Any] = {"filesystem_writable_paths": ["/tmp", "/etc"]}
        box = open_box(rootfs, limits=Limits(open_files=24), **words)
        assert run(box, "sh", "-c", "ulimit -n; ls /proc/self/fd").out.split()[0] == b"24"
        box = open_box(rootfs, **words)
        seen = run(box, "ls", "/proc/self/fd", pass_fds=[many[0], many[9]]).out.split()
        assert {int(fd) for fd in seen} >= {0, 1, 2, many[0], many[9]}
        assert len(seen) == 6
    finally:
        for fd in many:
            os.close(fd)


@needs_root
def test_the_hosts_device_nodes_do_not_change(rootfs: Path, bwrap: str) -> None:
    before = os.stat("/dev/full")
    box = open_box(rootfs, extra_mounts=[Mount.dev()])
    for script in ("chmod 666 /dev/full", "chown 0:0 /dev/full"):
        assert b"Read-only file system" in (run(box, "sh", "-c", script).err or b"")
    assert run(box, "sh", "-c", "head -c 3 /dev/zero > /dev/null").exit == 0
    after = os.stat("/dev/full")
    assert (before.st_mode, before.st_ctime_ns) == (after.st_mode, after.st_ctime_ns)


# ---- what uid 0 could command ------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"policy": Policy(capabilities="none")},
        {"user": "root"},
        {"extra_mounts": [Mount.proc()]},
    ],
    ids=["default", "none", "root", "proc"],
)
def test_what_commands_the_kernel_is_read_only(
    rootfs: Path, bwrap: str, words: dict[str, Any]
) -> None:
    names = "sys/vm/stat_interval sys/kernel/core_pattern sysrq-trigger irq/default_smp_affinity"
    written = "[ -e /proc/$name ] && (: >> /proc/$name) 2>/dev/null && echo $name"
    script = f"for name in {names}; do {written}; done; cat /proc/sys/kernel/ostype"
    assert run(open_box(rootfs, **words), "sh", "-c", script).out == b"Linux\n"


# ---- who else runs this ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(NESTED, reason="it is run by the same tests outside")
def test_the_same_of_bwrap_for_an_ordinary_user(setuid_tool: Any) -> None:
    env = {
        "SANDBOXLIB_TEST_NESTED": "1",
        "SANDBOXLIB_BWRAP_NEWER": NEWER,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": f"{PACKAGE}:{HERE}",
        "HOME": "/tmp",
    }
    options = ["-q", "-x", "-p", "no:cacheprovider", "-k", "installed or newer"]
    argv = [*python(), "-m", "pytest", *options, __file__]
    done = setuid_tool.run(*argv, timeout=290, **env)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


# ---- linux-user-chroot -------------------------------------------------------------------------

LUC = """
import os, subprocess, sys, time
from sandboxlib import CAPTURE, Mount, Policy, Sandbox, SetupError, UnsupportedError
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
from sandboxlib import linux_user_chroot as luc
root = sys.argv[1]
policy = Policy(capabilities="all") if os.getuid() == 0 else Policy()
def run(*command, stdin=None, extra_env=None, **words):
    box = open_box(words.pop("root", root), policy=policy, **words)
    return luc.run_in(box, list(command), stdin=stdin, extra_env=extra_env)
"""

users = pytest.mark.parametrize("uid", [0, 65534], ids=["root", "user"])


@users
def test_writable_paths_take_a_root_in_which_no_command_renames(
    setuid_tool: Any, user_rootfs: Path, uid: int
) -> None:
    script = """
box = Sandbox(root, tmp="root", policy=policy, filesystem_writable_paths=["/tmp"])
print(luc.refusals(box))
try:
    print(run("touch", "/tmp/x", filesystem_writable_paths=["/tmp"]))
except UnsupportedError as error:
    print("refused")
"""
    told = setuid_tool.python(LUC + script, str(user_rootfs), uid=uid)
    assert "commands can rename what is in" in told
    assert told.endswith("refused\n")
    os.chown(user_rootfs, 0, 0)
    told = setuid_tool.python(LUC + script, str(user_rootfs), uid=uid)
    assert told.endswith("refused\n" if uid == 0 else "Result(exit=0, out=b'', err=b'')\n")
    user_rootfs.chmod(0o777)
    told = setuid_tool.python(LUC + script, str(user_rootfs), uid=uid)
    assert told.endswith("refused\n")


@users
def test_a_target_inside_a_source_that_commands_can_change_is_refused(
    setuid_tool: Any, user_rootfs: Path, uid: int
) -> None:
    script = """
work = os.path.dirname(root) + "/work"
os.makedirs(work + "/in")
try:
    print(run("true", extra_mounts=[Mount.bind(work, "/tmp"), Mount.tmpfs("/tmp/in")]))
except UnsupportedError as error:
    print("refused" if "commands can rename" in str(error) else error)
"""
    assert setuid_tool.python(LUC + script, str(user_rootfs), uid=uid) == "refused\n"


@users
def test_no_target_leads_the_root_or_a_source_elsewhere(
    setuid_tool: Any, user_rootfs: Path, swapper: Path, uid: int
) -> None:
    # A mount over what holds the root, with a link in it by the root's name, would make the
    # machine's own root that of the command; over what holds a source, it would bind another.
    home = user_rootfs.parent
    above = Path(tempfile.mkdtemp(dir=setuid_tool.base))
    above.chmod(0o755)
    secret = make_rootfs(above / "secret")
    (secret / "second").mkdir()
    (secret / "file").write_text("the host's")
    for name in ("source", "shared", "swap"):
        (home / name).mkdir()
    (home / "shared" / "root").symlink_to(secret)
    (home / "shared" / "source").symlink_to(secret)
    (home / "source" / "file").write_text("the source's")
    (user_rootfs / "ws").mkdir()
    (user_rootfs / "second").mkdir()
    (user_rootfs / "evil").symlink_to(home)
    shutil.copy(swapper, home / "swap" / "swap")
    script = """
home = os.path.dirname(root)
attacker = subprocess.Popen([home + "/swap/swap", root + "/ws", root + "/evil"])
mounts = [Mount.bind(home + "/shared", "/ws"), Mount.bind(home + "/source", "/second")]
seen, ran = set(), 0
try:
    for _ in range(40):
        try:
            result = run("cat", "/file", "/second/file", extra_mounts=mounts)
        except (SetupError, UnsupportedError):
            continue
        ran += 1
        seen.add(result.out)
finally:
    attacker.kill()
    attacker.wait()
print(b"the host" in b"".join(seen), ran)
"""
    told = setuid_tool.python(LUC + script, str(user_rootfs), uid=uid).split()
    assert told[0] == "False"


@users
def test_a_command_cannot_pass_for_a_set_up_that_failed(
    setuid_tool: Any, user_rootfs: Path, uid: int
) -> None:
    script = """
lines = ["chroot: Operation not permitted", "execv: No such file or directory",
         "Couldn't chdir to bind mount source"]
for line in lines:
    for stdin in (None, b"text", open("/dev/null", "rb")):
        result = run("sh", "-c", "echo \\"$0\\" >&2; exit 1", line, stdin=stdin)
        assert result == (1, b"", line.encode() + b"\\n"), result
# It has nothing by which to take the report back, or to give another.
assert run("sh", "-c", "ls /proc/self/fd").out.split() == [b"0", b"1", b"2", b"3"]
real = luc.command_line
luc.command_line = lambda *args: [*real(*args)[:1], "--mount-proc", "/none", *real(*args)[1:]]
for stdin in (None, b"text", open("/dev/null", "rb")):
    try:
        print(run("true", stdin=stdin))
    except SetupError as error:
        assert error.step == "mount", error
"""
    assert setuid_tool.python(LUC + script, str(user_rootfs), uid=uid) == ""


@users
def test_variables_reach_the_command_and_not_linux_user_chroot(
    setuid_tool: Any, user_rootfs: Path, uid: int
) -> None:
    script = """
names = "LD_PRELOAD LD_AUDIT LD_BIND_NOT LD_TRACE_LOADED_OBJECTS GCONV_PATH LOCPATH TMPDIR".split()
odd = {name: "/nonesuch/x" for name in names}
result = run("/bin/env", extra_env=odd)
assert result.err == b"", result
seen = dict(line.split("=", 1) for line in result.out.decode().splitlines())
assert odd.items() <= seen.items(), result
os.rename(root + "/bin/env", root + "/bin/not-env")
try:
    print(run("/bin/not-env", extra_env={"LD_TRACE_LOADED_OBJECTS": "1"}))
except UnsupportedError:
    print("refused")
"""
    assert setuid_tool.python(LUC + script, str(user_rootfs), uid=uid) == "refused\n"


@users
def test_a_program_where_others_can_write_is_not_taken(
    setuid_tool: Any, user_rootfs: Path, uid: int
) -> None:
    script = """
from sandboxlib import bubblewrap
place = sys.argv[1] + "/open"
os.mkdir(place)
os.chmod(place, 0o777)
for name in ("linux-user-chroot", "bwrap"):
    open(place + "/" + name, "w").write("#!/bin/sh\\ntouch " + place + "/started\\n")
    os.chmod(place + "/" + name, 0o755)
os.environ["PATH"] = place + ":" + os.environ["PATH"]
print("not safe to start" in luc.why_not(), "not safe to start" in bubblewrap.why_not())
print(sorted(os.listdir(place)))
"""
    told = setuid_tool.python(LUC + script, str(user_rootfs), uid=uid)
    assert told == "True True\n['bwrap', 'linux-user-chroot']\n"
