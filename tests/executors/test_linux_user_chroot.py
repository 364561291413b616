# SPDX-License-Identifier: Apache-2.0
"""The executor linux_user_chroot, and the program that the tests use for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import python
from lib.waiting import processes, wait_until

from sandboxlib import STDOUT, Mount, Policy, Result, Sandbox, SetupError, UnsupportedError
from sandboxlib import linux_user_chroot as luc
from sandboxlib._runs.job import Job
from sandboxlib.linux_user_chroot import Recipe, Tool, View, command_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lib.setuid_tool import SetuidTool

pytest_plugins = ["lib.setuid_tool"]

RECENT = Tool("/usr/bin/linux-user-chroot", (2015, 1), False)
OLD = Tool("/usr/bin/linux-user-chroot", (2013, 1), False)
SHARED = {
    **{"mounts": "isolated", "processes": "undefined", "ipc": "undefined"},
    "devices": "root",
}


def golden(box: Sandbox, words: list[bytes | str], cwd: str = "/", tool: Tool = RECENT) -> str:
    """The command line as text: ROOT for the root, SCRATCH for our directory, UP for the way up;
    without the profile of system calls.
    """
    box = box.replace(policy=box.policy.replace(seccomp="none"))
    with ExitStack() as undo:
        recipe = Recipe(box, undo)
        text = " ".join(map(os.fsdecode, command_line(tool, recipe, words, cwd)))
        scratch, root = recipe.scratch, recipe.root
        assert not scratch or os.path.isdir(scratch)
    assert not scratch or not os.path.exists(scratch)
    if scratch:
        text = text.replace("/.." * root.count("/") + scratch, "UP" + scratch)
        text = text.replace(scratch, "SCRATCH")
    return text.removeprefix(tool.path + " ").replace(root, "ROOT")


# ---- the command line ------------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A root of directories alone."""
    for name in ("a", "b", "dev/shm", "etc", "foo.build", "foo.inst", "proc", "tmp/ccache"):
        (tmp_path / "root" / name).mkdir(parents=True)
    (tmp_path / "ccache").mkdir()
    return tmp_path / "root"


def test_the_smallest_command_lines(plain: Path) -> None:
    box = open_box(plain, **SHARED)
    assert golden(box, ["pwd"]) == "ROOT pwd"
    assert golden(box.replace(network="isolated"), ["a", "-b"]) == "--unshare-net ROOT a -b"
    assert golden(box, ["pwd"], "/tmp") == "--chdir /tmp ROOT pwd"
    everything = Sandbox(plain, filesystem_writable_paths="all", tmp="root")
    line = (
        "--unshare-net --unshare-pid --unshare-ipc --mount-proc /proc --mount-devapi /dev ROOT pwd"
    )
    assert golden(everything, ["pwd"]) == line
    other = everything.replace(devices="root")
    assert golden(other, ["pwd"]) == line.replace("--mount-devapi /dev ", "")
    (plain / "proc").rmdir()
    assert golden(everything, ["pwd"]) == line.replace("--mount-proc /proc ", "")


def test_the_profile_of_the_program(plain: Path) -> None:
    def options(box: Sandbox, tool: Tool) -> list[bytes | str]:
        with ExitStack() as undo:
            return command_line(tool, Recipe(box, undo), ["x"], "/")[1:-2]

    box = open_box(plain, **SHARED)
    old = Tool(RECENT.path, (2013, 1), False)
    assert options(box, RECENT) == ["--seccomp-profile-version", "0"]
    assert options(box.replace(policy=Policy(seccomp="none")), RECENT) == []
    assert options(box, old) == []


def test_a_chunk_of_ybd(plain: Path) -> None:
    box = open_box(
        plain,
        network="isolated",
        filesystem_writable_paths=["foo.build", "foo.inst", "/dev", "/proc", "/tmp"],
        extra_mounts=[
            (str(plain.parent / "ccache"), "/tmp/ccache", None, "bind"),
            ("tmpfs", "/dev/shm", "tmpfs"),
            ("proc", "/proc", "proc"),
        ],
        **SHARED,
    )
    assert golden(box, ["sh", "-c", "-e", "make"], "foo.build") == (
        "--unshare-net --chdir foo.build "
        "--mount-bind ROOT/dev UPSCRATCH/1 --mount-bind ROOT/foo.build UPSCRATCH/2 "
        "--mount-bind ROOT/foo.inst UPSCRATCH/3 --mount-bind ROOT/tmp UPSCRATCH/4 "
        "--mount-readonly /. --mount-bind SCRATCH/1 /dev --mount-bind SCRATCH/2 /foo.build "
        "--mount-bind SCRATCH/3 /foo.inst --mount-bind SCRATCH/4 /tmp "
        f"--mount-bind {plain.parent}/ccache /tmp/ccache --mount-bind SCRATCH/0 /dev/shm "
        "--mount-proc /proc ROOT sh -c -e make"
    )


def test_a_system_of_ybd(plain: Path) -> None:
    mounts = [("tmpfs", "/dev/shm", "tmpfs"), ("proc", "/proc", "proc")]
    box = open_box(plain, network="isolated", extra_mounts=mounts, **SHARED)
    assert golden(box, ["sh", "-c", "-e", "make"], "foo.build") == (
        "--unshare-net --chdir foo.build "
        "--mount-bind SCRATCH/0 /dev/shm --mount-proc /proc ROOT sh -c -e make"
    )


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments that the executor gives to the program, which does not run itself."""
    said: list[str] = []

    def run_tool(name: str, box: Sandbox, job: Job, *rest: object) -> Result:
        n_paths, n_args, *_ = job.counts
        words = job.blob[job.cwd_size :].split(b"\0")
        said[:] = map(os.fsdecode, words[n_paths : n_paths + n_args])
        return Result(0, None, None, False, 0.0, name, {})

    monkeypatch.setattr(Tool, "denied", lambda tool, box: "")
    monkeypatch.setattr(luc, "_tool", lambda: RECENT)
    monkeypatch.setattr(luc.base, "run_tool", run_tool)
    monkeypatch.setattr(luc._Run, "check_first", lambda run, env: None)
    # As in a root in which commands can rename nothing.
    monkeypatch.setattr(luc, "doubts", lambda box: [])
    monkeypatch.setattr(luc, "takes_stage", lambda box: False)
    return said


def ybd(config: dict[str, object]) -> None:
    luc.run_sandbox_with_redirection(
        ["sh", "-c", "-e", "make"], stdout=2, stderr=STDOUT, env={"A": "b"}, **config
    )


def test_what_ybd_has_the_program_told_is_as_it_was(plain: Path, told: list[str]) -> None:
    config = {
        "cwd": "foo.build",
        "filesystem_root": str(plain),
        "filesystem_writable_paths": "all",
        "mounts": "isolated",
        "network": "isolated",
        "extra_mounts": [
            (str(plain.parent / "ccache"), "/tmp/ccache", None, "bind"),
            ("tmpfs", "/dev/shm", "tmpfs"),
            ("proc", "/proc", "proc"),
        ],
    }
    ybd(config)
    scratch = told[told.index("/dev/shm") - 1]
    assert scratch.startswith(("/tmp/sandboxlib.", os.environ.get("TMPDIR", "/tmp/sandboxlib.")))
    assert told == [
        *("/usr/bin/linux-user-chroot", "--unshare-net", "--chdir", "foo.build"),
        *("--mount-bind", str(plain.parent / "ccache"), "/tmp/ccache"),
        *("--mount-bind", scratch, "/dev/shm", "--mount-proc", "/proc", str(plain)),
        *("sh", "-c", "-e", "make"),
    ]
    # 0.3 named each neighbour of a writable path, and left the root directory itself writable.
    ybd({**config, "filesystem_writable_paths": ["foo.build"]})
    aside = told[told.index("/foo.build") - 1]
    up = "/.." * str(plain).count("/")
    scratch = told[told.index("/dev/shm") - 1]
    assert told == [
        *("/usr/bin/linux-user-chroot", "--unshare-net", "--chdir", "foo.build"),
        *("--mount-bind", str(plain / "foo.build"), up + aside, "--mount-readonly", "/."),
        *("--mount-bind", aside, "/foo.build"),
        *("--mount-bind", str(plain.parent / "ccache"), "/tmp/ccache"),
        *("--mount-bind", scratch, "/dev/shm", "--mount-proc", "/proc", str(plain)),
        *("sh", "-c", "-e", "make"),
    ]


def test_a_shell_in_the_root_reports_before_the_command(plain: Path, told: list[str]) -> None:
    (plain / "bin").mkdir()
    (plain / "bin" / "sh").touch(mode=0o755)
    (plain / "bin" / "make").touch(mode=0o755)
    luc.run_sandbox_with_redirection(
        ["make", "-j"], filesystem_root=str(plain), env={"PATH": "/bin"}
    )
    start = told.index(str(plain))
    assert told[start + 1 : start + 3] == ["/bin/sh", "-c"]
    assert told[-2:] == ["make", "-j"]


def test_a_bootstrap_of_ybd(tmp_path: Path, told: list[str]) -> None:
    place = tmp_path.resolve()
    writable = [str(place / name) for name in ("foo.build", "foo.inst", "tmp")]
    for path in writable:
        os.mkdir(path)
    config: dict[str, object] = {"mounts": "isolated", "network": "isolated", "extra_mounts": []}
    paths = {"cwd": writable[0], "filesystem_root": "/", "filesystem_writable_paths": writable}
    ybd({**config, **paths})
    root = told.index("/", told.index("--mount-readonly"))
    options = told[1:root]
    assert options[:3] == ["--unshare-net", "--chdir", writable[0]]
    asides = [options[options.index(path, 3) + 1] for path in writable]
    read_only = options.index("/.")
    assert options[read_only - 1] == "--mount-readonly"
    for path, aside in zip(writable, asides, strict=True):
        assert ["--mount-bind", path, aside] == options[options.index(path, 3) - 1 :][:3]
        back = options.index(path, read_only)
        assert options[back - 2 : back] == ["--mount-bind", aside]
    assert told[-4:] == ["sh", "-c", "-e", "make"]


def test_read_only_roots_and_binds(plain: Path) -> None:
    box = open_box(plain, **SHARED)
    none = box.replace(filesystem_writable_paths="none")
    assert golden(none, ["x"]) == "--mount-readonly /. ROOT x"
    nested = box.replace(filesystem_writable_paths=["/tmp", "/tmp/ccache"])
    assert golden(nested, ["x"]) == (
        "--mount-bind ROOT/tmp UPSCRATCH/0 --mount-readonly /. --mount-bind SCRATCH/0 /tmp ROOT x"
    )
    bind = box.replace(extra_mounts=[Mount.bind("/usr", "/a", read_only=True, recursive=False)])
    assert golden(bind, ["x"]) == "--mount-bind /usr /a --mount-readonly /a ROOT x"


def test_sources_in_the_root_are_put_aside_before_they_change(plain: Path) -> None:
    one, two = Mount.bind(plain / "a", "/b"), Mount.bind(plain / "b", "/a")
    assert golden(open_box(plain, extra_mounts=[one, two], **SHARED), ["x"]) == (
        "--mount-bind ROOT/b UPSCRATCH/0 --mount-bind ROOT/a /b --mount-bind SCRATCH/0 /a ROOT x"
    )


def test_the_root_is_named_without_links(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("root")
    line = golden(open_box(tmp_path / "link", **SHARED), ["x"])
    assert line == "ROOT x"
    with pytest.raises(FileNotFoundError) as caught:
        golden(open_box(tmp_path / "none", **SHARED), ["x"])
    assert isinstance(caught.value, SetupError)
    assert caught.value.step == "root"


@pytest.mark.parametrize(("tool", "limit"), [(RECENT, 1023), (OLD, 49)])
def test_the_number_of_options_is_limited(plain: Path, tool: Tool, limit: int) -> None:
    mounts = [Mount.bind("/usr", "/a", recursive=False)] * limit
    most = open_box(plain, extra_mounts=mounts, **SHARED)
    assert golden(most, ["x"], tool=tool).count("--") == limit
    more = most.replace(network="isolated")
    with pytest.raises(UnsupportedError, match=f"takes {limit + 1} options .* takes {limit} at"):
        golden(more, ["x"], tool=tool)


def test_files_are_refused(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (plain / "file").touch()
    for words in (
        {"extra_mounts": [Mount.bind(tmp_path / "file", "/file")]},
        {"filesystem_writable_paths": ["/file"]},
    ):
        with pytest.raises(UnsupportedError, match="directories, not files"):
            golden(open_box(plain, **SHARED, **words), ["x"])


def test_what_is_missing_is_an_error_of_its_step(plain: Path) -> None:
    for words, step in (
        ({"extra_mounts": [Mount.bind("/nonesuch", "/a")]}, "source"),
        ({"filesystem_writable_paths": ["/nonesuch"]}, "target"),
        ({"extra_mounts": [Mount.bind("/usr", "/a"), Mount.bind("/usr", "/a/none")]}, "target"),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            golden(open_box(plain, **SHARED, **words), ["x"])
        assert isinstance(caught.value, SetupError)
        assert caught.value.step == step


def test_targets_with_links_are_resolved_inside(plain: Path, tmp_path: Path) -> None:
    (plain / "out").symlink_to("/etc")
    (plain / "up").symlink_to("../../../../etc")
    (plain / "loop").symlink_to("loop")
    (tmp_path / "ccache" / "link").symlink_to("/b")
    for target in ("/out", "/up", "/tmp/../etc/../up"):
        if ".." in target:
            assert View(str(plain)).resolve(target) == "/etc"
            continue
        box = open_box(plain, extra_mounts=[Mount.bind("/usr", target, recursive=False)], **SHARED)
        assert golden(box, ["x"]) == "--mount-bind /usr /etc ROOT x"
    inner = [Mount.bind(tmp_path / "ccache", "/a"), Mount.bind("/usr", "/a/link", recursive=False)]
    box = open_box(plain, extra_mounts=inner, **SHARED)
    assert golden(box, ["x"]).endswith("--mount-bind /usr /b ROOT x")
    with pytest.raises(SetupError, match="ELOOP"):
        golden(open_box(plain, extra_mounts=[Mount.tmpfs("/loop")], **SHARED), ["x"])
    (plain / "self").symlink_to("/")
    with pytest.raises(SetupError, match="EBUSY"):
        golden(open_box(plain, extra_mounts=[Mount.tmpfs("/self")], **SHARED), ["x"])


def test_mount_points_that_are_missing_are_made_and_removed(plain: Path) -> None:
    before = sorted(plain.rglob("*"))
    mounts = [Mount.bind("/usr", "/x", recursive=False), Mount.tmpfs("/y"), Mount.tmpfs("/y/z")]
    assert golden(open_box(plain, extra_mounts=mounts, **SHARED), ["x"]) == (
        "--mount-bind /usr /x --mount-bind SCRATCH/0 /y --mount-bind SCRATCH/1 /y/z ROOT x"
    )
    assert sorted(plain.rglob("*")) == before


def test_nothing_goes_into_what_the_program_fills(plain: Path) -> None:
    mounts = [Mount.dev(), Mount.tmpfs("/dev/shm")]
    with pytest.raises(UnsupportedError, match="mount 1: tmpfs on /dev/shm"):
        golden(open_box(plain, extra_mounts=mounts, **SHARED), ["x"])


def test_variables_that_the_loader_removes_go_through_env(plain: Path) -> None:
    env = {"TMPDIR": "/x", "LD_PRELOAD": "y", "TOKEN": "secret", "PATH": "/bin"}
    view = View(str(plain))
    with pytest.raises(UnsupportedError, match="removes LD_PRELOAD, TMPDIR;"):
        luc.with_stripped(view, ["cc"], dict(env))
    (plain / "bin").mkdir()
    (plain / "bin" / "env").touch(mode=0o755)
    rest = dict(env)
    words = luc.with_stripped(view, ["cc"], rest)
    assert words == ["/bin/env", "LD_PRELOAD=y", "TMPDIR=/x", "cc"]
    assert rest == {"TOKEN": "secret", "PATH": "/bin"}
    with pytest.raises(UnsupportedError):
        luc.with_stripped(view, ["a=b"], dict(env))
    assert luc.with_stripped(view, ["a=b"], {"A": "b"}) == ["a=b"]


def test_what_cannot_be_promised_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tool, "denied", lambda tool, box: "")

    def refused(tool: Tool, uid: int, policy: Any = None, **words: Any) -> bool:
        monkeypatch.setattr(luc, "_tool", lambda: tool)
        monkeypatch.setattr(os, "getuid", lambda: uid)
        return bool(luc.refusals(open_box("/", policy=Policy(**policy or {}), **words)))

    assert not refused(RECENT, 1000)
    assert not refused(RECENT, 1000, {"capabilities": "none"})
    assert not refused(RECENT, 1000, network="isolated", extra_mounts=[Mount.dev()])
    assert not refused(RECENT, 0, {"capabilities": "all"})
    has_root: Any = {"devices": "root"}
    assert not refused(OLD, 1000, {"no_new_privs": False}, **has_root)
    assert not refused(OLD, 0, {"no_new_privs": False, "capabilities": "none"}, **has_root)
    assert refused(OLD, 1000, {"no_new_privs": False})
    assert refused(RECENT, 1000, devices=["/dev/null"])
    assert refused(RECENT, 1000, extra_mounts=[Mount.tmpfs("/dev/shm")])
    assert refused(RECENT, 1000, filesystem_writable_paths=["/dev"])
    assert not refused(RECENT, 1000, extra_mounts=[Mount.tmpfs("/dev/shm")], **has_root)
    assert refused(RECENT, 1000, hostname="x")
    assert refused(RECENT, 1000, {"no_new_privs": False})
    assert refused(RECENT, 1000, {"capabilities": ["chown"]})
    assert refused(RECENT, 1000, extra_mounts=[Mount.tmpfs("/tmp", size=4096)])
    assert refused(RECENT, 0)
    assert not refused(RECENT, 1000, {"seccomp": "none"})
    for policy in (
        {"seccomp": "builds"},
        {"seccomp": {"defaultAction": "SCMP_ACT_LOG"}},
        {"nesting": True},
    ):
        assert refused(RECENT, 1000, policy)
    assert refused(OLD, 1000, **has_root)
    assert refused(OLD, 1000, {"no_new_privs": False}, extra_mounts=[Mount.dev()], **has_root)
    assert refused(OLD, 0, {"no_new_privs": False}, **has_root)


def test_versions_are_read_with_care() -> None:
    assert luc._version("linux-user-chroot 2015.1\n") == (2015, 1)
    assert luc._version("2013.1") == (2013, 1)
    assert luc._version("linux-user-chroot 2016.10, GPL 2.0") == (2016, 10)
    for text in ("", "unknown", "version 1.2"):
        assert luc._version(text) == (2013, 1)


# ---- the program of the tests, against the facts ---------------------------------------------


def test_tool_parsing(setuid_tool: SetuidTool) -> None:
    tool = setuid_tool.tool
    absent = (1, "", "chdir: No such file or directory\n")
    assert tool("--version") == (0, "linux-user-chroot 2015.1\n", "")
    assert tool("--unshare-net", "--help")[0] == 0
    for words in (["--"], ["--unshare"], ["--chdir=/tmp"], ["--nonesuch"]):
        assert tool(*words, "/", "true") == absent
    assert tool("--chdir", "--version", "/", "true") == absent
    assert tool("--chdir", "/tmp", "--chdir", "/usr", "/", "pwd") == (0, "/usr\n", "")
    assert tool("/", "echo", "--version", "-x") == (0, "--version -x\n", "")
    assert tool() == (1, "", "ROOTDIR argument must be specified\n")
    assert tool("/")[2].startswith("usage: ")
    for option in (["--mount-devapi", "/dev"], ["--seccomp-profile-version", "0"]):
        assert tool(*option, "/", "true", variant="2013.1") == absent
        assert tool(*option, "/", "true")[0] == 0
    unknown = (1, "", "Unknown --seccomp-profile-version\n")
    assert tool("--seccomp-profile-version", "1", "/", "true") == unknown
    assert tool("--seccomp-profile-version", "-1", "/", "true")[0] == 0


@pytest.mark.parametrize(("variant", "limit"), [("2015.1", 1023), ("2013.1", 49)])
def test_tool_limit(setuid_tool: SetuidTool, variant: str, limit: int) -> None:
    option = ["--unshare-net"]
    assert setuid_tool.tool(*option * limit, "/", "true", variant=variant)[0] == 0
    complaint = f"Too many mounts (maximum of {limit + 1})\n"
    failed = setuid_tool.tool(*option * (limit + 1), "/", "true", variant=variant)
    assert failed == (1, "", complaint)


def test_tool_mounts(setuid_tool: SetuidTool, user_rootfs: Path) -> None:
    tool, root = setuid_tool.tool, user_rootfs
    no_file = "No such file or directory\n"
    assert tool("--mount-bind", "/usr", "tmp", root, "true")[2] == f"mount (MS_BIND): {no_file}"
    assert tool("--mount-bind", "/usr", "/none", root, "true")[2] == f"mount (MS_BIND): {no_file}"
    assert not (root / "none").exists()
    no_source = (1, "", "Couldn't chdir to bind mount source\n")
    for source in ("/none", "/etc/passwd", "/root/.ssh"):
        assert tool("--mount-bind", source, "/tmp", root, "true") == no_source
    write = "touch /x; touch /tmp/x"
    done = tool(
        "--mount-readonly", "/.", "--mount-bind", root.parent, "/tmp", root, "sh", "-c", write
    )
    assert done == (0, "", "touch: /x: Read-only file system\n")
    assert (root.parent / "x").exists()
    done = tool("--mount-readonly", "/", "/", "sh", "-c", f"touch {root}/y; echo >/dev/null")
    assert done[2] == f"touch: cannot touch '{root}/y': Read-only file system\n"
    seen = tool(
        "--unshare-pid", "--mount-proc", "/proc", root, "sh", "-c", "echo $$; ls -d /proc/[1-9]*"
    )
    assert seen[1].split()[:2] == ["1", "/proc/1"]
    assert len(seen[1].split()) <= 3
    others = tool("--mount-proc", "/proc", root, "ls", "/proc")[1].split()
    assert str(os.getpid()) in others
    (root / "out").symlink_to("/mnt")  # the host's: nothing of it is seen in the root
    assert tool("--mount-bind", "/usr", "/out", root, "ls", "/")[0] == 0
    devices = tool("--mount-devapi", "/dev", root, "ls", "/dev")[1].split()
    assert len(devices) == 9


def test_tool_hides_or_shows_what_is_mounted_below_the_root(
    setuid_tool: SetuidTool, user_rootfs: Path
) -> None:
    mount = f"mount -t tmpfs none {user_rootfs}/tmp && touch {user_rootfs}/tmp/seen && exec "
    tool = f"{setuid_tool.path} {{}} {user_rootfs} ls /tmp"
    for option, seen in (("", "seen\n"), ("--mount-readonly /.", "")):
        argv = ["sh", "-c", mount + tool.format(option)]
        assert setuid_tool.run(*argv, uid=0).stdout == seen


def test_tool_takes_an_absolute_root_only(setuid_tool: SetuidTool, user_rootfs: Path) -> None:
    relative = os.path.relpath(user_rootfs, setuid_tool.base)
    no_file = "No such file or directory\n"
    assert setuid_tool.tool(relative, "true") == (1, "", f"mount (MS_MOVE): {no_file}")
    done = setuid_tool.tool("--mount-bind", "/usr", "/tmp", relative, "true")
    assert done == (1, "", f"mount (MS_BIND): {no_file}")


STATUS = "grep -E '^(NoNewPrivs|CapEff|Uid)' /proc/self/status | tr -d '\\t'"


def test_tool_identity(setuid_tool: SetuidTool) -> None:
    def status(variant: str, uid: int) -> list[str]:
        return setuid_tool.tool("/", "sh", "-c", STATUS, uid=uid, variant=variant)[1].split()

    user, none = "Uid:" + "65534" * 4, "CapEff:" + "0" * 16
    assert status("2015.1", 65534) == [user, none, "NoNewPrivs:1"]
    assert status("2013.1", 65534) == [user, none, "NoNewPrivs:0"]
    root, some, nnp = status("2015.1", 0)
    assert (root, nnp) == ("Uid:0000", "NoNewPrivs:1")
    assert some != none
    assert status("2013.1", 0) == ["Uid:0000", none, "NoNewPrivs:0"]


def test_tool_has_no_nested_use(setuid_tool: SetuidTool) -> None:
    done = setuid_tool.tool("/", setuid_tool.path, "/", "true")
    assert done == (1, "", "clone: Operation not permitted\n")


def test_tool_exit_statuses(setuid_tool: SetuidTool, user_rootfs: Path) -> None:
    tool = setuid_tool.tool
    assert tool(user_rootfs, "sh", "-c", "exit 7")[0] == 7
    for number in (9, 11, 15):
        assert tool(user_rootfs, "sh", "-c", f"kill -{number} $$")[0] == 1
    assert tool(user_rootfs, "none") == (1, "", "execv: No such file or directory\n")
    assert tool(user_rootfs, "/etc") == (1, "", "execv: Permission denied\n")
    (user_rootfs / "script").write_text("echo $0\n")
    (user_rootfs / "script").chmod(0o755)
    assert tool(user_rootfs, "/script") == (0, "/script\n", "")


def test_tool_environment(setuid_tool: SetuidTool) -> None:
    sent = dict.fromkeys(luc.STRIPPED - {"GLIBC_TUNABLES"}, "x")  # that one is edited
    # Set after all that the test itself starts before it.
    variables = [f"{name}={value}" for name, value in sent.items()]
    seen = setuid_tool.run("env", "A=b", *variables, setuid_tool.path, "/", "/usr/bin/env").stdout
    assert "A=b\n" in seen
    if "TMPDIR" in seen:
        pytest.skip("this C library removes other variables than glibc 2.36")
    assert not {line.partition("=")[0] for line in seen.split()} & set(sent)
    seen = setuid_tool.tool("/", "/usr/bin/env", uid=0, TMPDIR="x")[1]
    assert "TMPDIR=x\n" in seen


def test_tool_variant_that_binds_files(setuid_tool: SetuidTool, user_rootfs: Path) -> None:
    (user_rootfs / "etc" / "passwd").touch()
    words = ["--mount-bind", "/usr", "/tmp", "--mount-bind", "/etc/passwd", "/etc/passwd"]
    script = "head -1 /etc/passwd; readlink /proc/self/fd/3; readlink /proc/self/fd/4"
    words += ["--mount-proc", "/proc", str(user_rootfs), "sh", "-c", script]
    done = setuid_tool.tool(*words, variant="file binds")
    assert done[1].splitlines()[0] == Path("/etc/passwd").read_text().splitlines()[0]
    assert len(done[1].splitlines()) == 3  # both sources are open


# ---- the executor, as an ordinary user -------------------------------------------------------

PRELUDE = """
import os, subprocess, sys, time
from sandboxlib import CAPTURE, STDOUT, Mount, Policy, Sandbox, environment_vars
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
from sandboxlib import linux_user_chroot as luc
root = sys.argv[1] if len(sys.argv) > 1 else "/"

def run(command, root=root, **words):
    mine = ("cwd", "extra_env", "stdin", "stdout", "stderr", "timeout")
    settings = {name: words.pop(name) for name in mine if name in words}
    policy = Policy(**{k: words.pop(k) for k in Policy._fields if k in words})
    return luc.run_in(open_box(root, policy=policy, **words), command, **settings)

def sh(script, *args, **words):
    return run(["sh", "-c", script, *args], **words)

def fails(kind, *args, **words):
    try:
        result = run(*args, **words)
    except kind as error:
        return error
    raise AssertionError(result)
"""


def only_root_renames(*directories: Path) -> None:
    """If commands of the user could rename files, a writable path is refused."""
    for directory in directories:
        os.chown(directory, 0, 0)


def as_user(setuid_tool: SetuidTool, root: Path | str, script: str, **words: object) -> str:
    return setuid_tool.python(PRELUDE + script, str(root), **words)  # type: ignore[arg-type]


def test_executor_runs_commands(setuid_tool: SetuidTool, user_rootfs: Path) -> None:
    script = """
assert luc.why_not() == "", luc.why_not()
assert luc.maximum_possible_isolation()["network"] == "isolated"
assert run(["id", "-u"]) == (0, b"65534\\n", b"")
command = ["sh", "-c", "pwd; echo $A; exit 3"]
result = luc.run_sandbox(root, command, "/tmp", {"A": "b"}, "isolated")
assert result == (3, b"/tmp\\nb\\n", b"")
assert result.executor == "linux_user_chroot"
assert result.isolation["network"] == "isolated"
assert sh("tail -n +3 /proc/net/dev", network="isolated").out.startswith(b"    lo:")
assert sh("tail -n +3 /proc/net/dev", network="isolated").out.count(b"\\n") == 1
assert int(sh("ps -o pid | wc -l").out) <= 4
assert run(["env"]).out == b"PATH=" + os.fsencode(environment_vars()["PATH"]) + b"\\n"
assert sh("ls /proc/self/fd").out.split() == [b"0", b"1", b"2", b"3"]
assert run(["pwd"], root="/", cwd=None).out == os.fsencode(os.getcwd()) + b"\\n"
assert run(["id", "-un"], root="/").out == b"nobody\\n"
"""
    as_user(setuid_tool, user_rootfs, script)


def test_executor_read_only_roots(setuid_tool: SetuidTool, user_rootfs: Path) -> None:
    only_root_renames(user_rootfs.parent, user_rootfs)
    script = """
writes = "for at; do touch $at/new && echo $at; done; true"
places = ["/", "/tmp", "/etc", "/dev"]
two = ["/etc", "/dev"]
for writable, expected in (("all", places[1:]), ("none", []), (["tmp"], ["/tmp"]), (two, two)):
    result = sh(writes, "sh", *places, filesystem_writable_paths=writable, devices="root")
    assert result.out.decode().split() == expected, (writable, result)
more = [Mount.tmpfs("/tmp"), Mount.bind(root + "/etc", "/etc")]
more += [Mount.bind(root + "/bin", "/dev", read_only=True)]
result = sh(writes, "sh", *places, filesystem_writable_paths="none", extra_mounts=more)
assert result.out.decode().split() == ["/tmp", "/etc"], result
assert os.path.exists(root + "/etc/new")

home = os.path.dirname(root)
places = ["/var/tmp", "/tmp", "/dev/shm", root + "/tmp", home, "/mnt"]
words = {"root": "/", "cwd": "/", "devices": "root", "extra_mounts": [Mount.tmpfs("/mnt")]}
for writable, expected in (("none", []), ([root], [root + "/tmp"]), (["/dev/shm"], ["/dev/shm"])):
    result = sh(writes, "sh", *places, filesystem_writable_paths=writable, **words)
    assert result.out.decode().split() == [*expected, "/mnt"], (writable, result)
find = "ls -d /tmp/sandboxlib.*; for i in /tmp/sandboxlib.*/*; do touch $i/x && exit; done; exit 1"
result = sh(find, root="/", filesystem_writable_paths=[root])
assert result.out.count(b"sandboxlib") >= 1 and result.exit == 1, result
if os.path.exists("/dev/shm/new"):
    os.unlink("/dev/shm/new")
mounts = [Mount.tmpfs("/tmp"), Mount.bind("/usr/share", "/tmp/share")]
assert b"doc" in run(["ls", "/tmp/share"], root="/", extra_mounts=mounts).out.split()
mounts = [Mount.tmpfs(place) for place in ("/tmp", "/var/tmp", "/dev/shm")]
words = {"root": "/", "devices": "root", "extra_mounts": mounts}
assert "set TMPDIR" in str(fails(AssertionError, ["true"], **words))
"""
    as_user(setuid_tool, user_rootfs, script)


def test_executor_keeps_every_mount_below_the_root_and_protects_it(
    setuid_tool: SetuidTool, user_rootfs: Path
) -> None:
    only_root_renames(user_rootfs)
    mount = f"""
set -e
cd {user_rootfs}
mount -t tmpfs -o mode=755 none etc; mkdir -m 777 etc/in; touch etc/mark
mount -t tmpfs -o mode=777 none etc/in; touch etc/in/mark
mkdir dev/hidden; mount -t tmpfs none dev/hidden; mount -t tmpfs none dev
exec "$@"
"""
    script = """
writes = "ls /etc/mark /etc/in/mark; for at; do touch $at/new && echo $at; done; true"
both, inner = ["/etc", "/etc/in"], ["/etc/in"]
for writable, expected in (("all", inner), ("none", []), (["/etc"], inner), (inner, inner)):
    result = sh(writes, "sh", *both, filesystem_writable_paths=writable)
    seen = ["/etc/in/mark", "/etc/mark", *expected]
    assert result.out.decode().split() == seen, (writable, result)
outside = [Mount.bind(root + "/etc", "/dev", read_only=True)]
result = sh("ls /dev/in; touch /dev/in/x", extra_mounts=outside)
assert (result.exit, sorted(result.out.split())) == (1, [b"mark", b"new"]), result
outside = [Mount.bind(root + "/etc", "/dev", recursive=False)]
assert sh("ls /dev/in", extra_mounts=outside).out == b""
"""
    drop = ("sh", "-c", mount, "sh", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    as_user(setuid_tool, user_rootfs, script, uid=0, before=drop)


def test_executor_needs_no_mount_that_its_user_cannot_enter(
    setuid_tool: SetuidTool, user_rootfs: Path
) -> None:
    """As /sys/kernel/tracing is on most machines. Its own it could open with chmod(1)."""
    only_root_renames(user_rootfs.parent, user_rootfs)
    script = """
command = "for at in /closed /closed/in /tmp; do touch $at/new && echo $at; done; true"
whole = {"root": "/", "cwd": "/", "extra_mounts": [Mount.bind(root, "/mnt")]}
for words in ({"root": root}, whole):
    result = sh(command, filesystem_writable_paths="none", devices="root", **words)
    assert result.out == b"", result
result = sh(command, filesystem_writable_paths="all", devices="root")
assert result.out.split() == [b"/tmp"], result
"""
    refused = """
fails(PermissionError, ["true"], filesystem_writable_paths="none", devices="root")
"""
    for owner, told in (("0", script), ("65534", refused)):
        mount = f"""
set -e
cd {user_rootfs}
mkdir -p closed; mount -t tmpfs -o mode=700 none closed
mkdir -m 777 closed/in; chmod 000 closed; chown {owner} closed
exec "$@"
"""
        drop = ("sh", "-c", mount, "sh", "setpriv", "--reuid=65534", "--regid=65534")
        as_user(setuid_tool, user_rootfs, told, uid=0, before=(*drop, "--clear-groups"))


def test_executor_follows_no_link_out_of_the_root(
    setuid_tool: SetuidTool, user_rootfs: Path
) -> None:
    (user_rootfs / "out").symlink_to("/../../../../../../../../../mnt")
    (user_rootfs / "mnt").mkdir()
    os.chown(user_rootfs / "mnt", 65534, 65534)
    script = """
result = sh("touch /mnt/here; ls /mnt /out", extra_mounts=[Mount.tmpfs("/out")])
assert result.out.count(b"here") == 2, result
assert os.listdir(root + "/mnt") == []
"""
    as_user(setuid_tool, user_rootfs, script)


def test_executor_tells_failures_from_status_1(setuid_tool: SetuidTool, user_rootfs: Path) -> None:
    script = """
log = open("/dev/null", "ab")
for streams in ({}, {"stderr": STDOUT}, {"stderr": None}, {"stdout": log, "stderr": STDOUT}):
    assert run(["false"], **streams).exit == 1
    assert sh("echo 'chdir: it failed' >&2; exit 1", **streams).exit == 1
    assert sh("kill -9 $$", processes="undefined", **streams).exit == 1
    error = fails(FileNotFoundError, ["none"], **streams)
    assert (error.step, error.filename) == ("exec", "none")
    assert fails(PermissionError, ["/etc"], **streams).step == "exec"
    error = fails(FileNotFoundError, ["true"], cwd="/none", **streams)
    assert (error.step, error.filename) == ("cwd", "/none")
    env = run(["env"], extra_env={"X": "y"}, **streams).out
    assert env is None or sorted(word[:4] for word in env.split()) == [b"PATH", b"X=y"], env
error = fails(FileNotFoundError, ["true"], root="/none")
assert error.step == "root"
assert fails(OSError, ["true"], root=root + "/bin/busybox").step == "root"
more = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
for stdin in (None, b"", b"a\\nb", bytearray(1 << 20)):
    assert fails(FileNotFoundError, ["none"], stdin=stdin, stderr=None).step == "exec"
    assert fails(OSError, ["/etc/group"], stdin=stdin, stderr=None).step == "exec"
    assert run(["cat"], stdin=stdin, stderr=None) == (0, bytes(stdin or b""), None)
    assert run(["false"], stdin=stdin, stderr=None).exit == 1
assert b"a.b=c" in run(["env"], extra_env={"a.b": "c"}, stderr=None).out.split()
os.unlink(root + "/bin/sh")
assert run(["false"], stderr=None).exit == 1
"""
    as_user(setuid_tool, user_rootfs, script)


def test_executor_reports_what_the_kernel_refuses(
    setuid_tool: SetuidTool, user_rootfs: Path
) -> None:
    script = """
real = luc.command_line
luc.command_line = lambda *args: [*real(*args)[:1], "--mount-proc", "/none", *real(*args)[1:]]
error = fails(FileNotFoundError, ["true"])
assert error.step == "mount" and 'mount ("proc")' in str(error), error
error = fails(OSError, ["true"], stderr=None)
assert error.step == "mount" and "stderr" in str(error), error
"""
    as_user(setuid_tool, user_rootfs, script)


def test_executor_hands_over_what_the_loader_removes(
    setuid_tool: SetuidTool, user_rootfs: Path
) -> None:
    script = """
env = {"TMPDIR": "/x", "LD_LIBRARY_PATH": "/y", "TOKEN": "secret"}
result = run(["env"], extra_env=env)
assert set(result.out.split()) >= {b"TMPDIR=/x", b"LD_LIBRARY_PATH=/y", b"TOKEN=secret"}, result
assert b"secret" not in sh("cat /proc/1/cmdline", extra_env=env).out
os.unlink(root + "/bin/env")
assert "LD_LIBRARY_PATH, TMPDIR" in str(fails(AssertionError, ["true"], extra_env=env))
"""
    as_user(setuid_tool, user_rootfs, script)


def test_executor_timeouts_end_the_whole_group(setuid_tool: SetuidTool, user_rootfs: Path) -> None:
    mark = f"{os.getpid()}077"
    script = """
for processes in ("isolated", "undefined"):
    for timeout in (0.5, 5, 40):
        words = {"timeout": timeout, "processes": processes}
        result = sh("echo begun; sleep $0 & sleep $0", sys.argv[2], **words)
        assert result.timed_out
        if result.out:
            break
    assert result.out == b"begun\\n", result
    assert run(["sleep", "9"], stderr=None, timeout=0.2).timed_out
"""
    setuid_tool.python(PRELUDE + script, str(user_rootfs), mark)
    assert wait_until(lambda: not processes(mark))


def test_executor_shares_no_processes_where_the_root_is_read_only(
    setuid_tool: SetuidTool, user_rootfs: Path
) -> None:
    script = """
import subprocess
path = os.path.dirname(root) + "/outside"
open(path, "w").close()
attempt = f"echo gone > /proc/$0/root{path}"
words = {"processes": "undefined", "extra_mounts": [Mount.proc()]}
error = fails(AssertionError, ["true"], filesystem_writable_paths="none", **words)
assert "read-only root" in str(error) and "isolate processes" in str(error), error
assert sh(attempt, str(os.getpid()), **words).exit == 0  # nothing was promised
assert os.path.getsize(path) == 5
"""
    as_user(setuid_tool, user_rootfs, script)


def test_executor_leaves_nothing_behind(setuid_tool: SetuidTool, user_rootfs: Path) -> None:
    script = """
scratch = os.environ["TMPDIR"] = os.path.dirname(root) + "/scratch"
os.mkdir(scratch)
def state():
    mounts = subprocess.check_output(["grep", "-v", " - fuse", "/proc/self/mountinfo"])
    return sorted(os.listdir(root)), os.listdir("/proc/self/fd"), os.listdir(scratch), mounts
luc.why_not()
before = state()
mounts = [Mount.tmpfs("/new"), Mount.bind("/usr", "/usr")]
words = {"extra_mounts": mounts}
assert sh("mkdir -p /new/a/b; touch /new/a/b/c; chmod 0 /new/a; ls /usr/bin", **words).exit == 0
assert state() == before
fails(FileNotFoundError, ["none"], **words)
fails(FileNotFoundError, ["none"], stderr=None, **words)
fails(FileNotFoundError, ["true"], extra_mounts=[Mount.tmpfs("/new"), Mount.bind("/none", "/x")])
assert state() == before
"""
    as_user(setuid_tool, user_rootfs, script)


def test_executor_as_ybd_calls_it(setuid_tool: SetuidTool, user_rootfs: Path) -> None:
    for name in ("foo.build", "foo.inst"):
        (user_rootfs / name).mkdir()
        os.chown(user_rootfs / name, 65534, 65534)
    only_root_renames(user_rootfs)
    script = """
home = os.path.dirname(root)
os.mkdir(home + "/ccache")
config = luc.degrade_config_for_capabilities({
    "cwd": "foo.build", "filesystem_root": root, "mounts": "isolated", "network": "isolated",
    "filesystem_writable_paths": ["foo.build", "foo.inst", "/dev", "/proc", "/tmp", "/none"],
    "extra_mounts": [(home + "/ccache", "/tmp/ccache", None, "bind"),
                     ("tmpfs", "/dev/shm", "tmpfs"), ("proc", "/proc", "proc")]})
env = {"PATH": "/bin", "TMPDIR": "/tmp"}
with open(home + "/log", "ab") as log:
    for command in ("pwd; touch made /tmp/ccache/object /dev/shm/x; echo $TMPDIR", "touch /etc/x",
                    "ls /dev/shm; kill -9 $$", "exit 7"):
        log.write(b"# " + command.encode() + b"\\n")
        log.flush()
        print(luc.run_sandbox_with_redirection(
            ["sh", "-c", "-e", command], stdout=log, stderr=STDOUT, env=env, **config))
print(open(home + "/log").read())
print(os.path.exists(root + "/foo.build/made"), os.listdir(home + "/ccache"))
print(os.listdir(root + "/dev"))
"""
    printed = as_user(setuid_tool, user_rootfs, script).splitlines()
    assert printed[:4] == ["0", "1", "1", "7"]
    assert printed[5:7] == ["/foo.build", "/tmp"]
    assert "touch: /etc/x: Read-only file system" in printed
    assert printed[-2:] == ["True ['object']", "[]"]


def test_executor_for_a_caller_that_is_root(setuid_tool: SetuidTool, user_rootfs: Path) -> None:
    script = """
assert "capabilities" in str(fails(AssertionError, ["true"]))
assert run(["id", "-u"], capabilities="all").out == b"0\\n"
assert b"TMPDIR=/x" in run(["env"], capabilities="all", extra_env={"TMPDIR": "/x"}).out
"""
    as_user(setuid_tool, user_rootfs, script, uid=0)


def test_executor_with_release_2013(setuid_tool: SetuidTool, user_rootfs: Path) -> None:
    script = """
assert "no_new_privs" in str(fails(AssertionError, ["true"]))
assert "minimal /dev" in str(fails(AssertionError, ["true"], no_new_privs=False))
assert run(["true"], no_new_privs=False, devices="root").exit == 0
words = {"no_new_privs": False, "devices": "root", "extra_mounts": [Mount.tmpfs("/tmp")] * 60}
assert "49 at most in version 2013.1" in str(fails(AssertionError, ["true"], **words))
"""
    as_user(setuid_tool, user_rootfs, script, variant="2013.1")


def test_executor_with_the_variant_that_leaks(setuid_tool: SetuidTool, user_rootfs: Path) -> None:
    script = """
assert run(["true"]).exit == 0
assert "leaves open" in str(fails(AssertionError, ["true"], extra_mounts=[Mount.tmpfs("/tmp")]))
"""
    as_user(setuid_tool, user_rootfs, script, variant="file binds")


# ---- when it can be used at all --------------------------------------------------------------


def reason(setuid_tool: SetuidTool, **words: object) -> str:
    script = "from sandboxlib import linux_user_chroot as luc; print(luc.why_not())"
    env = {"PYTHONPATH": str(Path(luc.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    done = setuid_tool.run(*python(), "-c", script, **env, **words)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_reasons_why_not(setuid_tool: SetuidTool) -> None:
    assert reason(setuid_tool) == ""
    assert "not owned by root and set-user-ID" in reason(setuid_tool, mode="0755")
    assert reason(setuid_tool, mode="0755", uid=0) == ""
    assert "nosuid" in reason(setuid_tool, options="nosuid")
    assert "no_new_privs" in reason(setuid_tool, before=("setpriv", "--no-new-privs"))
    read_only = 'mount -o remount,bind,ro / && exec setpriv --reuid=65534 --clear-groups "$0" "$@"'
    assert "read-only" in reason(setuid_tool, uid=0, before=("sh", "-c", read_only))
    drop = ("setpriv", "--bounding-set=-sys_admin", "--reuid=65534", "--clear-groups")
    assert "clone: Operation not permitted" in reason(setuid_tool, uid=0, before=drop)


def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes programs from directories that others can write as well."""
    monkeypatch.setattr(luc.tools, "_walk", lambda path: (path, ""))


def test_it_is_found_in_path_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "linux-user-chroot"
    monkeypatch.setenv("PATH", f"/none:.::{tmp_path}")
    monkeypatch.setattr(luc, "DIRECTORIES", ())
    anywhere(monkeypatch)
    assert luc.find_tool() is None
    tool.touch()
    assert luc.find_tool() is None
    tool.chmod(0o755)
    assert luc.find_tool() == str(tool)
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    assert luc.find_tool() is None


def test_a_program_that_does_not_work_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("an ordinary user needs one that is set-user-ID")
    tool = tmp_path / "linux-user-chroot"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    anywhere(monkeypatch)
    for content, words in (
        ("", "Exec format error"),
        ("#!/bin/sh\nexit 3\n", "exit status 3"),
        ("#!/bin/sh\necho broken >&2; exit 1\n", "broken"),
    ):
        tool.write_text(content)
        tool.chmod(0o755)
        assert words in luc.why_not()
        with pytest.raises(UnsupportedError, match=words):
            luc.run_sandbox("/", ["true"])
    calls = tmp_path / "calls"
    tool.write_text(f"#!/bin/sh\necho >> {calls}; echo 2015.1\n")
    for _ in range(3):
        assert luc.why_not() == ""
    assert len(calls.read_text()) == 3


def test_the_import_stays_cheap() -> None:
    heavy = {"subprocess", "tempfile", "shutil", "typing", "dataclasses", "inspect"}
    script = "import sandboxlib.linux_user_chroot, sys, json; print(json.dumps(list(sys.modules)))"
    argv = [*python(), "-S", "-c", script]
    env = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    assert not heavy & set(json.loads(done.stdout))
