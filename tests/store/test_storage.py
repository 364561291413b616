# SPDX-License-Identifier: Apache-2.0
"""The store as a directory: entries, leases, locks, pruning, and who may share it."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lib.machine import needs_root
from lib.waiting import wait_until

from sandboxlib import Sandbox, SetupError, SpecError, SpecTypeError, Store
from sandboxlib._store.locks import Lease

#: A program that makes an entry as slowly as it is told, and says what it does.
MAKER = """
import sys, time
from sandboxlib import Store
store = Store(sys.argv[1])
with store._making("things/x", "one"):
    lease = store._lease("things/x", "one")
    if lease is None:
        with store._new() as new:
            for number in range(20):
                with open(f"{new.tree}/{number}", "w") as file:
                    file.write("x" * 1000)
                time.sleep(float(sys.argv[2]))
                print("wrote", flush=True)
            lease = store._publish(new, "things/x", "one")
            print("made", flush=True)
print(lease.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put(store: Store, name: str, size: int = 100) -> Lease:
    with store._new() as new:
        Path(new.tree, "data").write_bytes(b"x" * size)
        return store._publish(new, "things/x", name)


def names(store: Store) -> list[str]:
    return [entry.name for entry in store._entries()]


def start(store: Store, pause: float = 0.0) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", MAKER, store.directory, str(pause)]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# ---- the value -------------------------------------------------------------------------------


def test_the_default_is_the_callers_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert Store().directory == "/cache/sandboxlib"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert Store().directory == "/home/somebody/.cache/sandboxlib"


def test_a_store_is_a_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store("x", max_size="2K") == Store(tmp_path / "x", max_size=2048)
    assert Sandbox("/", store=Store("x")) != Sandbox("/")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: Store(""), SpecError),
        (lambda: Store(5), SpecTypeError),  # type: ignore[arg-type]
        (lambda: Store("/x", max_size="many"), SpecError),
        (lambda: Store("/x", size=5), SpecTypeError),  # type: ignore[arg-type]
        (lambda: Store("/x").prune(-1), SpecError),
        (lambda: Sandbox("/", store="/x"), SpecTypeError),  # type: ignore[arg-type]
    ],
)
def test_wrong_values_are_refused(make: Callable[[], object], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        make()


# ---- entries ---------------------------------------------------------------------------------


def test_an_entry_is_there_once_it_is_whole(store: Store) -> None:
    with store._new() as new:
        Path(new.tree, "data").write_bytes(b"x")
        assert names(store) == []
        lease = store._publish(new, "things/x", "one")
    assert Path(lease.path, "data").read_bytes() == b"x"
    assert names(store) == ["one"]
    assert os.listdir(f"{store.directory}/tmp") == []


def test_a_file_is_an_entry_too(store: Store) -> None:
    with store._new() as new:
        Path(new.file).write_bytes(b"content")
        lease = store._publish(new, "files", "abc")
    assert Path(lease.path).read_bytes() == b"content"
    again = store._lease("files", "abc")
    assert again is not None
    assert again.path == lease.path


def test_what_was_not_published_is_removed(store: Store) -> None:
    with store._new() as new:
        os.makedirs(f"{new.tree}/a/b")
    assert os.listdir(f"{store.directory}/tmp") == []


@pytest.mark.parametrize("is_file", [False, True])
def test_the_first_to_publish_wins(store: Store, is_file: bool) -> None:
    paths = []
    for text in ("first", "second"):
        with store._new() as new:
            Path(new.file if is_file else f"{new.tree}/data").write_text(text)
            paths.append(store._publish(new, "things", "one").path)
    assert paths[0] == paths[1]
    assert Path(paths[0] if is_file else f"{paths[0]}/data").read_text() == "first"


def test_no_other_user_reaches_what_is_in_it(store: Store) -> None:
    lease = put(store, "one")
    for path in (store.directory, os.path.dirname(lease.path), f"{store.directory}/tmp"):
        assert os.stat(path).st_mode & 0o777 == 0o700


# ---- who may share it ------------------------------------------------------------------------


def test_a_directory_that_others_can_write_is_refused(store: Store) -> None:
    os.mkdir(store.directory)
    os.chmod(store.directory, 0o777)
    with pytest.raises(SetupError, match="written by other users") as caught:
        put(store, "one")
    assert (caught.value.errno, caught.value.step) == (errno.EPERM, "store")


@needs_root
@pytest.mark.parametrize("part", ["", "tmp", "things/x/one"])
def test_what_another_user_made_is_refused(store: Store, part: str) -> None:
    put(store, "one").close()
    os.chown(os.path.join(store.directory, part), 65534, 65534)
    with pytest.raises(SetupError, match="another user"):
        store._lease("things/x", "one") if part.startswith("things") else put(store, "two")


def test_a_link_in_the_place_of_an_entry_is_refused(store: Store, tmp_path: Path) -> None:
    put(store, "one").close()
    os.symlink(tmp_path, f"{store.directory}/things/x/two")
    with pytest.raises(SetupError):
        store._lease("things/x", "two")


def test_eight_processes_share_what_one_makes(store: Store) -> None:
    makers = [start(store, 0.005) for _ in range(8)]
    outputs = [maker.communicate("")[0].split("\n") for maker in makers]
    assert sum("made" in lines for lines in outputs) == 1
    assert {lines[-2] for lines in outputs} == {f"{store.directory}/things/x/one/tree"}
    assert len(os.listdir(f"{store.directory}/things/x/one/tree")) == 20
    assert os.listdir(f"{store.directory}/locks") == []


def test_the_next_one_makes_it_if_its_maker_is_killed(store: Store) -> None:
    first = start(store, 0.2)
    assert first.stdout is not None
    first.stdout.readline()
    others = [start(store) for _ in range(3)]
    first.send_signal(signal.SIGKILL)
    first.communicate()
    outputs = [other.communicate("")[0].split("\n") for other in others]
    assert sum("made" in lines for lines in outputs) == 1
    assert len(os.listdir(f"{store.directory}/things/x/one/tree")) == 20
    store.prune(1 << 40)
    assert os.listdir(f"{store.directory}/tmp") == []


def test_who_waits_for_another_maker_gives_up_at_the_deadline(store: Store) -> None:
    with store._making("things", "one"):
        with store._making("things", "two", time.monotonic()):
            pass
        with (
            pytest.raises(SetupError, match="wait for another") as caught,
            store._making("things", "one", time.monotonic() + 0.05),
        ):
            pass
    assert caught.value.errno == errno.ETIMEDOUT


def test_threads_wait_for_each_other(store: Store) -> None:
    inside: list[int] = []

    def make() -> None:
        with store._making("things", "one"):
            inside.append(1)
            assert len(inside) == 1
            time.sleep(0.01)
            inside.pop()

    failed: list[object] = []
    threads = [threading.Thread(target=make) for _ in range(8)]
    before, threading.excepthook = threading.excepthook, failed.append
    try:
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    finally:
        threading.excepthook = before
    assert not failed


# ---- pruning ---------------------------------------------------------------------------------


def test_prune_removes_what_nobody_uses_and_tells_how_much(store: Store) -> None:
    used = put(store, "used", 1 << 20)
    put(store, "idle", 2 << 20).close()
    freed = store.prune()
    assert names(store) == ["used"]
    assert 2 << 20 <= freed < 3 << 20
    assert Path(used.path, "data").stat().st_size == 1 << 20
    used.close()
    store.prune()
    assert names(store) == []


def test_prune_removes_the_least_recently_used_first(store: Store) -> None:
    for number, name in enumerate(("new", "old", "older")):
        put(store, name, 1 << 20).close()
        then = time.time() - 1000 * number - 1000
        os.utime(f"{store.directory}/things/x/{name}", (then, then))
    lease = store._lease("things/x", "older")
    assert lease is not None
    lease.close()
    store.prune("2500K")
    assert sorted(names(store)) == ["new", "older"]


def test_another_process_keeps_what_it_uses(store: Store) -> None:
    other = start(store)
    assert other.stdout is not None
    wait_until(lambda: "tree" in (other.stdout.readline() if other.stdout else ""))
    store.prune()
    assert names(store) == ["one"]
    other.communicate("")
    store.prune()
    assert names(store) == []


def test_a_store_with_a_max_size_stays_below_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", max_size="3M")
    for number in range(9):
        put(store, f"{number}", 1 << 20).close()
        then = time.time() - 1000 + number
        os.utime(f"{store.directory}/things/x/{number}", (then, then))
        assert f"{number}" in names(store)
    assert len(names(store)) <= 3


def test_prune_follows_no_link_out_of_the_store(store: Store, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").touch()
    with store._new() as new:
        os.symlink(victim, f"{new.tree}/link")
        os.mkdir(f"{new.tree}/closed", 0o000)
        store._publish(new, "things/x", "one").close()
    os.symlink(victim, f"{store.directory}/tmp/link")
    os.symlink(victim, f"{store.directory}/things/link")
    store.prune()
    assert names(store) == []
    assert (victim / "file").exists()


def test_prune_removes_the_uppers_on_disk_that_killed_hosts_left(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    left, used, other = (tmp_path / f"sandboxlib-upper-{name}" for name in ("a", "b", "c"))
    for path in (left, used):
        (path / "upper").mkdir(parents=True)
        (path / "upper" / "file").write_bytes(b"x" * 100_000)
    other.write_text("no directory")
    fd = os.open(used, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert store.prune() >= 100_000
    finally:
        os.close(fd)
    assert (left.exists(), used.exists(), other.exists()) == (False, True, True)
