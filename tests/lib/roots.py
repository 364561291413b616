# SPDX-License-Identifier: Apache-2.0
"""Root directories for sandboxes."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

from lib.machine import require


@cache
def find_busybox() -> str | None:
    """The path of a static busybox, which runs in an empty root; None if there is none."""
    for path in ("/bin/busybox", "/usr/bin/busybox"):
        if os.path.exists(path) and b"dynamically" not in _file_type(path):
            return path
    return None


def _file_type(path: str) -> bytes:
    found = subprocess.run(["readelf", "-l", path], capture_output=True, check=False).stdout
    return b"dynamically" if b"INTERP" in found else b"static"


def make_rootfs(path: Path) -> Path:
    """Make a root with busybox under every name that it knows, /proc, /dev, /tmp and /etc."""
    busybox = find_busybox()
    require(busybox, "there is no static busybox (apt: busybox-static)")
    assert busybox is not None
    for name in ("bin", "dev", "etc", "proc", "tmp"):
        (path / name).mkdir(parents=True)
    path.chmod(0o755)
    (path / "tmp").chmod(0o1777)
    shutil.copy(busybox, path / "bin" / "busybox")
    for name in _names(busybox):  # hard links: 300 new symbolic ones take ext4 0.2 s
        os.link(f"{path}/bin/busybox", f"{path}/bin/{name}")
    return path


@cache
def _names(busybox: str) -> list[str]:
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split() if name != "busybox"]
