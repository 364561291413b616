# SPDX-License-Identifier: Apache-2.0
"""A transport that writes to a terminal.

uvloop's own for pipes also reads from what it writes to, as that tells the end of a pipe. From a
pty it takes the output of the command.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

_HIGH, _LOW = 65536, 16384  # bytes in the buffer, as in asyncio


class TerminalWriter(asyncio.WriteTransport):
    """Writes to a file whose descriptor does not block, without its write().

    protocol: its connection_made() is called at once.
    """

    def __init__(self, pipe: Any, protocol: asyncio.Protocol) -> None:
        super().__init__({"pipe": pipe})
        self._loop = asyncio.get_running_loop()
        self._pipe, self._protocol = pipe, protocol
        self._buffer = bytearray()
        self._is_paused = self._is_closing = self._is_lost = False
        protocol.connection_made(self)

    def write(self, data: Any) -> None:
        if self._is_closing:
            return
        was_empty = not self._buffer
        self._buffer += data
        if was_empty:
            self._write_some()
        if len(self._buffer) > _HIGH and not self._is_paused:
            self._is_paused = True
            self._protocol.pause_writing()

    def _write_some(self) -> None:
        try:
            if self._buffer:
                del self._buffer[: os.write(self._pipe.fileno(), self._buffer)]
        except BlockingIOError:
            pass
        except OSError as error:
            self._lose(error)
            return
        if self._is_paused and len(self._buffer) <= _LOW:
            self._is_paused = False
            self._protocol.resume_writing()
        if self._buffer:
            self._loop.add_writer(self._pipe.fileno(), self._write_some)
            return
        self._loop.remove_writer(self._pipe.fileno())
        if self._is_closing:
            self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        """Close the descriptor, and tell the protocol, once."""
        if self._is_lost:
            return
        self._is_closing = self._is_lost = True
        self._buffer.clear()
        self._loop.remove_writer(self._pipe.fileno())
        self._pipe.close()
        self._loop.call_soon(self._protocol.connection_lost, error)

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True
        if not self._buffer:
            self._lose(None)

    def abort(self) -> None:
        self._lose(None)
