# SPDX-License-Identifier: Apache-2.0
"""The call form and the names of sandboxlib 0.3, in one file that can be deleted one day.

    run_sandbox(command, cwd, env, filesystem_root, ...)

In this form the environment is the caller's unless `env` is given, the root is '/' unless
`filesystem_root` is given, and the command keeps all capabilities of its caller and the devices of
the root, and has no system call filter.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

from . import _types, errors
from ._spec import spec
from ._spec.command import OPTIONS, Command, unknown_option
from ._spec.mount import Mount
from ._spec.policy import ALL, Policy
from ._spec.spec import Spec
from ._spec.streams import CAPTURE
from ._spec.user import User
from .errors import SpecTypeError
from .result import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ParamSpec

    P = ParamSpec("P")

#: The keyword arguments of run_sandbox that are the Command's; limits are those of the Sandbox.
COMMAND_OPTIONS = OPTIONS - {"limits"}
SANDBOX_OPTIONS = (*Spec._fields[1:], "ids", "group", "groups", *Policy._fields)
KNOWN = COMMAND_OPTIONS | set(SANDBOX_OPTIONS)


class HostRootWarning(UserWarning):
    """A call in the form of sandboxlib 0.3 does not say filesystem_root=, so that its command runs
    on the root of the machine, with all that 0.3 gave it.
    """


class EarlierNames:
    """What an executor has of 0.3.

    processes: the default of a call in its form; there was no such isolation then, and where it can
    be had it is better: what a command leaves behind is gone when the call returns.
    """

    def __init__(
        self,
        name: str,
        run_command: Callable[[Spec, Command, bool], Result],
        possible: Callable[[], dict[str, str]],
        processes: str = "isolated",
    ) -> None:
        self._name = name
        self._run = run_command
        self._possible = possible
        self._processes = processes

    def run_sandbox_with_redirection(self, *args: _types.Any, **options: _types.Any) -> int:
        """Runs a command as run_sandbox does, and returns its exit status alone.

        stdout and stderr are files or descriptors, or None (the default): discarded.
        """
        for name in ("stdout", "stderr"):
            if options.get(name, CAPTURE) == CAPTURE:
                options[name] = None
        run_sandbox: Callable[..., Result] = self.run_sandbox  # type: ignore[attr-defined]
        return run_sandbox(*args, **options).exit

    def degrade_config_for_capabilities(
        self, in_config: Mapping[str, _types.Any], warn: bool = True
    ) -> dict[str, _types.Any]:
        """A copy of a configuration that asks for no more than can be had on this machine.

        in_config: keyword arguments of run_sandbox. What cannot be had of network, mounts,
        processes and ipc becomes 'undefined', and with mounts filesystem_writable_paths, tmp,
        extra_mounts and devices get their defaults; a seccomp that cannot be had, also that of a
        policy, becomes 'default' or 'none'. Nothing is added that was not asked for, and all else
        stays as it is: run_sandbox refuses what cannot be had of that (nesting, a list of devices).
        It is the one way to ask for less.
        warn: bool. True (the default): a UserWarning for each thing that is given up.
        """
        return degrade(self._name, self._possible(), in_config, warn)


def understands_0_3(run_sandbox: Callable[P, Result]) -> Callable[P, Result]:
    """Makes run_sandbox of an executor, which has the first form, understand that of 0.3 as well.

    Type checkers, inspect.signature and help() see the first form.
    """

    @functools.wraps(run_sandbox)
    def call(*args: _types.Any, **options: _types.Any) -> Result:
        if is_form_of_0_3(args[1:], options):
            return run_form_of_0_3(*args, **options)
        return run_sandbox(*args, **options)

    return call


def is_form_of_0_3(args: tuple[object, ...], options: Mapping[str, object]) -> bool:
    """Of `(str, str)`, which may be either, the first form is taken."""
    if "rootfs_path" in options:
        return False
    if "filesystem_root" in options or not args or isinstance(args[0], (list, tuple)):
        return True
    return len(args) == 1 and "command" not in options


def run_form_of_0_3(
    executor: EarlierNames,
    command: _types.Argv,
    cwd: _types.Path | None = None,
    env: _types.Env | None = None,
    filesystem_root: _types.Path | None = None,
    filesystem_writable_paths: str | Iterable[_types.Path] | None = "all",
    mounts: str = "undefined",
    extra_mounts: Iterable[_types.Any] | None = None,
    network: str = "undefined",
    stdout: _types.Sink = CAPTURE,
    stderr: _types.Sink = CAPTURE,
    **options: _types.Any,
) -> Result:
    """Runs a command as run_sandbox of 0.3 would, but for what it left behind."""
    if isinstance(command, Command):
        raise SpecTypeError(
            "the form of sandboxlib 0.3 takes no Command: run_sandbox(root, command)"
        )
    if not options.keys() <= KNOWN:
        raise unknown_option("run_sandbox", options, *SANDBOX_OPTIONS)
    given = {name: options.pop(name) for name in COMMAND_OPTIONS & options.keys()}
    given |= {"cwd": cwd or "/", "env": os.environ if env is None else env}
    made = Command(command, stdout=stdout, stderr=stderr, **given)
    extra_mounts = tuple(extra_mounts or ())
    # They were mounted where everybody saw them; here, where the command alone does.
    if extra_mounts or filesystem_writable_paths != "all":
        mounts = "isolated"
    asked = {
        **{"network": network, "mounts": mounts, "ipc": "undefined"},
        **{"processes": executor._processes, "devices": "root", "tmp": "root"},
        **({} if "policy" in options else _policy(options)),
        "extra_mounts": extra_mounts,
        "filesystem_writable_paths": filesystem_writable_paths or "none",
        **options,
    }
    box = spec.sandbox_for("/" if filesystem_root is None else filesystem_root, asked)
    if filesystem_root is None:
        text = "run_sandbox(command) runs on the root of this machine, with all capabilities and"
        text += " without a filter; say filesystem_root='/' if you mean that, or use"
        errors.warn(f"{text} Sandbox('/').run(command)", HostRootWarning)
    return executor._run(box, made, True)


def _policy(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """That of the form of 0.3; another uid than 0 would lose all that its caller has."""
    is_other = isinstance(options.get("user"), (int, User))
    return {**ALL, "capabilities": "default"} if is_other else ALL


def _least_filter(possible: str, asked: object) -> str | None:
    """What to ask for if the filter that was asked for cannot be had; None if it can."""
    return None if possible == "builds" or asked in (None, "none", possible) else possible


def degrade(
    executor: str,
    possible: Mapping[str, str],
    config: Mapping[str, Any],
    warn: bool = True,
) -> dict[str, Any]:
    """A copy of a configuration that asks an executor for no more than it can isolate here."""
    degraded = dict(config)
    policy = config.get("policy")
    asked = policy.seccomp if isinstance(policy, Policy) else config.get("seccomp")
    if (filter := _least_filter(possible["seccomp"], asked)) is not None:
        if isinstance(policy, Policy):
            degraded["policy"] = policy.replace(seccomp=filter)
        else:
            degraded["seccomp"] = filter
        if warn:
            errors.warn(f"{executor} has no such filter here: going on with seccomp={filter!r}")
    for name, value in possible.items():
        if config.get(name, "undefined") == "isolated" and value != "isolated":
            degraded[name] = value
            if warn:
                errors.warn(
                    f"{executor} cannot isolate {name} here: going on with {name}='{value}'"
                )
    for name, least in _TAKE_MOUNTS.items() if possible["mounts"] != "isolated" else ():
        if config.get(name, least) not in (least, None, [], "root"):
            degraded[name] = least
            if warn:
                errors.warn(f"{executor} cannot mount here: going on with {name}={least!r}")
    return degraded


#: Keyword arguments that take mounts, and those of their values that take none.
_TAKE_MOUNTS: dict[str, object] = {
    **{"filesystem_writable_paths": "all", "tmp": "root"},
    **{"extra_mounts": (), "devices": "minimal"},
}


def validate_extra_mounts(
    extra_mounts: Iterable[Mount | Sequence[object]] | None,
) -> list[list[object]]:
    """The mounts as lists of source, target, type and options, checked; SpecError."""
    found: list[list[object]] = []
    for mount in extra_mounts or ():
        if not isinstance(mount, (list, tuple)):
            raise SpecTypeError(f"not (source, target, type[, options]): {mount!r}")
        Mount.from_tuple(mount)
        source, target, kind, options = (*mount, None)[:4]
        found.append([source or "", target, kind or "", options or ""])
    return found


def argv_to_string(argv: Sequence[str]) -> str:
    """A command as one would type it in a shell."""
    import shlex

    return shlex.join(argv)
