# SPDX-License-Identifier: Apache-2.0
"""A worker: the session, the leases, the executor and the cache, put together."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from .._actions.execute import Executor
from .._images.store import Store
from .._remote import cas
from .._remote.server import Server
from .._remote.stubs import code_pb, digest_text, re_pb, status_pb, unpacked
from ..errors import SpecError
from .config import Config, address
from .leases import Ended, Leases, Work
from .metrics import Metrics
from .session import Session
from .site import announced, check_root, site_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .logs import Log

#: The phases of an action, each from one timestamp of its metadata to another.
PHASES = {
    "fetch": ("input_fetch_start_timestamp", "input_fetch_completed_timestamp"),
    "run": ("execution_start_timestamp", "execution_completed_timestamp"),
    "upload": ("output_upload_start_timestamp", "output_upload_completed_timestamp"),
}
#: So many actions that end with INTERNAL, and none that runs between, say that this machine is at
#: fault, and not an action.
MANY = 3


class Source:
    """The blobs of a server, as an Executor wants them.

    server: Server; close() closes it, and so does renew(), once what uses it is done.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._users = {server: 0}

    def fetch(self, digests: Iterable[str]) -> Mapping[str, bytes]:
        with self._used() as server:
            return cas.fetch(server, digests)

    def download(self, digest: str, write: Callable[[bytes], object]) -> None:
        with self._used() as server:
            cas.download(server, digest, write)

    def upload(self, blobs: Mapping[str, Any]) -> int:
        with self._used() as server:
            return cas.upload(server, blobs)

    def renew(self, server: Server) -> None:
        """Use another Server from now on. Calls that run go on with the one that they have."""
        with self._lock:
            self._server = server
            self._users[server] = 0
        self._close_unused()

    def close(self) -> None:
        """End the connections, and the calls that run."""
        with self._lock:
            servers = list(self._users)
        for server in servers:
            server.close()

    @contextlib.contextmanager
    def _used(self) -> Iterator[Server]:
        with self._lock:
            server = self._server
            self._users[server] += 1
        try:
            yield server
        finally:
            with self._lock:
                self._users[server] -= 1
            self._close_unused()

    def _close_unused(self) -> None:
        with self._lock:
            old = self._users.keys() - {self._server}
            unused = [server for server in old if not self._users[server]]
            for server in unused:
                del self._users[server]
        for server in unused:
            server.close()


class Worker:
    """All of a worker but its signals.

    Raises SpecError and its like for a configuration that cannot be, SetupError for a cache that
    cannot be used.
    """

    def __init__(self, config: Config, log: Log) -> None:
        self._config = config
        self._log = log
        self._internal = 0  # actions in a row that ended with INTERNAL
        site = site_of(config)
        self._lock = _only_one(config)
        check_root(site, config.cache)
        #: Called with a text for people when something changed.
        self.on_status: Callable[[str], object] = lambda text: None
        self._metrics = Metrics(address(config.metrics), address(config.statsd), config.statsd_tags)
        if self._metrics.port is not None:
            log.info("metrics", port=self._metrics.port)
        store = Store(os.path.join(config.cache, "store"), max_size=config.cache_size)
        store.prune(config.cache_size)  # also what a worker that was killed left
        self._source = Source(self._connect(config.cas))
        self._executor = Executor(site, self._source, store)
        self.session = Session(
            config,
            self._connect_anew,
            announced(config),
            log,
            self._metrics,
            lambda text: self.on_status(text),
        )
        self._leases = Leases(config.slots, self._execute, self.session.wake, log, self._metrics)
        self.session.leases = self._leases

    def reload(self) -> None:
        """Read the token and the certificates again."""
        self.session.reconnect()

    def close(self) -> None:
        self._leases.close()
        self.session.close()
        self._executor.close()
        self._source.close()
        self._metrics.close()
        os.close(self._lock)

    def _connect_anew(self) -> Server:
        """A connection for the session. That of the blobs is made anew with it: it has the same
        token and certificates, and goes over the same network.
        """
        server = self._connect(self._config.server)
        self._source.renew(self._connect(self._config.cas))
        return server

    def _connect(self, url: str) -> Server:
        config = self._config
        return Server(
            url,
            instance=config.instance,
            token=pathlib.Path(config.token) if config.token else None,
            ca=config.ca or None,
            cert=config.cert or None,
            key=config.key or None,
        )

    def _execute(self, work: Work) -> Ended:
        """Execute the action of a lease."""
        wanted = wanted_of(work.payload)
        if wanted is None:
            text = f"the lease has a {work.payload.type_url[:200]!r}, which is no Action"
            return Ended(status_pb.Status(code=code_pb.INVALID_ARGUMENT, message=text))
        outcome = self._executor.execute(wanted, stop=work.stop)
        if outcome.result is not None:
            self._count(outcome.result.execution_metadata)
        # Without a result the command did not run, or its outputs could not be kept here. With one
        # RESOURCE_EXHAUSTED is the command's own, which wrote too much.
        is_full = outcome.code == "RESOURCE_EXHAUSTED" and outcome.result is None
        if not work.stop.is_set():
            self._judge("UNAVAILABLE" if is_full else outcome.code)
        status = outcome.status()
        if is_full or (outcome.code == "CANCELLED" and self.session.is_draining):
            status.code = code_pb.UNAVAILABLE  # another worker may have room, or time
        return Ended(status, outcome.result)

    def _judge(self, code: str) -> None:
        """Take no leases for a while if they cannot be executed here."""
        if code == "OK":
            self._internal = 0
            self.session.recovered()
        elif code == "INTERNAL":
            self._internal += 1
        if code == "UNAVAILABLE" or self._internal >= MANY:
            self._internal = 0
            self.session.rest()

    def _count(self, metadata: Any) -> None:
        for phase, (first, last) in PHASES.items():
            if metadata.HasField(first) and metadata.HasField(last):
                nanos = getattr(metadata, last).ToNanoseconds()
                nanos -= getattr(metadata, first).ToNanoseconds()
                self._metrics.record("action_seconds", nanos / 1e9, phase=phase)


def wanted_of(payload: Any) -> Any:
    """The Action of a lease, or its digest; None if it has neither."""
    action, digest = re_pb.Action(), re_pb.Digest()
    if unpacked(payload, action):
        return action
    return digest_text(digest) if unpacked(payload, digest) else None


def _check_owned(cache: str) -> None:
    """SpecError for a directory in which others could put another store in the place of ours."""
    at = os.stat(cache)
    if at.st_uid not in (0, os.geteuid()):
        raise SpecError(f"cache: {cache} belongs to another user; name another directory")
    if at.st_mode & 0o022:
        raise SpecError(f"cache: {cache} can be written by other users: chmod go-w")


def _only_one(config: Config) -> int:
    """A descriptor with a lock, which a second worker of this name and cache does not get."""
    try:
        os.makedirs(config.cache, 0o700, exist_ok=True)
        _check_owned(config.cache)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(os.path.join(config.cache, f"{config.name}.lock"), flags, 0o600)
    except OSError as error:
        raise SpecError(f"cache: {config.cache} cannot be used: {error.strerror}") from None
    end = time.monotonic() + 2  # a worker that was killed is gone in a moment
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > end:
                os.close(fd)
                text = f"a worker named {config.name} runs already with the cache {config.cache}"
                raise SpecError(f"{text}; give this one another name") from None
            time.sleep(0.05)
