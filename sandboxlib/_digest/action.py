# SPDX-License-Identifier: Apache-2.0
"""The digest of a Command in a Sandbox: that of an Action of the Remote Execution API.

The Action has all that the result of the command may depend on, and nothing of the caller or the
machine: so two machines find the same digest. What the API has no field for is in the Action as a
property of its platform, named `sandboxlib.` and the field. docs/digest.md lists what is in and
what is not. not_hermetic() in hermetic.py names what has no digest at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator

from .. import _reapi
from .._inputs.snapshot import encoded, leaf_of, merged
from .._inputs.staging import source_date
from .._inputs.tree import node_of
from .._runs.job import deterministic_environment
from .._spec.command import Command, whole_environment
from .._spec.inputs import File, Input, inside
from .._spec.overlay import Layers
from .._spec.policy import Profile
from .._spec.spec import Spec
from .._spec.streams import STDOUT
from .._values import Value
from .hermetic import refuse, user_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The number of what is told here, and how. It rises when that changes, or when a command with the
#: same Action would see something else, as another /etc/passwd with deterministic=True.
SCHEMA = 1
_SALT = b"sandboxlib %d" % SCHEMA

#: Fields that are not in the digest: how much a command may use, where its outputs go, and where
#: the run keeps things. All others are.
OUT = {
    "Sandbox": frozenset({"limits", "store"}),
    "Overlay": frozenset({"busy", "storage"}),
    "Command": frozenset("stdout limits grace max_output on_overflow changes".split()),
}
#: Fields of a Command that are in the API's Command and Action, or in a property of their own.
_APART = frozenset("argv cwd extra_env env timeout stdin stderr inputs outputs".split())


def digest(command: Command, box: Spec, assume: Iterable[str]) -> str:
    """The digest. SpecError for what not_hermetic() names, unless `assume` has its name."""
    refuse(command, box, assume)
    return _reapi.digest_of(action_message(command, box))


def action_message(command: Command, box: Spec) -> bytes:
    """The Action of a Command in a Sandbox."""
    places = {inside(path, box._cwd_of(command)): value for path, value in command.inputs.items()}
    trees = sorted(path for path, value in places.items() if isinstance(value, Input))
    fields = [*_of_sandbox(box), *_of_command(command), ("trees", tuple(trees))]
    if places or command.outputs or any(isinstance(each, Input) for each in _layers(box)):
        fields.append(("mtime", source_date()))  # of the files and directories that are staged
    return _reapi.action(
        _reapi.digest_of(command_message(command, box)),
        encoded(merged(places, node_of)),
        command.timeout,
        _SALT,
        _reapi.platform(_properties(fields)),
    )


def command_message(command: Command, box: Spec) -> bytes:
    """The Command of the API that is in the Action."""
    extra_env = command.extra_env
    if box.deterministic:
        extra_env = deterministic_environment(extra_env, box._env_of(command))
    variables = whole_environment(extra_env, box._env_of(command))
    return _reapi.command(
        command._argv,
        {os.fsencode(name): os.fsencode(value) for name, value in variables.items()},
        [os.fsencode(_output(pattern, box._cwd_of(command))) for pattern in command.outputs],
        os.fsencode(box._cwd_of(command) or "/").strip(b"/"),
    )


def _output(pattern: str, cwd: str | None) -> str:
    """An output as the API has it, relative to the cwd; one that lies elsewhere starts with '/'."""
    path, above = inside(pattern, cwd), inside("x", cwd).removesuffix("x")
    return path.removeprefix(above)


# ---- the properties of the platform ----------------------------------------------------------


def _of_sandbox(box: Spec) -> Iterator[tuple[str, object]]:
    values = {name: getattr(box, name) for name in box._fields if name not in OUT["Sandbox"]}
    values["user"] = user_of(box)
    if box.deterministic:
        values["hostname"] = box.hostname or "sandbox"
        values["umask"] = 0o022 if box.umask is None else box.umask
    if (overlay := box._overlay) is not None:
        del values["root"]
        values["layers"] = [_key(layer, box) for layer in _layers(box)]
        values["upper"] = overlay.upper
    yield from values.items()
    yield "machine", os.uname().machine


def _layers(box: Spec) -> tuple[str | Layers, ...]:
    return () if box._overlay is None else box._overlay.layers


def _key(layer: str | Layers, box: Spec) -> object:
    """The digest of a layer; of a plain directory, which was assumed to be known, its path."""
    return layer._key(box.store) if isinstance(layer, Layers) else {"directory": layer}


def _of_command(command: Command) -> Iterator[tuple[str, object]]:
    for name in command._fields:
        if name not in _APART and name not in OUT["Command"]:
            yield name, getattr(command, name)
    stdin = command.stdin
    if stdin is not None:
        yield "stdin", _reapi.digest_of(stdin) if type(stdin) is bytes else "a file"
    if type(command.stderr) is int and command.stderr == STDOUT:
        yield "stderr", "stdout"  # one stream has other bytes than two


def _properties(fields: Iterable[tuple[str, object]]) -> Iterator[tuple[bytes, bytes]]:
    """The properties of fields; none for what is not given. A str stands as it is, so that people
    and the configuration of a server can read it; everything else is JSON.
    """
    for name, value in fields:
        if value is None or value is False or value == ():
            continue
        plain = _plain(value)
        if not isinstance(plain, str):
            plain = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        yield f"sandboxlib.{name}".encode(), plain.encode("utf-8", "surrogateescape")


def _plain(value: Any) -> Any:
    """A value as JSON has it: of a Value the fields that are given, by their names."""
    if isinstance(value, str):  # as the bytes that the kernel gets, whatever the locale is
        return os.fsencode(value).decode("utf-8", "surrogateescape")
    if isinstance(value, (bytes, File)):  # the content of a Mount.file
        leaf = leaf_of(value if isinstance(value, File) else File(value))
        value = {"digest": leaf.digest, "executable": leaf.is_executable}
    elif isinstance(value, Profile):
        value = (_reapi.digest_of(value.text.encode("utf-8", "surrogatepass")),)
    elif isinstance(value, Value):
        given = {name: getattr(value, name) for name in value._fields}
        value = {name: each for name, each in given.items() if each is not None}
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (tuple, list)) else value
