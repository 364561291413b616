# SPDX-License-Identifier: Apache-2.0
"""The executor that drives bwrap(1), for machines where only that works.

It refuses the promises that bwrap cannot keep. These differences remain, and break no promise:

 - A command that signal n ended has exit status 128+n, as in a shell: bwrap tells no more.
 - mounts='undefined' isolates mounts nevertheless.
 - The command cannot open devices of a read-only root or of a bind mount, whatever `devices` says,
   and a minimal /dev is writable.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Sequence
from time import monotonic

from . import errors
from ._executors import (
    base,
    bwrap_gate,
    bwrap_look,
    bwrap_mounts,
    bwrap_overlay,
    bwrap_tool,
    bwrap_words,
    calls,
    trial,
)
from ._executors.base import Executor
from ._executors.refusals import (
    limits_refused,
    read_only_refused,
    single_id_refused,
)
from ._host import green, machine
from ._runs import explain, extras
from ._runs.job import Job, job_of
from ._runs.run import check_stop, memory_file
from ._spec.command import Command, encode_argv, whole_environment
from ._spec.policy import DEFAULT_CAPABILITIES, filter_of, program_of
from ._spec.spec import Spec
from .result import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._runs.run import Run

NAME = "bubblewrap"
_MOST_PASSED = 29  # pass_fds; three more descriptors are bwrap's own
CAPABILITIES = {
    "network": ["isolated", "undefined"],
    "mounts": ["isolated", "undefined"],
    "filesystem_writable_paths": ["all", "any"],
}


def _promises_not(box: Spec) -> list[str]:
    refused = bwrap_overlay.refused(box)
    if box.policy.nesting:
        refused.append("nesting=True: bwrap cannot make a sandbox in which commands make others")
    if not box.policy.no_new_privs:
        refused.append("no_new_privs=False: bwrap always sets it")
    if box._user_kind == "ranges":
        refused.append("user='ranges': bwrap maps one id")
    if box._ids is not None and os.geteuid() == 0:
        refused.append(f"user={box.user!r}: root's bwrap does not change ids")
    elif box._ids is not None:
        refused += single_id_refused(box)
    if box.deterministic:
        refused.append("deterministic=True: bwrap cannot do all of it")
    if isinstance(box.devices, tuple):
        refused.append(f"devices={list(box.devices)!r}: bwrap binds no device by name here")
    refused += limits_refused(box, in_user_namespace=os.geteuid() != 0, tool="bwrap")
    if os.geteuid() == 0:  # others run in a user namespace of their own
        refused += read_only_refused(box)
    names = box.policy.capabilities
    if isinstance(names, tuple) and not _is_root(box):
        refused.append(f"capabilities={names!r}: the command is not root")
    for mount in box.extra_mounts:
        if mount.source and not mount.recursive and machine.mounts_below(mount.source):
            refused.append(f"bind {mount.source}: bwrap binds what is mounted below it as well")
    return refused


def _is_root(box: Spec) -> bool:
    return box._user_kind == "root" or os.geteuid() == 0 or (box._ids or (-1,))[0] == 0


# ---- the command line ------------------------------------------------------------------------


def _options(box: Spec) -> list[str]:
    """The options that are not about mounts."""
    argv = ["--die-with-parent", *_capabilities(box)]
    for name, flags in (
        ("network", ["--unshare-net"]),
        ("processes", ["--unshare-pid", "--unshare-cgroup"]),
        ("ipc", ["--unshare-ipc", "--unshare-uts"]),
    ):
        argv += flags if getattr(box, name) == "isolated" else []
    if box.hostname is not None:
        argv += ["--unshare-uts", "--hostname", box.hostname]
    ids = (0, 0) if box._user_kind == "root" else box._ids
    if ids is not None and os.geteuid() != 0:
        argv += ["--unshare-user", "--uid", str(ids[0]), "--gid", str(ids[1])]
    if box.processes == "isolated" and not box.init:
        argv.append("--as-pid-1")
    return argv


def _capabilities(box: Spec) -> list[str]:
    if not _is_root(box):
        return []
    names: str | Sequence[str] = box.policy.capabilities
    if names == "all":
        return ["--cap-add", "ALL"]
    names = DEFAULT_CAPABILITIES if names == "default" else names
    added = names if not isinstance(names, str) else ()
    return ["--cap-drop", "ALL", *(arg for name in added for arg in ("--cap-add", f"CAP_{name}"))]


# ---- a run -----------------------------------------------------------------------------------


def _fits(options: list[str], n_argv: int) -> bool:
    return len(options) + n_argv + 4 <= bwrap_tool.MOST_ARGUMENTS


def _words(
    options: list[str],
    box: Spec,
    command: Command,
    layout: bwrap_mounts.Layout,
    descriptors: bwrap_tool.Descriptors,
    undo: contextlib.ExitStack,
) -> bwrap_words.Words | None:
    """The words of the command in a file, if bwrap does not take so many; otherwise None.
    UnsupportedError if it does not take the options either, or the sandbox cannot have the file.
    """
    argv = command._argv
    if _fits(options, len(argv)):
        return None
    lacks = ""
    if not layout.has_proc():
        lacks = ", and the sandbox has no proc on /proc, by which it would take more words"
    elif not descriptors.has_room(0):
        lacks = ", and it would take more words with two pass_fds less"
    if lacks or len(argv) < bwrap_words.FEWEST or not _fits(options, bwrap_words.N_ARGV):
        raise errors.UnsupportedError(
            f"{NAME}: bwrap takes {bwrap_tool.MOST_ARGUMENTS} arguments, and the command, its "
            f"environment and its mounts are {len(options) + len(argv)}{lacks}; chroot and "
            "user_namespace take any number, and one bind of a directory stands for those of its "
            "files"
        )
    paths = [os.fsencode(path) for path in job_of(command, box).paths]
    return bwrap_words.Words(paths, argv, descriptors, undo)


def _arguments(options: list[str], undo: contextlib.ExitStack) -> int:
    """A memfd with bwrap's options, so that no other user sees them."""
    content = b"".join(os.fsencode(option) + b"\0" for option in options)
    fd = memory_file("the options of bwrap", content)
    undo.callback(os.close, fd)
    return fd


def _environment(command: Command) -> list[str]:
    """The options that set the environment of the command. bwrap itself gets an empty one, as some
    variables would steer its loader and libc.
    """
    whole = whole_environment(command.extra_env, command.env)
    return [arg for name, value in whole.items() for arg in ("--setenv", name, value)]


def _check_format(box: Spec, command: Command, layout: bwrap_mounts.Layout) -> None:
    """Raises ENOEXEC for a file that is no program, as the kernel would: bwrap hands it to a shell.
    Handlers of other formats (binfmt_misc) may know it.
    """
    job = job_of(command, box)
    for path in job.paths:
        host = layout.find(path if path.startswith("/") else f"{job.cwd}/{path}")
        if host == "" or (host and not os.path.isfile(host)):
            return
        if host and os.access(host, os.X_OK, effective_ids=True):
            with contextlib.suppress(PermissionError), open(host, "rb") as file:
                start = file.read(4)
                if not start.startswith((b"\x7fELF", b"#!")) and not machine.has_handlers():
                    what = f"exec {path!r} in the root {box._root_name}"
                    hint = explain.hint("exec", 0, errno.ENOEXEC)
                    raise errors.setup_error(errno.ENOEXEC, path, "exec", what, hint)
            return


def _let_go(gate: bwrap_gate.Gate, layout: bwrap_mounts.Layout, run: Run) -> None:
    """Waits until bwrap has made its mounts, compares them, and lets the command start if they are
    right. Returns also if bwrap has ended, or the time is over: the caller finds that out.
    """
    gate.started()
    while not gate.is_reached():
        if gate.is_over() or run.wait() == 0:
            return
        check_stop()
        gate.pause()
    if machine.is_root_of_the_machine():
        bwrap_look.protect_devices(gate.pid() or 0, layout.wanted, layout.hides_devices)
    fault = bwrap_look.find_fault(bwrap_look.table(gate.pid() or 0), layout.wanted)
    if fault and not gate.is_over():
        what = f"bwrap: {fault}"
        hint = "another process changed names in the root meanwhile"
        raise errors.setup_error(errno.ESTALE, None, "mount", what, hint)
    with contextlib.suppress(BrokenPipeError):
        gate.open()


def _could_not_begin(gate: bwrap_gate.Gate, result: Result) -> bool:
    """Whether the command never began. A command can fake its output and its exit status, so we ask
    whether bwrap reported an exit status. If bwrap was killed after the gate opened, assume that
    the command began.
    """
    return not gate.has_exit_status() and not (gate.is_open and result.exit < 0)


def _isolation(box: Spec) -> dict[str, str]:
    return {**box.isolation(), "mounts": "isolated", "seccomp": filter_of(box.policy)}


def _exec_failure(number: int, box: Spec, command: Command, cwd: str) -> errors.SetupError:
    program = command.argv[0]
    what = f"exec {program!r} in the root {box._root_name}"
    hint = explain.hint_of_exec(box, command.argv, job_of(command, box).paths, cwd, None, number)
    return errors.setup_error(number, program, "exec", what, hint)


def _not_read(box: Spec, command: Command) -> errors.SetupError:
    what = f"exec {command.argv[0]!r} in the root {box._root_name}: its words were not read"
    hint = "a seccomp filter refuses mmap or fcntl, or the memory is at its limit; with less than "
    hint += "9,000 words bwrap needs neither"
    return errors.setup_error(errno.EIO, command.argv[0], "exec", what, hint)


def _failure(
    result: Result, box: Spec, command: Command, cwd: str, has_words: bool
) -> errors.SetupError:
    """The error for the last line on stderr that begins with the name of bwrap. has_words: bwrap
    was to execute our program, which reads the words.
    """
    said = result.err or result.out or b""
    lines = [line for line in said.splitlines() if b"bwrap: " in line]
    if lines and "\n" in command.argv[0]:  # which is a part of its line
        lines = [b"bwrap: " + said.rpartition(b"bwrap: ")[2].rstrip()]
    text = os.fsdecode(lines[-1]) if lines else "bwrap failed, and its stderr was not captured"
    failure = bwrap_tool.failed(text)
    number = failure.errno or 0
    if "execvp" in text and has_words:
        what = f"{text}: the program that hands more than {bwrap_tool.MOST_ARGUMENTS} words on"
        return errors.setup_error(
            number, None, "exec", what, "chroot and user_namespace do not need it"
        )
    if "execvp" in text:
        return _exec_failure(number, box, command, cwd)
    if "chdir" in text:
        what = f"Unable to set current working directory: {cwd!r} in the root {box._root_name}"
        hint = explain.hint_of_cwd(box, cwd, number)
        return errors.setup_error(number, cwd, "cwd", what, hint)
    return failure


class Bubblewrap(Executor):
    """The executor that drives bwrap(1)."""

    name = NAME

    def why_not(self) -> str:
        """Returns "" if the executor works on this machine; otherwise says why not."""
        return trial.trial(self.run_command, (), "caller", os.geteuid())

    def refusals(self, box: Spec) -> list[str]:
        """Returns a sentence for each promise of a Sandbox that it cannot keep on this machine."""
        return _promises_not(box) or trial.native_refusals(self.run_command, box)

    def run_command(self, box: Spec, command: Command, fresh: bool = True) -> Result:
        """Runs a Command in a Sandbox. bwrap always makes new namespaces, whatever fresh says."""
        green.refuse(f"the executor {NAME}")  # in a greenlet its look at mounts would move us
        start = monotonic()
        cwd = job_of(command, box).cwd
        argv = command._argv
        passed = command.pass_fds
        extras.check_passed(passed)
        refused = _promises_not(box)
        if len(passed) > _MOST_PASSED:
            refused.append(f"pass_fds of {len(passed)}: three of 32 are bwrap's own")
        if refused:
            raise errors.UnsupportedError(f"{NAME}: {'; '.join(refused)}")
        deadline = None if command.timeout is None else start + command.timeout
        with contextlib.ExitStack() as undo:
            tool = bwrap_tool.find_tool(deadline)
            is_long = len(argv) >= bwrap_words.FEWEST
            reserved = 1 + is_long * bwrap_words.N_DESCRIPTORS  # 1: for the options themselves
            descriptors = bwrap_tool.Descriptors(passed, reserved)
            gate = undo.enter_context(
                bwrap_gate.Gate(program_of(box.policy) or bwrap_gate.ALLOW_ALL)
            )
            options = [*gate.options(descriptors.take), *_options(box)]
            covers = box.policy.capabilities != "all"
            layout = bwrap_mounts.Layout(box, tool, covers, descriptors, undo, deadline)
            options += [*layout.options(), *_environment(command)]
            if command.cwd is None and not layout.has_directory(cwd):
                cwd = "/"
            options += ["--chdir", "/" + cwd.lstrip("/")]
            _check_format(box, command, layout)
            words = _words(options, box, command, layout, descriptors, undo)
            argv = words.argv if words else argv
            arguments = descriptors.take(_arguments(options, undo))
            front = encode_argv([tool.path, "--args", str(arguments), "--"])
            job = Job([*front, *argv], "/", [], [])
            began = functools.partial(_let_go, gate, layout)
            isolation, moved = _isolation(box), descriptors.moved
            result = base.run_tool(NAME, box, job, command, start, isolation, moved, began)
            result._rusage = b""  # incomplete: bwrap does not wait for the last of its processes
            is_killed = result.exit == -9 and "output" in result.limits_hit
            if result.timed_out or is_killed:
                return result
            if _could_not_begin(gate, result):
                raise _failure(result, box, command, cwd, words is not None)
            if words and (number := words.error()):
                if number < 0:
                    raise _not_read(box, command)
                raise _exec_failure(number, box, command, cwd)
        return result

    def causes(self) -> list[tuple[str, str]]:
        if name := green.library():
            return [(f"{name} has replaced threads by greenlets", green.REMEDY)]
        try:
            bwrap_tool.find_tool()
        except errors.ProgramNotFound:
            return [("there is no bwrap in PATH", "install bubblewrap")]
        except errors.UnsupportedError as error:
            return [("the bwrap in PATH is not used", str(error))]
        except errors.SetupError:
            pass  # the causes below explain it
        lacks = machine.missing_capabilities() if os.geteuid() == 0 else []
        return lacks + machine.about_user_namespaces()

    def maximum_possible_isolation(self) -> dict[str, str]:
        return trial.possible_isolation(self.run_command)


EXECUTOR = Bubblewrap()
why_not = EXECUTOR.why_not
refusals = EXECUTOR.refusals
run_command = EXECUTOR.run_command
_api = calls.Api(NAME, run_command, EXECUTOR.maximum_possible_isolation)
run_in = _api.run_in
maximum_possible_isolation = _api.maximum_possible_isolation
run_sandbox = _api.run_sandbox
run_sandbox_with_redirection = _api.run_sandbox_with_redirection
degrade_config_for_capabilities = _api.degrade_config_for_capabilities
