# SPDX-License-Identifier: Apache-2.0
"""Result.changes, in each way to run a command: what is kept, whose it is, and how it ends."""

from __future__ import annotations

import asyncio
import io
import os
import pickle
import stat
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lib.machine import needs_root, require
from lib.roots import make_rootfs
from lib.uppers import told

import sandboxlib
from sandboxlib import Change, Changes, Mount, Overlay, Result, Sandbox, SetupError, SpecError, User

pytest_plugins = ["lib.ways"]

SCRIPT = "echo new > /etc/new; rm /etc/gone; chmod 600 /etc/mode; echo more >> /etc/name"
TOLD = [
    *("deleted file /etc/gone", "metadata file /etc/mode", "modified file /etc/name"),
    "added file /etc/new",
]


def _start(box: Sandbox, argv: list[str]) -> Result:
    with box.start(argv, changes="keep") as process:
        process.wait()
        return process.result()


def _second(box: Sandbox, argv: list[str]) -> Result:
    box.run(argv)
    return box.run(argv, changes="keep")


WAYS: dict[str, Callable[[Sandbox, list[str]], Result]] = {
    "fresh": lambda box, argv: box.run(argv, changes="keep", fresh=True),
    "slot": _second,
    "map": lambda box, argv: next(iter(box.map([argv], changes="keep"))),
    "start": _start,
    "async": lambda box, argv: asyncio.run(box.run_async(argv, changes="keep")),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_rootfs(tmp_path_factory.mktemp("layers") / "base")
    for name in ("gone", "mode", "name"):
        (root / "etc" / name).write_text(f"{name}\n")
    return root


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


def kept(box: Sandbox, script: str) -> Changes:
    changes = box.run(sh(script), changes="keep", check=True).changes
    assert isinstance(changes, Changes)
    return changes


@pytest.mark.every_way
@pytest.mark.parametrize("way", WAYS)
def test_a_run_keeps_its_changes_if_it_is_asked(executor: str, way: str, base: Path) -> None:
    with Sandbox(Overlay(base)) as box, WAYS[way](box, sh(SCRIPT)).changes as changes:
        assert told(changes) == TOLD
        assert changes.complete
        assert changes.read("/etc/new") == b"new\n"
        assert changes.read("/etc/mode") == b"mode\n"


def test_a_one_shot_call_keeps_its_changes(executor: str, base: Path) -> None:
    call = sandboxlib.get_executor(executor).run_sandbox
    for run in (call, sandboxlib.run_sandbox):
        with run(Overlay(base), sh(SCRIPT), changes="keep").changes as changes:
            assert told(changes) == TOLD


def test_nothing_is_kept_unless_it_is_asked(base: Path) -> None:
    with Sandbox(Overlay(base)) as box:
        result = box.run(sh(SCRIPT))
        with pytest.raises(SpecError, match="changes='keep'"):
            result.changes  # noqa: B018
        result = box.run(sh(SCRIPT), changes="on-failure")
        with pytest.raises(SpecError, match="the run is ok"):
            result.changes  # noqa: B018
        result = box.run(sh(f"{SCRIPT}; exit 3"), changes="on-failure")
        with result.changes as changes:
            assert told(changes) == TOLD


def test_what_a_killed_run_left_is_not_complete(base: Path) -> None:
    with Sandbox(Overlay(base)) as box:
        result = box.run(sh("echo half > /half; sleep 60"), timeout=0.5, changes="keep")
        with result.changes as changes:
            assert result.timed_out
            assert not changes.complete
            assert told(changes) == ["added file /half"]


def test_files_have_the_owners_that_the_command_saw(executor: str, base: Path) -> None:
    script = "echo 1 > /one; chown 7:8 /one; chmod 4755 /one; echo 2 > /two; chmod 0 /two"
    user = None if executor == "chroot" else "ranges"
    box = Sandbox(Overlay(base), user=user)
    require(not box.lacks(), f"{executor} lacks: {box.lacks()}")
    with box, kept(box, script) as changes:
        one, two = changes
        assert (one.uid, one.gid, stat.S_IMODE(one.mode)) == (7, 8, 0o4755)
        assert (two.uid, two.gid, stat.S_IMODE(two.mode)) == (0, 0, 0)
        assert changes.read("/two") == b"2\n"


def test_a_command_with_a_single_id_owns_all_as_root(base: Path) -> None:
    with Sandbox(Overlay(base), user=User(1234)) as box:
        box_of = box if os.geteuid() else box.replace(user=None)
        with kept(box_of, "echo 1 > /one") as changes:
            assert [(each.uid, each.gid) for each in changes] == [(0, 0)]


def test_mounts_and_their_points_are_no_changes(base: Path, tmp_path: Path) -> None:
    mounts = [
        *(Mount.bind(tmp_path, "/deep/er/bound"), Mount.tmpfs("/etc/tmpfs")),
        *(Mount.directory("/made"), Mount.file(b"content", "/file")),
        Mount.symlink("target", "/link"),
    ]
    script = "echo x > /deep/er/bound/x; echo x > /etc/tmpfs/x; echo x > /tmp/x; echo x > /mine"
    with Sandbox(Overlay(base), extra_mounts=mounts) as box, kept(box, script) as changes:
        assert told(changes) == ["added file /mine"]
    with (
        Sandbox(Overlay(base), extra_mounts=mounts) as box,
        kept(box, "echo x > /deep/er/mine") as changes,
    ):
        assert told(changes) == [
            *("added directory /deep", "added directory /deep/er", "added file /deep/er/mine"),
        ]


def test_an_upper_on_disk_is_gone_with_its_changes(base: Path, tmp_path: Path) -> None:
    with Sandbox(Overlay(base, storage=tmp_path)) as box:
        changes = kept(box, SCRIPT)
        assert os.listdir(tmp_path)
        assert told(changes) == TOLD
        changes.close()
        assert not os.listdir(tmp_path)


def test_changes_of_a_lasting_upper_are_of_all_its_runs(base: Path, tmp_path: Path) -> None:
    with Sandbox(Overlay(base, upper=tmp_path / "upper")) as box:
        kept(box, "echo 1 > /one").close()
        with kept(box, "echo 2 > /two") as changes:
            assert told(changes) == ["added file /one", "added file /two"]


def test_a_session_has_the_changes_of_all_its_commands(executor: str, base: Path) -> None:
    with Sandbox(Overlay(base)) as box:
        with box.session(changes="keep") as session:
            session.run(sh("echo 1 > /one"), check=True)
            session.run(sh("cat /one; rm /etc/gone"), check=True)
            with pytest.raises(SpecError):
                session.changes  # noqa: B018
        with session.changes as changes:
            assert told(changes) == ["deleted file /etc/gone", "added file /one"]
            assert changes.digest(mtime=0) == changes.digest(mtime=0)


@pytest.fixture
def changes(base: Path) -> Iterator[Changes]:
    with Sandbox(Overlay(base)) as box, kept(box, SCRIPT) as changes:
        yield changes


def test_closed_changes_tell_nothing(changes: Changes, tmp_path: Path) -> None:
    len(changes)
    changes.close()
    changes.close()
    for call in (
        *(changes.digest, changes.__len__, lambda: list(changes)),
        *(lambda: changes.save(tmp_path / "x"), lambda: changes.read("/etc/new")),
        *(lambda: changes.extract(tmp_path / "d"), lambda: changes.apply(tmp_path)),
        changes.commit,
    ):
        with pytest.raises(ValueError, match="closed"):
            call()
    assert not os.listdir(tmp_path)


def test_changes_cannot_be_pickled_and_a_change_can(changes: Changes) -> None:
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(changes)
    for change in changes:
        copy = pickle.loads(pickle.dumps(change))
        assert copy == change
        assert hash(copy) == hash(change)
        assert copy.mtime == pytest.approx(change.mtime_ns / 1e9)
    with pytest.raises(SpecError):
        Change("relative", "added", "file")
    with pytest.raises(SpecError):
        Change("/x", "renamed", "file")


def test_a_pickled_result_has_no_changes(base: Path) -> None:
    with Sandbox(Overlay(base)) as box:
        result = box.run(sh(SCRIPT), changes="keep")
        with result.changes, pytest.raises(SpecError, match="this Result was pickled"):
            pickle.loads(pickle.dumps(result)).changes  # noqa: B018


def test_changes_that_nobody_closes_warn(base: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Sandbox(Overlay(base)) as box:
        results = [box.run(sh(SCRIPT), changes="keep", fresh=True)]
        with pytest.warns(ResourceWarning, match="unclosed <Changes"):
            results.clear()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_committed_layer_stacks(base: Path, tmp_path: Path) -> None:
    from sandboxlib import Store

    store = Store(tmp_path / "store")
    with Sandbox(Overlay(base), store=store) as box, kept(box, SCRIPT) as changes:
        layer = changes.commit(store, mtime=0)
        assert layer.digest == changes.digest(mtime=0)
    script = (
        "cat /etc/new /etc/name; test ! -e /etc/gone && stat -c %a /etc/mode; ls -ld / | cut -c1-10"
    )
    with Sandbox(Overlay(base, layer), store=store) as box:
        result = box.run(sh(script), check=True)
        assert result.stdout == b"new\nname\nmore\n600\ndrwxr-xr-x\n"
        with kept(box, "echo 2 > /etc/second; rm /etc/new") as changes:
            assert told(changes) == ["deleted file /etc/new", "added file /etc/second"]
            second = changes.commit(store, mtime=0)
    with Sandbox(Overlay(base, layer, second), store=store) as box:
        assert box.run(sh("ls /etc"), check=True).stdout.split() == [
            *(b"mode", b"name", b"second"),
        ]


def test_equal_changes_have_equal_digests(executor: str, base: Path) -> None:
    digests = set()
    with Sandbox(Overlay(base)) as box:
        for _ in range(2):
            with kept(box, SCRIPT + "; mkdir /d; ln /etc/new /d/link; mkfifo /d/fifo") as changes:
                digests.add(changes.digest(mtime=7))
                assert changes.digest(mtime=7) != changes.digest(mtime=8)
                assert changes.digest() != changes.digest(mtime=7)
            time.sleep(0.02)
    assert len(digests) == 1


@needs_root
def test_a_reader_of_roots_upper_is_not_root(base: Path) -> None:
    from sandboxlib._changes.confined import NOBODY, _policy

    policy = _policy(True, True)
    box = Sandbox("/", user=User(NOBODY, groups=()), policy=policy, tmp="root")
    told = box.run(["cat", "/proc/self/status"], check=True).stdout.decode()
    status = dict(line.split(":\t", 1) for line in told.splitlines())
    assert status["Uid"].split() == [str(NOBODY)] * 4
    assert int(status["CapEff"], 16) == 1 << 2 | 1 << 21  # dac_read_search, sys_admin
    assert status["Seccomp"] == "2"
    assert box.run(["mount", "-t", "tmpfs", "none", "/tmp"]).exit != 0
    assert box.run(["sh", "-c", "echo x > /root/x"]).exit != 0


def test_what_cannot_be_read_or_written_is_named_with_a_remedy(base: Path, tmp_path: Path) -> None:
    with Sandbox(Overlay(base)) as box, kept(box, SCRIPT) as changes:
        with pytest.raises(FileNotFoundError, match=r"^read /etc/none: No such file .* changes\)$"):
            changes.read("/etc/none")
        with pytest.raises(SetupError, match=r"^read /etc: it is no regular file"):
            changes.read("/etc")
        with pytest.raises(SpecError, match=r"'wb'"):
            changes.save(io.StringIO())  # type: ignore[arg-type]
        with pytest.raises(SetupError, match=r"extract.. makes a new directory; apply"):
            changes.extract(base)
        with pytest.raises(FileNotFoundError, match=r"the directory above it"):
            changes.extract(tmp_path / "none" / "new")
        with pytest.raises(FileNotFoundError, match=r"a copy of it; extract.. makes a new"):
            changes.apply(tmp_path / "none")
        (tmp_path / "empty").mkdir()
        with pytest.raises(FileNotFoundError, match=r"^write /etc/.*a copy of it"):
            changes.apply(tmp_path / "empty")
        assert os.listdir(tmp_path / "empty") == []


@pytest.mark.parametrize("is_empty", [False, True], ids=["base", "empty"])
def test_the_root_directory_keeps_its_mode_and_owner(
    executor: str, is_empty: bool, base: Path, tmp_path: Path
) -> None:
    store = sandboxlib.Store(tmp_path / "store")
    layers: list[Path | sandboxlib.Layer] = [] if is_empty else [base]
    mounts: list[Mount] = []
    if is_empty:
        mounts = [Mount.directory(f"/{name}") for name in ("proc", "dev", "tmp")]
        mounts.append(Mount.bind(base / "bin", "/bin", read_only=True))

    def ran(script: str) -> Changes:
        with Sandbox(Overlay(*layers), extra_mounts=mounts, store=store) as box:
            return kept(box, script)

    with ran("chmod 751 /; chown 5:6 / 2>/dev/null; stat -c '%a %u %g' / >/f") as changes:
        there = changes.read("/f").split()
        assert there[0] == b"751"
        assert told(changes) == ["metadata directory /", "added file /f"]
        changes.save(tmp_path / "layer.tar")
        changes.extract(tmp_path / "out")
        (tmp_path / "copy").mkdir()
        changes.apply(tmp_path / "copy")
        layers.append(changes.commit(store))
    with tarfile.open(tmp_path / "layer.tar") as tar:
        assert next((member.name, member.mode) for member in tar) == (".", 0o751)
    for name in ("out", "copy"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o751
    for name in ("g", "h"):  # a layer above keeps what it finds
        with ran(f"stat -c '%a %u %g' / >/{name}") as changes:
            assert changes.read(f"/{name}").split() == there
            assert told(changes) == [f"added file /{name}"]
            layers.append(changes.commit(store))
