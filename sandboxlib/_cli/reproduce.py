# SPDX-License-Identifier: Apache-2.0
"""Runs what Sandbox.reproduce() wrote, for run-sandbox --reproduce: a shell, or the command."""

from __future__ import annotations

import argparse
import os
import sys

from .._changes.layer import Layer
from .._choice import choose
from .._images.image import Image
from .._images.store import Store
from .._reproduce import reading
from .._spec.command import Command
from .._spec.overlay import Layers, Overlay
from .._spec.streams import CAPTURE, Tee
from ..api import Sandbox
from ..errors import SpecError, printable
from ..result import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SHELL = "/bin/sh"
#: What of the command the shell has as well.
_OF_PLACE = ("cwd", "env", "extra_env", "inputs", "outputs", "limits")


def run(options: argparse.Namespace, prog: str) -> Result:
    """Runs a shell, a COMMAND of the user's, or the command of the file. SandboxError."""
    if options.run and options.args:
        raise SpecError("--run runs the command of FILE, and takes no COMMAND")
    classes = reading.Classes(Sandbox, Store, Layer, Image)
    record = reading.read(options.reproduce, classes, options.store)
    # The time of inputs is from there, and a variable with deterministic=True.
    os.environ["SOURCE_DATE_EPOCH"] = str(record.source_date)
    if options.executor:
        os.environ[choose.VARIABLE] = options.executor
    box: Sandbox = record.box
    if options.run:
        return box.run(_itself(record.command), fresh=True)
    argv = options.args[1:] if options.args[:1] == ["--"] else options.args
    if record.changes is not None:
        box = over(box, record.command, record.changes)
    kept = {name: getattr(record.command, name) for name in _OF_PLACE}
    if not os.isatty(0):
        return box.run(Command(argv or [SHELL], **kept, stdin=0, stdout=1, stderr=2), fresh=True)
    from . import terminal as _terminal

    env = dict(kept.pop("extra_env") or {})
    if "TERM" in os.environ:
        env.setdefault("TERM", os.environ["TERM"])
    command = Command(argv or [SHELL], **kept, extra_env=env)
    ended = f", and {record.ended}" if record.ended else ""
    text = f"{command} where {record.command} ran{ended}"
    print(f"{prog}: {printable(text)}", file=sys.stderr, flush=True)
    return _terminal.run(box, command)


def over(box: Sandbox, command: Command, changes: Layers) -> Sandbox:
    """A Sandbox whose commands begin with what an earlier run had changed. command: with its inputs
    and outputs, whose layers lie below the changes, as the run may have changed these too.
    """
    has_layers = bool(command.inputs or command.outputs)

    class Over(type(box)):  # type: ignore[misc]
        _over = (changes,) if has_layers else ()

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            if not has_layers:
                overlay: Overlay = self._overlay
                layers = (*overlay.layers, changes)
                self.__dict__["_overlay"] = overlay.replace(layers=layers)

    return Over(**box.__getstate__())


def _itself(command: Command) -> Command:
    """The command of the file, with our outputs."""
    if command.pty or command.max_output is not None:  # somebody has to read and count
        is_apart = not command.pty or command.pty_stderr == "pipe"
        return command.replace(
            stdout=Tee(1), stderr=Tee(2) if is_apart else CAPTURE, changes="drop"
        )
    return command.replace(stdout=1, stderr=2, changes="drop")
