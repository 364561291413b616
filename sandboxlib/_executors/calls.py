# SPDX-License-Identifier: Apache-2.0
"""The public functions of an executor: run_in, run_sandbox, and the names of sandboxlib 0.3."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .. import _types, compat
from .._spec import command as _command
from .._spec import spec
from .._spec.command import Command, command_of, unknown_option
from .._spec.limits import Limits
from .._spec.mount import Mount
from .._spec.policy import Policy, Seccomp
from .._spec.spec import Spec
from .._spec.streams import CAPTURE
from .._spec.user import User
from ..result import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Defaults of run_sandbox that are not those of Sandbox: what its earlier callers have.
OF_RUN_SANDBOX = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}


class Api(compat.EarlierNames):
    """The public functions of an executor, made of its run_command.

    possible: what it can isolate here, as its maximum_possible_isolation says.
    """

    def maximum_possible_isolation(self) -> dict[str, str]:
        """All that can be isolated on this machine, as keyword arguments of run_sandbox: network,
        mounts, processes and ipc, 'isolated' or 'undefined'; and seccomp, 'builds' (the filter of
        sandboxlib), 'default' (the one of the executor's program) or 'none'.
        """
        return self._possible()

    def run_in(
        self,
        box: Spec,
        command: _types.Argv | Command,
        /,
        *,
        fresh: bool = True,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> Result:
        """Runs a command in a Sandbox, by this executor; see Sandbox.run."""
        made = command_of("run_in", command, options, "fresh")
        return self._run(box._for(made), made, fresh)

    @compat.understands_0_3
    def run_sandbox(
        self,
        rootfs_path: _types.Path,
        command: _types.Argv | Command,
        cwd: _types.Path | None = None,
        extra_env: _types.Env | None = None,
        network: str = "undefined",
        *,
        mounts: str = "isolated",
        processes: str = "isolated",
        ipc: str = "isolated",
        hostname: str | None = None,
        extra_mounts: Iterable[Mount | Sequence[object]] | None = (),
        filesystem_writable_paths: str | Iterable[_types.Path] | None = "all",
        tmp: str | None = "root",
        devices: str | Iterable[_types.Path] = "minimal",
        resolv_conf: bool = False,
        policy: Policy | None = None,
        capabilities: str | Iterable[str] | None = None,
        no_new_privs: bool | None = None,
        seccomp: Seccomp | None = None,
        nesting: bool | None = None,
        init: bool = True,
        user: int | str | User | None = None,
        umask: int | None = None,
        limits: Limits | None = None,
        deterministic: bool = False,
        personality: str | None = None,
        env: _types.Env | None = None,
        stdin: _types.Stdin = None,
        stdout: _types.Sink = CAPTURE,
        stderr: _types.Sink = CAPTURE,
        timeout: float | None = None,
        grace: float = 0.0,
        max_output: int | str | None = None,
        on_overflow: str = "truncate",
        pass_fds: Iterable[int] = (),
        pty: bool | tuple[int, int] = False,
        **unknown: _types.NoReturn,
    ) -> Result:
        """Runs a command in a sandbox of its own, and returns `(exit, out, err)`.

        rootfs_path    the root directory of the command.
        command        a list of str, bytes or paths; or a str that names one program and is never
                       split. A program without a slash is looked up in the PATH of the sandbox,
                       inside the root. Or a Command, beside which none of its options is given.
        cwd            inside the root. None (the default): '/'; where the root is '/', the caller's
                       directory, or '/' if the sandbox has no such directory.
        extra_env      added to BASE_ENVIRONMENT, which is all that the command finds otherwise.
        env            instead of BASE_ENVIRONMENT.
        stdin          None (the default): empty. bytes, a file, or a descriptor.
        stdout, stderr CAPTURE (the default): returned as bytes. A file or a descriptor: written
                       there, None is returned. A function, Lines or Tee: handed there as it comes.
                       None: discarded. stderr=STDOUT: goes where stdout goes.
        timeout        seconds; then everything in the sandbox is killed, and Result.timed_out is
                       True.

        network, mounts, processes, ipc, hostname, extra_mounts, filesystem_writable_paths, tmp,
        devices, resolv_conf, policy, init, user, umask, limits, deterministic and personality are
        those of Sandbox. Its defaults differ: here network is 'undefined', the root can be written
        to, and /tmp is the root's. capabilities, no_new_privs, seccomp and nesting are those of
        Policy, with its defaults: give either some of them, or policy. grace, max_output,
        on_overflow, pass_fds and pty are those of Command.

        The form of sandboxlib 0.3 is understood too (compat.py):

            run_sandbox(command, cwd=None, env=None, filesystem_root='/', ...)

        if the first argument is a list, or the only one, or filesystem_root is given. There
        env=None is the caller's environment, mounts is 'undefined' unless something has to be
        mounted, the devices are those of the root, and the command keeps all capabilities of its
        caller, and has no system call filter. Without filesystem_root it raises a HostRootWarning.
        Two str are a rootfs_path and a command.

        Returns a Result, a tuple `(exit, out, err)`. exit is -n where signal n ended the command.

        The executor is the first of chroot, linux_user_chroot, user_namespace and bubblewrap that
        can promise all of this here; Result.executor names it. SANDBOXLIB_BACKEND chooses another.

        Raises SpecError (a ValueError) for a request that makes no sense, UnsupportedError (an
        AssertionError) for one that no executor can keep here, and SetupError (an OSError:
        FileNotFoundError, PermissionError, ...; and a RuntimeError) where the kernel refuses a
        step: a missing program, a bad cwd, a bad root. Unkillable if the kernel does not end what
        was killed, StatusLost if nobody knows how the command ended.
        """
        given = locals()  # of those below, only what is not the default
        options = {name: given[name] for name, v in _DEFAULTS.items() if given[name] is not v}
        if network != "undefined":
            options["network"] = network
        box, made = of_first_form(
            "run_sandbox", rootfs_path, command, cwd, extra_env, {**options, **unknown}
        )
        return self._run(box, made, True)


_DEFAULTS: Mapping[str, object] = Api.run_sandbox.__wrapped__.__kwdefaults__  # type: ignore[attr-defined]


def of_first_form(
    call: str,
    rootfs_path: _types.Path,
    command: _types.Argv | Command,
    cwd: _types.Path | None,
    extra_env: _types.Env | None,
    options: dict[str, Any],
) -> tuple[Spec, Command]:
    """The Sandbox and the Command of a call. options: those of both. SpecError."""
    if not options.keys() <= compat.KNOWN:
        raise unknown_option(call, options, *compat.SANDBOX_OPTIONS)
    given = {name: options.pop(name) for name in compat.COMMAND_OPTIONS & options.keys()}
    given |= {k: v for k, v in (("cwd", cwd), ("extra_env", extra_env)) if v is not None}
    made = command_of(call, command, given)
    return spec.sandbox_for(rootfs_path, {**OF_RUN_SANDBOX, **options})._for(made), made
