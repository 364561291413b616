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
    from typing import Any, Concatenate, ParamSpec, Protocol, TypeAlias

    P = ParamSpec("P")
    Words: TypeAlias = list[Any] | tuple[_types.Path | bytes, ...]

    class BothForms(Protocol[P]):
        """A run_sandbox, for type checkers: the first form, and that of 0.3.

        The latter is told by a command that is a list, or by filesystem_root=, as at run time.
        """

        @_types.overload
        def __call__(self, *args: P.args, **options: P.kwargs) -> Result: ...
        @_types.overload
        def __call__(
            self,
            command: Words,
            cwd: _types.Path | None = None,
            env: _types.Env | None = None,
            filesystem_root: _types.Path | None = None,
            filesystem_writable_paths: _types.Writable | None = "all",
            mounts: _types.Kind = "undefined",
            extra_mounts: Iterable[Any] | None = None,
            network: _types.Kind = "undefined",
            stdout: _types.Sink = CAPTURE,
            stderr: _types.Sink = CAPTURE,
            **options: Any,
        ) -> Result: ...
        @_types.overload
        def __call__(
            self,
            command: _types.Argv,
            cwd: _types.Path | None = None,
            env: _types.Env | None = None,
            *,
            filesystem_root: _types.Path | None,
            **options: Any,
        ) -> Result: ...


#: The keyword arguments of run_sandbox that are the Command's; limits are those of the Sandbox.
COMMAND_OPTIONS = OPTIONS - {"limits"}
SANDBOX_OPTIONS = (*Spec._fields[1:], "ids", "group", "groups", *Policy._fields)
KNOWN = COMMAND_OPTIONS | set(SANDBOX_OPTIONS)


class HostRootWarning(UserWarning):
    """A call in the form of sandboxlib 0.3 lacks filesystem_root=, so its command runs on the root
    of the machine, with all the rights that 0.3 gave it.
    """


class _EarlierSpec(Spec):
    """A Sandbox of the form of 0.3, which took no notice of writable paths that the root lacks."""

    _may_lack_paths = True


class EarlierNames:
    """The functions of sandboxlib 0.3, for one executor.

    name: str, the executor. run_command, possible: its functions run_command and
    maximum_possible_isolation.
    processes: the default of a call in the form of 0.3. 0.3 could not isolate processes. An
    executor that can does so by default, as then no process of the command outlives the call.
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

        args, options: as in run_sandbox. stdout and stderr are files or descriptors; None (the
        default) discards them. Raises the errors of run_sandbox.
        """
        for name in ("stdout", "stderr"):
            if options.get(name, CAPTURE) == CAPTURE:
                options[name] = None
        run_sandbox: Callable[..., Result] = self.run_sandbox  # type: ignore[attr-defined]
        return run_sandbox(*args, **options).exit

    def degrade_config_for_capabilities(
        self, in_config: Mapping[str, _types.Any], warn: bool = True
    ) -> dict[str, _types.Any]:
        """Returns a copy of a configuration that asks for no more than this machine can isolate.
        No other call asks for less than it is told.

        in_config: mapping, keyword arguments of run_sandbox. Of network, mounts, processes and ipc
            those that this machine cannot isolate become 'undefined'. If mounts is one of them,
            filesystem_writable_paths, tmp, extra_mounts and devices get their defaults. A seccomp
            that this machine cannot install, also in a policy, becomes 'default' or 'none'. The
            copy gets no keyword that in_config lacks. All others stay as they are: run_sandbox
            refuses those that it cannot keep (nesting, a list of devices).
        warn: bool. True (the default): issues a UserWarning for each promise that is given up.
        """
        return degrade(self._name, self._possible(), in_config, warn)


def understands_0_3(run_sandbox: Callable[Concatenate[Any, P], Result]) -> BothForms[P]:
    """Decorates the run_sandbox of an executor, so that it understands the form of 0.3 as well.

    inspect.signature and help() still see the signature of the first form.
    """

    @functools.wraps(run_sandbox)
    def call(*args: _types.Any, **options: _types.Any) -> Result:
        if is_form_of_0_3(args[1:], options):
            return run_form_of_0_3(*args, **options)
        return run_sandbox(*args, **options)

    return call


def is_form_of_0_3(args: tuple[object, ...], options: Mapping[str, object]) -> bool:
    """Whether a call has the form of 0.3. `(str, str)` fits both, and counts as the first form.

    args: the positional arguments after the first.
    """
    if "rootfs_path" in options:
        return False
    if "filesystem_root" in options or not args or isinstance(args[0], (list, tuple)):
        return True
    return len(args) == 1 and "command" not in options


def run_form_of_0_3(
    executor: EarlierNames,
    command: _types.Argv | None = None,
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
    """Runs a command as run_sandbox of 0.3 did, except that no mount or process is left behind."""
    if command is None:
        raise SpecTypeError("run_sandbox lacks its arguments: run_sandbox(root, command)")
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
    # 0.3 mounted these in the caller's namespace; we mount them where only the command sees them.
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
    root = "/" if filesystem_root is None else filesystem_root
    box = spec.sandbox_for(root, asked, _EarlierSpec)
    if filesystem_root is None:
        text = "run_sandbox(command) runs on the root of this machine, with all capabilities and"
        text += " without a filter; say filesystem_root='/' if you mean that, or use"
        errors.warn(f"{text} Sandbox('/').run(command)", HostRootWarning)
    return executor._run(box, made, True)


def _policy(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The policy of the form of 0.3. A User gets 'default' capabilities: a uid that is not 0 would
    lose them at its exec, so 'all' is refused for it.
    """
    is_other = isinstance(options.get("user"), (int, User))
    return {**ALL, "capabilities": "default"} if is_other else ALL


def _least_filter(possible: str, asked: object) -> str | None:
    """The filter to ask for instead of one that this machine cannot install; None if it can."""
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


#: Keyword arguments that need mounts='isolated', each with a value that does not.
_TAKE_MOUNTS: dict[str, object] = {
    **{"filesystem_writable_paths": "all", "tmp": "root"},
    **{"extra_mounts": (), "devices": "minimal"},
}


def validate_extra_mounts(
    extra_mounts: Iterable[Mount | Sequence[object]] | None,
) -> list[list[object]]:
    """Checks mounts, and returns each as a list of source, target, type and options.

    extra_mounts: iterable of (source, target, type[, options]); None is the same as (). Raises
    SpecError for a mount that is wrong, SpecTypeError for one of another form.
    """
    mounts: list[list[object]] = []
    for mount in extra_mounts or ():
        if not isinstance(mount, (list, tuple)):
            raise SpecTypeError(f"not (source, target, type[, options]): {mount!r}")
        Mount.from_tuple(mount)
        source, target, kind, options = (*mount, None)[:4]
        mounts.append([source or "", target, kind or "", options or ""])
    return mounts


def argv_to_string(argv: Sequence[str]) -> str:
    """Returns a command as one would type it in a shell. argv: a list of str."""
    import shlex

    return shlex.join(argv)
