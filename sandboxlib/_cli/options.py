# SPDX-License-Identifier: Apache-2.0
"""The options of run-sandbox, and the Sandbox and the Command that they ask for.

An option has the name of the keyword argument that it sets. Where it does not, its `dest` has.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from .._choice import choose
from .._spec.inputs import File
from .._spec.limits import SCHEDULERS, Limits
from .._spec.mount import Mount
from .._spec.policy import Policy
from .._spec.streams import CAPTURE, Tee
from .._spec.user import NAMES, User
from ..errors import SpecError
from . import parser as _parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DESCRIPTION = (
    "Run a command in a sandbox of its own: in a root directory, or in an image (.aci, OCI layout "
    "as directory or tar, docker-archive), which is unpacked for it."
)
EXIT_STATUS = (
    "The exit status is the command's, or 128+n if signal n ended it; 124 after a timeout, 127 if "
    "there is no such program, 126 if it cannot be executed, and 125 for any other error of "
    "run-sandbox."
)
NOTES = (
    "A SIZE is a number of bytes, or has a unit as in 512K, 200M, 2G, 1T. "
    "`run-sandbox doctor` shows what works on this machine, and `run-sandbox --reproduce FILE` "
    "gives a shell where a command failed (see its --help)."
)
#: The options of Limits, each with what its value is called, its type, and a help text.
LIMITS: tuple[tuple[str, str, Callable[[str], Any], str], ...] = (
    ("memory", "SIZE", str, "memory of all processes together (a cgroup)"),
    ("swap", "SIZE", str, "swap in addition to --memory (a cgroup)"),
    ("pids", "N", int, "processes and threads (a cgroup)"),
    ("cpus", "N", float, "CPU time at once: 1.5 is as much as one and a half CPUs have (a cgroup)"),
    ("cpu-weight", "N", int, "share of CPU time, 1 to 10000, where others have 100 (a cgroup)"),
    ("io-weight", "N", int, "share of the disks, 1 to 10000, where others have 100 (a cgroup)"),
    ("cpu-time", "SECONDS", float, "CPU time of each process"),
    ("address-space", "SIZE", str, "addresses of each process"),
    ("data", "SIZE", str, "data segment of each process"),
    ("stack", "SIZE", str, "stack of each main thread"),
    ("core", "SIZE", str, "core dumps; 0 leaves none"),
    ("file-size", "SIZE", str, "each file that a process writes"),
    ("locked-memory", "SIZE", str, "locked memory of each process"),
    ("open-files", "N", int, "one more than the highest descriptor of a process"),
    (
        "user-processes",
        "N",
        int,
        "processes of the command's user on the whole machine; see --pids",
    ),
    ("nice", "N", int, "niceness, -20 to 19"),
    ("oom-score-adj", "N", int, "-1000 to 1000 (proc(5))"),
)
#: The words that an option takes beside paths or numbers, for a shell that completes them.
WORDS: Mapping[str, tuple[str, ...]] = {
    "executor": choose.EXECUTORS,
    "user": NAMES,
    "capabilities": ("default", "all", "none"),
    "seccomp": ("default", "builds", "none"),
    "devices": ("minimal", "root"),
    "filesystem_writable_paths": ("all", "none"),
}


def run_parser(prog: str) -> argparse.ArgumentParser:
    """The parser of run-sandbox."""
    parser = _parser.Parser(
        prog=prog,
        usage="%(prog)s [options] PATH [COMMAND ...]",
        description=DESCRIPTION,
        epilog=f"{EXIT_STATUS} {NOTES}",
        allow_abbrev=False,
    )
    # One argument for both, because argparse would drop a "--" between PATH and COMMAND.
    text = "the root directory or image, and the command (default: the image's, or /bin/sh)"
    parser.add_argument("args", metavar="PATH", nargs=argparse.PARSER, help=text)
    _parser.add_version(parser)
    for title, add_options in (
        ("the place", _add_place),
        ("files", _add_files),
        ("the command", _add_command),
        ("rights", _add_rights),
        ("limits", _add_limits),
        ("output", _add_output),
    ):
        add_options(parser.add_argument_group(title).add_argument)
    return parser


def doctor_parser(prog: str) -> argparse.ArgumentParser:
    """The parser of run-sandbox doctor."""
    parser = _parser.Parser(
        prog=prog,
        description="Try each executor on this machine, and say why one does not work and what an "
        "administrator can do about it. The exit status is 0, whatever works.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print a JSON array of what it found")
    return parser


def reproduce_parser(prog: str) -> argparse.ArgumentParser:
    """The parser of run-sandbox --reproduce."""
    parser = _parser.Parser(
        prog=prog,
        usage="%(prog)s --reproduce FILE [--run | COMMAND ...]",
        description="Run a shell where the command ran that Sandbox.reproduce() wrote to FILE: in "
        "the same sandbox, with its layers and inputs, its environment and directory, and over its "
        "changes if FILE has them. FILE says what runs and what it sees, as a script does: read it "
        "before you run one of somebody else.",
        epilog=EXIT_STATUS,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--reproduce", metavar="FILE", required=True, help="the file")
    add("--run", action="store_true", help="run the command of FILE itself, with its timeout")
    text = "where the layers and inputs are (default: the store that FILE names, or yours)"
    add("--store", metavar="DIRECTORY", help=text)
    text = "what runs in place of the shell"
    add("args", metavar="COMMAND", nargs=argparse.REMAINDER, help=text)
    names = ", ".join(choose.EXECUTORS)
    text = f"{names} (default: the first that can do it)"
    add("-e", "--executor", type=_executor, metavar="NAME", help=text)
    return parser


def _add_place(add: Callable[..., argparse.Action]) -> None:
    names = ", ".join(choose.EXECUTORS)
    text = f"{names} (default: the first that can do it)"
    add("-e", "--executor", type=_executor, metavar="NAME", help=text)
    add("--ref", metavar="NAME", help="which image, where PATH holds several")
    text = "run nothing, and print what of the sandbox this machine cannot give; 0 if it gives all"
    add("--check", action="store_true", help=text)
    text = "for unpacking an image (default: 600)"
    add("--unpack-timeout", type=float, metavar="SECONDS", default=600.0, help=text)
    for kind, what in (
        ("network", "lo alone"),
        ("mounts", "a mount namespace whose root is PATH"),
        ("processes", "a pid namespace; all processes end with the command"),
        ("ipc", "System V IPC, message queues, hostname and keyring of its own"),
    ):
        text = f"isolated: {what} (default); undefined: the caller's"
        add(f"--{kind}", choices=("isolated", "undefined"), default="isolated", help=text)
    add("--hostname", metavar="NAME", help="1 to 64 bytes (default: the caller's)")
    text = "an empty /tmp of the command's own (default), or that of the root"
    add("--tmp", choices=("private", "root"), help=text)
    text = "what /dev shows (default: minimal); paths of devices, like /dev/kvm, are added to that"
    add("--devices", action="append", metavar="minimal|root|PATH", help=text)
    text = "show the resolv.conf of this machine, read-only; with --network undefined"
    add("--resolv-conf", action="store_true", help=text)
    text = "hide what differs from machine to machine: hostname, ids, umask, time zone, addresses"
    add("--deterministic", action="store_true", help=text)
    add(
        "--personality", choices=("linux32",), help="linux32: the machine looks like one of 32 bits"
    )
    text = "where layers, images and inputs are kept (default: below XDG_CACHE_HOME, or ~/.cache)"
    add("--store", metavar="DIRECTORY", help=text)
    text = "the command itself is pid 1, and no reaper is"
    add("--no-init", dest="init", action="store_false", help=text)


def _add_files(add: Callable[..., argparse.Action]) -> None:
    for name, make, form, text in (
        ("bind", _bind, "SRC:DST", "show a file or directory of yours at DST"),
        ("bind-ro", _bind_read_only, "SRC:DST", "the same, read-only"),
        ("tmpfs", _tmpfs, "DST[:SIZE]", "an empty directory in memory"),
        ("proc", Mount.proc, "DST", "a proc(5); /proc has one without this"),
        ("dev", Mount.dev, "DST", "a minimal /dev that can be written to"),
        ("dir", _directory, "DST[:MODE]", "a directory, made where the root has none"),
        ("symlink", _symlink, "TO:DST", "a symbolic link at DST"),
        ("file", _file, "SRC:DST", "a read-only file at DST, with the content of SRC"),
    ):
        how = {"action": "append", "type": _checked(make), "metavar": form, "help": text}
        add(f"--{name}", dest="extra_mounts", **how)
    text = "what of the root can be written to (default: none, of an image all); PATH may come "
    text += "several times"
    add(
        "--writable",
        dest="filesystem_writable_paths",
        action="append",
        metavar="all|none|PATH",
        help=text,
    )


def _add_command(add: Callable[..., argparse.Action]) -> None:
    text = "directory inside the root (default: the image's, or /; if PATH is /, yours, or / where "
    add("--cwd", metavar="DIRECTORY", help=text + "the sandbox does not have that)")
    text = "a variable of the command; without a value, with yours if you have it"
    how: dict[str, Any] = {"dest": "env", "action": "append", "default": []}
    add("--env", type=_setting, metavar="NAME[=VALUE]", help=text, **how)
    text = "lines of NAME=VALUE or NAME, as --env has them; # begins a comment line"
    add("--env-file", type=_settings, metavar="FILE", help=text, **how)
    text = "leave out the default PATH, and the variables of an image"
    add("--clearenv", action="store_true", help=text)
    text = "the program, if it is not the first word of COMMAND, which is its name then"
    add("--executable", metavar="PROGRAM", help=text)
    add("--umask", type=_octal, metavar="OCTAL", help="umask of the command (default: yours)")
    text = "a descriptor of yours that the command inherits"
    how = {"dest": "pass_fds", "action": "append", "default": []}
    add("--pass-fd", type=int, metavar="FD", help=text, **how)
    add("--timeout", type=float, metavar="SECONDS", help="then every process is killed")
    text = "after the timeout SIGTERM comes first, and SIGKILL so much later (default: 0)"
    add("--grace", type=float, metavar="SECONDS", default=0.0, help=text)
    text = (
        "run the commands of FILE, one a line, in one session: they share processes, network and "
    )
    text += "/tmp; a line that ends with & goes on beside the next ones; - is stdin"
    add("--session", metavar="FILE", help=text)
    text = "a terminal of the command's own, shown on this one: for interactive commands"
    add("--tty", action="store_true", help=text)
    text = "a terminal of the command's own, of which you see the output alone"
    add("--pty", action="store_true", help=text)
    text = "with --pty: pipe keeps stderr apart from the terminal (default: terminal)"
    add("--pty-stderr", choices=("terminal", "pipe"), default="terminal", help=text)


def _add_rights(add: Callable[..., argparse.Action]) -> None:
    text = "ids of the command (default: the image's, or caller)"
    add("--user", type=_user, metavar="caller|root|ranges|UID[:GID]", help=text)
    text = "other groups of a UID"
    add("--groups", type=_numbers, metavar="GID,GID", help=text)
    text = "the UID lies in a user namespace with the ids that /etc/subuid and /etc/subgid give"
    add("--ranges", action="store_true", help=text)
    text = "default, all, none, or names with commas between (default: the twelve that builds need)"
    add("--capabilities", default="default", metavar="NAMES", help=text)
    text = "set no_new_privs, so that set-user-ID programs give no rights (default)"
    add("--no-new-privs", action="store_true", default=True, help=text)
    text = "leave it unset, so that they do"
    add("--allow-new-privileges", dest="no_new_privs", action="store_false", help=text)
    text = "the filter of system calls: the best that the executor has (default), that of "
    text += "sandboxlib, none, or the path of an OCI or Docker profile"
    add("--seccomp", default="default", metavar="default|builds|none|PATH", help=text)
    text = "let the command make sandboxes of its own; root gives it other ids, as --user 1000"
    add("--nesting", action="store_true", help=text)


def _add_limits(add: Callable[..., argparse.Action]) -> None:
    for name, metavar, kind, text in LIMITS:
        add(f"--{name}", metavar=metavar, type=kind, help=text)
    add("--scheduler", choices=tuple(SCHEDULERS), help="how the CPUs treat it (sched(7))")
    add("--cpuset", type=_cpus, metavar="CPUS", help="the CPUs to run on, as in 0,2-3")
    add("--cpu-count", type=int, metavar="N", help="run on the first N of your CPUs")
    add("--cgroup", action="store_true", help="a cgroup even if no limit needs one; it counts")
    text = "a delegated directory of cgroups version 2, which gets the cgroup"
    add("--cgroup-parent", metavar="PATH", help=text)


def _add_output(add: Callable[..., argparse.Action]) -> None:
    add("--max-output", metavar="SIZE", help="pass on so much of each output; the rest is counted")
    text = "with --max-output: kill a command that writes more"
    how = {"dest": "on_overflow", "action": "store_const", "const": "kill"}
    add("--kill-on-overflow", default="truncate", help=text, **how)
    text = (
        "tell on stderr which paths the command asked for and did not find, in calls that open or"
    )
    text += " execute (docs/trace.md)"
    add("--trace", action="store_const", const="opens", help=text)
    # An option of its own, as one with a value that may be left out would take PATH for it.
    add("--trace=all", dest="trace", action="store_const", const="all", help="in all such calls")
    text = "capture the output, and print one JSON object with all that is known of the run"
    add("--json", action="store_true", help=text)
    text = "write that object to FILE (/dev/fd/3 is descriptor 3), and pass on the output"
    add("--json-file", metavar="FILE", help=text)


# ---- what they ask for -----------------------------------------------------------------------


def sandbox_keywords(options: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of Sandbox. SpecError for options that contradict each other."""
    names = "network mounts processes ipc hostname umask init tmp resolv_conf deterministic"
    writable, devices = options.filesystem_writable_paths, options.devices
    return {
        **{name: getattr(options, name) for name in (*names.split(), "personality")},
        "extra_mounts": tuple(options.extra_mounts or ()),
        "filesystem_writable_paths": _words_or_paths("--writable", writable, "all", "none"),
        "devices": _words_or_paths("--devices", devices, "minimal", "root") or "minimal",
        "policy": _policy(options),
        "limits": _limits(options),
        "user": _whole_user(options),
        "store": _store(options),
    }


def command_keywords(options: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of Command. SpecError for options that contradict each other."""
    keywords: dict[str, Any] = {
        **{name: getattr(options, name) for name in ("cwd", "timeout", "grace", "pass_fds")},
        **{name: getattr(options, name) for name in ("executable", "pty_stderr")},
        "extra_env": {name: value for each in options.env for name, value in each.items()},
    }
    if options.json and options.json_file is not None:
        raise SpecError("--json captures the output and --json-file passes it on: give one of them")
    if options.on_overflow == "kill" and options.max_output is None:
        raise SpecError("--kill-on-overflow needs --max-output")
    if options.clearenv:
        keywords["env"] = {}
    if options.max_output is not None:
        keywords |= {"max_output": options.max_output, "on_overflow": options.on_overflow}
    if options.pty:
        stderr = 2 if options.pty_stderr == "pipe" else CAPTURE
        keywords["pty"] = True
    else:
        keywords["stdin"] = 0
        stderr = 2
    if options.json:
        return {**keywords, "stdout": CAPTURE, "stderr": CAPTURE}
    if options.pty or options.max_output is not None:  # somebody has to read and count
        return {**keywords, "stdout": Tee(1), "stderr": Tee(2) if stderr == 2 else CAPTURE}
    return {**keywords, "stdout": 1, "stderr": 2}


def _policy(options: argparse.Namespace) -> Policy:
    from pathlib import Path

    capabilities: str = options.capabilities
    seccomp: Any = options.seccomp
    is_word = capabilities in ("default", "all", "none")
    return Policy(
        capabilities=capabilities if is_word else capabilities.split(","),
        no_new_privs=options.no_new_privs,
        seccomp=seccomp if seccomp in ("default", "builds", "none") else Path(seccomp),
        nesting=options.nesting,
    )


def _limits(options: argparse.Namespace) -> Limits | None:
    if options.cpuset is not None and options.cpu_count is not None:
        raise SpecError("--cpuset says which CPUs and --cpu-count how many: give one of them")
    names = {"user_processes": "processes", "cpu_count": "cpuset", "cgroup_parent": "cgroup"}
    values: dict[str, Any] = {}
    for option in (*(each[0] for each in LIMITS), "scheduler", "cpuset", "cpu-count"):
        name = option.replace("-", "_")
        if (value := getattr(options, name)) is not None:
            values[names.get(name, name)] = value
    if options.cgroup or options.cgroup_parent is not None:
        values["cgroup"] = True if options.cgroup_parent is None else options.cgroup_parent
    return Limits(**values) if values else None


def _store(options: argparse.Namespace) -> Any:
    if options.store is None:
        return None
    from .._images.store import Store

    return Store(options.store)


def _whole_user(options: argparse.Namespace) -> str | User | None:
    user: str | User | None = options.user
    if options.groups is None and not options.ranges:
        return user
    if not isinstance(user, User):
        raise SpecError("--groups and --ranges need --user UID[:GID]")
    return User(user.uid, user.gid, options.groups, ranges=options.ranges)


def _words_or_paths(option: str, values: list[str] | None, *words: str) -> str | list[str] | None:
    """The word, if the values are one of the words; otherwise they are a list of paths."""
    if not values or set(words).isdisjoint(values):
        return values
    if len(values) > 1:
        either = " and ".join(f"{option} {word}" for word in words)
        raise SpecError(f"{either} go with no other {option}")
    return values[0]


# ---- single values ---------------------------------------------------------------------------


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


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(each) for each in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"not numbers with commas between: {text!r}") from None


def _cpus(text: str) -> tuple[int, ...]:
    """Numbers and ranges of CPUs, as taskset(1) and docker take them: 0,2-3."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        ends = (first, last) if dash else (first, first)
        if not all(end.isascii() and end.isdigit() and len(end) < 6 for end in ends):
            raise argparse.ArgumentTypeError(f"not numbers of CPUs, as in 0,2-3: {text!r}")
        if not (several := range(int(ends[0]), int(ends[1]) + 1)):
            raise argparse.ArgumentTypeError(f"a range that ends before it begins: {part!r}")
        numbers += several
    return tuple(numbers)


def _octal(text: str) -> int:
    digits = text.removeprefix("0o")
    if not digits or not set(digits) <= set("01234567"):
        raise argparse.ArgumentTypeError(f"not an octal number, as 022: {text!r}")
    return int(digits, 8)


def _setting(text: str) -> Mapping[str, str]:
    name, equals, value = text.partition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"not of the form NAME=VALUE or NAME: {text!r}")
    if equals:
        return {name: value}
    return {name: os.environ[name]} if name in os.environ else {}


def _settings(path: str) -> Mapping[str, str]:
    """The variables of a file, in the form that docker's --env-file has."""
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            lines = file.read().split("\n")
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    settings: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name = line.partition("=")[0]
        if not name or any(character.isspace() for character in name):
            text = f"{path}:{number}: not of the form NAME=VALUE or NAME"
            raise argparse.ArgumentTypeError(text)  # without the line, which may hold a secret
        settings |= _setting(line)
    return settings


def _checked(make: Callable[[str], Mount]) -> Callable[[str], Mount]:
    """Turn a SpecError into an ArgumentTypeError, the only one whose message argparse shows."""

    def checked(text: str) -> Mount:
        try:
            return make(text)
        except SpecError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def _bind(text: str, read_only: bool = False) -> Mount:
    source, colon, target = text.rpartition(":")
    if not colon:
        raise SpecError(f"not of the form SRC:DST: {text!r}")
    return Mount.bind(source, target, read_only)


def _bind_read_only(text: str) -> Mount:
    return _bind(text, read_only=True)


def _directory(text: str) -> Mount:
    target, colon, mode = text.partition(":")
    return Mount.directory(target, _octal(mode)) if colon else Mount.directory(target)


def _symlink(text: str) -> Mount:
    to, colon, target = text.rpartition(":")
    if not colon:
        raise SpecError(f"not of the form TO:DST: {text!r}")
    return Mount.symlink(to, target)


def _file(text: str) -> Mount:
    source, colon, target = text.rpartition(":")
    if not colon:
        raise SpecError(f"not of the form SRC:DST: {text!r}")
    return Mount.file(File(Path(source)), target)


def _tmpfs(text: str) -> Mount:
    target, _, size = text.partition(":")
    return Mount.tmpfs(target, size or None)
