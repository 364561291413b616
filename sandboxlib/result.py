# SPDX-License-Identifier: Apache-2.0
"""What a run comes back with."""

from __future__ import annotations

from collections.abc import Mapping


class Result(tuple[int, bytes | None, bytes | None]):
    """`(exit, out, err)`, with more as attributes.

    exit: int     the command's exit status; -n where signal n ended it.
    out, err      what the command wrote, bytes; None where it was not captured.
    timed_out     bool: the timeout ended it; out and err hold what there was until then.
    wall: float   seconds from the call to the end of the run.
    executor      the name of the executor that ran it.
    isolation     a mapping of what the run had: network, mounts, processes, ipc.
    number: int   from a map: which of its commands it was, from 0 on; otherwise -1.
    command       from a map: the command as the map was given it; otherwise None.
    """

    timed_out: bool
    wall: float
    executor: str
    isolation: Mapping[str, str]
    number: int = -1
    command: object = None

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
        return (type(self), tuple(self), {**self.__dict__, "isolation": dict(self.isolation)})

    @property
    def exit(self) -> int:
        return self[0]

    @property
    def out(self) -> bytes | None:
        return self[1]

    @property
    def err(self) -> bytes | None:
        return self[2]

    def __repr__(self) -> str:
        late = ", timed_out=True" if self.timed_out else ""
        return f"Result(exit={self[0]}, out={self[1]!r}, err={self[2]!r}{late})"
