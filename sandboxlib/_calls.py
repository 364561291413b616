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

from . import _executor
from .policy import ALL, Policy
from .result import Result
from .sandbox import CAPTURE, take_more
from .user import User

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .sandbox import Command, Path, Stream

RunIn = Callable[..., Result]


class Api:
    """The public functions of an executor, made of its run_in.

    possible: what it can isolate here, as its maximum_possible_isolation says.
    processes: the default of the form of 0.3; there was none then, and where one can be had it is
    better: what a command leaves behind is gone when the call returns.
    """

    def __init__(
        self,
        name: str,
        run_in: RunIn,
        possible: Callable[[], dict[str, str]],
        processes: str = "isolated",
    ) -> None:
        self._name = name
        self._run_in = run_in
        self._possible = possible
        self._processes = processes

    def maximum_possible_isolation(self) -> dict[str, str]:
        """All that can be isolated on this machine, as keyword arguments of run_sandbox: network,
        mounts, processes and ipc, 'isolated' or 'undefined'; and seccomp, 'builds' (the filter of
        sandboxlib), 'default' (the one of the executor's program) or 'none'.
        """
        return self._possible()

    def run_sandbox(self, *words: Any, **options: Any) -> Result:
        """Runs a command in a sandbox of its own; see sandboxlib.run_sandbox."""
        if _is_form_of_0_3(words, options):
            options.setdefault("processes", self._processes)
            return _form_of_0_3(self._run_in, *words, **options)
        return _first_form(self._run_in, *words, **options)

    def run_sandbox_with_redirection(self, *words: Any, **options: Any) -> int:
        """The same for the exit status alone; see sandboxlib.run_sandbox_with_redirection."""
        for name in ("stdout", "stderr"):
            if options.get(name, CAPTURE) == CAPTURE:
                options[name] = None
        return self.run_sandbox(*words, **options).exit

    def degrade_config_for_capabilities(
        self, in_config: Mapping[str, Any], warn: bool = True
    ) -> dict[str, Any]:
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
    run_in: RunIn,
    rootfs_path: Path,
    command: Command,
    cwd: Path | None = None,
    extra_env: Mapping[str, str] | None = None,
    network: str = "undefined",
    *,
    env: Mapping[str, str] | None = None,
    stdin: Stream | bytes = None,
    stdout: Stream = CAPTURE,
    stderr: Stream = CAPTURE,
    timeout: float | None = None,
    **options: Any,
) -> Result:
    more = take_more(options)
    box = _executor.sandbox_for(rootfs_path, {"network": network, **options})
    return run_in(box, command, cwd, extra_env, stdin, stdout, stderr, timeout, env, True, more)


def _form_of_0_3(
    run_in: RunIn,
    command: Command,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    filesystem_root: Path = "/",
    filesystem_writable_paths: str | Iterable[Path] | None = "all",
    mounts: str = "undefined",
    extra_mounts: Iterable[Any] | None = None,
    network: str = "undefined",
    stdout: Stream = CAPTURE,
    stderr: Stream = CAPTURE,
    *,
    extra_env: Mapping[str, str] | None = None,
    stdin: Stream | bytes = None,
    timeout: float | None = None,
    **options: Any,
) -> Result:
    more = take_more(options)
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
            "filesystem_writable_paths": filesystem_writable_paths,
            "devices": "root",
            **options,
        },
    )
    env = os.environ if env is None else env
    words = (cwd or "/", extra_env, stdin, stdout, stderr, timeout, env)
    return run_in(box, command, *words, True, more)


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
        words = (("filesystem_writable_paths", "all"), ("extra_mounts", ()), ("devices", "minimal"))
        for name, least in words:
            if config.get(name, least) not in (least, None, [], "root"):
                degraded[name] = least
                if warn:
                    _executor.warn(f"{executor} cannot mount here: going on with {name}={least!r}")
    return degraded
