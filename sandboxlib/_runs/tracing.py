# SPDX-License-Identifier: Apache-2.0
"""Tracer: the thread that sees the path calls of a run."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Iterator
from threading import Thread

from .. import errors
from .._core import native
from .._core.trace import TraceMemory, may_trace
from .._host import green, machine
from .._seccomp.paths import tracing
from .run import LAST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

_WHAT = "see the calls of the command"


class Tracer:
    """`with Tracer(every, may_wait, declared) as fd`: sees the calls of the run that the block
    makes, whose job has the socket fd as its tracer.

    every, and the errors: as in _seccomp.paths.tracing. may_wait: see TraceMemory. declared: paths
    whose names without links are wanted. UnsupportedError if this process may not trace.
    """

    def __init__(self, every: bool, may_wait: bool, declared: Iterable[str] = ()) -> None:
        _check()
        self.declared = [(path, path) for path in declared]
        self._program, self._table, self._audits = tracing(every)
        self._may_wait = may_wait
        self._error = 0

    def __enter__(self) -> int:
        # The filter is a message: the child reads it in one call.
        ours, self._childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stop, self._stop = socket.socketpair()
        try:
            ours.send(self._program)
            waits = not machine.kernel_is_older_than(6, 11)
            words = self._table, self._audits, waits, self._may_wait
            self._memory = TraceMemory(ours.fileno(), stop.fileno(), *words)
            # A daemon thread: one that waits for a file system must not keep the interpreter.
            self._thread = Thread(
                target=self._follow, args=(ours, stop), name="sandboxlib-tracer", daemon=True
            )
            self._thread.start()
        except BaseException as error:
            for each in (ours, stop, self._childs, self._stop):
                each.close()
            if isinstance(error, RuntimeError):  # Python could not start a thread
                raise errors.setup_error(errno.EAGAIN, None, "trace", _WHAT) from error
            raise
        return self._childs.fileno()

    def _follow(self, ours: socket.socket, stop: socket.socket) -> None:
        memory = self._memory
        with contextlib.closing(ours), contextlib.closing(stop), contextlib.closing(memory):
            error = memory.begin()
            if error == 0:
                self.declared = [(path, _name(memory.root, path)) for path, _ in self.declared]
                error = memory.follow()
            self._error = 0 if error == -errno.ECANCELED else error

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._stop.close()  # which the thread sees
        self._childs.close()
        self._thread.join(LAST)
        if kind is None and self._error < 0:
            raise errors.setup_error(-self._error, None, "trace", _WHAT)

    def records(self) -> Iterator[tuple[int, bytes]]:
        """What is known of each path, as TraceMemory has it."""
        return self._memory.records()

    @property
    def is_truncated(self) -> bool:
        """Whether the records are not whole: there was no room, or the thread still waits."""
        return self._memory.truncated or self._thread.is_alive()

    @property
    def n_calls(self) -> int:
        """How many calls it saw."""
        return self._memory.n_calls

    @property
    def n_unknown(self) -> int:
        """Of how many calls the path is not known."""
        return self._memory.n_unknown


def _name(root: int, path: str) -> str:
    """The path without links, as the root has it: the path itself if it is not there."""
    try:
        fd = native.open_in_root(root, path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return path
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _check() -> None:
    """UnsupportedError if this process may not trace."""
    green.refuse("trace()")
    if number := may_trace():
        raise errors.UnsupportedError(
            f"trace: this process may not read the memory of others ({errno.errorcode[number]},"
            " process_vm_readv): a system call filter forbids it, as that of a container may"
        )
    if not os.path.exists("/proc/self/fd"):
        raise errors.UnsupportedError("trace: there is no /proc here, which tells where paths lead")
    if machine.read("/proc/sys/kernel/yama/ptrace_scope").strip() == "3":
        raise errors.UnsupportedError(
            "trace: the machine forbids to read the memory of other processes"
            " (/proc/sys/kernel/yama/ptrace_scope is 3)"
        )
