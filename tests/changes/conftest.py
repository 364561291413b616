# SPDX-License-Identifier: Apache-2.0
"""A base of two layers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lib.machine import needs_root

#: Whether an overlay is one of a user namespace.
KINDS = [pytest.param(False, marks=needs_root, id="root"), pytest.param(True, id="user")]


@pytest.fixture
def base(tmp_path: Path) -> list[Path]:
    """Two layers, bottom first. Their times are long past."""
    layers = [tmp_path / "l0", tmp_path / "l1"]
    for layer, names in zip(
        layers,
        (
            ["usr/a", "usr/b", "usr/lib/x", "usr/lib/y", "gone/c", "dir/in/it", "file", "same"],
            ["usr/lib/y", "usr/share/doc/one", "usr/share/doc/deep/two", "gone/d/e", "etc/conf"],
        ),
        strict=True,
    ):
        for name in names:
            path = layer / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} of {layer.name}")
        os.symlink("usr/lib", layer / f"link-{layer.name}")
        for path in [layer, *layer.rglob("*")]:
            path.is_symlink() or path.chmod(0o755 if path.is_dir() else 0o644)
            os.utime(path, (1e9, 1e9), follow_symlinks=False)
    return layers
