# SPDX-License-Identifier: Apache-2.0
"""Somebody who sits at a terminal and types."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import subprocess
import termios
import time

import pytest
from lib.machine import python


class User:
    """A terminal, with run-sandbox on it. words: its arguments."""

    def __init__(self, *words: object) -> None:
        argv = [*python(), "-m", "sandboxlib", "run", *map(str, words)]
        self._fd, theirs = os.openpty()
        self.resize(30, 100)
        self.settings = termios.tcgetattr(self._fd)
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *argv],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "vt100"},
        )
        os.close(theirs)
        self._unread = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        """Write all of it, and read meanwhile, as terminals do: else both ends could wait."""
        os.set_blocking(self._fd, False)
        try:
            while text:
                readable, writable, _ = select.select([self._fd], [self._fd], [], 60)
                assert readable or writable, self._unread
                if readable:
                    self._unread += os.read(self._fd, 65536)
                if writable:
                    with contextlib.suppress(BlockingIOError):
                        text = text[os.write(self._fd, text) :]
        finally:
            os.set_blocking(self._fd, True)

    def see(self, text: bytes, seconds: float = 60) -> bytes:
        """Read the terminal up to this text."""
        end = time.monotonic() + seconds
        while text not in self._unread:
            left = max(0.0, end - time.monotonic())
            assert select.select([self._fd], [], [], left)[0], self._unread
            try:
                self._unread += os.read(self._fd, 65536)
            except OSError:
                pytest.fail(f"the terminal is closed after {self._unread!r}")
        shown, _, self._unread = self._unread.partition(text)
        return shown

    def leave(self) -> int:
        """Waits for the exit status; the terminal is as it was."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if self.process.poll() is not None:
                assert termios.tcgetattr(self._fd) == self.settings
                return self.process.returncode
            if select.select([self._fd], [], [], 0.01)[0]:
                with contextlib.suppress(OSError):
                    self._unread += os.read(self._fd, 65536)
        pytest.fail(f"it does not end: {self._unread!r}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)
