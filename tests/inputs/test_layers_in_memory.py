# SPDX-License-Identifier: Apache-2.0
"""Small inputs are layers in memory, which go with what refers to them, and with the process."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from lib.machine import python, require

from sandboxlib import Command, File, Overlay, Sandbox, SetupError, Store
from sandboxlib._inputs import memory
from sandboxlib._inputs.placing import Placer
from sandboxlib._inputs.snapshot import Folder, Leaf
from sandboxlib._inputs.staging import Layer, Owner
from sandboxlib._spec.overlay import Lower, Owners

IDS = os.geteuid(), os.getegid()
#: A program that has a layer in memory, and prints the directory of its layers.
HOLDER = """
import os, sys
from sandboxlib import Command, Store
from sandboxlib._inputs import memory
from sandboxlib._inputs.placing import Placer
from sandboxlib._spec.overlay import Lower, Owners
root, store = sys.argv[1:]
owners = Owners("single", os.geteuid(), os.getegid())
placer = Placer(Store(store), lambda: [Lower(root)], b"user.overlay.", owners, None, ())
ready = placer.ready(Command("x", inputs={"/a": b"1"}))
print(memory.find().path, flush=True)
"""


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has nothing in memory yet."""
    require(memory._is_fit(), "there is no /dev/shm for layers in memory")
    monkeypatch.setattr(memory, "_process", memory._Process())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def placer(store: Store, tmp_path: Path) -> Placer:
    (tmp_path / "root").mkdir()
    owners = Owners("single", *IDS)
    layers = [Lower(str(tmp_path / "root"))]
    return Placer(store, lambda: layers, b"user.overlay.", owners, None, ())


def in_memory() -> list[str]:
    """The layers that there are."""
    directory = memory.find()
    assert directory is not None
    return sorted(os.listdir(directory.path))


def place(placer: Placer, content: bytes | File) -> Path:
    """Where the layer of one File is."""
    (lower,) = placer.ready(Command("x", inputs={"/a": content})).lowers
    return Path(lower.path)


def hold(tmp_path: Path, more: str) -> subprocess.Popen[str]:
    (tmp_path / "root").mkdir(exist_ok=True)
    argv = [*python(), "-c", HOLDER + more, str(tmp_path / "root"), str(tmp_path / "store")]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_layer_of_files_is_not_in_the_store(placer: Placer, store: Store) -> None:
    path = place(placer, b"1")
    assert (path / "a").read_bytes() == b"1"
    assert placer.in_memory is not None
    assert str(path.parent) == placer.in_memory.path
    assert not Path(store.directory, "inputs").exists()
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_layer_goes_with_the_last_that_refers_to_it(placer: Placer) -> None:
    ready = placer.ready(Command("x", inputs={"/a": b"kept"}))
    for number in range(100):
        place(placer, b"%d" % number)
    gc.collect()
    assert len(in_memory()) == 65  # those that the Placer remembers, and the one that is in use
    assert os.path.exists(ready.lowers[0].path)
    del ready
    placer._known.clear()
    gc.collect()
    assert in_memory() == []


def test_the_directory_goes_with_the_last_sandbox(rootfs: Path, store: Store) -> None:
    with Sandbox(Overlay(rootfs), store=store) as first:
        for _ in range(2):
            first.run(["true"])  # its programs stay open
    del first
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    boxes = [Sandbox(Overlay(rootfs), store=store) for _ in range(2)]
    for number in range(2):
        assert boxes[number].run(["cat", "/a"], inputs={"/a": b"1"}).out == b"1"
    directory = memory.find()
    assert directory is not None
    path = directory.path
    del directory
    for _ in range(2):
        assert len(os.listdir(path)) == len(boxes)
        boxes.pop().close()
        gc.collect()
    assert not os.path.exists(path)
    assert set(os.listdir("/proc/self/fd")) <= before


def test_equal_files_share_a_layer(placer: Placer) -> None:
    first = placer.ready(Command("x", inputs={"/a": b"1"}, outputs=["/a.o"]))
    second = placer.ready(Command("y", inputs={"/a": b"1"}))
    assert first.lowers[0].path == second.lowers[0].path


def test_a_large_file_is_in_the_store(placer: Placer, store: Store) -> None:
    assert place(placer, b"x" * (memory.LARGEST + 1)).is_relative_to(store.directory)
    assert in_memory() == []


def test_what_finds_no_room_is_in_the_store(
    placer: Placer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MOST", 3 * 8192)
    ready = [placer.ready(Command("x", inputs={"/a": b"%d" % number})) for number in range(5)]
    paths = [Path(each.lowers[0].path) for each in ready]
    assert [path.is_relative_to(store.directory) for path in paths] == [False] * 3 + [True] * 2
    del ready
    placer._known.clear()
    gc.collect()
    assert not place(placer, b"new").is_relative_to(store.directory)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.ENOMEM])
def test_a_full_memory_is_no_failure(
    placer: Placer, store: Store, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real, calls = os.fchmod, []

    def full_once(fd: int, mode: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            raise OSError(number, os.strerror(number))
        real(fd, mode)

    monkeypatch.setattr(os, "fchmod", full_once)
    assert place(placer, b"1").is_relative_to(store.directory)
    assert in_memory() == []


def test_a_changed_source_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"1")
    directory = memory.find()
    assert directory is not None
    changed = Leaf(f"{'0' * 64}/1", False, str(tmp_path / "source"))
    with pytest.raises(SetupError, match="has changed") as caught:
        directory.stage(Layer(Folder({b"a": changed}), "", Owner(*IDS, 5), {}))
    assert caught.value.errno == errno.ESTALE
    assert os.listdir(directory.path) == []


def test_without_dev_shm_layers_are_in_the_store(
    placer: Placer, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for missing in ("none", "root"):  # the second is no tmpfs of its own
        monkeypatch.setattr(memory, "SHM", str(tmp_path / missing))
        monkeypatch.setattr(memory, "_process", memory._Process())
        assert memory.find() is None
        assert place(placer, missing.encode()).is_relative_to(store.directory)


def test_a_directory_that_others_may_replace_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.stat

    def open_to_all(path: str, **words: bool) -> os.stat_result:
        status = real(path, **words)
        return os.stat_result((status.st_mode & ~0o1000, *status[1:]))

    monkeypatch.setattr(os, "stat", open_to_all)
    assert memory.find() is None


def test_the_next_process_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    with hold(tmp_path, "sys.stdin.read()") as alive:
        assert alive.stdout is not None
        assert alive.stdin is not None
        kept = Path(alive.stdout.readline().strip())
        with hold(tmp_path, "os.kill(os.getpid(), 9)") as killed:
            assert killed.stdout is not None
            left = Path(killed.stdout.readline().strip())
            assert killed.wait(60) == -signal.SIGKILL
        assert memory.find() is not None
        assert not left.exists()
        assert os.listdir(kept) == ["0"]
        alive.stdin.close()
        assert alive.wait(60) == 0
    assert not kept.exists()


def test_leftovers_are_removed_without_following_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shm" / "sandboxlib-left" / "0" / "deep").mkdir(parents=True)
    (tmp_path / "shm" / "other").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    (tmp_path / "shm" / "sandboxlib-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "shm" / "sandboxlib-left" / "0" / "link").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr(memory, "SHM", str(tmp_path / "shm"))
    memory._remove_leftovers()
    assert sorted(os.listdir(tmp_path / "shm")) == ["other", "sandboxlib-link"]
    assert (tmp_path / "elsewhere" / "file").exists()


def test_a_fork_has_layers_of_its_own(tmp_path: Path) -> None:
    script = """
mine = ready.lowers[0].path
pid = os.fork()
if not pid:
    again = placer.ready(Command("x", inputs={"/a": b"1"})).lowers[0].path
    is_own = again != mine and os.path.dirname(again) == memory.find().path
    del ready
    placer._known.clear()
    print(is_own, memory.find().path, flush=True)
    sys.exit(0)
os.waitpid(pid, 0)
print(os.listdir(mine))
"""
    with hold(tmp_path, script) as process:
        out, _ = process.communicate(timeout=60)
    first, second, third = out.splitlines()
    is_own, directory = second.split()
    assert (is_own, third) == ("True", "['a']")
    assert not Path(first).exists()
    assert not Path(directory).exists()


def test_runs_go_on_after_somebody_removed_the_directory(rootfs: Path, store: Store) -> None:
    with Sandbox(Overlay(rootfs), store=store) as box:
        for number in range(6):
            content = b"%d" % number
            result = box.run(["cat", "/a"], inputs={"/a": content}, fresh=number == 3)
            assert (result.exit, result.out) == (0, content)
            if number == 2:
                directory = memory.find()
                assert directory is not None
                shutil.rmtree(directory.path)
