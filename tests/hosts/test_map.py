# SPDX-License-Identifier: Apache-2.0
"""Many commands, a few at a time: Sandbox.map, sandboxlib.map, SandboxExecutor."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import require
from lib.waiting import processes, wait_until

import sandboxlib
from sandboxlib import (
    STDOUT,
    CallerError,
    Command,
    CommandFailed,
    Lines,
    Mount,
    Policy,
    Result,
    Sandbox,
    SandboxError,
    SandboxExecutor,
    SetupError,
    SpecError,
    SpecTypeError,
    Tee,
    UnsupportedError,
)

pytest_plugins = ["lib.setuid_tool"]

BARE: dict[str, Any] = {
    **{"mounts": "undefined", "processes": "undefined", "ipc": "undefined"},
    **{"policy": Policy(capabilities="all", no_new_privs=False)},
}
#: By name: words of Sandbox, words of map, the executor where it is not the first.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "slot": ({"network": "isolated"}, {}, ""),
    "fresh": ({"network": "isolated"}, {"fresh": True}, ""),
    "init=False": ({"init": False}, {}, ""),
    "chroot only": (BARE, {}, ""),
    "user namespace": ({}, {}, "user_namespace"),
    "linux_user_chroot": ({"policy": Policy(capabilities="all")}, {}, "linux_user_chroot"),
    "bubblewrap": ({}, {}, "bubblewrap"),
}


class Place:
    """A Sandbox, and the words with which its map is of one kind."""

    def __init__(self, box: Sandbox, words: dict[str, Any]) -> None:
        self.box = box
        self.map = partial(box.map, **words)


@pytest.fixture(params=KINDS)
def place(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    shared_rootfs: Path,
    tool_path: str,
) -> Iterator[Place]:
    words, map_words, executor = KINDS[request.param]
    box = open_box(shared_rootfs, **words)
    if executor:
        monkeypatch.setenv("PATH", tool_path)
        monkeypatch.setenv("SANDBOXLIB_BACKEND", executor)
        if refused := sandboxlib.get_executor(executor).refusals(box):
            pytest.skip("; ".join(refused))
    try:
        sandboxlib._choice.choose.choose(box)
    except UnsupportedError as error:
        pytest.skip(str(error))
    with box:
        yield Place(box, map_words)


@pytest.fixture
def box(shared_rootfs: Path) -> Iterator[Sandbox]:
    with Sandbox(shared_rootfs) as box:
        yield box


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


def echo(*numbers: int) -> list[list[str]]:
    return [["echo", str(number)] for number in numbers]


def is_gone(place: Place, mark: str) -> bool:
    """No process has this argument any more. Those that a program started end a little after it."""
    drives = place.box.run(["true"]).executor in ("bubblewrap", "linux_user_chroot")
    return wait_until(lambda: not processes(mark), 10 if drives else 0.01)


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


# ---- results ---------------------------------------------------------------------------------


class Recorder:
    """A Runner that runs nothing."""

    def run(self, command: Any, /, **options: Any) -> Result:
        return Result(0, repr(command).encode(), b"")

    run_async = map = run


def test_an_executor_of_futures_takes_any_runner() -> None:
    with SandboxExecutor(Recorder()) as pool:  # type: ignore[arg-type]
        assert pool.submit(["true"], cwd="/x").result().out == b"Command(['true'], cwd='/x')"
    with pytest.raises(SpecTypeError, match="nor another Runner"):
        SandboxExecutor("/")  # type: ignore[arg-type]


def test_results_come_in_the_order_of_the_commands(place: Place) -> None:
    commands = [sh(f"sleep 0.{n % 3}; echo {n}; echo err >&2") for n in range(9)]
    results = list(place.map(commands, jobs=4))
    assert results == [(0, b"%d\n" % n, b"err\n") for n in range(9)]
    assert [result.number for result in results] == list(range(9))
    assert [result.command for result in results] == [Command(argv) for argv in commands]
    assert all(result.wall > 0 and result.executor for result in results)
    assert results[0].isolation == place.box.run(["true"]).isolation


def test_results_come_as_commands_end(place: Place) -> None:
    reader, writer = os.pipe()
    commands = [Command(sh("read x; echo slow"), stdin=reader), *echo(1, 2, 3)]
    results = place.map(commands, jobs=2, ordered=False)
    assert [next(results).out for _ in range(3)] == [b"1\n", b"2\n", b"3\n"]
    os.write(writer, b"\n")
    last = next(results)
    assert (last.number, last.out) == (0, b"slow\n")
    os.close(reader)
    os.close(writer)


def test_no_more_than_jobs_run_at_once_and_no_fewer(place: Place, tmp_path: Path) -> None:
    running, most = set(), 0
    log = tmp_path / "log"
    with log.open("ab") as file:
        commands = [sh(f"echo +{n}; sleep 0.2; echo -{n}") for n in range(7)]
        assert [r.out for r in place.map(commands, jobs=3, stdout=file)] == [None] * 7
    for word in log.read_text().split():
        (running.add if word[0] == "+" else running.remove)(word[1:])
        most = max(most, len(running))
    assert most == 3


def test_jobs_are_by_default_the_cpus_of_the_process(box: Sandbox) -> None:
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    try:
        results = list(box.map([sh("sleep 0.3"), ["true"]], ordered=False))
    finally:
        os.sched_setaffinity(0, mine)
    assert [result.number for result in results] == [0, 1]


def test_commands_are_read_as_results_are_taken(place: Place) -> None:
    read = 0

    def commands() -> Iterator[list[str]]:
        nonlocal read
        while True:
            read += 1
            yield ["echo", str(read)]

    iterator = place.map(commands(), jobs=2)
    assert read == 0
    for taken in range(1, 20):
        assert next(iterator).out == b"%d\n" % taken
        assert read <= taken + 4 * 2
    iterator.close()


def test_results_that_wait_for_their_turn_are_bounded(place: Place) -> None:
    read: list[int] = []
    reader, writer = os.pipe()

    def commands() -> Iterator[Any]:
        for n in range(100):
            read.append(n)
            if n == 4 * 2 - 1:  # the last that may be read before the first one ends
                threading.Timer(0.3, os.write, (writer, b"\n")).start()
            yield Command(sh("read x"), stdin=reader) if n == 0 else ["true"]

    results = place.map(commands(), jobs=2)
    assert next(results).number == 0
    assert len(read) == 4 * 2 + 0 or len(read) == 4 * 2 + 1
    assert len(list(results)) == 99
    os.close(reader)
    os.close(writer)


def test_a_command_has_options_of_its_own(place: Place) -> None:
    commands = [
        Command(["pwd"], "/tmp"),
        ["pwd"],
        Command(["cat"], stdin=b"own"),
        Command(sh("echo $X; echo $X >&2"), extra_env={"X": "1"}, stderr=STDOUT),
        "pwd",
    ]
    results = list(place.map(commands, jobs=2))
    assert [r.out for r in results] == [b"/tmp\n", b"/\n", b"own", b"1\n1\n", b"/\n"]
    assert results[2].command is commands[2]
    assert [r.out for r in place.map(["pwd", ["pwd"]], cwd="/etc")] == [b"/etc\n"] * 2


def test_options_of_a_map_are_refused_beside_a_command(place: Place) -> None:
    commands = [["pwd"], Command("pwd")]
    results = list(place.map(commands, cwd="/etc", on_failure="continue"))
    assert results[0].out == b"/etc\n"
    assert isinstance(results[1], SpecTypeError)
    assert results[1].command is commands[1]
    with pytest.raises(SpecTypeError, match=r"has its options itself: command\.replace"):
        list(place.map(commands, cwd="/etc"))


def test_a_dict_is_no_command(place: Place) -> None:
    with pytest.raises(SpecTypeError, match="the command is neither a list nor a str"):
        list(place.map([{"command": ["true"]}]))


def test_megabytes_from_several_at_once_are_whole(place: Place) -> None:
    busybox = Path(place.box.root, "bin/busybox").read_bytes()
    script = sh("for i in 1 2 3; do cat /bin/busybox; cat /bin/busybox >&2; done")
    for result in place.map([script] * 6, jobs=4):
        assert result.out == busybox * 3
        assert result.err == busybox * 3


def test_each_command_has_its_own_deadline(place: Place) -> None:
    chatty = sh("while :; do echo x; usleep 10000; done")
    much = sh("yes | head -c 100000; sleep 100")
    for factor in (1, 20):  # a busy machine is given longer
        commands = [
            Command(["sleep", "100"], timeout=0.3 * factor),
            Command(chatty, timeout=0.4 * factor),
            Command(much, timeout=0.2 * factor),
            ["echo", "x"],
        ]
        results = list(place.map(commands, jobs=4, on_failure="continue"))
        assert [result.timed_out for result in results] == [True, True, True, False]
        if results[1].out and results[2].out:
            break
    assert results[1].out
    assert results[2].out
    assert results[3] == (0, b"x\n", b"")


def test_a_caller_that_is_away_does_not_make_commands_late(box: Sandbox) -> None:
    for timeout in (0.5, 10):  # a busy machine is given longer
        results = box.map(echo(1, 2, 3), jobs=2, timeout=timeout, on_failure="continue")
        first = next(results)
        time.sleep(1.2 * timeout)
        found = [first, *results]
        if not found[0].timed_out and not found[1].timed_out:
            break
    assert [(r.out, r.timed_out) for r in found] == [(b"%d\n" % n, False) for n in (1, 2, 3)]


# ---- failures --------------------------------------------------------------------------------


def test_a_failure_stops_and_is_raised(place: Place) -> None:
    started: list[int] = []
    mark = f"77{os.getpid()}"
    commands = [["echo", "x"], sh("echo no >&2; sleep 0.2; exit 3"), ["sleep", mark], *echo(1) * 50]
    source = (started.append(n) or command for n, command in enumerate(commands))
    results = place.map(source, jobs=3)
    assert next(results).out == b"x\n"
    with pytest.raises(CommandFailed, match=r"exit status 3: no$") as raised:
        list(results)
    assert raised.value.number == 1
    assert raised.value.command == Command(commands[1])
    assert raised.value.result == (3, b"", b"no\n")
    assert len(started) < 20
    assert is_gone(place, mark)
    assert list(results) == []


def test_an_oserror_of_one_command_takes_its_place_and_ends_no_map(
    place: Place, tmp_path: Path
) -> None:
    """Of the file of a Tee, of a function, and of a file in memory that RLIMIT_FSIZE refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open("/dev/full", "wb", buffering=0) as full:
        outputs: list[Any] = [Tee(full), lambda data: os.stat(tmp_path / "none"), Lines(_fail)]
        commands = [Command(["echo", "x"], stdout=output) for output in outputs]
        commands += [Command(["cat"], stdin=b"a" * 100_000), Command(["cat"], stdin=b"b")]
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        try:
            results = list(place.map(commands, jobs=2, on_failure="continue"))
            with pytest.raises(OSError, match="No space left") as raised:
                list(place.map(commands[:1], jobs=2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not isinstance(raised.value, SandboxError)
    *errors, last = results
    assert last == (0, b"b", b"")
    assert [type(error) for error in errors] == [*[CallerError] * 3, SetupError]
    assert [(e.errno, e.number, e.command) for e in errors] == [
        (number, index, commands[index])
        for index, number in enumerate((errno.ENOSPC, errno.ENOENT, None, errno.EFBIG))
    ]
    assert [type(error.__cause__) for error in errors[:2]] == [OSError, FileNotFoundError]
    assert errors[1].filename == str(tmp_path / "none")
    assert "RLIMIT_FSIZE of the caller" in str(errors[3])
    copy = pickle.loads(pickle.dumps(errors[1]))
    assert (type(copy), copy.errno, copy.filename) == (CallerError, 2, errors[1].filename)


def _fail(line: bytes) -> None:
    raise OSError("of ours")


def test_other_exceptions_of_a_function_end_a_map_that_goes_on(place: Place) -> None:
    def fail(data: bytes) -> None:
        raise ZeroDivisionError

    commands = [Command(["echo", "x"], stdout=fail), ["true"]]
    with pytest.raises(ZeroDivisionError):
        list(place.map(commands, on_failure="continue"))


def test_in_order_what_was_before_the_failure_comes_first(place: Place) -> None:
    mark = f"76{os.getpid()}"
    commands = [sh("sleep 1; echo 0"), ["echo", "1"], sh("exit 5"), ["sleep", mark]]
    results = place.map(commands, jobs=4)
    start = time.monotonic()
    assert next(results).out == b"0\n"
    assert wait_until(lambda: not processes(mark))  # what comes after it is killed
    assert next(results).out == b"1\n"
    with pytest.raises(CommandFailed) as raised:
        next(results)
    assert raised.value.number == 2
    assert time.monotonic() - start < 20


def test_of_two_failures_the_first_in_order_is_raised(place: Place) -> None:
    results = place.map([sh("sleep 0.5; exit 4"), sh("exit 5")], jobs=2)
    with pytest.raises(CommandFailed) as raised:
        list(results)
    assert raised.value.number == 0


def test_as_they_end_the_first_failure_ends_the_others(place: Place) -> None:
    mark = f"78{os.getpid()}"
    start = time.monotonic()
    with pytest.raises(CommandFailed) as raised:
        list(place.map([["sleep", mark], ["sleep", mark], ["false"]], jobs=3, ordered=False))
    assert raised.value.number == 2
    assert time.monotonic() - start < 20
    assert is_gone(place, mark)


def test_no_command_is_taken_up_after_a_failure(place: Place, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("ab") as file:
        results = place.map([["true"], ["false"], *echo(1) * 20], jobs=1, stdout=file)
        next(results)
        time.sleep(0.5)  # also while nobody asks
        with pytest.raises(CommandFailed):
            next(results)
    assert log.read_text() == ""


def test_a_timeout_is_a_failure(place: Place) -> None:
    with pytest.raises(CommandFailed, match="when its time was over"):
        list(place.map([["sleep", "60"]], timeout=0.1))


def test_a_command_that_cannot_be_run_stops_with_its_error(place: Place) -> None:
    results = place.map([*echo(1), ["/none/such"], *echo(2)], jobs=1)
    assert next(results).out == b"1\n"
    with pytest.raises(SetupError) as raised:
        list(results)
    assert (raised.value.number, raised.value.command) == (1, Command("/none/such"))


def test_with_continue_everything_comes_in_its_place(place: Place) -> None:
    commands: list[Any] = [*echo(1), ["false"], ["/none/such"], ["a\0b"], {"cwd": "/"}, *echo(2)]
    results = list(place.map(commands, jobs=2, on_failure="continue"))
    assert [results[0].out, results[5].out] == [b"1\n", b"2\n"]
    assert results[1].exit == 1
    assert isinstance(results[2], SetupError)
    assert isinstance(results[3], SpecError)
    assert isinstance(results[4], SpecError)
    assert [result.number for result in results] == list(range(6))
    assert [one.__traceback__ for one in results[2:5]] == [None] * 3  # they keep nothing alive


def test_progress_hears_of_every_end(place: Place) -> None:
    heard: list[tuple[int, int]] = []
    reader, writer = os.pipe()

    def progress(count: int, result: Any) -> None:
        heard.append((count, result.number))
        if count == 3:
            os.write(writer, b"\n")

    first = Command(sh("read x"), stdin=reader)
    commands = [first, ["true"], ["/none/such"], ["false"]]
    list(place.map(commands, jobs=2, on_failure="continue", progress=progress))
    os.close(reader)
    os.close(writer)
    assert [count for count, _ in heard] == [1, 2, 3, 4]
    assert sorted(number for _, number in heard) == [0, 1, 2, 3]
    assert heard[-1] == (4, 0)


def test_what_progress_and_commands_raise_ends_the_map(place: Place) -> None:
    mark = f"79{os.getpid()}"

    def commands() -> Iterator[list[str]]:
        yield ["sleep", mark]
        raise LookupError("commands")

    def progress(count: int, result: object) -> None:
        raise LookupError("progress")

    with pytest.raises(LookupError, match="commands"):
        list(place.map(commands(), jobs=2))
    with pytest.raises(LookupError, match="progress"):
        list(place.map([["sleep", mark], ["true"]], jobs=2, progress=progress))
    assert is_gone(place, mark)


@pytest.mark.parametrize(
    "words",
    [
        {"commands": "true"},
        {"commands": {"command": "true"}},
        {"commands": 3},
        {"jobs": 0},
        {"jobs": "2"},
        {"on_failure": "ignore"},
        {"ordered": 1},
        {"progress": 1},
        {"timeout": -1},
        {"shell": True},
    ],
)
def test_words_that_make_no_sense_are_refused_at_once(box: Sandbox, words: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        box.map(**{"commands": [["true"]], **words})


def test_several_sandboxes_take_part(shared_rootfs: Path, box: Sandbox) -> None:
    bare = open_box(shared_rootfs, **BARE)
    other = Sandbox(shared_rootfs, hostname="other")
    calls = [(bare, ["echo", "bare"]), (other, ["hostname"]), (box, Command(["echo", "x"]))]
    results = list(sandboxlib.map(calls * 10, jobs=3))
    assert [r.out for r in results] == [b"bare\n", b"other\n", b"x\n"] * 10
    assert results[1].command == Command("hostname")
    with pytest.raises(SpecError, match="not a Sandbox and a command"):
        list(sandboxlib.map([["true"]]))
    other.close()


# ---- nothing is left -------------------------------------------------------------------------


def test_a_map_that_is_closed_kills_what_runs(place: Place) -> None:
    mark = f"80{os.getpid()}"
    before = threads()
    results = place.map([["true"], *[["sleep", mark]] * 9], jobs=3, ordered=False)
    next(results)
    assert wait_until(lambda: processes(mark))
    start = time.monotonic()
    results.close()
    assert time.monotonic() - start < 30
    assert is_gone(place, mark)
    assert wait_until(lambda: threads() == before)


def test_a_map_that_is_dropped_kills_what_runs(place: Place) -> None:
    mark = f"81{os.getpid()}"
    for result in place.map([["true"], *[["sleep", mark]] * 9], jobs=3):
        assert result.exit == 0
        break
    del result
    assert wait_until(lambda: not processes(mark))


def test_it_works_in_threads(place: Place) -> None:
    found: list[list[bytes]] = []

    def work() -> None:
        found.append([r.out for r in place.map(echo(*range(20)), jobs=3)])

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [[b"%d\n" % n for n in range(20)]] * 4


HEAD = """
import gc, json, os, signal, sys, threading, time
import sandboxlib
from sandboxlib import Sandbox
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
def many(quick, deep):
    return deep if "SANDBOXLIB_DEEP" in os.environ else quick
root, words, more = json.loads(sys.argv[1])
if "policy" in words:
    words["policy"] = sandboxlib.Policy(**words["policy"])
box = open_box(root, **words)
def state():
    box.close()
    gc.collect()
    children = open(f"/proc/self/task/{os.getpid()}/children").read()
    end = time.monotonic() + 30  # join is over a little before the thread
    while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < end:
        time.sleep(0.01)
    return sorted(os.listdir("/proc/self/fd")), children, len(os.listdir("/proc/self/task"))
"""


def start_host(script: str, root: Path | str, kind: str, **options: Any) -> subprocess.Popen[bytes]:
    import json

    words, more, _ = KINDS[kind]
    if policy := words.get("policy"):
        words = {**words, "policy": {name: getattr(policy, name) for name in Policy._fields}}
    argv = [sys.executable, "-c", HEAD + script, json.dumps([str(root), words, more])]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def host(script: str, root: Path | str, kind: str, **options: Any) -> bytes:
    out, err = start_host(script, root, kind, **options).communicate(timeout=100)
    assert not err, err.decode()
    return out


natively = pytest.mark.parametrize("kind", ["slot", "fresh", "init=False", "chroot only"])


@natively
def test_hundreds_of_commands_leave_nothing(shared_rootfs: Path, kind: str) -> None:
    script = """
list(box.map([["true"]] * 40, jobs=32, **more))
before = state()
count = many(100, 200 if more else 1000)
commands = (["nonesuch"] if n % 50 == 0 else ["echo", str(n)] for n in range(count))
results = list(box.map(commands, jobs=32, on_failure="continue", ordered=False, **more))
assert len(results) == count
assert state() == before, (state(), before)
for k in range(many(5, 20)):  # also of those that are ended early
    it = box.map([["true"], *[["sleep", "60"]] * 20], jobs=4, **more)
    next(it)
    it.close()
assert state() == before, (state(), before)
print("ok")
"""
    assert host(script, shared_rootfs, kind) == b"ok\n"


@natively
def test_ctrl_c_ends_a_map_at_once(shared_rootfs: Path, kind: str) -> None:
    mark = f"82{os.getpid()}"
    script = f"""
signal.signal(signal.SIGINT, signal.default_int_handler)
list(box.map([["true"]] * 4, jobs=4, **more))
before = state()
try:
    list(box.map([["sleep", "{mark}"]] * 9, jobs=4, **more))
except KeyboardInterrupt as error:
    told = time.monotonic()
    del error
assert state() == before, (state(), before)
print(told)
"""
    child = start_host(script, shared_rootfs, kind)
    assert wait_until(lambda: len(processes(mark)) >= 4)
    start = time.monotonic()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=20)
    assert not err, err.decode()
    assert float(out) - start < 10
    assert not processes(mark)


@natively
def test_ctrl_c_at_any_moment_of_a_map_leaves_nothing(shared_rootfs: Path, kind: str) -> None:
    script = """
import random
signal.signal(signal.SIGINT, signal.default_int_handler)
list(box.map([["true"]] * 4, jobs=4, **more))
before = state()
hits, count = 0, many(12, 40)
for i in range(count):
    timer = threading.Timer(random.random() * 0.02, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        while True:
            list(box.map([["true"]] * 8, jobs=4, **more))
    except KeyboardInterrupt:
        hits += 1
    timer.join()
assert hits == count
assert state() == before, (state(), before)
print("ok")
"""
    assert host(script, shared_rootfs, kind) == b"ok\n"


def test_a_fork_of_the_caller_leaves_its_map_alone(shared_rootfs: Path) -> None:
    script = """
bare = sandboxlib.Sandbox(root, processes="undefined", filesystem_writable_paths="all",
                                  policy=sandboxlib.Policy(capabilities="all"))
calls = [(box, ["true"]), (bare, ["sleep", "1"]), (box, ["sleep", "1"]), (box, ["true"])]
results = sandboxlib.map(calls, jobs=3)
assert next(results).exit == 0
import warnings
warnings.simplefilter("ignore")  # Python 3.12 warns of every fork with threads
if os.fork() == 0:
    results.close()
    del results
    gc.collect()
    os._exit(0)
os.wait()
assert [result.exit for result in results] == [0, 0, 0]
print("ok")
"""
    assert host(script, shared_rootfs, "slot") == b"ok\n"


@pytest.mark.parametrize("kind", ["slot", "chroot only"])
def test_a_map_that_nobody_ends_does_not_keep_the_interpreter(
    shared_rootfs: Path, kind: str
) -> None:
    mark = f"83{os.getpid()}"
    script = f"""
results = box.map([["true"], *[["sleep", "{mark}"]] * 3], jobs=4)
next(results)
print("ok")
"""
    assert host(script, shared_rootfs, kind) == b"ok\n"
    assert wait_until(lambda: not processes(mark))


def test_the_pool_takes_bytes_as_input_where_comparing_them_is_an_error() -> None:
    """python -bb turns a comparison of bytes with an int into a BytesWarning that is raised."""
    script = """
import subprocess
from sandboxlib import Sandbox, SandboxExecutor
with SandboxExecutor(Sandbox("/"), 1) as pool:
    for streams in ({"input": b"a"}, {"stdin": subprocess.DEVNULL}, {"stdin": subprocess.PIPE}):
        done = pool.submit(subprocess.run, ["cat"], capture_output=True, **streams).result()
        print(repr(done.stdout))
"""
    argv = [sys.executable, "-bb", "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=100)
    assert (done.stdout, done.stderr) == ("b'a'\nb''\nb''\n", "")


# ---- pickling --------------------------------------------------------------------------------


def run_there(box: Sandbox, command: list[str]) -> sandboxlib.Result:
    return box.run(command)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_sandbox_and_result_go_to_other_processes(shared_rootfs: Path, method: str) -> None:
    box = Sandbox(shared_rootfs, network="isolated", extra_mounts=[Mount.tmpfs("/tmp")])
    here = box.run(["true"])
    with multiprocessing.get_context(method).Pool(2) as pool:
        results = pool.starmap(run_there, [(box, command) for command in echo(1, 2, 3)])
        error = pool.apply_async(run_there, (box, ["nonesuch"]))
        with pytest.raises(SetupError, match="nonesuch") as raised:
            error.get()
    box.close()
    assert results == [(0, b"1\n", b""), (0, b"2\n", b""), (0, b"3\n", b"")]
    assert results[0].executor == here.executor
    assert results[0].isolation == here.isolation
    assert raised.value.step == "exec"


def test_results_and_errors_of_a_map_survive_pickling(box: Sandbox) -> None:
    commands = [["echo", "x"], ["nonesuch"]]
    for one in box.map(commands, on_failure="continue"):
        copy = pickle.loads(pickle.dumps(one))
        assert (type(copy), copy.args if isinstance(copy, OSError) else copy) == (
            type(one),
            one.args if isinstance(one, OSError) else one,
        )
        assert (copy.number, copy.command) == (one.number, one.command)
    with pytest.raises(CommandFailed) as raised:
        list(box.map([["false"]]))
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (str(copy), copy.result) == (str(raised.value), raised.value.result)


# ---- SandboxExecutor -------------------------------------------------------------------------


def test_an_executor_runs_commands(box: Sandbox) -> None:
    with SandboxExecutor(box, max_workers=2) as pool:
        futures = [pool.submit(sh(f"echo {n}; pwd"), cwd="/tmp") for n in range(5)]
        assert [f.result().out for f in futures] == [b"%d\n/tmp\n" % n for n in range(5)]
        assert [r.out for r in pool.map(echo(1, 2, 3))] == [b"1\n", b"2\n", b"3\n"]
        with pytest.raises(FileNotFoundError):
            pool.submit(["nonesuch"]).result()
        with pytest.raises(SpecError):
            pool.submit(print, "x")
    with pytest.raises(RuntimeError):
        pool.submit(["true"])


def test_queued_work_is_cancelled(box: Sandbox) -> None:
    pool = SandboxExecutor(box, max_workers=1)
    running = pool.submit(["sleep", "3"])
    queued = [pool.submit(["true"]) for _ in range(5)]
    assert queued[0].cancel()
    pool.shutdown(cancel_futures=True)
    assert running.result().exit == 0
    assert all(future.cancelled() for future in queued)


def build(pool: Any, directory: str) -> list[Future[Any]]:
    """Of a builder that knows nothing of sandboxes."""
    pipe = subprocess.PIPE
    return [
        pool.submit(subprocess.run, ["cat", "/etc/where"], stdout=pipe, text=True, check=True),
        pool.submit(subprocess.run, ["pwd"], cwd=directory, capture_output=True),
        pool.submit(subprocess.run, ["cat"], input="a\r\nb", capture_output=True, text=True),
        pool.submit(subprocess.run, ["env"], env={"A": "1", "PATH": "/bin"}, stdout=pipe),
        pool.submit(subprocess.run, ["sh", "-c", "echo x >&2; exit 3"], capture_output=True),
        pool.submit(subprocess.run, ["false"], check=True),
        pool.submit(subprocess.run, ["sleep", "60"], timeout=0.1),
        pool.submit(subprocess.run, ["sh", "-c", "echo 1; echo 2 >&2"], stdout=pipe, stderr=-2),
        pool.submit(subprocess.run, ["sh", "-c", "echo 1"], stdout=subprocess.DEVNULL),
    ]


def test_a_builder_that_submits_subprocess_run_changes_one_line(rootfs: Path) -> None:
    (rootfs / "etc" / "where").write_text("inside\n")
    with open_box(rootfs) as box:
        with SandboxExecutor(box, 4) as pool:
            futures = build(pool, "/tmp")
        done = [futures[n].result() for n in (0, 1, 2, 3, 4, 7, 8)]
    assert all(isinstance(one, subprocess.CompletedProcess) for one in done)
    assert [(one.returncode, one.stdout, one.stderr) for one in done] == [
        (0, "inside\n", None),
        (0, b"/tmp\n", b""),
        (0, "a\nb", ""),
        (0, b"A=1\nPATH=/bin\n", None),
        (3, b"", b"x\n"),
        (0, b"1\n2\n", None),
        (0, None, None),
    ]
    with pytest.raises(subprocess.CalledProcessError):
        futures[5].result()
    with pytest.raises(subprocess.TimeoutExpired):
        futures[6].result()


def test_what_subprocess_run_shows_the_sandboxed_shows(shared_rootfs: Path) -> None:
    # Streams that are not named are the caller's.
    script = """
from sandboxlib import SandboxExecutor
import subprocess
with SandboxExecutor(box) as pool:
    pool.submit(subprocess.run, ["sh", "-c", "cat; echo out"]).result()
    try:
        pool.submit(subprocess.run, "true", shell=True).result()
    except TypeError as error:
        print("shell" in str(error), flush=True)
"""
    reader, writer = os.pipe()
    os.write(writer, b"in\n")
    os.close(writer)
    with os.fdopen(reader) as stdin:
        assert host(script, shared_rootfs, "slot", stdin=stdin) == b"in\nout\nTrue\n"


def test_a_map_in_a_cycle_of_garbage_spoils_no_later_run(shared_rootfs: Path) -> None:
    script = """
class Holder:
    pass
def lose():
    holder = Holder()
    holder.results = box.map([["true"], *[["sleep", "60"]] * 4], jobs=2)
    next(holder.results)
    holder.itself = holder
for _ in range(3):
    lose()
    gc.collect()
    for fresh in (False, True) * 3:
        assert box.run(["echo", "x"], fresh=fresh) == (0, b"x\\n", b"")
"""
    host(script, shared_rootfs, "slot")


# ---- another engine --------------------------------------------------------------------------


def test_the_example_for_dask_runs(shared_rootfs: Path, tmp_path: Path) -> None:
    if os.environ.get("SANDBOXLIB_SANITIZED"):
        pytest.skip("the workers of dask are not for a sanitizer")
    require(find_spec("distributed"), "there is no dask.distributed (pip install '.[dask]')")
    example = Path(__file__).resolve().parents[2] / "examples" / "dask_example.py"
    argv = [sys.executable, "-W", "error", str(example), str(shared_rootfs)]
    env = {**os.environ, "TMPDIR": str(tmp_path)}  # where dask leaves a directory
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=100, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(f"{n}: hello from {n}\n" for n in range(8))
