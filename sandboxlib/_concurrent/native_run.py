# SPDX-License-Identifier: Apache-2.0
"""A Run of a command in a Sandbox or in a session, by an executor that needs no other program."""

from __future__ import annotations

from .._choice import choose
from .._runs import job
from .._runs.run import Run
from .._runs.session import OpenSession
from .._spec.command import Command
from .._spec.spec import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def make(box: Spec | OpenSession, command: Command, **extras: Any) -> tuple[Run, str]:
    """A Run that was not started, and the name of its executor.

    extras: further arguments of Run. UnsupportedError, SessionOver.
    """
    if isinstance(box, OpenSession):
        return box.run_of(command, **extras), box.executor
    box = box._for(command)
    executor = choose.native_executor_of(box)
    run = Run(executor.plan_of(box), job.job_of(command, box), command, **extras)
    return run, executor.name
