# SPDX-License-Identifier: Apache-2.0
"""Executor, the base class of executors, and run_tool, which runs the program of one."""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from errno import ENOENT
from time import monotonic

from .. import _types, errors
from .._runs.job import Job, job_of
from .._runs.plan import Plan
from .._runs.run import Run, complete
from .._spec.command import Command
from .._spec.limits import Limits
from .._spec.policy import ALL, Policy
from .._spec.spec import Spec
from ..result import Result
from .trial import LONGEST, UNDEFINED, Trial, possible_isolation

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
        """Returns "" if the executor works on this machine; otherwise says why not."""

    @abstractmethod
    def refusals(self, box: Spec) -> list[str]:
        """Returns a sentence for each promise of a Sandbox that the executor cannot keep on this
        machine; [] if it can keep them all.
        """

    @abstractmethod
    def run_command(self, box: Spec, command: Command, fresh: bool = True) -> Result:
        """Runs a Command in a Sandbox.

        box: Spec, whose limits include those of the Command already.
        fresh: bool. True (the default): in new namespaces. False: in a slot, if there can be one.

        Raises UnsupportedError, and the other errors of Sandbox.run.
        """

    def attempt(self, box: Spec) -> str:
        """Tries the set-up of a Sandbox, which nobody else may use: "" if it works, or why not."""
        try:
            result = self.run_command(box, Trial())
        except errors.SetupError as error:
            return "" if (error.step, error.errno) == ("exec", ENOENT) else str(error)
        except errors.SandboxError as error:
            return str(error)
        finally:
            self._forget_cgroups(box)
        if result.timed_out:
            return (
                f"a file system of the root, or of a source, does not answer in {LONGEST} seconds"
            )
        return f"the set-up ended with exit status {result.exit}: {result.err!r}"

    def _forget_cgroups(self, box: Spec) -> None:
        """Removes the idle cgroups of a Sandbox that was tried."""
        plans = list(box._plans.values())
        if not isinstance(self, NativeExecutor) and box.limits is not None:
            with contextlib.suppress(errors.UnsupportedError):
                plans.append(plan_of_tool(box))
        for plan in plans:
            if plan.cgroups is not None:
                plan.cgroups.close()

    @abstractmethod
    def maximum_possible_isolation(self) -> dict[str, str]:
        """Returns the most that this machine can isolate, as keyword arguments of run_sandbox:
        network, mounts, processes and ipc, each 'isolated' or 'undefined'; and seccomp, 'builds'
        (the filter of sandboxlib), 'default' (the filter of the executor's program) or 'none'.
        """

    @abstractmethod
    def causes(self) -> list[tuple[str, str]]:
        """Returns why the executor does not work, or cannot isolate all, as (cause, remedy)."""

    def remarks(self) -> list[tuple[str, str]]:
        """Returns gaps of this machine that remain if the executor works, as (cause, remedy)."""
        return []

    def plan_of(self, box: Spec) -> Plan | None:
        """Returns how the C core runs commands in a Sandbox; None if another program runs them."""
        return None


class NativeExecutor(Executor):
    """An executor whose commands the C core runs itself. It can also start a Process, give a
    command a terminal, and run it in an event loop.
    """

    @abstractmethod
    def plan_of(self, box: Spec) -> Plan:
        """Returns how the C core runs commands in a Sandbox. Raises UnsupportedError."""

    def run_command(
        self, box: Spec, command: Command, fresh: bool = True, tracer: int = 0
    ) -> Result:
        """Runs a Command in a Sandbox; see Executor. tracer: see Extras."""
        began = monotonic()
        plan = self.plan_of(box)
        more: dict[str, Any] = {"tracer": tracer} if tracer else {}
        run = Run(plan, job_of(command, box), command, **more)
        return complete(run, fresh, self.name, began, plan.isolation)

    def maximum_possible_isolation(self) -> dict[str, str]:
        """See Executor."""
        return possible_isolation(self.run_command)


@functools.lru_cache(maxsize=16)
def _bare_plan(
    keyring: bool,
    limits: Limits | None,
    umask: int | None,
    personality: _types.Literal["linux32"] | None,
) -> Plan:
    """The plan for the program of an executor: no namespaces, all rights of the caller."""
    options: dict[str, Any] = {**UNDEFINED, "policy": Policy(**ALL, no_new_privs=False)}
    box = Spec("/", **options, limits=limits, umask=umask, personality=personality)
    plan = Plan(box, None)
    plan.place.keyring = int(keyring)
    plan.place.guard_keyring = (
        0  # the program is the command's parent, and the caller is the program's
    )
    return plan


def plan_of_tool(box: Spec) -> Plan:
    """The plan by which the program of an executor is run for a Sandbox."""
    # ipc='isolated' includes a new session keyring, and none of these programs makes one.
    return _bare_plan(box.ipc == "isolated", box.limits, box.umask, box.personality)


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

    job: the program. command: the Command that the program runs; its streams and times apply to the
    run. start: by monotonic(), when the call began. moved: see Extras. began: see complete().
    """
    if command.pty:
        raise errors.UnsupportedError(f"{executor}: a terminal takes an executor without a program")
    if command.grace:  # SIGTERM would end the program, and with it the whole sandbox
        raise errors.UnsupportedError(f"{executor}: grace takes an executor without a program")
    if command.executable is not None:
        text = "executable, for an argv[0] of its own, takes an executor without a program"
        raise errors.UnsupportedError(f"{executor}: {text}")
    if command.changes != "drop":
        raise errors.UnsupportedError(f"{executor}: changes take an executor without a program")
    if command.inputs or command.outputs:
        text = "inputs and outputs take an executor without a program"
        raise errors.UnsupportedError(f"{executor}: {text}")
    plan = plan_of_tool(box)
    run = Run(plan, job, command, moved=moved)
    return complete(run, True, executor, start, dict(isolation), began)
