# SPDX-License-Identifier: Apache-2.0
"""The command line: `run-sandbox PATH [COMMAND ...]` and `python -m sandboxlib run|demo|...`."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from .._choice import choose
from .._spec.command import Command
from ..api import Sandbox
from ..errors import SandboxError, SetupError, SpecError, printable
from . import options as _options
from . import parser as _parser
from .parser import EXIT_OURS

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from .._trace.trace import Trace
    from ..result import Result

    #: Writes the JSON record of a Result, and of its Trace, where the options want it.
    Record = Callable[..., None]

STORE_COMMANDS = ("list", "prune", "verify")  # `store` alone may be a directory
EXIT_TIMED_OUT = 124  # the same as that of timeout(1)
EXIT_CANNOT_EXECUTE, EXIT_NOT_FOUND = 126, 127  # as a shell, env(1) and docker run have them
_LAYOUT = "\n\t"  # the control characters that messages may contain


def run_sandbox_command(argv: Sequence[str] | None = None, prog: str = "run-sandbox") -> int:
    """Do what run-sandbox does. Returns the command's exit status; 128+n, or 124 to 127 as the help
    says.
    """
    args = sys.argv[1:] if argv is None else list(argv)
    if args[:1] == ["doctor"] and all(each.startswith("-") for each in args[1:]):
        return _doctor(args[1:], f"{prog} doctor")
    if args[:1] and args[0].partition("=")[0] == "--reproduce":
        given = _options.reproduce_parser(prog).parse_args(args)
        return _guarded(prog, lambda: _reproduce(given, prog))
    if args[:1] == ["store"] and args[1:2] and args[1] in STORE_COMMANDS:
        return _store(args[1:], f"{prog} store")
    parser = _options.run_parser(prog)
    _parser.complete(parser, _options.WORDS)
    options = parser.parse_args(args)
    return _guarded(prog, lambda: _run_recorded(options))


def _guarded(prog: str, run: Callable[[], int]) -> int:
    """The exit status of a function, or that of its exception, which it prints."""
    try:
        return run()
    except (SandboxError, OSError) as error:
        print(f"{prog}: {printable(str(error), _LAYOUT)}", file=sys.stderr)
        return _status_of_error(error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception:  # a fault of ours: its status must not look like the command's
        import traceback

        traceback.print_exc()
        return EXIT_OURS


def _reproduce(options: argparse.Namespace, prog: str) -> int:
    from . import reproduce

    return _status_of(reproduce.run(options, prog))


def _run_recorded(options: argparse.Namespace) -> int:
    with _record_of(options) as record:
        return _run(options, record)


def _run(options: argparse.Namespace, record: Record) -> int:
    """Do what the options ask for, and return the exit status."""
    # If a "--" comes before PATH, some versions of argparse leave it in.
    path, *argv = options.args[1:] if options.args[0] == "--" else options.args
    if argv[:1] == ["--"]:
        del argv[0]
    # What the options say alone is checked before an image is unpacked.
    place, words = _options.sandbox_keywords(options), _options.command_keywords(options)
    with _open_root(path, options, place["store"]) as (root, image):
        words |= {name: image[name] for name in ("cwd", "env") if words.get(name) is None}
        if place["user"] is None:
            place["user"] = image["user"]
        # The root was unpacked for this command alone, so the command may write to it.
        if image["is_own"] and place["filesystem_writable_paths"] is None:
            place["filesystem_writable_paths"] = "all" if options.mounts == "isolated" else None
        box = Sandbox(root, **place)
        if options.check:
            return _check(box, options)
        if options.trace and (options.session is not None or options.tty):
            raise SpecError("--trace does not go with --session or --tty")
        if options.session is not None:
            return _status_of(_run_session(box, argv, options, words, record))
        argv = argv or image["argv"] or ["/bin/sh"]
        if options.tty:
            return _status_of(_run_on_terminal(box, argv, options, words))
        if options.trace:
            return _status_of(_run_traced(box, Command(argv, **words), options, record))
        executor = choose.get_executor(options.executor) if options.executor else choose.api
        result: Result = executor.run_in(box, Command(argv, **words))
        record(result)
        return _status_of(result)


def _check(box: Sandbox, options: argparse.Namespace) -> int:
    if options.executor:
        os.environ[choose.VARIABLE] = options.executor
    reasons = box.lacks()
    _write("".join(f"{printable(reason, _LAYOUT)}\n" for reason in reasons))
    return EXIT_OURS if reasons else 0


def _run_traced(
    box: Sandbox, command: Command, options: argparse.Namespace, record: Record
) -> Result:
    if options.executor:
        os.environ[choose.VARIABLE] = options.executor
    trace = box.trace(command, paths=options.trace)
    if not options.json:
        print(trace, file=sys.stderr)
    record(trace.result, trace)
    return trace.result


def _run_session(
    box: Sandbox,
    argv: list[str],
    options: argparse.Namespace,
    words: dict[str, Any],
    record: Record,
) -> Result:
    from . import session as _session

    if argv or options.tty or options.executable is not None:
        text = "--session does not go with a COMMAND, --tty or --executable"
        raise SpecError(f"{text}: FILE has the commands")
    if options.executor:
        os.environ[choose.VARIABLE] = options.executor
    lines = _session.read(options.session)
    if options.session in ("-", "/dev/stdin"):
        words["stdin"] = None
    # With --json stdout is for the records.
    return _session.run(box, lines, words, (2 if options.json else 1, 2), record)


def _run_on_terminal(
    box: Sandbox, argv: list[str], options: argparse.Namespace, words: dict[str, Any]
) -> Result:
    from . import terminal as _terminal

    for name in ("json", "json_file", "timeout", "max_output", "pty"):
        if getattr(options, name):
            option = f"--{name.replace('_', '-')}"
            raise SpecError(f"--tty does not go with {option}: the user sees all, and ends it")
    if options.executor:
        os.environ[choose.VARIABLE] = options.executor
    env = dict(words["extra_env"])
    if "TERM" in os.environ:
        env.setdefault("TERM", os.environ["TERM"])
    given = {name: words[name] for name in ("cwd", "env", "pass_fds", "executable")}
    return _terminal.run(box, Command(argv, **given, extra_env=env))


@contextlib.contextmanager
def _open_root(
    path: str, options: argparse.Namespace, store: Any
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The root, and what an image says of its command, which options may override. An image comes
    from the store, unless the sandbox cannot stack layers; then it is unpacked for this run alone.
    """
    image: dict[str, Any] = {"argv": [], "cwd": None, "env": None, "user": None, "is_own": False}
    if not os.path.isfile(path) and not os.path.isfile(os.path.join(path, "oci-layout")):
        if "/" not in path and not os.path.exists(path):
            _check_is_no_program(path)
        if options.ref is not None:
            raise SpecError("--ref chooses among the images of a file or layout; this is neither")
        yield path, image
        return
    # By default these signals would end the process, and what it has unpacked would stay.
    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is signal.SIG_DFL:
            signal.signal(signum, _exit_on_signal)
    if options.mounts == "isolated" and options.executor != "linux_user_chroot":
        from .._images.image import Image

        stacked = Image(path, options.ref)
        known = stacked._known(store, options.unpack_timeout)
        yield stacked, {**image, "argv": [*known.entrypoint, *known.cmd]}
        return
    from .. import load

    with load.open_image(path, options.ref, options.unpack_timeout) as (root, process):
        yield root, {**vars(process), "is_own": True}


def _check_is_no_program(name: str) -> None:
    """SpecError if the root, which does not exist, has the name of a program."""
    import shutil

    if shutil.which(name):
        text = f"there is no directory or image {name!r}, which is a program"
        raise SpecError(f"{text}: PATH, the root, comes before the command: / {name}")


def _exit_on_signal(signum: int, frame: object) -> None:
    # A second signal must not interrupt the removal of the image.
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + signum)


# ---- how it ended ----------------------------------------------------------------------------


def _status_of(result: Result) -> int:
    if result.timed_out:
        return EXIT_TIMED_OUT
    return 128 - result.exit if result.exit < 0 else result.exit


def _status_of_error(error: Exception) -> int:
    if not isinstance(error, SetupError) or error.step != "exec":
        return EXIT_OURS
    return EXIT_NOT_FOUND if error.errno == errno.ENOENT else EXIT_CANNOT_EXECUTE


@contextlib.contextmanager
def _record_of(options: argparse.Namespace) -> Iterator[Record]:
    """A function that writes the JSON record of a run where the options want it, or nowhere. The
    file is opened before the run, so that one that cannot be written is told in time.
    """
    if options.json_file is None:
        yield _print_record if options.json else lambda *what: None
        return
    with open(options.json_file, "w", encoding="utf-8") as file:
        yield lambda *what: print(_json(*what), file=file, flush=True)


def _print_record(result: Result, trace: Trace | None = None) -> None:
    _write(_json(result, trace) + "\n")


def _write(text: str) -> None:
    """Write to descriptor 1: sys.stdout would try a failed write again when Python ends."""
    data = text.encode()
    while data:
        data = data[os.write(1, data) :]


def _json(result: Result, trace: Trace | None = None) -> str:
    import json

    outputs = {
        name: None if data is None else data.decode(errors="backslashreplace")
        for name, data in (("out", result.out), ("err", result.err))
    }
    usage = result.usage
    record = {
        "argv": list(result.command.argv) if result.command else None,
        "exit": result.exit,
        "signal": _signal_name(-result.exit) if result.exit < 0 else None,
        "timed_out": result.timed_out,
        "limits_hit": list(result.limits_hit),
        "wall": result.wall,
        "usage": None if usage is None else vars(usage),
        "executor": result.executor,
        "isolation": dict(result.isolation),
        **outputs,
        "out_size": result.out_size,
        "err_size": result.err_size,
    }
    if trace is not None:
        record["trace"] = {n: value for n, value in vars(trace).items() if n != "result"}
    return json.dumps(record)


def _signal_name(signum: int) -> str:
    """The name of a signal. Of the real-time signals only the first and the last have one; the
    others are called "SIGRTMIN+6" and so on.
    """
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"SIGRTMIN+{signum - signal.SIGRTMIN}"


# ---- python -m sandboxlib --------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Do what python -m sandboxlib does."""
    parser = _parser.Parser(
        prog="python -m sandboxlib",
        description="Run commands in sandboxes. Each of these has a --help of its own.",
        allow_abbrev=False,
    )
    _parser.add_version(parser)
    commands: Mapping[str, tuple[Callable[[Sequence[str], str], int], str]] = {
        "run": (run_sandbox_command, "run a command in a sandbox, as run-sandbox does"),
        "doctor": (_doctor, "say what works on this machine, and what would help"),
        "store": (_store, "look at the store of layers, images and inputs, or prune it"),
        "demo": (_demo, "build a real C project, each step in a sandbox"),
        "bench": (_bench, "measure what a sandbox costs on this machine"),
    }
    each = parser.add_subparsers(title="commands", dest="name", metavar="COMMAND", required=True)
    for name, (_, text) in commands.items():
        each.add_parser(name, help=text, add_help=False)
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] not in commands:
        parser.parse_args(args)  # prints what there is to say, and ends
    return commands[args[0]][0](args[1:], f"python -m sandboxlib {args[0]}")


def _demo(argv: Sequence[str], prog: str) -> int:
    from . import demo as _demo

    return _demo.main(argv)


def _bench(argv: Sequence[str], prog: str) -> int:
    from . import bench as _bench

    return _bench.main(argv)


def _store(argv: Sequence[str], prog: str) -> int:
    from . import store as _store

    try:
        return _store.main(argv, prog)
    except (SandboxError, OSError) as error:
        print(f"{prog}: {printable(str(error), _LAYOUT)}", file=sys.stderr)
        return EXIT_OURS


def _doctor(argv: Sequence[str], prog: str) -> int:
    """Print which executors work on this machine, and why the others do not."""
    options = _options.doctor_parser(prog).parse_args(argv)
    from .._choice import doctor as _doctor

    if options.json:
        import json

        _write(json.dumps(_doctor.examine()) + "\n")
    else:
        _write(_doctor.report() + "\n")
    return 0
