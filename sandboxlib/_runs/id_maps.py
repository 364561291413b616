# SPDX-License-Identifier: Apache-2.0
"""Ids of a user namespace that its own processes may not map: the caller's ranges.

The child stands still in its set-up and the calling thread waits for it, so a thread of its own
writes the maps, or has newuidmap(1) and newgidmap(1) write them. Whatever hangs there (these two,
a name service) is given up when the set-up's time is over: the child hears it from the thread, or,
if that hangs too, from a timeout of its socket.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import subprocess
from threading import Thread
from time import monotonic

from .. import errors
from .._core import native
from .._core.workspace import Workspace
from .._host import machine, tools

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

_WHAT = "map the caller's ranges of ids into the user namespace"
LONGEST = 30.0  # seconds, for a run without a timeout
_LAST_WORDS = 0.5  # seconds that a killed program has to end


class Mapper:
    """`with Mapper(workspace) as fd`: the maps of the child of a spawn are written meanwhile.

    The job of the workspace says how long that may take.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._longest = workspace.job.setup_ns / 1e9 or LONGEST
        self._deadline = monotonic() + self._longest
        self._error: errors.SandboxError | None = None

    def __enter__(self) -> int:
        self._ours, self._childs = socket.socketpair()
        try:
            patience = self._longest + 2 * _LAST_WORDS
            timeval = struct.pack("ll", int(patience), int(patience % 1 * 1e6))
            self._childs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
            # A daemon: one that hangs in a name service keeps nobody.
            self._thread = Thread(target=self._serve, name="sandboxlib-mapper", daemon=True)
            self._thread.start()
        except BaseException as error:
            self._ours.close()
            self._childs.close()
            if isinstance(error, RuntimeError):  # can't start new thread
                raise errors.setup_error(errno.EAGAIN, None, "ids", _WHAT) from error
            raise
        return self._childs.fileno()

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._childs.close()  # where there is no child, the thread sees the end of the stream
        self._thread.join(max(0.0, self._deadline - monotonic()) + 3 * _LAST_WORDS)
        if self._thread.is_alive():
            self._error = _too_late(None)
        else:
            self._ours.close()  # else the thread closes it, once it is done
        if self._error is not None and kind is None:
            raise self._error

    def _serve(self) -> None:
        ours = self._ours
        answer = errno.EIO
        with contextlib.suppress(OSError), contextlib.closing(ours):
            if not ours.recv(1):
                return
            try:
                _map(native.pid_of(self._workspace.run.pidfd), self._deadline)
                answer = 0
            except errors.SandboxError as error:
                self._error = error
            except BaseException as error:  # in a thread nobody else would hear of it
                number = getattr(error, "errno", None) or errno.EIO
                self._error = errors.setup_error(number, None, "ids", f"{_WHAT}: {error}")
                self._error.__cause__ = error
            finally:
                ours.sendall(struct.pack("i", answer))


def _map(pid: int, deadline: float) -> None:
    for kind, number in (("uid", os.geteuid()), ("gid", os.getegid())):
        path = f"/proc/{pid}/{kind}_map"
        if os.geteuid() == 0:
            _write(path, _everything(kind))
            continue
        wanted = [(0, number, 1), *ranges(kind)]
        said = _run(f"new{kind}map", pid, wanted, deadline)
        # The exit status proves nothing: the caller may ignore SIGCHLD, or wait for any child.
        if _extents(path) != sorted(wanted):
            hint = "it has to be set-user-ID root, or to have the file capability"
            what = f"{_WHAT}: new{kind}map did not do it{said}"
            raise errors.setup_error(errno.EPERM, path, "ids", what, hint)


def _extents(path: str) -> list[tuple[int, ...]]:
    """A uid_map or gid_map, as user_namespaces(7) has it."""
    return sorted(tuple(map(int, line.split())) for line in machine.read(path).splitlines())


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
    for line in machine.read(path).splitlines():
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
    extents = [line.split() for line in machine.read(f"/proc/self/{kind}_map").splitlines()]
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
    """newuidmap or newgidmap; None if there is none. UnsupportedError if it is not safe."""
    return tools.trusted_tool(tool)


def _too_late(path: str | None) -> errors.SetupError:
    hint = "its source of ranges, or the name service, does not answer"
    return errors.setup_error(errno.ETIMEDOUT, path, "ids", _WHAT, hint)


def _run(tool: str, pid: int, extents: list[tuple[int, int, int]], deadline: float) -> str:
    """Lets newuidmap or newgidmap do it. Returns what it said, as the end of a sentence."""
    path = find_tool(tool)
    if path is None:
        hint = "it is in the package uidmap (Debian) or shadow-utils (Fedora)"
        raise errors.UnsupportedError(f"{_WHAT}: there is no {tool}; {hint}")
    argv = [path, str(pid), *(str(number) for extent in extents for number in extent)]
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=tools.ENVIRONMENT,
        )
    except OSError as error:
        raise errors.setup_error(error.errno or 0, path, "ids", f"{_WHAT}: {path}") from error
    assert process.stderr is not None
    with contextlib.closing(process.stderr):
        try:
            _, stderr = process.communicate(timeout=max(0.0, deadline - monotonic()))
        except subprocess.TimeoutExpired:
            # One that took root's ids cannot be killed by us; nobody waits for it then.
            with contextlib.suppress(PermissionError):
                process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LAST_WORDS)
            raise _too_late(path) from None
    text = stderr.decode(errors="replace").strip()
    return f": {text}" if text else ""
