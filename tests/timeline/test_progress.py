# SPDX-License-Identifier: Apache-2.0
"""Progress of a map: lines in a file, a bar on a terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from lib.machine import require

from sandboxlib import Progress, Result, Sandbox, SandboxError, SpecError, SpecTypeError

LINE = re.compile(r"^(?:(.+): )?(\d+)(?:/(\d+))? \((?:(\d+) failed, )?(?:(\d+) cached, )?[\d.]+ a")


def figures(text: str) -> list[tuple[str | Any, ...]]:
    """(title, ended, total, failures, hits) of each line."""
    found = [LINE.match(line) for line in text.splitlines()]
    assert all(found), text
    return [each.groups() for each in found if each]


def result_of(exit: int = 0, cached: bool = False) -> Result:
    result = Result(exit, b"", b"")
    result.cached = cached
    return result


def test_a_map_tells_its_total_and_each_line_its_figures() -> None:
    file = io.StringIO()
    with Sandbox("/") as box, Progress("compile", file=file, every=0) as progress:
        commands = [["sh", "-c", f"exit {number}"] for number in (0, 1, 0, 2)]
        list(box.map(commands, jobs=2, on_failure="continue", progress=progress))
    lines = figures(file.getvalue())
    assert [line[:3] for line in lines] == [("compile", str(n), "4") for n in (1, 2, 3, 4)]
    assert lines[-1][3] == "2"


@pytest.mark.parametrize("kind", ["generator", "set", "dict"])
def test_the_total_is_known_where_the_commands_have_a_length(kind: str) -> None:
    file = io.StringIO()
    argvs = {"true": 1, "/bin/true": 2}
    chosen: Any = {"generator": (word for word in argvs), "set": set(argvs), "dict": argvs.keys()}
    with Sandbox("/") as box, Progress(file=file) as progress:
        list(box.map(chosen[kind], progress=progress))
    assert figures(file.getvalue())[-1][:3] == (None, "2", None if kind == "generator" else "2")


def test_a_session_and_the_map_of_several_sandboxes_tell_it_too() -> None:
    import sandboxlib

    for way in ("session", "several"):
        file = io.StringIO()
        with Sandbox("/") as box, Progress(file=file) as progress:
            if way == "session":
                with box.session() as session:
                    list(session.map([["true"]] * 3, progress=progress))
            else:
                list(sandboxlib.map([(box, ["true"])] * 3, progress=progress))
        assert figures(file.getvalue())[-1][:3] == (None, "3", "3")


def test_lines_come_each_so_many_seconds_and_at_the_end() -> None:
    file = io.StringIO()
    progress = Progress(total=50, file=file, every=3600)
    for number in range(1, 50):
        progress(number, result_of())
    assert file.getvalue() == ""
    progress(50, result_of(cached=True))
    assert figures(file.getvalue()) == [(None, "50", "50", None, "1")]
    progress.end()
    assert len(figures(file.getvalue())) == 1


def test_the_end_is_shown_after_an_exception_once() -> None:
    file = io.StringIO()
    progress = Progress(file=file)
    with suppress(KeyboardInterrupt), progress:
        progress(1, SandboxError("it cannot be run"))
        raise KeyboardInterrupt
    assert figures(file.getvalue()) == [(None, "1", None, "1", None)]
    assert str(progress).startswith("1 (1 failed, ")


def test_without_a_command_it_writes_nothing() -> None:
    file = io.StringIO()
    with Progress(file=file):
        pass
    assert file.getvalue() == ""


def test_a_total_that_was_given_stays() -> None:
    progress = Progress(total=7, file=io.StringIO())
    progress.begin(3)
    assert str(progress).startswith("0/7 (")


def test_threads_share_a_progress() -> None:
    progress = Progress(file=io.StringIO())
    work = [result_of()] * 500
    threads = [
        threading.Thread(target=lambda: [progress(1, each) for each in work]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert str(progress).startswith("2000 (")


@pytest.mark.parametrize(
    "options",
    [{"title": 1}, {"total": -1}, {"total": "3"}, {"total": True}, {"every": -1}, {"evry": 1}],
    ids=lambda options: "-".join(map(str, options.items())),
)
def test_wrong_arguments_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises((SpecError, SpecTypeError)):
        Progress(**options)


def test_a_function_without_begin_is_called_as_before() -> None:
    seen = []
    with Sandbox("/") as box:
        list(box.map([["true"]] * 2, progress=lambda ended, _: seen.append(ended)))
    assert seen == [1, 2]


# ---- on a terminal ---------------------------------------------------------------------------

PROGRAM = """
    import sys
    if {without_rich}:
        sys.modules["rich"] = None
    from sandboxlib import Progress, Result
    with Progress("a [b]bold[/b] \\x1b title", total=3, every=0) as progress:
        for number in (1, 2, 3):
            progress(number, Result(number - 1, b"", b""))
    print("threads", __import__("threading").active_count())
"""


def on_terminal(without_rich: bool) -> Iterator[bytes]:
    ours, theirs = pty.openpty()
    code = textwrap.dedent(PROGRAM.format(without_rich=without_rich))
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=theirs, stdout=subprocess.PIPE, env=env
    ) as process:
        os.close(theirs)
        while True:
            try:
                yield os.read(ours, 65536)
            except OSError:  # EIO: the program has ended
                break
        os.close(ours)
        assert process.communicate()[0] == b"threads 1\n"
        assert process.returncode == 0


def test_on_a_terminal_it_is_a_bar_and_the_cursor_comes_back() -> None:
    require(__import__("importlib").util.find_spec("rich"), "rich is not installed")
    text = b"".join(on_terminal(without_rich=False)).decode()
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "a [b]bold[/b] \\x1b title" in plain
    assert "━" in plain
    assert "3/3 (2 failed, " in plain
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1


def test_on_a_terminal_without_rich_it_writes_lines() -> None:
    text = b"".join(on_terminal(without_rich=True)).decode()
    assert [line[1] for line in figures(text)] == ["1", "2", "3"]
    assert "\x1b" not in text
