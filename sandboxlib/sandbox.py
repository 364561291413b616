# SPDX-License-Identifier: Apache-2.0
"""What is wanted: Sandbox and Mount, frozen values that are checked when they are made."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

from ._check import (
    Value,
    check_choice,
    check_flag,
    check_number,
    check_path,
    check_size,
    check_text,
)
from .errors import SpecChoiceError, SpecError, SpecTypeError, setup_error
from .limits import Limits
from .policy import DEFAULT, Policy
from .user import User, check_user

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing takes 2 ms to import
    from typing import IO, Any, NoReturn, TypeAlias

    from ._async import AsyncProcess
    from ._handle import Process
    from ._streams import Output
    from .result import Result

    Path: TypeAlias = str | os.PathLike[str]
    Command: TypeAlias = Path | bytes | Sequence[Path | bytes]
    Stream: TypeAlias = int | IO[Any] | Callable[[bytes], object] | Output | None

#: The values of subprocess, without importing it.
CAPTURE = -1
STDOUT = -2

#: Words of Sandbox.run that few runs have.
MORE = ("grace", "cpu_time", "max_output", "on_overflow", "pass_fds", "pty")


def take_more(words: dict[str, Any]) -> dict[str, Any]:
    """Takes MORE out of the words."""
    return {name: words.pop(name) for name in MORE if name in words}


def is_capture(value: object) -> bool:
    """Whether an output is CAPTURE: the number, which no descriptor is equal to by chance."""
    return type(value) is int and value == CAPTURE


#: All that a command finds in its environment, unless extra_env says more.
BASE_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def environment_vars(extra_env: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a command: BASE_ENVIRONMENT, updated by extra_env."""
    return {**BASE_ENVIRONMENT, **(extra_env or {})}


_MOST_BYTES = (1 << 63) - 1


def _inside(what: str, value: object) -> str:
    """An absolute path inside the root, normalised."""
    path = check_path(what, value)
    if not path.startswith("/"):
        raise SpecError(f"{what} is relative, and has to be absolute inside the root: {path!r}")
    if ".." in path.split("/"):
        raise SpecError(f"{what} contains '..': {path!r}")
    path = "/" + "/".join(part for part in path.split("/") if part not in ("", "."))
    if len(os.fsencode(path)) > 4095:
        raise SpecError(f"{what} is longer than the 4,095 bytes of a path")
    return path


def absolute(path: str) -> str:
    """The path from '/' on, as the kernel would go it: `link/..` stays what it is."""
    return path if path.startswith("/") else os.path.join(caller_directory(), path)


def caller_directory() -> str:
    """os.getcwd(); SetupError where it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        what = "the directory of the caller, which was removed"
        raise setup_error(errno.ENOENT, None, "cwd", what) from None


class Mount(Value):
    """Something that is mounted inside the root, for the command alone. A frozen value.

    target: str       absolute path inside the root. What is missing of it is made for the run and
                      removed afterwards. Symbolic links on the way stay inside the root.
    source: str       bind: a file or directory of the caller's.
    type: str         'bind', 'tmpfs' (empty, private), 'proc' or 'dev' (a minimal /dev).
    read_only: bool   with every mount below it.
    recursive: bool   bind: with the mounts below the source, True by default.
    size              tmpfs: bytes at most, an int or a str like "200M"; None: half of the memory
                      (tmpfs(5)). It holds as many files and directories as pages of 4 KiB, from
                      1,024 to 1,048,576.
    mode: int         tmpfs: permissions of its root, 0o1777 by default.

    Raises SpecError for everything that makes no sense.
    """

    _fields = ("target", "source", "type", "read_only", "recursive", "size", "mode")
    target: str
    source: str | None
    type: str
    read_only: bool
    recursive: bool
    size: int | None
    mode: int

    def __init__(
        self,
        target: Path,
        source: Path | None = None,
        type: str = "bind",
        read_only: bool = False,
        recursive: bool = True,
        size: int | str | None = None,
        mode: int = 0o1777,
    ) -> None:
        check_choice("the type of a mount", type, ("bind", "tmpfs", "proc", "dev"))
        inside = _inside("the target of a mount", target)
        if inside == "/":
            raise SpecError("the target of a mount is the root itself")
        check_flag("read_only", read_only)
        check_flag("recursive", recursive)
        if type == "bind":
            source = absolute(check_path("the source of a mount", source))
        elif source is not None:
            raise SpecError(f"a {type} mount has no source: {source!r}")
        if read_only and type != "bind":
            raise SpecError(f"a {type} mount cannot be asked to be read-only")
        size = _tmpfs_size(type, size)
        check_number("the mode of a tmpfs", mode, 0, 0o7777)
        values = (inside, source, type, read_only, recursive, size, mode)
        self.__dict__.update(zip(self._fields, values, strict=True))

    @classmethod
    def bind(
        cls, source: Path, target: Path, read_only: bool = False, recursive: bool = True
    ) -> Mount:
        """The caller's `source` at `target`."""
        return cls(target, source, "bind", read_only, recursive)

    @classmethod
    def tmpfs(cls, target: Path, size: int | str | None = None, mode: int = 0o1777) -> Mount:
        """An empty directory in memory."""
        return cls(target, None, "tmpfs", size=size, mode=mode)

    @classmethod
    def proc(cls, target: Path = "/proc") -> Mount:
        """proc(5): of the run's own processes where they are isolated."""
        return cls(target, None, "proc")

    @classmethod
    def dev(cls, target: Path = "/dev") -> Mount:
        """null, zero, full, random, urandom, tty, pts, shm and the links to /proc/self/fd.

        It is the run's own, and can be written to; shm is a tmpfs, pts has 1,024 terminals at most.
        """
        return cls(target, None, "dev")

    @classmethod
    def from_tuple(cls, words: Sequence[object]) -> Mount:
        """The earlier form: (source, target, type) or (source, target, type, options).

        A type of None, '' or 'none' goes with the option 'bind' (this directory alone) or 'rbind'.
        More options, with commas between: 'ro', 'rw', and for tmpfs 'size=BYTES' (k, m, g) and
        'mode=OCTAL'. SpecChoiceError, an AssertionError, for what is none of these: 'remount' too,
        for which there is filesystem_writable_paths.
        """
        if not isinstance(words, (list, tuple)) or not 3 <= len(words) <= 4:
            raise SpecChoiceError(f"not (source, target, type[, options]): {words!r}")
        source, target, kind, options = (*words, None)[:4]
        kind, options = (None if word == "none" else word for word in (kind, options))
        if not isinstance(target, (str, os.PathLike)):
            raise SpecChoiceError(f"the target of the mount {tuple(words)!r} is no path")
        target = check_path("the target of a mount", target)
        values: dict[str, Any] = {}
        for option in check_text("options", options or "").split(","):
            name, _, value = option.partition("=")
            if name in ("bind", "rbind") and not kind:
                values |= {"type": "bind", "source": source, "recursive": name == "rbind"}
            elif name == "ro":
                values["read_only"] = True
            elif name in ("size", "mode") and kind == "tmpfs" and value:
                values[name] = value if name == "size" else _octal(value)
            elif name not in ("", "rw"):
                raise SpecChoiceError(f"unknown option {option!r} of the mount {tuple(words)!r}")
        if kind in ("tmpfs", "proc", "dev"):
            values["type"] = kind
        elif kind or "type" not in values:
            raise SpecChoiceError(f"neither tmpfs, proc, dev nor a bind: {tuple(words)!r}")
        return cls(target if target.startswith("/") else "/" + target, **values)


def _tmpfs_size(type: str, size: object) -> int | None:
    if size is None:
        return None
    size = check_size("the size of a tmpfs", size, 1, _MOST_BYTES)
    if type != "tmpfs":
        raise SpecError(f"a {type} mount has no size: {size}")
    return size


def _octal(text: str) -> int:
    try:
        return int(text, 8)
    except ValueError:
        raise SpecError(f"not an octal mode: {text!r}") from None


def _mount(value: object) -> Mount:
    if isinstance(value, Mount):
        return value
    if isinstance(value, (tuple, list)):
        return Mount.from_tuple(value)
    raise SpecTypeError(f"neither a Mount nor a tuple: {value!r}")


def _writable(value: object) -> str | tuple[str, ...]:
    if value is None:
        return "none"
    if isinstance(value, str):
        check_choice("filesystem_writable_paths", value, ("all", "none"))
        return value
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise SpecTypeError(f"filesystem_writable_paths is neither a word nor a list: {value!r}")
    paths = [check_path("a writable path", path) for path in value]
    inside = sorted({_inside("a writable path", "/" + path) for path in paths})
    return "all" if "/" in inside else tuple(inside) or "none"


def _devices(value: object) -> str | tuple[str, ...]:
    """A word, or paths below /dev."""
    if isinstance(value, str):
        if value.startswith("/"):
            raise SpecTypeError(f"devices is one path, and has to be a list of them: [{value!r}]")
        check_choice("devices", value, ("minimal", "root"))
        return value
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise SpecTypeError(f"devices is neither a word nor a list of paths: {value!r}")
    paths = sorted({_inside("a device", path) for path in value})
    for path in paths:
        if not path.startswith("/dev/"):
            raise SpecError(f"a device is not below /dev: {path!r}; Mount.bind takes it elsewhere")
    return tuple(paths) or "minimal"


#: What runs a command in a Sandbox: an executor's run_in. The package sets it, so that no arrow
#: leads from the value to those who use it.
runner: Callable[..., Result] | None = None


class Sandbox(Value):
    """A place to run commands in. One Sandbox runs many, from any number of threads at once.

    What no command can change of it (namespaces, mounts) is kept from run to run: docs/slots.md.
    close(), or the end of a `with`, ends that; the next run makes it anew.

    root: str or path     the root directory of the commands.
    network               'undefined' (the caller's, the default) or 'isolated': lo, up, and
                          nothing else.
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
                          mounted in this order.
    filesystem_writable_paths   'all' (the default), 'none', or a list of paths in the root that
                          stay writable while the rest, with every mount below it, is read-only.
                          extra_mounts are writable unless they say otherwise.
    devices               'minimal' (the default): with mounts='isolated' no device node of the root
                          works, and a root that has a directory /dev gets, read-only, what
                          Mount.dev() has, unless an extra mount lies on /dev. A list of paths below
                          /dev, like ['/dev/kvm']: these devices of the caller's as well. 'root':
                          what the root has; with root='/' the machine's disks.
    policy: Policy        what the commands may do: capabilities, no_new_privs, system calls,
                          sandboxes of their own. Policy() by default: twelve capabilities, and a
                          filter of system calls.
    init: bool            True (the default): with processes='isolated' pid 1 is a reaper. False:
                          it is the command itself, 0.1 ms sooner; then nobody reaps orphans,
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

    _fields = (
        *("root", "network", "mounts", "processes", "ipc", "hostname", "extra_mounts"),
        *("filesystem_writable_paths", "devices", "policy", "init", "user"),
        *("umask", "limits", "deterministic"),
    )
    root: str
    network: str
    mounts: str
    processes: str
    ipc: str
    hostname: str | None
    extra_mounts: tuple[Mount, ...]
    filesystem_writable_paths: str | tuple[str, ...]
    devices: str | tuple[str, ...]
    policy: Policy
    init: bool
    user: str | User
    umask: int | None
    limits: Limits | None
    deterministic: bool
    _left: frozenset[str]  # the names of arguments that were None, for which there is a default
    _user_kind: str  # 'caller', 'root' or 'ranges'
    _ids: tuple[int, int] | None  # of the User
    _groups: tuple[int, ...]
    _plans: dict[object, Any]

    def __init__(
        self,
        root: Path,
        *,
        network: str = "undefined",
        mounts: str = "isolated",
        processes: str = "isolated",
        ipc: str = "isolated",
        hostname: str | None = None,
        extra_mounts: Iterable[Mount | Sequence[object]] | None = (),
        filesystem_writable_paths: str | Iterable[Path] | None = "all",
        devices: str | Iterable[Path] = "minimal",
        policy: Policy = DEFAULT,
        init: bool = True,
        user: int | str | User | None = None,
        umask: int | None = None,
        limits: Limits | None = None,
        deterministic: bool = False,
        **unknown: NoReturn,
    ) -> None:
        if unknown:
            raise _unknown(unknown)
        put = self.__dict__.__setitem__  # frozen: the one way in
        put("_left", frozenset(("user",) if user is None else ()))
        put("root", _root(root))
        for name, value in (
            ("network", network),
            ("mounts", mounts),
            ("processes", processes),
            ("ipc", ipc),
        ):
            check_choice(name, value, ("undefined", "isolated"))
            put(name, value)
        put("hostname", None if hostname is None else _hostname(hostname))
        if extra_mounts is not None and (
            isinstance(extra_mounts, (str, bytes)) or not isinstance(extra_mounts, Iterable)
        ):
            raise SpecTypeError(f"extra_mounts is not a list: {extra_mounts!r}")
        put("extra_mounts", tuple(_mount(mount) for mount in extra_mounts or ()))
        put("filesystem_writable_paths", _writable(filesystem_writable_paths))
        put("devices", _devices(devices))
        if not isinstance(policy, Policy):
            raise SpecTypeError(f"policy is no Policy: {policy!r}")
        put("policy", policy)
        for name, flag in (("init", init), ("deterministic", deterministic)):
            check_flag(name, flag)
            put(name, flag)
        self._set_user(user, deterministic)
        put("umask", None if umask is None else check_number("umask", umask, 0, 0o777))
        if limits is not None and not isinstance(limits, Limits):
            raise SpecTypeError(f"limits is no Limits: {limits!r}")
        put("limits", limits)
        put("_plans", {})
        self._check_together()

    def _check_together(self) -> None:
        if self.mounts == "undefined" and self.extra_mounts:
            raise SpecError("extra_mounts need mounts='isolated'")
        if self.mounts == "undefined" and self.filesystem_writable_paths != "all":
            raise SpecError("filesystem_writable_paths needs mounts='isolated'")
        if isinstance(self.devices, tuple):
            if self.mounts == "undefined":
                raise SpecError("devices by their paths need mounts='isolated'")
            if any(mount.target == "/dev" for mount in self.extra_mounts):
                raise SpecError("devices by their paths go into a /dev that an extra mount hides")
        if self.deterministic and self.mounts == "undefined":
            raise SpecError("deterministic needs mounts='isolated'")
        if self._ids is not None and (self.processes != "isolated" or not self.init):
            raise SpecError("user= with a uid needs processes='isolated' and init=True")

    def isolation(self) -> dict[str, str]:
        """The four kinds of isolation, by name."""
        return {name: getattr(self, name) for name in ("network", "mounts", "processes", "ipc")}

    def replace(self, **changes: Any) -> Sandbox:
        """The same with other values: box.replace(network='undefined'). SpecError.

        What was left to a default that depends on other values is left to it again.
        """
        return Sandbox(**{**self.__getstate__(), **changes})

    def __getstate__(self) -> dict[str, Any]:
        values = super().__getstate__()
        return {**values, **dict.fromkeys(self._left)}

    def _set_user(self, user: object, deterministic: bool) -> None:
        if user is None:
            user = "root" if deterministic else "caller"
        user = check_user(user)
        found: dict[str, object] = {"user": user, "_user_kind": user, "_ids": None, "_groups": ()}
        if isinstance(user, User):
            found["_user_kind"] = "ranges" if user.ranges else "caller"
            found |= {"_ids": (user.uid, user.gid), "_groups": user.groups}
        self.__dict__.update(found)

    def run(
        self,
        command: Command,
        cwd: Path | None = None,
        extra_env: Mapping[str, str] | None = None,
        *,
        stdin: Stream | bytes = None,
        stdout: Stream = CAPTURE,
        stderr: Stream = CAPTURE,
        timeout: float | None = None,
        grace: float = 0.0,
        cpu_time: int | None = None,
        max_output: int | None = None,
        on_overflow: str = "truncate",
        pass_fds: Iterable[int] = (),
        pty: bool | tuple[int, int] = False,
        fresh: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Runs a command in the sandbox and waits for its end. The arguments that are not listed
        here are described in run_sandbox.

        grace: seconds. When the time is over every process gets SIGTERM, and only after so many
            more seconds SIGKILL. 0 (the default): SIGKILL at once.
        cpu_time: int, seconds of CPU time of each process; then SIGXCPU, a second later SIGKILL.
            It comes before Limits.cpu_time. None (the default): no limit of this run.
        stdout, stderr: also a function, which is called with bytes as they come; Lines(function),
            line by line; or Tee(file): written there as it comes. What a function raises ends the
            run. docs/streams.md has more.
        max_output: int, bytes of stdout, and of stderr, that are kept or passed on; None (the
            default): all. on_overflow: 'truncate' (the default): the rest is read and counted only;
            'kill': it ends the run. Result.limits_hit has 'output' in both cases.
        pass_fds: up to 32 more descriptors, which the command gets by the same numbers.
        pty: True, or (rows, columns): stdin, stdout and stderr are a terminal, of 24 rows and 80
            columns, and the command's own; Result.out is what was written there.
        fresh: True makes every namespace anew for this run, as run_sandbox does. False (the
            default): those that a command cannot change are leased to one run after the other.

        Raises SpecError, UnsupportedError and SetupError as run_sandbox does; Unkillable if the
        kernel does not end what was killed; StatusLost if nobody knows how the command ended.
        """
        assert runner is not None
        words = (self, command, cwd, extra_env, stdin, stdout, stderr, timeout, env, fresh)
        is_plain = type(grace) is float and not grace and max_output is cpu_time is None
        if is_plain and on_overflow == "truncate" and pass_fds == () and pty is False:
            return runner(*words)
        rest = (grace, cpu_time, max_output, on_overflow, pass_fds, pty)
        return runner(*words, dict(zip(MORE, rest, strict=True)))

    def start(
        self,
        command: Command,
        cwd: Path | None = None,
        extra_env: Mapping[str, str] | None = None,
        *,
        stdin: Stream | bytes = None,
        stdout: Stream = CAPTURE,
        stderr: Stream = CAPTURE,
        **words: Any,
    ) -> Process:
        """Starts a command and returns a Process, which is much like a subprocess.Popen.

        stdin: as in run(), or CAPTURE: a pipe, whose other end is Process.stdin.
        stdout, stderr: as in run(); where they are captured Process.stdout and .stderr are files.
        words: env, cpu_time, max_output, on_overflow, pass_fds and pty, as in run(). With pty all
            that is written to Process.stdin is what somebody types.

        Every namespace is made anew. Raises as run() does, also where there is no such program; and
        UnsupportedError where the executor drives a program of its own (linux_user_chroot,
        bubblewrap).
        """
        from . import _handle

        return _handle.start(self, command, cwd, extra_env, stdin, stdout, stderr, words)

    async def run_async(
        self,
        command: Command,
        cwd: Path | None = None,
        extra_env: Mapping[str, str] | None = None,
        *,
        stdin: Stream | bytes = None,
        stdout: Stream = CAPTURE,
        stderr: Stream = CAPTURE,
        timeout: float | None = None,
        fresh: bool = False,
        env: Mapping[str, str] | None = None,
        **words: Any,
    ) -> Result:
        """As run(), in an event loop: of asyncio, or of what anyio knows (`sandboxlib[anyio]`).

        No thread is made; the loop waits for many of them at once. To start one takes the loop as
        long as a run takes to start, below a millisecond mostly. A cancellation kills the run, and
        waits for its end. UnsupportedError as in start().
        """
        from . import _async

        more = take_more(words)
        if words:
            raise SpecTypeError(f"run_async has no keyword argument {', '.join(words)}")
        given: dict[str, Any] = {"command": command, "cwd": cwd, "extra_env": extra_env}
        given |= {"stdin": stdin, "stdout": stdout, "stderr": stderr}
        given |= {"timeout": timeout, "env": env}
        return await _async.run(self, fresh, given, more)

    def start_async(
        self,
        command: Command,
        cwd: Path | None = None,
        extra_env: Mapping[str, str] | None = None,
        *,
        stdin: Stream | bytes = None,
        stdout: Stream = CAPTURE,
        stderr: Stream = CAPTURE,
        **words: Any,
    ) -> AsyncProcess:
        """As start(), in an event loop; what starts when it is entered:

        async with box.start_async(["make"]) as process:
            async for line in process.stdout:
                ...
        """
        from . import _async

        return _async.start(self, command, cwd, extra_env, stdin, stdout, stderr, words)

    def map(
        self,
        commands: Iterable[Command | Mapping[str, Any]],
        jobs: int | None = None,
        *,
        ordered: bool = True,
        on_failure: str = "stop",
        progress: Callable[[int, Any], object] | None = None,
        **words: Any,
    ) -> Generator[Any, None, None]:
        """Runs many commands in the sandbox, a few at a time; yields a Result for each.

            for result in box.map((["cc", "-c", name] for name in names), jobs=8, cwd="/src"):
                print(names[result.number], result.wall)

        commands: any iterable, read little by little. A command is one as run() takes it, or a dict
            of words of run(): {'command': ['cc', ...], 'cwd': '/src', 'timeout': 60}.
        jobs: how many run at once; None: as many as there are CPUs for this process.
        ordered: True (the default): results come in the order of the commands. False: as the
            commands end. Result.number and Result.command say which one it was.
        on_failure: what happens when a command ends with another exit status than 0, also by its
            timeout, or cannot be run (a SandboxError).
            'stop' (the default): no other is started, and the failure is raised: CommandFailed,
            which has the Result, or the error itself. Commands that run are killed; in order only
            those after the one that failed: all results before it come first, as if one command
            had been run after the other.
            'continue': nothing is raised. Every Result is yielded, and for a command that could
            not be run its SandboxError, in its place.
        progress: called with the number of commands that ended so far and the Result, or the
            SandboxError, of each as it ends. What it raises ends the map.
        words: those of run() for all commands: cwd, extra_env, env, stdin, stdout, stderr, timeout
            (seconds, of each command), fresh.

        All is done in next(): nothing is started before the first, and while the caller does
        something else commands that run go on, but few new ones begin. At most `jobs` commands run.
        At most 4 * jobs were read whose results are not handed over yet: those that run, some that
        are about to, and results that wait, whose outputs are what a map keeps in memory.

        Whatever ends the iteration (its end, an exception, Ctrl-C, close(), the iterator being
        dropped) kills what still runs, and waits until it is gone. Several threads may use a
        Sandbox, each with iterators of its own.

        Raises SpecError, at once, for words that make no sense.
        """
        from . import _map

        return _map.start(_map.each_in(self, commands), jobs, ordered, on_failure, progress, words)

    def close(self) -> None:
        """Ends what is kept from run to run; the next run makes it anew."""
        for plan in list(self._plans.values()):
            if slots := getattr(plan, "slots", None):
                slots.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _unknown(words: Mapping[str, object]) -> SpecTypeError:
    for name in words:
        if name in ("ids", "group", "groups"):
            return SpecTypeError(f"{name} belongs to User: Sandbox(user=User(uid, gid, groups))")
        if name in Policy._fields:
            return SpecTypeError(f"{name} belongs to Policy: Sandbox(policy=Policy({name}=...))")
    return SpecTypeError(f"Sandbox has no keyword argument {', '.join(words)}")


def _root(value: object) -> str:
    return absolute(check_path("the root", value))


def _hostname(value: object) -> str:
    name = check_text("hostname", value)
    if not name or len(os.fsencode(name)) > 64:  # sethostname(2), HOST_NAME_MAX
        raise SpecError(f"hostname has to be of 1 to 64 bytes: {name!r}")
    return name
