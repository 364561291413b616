# SPDX-License-Identifier: Apache-2.0
"""What a run comes back with."""

from __future__ import annotations

from collections.abc import Mapping
from struct import unpack

from . import _types
from ._spec.command import Command
from .errors import SandboxError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Usage:
    """What a run used: all of its processes that were waited for. With a reaper these are all; a
    command without one may leave some that nobody waits for.

    user, system: float, seconds of CPU time.
    peak_memory: int, bytes: the most that one of the processes had in memory. Without a reaper
        None where it is not more than the caller itself has had: the
        kernel begins to count with the memory that the two shared at the start.
    minor_faults, major_faults: int, page faults without and with I/O.
    block_reads, block_writes: int, of 512 bytes each, from and to disks.
    voluntary_switches, involuntary_switches: int, context switches.

    From a cgroup (Limits), of all processes at once; None without one, or where the kernel does not
    tell:

    cpu: float, seconds of CPU time. tree_memory: int, bytes at the highest moment, with the page
    cache. tree_pids: int, processes and threads at the highest moment. throttled: int, periods of
    100 ms in which Limits.cpus made it wait. pressure: dict of pressure stall information.
    """

    def __init__(self, rusage: bytes, cgroup: Mapping[str, _types.Any] | None = None) -> None:
        values = unpack("18q", rusage)  # getrusage(2)
        self.user = values[0] + values[1] / 1e6
        self.system = values[2] + values[3] / 1e6
        self.peak_memory: int | None = values[4] * 1024 or None
        self.minor_faults, self.major_faults = values[8:10]
        self.block_reads, self.block_writes = values[11:13]
        self.voluntary_switches, self.involuntary_switches = values[16:18]
        cgroup = cgroup or {}
        self.cpu: float | None = cgroup.get("cpu")
        self.tree_memory: int | None = cgroup.get("memory_peak")
        self.tree_pids: int | None = cgroup.get("pids_peak")
        self.throttled: int | None = cgroup.get("throttled")
        self.pressure: Mapping[str, Any] | None = cgroup.get("pressure")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Usage) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        words = (f"{name}={value!r}" for name, value in self.__dict__.items() if value is not None)
        return f"Usage({', '.join(words)})"


class Result(tuple[int, bytes | None, bytes | None]):
    """`(exit, out, err)`, with more as attributes.

    exit: int     the command's exit status; -n where signal n ended it.
    ok: bool      whether exit is 0 and timed_out is False.
    out, err      what the command wrote, bytes; None if it was not captured.
    stdout, stderr   the same, but ValueError if it was not captured.
    out_size, err_size   how many bytes the command wrote there, also where out and err hold fewer;
                  None where sandboxlib did not see them.
    timed_out     bool: the timeout ended it; out and err hold what there was until then.
    limits_hit    a tuple of the limits that the run came up against: 'memory' (a process was
                  killed because there was no more), 'pids' (a fork was refused), 'cpu_time',
                  'file_size' (it was ended by it), 'output' (it wrote more than max_output).
    wall: float   seconds from the call to the end of the run.
    usage: Usage  CPU time, memory and more. None where nobody counted: somebody else took the
                  command's status; bubblewrap ran it; or the reaper was killed with all the rest,
                  by the timeout or for max_output.
    executor      the name of the executor that ran it.
    isolation     a mapping of what the run had: network, mounts, processes, ipc; and seccomp, which
                  filter of system calls: 'builds' (that of sandboxlib), 'profile' (one that was
                  given), 'tool' (that of the executor's program) or 'none'.
    number: int   from a map: which of its commands it was, from 0 on; otherwise -1.
    command       the Command that was run. A copy by pickle has it too, unless it holds files,
                  functions or descriptors: then None.
    """

    timed_out: bool
    wall: float
    executor: str
    isolation: Mapping[str, str]
    number: int = -1
    command: Command | None = None
    limits_hit: tuple[str, ...] = ()
    _rusage: bytes = b""
    _cgroup: Mapping[str, _types.Any] | None = None
    _sizes: tuple[int | None, int | None] = (None, None)

    def __new__(
        cls,
        exit: int,
        out: bytes | None,
        err: bytes | None,
        timed_out: bool = False,
        wall: float = 0.0,
        executor: str = "",
        isolation: Mapping[str, str] | None = None,
    ) -> Result:
        self = super().__new__(cls, (exit, out, err))
        self.timed_out = timed_out
        self.wall = wall
        self.executor = executor
        self.isolation = isolation or {}
        return self

    def __reduce__(self) -> tuple[object, ...]:
        state = {**self.__dict__, "isolation": dict(self.isolation)}
        if self.command is not None and self.command._passing:
            del state["command"]
        return (type(self), tuple(self), state)

    @property
    def ok(self) -> bool:
        """Whether the exit status is 0, and the time was not over."""
        return self[0] == 0 and not self.timed_out

    @property
    def stdout(self) -> bytes:
        """out; ValueError if it was not captured."""
        return self._captured("stdout", self[1])

    @property
    def stderr(self) -> bytes:
        """err; ValueError if it was not captured."""
        return self._captured("stderr", self[2])

    def _captured(self, name: str, content: bytes | None) -> bytes:
        if content is None:
            raise ValueError(f"{name} was not captured: it went elsewhere, or nowhere")
        return content

    @property
    def exit(self) -> int:
        return self[0]

    @property
    def out(self) -> bytes | None:
        return self[1]

    @property
    def err(self) -> bytes | None:
        return self[2]

    @property
    def out_size(self) -> int | None:
        return self._size(0)

    @property
    def err_size(self) -> int | None:
        return self._size(1)

    def _size(self, which: int) -> int | None:
        content = (self.out, self.err)[which]
        return self._sizes[which] if content is None else self._sizes[which] or len(content)

    @property
    def usage(self) -> Usage | None:
        return Usage(self._rusage, self._cgroup) if self._rusage else None

    def check(self) -> Result:
        """This Result if it is ok; otherwise raises CommandFailed, which has it."""
        if not self.ok:
            raise CommandFailed(self)
        return self

    def __repr__(self) -> str:
        late = ", timed_out=True" if self.timed_out else ""
        hit = f", limits_hit={self.limits_hit!r}" if self.limits_hit else ""
        return f"Result(exit={self[0]}, out={self[1]!r}, err={self[2]!r}{late}{hit})"


_LAYOUT = "\n\t"  # of the text that a command wrote


class CommandFailed(SandboxError):
    """A command ended with another exit status than 0, or when its time was over: in a map with
    on_failure='stop', or as Result.check() found.

    result: its Result. number, command: which of the commands it was.
    """

    def __init__(self, result: Result) -> None:
        super().__init__(result)
        self.result = result
        self.number = result.number
        self.command = result.command

    def __str__(self) -> str:
        result = self.result
        late = ", when its time was over" if result.timed_out else ""
        hit = f" (limits: {', '.join(result.limits_hit)})" if result.limits_hit else ""
        name = "the command" if self.command is None else str(self.command)
        text = f"{name} ended with exit status {result.exit}{late}{hit}"
        said = (self.result.err or b"").strip()[-1000:].decode(errors="replace")
        return f"{text}: {printable(said, _LAYOUT)}" if said else text
