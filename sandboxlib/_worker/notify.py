# SPDX-License-Identifier: Apache-2.0
"""What the worker tells systemd: sd_notify(3), a datagram to the socket of $NOTIFY_SOCKET."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping


class Notifier:
    """Tells a service manager how the worker is. Without $NOTIFY_SOCKET it does nothing.

    Args:
        environ: the environment to read; os.environ by default. NOTIFY_SOCKET, WATCHDOG_USEC and
            WATCHDOG_PID are those of systemd.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self._address = environ.get("NOTIFY_SOCKET", "")
        #: The seconds after which systemd ends a service that says nothing; None: it waits forever.
        self.watchdog = _watchdog(environ)

    def tell(self, **fields: str) -> None:
        """Send fields as they are. Nobody who listens, or a full socket, is no error."""
        if self._address[:1] not in ("/", "@"):
            return
        address = self._address
        if address[0] == "@":  # a name in the abstract namespace
            address = "\0" + address[1:]
        text = "\n".join(f"{name}={value}" for name, value in fields.items())
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as sender:
            sender.sendto(text.encode("utf-8", "replace"), address)

    def ready(self, status: str) -> None:
        self.tell(READY="1", STATUS=_one_line(status))

    def status(self, status: str) -> None:
        self.tell(STATUS=_one_line(status))

    def stopping(self, status: str) -> None:
        self.tell(STOPPING="1", STATUS=_one_line(status))

    def alive(self) -> None:
        self.tell(WATCHDOG="1")


def _watchdog(environ: Mapping[str, str]) -> float | None:
    """The seconds of $WATCHDOG_USEC, if they are meant for this process."""
    period, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not period.isdigit() or int(period) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(period) / 1e6


def _one_line(text: str) -> str:
    """A text without line ends, each of which would begin another field."""
    return " ".join(text.split())
