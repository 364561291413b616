# SPDX-License-Identifier: Apache-2.0
"""Sandbox and the functions of the package: a value of _spec, and what runs it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable

from . import _types
from ._choice import choose
from ._executors.calls import of_first_form
from ._spec import command as _command
from ._spec.command import Command, command_of
from ._spec.spec import Spec
from ._types import overload
from .errors import SandboxError
from .result import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


run_sandbox = choose.api.run_sandbox


class _Later:
    """A module that is imported when it is used: so `import sandboxlib` has less to do."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        import importlib

        return getattr(importlib.import_module(self._name, __package__), name)


if TYPE_CHECKING:
    from ._choice import doctor as _doctor
    from ._concurrent import aio, process
    from ._concurrent import map as _map
else:
    aio, process = _Later("._concurrent.aio"), _Later("._concurrent.process")
    _map, _doctor = _Later("._concurrent.map"), _Later("._choice.doctor")


class Sandbox(Spec):
    """A place to run commands in. One Sandbox runs many, from any number of threads at once.

    What no command can change of it (namespaces, mounts) is kept from run to run: docs/slots.md.
    close(), or the end of a `with`, ends that; the next run makes it anew.

    root: str or path     the root directory of the commands.
    network               'isolated' (the default): lo, up, and nothing else. 'undefined': the
                          caller's.
    mounts                'isolated' (the default): a mount namespace of its own, whose root is
                          `root`; nothing is ever mounted in the caller's. 'undefined': chroot(2),
                          from which a command with sys_chroot can escape.
    processes             'isolated' (the default): a pid namespace; whatever the command started
                          is gone when the call returns. 'undefined': the caller's processes are
                          visible, and only the command's process group ends with it.
    ipc                   'isolated' (the default): System V IPC, POSIX message queues, hostname
                          and session keyring of its own. 'undefined': the caller's.
    hostname: str         64 bytes at most; None leaves it as it is.
    extra_mounts          a list of Mount, or of earlier (source, target, type, options) tuples,
                          mounted in this order, after /tmp.
    filesystem_writable_paths   'none': the root, with every mount below it, is read-only. 'all'. Or
                          a list of paths in the root that stay writable while the rest is
                          read-only. extra_mounts are writable unless they say otherwise. None (the
                          default): 'none' with mounts='isolated', otherwise 'all'.
    tmp                   'private': an empty tmpfs on /tmp, new for each command, unless an extra
                          mount lies there; a root without a directory /tmp gets none. 'root': what
                          the root has there. None (the default): 'private' with mounts='isolated',
                          otherwise 'root'.
    resolv_conf: bool     True: the caller's /etc/resolv.conf, read-only, for commands that look up
                          names; it takes network='undefined'. False (the default): the root's.
    devices               'minimal' (the default): with mounts='isolated' no device node of the root
                          works, and a root that has a directory /dev gets, read-only, what
                          Mount.dev() has, unless an extra mount lies on /dev. A list of paths below
                          /dev, like ['/dev/kvm']: these devices of the caller's as well. 'root':
                          what the root has; with root='/' the machine's disks.
    policy: Policy        what the commands may do: capabilities, no_new_privs, system calls,
                          sandboxes of their own. Policy() by default: twelve capabilities, and a
                          filter of system calls.
    init: bool            True (the default): with processes='isolated' pid 1 is a reaper. False:
                          it is the command itself, which begins sooner; nobody reaps orphans,
                          SIGTERM that it sends to itself is ignored, abort() ends it with -11.
    user                  None (the default): the ids of the caller. 'caller': the same. 'root': uid
                          and gid 0. As root that is no difference; other callers appear as root in
                          a user namespace in which no other id exists. 'ranges': the same, with the
                          ids that /etc/subuid and /etc/subgid give to the caller from 1 on
                          (newuidmap(1)), as chown(2) and package managers need it. A User: these
                          ids, and no other group than those that it names; a uid is short for
                          User(uid). Where a namespace has a single id, it is this one, and the
                          caller may have no other groups, which cannot be dropped there.
                          The reaper changes ids, so a User takes processes='isolated' and
                          init=True. Another uid than 0 has the capabilities that the policy names,
                          and of 'default' none; 'all' is refused.
    umask: int            of the command; None (the default): the caller's.
    personality           'linux32': the command sees a 32-bit machine (uname -m, personality(2)).
                          None (the default): the caller's.
    limits: Limits        how much the commands may use.
    deterministic: bool   True: what differs from machine to machine, and finds its way into what
                          is built, is the same: hostname ('sandbox', unless another is given),
                          uid and gid (0, unless others are given) and /etc/passwd and /etc/group
                          with root, build (1000) and nobody; umask 022, unless another is given;
                          TZ=UTC, LC_ALL=C and SOURCE_DATE_EPOCH (the caller's, or 315532800: the
                          year 1980), unless the environment of the command has others; addresses
                          are not randomised (personality(2)). It takes mounts='isolated'. The
                          number of CPUs is Limits.cpuset.

    Raises SpecError for everything that makes no sense.
    """

    __module__ = "sandboxlib"  # as callers import it, and pickles name it

    def run(
        self,
        command: _types.Argv | Command,
        /,
        *,
        fresh: bool = False,
        check: bool = False,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> Result:
        """Runs a command in the sandbox and waits for its end.

            box.run(["cc", "-c", "a.c"], cwd="/src", timeout=60)
            box.run(Command(["cc", "-c", "a.c"], "/src", timeout=60))

        command: a Command; or its argv, a list of str, bytes or paths, or a str that names one
            program.
        fresh: bool. True: every namespace is made anew for this run, as by run_sandbox. False (the
            default): those that a command cannot change serve one run after the other.
        check: bool. True: CommandFailed unless Result.ok. False (the default): the Result says it.
        options: the keyword arguments of Command: cwd, extra_env, env, stdin, stdout, stderr,
            limits, timeout, grace, max_output, on_overflow, pass_fds, pty. A Command has its own,
            and none is given beside it.

        Raises SpecError, UnsupportedError and SetupError as run_sandbox does; Unkillable if the
        kernel does not end what was killed; StatusLost if nobody knows how the command ended.
        """
        if options or type(command) is not Command:
            command = command_of("run", command, options, "fresh", "check")
        box = self if command.limits is None else self._for(command)
        result = choose.run_command(box, command, fresh)
        return result.check() if check else result

    def start(
        self,
        command: _types.Argv | Command,
        /,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> process.Process:
        """Starts a command and returns a Process, which is much like a subprocess.Popen.

        command: a Command, or its argv.
        options: those of Command, see run(); but no timeout and no grace, as Process.wait() has a
            timeout, and no max_output, Lines or Tee, which take somebody who always reads. With
            stdin=CAPTURE the command reads from a pipe, whose other end is Process.stdin; outputs
            that are captured are files, Process.stdout and .stderr. With pty all that is written
            to Process.stdin is what somebody types.

        Every namespace is made anew. Raises as run() does, also where there is no such program; and
        UnsupportedError if the executor drives a program of its own (linux_user_chroot,
        bubblewrap).
        """
        return process.start(self, command_of("start", command, options))

    async def run_async(
        self,
        command: _types.Argv | Command,
        /,
        *,
        fresh: bool = False,
        check: bool = False,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> Result:
        """As run(), in an event loop: of asyncio, or of what anyio knows (`sandboxlib[anyio]`).

        No thread is made; the loop waits for many runs at once. To start one takes the loop as
        long as a run takes to start, below a millisecond mostly. A cancellation kills the run, and
        waits for its end. The arguments are those of run(); UnsupportedError as in start().
        """
        made = command_of("run_async", command, options, "fresh", "check")
        result = await aio.run(self, made, fresh)
        return result.check() if check else result

    def start_async(
        self,
        command: _types.Argv | Command,
        /,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> aio.AsyncProcess:
        """As start(), in an event loop; the command starts when it is entered:

        async with box.start_async(["make"]) as process:
            async for line in process.stdout:
                ...
        """
        return aio.start(self, command_of("start_async", command, options))

    @overload
    def map(
        self,
        commands: Iterable[_types.Argv | Command],
        jobs: int | None = None,
        *,
        ordered: bool = True,
        on_failure: _types.Literal["stop"] = "stop",
        progress: Callable[[int, Result], object] | None = None,
        fresh: bool = False,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> Generator[Result, None, None]: ...

    @overload
    def map(
        self,
        commands: Iterable[_types.Argv | Command],
        jobs: int | None = None,
        *,
        ordered: bool = True,
        on_failure: _types.Literal["continue"],
        progress: Callable[[int, Result | SandboxError], object] | None = None,
        fresh: bool = False,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> Generator[Result | SandboxError, None, None]: ...

    def map(
        self,
        commands: Iterable[_types.Argv | Command],
        jobs: int | None = None,
        *,
        ordered: bool = True,
        on_failure: str = "stop",
        progress: _types.Progress | None = None,
        fresh: bool = False,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> Generator[_types.Any, None, None]:
        """Runs many commands in the sandbox, a few at a time; yields a Result for each.

            for result in box.map((["cc", "-c", name] for name in names), jobs=8, cwd="/src"):
                print(names[result.number], result.wall)

        commands: any iterable of Commands or argvs, read little by little.
        jobs: how many run at once; None: as many as there are CPUs for this process.
        ordered: True (the default): results come in the order of the commands. False: as the
            commands end. Result.number and Result.command say which one it was.
        on_failure: what happens when the Result of a command is not ok (another exit status than 0,
            or a timeout), or a command cannot be run (a SandboxError).
            'stop' (the default): no other is started, and the failure is raised: CommandFailed,
            which has the Result, or the error itself. Commands that run are killed; in order only
            those after the one that failed: all results before it come first, as if one command
            had been run after the other.
            'continue': nothing is raised. Every Result is yielded, and for a command that could
            not be run its SandboxError, in its place.
        progress: called with the number of commands that ended so far and the Result, or the
            SandboxError, of each as it ends. What it raises ends the map.
        fresh: as in run(), for each of them.
        options: those of Command, see run(), for every argv; a Command has its own, and none is
            given beside it. timeout is in seconds of each command.

        All is done in next(): nothing is started before the first, and while the caller does
        something else commands that run go on, but few new ones begin. At most `jobs` commands run.
        At most 4 * jobs were read whose results are not handed over yet: those that run, some that
        are about to, and results that wait, whose outputs are what a map keeps in memory.

        Whatever ends the iteration (its end, an exception, Ctrl-C, close(), the iterator being
        dropped) kills what still runs, and waits until it is gone. Several threads may use a
        Sandbox, each with iterators of its own.

        Raises SpecError, at once, for arguments that make no sense.
        """
        given = {**options, "fresh": fresh}
        return _map.start(_map.each_in(self, commands), jobs, ordered, on_failure, progress, given)

    def close(self) -> None:
        """Ends what is kept from run to run; the next run makes it anew."""
        for plan in list(self._plans.values()):
            if slots := getattr(plan, "slots", None):
                slots.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


async def run_sandbox_async(
    rootfs_path: _types.Path,
    command: _types.Argv | Command,
    cwd: _types.Path | None = None,
    extra_env: _types.Env | None = None,
    network: str = "undefined",
    **options: _types.Any,
) -> Result:
    """As run_sandbox, in an event loop; see Sandbox.run_async. The arguments are those of
    run_sandbox's first form.
    """
    options["network"] = network
    box, made = of_first_form("run_sandbox_async", rootfs_path, command, cwd, extra_env, options)
    return await aio.run(box, made, True)


@overload
def map(
    calls: Iterable[tuple[Sandbox, _types.Argv | Command]],
    jobs: int | None = None,
    *,
    ordered: bool = True,
    on_failure: _types.Literal["stop"] = "stop",
    progress: Callable[[int, Result], object] | None = None,
    fresh: bool = False,
    **options: _types.Unpack[_command.CommandOptions],
) -> Generator[Result, None, None]: ...
@overload
def map(
    calls: Iterable[tuple[Sandbox, _types.Argv | Command]],
    jobs: int | None = None,
    *,
    ordered: bool = True,
    on_failure: _types.Literal["continue"],
    progress: Callable[[int, Result | SandboxError], object] | None = None,
    fresh: bool = False,
    **options: _types.Unpack[_command.CommandOptions],
) -> Generator[Result | SandboxError, None, None]: ...
def map(
    calls: Iterable[tuple[Sandbox, _types.Argv | Command]],
    jobs: int | None = None,
    *,
    ordered: bool = True,
    on_failure: str = "stop",
    progress: _types.Progress | None = None,
    fresh: bool = False,
    **options: _types.Unpack[_command.CommandOptions],
) -> Generator[_types.Any, None, None]:
    """Runs many commands in several Sandboxes, a few at a time; yields a Result for each.

        sandboxlib.map([(box, ["make"]), (other, Command(["make"], "/src"))], jobs=2)

    calls: an iterable of (Sandbox, command). All else is as in Sandbox.map.
    """
    return _map.start(calls, jobs, ordered, on_failure, progress, {**options, "fresh": fresh})


def doctor() -> list[dict[str, _types.Any]]:
    """What works on this machine: for each executor a dict.

    name: str; usable: bool; reason: str, why not; isolation: dict, as maximum_possible_isolation,
    with 'seccomp'; causes: a list of (cause, remedy) found on this machine.
    """
    found: list[dict[str, Any]] = _doctor.examine()
    return found


if TYPE_CHECKING:
    from ._runner import Runner

    def _sandbox_is_a_runner(box: Sandbox) -> Runner:
        return box
