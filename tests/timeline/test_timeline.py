# SPDX-License-Identifier: Apache-2.0
"""The timeline of a map: a file in the Trace Event Format, read as strictly as its readers do."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from lib.machine import require

from sandboxlib import (
    Overlay,
    Result,
    Sandbox,
    SandboxError,
    SpecError,
    SpecTypeError,
    Timeline,
)

SLACK = 0.002  # microseconds: the times are multiples of a nanosecond


def parsed(timeline: Timeline, file: Path) -> tuple[list[Any], list[Any]]:
    """The events of the saved file, and its metadata. AssertionError for all that the format
    forbids: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
    """
    timeline.save(file)
    trace = json.loads(file.read_text(), parse_constant=pytest.fail)
    assert set(trace) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert trace["displayTimeUnit"] in ("ms", "ns")
    events = [event for event in trace["traceEvents"] if event["ph"] != "M"]
    metadata = [event for event in trace["traceEvents"] if event["ph"] == "M"]
    for event in trace["traceEvents"]:
        assert isinstance(event["name"], str)
        assert type(event["pid"]) is int
        assert type(event["tid"]) is int
        assert event["tid"] != event["pid"], "it would be the main thread"
        assert type(event["ts"]) in (int, float)
        assert event["ts"] >= 0
        assert isinstance(event["args"], dict)
    for event in metadata:
        what, _, key = event["name"].partition("_")
        assert what in ("process", "thread")
        assert event["args"].keys() == {key}
    named = {(e["pid"], e["tid"]) for e in metadata if e["name"] == "thread_name"}
    processes = {e["pid"] for e in metadata if e["name"] == "process_name"}
    last: dict[tuple[int, int], float] = {}
    for event in events:
        row = event["pid"], event["tid"]
        assert row in named
        assert event["pid"] in processes
        assert event["ph"] in ("X", "i")
        assert event["ph"] == "X" or event["s"] in ("t", "p", "g")
        assert event["ts"] >= last.get(row, 0) - SLACK, "a row has two bars at a time"
        last[row] = event["ts"] + event.get("dur", 0)
    assert [e["ts"] for e in events] == sorted(e["ts"] for e in events)
    return events, metadata


def names(metadata: list[Any], what: str) -> list[str]:
    return [event["args"]["name"] for event in metadata if event["name"] == f"{what}_name"]


def result_of(exit: int = 0, began: float = 1.0, wall: float = 1.0, **fields: Any) -> Result:
    result = Result(exit, b"out", b"err", False, wall, "chroot")
    result.began = began
    result.__dict__.update(fields)
    return result


def test_a_map_has_a_row_for_each_job_and_a_bar_for_each_command(tmp_path: Path) -> None:
    timeline = Timeline()
    commands = [["sh", "-c", f"sleep 0.02; exit {number % 3}"] for number in range(12)]
    with Sandbox("/") as box:
        before = time.monotonic()
        list(box.map(commands, jobs=3, on_failure="continue", progress=timeline))
        after = time.monotonic()
    events, metadata = parsed(timeline, tmp_path / "trace.json")
    assert names(metadata, "process") == ["this machine"]
    assert set(names(metadata, "thread")) <= {"slot 1", "slot 2", "slot 3"}
    by_number = sorted(events, key=lambda event: event["args"]["number"])
    assert [event["args"]["exit"] for event in by_number] == [n % 3 for n in range(12)]
    assert by_number[4]["args"]["argv"] == "sh -c sleep 0.02; exit 1"
    assert by_number[4]["cat"] == "command,failed"
    assert by_number[3]["cat"] == "command"
    assert by_number[0]["args"]["executor"]
    for event in events:
        assert event["dur"] >= 20_000
        assert before * 1e6 <= event["ts"] + SLACK
        assert event["ts"] + event["dur"] <= after * 1e6
        assert event["args"]["usage"]["peak_memory"] > 0


def test_a_run_has_begun_when_it_was_called_and_not_when_its_result_is_taken() -> None:
    timeline = Timeline()
    with Sandbox("/") as box:
        result = box.run(["true"])
        assert 0 <= time.monotonic() - result.began < 60
        with box.start(["true"]) as process:
            process.wait()
        began = process.result().began
        assert result.began < began < time.monotonic()
    time.sleep(0.05)
    timeline.add(result)
    (event,) = (e for e in timeline.trace()["traceEvents"] if e["ph"] == "X")
    assert event["ts"] == pytest.approx(result.began * 1e6, abs=1)


def test_a_command_that_cannot_be_run_is_a_mark(tmp_path: Path) -> None:
    timeline = Timeline()
    with Sandbox("/") as box:
        words = [["true"], ["/no/such\x1b[31m/program"]]
        list(box.map(words, jobs=1, on_failure="continue", progress=timeline))
    events, _ = parsed(timeline, tmp_path / "trace.json")
    (mark,) = [event for event in events if event["ph"] == "i"]
    assert "No such file" in mark["args"]["error"]
    assert "\x1b" not in mark["args"]["error"] + mark["args"]["argv"] + mark["name"]


def test_commands_of_one_moment_get_rows_and_those_that_touch_share_one(tmp_path: Path) -> None:
    timeline = Timeline()
    for began in (1.1, 0.3, 0.2, 0.1):  # 0.1 + 0.2 is not 0.3 in floats
        timeline.add(result_of(began=began, wall=0.1))
    timeline.add(result_of(began=0.15, wall=5.0))
    events, metadata = parsed(timeline, tmp_path / "trace.json")
    assert names(metadata, "thread") == ["slot 1", "slot 2"]
    assert len({e["tid"] for e in events if e["dur"] < 1e6}) == 1


def test_workers_and_the_cache_have_rows_of_their_own(tmp_path: Path) -> None:
    timeline = Timeline()
    for name in ("b", "a", "b"):
        timeline.add(result_of(worker=name, executor="remote"))
    timeline.add(result_of(worker="a", executor="remote", cached=True))
    timeline.add(result_of())
    events, metadata = parsed(timeline, tmp_path / "trace.json")
    assert names(metadata, "process") == ["cache", "this machine", "worker a", "worker b"]
    cached = [event for event in events if event["args"]["cached"]]
    assert [event["cat"] for event in cached] == ["command,cached"]


def test_a_name_is_the_caller_s(tmp_path: Path) -> None:
    timeline = Timeline(name=lambda result: f"step {result.number}")
    timeline.add(result_of(number=7))
    assert parsed(timeline, tmp_path / "trace.json")[0][0]["name"] == "step 7"


def test_odd_words_are_text(tmp_path: Path) -> None:
    timeline = Timeline()
    with Sandbox("/") as box:
        timeline.add(box.run([b"/bin/echo", b"\xff\xfe", "\u202e", "long" * 1000]))
    ((event,), _) = parsed(timeline, tmp_path / "trace.json")
    assert len(event["name"]) <= 60
    assert len(event["args"]["argv"]) <= 1000
    assert event["args"]["argv"].startswith(r"/bin/echo \udcff\udcfe \u202e long")


def test_what_a_run_lacks_and_hit_is_told(tmp_path: Path) -> None:
    timeline = Timeline()
    late = result_of(exit=-9, limits_hit=("memory", "pids"))
    late.timed_out = True
    timeline.add(late)
    args = parsed(timeline, tmp_path / "trace.json")[0][0]["args"]
    assert args["timed_out"] is True
    assert args["limits_hit"] == "memory, pids"
    assert args["exit"] == -9


def test_a_timeline_keeps_no_outputs(shared_rootfs: Path) -> None:
    timeline = Timeline()
    with Sandbox(Overlay(shared_rootfs)) as box:
        require(not box.lacks(), "there are no overlays for this caller")
        timeline.add(box.run(["touch", "/out/x"], outputs=["/out/x"], check=True))
    (noted,) = timeline._noted
    assert noted.result is not None
    assert (noted.result.out, noted.result.err, noted.result._outputs) == (None, None, None)


def test_threads_share_a_timeline(tmp_path: Path) -> None:
    timeline = Timeline()

    def add() -> None:
        for _ in range(200):
            timeline.add(result_of())

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(parsed(timeline, tmp_path / "trace.json")[0]) == 800


def test_an_empty_timeline_is_a_trace(tmp_path: Path) -> None:
    assert parsed(Timeline(), tmp_path / "trace.json") == ([], [])


def test_save_replaces_a_file_and_leaves_nothing_of_a_failure(tmp_path: Path) -> None:
    (tmp_path / "trace.json").write_text("old")
    Timeline().save(tmp_path / "trace.json")
    Timeline().save(str(tmp_path / "trace.json"))
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"] == []
    (tmp_path / "directory").mkdir()
    with pytest.raises(IsADirectoryError):
        Timeline().save(tmp_path / "directory")
    with pytest.raises(FileNotFoundError):
        Timeline().save(tmp_path / "no" / "trace.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "trace.json"]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(SpecTypeError, match="name is not a function"):
        Timeline(name="x")  # type: ignore[arg-type]
    with pytest.raises(SpecTypeError, match="neither a Result"):
        Timeline().add((0, b"", b""))  # type: ignore[arg-type]
    with pytest.raises(SpecTypeError, match="returned no str"):
        Timeline(name=lambda _: 3).add(result_of())  # type: ignore[arg-type,return-value]
    with pytest.raises(SpecError):
        Timeline(nam=len)  # type: ignore[arg-type]
    with pytest.raises(SpecError):
        Timeline().save("a\0b")
    Timeline().add(SandboxError("an error is noted"))


def test_importing_sandboxlib_imports_no_timeline() -> None:
    code = "import sandboxlib, sys; sandboxlib.Sandbox\n"
    code += "print([m for m in sys.modules if '_timeline' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
