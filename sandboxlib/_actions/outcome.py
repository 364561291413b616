# SPDX-License-Identifier: Apache-2.0
"""How the execution of an Action ended."""

from __future__ import annotations

from collections.abc import Iterable

from .. import _types
from .._values import Value

#: The names and numbers of google.rpc.Code that an execution ends with.
CODES = {
    "OK": 0,
    "CANCELLED": 1,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "ABORTED": 10,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
}


class Outcome(Value):
    """The result of Executor.execute().

    result: the ActionResult message; None if the command did not run. With DEADLINE_EXCEEDED it has
        what there was until then.
    code: str, a name of CODES, "OK" also for a command that failed.
    message: str, for people; "" with "OK".
    missing: tuple of str, the digests of blobs that the server lacks, with FAILED_PRECONDITION.
    may_be_cached: bool, whether the result may go to the action cache.
    """

    _fields = ("result", "code", "message", "missing", "may_be_cached")
    result: _types.Any
    code: str
    message: str
    missing: tuple[str, ...]
    may_be_cached: bool

    def __init__(
        self,
        result: _types.Any = None,
        code: str = "OK",
        message: str = "",
        missing: Iterable[str] = (),
        may_be_cached: bool = False,
    ) -> None:
        self.__dict__.update(
            result=result,
            code=code,
            message=message,
            missing=tuple(missing),
            may_be_cached=may_be_cached,
        )

    @property
    def number(self) -> int:
        """The number of the code."""
        return CODES[self.code]

    def status(self) -> _types.Any:
        """The google.rpc.Status; missing blobs are the violations of a PreconditionFailure."""
        from .._remote.stubs import error_details_pb, status_pb

        status = status_pb.Status(code=self.number, message=self.message)
        if self.missing:
            failure = error_details_pb.PreconditionFailure()
            for digest in self.missing:
                failure.violations.add(type="MISSING", subject=f"blobs/{digest}")
            status.details.add().Pack(failure)
        return status


class Refused(Exception):
    """An Action that does not run. code: a name of CODES. missing: as in Outcome."""

    def __init__(self, code: str, message: str, missing: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.code, self.message, self.missing = code, message, tuple(missing)
