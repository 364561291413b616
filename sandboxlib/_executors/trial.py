# SPDX-License-Identifier: Apache-2.0
"""Trials: an executor runs a command that does not exist, to find what works on this machine."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable

from .. import _types, errors
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
#: Options that leave the root as it is, so that a trial needs no mounts.
AS_IT_IS = {"filesystem_writable_paths": "all", "tmp": "root"}

RunCommand = Callable[[Spec, Command, bool], Result]


# ---- what works here -------------------------------------------------------------------------

#: A program that does not exist: failing at step 'exec' proves that every step before it works.
_TRIAL = Command("/sandboxlib-trial", "/")


class Trial(Command):
    """A command that does not exist under any name in a root, however hostile."""

    def __init__(self) -> None:
        super().__init__(f"/sandboxlib-trial-{os.urandom(16).hex()}", "/", timeout=LONGEST)


#: Seconds that the set-up of a Trial may take: then a file system does not answer.
LONGEST = 60.0

#: Errors that say nothing about the machine; trial() does not remember them.
TRANSIENT = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)


@functools.lru_cache(maxsize=256)
def trial(
    run_command: RunCommand,
    isolated: tuple[str, ...],
    user: _types.UserName,
    euid: int,
    seccomp: _types.FilterName = "none",
) -> str:
    """Tries, once, whether an executor can isolate these here: "" if it can, or why not."""
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
    """Why this machine cannot isolate a Sandbox, or install its filter; [] if it can."""
    isolated = tuple(name for name, value in box.isolation().items() if value == "isolated")
    euid = os.geteuid()
    reason = trial(run_command, isolated, box._user_kind, euid)
    if reason and len(isolated) > 1:
        alone = {name: trial(run_command, (name,), box._user_kind, euid) for name in isolated}
        refused = [f"{name}='isolated': {why}" for name, why in alone.items() if why]
        if 0 < len(refused) < len(isolated):
            return refused
    if not reason and box.policy.seccomp != "none":
        reason = trial(run_command, (), "caller", euid, "builds")
    return [reason] if reason else []


def possible_isolation(run_command: RunCommand) -> dict[str, str]:
    """The most that an executor can isolate here, as keyword arguments of run_sandbox."""
    euid = os.geteuid()
    seccomp = {"seccomp": "none" if trial(run_command, (), "caller", euid, "builds") else "builds"}
    if not trial(run_command, tuple(ISOLATED), "caller", euid):
        return ISOLATED | seccomp
    works: tuple[str, ...] = ()
    # processes last: together with mounts it needs a new /proc, which may fail.
    for name in ("mounts", "network", "ipc", "processes"):
        if not trial(run_command, (*works, name), "caller", euid):
            works = (*works, name)
    return {name: "isolated" if name in works else "undefined" for name in ISOLATED} | seccomp
