# SPDX-License-Identifier: Apache-2.0
"""Changes of an overlay that a test mounted itself, and what a layer makes of a tree."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from pathlib import Path

from lib.trees import overlaid

from sandboxlib._changes.changes import Changes
from sandboxlib._runs.upper import Upper
from sandboxlib._spec.overlay import Lower, Owners

Tree = dict[str, tuple[object, ...]]


def changes_of(
    place: Path, lowers: list[Path], *, user: bool, targets: tuple[str, ...] = ()
) -> Changes:
    """The Changes of the upper at place/u, over `lowers`, bottom first."""
    owners = Owners("single" if user else "real", os.geteuid(), os.getegid())
    return Changes(
        Upper(
            os.open(place / "u", os.O_RDONLY | os.O_DIRECTORY),
            b"user.overlay." if user else b"trusted.overlay.",
            tuple(Lower(str(path)) for path in lowers),
            owners,
            True,
            targets,
        )
    )


def changed(
    place: Path, lowers: list[Path], script: str, *, user: bool, targets: tuple[str, ...] = ()
) -> tuple[Changes, Tree]:
    """What Python did in an overlay, as Changes; and the tree that it left, as it saw it."""
    place.mkdir(exist_ok=True)
    seen = overlaid(place, lowers, script, user=user)
    return changes_of(place, lowers, user=user, targets=targets), seen


def told(changes: Changes) -> list[str]:
    """The changes as short lines."""
    return [f"{change.kind} {change.type} {ascii(change.path)[1:-1]}" for change in changes]


def without_owners(tree: Tree) -> Tree:
    """A tree whose files have no owners, and whose root has no time."""
    found = {name: (values[0], *values[3:]) for name, values in tree.items()}
    root = found["."]
    return {**found, ".": (root[0], 0, *root[2:])}


def unpack(layer: Path, directory: Path) -> None:
    """Unpack a layer onto a tree as OCI says it, by Python's tarfile."""
    with tarfile.open(layer, encoding="utf-8", errors="surrogateescape") as tar:
        tar.extraction_filter = lambda member, _: member  # of Pythons that have one: all is trusted
        members = tar.getmembers()
        for member in members:
            above, name = os.path.split(os.path.join(directory, member.name))
            if name.startswith(".wh."):
                _remove(os.path.join(above, name[4:]))
        for member in members:
            path = os.path.join(directory, member.name)
            if os.path.basename(path).startswith(".wh."):
                continue
            if os.path.lexists(path) and not (member.isdir() and _is_directory(path)):
                _remove(path)
            tar.extract(member, directory, numeric_owner=True)
            for name in os.listxattr(path, follow_symlinks=False):  # of a directory that was there
                os.removexattr(path, name, follow_symlinks=False)
            for key, value in member.pax_headers.items():
                if key.startswith("SCHILY.xattr."):
                    data = value.encode("utf-8", "surrogateescape")
                    os.setxattr(path, key[13:], data, follow_symlinks=False)
        for member in reversed(members):
            path = os.path.join(directory, member.name)
            if not os.path.basename(path).startswith(".wh."):
                whole, _, fraction = member.pax_headers.get("mtime", "0").partition(".")
                time = int(whole) * 10**9 + int(fraction.ljust(9, "0"))
                time = time or int(member.mtime) * 10**9
                os.utime(path, ns=(time, time), follow_symlinks=False)


def _is_directory(path: str) -> bool:
    return stat.S_ISDIR(os.lstat(path).st_mode)


def _remove(path: str) -> None:
    if _is_directory(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)
