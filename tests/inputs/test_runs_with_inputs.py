# SPDX-License-Identifier: Apache-2.0
"""What a command gets of its inputs, and what becomes of its outputs, in each way to run it."""

from __future__ import annotations

import asyncio
import errno
import os
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.machine import needs_root, require
from lib.roots import make_rootfs

from sandboxlib import (
    Command,
    CommandFailed,
    File,
    Mount,
    Overlay,
    Result,
    Sandbox,
    SandboxError,
    SetupError,
    SpecError,
    Store,
    Tree,
    UnsupportedError,
    User,
    run_sandbox,
)
from sandboxlib._host import machine
from sandboxlib._inputs import reading

pytest_plugins = ["lib.ways"]


def _started(box: Sandbox, command: Command) -> Result:
    with box.start(command) as process:
        process.communicate(timeout=60)
        return process.result()


def _mapped(box: Sandbox, command: Command) -> Result:
    result = list(box.map([command] * 3, 2, on_failure="continue"))[-1]
    if isinstance(result, SandboxError):
        raise result
    return result


def _second(box: Sandbox, command: Command) -> Result:
    box.run(command)
    return box.run(command)


WAYS: dict[str, Callable[[Sandbox, Command], Result]] = {
    "fresh": lambda box, command: box.run(command, fresh=True),
    "slot": _second,
    "map": _mapped,
    "start": _started,
    "async": lambda box, command: asyncio.run(box.run_async(command)),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a merged /usr."""
    root = make_rootfs(tmp_path_factory.mktemp("roots") / "root")
    (root / "usr" / "lib" / "old").mkdir(parents=True)
    (root / "usr" / "lib" / "old" / "a").write_text("of the root\n")
    (root / "lib").symlink_to("usr/lib")
    (root / "etc" / "conf").write_text("of the root\n")
    return root


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def box(executor: str, root: Path, store: Store) -> Iterator[Sandbox]:
    with Sandbox(Overlay(root), store=store) as box:
        yield box


Run = Callable[..., Result]


@pytest.fixture(params=WAYS)
def run(request: pytest.FixtureRequest, box: Sandbox) -> Run:
    def run(line: str, within: Sandbox = box, **options: Any) -> Result:
        return WAYS[request.param](within, Command(["sh", "-c", line], **options))

    return run


def test_a_command_sees_its_inputs_and_leaves_its_outputs(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello\n")
    result = run(
        "cat a.txt include/deep/b >/out/sub/c; cat /lib/old/a; echo x >/out/sub/x",
        cwd="/src",
        inputs={"/src/a.txt": tmp_path / "a.txt", "include": Tree({"deep/b": b"there\n"})},
        outputs=["/out/sub/*"],
    )
    assert (result.exit, result.out, result.err) == (0, b"of the root\n", b"")
    assert {path: file.read_bytes() for path, file in result.outputs.items()} == {
        "/out/sub/c": b"hello\nthere\n",
        "/out/sub/x": b"x\n",
    }
    assert result.ok


def test_a_command_changes_its_copy_and_nothing_else(
    run: Run, tmp_path: Path, store: Store
) -> None:
    (tmp_path / "tree").mkdir()
    for name in ("tree/a", "tree/b", "file"):
        (tmp_path / name).write_text("1\n")
    inputs = {"/src": Tree(tmp_path / "tree"), "/src/f": tmp_path / "file", "/c": b"1\n"}
    line = "cat /src/* /c; echo 2 >>/src/a; rm /src/b; mv /src/f /g; chmod 600 /c; mkdir /src/new"
    for _ in range(2):
        result = run(line, inputs=inputs)
        assert (result.out, result.err) == (b"1\n1\n1\n1\n", b"")
    assert (tmp_path / "tree" / "a").read_text() == (tmp_path / "file").read_text() == "1\n"
    kept = [path for path in Path(store.directory, "inputs").rglob("*") if path.is_file()]
    assert {path.read_text() for path in kept if path.name != "size"} == {"1\n"}
    assert {path.stat().st_mode & 0o777 for path in kept if path.name != "size"} == {0o644}


def test_modes_owners_and_times(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "run").chmod(0o700)
    inputs = {"/t/a": b"1", "/t/run": tmp_path / "run", "/d": Tree({"e/f": b"1"})}
    result = run(
        "stat -c '%a %u %g %Y %h' /t/a /t/run /d /d/e /d/e/f; id -u; /t/run", inputs=inputs
    )
    *lines, uid, ran = result.stdout.decode().splitlines()
    gid = lines[0].split()[2]
    modes = ["644", "755", "755", "755", "644"]
    assert [line.split()[:4] for line in lines] == [[m, uid, gid, "315532800"] for m in modes]
    assert [lines[n].split()[4] for n in (0, 1, 4)] == ["1"] * 3
    assert ran == "ran"


def test_an_input_goes_over_what_the_root_has(run: Run) -> None:
    inputs = {
        "/etc/conf": b"of the input\n",
        "/lib/old": Tree({"b": b"b\n"}),
        "/src": Tree({"a": b"tree\n", "d/x": b"x\n", "d/y": b"y\n"}),
        "/src/a": b"file\n",
        "/src/d": Tree({"z": b"z\n"}),
    }
    result = run("cat /etc/conf /src/a; ls /usr/lib/old /src/d; ls -d /etc/[a-c]*", inputs=inputs)
    assert result.stdout.split() == (
        b"of the input file /src/d: z /usr/lib/old: b /etc/conf".replace(b":", b":").split()
    )


def test_what_is_missing_makes_a_result_not_ok(run: Run) -> None:
    result = run("echo 1 >/out/a", outputs=["/out/a", "/out/*.o", "/etc/conf"])
    assert (result.exit, result.ok, result.outputs.missing) == (0, False, ("/out/*.o",))
    assert set(result.outputs) == {"/out/a", "/etc/conf"}
    with pytest.raises(CommandFailed, match=r"exit status 0, and left no /out/\*\.o"):
        result.check()
    failed = run("echo 1 >/out/a; exit 3", outputs=["/out/a"])
    assert (failed.exit, failed.outputs["/out/a"].read_bytes()) == (3, b"1\n")


def test_a_deleted_file_is_missing(run: Run) -> None:
    line = "rm /src/a /etc/conf; rm -r /src/d; mkdir /src/d; echo 2 >/src/d/new"
    inputs = {"/src": Tree({"a": b"1", "d/old": b"1"})}
    result = run(line, inputs=inputs, outputs=["/src/a", "/etc/conf", "/src/**"])
    assert result.outputs.missing == ("/src/a", "/etc/conf")
    assert set(result.outputs) == {"/src/d/new"}


def test_outputs_are_inputs(run: Run, box: Sandbox) -> None:
    made = run("mkdir -p /out/e; echo 1 >/out/a; ln -s a /out/l", outputs=["/out"]).outputs
    again = run("cat /out/a", inputs=made)
    assert again.out == b"1\n"
    tree = run("cat /x/l; ls /x", inputs={"/x": made.tree(below="/out")})
    assert tree.out == b"1\na\ne\nl\n"


def test_a_one_shot_call_and_a_pickled_result(executor: str, root: Path) -> None:
    line = "cat /i >/o/a; chmod 000 /o/a; echo 1 >/o/b"
    result = run_sandbox(
        Overlay(root),
        ["sh", "-c", line],
        tmp="private",
        inputs={"/i": b"1"},
        outputs=["/o/*", "/x"],
    )
    copied = pickle.loads(pickle.dumps(result))
    for each in (result, copied):
        assert each.outputs["/o/a"].read_bytes() == b"1"
        assert not each.ok
        assert each.outputs.missing == ("/x",)


def test_outputs_of_a_run_that_was_killed(run: Run, box: Sandbox) -> None:
    command = Command(["sh", "-c", "echo 1 >/out/a; sleep 60"], outputs=["/out/a"], timeout=1)
    result = box.run(command)
    assert result.timed_out
    assert result.outputs["/out/a"].read_bytes() == b"1\n"
    early = box.run(command.replace(timeout=0, argv=["sleep", "60"]))
    assert early.outputs.missing == ("/out/a",)


def test_changes_do_not_tell_inputs(box: Sandbox) -> None:
    command = Command(
        ["sh", "-c", "echo 1 >/out/a"], inputs={"/src/b": b"1"}, outputs=["/out/*"], changes="keep"
    )
    result = box.run(command)
    upper = os.listdir(result.changes.fd) if hasattr(result.changes, "fd") else None
    if upper is None:
        with result.changes as changes:
            assert [change.path for change in changes if change.type == "file"] == ["/out/a"]
    else:
        assert upper == ["out"]
        result.changes.close()
    assert result.outputs["/out/a"].read_bytes() == b"1\n"


def test_outputs_that_are_missing_count_as_a_failure_for_changes(box: Sandbox) -> None:
    command = Command(["true"], outputs=["/a"], changes="on-failure")
    result = box.run(command)
    result.changes.close()
    with pytest.raises(SpecError, match="the run is ok"):
        assert box.run(command.replace(outputs=())).changes


HOSTILE = """
ln -s /etc/shadow /out/shadow; ln -s . /out/loop; mkfifo /out/fifo; ln -s / /out/top
echo secret >/out/closed; chmod 000 /out/closed
mkdir -p /out/dark/e; echo 1 >/out/dark/x; head -c 400000 /dev/zero | tr '\\0' y >/out/dark/big
truncate -s 3G /out/dark/hole; echo end >>/out/dark/hole; ln -s x /out/dark/l; : >/out/dark/empty
chmod 700 /out/dark/empty; chmod 000 /out/dark/big /out/dark/e /out/dark
"""


def test_what_a_hostile_command_left_is_read_safely(run: Run, tmp_path: Path) -> None:
    patterns = ["/out/*", "/out/fifo", "/out/t*/etc/conf", "/out/d*/big", "/out/dark/x"]
    result = run(HOSTILE, outputs=patterns)
    assert result.exit == 0, result.err
    outputs = result.outputs
    assert outputs.missing == ("/out/fifo", "/out/t*/etc/conf")
    hole = outputs["/out/dark/hole"]
    assert hole.size == (3 << 30) + 4
    assert os.stat(hole.content).st_blocks < 100
    small = {path: file.read_bytes() for path, file in outputs.items() if file is not hole}
    assert small == {
        "/out/closed": b"secret\n",
        "/out/dark/x": b"1\n",
        "/out/dark/big": b"y" * 400_000,
        "/out/dark/empty": b"",
    }
    assert [path for path, file in outputs.items() if file.executable] == ["/out/dark/empty"]
    links = {"/out/shadow": "/etc/shadow", "/out/loop": ".", "/out/top": "/", "/out/dark/l": "x"}
    assert outputs.links == links
    assert set(outputs.directories) == {"/out/dark", "/out/dark/e"}
    outputs.collect(tmp_path / "to", below="/out")
    assert os.readlink(tmp_path / "to" / "shadow") == "/etc/shadow"
    assert (tmp_path / "to" / "dark" / "hole").stat().st_blocks < 100
    with pytest.raises(SetupError, match="through a link"):
        run("mkdir -p /out/top; echo 1 >/out/top/x", outputs=["/out"]).outputs.collect(
            tmp_path / "to", below="/out"
        )
    assert not Path("/x").exists()


def test_a_large_output_and_a_hole(run: Run) -> None:
    line = "head -c 3000000 /dev/zero | tr '\\0' x >/out/big; truncate -s 5G /out/hole"
    outputs = run(line, outputs=["/out/*"]).outputs
    assert outputs["/out/big"].read_bytes() == b"x" * 3_000_000
    assert outputs["/out/hole"].size == 5 << 30
    assert os.stat(outputs["/out/hole"].content).st_blocks < 100


def test_too_many_outputs_are_an_error_each_time_they_are_asked_for(
    box: Sandbox, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST", 100)
    line = "mkdir -p /out/d; i=0; while [ $i -lt 150 ]; do : >/out/d/$i; i=$((i+1)); done"
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SetupError, match="too many outputs") as caught:
        run(line, outputs=["/out"])
    assert caught.value.step == "outputs"
    del caught
    assert run(line + "; rm /out/d/1*", outputs=["/out"]).ok
    with box.start(["sh", "-c", line], outputs=["/out/d/*"]) as process:
        process.communicate()
        for _ in range(2):
            with pytest.raises(SetupError, match="too many outputs"):
                process.result()
    del process
    box.close()
    assert len(os.listdir("/proc/self/fd")) <= before + 8  # locks of what is staged


def test_a_full_disk_for_a_large_output_is_told(
    box: Sandbox, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reading, "write_all", full)
    command = ["sh", "-c", "head -c 600000 /dev/zero | tr '\\0' x >/out/a"]
    with pytest.raises(SetupError, match=r"Store\.prune\(\)"):
        box.run(command, outputs=["/out/a"])
    assert os.listdir(f"{store.directory}/tmp") == []
    monkeypatch.undo()
    assert box.run(command, outputs=["/out/a"]).outputs["/out/a"].size == 600000


@needs_root
def test_inputs_belong_to_a_user_of_the_command(root: Path, store: Store) -> None:
    with Sandbox(Overlay(root), user=User(1000, 1001), store=store) as box:
        result = box.run(
            ["sh", "-c", "stat -c '%u %g' /s /s/a /o; echo 2 >/s/a; cat /s/a >/o/x; ls -ld /etc"],
            inputs={"/s": Tree({"a": b"1"}), "/etc/new": b""},
            outputs=["/o/*"],
        )
    assert (result.exit, result.err) == (0, b"")
    *owners, etc = result.stdout.decode().splitlines()
    assert owners == ["1000 1001"] * 3
    assert etc.split()[2:4] == ["0", "0"]
    assert result.outputs["/o/x"].read_bytes() == b"2\n"


def test_ranges(executor: str, root: Path, store: Store) -> None:
    if executor == "chroot":
        pytest.skip("it has no ranges of ids of its own")
    box = Sandbox(Overlay(root), user="ranges", store=store)
    require(not box.lacks(), f"no ranges of ids: {box.lacks()}")
    with box:
        line = "echo 1 >/o/a; chown 5:6 /o/a; chmod 600 /o/a; stat -c %u /i; echo 2 >>/i"
        result = box.run(["sh", "-c", line], inputs={"/i": b"1"}, outputs=["/o/*"])
        assert (result.out, result.err) == (b"0\n", b"")
        assert result.outputs["/o/a"].read_bytes() == b"1\n"
    other = Sandbox(Overlay(root), user=User(5, ranges=True), store=store)
    with other, pytest.raises(UnsupportedError, match="no other id than 0"):
        other.run(["true"], inputs={"/i": b"1"})


def test_an_input_below_a_mount_is_refused(box: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"below '/tmp'.*tmp='root'"):
        box.run(["true"], inputs={"/tmp/a": b"1"})
    with pytest.raises(SpecError, match="below '/proc'"):
        box.run(["true"], outputs=["/proc/*"])
    other = box.replace(tmp="root", extra_mounts=[Mount.bind(tmp_path, "/mnt", read_only=True)])
    with other:
        assert other.run(["cat", "/tmp/a"], inputs={"/tmp/a": b"1"}).out == b"1"
        with pytest.raises(SpecError, match="below '/mnt'"):
            other.run(["true"], inputs={"/mnt/a": b"1"})
    assert os.listdir(tmp_path) == ["store"] or "a" not in os.listdir(tmp_path)


def test_an_empty_root_and_trees_as_layers(executor: str, root: Path, store: Store) -> None:
    programs = Tree({"bin/busybox": File(root / "bin" / "busybox", executable=True)})
    with Sandbox(Overlay(programs), store=store) as box:
        argv = ["/bin/busybox", "sh", "-c", "/bin/busybox cat /a/b >/c/d"]
        result = box.run(argv, inputs={"/a/b": b"1"}, outputs=["/c/d"])
    assert result.outputs["/c/d"].read_bytes() == b"1"


def test_threads_share_one_staged_tree(box: Sandbox, store: Store) -> None:
    tree = Tree({f"{number}": b"%d" % number for number in range(50)})
    outs: list[bytes | None] = []

    def work(number: int) -> None:
        inputs = {"/src": tree, "/mine": b"%d" % number}
        outs.append(box.run(["sh", "-c", "cat /mine; ls /src | wc -l"], inputs=inputs).out)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outs) == sorted(b"%d50\n" % number for number in range(12))  # type: ignore[type-var]


def slots_with_inputs(box: Sandbox) -> list[int]:
    """How many runs each idle slot for runs with inputs has served."""
    plans = [plan for plan in box._plans.values() if plan.late_slots is not None]
    return [slot.runs for plan in plans for slot in plan.late_slots._idle]


def test_a_slot_serves_runs_with_other_inputs_and_carries_nothing_over(box: Sandbox) -> None:
    require(not machine.kernel_is_older_than(6, 15), "layers by descriptor take Linux 6.15")
    line = "ls / /src; cat /src/*; echo 2 >>/src/a; touch /left /out/x /src/left; ls -d /s /l /k"
    for number in range(6):
        inputs = {"/src": Tree({"a": b"%d" % number}), f"/only{number}": b""}
        result = box.run(["sh", "-c", line], inputs=inputs, outputs=["/out/*"], cwd="/src")
        seen = result.stdout.split()
        assert f"only{number}".encode() in seen
        assert b"%d" % number in seen
        assert not {b"left", b"x", b"s", b"l", b"k", b"/s", b"/l", b"/k"} & set(seen)
        assert len([name for name in seen if name.startswith(b"only")]) == 1
        assert set(result.outputs) == {"/out/x"}
    assert max(slots_with_inputs(box)) >= 3


def test_a_store_that_was_removed_is_filled_again(box: Sandbox, store: Store) -> None:
    command = Command(["cat", "/a"], inputs={"/a": b"1"})
    for _ in range(3):
        assert box.run(command).out == b"1"
    shutil.rmtree(store.directory)
    for _ in range(3):
        assert box.run(command).out == b"1"


def test_a_slot_sees_no_inputs_of_others(box: Sandbox) -> None:
    for number in range(3):
        mounts = box.run(["cat", "/proc/self/mountinfo"], inputs={"/a": b"%d" % number}).stdout
    points = [line.split()[4] for line in mounts.splitlines()]
    assert not {b"/s", b"/l/0"} & set(points)
    assert b"/inputs" not in mounts


def test_a_session_has_inputs_and_outputs_of_its_own(box: Sandbox) -> None:
    session = box.session(inputs={"/i": b"1\n"}, outputs=["/o/*", "/none"], changes="keep")
    with session:
        with pytest.raises(UnsupportedError, match=r"box\.session\(inputs"):
            session.run(["true"], inputs={"/a": b"1"})
        assert session.run(["sh", "-c", "cat /i; echo 2 >>/i; echo a >/o/a"]).out == b"1\n"
        assert session.run(["cat", "/i", "/o/a"]).out == b"1\n2\na\n"
        with pytest.raises(SpecError, match="when it is over"):
            assert session.outputs
    assert {path: file.read_bytes() for path, file in session.outputs.items()} == {"/o/a": b"a\n"}
    assert session.outputs.missing == ("/none",)
    with session.changes as changes:
        assert {change.path for change in changes if change.type == "file"} == {"/i", "/o/a"}


def test_a_session_without_outputs_has_none(box: Sandbox) -> None:
    with box.session() as session:
        assert session.run(["true"]).ok
    assert not session.outputs
    with pytest.raises(SpecError, match="not kept"):
        assert session.changes
    with box.replace(root="/").session() as plain:
        pass
    with pytest.raises(SpecError, match="no Overlay"):
        assert plain.outputs
    with pytest.raises(SpecError, match="an Overlay"):
        box.replace(root="/").session(outputs=["/x"])


def test_a_source_that_is_missing_is_named_before_anything_runs(run: Run, store: Store) -> None:
    with pytest.raises(FileNotFoundError, match="read the input /nowhere"):
        run("touch /out/x", inputs={"/a": Path("/nowhere")}, outputs=["/out/x"])
    with pytest.raises(SetupError, match="never a directory"):
        run("true", inputs={"/etc": b""})
