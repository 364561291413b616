# SPDX-License-Identifier: Apache-2.0
"""The executor that drives bwrap(1), for machines where the native ways are closed and it is open.

What bwrap cannot promise is refused. These differences remain, and are no promise broken:

 - A command that signal n ended has exit status 128+n, as in a shell: bwrap says no more.
 - mounts='undefined' isolates mounts nevertheless.
 - Devices of a read-only root or of a bind mount cannot be opened; Mount.dev() gives some.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Mapping, Sequence
from time import monotonic

from . import _calls, _executor, _machine, _plan, _rare, errors
from ._check import check_path, check_seconds
from ._stubs import Stubs
from .policy import DEFAULT_CAPABILITIES
from .result import Result
from .sandbox import CAPTURE, Mount, Sandbox, caller_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .sandbox import Command, Path, Stream

NAME = "bubblewrap"
PROGRAM = "bwrap"
_MOST_PASSED = 31
CAPABILITIES = {
    "network": ["isolated", "undefined"],
    "mounts": ["isolated", "undefined"],
    "filesystem_writable_paths": ["all", "any"],
}


def find_tool() -> str:
    """bwrap in the caller's PATH or where it is usually installed; ProgramNotFound."""
    for place in (*os.environ.get("PATH", "").split(":"), "/usr/bin", "/usr/local/bin", "/bin"):
        path = os.path.join(place, PROGRAM)
        if path.startswith("/") and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise errors.ProgramNotFound(f"{NAME}: there is no {PROGRAM} in PATH; install bubblewrap")


def why_not() -> str:
    """The empty string where it works on this machine, otherwise why not."""
    return _executor.trial(run_in, (), "caller", os.geteuid())


def refusals(box: Sandbox) -> list[str]:
    """What of a Sandbox it cannot promise on this machine, in words."""
    return _promises_not(box) or _executor.native_refusals(run_in, box)


def _promises_not(box: Sandbox) -> list[str]:
    found = _executor.policy_refused(box)
    if not box.policy.no_new_privs:
        found.append("no_new_privs=False: bwrap always sets it")
    if box.user == "ranges":
        found.append("user='ranges': bwrap maps one id")
    if box.ids is not None:
        found.append(f"ids={box.ids!r}: bwrap does not change ids")
    if box.deterministic:
        found.append("deterministic=True: bwrap cannot do all of it")
    found += _executor.limits_refused(box, in_user_namespace=os.geteuid() != 0)
    names = box.policy.capabilities
    if isinstance(names, tuple) and not _is_root(box):
        found.append(f"capabilities={names!r}: the command is not root")
    for mount in box.extra_mounts:
        if mount.source and not mount.recursive and _machine.mounts_below(mount.source):
            found.append(f"bind {mount.source}: bwrap binds what is mounted below it as well")
    return found


def _is_root(box: Sandbox) -> bool:
    return box.user == "root" or os.geteuid() == 0


# ---- the command line ------------------------------------------------------------------------


def command_line(tool: str, box: Sandbox, status: int, cwd: str) -> list[str]:
    """What stands before the command. status: a descriptor, for bwrap to tell how it went."""
    writable = box.filesystem_writable_paths
    argv = [tool, "--die-with-parent", "--json-status-fd", str(status)]
    argv += _namespaces(box)
    argv += ["--dev-bind" if writable == "all" else "--ro-bind", box.root, "/"]
    for path in writable if isinstance(writable, tuple) else ():
        argv += ["--bind", _joined(box.root, path), path]
    for mount in _mounts(box):
        argv += _mount(mount)
    argv += _capabilities(box)
    return [*argv, "--chdir", cwd, "--"]


def _namespaces(box: Sandbox) -> list[str]:
    argv = []
    for name, flags in (
        ("network", ["--unshare-net"]),
        ("processes", ["--unshare-pid", "--unshare-cgroup"]),
        ("ipc", ["--unshare-ipc", "--unshare-uts"]),
    ):
        argv += flags if getattr(box, name) == "isolated" else []
    if box.hostname is not None:
        argv += ["--unshare-uts", "--hostname", box.hostname]
    if box.user == "root" and os.geteuid() != 0:
        argv += ["--unshare-user", "--uid", "0", "--gid", "0"]
    if box.processes == "isolated" and not box.init:
        argv.append("--as-pid-1")
    return argv


def _mounts(box: Sandbox) -> list[Mount]:
    """With the run's own /proc, where the root has such a directory."""
    own_proc = box.processes == "isolated" and os.path.isdir(_joined(box.root, "/proc"))
    if own_proc and all(mount.target != "/proc" for mount in box.extra_mounts):
        return [Mount.proc(), *box.extra_mounts]
    return list(box.extra_mounts)


def _mount(mount: Mount) -> list[str]:
    if mount.source:
        return ["--ro-bind" if mount.read_only else "--bind", mount.source, mount.target]
    if mount.type == "tmpfs":
        size = ["--size", str(mount.size)] if mount.size else []
        return ["--perms", f"{mount.mode:o}", *size, "--tmpfs", mount.target]
    return [f"--{mount.type}", mount.target]


def _capabilities(box: Sandbox) -> list[str]:
    if not _is_root(box):
        return []
    names: str | Sequence[str] = box.policy.capabilities
    if names == "all":
        return ["--cap-add", "ALL"]
    names = DEFAULT_CAPABILITIES if names == "default" else names
    kept = names if not isinstance(names, str) else ()
    return ["--cap-drop", "ALL", *(w for name in kept for w in ("--cap-add", f"CAP_{name}"))]


def _joined(root: str, path: str) -> str:
    return root.rstrip("/") + path


# ---- a run -----------------------------------------------------------------------------------


def run_in(
    box: Sandbox,
    command: Command,
    cwd: Path | None = None,
    extra_env: Mapping[str, str] | None = None,
    stdin: Stream | bytes = None,
    stdout: Stream = CAPTURE,
    stderr: Stream = CAPTURE,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    fresh: bool = True,
    more: Mapping[str, Any] | None = None,
) -> Result:
    """Runs a command in a Sandbox; see run_sandbox."""
    start = monotonic()
    if timeout is not None:
        check_seconds("timeout", timeout)
    words = _plan.command_words(command)
    whole = _plan.environment(extra_env, env)
    if cwd is None:
        cwd = caller_directory() if box.root == "/" else "/"
    inside = check_path("cwd", cwd)
    more = more or {}
    passed = _rare.passed_descriptors(more.get("pass_fds", ()))
    refused = _promises_not(box)
    if len(passed) > _MOST_PASSED:
        refused.append(f"pass_fds of {len(passed)}: one of {_MOST_PASSED + 1} is bwrap's own")
    if refused:
        raise errors.UnsupportedError(f"{NAME}: {'; '.join(refused)}")
    tool = find_tool()
    with contextlib.ExitStack() as undo:
        stubs = Stubs(box.root, None if timeout is None else start + timeout)
        undo.callback(stubs.release)
        _make_mount_points(stubs, box)
        reader, writer = _pipe()
        undo.callback(os.close, reader)
        try:
            ours, rest = _set_apart(whole)
            line = command_line(tool, box, writer, "/" + inside.lstrip("/"))
            argv: list[bytes | str] = [line[0], *ours, *line[1:], *words]
            result = _executor.run_tool(
                NAME,
                box,
                argv,
                rest,
                stdin,
                stdout,
                stderr,
                timeout,
                start,
                _isolation(box),
                {**more, "pass_fds": (*passed, writer)},
            )
        finally:
            os.close(writer)
        result._rusage = b""  # bwrap's own: it does not wait for the last of its processes
        is_killed = result.exit == -9 and "output" in result.limits_hit
        if not (result.timed_out or is_killed) and b'"exit-code"' not in os.read(reader, 65536):
            raise _failure(result, box.root, os.fsdecode(words[0]))
    return result


def _pipe() -> tuple[int, int]:
    try:
        return os.pipe()
    except OSError as error:
        number = error.errno or 0
        what = "make the pipes of the run"
        hint = _plan.hint("pipe", 0, number)
        raise errors.setup_error(number, None, "pipe", what, hint) from error


def _isolation(box: Sandbox) -> dict[str, str]:
    return {**box.isolation(), "mounts": "isolated"}


def _make_mount_points(stubs: Stubs, box: Sandbox) -> None:
    """bwrap would make those that the root lacks, and leave them there."""
    made: list[str] = []
    for index, mount in enumerate(box.extra_mounts):
        around = any((mount.target + "/").startswith(f"{other}/") for other in made)
        made.append(mount.target)
        if around:
            continue  # in a mount of the run's own, where bwrap makes it
        try:
            stubs.hold(mount.target, mount.source is None or os.path.isdir(mount.source))
        except OSError as error:
            what = f"mount {index}: make the mount point"
            number = error.errno or 0
            hint = _plan.hint("target", index, number)
            raise errors.setup_error(number, mount.target, "target", what, hint) from error


def _set_apart(env: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Variables that the loader would obey for bwrap itself are handed over as arguments."""
    loader = {name: env[name] for name in env if name.startswith("LD_") or name == "GLIBC_TUNABLES"}
    words = [word for name, value in loader.items() for word in ("--setenv", name, value)]
    return words, {name: env[name] for name in env if name not in loader}


def _failure(result: Result, root: str, program: str) -> errors.SetupError:
    """What bwrap said on stderr, as an error; it begins a line with its name."""
    said = [line for line in (result.err or result.out or b"").splitlines() if b"bwrap: " in line]
    text = os.fsdecode(said[-1]) if said else "bwrap failed, and its stderr was not captured"
    number = next(
        (n for n, name in errno.errorcode.items() if text.endswith((os.strerror(n), f"({name})"))),
        errno.EIO,
    )
    step, filename = "bwrap", None
    if "execvp" in text:
        step, filename = "exec", program
    elif "chdir" in text:
        step = "cwd"
        text = f"Unable to set current working directory: {text}"
    elif f"source path {root}:" in text:
        step, filename = "root", root
        text = f"Unable to chroot: {text}"
    elif "source path" in text or "Can't bind mount" in text:
        step = "source"
    hint = "; ".join(f"{c}: {r}" for c, r in _machine.user_namespace_causes())
    return errors.setup_error(number, filename, step, text, hint if step == "bwrap" else "")


_api = _calls.Api(NAME, run_in, functools.partial(_executor.possible_isolation, run_in))
maximum_possible_isolation = _api.maximum_possible_isolation
run_sandbox = _api.run_sandbox
run_sandbox_with_redirection = _api.run_sandbox_with_redirection
degrade_config_for_capabilities = _api.degrade_config_for_capabilities
