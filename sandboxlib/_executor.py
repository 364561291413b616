# SPDX-License-Identifier: Apache-2.0
"""What every executor shares: from a checked call to a Result.

An executor is a module with these names:

    NAME
    CAPABILITIES                    the earlier table: keyword -> values that it can deliver
    why_not() -> str                "" where it works on this machine, otherwise why not
    refusals(box) -> list[str]      what of a Sandbox it cannot promise
    run_command(box, command, fresh)   runs a Command, or raises UnsupportedError; the limits of
                                    the Command are in those of the Sandbox already
    run_in(box, command, ...)       the same of an argv and options too: see Sandbox.run
    plan_of(box) -> Plan            native ones: how the C core runs a command in a Sandbox
    maximum_possible_isolation(), run_sandbox(), run_sandbox_with_redirection(),
    degrade_config_for_capabilities()
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from time import monotonic

from . import _plan, _process, errors
from ._host import machine as _machine
from .command import Command
from .limits import Limits
from .policy import ALL, CAPABILITIES, DEFAULT_CAPABILITIES, Policy
from .result import Result
from .sandbox import Mount, Sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._types import Path

ISOLATED = {
    "network": "isolated",
    "mounts": "isolated",
    "processes": "isolated",
    "ipc": "isolated",
}
UNDEFINED = dict.fromkeys(ISOLATED, "undefined")
#: The root as the caller has it, whatever is isolated.
AS_IT_IS = {"filesystem_writable_paths": "all", "tmp": "root"}

RunCommand = Callable[[Sandbox, Command, bool], Result]


def run_native(executor: str, plan: _plan.Plan, command: Command, fresh: bool) -> Result:
    """Runs a command through the C core."""
    began = monotonic()
    run = _process.Run(plan, _plan.job_of(command, plan.box), command)
    return _process.complete(run, fresh, executor, began, plan.isolation)


@functools.lru_cache(maxsize=16)
def _bare_plan(
    keyring: bool, limits: Limits | None, umask: int | None, personality: str | None
) -> _plan.Plan:
    """Where the program of an executor runs: the caller's own place, nothing taken away."""
    words: dict[str, Any] = {**UNDEFINED, "policy": Policy(**ALL, no_new_privs=False)}
    box = Sandbox("/", **words, limits=limits, umask=umask, personality=personality)
    plan = _plan.Plan(box, None)
    plan.place.keyring = int(keyring)
    plan.place.guard_keyring = 0  # the program is the command's parent, and the caller its
    return plan


def run_tool(
    executor: str,
    box: Sandbox,
    job: _plan.Job,
    command: Command,
    start: float,
    isolation: Mapping[str, str],
    moved: Mapping[int, int],
    began: Callable[[_process.Run], None] | None = None,
) -> Result:
    """Runs the program of an executor through the C core, in a session of its own.

    job: the program. command: what it runs, whose streams and times are those of the run.
    start: of monotonic(), when the call began. moved: see Rare. began: see _process.complete.
    """
    if command.pty:
        raise errors.UnsupportedError(f"{executor}: a terminal takes an executor without a program")
    if command.grace:  # SIGTERM would end the program, and with it all the rest
        raise errors.UnsupportedError(f"{executor}: grace takes an executor without a program")
    # No such program makes a session keyring of its own, which belongs to the isolation of IPC.
    plan = _bare_plan(box.ipc == "isolated", box.limits, box.umask, box.personality)
    run = _process.Run(plan, job, command, moved=moved)
    return _process.complete(run, True, executor, start, dict(isolation), began)


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """A warning that names the line which called this package."""
    import sys
    import warnings

    ours = os.path.dirname(__file__)
    level = 1
    while os.path.dirname(sys._getframe(level).f_code.co_filename) == ours:
        level += 1
    warnings.warn(text, category, stacklevel=level + 1)


_cached = functools.lru_cache(maxsize=64, typed=True)(Sandbox)
_cached_policy = functools.lru_cache(maxsize=64, typed=True)(Policy)
_POLICY = frozenset(Policy._fields)


def _policy_for(words: dict[str, Any]) -> Policy:
    """Takes the words of a Policy out of those of a call; a file is read in each call."""
    if "policy" in words:
        names = ", ".join(sorted(_POLICY & words.keys()))
        raise errors.SpecError(
            f"there is a policy, and {names} as well: say all of it in the Policy"
        )
    given = {name: words.pop(name) for name in _POLICY & words.keys()}
    if isinstance(given.get("capabilities"), list):
        given["capabilities"] = tuple(given["capabilities"])
    if not isinstance(given.get("seccomp", ""), str):
        return Policy(**given)
    try:
        return _cached_policy(**given)
    except TypeError:  # something that cannot be hashed, or is wrong
        return Policy(**given)


def sandbox_for(root: Path, options: dict[str, Any]) -> Sandbox:
    """The Sandbox of a one-shot call; the same words give the same one, compiled once.

    What holds a relative path is made anew each time: it changes with the caller's directory.
    """
    if not _POLICY.isdisjoint(options):
        options = dict(options)
        options["policy"] = _policy_for(options)
    words = {name: tuple(v) if type(v) is list else v for name, v in options.items()}
    mounts = words.get("extra_mounts") or ()
    is_absolute = isinstance(root, str) and root.startswith("/")
    if not is_absolute or type(mounts) is not tuple or not all(type(m) is Mount for m in mounts):
        return Sandbox(root, **options)
    try:
        return _cached(root, **words)  # type: ignore[arg-type]
    except TypeError:  # something that cannot be hashed, or is wrong: the next line says it
        return Sandbox(root, **options)


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
    words: dict[str, Any] = {**UNDEFINED, **dict.fromkeys(isolated, "isolated"), **AS_IT_IS}
    words["policy"] = Policy(seccomp=seccomp)
    try:
        result = run_command(Sandbox("/", **words, user=user), _TRIAL, True)
    except errors.SetupError as error:
        if error.errno in TRANSIENT:
            raise
        return "" if error.step == "exec" else str(error)
    except errors.SandboxError as error:
        return str(error)
    return f"a trial of it ended with exit status {result.exit}"


def nesting_refused(box: Sandbox, in_user_namespace: bool) -> list[str]:
    """Why commands may make no sandboxes of their own, where that is asked for."""
    if not box.policy.nesting:
        return []
    from . import _nesting

    return _nesting.refused(box, in_user_namespace, os.geteuid())


def limits_refused(
    box: Sandbox, changes_ids: bool = False, in_user_namespace: bool = False
) -> list[str]:
    """Which limits the kernel would take, and not enforce, as the command is exempt.

    changes_ids: the command has the ids of its User, if there is one, outside as well.
    in_user_namespace: its capabilities are those of a user namespace, which exempt from nothing.
    """
    limits = box.limits
    if limits is None or (limits.processes is None and limits.locked_memory is None):
        return []
    is_other = changes_ids and box._ids is not None and box._ids[0] != 0
    if is_other and isinstance(box.policy.capabilities, str):  # it has none
        return []
    found = []
    has = () if in_user_namespace else _capabilities_of(box)
    if limits.processes is not None:
        if _machine.is_root_of_the_machine() and not is_other:
            found = ["Limits.processes: the kernel exempts uid 0; give other ids, or Limits.pids"]
        elif "sys_admin" in has or "sys_resource" in has:
            found = ["Limits.processes: exempt is who has sys_admin or sys_resource"]
    if limits.locked_memory is not None and "ipc_lock" in has:
        found.append("Limits.locked_memory: the kernel exempts who has ipc_lock")
    return found


def ids_refused(box: Sandbox) -> list[str]:
    """Whether root's command would silently lose the capabilities that it is to keep."""
    if (
        box._ids is None
        or box._ids[0] == 0
        or box.policy.capabilities != "all"
        or os.geteuid() != 0
    ):
        return []
    text = "a uid other than 0 keeps none when it is taken; name those that it needs"
    return [f"capabilities='all' with user={box.user!r}: {text}"]


def read_only_refused(box: Sandbox) -> list[str]:
    """Why a command that shares the caller's processes could write outside a read-only root.

    It enters /proc/PID/root of, or traces, each process that has its ids and no capability beyond
    its own: with setuid that is one of any user, and with sys_ptrace any process. In a user
    namespace of its own it may do neither to a process outside.
    """
    if box.processes == "isolated" or box.filesystem_writable_paths == "all":
        return []
    asked = box.policy.capabilities
    if asked == "all" or _machine.has_one_id():  # 'all' makes the root writable again by itself
        return []
    remedy = "isolate processes, or say filesystem_writable_paths='all'"
    if os.geteuid() == 0:
        have = int(_machine.status("CapEff") or "0", 16)
        names = DEFAULT_CAPABILITIES if asked == "default" else () if asked == "none" else asked
        bad = [
            name
            for name in ("setuid", "sys_ptrace")
            if name in names and have >> CAPABILITIES.index(name) & 1
        ]
        if not bad:
            return []
        remedy += f", or give capabilities without {' and '.join(bad)}"
    text = "a read-only root, as a command could write through the processes of others"
    return [f"processes='undefined' with {text} (/proc/PID/root): {remedy}"]


def _capabilities_of(box: Sandbox) -> Sequence[str]:
    """What a command keeps of the caller's, of those beyond the default."""
    asked = box.policy.capabilities
    if asked in ("default", "none") or _machine.is_in_user_namespace():
        return ()
    have = int(_machine.status("CapEff") or "0", 16)
    names = CAPABILITIES if asked == "all" else asked
    return [name for name in names if have >> CAPABILITIES.index(name) & 1]


def native_refusals(run_command: RunCommand, box: Sandbox) -> list[str]:
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
