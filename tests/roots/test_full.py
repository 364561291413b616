# SPDX-License-Identifier: Apache-2.0
"""A disk that is full, at every stage: the error says so, and nothing half-made is left.

The disk is a small tmpfs in a mount namespace of the host's own.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lib import hosts

pytest_plugins = ["lib.ways"]

HEAD = """
import errno
from pathlib import Path
from sandboxlib import Command, File, Layer, Overlay, SandboxError, Store, Tree
disk = Path(mode["disk"])

def fill(left=0):
    "Fill the disk but for so many bytes."
    with open(disk / "filler", "wb") as file:
        try:
            while True:
                file.write(bytes(4096))
                file.flush()
        except OSError as error:
            assert error.errno == errno.ENOSPC
        try:
            file.close()
        except OSError:
            pass
    os.truncate(disk / "filler", max(0, os.path.getsize(disk / "filler") - left))

def free():
    os.unlink(disk / "filler")

def names(place=disk):
    found = sorted(str(path.relative_to(place)) for path in place.rglob("*"))
    return [name for name in found if name != "filler"]

def refused(call):
    "What it raises: it has to say that there is no space."
    try:
        call()
    except SandboxError as error:
        assert "ENOSPC" in str(error) or "No space left" in str(error), repr(error)
        return error
    raise AssertionError("there was space")
"""


def host(script: str, root: Path, disk: Path, size: str = "2M") -> str:
    """Runs a host with a small disk."""
    disk.mkdir(exist_ok=True)
    mount = f'mount -t tmpfs -o size={size},mode=0700 full "$0" && exec "$@"'
    user = ["-Ur"] if os.geteuid() != 0 else []
    wrapper = ["unshare", *user, "-m", "sh", "-c", mount, str(disk)]
    return hosts.run(HEAD + script, root, {"disk": str(disk)}, wrapper)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk"


def test_a_bound_upper_in_memory_is_as_small_as_it_says(
    rootfs: Path, disk: Path, executor: str
) -> None:
    script = """
from sandboxlib import Limits
with Sandbox(Overlay(root), limits=Limits(changes="1M")) as box:
    for fresh in (True, False, False):
        script = "dd if=/dev/zero of=/big bs=64k count=30; stat -c %s /big"
        result = box.run(["sh", "-c", script], fresh=fresh)
        assert b"No space left" in result.err, result
        assert int(result.out) <= 1 << 20, result
        # A copy of a file of the layer takes its whole size.
        result = box.run(["sh", "-c", "echo x >> /bin/busybox"], fresh=fresh)
        assert result.exit == 1 and b"No space left" in result.err, result
"""
    host(script, rootfs, disk)
