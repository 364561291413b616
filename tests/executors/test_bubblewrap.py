# SPDX-License-Identifier: Apache-2.0
"""What bwrap does otherwise than the native executors, and what is made of it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from lib.boxes import open_box
from lib.machine import require

from sandboxlib import Mount, Policy, SetupError, UnsupportedError, bubblewrap

EXECUTORS = ["chroot", "user_namespace", "bubblewrap"]


@pytest.fixture(autouse=True)
def _bwrap_works() -> None:
    reason = bubblewrap.why_not()
    require("no bwrap" not in reason, reason)
    if reason:
        pytest.skip(reason)


@pytest.mark.every_way
@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_file_that_is_no_program_is_not_given_to_a_shell(
    rootfs: Path, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOXLIB_BACKEND", executor)
    script = rootfs / "bin" / "script"
    script.write_text("echo a shell ran it\n")
    script.chmod(0o755)
    (rootfs / "bin" / "other").symlink_to("/bin/script")
    try:
        for name in ("/bin/script", "script", "other"):
            with open_box(rootfs) as box, pytest.raises(SetupError, match="ENOEXEC") as caught:
                box.run([name])
            assert caught.value.step == "exec"
    except UnsupportedError as error:
        pytest.skip(str(error))


SUBREAPER = """
import ctypes, json, os, sys
from sandboxlib import Sandbox, bubblewrap
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
with Sandbox(sys.argv[1]) as box:
    bubblewrap.run_in(box, ["true"])
    bubblewrap.run_in(box, ["sh", "-c", "sleep 1000 & exit 3"])
    bubblewrap.run_in(box, ["sleep", "1000"], timeout=0.2)
    try:
        bubblewrap.run_in(box, ["none"])
    except FileNotFoundError:
        pass
try:
    left = os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    left = None
print(json.dumps(left))
"""


def test_a_caller_that_is_a_subreaper_is_left_no_process(shared_rootfs: Path) -> None:
    argv = [sys.executable, "-c", SUBREAPER, str(shared_rootfs)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) is None


def test_it_binds_a_thousand_files_of_a_directory(
    rootfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOXLIB_BACKEND", "bubblewrap")
    sources = tmp_path / "sources"
    (rootfs / "t").mkdir()
    sources.mkdir()
    for number in range(1000):
        (sources / str(number)).write_text(f"{number}\n")
        (rootfs / "t" / str(number)).touch()
    mounts = [Mount.bind(sources / str(n), f"/t/{n}", read_only=n % 2 == 0) for n in range(1000)]
    with open_box(rootfs, extra_mounts=mounts) as box:
        script = "cat /t/0 /t/999; echo x >> /t/0; echo x >> /t/999"
        result = box.run(["sh", "-c", script])
    assert result.out == b"0\n999\n"
    assert result.err.count(b"Read-only") == 1 if result.err else False
    assert (sources / "999").read_text() == "999\nx\n"


MANY = ["x"] * 9500


@pytest.mark.parametrize("is_writable", [True, False])
def test_a_command_may_have_more_words_than_bwrap_takes(
    shared_rootfs: Path, monkeypatch: pytest.MonkeyPatch, is_writable: bool
) -> None:
    monkeypatch.setenv("SANDBOXLIB_BACKEND", "bubblewrap")
    paths: str | list[str] = "all" if is_writable else []
    words = [str(number) for number in range(9500)]
    script = 'echo $0 $# $1 ${9500} "$A"; pwd; exit 3'
    with open_box(shared_rootfs, filesystem_writable_paths=paths) as box:
        result = box.run(["sh", "-c", script, "zero", *words], cwd="/bin", extra_env={"A": "a b"})
        assert (result.exit, result.out) == (3, b"zero 9500 0 9499 a b\n/bin\n")
        assert box.run(["./true", *words], cwd="/bin").exit == 0
        assert box.run(["sh", "-c", "kill -9 $$", *words]).exit == 128 + 9
        assert box.run(["sleep", "1000", *["0"] * 9500], timeout=0.5).timed_out


def test_the_words_leave_nothing_to_a_command(
    shared_rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOXLIB_BACKEND", "bubblewrap")
    script = "readlink /proc/self/exe; ls /proc/self/fd; ls -l /proc/1/fd"
    with open_box(shared_rootfs) as box:
        few, many = (box.run(["sh", "-c", script, *MANY[:n]]).out or b"" for n in (1, 9500))
    assert many.split()[:5] == few.split()[:5]
    assert b"0\n1\n2\n3\n" in many
    assert b"memfd" not in many


def test_many_words_and_descriptors_go_together(
    shared_rootfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOXLIB_BACKEND", "bubblewrap")
    (tmp_path / "file").write_text("content")
    with open_box(shared_rootfs) as box, contextlib.ExitStack() as files:
        passed = [files.enter_context(open(tmp_path / "file")).fileno() for _ in range(28)]
        command = ["sh", "-c", f"cat <&{passed[5]}", *MANY]
        assert box.run(command, pass_fds=passed[:27]).out == b"content"
        with pytest.raises(UnsupportedError, match="two pass_fds less"):
            box.run(command, pass_fds=passed)


@pytest.mark.parametrize(
    ("program", "name"),
    [("none", "ENOENT"), ("/none", "ENOENT"), ("/etc", "EACCES"), ("/bin/script", "ENOEXEC")],
)
def test_a_program_that_does_not_run_is_told_with_many_words_as_with_few(
    rootfs: Path, monkeypatch: pytest.MonkeyPatch, program: str, name: str
) -> None:
    monkeypatch.setenv("SANDBOXLIB_BACKEND", "bubblewrap")
    (rootfs / "etc").mkdir(exist_ok=True)
    (rootfs / "bin" / "script").write_text("echo a shell ran it\n")
    (rootfs / "bin" / "script").chmod(0o755)
    told = []
    with open_box(rootfs) as box:
        for words in (MANY[:1], MANY):
            with pytest.raises(SetupError) as caught:
                box.run([program, *words])
            told.append((type(caught.value), str(caught.value), caught.value.step))
    assert told[0] == told[1]
    assert name in told[0][1]
    assert told[0][2] == "exec"


def test_more_words_than_the_kernel_takes_are_told(
    shared_rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOXLIB_BACKEND", "bubblewrap")
    with open_box(shared_rootfs) as box, pytest.raises(SetupError, match="E2BIG") as caught:
        box.run(["true", *["x" * 1000] * 9500])
    assert caught.value.step == "exec"


@pytest.mark.parametrize("call", ["mmap", "fcntl"])
def test_a_filter_that_keeps_the_words_from_being_read_is_told(
    shared_rootfs: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setenv("SANDBOXLIB_BACKEND", "bubblewrap")
    refused = [{"names": [call], "action": "SCMP_ACT_ERRNO"}]
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": refused}
    with (
        open_box(shared_rootfs, policy=Policy(seccomp=profile)) as box,
        pytest.raises(SetupError, match=r"words were not read.*mmap or fcntl") as caught,
    ):
        box.run(["true", *MANY])
    assert caught.value.step == "exec"


@pytest.mark.parametrize("lacks", ["proc", "room"])
def test_words_that_it_cannot_take_are_refused_with_a_remedy(
    rootfs: Path, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    monkeypatch.setenv("SANDBOXLIB_BACKEND", "bubblewrap")
    env = {}
    if lacks == "proc":
        (rootfs / "proc").rmdir()
    else:
        env = {f"V{number}": "x" for number in range(3000)}
    with open_box(rootfs) as box, pytest.raises(UnsupportedError) as caught:
        box.run(["true", *MANY], extra_env=env)
    assert "9000 arguments" in str(caught.value)
    assert "take any number" in str(caught.value)
    assert ("no proc on /proc" in str(caught.value)) == (lacks == "proc")


@pytest.mark.parametrize("executor", ["chroot", "user_namespace"])
def test_a_source_that_is_a_link_of_a_process_is_refused_with_the_reason(
    shared_rootfs: Path, tmp_path: Path, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOXLIB_BACKEND", executor)
    with open(tmp_path / "file", "w") as file:
        for source in (f"/proc/self/fd/{file.fileno()}", f"/dev/fd/{file.fileno()}"):
            mounts = [Mount.bind(source, "/tmp/x")]
            try:
                with (
                    open_box(shared_rootfs, extra_mounts=mounts) as box,
                    pytest.raises(SetupError, match=r"links of /proc/PID.*readlink"),
                ):
                    box.run(["true"])
            except UnsupportedError as error:
                pytest.skip(str(error))
