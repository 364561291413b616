# SPDX-License-Identifier: Apache-2.0
"""Actions of ours: a Command in a Sandbox of another machine, which its salt describes.

The input root is laid out from "/". The salt says which of its directories are Trees, which hide
what the root has there; all else are Files. Layers come as blobs of their tars, and are unpacked
once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from .. import _reapi
from .._changes.layer import Layer
from .._inputs.snapshot import Folder, Leaf
from .._inputs.staging import source_date
from .._inputs.tree import Tree
from .._spec.command import Command
from .._spec.inputs import File
from .._spec.overlay import Layers, Overlay
from .._spec.streams import STDOUT, Tee
from .action import seconds_of
from .clamp import check_machine, clamped, refused
from .outcome import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MOST_STDIN = 64 << 20  # bytes
_MOST_LAYER = 1 << 36  # bytes of the tar of a layer
#: Names that Remote adds to the salt: the sizes of the tars of layers, and Limits.
MORE = frozenset({"sizes", "limits"})


class OurJob:
    """What an Action of ours asks for."""

    def __init__(self, executor: Any, action: Any, command: Any, folder: Folder) -> None:
        from .._remote.described import decode

        site = executor.site
        self.site, self.action, self.message = site, action, command

        def content(digest: str) -> bytes:
            found: bytes = executor.fetch([digest])[digest]
            return found

        self._told = told = decode(action.salt, content, MORE)
        check_machine(told.machine)
        if told.source_date not in (None, source_date()):
            text = f"files are from SOURCE_DATE_EPOCH={source_date()} here"
            raise refused("mtime", told.source_date, text)
        self.options = clamped(told.sandbox, told.more.get("limits"), site)
        self.seconds = site.seconds(seconds_of(action))
        self._root = Overlay(*_layers(executor, told.layers, told.more.get("sizes")))
        self._inputs = _inputs(executor, folder, told.trees)
        self._stdin: bytes | None = None
        if told.stdin is not None:
            if int(told.stdin.partition("/")[2]) > _MOST_STDIN:
                raise Refused("INVALID_ARGUMENT", "stdin is larger than 64 MiB")
            self._stdin = content(told.stdin)

    @property
    def box_key(self) -> object:
        return repr(sorted(self.options.items(), key=lambda item: item[0])), repr(self._root)

    def root(self) -> Overlay:
        """The root of the Sandbox."""
        return self._root

    @property
    def cwd(self) -> str:
        return "/" + str(self.message.working_directory).strip("/")

    def command(self, sinks: tuple[Any, Any]) -> Command:
        """The Command. sinks: as for other Actions."""
        message, most = self.message, self.site.max_output
        streams: dict[str, Any] = dict(self._told.options)
        for name, sink in zip(("stdout", "stderr"), sinks, strict=True):
            if sink is not None and streams.get(name) != STDOUT:
                streams[name] = Tee(sink, keep_head=most)
        return Command(
            list(message.arguments),
            self.cwd,
            env={each.name: each.value for each in message.environment_variables},
            stdin=self._stdin,
            inputs=self._inputs,
            outputs=list(message.output_paths),
            timeout=self.seconds,
            max_output=most,
            on_overflow="kill",
            **streams,
        )


def _inputs(executor: Any, folder: Folder, trees: tuple[str, ...]) -> dict[str, Any]:
    """The inputs of the Command: Trees, and all other files as Files."""
    inputs: dict[str, Any] = {}
    for path in trees:
        tree = _at(folder, path)
        tree.fetch = executor.bring
        inputs[path] = Tree._of(tree)
    found: list[Leaf] = []
    todo = [("/", folder)]
    while todo:
        above, each = todo.pop()
        for name, node in each.items():
            path = os.path.join(above, os.fsdecode(name))
            if path in inputs:
                continue
            if isinstance(node, Leaf):
                found.append(node)
                inputs[path] = _file(node)
            elif isinstance(node, Folder) and node:
                todo.append((path, node))
            else:
                raise Refused("INVALID_ARGUMENT", f"the input {path} belongs to no Tree")
    executor.files.bring({leaf.digest for leaf in found}, executor.source)
    return inputs


def _at(folder: Folder, path: str) -> Folder:
    """The Folder of a Tree, without what lies in it as an input of its own: that goes above it."""
    at: object = folder
    for name in path.strip("/").split("/"):
        at = at.get(os.fsencode(name)) if isinstance(at, Folder) else None
    if not isinstance(at, Folder):
        raise Refused("INVALID_ARGUMENT", f"the input root has no Tree {path}")
    made = Folder(at)
    made.digest, made.total = at.digest, at.total
    return made


def _file(leaf: Leaf) -> File:
    """A File of a Leaf, whose content is not looked at again."""
    file = File(b"", executable=leaf.is_executable)
    file.__dict__["_leaf"] = leaf
    return file


# ---- layers ----------------------------------------------------------------------------------


def _layers(executor: Any, layers: list[Any], sizes: object) -> list[Layers]:
    known = sizes if isinstance(sizes, Mapping) else {}
    found: list[Layers] = []
    for each in layers:
        if isinstance(each, str) and "/" in each:
            folder = executor.folders.load(each, executor.fetch)
            folder.fetch = executor.bring
            executor.bring(folder)
            found.append(Tree._of(folder))
        else:
            digests = (each,) if isinstance(each, str) else each
            found += [_layer(executor, digest, known.get(digest)) for digest in digests]
    return found


def _layer(executor: Any, digest: str, size: object) -> Layer:
    """The Layer of a tar with a diff_id, which is unpacked if it is not in the store."""
    from .._images import unpack_layers

    store = executor.store
    layer = Layer(digest, store)
    if all(store._lease(way.kind, digest[7:]) is not None for way in unpack_layers.ways()):
        return layer
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MOST_LAYER:
        raise Refused("INVALID_ARGUMENT", f"the size of the layer {digest} is {size!r}")
    blob = _reapi.check_digest("a layer", f"{digest[7:]}/{size}")
    executor.files.bring([blob], executor.source)
    fd = os.open(executor.files.path(blob), os.O_RDONLY | os.O_CLOEXEC)
    try:
        made = Layer._from_file(fd, f"the layer {digest}", store)
    finally:
        os.close(fd)
    executor.files.forget(blob)  # the store has it unpacked
    if made.digest != digest:
        raise Refused("INVALID_ARGUMENT", f"the layer {digest} has the digest {made.digest}")
    return layer
