# SPDX-License-Identifier: Apache-2.0
"""The public calls: Sandbox, which adds running to a Spec, and the functions of the package."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence

from . import _types
from ._choice import choose
from ._executors.calls import of_first_form
from ._runs.run import prepare as _prepare
from ._spec import command as _command
from ._spec.command import Command, command_of
from ._spec.overlay import Layers, Overlay
from ._spec.spec import Spec
from ._types import Later, overload
from ._values import check_seconds
from .errors import SandboxError, SpecError, SpecTypeError
from .result import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


run_sandbox = choose.api.run_sandbox


if TYPE_CHECKING:
    from ._changes import changes as _changes
    from ._changes import outputs as _confined
    from ._choice import doctor as _doctor
    from ._choice import lacking as _lacking
    from ._concurrent import aio, async_process, process
    from ._concurrent import map as _map
    from ._concurrent import session as _session
    from ._digest import action as _action
    from ._digest import hermetic as _hermetic
    from ._images import unpack as _unpack
    from ._reproduce import writing as _writing
    from ._trace import trace as _trace
else:
    aio, process = Later("_concurrent.aio"), Later("_concurrent.process")
    async_process, _session = Later("_concurrent.async_process"), Later("_concurrent.session")
    _map, _doctor = Later("_concurrent.map"), Later("_choice.doctor")
    _action, _hermetic = Later("_digest.action"), Later("_digest.hermetic")
    _lacking, _trace = Later("_choice.lacking"), Later("_trace.trace")
    _writing = Later("_reproduce.writing")
    _changes, _confined = Later("_changes.changes"), Later("_changes.outputs")
    _unpack = Later("_images.unpack")


class Sandbox(Spec):
    """Where commands run: a frozen value, checked when it is made. One Sandbox runs any number of
    commands, from any number of threads at once.

    It keeps what no command can change (namespaces, mounts) from run to run: docs/slots.md.
    close(), or the end of a `with` block, ends that; the next run makes it anew.

    root                  str or path, the root directory of the commands; or an Overlay, a root of
                          layers, of which each run has a pristine copy that it may change.
    network: str          'isolated' (the default): lo, up, and nothing else; a connection to the
                          outside is refused at once. 'undefined': the caller's network.
    mounts: str           'isolated' (the default): a new mount namespace, whose root is `root`;
                          nothing is ever mounted in the caller's namespace. 'undefined': chroot(2),
                          from which a command with the capability sys_chroot can escape.
    processes: str        'isolated' (the default): a new pid namespace; all processes that the
                          command started are gone when the call returns. 'undefined': the command
                          sees the caller's processes, and only its process group ends with it.
    ipc: str              'isolated' (the default): new System V IPC, POSIX message queues, hostname
                          and session keyring. 'undefined': the caller's.
    hostname: str         1 to 64 bytes. None (the default) does not set it.
    extra_mounts          a list of Mount, or of earlier (source, target, type, options) tuples,
                          mounted in this order, after /tmp; () by default.
    filesystem_writable_paths   'none': the root, with every mount below it, is read-only. 'all':
                          nothing is made read-only. Or a list of paths in the root that stay
                          writable while the rest is read-only. extra_mounts are writable unless
                          they are made read-only themselves. None (the default): 'none' for a
                          directory with mounts='isolated', otherwise 'all'.
    tmp: str              'private': an empty tmpfs on /tmp, new for each command, unless an extra
                          mount lies there; a root without a directory /tmp gets none. 'root': the
                          /tmp of the root. None (the default): 'private' with mounts='isolated',
                          otherwise 'root'.
    resolv_conf: bool     True: the caller's /etc/resolv.conf, read-only, for commands that look up
                          names; it takes network='undefined'. False (the default): the root's.
    devices               'minimal' (the default): with mounts='isolated' no device node of the root
                          works, and a root that has a directory /dev gets the devices of
                          Mount.dev() there, read-only, unless an extra mount lies on /dev. A list
                          of paths below /dev, like ['/dev/kvm']: these devices of the caller as
                          well. 'root': all devices of the root; with root='/' these are the
                          machine's disks too.
    policy: Policy        what the commands may do: capabilities, no_new_privs, system calls,
                          sandboxes of their own. Policy() by default: twelve capabilities, and a
                          filter of system calls.
    init: bool            True (the default): with processes='isolated' pid 1 is a reaper. False:
                          pid 1 is the command itself. It starts sooner, but nothing reaps orphans,
                          a SIGTERM that it sends to itself is ignored, and abort() ends it with
                          exit status -11.
    user                  None (the default) or 'caller': the ids of the caller. 'root': uid and gid
                          0. For root as the caller that is the same; other callers appear as root
                          in a user namespace in which no other id exists. 'ranges': as 'root', with
                          the ids that /etc/subuid and /etc/subgid give to the caller from 1 on
                          (newuidmap(1)); chown(2) and package managers need them. A User: the ids
                          that it names, and no other groups; an int is short for User(uid). In a
                          namespace with a single id the caller may have no other groups, as they
                          cannot be dropped there. The reaper changes the ids, so a User takes
                          processes='isolated' and init=True. A uid that is not 0 has the
                          capabilities that the policy lists by name; with 'default' it has none,
                          and 'all' is refused.
    umask: int            the umask of the command, 0 to 0o777. None (the default): the caller's.
    personality: str      'linux32': the command sees a 32-bit machine (uname -m, personality(2)).
                          None (the default): the caller's personality.
    limits: Limits        how much the commands may use. None (the default): as much as the caller.
    deterministic: bool   True: the sandbox hides what differs from machine to machine and finds its
                          way into build results. The hostname is 'sandbox', uid and gid are 0 and
                          umask is 022, unless others are given. /etc/passwd and /etc/group have
                          root, build (1000) and nobody. TZ=UTC, LC_ALL=C and SOURCE_DATE_EPOCH (the
                          caller's, or 315532800: the year 1980) are set, unless the environment of
                          the command has others. Addresses are not randomised (personality(2)). It
                          takes mounts='isolated'. Limits.cpuset sets the number of CPUs. False is
                          the default.
    store: Store          where layers, images and inputs are kept from run to run. None (the
                          default): Store(), the caller's own cache directory.

    Raises SpecError (a ValueError) if a value is wrong, or two of them contradict each other, and
    SpecTypeError for a value of the wrong type, or an unknown keyword argument.
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
        fresh: bool. True: the run gets new namespaces, as with run_sandbox. False (the default): it
            may use a slot, whose namespaces serve one run after the other.
        check: bool. True: raises CommandFailed unless Result.ok. False (the default): the caller
            looks at the Result.
        options: the keyword arguments of Command, which has all about them. They go with an argv
            only: a Command has its own.

            cwd: str or path, inside the root; None (the default): '/', or with root='/' the
                caller's directory.
            extra_env, env: mappings of str to str, added to BASE_ENVIRONMENT and in place of it;
                None by default. Bytes are taken as well.
            executable: str, bytes or path, the program, if it is not the first of argv; None by
                default.
            stdin: bytes, a file or a descriptor; None (the default) or DEVNULL: empty.
            stdout, stderr: CAPTURE (the default), a file, a descriptor, a function, Lines, Tee,
                None or DEVNULL (discarded); stderr also STDOUT.
            inputs: mapping from paths to File, Tree, a path (PathLike) or bytes, where the root is
                an Overlay or an Image; {} by default.
            outputs: iterable of patterns, for Result.outputs; () by default.
            changes: 'drop' (the default), 'keep' or 'on-failure': Result.changes, where the root
                is an Overlay.
            limits: Limits, over those of the Sandbox; None by default.
            timeout: float, seconds until every process is killed; None (the default): no limit.
            grace: float, seconds from SIGTERM to SIGKILL after the timeout; 0 by default.
            max_output: int, bytes, or a str like "200M"; None (the default): no limit.
            on_overflow: 'truncate' (the default) or 'kill', for output beyond max_output.
            pass_fds: iterable of int, up to 32 descriptors that the command inherits; () by
                default.
            pty: bool, or (rows, columns); False by default.
            pty_stderr: 'terminal' (the default), or 'pipe': stderr is not the terminal.

        Raises SpecError (a ValueError) if an argument is wrong; UnsupportedError if no executor can
        keep all promises on this machine; SetupError (an OSError: FileNotFoundError,
        PermissionError, ...) if the kernel refuses a step before the command runs, as for a program
        that does not exist; CommandFailed with check=True; Unkillable if the kernel does not end a
        process that was killed; StatusLost if the exit status cannot be known.
        """
        if options or type(command) is not Command:
            command = command_of("run", command, options, "fresh", "check")
        is_plain = command.limits is None and self._directory
        box = self if is_plain else self._for(command)
        result = choose.run_command(box, command, fresh)
        return result.check() if check else result

    def start(
        self,
        command: _types.Argv | Command,
        /,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> process.Process:
        """Starts a command, and returns a Process, which is much like a subprocess.Popen.

        command: a Command, or its argv.
        options: the keyword arguments of Command, as in run(), with these differences. timeout and
            grace are refused: Process.wait() has a timeout. max_output, functions, Lines and Tee
            are refused, as they need a reader at all times. With stdin=CAPTURE the command reads
            from a pipe, and Process.stdin is its other end. Process.stdout and .stderr are our ends
            of the pipes of captured outputs, as files. With pty the command reads from its terminal
            what is written to Process.stdin.

        The run always gets new namespaces. Raises the errors of run(), SetupError also for a
        program that does not exist; and UnsupportedError if the executor drives a program of its
        own (linux_user_chroot, bubblewrap).
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
        """Does the same as run() in an event loop: that of asyncio, uvloop or trio.

        command, fresh, check, options: as in run().

        It starts no thread: the loop waits for many runs at once. Starting a run blocks the loop,
        mostly for less than a millisecond. A cancellation kills the run, and waits for its end.
        Raises the errors of run(), and UnsupportedError as start() does.
        """
        made = command_of("run_async", command, options, "fresh", "check")
        result = await aio.run(self, made, fresh)
        return result.check() if check else result

    def start_async(
        self,
        command: _types.Argv | Command,
        /,
        *,
        limit: int = 65536,
        **options: _types.Unpack[_command.CommandOptions],
    ) -> async_process.AsyncProcess:
        """Does the same as start() in an event loop. The command starts at `async with`:

            async with box.start_async(["make"]) as process:
                async for line in process.stdout:
                    ...

        command, options: as in start().
        limit: int, the longest line that readline() returns, in bytes, and half of what a
            StreamReader keeps; ValueError for a longer line, as with
            asyncio.create_subprocess_exec. 65536 is the default. trio has no use for it.

        Raises SpecError at once, the other errors of start() at `async with`.
        """
        made = command_of("start_async", command, options, "limit")
        return async_process.start(self, made, limit)

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

        commands: any iterable of Commands or argvs; it is read little by little.
        jobs: int, how many run at once. None (the default): one for each CPU of this process.
        ordered: bool. True (the default): the results come in the order of the commands. False:
            they come as the commands end. Result.number and Result.command tell which is which.
        on_failure: str, for a Result that is not ok (its exit status is not 0, or a timeout),
            and for a command that cannot be run (a SandboxError).
            'stop' (the default): the map starts no other command, and raises the failure:
            CommandFailed, which has the Result, or the error itself. It kills the commands that
            run; if ordered, only those after the failed one, and first yields all results before
            it, as if the commands had run one after the other.
            'continue': the map raises nothing of that. It yields every Result, and for a command
            that could not be run its SandboxError; for an OSError of a function or a file that
            takes an output a CallerError. Other exceptions of such a function end the map.
        progress: a function, called as each command ends, with the number of commands that ended so
            far and the Result or the SandboxError; a Progress or a Timeline is one. Its exceptions
            end the map. If it has a method begin(total), as a Progress has, the map calls that
            first: with the number of commands, or with None if they have no length. None by
            default.
        fresh: bool, as in run(), for each command.
        options: the keyword arguments of Command, as in run(), for every argv; a Command has its
            own, and takes none beside it. timeout is in seconds for each command.

        All work is done in next(): the first call starts the first commands, and while the caller
        does something else, the commands go on but few new ones start. At most `jobs` commands run.
        At most 4 * jobs commands are read whose results were not yielded yet, so the outputs of so
        many are in memory.

        However the iteration ends (at its end, by an exception, Ctrl-C, close(), or the garbage
        collector), the map kills the commands that still run, and waits until they are gone.
        Several threads may use a Sandbox, each with iterators of its own.

        Raises SpecError at once if an argument is wrong.
        """
        given = {**options, "fresh": fresh}
        return _map.start(_map.each_in(self, commands), jobs, ordered, on_failure, progress, given)

    def session(
        self,
        *,
        timeout: float | None = None,
        inputs: _types.Inputs = _command._NO_INPUTS,
        outputs: Iterable[_types.Path] = (),
        changes: _types.Keep = "drop",
        **unknown: _types.NoReturn,
    ) -> _session.Session:
        """Opens a session: a place in which several commands run, one after the other or at once,
        that see each other.

            with box.session() as s, s.start(["redis-server"]):
                s.run(["redis-cli", "ping"])

        timeout: float, seconds that opening may take. None (the default): no limit.
        inputs, outputs, changes: as in Command, for the session as a whole; relative paths start at
            '/'. Session.outputs and Session.changes have what is left when it is over.

        The cgroup limits of the Sandbox hold for the session as a whole, its other limits for each
        command. Raises SpecError if the Sandbox has processes='undefined' or init=False;
        UnsupportedError if the executor drives a program of its own (linux_user_chroot,
        bubblewrap); SetupError if the kernel refuses a step.
        """
        options = {"timeout": timeout, "inputs": inputs, "outputs": outputs, "changes": changes}
        return _session.open_session(self._with_user(), {**options, **unknown})

    def trace(
        self,
        command: _types.Argv | Command,
        /,
        *,
        paths: _types.Depth = "opens",
        **options: _types.Unpack[_command.CommandOptions],
    ) -> _trace.Trace:
        """Runs a command, and sees which paths it asks for: to find the inputs that it takes.

            trace = box.trace(["cc", "-c", "a.c"], cwd="/src")
            print(trace.missing)

        command: a Command, or its argv.
        paths: str. 'opens' (the default): the calls that open or execute a file, change the
            directory, or make a path. 'all': all calls that take a path, as stat(2).
        options: the keyword arguments of Command, as in run().

        The run always gets new namespaces. It does what it would do without being seen, but takes
        longer; docs/trace.md says what is not seen. Returns a Trace, whatever the exit status.
        Raises the errors of run(); SpecError with processes='undefined'; UnsupportedError if the
        executor drives a program of its own (linux_user_chroot, bubblewrap), or if the kernel does
        not let this process see the calls of others.
        """
        return _trace.trace(self, command_of("trace", command, options, "paths"), paths)

    def lacks(self) -> list[str]:
        """Returns what of this Sandbox the machine cannot give to this caller, and why, with the
        remedy: a list of str, each about one executor. It is empty if run() can set the sandbox up.

        Nothing is run, and nothing is made in the root: an executor tries the set-up with a program
        that does not exist, and mount points that the root lacks are only looked at. A cgroup that
        a limit takes is made and removed. Programs, their cwd and the limits of a Command are told
        by the run. What changes after the call, it cannot know.
        """
        reasons: list[str] = _lacking.lacks(self)
        return reasons

    def not_hermetic(
        self,
        command: _types.Argv | Command,
        /,
        assume: Iterable[str] = (),
        **options: _types.Unpack[_command.CommandOptions],
    ) -> dict[str, str]:
        """Returns what the result of a command in this Sandbox may depend on beside all that has a
        digest: a dict of names and reasons, empty if there is nothing. Command.digest() refuses
        these.

            box.not_hermetic(["cc"])        {'user': "the ids are the caller's; ...", ...}

        command: a Command, or its argv.
        assume: iterable of str, names that are left out, because they stand for something that is
            the same wherever digests are compared; () by default. SpecError for other names.
        options: the keyword arguments of Command, as in run().

        The names: network, mounts, processes, ipc ('undefined'); root, layers (plain directories);
        upper; extra_mounts (binds); devices (all but 'minimal'); resolv_conf; user (the caller's
        ids), umask and hostname (None); cwd (the caller's directory); stdin (a file), pass_fds,
        pty.
        """
        made = command_of("not_hermetic", command, options, "assume")
        return _hermetic.not_hermetic(made, self, assume)

    def reproduce(
        self, command: Command, file: _types.Path, *, result: Result | None = None
    ) -> None:
        """Writes a file with which `run-sandbox --reproduce FILE` gives a shell on a terminal where
        the command ran: the same sandbox, layers, inputs, environment and directory.

            result = box.run(command)
            if not result.ok:
                box.reproduce(command, "failed.json", result=result)

        command: a Command.
        file: str or path. It is JSON; its owner alone can read it, as it has the environment of the
            command. It takes the place of an earlier one once it is whole.
        result: Result of that run. If it kept its changes (Command(changes='on-failure')), the
            shell runs over these: they are committed to the store. None (the default): the shell
            runs where the command would begin.

        Layers, inputs and changes are in the store, and the file has their digests; a plain
        directory or a bind is in it by its path. `run-sandbox --reproduce FILE --run` runs the
        command itself.

        Raises SpecError, which names it, for a stdin, stdout or stderr that is a file, a function
        or a descriptor, and for pass_fds: they mean something in this process alone. SetupError if
        the file or the store cannot be written, or an input cannot be read.
        """
        if not isinstance(command, Command):
            raise SpecTypeError(f"reproduce: this is no Command, as Command(argv): {command!r}")
        _writing.write(self, command, file, result)

    def _digest_of(self, command: Command, assume: Iterable[str]) -> str:
        return _action.digest(command, self, assume)

    def _changes_of(self, upper: _types.Any) -> _types.Changes:
        changes: _types.Changes = _changes.Changes(upper)
        return changes

    def _outputs_of(
        self, upper: _types.Any, wanted: Sequence[_types.Any], storage: _types.Any
    ) -> _types.Outputs:
        outputs: _types.Outputs = _confined.read_confined(upper, wanted, storage)
        return outputs

    def _remove_foreign(self, path: str) -> None:
        _unpack.remove_foreign(path)

    def prepare(self, timeout: float | None = 600.0) -> None:
        """Unpacks the images of an Image or Overlay root into the store, if they are not there yet,
        and opens a slot. Otherwise the first run does that, with 600 seconds for unpacking beside
        its own timeout.

        timeout: float, seconds; 600 by default; None: no limit.

        Raises SpecError for a wrong timeout, ImageError for an image that is broken or hostile,
        SetupError if an image or the store cannot be used, or after the timeout (ETIMEDOUT);
        UnsupportedError as run() does. With a directory as its root it does nothing.
        """
        if timeout is not None and not check_seconds("timeout", timeout):
            raise SpecError("timeout is 0 seconds")
        if self._overlay is None:
            return
        if isinstance(self.root, Layers):
            self.root._prepare(None, self.store, timeout)  # which tells the user
        box = self._with_user()
        plan = choose.executor_of(box).plan_of(box)
        for layer in self._overlay.layers:
            if isinstance(layer, Layers) and plan is not None and plan.overlay is not None:
                layer._prepare(plan.overlay.owners, self.store, timeout)
        if plan is not None:
            _prepare(plan)

    def close(self) -> None:
        """Ends the slots, which keep namespaces from run to run, removes the cgroups that wait for
        a run, and lets go of the layers in the store; the next run makes and takes them anew.
        """
        for plan in list(self._plans.values()):
            for kept in (*plan.all_slots, *plan.all_cgroups):
                kept.close()
            if plan.overlay is not None:
                plan.overlay.release()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


Spec._of_calls = Sandbox


async def run_sandbox_async(
    rootfs_path: _types.Path | Overlay | Layers,
    command: _types.Argv | Command,
    cwd: _types.Path | None = None,
    extra_env: _types.Env | None = None,
    network: _types.Kind = "undefined",
    **options: _types.Any,
) -> Result:
    """Does the same as run_sandbox in an event loop; see Sandbox.run_async.

    rootfs_path, command, cwd, extra_env, network, options: as in the first form of run_sandbox.
    Raises the errors of run_sandbox, and UnsupportedError as Sandbox.start does.
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

    calls: an iterable of (Sandbox, command); each command is a Command or an argv.
    jobs, ordered, on_failure, progress, fresh, options: as in Sandbox.map, and the errors too.
    """
    return _map.start(calls, jobs, ordered, on_failure, progress, {**options, "fresh": fresh})


def doctor() -> list[dict[str, _types.Any]]:
    """Reports what works on this machine: returns a dict for each executor, with these keys.

    name: str.
    usable: bool, whether the executor works.
    reason: str, why it does not work, or "".
    isolation: dict, as from maximum_possible_isolation, 'seccomp' included; {} if not usable.
    overlay: str, why it takes no root of layers (an Overlay or an Image), or ""; "" if not usable.
    causes: list of (cause, remedy), both str, found on this machine.
    """
    reports: list[dict[str, Any]] = _doctor.examine()
    return reports


if TYPE_CHECKING:
    from ._runner import Runner

    def _sandbox_is_a_runner(box: Sandbox) -> Runner:
        return box
