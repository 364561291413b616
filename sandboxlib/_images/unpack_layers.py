# SPDX-License-Identifier: Apache-2.0
"""Fills a store with layers: the parent's side. A confined child reads all that is foreign."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Any, NamedTuple

from .. import user_namespace
from .._spec.overlay import Owners
from .._spec.spec import Spec
from .._store.locks import Lease
from .._store.storage import New, Storage
from ..errors import ImageError, UnsupportedError, printable
from . import unpack
from .child import overlay
from .kinds import kind_of
from .target import Existing

SOURCES = "sources"  # the entries of the store that have the paths of the files of layers
PLAIN = "layer.tar"
_SETTINGS = {"piped": False, "offset": 0, "size": 0, "prefix": "", "digest": "", "diff_id": ""}
_WALK = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class NeedsLowers(ImageError):
    """The layer can be unpacked only over those below it."""


class Way(NamedTuple):
    """How layers of a kind are unpacked. kind: of the entries. confined: see unpack.executor.
    owners: whose files they are.
    """

    kind: str
    confined: unpack.Way
    owners: Owners


class Unpacked(NamedTuple):
    """A layer in the store. answer: what the child said of it; {} if it was there before."""

    lease: Lease
    digest: str
    answer: dict[str, Any]


def way_for(owners: Owners | None) -> Way:
    """The Way for these owners; None: the one that keeps most. Raises UnsupportedError."""
    confined = unpack.executor()
    is_single = owners is not None and owners.kind == "single" and os.geteuid() != 0
    if is_single and confined[1] != "root":
        confined = (user_namespace.EXECUTOR.run_command, "root")
    if owners is not None and owners.kind == "ranges" and confined[1] == "root":
        refused = user_namespace.EXECUTOR.refusals(Spec("/", user="ranges"))
        raise UnsupportedError(f"a layer with the owners of ranges: {'; '.join(map(str, refused))}")
    if owners is None:
        kinds = {"caller": "real", "ranges": "ranges", "root": "single"}
        owners = Owners(kinds[confined[1]], os.geteuid(), os.getegid())  # type: ignore[arg-type]
    return Way(kind_of(owners), confined, owners)


def ways() -> list[Way]:
    """The Ways of this caller, the one that keeps most first. A layer is unpacked in each, because
    a Sandbox of an ordinary user may have one id or its ranges.
    """
    best = way_for(None)
    if best.owners.kind != "ranges" or os.geteuid() == 0:
        return [best]
    return [best, way_for(Owners("single", os.geteuid(), os.getegid()))]


def from_tar(path: str, store: Storage, timeout: float | None) -> str:
    """Unpack a tar into the store, and return its digest."""
    fd = unpack._open_archive(path)
    try:
        source = {"offset": 0, "size": os.fstat(fd).st_size}
        for way in ways():
            digest = from_stream(fd, path, store, timeout, way, source)
    finally:
        os.close(fd)
    with store._new() as new:
        with open(new.file, "xb") as file:
            file.write(os.fsencode(os.path.abspath(path)))
        store._forget(SOURCES, digest[7:])
        store._publish(new, SOURCES, digest[7:]).close()
    return digest


def write_plain(store: Storage, digest: str, new: New, timeout: float | None) -> bool:
    """Write the tar of a layer, without its compression, as `new.tree`/PLAIN, out of the file from
    which from_tar() made it. Returns False if nobody knows that file.
    """
    lease = store._lease(SOURCES, digest[7:])
    if lease is None:
        return False
    with open(lease.path, "rb") as file:
        path = os.fsdecode(file.read())
    lease.close()
    fd = unpack._open_archive(path)
    try:
        source = {"offset": 0, "size": os.fstat(fd).st_size, "diff_id": digest}
        plain(way_for(None), unpack.Request("layer", path, timeout=timeout), new, fd, source)
    finally:
        os.close(fd)
    return True


def plain(
    way: Way, request: unpack.Request, new: New, stdin: int | None, source: dict[str, Any]
) -> None:
    """Write the tar of a layer, without its compression, as `new.tree`/PLAIN. source: as in
    unpacked(). Raises ImageError if its digest is another one than the source says.
    """
    child = unpack.Child(request, way.confined)
    child.stdin = stdin
    child.settings |= {**_SETTINGS, "name": request.name, "zstd": unpack._zstandard()}
    child.settings |= {**source, "job": "plain"}
    value = child.run(Existing(new.tree))["value"]
    if type(value) is not int:
        raise child.nonsense(value)


def from_stream(
    fd: int,
    name: str,
    store: Storage,
    timeout: float | None,
    way: Way,
    source: dict[str, Any] | None = None,
) -> str:
    """Unpack the tar that comes out of a pipe, or that is in a file, and return its digest.

    source: as in unpacked(); None: it comes out of a pipe.
    """
    request = unpack.Request("layer", name, timeout=timeout)
    made = unpacked(store, way, request, stdin=fd, source=source or {"piped": True})
    return _stackable(made, request)


def _stackable(made: Unpacked, request: unpack.Request) -> str:
    if made.answer["hides_all"]:
        text = "an opaque whiteout of its root hides all layers below it, which an Image alone can"
        raise ImageError(f"{request.name}: {text}")
    made.lease.close()
    return made.digest


def unpacked(
    store: Storage,
    way: Way,
    request: unpack.Request,
    *,
    stdin: int | None,
    source: dict[str, Any],
    lowers: tuple[Lease, ...] = (),
    name: str | None = None,
) -> Unpacked:
    """Unpack one layer, and publish it.

    source: where it is in what stdin or the request's path has; see stored.unpack of the child.
    lowers: the layers below it, if they count. name: of the entry; None: its digest.
    """
    with store._new() as new:
        child = unpack.Child(request, way.confined)
        child.stdin, child.lowers = stdin, [lease.path for lease in lowers]
        child.settings |= {
            **_SETTINGS,
            **{"name": request.name, "lowers": len(lowers), "zstd": unpack._zstandard()},
            "stack": unpack.stack_directory(),
            **{"owners": child.user != "root", "set_ids": True, "job": "layer"},
            **source,
        }
        value = child.run(Existing(new.tree))["value"]
        if isinstance(value, dict) and value.keys() == {"needs_lowers"}:
            raise NeedsLowers(f"{request.name}: {printable(str(value['needs_lowers'])[:500])}")
        answer = _checked(child, value)
        _mark_opaque(new, answer["opaque"])
        if not answer["has_root"]:
            os.chmod(new.tree, 0o755)  # commands with other ids have it as their root
        new.write("fingerprint", answer["fingerprint"].encode())
        if answer["hides_all"]:
            new.write("hides-all", b"")
        if answer["implied"] and not lowers:
            new.write("implied", b"")
        digest: str = answer["digest"]
        lease = store._publish(new, way.kind, name or digest[7:], answer["size"])
    return Unpacked(lease, digest, answer)


def _checked(child: unpack.Child, answer: Any) -> dict[str, Any]:
    """The child's answer about a layer. Raises ImageError for one that no honest child gives."""
    kinds = {
        **{"digest": str, "fingerprint": str, "size": int, "opaque": list, "hides_all": bool},
        **{"implied": bool, "has_root": bool},
    }
    if not isinstance(answer, dict) or not kinds.keys() <= answer.keys():
        raise child.nonsense(answer)
    if any(type(answer[name]) is not kind for name, kind in kinds.items()):
        raise child.nonsense(answer)
    digest, fingerprint = answer["digest"], answer["fingerprint"]
    is_hex = not set(digest[7:] + fingerprint) - set("0123456789abcdef")
    if not (is_hex and digest[:7] == "sha256:" and len(digest) == 71 and len(fingerprint) == 64):
        raise child.nonsense(answer)
    if not all(type(path) is str for path in answer["opaque"]) or answer["size"] < 0:
        raise child.nonsense(answer)
    return answer


def _mark_opaque(new: New, paths: list[str]) -> None:
    """Give opaque directories the attribute that root's overlays look at. The child has not the
    capability for that. It names only directories that it marked itself, and no link is followed.
    """
    if os.geteuid() != 0:
        return
    for path in paths:
        at = os.open(new.tree, _WALK)
        try:
            for part in path.strip("/").split("/"):
                below = os.open(part, _WALK, dir_fd=at)
                os.close(at)
                at = below
            if os.getxattr(at, overlay.MARK) == b"y":
                with contextlib.suppress(PermissionError):  # uid 0 of a user namespace
                    os.setxattr(at, "trusted.overlay.opaque", b"y")
        except (OSError, ValueError) as error:
            raise ImageError(f"an opaque directory, {printable(path[:200])}: {error}") from None
        finally:
            os.close(at)


def way_of(kind: str) -> Way | None:
    """The Way of the entries of a kind; None if these are no layers, or if this caller has other
    ranges of ids now.
    """
    uid, gid = os.geteuid(), os.getegid()
    for name in ("real", "single", "ranges"):
        with contextlib.suppress(UnsupportedError):
            owners = Owners(name, uid, gid)
            if kind_of(owners) == kind:
                return way_for(owners)
    return None


def is_whole(lease: Lease, way: Way) -> bool:
    """Return True if a layer is as it was unpacked. One that lacks its tree or its fingerprint, or
    has another thing in their place, is not.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(os.path.join(os.path.dirname(lease.path), "fingerprint"), flags)
        with open(fd, "rb") as file:
            fingerprint = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):
            return False
        raise
    if not os.path.isdir(lease.path) or os.path.islink(lease.path):
        return False
    child = unpack.Child(unpack.Request("measure", lease.path), way.confined)
    child.settings["directory"] = False
    return bool(child.run(Existing(lease.path))["value"] == fingerprint.decode("ascii", "replace"))
