# SPDX-License-Identifier: Apache-2.0
"""The metadata of a result: when what happened, and what the command used.

auxiliary_metadata has two messages: build.buildbox.ExecutionStatistics, which other tools read, and
the Struct of _remote/metadata.py, which our clients read.
"""

from __future__ import annotations

from time import time_ns

from .._remote.metadata import fill_metadata
from ..result import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Times:
    """Notes when what happened, in ns since 1970."""

    def __init__(self) -> None:
        self._at = {"worker_start": time_ns()}

    def note(self, name: str) -> None:
        """name: of a timestamp of ExecutedActionMetadata, without _timestamp."""
        self._at[name] = time_ns()

    def fill(self, metadata: Any) -> None:
        for name, at in self._at.items():
            stamp = getattr(metadata, f"{name}_timestamp")
            stamp.seconds, stamp.nanos = divmod(at, 10**9)


def fill_usage(metadata: Any, result: Result) -> None:
    """Adds what a run used to an ExecutedActionMetadata."""
    from .._remote.stubs import stats_pb

    if (usage := result.usage) is not None:
        statistics = stats_pb.ExecutionStatistics()
        counted = statistics.command_rusage
        for name, seconds in (("utime", usage.user), ("stime", usage.system)):
            if seconds is not None:
                getattr(counted, name).FromNanoseconds(round(seconds * 1e9))
        counted.maxrss = (usage.peak_memory or 0) // 1024
        counted.minflt, counted.majflt = usage.minor_faults or 0, usage.major_faults or 0
        counted.inblock, counted.oublock = usage.block_reads or 0, usage.block_writes or 0
        counted.nvcsw = usage.voluntary_switches or 0
        counted.nivcsw = usage.involuntary_switches or 0
        metadata.auxiliary_metadata.add().Pack(statistics)
    fill_metadata(metadata, result)
