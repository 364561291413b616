# SPDX-License-Identifier: Apache-2.0
"""What the worker counts, for Prometheus (a page /metrics) or for statsd (datagrams)."""

from __future__ import annotations

import contextlib
import socket
import time

from ..errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Sink(Protocol):
        """One place that figures go to."""

        def record(self, name: str, value: float, labels: dict[str, str]) -> None: ...
        def close(self) -> None: ...


#: Each figure: its kind, its labels, and what it is.
METRICS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "actions": ("counter", ("code",), "actions that ended, by the code of their status"),
    "action_seconds": ("timer", ("phase",), "seconds of an action: fetch, run, upload, all"),
    "leases": ("gauge", (), "leases that the worker has now"),
    "slots": ("gauge", (), "leases that it takes at most"),
    "healthy": ("gauge", (), "1 while the worker takes leases, 0 while it rests or drains"),
    "sessions": ("counter", (), "sessions that the worker began: one, and one after each loss"),
    "cancelled": ("counter", (), "leases that the server took back"),
    "calls": ("counter", ("call", "code"), "calls to the bots service, by their code"),
}
#: The upper ends of the buckets of a timer, in seconds.
BUCKETS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    300,
    1800,
)
#: How tags are written after the name or the value; BuildGrid has the same four.
TAGS = ("influx-statsd", "dogstatsd", "graphite", "none")
PREFIX = "sandboxlib_worker"


class Metrics:
    """The figures of a worker. Any thread may call it.

    Args:
        page: (host, port) of the page for Prometheus; None: there is none. Port 0 takes a free one.
        statsd: (host, port) that gets datagrams; None: nobody does.
        tags: str: how statsd gets labels, one of TAGS.
    """

    def __init__(
        self,
        page: tuple[str, int] | None = None,
        statsd: tuple[str, int] | None = None,
        tags: str = TAGS[0],
    ) -> None:
        self._sinks: list[Sink] = []
        #: The port of the page, or None.
        self.port: int | None = None
        if page is not None:
            prometheus = _Page(*page)
            self.port = prometheus.port
            self._sinks.append(prometheus)
        if statsd is not None:
            self._sinks.append(_Statsd(*statsd, tags))

    def count(self, name: str, **labels: str) -> None:
        """Add one to a counter."""
        self.record(name, 1, **labels)

    def record(self, name: str, value: float, **labels: str) -> None:
        """Give a gauge its value, a timer some seconds, or add to a counter."""
        for sink in self._sinks:
            sink.record(name, value, labels)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()


class _Page:
    """A page of prometheus_client, with a registry of its own."""

    def __init__(self, host: str, port: int) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError:
            text = "metrics need prometheus_client: pip install 'sandboxlib[worker]'"
            raise SpecError(text) from None
        registry = prometheus.CollectorRegistry()
        self._figures: dict[str, Any] = {}
        for name, (kind, labels, text) in METRICS.items():
            full = f"{PREFIX}_{name}"
            if kind == "timer":
                figure: Any = prometheus.Histogram(
                    full, text, labels, registry=registry, buckets=BUCKETS
                )
            else:
                made = prometheus.Counter if kind == "counter" else prometheus.Gauge
                figure = made(full, text, labels, registry=registry)
            self._figures[name] = figure
        prometheus.ProcessCollector(registry=registry)
        try:
            self._server, self._thread = prometheus.start_http_server(port, host, registry)
        except OSError as error:
            text = f"metrics: {host}:{port} cannot be listened on: {error.strerror}"
            raise SpecError(f"{text}; another port, or 0, which takes a free one") from None
        self.port = int(self._server.server_port)

    def record(self, name: str, value: float, labels: dict[str, str]) -> None:
        figure = self._figures[name]
        if labels:
            figure = figure.labels(**labels)
        kind = METRICS[name][0]
        method = {"counter": "inc", "gauge": "set", "timer": "observe"}[kind]
        getattr(figure, method)(value)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


class _Statsd:
    """Datagrams as statsd takes them. One that is lost is no error."""

    def __init__(self, host: str, port: int, tags: str) -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        except OSError as error:
            raise SpecError(f"statsd: {host} is no host that is known: {error}") from None
        self._address: Any = found[4]
        self._socket = socket.socket(found[0], found[1])
        self._socket.setblocking(False)
        self._tags = tags

    def record(self, name: str, value: float, labels: dict[str, str]) -> None:
        kind = METRICS[name][0]
        if kind == "timer":
            value *= 1000
        letter = {"counter": "c", "gauge": "g", "timer": "ms"}[kind]
        text = statsd_line(f"{PREFIX}.{name}", f"{value:g}", letter, labels, self._tags)
        with contextlib.suppress(OSError):
            self._socket.sendto(text.encode(), self._address)

    def close(self) -> None:
        self._socket.close()


def statsd_line(name: str, value: str, letter: str, labels: dict[str, str], tags: str) -> str:
    """One figure for statsd, with the labels in one of the ways of TAGS."""
    if not labels or tags == "none":
        return f"{name}:{value}|{letter}\n"
    sign = ":" if tags == "dogstatsd" else "="
    pairs = [f"{key}{sign}{text}" for key, text in sorted(labels.items())]
    if tags == "dogstatsd":
        return f"{name}:{value}|{letter}|#{','.join(pairs)}\n"
    mark = ";" if tags == "graphite" else ","
    return f"{name}{mark}{mark.join(pairs)}:{value}|{letter}\n"


def since(start: float) -> float:
    """The seconds since a value of time.monotonic()."""
    return time.monotonic() - start
