# SPDX-License-Identifier: Apache-2.0
"""Kept: a server process that ends with this one, and the waiting for what it does."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from ..errors import SandboxError

KEEPER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "keeper.py")
STARTS = 120.0  # seconds that a server may take to start
ENDS = 15.0  # seconds that a keeper may take to end its server


class ClusterError(SandboxError):
    """A server of the cluster did not start, or ended. The text has the end of what it wrote."""


class Kept:
    """A process below a keeper.

    log: the file that gets its stdout and stderr, made anew. user: the name of the user that it
    runs as, "" for the caller. removed: a directory that goes if this process dies, or "".
    environ: variables that it gets beside those of the caller.
    """

    def __init__(
        self,
        argv: list[str],
        log: Path,
        user: str = "",
        removed: str = "",
        environ: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", KEEPER, user, removed, *argv],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                cwd="/",
                env={**os.environ, "PYTHONUNBUFFERED": "1", "LC_ALL": "C", **environ},
            )

    @property
    def runs(self) -> bool:
        """Whether the server still runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Kills the server as kill -9 does, and waits for it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it may have ended already
            os.write(self._process.stdin.fileno(), b"k")
        self.stop()

    def stop(self) -> None:
        """Ends the server: SIGTERM, then SIGKILL. Waits for it; a second call does nothing."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(ENDS)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the kernel kills the server with it
            self._process.wait()

    def wait_for(self, what: str, is_there: Callable[[], bool]) -> None:
        """Waits until is_there() is true; ClusterError if the server ends, or takes too long."""
        until = time.monotonic() + STARTS
        while not is_there():
            if not self.runs or time.monotonic() > until:
                why = f"took more than {STARTS:.0f} s" if self.runs else "ended"
                text = self.log.read_text(errors="replace")[-2000:].strip()
                raise ClusterError(f"{what} {why}: {text}")
            time.sleep(0.02)


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
