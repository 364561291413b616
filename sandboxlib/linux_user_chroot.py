# SPDX-License-Identifier: Apache-2.0
"""The executor for ordinary users: it drives the set-user-ID program linux-user-chroot.

It refuses the promises that the program cannot keep. These differences remain, and break none:

 - A command that a signal ended has exit status 1: the program tells no more.
 - There is no reaper, whatever `init` says: with processes='isolated' the command is pid 1.
 - network='isolated' leaves lo down, and mounts='undefined' isolates mounts nevertheless.
 - A tmpfs is a new directory on disk, removed afterwards. Mount.dev() has no pts and no shm.
 - A run that could not begin has exit status 1 too. To tell the two apart, a shell in the root
   reports just before it executes the command, and a command cannot take that back. The command
   sees the changes of the shell to PWD, SHLVL (if they are in the environment) and `_`. If the root
   has no /bin/sh, or a shell cannot handle the name of a variable, we only look up the program and
   the directory beforehand.
 - A run goes on if its caller is killed. Nothing is left of a run that is interrupted.
 - The program follows symbolic links out of the root. If commands of other runs can make such
   links, we refuse writable paths (see luc_mounts.doubts), and bind all sources to a directory with
   a random name before the program looks up the first target. Such a command can make a mount miss
   its target; that never shows outside of the run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Mapping
from time import monotonic

from . import errors
from ._executors import base, calls, trial
from ._executors.base import Executor
from ._executors.luc_mounts import Recipe, doubts, takes_stage
from ._executors.refusals import (
    entries_refused,
    limits_refused,
    overlay_refused,
    read_only_refused,
)
from ._executors.view import View
from ._host import machine, tools
from ._runs import explain, extras
from ._runs.job import Job, job_of
from ._spec.command import MOST_PASSED, Command, encode_argv, encode_environment, whole_environment
from ._spec.policy import Policy
from ._spec.spec import Spec
from .errors import UnsupportedError
from .result import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


NAME = "linux_user_chroot"
CAPABILITIES = {
    "network": ["isolated", "undefined"],
    "mounts": ["isolated", "undefined"],
    "filesystem_writable_paths": ["all", "any"],
}
PROGRAM = "linux-user-chroot"
_INSTALL = "no current distribution has it: build release 2015.1, or use another executor"
DIRECTORIES = ("/usr/bin", "/usr/local/bin", "/bin", "/sbin", "/usr/sbin", "/usr/local/sbin")

#: Variables that glibc 2.36 removes from the environment of a set-user-ID program, or edits:
#: ld.so(8), and UNSECURE_ENVVARS in sysdeps/generic/unsecvars.h.
STRIPPED = frozenset(
    "GCONV_PATH GETCONF_DIR GLIBC_TUNABLES HOSTALIASES LD_AUDIT LD_DEBUG LD_DEBUG_OUTPUT "
    "LD_DYNAMIC_WEAK LD_HWCAP_MASK LD_LIBRARY_PATH LD_ORIGIN_PATH LD_PRELOAD LD_PROFILE "
    "LD_SHOW_AUXV LOCALDOMAIN LOCPATH MALLOC_CHECK_ MALLOC_TRACE NIS_PATH NLSPATH "
    "RESOLV_HOST_CONF RES_OPTIONS TMPDIR TZDIR".split()
)


# ---- the program -----------------------------------------------------------------------------


class Tool:
    """A linux-user-chroot that was tried, and works.

    leaks: bool, whether it leaves a descriptor of each bind source open in the sandbox.
    """

    def __init__(self, path: str, version: tuple[int, int], leaks: bool) -> None:
        self.path = path
        self.version = version
        self.recent = version >= (2015, 1)  # no_new_privs, --mount-devapi, and the limit
        self.limit = 1023 if self.recent else 49
        self.leaks = leaks
        self._denied: dict[tuple[str, ...], str] = {}

    def denied(self, box: Spec) -> str:
        """Why this machine denies the namespaces of a Sandbox, or ""; each set is tried once."""
        options = tuple(namespaces(box))
        if options not in self._denied:
            status, _, err = (
                _attempt(self.path, *options, "/", self.path) if options else (0, "", "")
            )
            self._denied[options] = f"{' '.join(options)}: {err.strip()}" if status else ""
        return self._denied[options]


_tried: dict[tuple[object, ...], Tool | str] = {}


def find_tool() -> str | None:
    """The program in the caller's PATH, or in one of DIRECTORIES. UnsupportedError if other users
    could have put it there.
    """
    return tools.trusted_tool(PROGRAM, DIRECTORIES)


def _tool() -> Tool | str:
    """The program, which each process tries once; or why it cannot be used."""
    try:
        path = find_tool()
    except UnsupportedError as error:
        return str(error)
    if path is None:
        searched = ", ".join(DIRECTORIES)
        return f"there is no {PROGRAM} in PATH nor in {searched}; {_INSTALL}"
    status = os.stat(path)
    key = (path, status.st_dev, status.st_ino, status.st_ctime_ns, os.geteuid())
    if key not in _tried:
        _tried[key] = _obstacle(path, status) or _try(path)
    return _tried[key]


def _obstacle(path: str, status: os.stat_result) -> str:
    """Why the program cannot work, as far as we can tell without running it; "" if nothing does.

    Only the last obstacle concerns root.
    """
    if os.geteuid() != 0:
        if status.st_uid != 0 or not status.st_mode & stat.S_ISUID:
            remedy = f"chown root {path} && chmod 4755 {path}"
            return f"{path} is not owned by root and set-user-ID; as root: {remedy}"
        if os.statvfs(path).f_flag & os.ST_NOSUID:
            return f"{path} is on a mount with nosuid; install it elsewhere, or remount that suid"
        if _no_new_privs():
            return (
                f"this process has no_new_privs, so that {path} gains no privilege; start it "
                "without (systemd: NoNewPrivileges=no, docker: no --security-opt no-new-privileges)"
            )
    if os.statvfs("/").f_flag & os.ST_RDONLY:
        return f"/ is read-only, which {path} would undo for the whole machine; remount / writable"
    return ""


def _no_new_privs() -> bool:
    with contextlib.suppress(OSError), open("/proc/self/status") as lines:
        return any(line.split() == ["NoNewPrivs:", "1"] for line in lines)
    return False


def _attempt(path: str, *args: str) -> tuple[int, str, str]:
    """Runs the program with itself as the command, as no other program exists for sure. Returns
    (exit, out, err). SetupError if the failure says nothing about the program.
    """
    from subprocess import DEVNULL, TimeoutExpired, run

    argv = [path, *args, "--version"]
    try:
        done = run(
            argv, stdin=DEVNULL, capture_output=True, cwd="/", env={}, timeout=30, check=False
        )
    except (OSError, TimeoutExpired) as error:
        number = getattr(error, "errno", 0)
        if number in trial.TRANSIENT:
            raise errors.setup_error(number, path, "pipe", f"try {path}") from error
        return 127, "", f"it cannot be run: {error}; install it again"
    return done.returncode, done.stdout.decode("ascii", "replace"), os.fsdecode(done.stderr)


def _try(path: str) -> Tool | str:
    """Tries the program: returns its abilities, or why it does not work."""
    exit, out, err = _attempt(path)
    if exit == 0:
        exit, out, err = _attempt(path, "/", path)
    if exit == 0:
        # A version that can bind files leaves a descriptor of every source open in the sandbox.
        leaks = _attempt(path, "--mount-bind", path, path, "/", path)[0] == 0
        return Tool(path, _version(out), leaks)
    reason = err.strip() or f"exit status {exit}"
    return f"{path} does not work here: {reason}; in a container it takes CAP_SYS_ADMIN"


def _version(text: str) -> tuple[int, int]:
    """(2015, 1) from a text with 2015.1 in it. A text without a version counts as the oldest."""
    for part in text.replace(",", " ").split():
        year, _, number = part.partition(".")
        if len(year) == 4 and year.isdigit() and number.isdigit():
            return int(year), int(number)
    return 2013, 1


# ---- refusals --------------------------------------------------------------------------------


def _of_the_policy(policy: Policy, recent: bool) -> list[str]:
    refused = []
    if policy.no_new_privs and not recent:
        refused.append("linux-user-chroot before 2015.1 cannot promise no_new_privs=True")
    if not policy.no_new_privs and recent:
        refused.append("linux-user-chroot of 2015.1 or later always sets no_new_privs")
    if policy.seccomp not in ("default", "none"):
        refused.append("linux-user-chroot takes no filter of system calls but its own")
    if policy.nesting:
        refused.append("linux-user-chroot cannot make a sandbox in which commands make others")
    # Commands of ordinary users have no capabilities. Those of root have all, or before 2015 none.
    possible = ("default", "all", "none") if os.getuid() else ("all",) if recent else ("none",)
    if policy.capabilities not in possible:
        text = " or ".join(map(repr, possible))
        refused.append(f"linux-user-chroot promises this caller no other capabilities than {text}")
    return refused


def _devices_refused(box: Spec, recent: bool) -> list[str]:
    if isinstance(box.devices, tuple):
        return [f"devices={list(box.devices)!r}: linux-user-chroot binds no device by name"]
    if box.devices == "root" or box.mounts == "undefined":
        return []
    if not recent:
        return ["linux-user-chroot before 2015.1 has no minimal /dev; devices='root' goes without"]
    writable = box.filesystem_writable_paths
    paths = [mount.target for mount in box.extra_mounts if mount.target != "/dev"]
    paths += writable if isinstance(writable, tuple) else ()
    if any(f"{path}/".startswith("/dev/") for path in paths):
        return ["nothing is writable in the minimal /dev of linux-user-chroot; devices='root' is"]
    return []


# ---- the command line ------------------------------------------------------------------------


def command_line(
    tool: Tool, recipe: Recipe, argv: list[bytes | str], cwd: str
) -> list[bytes | str]:
    """All words of a run. Raises UnsupportedError where the program does not take so many."""
    options = [[word] for word in namespaces(recipe.box)]
    if _filter(tool, recipe.box) == "tool":
        options.append(["--seccomp-profile-version", "0"])
    if cwd != "/":
        options.append(["--chdir", cwd])
    options += recipe.options()
    if len(options) > tool.limit:
        version = "{}.{}".format(*tool.version)
        raise UnsupportedError(
            f"the sandbox takes {len(options)} options of linux-user-chroot, "
            f"which takes {tool.limit} at most in version {version}"
        )
    return [tool.path, *(word for option in options for word in option), recipe.program_root, *argv]


def _filter(tool: Tool, box: Spec) -> str:
    """The filter of system calls, as Result.isolation names it."""
    return "tool" if tool.recent and box.policy.seccomp == "default" else "none"


def namespaces(box: Spec) -> list[str]:
    """The options for the namespaces of a Sandbox."""
    isolation = box.isolation()
    kinds = (("net", "network"), ("pid", "processes"), ("ipc", "ipc"))
    return [f"--unshare-{kind}" for kind, name in kinds if isolation[name] == "isolated"]


def with_stripped(view: View, argv: list[bytes | str], env: dict[str, str]) -> list[bytes | str]:
    """Puts env(1) in front of the command, to set the variables that glibc removes (see STRIPPED).

    It takes them out of `env`. Other users can read them in /proc then.
    """
    # Do so for root too: there glibc removes none, and the program itself would obey them.
    names = sorted(name for name in env if name in STRIPPED or name.startswith("LD_"))
    if not names:
        return argv
    helper = _executable(view, "/usr/bin/env", "/bin/env")
    if helper is None or b"=" in os.fsencode(argv[0]):
        raise UnsupportedError(
            f"the loader of a set-user-ID program removes {', '.join(names)}; "
            "to set them in the sandbox its root has to have /usr/bin/env"
        )
    return [helper, *(f"{name}={env.pop(name)}" for name in names), *argv]


def _executable(view: View, *paths: str) -> str | None:
    return next((path for path in paths if os.access(view.find(path) or "", os.X_OK)), None)


def with_report(argv: list[bytes | str], env: Mapping[str, str], number: int) -> list[bytes | str]:
    """Puts a shell in front of the command, which writes a byte to a descriptor, closes it, and
    executes the command. So the command itself can neither write there, nor take the byte back.

    The shell unsets the variables that it adds itself, as far as it allows that.
    """
    added = [name for name in ("PWD", "OLDPWD", "SHLVL") if name not in env]
    unset = f"unset {' '.join(added)}; " if added else ""
    script = f'echo >&{number}; exec {number}>&-; {unset}exec "$@"'
    return ["/bin/sh", "-c", script, "sh", *argv]


def _passes_a_shell(env: Mapping[str, str]) -> bool:
    """Whether a shell hands on each variable: it drops those whose names it cannot parse."""
    return all(name.isascii() and name.isidentifier() for name in env)


class _Report:
    """A pipe into which a shell writes just before it executes the command."""

    def __init__(self, number: int, undo: contextlib.ExitStack) -> None:
        self.number = number  # in the shell, which can redirect descriptors of one digit only
        self._reader, self.writer = os.pipe()
        undo.callback(os.close, self._reader)
        undo.callback(os.close, self.writer)
        os.set_blocking(self._reader, False)

    def came(self) -> bool:
        """Whether the shell has written."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self._reader, 1) != b""
        return False


# ---- a run -----------------------------------------------------------------------------------


def _check_leaks(tool: Tool, recipe: Recipe) -> None:
    if tool.leaks and any(option[0] == "--mount-bind" for option in recipe.options()):
        raise UnsupportedError(
            f"{tool.path} leaves open in the sandbox the sources of binds, which lead out of the "
            "root; install release 2015.1 of linux-user-chroot"
        )


_STEPS = {
    "clone": "clone",
    "prctl (PR_SET_NO_NEW_PRIVS)": "no_new_privs",
    "mount (MS_BIND)": "mount",
    "mount (MS_BIND | MS_RDONLY)": "mount",
    'mount ("proc")': "mount",
    "setting up devapi": "mount",
    "mount (MS_MOVE)": "pivot",
    "chroot": "chroot",
    "chdir": "cwd",  # entering the root has the same message, but its chroot has just worked
    "execv": "exec",
}


class _Run:
    """Tells a run that could not begin apart from a command with exit status 1."""

    def __init__(self, box: Spec, command: Command, cwd: str, view: View) -> None:
        self.box, self.command, self.cwd, self.view = box, command, cwd, view
        self.program = command.argv[0]
        self.is_trial = isinstance(command, trial.Trial)  # no shell of the root runs then
        self.report: _Report | None = None  # if a shell stands in front of the command

    def check_first(self, env: Mapping[str, str]) -> None:
        """SetupError if the cwd or the program is missing: this Tool would only write to stderr."""
        number = errno.ENOENT
        here = self.view.find(os.path.join("/", self.cwd))
        if here is None or (here and not os.path.isdir(here)):
            raise self._error("cwd", errno.ENOTDIR if here else errno.ENOENT)
        path = env.get("PATH", "/bin:/usr/bin")
        for directory in [""] if "/" in self.program else path.split(":"):
            host = self.view.find(os.path.join("/", self.cwd, directory, self.program))
            if host == "" or (host and os.access(host, os.X_OK) and not os.path.isdir(host)):
                return
            number = errno.EACCES if host else number
        raise self._error("exec", number)

    def check_setup(self, result: Result) -> None:
        """SetupError if the command did not begin, as the shell did not report. Then the last line
        of stderr is from the program.
        """
        if not self.is_trial and (self.report is None or self.report.came()):
            return
        output = (result.out if result.err is None else result.err) or b""
        last = os.fsdecode(output).rstrip("\n").rpartition("\n")[2]
        head, _, tail = last.rpartition(": ")
        if not head and tail.startswith("Couldn't ") and tail.endswith(" bind mount source"):
            raise errors.setup_error(errno.EACCES, None, "source", f"{PROGRAM}: {tail}")
        number = next((n for n in errno.errorcode if os.strerror(n) == tail), 0)
        if head in _STEPS and number:
            raise self._error(_STEPS[head], number, f"{PROGRAM}: {head}")
        what = last or "which wrote its reason to the stderr of the run"
        raise errors.setup_error(errno.EIO, None, "mount", f"{PROGRAM}: {what}")

    def _error(self, step: str, number: int, what: str = "") -> errors.SetupError:
        box, root, filename = self.box, self.view.over["/"], None
        hint = explain.hint(step, -1, number)
        if step == "exec":
            filename, what = self.program, f"exec {self.program!r} in the root {root}"
            paths = job_of(self.command, box).paths
            hint = explain.hint_of_exec(box, self.command.argv, paths, self.cwd, None, number)
        if step == "cwd":
            filename, what = self.cwd, f"change to {self.cwd!r} in the root {root}"
            hint = explain.hint_of_cwd(box, self.cwd, number)
        return errors.setup_error(number, filename, step, what, hint)


class LinuxUserChroot(Executor):
    """The executor that drives linux-user-chroot."""

    name = NAME

    def why_not(self) -> str:
        """Returns "" if the program works; otherwise a sentence with the cause and the remedy."""
        tool = _tool()
        return tool if isinstance(tool, str) else ""

    def refusals(self, box: Spec) -> list[str]:
        """Returns a sentence for each promise of a Sandbox that it cannot keep on this machine."""
        tool = _tool()
        if isinstance(tool, str):
            return [tool]
        recent = tool.recent
        refused = (
            overlay_refused(box, NAME)
            + entries_refused(box, NAME)
            + _of_the_policy(box.policy, recent)
        )
        if box.hostname is not None:
            refused.append("linux-user-chroot cannot set a hostname")
        if box._user_kind not in ("caller", "caller" if os.getuid() else "root"):
            refused.append("linux-user-chroot runs commands as the caller only")
        if box._ids is not None:
            refused.append(f"user={box.user!r}: linux-user-chroot does not change ids")
        if box.deterministic:
            refused.append("deterministic=True: linux-user-chroot cannot do all of it")
        refused += _devices_refused(box, recent)
        refused += limits_refused(box, tool="linux-user-chroot") + read_only_refused(box)
        is_file = any(mount.source and os.path.isfile(mount.source) for mount in box.extra_mounts)
        if is_file or box.resolv_conf:
            refused.append("linux-user-chroot mounts directories, not files")
        if any(mount.size is not None for mount in box.extra_mounts):
            refused.append("linux-user-chroot cannot limit the size of a tmpfs")
        if any(mount.type == "dev" for mount in box.extra_mounts) and not recent:
            refused.append("linux-user-chroot before 2015.1 has no Mount.dev()")
        refused += doubts(box)
        if not refused and (denied := tool.denied(box)):
            refused.append(f"linux-user-chroot does not get its namespaces here: {denied}")
        return refused

    def run_command(self, box: Spec, command: Command, fresh: bool = True) -> Result:
        """Runs a Command in a Sandbox. The program makes new namespaces, whatever fresh says."""
        start = monotonic()
        cwd = job_of(command, box).cwd
        settings = whole_environment(command.extra_env, command.env)
        argv: list[bytes | str] = [*command._argv]
        tool = _tool()
        if isinstance(tool, str):
            raise (UnsupportedError if find_tool() else errors.ProgramNotFound)(tool)
        refused = self.refusals(box)
        if refused:
            raise UnsupportedError("; ".join(refused))
        with contextlib.ExitStack() as undo:
            deadline = None if command.timeout is None else start + command.timeout
            recipe = Recipe(box, undo, deadline, takes_stage(box))
            if command.cwd is None and not recipe.view.has_directory(cwd):
                cwd = "/"
            _check_leaks(tool, recipe)
            run = _Run(box, command, cwd, recipe.view)
            if not run.is_trial:
                run.check_first(settings)
            argv = with_stripped(recipe.view, argv, settings)
            moved: dict[int, int] = {}
            passed = command.pass_fds
            extras.check_passed(passed)
            free = next((number for number in range(9, 2, -1) if number not in passed), 0)
            has_shell = not run.is_trial and _executable(recipe.view, "/bin/sh") is not None
            if free and has_shell and _passes_a_shell(settings) and len(passed) < MOST_PASSED:
                run.report = _Report(free, undo)
                argv = with_report(argv, settings, free)
                moved = {free: run.report.writer}
            whole = encode_argv(command_line(tool, recipe, argv, cwd))
            job = Job(whole, "/", *encode_environment(None, settings))
            isolation = {**box.isolation(), "mounts": "isolated", "seccomp": _filter(tool, box)}
            result = base.run_tool(NAME, box, job, command, start, isolation, moved)
            if result.exit == 1 and not result.timed_out:
                run.check_setup(result)
            return result

    def maximum_possible_isolation(self) -> dict[str, str]:
        tool = _tool()
        if isinstance(tool, str):
            return {**trial.UNDEFINED, "seccomp": "none"}
        least: dict[str, Any] = {**trial.UNDEFINED}
        own = trial.AS_IT_IS
        alone = {name: Spec("/", **{**least, name: "isolated", **own}) for name in least}
        denied = {name: "undefined" for name, box in alone.items() if tool.denied(box)}
        return {**trial.ISOLATED, **denied, "seccomp": "default"}

    def causes(self) -> list[tuple[str, str]]:
        is_root = os.geteuid() == 0
        causes = []
        if is_root:
            causes = machine.missing_capabilities() + machine.limits("mnt", "net", "pid", "ipc")
        elif machine.status("NoNewPrivs") == "1":
            remedy = (
                "start the caller without it (systemd: NoNewPrivileges=, docker: no-new-privileges)"
            )
            causes.append(("no_new_privs is set for the caller", remedy))
        path = find_tool()
        if path is None:
            return [*causes, ("there is no linux-user-chroot in PATH", _INSTALL)]
        if is_root:
            return causes
        status = os.stat(path)
        if status.st_uid != 0 or not status.st_mode & 0o4000:
            causes.append(
                (f"{path} is not set-user-ID root", f"chown root {path}; chmod 4755 {path}")
            )
        if os.statvfs(path).f_flag & os.ST_NOSUID:
            remedy = f"mount -o remount,suid {machine.mount_point(path)}"
            causes.append((f"{path} is on a mount with nosuid", remedy))
        return causes


EXECUTOR = LinuxUserChroot()
why_not = EXECUTOR.why_not
refusals = EXECUTOR.refusals
run_command = EXECUTOR.run_command
# In the form of 0.3 the command is not pid 1, as this executor has no reaper.
_api = calls.Api(NAME, run_command, EXECUTOR.maximum_possible_isolation, processes="undefined")
run_in = _api.run_in
maximum_possible_isolation = _api.maximum_possible_isolation
run_sandbox = _api.run_sandbox
run_sandbox_with_redirection = _api.run_sandbox_with_redirection
degrade_config_for_capabilities = _api.degrade_config_for_capabilities
