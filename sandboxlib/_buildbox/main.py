# SPDX-License-Identifier: Apache-2.0
"""buildbox-run-sandboxlib: the program. It imports late what not every call needs."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal.py takes 3 ms for enumerations
import gc
import os
import sys
from time import time_ns

from .options import USAGE, Options, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType


_MOST_ACTION = 16 << 20
_KILLED = 128 + 9  # SIGKILL, as a shell tells it
_SIGNALS = (2, 15)  # SIGINT, SIGTERM: buildbox-run takes these, and writes a result
_SIGALRM = 14  # as buildbox-run tells a timeout: 128 + 14


class Ended(BaseException):
    """A signal ended this program. number: int, that of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _end(number: int, frame: FrameType | None) -> None:
    raise Ended(number)


def main() -> None:
    """The entry point."""
    gc.disable()  # all that is imported stays, so what a collection looks for is not there
    status = run(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # casd ends what it staged when the connection is gone; nothing else is left


def run(arguments: list[str]) -> int:
    """Returns the exit status: 0 if the command ran, whatever its own exit status."""
    try:
        options = Options(arguments)
        if "help" in options:
            print(USAGE, end="")
            return 0
        if "version" in options:
            from .._version import __version__

            print(f"buildbox-run-sandboxlib {__version__}")
            return 0
        if "capabilities" in options:
            print("\n".join(_capabilities()))
            return 0
        options.check()
    except UsageError as error:
        print(f"buildbox-run-sandboxlib: {error}\n\n{USAGE}", end="", file=sys.stderr)
        return 1
    if "validate-parameters" in options:
        print("the options are right; --validate-parameters runs nothing", file=sys.stderr)
        return 0
    return _execute(options)


def _capabilities() -> list[str]:
    machine = os.uname().machine
    known = {"x86_64": ("x86-32", "x86-64"), "aarch64": ("aarch32", "aarch64")}
    return [
        *("no-logs-capture", "bind-mount", "platform:OSFamily=linux"),
        *(f"platform:ISA={isa}" for isa in known.get(machine, (machine,))),
        *("platform:unixUID", "platform:unixGID"),
    ]


def _execute(options: Options) -> int:
    for number in _SIGNALS:
        _signal.signal(number, _end)
    try:
        return _run(options)
    except Ended as ended:
        from .run import Report

        report = Report(time_ns())
        report.exit = _KILLED
        _write(options, report.encoded())
        return 128 + ended.number


def _run(options: Options) -> int:
    from .._actions.outcome import Refused
    from ..errors import SandboxError
    from .wire import CallFailed

    began = time_ns()
    try:
        with open(options.get("action"), "rb") as file:
            action = file.read(_MOST_ACTION)
        if options.socket and "disable-localcas" not in options:
            try:
                return _staged(options, action, began)
            except CallFailed as error:
                if error.code != "UNIMPLEMENTED":
                    raise
        return _plain(options, action)
    except (CallFailed, Refused, SandboxError, OSError, ValueError, ImportError) as error:
        _tell(str(error))
        return 1


def _staged(options: Options, data: bytes, began: int) -> int:
    """The storage is casd, which stages the input root. began: when this program did, in ns."""
    from .casd import Casd
    from .messages import Action

    action = Action(data)
    casd = Casd(options.socket, options.get("instance"))
    if action.platform and not action.asks_for_ids:
        # casd is at it while the rest is imported. A property that is refused ends the connection.
        casd.begin_staging(action.root, (os.geteuid(), os.getegid()))
    from .run import Report, Run

    gc.enable()  # the outputs may be many
    report = Report(began)
    is_whole = Run(options, casd, action, report).execute()
    _write(options, report.encoded())
    if not is_whole:
        _tell(f"the command took longer than {action.timeout:g} s, the timeout of the Action")
    return 0 if is_whole else 128 + _SIGALRM


def _plain(options: Options, action: bytes) -> int:
    gc.enable()
    from . import plain

    code, result, message = plain.run(options, action)
    if result:
        _write(options, result)
    if code == "OK":
        return 0
    _tell(message)
    return 128 + _SIGALRM if code == "DEADLINE_EXCEEDED" and result else 1


def _tell(message: str) -> None:
    """Says something to people, where buildbox-run does."""
    print(f"buildbox-run-sandboxlib: {message}", file=sys.stderr, flush=True)


def _write(options: Options, result: bytes) -> None:
    with open(options.get("action-result"), "wb") as file:
        file.write(result)
