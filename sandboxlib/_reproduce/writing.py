# SPDX-License-Identifier: Apache-2.0
"""Writes the file from which run-sandbox --reproduce runs a command again."""

from __future__ import annotations

import contextlib
import errno
import json
import os

from .. import _types
from .._inputs.staging import source_date
from .._inputs.tree import Tree
from .._spec.command import Command
from .._spec.inputs import File
from .._spec.overlay import Layers
from .._spec.spec import Spec
from .._store.storage import storage_of
from .._values import Value, caller_directory, check_path
from ..errors import SpecError, SpecTypeError, setup_error
from ..result import Result
from .contents import Written
from .record import KIND, encode, of_fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 1
_STEP = "reproduce"
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def write(box: Spec, command: Command, file: _types.Path, result: Result | None) -> None:
    """Writes the file. SpecError for a value that means something in this process alone."""
    path = check_path("file", file)
    if result is not None and not isinstance(result, Result):
        raise SpecTypeError(f"result is no Result: {result!r}")
    text = json.dumps(content_of(box, command, result), indent=1)
    _write(path, text.encode() + b"\n")


def content_of(box: Spec, command: Command, result: Result | None) -> dict[str, Any]:
    """What the file has, as json.dumps takes it. Files and Trees are put into the store."""
    if name := command._passing:
        raise SpecError(
            f"{name} of the command is a file, a function or a descriptor, which means something in"
            f" this process alone: command.replace({name}=...) writes one without it"
        )
    if command.cwd is None and box._directory == "/":
        command = command.replace(cwd=caller_directory())
    date = source_date()
    contents = Written(storage_of(box), date)

    def other(value: object) -> Any:
        if isinstance(value, (File, Tree)):
            return {KIND: type(value).__name__, "number": contents.add(value)}
        if isinstance(value, Layers) and isinstance(value, Value) and "path" in value._fields:
            return {KIND: "Image", **value.__getstate__(), "key": value._key(box.store)}
        return None

    # What is in an upper of the Sandbox's own is seen by the shell in any case.
    is_over = box._overlay is not None and box._overlay.upper is None
    changes = None
    if result is not None and result._changes is not None and is_over:
        changes = encode("the changes", result.changes.commit(box.store), other)
    return {
        "sandboxlib": "reproduce",
        "version": VERSION,
        "command": encode("the command", command, other),
        "sandbox": of_fields("Sandbox", box.__getstate__(), other),
        "source_date": date,
        "contents": contents.stage(),
        "changes": changes,
        "ended": None if result is None else _ended(result),
    }


def _ended(result: Result) -> dict[str, Any]:
    """How the run ended, for people."""
    return {
        "exit": result.exit,
        "timed_out": result.timed_out,
        "limits_hit": list(result.limits_hit),
        "executor": result.executor,
    }


def _write(path: str, data: bytes) -> None:
    """Writes a file that its owner alone can read, as it has the environment of the command. It
    takes the place of an earlier one once it is whole.
    """
    directory, name = os.path.split(path)
    new = os.path.join(directory, f".{name[:200]}.{os.urandom(6).hex()}")
    try:
        fd = os.open(new, _NEW, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(data)
            os.replace(new, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new)
            raise
    except OSError as error:
        raise setup_error(error.errno or errno.EIO, path, _STEP, f"write {path}") from None
