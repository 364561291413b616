# SPDX-License-Identifier: Apache-2.0
"""What is wanted: Sandbox and Mount, frozen values that are checked when they are made."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

from . import _types
from ._check import (
    Value,
    check_choice,
    check_flag,
    check_number,
    check_path,
    check_size,
    check_text,
    unknown_keyword,
)
from ._types import overload
from .command import Command, command_of
from .errors import SandboxError, SpecChoiceError, SpecError, SpecTypeError, setup_error
from .limits import Limits
from .policy import DEFAULT, Policy
from .result import Result
from .user import User, check_user

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOST_LIMITED = 64  # sets of limits of Commands for which a Sandbox keeps a plan


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
        target: _types.Path,
        source: _types.Path | None = None,
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
        cls,
        source: _types.Path,
        target: _types.Path,
        read_only: bool = False,
        recursive: bool = True,
    ) -> Mount:
        """The caller's `source` at `target`."""
        return cls(target, source, "bind", read_only, recursive)

    @classmethod
    def tmpfs(cls, target: _types.Path, size: int | str | None = None, mode: int = 0o1777) -> Mount:
        """An empty directory in memory."""
        return cls(target, None, "tmpfs", size=size, mode=mode)

    @classmethod
    def proc(cls, target: _types.Path = "/proc") -> Mount:
        """proc(5): of the run's own processes where they are isolated."""
        return cls(target, None, "proc")

    @classmethod
    def dev(cls, target: _types.Path = "/dev") -> Mount:
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


#: Runs a Command in a Sandbox: an executor's run_command. The package sets it, so that the value
#: imports none of those that use it.
runner: Callable[[Sandbox, Command, bool], Result] | None = None


class Sandbox(Value):
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

    _fields = (
        *("root", "network", "mounts", "processes", "ipc", "hostname", "extra_mounts"),
        *("filesystem_writable_paths", "devices", "policy", "init", "user"),
        *("umask", "limits", "deterministic", "tmp", "resolv_conf", "personality"),
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
    tmp: str
    resolv_conf: bool
    personality: str | None
    _left: frozenset[str]  # the names of arguments that were None, for which there is a default
    _user_kind: str  # 'caller', 'root' or 'ranges'
    _ids: tuple[int, int] | None  # of the User
    _groups: tuple[int, ...]
    _plans: dict[object, _types.Any]
    _limited: dict[Limits, Sandbox]  # by the limits of Commands
    _base: Sandbox | None = None  # of one of those: the Sandbox that it was made of

    def __init__(
        self,
        root: _types.Path,
        *,
        network: str = "isolated",
        mounts: str = "isolated",
        processes: str = "isolated",
        ipc: str = "isolated",
        hostname: str | None = None,
        extra_mounts: Iterable[Mount | Sequence[object]] | None = (),
        filesystem_writable_paths: str | Iterable[_types.Path] | None = None,
        tmp: str | None = None,
        devices: str | Iterable[_types.Path] = "minimal",
        resolv_conf: bool = False,
        policy: Policy = DEFAULT,
        init: bool = True,
        user: int | str | User | None = None,
        umask: int | None = None,
        limits: Limits | None = None,
        deterministic: bool = False,
        personality: str | None = None,
        **unknown: _types.NoReturn,
    ) -> None:
        if unknown:
            raise _unknown(unknown)
        put = self.__dict__.__setitem__  # frozen: the one way in
        left = {"filesystem_writable_paths": filesystem_writable_paths, "tmp": tmp, "user": user}
        put("_left", frozenset(name for name, value in left.items() if value is None))
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
        is_isolated = mounts == "isolated"
        if filesystem_writable_paths is None:
            filesystem_writable_paths = "none" if is_isolated else "all"
        put("filesystem_writable_paths", _writable(filesystem_writable_paths))
        tmp = ("private" if is_isolated else "root") if tmp is None else tmp
        check_choice("tmp", tmp, ("private", "root"))
        put("tmp", tmp)
        if personality is not None:
            check_choice("personality", personality, ("linux32",))
        put("personality", personality)
        put("devices", _devices(devices))
        if not isinstance(policy, Policy):
            raise SpecTypeError(f"policy is no Policy: {policy!r}")
        put("policy", policy)
        for name, flag in (
            *(("init", init), ("deterministic", deterministic)),
            ("resolv_conf", resolv_conf),
        ):
            check_flag(name, flag)
            put(name, flag)
        self._set_user(user, deterministic)
        put("umask", None if umask is None else check_number("umask", umask, 0, 0o777))
        if limits is not None and not isinstance(limits, Limits):
            raise SpecTypeError(f"limits is no Limits: {limits!r}")
        put("limits", limits)
        put("_plans", {})
        put("_limited", {})
        self._check_together()

    def _check_together(self) -> None:
        for what, is_asked_for in (
            ("extra_mounts", bool(self.extra_mounts)),
            ("filesystem_writable_paths", self.filesystem_writable_paths != "all"),
            ("tmp='private'", self.tmp == "private"),
            ("resolv_conf", self.resolv_conf),
            ("a list of devices", isinstance(self.devices, tuple)),
            ("deterministic", self.deterministic),
        ):
            if is_asked_for and self.mounts == "undefined":
                raise SpecError(f"{what} needs mounts='isolated'")
        if isinstance(self.devices, tuple) and any(m.target == "/dev" for m in self.extra_mounts):
            raise SpecError("devices by their paths go into a /dev that an extra mount hides")
        if self.resolv_conf and self.network == "isolated":
            raise SpecError("resolv_conf needs network='undefined': there is no name server")
        paths = self.filesystem_writable_paths
        for path in paths if self.tmp == "private" and isinstance(paths, tuple) else ():
            if f"{path}/".startswith("/tmp/"):
                text = "lies in the private /tmp, where all is writable; tmp='root' leaves"
                raise SpecError(f"the writable path {path} {text} the root's /tmp")
        if self._ids is not None and (self.processes != "isolated" or not self.init):
            raise SpecError("user= with a uid needs processes='isolated' and init=True")

    def isolation(self) -> dict[str, str]:
        """The four kinds of isolation, by name."""
        return {name: getattr(self, name) for name in ("network", "mounts", "processes", "ipc")}

    def replace(self, **changes: _types.Any) -> Sandbox:
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

    def _for(self, command: Command) -> Sandbox:
        """The Sandbox that a Command runs in: this one, with the limits of the Command over its
        own. Its runs share the slots of this one where they can (see _plan.plan_for).
        """
        if command.limits is None:
            return self
        box = self._limited.get(command.limits)
        if box is None:
            limits = command.limits if self.limits is None else self.limits | command.limits
            box = self.replace(limits=limits)
            box.__dict__["_base"] = self
            if len(self._limited) >= MOST_LIMITED:
                self._limited.clear()
            self._limited[command.limits] = box
        return box

    def run(
        self,
        command: _types.Argv | Command,
        /,
        *,
        fresh: bool = False,
        check: bool = False,
        **options: _types.Unpack[_types.CommandOptions],
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
        assert runner is not None
        box = self if command.limits is None else self._for(command)
        result = runner(box, command, fresh)
        return result.check() if check else result

    def start(
        self,
        command: _types.Argv | Command,
        /,
        **options: _types.Unpack[_types.CommandOptions],
    ) -> _types.Process:
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
        from . import _handle

        return _handle.start(self, command_of("start", command, options))

    async def run_async(
        self,
        command: _types.Argv | Command,
        /,
        *,
        fresh: bool = False,
        check: bool = False,
        **options: _types.Unpack[_types.CommandOptions],
    ) -> Result:
        """As run(), in an event loop: of asyncio, or of what anyio knows (`sandboxlib[anyio]`).

        No thread is made; the loop waits for many runs at once. To start one takes the loop as
        long as a run takes to start, below a millisecond mostly. A cancellation kills the run, and
        waits for its end. The arguments are those of run(); UnsupportedError as in start().
        """
        from . import _async

        made = command_of("run_async", command, options, "fresh", "check")
        result = await _async.run(self, made, fresh)
        return result.check() if check else result

    def start_async(
        self,
        command: _types.Argv | Command,
        /,
        **options: _types.Unpack[_types.CommandOptions],
    ) -> _types.AsyncProcess:
        """As start(), in an event loop; the command starts when it is entered:

        async with box.start_async(["make"]) as process:
            async for line in process.stdout:
                ...
        """
        from . import _async

        return _async.start(self, command_of("start_async", command, options))

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
        **options: _types.Unpack[_types.CommandOptions],
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
        **options: _types.Unpack[_types.CommandOptions],
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
        **options: _types.Unpack[_types.CommandOptions],
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
        from . import _map

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


def _unknown(words: Mapping[str, object]) -> SpecTypeError:
    for name in words:
        if name in ("ids", "group", "groups"):
            return SpecTypeError(f"{name} belongs to User: Sandbox(user=User(uid, gid, groups))")
        if name in Policy._fields:
            return SpecTypeError(f"{name} belongs to Policy: Sandbox(policy=Policy({name}=...))")
    return unknown_keyword("Sandbox", words, Sandbox._fields)


def _root(value: object) -> str:
    return absolute(check_path("the root", value))


def _hostname(value: object) -> str:
    name = check_text("hostname", value)
    if not name or len(os.fsencode(name)) > 64:  # sethostname(2), HOST_NAME_MAX
        raise SpecError(f"hostname has to be of 1 to 64 bytes: {name!r}")
    return name
