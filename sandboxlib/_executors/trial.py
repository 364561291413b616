# SPDX-License-Identifier: Apache-2.0
"""What an executor can do on this machine: it is tried once."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable

from .. import errors
from .._spec.command import Command
from .._spec.policy import Policy
from .._spec.spec import Spec
from ..result import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


ISOLATED = {
    "network": "isolated",
    "mounts": "isolated",
    "processes": "isolated",
    "ipc": "isolated",
}
UNDEFINED = dict.fromkeys(ISOLATED, "undefined")
#: The root as the caller has it, whatever is isolated.
AS_IT_IS = {"filesystem_writable_paths": "all", "tmp": "root"}

RunCommand = Callable[[Spec, Command, bool], Result]


# ---- what works here -------------------------------------------------------------------------

#: A program that does not exist: failing at step 'exec' proves that every step before it works.
_TRIAL = Command("/sandboxlib-trial", "/")

#: These say nothing about the machine, and are not remembered.
TRANSIENT = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)


@functools.lru_cache(maxsize=256)
def trial(
    run_command: RunCommand,
    isolated: tuple[str, ...],
    user: str,
    euid: int,
    seccomp: str = "none",
) -> str:
    """Whether an executor can isolate these on this machine: "", or why not. Tried once."""
    options: dict[str, Any] = {**UNDEFINED, **dict.fromkeys(isolated, "isolated"), **AS_IT_IS}
    options["policy"] = Policy(seccomp=seccomp)
    try:
        result = run_command(Spec("/", **options, user=user), _TRIAL, True)
    except errors.SetupError as error:
        if error.errno in TRANSIENT:
            raise
        return "" if error.step == "exec" else str(error)
    except errors.SandboxError as error:
        return str(error)
    return f"a trial of it ended with exit status {result.exit}"


def native_refusals(run_command: RunCommand, box: Spec) -> list[str]:
    """What of a Sandbox the machine denies to an executor that takes filters."""
    isolated = tuple(name for name, value in box.isolation().items() if value == "isolated")
    euid = os.geteuid()
    reason = trial(run_command, isolated, box._user_kind, euid)
    if not reason and box.policy.seccomp != "none":
        reason = trial(run_command, (), "caller", euid, "builds")
    return [reason] if reason else []


def possible_isolation(run_command: RunCommand) -> dict[str, str]:
    """All that an executor can isolate on this machine, as keywords of run_sandbox."""
    euid = os.geteuid()
    seccomp = {"seccomp": "none" if trial(run_command, (), "caller", euid, "builds") else "builds"}
    if not trial(run_command, tuple(ISOLATED), "caller", euid):
        return ISOLATED | seccomp
    found: tuple[str, ...] = ()
    for name in (
        "mounts",
        "network",
        "ipc",
        "processes",
    ):  # the last takes a /proc where mounts are
        if not trial(run_command, (*found, name), "caller", euid):
            found = (*found, name)
    return {name: "isolated" if name in found else "undefined" for name in ISOLATED} | seccomp
