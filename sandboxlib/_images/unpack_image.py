# SPDX-License-Identifier: Apache-2.0
"""Fills a store with the layers of an image, several at once: the parent's side."""

from __future__ import annotations

import hashlib
import os
import time
from typing import Any

from .._spec.overlay import Owners
from .._store.locks import Lease
from .._store.storage import New, Storage
from ..errors import ImageError
from . import config, unpack
from .kinds import hides_all
from .known import IMAGES, Known, file_key, leased, recalled
from .unpack_layers import NeedsLowers, Unpacked, Way, plain, way_for
from .unpack_layers import unpacked as unpacked_layer

_MOST_AT_ONCE = 8  # children, each of which may take 2 GiB of addresses


class Source:
    """An image that is being unpacked."""

    def __init__(
        self, path: str, ref: str | None, storage: Storage, way: Way, timeout: float | None
    ) -> None:
        self.path, self.ref, self.storage, self.way = path, ref, storage, way
        self.timeout = timeout
        self.end = None if timeout is None else time.monotonic() + timeout
        self.is_aci = path.endswith(".aci")
        self.request = unpack.Request("oci", path, ref=ref, timeout=self.timeout)
        self.size = 0
        self.is_directory = bool(self.request.settings["directory"])

    def count(self, made: Unpacked) -> None:
        """Add up the sizes of the layers. Raises ImageError if they are more than an image may
        have.
        """
        self.size += made.answer["size"]
        if self.size > unpack.MAX_SIZE:
            raise ImageError(f"{self.request.name} is larger than max_size, {unpack.MAX_SIZE}")

    def open(self) -> int | None:
        """A descriptor of the file; None if the image is a directory."""
        return None if self.is_directory else unpack._open_archive(self.path)


def unpacked(
    path: str,
    ref: str | None,
    storage: Storage,
    owners: Owners,
    timeout: float | None = unpack.TIMEOUT,
) -> tuple[Known, list[Lease]]:
    """Unpack what the store does not have of an image, and remember it. Only one process at a time
    does that for an image.
    """
    source, key = Source(path, ref, storage, way_for(owners), timeout), file_key(path, ref)
    with storage._making(IMAGES, key, source.end):
        known = recalled(storage, key)
        leases = None if known is None else leased(storage, source.way.kind, known)
        if known is not None and leases is not None:
            return known, leases
        if source.is_aci:
            known, leases = _aci(source)
        else:
            known, leases = _oci(source)
        if file_key(path, ref) == key:  # otherwise the file changed meanwhile
            with storage._new() as new:
                with open(new.file, "xb") as file:
                    file.write(known.encoded())
                storage._forget(IMAGES, key)
                storage._publish(new, IMAGES, key).close()
    return known, leases


def _aci(source: Source) -> tuple[Known, list[Lease]]:
    if source.ref is not None:
        raise ImageError(f"an .aci holds one image, and none of the name {source.ref!r}")
    stdin = source.open()
    try:
        place = {"offset": 0, "size": os.fstat(stdin or 0).st_size, "prefix": "rootfs"}
        made = unpacked_layer(source.storage, source.way, source.request, stdin=stdin, source=place)
    finally:
        os.close(stdin or -1)
    found = config.of_aci(_document(source, made.answer.get("config")))
    return _known(source, found, [made.lease]), [made.lease]


def _oci(source: Source) -> tuple[Known, list[Lease]]:
    stdin = source.open()
    try:
        answer = _inspected(source, stdin)
        found = config.of_oci(_document(source, answer.get("config")))
        leases = _all_layers(source, stdin, _layers(source, answer.get("layers")))
    finally:
        if stdin is not None:
            os.close(stdin)
    return _known(source, found, leases), leases


def write_plain(
    path: str, ref: str | None, storage: Storage, diff_id: str, new: New, timeout: float | None
) -> bool:
    """Write the tar of a layer of an image, without its compression, as `new.tree`/PLAIN. Returns
    False if the image has no such layer; an .aci has none.
    """
    source = Source(path, ref, storage, way_for(None), timeout)
    if source.is_aci:
        return False
    stdin = source.open()
    try:
        blobs = _layers(source, _inspected(source, stdin).get("layers"))
        for blob in blobs:
            if blob["diff_id"] == diff_id:
                plain(source.way, source.request, new, stdin, blob)
                return True
    finally:
        if stdin is not None:
            os.close(stdin)
    return False


def _inspected(source: Source, stdin: int | None) -> Any:
    child = unpack.Child(source.request, source.way.confined)
    child.stdin = stdin
    child.settings |= {"job": "inspect"}
    answer = child.run(None)["value"]
    if not isinstance(answer, dict):
        raise child.nonsense(answer)
    return answer


def _document(source: Source, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise unpack.Child(source.request, source.way.confined).nonsense(value)
    return value


Blob = dict[str, Any]  # the settings of the child for one layer


def _layers(source: Source, value: Any) -> list[Blob]:
    """What the child says of the layers, checked: whatever it says, it is about its own source."""
    kinds = (str, str, str, int, int)
    if isinstance(value, list) and all(
        isinstance(each, list)
        and [type(part) for part in each] == list(kinds)
        and len(each[2]) == 71
        and not set(each[2][7:]) - set("0123456789abcdef")
        for each in value
    ):
        names = ("name", "digest", "diff_id", "offset", "size")
        return [dict(zip(names, each, strict=True)) for each in value]
    raise unpack.Child(source.request, source.way.confined).nonsense(value)


def _all_layers(source: Source, stdin: int | None, blobs: list[Blob]) -> list[Lease]:
    """Leases of all layers, bottom first, without those that are hidden as a whole."""
    from concurrent.futures import ThreadPoolExecutor

    most = min(_MOST_AT_ONCE, len(os.sched_getaffinity(0)), max(1, len(blobs)))
    wanted = {blob["diff_id"]: blob for blob in blobs}
    with ThreadPoolExecutor(most) as pool:
        tasks = {
            diff_id: pool.submit(_layer, source, stdin, number, blob)
            for number, (diff_id, blob) in enumerate(wanted.items())
        }
        try:
            made = {diff_id: _result(task) for diff_id, task in tasks.items()}
        except BaseException:
            for task in tasks.values():
                task.cancel()
            raise
    leases: list[Lease] = []
    for number, blob in enumerate(blobs):
        lease = made[blob["diff_id"]]
        if isinstance(lease, NeedsLowers):
            if not leases:
                raise lease
            lease = _layer(source, stdin, number, blob, tuple(leases))
        elif leases and os.path.lexists(os.path.join(os.path.dirname(lease.path), "implied")):
            lease = _layer(source, stdin, number, blob, tuple(leases))
        if hides_all(lease):
            leases.clear()
        if lease in leases:  # overlayfs refuses a directory that is there twice
            leases.remove(lease)
        leases.append(lease)
    return leases


def _result(task: Any) -> Lease | NeedsLowers:
    """The lease of a task, or the reason why the layer takes those below it."""
    try:
        lease: Lease = task.result()
        return lease
    except NeedsLowers as error:
        return error


def _layer(
    source: Source, stdin: int | None, number: int, blob: Blob, lowers: tuple[Lease, ...] = ()
) -> Lease:
    """A lease of a layer, which is unpacked if the store does not have it.

    lowers: the layers below, if they count: the entry is that of a layer above just these.
    """
    storage, kind = source.storage, source.way.kind
    name = blob["diff_id"][7:]
    if lowers:
        names = "\n".join(os.path.basename(os.path.dirname(lease.path)) for lease in lowers)
        name += "-" + hashlib.sha256(names.encode()).hexdigest()[:32]
    with storage._making(kind, name, source.end):
        lease = storage._lease(kind, name)
        if lease is not None:
            return lease
        try:
            made = unpacked_layer(
                *(storage, source.way, source.request),
                **{"stdin": stdin, "source": blob, "lowers": lowers, "name": name},
            )
            source.count(made)
            return made.lease
        except ImageError as error:
            raise type(error)(f"{error}; it is layer {number}") from error.__cause__


def _known(source: Source, found: config.Config, leases: list[Lease]) -> Known:
    names = [os.path.basename(os.path.dirname(lease.path)) for lease in leases]
    ids = _ids(source, found.account, leases) if found.account else None
    return Known(names, found.entrypoint, found.cmd, found.env, found.cwd, ids)


def _ids(source: Source, account: str, leases: list[Lease]) -> tuple[int, int] | None:
    """The ids of the image's user, which its own /etc/passwd and /etc/group may tell."""
    child = unpack.Child(source.request, source.way.confined)
    child.lowers = [lease.path for lease in leases]
    child.settings |= {
        **{"job": "account", "account": account, "lowers": len(leases), "directory": False},
        "stack": unpack.stack_directory(),
    }
    return unpack._ids(child, child.run(None)["value"])
