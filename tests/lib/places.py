# SPDX-License-Identifier: Apache-2.0
"""One root in several forms: a directory, layers, mounts over nothing, an image."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sandboxlib import Layer, Mount, Overlay, Sandbox, Store


class Place:
    """A root, and what goes with it.

    root: as Sandbox takes it. options: of the Sandbox. sources: the directories that no run may
    change; all of them, unless changes stay. keeps: bool, whether the next run sees the changes.
    """

    def __init__(
        self, root: Any, sources: tuple[Path, ...] = (), keeps: bool = False, **options: Any
    ) -> None:
        self.root, self.sources, self.keeps, self.options = root, sources, keeps, options
        self.is_furnished = "extra_mounts" in options

    def box(self, **options: Any) -> Sandbox:
        """The Sandbox; its root can be written to, unless the options say something else."""
        mounts = [*self.options.get("extra_mounts", ()), *options.pop("extra_mounts", ())]
        words = {"filesystem_writable_paths": "all", **self.options, **options}
        return Sandbox(self.root, **{**words, "extra_mounts": mounts})


def _directory(root: Path, beside: Path) -> Place:
    return Place(root, keeps=True)


def _layer(root: Path, beside: Path) -> Place:
    return Place(Overlay(root), (root,))


def _two(root: Path, beside: Path) -> Place:
    """The root in two parts; what is in both is hidden in the lower one."""
    upper = beside / "upper layer"
    shutil.copytree(root / "etc", upper / "etc")
    for path in (root / "etc").iterdir():
        path.write_text("hidden")
    return Place(Overlay(root, upper), (root, upper))


def _disk(root: Path, beside: Path) -> Place:
    storage = beside / "storage"
    storage.mkdir()
    return Place(Overlay(root, storage=storage), (root,))


def _upper(root: Path, beside: Path) -> Place:
    return Place(Overlay(root, upper=beside / "kept"), (root,), keeps=True)


def _furnished(root: Path, beside: Path) -> Place:
    mounts = [
        Mount.bind(root / "bin", "/bin", read_only=True),
        *(Mount.directory(f"/{name}") for name in ("etc", "proc", "dev")),
        Mount.directory("/tmp", mode=0o1777),
        *(Mount.file(path.read_bytes(), f"/etc/{path.name}") for path in (root / "etc").iterdir()),
    ]
    return Place(Overlay(), (root,), extra_mounts=mounts)


def _stored(root: Path, beside: Path) -> Place:
    with tarfile.open(beside / "root.tar", "w") as tar:
        tar.add(root, ".")
    store = Store(beside / "store")
    return Place(Overlay(Layer.from_tar(beside / "root.tar", store)), (root,))


#: By name, how a root directory becomes such a place; the second directory is for what it takes.
PLACES: dict[str, Callable[[Path, Path], Place]] = {
    "directory": _directory,
    "layer": _layer,
    "two layers": _two,
    "disk": _disk,
    "upper": _upper,
    "furnished": _furnished,
    "stored": _stored,
}
