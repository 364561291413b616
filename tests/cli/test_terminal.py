# SPDX-License-Identifier: Apache-2.0
"""run-sandbox --tty, by somebody who sits at a terminal and types."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.machine import needs_root
from lib.terminal import User
from lib.waiting import processes, wait_until

pytestmark = needs_root


@pytest.fixture
def sit_down(shared_rootfs: Path) -> Iterator[Any]:
    users: list[User] = []

    def make(*command: str, options: tuple[str, ...] = ()) -> User:
        users.append(User("--tty", "--dev", "/dev", *options, shared_rootfs, *command))
        return users[-1]

    yield make
    for user in users:
        user.close()


@pytest.mark.parametrize("options", [(), ("--no-init",), ("--processes", "undefined")], ids=str)
def test_a_shell_at_a_terminal(sit_down: Any, options: tuple[str, ...]) -> None:
    user = sit_down("sh", options=options)
    user.type(b"stty size; echo $((6 * 7)) $TERM; test -t 0 && echo terminal\r")
    user.see(b"30 100\r\n42 vt100\r\nterminal\r\n")
    user.resize(40, 110)
    user.type(b"sleep 0.2; stty size\r")
    user.see(b"40 110\r\n")
    user.type(b"sh -c 'echo u\"\"p; exec sleep 1000'\r")
    user.see(b"up\r\n")  # before that the shell has the terminal, and takes ^C for a letter
    user.type(b"\x03")
    user.type(b"echo after $?\r")
    user.see(b"after 130\r\n")
    user.type(b"exit 7\r")
    assert user.leave() == 7


def test_a_long_text_is_pasted_into_a_command_that_writes_a_lot(sit_down: Any) -> None:
    user = sit_down("sh", "-c", "stty -echo; echo ready; seq 20000; wc -c")
    user.see(b"ready\r\n")
    for _ in range(20):
        user.type(b"0123456789abcdef" * 62 + b"\n" + b"1234567\n")  # 1,001 bytes
    user.type(b"\x04")
    user.see(b"20000\r\n20020\r\n")
    assert user.leave() == 0


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_command_and_puts_the_terminal_back(
    sit_down: Any, signum: int, status: int
) -> None:
    mark = f"{os.getpid()}.5772156"
    user = sit_down("sh", "-c", f"echo begun; sleep {mark}")
    user.see(b"begun\r\n")
    os.kill(user.process.pid, signum)
    assert user.leave() == status
    assert wait_until(lambda: not processes(mark))


def test_a_command_that_cannot_begin_leaves_the_terminal_as_it_was(sit_down: Any) -> None:
    user = sit_down("nonesuch")
    user.see(b"exec 'nonesuch'")
    assert user.leave() == 127


def test_a_command_that_closes_its_terminal_is_waited_for(sit_down: Any) -> None:
    def system_time(end: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        script = f"echo said; exec <&- >&- 2>&-; {end}"
        user = sit_down("sh", "-c", script, options=("--no-init",))
        user.see(b"said\r\n")
        assert user.leave() == 3
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_stime - before.ru_stime

    # It does not ask again and again.
    assert system_time("sleep 2; exit 3") < system_time("exit 3") + 0.5


@pytest.mark.parametrize("words", [[], ["--json"], ["--timeout", "5"]], ids=str)
def test_it_takes_a_terminal(shared_rootfs: Path, words: list[str]) -> None:
    argv = [sys.executable, "-m", "sandboxlib", "run", "--tty", *words, str(shared_rootfs), "sh"]
    done = subprocess.run(argv, input=b"exit 3", capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"--tty" in done.stderr
