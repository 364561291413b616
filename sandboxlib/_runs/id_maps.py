# SPDX-License-Identifier: Apache-2.0
"""Mapper writes the id maps of a user namespace that the child may not write itself: the caller's
ranges of ids (user_namespaces(7)).

The child waits in its set-up, and the calling thread waits for the child. So another thread writes
the maps, or runs newuidmap(1) and newgidmap(1). If one of these or a name service hangs, we give up
when the time of the set-up is over: the thread tells the child, or, if the thread hangs too, the
child's socket times out.
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
from .._host import green, machine, tools

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

_WHAT = "map the caller's ranges of ids into the user namespace"
LONGEST = 30.0  # seconds, for a run without a timeout
_TIME_TO_END = 0.5  # seconds that a killed program has to end


class Mapper:
    """`with Mapper(workspace) as fd`: writes the maps of the child that the block spawns.

    setup_ns of the workspace's job limits the time.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._longest = workspace.job.setup_ns / 1e9 or LONGEST
        self._deadline = monotonic() + self._longest
        self._error: errors.SandboxError | None = None

    def __enter__(self) -> int:
        green.refuse("user='ranges' of a caller without privilege")
        self._ours, self._childs = socket.socketpair()
        try:
            patience = self._longest + 2 * _TIME_TO_END
            timeval = struct.pack("ll", int(patience), int(patience % 1 * 1e6))
            self._childs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
            # A daemon thread: one that hangs in a name service must not keep the interpreter.
            self._thread = Thread(target=self._serve, name="sandboxlib-mapper", daemon=True)
            self._thread.start()
        except BaseException as error:
            self._ours.close()
            self._childs.close()
            if isinstance(error, RuntimeError):  # Python could not start a thread
                raise errors.setup_error(errno.EAGAIN, None, "ids", _WHAT) from error
            raise
        return self._childs.fileno()

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._childs.close()  # if there is no child, the thread reads the end of the stream
        self._thread.join(max(0.0, self._deadline - monotonic()) + 3 * _TIME_TO_END)
        if self._thread.is_alive():
            self._error = _too_late(None)
        else:
            self._ours.close()  # a thread that is still alive closes it itself
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
            except BaseException as error:  # nothing else would report it, in a thread
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
        message = _run(f"new{kind}map", pid, wanted, deadline)
        # Read the map, as the exit status may be lost: the caller may ignore SIGCHLD, or wait for
        # any child.
        if _extents(path) != sorted(wanted):
            hint = "it has to be set-user-ID root, or to have the file capability"
            what = f"{_WHAT}: new{kind}map did not do it{message}"
            raise errors.setup_error(errno.EPERM, path, "ids", what, hint)


def _extents(path: str) -> list[tuple[int, ...]]:
    """The (inside, outside, count) lines of a uid_map or gid_map, user_namespaces(7)."""
    return sorted(tuple(map(int, line.split())) for line in machine.read(path).splitlines())


def ranges(kind: str) -> list[tuple[int, int, int]]:
    """The caller's ranges of subuid(5) or subgid(5) as (inside, outside, count), inside from 1 on.

    kind: 'uid' or 'gid'. UnsupportedError if the caller has none.
    """
    import pwd

    user = str(os.getuid())
    names = {user}
    with contextlib.suppress(KeyError):
        user = pwd.getpwuid(os.getuid()).pw_name
        names.add(user)
    extents: list[tuple[int, int, int]] = []
    path = f"/etc/sub{kind}"
    for line in machine.read(path).splitlines():
        name, _, numbers = line.strip().partition(":")
        start, _, count = numbers.partition(":")
        if name in names and start.isdigit() and count.isdigit() and int(count) > 0:
            extents.append((1 + sum(each[2] for each in extents), int(start), int(count)))
    if not extents:
        hint = f"an administrator can give a range: usermod --add-sub{kind}s 100000-165535 {user}"
        raise errors.UnsupportedError(f"{_WHAT}: the caller has none in {path}; {hint}")
    return extents


def _everything(kind: str) -> str:
    """A map of all ids of the caller's user namespace, each to itself."""
    extents = [line.split() for line in machine.read(f"/proc/self/{kind}_map").splitlines()]
    if sum(int(count) for _, _, count in extents) < 2:
        raise errors.UnsupportedError(
            f"{_WHAT}: the caller is in a user namespace that has a single {kind}"
        )
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
    """The path of newuidmap or newgidmap; None if not installed. UnsupportedError if not safe."""
    return tools.trusted_tool(tool)


def _too_late(path: str | None) -> errors.SetupError:
    hint = "its source of ranges, or the name service, does not answer"
    return errors.setup_error(errno.ETIMEDOUT, path, "ids", _WHAT, hint)


def _run(tool: str, pid: int, extents: list[tuple[int, int, int]], deadline: float) -> str:
    """Runs newuidmap or newgidmap. Returns its message, as the end of a sentence."""
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
            # If it has root's ids already, we can neither kill it nor wait for it.
            with contextlib.suppress(PermissionError):
                process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_TIME_TO_END)
            raise _too_late(path) from None
    text = stderr.decode(errors="replace").strip()
    return f": {text}" if text else ""
