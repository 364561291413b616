# SPDX-License-Identifier: Apache-2.0
"""gRPC over a Unix socket, as a client: what casd is reached by.

To import grpc takes longer than all that the runner does, so these are the parts of HTTP/2
(RFC 9113) that calls to casd need. One thread at a time uses a Connection. Every wait has a bound.
"""

from __future__ import annotations

import time
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM
from _socket import socket as Socket  # noqa: N812 (socket.py takes long to import)
from select import POLLIN, poll

from .hpack import UNKNOWN, Decoder, Malformed, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, PRIORITY = 0x4, 0x8, 0x20
_MOST_FRAME = 1 << 14
_MOST_HEADERS = 1 << 16  # bytes of one block
_MOST_MESSAGE = 64 << 20  # bytes of an answer that memory is taken for
_WINDOW = 8 << 20
_FIRST_WINDOW = 65535
_PATIENCE = 300.0  # seconds that a call may take
_CODES = (
    "OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS"
    " PERMISSION_DENIED RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED"
    " INTERNAL UNAVAILABLE DATA_LOSS UNAUTHENTICATED"
).split()


class CallFailed(Exception):
    """A call did not succeed. code: str, the name of gRPC's code, as "NOT_FOUND"."""

    def __init__(self, method: str, code: str, details: str) -> None:
        what = f"{method.rpartition('/')[2]}: " if method else ""
        super().__init__(f"{what}{code}: {details}")
        self.code, self.details = code, details


class Stream:
    """One call. Made by Connection.open()."""

    def __init__(self, number: int, method: str, window: int) -> None:
        self.number, self.method, self.window = number, method, window
        self.data = bytearray()
        self.read = 0  # bytes whose window was not given back
        self.headers: dict[bytes, bytes] = {}
        self.is_over = False
        self.reset = ""

    def message(self) -> bytes | None:
        """The next message that has arrived as a whole; None if there is none."""
        if len(self.data) < 5:
            return None
        size = int.from_bytes(self.data[1:5], "big")
        if self.data[0]:
            raise CallFailed(self.method, "INTERNAL", "the answer is compressed")
        if size > _MOST_MESSAGE:
            raise CallFailed(self.method, "RESOURCE_EXHAUSTED", f"an answer of {size} bytes")
        if len(self.data) < 5 + size:
            return None
        message = bytes(self.data[5 : 5 + size])
        del self.data[: 5 + size]
        return message

    def check(self) -> None:
        """CallFailed unless the call, which is over, succeeded."""
        status = self.headers.get(b"grpc-status", b"")
        if self.reset or not status:
            raise CallFailed(self.method, "UNAVAILABLE", self.reset or "an answer without a status")
        if status != b"0":
            number = int(status) if status.isdigit() else 2
            code = _CODES[number] if number < len(_CODES) else "UNKNOWN"
            raise CallFailed(self.method, code, _unquoted(self.headers.get(b"grpc-message", b"")))


def _unquoted(text: bytes) -> str:
    if text == UNKNOWN:
        return "no details"
    first, *rest = text.split(b"%")
    parts = [first]
    for part in rest:
        try:
            parts.append(bytes((int(part[:2], 16),)) + part[2:])
        except ValueError:
            parts.append(b"%" + part)
    return b"".join(parts).decode(errors="replace")[:2000]


class Connection:
    """A connection to a server on a Unix socket.

    path: of the socket. CallFailed if nobody listens there.
    """

    def __init__(self, path: str) -> None:
        self._socket = Socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        try:
            self._socket.settimeout(_PATIENCE)
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            text = f"nobody answers on the socket {path}: {error.strerror}; is casd running?"
            raise CallFailed("", "UNAVAILABLE", text) from None
        self._decoder = Decoder()
        self._streams: dict[int, Stream] = {}
        self._next = 1
        self._window, self._peer_window, self._peer_frame = _FIRST_WINDOW, _FIRST_WINDOW, 1 << 14
        self._read = 0
        self._input = bytearray()
        self._block: tuple[int, int, bytearray] | None = None
        self._gone = ""
        # No push, and no table of headers; windows that a large answer fits into.
        settings = _setting(1, 0) + _setting(2, 0) + _setting(4, _WINDOW)
        raised = (_WINDOW - _FIRST_WINDOW).to_bytes(4, "big")
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        self._send(preface + _frame(SETTINGS, 0, 0, settings) + _frame(WINDOW, 0, 0, raised))

    def close(self) -> None:
        self._socket.close()

    # ---- calls ----

    def call(self, method: str, message: bytes) -> bytes:
        """One message, and its answer. method: "package.Service/Method". CallFailed."""
        answers = list(self.answers(method, [message]))
        if len(answers) != 1:
            raise CallFailed(method, "INTERNAL", f"{len(answers)} answers to one call")
        return answers[0]

    def answers(self, method: str, messages: Iterable[bytes]) -> Iterator[bytes]:
        """Several messages, and then the answers to them. CallFailed."""
        stream = self.open(method)
        for message in messages:
            if stream.is_over:  # the server wants no more
                break
            self.send(stream, message)
        if not stream.is_over:
            self._send(_frame(DATA, END_STREAM, stream.number, b""))
        while (answer := self.receive(stream)) is not None:
            yield answer
        stream.check()

    def open(self, method: str) -> Stream:
        """Begins a call, to which send() and receive() belong."""
        stream = Stream(self._next, method, self._peer_window)
        self._next += 2
        self._streams[stream.number] = stream
        headers = [
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", f"/{method}".encode()),
            (b":authority", b"localhost"), (b"te", b"trailers"),
            (b"content-type", b"application/grpc"), (b"user-agent", b"sandboxlib"),
        ]  # fmt: skip
        self._send(_frame(HEADERS, END_HEADERS, stream.number, encode(headers)))
        return stream

    def send(self, stream: Stream, message: bytes) -> None:
        """Sends a message, as fast as the server takes it. CallFailed."""
        rest = memoryview(b"\0" + len(message).to_bytes(4, "big") + message)
        while rest and not stream.is_over:
            size = min(len(rest), self._window, stream.window, self._peer_frame)
            if size <= 0:
                self._take(time.monotonic() + _PATIENCE, stream.method)
                continue
            self._send(_frame(DATA, 0, stream.number, rest[:size]))
            self._window -= size
            stream.window -= size
            rest = rest[size:]

    def receive(self, stream: Stream) -> bytes | None:
        """The next message of an answer; None once the answer is over. CallFailed."""
        deadline = time.monotonic() + _PATIENCE
        while (message := stream.message()) is None:
            if stream.is_over:
                self._streams.pop(stream.number, None)
                return None
            self._take(deadline, stream.method)
        return message

    def serve(self, stop: int) -> None:
        """Answers what the server asks while nobody calls, until the descriptor `stop` can be read
        or the server is gone.
        """
        watched = poll()
        watched.register(self._socket.fileno(), POLLIN)
        watched.register(stop, POLLIN)
        while not self._gone:
            ready = [fd for fd, _ in watched.poll()]
            if stop in ready:
                return
            try:
                self._take(time.monotonic() + _PATIENCE, "")
            except CallFailed as error:
                self._gone = error.details

    # ---- frames ----

    def _send(self, data: bytes | bytearray) -> None:
        if self._gone:
            raise CallFailed("", "UNAVAILABLE", self._gone)
        try:
            self._socket.sendall(data)
        except OSError as error:
            self._gone = f"casd is gone: {error.strerror or error}"
            raise CallFailed("", "UNAVAILABLE", self._gone) from None

    def _take(self, deadline: float, method: str) -> None:
        """Reads once, and handles the frames that are whole."""
        if self._gone:
            raise CallFailed(method, "UNAVAILABLE", self._gone)
        try:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            data = self._socket.recv(1 << 18)
        except TimeoutError:
            raise CallFailed(method, "DEADLINE_EXCEEDED", "no answer in time") from None
        except OSError as error:
            data, self._gone = b"", f"casd is gone: {error.strerror}"
        if not data:
            self._gone = self._gone or "casd is gone: it closed the connection"
            raise CallFailed(method, "UNAVAILABLE", self._gone)
        self._input += data
        try:
            self._handle_all()
        except Malformed as error:
            self._gone = str(error)
            raise CallFailed(method, "INTERNAL", self._gone) from None

    def _handle_all(self) -> None:
        at, data = 0, self._input
        while len(data) - at >= 9:
            size = int.from_bytes(data[at : at + 3], "big")
            if size > _MOST_FRAME:
                raise Malformed(f"a frame of {size} bytes")
            if len(data) - at < 9 + size:
                break
            number = int.from_bytes(data[at + 5 : at + 9], "big") & 0x7FFF_FFFF
            self._handle(data[at + 3], data[at + 4], number, bytes(data[at + 9 : at + 9 + size]))
            at += 9 + size
        del data[:at]

    def _handle(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._block is not None and kind != CONTINUATION:
            raise Malformed("something else within a block of headers")
        if kind == SETTINGS and not flags & ACK:
            self._settings(payload)
        elif kind == PING and not flags & ACK:
            self._send(_frame(PING, ACK, 0, payload))
        elif kind == WINDOW:
            self._raise_window(number, int.from_bytes(payload[:4], "big") & 0x7FFF_FFFF)
        elif kind == DATA:
            self._data(flags, number, payload)
        elif kind == HEADERS:
            content = bytearray(_unpadded(flags, payload))
            self._block = number, flags, content[5:] if flags & PRIORITY else content
            self._end_block(flags)
        elif kind == CONTINUATION:
            if self._block is None or self._block[0] != number:
                raise Malformed("a block of headers goes on that nobody began")
            self._block[2].extend(payload)
            self._end_block(flags)
        elif kind == RESET and number in self._streams:
            stream = self._streams[number]
            stream.is_over = True
            stream.reset = "" if stream.headers.get(b"grpc-status") else "the server ended the call"
        elif kind == GOAWAY and int.from_bytes(payload[4:8], "big"):
            raise Malformed(f"casd ends the connection: {payload[8:200].decode(errors='replace')}")

    def _settings(self, payload: bytes) -> None:
        for at in range(0, len(payload) - 5, 6):
            name = int.from_bytes(payload[at : at + 2], "big")
            value = int.from_bytes(payload[at + 2 : at + 6], "big")
            if name == 4:
                for stream in self._streams.values():
                    stream.window += value - self._peer_window
                self._peer_window = value
            elif name == 5:
                self._peer_frame = min(value, 1 << 20)
        self._send(_frame(SETTINGS, ACK, 0, b""))

    def _raise_window(self, number: int, more: int) -> None:
        if not number:
            self._window += more
        elif number in self._streams:
            self._streams[number].window += more

    def _data(self, flags: int, number: int, payload: bytes) -> None:
        stream = self._streams.get(number)
        self._read += len(payload)
        if self._read > _WINDOW // 2:
            self._send(_frame(WINDOW, 0, 0, self._read.to_bytes(4, "big")))
            self._read = 0
        if stream is None:
            return
        stream.data += _unpadded(flags, payload)
        if len(stream.data) > _MOST_MESSAGE + 5:
            raise Malformed("an answer that is larger than allowed")
        stream.read += len(payload)
        if stream.read > _WINDOW // 2 and not flags & END_STREAM:
            self._send(_frame(WINDOW, 0, number, stream.read.to_bytes(4, "big")))
            stream.read = 0
        stream.is_over = bool(flags & END_STREAM)

    def _end_block(self, flags: int) -> None:
        assert self._block is not None
        number, first, block = self._block
        if len(block) > _MOST_HEADERS:
            raise Malformed("headers that are larger than allowed")
        if not flags & END_HEADERS:
            return
        self._block = None
        headers = self._decoder.decode(bytes(block))
        stream = self._streams.get(number)
        if stream is not None:
            stream.headers.update(headers)
            stream.is_over = stream.is_over or bool(first & END_STREAM)


def _setting(name: int, value: int) -> bytes:
    return name.to_bytes(2, "big") + value.to_bytes(4, "big")


def _frame(kind: int, flags: int, number: int, payload: bytes | bytearray | memoryview) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + number.to_bytes(4, "big")
    return head + payload


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Malformed("a frame of nothing but padding")
    return payload[1 : len(payload) - payload[0]]
