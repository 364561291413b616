# SPDX-License-Identifier: Apache-2.0
"""Both forms of a call, as one function each for every executor.

    run_sandbox(rootfs_path, command, cwd, extra_env, network)     the first form, and ours
    run_sandbox(command, cwd, env, filesystem_root, ...)           sandboxlib 0.3

What differs, apart from the order: in the form of 0.3 the environment is the caller's unless `env`
is given, the root is '/' by default, and the command keeps all capabilities of its caller and the
devices of the root, and has no system call filter.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping

from . import _executor, _types
from ._streams import CAPTURE
from .command import OPTIONS, Command, command_of, unknown_option
from .errors import SpecTypeError
from .policy import ALL, Policy
from .result import Result
from .sandbox import Sandbox
from .user import User

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The keyword arguments of run_sandbox that are the Command's; limits are those of the Sandbox.
_OPTIONS = OPTIONS - {"limits"}
_OF_A_SANDBOX = (*Sandbox._fields[1:], "ids", "group", "groups", *Policy._fields)
_KNOWN = _OPTIONS | set(_OF_A_SANDBOX)


#: Defaults of run_sandbox that are not those of Sandbox: what its earlier callers have.
OF_RUN_SANDBOX = {"filesystem_writable_paths": "all", "tmp": "root"}


class Api:
    """The public functions of an executor, made of its run_command.

    possible: what it can isolate here, as its maximum_possible_isolation says.
    processes: the default of the form of 0.3; there was none then, and where one can be had it is
    better: what a command leaves behind is gone when the call returns.
    """

    def __init__(
        self,
        name: str,
        run_command: _executor.RunCommand,
        possible: Callable[[], dict[str, str]],
        processes: str = "isolated",
    ) -> None:
        self._name = name
        self._run = run_command
        self._possible = possible
        self._processes = processes

    def maximum_possible_isolation(self) -> dict[str, str]:
        """All that can be isolated on this machine, as keyword arguments of run_sandbox: network,
        mounts, processes and ipc, 'isolated' or 'undefined'; and seccomp, 'builds' (the filter of
        sandboxlib), 'default' (the one of the executor's program) or 'none'.
        """
        return self._possible()

    def run_in(
        self,
        box: Sandbox,
        command: _types.Argv | Command,
        /,
        *,
        fresh: bool = True,
        **options: _types.Unpack[_types.CommandOptions],
    ) -> Result:
        """Runs a command in a Sandbox, by this executor; see Sandbox.run."""
        made = command_of("run_in", command, options, "fresh")
        return self._run(box._for(made), made, fresh)

    def run_sandbox(self, *words: _types.Any, **options: _types.Any) -> Result:
        """Runs a command in a sandbox of its own; see sandboxlib.run_sandbox."""
        if _is_form_of_0_3(words, options):
            options.setdefault("processes", self._processes)
            return _form_of_0_3(self._run, *words, **options)
        return _first_form(self._run, *words, **options)

    def run_sandbox_with_redirection(self, *words: _types.Any, **options: _types.Any) -> int:
        """The same for the exit status alone; see sandboxlib.run_sandbox_with_redirection."""
        for name in ("stdout", "stderr"):
            if options.get(name, CAPTURE) == CAPTURE:
                options[name] = None
        return self.run_sandbox(*words, **options).exit

    def degrade_config_for_capabilities(
        self, in_config: Mapping[str, _types.Any], warn: bool = True
    ) -> dict[str, _types.Any]:
        """A copy of a configuration that asks for no more than can be isolated here.

        With warn=True (the default) there is a UserWarning for each thing that is given up.
        """
        return _degrade(self._name, self._possible(), in_config, warn)


def _is_form_of_0_3(words: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Of `(str, str)`, which may be either, the first form is taken."""
    if "rootfs_path" in options:
        return False
    if "filesystem_root" in options or not words or isinstance(words[0], (list, tuple)):
        return True
    return len(words) == 1 and "command" not in options


def _first_form(
    run_command: _executor.RunCommand,
    rootfs_path: _types.Path,
    command: _types.Argv | Command,
    cwd: _types.Path | None = None,
    extra_env: _types.Env | None = None,
    network: str = "undefined",
    **options: Any,
) -> Result:
    options["network"] = network
    box, made = of_first_form("run_sandbox", rootfs_path, command, cwd, extra_env, options)
    return run_command(box, made, True)


def of_first_form(
    call: str,
    rootfs_path: _types.Path,
    command: _types.Argv | Command,
    cwd: _types.Path | None,
    extra_env: _types.Env | None,
    options: dict[str, Any],
) -> tuple[Sandbox, Command]:
    """The Sandbox and the Command of a call. options: those of both. SpecError."""
    if not options.keys() <= _KNOWN:
        raise unknown_option(call, options, *_OF_A_SANDBOX)
    given = {name: options.pop(name) for name in _OPTIONS & options.keys()}
    given |= {k: v for k, v in (("cwd", cwd), ("extra_env", extra_env)) if v is not None}
    made = command_of(call, command, given)
    return _executor.sandbox_for(rootfs_path, {**OF_RUN_SANDBOX, **options})._for(made), made


def _form_of_0_3(
    run_command: _executor.RunCommand,
    command: _types.Argv,
    cwd: _types.Path | None = None,
    env: _types.Env | None = None,
    filesystem_root: _types.Path = "/",
    filesystem_writable_paths: str | Iterable[_types.Path] | None = "all",
    mounts: str = "undefined",
    extra_mounts: Iterable[Any] | None = None,
    network: str = "undefined",
    stdout: _types.Sink = CAPTURE,
    stderr: _types.Sink = CAPTURE,
    **options: Any,
) -> Result:
    if isinstance(command, Command):
        raise SpecTypeError(
            "the form of sandboxlib 0.3 takes no Command: run_sandbox(root, command)"
        )
    if not options.keys() <= _KNOWN:
        raise unknown_option("run_sandbox", options, *_OF_A_SANDBOX)
    given = {name: options.pop(name) for name in _OPTIONS & options.keys()}
    given |= {"cwd": cwd or "/", "env": os.environ if env is None else env}
    made = Command(command, stdout=stdout, stderr=stderr, **given)
    extra_mounts = tuple(extra_mounts or ())
    # They were mounted where everybody saw them; here, where the command alone does.
    if extra_mounts or filesystem_writable_paths != "all":
        mounts = "isolated"
    box = _executor.sandbox_for(
        filesystem_root,
        {
            "network": network,
            "mounts": mounts,
            "ipc": "undefined",
            **({} if "policy" in options else _policy(options)),
            "extra_mounts": extra_mounts,
            "filesystem_writable_paths": filesystem_writable_paths or "none",
            "tmp": "root",
            "devices": "root",
            **options,
        },
    )
    return run_command(box, made, True)


def _policy(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """That of the form of 0.3; another uid than 0 would lose all that its caller has."""
    is_other = isinstance(options.get("user"), (int, User))
    return {**ALL, "capabilities": "default"} if is_other else ALL


def _least_filter(possible: str, asked: object) -> str | None:
    """What to ask for if the filter that was asked for cannot be had; None if it can."""
    return None if possible == "builds" or asked in (None, "none", possible) else possible


def _degrade(
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
            _executor.warn(f"{executor} has no such filter here: going on with seccomp={filter!r}")
    for name, value in possible.items():
        if config.get(name, "undefined") == "isolated" and value != "isolated":
            degraded[name] = value
            if warn:
                _executor.warn(
                    f"{executor} cannot isolate {name} here: going on with {name}='{value}'"
                )
    if possible["mounts"] != "isolated":
        options = (
            *(("filesystem_writable_paths", "all"), ("tmp", "root")),
            *(("extra_mounts", ()), ("devices", "minimal")),
        )
        for name, least in options:
            if config.get(name, least) not in (least, None, [], "root"):
                degraded[name] = least
                if warn:
                    _executor.warn(f"{executor} cannot mount here: going on with {name}={least!r}")
    return degraded
