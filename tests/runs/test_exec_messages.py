# SPDX-License-Identifier: Apache-2.0
"""A command that cannot be executed is told the cause and what to do, in every way of running; and
no file of the root, however hostile, misuses that.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import many, needs_root, python
from lib.roots import make_rootfs

import sandboxlib
from sandboxlib import Mount, Result, Sandbox, SetupError
from sandboxlib._core.files import Descriptor
from sandboxlib._host import machine
from sandboxlib._runs.look import Look

pytest_plugins = ["lib.ways", "lib.setuid_tool"]

OTHER = ("aarch64", 183) if os.uname().machine == "x86_64" else ("x86_64", 62)
SECRET = "kept-outside"


def elf(number: int | None = None, loader: bytes = b"/lib64/no-such-loader.so") -> bytes:
    """A program that takes a loader: enough of it for execve(2)."""
    own = Path("/proc/self/exe").read_bytes()[:64]
    number = struct.unpack_from("<H", own, 18)[0] if number is None else number
    size = 64 + 2 * 56
    header = own[:16] + struct.pack(
        "<HHIQQQIHHHHHH", 2, number, 1, size, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )
    end = size + len(loader) + 1
    interp = struct.pack("<IIQQQQQQ", 3, 4, size, size, size, len(loader) + 1, len(loader) + 1, 1)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, end, end, 4096)
    return header + interp + load + loader + b"\0"


FILES: dict[str, tuple[bytes, int]] = {
    "foreign": (elf(OTHER[1]), 0o755),
    "dynamic": (elf(), 0o755),
    "crlf": (b"#!/bin/sh\r\necho\r\n", 0o755),
    "crlf-args": (b"#!/bin/no-sh -e\r\n", 0o755),
    "python9": (b"#!/usr/bin/python9 -E\n", 0o755),
    "by-link": (b"#!/bin/gone\n", 0o755),
    "chain": (b"#!/bin/python9\n", 0o755),
    "foreign-script": (b"#!/bin/foreign\n", 0o755),
    "no-x": (b"#!/bin/sh\n", 0o644),
    "no-x-program": (elf(), 0o644),
    "by-no-x": (b"#!/bin/no-x\n", 0o755),
    "text": (b"echo\n", 0o755),
    "bom": (b"\xef\xbb\xbf#!/bin/sh\n", 0o755),
    "nothing": (b"#!\n", 0o755),
    "empty": (b"", 0o755),
    "windows.exe": (b"MZ\x90\0", 0o755),
    "packed.tgz": (b"\x1f\x8b\x08\0", 0o755),
    "with space": (b"#!/bin/none\n", 0o755),
    "evil\x1b[2Jname": (b"#!/bin/x\x1b]0;y\n", 0o755),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with programs that cannot be executed."""
    root = make_rootfs(tmp_path_factory.mktemp("broken") / "root")
    for name, (content, mode) in FILES.items():
        (root / "bin" / name).write_bytes(content)
        (root / "bin" / name).chmod(mode)
    (root / "bin" / "gone").symlink_to("/opt/none")
    (root / "bin" / "loop").symlink_to("loop")
    (root / "programs").symlink_to("bin")
    os.mkfifo(root / "bin" / "fifo", 0o755)
    (root / "bin" / "by-fifo").write_text("#!/bin/fifo\n")
    (root / "bin" / "by-fifo").chmod(0o755)
    (root / "work").mkdir()
    outside = root.parent / "outside"
    outside.write_text(f"#!/{SECRET}\n")
    outside.chmod(0o755)
    (root / "bin" / "out").symlink_to(os.path.relpath(outside, root / "bin"))
    (root / "bin" / "by-out").write_text("#!/bin/out\n")
    (root / "bin" / "by-out").chmod(0o755)
    return root


#: command: the errno, and what the message says.
CASES: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    "no slash": (["no-such"], "ENOENT", ("in the PATH of the sandbox (/usr/local/sbin:",)),
    "blanks": ("echo hello", "ENOENT", ("never split", "['echo', 'hello']")),
    "blanks in a list": (["/bin/ls -l 'a b'"], "ENOENT", ("['/bin/ls', '-l', 'a b']",)),
    "a builtin in a str": ("export A=1", "ENOENT", ("itself: ['sh', '-c', 'export A=1']",)),
    "a newline": (["sh\n"], "ENOENT", ("white space belongs to the name: write 'sh'",)),
    "a blank before": ([" sh"], "ENOENT", ("white space belongs to the name: write 'sh'",)),
    "a pipe": ("ls | wc", "ENOENT", ("['sh', '-c', LINE]",)),
    "a builtin": (["cd", "/work"], "ENOENT", ("['sh', '-c', 'cd /work']",)),
    "a variable": (["CC=gcc", "make"], "ENOENT", ("extra_env={'CC': ...}",)),
    "a tilde": (["~/bin/x"], "ENOENT", ("no shell expands '~'",)),
    "relative": (["./configure"], "ENOENT", ("counts from", "directory '/'", "cwd=")),
    "absolute": (["/opt/bin/x"], "ENOENT", ("the root has no /opt",)),
    "outside": (["/proc/self/no"], "ENOENT", ("proc on /proc hides",)),
    "a link to nothing": (
        ["/bin/gone"],
        "ENOENT",
        ("/bin/gone is a symbolic link to '/opt/none'",),
    ),
    "below a link": (["/programs/none"], "ENOENT", ("the root has no /bin/none",)),
    "below a file": (["/bin/sh/x"], "ENOENT", ("/bin/sh is no directory",)),
    "a loop": (["/bin/loop"], "ELOOP", ("a loop of symbolic links",)),
    "a foreign program": (["foreign"], "ENOEXEC", (OTHER[0], os.uname().machine)),
    "a foreign interpreter": (["foreign-script"], "ENOEXEC", ("interpreter", OTHER[0])),
    "a missing loader": (["dynamic"], "ENOENT", ("'/lib64/no-such-loader.so'", "no /lib64")),
    "CR LF": (["crlf"], "ENOENT", ("CR LF", r"'/bin/sh\r'", r"sed -i 's/\r$//' /bin/crlf")),
    "CR LF behind arguments": (["crlf-args"], "ENOENT", ("'/bin/no-sh'",)),
    "a missing interpreter": (
        ["python9"],
        "ENOENT",
        ("'/usr/bin/python9'", "the root has no /usr"),
    ),
    "an interpreter's interpreter": (["chain"], "ENOENT", ("'/usr/bin/python9'",)),
    "an interpreter by a link": (["by-link"], "ENOENT", ("link to '/opt/none'",)),
    "no permission": (["no-x"], "EACCES", ("mode 0644", "chmod +x", "['/bin/sh', '/bin/no-x']")),
    "no permission, a program": (["/bin/no-x-program"], "EACCES", ("mode 0644", "chmod +x")),
    "no permission, an interpreter": (["by-no-x"], "EACCES", ("its interpreter '/bin/no-x'",)),
    "a directory": (["/bin"], "EACCES", ("it is a directory",)),
    "a FIFO": (["fifo"], "EACCES", ("it is a FIFO",)),
    "a FIFO as interpreter": (["by-fifo"], "EACCES", ("its interpreter '/bin/fifo'", "a FIFO")),
    "no #!": (["text"], "ENOEXEC", ("['sh', '/bin/text']",)),
    "a byte order mark": (["bom"], "ENOEXEC", ("byte order mark",)),
    "nothing behind #!": (["nothing"], "ENOEXEC", ("names no interpreter",)),
    "empty": (["empty"], "ENOEXEC", ("/bin/empty is empty",)),
    "Windows": (["windows.exe"], "ENOEXEC", ("for Windows",)),
    "an archive": (["packed.tgz"], "ENOEXEC", ("gzip",)),
    "a name with a blank": (["with space", "x"], "ENOENT", ("'/bin/none'",)),
    "a hostile name": (["evil\x1b[2Jname", "x"], "ENOENT", (r"\x1b[2Jname", r"/bin/x\x1b]0;y")),
    "a link out": (["/bin/out"], "ENOENT", ("/bin/out is a symbolic link to",)),
    "an interpreter by a link out": (["by-out"], "ENOENT", ("/bin/out is a symbolic link to",)),
}


@pytest.fixture(params=["chroot", "user_namespace"])
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As in lib/ways.py; skipped where it does not work."""
    monkeypatch.setenv("SANDBOXLIB_BACKEND", request.param)
    if reason := sandboxlib.get_executor(request.param).why_not():
        pytest.skip(reason)
    return str(request.param)


def told(run: Callable[[], object]) -> SetupError:
    try:
        failed = run()
    except SetupError as error:
        return error
    assert isinstance(failed, SetupError)  # a map with on_failure="continue"
    return failed


@pytest.mark.parametrize("case", CASES)
def test_the_message_says_the_cause_and_what_to_do(
    run: Callable[..., Result], broken: Path, case: str
) -> None:
    command, name, words = CASES[case]
    before = os.listdir("/proc/self/fd")
    error = told(lambda: run(broken, command))
    assert f"({name}, step exec); " in str(error)
    for word in words:
        assert word in error.hint
    assert SECRET not in str(error)
    assert error.hint.isprintable()
    assert len(os.listdir("/proc/self/fd")) <= len(before) + 8  # those of a slot


#: What a program tells of a failed exec differs: bwrap's execvp gives text files to /bin/sh.
_BY_SHELL = {name for name, (_, number, _) in CASES.items() if number == "ENOEXEC"}


@pytest.mark.parametrize("case", sorted(CASES.keys() - _BY_SHELL))
@pytest.mark.parametrize("executor", ["bubblewrap"])
def test_bubblewrap_says_the_same(
    monkeypatch: pytest.MonkeyPatch, broken: Path, case: str, executor: str
) -> None:
    found = sandboxlib.get_executor(executor)
    if found.why_not():
        pytest.skip(found.why_not())
    monkeypatch.setenv("SANDBOXLIB_BACKEND", executor)
    command, name, words = CASES[case]
    error = told(lambda: open_box(broken).run(command, cwd="/"))
    assert ", step exec); " in str(error)
    assert error.errno in (getattr(errno, name), errno.ENOTDIR)
    for word in words:
        assert word in error.hint
    assert SECRET not in str(error)


#: What linux-user-chroot's stead looks up before: the rest ends with exit status 126 or 127.
@pytest.mark.parametrize(
    "case", ["no slash", "blanks", "relative", "absolute", "a directory", "no permission"]
)
def test_linux_user_chroot_says_the_same(
    monkeypatch: pytest.MonkeyPatch, tool_path: str, broken: Path, case: str
) -> None:
    monkeypatch.setenv("PATH", tool_path)
    found = sandboxlib.get_executor("linux_user_chroot")
    if found.why_not():
        pytest.skip(found.why_not())
    command, name, words = CASES[case]
    capabilities = "all" if os.geteuid() == 0 else "default"
    box = open_box(broken, policy=sandboxlib.Policy(capabilities=capabilities))
    error = told(lambda: found.run_in(box, command, cwd="/"))
    assert f"({name}, step exec); " in str(error)
    for word in words:
        assert word in error.hint


def test_a_program_in_the_private_tmp_is_told_so(run: Callable[..., Result], broken: Path) -> None:
    (broken / "tmp" / "x").write_text("#!/bin/sh\n")
    error = told(lambda: run(broken, ["/tmp/x"], tmp="private"))
    assert "the private /tmp hides" in error.hint
    assert "tmp='root'" in error.hint


def test_a_program_that_the_caller_has_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "program").write_text("#!/bin/sh\n")
    error = told(lambda: open_box(tmp_path / "root").run([str(tmp_path / "program")]))
    assert "outside of the root" in error.hint
    assert "Mount.bind" in error.hint


def test_a_bind_is_looked_into_as_the_command_sees_it(broken: Path, tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("#!/no/such/interpreter\n")
    (tmp_path / "tool").chmod(0o755)
    (tmp_path / "alias").symlink_to("/opt/tools/tool")
    mounts = [Mount.bind(tmp_path, "/opt/tools"), Mount.bind(tmp_path / "tool", "/work/one")]
    box = open_box(broken, extra_mounts=mounts)
    for program in ("/opt/tools/tool", "/opt/tools/alias", "/work/one", "/opt/../opt/tools/./tool"):
        error = told(lambda program=program: box.run([program]))  # type: ignore[misc]
        assert "'/no/such/interpreter'" in error.hint, program


def test_an_executable_is_told_by_its_own_name(broken: Path) -> None:
    box = open_box(broken)
    for executable, words in (
        ("./x", "counts from"),
        ("/opt/x", "the root has no /opt"),
        ("crlf", "CR LF"),
        ("none", "in the PATH"),
    ):
        with pytest.raises(SetupError) as caught:
            box.run(["/bin/sh", "x"], executable=executable, cwd="/")
        assert words in str(caught.value)


@needs_root
def test_a_directory_that_the_ids_may_not_enter_is_named(broken: Path) -> None:
    private = broken / "work" / "private"
    private.mkdir(mode=0o700)
    (private / "x").write_text("#!/bin/sh\n")
    (private / "x").chmod(0o755)
    error = told(lambda: open_box(broken, user=1000).run(["/work/private/x"], cwd="/"))
    assert "uid 1000 may not enter /work/private (mode 0700, owner 0)" in error.hint


@needs_root
def test_a_mount_with_noexec_is_told_so(broken: Path) -> None:
    script = """
import os, sys
import sandboxlib
directory = sys.argv[1] + "/work"
os.chmod(directory, 0o755)
try:
    sandboxlib.Sandbox(sys.argv[1]).run(["/work/x"], cwd="/")
except sandboxlib.SetupError as error:
    print(error)
"""
    shell = 'mount -t tmpfs -o noexec none "$1/work" && cp "$1/bin/sh" "$1/work/x" && exec "${@:2}"'
    argv = ["unshare", "-m", "bash", "-c", shell, "bash", str(broken), *python(), "-c", script]
    done = subprocess.run([*argv, str(broken)], capture_output=True, text=True, check=False)
    assert "EACCES, step exec); it lies on a mount with noexec" in done.stdout, done.stderr


# ---- hostile files -----------------------------------------------------------------------------


def test_a_file_without_end_is_read_in_part(broken: Path) -> None:
    with open(broken / "work" / "endless", "wb") as file:
        file.write(b"#!/" + b"x" * 300)
        file.truncate(1 << 40)
    (broken / "work" / "endless").chmod(0o755)
    error = told(lambda: open_box(broken).run(["/work/endless"], cwd="/"))
    assert len(str(error)) < 2000


@pytest.mark.parametrize("seed", range(3))
def test_a_broken_header_is_no_error_of_ours(broken: Path, seed: int) -> None:
    import random

    chance = random.Random(seed)
    path = broken / "work" / "random"
    box = open_box(broken)
    for _ in range(many(15, 100)):
        content = bytearray(elf())
        for _ in range(chance.randrange(1, 12)):
            content[chance.randrange(4, len(content))] = chance.randrange(256)
        path.write_bytes(content[: chance.randrange(4, len(content))])
        path.chmod(0o755)
        try:
            box.run(["/work/random"], cwd="/", timeout=20)
        except SetupError as error:
            assert error.step == "exec"  # noqa: PT017


def test_no_name_leads_out_while_links_change(broken: Path) -> None:
    """A directory that is swapped for a link out all the time."""
    work = broken / "work"
    for name, content in (("swap-a", "#!/inside\n"), ("swap-out", "")):
        (work / name).mkdir()
        if content:
            (work / name / "x").write_text(content)
            (work / name / "x").chmod(0o755)
    outside = broken.parent / "swapped"
    outside.mkdir()
    (outside / "x").write_text(f"#!/{SECRET}\n")
    (outside / "x").chmod(0o755)
    (work / "swap-link").symlink_to("../" * 20 + str(outside).lstrip("/"))
    is_over = threading.Event()

    def swap() -> None:
        while not is_over.is_set():
            for name in ("swap-a", "swap-link"):
                os.rename(work / name, work / "swap")
                os.rename(work / "swap", work / name)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        box = open_box(broken)
        for _ in range(many(100, 1000)):
            with Look(box) as look:
                found = look.find("/work/swap/x")
                assert SECRET.encode() not in look.read(found, 4096)
                assert found.path in ("", "/work/swap/x")
    finally:
        is_over.set()
        thread.join()


def test_a_file_system_that_may_not_answer_is_left_alone(
    broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = broken / "work" / "slow"
    slow.mkdir()
    (slow / "x").write_text("#!/none\n")
    monkeypatch.setattr(machine, "hanging_mounts", lambda: frozenset([str(slow.resolve())]))
    opened: list[str] = []
    real = Descriptor.open_in_root

    def watched(self: Descriptor, directory: int, path: str, flags: int) -> None:
        opened.append(path)
        real(self, directory, path, flags)

    monkeypatch.setattr(Descriptor, "open_in_root", watched)
    with Look(open_box(broken)) as look:
        for path in ("/work/slow/x", "/work/slow", "/work/../work/./slow/x"):
            found = look.find(path)
            assert found.status is None
            assert not found.missing
    assert opened
    assert not [path for path in opened if "slow" in path]


def test_a_look_follows_links_as_the_kernel_does(broken: Path) -> None:
    work = broken / "work"
    (work / "d").mkdir()
    (work / "d" / "file").write_text("")
    for number in range(45):
        target = f"/work/l{number + 1}" if number < 44 else "/work/d"
        (work / f"l{number}").symlink_to(target)
    with Look(open_box(broken)) as look:
        assert look.find("/work/l10/file").path == "/work/d/file"
        assert look.find("l10/../d/file", "/work").path == "/work/d/file"
        assert look.find("/../../work/d/./file").path == "/work/d/file"
        assert not look.find("/work/l0/file").is_there  # more than 40 links
        assert look.find("/work/d/file/").no_directory == "/work/d/file"
        assert look.find("/work/d/none/x").missing == "/work/d/none"
        assert look.find("/work/" + "d/../" * 300 + "d").status is None  # more than anybody needs


def test_nothing_is_read_of_what_is_no_regular_file(broken: Path) -> None:
    with Look(open_box(broken)) as look:
        for path in ("/bin/fifo", "/bin"):
            found = look.find(path)
            assert found.status is not None
            assert not stat.S_ISREG(found.status.st_mode)
            assert look.read(found, 100) == b""


# ---- the other names of a run --------------------------------------------------------------------


def test_a_cwd_is_told_what_it_lacks(run: Callable[..., Result], broken: Path) -> None:
    del run  # its way has a cwd of its own
    box = Sandbox(broken, extra_mounts=[Mount.tmpfs("/work")])
    for cwd, words in (
        ("/opt/x", "the root has no /opt"),
        ("/bin/gone", "/bin/gone is a symbolic link to '/opt/none'"),
        ("/tmp/x", "the private /tmp hides"),
        ("/work/x", "mount 0: tmpfs on /work hides"),
    ):
        error = told(lambda cwd=cwd: box.run(["true"], cwd=cwd))  # type: ignore[misc]
        assert words in error.hint
    assert "/bin/sh is no directory" in told(lambda: box.run(["true"], cwd="/bin/sh")).hint


@needs_root
def test_a_path_that_is_not_there_is_told_where_it_counts(broken: Path) -> None:
    missing = Sandbox(broken, filesystem_writable_paths=["/var/none"])
    assert "inside the root, which has to be there" in told(lambda: missing.run(["true"])).hint
    tilde = Sandbox(broken, extra_mounts=[Mount.bind("~/none", "/work")])
    for run in (lambda: tilde.run(["true"]), lambda: Sandbox(broken).run(["true"], cwd="~/none")):
        assert "'~' is not expanded: os.path.expanduser()" in told(run).hint


@pytest.mark.parametrize("executor", ["user_namespace", "bubblewrap"])
def test_a_target_that_the_caller_may_not_make_has_a_remedy(
    monkeypatch: pytest.MonkeyPatch, executor: str
) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may make it")
    found = sandboxlib.get_executor(executor)
    if found.why_not():
        pytest.skip(found.why_not())
    monkeypatch.setenv("SANDBOXLIB_BACKEND", executor)
    for target, remedy in (("/no-such", "below /tmp"), ("/usr/no-such/x", "Mount.tmpfs('/usr')")):
        for make in (Mount.bind("/etc", target), Mount.tmpfs(target)):
            with pytest.raises(PermissionError) as caught:
                Sandbox("/", extra_mounts=[make]).run(["true"], cwd="/")
            assert f"the root lacks {target.removesuffix('/x')}" in str(caught.value)
            assert remedy in str(caught.value)
    mounts = [Mount.tmpfs("/usr"), Mount.bind("/etc", "/usr/no-such")]
    with pytest.raises(FileNotFoundError):
        Sandbox("/", extra_mounts=mounts).run(["/usr/bin/no-such-program"], cwd="/")
