# SPDX-License-Identifier: Apache-2.0
"""Server: the connection to a server of the Remote Execution API."""

from __future__ import annotations

import os
import random
import threading
import time
import warnings
import weakref
from collections.abc import Callable

from .. import _types
from ..errors import RemoteError, SpecError, UnsupportedError
from .address import Address, check_instance, parse
from .credentials import Token, check_pem, system_roots

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FIRST_WAIT, LONGEST_WAIT = 0.2, 5.0  # seconds between two tries
#: What gRPC takes in one message unless it is told otherwise, less room for the fields around.
LARGEST_BATCH = (4 << 20) - (64 << 10)
LARGEST_MESSAGE = 64 << 20  # the most that we take in one message, as an ActionResult with outputs
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", LARGEST_MESSAGE),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # This sets TCP_USER_TIMEOUT too: a network that is cut is noticed 20 s after we sent something.
    # Servers take pings once in 5 minutes without asking why.
    ("grpc.keepalive_time_ms", 301_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.enable_http_proxy", 0),
    # Servers of one address share no connection: close() ends that of its own Server.
    ("grpc.use_local_subchannel_pool", 1),
)


class Server:
    """The connection to a server of the Remote Execution API, such as BuildGrid, Buildbarn,
    Buildfarm, NativeLink, or buildbox-casd. Cached and Remote use it.

        with Server("grpc://cache:8980") as server:
            Cached(box, server, write=True).run(["make"])

    url: str. "grpc://HOST:PORT" is without TLS, "grpcs://HOST:PORT" with it (the port is 443 unless
        given), and "unix:///PATH" the path of a Unix socket.
    instance: str, the name of the instance at the server. Default "": the one without a name.
    token: path (no str) of a file with a token such as a JWT, which goes with each call as
        "authorization: Bearer TOKEN". It is read again when the file changes. Refused for grpc://
        unless the host is this machine, since others could read it on the way; and, as by ssh, if
        other users may read the file (chmod 600; the group of one of root's may). None (the
        default): no token.
    ca: path of a PEM file with the certificates that may have signed the server's. None (the
        default): the roots of the system; gRPC's own list if it has none.
    cert, key: paths of PEM files with the client's certificate and its private key, for a server
        that asks for one; both or none (the default).

    Nothing connects before the first call. Any number of threads may use a Server; after a fork the
    child has a connection of its own. It is a context manager; close() ends the connection and
    every call that still runs. One that is collected without close() issues a ResourceWarning.
    It cannot be pickled.

    Raises SpecError (a ValueError) if a value makes no sense, SpecTypeError for one of the wrong
    type, ImportError if the packages of the extra `remote` are not installed.
    """

    __module__ = "sandboxlib"  # as callers import it

    def __init__(
        self,
        url: str,
        *,
        instance: str = "",
        token: os.PathLike[str] | None = None,
        ca: _types.Path | None = None,
        cert: _types.Path | None = None,
        key: _types.Path | None = None,
    ) -> None:
        self._closed = True  # until all is checked: __del__ runs for one that was refused too
        self._address: Address = parse(url)
        self.url: str = self._address.url
        self.instance: str = check_instance(instance)
        if not self._address.has_tls and not (ca is cert is key is None):
            raise SpecError(f"ca, cert and key are for TLS, which {self.url} has not: use grpcs://")
        if (cert is None) != (key is None):
            raise SpecError("cert and key belong together: give both, or none")
        self._ca, self._cert = check_pem("ca", ca), check_pem("cert", cert)
        self._key = check_pem("key", key)
        self._token = None if token is None else Token(token)
        if self._token is not None and not self._address.keeps_secrets:
            raise SpecError(
                f"a token over {self.url} can be read by anyone on the way: use grpcs://"
            )
        from . import stubs

        self._stubs_module: Any = stubs
        self._lock = threading.Lock()
        self._channel: Any = None
        self._by_kind: dict[Any, Any] = {}
        self._capabilities: Any = None
        self._kept: dict[Any, Any] = {}
        self._closed = False
        _SERVERS.add(self)

    # ---- calls ----

    def stub(self, kind: Callable[[_types.Any], _types.T]) -> _types.T:
        """The stub of a service, made once, as of stub(re_grpc.ContentAddressableStorageStub).

        kind: a class of stubs, which takes a channel. Raises RemoteError if the Server is closed.
        """
        with self._lock:
            self._check_open("stub")
            if self._channel is None:
                self._channel = self._open()
            if kind not in self._by_kind:
                self._by_kind[kind] = kind(self._channel)
            made: _types.T = self._by_kind[kind]
            return made

    def call(
        self,
        name: str,
        send: Callable[[float], _types.T],
        *,
        timeout: float = 60.0,
        tries: int = 6,
        once: bool = False,
        stop: threading.Event | None = None,
    ) -> _types.T:
        """Calls send(seconds), which makes a call of a stub with that timeout, and returns what
        that returns. After UNAVAILABLE, and after nothing else, it calls again.

        name: str, the method, for the error. send: a function of one float. timeout: seconds for
        all tries and the waits between them. tries: int, the most calls. once: bool, True for a
        call that may not be made twice. stop: an Event that ends the waiting; the error of the last
        try is raised then.

        Raises RemoteError.
        """
        until = time.monotonic() + timeout
        wait = FIRST_WAIT
        left = 1 if once else max(tries, 1)
        while True:
            left -= 1
            try:
                return send(max(until - time.monotonic(), 0.001))
            except RemoteError as error:
                failed = error
            except self._stubs_module.grpc.RpcError as error:
                failed = self.error_of(name, error)
            except ValueError as error:  # gRPC's for a channel that was closed
                if not self._closed:
                    raise
                failed = RemoteError(self.url, name, "CANCELLED", f"the Server is closed ({error})")
            pause = wait * random.uniform(0.5, 1.0)
            is_over = left <= 0 or time.monotonic() + pause >= until or self._closed
            if failed.code != "UNAVAILABLE" or is_over:
                raise failed
            if stop is None:
                time.sleep(pause)
            elif stop.wait(pause):
                raise failed
            wait = min(wait * 2, LONGEST_WAIT)

    def error_of(self, name: str, error: _types.Any) -> RemoteError:
        """The RemoteError for an error of gRPC.

        name: str, the method that was called. error: what grpc raised.
        """
        code = getattr(error.code(), "name", "UNKNOWN") if hasattr(error, "code") else "UNKNOWN"
        details = (error.details() if hasattr(error, "details") else str(error)) or ""
        if code == "CANCELLED" and self._closed:
            details = "the Server is closed"
        made = RemoteError(self.url, name, code, details)
        made.__cause__ = error
        return made

    def capabilities(self) -> _types.Any:
        """The ServerCapabilities message of the server, asked for once. A server that does not
        implement the call has the empty message.

        Raises UnsupportedError if the server does not take SHA-256; RemoteError.
        """
        if self._capabilities is None:
            pb, stub = self._stubs_module.re_pb, self._stubs_module.re_grpc.CapabilitiesStub
            request = pb.GetCapabilitiesRequest(instance_name=self.instance)
            try:
                self._capabilities = self._sha256_only(
                    self.call(
                        "GetCapabilities",
                        lambda seconds: self.stub(stub).GetCapabilities(request, timeout=seconds),
                    )
                )
            except RemoteError as error:
                if error.code != "UNIMPLEMENTED":
                    raise
                self._capabilities = pb.ServerCapabilities()
        return self._capabilities

    def _sha256_only(self, told: Any) -> Any:
        functions = told.cache_capabilities.digest_function
        sha256 = self._stubs_module.re_pb.DigestFunction.SHA256
        if functions and sha256 not in functions:
            raise UnsupportedError(
                f"{self.url} does not take SHA-256, the only digest that sandboxlib has; "
                "set its digest function to SHA256"
            )
        return told

    def largest_batch(self) -> int:
        """The most bytes of blobs for one message. Raises what capabilities() raises."""
        told = self.capabilities().cache_capabilities.max_batch_total_size_bytes
        return min(told, LARGEST_BATCH) if told > 0 else LARGEST_BATCH

    # ---- what lasts as long as the connection ----

    def _keep(self, kind: Callable[[Server], _types.T]) -> _types.T:
        """What kind(server) made at the first call; close() of the Server closes it."""
        with self._lock:
            self._check_open("run")
            if kind not in self._kept:
                self._kept[kind] = kind(self)
            made: _types.T = self._kept[kind]
            return made

    def _open_aio(self) -> Any:
        """A channel of grpc.aio, of the running event loop. Its calls take _metadata_of()."""
        grpc = self._stubs_module.grpc
        return self._channel_of(grpc.aio.insecure_channel, grpc.aio.secure_channel)

    def _metadata_of(self, name: str) -> tuple[tuple[str, str], ...]:
        """What a call of the method `name` carries. RemoteError if the token cannot be read."""
        return () if self._token is None else self._metadata(name)

    # ---- its life ----

    def _open(self) -> Any:
        from .channel import Marked

        grpc = self._stubs_module.grpc
        channel = self._channel_of(grpc.insecure_channel, grpc.secure_channel)
        return channel if self._token is None else Marked(channel, self._metadata)

    def _channel_of(self, insecure: Any, secure: Any) -> Any:
        target = self._address.target
        if not self._address.has_tls:
            return insecure(target, options=CHANNEL_OPTIONS)
        roots = self._ca or system_roots()
        credentials = self._stubs_module.grpc.ssl_channel_credentials(roots, self._key, self._cert)
        return secure(target, credentials, options=CHANNEL_OPTIONS)

    def _metadata(self, name: str) -> tuple[tuple[str, str], ...]:
        assert self._token is not None
        try:
            return (("authorization", f"Bearer {self._token.read()}"),)
        except (OSError, SpecError) as error:
            raise RemoteError(self.url, name, "UNAUTHENTICATED", f"no token: {error}") from error

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._closed

    def close(self) -> None:
        """Ends the connection. Calls that still run end with a RemoteError of the code CANCELLED,
        and so does each later one. A second call does nothing.
        """
        with self._lock:
            self._closed = True
            channel, self._channel, self._by_kind = self._channel, None, {}
            kept, self._kept = list(self._kept.values()), {}
        for each in kept:
            each.close()
        if channel is not None:
            channel.close()

    def __enter__(self) -> _types.Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> _types.NoReturn:
        raise TypeError("a Server cannot be pickled: make one where it is used")

    def __repr__(self) -> str:
        named = f" instance={self.instance!r}" if self.instance else ""
        return f"<Server {self.url}{named}{' closed' if self._closed else ''}>"

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            if self._channel is not None:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def _check_open(self, name: str) -> None:
        if self._closed:
            raise RemoteError(self.url, name, "CANCELLED", "the Server is closed")
        if _OF_STREAMS:
            text = "gRPC hangs in a process that was forked while a Remote ran; spawn works"
            raise RemoteError(self.url, name, "CANCELLED", text)


_SERVERS: weakref.WeakSet[Server] = weakref.WeakSet()
_OF_PARENTS: list[Any] = []
_OF_STREAMS: list[Any] = []  # whose threads were in gRPC when this process was forked


def _after_fork() -> None:
    """In the child: a lock may be held by a thread that only the parent has, and the connection is
    the parent's. Its channel is kept: closing it would end the parent's connection.
    """
    for server in _SERVERS:
        server._lock = threading.Lock()
        _OF_STREAMS.extend(server._kept.values())
        server._kept = {}
        if server._token is not None:
            server._token.renew()
        if server._channel is not None:
            _OF_PARENTS.append(server._channel)
            server._channel, server._by_kind = None, {}


os.register_at_fork(after_in_child=_after_fork)
