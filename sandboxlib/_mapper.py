# SPDX-License-Identifier: Apache-2.0
"""Ids of a user namespace that its own processes may not map: the caller's ranges.

The child stands still in its set-up and the calling thread waits for it, so a thread of its own
writes the maps, or has newuidmap(1) and newgidmap(1) write them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import struct
import subprocess
import threading

from . import _machine, _native, errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

_WHAT = "map the caller's ranges of ids into the user namespace"


class Mapper:
    """`with Mapper(workspace) as fd`: the maps of the child of a spawn are written meanwhile."""

    def __init__(self, workspace: _native.Workspace) -> None:
        self._workspace = workspace
        self._error: errors.SandboxError | None = None

    def __enter__(self) -> int:
        self._ours, self._childs = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="sandboxlib-mapper")
        self._thread.start()
        return self._childs.fileno()

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._childs.close()  # where there is no child, the thread sees the end of the stream
        self._thread.join()
        self._ours.close()
        if self._error is not None and kind is None:
            raise self._error

    def _serve(self) -> None:
        if not self._ours.recv(1):
            return
        answer = errno.EIO
        try:
            _map(_native.pid_of(self._workspace.run.pidfd))
            answer = 0
        except errors.SandboxError as error:
            self._error = error
        finally:
            self._ours.sendall(struct.pack("i", answer))


def _map(pid: int) -> None:
    for kind, number in (("uid", os.geteuid()), ("gid", os.getegid())):
        if os.geteuid() == 0:
            _write(f"/proc/{pid}/{kind}_map", _everything(kind))
        else:
            _run(f"new{kind}map", pid, [(0, number, 1), *ranges(kind)])


def ranges(kind: str) -> list[tuple[int, int, int]]:
    """The caller's ranges as (inside, outside, count), from 1 on; kind: 'uid' or 'gid'.

    UnsupportedError where there are none (subuid(5), subgid(5)).
    """
    import pwd

    user = str(os.getuid())
    names = {user}
    with contextlib.suppress(KeyError):
        user = pwd.getpwuid(os.getuid()).pw_name
        names.add(user)
    found: list[tuple[int, int, int]] = []
    path = f"/etc/sub{kind}"
    for line in _machine.read(path).splitlines():
        name, _, numbers = line.strip().partition(":")
        start, _, count = numbers.partition(":")
        if name in names and start.isdigit() and count.isdigit() and int(count) > 0:
            found.append((1 + sum(each[2] for each in found), int(start), int(count)))
    if not found:
        hint = f"an administrator can give a range: usermod --add-sub{kind}s 100000-165535 {user}"
        raise errors.UnsupportedError(f"{_WHAT}: the caller has none in {path}; {hint}")
    return found


def _everything(kind: str) -> str:
    """All ids that the caller has, each as itself."""
    extents = [line.split() for line in _machine.read(f"/proc/self/{kind}_map").splitlines()]
    if sum(int(count) for _, _, count in extents) < 2:
        raise errors.UnsupportedError(f"{_WHAT}: the caller is in one that has a single {kind}")
    return "".join(f"{inside} {inside} {count}\n" for inside, _, count in extents)


def _write(path: str, text: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise errors.setup_error(error.errno or 0, path, "ids", _WHAT) from error


def find_tool(tool: str) -> str | None:
    """newuidmap or newgidmap in the caller's PATH or where it is usually installed."""
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/bin:/bin:/usr/local/bin")


def _run(tool: str, pid: int, extents: list[tuple[int, int, int]]) -> None:
    path = find_tool(tool)
    if path is None:
        hint = "it is in the package uidmap (Debian) or shadow-utils (Fedora)"
        raise errors.UnsupportedError(f"{_WHAT}: there is no {tool}; {hint}")
    words = [str(number) for extent in extents for number in extent]
    done = subprocess.run([path, str(pid), *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip() or f"exit {done.returncode}"
        hint = "it has to be set-user-ID root, or to have the file capability"
        raise errors.setup_error(errno.EPERM, path, "ids", f"{_WHAT}: {said}", hint)
