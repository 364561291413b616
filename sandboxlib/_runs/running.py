# SPDX-License-Identifier: Apache-2.0
"""Running: a run that goes on while its caller does something else."""

from __future__ import annotations

import contextlib
import errno
from time import monotonic

from .. import errors
from .._core import native
from .._host import machine
from ..result import Result
from .run import LAST, Run, exit_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .mount_points import Stubs


class Running:
    """Takes over a fresh run that has started. It is ended if the Running is garbage.

    Any thread may call any method at any moment, and a signal handler may, whatever it interrupts:
    there is no lock in here. In a fork of the caller end() leaves the run alone, which is the
    caller's.

    executor: its name. began: of the call that started it, by monotonic().
    """

    is_service = False  # True: the end of a `with` block ends the command
    last = LAST  # seconds from SIGKILL to the end of the run

    def __init__(self, run: Run, executor: str, began: float) -> None:
        self._command = run.command
        self._executor, self._began = executor, began
        self._isolation = dict(run.plan.isolation)
        self._unkillable: errors.Unkillable | None = None
        self._results: dict[int, Result] = {}  # the one at 0 is made once: see _settle()
        self.handle, self._extras, stubs, self._root = run.hand_over()
        self._unsettled: list[Stubs | None] = [stubs]  # whoever pops it releases all

    @property
    def is_foreign(self) -> bool:
        """Whether this is a fork of the process that started the run."""
        return self.handle.is_foreign

    def wait(self, wait_ns: int) -> bool:
        """Waits for the end, for so many nanoseconds, or until a signal comes. Returns whether the
        run is over. Raises Unkillable if it was killed, and the kernel does not end it: then it is
        given up.
        """
        if not self.handle.wait(wait_ns):
            killed = self.handle.killed
            if not killed or monotonic() < killed + self.last or self.handle.wait(0):
                return False
            if (error := self.end()) is not None:
                raise error
        self._settle()
        return True

    def exit_status(self) -> int | None:
        """As Result.exit; None as long as the end was not seen. Raises StatusLost, Unkillable."""
        if not self.handle.is_over:
            return None
        if self._unkillable is not None:
            raise self._unkillable
        status = self.handle.wait_status
        if status == -errno.ECHILD and self.is_foreign:
            raise errors.StatusLost(
                "this process is a fork of the one that started the command, which alone gets its"
                " exit status"
            )
        return exit_status(status)

    def result(self, out: bytes | None = None, err: bytes | None = None) -> Result:
        """The Result of a run that is over, with these outputs. Raises as exit_status() does."""
        if 0 not in self._results:
            self._results.setdefault(0, self._make_result())
        result = Result(self._results[0].exit, out, err)
        result.__dict__.update(self._results[0].__dict__)
        return result

    def end(self) -> errors.Unkillable | None:
        """Kills the run, and waits for its end, up to LAST seconds. Returns the exception if it
        does not end. Does nothing the second time.
        """
        if stuck := self.handle.end():
            self._is_not_ending()
            with contextlib.suppress(OSError):  # it has ended by now
                self._unkillable = errors.Unkillable(*machine.what_waits(native.pid_of(stuck)))
        self._settle()
        return self._unkillable

    def __del__(self) -> None:
        if "_unsettled" in self.__dict__:
            self.end()

    def _is_not_ending(self) -> None:
        """Called for a run that SIGKILL did not end in time."""

    def _settle(self) -> None:
        """Makes the Result of a run that is over, and releases what it used, once.

        A signal handler, or another thread, may do the same in the midst of this. The first Result
        counts; nothing is released before there is one.
        """
        if not self._unsettled:
            return
        if not self.is_foreign:
            with contextlib.suppress(Exception):  # result() raises it to whoever asks
                self.result()
        try:
            stubs = self._unsettled.pop()
        except IndexError:
            return
        try:
            if self._extras is not None:
                self._extras.release(self._unkillable is not None)
            if self._root is not None:
                self._root.release()
            if stubs is not None:
                stubs.abandon() if self.is_foreign else stubs.release()
        except BaseException:  # of a signal handler: the rest is released the next time
            self._unsettled.append(stubs)
            raise

    def _make_result(self) -> Result:
        code = self.exit_status()
        assert code is not None
        result = Result(code, None, None, False, 0.0, self._executor, self._isolation)
        result.command = self._command
        result._rusage = self.handle.usage()
        if self._extras is not None:
            self._extras.complete(result, self.handle.is_over_cpu_time)
        if self._root is not None:
            self._root.finish(result, self.handle.was_left_alone)
        result.began, result.wall = self._began, monotonic() - self._began
        return result
