# SPDX-License-Identifier: Apache-2.0
"""Workers as processes, and a client that gives actions to the server that they belong to."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.roots import find_busybox
from lib.waiting import wait_until

from sandboxlib._reapi import digest_of
from sandboxlib._remote import cas
from sandboxlib._remote.server import Server
from sandboxlib._remote.stubs import (
    digest_message,
    digest_text,
    grpc,
    operations_pb,
    re_grpc,
    re_pb,
)

APPLETS = "cat dd echo head id ls mkdir nohup ps rm seq setsid sh sleep touch wc yes".split()
AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)


class Farmer:
    """Makes actions, and waits for their results over restarts of the server."""

    def __init__(self, url: str, **credentials: Any) -> None:
        self.server = Server(url, **credentials)
        busybox = find_busybox()
        assert busybox
        self.busybox = Path(busybox).read_bytes()

    def action(
        self,
        script: str,
        files: Mapping[str, bytes] = {},
        outputs: Sequence[str] = (),
        platform: Mapping[str, str] = {},
        *,
        timeout: int = 0,
        without: Sequence[str] = (),
    ) -> str:
        """Upload an Action that runs a script with busybox. Returns its digest.

        files: in the input root, without directories of their own. without: those that are not
        uploaded. No two actions are the same.
        """
        blobs: dict[str, bytes] = {}

        def blob(data: bytes) -> Any:
            blobs[digest_of(data)] = data
            return digest_message(digest_of(data))

        bin_dir = re_pb.Directory()
        bin_dir.files.add(name="busybox", digest=blob(self.busybox), is_executable=True)
        for name in APPLETS:
            bin_dir.symlinks.add(name=name, target="busybox")
        root = re_pb.Directory()
        for name, data in sorted(files.items()):
            root.files.add(name=name, digest=blob(data))
        root.directories.add(name="bin", digest=blob(bin_dir.SerializeToString()))
        command = re_pb.Command(
            arguments=["/bin/sh", "-c", script, f"action-{uuid.uuid4()}"],
            output_paths=sorted(outputs),
        )
        command.environment_variables.add(name="PATH", value="/bin")
        for name, value in sorted(platform.items()):
            command.platform.properties.add(name=name, value=value)
        action = re_pb.Action(
            command_digest=blob(command.SerializeToString()),
            input_root_digest=blob(root.SerializeToString()),
            platform=command.platform,
        )
        if timeout:
            action.timeout.seconds = timeout
        digest = digest_text(blob(action.SerializeToString()))
        for name in without:
            del blobs[digest_of(files[name])]
        cas.upload(self.server, blobs)
        return digest

    def start(self, digest: str) -> Waiting:
        return Waiting(self.server, digest)

    def execute(self, digest: str, timeout: float = 60) -> Any:
        """Execute an action that was uploaded. Returns the ExecuteResponse."""
        return self.start(digest).response(timeout)

    def run(self, script: str, timeout: float = 60, **options: Any) -> Any:
        return self.execute(self.action(script, **options), timeout)

    def stdout(self, response: Any) -> bytes:
        result = response.result
        if result.stdout_raw or not result.stdout_digest.size_bytes:
            return bytes(result.stdout_raw)
        digest = digest_text(result.stdout_digest)
        return cas.fetch(self.server, [digest])[digest]

    def close(self) -> None:
        self.server.close()


class Waiting:
    """An action that was given to the server. It begins to wait at once."""

    def __init__(self, server: Server, digest: str) -> None:
        self._server = server
        self._request = re_pb.ExecuteRequest(
            action_digest=digest_message(digest), skip_cache_lookup=True
        )
        self.name = ""
        self._last: Any = None
        self._stream = server.stub(re_grpc.ExecutionStub).Execute(self._request, timeout=120)
        self._next()

    def _next(self) -> None:
        self._last = next(self._stream)
        self.name = self._last.name

    def response(self, timeout: float = 60) -> Any:
        end = time.monotonic() + timeout
        while not self._last.done:
            try:
                self._next()
            except StopIteration:
                self._again(end)
            except grpc.RpcError as error:
                if error.code() not in AGAIN:
                    raise
                self._again(end)
            assert time.monotonic() < end, "the action took too long"
        response = re_pb.ExecuteResponse()
        assert self._last.response.Unpack(response), self._last
        return response

    def _again(self, end: float) -> None:
        assert time.monotonic() < end, "the server does not answer"
        time.sleep(0.1)
        request = re_pb.WaitExecutionRequest(name=self.name)
        stub = self._server.stub(re_grpc.ExecutionStub)
        self._stream = stub.WaitExecution(request, timeout=end - time.monotonic())

    def cancel(self) -> None:
        """Say that nobody wants the result any more."""
        from sandboxlib._remote.stubs import operations_grpc

        stub = self._server.stub(operations_grpc.OperationsStub)
        stub.CancelOperation(operations_pb.CancelOperationRequest(name=self.name), timeout=30)


class WorkerProcess:
    """A worker in a process of its own, with its log."""

    def __init__(
        self,
        url: str,
        cache: Path,
        name: str = "",
        *flags: str,
        before: Sequence[str] = (),
        env: Mapping[str, str] = {},
    ) -> None:
        cache.mkdir(0o700, parents=True, exist_ok=True)
        self.name = name or f"worker-{uuid.uuid4().hex[:8]}"
        self.log = cache.parent / f"{self.name}.log"
        argv = [*before, sys.executable, "-m", "sandboxlib._worker.main", "--server", url]
        argv += ["--cache", str(cache), "--name", self.name, "--log-format", "json"]
        argv += ["--log-level", "debug", "--slots", "2", "--heartbeat", "1", *flags]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **env}
            )

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """What the log has, or the events of that name."""
        lines = self.log.read_text().split("\n")
        told = [json.loads(line) for line in lines if line.startswith("{")]
        return [event for event in told if not name or event["event"] == name]

    def wait_for(self, event: str, number: int = 1, seconds: float = 60) -> None:
        is_there = wait_until(
            lambda: len(self.events(event)) >= number or self.process.poll() is not None, seconds
        )
        assert is_there, f"no {event!r} in\n{self.log.read_text()}"
        assert len(self.events(event)) >= number, self.log.read_text()

    def end(self, number: int = signal.SIGTERM, seconds: float = 60) -> int:
        """Send a signal, and wait for the end. Returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(self.log.read_text()) from None


@contextlib.contextmanager
def worker(
    url: str, cache: Path, name: str = "", *flags: str, **options: Any
) -> Iterator[WorkerProcess]:
    """A worker that has a session. Whatever is left of it is killed at the end."""
    process = WorkerProcess(url, cache, name, *flags, **options)
    try:
        process.wait_for("session began")
        yield process
    finally:
        if process.process.poll() is None:
            process.process.kill()
            process.process.wait()
