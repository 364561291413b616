# SPDX-License-Identifier: Apache-2.0
"""Remote: commands that the workers of a server execute, and what may happen on the way."""

from __future__ import annotations

import asyncio
import io
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from lib.executions import Executions, executions, operation, response, result

from sandboxlib import (
    DEVNULL,
    STDOUT,
    Command,
    CommandFailed,
    File,
    Limits,
    Lines,
    Overlay,
    Remote,
    RemoteError,
    Runner,
    Sandbox,
    SandboxExecutor,
    Server,
    SpecError,
    SpecTypeError,
    Store,
    Tee,
    Tree,
    UnsupportedError,
    _reapi,
)
from sandboxlib._remote import execution


@pytest.fixture
def fake() -> Iterator[Executions]:
    with executions() as server:
        yield server


@pytest.fixture
def server(fake: Executions) -> Iterator[Server]:
    with Server(fake.url) as made:
        yield made


@pytest.fixture
def remote(server: Server, tmp_path: Path) -> Remote:
    return Remote(Sandbox(Overlay(), store=Store(tmp_path / "store")), server)


def digest(fake: Executions, content: bytes) -> Any:
    from sandboxlib._remote.stubs import digest_message

    return digest_message(fake.put(content))


def abort(context: Any, code: str, text: str = "") -> None:
    from sandboxlib._remote.stubs import grpc

    context.abort(getattr(grpc.StatusCode, code), text)


def never(request: Any, context: Any) -> Iterator[Any]:
    """A stream that stays open until its caller ends it."""
    yield operation("operations/hangs")
    hang(context)


def hang(context: Any) -> None:
    ended = threading.Event()
    if context.add_callback(ended.set):
        ended.wait(60)


# ---- what comes back ---------------------------------------------------------------------------


def test_a_result_is_as_of_a_run_here(fake: Executions, remote: Remote) -> None:
    answer = result(exit_code=3, stdout_raw=b"out", stderr_digest=digest(fake, b"err"))
    answer.execution_metadata.worker = "w1"
    fake.answer = lambda _: answer
    before = time.monotonic()
    ran = remote.run(["prog", "-x"])
    assert ran == (3, b"out", b"err")
    assert (ran.executor, ran.worker, ran.cached, ran.timed_out) == ("remote", "w1", False, False)
    assert 0 < ran.wall <= time.monotonic() - before
    assert before <= ran.began
    assert ran.command == Command(["prog", "-x"])
    with pytest.raises(CommandFailed):
        remote.run(["prog"], check=True)


def test_a_result_that_the_server_had_is_cached(fake: Executions, remote: Remote) -> None:
    fake.answer = lambda _: response(result=result(), cached_result=True)
    assert remote.run(["prog"]).cached


def test_what_a_portable_action_is(fake: Executions, server: Server, tmp_path: Path) -> None:
    box = Sandbox(Overlay(Tree({"usr/lib/x": b"below"}), Tree({"usr/y": b"above"})))
    remote = Remote(box, server, platform={"OSFamily": "linux"}, do_not_cache=True)
    command = Command(
        ["cc", "-c", "a.c"],
        "/src/b",
        {"LANG": "C"},
        inputs={"a.c": b"int a;", "/src/b/include": Tree({"a.h": b"h"})},
        outputs=["a.o", "/src/b/made/*.o", "deep/x/y.o"],
        timeout=2.5,
    )
    remote.run(command)
    sent, action = fake.command(), fake.action()
    assert list(sent.arguments) == ["cc", "-c", "a.c"]
    assert sent.working_directory == "src/b"
    assert list(sent.output_paths) == ["a.o", "deep/x/y.o", "made"]
    assert {each.name: each.value for each in sent.environment_variables}["LANG"] == "C"
    assert [(each.name, each.value) for each in action.platform.properties] == [
        ("OSFamily", "linux")
    ]
    assert (action.timeout.seconds, action.timeout.nanos) == (2, 500_000_000)
    assert action.do_not_cache
    assert not action.salt
    assert {name: each for name, each in fake.files().items() if each is not None} == {
        "src/b/a.c": b"int a;",
        "src/b/include/a.h": b"h",
        "usr/lib/x": b"below",
        "usr/y": b"above",
    }
    # as for a run here, the directories of outputs are there before the command begins
    assert {"src/b/made", "src/b/deep/x"} <= fake.files().keys()


def test_outputs_of_patterns_come_as_their_directory_and_are_filtered(
    fake: Executions, remote: Remote
) -> None:
    a, b = fake.put(b"a"), fake.put(b"b")
    below = _reapi.directory({b"y.o": _reapi.file_node(b"y.o", b, True)}, {}, {})
    top = _reapi.directory(
        {name: _reapi.file_node(name, a) for name in (b"x.o", b"x.txt")},
        {b"sub": _reapi.directory_node(b"sub", _reapi.digest_of(below))},
        {},
    )
    answer = result()
    made = answer.output_directories.add(path="made")
    made.tree_digest.CopyFrom(digest(fake, _reapi.tree(top, [below])))
    fake.answer = lambda _: answer
    ran = remote.run(["make"], cwd="/src", outputs=["made/**/*.o", "none/*"])
    assert {path: file.read_bytes() for path, file in ran.outputs.items()} == {
        "/src/made/x.o": b"a",
        "/src/made/sub/y.o": b"b",
    }
    assert ran.outputs["/src/made/sub/y.o"].executable
    assert ran.outputs.missing == ("none/*",)
    assert not ran.ok


def test_a_timeout_with_a_result_is_one_of_the_command(fake: Executions, remote: Remote) -> None:
    ended = result(exit_code=137, stdout_raw=b"until then")
    fake.answer = lambda _: response("DEADLINE_EXCEEDED", "too slow", result=ended)
    ran = remote.run(["prog"], timeout=1)
    assert ran.timed_out
    assert ran.out == b"until then"


# ---- what is refused ---------------------------------------------------------------------------


def test_all_that_is_not_portable_is_named_at_once(server: Server, fake: Executions) -> None:
    box = Sandbox(
        Overlay("/srv", upper="/tmp/upper"),
        hostname="me",
        user=1000,
        umask=0o77,
        limits=Limits(pids=5),
        network="undefined",
    )
    command = Command(
        ["prog"],
        "/src",
        stdin=b"x",
        stderr=STDOUT,
        executable="/bin/prog",
        limits=Limits(memory="64M"),
        inputs={"/etc/passwd": b""},
        outputs=["/out/*"],
    )
    with pytest.raises(UnsupportedError) as refused:
        Remote(box, server).run(command)
    text = str(refused.value)
    for name in (
        *("hostname", "user", "umask", "limits", "network", "upper", "layers", "stdin", "stderr"),
        *("executable", "inputs: /etc/passwd", "outputs: /out/*", "'sandboxlib': '1'"),
    ):
        assert name in text, name
    assert fake.calls == []


@pytest.mark.parametrize(
    "options",
    [{"changes": "keep"}, {"grace": 1.0}, {"pty": True}, {"pass_fds": [9]}, {"stdin": 0}],
    ids=str,
)
def test_what_no_worker_can_keep_is_refused(
    remote: Remote, fake: Executions, options: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedError, match=next(iter(options))):
        remote.run(["prog"], **options)
    with pytest.raises(UnsupportedError, match="on_overflow"):
        remote.run(["prog"], max_output=1, on_overflow="kill")
    assert fake.calls == []


def test_a_name_that_is_not_utf_8_is_refused(remote: Remote, tmp_path: Path) -> None:
    with open(bytes(tmp_path) + b"/\xff", "wb"):
        pass
    with pytest.raises(UnsupportedError, match="UTF-8"):
        remote.run(["prog"], inputs={"/src": Tree(tmp_path)})


def test_wrong_arguments(server: Server) -> None:
    box = Sandbox(Overlay())
    for wrong in ({"platform": "x"}, {"platform": {"x": 1}}, {"unknown": 1}, {"patience": "x"}):
        with pytest.raises(SpecTypeError):
            Remote(box, server, **wrong)  # type: ignore[arg-type]
    for wrong in ({"deadline": 0}, {"assume": ["user"]}, {"patience": -1}):
        with pytest.raises(SpecError):
            Remote(box, server, **wrong)  # type: ignore[arg-type]
    with pytest.raises(SpecTypeError):
        Remote("/", server)  # type: ignore[arg-type]
    with pytest.raises(SpecTypeError):
        Remote(box, "grpc://x:1")  # type: ignore[arg-type]
    with pytest.raises(SpecTypeError):
        Remote(box, server).map([["x"]], fresh=True)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        pickle.dumps(Remote(box, server))


# ---- streams that break ------------------------------------------------------------------------


def test_a_stream_that_breaks_goes_on_with_the_same_operation(
    fake: Executions, remote: Remote
) -> None:
    def breaks(request: Any, context: Any) -> Iterator[Any]:
        yield operation(fake.named(request))
        abort(context, "UNAVAILABLE", "restarting")

    fake.on_execute = breaks
    assert remote.run(["prog"]).out == b"out"
    assert len(fake.executes) == 1
    assert fake.waits == ["operations/0"]


def test_a_stream_that_ends_without_the_result_is_asked_anew(
    fake: Executions, remote: Remote
) -> None:
    fake.on_execute = lambda request, context: iter([operation(fake.named(request))])
    assert remote.run(["prog"]).out == b"out"
    assert fake.waits == ["operations/0"]


def test_a_stream_that_says_nothing_is_asked_anew(
    fake: Executions, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "SILENCE", 0.2)

    def silent(request: Any, context: Any) -> Iterator[Any]:
        yield operation(fake.named(request))
        hang(context)

    fake.on_execute = silent
    assert remote.run(["prog"]).out == b"out"
    assert fake.waits == ["operations/0"]
    assert fake.cancelled == []


def test_an_operation_that_the_server_forgot_is_executed_again(
    fake: Executions, remote: Remote
) -> None:
    def breaks(request: Any, context: Any) -> Iterator[Any]:
        fake.on_execute = fake.executed
        yield operation(fake.named(request))
        abort(context, "UNAVAILABLE")

    fake.on_execute = breaks
    fake.on_wait = lambda request, context: iter(abort(context, "NOT_FOUND") or ())
    assert remote.run(["prog"]).out == b"out"
    assert len(fake.executes) == 2


def test_an_action_that_could_not_be_started_is_tried_again(
    fake: Executions, remote: Remote
) -> None:
    answers = iter([response("UNAVAILABLE", "all workers are busy"), result(stdout_raw=b"late")])
    fake.answer = lambda _: next(answers)
    assert remote.run(["prog"]).out == b"late"
    assert len(fake.executes) == 2


def test_a_server_that_stays_away_is_told_after_the_patience(
    fake: Executions, server: Server
) -> None:
    fake.on_execute = lambda request, context: iter(abort(context, "UNAVAILABLE", "away") or ())
    with pytest.raises(RemoteError, match="away") as failed:
        Remote(Sandbox(Overlay()), server, patience=0.5).run(["prog"])
    assert failed.value.code == "UNAVAILABLE"
    assert failed.value.call == "Execute"
    assert len(fake.executes) > 1


@pytest.mark.parametrize(
    "code", ["RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "INTERNAL", "PERMISSION_DENIED"]
)
def test_other_codes_are_told_at_once(fake: Executions, remote: Remote, code: str) -> None:
    fake.on_execute = lambda request, context: iter(abort(context, code, "because") or ())
    with pytest.raises(RemoteError, match="because") as failed:
        remote.run(["prog"])
    assert (failed.value.code, failed.value.server) == (code, fake.url)
    fake.on_execute = fake.executed
    fake.answer = lambda _: response(code, "of the worker")
    with pytest.raises(RemoteError, match="of the worker") as failed:
        remote.run(["prog"])
    assert failed.value.code == code
    assert len(fake.executes) == 2


@pytest.mark.parametrize("part", ["response", "metadata", "code", "details", "error"])
def test_an_operation_that_is_malformed_is_an_error_of_the_server(
    fake: Executions, remote: Remote, part: str
) -> None:
    def told(request: Any, context: Any) -> Iterator[Any]:
        made = operation("operations/x", response("INTERNAL", "of the worker"))
        answer = response("INTERNAL", "of the worker")
        if part in ("response", "metadata"):
            getattr(made, part).value = b"\xff\xff"
        elif part == "code":
            answer.status.code = 12345
            made.response.Pack(answer)
        elif part == "details":
            kind = "type.googleapis.com/google.rpc.PreconditionFailure"
            answer.status.details.add(type_url=kind, value=b"\xff\xff")
            made.response.Pack(answer)
        else:
            made.ClearField("response")
            made.error.code = 12345
        yield made

    fake.on_execute = told
    with pytest.raises(RemoteError) as failed:
        remote.run(["prog"])
    expected = {"code": "UNKNOWN", "error": "UNKNOWN"}.get(part, "INTERNAL")
    assert failed.value.code == expected


# ---- what a server lost ------------------------------------------------------------------------


def test_inputs_that_the_server_lost_are_sent_again_once(fake: Executions, remote: Remote) -> None:
    command = Command(["prog"], inputs={"a": b"content"})
    remote.run(command)
    lost = response("FAILED_PRECONDITION", "blobs are missing")

    def answer(name: str) -> Any:
        return result(stdout_raw=b"found") if _reapi.digest_of(b"content") in fake.blobs else lost

    fake.answer = answer
    fake.blobs.clear()
    assert remote.run(command).out == b"found"
    fake.answer = lambda _: lost
    executed = len(fake.executes)
    with pytest.raises(RemoteError, match="blobs are missing") as failed:
        remote.run(command)
    assert failed.value.code == "FAILED_PRECONDITION"
    assert len(fake.executes) == executed + 2


def test_a_result_whose_outputs_are_lost_is_made_again_once(
    fake: Executions, remote: Remote
) -> None:
    answer = result()
    answer.output_files.add(path="o").digest.CopyFrom(digest(fake, b"lost"))
    fake.answer = lambda _: answer

    def execute(request: Any, context: Any) -> Iterator[Any]:
        if request.skip_cache_lookup:
            fake.put(b"lost")
        return fake.executed(request, context)

    fake.on_execute = execute
    fake.blobs.clear()
    assert remote.run(["prog"], outputs=["o"]).outputs["/o"].read_bytes() == b"lost"
    assert [each.skip_cache_lookup for each in fake.executes] == [False, True]
    fake.on_execute = fake.executed
    del fake.blobs[_reapi.digest_of(b"lost")]
    with pytest.raises(RemoteError) as failed:
        remote.run(["prog"], outputs=["o"])
    assert failed.value.code == "NOT_FOUND"
    assert failed.value.digests == (_reapi.digest_of(b"lost"),)


def test_an_input_that_changed_is_no_other_input(remote: Remote, tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"before")
    command = Command(["prog"], inputs={"a": File(file)})
    from sandboxlib._inputs.frozen import frozen

    made = frozen(command)
    file.write_bytes(b"after!")
    with pytest.raises(OSError, match=str(file)):
        remote.run(made)


# ---- the end that the caller wants -------------------------------------------------------------


def test_a_deadline_cancels_the_action(fake: Executions, server: Server) -> None:
    fake.on_execute = never
    with pytest.raises(RemoteError) as failed:
        Remote(Sandbox(Overlay()), server, deadline=0.5).run(["prog"])
    assert failed.value.code == "DEADLINE_EXCEEDED"
    assert fake.was_cancelled.wait(5)
    assert fake.cancelled == ["operations/hangs"]


def test_a_worker_that_does_not_keep_the_timeout_is_not_waited_for(
    fake: Executions, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "OVERHEAD", 0.3)
    fake.on_execute = never
    with pytest.raises(RemoteError) as failed:
        remote.run(["prog"], timeout=0.1)
    assert failed.value.code == "DEADLINE_EXCEEDED"
    assert fake.was_cancelled.wait(5)


def test_ctrl_c_cancels_the_action(fake: Executions, remote: Remote) -> None:
    fake.on_execute = never
    timer = threading.Timer(0.5, signal.pthread_kill, [threading.get_ident(), signal.SIGINT])

    def interrupt(name: str) -> None:
        if name == "Execute":
            timer.start()

    fake.at_call = interrupt
    with pytest.raises(KeyboardInterrupt):
        remote.run(["prog"])
    timer.join()
    assert fake.cancelled == ["operations/hangs"]


def test_cancellation_in_asyncio(fake: Executions, remote: Remote) -> None:
    async def main() -> None:
        assert (await remote.run_async(["prog"])).out == b"out"
        fake.on_execute = never
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(remote.run_async(["prog"]), 0.5)

    asyncio.run(main())
    assert fake.cancelled == ["operations/hangs"]


def test_cancellation_in_trio(fake: Executions, remote: Remote) -> None:
    async def main() -> None:
        assert (await remote.run_async(["prog"])).out == b"out"
        fake.on_execute = never
        with trio.move_on_after(0.5) as scope:
            await remote.run_async(["prog"])
        assert scope.cancelled_caught

    trio.run(main)
    assert fake.cancelled == ["operations/hangs"]


def test_closing_the_server_ends_what_is_in_flight(fake: Executions, remote: Remote) -> None:
    fake.on_execute = never
    timer = threading.Timer(0.5, remote.server.close)
    timer.start()
    with pytest.raises(RemoteError) as failed:
        remote.run(["prog"])
    timer.join()
    assert failed.value.code == "CANCELLED"
    with pytest.raises(RemoteError, match="closed"):
        remote.run(["prog"])


# ---- output while the command runs -------------------------------------------------------------


def streaming(fake: Executions, gate: threading.Event, ended: threading.Event) -> None:
    """The command writes "one\\n", and waits for a gate before it writes "two\\n"."""

    def log(offset: int) -> Iterator[bytes]:
        content = b"one\n"[offset:]
        if content:
            yield content
        assert gate.wait(10)
        yield b"two\n"
        ended.set()

    fake.streams["logs/1"] = log

    def execute(request: Any, context: Any) -> Iterator[Any]:
        name = fake.named(request)
        yield operation(name, stdout_stream_name="logs/1")
        assert ended.wait(10)
        yield operation(name, result(stdout_raw=b"one\ntwo\n"))

    fake.on_execute = execute


def test_output_comes_while_the_command_runs(fake: Executions, remote: Remote) -> None:
    gate = threading.Event()
    streaming(fake, gate, threading.Event())
    seen: list[bytes] = []

    def take(line: bytes) -> None:
        seen.append(line)
        gate.set()  # so the second line comes only if the first has come in time

    ran = remote.run(["prog"], stdout=Lines(take))
    assert seen == [b"one\n", b"two\n"]
    assert ran.out is None


def test_a_server_that_names_streams_without_end_has_few_of_them_read(
    fake: Executions, remote: Remote
) -> None:
    def told(request: Any, context: Any) -> Iterator[Any]:
        for number in range(1000):
            yield operation("operations/x", stdout_stream_name=f"streams/{number}")
        yield operation("operations/x", result())

    fake.on_execute = told
    remote.run(["prog"], stdout=Lines(lambda line: None))
    assert fake.calls.count("Read") <= 40


def test_an_exception_of_a_sink_ends_the_run(fake: Executions, remote: Remote) -> None:
    streaming(fake, threading.Event(), threading.Event())

    def fail(line: bytes) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        remote.run(["prog"], stdout=Lines(fail))
    assert fake.cancelled == ["operations/0"]


def test_sinks_get_the_output_at_the_end_from_a_server_without_streams(
    fake: Executions, remote: Remote, tmp_path: Path
) -> None:
    fake.answer = lambda _: result(stdout_raw=b"abcdef", stderr_raw=b"err")
    seen: list[bytes] = []
    remote.run(["prog"], stdout=seen.append, stderr=DEVNULL)
    assert b"".join(seen) == b"abcdef"
    log = io.BytesIO()
    ran = remote.run(["prog"], stdout=Tee(log, keep_head=2, keep_tail=1), max_output=5)
    assert log.getvalue() == b"abcde"
    assert ran.limits_hit == ("output",)
    with open(tmp_path / "log", "wb") as file:
        assert remote.run(["prog"], stdout=file).out is None
    assert (tmp_path / "log").read_bytes() == b"abcdef"
    assert remote.run(["prog"], max_output=3).out == b"abc"


def test_the_output_of_a_worker_that_was_lost_is_followed_by_all_of_the_next(
    fake: Executions, remote: Remote
) -> None:
    fake.streams["logs/1"] = lambda offset: iter([b"first try"[offset:]])

    def execute(request: Any, context: Any) -> Iterator[Any]:
        name = fake.named(request)
        yield operation(name, stdout_stream_name="logs/1")
        time.sleep(0.3)
        yield operation(name, result(stdout_raw=b"second"))

    fake.on_execute = execute
    seen: list[bytes] = []
    remote.run(["prog"], stdout=seen.append)
    assert b"".join(seen) == b"first trysecond"


# ---- many --------------------------------------------------------------------------------------


def test_a_map_keeps_many_in_flight_with_few_threads(tmp_path: Path) -> None:
    n = 200
    with executions(threads=n + 20) as fake, Server(fake.url) as server:
        gate = threading.Barrier(n)

        def answer(name: str) -> Any:
            gate.wait(60)  # all of them at once, or none
            return result(stdout_raw=name.encode())

        fake.answer = answer
        remote = Remote(Sandbox(Overlay()), server)
        results = remote.map((["prog", str(number)] for number in range(n)), jobs=n)
        first = next(results)
        assert [first.number, *(each.number for each in results)] == list(range(n))
        assert fake.most == n
        names = ("sandboxlib-remote", "sandboxlib-streams")
        ours = [each for each in threading.enumerate() if each.name.startswith(names)]
        assert 1 < len(ours) <= 9


def test_a_map_sends_what_is_common_once(fake: Executions, remote: Remote) -> None:
    common = b"c" * 100_000
    commands = [
        Command(["prog", str(number)], inputs={"/lib": Tree({"big": common}), f"{number}": b"x"})
        for number in range(20)
    ]
    sent: list[str] = []
    taken = fake.blobs

    class Noting(dict[str, bytes]):
        def __setitem__(self, name: str, content: bytes) -> None:
            sent.append(name)
            super().__setitem__(name, content)

    fake.blobs = Noting(taken)
    assert [each.number for each in remote.map(commands)] == list(range(20))
    assert len(sent) == len(set(sent))
    assert sent.count(_reapi.digest_of(common)) == 1


def test_a_map_that_stops_cancels_what_is_in_flight(fake: Executions, remote: Remote) -> None:
    def execute(request: Any, context: Any) -> Iterator[Any]:
        if len(fake.executes) == 1:
            time.sleep(0.5)
            return fake.executed(request, context)
        return never(request, context)

    fake.on_execute = execute
    fake.answer = lambda _: result(exit_code=1)
    with pytest.raises(CommandFailed):
        list(remote.map([["prog", str(number)] for number in range(4)], jobs=4, ordered=False))
    assert fake.cancelled == ["operations/hangs"] * 3


def test_a_map_that_continues_yields_the_errors(fake: Executions, remote: Remote) -> None:
    fake.answer = lambda _: response("INTERNAL", "broken")
    outcomes = list(remote.map([["a"], ["b"]], on_failure="continue"))
    assert [type(each) for each in outcomes] == [RemoteError, RemoteError]


def test_it_is_a_runner(remote: Remote) -> None:
    assert isinstance(remote, Runner)
    with SandboxExecutor(remote, max_workers=2) as pool:
        assert pool.submit(["prog"]).result().out == b"out"


def test_a_process_that_was_forked_meanwhile_gets_an_error_and_does_not_hang(
    fake: Executions, remote: Remote
) -> None:
    script = f"""
import os, signal
from sandboxlib import Overlay, Remote, RemoteError, Sandbox, Server, Store
with Server({fake.url!r}) as server:
    remote = Remote(Sandbox(Overlay(), store=Store({str(remote.box.store.directory)!r})), server)
    remote.run(["prog"])
    if not (child := os.fork()):
        signal.alarm(20)
        try:
            remote.run(["other"])
        except RemoteError as error:
            os._exit(3 if "forked" in str(error) else 4)
        os._exit(5)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    remote.run(["third"])
os._exit(status)
"""
    ran = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    assert ran.returncode == 3
