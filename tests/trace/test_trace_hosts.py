# SPDX-License-Identifier: Apache-2.0
"""Programs that trace, and are interrupted, killed or forked meanwhile."""

from __future__ import annotations

import signal
import subprocess
import time
import uuid
from pathlib import Path

import pytest
from lib.machine import python
from lib.waiting import processes, wait_until

pytest_plugins = ["lib.ways"]

#: Traces a command whose words have the mark argv[2], and does argv[3] meanwhile.
HOST = r"""
import os, sys, threading, time
import sandboxlib
root, mark, what = sys.argv[1:]
box = sandboxlib.Sandbox(root)
def fork():
    time.sleep(0.5)
    if os.fork() == 0:
        time.sleep(2)
        os._exit(0)
if what == "fork":
    threading.Thread(target=fork).start()
seconds = "1" if what == "fork" else "600"
line = f"while :; do /bin/cat /etc/nowhere 2> /dev/null; done & sleep {seconds}"
began = time.monotonic()
try:
    trace = box.trace(["/bin/sh", "-c", line, mark])
    print(trace.missing, trace.result.exit)
except KeyboardInterrupt:
    print("interrupted", [each.name for each in threading.enumerate()])
print(len(os.listdir("/proc/self/fd")) < 12)
"""


def start(root: Path, mark: str, what: str) -> subprocess.Popen[str]:
    (root / "etc/busybox.conf").touch()
    words = [*python(), "-c", HOST, str(root), mark, what]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_a_host_that_is_interrupted_leaves_nothing(
    executor: str, rootfs: Path, signum: signal.Signals
) -> None:
    mark = f"mark-{uuid.uuid4()}"
    with start(rootfs, mark, "wait") as host:
        assert wait_until(lambda: len(processes(mark)) > 1)
        time.sleep(0.2)
        host.send_signal(signum)
        out, _ = host.communicate(timeout=60)
    if signum == signal.SIGINT:
        assert out == "interrupted ['MainThread']\nTrue\n"
    assert wait_until(lambda: not processes(mark))


def test_a_fork_of_the_host_does_not_keep_a_trace(executor: str, rootfs: Path) -> None:
    mark = f"mark-{uuid.uuid4()}"
    with start(rootfs, mark, "fork") as host:
        out, _ = host.communicate(timeout=60)
    assert out.splitlines() == ["('/etc/nowhere',) 0", "True"]
