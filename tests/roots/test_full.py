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

def crowd():
    "Leave no room for another file or directory."
    (disk / "filler").mkdir()
    try:
        for number in range(10 ** 6):
            (disk / "filler" / str(number)).touch()
    except OSError as error:
        assert error.errno == errno.ENOSPC

def free():
    if (disk / "filler").is_dir():
        shutil.rmtree(disk / "filler")
    else:
        os.unlink(disk / "filler")

def names(place=disk):
    found = sorted(str(path.relative_to(place)) for path in place.rglob("*"))
    return [name for name in found if not name.startswith("filler")]

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
    mount = f'mount -t tmpfs -o size={size},nr_inodes=300,mode=0700 full "$0" && exec "$@"'
    user = ["-Ur"] if os.geteuid() != 0 else []
    wrapper = ["unshare", *user, "-m", "sh", "-c", mount, str(disk)]
    return hosts.run(HEAD + script, root, {"disk": str(disk)}, wrapper)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk"


def test_an_upper_that_cannot_be_made_is_told(rootfs: Path, disk: Path, executor: str) -> None:
    script = """
with Sandbox(Overlay(root, storage=disk)) as box:
    box.run(["true"], check=True)
    assert names() == [], names()
    crowd()
    error = refused(lambda: box.run(["true"]))
    print(error.step, str(disk) in str(error))
    assert names() == [], names()
    free()
    box.run(["true"], check=True)
assert names() == [], names()
"""
    step, is_named = host(script, rootfs, disk).split()
    assert step
    assert is_named == "True"


def test_a_command_that_fills_its_upper_is_told(rootfs: Path, disk: Path, executor: str) -> None:
    script = """
for options in ({"storage": disk}, {"upper": disk / "kept"}):
    with Sandbox(Overlay(root, **options)) as box:
        script = "dd if=/dev/zero of=/big bs=64k count=150; echo $?; ls -d /big"
        result = box.run(["sh", "-c", script])
        assert (result.exit, result.out) == (0, b"1\\n/big\\n"), result
        assert b"No space left" in result.err
        result = box.run(["sh", "-c", "rm -f /big; echo x >> /etc/x && cat /etc/x"])
        assert result == (0, b"x\\n", b""), result
    print(names())
"""
    first = host(script, rootfs, disk).splitlines()[0]
    assert first == "[]"


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


STORED = """
import tarfile
big = disk.parent / "big"
big.mkdir()
(big / "file").write_bytes(os.urandom(4 << 20))
(big / "small").write_bytes(b"x")
"""


def test_a_store_that_is_full_is_told_and_has_no_part_of_a_layer(rootfs: Path, disk: Path) -> None:
    script = (
        STORED
        + """
with tarfile.open(disk.parent / "big.tar", "w") as tar:
    tar.add(big, ".")
store = Store(disk / "store")
for make in (
    lambda store: Layer.from_tar(disk.parent / "big.tar", store),
    lambda store: Layer.from_directory(big, store),
):
    refused(lambda: make(store))
    assert names(disk / "store" / "tmp") == [], names()
    assert not [name for name in names() if name.endswith("/tree")], names()
    layer = make(Store(disk.parent / "other"))
    with Sandbox(Overlay(root, layer)) as box:
        assert box.run(["cat", "/small"]).out == b"x"
# There is room for a small one.
(big / "file").unlink()
with Sandbox(Overlay(root, Layer.from_directory(big, store))) as box:
    assert box.run(["cat", "/small"]).out == b"x"
"""
    )
    host(script, rootfs, disk)


def test_changes_that_find_no_room_stay_whole(rootfs: Path, disk: Path) -> None:
    script = """
with Sandbox(Overlay(root)) as box:
    result = box.run(["sh", "-c", "head -c 4194304 /dev/urandom > /big"], changes="keep")
with result.changes as changes:
    for what in (
        lambda: changes.save(disk / "layer.tar"),
        lambda: changes.extract(disk / "tree"),
        lambda: changes.commit(Store(disk / "store")),
    ):
        refused(what)
        left = [name for name in names() if not name.startswith("store")]
        assert left == [] and names(disk / "store/tmp") == [], names()
    layer = changes.commit(Store(disk.parent / "other"))
    with Sandbox(Overlay(root, layer)) as box:
        assert box.run(["stat", "-c", "%s", "/big"]).out == b"4194304\\n"
"""
    host(script, rootfs, disk)


def test_outputs_that_find_no_room_are_told(rootfs: Path, disk: Path) -> None:
    script = """
script = "mkdir -p /out; head -c 4194304 /dev/urandom > /out/big; echo x > /out/small"
other = Store(disk.parent / "other")
with Sandbox(Overlay(root), store=Store(disk / "store")) as box:
    refused(lambda: box.run(["sh", "-c", script], outputs=["/out/*"]))
    assert names(disk / "store/tmp") == [], names()
with Sandbox(Overlay(root), store=other) as box:
    outputs = box.run(["sh", "-c", script], outputs=["/out/*"], check=True).outputs
refused(lambda: outputs.collect(disk / "collected", below="/out"))
assert "collected/big" not in names(), names()
assert outputs.collect(disk.parent / "collected", below="/out")
"""
    host(script, rootfs, disk)


def test_inputs_that_find_no_room_are_told(rootfs: Path, disk: Path) -> None:
    script = (
        STORED
        + """
with Sandbox(Overlay(root), store=Store(disk / "store")) as box:
    for inputs in ({"/in/big": big / "file"}, {"/in": Tree(big)}):
        refused(lambda: box.run(["ls", "/in"], inputs=inputs))
        assert names(disk / "store/tmp") == [], names()
    assert box.run(["cat", "/in/small"], inputs={"/in/small": big / "small"}).out == b"x"
"""
    )
    host(script, rootfs, disk)
