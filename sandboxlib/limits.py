# SPDX-License-Identifier: Apache-2.0
"""How much a command may use."""

from __future__ import annotations

from collections.abc import Iterable

from ._check import Value, check_choice, check_number, check_text
from .errors import SpecError, SpecTypeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .sandbox import Path

#: Limits of setrlimit(2), each of one process, by their numbers in asm-generic/resource.h.
RLIMITS = {
    "cpu_time": 0,
    "file_size": 1,
    "data": 2,
    "stack": 3,
    "core": 4,
    "processes": 6,
    "open_files": 7,
    "locked_memory": 8,
    "address_space": 9,
}
#: sched(7), by the numbers in linux/sched.h.
SCHEDULERS = {"other": 0, "batch": 3, "idle": 5}
_MOST = (1 << 63) - 1
_MOST_CPUS = 1024


class Limits(Value):
    """How much the commands of a Sandbox may use. A frozen value; None, everywhere the default,
    leaves a thing as the caller has it. What is asked for and cannot be enforced is an error.

    Of each process, inherited by its children (setrlimit(2)); soft and hard limit are the same:

    address_space, data, stack, core, file_size, locked_memory: int, bytes. stack is what main
        threads get; core=0 leaves no core dumps. A write beyond file_size ends the process with
        SIGXFSZ.
    cpu_time: int, seconds of CPU time; then SIGXCPU, and SIGKILL a second later.
    open_files: int, one more than the highest descriptor.
    processes: int, how many processes and threads the command's user may have on the whole
        machine, others' included; uid 0 is exempt. `pids` is the better one.

    nice: int, -20 to 19 (setpriority(2)). scheduler: 'other', 'batch' or 'idle' (sched(7)).
    cpus: a number of CPUs, the first of those that the caller may use; or the numbers of some
        (sched_setaffinity(2)).
    oom_score_adj: int, -1000 to 1000 (proc(5)). umask: int.

    Of the whole run, by a cgroup (docs/cgroups.md), as the machine has it, of version 1 or 2:

    memory, swap: int, bytes of memory, and of swap beyond that; swap takes memory.
    pids: int, processes and threads.
    cpu_weight, io_weight: int, 1 to 10000; 100 is what everybody has.
    cpu_quota: float, CPUs: 1.5 is one and a half of them.
    cgroup: True: there is a cgroup even where none of these is asked for. It counts what the run
        used, and no process escapes from it, also where processes='undefined'. A path: that of a
        delegated directory of version 2, in which to make them.

    Raises SpecError for everything that makes no sense.
    """

    _fields = (
        *RLIMITS,
        *("nice", "scheduler", "cpus", "oom_score_adj", "umask"),
        *("memory", "swap", "pids", "cpu_weight", "io_weight", "cpu_quota", "cgroup"),
    )
    cpu_time: int | None
    file_size: int | None
    processes: int | None
    locked_memory: int | None
    nice: int | None
    scheduler: str | None
    cpus: int | tuple[int, ...] | None
    oom_score_adj: int | None
    umask: int | None
    memory: int | None
    swap: int | None
    pids: int | None
    cpu_weight: int | None
    io_weight: int | None
    cpu_quota: float | None
    cgroup: bool | str | None

    def __init__(
        self,
        *,
        address_space: int | None = None,
        cpu_time: int | None = None,
        file_size: int | None = None,
        data: int | None = None,
        stack: int | None = None,
        core: int | None = None,
        processes: int | None = None,
        open_files: int | None = None,
        locked_memory: int | None = None,
        nice: int | None = None,
        scheduler: str | None = None,
        cpus: int | Iterable[int] | None = None,
        oom_score_adj: int | None = None,
        umask: int | None = None,
        memory: int | None = None,
        swap: int | None = None,
        pids: int | None = None,
        cpu_weight: int | None = None,
        io_weight: int | None = None,
        cpu_quota: float | None = None,
        cgroup: bool | Path | None = None,
    ) -> None:
        words = {k: v for k, v in locals().items() if k in self._fields}
        lows = {"nice": (-20, 19), "oom_score_adj": (-1000, 1000), "umask": (0, 0o777)}
        lows |= {"open_files": (3, _MOST)}  # with less the reaper could not look at its own
        lows |= {"memory": (1, _MOST), "pids": (1, 1 << 22), "cpu_time": (1, 1 << 32)}
        lows |= dict.fromkeys(("cpu_weight", "io_weight"), (1, 10000))
        for name, value in words.items():
            if value is not None and name not in ("scheduler", "cpus", "cpu_quota", "cgroup"):
                check_number(name, value, *lows.get(name, (0, _MOST)))
        if scheduler is not None:
            check_choice("scheduler", scheduler, tuple(SCHEDULERS))
        words["cpus"] = None if cpus is None else _cpus(cpus)
        words["cgroup"] = _cgroup(cgroup)
        if cpu_quota is not None:
            if isinstance(cpu_quota, bool) or not isinstance(cpu_quota, (int, float)):
                raise SpecTypeError(f"cpu_quota is no number of CPUs: {cpu_quota!r}")
            if not 0.01 <= cpu_quota <= _MOST_CPUS:
                raise SpecError(f"cpu_quota is {cpu_quota}, and has to be from 0.01 to 1024 CPUs")
        if swap is not None and memory is None:
            raise SpecError("a limit of swap takes one of memory")
        self.__dict__.update(words)


def _cpus(value: object) -> int | tuple[int, ...]:
    if isinstance(value, int):
        return check_number("cpus", value, 1, _MOST_CPUS)
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise SpecTypeError(f"cpus is neither a number nor several: {value!r}")
    numbers = sorted({check_number("a number of cpus", n, 0, _MOST_CPUS - 1) for n in value})
    if not numbers:
        raise SpecError("cpus is empty")
    return tuple(numbers)


def _cgroup(value: object) -> bool | str | None:
    if value is None or isinstance(value, bool):
        return value or None
    path = check_text("cgroup", value)
    if not path.startswith("/"):
        raise SpecError(f"cgroup is relative: {path!r}")
    return path
