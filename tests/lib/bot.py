# SPDX-License-Identifier: Apache-2.0
"""A bot in this process: it takes leases from a server, and answers them with a given function.

So a test has the answers that no honest worker gives, and the times that it needs.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sandboxlib import Server
from sandboxlib._remote import cas
from sandboxlib._remote.stubs import (
    any_pb,
    bots_grpc,
    bots_pb,
    code_pb,
    digest_text,
    grpc,
    re_pb,
    status_pb,
    worker_pb,
)

ACTIVE = bots_pb.LeaseState.Value("ACTIVE")
COMPLETED = bots_pb.LeaseState.Value("COMPLETED")


class Refused(Exception):
    """Raised by a function, in place of a result. code: as "INTERNAL". result: what there is."""

    def __init__(self, code: str, text: str = "", result: Any = None) -> None:
        super().__init__(code, text)
        self.code, self.text, self.result = code, text, result


class Task:
    """An action of a lease. stop: set when the lease was taken back."""

    def __init__(self, server: Server, action: Any, stop: threading.Event) -> None:
        self.server, self.action, self.stop = server, action, stop
        self.command = re_pb.Command.FromString(
            self.content(digest_text(self.action.command_digest))
        )

    def content(self, digest: str) -> bytes:
        return cas.fetch(self.server, [digest])[digest]

    def files(self, digest: str = "", above: str = "") -> dict[str, str]:
        """The digests of the files of the input root, by their paths; "" for a directory."""
        name = digest or digest_text(self.action.input_root_digest)
        directory = re_pb.Directory.FromString(self.content(name))
        found = {above + each.name: digest_text(each.digest) for each in directory.files}
        for each in directory.directories:
            found[above + each.name + "/"] = ""
            found |= self.files(digest_text(each.digest), f"{above}{each.name}/")
        return found

    def upload(self, content: bytes) -> Any:
        import hashlib

        digest = f"{hashlib.sha256(content).hexdigest()}/{len(content)}"
        cas.upload(self.server, {digest: content})
        return re_pb.Digest(hash=digest.partition("/")[0], size_bytes=len(content))


class Bot:
    """`with Bot(url, answer) as bot:` answers leases, `jobs` at once.

    answer: takes a Task, and returns an ActionResult or raises Refused.
    """

    def __init__(
        self,
        url: str,
        answer: Callable[[Task], Any],
        *,
        jobs: int = 4,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        self.server = Server(url)
        self.answer, self.jobs = answer, jobs
        self.properties = properties or {}
        self.id = f"bot-{uuid.uuid4()}"
        self.executed: list[Task] = []  # as they began
        self._name = ""
        self._leases: dict[str, Any] = {}
        self._stops: dict[str, threading.Event] = {}
        self._lock = threading.Lock()
        self._ended = threading.Condition()
        self._is_kicked = False
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(jobs)
        self._thread = threading.Thread(target=self._main, daemon=True)

    def __enter__(self) -> Bot:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends at once, and tells the server, which gives its leases to others."""
        self._over.set()
        for stop in self._stops.values():
            stop.set()
        self._kick()
        self._thread.join(30)
        name, self._name = self._name, ""
        if name:
            session = self._session()
            session.name, session.status = name, bots_pb.BotStatus.Value("BOT_TERMINATING")
            request = bots_pb.UpdateBotSessionRequest(name=name, bot_session=session)
            with contextlib.suppress(grpc.RpcError):
                self.server.stub(bots_grpc.BotsStub).UpdateBotSession(request, timeout=5)
        self._pool.shutdown(wait=True)
        self.server.close()

    def _kick(self) -> None:
        """There is something to tell the server."""
        with self._ended:
            self._is_kicked = True
            self._ended.notify_all()

    def _call_of(self, start: Callable[..., Any], request: Any) -> Any:
        """The answer of a call, which ends early if there is something to tell the server."""
        call = start(request, timeout=10)

        def end(_: Any) -> None:
            with self._ended:
                self._ended.notify_all()

        call.add_done_callback(end)
        with self._ended:
            self._ended.wait_for(lambda: call.done() or self._is_kicked)
        if not call.done():
            time.sleep(0.05)  # what ends at the same time is told at once; and the call may end
            call.cancel()
        return call.result()

    def _session(self) -> Any:
        device = worker_pb.Device(handle="self")
        for key, value in self.properties.items():
            device.properties.add(key=key, value=value)
        worker = worker_pb.Worker(devices=[device])
        worker.configs.add(key="capacity", value=str(self.jobs))
        return bots_pb.BotSession(
            bot_id=self.id, status=bots_pb.BotStatus.Value("OK"), worker=worker
        )

    def _main(self) -> None:
        session = None
        while not self._over.is_set():
            stub = self.server.stub(bots_grpc.BotsStub)
            with self._ended:
                self._is_kicked = False
            try:
                if session is None:
                    request = bots_pb.CreateBotSessionRequest(bot_session=self._session())
                    session = self._call_of(stub.CreateBotSession.future, request)
                else:
                    with self._lock:
                        del session.leases[:]
                        session.leases.extend(self._leases.values())
                    request = bots_pb.UpdateBotSessionRequest(
                        name=session.name, bot_session=session
                    )
                    session = self._call_of(stub.UpdateBotSession.future, request)
                self._name = session.name
            except (grpc.RpcError, grpc.FutureCancelledError) as error:
                code = error.code() if isinstance(error, grpc.RpcError) else None
                if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.DATA_LOSS):
                    session = None
                if code is not None and code != grpc.StatusCode.CANCELLED:
                    self._over.wait(0.2)
                continue
            self._take(session)

    def _take(self, session: Any) -> None:
        there = {lease.id: lease for lease in session.leases}
        with self._lock:
            for name in set(self._leases) - set(there):
                del self._leases[name]
                self._stops.pop(name).set()
            for name, lease in there.items():
                if name not in self._leases:
                    self._leases[name] = lease
                    stop = self._stops[name] = threading.Event()
                    self._pool.submit(self._execute, lease, stop)

    def _execute(self, lease: Any, stop: threading.Event) -> None:
        status, result = status_pb.Status(), None
        try:
            action = re_pb.Action()  # as BuildGrid has it; others have its Digest
            assert lease.payload.Unpack(action), lease.payload.type_url
            task = Task(self.server, action, stop)
            self.executed.append(task)
            result = self.answer(task)
        except Refused as refused:
            status = status_pb.Status(code=code_pb.Code.Value(refused.code), message=refused.text)
            result = refused.result
        except Exception as error:
            status = status_pb.Status(code=code_pb.INTERNAL, message=repr(error))
        if stop.is_set():
            return
        with self._lock:
            if lease.id not in self._leases:
                return
            done = bots_pb.Lease()
            done.CopyFrom(lease)
            done.state = COMPLETED
            done.status.CopyFrom(status)
            if result is not None:
                packed = any_pb.Any()
                packed.Pack(result)
                done.result.CopyFrom(packed)
            self._leases[lease.id] = done
        self._kick()


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits for a condition; AssertionError if it is not met in time."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "this took too long"
        time.sleep(0.01)
