# SPDX-License-Identifier: Apache-2.0
"""Runs a command on the terminal of the user, for run-sandbox --tty.

The command has a terminal of its own. This process passes on every byte that the user types, Ctrl-C
too, and shows every byte that the command writes. The command cannot reach the user's terminal.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
import tty
from collections.abc import Iterator

from ..api import Sandbox
from ..errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._concurrent.process import Process
    from .._spec.command import Command
    from ..result import Result

_ENDINGS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def run(box: Sandbox, command: Command) -> Result:
    """Run a command on the terminal that is stdin, and wait for its end. Raises SpecError if stdin
    is no terminal.
    """
    if not os.isatty(0):
        raise SpecError("--tty takes a terminal as stdin")
    with (
        _ended_by_signals(),
        box.start(command.replace(pty=_size())) as process,
        _raw(),
        _resized(process),
    ):
        _bridge(process)
        process.wait()
    return process.result()


def _size() -> tuple[int, int]:
    """The size of the user's terminal, (rows, columns); if it is not known, that of a VT100."""
    columns, rows = os.get_terminal_size(0)
    return rows or 24, columns or 80


def _show(data: bytes) -> None:
    unwritten = memoryview(data)
    while unwritten:
        unwritten = unwritten[os.write(1, unwritten) :]


def _show_what_came(pty: int) -> bool:
    """Show some output. False if the command has closed its terminal."""
    try:
        data = os.read(pty, 65536)
    except BlockingIOError:
        return True
    except OSError:  # EIO: nobody has the other end open (pty(7))
        return False
    _show(data)
    return bool(data)


def _bridge(process: Process) -> None:
    """Pass on the input and show the output, until the command ends.

    The input goes byte by byte: poll(2) promises room for one byte only. To wait for more room
    could take for ever, because the command may wait for us to read its output.
    """
    assert process.stdin is not None
    pty = process.stdin.fileno()
    typed = bytearray()
    is_open = True  # False: the command has closed its terminal, though it may live on
    poll = select.poll()
    poll.register(process.fileno(), select.POLLIN)
    poll.register(0, select.POLLIN)
    while True:
        if is_open:
            poll.register(pty, select.POLLIN | (select.POLLOUT if typed else 0))
        ready = dict(poll.poll())
        if process.poll() is not None:
            break
        if ready.get(pty, 0) & (select.POLLIN | select.POLLHUP) and not _show_what_came(pty):
            poll.unregister(pty)
            is_open = False
        elif typed and ready.get(pty, 0) & select.POLLOUT:
            with contextlib.suppress(BlockingIOError):
                del typed[: os.write(pty, typed[:1])]
        if ready.get(0):
            data = os.read(0, 4096)
            typed += data
            if not data:  # the user's terminal is gone
                process.kill()
                poll.unregister(0)
    if is_open:
        _show(process.communicate()[0] or b"")  # what the terminal still holds


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """Put the user's terminal in raw mode, so that it passes on every key and echoes none."""
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSANOW, before)


@contextlib.contextmanager
def _resized(process: Process) -> Iterator[None]:
    """Keep the size of the command's terminal the same as that of the user's."""

    def resize(*_: object) -> None:
        with contextlib.suppress(ValueError):  # the command ended, and its terminal is closed
            process.resize(*_size())

    before = signal.signal(signal.SIGWINCH, resize)
    try:
        process.resize(*_size())  # it may have changed before the handler was installed
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Turn signals that would end this process into an exception, to restore the terminal."""
    before = {signum: signal.signal(signum, _exit_on_signal) for signum in _ENDINGS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _exit_on_signal(signum: int, frame: object) -> None:
    for each in _ENDINGS:  # a second signal must not interrupt the restoring
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + signum)
