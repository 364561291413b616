# SPDX-License-Identifier: Apache-2.0
"""What the worker tells: its log, its figures, and the service manager."""

from __future__ import annotations

import io
import json
import os
import socket
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
from lib.machine import require

from sandboxlib import SpecError
from sandboxlib._worker.logs import MOST, Log
from sandboxlib._worker.metrics import METRICS, Metrics
from sandboxlib._worker.notify import Notifier

HOSTILE = 'a="b" \n level=error \x1b[2J ü \udcff'


def test_a_line_of_json_is_an_object_whatever_a_value_has() -> None:
    stream = io.BytesIO()
    Log("json", stream=stream, worker="w").warning("lost", text=HOSTILE, n=1, x=None, s=0.25)
    (line,) = stream.getvalue().decode().split("\n")[:-1]
    told = json.loads(line)
    assert told["event"] == "lost"
    assert (told["n"], told["x"], told["s"], told["worker"]) == (1, None, 0.25, "w")
    assert told["text"] == HOSTILE.replace("\udcff", "\\udcff")


def test_a_line_of_logfmt_has_no_field_that_a_value_made_up() -> None:
    stream = io.BytesIO()
    Log("logfmt", stream=stream).info("lease done", text=HOSTILE, code="OK", empty="")
    text = stream.getvalue().decode()
    assert text.count("\n") == 1
    assert ' level=info event="lease done" text=' in text
    assert text.endswith(' code=OK empty=""\n')
    assert "\x1b" not in text
    start = text.index("text=") + 5
    value, _ = json.JSONDecoder().raw_decode(text[start:])
    assert value.startswith('a="b" \n level=error')


def test_a_level_leaves_out_what_is_below_and_a_long_value_is_cut_off() -> None:
    stream = io.BytesIO()
    log = Log("json", "warning", stream)
    log.info("not this")
    log.error("this", text="x" * 100_000)
    assert len(json.loads(stream.getvalue())["text"]) == MOST + 3


def test_a_log_that_cannot_be_written_ends_nothing() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        with pytest.raises(OSError, match="No space"):
            full.write(b"x")
        Log("json", stream=full).error("lost")


def test_systemd_is_told_in_datagrams(tmp_path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"}
        notifier = Notifier({**environ, "WATCHDOG_PID": str(os.getpid())})
        assert notifier.watchdog == 3.0
        notifier.ready("one\nSTOPPING=1")
        assert manager.recv(4096) == b"READY=1\nSTATUS=one STOPPING=1"
        notifier.alive()
        assert manager.recv(4096) == b"WATCHDOG=1"
        notifier.stopping("bye")
        assert manager.recv(4096) == b"STOPPING=1\nSTATUS=bye"
    notifier.status("nobody listens")
    assert Notifier({**environ, "WATCHDOG_PID": "1"}).watchdog is None
    assert Notifier({}).watchdog is None


def test_an_abstract_socket_is_told_too() -> None:
    name = f"sandboxlib-test-{os.getpid()}"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind("\0" + name)
        manager.settimeout(5)
        Notifier({"NOTIFY_SOCKET": "@" + name}).status("busy")
        assert manager.recv(4096) == b"STATUS=busy"


def test_prometheus_gets_a_page() -> None:
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        require(False, "there is no prometheus_client")
    with closing(Metrics(("127.0.0.1", 0))) as metrics:
        metrics.record("slots", 4)
        metrics.count("actions", code="OK")
        metrics.count("actions", code="OK")
        metrics.record("action_seconds", 0.3, phase="run")
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics", timeout=10) as page:
            text = page.read().decode()
        with pytest.raises(SpecError, match=f"127.0.0.1:{metrics.port} cannot be listened on"):
            Metrics(("127.0.0.1", metrics.port))
    assert 'sandboxlib_worker_actions_total{code="OK"} 2.0' in text
    assert "sandboxlib_worker_slots 4.0" in text
    assert 'sandboxlib_worker_action_seconds_sum{phase="run"} 0.3' in text
    assert "process_resident_memory_bytes" in text
    for name in METRICS:
        assert f"sandboxlib_worker_{name}" in text


@pytest.mark.parametrize(
    ("tags", "line"),
    [
        ("influx-statsd", b"sandboxlib_worker.calls,call=Up,code=OK:1|c\n"),
        ("dogstatsd", b"sandboxlib_worker.calls:1|c|#call:Up,code:OK\n"),
        ("graphite", b"sandboxlib_worker.calls;call=Up;code=OK:1|c\n"),
        ("none", b"sandboxlib_worker.calls:1|c\n"),
    ],
    ids=["influx", "dog", "graphite", "none"],
)
def test_statsd_gets_datagrams(tags: str, line: bytes) -> None:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(5)
        with closing(Metrics(statsd=receiver.getsockname(), tags=tags)) as metrics:
            metrics.count("calls", code="OK", call="Up")
            assert receiver.recv(1000) == line
            metrics.record("action_seconds", 1.5, phase="all")
            assert b":1500|ms" in receiver.recv(1000)
            metrics.record("leases", 3)
            assert receiver.recv(1000) == b"sandboxlib_worker.leases:3|g\n"
