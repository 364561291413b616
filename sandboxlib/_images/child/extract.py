# SPDX-License-Identifier: Apache-2.0
"""The program that unpacks an image, in a sandbox that the parent made before it reads a byte.

The parent runs it by path. The image is its stdin or at SOURCE, its settings are JSON in argv[1],
and it unpacks to TARGET; the jobs that fill a store are in stored.py. It imports no module of
sandboxlib but those of its own folder. In the sandbox only the target is writable, and the program
makes that its root directory, so nothing in an image can lead out of it. It refuses only images
that no honest program makes.

It writes one JSON document to stdout: {"error"}, {"full"}, {"moved"} or {"value", "ids"}; see
_images/unpack.py.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys

if not __package__:  # run by path
    __package__ = "unpacker"
    _package = type(sys)(__package__)
    _package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
    sys.modules[__package__] = _package

from . import accounts, documents, layers, removal, stored
from .blobs import File, Full, Refused, decompressors, shown
from .roots import Moved, Roots

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MEMORY = 2 << 30  # bytes of address space
DESCRIPTORS = 1024  # a layout takes one for each layer
AGAIN = 8  # an image may repeat its layers so often; more would take long for a small file


# ---- the jobs --------------------------------------------------------------------------------


def holds_image() -> bool:
    """Return True if the tar on stdin holds an image."""
    try:
        tar = documents.Tar(0)
    except Refused:
        return False
    return tar.has("oci-layout") or tar.has("manifest.json")


def empty_target(settings: dict[str, Any]) -> None:
    """Remove everything in the target."""
    Roots(settings["target"]).enter_target()
    os.chown("/", 0, 0)
    removal.empty(os.open("/", os.O_RDONLY | os.O_DIRECTORY))


def unpack_aci(settings: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Unpack the archive on stdin to the target. Returns the manifest, and its command's user."""
    roots = Roots(settings["target"])
    file = File("it", 0, 0, os.fstat(0).st_size)
    known = decompressors({file.magic()}, settings["zstd"])
    roots.enter_target()
    layer = _layer_of(settings, stored.budget_of(settings), b"rootfs")
    limit = stored.limit_of(settings["max_size"], settings["max_members"])
    archive = stored.apply(layer, known, file, limit)
    if not archive.ended:
        raise Refused("it is truncated: the mark of its end is missing")
    manifest = documents.aci_manifest(layer.manifest)
    return manifest, documents.aci_account(manifest) if settings["account"] else ""


def unpack_oci(settings: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Unpack the image at SOURCE, or on stdin, to the target. Returns the config, and the user of
    its command.
    """
    roots = Roots(settings["target"])
    if settings["directory"]:
        roots.enter_source()
    source = documents.Directory() if settings["directory"] else documents.Tar(0)
    layout = documents.Layout(source, settings["ref"])
    account = documents.oci_account(layout.config) if settings["account"] else ""
    files = [blob.open(source) for blob, _ in layout.layers]
    roots.leave_source()
    known = decompressors({file.magic() for file in files}, settings["zstd"])
    roots.enter_target()
    budget = stored.budget_of(settings)
    sizes: dict[str, int] = {}  # bytes of each layer, counted once
    repeated = 0  # bytes of the layers that came before already
    for number, (file, (blob, diff_id)) in enumerate(zip(files, layout.layers, strict=True)):
        try:
            layer = _layer_of(settings, budget)
            limit = stored.limit_of(budget.size, budget.members)
            size = stored.apply(layer, known, file, limit, blob.digest, diff_id).offset
        except Refused as error:
            raise type(error)(f"layer {number}, {shown(blob.name)}: {error}") from None
        repeated += size if diff_id in sizes else 0
        sizes.setdefault(diff_id, size)
        if repeated > AGAIN * sum(sizes.values()) + stored.SLACK:
            raise Refused("it repeats the same layers too often")
    return layout.config, account


def _layer_of(settings: dict[str, Any], budget: layers.Budget, prefix: bytes = b"") -> Any:
    return layers.Layer(budget, settings["owners"], settings["set_ids"], prefix)


# ---- the program -----------------------------------------------------------------------------


def run(settings: dict[str, Any]) -> dict[str, Any]:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.umask(0o022)
    gc.disable()  # it would search the million lists of a large document again and again
    job = settings["job"]
    if job == "look":
        return {"value": holds_image(), "ids": None}
    if job == "empty":
        empty_target(settings)
        return {"value": True, "ids": None}
    if job in stored.JOBS:
        return {"value": stored.JOBS[job](settings), "ids": None}
    value, account = (unpack_aci if job == "aci" else unpack_oci)(settings)
    return {"value": value, "ids": accounts.resolve(account)}


def main() -> None:
    settings = json.loads(sys.argv[1])
    try:
        answer = run(settings)
    except Full as error:
        answer = {"full": str(error)}
    except Refused as error:
        answer = {"error": str(error)}
    except Moved:
        answer = {"moved": True}
    except MemoryError:
        answer = {"error": "it takes more memory than there is for it"}
    except Exception as error:  # every decompressor has its own exceptions
        answer = {"error": f"it is damaged: {type(error).__name__}: {error}"}
    data = json.dumps(answer, separators=(",", ":")).encode()
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    main()
