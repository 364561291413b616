# SPDX-License-Identifier: Apache-2.0
"""The log of the worker: one line for each event, as JSON or as logfmt."""

from __future__ import annotations

import contextlib
import json
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO

FORMATS = ("logfmt", "json")
LEVELS = ("debug", "info", "warning", "error")
#: Of a longer value the log has the beginning: messages of a server or of a command end up here.
MOST = 4096


class Log:
    """Writes events to a stream. Any thread may call it.

    Args:
        format: str: "json" (an object a line) or "logfmt" (name=value, separated by spaces).
        level: str: the least level that is written: "debug", "info", "warning" or "error".
        stream: where bytes go, without a buffer; descriptor 2 by default.
        fields: what each line has beside time, level and event.
    """

    def __init__(
        self,
        format: str = "logfmt",
        level: str = "info",
        stream: IO[bytes] | None = None,
        **fields: object,
    ) -> None:
        self._line = json_line if format == "json" else logfmt_line
        self._least = LEVELS.index(level)
        self._stream = stream or open(2, "wb", buffering=0, closefd=False)  # noqa: SIM115
        self._fields = fields
        self._lock = threading.Lock()

    def debug(self, event: str, **fields: object) -> None:
        self._write("debug", event, fields)

    def info(self, event: str, **fields: object) -> None:
        self._write("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self._write("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        self._write("error", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, object]) -> None:
        if LEVELS.index(level) < self._least:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03}Z"
        line = {"time": stamp, "level": level, "event": event, **self._fields, **fields}
        text = self._line({name: _plain(value) for name, value in line.items()}) + "\n"
        # A log that cannot be written (a full disk, a closed pipe) ends no action.
        with contextlib.suppress(OSError, ValueError), self._lock:
            self._stream.write(text.encode())


def _plain(value: object) -> object:
    """A value as JSON has it; a long text is cut off."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return round(value, 6)
    text = value if isinstance(value, str) else str(value)
    if len(text) > MOST:
        text = text[:MOST] + "..."
    return text.encode("utf-8", "backslashreplace").decode()


def json_line(fields: dict[str, object]) -> str:
    """The fields as a JSON object in a line."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def logfmt_line(fields: dict[str, object]) -> str:
    """The fields as name=value. A value that could be taken for something else is a JSON string,
    so no text of a command or server begins a line or a field of its own.
    """
    return " ".join(f"{name}={_logfmt(value)}" for name, value in fields.items())


def _logfmt(value: object) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    if value and value.isascii() and value.isprintable() and not set(value) & set(' "=\\'):
        return value
    return json.dumps(value)
