# SPDX-License-Identifier: Apache-2.0
"""The command line: `run-sandbox PATH [COMMAND ...]` and `python -m sandboxlib run|demo|...`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from .._choice import choose
from .._spec.mount import Mount
from .._spec.policy import Policy
from .._spec.streams import CAPTURE
from .._spec.user import NAMES, User
from .._version import __version__
from ..api import Sandbox
from ..errors import SandboxError, SpecError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..result import Result

EXIT_TIMED_OUT = 124  # the same as that of timeout(1)
_LAYOUT = "\n\t"  # the control characters that messages may contain
EXIT_OURS = 125  # the same as that of env(1), timeout(1) and chroot(1)


def run_sandbox_command(argv: Sequence[str] | None = None, prog: str = "run-sandbox") -> int:
    """Do what run-sandbox does. Returns the command's exit status; 128+n, 124 or 125 as the help
    says.
    """
    if (sys.argv[1:] if argv is None else list(argv)) == ["doctor"]:
        return _doctor([])
    options = _run_parser(prog).parse_args(argv)
    # If a "--" comes before PATH, some versions of argparse leave it in.
    path, *command = options.args[1:] if options.args[0] == "--" else options.args
    try:
        executor = choose.get_executor(options.executor) if options.executor else choose.api
        with _open_root(path, options) as (root, root_keywords):
            keywords = _run_keywords(options) | root_keywords
            keywords["command"] = command or keywords["command"]
            result: Result
            if options.tty:
                result = _run_on_terminal(root, options, keywords)
            else:
                result = executor.run_sandbox(root, **keywords)
        if options.json:
            _write(json.dumps(_record(result)) + "\n")
    except (SandboxError, OSError) as error:
        print(f"{prog}: {printable(str(error), _LAYOUT)}", file=sys.stderr)
        return EXIT_OURS
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    if result.timed_out:
        return EXIT_TIMED_OUT
    return 128 - result.exit if result.exit < 0 else result.exit


def _run_on_terminal(root: str, options: argparse.Namespace, keywords: dict[str, Any]) -> Result:
    from . import terminal as _terminal

    if options.json or options.timeout is not None:
        raise SpecError("--tty goes with neither --json nor --timeout: the user ends the command")
    if options.executor:
        os.environ[choose.VARIABLE] = options.executor
    env = {**(keywords.pop("env", None) or {}), **keywords.pop("extra_env")}
    command, cwd = keywords.pop("command"), keywords.pop("cwd")
    if "TERM" in os.environ:
        env.setdefault("TERM", os.environ["TERM"])
    for name in ("stdin", "stdout", "stderr", "timeout", "grace"):
        del keywords[name]
    return _terminal.run(Sandbox(root, **keywords), command, cwd, env)


@contextlib.contextmanager
def _open_root(path: str, options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """The root directory, and the keyword arguments of run_sandbox that it gives: (root, keywords).

    An image gives a command, a cwd and more; options of the command line override these.
    """
    if not os.path.isfile(path) and not os.path.isfile(os.path.join(path, "oci-layout")):
        if options.ref is not None:
            raise SpecError("--ref chooses among the images of a file or layout; this is neither")
        yield path, {"command": ["/bin/sh"], "user": options.user}
        return
    from .. import load

    # By default these signals would end the process, and the unpacked image would stay.
    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is signal.SIG_DFL:
            signal.signal(signum, _exit_on_signal)
    with load.open_image(path, options.ref, options.unpack_timeout) as (root, process):
        user = process.user if options.user is None else options.user
        keywords = {"cwd": options.cwd or process.cwd, "env": process.env, "user": user}
        # The root was unpacked for this command alone, so the command may write to it.
        if options.writable is None and options.mounts == "isolated":
            keywords["filesystem_writable_paths"] = "all"
        yield root, {"command": process.argv or ["/bin/sh"], **keywords}


def _exit_on_signal(signum: int, frame: object) -> None:
    # A second signal must not interrupt the removal of the image.
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + signum)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what python -m sandboxlib does."""
    args = list(sys.argv[1:] if argv is None else argv)
    commands: Mapping[str, Callable[[Sequence[str]], int]] = {
        "run": lambda rest: run_sandbox_command(rest, "python -m sandboxlib run"),
        "demo": _demo,
        "bench": _bench,
        "doctor": _doctor,
    }
    if args and args[0] in commands:
        return commands[args[0]](args[1:])
    if args == ["--version"]:
        print(f"sandboxlib {__version__}")
        return 0
    print(f"usage: python -m sandboxlib {{{','.join(commands)},--version}} ...", file=sys.stderr)
    return 0 if args in (["-h"], ["--help"]) else 2


def _demo(argv: Sequence[str]) -> int:
    from . import demo as _demo

    return _demo.main(argv)


def _bench(argv: Sequence[str]) -> int:
    from . import bench as _bench

    return _bench.main(argv)


def _doctor(argv: Sequence[str]) -> int:
    """Print which executors work on this machine, and why the others do not."""
    from .._choice import doctor as _doctor

    if argv:
        print("usage: python -m sandboxlib doctor", file=sys.stderr)
        return 0 if argv[0] in ("-h", "--help") else 2
    _write(_doctor.report() + "\n")
    return 0


# ---- the options of run-sandbox --------------------------------------------------------------


def _run_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [options] PATH [COMMAND ...]",
        description="Run a command in a sandbox of its own: in a root directory, or in an image "
        "(.aci, OCI layout as directory or tar, docker-archive), which is unpacked for it. "
        "`run-sandbox doctor` shows what works on this machine.",
        epilog="The exit status is the command's; 128+n if signal n ended it, 124 after a timeout, "
        "125 for an error of run-sandbox itself.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    # One argument for both, because argparse would drop a "--" between PATH and COMMAND.
    text = "the root directory or image, and the command (default: the image's, or /bin/sh)"
    add("args", metavar="PATH", nargs=argparse.PARSER, help=text)
    _add_sandbox_options(add)
    _add_run_options(add)
    return parser


def _add_sandbox_options(add: Callable[..., object]) -> None:
    """Add the options that say where the command runs."""
    names = ", ".join(choose.EXECUTORS)
    add("-e", "--executor", type=_executor, help=f"{names} (default: the first that can do it)")
    text = "directory inside the root (default: the image's, or /; if PATH is /, yours, or / where "
    add("--cwd", help=text + "the sandbox does not have that)")
    add("--ref", metavar="NAME", help="which image, where PATH holds several")
    text = "for unpacking an image (default: 600)"
    add("--unpack-timeout", type=float, metavar="SECONDS", default=600.0, help=text)
    add("--env", action="append", type=_setting, metavar="NAME=VALUE", default=[])
    for kind, default in (
        ("network", "isolated"),
        ("mounts", "isolated"),
        ("processes", "isolated"),
        ("ipc", "isolated"),
    ):
        add(f"--{kind}", choices=("undefined", "isolated"), default=default)
    add("--hostname")
    text = "ids of the command (default: the image's, or caller)"
    add("--user", type=_user, metavar="caller|root|ranges|UID[:GID]", help=text)
    for name, make, form in (
        ("bind", _bind, "SRC:DST"),
        ("bind-ro", _bind_read_only, "SRC:DST"),
        ("tmpfs", _tmpfs, "DST[:BYTES]"),
        ("proc", Mount.proc, "DST"),
        ("dev", Mount.dev, "DST"),
    ):
        add(f"--{name}", dest="extra_mounts", action="append", type=_checked(make), metavar=form)
    text = "what of the root can be written to (default: none, of an image all); PATH may come "
    text += "several times"
    add("--writable", action="append", metavar="all|none|PATH", help=text)
    text = "an empty /tmp of the command's own (default), or that of the root"
    add("--tmp", choices=("private", "root"), help=text)
    text = "show the resolv.conf of this machine, read-only; with --network undefined"
    add("--resolv-conf", action="store_true", help=text)
    text = "what /dev shows (default: minimal); paths of devices, like /dev/kvm, are added to that"
    add("--devices", action="append", metavar="minimal|root|PATH", help=text)


def _add_run_options(add: Callable[..., object]) -> None:
    """Add the options that say what the command may do, and for how long."""
    text = "default, all, none, or names with commas between (default: the twelve that builds need)"
    add("--capabilities", default="default", metavar="NAMES", help=text)
    text = "leave no_new_privs unset, so that set-user-ID programs work"
    add("--allow-new-privileges", action="store_true", help=text)
    text = "the filter of system calls: the best that the executor has (the default), that of "
    text += "sandboxlib, none, or the path of an OCI or Docker profile"
    add("--seccomp", default="default", metavar="default|builds|none|PATH", help=text)
    text = "let the command make sandboxes of its own; root gives it other ids, as --user 1000"
    add("--nesting", action="store_true", help=text)
    add("--no-init", action="store_true", help="the command itself is pid 1")
    add("--timeout", type=float, metavar="SECONDS")
    text = "after the timeout SIGTERM comes first, and SIGKILL so much later (default: 0)"
    add("--grace", type=float, metavar="SECONDS", default=0.0, help=text)
    text = "with --json: at most so much of each output; the rest is counted in out_size, err_size"
    add("--max-output", type=int, metavar="BYTES", help=text)
    text = "with --max-output: kill a command that writes more"
    add("--kill-on-overflow", action="store_true", help=text)
    text = "a terminal of the command's own, shown on this one: for interactive commands"
    add("--tty", action="store_true", help=text)
    add("--json", action="store_true", help="capture the output and print a record of the run")


def _run_keywords(options: argparse.Namespace) -> dict[str, Any]:
    names = ("cwd", "network", "mounts", "processes", "ipc", "hostname", "timeout", "grace")
    keywords = {name: getattr(options, name) for name in names}
    writable: list[str] | None = options.writable
    if writable and len(writable) > 1 and not {"all", "none"}.isdisjoint(writable):
        raise SpecError("--writable all and --writable none go with no other --writable")
    devices: list[str] = options.devices or ["minimal"]
    if len(devices) > 1 and not {"minimal", "root"}.isdisjoint(devices):
        raise SpecError("--devices minimal and --devices root go with no other --devices")
    capabilities: str = options.capabilities
    seccomp: str = options.seccomp
    simple = capabilities in ("default", "all", "none")
    stdio: tuple[Any, ...] = (0, CAPTURE, CAPTURE) if options.json else (0, 1, 2)
    if options.max_output is not None:
        if not options.json:
            raise SpecError("--max-output takes --json: otherwise the output is not captured")
        keywords["max_output"] = options.max_output
    if options.kill_on_overflow:
        keywords["on_overflow"] = "kill"
    return keywords | {
        "extra_env": dict(options.env),
        "extra_mounts": tuple(options.extra_mounts or ()),
        "filesystem_writable_paths": _one_of(writable, "all", "none"),
        "tmp": options.tmp,
        "resolv_conf": options.resolv_conf,
        "devices": _one_of(devices, "minimal", "root"),
        "policy": Policy(
            capabilities=capabilities if simple else capabilities.split(","),
            no_new_privs=not options.allow_new_privileges,
            seccomp=seccomp if seccomp in ("default", "builds", "none") else Path(seccomp),
            nesting=options.nesting,
        ),
        "init": not options.no_init,
        "stdin": stdio[0],
        "stdout": stdio[1],
        "stderr": stdio[2],
    }


def _one_of(values: list[str] | None, *choices: str) -> str | list[str] | None:
    """If the list begins with one of the choices, that choice; otherwise the list, of paths."""
    return values[0] if values and values[0] in choices else values


def _executor(text: str) -> str:
    try:
        choose.get_executor(text)
    except KeyError:
        names = ", ".join(choose.EXECUTORS)
        raise argparse.ArgumentTypeError(f"{text!r} is none of {names}") from None
    return text


def _user(text: str) -> str | User:
    if text in NAMES:
        return text
    numbers = text.split(":")
    if len(numbers) > 2 or not all(each.isascii() and each.isdigit() for each in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is none of caller, root, ranges, UID[:GID]")
    try:
        return User(int(numbers[0]), int(numbers[-1]))
    except SpecError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError("not of the form NAME=VALUE")
    return name, value


def _checked(make: Callable[[str], Mount]) -> Callable[[str], Mount]:
    """Turn a SpecError into an ArgumentTypeError, the only one whose message argparse shows."""

    def checked(text: str) -> Mount:
        try:
            return make(text)
        except SpecError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def _bind(text: str, read_only: bool = False) -> Mount:
    source, _, target = text.rpartition(":")
    return Mount.bind(source, target, read_only)


def _bind_read_only(text: str) -> Mount:
    return _bind(text, read_only=True)


def _tmpfs(text: str) -> Mount:
    target, _, size = text.partition(":")
    if size and not size.isdigit():
        raise SpecError(f"not a number of bytes: {size!r}")
    return Mount.tmpfs(target, int(size) if size else None)


def _write(text: str) -> None:
    """Write to descriptor 1: sys.stdout would try a failed write again when Python ends."""
    data = text.encode()
    while data:
        data = data[os.write(1, data) :]


def _signal_name(signum: int) -> str:
    """The name of a signal. Of the real-time signals only the first and the last have one; the
    others are called "SIGRTMIN+6" and so on.
    """
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"SIGRTMIN+{signum - signal.SIGRTMIN}"


def _record(result: Result) -> dict[str, Any]:
    return {
        "exit": result.exit,
        "signal": _signal_name(-result.exit) if result.exit < 0 else None,
        "timed_out": result.timed_out,
        "limits_hit": list(result.limits_hit),
        "wall": result.wall,
        "executor": result.executor,
        "isolation": dict(result.isolation),
        "out": (result.out or b"").decode(errors="backslashreplace"),
        "err": (result.err or b"").decode(errors="backslashreplace"),
        "out_size": result.out_size,
        "err_size": result.err_size,
    }
