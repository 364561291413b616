# SPDX-License-Identifier: Apache-2.0
"""The jobs of the child that fill a store: layer by layer, each in a directory of its own.

Part of the child. The layers below the one that it unpacks, if it needs them, are at LOWER.
"""

from __future__ import annotations

import os
import sys

from . import accounts, documents, overlay
from .blobs import Counted, File, Part, Piped, Refused, decompressors
from .layers import Budget, Layer
from .roots import SOURCE, Roots
from .tar import Archive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .blobs import Stream

LOWER = "/dev/lower"  # with the number of the layer, 0 is the bottom
SLACK = 1 << 20  # bytes beyond a limit that are not worth a refusal
_MARKS = b"user.overlay."


def budget_of(settings: dict[str, Any]) -> Budget:
    return Budget(settings["max_size"], settings["max_members"])


def limit_of(size: int, members: int) -> int:
    """The highest size of an archive with `size` bytes of content and so many members."""
    return size + 4096 * members + SLACK


def apply(
    layer: Layer,
    known: dict[bytes, Callable[[Any], Stream]],
    file: File | Piped,
    limit: int,
    digest: str = "",
    diff_id: str = "",
) -> Archive:
    """Unpack an archive, and check its digests unless they are "". Archive.digest: the digest of
    what it decompresses to.
    """
    stream = Part(file) if isinstance(file, File) else file
    blob = Counted(stream, limit + limit // 8)
    content = Counted(known[file.magic()](blob), limit)
    archive = Archive(content)
    layer.extract(archive)
    content.check(diff_id, "layer")
    blob.check(digest, "blob")
    archive.digest = content.digest()
    return archive


# ---- the jobs --------------------------------------------------------------------------------


def inspect(settings: dict[str, Any]) -> dict[str, Any]:
    """What an image at SOURCE or on stdin has: its config, and where its layers are."""
    is_directory = settings["directory"]
    if is_directory:
        sys.meta_path.clear()  # from now on Python would import modules of the image
        os.chroot(SOURCE)
        os.chdir("/")
    source = documents.Directory() if is_directory else documents.Tar(0)
    layout = documents.Layout(source, settings["ref"])
    found = []
    for blob, diff_id in layout.layers:
        file = blob.open(source)
        if is_directory:
            os.close(file.fd)
        found.append([blob.name, blob.digest, diff_id, file.offset, file.size])
    config, account = layout.config, documents.oci_account(layout.config)
    return {"config": config, "account": account, "layers": found}


def _opened(settings: dict[str, Any], roots: Roots) -> File | Piped:
    """The file of a layer."""
    if settings["directory"]:
        roots.enter_source()
        file = documents.Directory().open(settings["name"])
        roots.leave_source()
        return file
    if settings["piped"]:
        return Piped(0)
    return File(settings["name"], 0, settings["offset"], settings["size"])


def plain(settings: dict[str, Any]) -> int:
    """Write the tar of a layer to the target, without its compression. Returns its size."""
    roots = Roots(settings["target"])
    file = _opened(settings, roots)
    known = decompressors({file.magic()}, settings["zstd"])
    roots.enter_target()
    limit = limit_of(settings["max_size"], settings["max_members"])
    blob = Counted(Part(file) if isinstance(file, File) else file, limit + limit // 8)
    content = Counted(known[file.magic()](blob), limit)
    with open("layer.tar", "xb") as out:
        while data := content.read():
            out.write(data)
    content.check(settings["diff_id"], "layer")
    blob.check(settings["digest"], "blob")
    return content.size


def unpack(settings: dict[str, Any]) -> dict[str, Any]:
    """Unpack one layer to the target. What it says goes beside the layer in the store."""
    roots = Roots(settings["target"])
    file = _opened(settings, roots)
    prefix = settings["prefix"].encode()
    known = decompressors({file.magic()}, settings["zstd"])
    lowers = _open_lowers(settings)
    stack = _stack_module(settings) if lowers else None
    roots.enter_target()
    layer = overlay.OverlayLayer(
        budget_of(settings), settings["owners"], settings["set_ids"], prefix
    )
    if stack is not None:
        top = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        layer.lowers = stack.Stack([top, *reversed(lowers)], _MARKS)
    limit = limit_of(settings["max_size"], settings["max_members"])
    try:
        archive = apply(layer, known, file, limit, settings["digest"], settings["diff_id"])
    except overlay.NeedsLowers as error:
        return {"needs_lowers": str(error)}
    if prefix and not archive.ended:
        raise Refused("it is truncated: the mark of its end is missing")
    fingerprint, size = overlay.measure(layer.contents)
    answer = {
        **{"digest": archive.digest, "fingerprint": fingerprint, "size": size},
        **{"opaque": layer.opaque(), "hides_all": layer.hides_all},
        **{"implied": layer.has_implied(), "has_root": layer.has_root()},
    }
    layer.finish_root()
    if prefix:
        manifest = documents.aci_manifest(layer.manifest)
        answer |= {"config": manifest, "account": documents.aci_account(manifest)}
    return answer


def measure(settings: dict[str, Any]) -> str:
    """The fingerprint of a layer that was unpacked before."""
    Roots(settings["target"]).enter_target()
    return overlay.measure({})[0]


def account(settings: dict[str, Any]) -> list[int] | None:
    """The ids of the command of an image whose layers are at LOWER."""
    lowers = _open_lowers(settings)
    stack = _stack_module(settings).Stack(list(reversed(lowers)), _MARKS)
    ids = accounts.resolve(settings["account"], lambda name: _read(stack, name))
    return None if ids is None else list(ids)


def _read(stack: Any, name: str) -> bytes | None:
    """The content of a file of /etc; None if there is none. It follows links inside the stack."""
    fd, at = overlay.open_in(stack, f"etc/{name}".encode())
    if at is None:
        return None
    try:
        what = f"/etc/{name} of the image"
        return File(what, fd, 0, at.st_size).whole(documents.MAX_JSON)
    finally:
        os.close(fd)


def _open_lowers(settings: dict[str, Any]) -> list[int]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    return [os.open(f"{LOWER}{number}", flags) for number in range(settings["lowers"])]


def _stack_module(settings: dict[str, Any]) -> Any:
    """The module that merges layers, which the reader of changes has: it lies in another folder."""
    sys.path.append(settings["stack"])
    import stack  # type: ignore[import-not-found]

    return stack


JOBS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "inspect": inspect,
    "layer": unpack,
    "plain": plain,
    "measure": measure,
    "account": account,
}
