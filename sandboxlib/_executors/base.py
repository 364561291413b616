# SPDX-License-Identifier: Apache-2.0
"""What every executor is, and how it runs a program of its own through the C core."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from time import monotonic

from .. import errors
from .._runs.job import Job, job_of
from .._runs.plan import Plan
from .._runs.run import Run, complete
from .._spec.command import Command
from .._spec.limits import Limits
from .._spec.policy import ALL, Policy
from .._spec.spec import Spec
from ..result import Result
from .trial import UNDEFINED, possible_isolation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Executor(ABC):
    """A way to run Commands in Sandboxes. The module of an executor has one instance, EXECUTOR, and
    shows its methods as functions.
    """

    #: As SANDBOXLIB_BACKEND and Result.executor have it.
    name: str

    @abstractmethod
    def why_not(self) -> str:
        """The empty string if it works on this machine, otherwise why not."""

    @abstractmethod
    def refusals(self, box: Spec) -> list[str]:
        """What of a Sandbox it cannot promise on this machine, in words."""

    @abstractmethod
    def run_command(self, box: Spec, command: Command, fresh: bool = True) -> Result:
        """Runs a Command, or raises UnsupportedError. The limits of the Command are in those of the
        Sandbox already.
        """

    @abstractmethod
    def maximum_possible_isolation(self) -> dict[str, str]:
        """All that can be isolated on this machine, as keyword arguments of run_sandbox: network,
        mounts, processes and ipc, 'isolated' or 'undefined'; and seccomp, 'builds' (the filter of
        sandboxlib), 'default' (the one of the executor's program) or 'none'.
        """

    @abstractmethod
    def causes(self) -> list[tuple[str, str]]:
        """Why it does not work, or not whole, as an administrator sees it: (cause, remedy)."""

    def remarks(self) -> list[tuple[str, str]]:
        """What else is missing on this machine if it works: (cause, remedy)."""
        return []

    def plan_of(self, box: Spec) -> Plan | None:
        """How the C core runs commands in a Sandbox; None if another program runs them."""
        return None


class NativeExecutor(Executor):
    """The C core runs the command itself: it can have a handle, a terminal and an event loop."""

    @abstractmethod
    def plan_of(self, box: Spec) -> Plan:
        """How the C core runs commands in a Sandbox. UnsupportedError."""

    def run_command(self, box: Spec, command: Command, fresh: bool = True) -> Result:
        """Runs a Command in a Sandbox."""
        began = monotonic()
        plan = self.plan_of(box)
        run = Run(plan, job_of(command, box), command)
        return complete(run, fresh, self.name, began, plan.isolation)

    def maximum_possible_isolation(self) -> dict[str, str]:
        """See Executor."""
        return possible_isolation(self.run_command)


@functools.lru_cache(maxsize=16)
def _bare_plan(
    keyring: bool, limits: Limits | None, umask: int | None, personality: str | None
) -> Plan:
    """Where the program of an executor runs: the caller's own place, nothing taken away."""
    options: dict[str, Any] = {**UNDEFINED, "policy": Policy(**ALL, no_new_privs=False)}
    box = Spec("/", **options, limits=limits, umask=umask, personality=personality)
    plan = Plan(box, None)
    plan.place.keyring = int(keyring)
    plan.place.guard_keyring = 0  # the program is the command's parent, and the caller its
    return plan


def run_tool(
    executor: str,
    box: Spec,
    job: Job,
    command: Command,
    start: float,
    isolation: Mapping[str, str],
    moved: Mapping[int, int],
    began: Callable[[Run], None] | None = None,
) -> Result:
    """Runs the program of an executor through the C core, in a session of its own.

    job: the program. command: what it runs, whose streams and times are those of the run.
    start: of monotonic(), when the call began. moved: see Extras. began: see complete().
    """
    if command.pty:
        raise errors.UnsupportedError(f"{executor}: a terminal takes an executor without a program")
    if command.grace:  # SIGTERM would end the program, and with it all the rest
        raise errors.UnsupportedError(f"{executor}: grace takes an executor without a program")
    # No such program makes a session keyring of its own, which belongs to the isolation of IPC.
    plan = _bare_plan(box.ipc == "isolated", box.limits, box.umask, box.personality)
    run = Run(plan, job, command, moved=moved)
    return complete(run, True, executor, start, dict(isolation), began)
