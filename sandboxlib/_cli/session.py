# SPDX-License-Identifier: Apache-2.0
"""Runs the commands of a file in one session, for run-sandbox --session."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Sequence

from .._spec.command import Command
from ..api import Sandbox
from ..errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..result import Result

#: A command, and whether it goes on beside the next ones.
Line = tuple[list[str], bool]
#: Options that a command which goes on beside others has as well.
_OF_SERVICES = ("cwd", "env", "extra_env", "pass_fds")


def read(path: str) -> list[Line]:
    """The commands of a file, "-" for stdin; SpecError names the line that is none. It is read to
    its end before any of them is run.
    """
    if path == "-":
        text = sys.stdin.read()
    else:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read()
    lines: list[Line] = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            argv = shlex.split(line, comments=True)
        except ValueError as error:  # its text does not show the line
            raise SpecError(f"{path}:{number}: {error}") from None
        is_service = argv[-1:] == ["&"]
        if is_service:
            del argv[-1]
        if argv:
            lines.append((argv, is_service))
        elif is_service:
            raise SpecError(f"{path}:{number}: there is no command before the &")
    if all(is_service for _, is_service in lines):
        raise SpecError(f"{path}: no command that is waited for: the session would end at once")
    return lines


def run(
    box: Sandbox,
    lines: Sequence[Line],
    words: dict[str, Any],
    outputs: tuple[int, int],
    record: Callable[[Result], None],
) -> Result:
    """Run the commands in their order, until one is not ok. Returns the last Result.

    words: the keyword arguments of each Command. outputs: stdout and stderr of services, which have
    no Result that could hold them.
    """
    own = {name: words[name] for name in _OF_SERVICES if name in words}
    own |= {"stdout": outputs[0], "stderr": outputs[1]}
    # All are checked before the first is run.
    commands = [(Command(argv, **(own if service else words)), service) for argv, service in lines]
    result: Result | None = None
    with box.session() as session, contextlib.ExitStack() as services:
        for command, is_service in commands:
            if is_service:
                services.enter_context(session.start(command))
                continue
            result = session.run(command)
            record(result)
            if not result.ok:
                break
    assert result is not None
    return result
