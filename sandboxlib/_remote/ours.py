# SPDX-License-Identifier: Apache-2.0
"""Actions of ours: Commands as workers of sandboxlib run them, with layers, owners, policies and
absolute paths. What the API has no field for is in the salt (_digest/salt.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .._digest import action
from .._digest.hermetic import refuse
from .._digest.salt import blobs, salt_of
from .._inputs.tree import Tree
from .._spec.command import Command
from .._spec.limits import Limits
from .._spec.spec import Spec
from ..errors import UnsupportedError
from .layers import Tar, tars_of
from .portable import Sent, sent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def tars(box: Spec) -> tuple[Tar, ...]:
    """The tars of the layers of a Sandbox. Raises UnsupportedError for one that cannot be sent."""
    if box._overlay is None:
        text = f"the root {box._directory} is a directory of this machine"
        remedy = f"Overlay(Layer.from_directory({box._directory!r})) is sent"
        raise UnsupportedError(f"{text}; {remedy}")
    layers = []
    for layer in box._overlay.layers:
        if isinstance(layer, str):
            text = f"the layer {layer} is a directory of this machine"
            raise UnsupportedError(f"{text}; Layer.from_directory({layer!r}) is sent")
        layers.append(layer)
    return tuple({tar.digest: tar for tar in tars_of(layers, box.store)}.values())


def ours(
    command: Command,
    box: Spec,
    layers: Iterable[Tar],
    platform: Mapping[str, str],
    assume: Iterable[str],
    do_not_cache: bool = False,
) -> Sent:
    """The action of a Command in a Sandbox, for workers of sandboxlib. layers: from tars(). Raises
    SpecError for what has no digest.
    """
    refuse(command, box, assume)
    more: dict[str, Any] = {}
    if sizes := {tar.digest: tar.size for tar in layers}:
        more["sizes"] = sizes
    limits = (box.limits or Limits()) | command.limits
    if given := {name: getattr(limits, name) for name in limits._fields}:
        given = {name: value for name, value in given.items() if value is not None}
        more |= {"limits": given} if given else {}
    made = sent(
        action.command_message(command, box),
        action.input_root(command, box),
        command.timeout,
        salt_of(command, box, more),
        platform,
        do_not_cache,
    )
    trees = [each._snapshot()[0] for each in _trees(box)]
    named = {**made.blobs, **blobs(command, box), **{tar.key: tar.path for tar in layers}}
    return Sent(made.action, [*made.folders, *trees], named)


def _trees(box: Spec) -> list[Tree]:
    overlay = box._overlay
    return [each for each in (() if overlay is None else overlay.layers) if isinstance(each, Tree)]
