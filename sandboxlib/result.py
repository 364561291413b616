# SPDX-License-Identifier: Apache-2.0
"""Result and Usage, which a run returns, and CommandFailed."""

from __future__ import annotations

from collections.abc import Mapping

from . import _types
from ._spec.command import Command
from .errors import SandboxError, SpecError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Usage:
    """How much a run used: the sum over its processes that were waited for (getrusage(2)). A reaper
    waits for all of them; a command without a reaper may leave some that nothing waits for.

    user, system: float, seconds of CPU time. None if nobody waited for the processes, and the
        cgroup does not count them apart; then the other fields of getrusage(2) are None as well.
    peak_memory: int, bytes: the largest resident size of one process. Without a reaper it is None
        if it is not above the peak of the caller itself: the kernel begins to count with the memory
        that the two shared at the start.
    minor_faults, major_faults: int, page faults without and with I/O.
    block_reads, block_writes: int, blocks of 512 bytes, from and to disks.
    voluntary_switches, involuntary_switches: int, context switches.

    From the cgroup of the run (Limits), for all of its processes together; None without a cgroup,
    or if the kernel does not report the number:

    cpu: float, seconds of CPU time.
    tree_memory: int, bytes at the highest moment, with the page cache.
    tree_pids: int, processes and threads at the highest moment.
    throttled: int, periods of 100 ms in which Limits.cpus made the run wait.
    pressure: dict, pressure stall information.
    """

    def __init__(self, rusage: bytes, cgroup: Mapping[str, _types.Any] | None = None) -> None:
        from struct import unpack

        cgroup = cgroup or {}
        # getrusage(2); without it only a cgroup counted
        values: tuple[Any, ...] = unpack("18q", rusage) if rusage else (None,) * 18
        self.user: float | None = cgroup.get("user")
        self.system: float | None = cgroup.get("system")
        self.peak_memory: int | None = None
        if rusage:
            self.user = values[0] + values[1] / 1e6
            self.system = values[2] + values[3] / 1e6
            self.peak_memory = values[4] * 1024 or None
        self.minor_faults: int | None = values[8]
        self.major_faults: int | None = values[9]
        self.block_reads: int | None = values[11]
        self.block_writes: int | None = values[12]
        self.voluntary_switches: int | None = values[16]
        self.involuntary_switches: int | None = values[17]
        self.cpu: float | None = cgroup.get("cpu")
        self.tree_memory: int | None = cgroup.get("memory_peak")
        self.tree_pids: int | None = cgroup.get("pids_peak")
        self.throttled: int | None = cgroup.get("throttled")
        self.pressure: Mapping[str, Any] | None = cgroup.get("pressure")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Usage) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        fields = (f"{name}={value!r}" for name, value in self.__dict__.items() if value is not None)
        return f"Usage({', '.join(fields)})"


class Result(tuple[int, bytes | None, bytes | None]):
    """`(exit, out, err)`, a tuple with these attributes.

    exit: int     the exit status of the command; -n if signal n ended it. returncode is the same.
    ok: bool      whether exit is 0, timed_out is False, and no declared output is missing;
                  limits_hit does not count.
    out, err      the outputs of the command, bytes; None for one that was not captured.
    stdout, stderr   the same, but reading one that was not captured raises ValueError.
    out_size, err_size   int, how many bytes the command wrote, also if out and err hold fewer; None
                  if the output did not pass through sandboxlib.
    timed_out: bool   whether the timeout ended the run; out and err hold the output until then.
    limits_hit    a tuple of the limits that the run reached: 'memory' (the kernel killed a process
                  for it), 'pids' (a fork was refused), 'cpu_time', 'file_size' (it ended the
                  command), 'output' (the command wrote more than max_output).
    wall: float   seconds from the call to the end of the run.
    began: float  when the call was, in seconds of time.monotonic(), which is the same clock for all
                  processes of a machine.
    cached: bool  whether a cache had the result, so that nothing was run.
    worker: str   the name of the worker that ran the command, as its server tells it; "" if it was
                  run on this machine.
    usage: Usage  CPU time, memory and more. None if they were not counted: another waiter took the
                  command's status; bubblewrap ran it; or the reaper was killed with all the rest,
                  because it did not answer after the timeout. A cgroup (Limits) counts in any case.
    executor: str   the name of the executor that ran the command; 'cache' if nothing was run.
    isolation     a mapping: network, mounts, processes and ipc of the run; and seccomp, its filter
                  of system calls: 'builds' (the filter of sandboxlib), 'profile' (a seccomp profile
                  of the caller), 'tool' (the filter of the executor's program) or 'none'.
    outputs: Outputs   what the command declared with outputs= and left, a mapping of paths to File.
    number: int   from a map: the index of the command, from 0 on; otherwise -1.
    command       the Command that was run. It is None in a pickled copy if the Command holds files,
                  functions or descriptors.
    """

    timed_out: bool
    wall: float
    began: float = 0.0
    cached: bool = False
    worker: str = ""
    executor: str
    isolation: Mapping[str, str]
    number: int = -1
    command: Command | None = None
    limits_hit: tuple[str, ...] = ()
    _rusage: bytes = b""
    _counts: _types.Any = None  # Counts of the cgroup
    _sizes: tuple[int | None, int | None] = (None, None)
    _outputs: _types.Any = None
    _usage: Usage | None = None  # what another machine counted
    _changes: _types.Any = None

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
        state.pop("_changes", None)  # they belong to this process
        if self.command is not None and self.command._passing:
            del state["command"]
        return (type(self), tuple(self), state)

    @property
    def ok(self) -> bool:
        """Whether exit is 0, timed_out is False, and no declared output is missing. A limit may
        have been hit all the same.
        """
        return self[0] == 0 and not self.timed_out and not self._missing

    @property
    def _missing(self) -> tuple[str, ...]:
        return () if self._outputs is None else self._outputs.missing

    @property
    def outputs(self) -> _types.Outputs:
        """What the command declared with outputs= and left; empty if it declared none."""
        from ._inputs.outputs import Outputs

        return Outputs() if self._outputs is None else self._outputs

    @property
    def stdout(self) -> bytes:
        """The same as out; raises ValueError if it was not captured."""
        return self._captured("stdout", self[1])

    @property
    def stderr(self) -> bytes:
        """The same as err; raises ValueError if it was not captured."""
        return self._captured("stderr", self[2])

    def _captured(self, name: str, content: bytes | None) -> bytes:
        if content is None:
            raise ValueError(f"{name} was not captured: it went elsewhere, or nowhere")
        return content

    @property
    def exit(self) -> int:
        """The exit status of the command; -n if signal n ended it."""
        return self[0]

    @property
    def returncode(self) -> int:
        """The same as exit, under the name that subprocess has for it."""
        return self[0]

    @property
    def out(self) -> bytes | None:
        """What the command wrote to stdout; None if it was not captured."""
        return self[1]

    @property
    def err(self) -> bytes | None:
        """What the command wrote to stderr; None if it was not captured."""
        return self[2]

    @property
    def out_size(self) -> int | None:
        """How many bytes the command wrote to stdout;
        None if it did not pass through sandboxlib.
        """
        return self._size(0)

    @property
    def err_size(self) -> int | None:
        """How many bytes the command wrote to stderr;
        None if it did not pass through sandboxlib.
        """
        return self._size(1)

    def _size(self, which: int) -> int | None:
        content = (self.out, self.err)[which]
        return self._sizes[which] if content is None else self._sizes[which] or len(content)

    @property
    def usage(self) -> Usage | None:
        """CPU time, memory and more; None if they were not counted, see Result."""
        if self._usage is not None:
            return self._usage
        cgroup = self._cgroup
        counted = any(value is not None for value in cgroup.values())
        return Usage(self._rusage, cgroup) if self._rusage or counted else None

    @property
    def _cgroup(self) -> Mapping[str, Any]:
        report: Mapping[str, Any] = {} if self._counts is None else self._counts.report()
        return report

    @property
    def changes(self) -> _types.Changes:
        """What the run changed in a root that is an Overlay, to be closed in the end. SpecError if
        that was not kept.
        """
        if self._changes is None:
            text = "the changes of this run were not kept: ask for them with changes='keep'"
            asked = "drop" if self.command is None else self.command.changes
            if asked == "on-failure" and self.ok:
                text = "the run is ok, and changes='on-failure' keeps those of a failure"
            elif asked != "drop":
                text = (
                    "this Result was pickled, and its changes stayed in the process that had them"
                )
            raise SpecError(text)
        changes: _types.Changes = self._changes
        return changes

    def check(self) -> Result:
        """Returns this Result if it is ok; otherwise raises CommandFailed, which has it."""
        if not self.ok:
            raise CommandFailed(self)
        return self

    def __repr__(self) -> str:
        late = ", timed_out=True" if self.timed_out else ""
        hit = f", limits_hit={self.limits_hit!r}" if self.limits_hit else ""
        missing = f", missing={self._missing!r}" if self._missing else ""
        return f"Result(exit={self[0]}, out={self[1]!r}, err={self[2]!r}{late}{hit}{missing})"


_LAYOUT = "\n\t"  # these stay in the output of a command that a message quotes


class CommandFailed(SandboxError):
    """A command ended with an exit status that is not 0, or by its timeout. Result.check() raises
    it, and a map with on_failure='stop'.

    result: Result, of the command.
    number, command: as in the Result.
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
        text = f"{name} ended with exit status {result.exit}{_signal(-result.exit)}{late}{hit}"
        if result._missing:
            text += f", and left no {', '.join(map(printable, result._missing[:10]))}"
        err = (self.result.err or b"").strip()[-1000:].decode(errors="replace")
        return f"{text}: {printable(err, _LAYOUT)}" if err else text


def _signal(number: int) -> str:
    """The name of the signal that ended a command, in parentheses; "" if none did."""
    if number <= 0:
        return ""
    from signal import Signals

    try:
        return f" ({Signals(number).name})"
    except ValueError:
        return f" (signal {number})"
