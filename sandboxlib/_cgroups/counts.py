# SPDX-License-Identifier: Apache-2.0
"""What the kernel counted in a cgroup during one run."""

from __future__ import annotations

from collections.abc import Sequence

PRESSURES = ("cpu.pressure", "memory.pressure", "io.pressure")
PEAKS = ("memory.peak", "memory.max_usage_in_bytes")
#: Documentation/admin-guide/cgroup-v2.rst; cgroup-v1/memory.rst, pids.rst, cpuacct.rst
COUNTERS = (
    *("memory.events", "memory.current", "memory.peak"),
    *("memory.oom_control", "memory.failcnt", "memory.usage_in_bytes", "memory.max_usage_in_bytes"),
    *("pids.events", "pids.current", "pids.peak", "cpu.stat", "cpuacct.usage", *PRESSURES),
)
#: The files and keys that tell of a limit that was reached.
_HITS = {
    "memory": (("memory.events", "oom_kill"), ("memory.oom_control", "oom_kill")),
    "pids": (("pids.events", "max"),),
}


SIZE = 512  #: bytes that are read of a counter


class Counts:
    """The counters before a run, and after it.

    names: of the files. before, after: SIZE bytes of each, one after the other. is_reset: bool.
    True: the peak of memory is that of the run alone. It can be pickled, and reads the contents
    only when it is asked.
    """

    __slots__ = ("_after", "_before", "_is_reset", "_names")

    def __init__(self, names: Sequence[str], before: bytes, after: bytes, is_reset: bool) -> None:
        self._names, self._before, self._after = names, before, after
        self._is_reset = is_reset

    def hits(self) -> list[str]:
        """The limits that the run reached: 'memory' (the kernel killed a process for it), 'pids'
        (a fork was refused).
        """
        hits, names = [], self._names
        for limit, places in _HITS.items():
            for name, key in places:
                if name not in names:
                    continue
                at = names.index(name) * SIZE
                before, after = self._before[at : at + SIZE], self._after[at : at + SIZE]
                if before != after and numbers(after).get(key, 0) > numbers(before).get(key, 0):
                    hits.append(limit)
        return hits

    def report(self) -> dict[str, object]:
        """What happened in the run. None: no file of the cgroup has the value.

        oom_kills: int, processes that the kernel killed because memory ran out.
        pids_hits: int, forks that the kernel refused.
        throttled: int, periods (of 100 ms) in which the quota was used up.
        memory_peak: int, bytes, without the page cache that earlier runs left (with it, if the
            limit was reached). pids_peak: int. Both count every process that joined, the reaper of
            a fresh run too. The kernel cannot reset some peaks (pids.peak; memory.peak before Linux
            6.12): in a reused cgroup they are None unless this run went beyond the earlier ones.
        cpu: float, seconds. user, system: float, the same apart.
        pressure: {"cpu": {"some": seconds, "full": seconds}, ...}, the time in which some or all
            processes had to wait for it.
        """
        now = _by_name(self._names, self._after)
        before = _by_name(self._names, self._before)

        def grown(name: str, key: str) -> int | None:
            value = now.get(name, {}).get(key)
            return None if value is None else value - before.get(name, {}).get(key, 0)

        def seconds(name: str, key: str, unit: float) -> float | None:
            value = grown(name, key)
            return None if value is None else value / unit

        def peak(name: str, is_reset: bool) -> int | None:
            value, earlier = now.get(name, {}).get(""), before.get(name, {}).get("", 0)
            return value if is_reset or not earlier or (value or 0) > earlier else None

        v1 = "memory.max_usage_in_bytes" in now
        memory = peak(PEAKS[v1], self._is_reset)
        reached = grown("memory.failcnt", "") if v1 else grown("memory.events", "max")
        if memory is not None and not reached:
            left = before.get("memory.usage_in_bytes" if v1 else "memory.current", {}).get("", 0)
            memory = max(memory - left, 0)
        waits = {
            name.partition(".")[0]: {key: (grown(name, key) or 0) / 1e6 for key in now[name]}
            for name in PRESSURES
            if name in now
        }
        return {
            "oom_kills": _first(*(grown(*place) for place in _HITS["memory"])),
            "pids_hits": grown("pids.events", "max"),
            "throttled": grown("cpu.stat", "nr_throttled"),
            "memory_peak": memory,
            "pids_peak": peak("pids.peak", False),
            "cpu": _first(
                seconds("cpu.stat", "usage_usec", 1e6), seconds("cpuacct.usage", "", 1e9)
            ),
            "user": seconds("cpu.stat", "user_usec", 1e6),
            "system": seconds("cpu.stat", "system_usec", 1e6),
            "pressure": waits or None,
        }


def numbers(text: bytes) -> dict[str, int]:
    """The numbers of a file: its lines are "5", "max 5", or "some avg10=0.00 ... total=5"."""
    found = {}
    for line in text.rstrip(b"\0").decode().splitlines():
        fields = line.split()
        found[fields[0] if len(fields) > 1 else ""] = int(fields[-1].rpartition("=")[2])
    return found


def _by_name(names: Sequence[str], text: bytes) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for index, name in enumerate(names):  # cpu.stat may be there twice: of v1, and of v2
        part = text[index * SIZE : (index + 1) * SIZE]
        found.setdefault(name, {}).update(numbers(part))
    return found


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)
