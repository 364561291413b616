# SPDX-License-Identifier: Apache-2.0
"""Cached: hits and misses, what is written and what is not, in each way to run a command."""

from __future__ import annotations

import asyncio
import io
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.machine import require
from lib.memory_server import MemoryServer, memory_server
from lib.reapi import stubs
from lib.roots import make_rootfs

from sandboxlib import (
    DEVNULL,
    STDOUT,
    Cached,
    Command,
    CommandFailed,
    File,
    Lines,
    Mount,
    Overlay,
    RemoteError,
    Result,
    Runner,
    Sandbox,
    SandboxError,
    SandboxExecutor,
    Server,
    SetupError,
    SpecError,
    SpecTypeError,
    Store,
    Tee,
    Tree,
)

stubs()
ASSUME = ["layers", "user", "umask", "hostname"]


@pytest.fixture(scope="module")
def running() -> Iterator[MemoryServer]:
    with memory_server() as running:
        yield running


@pytest.fixture
def there(running: MemoryServer) -> Iterator[MemoryServer]:
    for each in (running.blobs, running.results, running.calls):
        each.clear()
    yield running
    running.refusal, running.at_call = None, lambda name: None


@pytest.fixture
def server(there: MemoryServer) -> Iterator[Server]:
    with Server(there.url) as server:
        yield server


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rootfs(tmp_path_factory.mktemp("roots") / "root")


@pytest.fixture
def box(root: Path, tmp_path: Path) -> Iterator[Sandbox]:
    with Sandbox(Overlay(root), store=Store(tmp_path / "store")) as box:
        if reasons := box.lacks():
            require(False, f"no Overlay here: {reasons}")
        yield box


@pytest.fixture
def cached(box: Sandbox, server: Server) -> Iterator[Cached]:
    with Cached(box, server, write=True, assume=ASSUME) as cached:
        yield cached


def shell(line: str, **options: Any) -> Command:
    return Command(["sh", "-c", line], **options)


#: The output tells runs from each other.
UNIQUE = "cat /proc/sys/kernel/random/uuid"
COMMAND = shell(
    f"mkdir -p /out/d; {UNIQUE}; echo err >&2; {UNIQUE} > /out/a; echo b > /out/d/b;"
    " ln -s a /out/l",
    outputs=["/out"],
)


def _mapped(cached: Cached, command: Command) -> Result:
    result = next(iter(cached.map([command], 1, on_failure="continue")))
    if isinstance(result, SandboxError):
        raise result
    return result


def _pooled(cached: Cached, command: Command) -> Result:
    with SandboxExecutor(cached, 1) as pool:
        return pool.submit(command).result(60)


def _in_trio(cached: Cached, command: Command) -> Result:
    trio = pytest.importorskip("trio")
    result: Result = trio.run(cached.run_async, command)
    return result


WAYS: dict[str, Callable[[Cached, Command], Result]] = {
    "run": lambda cached, command: cached.run(command),
    "fresh": lambda cached, command: cached.run(command, fresh=True),
    "map": _mapped,
    "async": lambda cached, command: asyncio.run(cached.run_async(command)),
    "trio": _in_trio,
    "pool": _pooled,
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Callable[[Cached, Command], Result]:
    return WAYS[request.param]


def test_the_second_time_nothing_is_run(
    cached: Cached, way: Callable[[Cached, Command], Result], there: MemoryServer
) -> None:
    first, second = way(cached, COMMAND), way(cached, COMMAND)
    assert (first.cached, second.cached) == (False, True)
    assert tuple(first) == tuple(second)
    assert {path: file.read_bytes() for path, file in first.outputs.items()} == {
        path: file.read_bytes() for path, file in second.outputs.items()
    }
    assert set(first.outputs.directories) == set(second.outputs.directories)
    assert dict(first.outputs.links) == dict(second.outputs.links) == {"/out/l": "a"}
    assert (first.executor != "cache", second.executor) == (True, "cache")
    assert second.isolation == first.isolation
    assert second.usage is not None
    assert second.command == first.command == COMMAND
    assert second.wall > 0
    assert there.calls.count("UpdateActionResult") == 1


def test_the_key_is_the_digest_of_the_command(
    cached: Cached, box: Sandbox, there: MemoryServer
) -> None:
    cached.run(COMMAND)
    key = COMMAND.digest(box, ASSUME)
    assert list(there.results) == [key]
    action = stubs().Action.FromString(there.blobs[key])
    told = stubs().Command.FromString(there.blobs[_text(action.command_digest)])
    assert list(told.arguments) == list(COMMAND.argv)


def _text(digest: Any) -> str:
    return f"{digest.hash}/{digest.size_bytes}"


def test_another_store_gets_what_the_first_one_ran(
    cached: Cached, box: Sandbox, server: Server, tmp_path: Path
) -> None:
    first = cached.run(shell("head -c 3000000 /dev/urandom > /out/large", outputs=["/out/*"]))
    other = box.replace(store=Store(tmp_path / "other"))
    assert first.command is not None
    second = Cached(other, server, assume=ASSUME).run(first.command)
    assert second.cached
    assert second.outputs["/out/large"].read_bytes() == first.outputs["/out/large"].read_bytes()
    content = second.outputs["/out/large"].content
    assert isinstance(content, Path)
    assert content.is_relative_to(tmp_path / "other")


def test_outputs_of_a_hit_are_inputs_of_the_next_command(cached: Cached) -> None:
    for _ in range(2):
        made = cached.run(shell("echo 1 > /out/a", outputs=["/out/a"]))
        used = cached.run(shell("cat /out/a", inputs=made.outputs))
        assert used.stdout == b"1\n"
    assert used.cached


# ---- what is written -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("exit 3", {}),
        ("kill -9 $$", {}),
        ("sleep 60", {"timeout": 0.2}),
        ("true", {"outputs": ["/out/none"]}),
        ("head -c 100000 /dev/zero", {"max_output": 1000}),
        ("head -c 100000 /dev/zero", {"max_output": 1000, "on_overflow": "kill"}),
        ("touch '/out/\udcff'", {"outputs": ["/out/*"]}),
        ("echo $((1 << 20)) > /dev/null", {"stdout": DEVNULL, "max_output": 1000}),
    ],
    ids=["status", "signal", "timeout", "missing", "truncated", "killed", "names", "discarded"],
)
def test_what_is_not_written(
    cached: Cached, there: MemoryServer, line: str, options: dict[str, Any]
) -> None:
    for _ in range(2):
        assert not cached.run(shell(line, **options)).cached
    assert not there.results


def test_a_limit_that_was_hit_is_not_written(
    cached: Cached, there: MemoryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = cached.run(shell("true"), do_not_cache=True)
    result.limits_hit = ("pids",)  # a fork was refused, and the command went on
    monkeypatch.setattr("sandboxlib._remote.cached.run_command", lambda *args: result)
    assert cached.run(shell("true")).ok
    assert not there.results


def test_only_with_write_anything_is_written(
    box: Sandbox, server: Server, there: MemoryServer
) -> None:
    cached = Cached(box, server, assume=ASSUME)
    assert not cached.run(COMMAND).cached
    assert not cached.run(COMMAND).cached
    assert not there.results
    assert not there.blobs


def test_do_not_cache_neither_reads_nor_writes(cached: Cached, there: MemoryServer) -> None:
    calls: list[Callable[[], Result]] = [
        lambda: cached.run(COMMAND, do_not_cache=True),
        lambda: asyncio.run(cached.run_async(COMMAND, do_not_cache=True)),
        lambda: next(cached.map([COMMAND], do_not_cache=True)),
    ]
    for call in calls:
        assert not call().cached
    assert not there.calls
    cached.run(COMMAND)
    for call in calls:
        assert not call().cached


def test_a_failure_that_somebody_wrote_is_no_hit(cached: Cached, there: MemoryServer) -> None:
    cached.run(COMMAND)
    for message in there.results.values():
        message.exit_code = 1
    assert not cached.run(COMMAND).cached


def test_a_result_without_an_output_is_no_hit(cached: Cached, there: MemoryServer) -> None:
    cached.run(COMMAND)
    for message in there.results.values():
        del message.output_directories[:]
    assert not cached.run(COMMAND).cached


@pytest.mark.parametrize("which", ["stdout", "tree", "file", "large"])
def test_a_hit_whose_blobs_are_gone_is_a_miss(
    cached: Cached, there: MemoryServer, which: str
) -> None:
    line = f"{UNIQUE}; mkdir /out; {UNIQUE} > /out/a; head -c 1000000 /dev/urandom > /out/large"
    command = shell(line, outputs=["/out"])
    first = cached.run(command)
    (message,) = there.results.values()
    gone = {
        "stdout": message.stdout_digest,
        "tree": message.output_directories[0].tree_digest,
    }
    digests = {
        **{name: _text(each) for name, each in gone.items()},
        "file": first.outputs["/out/a"].digest(),
        "large": first.outputs["/out/large"].digest(),
    }
    del there.blobs[digests[which]]
    second = cached.run(command)
    assert not second.cached
    assert second.stdout != first.stdout
    assert cached.run(command).stdout == second.stdout


def test_a_hostile_result_is_an_error(
    cached: Cached, there: MemoryServer, way: Callable[[Cached, Command], Result]
) -> None:
    cached.run(COMMAND)
    (message,) = there.results.values()
    message.output_files.add(path="/etc/passwd").digest.hash = "0" * 64
    with pytest.raises(RemoteError, match=r"GetActionResult: DATA_LOSS: .*/etc/passwd"):
        way(cached, COMMAND)


# ---- output ----------------------------------------------------------------------------------


def test_output_goes_where_the_command_says(cached: Cached, tmp_path: Path) -> None:
    line = "printf 'one\\ntwo\\nrest'; echo err >&2"
    for is_hit in (False, True):
        chunks, lines, log = list[bytes](), list[bytes](), io.BytesIO()
        assert cached.run(shell(line, stdout=chunks.append)).cached is is_hit
        results = [
            cached.run(shell(line, stdout=Lines(lines.append))),
            cached.run(shell(line, stdout=Tee(log, keep_head=3))),
            cached.run(shell(line, stdout=DEVNULL)),
        ]
        with open(tmp_path / "file", "wb") as file:
            results.append(cached.run(shell(line, stdout=file, stderr=file)))
        with open(tmp_path / "number", "wb") as file:
            results.append(cached.run(shell(line, stderr=file.fileno())))
        assert all(result.cached for result in results)
        assert b"".join(chunks) == b"one\ntwo\nrest" == log.getvalue()
        assert lines == [b"one\n", b"two\n", b"rest"]
        assert results[1].out is not None
        assert results[1].out.startswith(b"one\n... ")
        assert [result.out for result in (results[0], results[2], results[3])] == [None] * 3
        assert sorted((tmp_path / "file").read_bytes().split()) == [b"err", b"one", b"resterr"] or (
            b"one\ntwo\nrest" in (tmp_path / "file").read_bytes()
        )
        assert (tmp_path / "number").read_bytes() == b"err\n"
        assert results[4].stdout == b"one\ntwo\nrest"


@pytest.mark.parametrize("kind", ["function", "discarded", "file", "lines"])
def test_all_output_of_a_run_is_written_wherever_it_goes(
    cached: Cached, kind: str, tmp_path: Path
) -> None:
    taken: list[bytes] = []
    line = f"{UNIQUE}; echo err >&2"
    with open(tmp_path / "file", "wb") as file:
        sinks: dict[str, Any] = {
            "function": taken.append,
            "lines": Lines(taken.append),
            "discarded": DEVNULL,
            "file": file,
        }
        first = cached.run(shell(line, stdout=sinks[kind]))
    assert not first.cached
    assert first.out is None
    second = cached.run(shell(line))
    assert second.cached
    assert len(second.stdout) == 37
    assert second.stderr == b"err\n"
    if kind == "file":
        assert (tmp_path / "file").read_bytes() == second.stdout
    elif kind != "discarded":
        assert b"".join(taken) == second.stdout


def test_a_merged_stderr_stays_merged(cached: Cached) -> None:
    line = "echo out; echo err >&2"
    for _ in range(2):
        result = cached.run(shell(line, stderr=STDOUT))
        assert (result.out, result.err) == (b"out\nerr\n", None)
    assert result.cached
    assert not cached.run(shell(line)).cached


def test_a_hit_is_cut_as_a_run_would_be(cached: Cached) -> None:
    line = "printf 123456789"
    cached.run(shell(line))
    result = cached.run(shell(line, max_output=5))
    assert result.cached
    assert (result.stdout, result.out_size, result.limits_hit) == (b"12345", 9, ("output",))
    assert not cached.run(shell(line, max_output=5, on_overflow="kill")).cached
    assert cached.run(shell(line, max_output=9, on_overflow="kill")).cached


def test_an_exception_of_a_function_comes_out_of_a_hit_too(cached: Cached) -> None:
    def fail(data: bytes) -> None:
        raise ZeroDivisionError

    cached.run(shell("echo 1"))
    with pytest.raises(ZeroDivisionError):
        cached.run(shell("echo 1", stdout=fail))


def test_much_output_is_returned_and_not_written(
    cached: Cached, there: MemoryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sandboxlib._remote import keeping

    monkeypatch.setattr(keeping, "MOST_STREAM", 1000)
    count = 0

    def take(data: bytes) -> None:
        nonlocal count
        count += len(data)

    cached.run(shell("head -c 5000 /dev/zero", stdout=take))
    assert count == 5000
    assert len(cached.run(shell("head -c 5000 /dev/zero")).stdout) == 5000
    assert not there.results


# ---- edits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "tree", "mount"])
def test_an_edit_between_digest_and_run_never_poisons_the_cache(
    box: Sandbox,
    server: Server,
    there: MemoryServer,
    tmp_path: Path,
    kind: str,
    way: Callable[[Cached, Command], Result],
) -> None:
    source = tmp_path / "src"
    source.mkdir()
    (source / "a").write_bytes(b"first")
    options: dict[str, Any] = {
        "file": {"inputs": {"/src/a": source / "a"}},
        "tree": {"inputs": {"/src": Tree(source)}},
        "mount": {},
    }[kind]
    if kind == "mount":
        box = box.replace(extra_mounts=[Mount.file(File(source / "a"), "/src/a")])
    command = shell("cat /src/a", **options)

    def edit(name: str) -> None:
        if name == "GetActionResult":  # the digest is known, and the run has not begun
            (source / "a").write_bytes(b"later")

    with box, Cached(box, server, write=True, assume=ASSUME) as cached:
        there.at_call = edit
        if kind == "mount":
            assert way(cached, command).stdout == b"first"
        else:
            with pytest.raises(SetupError):
                way(cached, command)
            assert not there.results
        there.at_call = lambda name: None
    (source / "a").write_bytes(b"first")
    fresh = box.replace()
    with fresh, Cached(fresh, server, assume=ASSUME) as again:
        if kind == "tree":
            command = command.replace(inputs={"/src": Tree(source)})
        assert again.run(command).stdout == b"first"


def test_the_times_of_inputs_are_those_of_the_key(
    cached: Cached, there: MemoryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(name: str) -> None:
        if name == "GetActionResult":
            monkeypatch.setenv("SOURCE_DATE_EPOCH", "5")

    there.at_call = change
    cached.run(shell("stat -c %Y /src/a 2>/dev/null || ls -l /src/a", inputs={"/src/a": b""}))
    assert not there.results


# ---- refused ---------------------------------------------------------------------------------


def test_what_has_no_digest_is_refused(box: Sandbox, server: Server, there: MemoryServer) -> None:
    with pytest.raises(SpecError, match="layers") as caught:
        Cached(box, server).run(["true"])
    assert "umask" in str(caught.value)
    assert not there.calls


def test_changes_are_refused(cached: Cached, there: MemoryServer) -> None:
    with pytest.raises(SpecError, match="changes='keep'"):
        cached.run(["true"], changes="keep")
    assert not there.calls
    with cached.run(["true"], changes="keep", do_not_cache=True).changes as changes:
        assert not list(changes)
    cached.run(["true"], changes="on-failure")
    assert cached.run(["true"], changes="on-failure").cached
    with cached.run(["false"], changes="on-failure").changes as changes:
        assert not list(changes)


def test_wrong_arguments_are_refused(box: Sandbox, server: Server) -> None:
    wrong: list[Callable[[], Any]] = [
        lambda: Cached("/", server),  # type: ignore[arg-type]
        lambda: Cached(box, "grpc://x:1"),  # type: ignore[arg-type]
        lambda: Cached(box, server, write=1),  # type: ignore[arg-type]
        lambda: Cached(box, server, assume=["nothing"]),
        lambda: Cached(box, server, assume="user"),
        lambda: Cached(box, server, unreachable="ignore"),  # type: ignore[arg-type]
        lambda: Cached(box, server, writes=True),  # type: ignore[call-arg]
        lambda: Cached(box, server).run(["true"], do_not_cache=1),  # type: ignore[arg-type]
        lambda: Cached(box, server).run(["true"], nothing=1),  # type: ignore[call-arg]
        lambda: Cached(box, server).map(["true"], fresh=1),  # type: ignore[call-overload]
    ]
    for call in wrong:
        with pytest.raises(SpecError):
            call()
    with pytest.raises(SpecTypeError, match="write"):
        Cached(box, server, writes=True)  # type: ignore[call-arg]


def test_a_cached_is_a_runner_that_cannot_be_pickled(cached: Cached) -> None:
    assert isinstance(cached, Runner)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(cached)


# ---- servers that fail -----------------------------------------------------------------------


def test_a_server_that_is_not_there_is_named(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch, way: Callable[[Cached, Command], Result]
) -> None:
    quickly(monkeypatch)
    with (
        Server("grpc://127.0.0.1:1") as server,
        Cached(box, server, assume=ASSUME) as cached,
        pytest.raises(RemoteError, match=r"127\.0\.0\.1:1: GetActionResult: UNAVAILABLE"),
    ):
        way(cached, COMMAND)


def test_unreachable_run_goes_on_without_the_server(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch, there: MemoryServer
) -> None:
    quickly(monkeypatch)
    there.refusal = "UNAVAILABLE", ""
    with Server(there.url) as server:
        cached = Cached(box, server, write=True, assume=ASSUME, unreachable="run")
        assert cached.run(COMMAND).ok
        asked = len(there.calls)
        there.refusal = None
        assert cached.run(COMMAND).ok
        assert len(there.calls) == asked  # it is not asked again at once
        monkeypatch.setattr(cached, "_away_until", 0.0)
        cached.run(COMMAND)
        assert cached.run(COMMAND).cached
        there.refusal = "PERMISSION_DENIED", ""
        with pytest.raises(RemoteError, match="PERMISSION_DENIED"):
            cached.run(COMMAND)


def test_a_cache_that_may_not_be_written_is_named(cached: Cached, there: MemoryServer) -> None:
    there.refusal = "PERMISSION_DENIED", "UpdateActionResult"
    with pytest.raises(RemoteError, match="UpdateActionResult: PERMISSION_DENIED"):
        cached.run(COMMAND)


def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    from sandboxlib._remote import server

    monkeypatch.setattr(server, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(server, "LONGEST_WAIT", 0.01)


# ---- maps and event loops --------------------------------------------------------------------


def lines(count: int) -> list[Command]:
    return [shell(f"echo {number}; {UNIQUE}") for number in range(count)]


def test_a_map_keeps_its_order_and_is_all_hits_the_second_time(cached: Cached) -> None:
    seen: list[int] = []
    first = list(cached.map(lines(12), 3, progress=lambda count, result: seen.append(count)))
    second = list(cached.map(lines(12), 3))
    third = list(cached.map(lines(12), 3, ordered=False))
    assert [result.stdout for result in first] == [result.stdout for result in second]
    assert [result.number for result in second] == list(range(12))
    assert sorted(result.number for result in third) == list(range(12))
    assert all(result.cached for result in (*second, *third))
    assert not any(result.cached for result in first)
    assert seen == list(range(1, 13))


def test_a_map_stops_at_a_failure_or_goes_on(cached: Cached) -> None:
    commands = [shell("true"), shell("exit 3"), shell("true"), Command(["none"])]
    with pytest.raises(CommandFailed) as caught:
        list(cached.map(commands, 1))
    assert caught.value.number == 1
    results = list(cached.map(commands, 2, on_failure="continue"))
    assert [type(result) is Result for result in results] == [True, True, True, False]
    assert [r.cached for r in results[:3] if isinstance(r, Result)] == [True, False, True]


def test_a_map_that_is_left_ends_at_once_though_the_server_hangs(
    cached: Cached, there: MemoryServer
) -> None:
    hang = threading.Event()

    def wait(name: str) -> None:
        if len(there.calls) > 1:
            hang.wait(20)

    there.at_call = wait
    try:
        results = cached.map(lines(8), 4)
        next(results)
        began = time.monotonic()
        results.close()
        assert time.monotonic() - began < 5
    finally:
        hang.set()


def test_a_cancelled_task_ends_at_once_though_the_server_hangs(
    cached: Cached, there: MemoryServer
) -> None:
    hang = threading.Event()
    there.at_call = lambda name: hang.wait(20)

    async def main() -> float:
        task = asyncio.create_task(cached.run_async(COMMAND))
        await asyncio.sleep(0.3)
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - began

    try:
        assert asyncio.run(main()) < 2
    finally:
        hang.set()


def test_a_cancelled_task_kills_its_command(cached: Cached, there: MemoryServer) -> None:
    async def main() -> None:
        task = asyncio.create_task(cached.run_async(shell("echo; sleep 60", stdout=began.append)))
        while not began:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    began: list[bytes] = []
    asyncio.run(main())
    assert not there.results


def test_many_tasks_at_once(cached: Cached) -> None:
    async def main() -> list[Result]:
        return await asyncio.gather(*(cached.run_async(each) for each in lines(40)))

    first, second = asyncio.run(main()), asyncio.run(main())
    assert [result.stdout for result in first] == [result.stdout for result in second]
    assert all(result.cached for result in second)


def test_a_fork_has_threads_of_its_own(cached: Cached) -> None:
    asyncio.run(cached.run_async(COMMAND))
    process = os.fork()
    if not process:
        status = 1
        try:
            status = 0 if asyncio.run(cached.run_async(COMMAND)).cached else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
