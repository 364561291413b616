# SPDX-License-Identifier: Apache-2.0
"""An Action runs as the Remote Execution API says."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from sandboxlib import RemoteError


def test_an_action_reads_its_inputs_and_leaves_its_outputs(place: Any) -> None:
    outcome = place.run(
        "cat in.txt; mkdir -p d/e; echo y > d/y; ln -s y d/link; echo z > out.txt; echo no >&2",
        ["out.txt", "d", "absent"],
        {"in.txt": b"hello\n"},
    )
    assert (outcome.code, outcome.message) == ("OK", "")
    assert outcome.result.exit_code == 0
    assert outcome.result.stdout_raw == b"hello\n"
    assert outcome.result.stderr_raw == b"no\n"
    assert place.file(outcome, "out.txt") == b"z\n"
    assert place.tree(outcome, "d") == {"e": None, "y": b"y\n", "link": "y"}
    assert len(outcome.result.output_files) == len(outcome.result.output_directories) == 1
    assert outcome.may_be_cached


def test_an_action_sees_its_own_environment_and_no_other(place: Any) -> None:
    outcome = place.run("env", env={"PATH": "/bin", "A": "b c"})
    lines = outcome.result.stdout_raw.split(b"\n")
    assert set(lines) - {b""} <= {b"PATH=/bin", b"A=b c", b"PWD=/", b"SHLVL=1", b"_=/bin/env"}
    assert {b"PATH=/bin", b"A=b c"} <= set(lines)


def test_each_action_has_its_own_copy_of_the_inputs(place: Any) -> None:
    script = "cat in.txt; echo changed > in.txt; rm -rf bin/ls; ls -d bin/ls"
    for _ in range(3):
        outcome = place.run(script, [], {"in.txt": b"as it was\n"})
        assert outcome.result.stdout_raw == b"as it was\n"
        assert outcome.result.exit_code == 1


def test_outputs_are_relative_to_the_working_directory_which_is_made(place: Any) -> None:
    script = "echo 1 > out; echo 2 > ../beside; echo 3 > deep/er/out"
    outcome = place.run(script, ["out", "../beside", "deep/er/out"], {}, directory="a/b")
    assert outcome.result.exit_code == 0, outcome.result.stderr_raw
    assert place.file(outcome, "out") == b"1\n"
    assert place.file(outcome, "../beside") == b"2\n"
    assert place.file(outcome, "deep/er/out") == b"3\n"


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x"])
def test_an_output_outside_of_the_input_root_is_refused(place: Any, path: str) -> None:
    assert place.run("true", [path]).code == "INVALID_ARGUMENT"


def test_a_signal_is_128_and_its_number(place: Any) -> None:
    assert place.run("kill -9 $$").result.exit_code == 137


def test_a_program_that_is_missing_is_an_exit_status_as_of_a_shell(place: Any) -> None:
    action = place.blobs.action(["/no/such/program"], place.root())
    outcome = place.executor.execute(action)
    assert (outcome.code, outcome.result.exit_code) == ("OK", 127)
    assert b"/no/such/program" in outcome.result.stderr_raw
    assert not outcome.may_be_cached


def test_a_timeout_is_told_with_the_output_until_then(place: Any) -> None:
    outcome = place.run("echo begun; sleep 60", timeout=0.5)
    assert outcome.code == "DEADLINE_EXCEEDED"
    assert outcome.result.stdout_raw == b"begun\n"
    assert not outcome.may_be_cached


def test_a_timeout_beyond_that_of_the_site_is_refused(make_place: Callable[..., Any]) -> None:
    place = make_place(timeout=1, max_timeout=2)
    assert place.run("true", timeout=3).code == "INVALID_ARGUMENT"
    assert place.run("sleep 60").code == "DEADLINE_EXCEEDED"


def test_a_stop_ends_the_command_within_a_tenth_of_a_second(place: Any) -> None:
    place.run("true")
    stop = threading.Event()
    ended: list[float] = []

    def run() -> None:
        assert place.run("sleep 60", stop=stop).code == "CANCELLED"
        ended.append(time.monotonic())

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.5)
    began = time.monotonic()
    stop.set()
    thread.join(10)
    assert ended
    assert ended[0] - began < 0.5  # 0.1 on a machine that does nothing else


def test_large_output_is_a_blob_and_goes_to_the_caller_as_it_arrives(place: Any) -> None:
    out, err = io.BytesIO(), io.BytesIO()
    outcome = place.run("seq 1 10000; echo e >&2", stdout=out, stderr=err)
    digest = outcome.result.stdout_digest
    content = place.blobs[f"{digest.hash}/{digest.size_bytes}"]
    assert content == b"".join(b"%d\n" % number for number in range(1, 10001)) == out.getvalue()
    assert not outcome.result.stdout_raw
    assert outcome.result.stderr_raw == err.getvalue() == b"e\n"


def test_output_without_end_ends_the_command(make_place: Callable[..., Any]) -> None:
    place = make_place(max_output="1M")
    outcome = place.run("yes")
    assert outcome.code == "RESOURCE_EXHAUSTED"
    assert outcome.result.stdout_digest.size_bytes == 1 << 20


def test_blobs_that_the_server_lacks_are_violations(place: Any) -> None:
    from sandboxlib._remote.stubs import error_details_pb

    root = place.root({"in.txt": b"gone"})
    digest = place.blobs.put(b"gone")
    del place.blobs[digest]
    outcome = place.run("true", root=root)
    assert (outcome.code, outcome.missing) == ("FAILED_PRECONDITION", (digest,))
    failure = error_details_pb.PreconditionFailure()
    assert outcome.status().details[0].Unpack(failure)
    assert [(each.type, each.subject) for each in failure.violations] == [
        ("MISSING", f"blobs/{digest}")
    ]


def test_the_metadata_tell_when_and_how_much(place: Any) -> None:
    from sandboxlib._remote.stubs import stats_pb, struct_pb

    metadata = place.run("seq 1 100000 > /dev/null").result.execution_metadata
    names = "worker_start input_fetch_start input_fetch_completed execution_start"
    names += " execution_completed output_upload_start output_upload_completed worker_completed"
    stamps = [getattr(metadata, f"{name}_timestamp").ToNanoseconds() for name in names.split()]
    assert stamps == sorted(stamps)
    assert stamps[0] > 0
    statistics, struct = stats_pb.ExecutionStatistics(), struct_pb.Struct()
    assert metadata.auxiliary_metadata[0].Unpack(statistics)
    assert metadata.auxiliary_metadata[1].Unpack(struct)
    assert statistics.command_rusage.maxrss > 0
    assert struct["peak_memory"] > 0
    assert struct["wall"] > 0


@pytest.mark.parametrize(
    ("outputs", "directory", "argument"),
    [
        ([], "f", ""),
        (["a" * 300], "", ""),
        (["/".join(["d" * 200] * 30)], "", ""),
        (["/".join(["d"] * 3000)], "", ""),
        ([], "/".join(["d" * 200] * 30), ""),
        ([], "", "x" * 200_000),
    ],
    ids=["file as directory", "name", "path", "depth", "directory", "argument"],
)
def test_what_only_the_action_is_at_fault_for_is_not_told_as_the_worker_s(
    place: Any, outputs: Any, directory: str, argument: str
) -> None:
    outcome = place.run(f"true {argument}", outputs, {"f": b"x"}, directory=directory)
    assert outcome.code == "INVALID_ARGUMENT", outcome.message


@pytest.mark.parametrize("call", ["fetch", "upload"])
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("UNAVAILABLE", "UNAVAILABLE"),
        ("DEADLINE_EXCEEDED", "UNAVAILABLE"),
        ("UNAUTHENTICATED", "UNAVAILABLE"),
        ("PERMISSION_DENIED", "UNAVAILABLE"),
        ("DATA_LOSS", "INTERNAL"),
    ],
)
def test_a_server_of_blobs_that_does_not_serve_this_machine_is_no_fault_of_the_action(
    place: Any, monkeypatch: pytest.MonkeyPatch, call: str, code: str, expected: str
) -> None:
    def fails(blobs: object) -> None:
        raise RemoteError("memory://", call, code, "as the test wants it")

    monkeypatch.setattr(place.blobs, call, fails)
    outcome = place.run("echo new > out", ["out"])
    assert (outcome.code, outcome.result) == (expected, None)
    assert "as the test wants it" in outcome.message
