# SPDX-License-Identifier: Apache-2.0
"""The program that unpacks an image, in a sandbox that the parent made before it reads a byte.

The parent runs it by path. The image is its stdin or at SOURCE, its settings are JSON in argv[1],
and it unpacks to TARGET. It imports no module of sandboxlib but those of its own folder. In the
sandbox only the target is writable, and the program makes that its root directory, so nothing in an
image can lead out of it. It refuses only images that no honest program makes.

It writes one JSON document to stdout: {"error"}, {"moved"} or {"value", "ids"}; see
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

from . import accounts, documents, layers, removal
from .blobs import Counted, File, Part, Refused, decompressors, shown
from .tar import Archive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .blobs import Stream

SOURCE, TARGET = "/dev/source", "/dev/target"
MEMORY = 2 << 30  # bytes of address space
DESCRIPTORS = 1024  # a layout takes one for each layer
AGAIN = 8  # an image may repeat its layers so often; more would take long for a small file
SLACK = 1 << 20  # bytes beyond a limit that are not worth a refusal
_SYS_CHROOT = 18  # capabilities(7)
_VERSION_3 = 0x20080522


class Moved(Exception):
    """The directory at TARGET is not the one that the parent made."""


class Roots:
    """The root directories of this process: that of the sandbox, later the image or the target.

    While the root is one of the last two, imports are switched off, because Python would import
    modules of the image.
    """

    def __init__(self, identity: list[int]) -> None:
        self._finders = list(sys.meta_path)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._ours = os.open("/", flags)
        self._target = os.open(TARGET, flags)
        status = os.fstat(self._target)
        if [status.st_dev, status.st_ino] != identity:
            raise Moved

    def enter_source(self) -> None:
        sys.meta_path.clear()
        os.chroot(SOURCE)
        os.chdir("/")

    def leave_source(self) -> None:
        os.fchdir(self._ours)
        os.chroot(".")
        sys.meta_path[:] = self._finders

    def enter_target(self) -> None:
        """Make the target the root directory, and drop the capability that leads out of it."""
        drop = _dropper()
        sys.meta_path.clear()
        os.fchdir(self._target)
        os.chroot(".")
        os.close(self._target)
        os.close(self._ours)
        drop()


def _dropper() -> Callable[[], None]:
    """A function that drops CAP_SYS_CHROOT, by which a process can leave its root directory. It is
    made before the imports are switched off.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    head = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: the low words, the high

    def call(function: Any) -> None:
        if function(head, sets) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def drop() -> None:
        call(libc.capget)
        for at in range(3):
            sets[at] &= ~(1 << _SYS_CHROOT)
        call(libc.capset)

    return drop


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
    layer = _layer_of(settings, _budget(settings), b"rootfs")
    archive = _apply(layer, known, file, _limit(settings["max_size"], settings["max_members"]))
    if not archive.ended:
        raise Refused("it is truncated: the mark of its end is missing")
    if layer.manifest is None:
        raise Refused("it has no manifest")
    manifest = documents.parse_json(layer.manifest, "the manifest")
    documents.checked(manifest, dict, "the manifest")
    for key in ("dependencies", "pathWhitelist"):
        if manifest.get(key):
            raise Refused(f"the manifest has {key}, which are not supported")
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
    budget = _budget(settings)
    sizes: dict[str, int] = {}  # bytes of each layer, counted once
    repeated = 0  # bytes of the layers that came before already
    for number, (file, (blob, diff_id)) in enumerate(zip(files, layout.layers, strict=True)):
        try:
            layer = _layer_of(settings, budget)
            limit = _limit(budget.size, budget.members)
            size = _apply(layer, known, file, limit, blob.digest, diff_id).offset
        except Refused as error:
            raise Refused(f"layer {number}, {shown(blob.name)}: {error}") from None
        repeated += size if diff_id in sizes else 0
        sizes.setdefault(diff_id, size)
        if repeated > AGAIN * sum(sizes.values()) + SLACK:
            raise Refused("it repeats the same layers too often")
    return layout.config, account


def _budget(settings: dict[str, Any]) -> layers.Budget:
    return layers.Budget(settings["max_size"], settings["max_members"])


def _limit(size: int, members: int) -> int:
    """The highest size of an archive with `size` bytes of content and so many members."""
    return size + 4096 * members + SLACK


def _layer_of(settings: dict[str, Any], budget: layers.Budget, prefix: bytes = b"") -> Any:
    return layers.Layer(budget, settings["owners"], settings["set_ids"], prefix)


def _apply(
    layer: layers.Layer,
    known: dict[bytes, Callable[[Any], Stream]],
    file: File,
    limit: int,
    digest: str = "",
    diff_id: str = "",
) -> Archive:
    blob = Counted(Part(file), limit + limit // 8)
    content = Counted(known[file.magic()](blob), limit)
    archive = Archive(content)
    layer.extract(archive)
    content.check(diff_id, "layer")
    blob.check(digest, "blob")
    return archive


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
    value, account = (unpack_aci if job == "aci" else unpack_oci)(settings)
    return {"value": value, "ids": accounts.resolve(account)}


def main() -> None:
    settings = json.loads(sys.argv[1])
    try:
        answer = run(settings)
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
