# SPDX-License-Identifier: Apache-2.0
"""What workers cost a BuildGrid: N bots of one process that hold a session each and run nothing.

    python benchmarks/scale.py 50 200 1000

For each N it starts PostgreSQL and BuildGrid on loopback, opens N sessions, each with a connection
of its own, and prints what the servers do while all are idle; then an Execute client sends no-op
actions, which the bots answer at once: the server's own limit, and the bytes of an action.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from sandboxlib import Server, _reapi
from sandboxlib._cluster import buildgrid
from sandboxlib._cluster.cluster import Cluster
from sandboxlib._reapi import digest_of
from sandboxlib._remote import cas
from sandboxlib._remote.stubs import bots_grpc, bots_pb, grpc, re_grpc, re_pb

POLL = 10.0  # seconds of a bot's call; the server answers after 4/5 of them
WINDOW = 16.0  # seconds of an idle measurement: two calls of each bot
KEEPALIVE = 60  # of a session, seconds
ACTIONS, CLIENTS = 100, 8
OPTIONS = [("grpc.use_local_subchannel_pool", 1)]  # a connection for each bot


class Bot(threading.Thread):
    """A worker that answers each lease with an empty result."""

    calls = lost = 0

    def __init__(self, url: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._stop_event = stop
        self._channel = grpc.insecure_channel(url.removeprefix("grpc://"), options=OPTIONS)
        self._stub: Any = bots_grpc.BotsStub(self._channel)
        self._session = bots_pb.BotSession(bot_id=str(uuid.uuid4()))
        self._session.worker.configs.add(key="capacity", value="1")
        device = self._session.worker.devices.add(handle="bot")
        device.properties.add(key="OSFamily", value="linux")
        request = bots_pb.CreateBotSessionRequest(bot_session=self._session)
        self._session = self._stub.CreateBotSession(request, timeout=3.0)
        self._session.status = bots_pb.BotStatus.Value("OK")

    def run(self) -> None:
        try:
            while not self._stop_event.is_set():
                message = bots_pb.UpdateBotSessionRequest(
                    name=self._session.name, bot_session=self._session
                )
                # The server waits for work in a call, unless its timeout is below 4 s.
                timeout = 3.0 if self._session.leases else POLL
                self._session = self._stub.UpdateBotSession(message, timeout=timeout)
                Bot.calls += 1
                for lease in self._session.leases:
                    self._answer(lease)
        except grpc.RpcError:  # DEADLINE_EXCEEDED of a server that has too many: the bot gives up
            Bot.lost += not self._stop_event.is_set()
        finally:
            self._channel.close()

    def _answer(self, lease: Any) -> None:
        """Accepts a new lease, and completes one that was accepted."""
        if lease.state == bots_pb.LeaseState.Value("PENDING"):
            lease.state = bots_pb.LeaseState.Value("ACTIVE")
        elif lease.state == bots_pb.LeaseState.Value("ACTIVE"):
            lease.state = bots_pb.LeaseState.Value("COMPLETED")
            lease.result.Pack(re_pb.ActionResult(exit_code=0))
            lease.status.code = 0


def family(top: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(name))
    found, todo = [], [top]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def cpu(top: int) -> float:
    """Seconds of CPU time of a process and what is below it, the ended ones included."""
    total = 0
    for pid in family(top):
        try:
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, words[11:15]))
    return total / os.sysconf("SC_CLK_TCK")


def memory(top: int) -> float:
    """MB of a process and what is below it, without what they share."""
    total = 0
    for pid in family(top):
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(map(int, re.findall(r"Private_\w+: +(\d+)", text)))
    return total / 1024


def sent(port: int) -> tuple[int, int, int]:
    """Connections to the server, and the bytes of all of them, to it and from it."""
    argv = ["ss", "-tiHn", "state", "established", f"( sport = :{port} )"]
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    up = sum(map(int, re.findall(r"bytes_received:(\d+)", text)))
    down = sum(map(int, re.findall(r"bytes_sent:(\d+)", text)))
    return text.count(f":{port} "), up, down


def execute(server: Server, actions: list[str]) -> None:
    stub: Any = server.stub(re_grpc.ExecutionStub)
    while actions:
        name, size = actions.pop().split("/")
        digest = re_pb.Digest(hash=name, size_bytes=int(size))
        request = re_pb.ExecuteRequest(action_digest=digest, skip_cache_lookup=True)
        for operation in stub.Execute(request, timeout=300):
            if operation.done:
                break


def busy(cluster: Cluster) -> float:
    """Sends the actions, over the Unix socket. Returns the seconds that they took."""
    command = _reapi.command([b"true"], {}, [], b"")
    properties = _reapi.platform([(b"OSFamily", b"linux")])
    made = [
        _reapi.action(digest_of(command), digest_of(b""), 60.0, os.urandom(16), properties)
        for _ in range(ACTIONS)
    ]
    with Server(cluster.socket) as server:
        cas.upload(server, {digest_of(each): each for each in (*made, command, b"")})
        actions = [digest_of(each) for each in made]
        began = time.monotonic()
        threads = [threading.Thread(target=execute, args=(server, actions)) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.monotonic() - began


def measure(count: int, cluster: Cluster) -> None:
    stop = threading.Event()
    assert cluster.server is not None
    server, database = cluster.server._process.pid, cluster.database._kept._process.pid  # type: ignore[union-attr]
    began = time.monotonic()
    bots = [Bot(cluster.url, stop) for _ in range(count)]
    opened = time.monotonic() - began
    for bot in bots:
        bot.start()
    time.sleep(2)
    before = (Bot.calls, cpu(server), cpu(database), *sent(cluster.port)[1:])
    time.sleep(WINDOW)
    calls, ours, theirs, up, down = (
        now - then
        for now, then in zip(
            (Bot.calls, cpu(server), cpu(database), *sent(cluster.port)[1:]), before, strict=True
        )
    )
    print(
        f"{count} idle: opened in {opened:.1f} s; {calls / WINDOW:.1f} calls/s, {Bot.lost} lost,"
        f" {sent(cluster.port)[0]} connections; CPU: server {100 * ours / WINDOW:.1f} %,"
        f" database {100 * theirs / WINDOW:.1f} %; a call takes"
        f" {1e3 * (ours + theirs) / max(calls, 1):.1f} ms of CPU, {up / max(calls, 1):.0f} bytes"
        f" up, {down / max(calls, 1):.0f} down; memory: server {memory(server):.0f} MB, database"
        f" {memory(database):.0f} MB",
        flush=True,
    )
    at = (cpu(server) + cpu(database), *sent(cluster.port)[1:])
    seconds = busy(cluster)
    used, up, down = (
        now - then
        for now, then in zip(
            (cpu(server) + cpu(database), *sent(cluster.port)[1:]), at, strict=True
        )
    )
    print(
        f"{count} busy: {ACTIONS / seconds:.1f} actions/s; an action takes"
        f" {1e3 * used / ACTIONS:.1f} ms of CPU; of its worker {up / ACTIONS:.0f} bytes up,"
        f" {down / ACTIONS:.0f} down",
        flush=True,
    )
    stop.set()


def main() -> None:
    for count in map(int, sys.argv[1:]):
        buildgrid.THREADS = max(100, count + 50)
        with tempfile.TemporaryDirectory(prefix="sandboxlib-scale-") as directory:
            scheduler = {"bot-session-keepalive-timeout": KEEPALIVE}
            with Cluster(directory, scheduler=scheduler) as cluster:
                measure(count, cluster)


if __name__ == "__main__":
    main()
