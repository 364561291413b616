# SPDX-License-Identifier: Apache-2.0
"""What a hit of Cached takes beyond the calls of the stubs that any client makes for it.

    python benchmarks/cached.py [--rounds N] [--quick] [URL]

URL: of a server; without one it starts BuildGrid with PostgreSQL on loopback (docs/remote.md says
what that takes). The rows take turns, in another order each round: the bare calls to the server
with ready requests, `cached hit` (Cached.run), `cached hit, map of 8` (a map, for each of its
commands), and `cached hit, no network` (Cached.run whose calls are answered at once, in this
process: our own work alone). Prints the medians and the tenth that took least, and how much the
medians are above that of the bare calls; the goal is 2 ms. A busy machine shows in the second row
as if it were our work.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sandboxlib import Cached, Command, Mount, Overlay, Sandbox, Server, Store, Tree
from sandboxlib._remote import stubs

ASSUME = ["layers", "extra_mounts"]
BARE, HIT, MAP = "bare calls of the stubs", "cached hit", "cached hit, map of 8"
OWN = "cached hit, no network"


def cases(directory: Path) -> dict[str, Command]:
    """Commands, by what a hit of theirs brings."""
    (directory / "src").mkdir()
    for number in range(50):
        (directory / "src" / f"{number}.h").write_text(f"#define N{number}\n")
    inputs = {"/src": Tree(directory / "src"), "/a.c": directory / "src" / "1.h"}
    make = "for n in 1 2 3 4 5 6 7 8 9 10; do head -c {} /dev/urandom > /out/$n; done"
    return {
        "stdout": Command(["sh", "-c", "echo out"]),
        "an object file": Command(
            ["sh", "-c", "head -c 20000 /dev/urandom > /out/a.o"],
            inputs=inputs,
            outputs=["/out/a.o"],
        ),
        "10 files, 51 inputs": Command(
            ["sh", "-c", f"echo out; {make.format(5000)}"], inputs=inputs, outputs=["/out/*"]
        ),
    }


@contextlib.contextmanager
def server_at(url: str | None, directory: Path) -> Iterator[Server]:
    if url is not None:
        with Server(url) as server:
            yield server
        return
    from sandboxlib._cluster.cluster import Cluster

    (directory / "cluster").mkdir()
    with Cluster(directory / "cluster") as cluster, Server(cluster.url) as server:
        yield server


def bare_calls(server: Server, digest: str) -> Callable[[], object]:
    """The calls of a hit, with requests that are ready."""
    pb = stubs.re_pb
    cache = server.stub(stubs.re_grpc.ActionCacheStub)
    store = server.stub(stubs.re_grpc.ContentAddressableStorageStub)
    asked = pb.GetActionResultRequest(
        instance_name=server.instance, action_digest=stubs.digest_message(digest)
    )
    message = cache.GetActionResult(asked, timeout=60)
    digests = [each.digest for each in message.output_files]
    digests += [each for each in (message.stdout_digest, message.stderr_digest) if each.hash]
    wanted = pb.BatchReadBlobsRequest(instance_name=server.instance, digests=digests)

    def call() -> object:
        cache.GetActionResult(asked, timeout=60)
        return store.BatchReadBlobs(wanted, timeout=60) if digests else None

    return call


class Ready:
    """A stub that answers each method as the real one did at the first call."""

    def __init__(self, stub: Any) -> None:
        self._stub, self._answers = stub, dict[str, Any]()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(request: Any, timeout: float) -> Any:
            if name not in self._answers:
                self._answers[name] = getattr(self._stub, name)(request, timeout=timeout)
            return self._answers[name]

        return call


def without_network(cached: Cached, command: Command) -> Callable[[], object]:
    """Cached.run whose calls are answered in this process."""
    server = cached.server
    stub, ready = server.stub, dict[Any, Ready]()

    def run() -> object:
        server.stub = lambda kind: ready.setdefault(kind, Ready(stub(kind)))  # type: ignore
        try:
            return cached.run(command)
        finally:
            del server.stub  # type: ignore[method-assign]

    run()
    return run


def timed(call: Callable[[], Any], count: int) -> float:
    """Milliseconds of one of `count` calls that are made at once."""
    began = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - began) / 1e6 / count


def measure(cached: Cached, command: Command, rounds: int) -> dict[str, list[float]]:
    """The times of each row, in ms."""
    cached.run(command, check=True)
    if not cached.run(command).cached:
        raise SystemExit(f"the server does not keep the result of {command}")
    bare = bare_calls(cached.server, command.digest(cached.box, ASSUME))
    rows: dict[str, tuple[Callable[[], Any], int]] = {
        BARE: (bare, 1),
        HIT: (lambda: cached.run(command), 1),
        MAP: (lambda: list(cached.map([command] * 8, 2)), 8),
        OWN: (without_network(cached, command), 1),
    }
    found: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, (call, count) in random.sample(sorted(rows.items()), len(rows)):
            found[name].append(timed(call, count))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", nargs="?")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--quick", action="store_true", help="few rounds, to see that it works")
    args = parser.parse_args()
    rounds = 20 if args.quick else args.rounds
    with tempfile.TemporaryDirectory(prefix="sandboxlib-cached.") as name:
        directory = Path(name)
        (root := directory / "root").mkdir()
        for each in ("bin", "lib", "lib64", "sbin"):
            source = Path("/", each)
            if source.is_symlink():
                (root / each).symlink_to(source.readlink())
        for each in ("dev", "proc", "tmp", "usr"):
            (root / each).mkdir()
        usr = Mount.bind("/usr", "/usr", read_only=True)
        box = Sandbox(
            Overlay(root), extra_mounts=[usr], deterministic=True, store=Store(directory / "store")
        )
        with (
            server_at(args.url, directory) as server,
            box,
            Cached(box, server, write=True, assume=ASSUME) as cached,
        ):
            report(cached, directory, rounds)


def report(cached: Cached, directory: Path, rounds: int) -> None:
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs; ms")
    print(f"{'':22}{'':26}{'median':>8}{'p10':>8}{'above bare':>12}")
    for case, command in cases(directory).items():
        shown, found = case, measure(cached, command, rounds)
        middle = {name: statistics.median(times) for name, times in found.items()}
        for name, times in found.items():
            p10 = statistics.quantiles(times, n=10)[0]
            above = f"{middle[name] - middle[BARE]:+.2f}" if name in (HIT, MAP) else ""
            print(f"{shown:22}{name:26}{middle[name]:8.2f}{p10:8.2f}{above:>12}")
            shown = ""


if __name__ == "__main__":
    main()
