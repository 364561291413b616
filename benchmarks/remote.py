# SPDX-License-Identifier: Apache-2.0
"""Measures remote execution: actions a second through a server, and what a worker costs the server.

    python benchmarks/remote.py                    all of these, with a server of its own
    python benchmarks/remote.py throughput idle    these alone
    python benchmarks/remote.py --url grpc://...   with a server that is there

    throughput   no-op actions a second with our worker, and with one that answers without running
    idle         bytes a second of a worker that has nothing to do, and of one that is busy

It takes sandboxlib[worker], and for a server of its own what tests/README.md says of the cluster.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from lib.farm import Farmer, worker

from sandboxlib._remote.server import Server
from sandboxlib._remote.stubs import re_pb, status_pb
from sandboxlib._worker.config import read_config
from sandboxlib._worker.leases import Ended, Leases, Work
from sandboxlib._worker.logs import Log
from sandboxlib._worker.metrics import Metrics
from sandboxlib._worker.session import Session
from sandboxlib._worker.site import announced

CLIENTS = 16  # actions that are under way at once


class Proxy:
    """Passes the bytes of a TCP port on, and counts them."""

    def __init__(self, url: str) -> None:
        host, _, port = url.rpartition("//")[2].rpartition(":")
        self._to = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"grpc://127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent = self.received = self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            self.connections += 1
            server = socket.create_connection(self._to)
            for source, target, name in (
                (client, server, "sent"),
                (server, client, "received"),
            ):
                threading.Thread(
                    target=self._pass, args=(source, target, name), daemon=True
                ).start()

    def _pass(self, source: socket.socket, target: socket.socket, name: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                setattr(self, name, getattr(self, name) + len(data))
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def answering(url: str, slots: int) -> Iterator[None]:
    """A worker that answers without running anything."""
    flags = {"server": url, "name": "answers", "slots": str(slots), "heartbeat": "5"}
    config = read_config(None, flags)
    log, metrics = Log("logfmt", "error"), Metrics()
    session = Session(
        config, lambda: Server(url), announced(config), log, metrics, lambda text: None
    )

    def execute(work: Work) -> Ended:
        return Ended(status_pb.Status(), re_pb.ActionResult())

    session.leases = Leases(slots, execute, session.wake, log, metrics)
    thread = threading.Thread(target=session.run)
    thread.start()
    session.known.wait(30)
    yield
    session.drain()
    thread.join(60)
    session.leases.close()
    session.close()


def rate(farmer: Farmer, number: int) -> float:
    """No-op actions a second, with CLIENTS of them under way at once."""
    digests = [farmer.action("", {"n": b"%d" % n}) for n in range(number)]
    left, lock = iter(digests), threading.Lock()
    failed: list[str] = []

    def client() -> None:
        while True:
            with lock:
                digest = next(left, None)
            if digest is None:
                return
            response = farmer.execute(digest, 120)
            if response.status.code or response.result.exit_code:
                failed.append(str(response.status))

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed[0]
    return number / (time.monotonic() - began)


def throughput(url: str, directory: Path, number: int) -> None:
    farmer = Farmer(url)
    flags = ("--slots", "8", "--log-level", "info")  # of which `worker` waits for a line
    ways: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
        "answers without running": lambda: answering(url, 8),
        "our worker": lambda: worker(url, directory / "cache", "bench", *flags),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(3):
        for name, way in ways.items():
            with way():
                rate(farmer, 20)
                rates[name].append(rate(farmer, number))
    for name, values in rates.items():
        middle = statistics.median(values)
        each = ", ".join(f"{value:.0f}" for value in values)
        print(f"{name}: {middle:.1f} actions/s, {1000 / middle:.1f} ms each (rounds: {each})")
    farmer.close()


def idle(url: str, directory: Path, seconds: float) -> None:
    farmer = Farmer(url)
    for busy in (False, True):
        proxy = Proxy(url)
        with worker(proxy.url, directory / f"idle-{busy}", "", "--heartbeat", "5") as process:
            waiting = [
                farmer.start(farmer.action(f"sleep {seconds + 5:.0f}")) for _ in range(2 * busy)
            ]
            time.sleep(3)
            sent, received, began = proxy.sent, proxy.received, time.monotonic()
            time.sleep(seconds)
            passed = time.monotonic() - began
            print(
                f"{'busy' if busy else 'idle'}: {(proxy.sent - sent) / passed:.1f} bytes/s to the "
                f"server, {(proxy.received - received) / passed:.1f} bytes/s back, "
                f"{proxy.connections} connections, {passed:.0f} s"
            )
            for each in waiting:
                each.cancel()
            process.end()
    farmer.close()


@contextlib.contextmanager
def server(url: str | None) -> Iterator[str]:
    """The server that is there, or one of our own."""
    if url:
        yield url
        return
    from sandboxlib._cluster.cluster import Cluster

    with tempfile.TemporaryDirectory() as directory, Cluster(directory) as cluster:
        yield cluster.url


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", choices=["throughput", "idle", []])
    parser.add_argument("--url")
    parser.add_argument("--number", type=int, default=300, help="actions of a round")
    parser.add_argument("--seconds", type=float, default=120, help="how long to look at a worker")
    options = parser.parse_args()
    what = options.what or ["throughput", "idle"]
    with server(options.url) as url, tempfile.TemporaryDirectory() as directory:
        if "throughput" in what:
            throughput(url, Path(directory), options.number)
        if "idle" in what:
            idle(url, Path(directory), options.seconds)


if __name__ == "__main__":
    main()
