# SPDX-License-Identifier: Apache-2.0
"""The contract of run_sandbox, at its edges; test_run.py has its everyday side."""

from __future__ import annotations

import copy
import errno
import inspect
import itertools
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from lib.boxes import open_box
from lib.machine import many, needs_root
from lib.waiting import late

import sandboxlib
from sandboxlib import (
    STDOUT,
    Limits,
    Mount,
    Policy,
    Result,
    Sandbox,
    SandboxError,
    SetupError,
    SpecError,
    SpecTypeError,
    StatusLost,
    Store,
    UnsupportedError,
    User,
    run_sandbox,
)

BARE = {"mounts": "undefined", "processes": "undefined", "ipc": "undefined"}
MODES = {
    "reaper": {},
    "init=False": {"init": False},
    "processes=undefined": {"processes": "undefined"},
    "bare chroot": BARE,
}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
Mode = dict[str, Any]


def output(root: Path | str, command: Any, **words: Any) -> bytes:
    """The output of a command that works."""
    exit, out, err = run_sandbox(root, command, **words)
    assert (exit, err) == (0, b"")
    return out


# ---- the words -------------------------------------------------------------------------------


def test_capture_and_stdout_are_those_of_subprocess() -> None:
    assert (sandboxlib.CAPTURE, STDOUT) == (subprocess.PIPE, subprocess.STDOUT)


def test_the_environment_is_told_without_a_run() -> None:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert dict(sandboxlib.BASE_ENVIRONMENT) == {"PATH": path}
    assert sandboxlib.environment_vars({"A": "b"}) == {"PATH": path, "A": "b"}
    sandboxlib.environment_vars()["B"] = "c"
    assert dict(sandboxlib.BASE_ENVIRONMENT) == {"PATH": path}


@needs_root
@pytest.mark.parametrize("executor", [sandboxlib, sandboxlib.chroot])
def test_the_seeds_words_can_be_positional_on_every_executor(
    executor: Any, shared_rootfs: Path
) -> None:
    command = ["sh", "-c", 'pwd; echo "$A"; tail -n +3 /proc/net/dev | wc -l']
    result = executor.run_sandbox(str(shared_rootfs), command, "/tmp", {"A": "b"}, "isolated")
    assert result == (0, b"/tmp\nb\n1\n", b"")


@pytest.mark.parametrize("value", ["none", "", "Isolated", None, 1, ("isolated",)])
def test_an_unknown_network_is_refused_and_named(value: Any) -> None:
    with pytest.raises(SpecError, match=re.escape(f"network is {value!r}")):
        run_sandbox("/none", ["true"], network=value)


# ---- environment, directory, program ---------------------------------------------------------


@needs_root
@modes
def test_nothing_of_the_callers_environment_is_inherited(
    shared_rootfs: Path, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_HOST", "1")
    monkeypatch.setenv("PATH", "/of/the/host")
    environ = b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nA=\nB=x\ny\n"
    assert output(shared_rootfs, ["env"], extra_env={"A": "", "B": "x\ny"}, **mode) == environ


@needs_root
@modes
@pytest.mark.parametrize("word", ["echo hi", "true;true", "$0", "true\n", "sh -c true", "~", "*"])
def test_a_str_never_meets_a_shell(shared_rootfs: Path, mode: Mode, word: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        run_sandbox(shared_rootfs, word, **mode)
    assert caught.value.filename == word


def make_script(path: Path, text: str, mode: int = 0o755) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)


@needs_root
@modes
@pytest.mark.parametrize(
    ("path", "cwd", "out"),
    [
        ("/one:/two", "/", b"one\n"),
        ("/two:/one", "/", b"two\n"),
        ("/none/such:/two", "/", b"two\n"),
        ("/bin/sh:/two", "/", b"two\n"),  # no directory
        ("/denied:/two", "/", b"two\n"),
        ("/directory:/two", "/", b"two\n"),
        ("two", "/", b"two\n"),
        ("", "/two", b"two\n"),
        ("/none/such:", "/two", b"two\n"),
    ],
)
def test_the_program_is_the_first_that_can_be_run_in_the_path(
    rootfs: Path, mode: Mode, path: str, cwd: str, out: bytes
) -> None:
    make_script(rootfs / "one" / "program", "echo one")
    make_script(rootfs / "two" / "program", "echo two")
    make_script(rootfs / "denied" / "program", "echo denied", 0o644)
    (rootfs / "directory" / "program").mkdir(parents=True)
    assert output(rootfs, ["program"], cwd=cwd, extra_env={"PATH": path}, **mode) == out


@needs_root
@modes
def test_the_hosts_programs_are_not_found(
    shared_rootfs: Path, mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_script(tmp_path / "bin" / "of-the-host", "echo host")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    assert subprocess.run(["of-the-host"], check=True, capture_output=True).stdout == b"host\n"
    for env in ({}, {"PATH": f"{tmp_path}/bin"}):
        with pytest.raises(FileNotFoundError):
            run_sandbox(shared_rootfs, ["of-the-host"], extra_env=env, **mode)


@needs_root
@modes
def test_a_working_directory_behind_a_link_stays_inside(rootfs: Path, mode: Mode) -> None:
    (rootfs / "tmp" / "real").mkdir()
    (rootfs / "absolute").symlink_to("/tmp/real")
    (rootfs / "upward").symlink_to("../../../../../../tmp/real")
    (rootfs / "outside").symlink_to(f"../../../../../..{rootfs.parent}")
    for cwd in ("/absolute", "upward", "./tmp//real/.", Path("/tmp/real")):
        assert output(rootfs, ["pwd", "-P"], cwd=cwd, **mode) == b"/tmp/real\n"
    with pytest.raises(FileNotFoundError):
        run_sandbox(rootfs, ["pwd"], cwd="/outside", **mode)


@needs_root
@modes
def test_in_another_root_the_callers_directory_plays_no_part(
    shared_rootfs: Path, mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert output(shared_rootfs, ["pwd"], **mode) == b"/\n"
    assert output(shared_rootfs, ["pwd"], cwd="tmp", **mode) == b"/tmp\n"
    with pytest.raises(FileNotFoundError):
        run_sandbox("/", ["pwd"], **mode)


# ---- how it ends -----------------------------------------------------------------------------

# Not QUIT: busybox's sh ignores it.
FATAL = "HUP INT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM XCPU SYS".split()


@needs_root
@pytest.mark.parametrize("name", [*FATAL, "RTMIN", "RTMAX"])
@pytest.mark.parametrize("mode", [{}, {"processes": "undefined"}, BARE])
def test_every_signal_that_ends_the_command_is_its_number_below_zero(
    shared_rootfs: Path, mode: Mode, name: str
) -> None:
    number = int(getattr(signal, f"SIG{name}"))
    command = ["sh", "-c", f"echo x; kill -{number} $$; exec sleep 60"]
    assert run_sandbox(shared_rootfs, command, timeout=20, **mode) == (-number, b"x\n", b"")


@needs_root
@modes
@pytest.mark.parametrize("status", [0, 1, 2, 125, 126, 127, 128, 137, 255])
def test_every_exit_status_is_the_commands_own(
    shared_rootfs: Path, mode: Mode, status: int
) -> None:
    assert run_sandbox(shared_rootfs, ["sh", "-c", f"exit {status}"], **mode).exit == status


@needs_root
@modes
def test_a_reader_that_is_gone_ends_the_command_with_sigpipe(
    shared_rootfs: Path, mode: Mode
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = run_sandbox(shared_rootfs, ["yes"], stdout=writer, timeout=60, **mode)
    finally:
        os.close(writer)
    assert result.exit == -signal.SIGPIPE or (mode == {"init": False} and result.exit == 1)


@needs_root
@modes
@pytest.mark.parametrize(
    ("words", "error", "number", "step", "filename"),
    [
        ({"command": ["nonesuch"]}, FileNotFoundError, "ENOENT", "exec", "nonesuch"),
        ({"command": ["tmp/x"]}, FileNotFoundError, "ENOENT", "exec", "tmp/x"),
        ({"command": ["/bin/sh/x"]}, FileNotFoundError, "ENOENT", "exec", "/bin/sh/x"),
        ({"command": ["/etc"]}, PermissionError, "EACCES", "exec", "/etc"),
        ({"command": ["denied"]}, PermissionError, "EACCES", "exec", "/bin/denied"),
        ({"command": ["text"]}, OSError, "ENOEXEC", "exec", "/bin/text"),
        ({"command": ["empty"]}, OSError, "ENOEXEC", "exec", "/bin/empty"),
        ({"command": ["loop"]}, OSError, "ELOOP", "exec", "/bin/loop"),
        ({"command": ["script"]}, FileNotFoundError, "ENOENT", "exec", "/bin/script"),
        ({"command": ["/" + "x" * 300]}, OSError, "ENAMETOOLONG", "exec", "/" + "x" * 300),
        ({"cwd": "/none"}, FileNotFoundError, "ENOENT", "cwd", "/none"),
        ({"cwd": "/bin/sh"}, NotADirectoryError, "ENOTDIR", "cwd", "/bin/sh"),
        ({"cwd": "/bin/loop"}, OSError, "ELOOP", "cwd", "/bin/loop"),
        ({"cwd": "x" * 300}, OSError, "ENAMETOOLONG", "cwd", "x" * 300),
    ],
)
def test_what_cannot_begin_says_step_errno_and_path(
    rootfs: Path, mode: Mode, words: Any, error: type, number: str, step: str, filename: str
) -> None:
    (rootfs / "bin" / "text").write_text("words\n")
    (rootfs / "bin" / "empty").touch()
    (rootfs / "bin" / "script").write_text("#!/none/such\n")
    for name in ("text", "empty", "script"):
        (rootfs / "bin" / name).chmod(0o755)
    (rootfs / "bin" / "denied").write_text("#!/bin/sh\n")
    (rootfs / "bin" / "loop").symlink_to("loop")
    with pytest.raises(error) as caught:
        run_sandbox(rootfs, **{"command": ["true"], **words}, **mode)
    failure = caught.value
    assert isinstance(failure, SetupError)
    seen = (failure.step, failure.errno, failure.filename)
    assert seen == (step, getattr(errno, number), filename)
    assert f"({number}, step {step})" in str(failure)
    assert failure.strerror == os.strerror(failure.errno)


@needs_root
@modes
@pytest.mark.parametrize(
    ("root", "number"),
    [("none", "ENOENT"), ("file", "ENOTDIR"), ("loop", "ELOOP"), ("file/x", "ENOTDIR")],
)
def test_a_bad_root_says_step_errno_and_path(
    tmp_path: Path, mode: Mode, root: str, number: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SetupError) as caught:
        run_sandbox(tmp_path / root, ["true"], **mode)
    assert (caught.value.step, caught.value.errno) == ("root", getattr(errno, number))
    assert caught.value.filename == str(tmp_path / root)


@needs_root
@modes
def test_a_root_may_be_a_path_a_link_or_relative(
    shared_rootfs: Path, mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(shared_rootfs)
    monkeypatch.chdir(tmp_path)
    for root in (shared_rootfs, str(shared_rootfs), tmp_path / "link", "link", f"{shared_rootfs}/"):
        assert output(root, ["ls", "/bin/busybox"], **mode) == b"/bin/busybox\n"


# ---- stdin, stdout, stderr -------------------------------------------------------------------


@needs_root
@modes
@pytest.mark.parametrize(
    "content", [b"", bytearray(b"abc"), memoryview(b"abcd")[1:], b"\0\xff" * 1_500_000]
)
def test_bytes_are_read_to_their_end(shared_rootfs: Path, mode: Mode, content: Any) -> None:
    assert output(shared_rootfs, ["cat"], stdin=content, **mode) == bytes(content)
    assert output(shared_rootfs, ["true"], stdin=content, **mode) == b""


@needs_root
@modes
@pytest.mark.parametrize("blocking", [True, False])
def test_the_flags_of_what_is_given_stay_as_they_are(
    shared_rootfs: Path, mode: Mode, blocking: bool
) -> None:
    ends = [*os.pipe(), *os.pipe(), *os.pipe()]
    for fd in ends:
        os.set_blocking(fd, blocking)
    try:
        words = {"stdin": ends[0], "stdout": ends[3], "stderr": ends[5]}
        os.write(ends[1], b"in\n")
        command = ["sh", "-c", "head -n 1; echo err >&2"]
        assert run_sandbox(shared_rootfs, command, **words, **mode) == (0, None, None)
        assert (os.read(ends[2], 9), os.read(ends[4], 9)) == (b"in\n", b"err\n")
        assert {os.get_blocking(fd) for fd in ends} == {blocking}
        assert {os.get_inheritable(fd) for fd in ends} == {False}
    finally:
        for fd in ends:
            os.close(fd)


@needs_root
def test_the_commands_own_end_of_a_captured_output_blocks(shared_rootfs: Path) -> None:
    # A program that meets EAGAIN on its stdout loses output.
    script = "cat /proc/self/fdinfo/1; cat /proc/self/fdinfo/2 >&2"
    _, out, err = run_sandbox(shared_rootfs, ["sh", "-c", script])
    for said in (out, err):
        assert said is not None
        (flags,) = [line.split()[1] for line in said.splitlines() if line.startswith(b"flags")]
        assert int(flags, 8) & (os.O_NONBLOCK | os.O_ACCMODE) == os.O_WRONLY


# 0, 1 and 2 are files named a, b and c; what is said goes to 9.
PERMUTED = """
import json, os, sys
from sandboxlib import run_sandbox
root, words, mode = json.loads(sys.argv[1])
os.dup2(1, 9)
for fd, name in enumerate("abc"):
    os.dup2(os.open(name, os.O_RDWR), fd)
os.closerange(3, 9)
numbers = dict(zip(("stdin", "stdout", "stderr"), words))
result = run_sandbox(root, ["sh", "-c", "echo out; echo err >&2; cat >> /dev/fd/1"],
    extra_mounts=[("dev", "/dev", "dev")] if mode.get("mounts") != "undefined" else [],
    **numbers, **mode)
os.write(9, repr(tuple(result)).encode())
"""


@needs_root
@pytest.mark.parametrize("numbers", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("mode", [{}, {"init": False}])
def test_the_callers_own_0_1_and_2_can_be_given_in_any_order(
    shared_rootfs: Path, tmp_path: Path, mode: Mode, numbers: tuple[int, ...]
) -> None:
    for name in "abc":
        (tmp_path / name).write_text(f"{name}\n")
    argv = [sys.executable, "-c", PERMUTED, json.dumps([str(shared_rootfs), numbers, mode])]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout == b"(0, None, None)"
    files = ["abc"[number] for number in numbers]
    assert (tmp_path / files[0]).read_text() == f"{files[0]}\n"
    assert (tmp_path / files[1]).read_text() == f"out\n{files[0]}\n"
    assert (tmp_path / files[2]).read_text() == "err\n"


@needs_root
@modes
def test_merged_outputs_keep_their_order_and_what_the_file_held(
    shared_rootfs: Path, mode: Mode, tmp_path: Path
) -> None:
    script = "for i in $(seq 500); do echo o$i; echo e$i >&2; done"
    expected = b"".join(b"o%d\ne%d\n" % (i, i) for i in range(1, 501))
    (tmp_path / "log").write_bytes(b"before\n")
    with open(tmp_path / "log", "ab") as log:
        words = {"stdout": log, "stderr": STDOUT}
        assert run_sandbox(shared_rootfs, ["sh", "-c", script], **words, **mode) == (0, None, None)
        os.write(log.fileno(), b"after\n")
    assert (tmp_path / "log").read_bytes() == b"before\n" + expected + b"after\n"
    merged = run_sandbox(shared_rootfs, ["sh", "-c", script], stderr=STDOUT, **mode)
    assert merged == (0, expected, None)


@needs_root
@modes
def test_stderr_follows_a_stdout_that_is_discarded_or_a_descriptor(
    shared_rootfs: Path, mode: Mode
) -> None:
    command = ["sh", "-c", "echo out; echo err >&2"]
    assert run_sandbox(shared_rootfs, command, stdout=None, stderr=STDOUT, **mode) == (
        0,
        None,
        None,
    )
    reader, writer = os.pipe()
    try:
        words = {"stdout": writer, "stderr": STDOUT}
        assert run_sandbox(shared_rootfs, command, **words, **mode) == (0, None, None)
        assert os.read(reader, 99) == b"out\nerr\n"
    finally:
        os.close(reader)
        os.close(writer)


@needs_root
@modes
def test_a_command_that_closes_its_outputs_is_still_waited_for(
    shared_rootfs: Path, mode: Mode
) -> None:
    script = "echo x; exec >&- 2>&-; usleep 200000; exit 4"
    assert run_sandbox(shared_rootfs, ["sh", "-c", script], **mode) == (4, b"x\n", b"")


@needs_root
@modes
def test_a_timeout_ends_a_command_that_is_stopped_or_deaf(shared_rootfs: Path, mode: Mode) -> None:
    script = "trap '' TERM HUP INT; echo o; echo e >&2; kill -STOP $$; sleep 1000"

    def run(timeout: float) -> Result:
        return run_sandbox(shared_rootfs, ["sh", "-c", script], timeout=timeout, **mode)

    assert late(run, lambda result: result.err) == (-signal.SIGKILL, b"o\n", b"e\n")
    assert (run(0).exit, run(0).timed_out) == (-signal.SIGKILL, True)


# ---- values ----------------------------------------------------------------------------------


def test_sandboxes_differ_by_every_word() -> None:
    words: dict[str, Any] = {
        **{"network": "isolated", "mounts": "undefined", "processes": "undefined"},
        **{"ipc": "undefined", "hostname": "x", "extra_mounts": [Mount.tmpfs("/x")]},
        **{"filesystem_writable_paths": "none", "policy": Policy(capabilities="none")},
        **{"init": False, "user": "root"},
        **{"umask": 0, "limits": Limits(core=0), "deterministic": True, "devices": "root"},
        **{"tmp": "private", "resolv_conf": True, "personality": "linux32"},
        "store": Store("/x"),
    }
    boxes = [open_box("/a"), open_box("/b"), *(open_box("/a", **{k: v}) for k, v in words.items())]
    users = (User(1), User(1, 2), User(1, 1, [3]), User(1, ranges=True))
    boxes += [open_box("/a", user=user) for user in users]
    assert len(set(boxes)) == len(boxes) == len(words) + 6
    assert len({repr(box) for box in boxes}) == len(boxes)
    parameters = inspect.signature(Sandbox).parameters
    assert set(parameters) == {"root", "unknown", *words}


@needs_root
def test_a_sandbox_can_be_copied_replaced_and_used_after_a_failure(shared_rootfs: Path) -> None:
    box = Sandbox(shared_rootfs, hostname="one")
    with pytest.raises(FileNotFoundError):
        box.run(["nonesuch"])
    two = box.replace(hostname="two")
    for each, name in ((box, b"one\n"), (copy.deepcopy(box), b"one\n"), (two, b"two\n")):
        assert each.run(["hostname"]) == (0, name, b"")


@pytest.mark.parametrize(
    "error",
    [
        SpecError("a"),
        SpecTypeError("a"),
        UnsupportedError("a"),
        StatusLost("a"),
        sandboxlib.errors.setup_error(errno.EACCES, "/f", "cwd", "what", "hint"),
        sandboxlib.errors.setup_error(errno.ENOTDIR, None, "root", "what"),
        sandboxlib.errors.setup_error(errno.EIO, None, "mount", "mount 3"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_survives_pickling(error: SandboxError) -> None:
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is type(error)
    assert (str(twin), twin.args, twin.__dict__) == (str(error), error.args, error.__dict__)


# ---- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
@pytest.mark.parametrize("number", [2**31, 2**64])
def test_a_number_that_is_no_descriptor_is_refused(name: str, number: int) -> None:
    with pytest.raises((SpecError, SetupError)):
        run_sandbox("/none", ["true"], **{name: number})


@pytest.mark.parametrize(
    "call",
    [
        lambda: Sandbox("/none", extra_mounts=5),
        lambda: Mount.tmpfs("/t", mode=None),
        lambda: Mount.tmpfs(5),
        lambda: Mount.bind(5, "/x"),
        lambda: Mount.bind(b"/x", "/x"),
        lambda: Mount.bind("/x", None),
        lambda: Policy(capabilities=[5]),
        lambda: Sandbox("/none", filesystem_writable_paths=[5]),
        lambda: run_sandbox("/none", iter(["true"])),
        lambda: run_sandbox("/none", ["true", ["x"]]),
    ],
)
def test_a_value_of_a_wrong_type_is_a_type_error(call: Any) -> None:
    with pytest.raises(TypeError):
        call()


@needs_root
def test_mounts_may_come_from_an_iterator(shared_rootfs: Path) -> None:
    mounts = (mount for mount in [Mount.tmpfs("/bin")])
    with pytest.raises(FileNotFoundError):  # an empty /bin hides the program
        run_sandbox(str(shared_rootfs), ["/bin/true"], extra_mounts=mounts)


# Everything that a str can hold: NUL, lone surrogates, bytes that are no UTF-8, newlines.
anything = st.text(max_size=20) | st.binary(max_size=20).map(os.fsdecode)
PRINT = 'for word in "$@"; do printf "%s\\0" "$word"; done'


def sendable(text: str) -> bool:
    """Whether the kernel can be handed this text."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


@needs_root
@settings(max_examples=many(30, 150), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    args=st.lists(anything, max_size=4),
    env=st.dictionaries(anything, anything, max_size=3),
    mode=st.sampled_from([{}, {"init": False}, {"ipc": "undefined"}]),
)
@example(args=["a\0"], env={}, mode={})
@example(args=["\udcff", ""], env={"A": "\udcff"}, mode={})
@example(args=["\ud800"], env={}, mode={})
@example(args=[], env={"A": "\ud800"}, mode={})
@example(args=[], env={"A=": "b"}, mode={})
def test_words_of_any_kind_are_refused_or_received_exactly(
    shared_rootfs: Path, args: list[str], env: dict[str, str], mode: Mode
) -> None:
    good = all(map(sendable, [*args, *env, *env.values()]))
    good = good and all(name and "=" not in name for name in env)
    env = {**env, "PATH": "/bin"}
    box = open_box(shared_rootfs, extra_mounts=[Mount.dev()], **mode)
    if not good:
        with pytest.raises(SpecError):
            box.run(["true", *args], extra_env=env)
        return
    out = box.run(["sh", "-c", PRINT, "sh", *args], extra_env={"PATH": "/bin"}).out
    environ = box.run(["cat", "/proc/self/environ"], extra_env=env).out
    assert out is not None
    assert out == b"".join(os.fsencode(word) + b"\0" for word in args)
    assert environ is not None
    expected = [os.fsencode(f"{name}={value}") for name, value in env.items()]
    assert sorted(environ.split(b"\0")[:-1]) == sorted(expected)


@needs_root
@settings(max_examples=many(25, 100), deadline=None, suppress_health_check=list(HealthCheck))
@given(cwd=anything)
@example(cwd="\udcff")
@example(cwd="a/../../b")
def test_a_directory_of_any_name_is_refused_or_entered(rootfs: Path, cwd: str) -> None:
    inside = Path(f"{rootfs}/tmp")
    name = cwd.replace("/", "_")
    good = sendable(name) and name not in ("", ".", "..") and len(os.fsencode(name)) <= 255
    if good:
        (inside / name).mkdir(exist_ok=True)
    try:
        out = run_sandbox(rootfs, ["pwd"], cwd=f"/tmp/{name}" if name else "").out
    except SpecError:
        assert not good
        return
    if good:
        assert out == os.fsencode(f"/tmp/{name}") + b"\n"


# ---- secrets ---------------------------------------------------------------------------------

SECRET = "hunter2-of-the-build"


@needs_root
@pytest.mark.parametrize(
    "words",
    [
        {"command": ["nonesuch"]},
        {"cwd": "/none"},
        {"command": ["/etc"]},
        {"rootfs_path": "/none/such"},
        {"command": ["true", "x" * 200_000]},
        {"command": ["true", "\0"]},
        {"command": []},
        {"stdin": 999_999},
        {"timeout": -1},
        {"network": "no"},
        {"extra_env": {"TOKEN": f"{SECRET}\0"}},
        {"extra_env": {"TOKEN": f"{SECRET}\ud800"}},
        {"extra_env": {"TOKEN": SECRET.encode() + b"\0"}},
        {"extra_env": {"TOKEN": [SECRET]}},
        {"extra_env": {"": SECRET}},
        {"extra_env": {"A=": SECRET}},
        {"extra_env": {5: SECRET}},
        {"extra_env": [("TOKEN", SECRET)]},
        {"extra_env": f"TOKEN={SECRET}"},
        {"extra_mounts": [("/none", "/etc", None, "bind")]},
    ],
    ids=lambda words: repr(words)[:60].replace("\0", "0"),
)
@pytest.mark.parametrize("mode", [{}, {"init": False}])
def test_no_message_and_no_repr_holds_a_value_of_the_environment(
    shared_rootfs: Path, mode: Mode, words: dict[str, Any]
) -> None:
    env = {"TOKEN": SECRET}
    given_words = {"rootfs_path": shared_rootfs, "command": ["true"], "extra_env": env, **words}
    with pytest.raises(SandboxError) as caught:
        run_sandbox(**given_words, **mode)
    error = caught.value
    shown = [str(error), repr(error), repr(error.args), repr(vars(error))]
    shown += traceback.format_exception(error)
    shown.append(os.fsdecode(pickle.dumps(error)))
    assert not [text for text in shown if SECRET in text]


@needs_root
def test_neither_does_what_a_good_run_leaves(shared_rootfs: Path) -> None:
    box = Sandbox(shared_rootfs)
    result = box.run(["true"], extra_env={"TOKEN": SECRET})
    assert result.exit == 0
    assert SECRET not in f"{box!r}{result!r}{vars(result)}{vars(box)}"
