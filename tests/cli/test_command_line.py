# SPDX-License-Identifier: Apache-2.0
"""run-sandbox and python -m sandboxlib, as processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lib.machine import needs_root

import sandboxlib
from sandboxlib import Command, Limits, Policy, Sandbox, User
from sandboxlib._cli import options


def call(*words: object, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    argv = [sys.executable, "-m", "sandboxlib", *map(str, words)]
    return subprocess.run(argv, input=given, capture_output=True, check=False)


@needs_root
@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)]
)
def test_the_exit_status_is_the_commands(shared_rootfs: Path, script: str, status: int) -> None:
    assert call("run", shared_rootfs, "sh", "-c", script).returncode == status


@needs_root
def test_stdio_is_passed_through(shared_rootfs: Path) -> None:
    done = call("run", shared_rootfs, "sh", "-c", "cat; echo err >&2", given=b"in")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"in", b"err\n")


@needs_root
def test_without_a_command_it_is_a_shell(shared_rootfs: Path) -> None:
    assert call("run", shared_rootfs, given=b"echo $((6 * 7))\n").stdout == b"42\n"


@needs_root
def test_everything_after_path_belongs_to_the_command(shared_rootfs: Path) -> None:
    done = call("run", "--hostname", "box", shared_rootfs, "echo", "--json", "--", "-e")
    assert done.stdout == b"--json -- -e\n"


@needs_root
@pytest.mark.parametrize("before", [[], ["--"], ["--hostname", "box"], ["--hostname=box", "--"]])
def test_a_double_dash_may_stand_before_path_and_before_the_command(
    shared_rootfs: Path, before: list[str]
) -> None:
    done = call("run", *before, shared_rootfs, "--", "echo", "--", "-e", "--json")
    assert (done.returncode, done.stdout) == (0, b"-- -e --json\n")
    assert call("run", *before, shared_rootfs, "--", given=b"echo a shell\n").stdout == b"a shell\n"


@needs_root
@pytest.mark.parametrize("words", [("none", "/tmp"), ("/tmp", "all")])
def test_writable_words_that_contradict_are_refused(
    shared_rootfs: Path, words: tuple[str, str]
) -> None:
    done = call("run", "--writable", words[0], "--writable", words[1], shared_rootfs, "true")
    assert done.returncode == 125
    assert b"--writable" in done.stderr


@needs_root
def test_an_error_of_ours_is_125_with_a_message(shared_rootfs: Path) -> None:
    for words, text in (
        (["-e", "linux-user-chroot", shared_rootfs, "true"], b"there is no linux-user-chroot"),
        (["--cwd", "/nowhere", shared_rootfs, "true"], b"cwd"),
        (["/nowhere", "true"], b"No such file"),
        (["--memory", "lots", shared_rootfs], b"memory is no size: 'lots'"),
        (["--json-file", "/nowhere/file", shared_rootfs, "true"], b"/nowhere/file"),
    ):
        done = call("run", *words)
        assert done.returncode == 125
        assert text in done.stderr
        assert b"Traceback" not in done.stderr


@needs_root
def test_a_program_that_cannot_be_started_has_the_status_that_a_shell_gives(
    rootfs: Path, tmp_path: Path
) -> None:
    (rootfs / "bin/plain").write_text("no program\n")
    for argv, status in (
        (["nonesuch"], 127),
        (["/bin/nonesuch"], 127),
        (["/bin/plain"], 126),
        (["/bin"], 126),
    ):
        done = call("run", rootfs, *argv)
        assert done.returncode == status, argv
        assert done.stderr.startswith(b"python -m sandboxlib run: exec ")


@needs_root
def test_a_timeout_is_124(shared_rootfs: Path) -> None:
    assert call("run", "--timeout", "0.2", shared_rootfs, "sleep", "60").returncode == 124


@needs_root
def test_options_mirror_the_keywords(shared_rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("there\n")
    script = "cat /src/file; pwd; hostname; echo $A; touch /src/x /bin/x; wc -l < /proc/net/dev"
    done = call(
        *("run", "--bind-ro", f"{tmp_path}:/src", "--tmpfs", "/tmp:65536", "--cwd", "/tmp"),
        *("--hostname", "box", "--env", "A=b=c", "--network", "isolated", "--writable", "none"),
        *("--capabilities", "chown,kill", shared_rootfs, "sh", "-c", script),
    )
    assert done.stdout == b"there\n/tmp\nbox\nb=c\n3\n"
    assert done.stderr.count(b"Read-only") == 2


@needs_root
def test_json_is_the_record_of_the_run(shared_rootfs: Path) -> None:
    done = call("run", "--json", shared_rootfs, "sh", "-c", "echo out; kill -6 $$")
    record = json.loads(done.stdout)
    assert (record["exit"], record["signal"], record["out"]) == (-6, "SIGABRT", "out\n")
    assert (record["timed_out"], record["limits_hit"]) == (False, [])
    assert record["isolation"]["processes"] == "isolated"
    assert record["usage"]["peak_memory"] > 0
    assert record["executor"]
    assert done.returncode == 134


@needs_root
def test_the_record_goes_to_a_file_while_the_output_is_passed_on(
    shared_rootfs: Path, tmp_path: Path
) -> None:
    script = "echo out; echo err >&2; exit 3"
    words = ("--json-file", tmp_path / "record", "--max-output", "2")
    done = call("run", *words, shared_rootfs, "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"ou", b"er")
    record = json.loads((tmp_path / "record").read_text())
    assert (record["exit"], record["out"], record["out_size"]) == (3, None, 4)
    assert record["usage"]["peak_memory"] > 0
    refused = call("run", "--json", *words, shared_rootfs, "true")
    assert refused.returncode == 125
    assert b"--json" in refused.stderr


@needs_root
def test_the_record_goes_to_a_descriptor(shared_rootfs: Path) -> None:
    inner, outer = os.pipe()
    argv = [sys.executable, "-m", "sandboxlib", "run", "--json-file", f"/dev/fd/{outer}"]
    argv += [str(shared_rootfs), "sh", "-c", "echo out; ls /proc/self/fd | wc -l"]
    done = subprocess.run(argv, pass_fds=[outer], stdout=subprocess.PIPE, check=True)
    os.close(outer)
    with open(inner) as record:
        assert json.load(record)["exit"] == 0
    assert done.stdout == b"out\n4\n"  # the command has 0, 1, 2, and the one of ls


@needs_root
def test_the_most_output(shared_rootfs: Path) -> None:
    most = ("run", "--json", "--max-output", "3")
    record = json.loads(call(*most, shared_rootfs, "seq", "9").stdout)
    assert (record["exit"], record["out"], record["out_size"]) == (0, "1\n2", 18)
    assert record["limits_hit"] == ["output"]
    assert call(*most, "--kill-on-overflow", shared_rootfs, "yes").returncode == 137
    done = call("run", "--max-output", "1k", shared_rootfs, "seq", "1000")
    assert (done.returncode, len(done.stdout)) == (0, 1024)
    done = call("run", "--json", "--kill-on-overflow", shared_rootfs, "true")
    assert done.returncode == 125


@needs_root
def test_the_grace_after_a_timeout(shared_rootfs: Path) -> None:
    script = "trap 'echo told; exit 3' TERM; while :; do sleep 0.05; done"
    words = ("run", "--json", "--timeout", "0.3", "--grace", "20", shared_rootfs, "sh", "-c")
    done = call(*words, script)
    record = json.loads(done.stdout)
    assert (done.returncode, record["exit"], record["out"]) == (124, 3, "told\n")


@needs_root
def test_a_record_that_cannot_be_written_is_an_error_of_ours(shared_rootfs: Path) -> None:
    argv = [sys.executable, "-m", "sandboxlib", "run", "--json", str(shared_rootfs), "true"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 125
    assert done.stderr.startswith(b"python -m sandboxlib run: [Errno 28]")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["run"],
        ["run", "--readonly", "/"],
        ["run", "--network", "none", "/"],
        ["run", "--env", "=A", "/"],
        ["run", "--env-file", "/nowhere", "/"],
        ["run", "--bind", "/src:relative", "/"],
        ["run", "--bind", "/src", "/"],
        ["run", "--tmpfs", "/x:many", "/"],
        ["run", "--dir", "/x:9", "/"],
        ["run", "--dir", "/x:7777", "/"],
        ["run", "--symlink", "/x", "/"],
        ["run", "--symlink", ":/x", "/"],
        ["run", "--file", "/etc/passwd", "/"],
        ["run", "-e", "docker", "/"],
        ["run", "--umask", "9", "/"],
        ["run", "--cpuset", "3-1", "/"],
        ["run", "--pids", "many", "/"],
        ["run", "--user", "me", "/"],
        ["run", "--version=1", "/"],
        ["doctor", "--all"],
        ["bench", "--rounds", "0"],
        ["demo", "--jobs", "none"],
        ["nonsense"],
        ["--nonsense"],
        [],
    ],
    ids=repr,
)
def test_words_that_make_no_sense_are_explained(words: list[str]) -> None:
    done = call(*words)
    assert done.returncode == 125
    assert b"usage:" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--umask", "022", "--groups", "5", "/"],
        ["run", "--ranges", "/"],
        ["run", "--cpuset", "0", "--cpu-count", "1", "/"],
        ["run", "--devices", "root", "--devices", "/dev/null", "/"],
        ["run", "--swap", "1g", "/"],
        ["run", "--seccomp", "/nowhere", "/"],
        ["run", "--ref", "x", "/"],
        ["run", "--pass-fd", "2", "/"],
        ["run", "--timeout", "nan", "/"],
    ],
    ids=repr,
)
def test_options_that_contradict_are_125(words: list[str]) -> None:
    done = call(*words)
    assert done.returncode == 125
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["run", "--bind", "/src", "/"], b"not of the form SRC:DST: '/src'"),
        (["run", "sh", "-c", "true"], b"PATH, the root, comes before the command: / sh"),
    ],
    ids=repr,
)
def test_a_forgotten_path_is_told(words: list[str], text: bytes) -> None:
    done = call(*words)
    assert done.returncode == 125
    assert text in done.stderr


@pytest.mark.parametrize("words", [["run"], ["doctor"], ["demo"], ["bench"], []], ids=repr)
def test_each_command_has_a_help(words: list[str]) -> None:
    for option in ("-h", "--help"):
        done = call(*words, option)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.startswith(b"usage: python -m sandboxlib")


@pytest.mark.parametrize("words", [["run"], []], ids=repr)
def test_the_version(words: list[str]) -> None:
    done = call(*words, "--version")
    assert (done.returncode, done.stdout.decode()) == (0, f"sandboxlib {sandboxlib.__version__}\n")


def test_the_doctor_reports_as_json() -> None:
    done = call("doctor", "--json")
    assert {"chroot", "bubblewrap"} <= {each["name"] for each in json.loads(done.stdout)}


def test_the_program_may_have_another_name_than_its_first_word(shared_rootfs: Path) -> None:
    done = call("run", "--executable", "busybox", shared_rootfs, "echo", "$0")
    assert (done.returncode, done.stdout) == (0, b"$0\n")


def test_stderr_of_a_terminal_can_be_kept_apart(shared_rootfs: Path) -> None:
    script = "test -t 1 && echo out; test -t 2 || echo err >&2"
    done = call("run", "--pty", "--pty-stderr", "pipe", shared_rootfs, "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"out\r\n", b"err\n")
    done = call("run", "--pty-stderr", "pipe", shared_rootfs, "true")
    assert done.returncode == 125
    assert b"takes a pty" in done.stderr


@needs_root
def test_a_check_tells_what_is_lacking_and_runs_nothing(
    shared_rootfs: Path, tmp_path: Path
) -> None:
    bind = ("--bind", f"{tmp_path}:/mnt")
    done = call("run", "--check", *bind, shared_rootfs, "touch", "/mnt/file")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert not list(tmp_path.iterdir())
    done = call("run", "--check", "--bind", "/nowhere:/mnt", shared_rootfs, "true")
    assert done.returncode == 125
    assert b"/nowhere" in done.stdout
    done = call("run", "--check", "-e", "linux-user-chroot", "--nesting", shared_rootfs)
    assert done.returncode == 125
    assert done.stdout.startswith(b"linux_user_chroot: ")


@needs_root
def test_a_run_imports_nothing_that_it_does_not_use(shared_rootfs: Path) -> None:
    code = f"""
import sys
sys.path[:0] = {[path for path in sys.path if path]!r}
from sandboxlib.__main__ import run_sandbox_command
sys.exit(run_sandbox_command([{str(shared_rootfs)!r}, "true"]))
"""
    # Without site, which imports what the packages of an environment ask for.
    argv = [sys.executable, "-I", "-S", "-X", "importtime", "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "sandboxlib._cli.options" in imported
    for name in ("typing", "asyncio", "subprocess", "json", "shlex", "inspect", "argcomplete"):
        assert name not in imported


#: Keyword arguments that have no option, each with the reason.
WITHOUT_OPTION = {
    "root": "it is PATH",
    "argv": "it is COMMAND",
    "stdin": "it is that of run-sandbox",
    "stdout": "it is that of run-sandbox, or --json",
    "stderr": "it is that of run-sandbox, or --json",
    "extra_env": "--env sets it",
    "inputs": "a program makes them",
    "outputs": "a program takes them",
    "changes": "a program looks at them, in a root of layers",
    "limits": "each limit has an option",
    "policy": "each part of it has an option",
    "uid": "--user sets it",
    "gid": "--user sets it",
    "processes": "--processes is the isolation, --user-processes the limit",
}


def test_each_keyword_of_the_api_has_an_option() -> None:
    parser = options.run_parser("run-sandbox")
    names = {action.dest for action in parser._actions}
    for value in (Sandbox, Command, Policy, Limits, User):
        missing = set(value._fields) - names - WITHOUT_OPTION.keys()
        assert not missing, f"{value.__name__}: {missing}"
    assert {"user_processes", "processes"} <= names
