# SPDX-License-Identifier: Apache-2.0
"""The public functions of an executor: run_in, run_sandbox, and the names of sandboxlib 0.3."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .. import _types, compat
from .._spec import command as _command
from .._spec import spec
from .._spec.command import _NO_INPUTS, Command, command_of, unknown_option
from .._spec.limits import Limits
from .._spec.mount import Mount
from .._spec.overlay import Layers, Overlay
from .._spec.policy import Policy, Seccomp
from .._spec.spec import Spec
from .._spec.streams import CAPTURE
from .._spec.user import User
from .._values import AnyStore
from ..result import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Defaults of run_sandbox that differ from those of Sandbox: earlier callers rely on them.
OF_RUN_SANDBOX = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}


class Api(compat.EarlierNames):
    """The public functions of an executor, which call its run_command.

    possible: the maximum_possible_isolation of the executor.
    """

    def maximum_possible_isolation(self) -> dict[str, str]:
        """Returns the most that this machine can isolate, as keyword arguments of run_sandbox:
        network, mounts, processes and ipc, each 'isolated' or 'undefined'; and seccomp, 'builds'
        (the filter of sandboxlib), 'default' (the filter of the executor's program) or 'none'.
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
        """Runs a command in a Sandbox by this executor.

        box: Sandbox. command, options: as in Sandbox.run. fresh: bool, True by default: in new
        namespaces. Raises the errors of Sandbox.run.
        """
        made = command_of("run_in", command, options, "fresh")
        return self._run(box._for(made), made, fresh)

    @compat.understands_0_3
    def run_sandbox(
        self,
        /,
        rootfs_path: _types.Path | Overlay | Layers,
        command: _types.Argv | Command,
        cwd: _types.Path | None = None,
        extra_env: _types.Env | None = None,
        network: _types.Kind = "undefined",
        *,
        mounts: _types.Kind = "isolated",
        processes: _types.Kind = "isolated",
        ipc: _types.Kind = "isolated",
        hostname: str | None = None,
        extra_mounts: Iterable[Mount | Sequence[object]] | None = (),
        filesystem_writable_paths: _types.Writable | None = "all",
        tmp: _types.Tmp | None = "root",
        devices: _types.Devices = "minimal",
        resolv_conf: bool = False,
        policy: Policy | None = None,
        capabilities: _types.Capabilities | None = None,
        no_new_privs: bool | None = None,
        seccomp: _types.FilterName | Seccomp | None = None,
        nesting: bool | None = None,
        init: bool = True,
        user: int | _types.UserName | User | None = None,
        umask: int | None = None,
        limits: Limits | None = None,
        deterministic: bool = False,
        personality: _types.Literal["linux32"] | None = None,
        store: AnyStore | None = None,
        env: _types.Env | None = None,
        executable: _types.Path | bytes | None = None,
        stdin: _types.Stdin = None,
        stdout: _types.Sink = CAPTURE,
        stderr: _types.Sink = CAPTURE,
        inputs: _types.Inputs = _NO_INPUTS,
        outputs: Iterable[_types.Path] = (),
        changes: _types.Keep = "drop",
        timeout: float | None = None,
        grace: float = 0.0,
        max_output: int | str | None = None,
        on_overflow: _types.Overflow = "truncate",
        pass_fds: Iterable[int] = (),
        pty: bool | tuple[int, int] = False,
        pty_stderr: _types.Literal["terminal", "pipe"] = "terminal",
        **unknown: _types.NoReturn,
    ) -> Result:
        """Runs a command in a sandbox of its own, and returns `(exit, out, err)`.

        rootfs_path    str or path, the root directory of the command.
        command        a list of str, bytes or paths; or a str that names one program and is never
                       split. A program without a slash is looked up in the PATH of the sandbox,
                       inside the root. Or a Command, which takes none of its options beside it.
        cwd            str or path, inside the root. None (the default): '/'; with root '/' the
                       caller's directory, or '/' if the sandbox has no such directory.
        extra_env      mapping of str to str, added to BASE_ENVIRONMENT or env; None by default.
        env            mapping of str to str, in place of BASE_ENVIRONMENT; None by default.
        stdin          bytes, a file, or a descriptor. None (the default) or DEVNULL: empty.
        stdout, stderr CAPTURE (the default): the Result has the bytes. A file or a descriptor: the
                       command writes there. A function, Lines or Tee: gets the output as it
                       arrives. None or DEVNULL: discarded. stderr=STDOUT: both go where
                       stdout goes.
        timeout        float, seconds; then every process in the sandbox is killed, and
                       Result.timed_out is True. None (the default): no limit.

        These are as in Sandbox: network, mounts, processes, ipc, hostname, extra_mounts,
        filesystem_writable_paths, tmp, devices, resolv_conf, policy, init, user, umask, limits,
        deterministic, personality and store. Three defaults differ: network is 'undefined', the
        whole root is writable, and /tmp is the root's. These are as in Policy, with its defaults:
        capabilities, no_new_privs, seccomp and nesting; give either policy, or some of them. These
        are as in Command: executable, inputs, outputs, changes, grace, max_output, on_overflow,
        pass_fds, pty, pty_stderr. For rootfs_path an Overlay is taken as well.

        The function understands the form of sandboxlib 0.3 too (compat.py):

            run_sandbox(command, cwd=None, env=None, filesystem_root='/', ...)

        A call has that form if its first argument is a list, or the only one, or if it gives
        filesystem_root. Then env=None is the caller's environment, mounts is 'undefined' unless
        other arguments need a mount, the devices are those of the root, and the command keeps all
        capabilities of its caller, and has no system call filter. Without filesystem_root it issues
        a HostRootWarning. Two str are a rootfs_path and a command.

        Returns a Result, a tuple `(exit, out, err)`. exit is -n if signal n ended the command.

        The executor is the first of chroot, linux_user_chroot, user_namespace and bubblewrap that
        can keep all promises on this machine; Result.executor names it. The variable
        SANDBOXLIB_BACKEND chooses another.

        Raises SpecError (a ValueError) if an argument is wrong; UnsupportedError (an
        AssertionError) if no executor can keep all promises on this machine; SetupError (an
        OSError: FileNotFoundError, PermissionError, ...; and a RuntimeError) if the kernel refuses
        a step: a missing program, a bad cwd, a bad root; Unkillable if the kernel does not end a
        process that was killed; StatusLost if the exit status cannot be known.
        """
        given = locals()  # read before any other name is assigned
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
    rootfs_path: _types.Path | Overlay | Layers,
    command: _types.Argv | Command,
    cwd: _types.Path | None,
    extra_env: _types.Env | None,
    options: dict[str, Any],
) -> tuple[Spec, Command]:
    """The Sandbox and the Command of a call in the first form. options: of both. SpecError."""
    if not options.keys() <= compat.KNOWN:
        raise unknown_option(call, options, *compat.SANDBOX_OPTIONS)
    given = {name: options.pop(name) for name in compat.COMMAND_OPTIONS & options.keys()}
    given |= {k: v for k, v in (("cwd", cwd), ("extra_env", extra_env)) if v is not None}
    made = command_of(call, command, given)
    return spec.sandbox_for(rootfs_path, {**OF_RUN_SANDBOX, **options})._for(made), made
