# SPDX-License-Identifier: Apache-2.0
"""A command on the terminal of the user: what run-sandbox --tty does.

The command has a terminal of its own. What the user types is passed on to it as it is, Ctrl-C as
well, and what the command writes is shown. The user's terminal is out of the command's reach.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
import tty
from collections.abc import Iterator, Mapping

from ..api import Sandbox
from ..errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._concurrent.process import Process
    from .._types import Argv
    from ..result import Result

_ENDINGS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def run(box: Sandbox, command: Argv, cwd: str | None, env: Mapping[str, str]) -> Result:
    """Runs a command on the terminal that is stdin, to its end. SpecError where it is none."""
    if not os.isatty(0):
        raise SpecError("--tty takes a terminal as stdin")
    with (
        _ended_by_signals(),
        box.start(command, cwd=cwd, extra_env=env, stdout=_show, pty=_size()) as process,
        _raw(),
        _resized(process),
    ):
        _bridge(process)
    assert process.result is not None
    return process.result


def _size() -> tuple[int, int]:
    """(rows, columns); of a terminal that does not know, those of a VT100."""
    columns, rows = os.get_terminal_size(0)
    return rows or 24, columns or 80


def _show(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(1, rest) :]


def _bridge(process: Process) -> None:
    """Passes on what is typed and shows what is written, until the end.

    Byte by byte: so much room there is when poll(2) says that there is some, and to wait for more
    would be to wait for a command that waits for its output to be read.
    """
    assert process.stdin is not None
    theirs = process.stdin.fileno()
    typed = bytearray()
    is_open = True  # theirs; a command may close it, and live on
    poll = select.poll()
    poll.register(process.fileno(), select.POLLIN)
    poll.register(0, select.POLLIN)
    while True:
        if is_open:
            poll.register(theirs, select.POLLIN | (select.POLLOUT if typed else 0))
        ready = dict(poll.poll())
        if process.poll() is not None:
            return
        if typed and ready.get(theirs, 0) & select.POLLOUT:
            with contextlib.suppress(BlockingIOError):
                del typed[: os.write(theirs, typed[:1])]
        elif ready.get(theirs, 0) & select.POLLHUP:
            poll.unregister(theirs)
            is_open = False
        if ready.get(0):
            data = os.read(0, 4096)
            typed += data
            if not data:  # the user's terminal is gone
                process.kill()
                poll.unregister(0)


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """The user's terminal passes on everything, and echoes nothing."""
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSANOW, before)


@contextlib.contextmanager
def _resized(process: Process) -> Iterator[None]:
    """The command's terminal has the size of the user's, also when that changes."""
    before = signal.signal(signal.SIGWINCH, lambda *_: process.resize(*_size()))
    try:
        process.resize(*_size())  # it may have changed before somebody looked
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """What would end this process ends it by an exception, so that all is put back."""
    before = {signum: signal.signal(signum, _leave) for signum in _ENDINGS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _leave(signum: int, frame: object) -> None:
    for each in _ENDINGS:  # the next one would come while all is put back
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + signum)
