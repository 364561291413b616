# SPDX-License-Identifier: Apache-2.0
"""How much a command may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from .. import _types
from .._values import Value, check_choice, check_number, check_size, check_text, unknown_keyword
from ..errors import SpecError, SpecTypeError

#: Limits of setrlimit(2), each for one process; the numbers are from asm-generic/resource.h.
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
#: Scheduling policies, sched(7); the numbers are from linux/sched.h.
SCHEDULERS = {"other": 0, "batch": 3, "idle": 5}
_MOST = (1 << 63) - 1
_MOST_CPUS = 1024  # bits of the mask in struct sbx_limits
_MOST_SECONDS = 1 << 32


_SIZES = (
    *("address_space", "data", "stack", "core", "file_size", "locked_memory"),
    *("memory", "swap", "changes"),
)
#: The least and the most of each number; for the others 0 and _MOST.
_RANGES = {
    "nice": (-20, 19),
    "oom_score_adj": (-1000, 1000),
    "open_files": (3, _MOST),  # with less the reaper could not inspect itself
    "pids": (1, 1 << 22),
    "changes": (1, _MOST),
    "cpu_weight": (1, 10000),
    "io_weight": (1, 10000),
}


class Limits(Value):
    """How much a command may use. A frozen value.

    Every field is None by default: that leaves the limit as the caller has it. A limit that is
    given and cannot be enforced is an error.

    `a | b` has the fields of b, and those of a for which b has None.

    A size is an int, bytes, or a str like "512K", "200M", "2G", "1T", in powers of 1024.

    For each process, inherited by its children (setrlimit(2)); soft and hard limit are the same:

    address_space, data, stack, core, file_size, locked_memory: sizes. stack is the stack of main
        threads; core=0 leaves no core dumps. A write beyond file_size ends the process with
        SIGXFSZ.
    cpu_time: int or float, seconds of CPU time; then SIGXCPU, and SIGKILL a second later. The
        kernel counts whole seconds. With a fraction (1.5) the reaper looks every 10 ms, and kills
        all of the run; without a reaper (init=False, processes='undefined', other programs) that is
        refused. Result.limits_hit has 'cpu_time'.
    open_files: int, from 3 on: one more than the highest descriptor.
    processes: int, how many processes and threads the command's user may have on the whole machine,
        in the sandbox or not; uid 0 is exempt. pids is the better limit.

    nice: int, -20 to 19 (setpriority(2)).
    scheduler: 'other', 'batch' or 'idle' (sched(7)).
    cpuset: int, how many CPUs: the first ones of the caller's; or an iterable of int, the numbers
        of the CPUs (sched_setaffinity(2)).
    oom_score_adj: int, -1000 to 1000 (proc(5)).

    For the whole run, by a cgroup of version 1 or 2, as the machine has it (docs/cgroups.md):

    memory, swap: sizes of memory, and of swap in addition to it. swap takes memory, of the same
        Limits or of those of the Sandbox that it goes over. memory is at least 64 pages (256K
        with pages of 4 KiB): no process starts with less.
    pids: int, processes and threads.
    cpus: int or float, from 0.01 on, a quota of CPU time, as in Docker: 1.5 is as much time as one
        and a half CPUs have.
    cpu_weight, io_weight: int, 1 to 10000; other cgroups have 100 unless they are told otherwise.
    cgroup: True: the run gets a cgroup even if none of these limits is given. The cgroup counts how
        much the run used, and no process escapes from it, also with processes='undefined'. A path:
        a delegated directory of version 2 that gets the cgroups.

    For a root that is an Overlay, with its upper in memory:

    changes: a size, of all that the run writes to its root; a write beyond it fails (ENOSPC). It
        bounds the number of files too, one for each 4 KiB, and 1,024 at least.

    Raises SpecError (a ValueError) if a value is wrong, and SpecTypeError for a value of the wrong
    type, or an unknown keyword argument. UnsupportedError comes from the run.
    """

    __module__ = "sandboxlib"  # as callers import it, and pickles name it

    _fields = (
        *RLIMITS,
        *("nice", "scheduler", "cpuset", "oom_score_adj"),
        *("memory", "swap", "pids", "cpus", "cpu_weight", "io_weight", "cgroup", "changes"),
    )
    cpu_time: float | None
    file_size: int | None
    processes: int | None
    locked_memory: int | None
    open_files: int | None
    nice: int | None
    scheduler: _types.Literal["other", "batch", "idle"] | None
    cpuset: int | tuple[int, ...] | None
    oom_score_adj: int | None
    memory: int | None
    swap: int | None
    pids: int | None
    cpus: float | None
    cpu_weight: int | None
    io_weight: int | None
    cgroup: bool | str | None
    changes: int | None

    def __init__(
        self,
        *,
        address_space: int | str | None = None,
        cpu_time: float | None = None,
        file_size: int | str | None = None,
        data: int | str | None = None,
        stack: int | str | None = None,
        core: int | str | None = None,
        processes: int | None = None,
        open_files: int | None = None,
        locked_memory: int | str | None = None,
        nice: int | None = None,
        scheduler: _types.Literal["other", "batch", "idle"] | None = None,
        cpuset: int | Iterable[int] | None = None,
        oom_score_adj: int | None = None,
        memory: int | str | None = None,
        swap: int | str | None = None,
        pids: int | None = None,
        cpus: float | None = None,
        cpu_weight: int | None = None,
        io_weight: int | None = None,
        cgroup: bool | _types.Path | None = None,
        changes: int | str | None = None,
        **unknown: _types.NoReturn,
    ) -> None:
        if unknown:
            raise _unknown(unknown)
        values = {name: value for name, value in locals().items() if name in self._fields}
        checks: dict[str, Callable[[object], object]] = {
            **{"scheduler": _scheduler, "cpuset": _cpuset, "cgroup": _cgroup},
            **{"cpus": _cpus, "cpu_time": _cpu_time, "memory": _memory},
        }
        for name, value in values.items():
            if value is None:
                continue
            if name in checks:
                values[name] = checks[name](value)
            else:
                check = check_size if name in _SIZES else check_number
                values[name] = check(name, value, *_RANGES.get(name, (0, _MOST)))
        self.__dict__.update(values)

    def __or__(self, other: Limits | None) -> Limits:
        """The fields of other, and those of self for which other has None."""
        if other is None:
            return self
        if not isinstance(other, Limits):
            return NotImplemented
        theirs = {name: v for name, v in other.__getstate__().items() if v is not None}
        return Limits(**{**self.__getstate__(), **theirs})

    def replace(self, **changes: _types.Any) -> Limits:
        """Returns Limits with other values: limits.replace(memory="1G", pids=None).

        changes: any keyword argument of Limits; None takes a limit away. Raises the errors of
        Limits.
        """
        if not changes.keys() <= set(self._fields):
            raise _unknown(changes, "Limits.replace")
        limits: Limits = self._replaced(changes)
        return limits

    __replace__ = replace  # copy.replace() of Python 3.13

    def __repr__(self) -> str:
        """Leaves out the limits that are not given."""
        given = {name: v for name, v in self.__getstate__().items() if v is not None}
        return f"Limits({', '.join(f'{name}={v!r}' for name, v in given.items())})"

    def __ror__(self, other: None) -> Limits:
        return self if other is None else NotImplemented


_ELSEWHERE = {
    "umask": "umask belongs to Sandbox: Sandbox(umask=...)",
    "personality": "personality belongs to Sandbox: Sandbox(personality=...)",
    "cpu_quota": "cpu_quota is called cpus",
    "timeout": "timeout belongs to Command: Command(argv, timeout=...)",
}


def _unknown(names: Iterable[str], call: str = "Limits") -> SpecTypeError:
    hint = next((_ELSEWHERE[name] for name in names if name in _ELSEWHERE), "")
    return unknown_keyword(call, names, Limits._fields, hint)


def _scheduler(value: object) -> str:
    check_choice("scheduler", value, tuple(SCHEDULERS))
    return str(value)


def _cpu_time(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SpecTypeError(f"cpu_time is no number of seconds: {value!r}")
    if not 0.001 <= value <= _MOST_SECONDS:
        raise SpecError(f"cpu_time is {value}, and has to be from 0.001 to {_MOST_SECONDS} seconds")
    return int(value) if value == int(value) else value


# The kernel charges memory in batches of so many pages (MEMCG_CHARGE_BATCH in
# include/linux/memcontrol.h). Tried on Linux 6.18 with pages of 4 KiB: a static program of 1 KB
# starts with 160K, true(1) with 256K, and with less the kernel kills them in their exec.
_LEAST_PAGES = 64


def _memory(value: object) -> int:
    size, page = check_size("memory", value, 0, _MOST), os.sysconf("SC_PAGE_SIZE")
    if size < _LEAST_PAGES * page:
        raise SpecError(
            f"Limits(memory={size}): no process starts with less than {_LEAST_PAGES} pages of"
            f" {page} bytes; a size is a number of bytes, or a str like '200M'"
        )
    return size


def _cpus(value: object) -> float:
    if isinstance(value, (list, tuple, set, frozenset, range)):
        text = f"cpus is how many CPUs' time, a number; which CPUs is cpuset={value!r}"
        raise SpecTypeError(text)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SpecTypeError(f"cpus is no number of CPUs: {value!r}")
    if not 0.01 <= value <= _MOST_CPUS:
        raise SpecError(f"cpus is {value}, and has to be from 0.01 to {_MOST_CPUS}")
    return value


def _cpuset(value: object) -> int | tuple[int, ...]:
    if isinstance(value, int):
        return check_number("cpuset", value, 1, _MOST_CPUS)
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        text = f"cpuset is neither a number of CPUs nor their numbers: {value!r}"
        raise SpecTypeError(f"{text}; write cpuset=2, or cpuset=[0, 1]")
    numbers = sorted({check_number("a number of cpuset", n, 0, _MOST_CPUS - 1) for n in value})
    if not numbers:
        raise SpecError("cpuset is empty")
    return tuple(numbers)


def _cgroup(value: object) -> bool | str | None:
    if isinstance(value, bool):
        return value or None
    path = check_text("cgroup", value)
    if not path.startswith("/"):
        raise SpecError(f"cgroup is relative: {path!r}")
    return path
