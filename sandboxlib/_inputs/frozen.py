# SPDX-License-Identifier: Apache-2.0
"""Freezing: what a key was made of is what a run with that key gets, whoever edits the files.

A File names its source, and is read when it is used: once for the digest of a Command, and again
when it is staged for a run. Somebody may edit the file between the two, and then the result of the
later content would be stored under the key of the earlier one. So whoever keys results runs frozen
Commands in frozen Sandboxes.
"""

from __future__ import annotations

from types import MappingProxyType

from .._spec.command import Command
from .._spec.inputs import File, Input
from .._spec.mount import Mount, check_content
from .._spec.overlay import Layers
from .._spec.spec import Spec
from .snapshot import leaf_of
from .tree import node_of


def frozen(command: Command) -> Command:
    """An equal Command, whose inputs have the digests that they have now.

    A run of it gets the contents of these digests, from the store or from the files. A file that
    changed meanwhile, and whose earlier content the store does not have, is an error of the run:
    SetupError, ESTALE. SetupError also for an input that cannot be read now.
    """
    if not command.inputs:
        return command
    inputs = {path: _frozen_input(value) for path, value in command.inputs.items()}
    made = object.__new__(Command)
    made.__dict__.update(command.__dict__, inputs=MappingProxyType(inputs))
    return made


def _frozen_input(value: File | Input) -> File | Input:
    if isinstance(value, File):
        made = object.__new__(File)
        made.__dict__.update(value.__dict__, _leaf=leaf_of(value))
        return made
    node_of(value)  # a Tree is a snapshot from now on
    return value


def frozen_box(box: Spec) -> Spec:
    """A Sandbox that shows the same to a command, and will show no other content: the files of
    Mount.file are read now, and an Image has the layers that it has now. It is `box` itself if
    there are none of these; otherwise it has slots of its own, to be closed.

    Raises SandboxError if a file or an image cannot be read.
    """
    changes: dict[str, object] = {}
    mounts = tuple([_frozen_mount(mount) for mount in box.extra_mounts])
    if any(one is not other for one, other in zip(mounts, box.extra_mounts, strict=True)):
        changes["extra_mounts"] = mounts
    if isinstance(box.root, Layers):
        if (pinned := box.root._pinned(box.store)) is not box.root:
            changes["root"] = pinned
    elif box._overlay is not None:
        layers = [_pinned(layer, box) for layer in box._overlay.layers]
        if any(one is not other for one, other in zip(layers, box._overlay.layers, strict=True)):
            changes["root"] = box._overlay.replace(layers=layers)
    return box.replace(**changes) if changes else box


def _pinned(layer: str | Layers, box: Spec) -> str | Layers:
    return layer._pinned(box.store) if isinstance(layer, Layers) else layer


def _frozen_mount(mount: Mount) -> Mount:
    file = mount.content
    if not isinstance(file, File) or isinstance(file.content, bytes):
        return mount
    check_content(file.size)
    content = File(file.read_bytes(), executable=file.executable)
    return mount.replace(content=content)
