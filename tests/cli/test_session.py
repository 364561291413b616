# SPDX-License-Identifier: Apache-2.0
"""run-sandbox --session: the commands of a file in one session."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lib.machine import needs_root
from lib.waiting import processes

pytestmark = needs_root


def session(
    root: Path, lines: list[str], *words: str, given: str | None = None
) -> subprocess.CompletedProcess[str]:
    file = root.parent / "commands"
    file.write_text("\n".join(lines) + "\n")
    argv = [sys.executable, "-m", "sandboxlib", "run", "--session", str(file), *words, str(root)]
    return subprocess.run(argv, input=given or "", capture_output=True, text=True, check=False)


def test_the_commands_share_a_place_and_run_in_their_order(rootfs: Path) -> None:
    lines = [
        "# a comment",
        "sh -c 'echo one > /tmp/file; sleep 600 & echo $! > /tmp/pid'",
        "",
        "cat /tmp/file  # another comment",
        "sh -c 'kill $(cat /tmp/pid) && echo \"it was  there\"'",
    ]
    done = session(rootfs, lines)
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\nit was  there\n", "")


def test_a_service_goes_on_beside_its_clients_and_ends_with_the_session(rootfs: Path) -> None:
    serve = 'trap "echo told; exit" TERM; echo $$ > /tmp/up; while :; do sleep 0.05; done'
    ask = "until test -s /tmp/up; do sleep 0.05; done; kill -0 $(cat /tmp/up) && echo there"
    done = session(rootfs, [f"sh -c '{serve}' mark-987123 &", f"sh -c '{ask}'", "echo last"])
    assert done.returncode == 0, done.stderr
    assert done.stdout == "there\nlast\ntold\n"
    assert not processes("mark-987123")


def test_the_first_that_fails_is_the_last_and_gives_the_status(rootfs: Path) -> None:
    done = session(rootfs, ["sh -c 'exit 7'", "echo never"])
    assert (done.returncode, done.stdout) == (7, "")
    done = session(rootfs, ["true", "sleep 600", "echo never"], "--timeout", "0.3")
    assert (done.returncode, done.stdout) == (124, "")
    done = session(rootfs, ["echo once", "nonesuch"])
    assert (done.returncode, done.stdout) == (127, "once\n")
    assert "nonesuch" in done.stderr


def test_each_has_the_options_of_the_command(rootfs: Path) -> None:
    words = ("--env", "A=b", "--cwd", "/tmp", "--umask", "027")
    done = session(rootfs, ["sh -c 'echo $A; pwd; umask; cat'"], *words, given="in\n")
    assert done.stdout.split() == ["b", "/tmp", "0027", "in"]


def test_each_has_a_record_and_services_have_none(rootfs: Path) -> None:
    lines = ["sh -c 'echo of the service; sleep 600' &", "echo a", "sh -c 'exit 3'", "echo b"]
    done = session(rootfs, lines, "--json")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(each["argv"], each["exit"], each["out"]) for each in records] == [
        (["echo", "a"], 0, "a\n"),
        (["sh", "-c", "exit 3"], 3, ""),
    ]
    assert done.returncode == 3


def test_the_commands_come_from_stdin(rootfs: Path) -> None:
    argv = [sys.executable, "-m", "sandboxlib", "run", "--session", "-", str(rootfs)]
    done = subprocess.run(argv, input=b"cat\necho a\n", capture_output=True, check=True)
    assert done.stdout == b"a\n"


@pytest.mark.parametrize(
    ("lines", "words", "text"),
    [
        (["echo never", "echo 'a secret"], (), ":2: No closing quotation"),
        (["&"], (), ":1: there is no command before the &"),
        (["sleep 1 &"], (), "no command that is waited for"),
        ([], (), "no command that is waited for"),
        (["echo never", "''"], (), "the command is empty"),
        (["echo never"], ("--tty",), "--tty"),
        (["echo never"], ("--no-init",), "init=True"),
        (["echo never"], ("-e", "bubblewrap"), "no executor"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_as_a_whole(
    rootfs: Path, lines: list[str], words: tuple[str, ...], text: str
) -> None:
    done = session(rootfs, lines, *words)
    assert (done.returncode, done.stdout) == (125, "")
    assert text in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_there_is_no_other_command(rootfs: Path) -> None:
    argv = [sys.executable, "-m", "sandboxlib", "run", "--session", "-", str(rootfs), "echo"]
    done = subprocess.run(argv, input=b"echo a\n", capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (125, b"")
