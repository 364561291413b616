# SPDX-License-Identifier: Apache-2.0
"""The salt of an Action: what of a Command and its Sandbox the API has no field for.

It is `sandboxlib`, the number of the schema, and JSON in one canonical form: names sorted, no
spaces, ASCII alone, where a byte of a name that is not UTF-8 is a lone surrogate, as os.fsdecode
has it.

    sandboxlib 2 {"command":{...},"layers":[...],"machine":"x86_64","mtime":315532800,
                  "sandbox":{...},"trees":["/src/include"]}

    command     executable, stdin (a digest), stderr ("stdout", if it goes where stdout goes);
                pass_fds, pty, pty_stderr, and stdin "a file", which were assumed to be known
    layers      of a root of layers, bottom first: "sha256:..." (of the tar of a Layer, a diff_id),
                "HASH/SIZE" (of the Directory of a Tree), ["sha256:...", ...] (the layers of an
                Image), {"directory": path} (assumed to be known)
    machine     as `uname -m` has it
    mtime       seconds since 1970, of staged inputs and of the directories for outputs
    sandbox     network, mounts, processes, ipc, hostname, filesystem_writable_paths, tmp, devices,
                resolv_conf, init, umask, deterministic, personality: as in Sandbox; and
                extra_mounts: their fields, where a content is {"digest":...,"executable":...};
                policy: its fields, where a profile is {"profile":digest};
                user: "root", "ranges", "caller", the fields of a User, {"image":[uid, gid]};
                root (a directory) and upper (of an Overlay), which were assumed to be known
    trees       the paths of those inputs that are a Tree, which hides what the root has there

What is None, False, or an empty list is left out. Contents are told by their digests: blobs()
has them. _remote/described.py reads it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping

from .. import _reapi
from .._inputs.snapshot import leaf_of
from .._inputs.staging import source_date
from .._spec.command import Command
from .._spec.inputs import File, Input, inside
from .._spec.overlay import Layers
from .._spec.policy import Profile
from .._spec.spec import Spec
from .._spec.streams import STDOUT
from .._values import Value
from .hermetic import user_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The number of what is told here, and how. It rises when that changes, or when a command with the
#: same Action would see something else, as another /etc/passwd with deterministic=True.
SCHEMA = 2
PREFIX = b"sandboxlib %d " % SCHEMA

#: Fields that are not in the digest: how much a command may use, where its outputs go, and where
#: the run keeps things. All others are.
OUT = {
    "Sandbox": frozenset({"limits", "store"}),
    "Overlay": frozenset({"busy", "storage"}),
    "Command": frozenset("stdout limits grace max_output on_overflow changes".split()),
}
#: Fields of a Command that are in the API's Command and Action, or have a rule of their own.
_APART = frozenset("argv cwd extra_env env timeout stdin stderr inputs outputs pty_stderr".split())


def salt_of(command: Command, box: Spec, more: Mapping[str, object] | None = None) -> bytes:
    """The salt. more: other names of the object, which no other Action has; None: none."""
    cwd = box._cwd_of(command)
    places = {inside(path, cwd): value for path, value in command.inputs.items()}
    trees = sorted(path for path, value in places.items() if isinstance(value, Input))
    layers = None if box._overlay is None else box._overlay.layers
    fields: dict[str, object] = {
        "command": _given(_of_command(command)),
        "sandbox": _given(_of_sandbox(box)),
        "machine": os.uname().machine,
        "trees": trees,
        **(more or {}),
    }
    if layers is not None:
        fields["layers"] = [_key(layer, box) for layer in layers]
    if places or command.outputs or any(isinstance(each, Input) for each in layers or ()):
        fields["mtime"] = source_date()
    kept = {name: value for name, value in fields.items() if value or name == "layers"}
    return PREFIX + json.dumps(_plain(kept), sort_keys=True, separators=(",", ":")).encode()


def blobs(command: Command, box: Spec) -> dict[str, bytes | str]:
    """The contents that the salt names, by their digests: bytes, or the path of a file."""
    found: dict[str, bytes | str] = {}
    if type(command.stdin) is bytes:
        found[_reapi.digest_of(command.stdin)] = command.stdin
    if isinstance(box.policy.seccomp, Profile):
        text = _text_of(box.policy.seccomp)
        found[_reapi.digest_of(text)] = text
    for mount in box.extra_mounts:
        if mount.content is not None:
            leaf = leaf_of(
                mount.content if isinstance(mount.content, File) else File(mount.content)
            )
            found[leaf.digest] = leaf.source
    return found


def _of_sandbox(box: Spec) -> Iterator[tuple[str, object]]:
    values = {name: getattr(box, name) for name in box._fields if name not in OUT["Sandbox"]}
    values["user"] = user_of(box)
    if box.deterministic:
        values["hostname"] = box.hostname or "sandbox"
        values["umask"] = 0o022 if box.umask is None else box.umask
    if (overlay := box._overlay) is not None:
        del values["root"]
        values["upper"] = overlay.upper
    yield from values.items()


def _key(layer: str | Layers, box: Spec) -> object:
    """The digests of a layer; of a plain directory, which was assumed to be known, its path."""
    return layer._keys(box.store) if isinstance(layer, Layers) else {"directory": layer}


def _of_command(command: Command) -> Iterator[tuple[str, object]]:
    for name in command._fields:
        if name not in _APART and name not in OUT["Command"]:
            yield name, getattr(command, name)
    if command.pty:
        yield "pty_stderr", command.pty_stderr
    stdin = command.stdin
    if stdin is not None:
        yield "stdin", _reapi.digest_of(stdin) if type(stdin) is bytes else "a file"
    if type(command.stderr) is int and command.stderr == STDOUT:
        yield "stderr", "stdout"  # one stream has other bytes than two


def _given(fields: Iterator[tuple[str, object]]) -> dict[str, object]:
    """The fields that say something."""
    return {
        name: each for name, each in fields if each is not None and each is not False and each != ()
    }


def _plain(value: Any) -> Any:
    """A value as JSON has it: of a Value the fields that are given, by their names."""
    if isinstance(value, str):  # as the bytes that the kernel gets, whatever the locale is
        return os.fsencode(value).decode("utf-8", "surrogateescape")
    if isinstance(value, (bytes, File)):  # the content of a Mount.file
        leaf = leaf_of(value if isinstance(value, File) else File(value))
        value = {"digest": leaf.digest, "executable": leaf.is_executable}
    elif isinstance(value, Profile):
        value = {"profile": _reapi.digest_of(_text_of(value))}
    elif isinstance(value, Value):
        given = {name: getattr(value, name) for name in value._fields}
        value = {name: each for name, each in given.items() if each is not None}
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (tuple, list)) else value


def _text_of(profile: Profile) -> bytes:
    return profile.text.encode("utf-8", "surrogatepass")
