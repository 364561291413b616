# SPDX-License-Identifier: Apache-2.0
"""The parent of one server process, which it ends when its own parent is gone. A program:

    python -I -S keeper.py USER REMOVED PROGRAM ARGUMENT...

stdin is a pipe whose other end only the cluster has. At its end, which comes however the cluster's
process dies, the keeper sends SIGTERM, and SIGKILL after STOPS. A byte before the end means SIGKILL
at once. If the keeper itself is killed, the kernel kills the server.

USER: the name of the user that the server runs as, or "" for the caller. REMOVED: a directory that
is removed at that end, when the cluster's process may be dead and so does not do it; or "". The
server's process group is its own, so that Ctrl-C reaches the cluster's process alone.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STOPS = 5.0  # seconds between SIGTERM and SIGKILL
PR_SET_PDEATHSIG = 1


def start(user: str, argv: list[str]) -> subprocess.Popen[bytes]:
    keeper = os.getpid()
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def prepare() -> None:  # this process has one thread, so any function may run here
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != keeper:
            os._exit(1)

    ids: dict[str, Any] = {}
    if user:
        entry = pwd.getpwnam(user)
        ids = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        preexec_fn=prepare,  # noqa: PLW1509
        start_new_session=True,
        **ids,
    )


def keep(child: subprocess.Popen[bytes], removed: str) -> int:
    """Waits for the end of the child, or of the pipe. Returns the child's status."""
    ended, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    while child.poll() is None:
        ready, _, _ = select.select([0, ended], [], [], 1.0)
        if ended in ready:
            os.read(ended, 4096)
        if 0 not in ready:
            continue
        if os.read(0, 1):
            child.kill()
            return child.wait()
        child.terminate()
        try:
            child.wait(STOPS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if removed:
            shutil.rmtree(removed, ignore_errors=True)
    return child.returncode


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.setpgid(0, 0)
    status = keep(start(sys.argv[1], sys.argv[3:]), sys.argv[2])
    sys.exit(status if status >= 0 else 128 - status)
