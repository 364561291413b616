# SPDX-License-Identifier: Apache-2.0
"""What a Command has beside argv, limits and times, in every way of running it: its executable,
bytes in the environment, streams as subprocess names them, stderr beside a terminal.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box

import sandboxlib
from sandboxlib import (
    CAPTURE,
    DEVNULL,
    STDOUT,
    Command,
    Lines,
    Result,
    SetupError,
    Tee,
    UnsupportedError,
)

pytest_plugins = ["lib.ways"]

Run = Callable[[Command], Result]


@pytest.fixture
def run(run_command: Callable[[Path, Command], Result], shared_rootfs: Path) -> Run:
    return lambda command: run_command(shared_rootfs, command)


def sh(script: str, **options: Any) -> Command:
    return Command(["sh", "-c", script], "/", **options)


# ---- executable ------------------------------------------------------------------------------


def test_the_program_and_its_name_are_two_things(
    run_command: Callable[[str, Command], Result],
) -> None:
    """In the root of the machine: busybox takes its name for the name of the program."""

    def run(command: Command) -> Result:
        return run_command("/", command)

    script = "tr '\\0' '|' </proc/$$/cmdline; echo $0"
    for executable in ("sh", "/bin/sh", b"/bin/sh", Path("/bin/sh")):
        command = Command(["a name", "-c", script], "/", executable=executable)
        words = f"a name|-c|{script}|"
        assert run(command).out == f"{words}a name\n".encode()
    assert run(Command(["", "-c", "exit 3"], "/", executable="sh")).returncode == 3


def test_without_a_slash_it_is_looked_up_in_the_path_of_the_command(run: Run) -> None:
    """As subprocess.Popen does it: the first of argv plays no part."""
    for path in ("/bin", "/tmp"):
        command = Command(["/bin/true"], "/", executable="busybox", env={"PATH": path})
        if path == "/bin":
            assert run(command).exit == 0
            continue
        with pytest.raises(SetupError, match=r"exec 'busybox' in the root .*ENOENT") as raised:
            run(command)
        assert raised.value.filename == "busybox"


@pytest.mark.parametrize("name", ["bubblewrap", "linux_user_chroot"])
def test_an_executor_that_drives_a_program_refuses_it(
    name: str, shared_rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of these programs can give a command another name than its own."""
    module = sandboxlib.get_executor(name)
    if reason := module.why_not():
        pytest.skip(reason)
    command = Command(["x"], executable="true")
    with pytest.raises(UnsupportedError, match=f"{name}: executable, for an argv"):
        module.run_in(open_box(shared_rootfs), command)
    monkeypatch.setenv("SANDBOXLIB_BACKEND", name)
    with pytest.raises(UnsupportedError, match="it drives a program: no grace, no executable="):
        open_box(shared_rootfs).run(command)


# ---- the environment -------------------------------------------------------------------------


def test_bytes_in_the_environment_arrive_as_they_are(run: Run) -> None:
    command = Command(
        ["env"], "/", env={b"A": b"\xff\xfe", b"PATH": b"/bin"}, extra_env={"PATH": b"/sbin:/bin"}
    )
    assert sorted((run(command).out or b"").split()) == [b"A=\xff\xfe", b"PATH=/sbin:/bin"]


@pytest.mark.parametrize("name", ["bubblewrap", "linux_user_chroot"])
def test_bytes_in_the_environment_arrive_through_a_program(name: str, shared_rootfs: Path) -> None:
    module = sandboxlib.get_executor(name)
    if reason := module.why_not():
        pytest.skip(reason)
    result = module.run_in(open_box(shared_rootfs), ["env"], env={b"A": b"\xff", b"PATH": b"/bin"})
    assert b"A=\xff" in (result.out or b"").split()


# ---- streams ---------------------------------------------------------------------------------


def test_the_constants_of_subprocess_are_understood(run: Run) -> None:
    script = "echo out; echo err >&2; cat; readlink /proc/self/fd/0 | tail -c 5 >&2"
    null = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    result = run(sh(script, **null, stderr=subprocess.PIPE))
    assert (result.out, result.err) == (None, b"err\nnull\n")
    result = run(sh(script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    assert (result.stdout, result.err) == (b"out\nerr\nnull\n", None)
    with pytest.raises(ValueError, match="stderr was not captured"):
        _ = result.stderr
    assert run(sh(script, stdout=DEVNULL, stderr=DEVNULL)) == (0, None, None)


@pytest.mark.parametrize("name", ["bubblewrap", "linux_user_chroot"])
def test_devnull_through_a_program(name: str, shared_rootfs: Path) -> None:
    module = sandboxlib.get_executor(name)
    if reason := module.why_not():
        pytest.skip(reason)
    script = ["sh", "-c", "cat; echo out; echo err >&2"]
    options = {"stdin": DEVNULL, "stdout": DEVNULL, "stderr": CAPTURE}
    assert module.run_in(open_box(shared_rootfs), script, **options) == (0, None, b"err\n")


def test_a_result_has_the_names_of_subprocess(shared_rootfs: Path) -> None:
    with open_box(shared_rootfs) as box:
        result = box.run(sh("echo a; echo b >&2; kill -9 $$"))
    assert (result.returncode, result.stdout, result.stderr) == (-9, b"a\n", b"b\n")
    assert result == (result.exit, result.out, result.err)


# ---- a terminal ------------------------------------------------------------------------------

TERMINAL = "test -t 0 && test -t 1 && echo out; test -t 2 && echo there >&2 || echo err >&2"


def test_stderr_is_kept_apart_from_a_terminal(run: Run) -> None:
    assert run(sh(TERMINAL, pty=True)) == (0, b"out\r\nthere\r\n", None)
    assert run(sh(TERMINAL, pty=True, pty_stderr="pipe")) == (0, b"out\r\n", b"err\n")
    assert run(sh(TERMINAL, pty=True, pty_stderr="pipe", stderr=DEVNULL)) == (0, b"out\r\n", None)


def test_stderr_beside_a_terminal_may_be_all_that_stderr_may_be(
    run: Run, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    apart: dict[str, Any] = {"pty": True, "pty_stderr": "pipe"}
    with (tmp_path / "err").open("w+b") as file:
        assert run(sh(TERMINAL, **apart, stderr=file)) == (0, b"out\r\n", None)
        file.seek(0)
        assert set(file.read().split()) == {b"err"}  # a map has run it twice
    if "start" in request.node.name:  # refuses these, as nobody may be reading
        return
    lines: list[bytes] = []
    assert run(sh(TERMINAL, **apart, stderr=Lines(lines.append))) == (0, b"out\r\n", None)
    assert set(lines) == {b"err\n"}
    reader, writer = os.pipe()
    try:
        result = run(sh(TERMINAL, **apart, stderr=Tee(writer, keep_head=2)))
        assert result.err == b"er\n... 2 bytes left out ...\n"
        assert os.read(reader, 4) == b"err\n"
        assert run(sh(TERMINAL, **apart, max_output=2)).err == b"er"
    finally:
        os.close(reader)
        os.close(writer)


def test_what_contradicts_itself_is_refused(shared_rootfs: Path) -> None:
    for options, text in (
        ({"pty_stderr": "pipe"}, "pty_stderr='pipe' takes a pty"),
        ({"pty_stderr": "pipe", "pty": True, "stderr": STDOUT}, "keeps stderr apart, and"),
        ({"pty": True, "stderr": DEVNULL}, "a pty has one output, .* unless pty_stderr='pipe'"),
    ):
        with pytest.raises(sandboxlib.SpecError, match=text):
            Command("true", **options)  # type: ignore[arg-type]
