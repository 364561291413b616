# SPDX-License-Identifier: Apache-2.0
"""Reads the file that Sandbox.reproduce() wrote. It may come from anybody: nothing in it runs, and
each value is checked by its class.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable

from .._reapi import check_digest
from .._spec.command import Command
from .._spec.limits import Limits
from .._spec.mount import Mount
from .._spec.overlay import Layers, Overlay
from .._spec.policy import Policy, Profile
from .._spec.spec import Spec
from .._spec.user import User
from .._store.storage import Storage
from .._values import Value, check_number, short
from ..errors import SpecError, setup_error
from .contents import Read
from .record import decode, made, only
from .writing import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MOST_BYTES = 256 << 20  # of a file: the stdin of a command is in it
_NAMES = "sandboxlib version command sandbox source_date contents changes ended".split()
_MOST_DATE = 10**11 - 1  # seconds, as SOURCE_DATE_EPOCH may have
_VALUES: tuple[type[Value], ...] = (Limits, Mount, Overlay, Policy, Profile, User)


class Record:
    """What a file has.

    box, command: Sandbox and Command. source_date: int, seconds, SOURCE_DATE_EPOCH of the process
    that wrote it. changes: the Layer of what the run had changed, or None. ended: str, how the run
    ended, for people; "" if it is not known. contents: what keeps the inputs in the store.
    """

    def __init__(
        self,
        box: Any,
        command: Command,
        source_date: int,
        changes: Any,
        ended: str,
        contents: Read | None,
    ) -> None:
        self.box, self.command, self.source_date = box, command, source_date
        self.changes, self.ended, self.contents = changes, ended, contents


class Classes:
    """The classes that a file may name, of rooms above this one: Sandbox, Store, Layer, Image."""

    def __init__(
        self,
        sandbox: type[Spec],
        store: type[Storage],
        layer: type[Value],
        image: Callable[..., Layers],
    ) -> None:
        self.sandbox, self.store, self.layer, self.image = sandbox, store, layer, image


def read(path: str, classes: Classes, directory: str | None = None) -> Record:
    """Reads the file. SetupError, SpecError.

    directory: of a store in place of that of the Sandbox.
    """
    try:
        record = _parsed(_content(path), classes, directory)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None
    except RecursionError:
        raise SpecError(f"{path}: objects lie too deep in each other") from None
    return record


def _content(path: str) -> bytes:
    try:
        # O_NONBLOCK: opening a FIFO would wait until its other end is open, perhaps for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise SpecError("it is no regular file")
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise setup_error(error.errno or 0, path, "reproduce", f"read {path}") from None
    if len(data) > _MOST_BYTES:
        raise SpecError(f"it is longer than {_MOST_BYTES} bytes")
    return data


def _parsed(data: bytes, classes: Classes, directory: str | None) -> Record:
    content = _checked(data)
    date = check_number("source_date", content["source_date"], 0, _MOST_DATE)
    kinds = {each.__name__: made(each) for each in (*_VALUES, classes.store, classes.layer)}
    own = None if directory is None else classes.store(directory)
    if own is None and isinstance(content["sandbox"], dict):
        own = decode(content["sandbox"].get("store"), kinds)
    storage = own if isinstance(own, Storage) else classes.store()
    kinds["Image"] = lambda fields: _image(classes.image, storage, fields)
    contents = None
    if content["contents"] is not None:
        digest = check_digest("contents", content["contents"])
        contents = Read(storage, digest, date)
        kinds["File"] = lambda fields: contents.file(only("File", fields))
        kinds["Tree"] = lambda fields: contents.tree(only("Tree", fields))
    box = decode(content["sandbox"], {**kinds, "Sandbox": made(classes.sandbox)})
    command = decode(content["command"], {**kinds, "Command": made(Command)})
    changes = decode(content["changes"], kinds)
    if not isinstance(box, classes.sandbox) or not isinstance(command, Command):
        raise SpecError("it has no Sandbox or no Command")
    if not (changes is None or isinstance(changes, classes.layer)):
        raise SpecError("its changes are no Layer")
    if changes is not None and (box._overlay is None or box._overlay.upper is not None):
        raise SpecError("it has changes, which take an Overlay without an upper of its own")
    if name := command._passing:
        raise SpecError(f"{name} of the command is a descriptor, which no file can have")
    if directory is not None:
        box = box.replace(store=own)
    return Record(box, command, date, changes, _ended(content["ended"]), contents)


def _checked(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data, object_pairs_hook=_each_once)
    except ValueError as error:  # also of UTF-8
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"it is no JSON: {error}") from None
    if not isinstance(content, dict) or content.get("sandboxlib") != "reproduce":
        raise SpecError("Sandbox.reproduce() did not write this")
    if content.get("version") != VERSION or isinstance(content["version"], bool):
        version = short(content.get("version"))
        raise SpecError(f"it has version {version}, and this sandboxlib reads {VERSION}")
    if content.keys() != set(_NAMES):
        raise SpecError(f"it has the names {', '.join(content)}, and not {', '.join(_NAMES)}")
    return content


def _image(make: Callable[..., Layers], store: Storage, fields: Any) -> Layers:
    """The Image of a file, which still has to be the one that it was. SetupError."""
    if fields.keys() != {"path", "ref", "key"}:
        raise SpecError(f"an Image has {', '.join(fields)}")
    image = make(fields["path"], fields["ref"])
    if image._key(store) != fields["key"]:
        what = f"use the image {fields['path']}, which has other layers than {fields['key']}"
        raise setup_error(errno.ESTALE, fields["path"], "reproduce", what)
    return image


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise SpecError(f"a name stands twice among {', '.join(name for name, _ in pairs)}")
    return found


def _ended(ended: Any) -> str:
    """A sentence of what is said of the end of the run."""
    if not isinstance(ended, dict) or type(ended.get("exit")) is not int:
        return ""
    text = f"it ended with {ended['exit']}"
    return f"{text} after its timeout" if ended.get("timed_out") is True else text
