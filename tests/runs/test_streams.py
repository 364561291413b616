# SPDX-License-Identifier: Apache-2.0
"""Streams: the input of a command, and the ways that its output takes while it runs.

An ordinary user runs all of it as well, in a user namespace: see the end.
"""

from __future__ import annotations

import array
import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import python, require
from lib.names import name_of
from lib.waiting import late, processes, wait_until

import sandboxlib
from sandboxlib import (
    CAPTURE,
    STDOUT,
    Command,
    Limits,
    Lines,
    Policy,
    Result,
    SetupError,
    SpecError,
    SpecTypeError,
    Tee,
    UnsupportedError,
    run_sandbox,
)
from sandboxlib._choice import choose
from sandboxlib._core import native as _native
from sandboxlib._runs import run as _process
from sandboxlib._runs.job import job_of

IS_ROOT = os.geteuid() == 0
PYTHON = [os.path.realpath(sys.executable), "-I", "-S", "-c"]
BARE = {"mounts": "undefined", "processes": "undefined", "ipc": "undefined"}
PLACES: dict[str, dict[str, Any]] = {
    "slot": {},
    "fresh": {},
    "init=False": {"init": False},
    "processes=undefined": {"processes": "undefined"},
    "bare": BARE,
}
MIB = 1 << 20

Run = Callable[..., Result]


def _needs(name: str) -> list[pytest.MarkDecorator]:
    reason = "an ordinary user has a root of its own by mounting alone"
    skipped = not IS_ROOT and "mounts" in PLACES[name]
    return [pytest.mark.skip(reason=reason)] if skipped else []


@pytest.fixture(autouse=True, scope="module")
def can_run() -> None:
    reason = sandboxlib.get_executor("chroot" if IS_ROOT else "user_namespace").why_not()
    require(not reason, reason)


@pytest.fixture(params=[pytest.param(name, marks=_needs(name)) for name in PLACES])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a command, or a script of the shell, in each kind of place."""
    with open_box("/", **PLACES[request.param]) as box:

        def call(command: str | list[str], **words: Any) -> Result:
            if isinstance(command, str):
                command = ["sh", "-c", command]
            return box.run(command, **{"timeout": 60, "fresh": request.param == "fresh", **words})

        yield call


@pytest.fixture
def host() -> Callable[..., Any]:
    """Runs a Python script in a process that has descriptors of its own; what it prints as JSON."""

    def call(script: str, *words: object) -> Any:
        argv = [*python(), "-W", "error", "-c", script, *map(json.dumps, words)]
        env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        done = subprocess.run(
            argv, env=env, capture_output=True, text=True, timeout=50, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


class Dialogue:
    """A command's stdin, and a function that answers what it says."""

    def __init__(self) -> None:
        self.stdin, self._answers = os.pipe()
        self.heard: list[bytes] = []

    def answer(self, data: bytes) -> None:
        self.heard.append(data)
        os.write(self._answers, b"go on\n")

    def close(self) -> None:
        os.close(self.stdin)
        os.close(self._answers)


@pytest.fixture
def dialogue() -> Iterator[Dialogue]:
    made = Dialogue()
    yield made
    made.close()


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


# ---- stdin ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        bytes(range(256)) * (5 * MIB // 256),
        bytearray(b"array"),
        memoryview(b"a-b-c-")[::2],
        memoryview(array.array("i", [1, 2])),
    ],
    ids=["none", "one", "5 MiB", "bytearray", "not contiguous", "numbers"],
)
def test_stdin_from_memory(run: Run, content: Any) -> None:
    assert run("cat", stdin=content) == (0, bytes(content), b"")


def test_stdin_from_files_descriptors_and_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"file")
    with open(tmp_path / "in", "rb") as file:
        assert run("cat", stdin=file).out == b"file"
        os.lseek(file.fileno(), 2, os.SEEK_SET)
        assert run("cat", stdin=file.fileno()).out == b"le"
    assert run("cat").out == b""
    assert run("cat; echo said; exec >&0; echo nobody").out == b"said\n"


def test_stdin_from_a_pipe_is_read_while_somebody_writes(run: Run, dialogue: Dialogue) -> None:
    script = "for i in 1 2 3; do echo $i; read answer; done; echo $answer"
    result = run(script, stdin=dialogue.stdin, stdout=dialogue.answer)
    assert result == (0, None, b"")
    assert dialogue.heard == [b"1\n", b"2\n", b"3\n", b"go on\n"]


# ---- where output goes ---------------------------------------------------------------------------


def test_a_function_is_called_while_the_command_runs(run: Run, dialogue: Dialogue) -> None:
    # The command goes on when it is answered, and the answer comes from the function.
    script = "echo one; read x; echo two >&2; read x; echo three; exit 5"
    words = {"stdin": dialogue.stdin, "stdout": dialogue.answer, "stderr": dialogue.answer}
    result = run(script, **words)
    assert dialogue.heard == [b"one\n", b"two\n", b"three\n"]
    assert result == (5, None, None)
    assert (result.out_size, result.err_size) == (10, 4)


def test_an_appended_file_has_both_outputs_in_order(run: Run, tmp_path: Path) -> None:
    script = "for i in 1 2 3 4; do echo o$i; echo e$i >&2; done"
    expected = b"".join(b"o%d\ne%d\n" % (i, i) for i in range(1, 5))
    (tmp_path / "log").write_bytes(b"before\n")
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_APPEND)
    assert run(script, stdout=fd, stderr=STDOUT) == (0, None, None)
    os.write(fd, b"after\n")
    os.close(fd)
    assert (tmp_path / "log").read_bytes() == b"before\n" + expected + b"after\n"
    # One description without O_APPEND as well: a second one would write over the first.
    with open(tmp_path / "log", "wb") as file:
        result = run(script, stdout=file, stderr=STDOUT)
    assert (tmp_path / "log").read_bytes() == expected
    assert (result.out_size, result.err_size) == (None, None)


@pytest.mark.parametrize("kind", ["captured", "function", "lines", "tee"])
def test_stderr_goes_where_stdout_goes(run: Run, kind: str) -> None:
    said: list[bytes] = []
    log = io.BytesIO()
    outputs: dict[str, Any] = {
        "captured": CAPTURE,
        "function": said.append,
        "lines": Lines(said.append),
        "tee": Tee(log),
    }
    result = run("echo 1; echo 2 >&2; echo 3", stdout=outputs[kind], stderr=STDOUT)
    assert (result.out or b"".join(said) or log.getvalue()) == b"1\n2\n3\n"
    assert (result.err, result.out_size, result.err_size) == (None, 6, None)


def test_lines_come_whole(run: Run, dialogue: Dialogue) -> None:
    lines: list[bytes] = []
    script = (
        "printf ab; echo >&2; read x; printf 'c\\n\\nd'; echo >&2; read x; printf 'e\\0\\nlast'"
    )
    words = {"stdin": dialogue.stdin, "stdout": Lines(lines.append), "stderr": dialogue.answer}
    assert run(script, **words) == (0, None, None)
    assert lines == [b"abc\n", b"\n", b"de\0\n", b"last"]
    lines.clear()
    run("echo 1; echo; echo 3", stdout=Lines(lines.append))
    assert lines == [b"1\n", b"\n", b"3\n"]


def test_long_lines(run: Run) -> None:
    lines: list[bytes] = []
    script = f"head -c {10 * MIB} /dev/zero; echo; head -c 70000 /dev/zero | tr '\\0' x"
    assert run(script, stdout=Lines(lines.append)).out_size == 10 * MIB + 1 + 70000
    assert [len(line) for line in lines] == [10 * MIB + 1, 70000]
    assert lines == [b"\0" * 10 * MIB + b"\n", b"x" * 70000]


def test_a_tee_has_all_in_its_file_and_both_ends_in_the_result(run: Run, tmp_path: Path) -> None:
    whole = b"".join(b"%d\n" % number for number in range(1, 200_001))
    with open(tmp_path / "log", "wb") as log:
        result = run("seq 200000", stdout=Tee(log, keep_head=10, keep_tail=100))
    assert (tmp_path / "log").read_bytes() == whole
    left_out = b"\n... %d bytes left out ...\n" % (len(whole) - 110)
    assert result.out == whole[:10] + left_out + whole[-100:]
    assert result.out_size == len(whole)


@pytest.mark.parametrize(
    ("head", "tail", "kept"),
    [
        (0, 0, None),
        (4, 0, b"0123\n... 6 bytes left out ...\n"),
        (0, 3, b"\n... 7 bytes left out ...\n789"),
        (4, 5, b"0123\n... 1 bytes left out ...\n56789"),
        (4, 6, b"0123456789"),
        (10, 0, b"0123456789"),
        (99, 99, b"0123456789"),
    ],
)
def test_what_a_tee_keeps(run: Run, head: int, tail: int, kept: bytes | None) -> None:
    log = io.BytesIO()
    result = run("printf 01234; printf 56789", stdout=Tee(log, keep_head=head, keep_tail=tail))
    assert (result.out, log.getvalue()) == (kept, b"0123456789")


def test_a_tee_is_written_while_the_command_runs(run: Run, tmp_path: Path) -> None:
    # The command waits until its own log has what it wrote.
    script = f"echo begin; until grep -q begin {tmp_path}/log; do sleep 0.01; done; echo end"
    with open(tmp_path / "log", "wb") as log:
        assert run(script, stdout=Tee(log)).exit == 0
    assert (tmp_path / "log").read_bytes() == b"begin\nend\n"


def test_both_outputs_may_have_one_tee(run: Run) -> None:
    reader, writer = os.pipe()
    tee = Tee(writer, keep_tail=3)
    assert run("echo out; echo err >&2", stdout=tee, stderr=tee)[1:] == (
        b"\n... 1 bytes left out ...\nut\n",
        b"\n... 1 bytes left out ...\nrr\n",
    )
    assert sorted(os.read(reader, 100).split()) == [b"err", b"out"]
    os.close(reader)
    os.close(writer)


def test_standard_output_as_a_tee(host: Callable[..., Any]) -> None:
    script = """
import sys
from sandboxlib import Sandbox
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
from sandboxlib._spec.streams import Tee
sys.stdout.write('["before", ')
Sandbox("/").run(["echo", '"said"'], stdout=Tee(sys.stdout))
print(', "after"]')
"""
    assert host(script) == ["before", "said", "after"]


def test_a_tee_waits_for_a_pipe_that_is_full_and_does_not_block(run: Run) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    reading = subprocess.Popen(["sh", "-c", "sleep 0.2; wc -c"], stdin=reader, stdout=-1)
    os.close(reader)
    with open(writer, "wb", buffering=0) as raw:
        assert run("head -c 200000 /dev/zero", stdout=Tee(raw)).exit == 0
        assert run("head -c 200000 /dev/zero", stdout=Tee(writer)).exit == 0
    with open(os.dup(reading.stdout.fileno()) if reading.stdout else 0, "rb") as counted:
        assert int(counted.read()) == 400_000
    assert reading.wait() == 0
    assert reading.stdout is not None
    reading.stdout.close()


# ---- how much ------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_overflow", ["truncate", "kill"])
@pytest.mark.parametrize("size", [0, 1, 99, 100])
def test_output_up_to_the_most_is_not_touched(run: Run, size: int, on_overflow: str) -> None:
    words: dict[str, Any] = {"max_output": 100, "on_overflow": on_overflow}
    result = run(f"head -c {size} /dev/zero; exit 3", **words)
    assert result == (3, bytes(size), b"")
    assert (result.out_size, result.err_size, result.limits_hit) == (size, 0, ())


@pytest.mark.parametrize("size", [101, 65_536, 65_637, 10 * MIB])
def test_what_is_too_much_is_counted_and_thrown_away(run: Run, size: int) -> None:
    result = run(f"head -c {size} /dev/zero; echo end >&2; exit 3", max_output=100)
    assert result == (3, bytes(100), b"end\n")
    assert (result.out_size, result.err_size) == (size, 4)
    assert result.limits_hit == ("output",)
    assert not result.timed_out


def test_a_limit_of_nothing(run: Run) -> None:
    result = run("echo x; echo >&2 -n", max_output=0)
    assert (result.out, result.out_size, result.limits_hit) == (b"", 2, ("output",))
    assert run("true", max_output=0).limits_hit == ()


def test_both_outputs_are_counted_apart(run: Run) -> None:
    result = run("head -c 60 /dev/zero; head -c 70 /dev/zero >&2", max_output=65)
    assert result == (0, bytes(60), bytes(65))
    assert (result.out_size, result.err_size, result.limits_hit) == (60, 70, ("output",))
    result = run("head -c 60 /dev/zero; head -c 60 /dev/zero >&2", max_output=65, stderr=STDOUT)
    assert (result.out, result.out_size, result.err_size) == (bytes(65), 120, None)


def test_sizes_without_a_limit(run: Run) -> None:
    for size in (0, 1, 10 * MIB):
        result = run(f"head -c {size} /dev/zero; echo err >&2")
        assert (result.out_size, result.err_size) == (size, 4)


def test_too_much_output_ends_a_command_that_would_never_end(run: Run) -> None:
    chunks: list[bytes] = []
    for words, kept in (
        ({}, lambda result: result.out),
        ({"stdout": chunks.append}, lambda result: b"".join(chunks)),
        ({"stdout": Tee(io.BytesIO(), keep_head=9999)}, lambda result: result.out),
    ):
        result = run("yes; echo unreached", max_output=1000, on_overflow="kill", **words)
        assert result.exit == -9
        assert kept(result) == b"y\n" * 500
        assert result.limits_hit == ("output",)
        assert result.out_size is not None
        assert result.out_size > 1000
        assert not result.timed_out


def test_a_line_that_is_cut_off(run: Run) -> None:
    lines: list[bytes] = []
    result = run("echo one; echo two", max_output=6, stdout=Lines(lines.append))
    assert lines == [b"one\n", b"tw"]
    assert result.out_size == 8


# ---- functions that fail, or do more -------------------------------------------------------------


class Trouble(Exception):
    pass


def fail(data: bytes) -> None:
    raise Trouble(data)


@pytest.mark.parametrize("output", [fail, Lines(fail)], ids=["function", "lines"])
def test_an_exception_in_a_function_ends_the_run(
    run: Run, output: Any, request: pytest.FixtureRequest
) -> None:
    place = PLACES[request.node.callspec.params["run"]]
    mark = f"{os.getpid()}.3141592"
    script = f"(trap '' TERM; sleep {mark}; sleep {mark}) & echo x; sleep {mark}"
    if place.get("processes") != "undefined":  # else it would escape: docs/slots.md
        script = f"setsid sleep {mark} & {script}"
    before = descriptors()
    for _ in range(3):
        with pytest.raises(Trouble, match="x"):
            run(script, stdout=output)
    assert wait_until(lambda: not processes(mark))
    assert run("true").exit == 0
    assert len(descriptors() - before) <= 4  # those of a slot, and the reaper's program


def test_an_exception_from_the_last_line(run: Run) -> None:
    with pytest.raises(Trouble, match="rest"):
        run("printf rest", stdout=Lines(fail))


def test_a_function_may_run_sandboxes(run: Run) -> None:
    said: list[bytes | None] = []

    def again(data: bytes) -> None:
        said.append(data)
        said.append(run(["cat"], stdin=data, stdout=CAPTURE, max_output=2).out)

    assert run("echo one; echo err >&2", stdout=again) == (0, None, b"err\n")
    assert said == [b"one\n", b"on"]


@pytest.mark.parametrize("buffered", [True, False, None], ids=["buffered", "raw", "descriptor"])
def test_a_tee_that_cannot_be_written_ends_the_run(run: Run, buffered: bool | None) -> None:
    require(os.path.exists("/dev/full"), "there is no /dev/full")
    file: Any = os.open("/dev/full", os.O_WRONLY)
    if buffered is not None:
        file = open(file, "wb", buffering=-1 if buffered else 0)  # noqa: SIM115
    mark = f"{os.getpid()}.2718281"
    with pytest.raises(OSError, match="No space left"):
        run(f"echo x; sleep {mark}", stdout=Tee(file))
    assert wait_until(lambda: not processes(mark))
    if buffered is None:
        os.close(file)
    else:
        with contextlib.suppress(OSError):  # what could not be written is tried once more
            file.close()


def test_a_tee_into_a_pipe_that_nobody_reads_ends_the_run(run: Run) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        run("echo x; sleep 60", stdout=Tee(writer))
    os.close(writer)


def test_a_tee_to_what_is_closed_is_refused(run: Run, tmp_path: Path) -> None:
    fd = closed()
    with pytest.raises(SpecError, match=f"the file of a Tee is {fd}: Bad file descriptor"):
        run("echo x", stdout=Tee(fd))
    with open(tmp_path / "log", "wb") as file:
        tee = Tee(file)
        assert run("echo x", stdout=tee).exit == 0
    with pytest.raises(SpecError, match="is closed"):
        run("echo x", stdout=tee)


# ---- descriptors ---------------------------------------------------------------------------------

_HOST = """
import fcntl, json, os, resource, sys
from sandboxlib import Sandbox
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
words, numbers, options, limit = map(json.loads, sys.argv[1:])
if numbers:
    sources = []
    for number in numbers:
        fd = os.memfd_create("given")
        os.write(fd, b"%d" % number)
        sources.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 300))
        os.close(fd)
    for number, source in zip(numbers, sources):
        os.dup2(source, number, inheritable=False)
        os.close(source)
for number in {3, 4, 5} - set(numbers):  # the host's own, which another program would inherit
    os.dup2(0, number, inheritable=True)
if limit:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
script = '''
import os
for fd in sorted(map(int, os.listdir("/proc/self/fd"))):
    try:
        print(fd, os.pread(fd, 9, 0).decode() if fd > 2 else "")
    except OSError as error:
        if error.errno != 9:
            print(fd, error)
'''
result = open_box("/", **words).run([%r, "-I", "-S", "-c", script], pass_fds=numbers, **options)
assert result.exit == 0, result
print(json.dumps([line.split() for line in result.out.decode().splitlines()]))
""".replace("%r", repr(PYTHON[0]))


@pytest.mark.parametrize("name", [pytest.param(name, marks=_needs(name)) for name in PLACES])
@pytest.mark.parametrize(
    ("numbers", "limit"),
    [
        ([], 0),
        ([3], 0),
        ([3, 4], 0),
        ([4], 0),
        ([5], 0),
        ([3, 4, 5, 10, 11, 200], 0),
        ([200, 11, 10, 5, 4, 3], 0),
        ([6, 7, 8, 9], 0),
        (list(range(3, 35)), 0),
        (list(range(3, 35)), 64),
        (list(range(20, 52)), 64),
        ([*range(5, 36), 999], 0),
        ([3, 29], 30),
    ],
)
def test_passed_descriptors_keep_their_numbers_and_nothing_else_is_open(
    host: Callable[..., Any], name: str, numbers: list[int], limit: int
) -> None:
    found = host(_HOST, PLACES[name], numbers, {"fresh": name == "fresh"}, limit)
    assert found == [["0"], ["1"], ["2"], *([str(n), str(n)] for n in sorted(numbers))]


def test_passed_descriptors_and_other_outputs(run: Run) -> None:
    reader, writer = os.pipe()
    lines: list[bytes] = []
    script = f"echo passed > /proc/self/fd/{writer}; echo line; echo err >&2"
    words: dict[str, Any] = {"pass_fds": [writer, writer], "stdout": Lines(lines.append)}
    assert run(script, **words, max_output=2) == (0, None, b"er")
    assert (os.read(reader, 99), lines) == (b"passed\n", [b"li"])
    with open(writer, "wb") as file:
        assert run(f"echo file > /proc/self/fd/{writer}", pass_fds={file}) == (0, b"", b"")
        assert os.read(reader, 99) == b"file\n"
        assert run(f"echo file > /proc/self/fd/{writer}").exit == 2
    os.close(reader)


def test_descriptors_that_change_places(host: Callable[..., Any]) -> None:
    script = """
import json, os, sys
from sandboxlib import Sandbox
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
said = []
for words in ({}, {"init": False}, {"processes": "undefined"}):
    for fresh in (True, False):
        reader, writer = os.pipe()
        kept = [os.dup(fd) for fd in (0, 1)]
        os.dup2(writer, 0)
        given = os.memfd_create("in")
        os.write(given, b"ring")
        os.lseek(given, 0, 0)
        os.dup2(given, 1)
        result = open_box("/", **words).run(["cat"], stdin=1, stdout=0, stderr=2, fresh=fresh)
        for number, fd in enumerate(kept):
            os.dup2(fd, number)
            os.close(fd)
        os.close(writer)
        said.append([result.exit, os.read(reader, 99).decode()])
print(json.dumps(said))
"""
    assert host(script) == [[0, "ring"]] * 6


def test_a_cgroup_with_a_low_number_is_not_written_over(host: Callable[..., Any]) -> None:
    # In place of cgroup.procs there are pipes: what joins writes its "0" there.
    script = """
import json, os, sys
from sandboxlib import Sandbox
from sandboxlib._cgroups.counts import Counts
from sandboxlib._choice import choose as _ladder
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
class Cgroup:
    unified = 0
    def __init__(self, procs): self.procs = procs
    def take(self, limits): return self
    def begin(self, more=0): pass
    def counts(self): return Counts((), (), (), True)
    def release(self): pass
said = []
for words in ({}, {"init": False}, {"processes": "undefined"}):
    for number in (3, 4, 5, 10):
        reader, writer = os.pipe()
        kept = os.dup2(reader, 60), os.dup2(writer, 61)
        os.closerange(3, 60)
        os.dup2(61, number)
        os.dup2(61, 12)
        box = open_box("/", **words)
        plan = _ladder.native_executor_of(box).plan_of(box)
        plan.cgroups, plan.is_limited = Cgroup((number,)), True
        result = box.run(["true"], fresh=True, pass_fds=[12])
        said.append([result.exit, os.read(60, 99).decode()])
        os.close(number)
print(json.dumps(said))
"""
    assert host(script) == [[0, "0"]] * 12


# ---- terminals -----------------------------------------------------------------------------------


def test_a_pty_is_the_terminal_of_the_command(run: Run) -> None:
    require(os.path.exists("/dev/tty"), "there is no /dev/tty")
    script = (
        "test -t 0 && test -t 1 && test -t 2 && stty size; echo err >&2; "
        "echo told > /dev/tty; ps -o tty= -p $$ > /dev/null"
    )
    result = run(script, pty=True)
    assert result == (0, b"24 80\r\nerr\r\ntold\r\n", None)
    assert (result.out_size, result.err_size) == (18, None)
    assert run("stty size", pty=(50, 132)).out == b"50 132\r\n"
    session = "import os; print(os.getsid(0) == os.getpid() == os.tcgetpgrp(0), os.isatty(1))"
    assert run([*PYTHON, session], pty=True).out == b"True True\r\n"


def test_a_pty_has_a_name_where_the_callers_dev_is() -> None:
    # The minimal /dev has pseudo-terminals of its own, and this one is the caller's.
    require(os.path.exists("/dev/pts"), "the caller has no /dev/pts")
    out = open_box("/", devices="root").run(["tty"], pty=True).out
    assert out is not None
    assert out.startswith(b"/dev/pts/")
    assert open_box("/").run(["tty"], pty=True).out == b"not a tty\r\n"


def test_a_pty_with_sinks_and_limits(run: Run) -> None:
    lines: list[bytes] = []
    assert run("echo 1; echo 2 >&2", pty=True, stdout=Lines(lines.append)) == (0, None, None)
    assert lines == [b"1\r\n", b"2\r\n"]
    log = io.BytesIO()
    assert run("echo 1", pty=True, stdout=Tee(log, keep_head=1), stderr=STDOUT).exit == 0
    assert log.getvalue() == b"1\r\n"
    result = run("yes", pty=True, max_output=30, on_overflow="kill")
    assert (result.exit, result.out, result.limits_hit) == (-9, b"y\r\n" * 10, ("output",))
    result = run("seq 9; exit 4", pty=True, max_output=3)
    assert (result.exit, result.out, result.out_size) == (4, b"1\r\n", 27)


def test_a_pty_that_fills_up(run: Run) -> None:
    assert run("seq 30000", pty=True).out == b"".join(b"%d\r\n" % n for n in range(1, 30001))


def test_a_pty_nobody_types_at(run: Run) -> None:
    result = late(
        lambda timeout: run("echo begun; cat", pty=True, timeout=timeout),
        lambda result: result.out,
    )
    assert result.out == b"begun\r\n"


@pytest.mark.parametrize("count", [0, 1, 4095, 4096, 8000])
def test_all_that_a_terminal_holds_at_the_end_is_read(count: int) -> None:
    # The command is dead before the first look. FIONREAD tells no more than 4095.
    box = open_box("/")
    plan = choose.native_executor_of(box).plan_of(box)
    script = f"import os\nassert os.write(1, b'x' * {count}) == {count}"
    command = Command([*PYTHON, script], "/", pty=True)
    run = _process.Run(plan, job_of(command, plan.box), command)
    run.start(fresh=True)
    assert select.select([run.struct.pidfd], [], [], 30)[0]
    while not run.follow(_native.lib.sbx_pump(run.struct, run.wait())):
        pass
    assert run.result("", 0.0, {}) == (0, b"x" * count, None)
    _native.lib.sbx_end(run.struct)
    run.release()


@pytest.mark.parametrize("script", ["sleep 30", "exec yes"])
def test_a_daemon_that_holds_the_terminal_does_not_hold_the_caller(run: Run, script: str) -> None:
    result = run(f"setsid sh -c '{script}' & echo pid $!; sleep 0.1; echo end", pty=True)
    assert result.exit == 0
    assert result.wall < 20
    assert result.out is not None
    assert b"end\r\n" in result.out
    pid = int(result.out.partition(b"pid ")[2].split()[0])
    if any(pid == int(one) for one in processes("sleep 30")):  # processes are not isolated
        os.kill(pid, signal.SIGKILL)


_TYPES = """
import fcntl, json, os, sys, termios
from sandboxlib import Sandbox
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
words, options = map(json.loads, sys.argv[1:])
os.setsid()
master, slave = os.openpty()
fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
script = '''
import fcntl, termios
said = []
for name, argument in (
    ("TIOCSTI", b"x"), ("TIOCSCTTY", 0), ("TIOCSCTTY", 1), ("TIOCSTI", b"x"),
    ("TIOCLINUX", bytes([3]))
):
    try:
        fcntl.ioctl(0, getattr(termios, name), argument)
        said.append("done")
    except OSError as error:
        said.append(error.errno)
try:
    open("/dev/tty")
    said.append("opened")
except OSError as error:
    said.append(error.errno)
print(said)
'''
result = open_box("/", **words).run([%r, "-I", "-S", "-c", script], stdin=slave, **options)
assert result.exit == 0, result
typed = int.from_bytes(fcntl.ioctl(slave, termios.FIONREAD, bytes(4)), sys.byteorder)
os.set_blocking(master, False)
try:
    seen = os.read(master, 99).decode()
except BlockingIOError:
    seen = ""
print(json.dumps([json.loads(result.out), typed, seen]))
""".replace("%r", repr(PYTHON[0]))


@pytest.mark.parametrize("name", [pytest.param(name, marks=_needs(name)) for name in PLACES])
def test_the_terminal_of_the_caller_is_out_of_reach(host: Callable[..., Any], name: str) -> None:
    said, typed, seen = host(_TYPES, PLACES[name], {"fresh": name == "fresh"})
    assert set(said[:4]) <= {1, 5}  # EPERM, EIO
    assert isinstance(said[4], int)
    assert said[5] in (2, 6)  # ENOENT, ENXIO
    assert (typed, seen) == (0, "")


# ---- what makes no sense -------------------------------------------------------------------------


def closed() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    return writer


@pytest.mark.parametrize(
    "words",
    [
        {"grace": -1},
        {"grace": float("nan")},
        {"max_output": -1},
        {"max_output": 5, "stdout": None, "stderr": None},
        {"on_overflow": "explode"},
        {"on_overflow": "kill"},
        {"pass_fds": [0]},
        {"pass_fds": [-1]},
        {"pass_fds": [1 << 40]},
        {"pass_fds": [io.BytesIO()]},
        {"pty": (0, 80)},
        {"pty": (24, 65536)},
        {"pty": True, "stdin": b""},
        {"pty": True, "stdin": 0},
        {"pty": True, "stdout": None},
        {"pty": True, "stdout": 1},
        {"pty": True, "stdout": sys.__stdout__},
        {"pty": True, "stderr": None},
        {"pty": True, "stderr": 2},
        {"pty": True, "stderr": print},
        {"stdout": STDOUT},
        {"stdin": CAPTURE},
    ],
    ids=name_of,
)
def test_what_makes_no_sense_is_refused(words: dict[str, Any], tmp_path: Path) -> None:
    before = descriptors()
    for fresh in (False, True):
        with pytest.raises(SpecError):
            open_box("/").run(["touch", f"{tmp_path}/ran"], fresh=fresh, **words)
    with pytest.raises(SpecError):
        run_sandbox("/", ["touch", f"{tmp_path}/ran"], **words)
    assert os.listdir(tmp_path) == []
    assert descriptors() == before


@pytest.mark.parametrize(
    "words",
    [
        {"grace": "1"},
        {"grace": True},
        {"grace": False},
        {"grace": None},
        {"max_output": 1.5},
        {"max_output": True},
        {"max_output": b"1k"},
        {"on_overflow": None},
        {"pass_fds": 3},
        {"pass_fds": None},
        {"pass_fds": "345"},
        {"pass_fds": [True]},
        {"pass_fds": ["3"]},
        {"pty": 1},
        {"pty": 0},
        {"pty": None},
        {"pty": "24x80"},
        {"pty": (24,)},
        {"pty": ()},
        {"pty": (24.0, 80)},
        {"pty": (True, 80)},
        {"stdin": "text"},
        {"stdin": print},
        {"stdout": "log"},
        {"stdout": True},
        {"stderr": b"log"},
    ],
    ids=str,
)
def test_wrong_types_are_refused(words: dict[str, Any], tmp_path: Path) -> None:
    expected = SpecError if words == {"on_overflow": None} else SpecTypeError
    with pytest.raises(expected):
        open_box("/").run(["touch", f"{tmp_path}/ran"], **words)
    with pytest.raises(expected):
        run_sandbox("/", ["touch", f"{tmp_path}/ran"], **words)
    assert os.listdir(tmp_path) == []


def test_a_closed_descriptor_is_named() -> None:
    fd = closed()
    with pytest.raises(SpecError, match=f"pass_fds has {fd}: Bad file descriptor"):
        open_box("/").run(["true"], pass_fds=[fd])


def test_too_many_descriptors_are_refused() -> None:
    opened = [os.dup(0) for _ in range(33)]
    with pytest.raises(SpecError, match="33 descriptors, and may have 32"):
        open_box("/").run(["true"], pass_fds=opened)
    assert open_box("/").run(["true"], pass_fds=opened[1:]).exit == 0
    for fd in opened:
        os.close(fd)


def test_a_descriptor_beyond_the_limit_of_the_command_is_refused() -> None:
    fd = os.dup2(0, 40)
    with pytest.raises(SpecError, match="pass_fds has 40, and open_files is 40"):
        open_box("/", limits=Limits(open_files=40)).run(["true"], pass_fds=[fd])
    assert open_box("/", limits=Limits(open_files=41)).run(["true"], pass_fds=[fd]).exit == 0
    os.close(fd)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Lines(5),
        lambda: Tee("log"),
        lambda: Tee(True),
        lambda: Tee(None),
        lambda: Tee(io.StringIO()),
        lambda: Tee(1, keep_head=1.5),
        lambda: Tee(1, keep_tail=True),
    ],
)
def test_outputs_of_wrong_types(make: Callable[[], object]) -> None:
    with pytest.raises(SpecTypeError):
        make()


@pytest.mark.parametrize(("fd", "head"), [(-1, 0), (1 << 40, 0), (1, -1)])
def test_outputs_that_make_no_sense(fd: int, head: int) -> None:
    with pytest.raises(SpecError):
        Tee(fd, keep_head=head)


# ---- the same words elsewhere --------------------------------------------------------------------


def test_the_words_of_run_sandbox() -> None:
    lines: list[bytes] = []
    result = run_sandbox("/", ["seq", "3"], stdout=Lines(lines.append), max_output=5, grace=1)
    assert (result.out_size, result.limits_hit, lines) == (6, ("output",), [b"1\n", b"2\n", b"3"])
    assert run_sandbox("/", ["tty"], pty=(3, 4)).out is not None
    assert (
        run_sandbox(["seq", "3"], filesystem_root="/", max_output=1).out == b"1"
    )  # the form of 0.3
    reader, writer = os.pipe()
    run_sandbox("/", ["sh", "-c", f"echo x > /proc/self/fd/{writer}"], pass_fds=[writer])
    assert os.read(reader, 9) == b"x\n"
    os.close(reader)
    os.close(writer)


def test_the_words_of_a_map() -> None:
    said: dict[str, list[bytes]] = {"a": [], "b": []}
    reader, writer = os.pipe()
    commands: list[Any] = [
        Command(["seq", "9"], max_output=3),
        Command(["echo", "a"], stdout=Lines(said["a"].append)),
        Command(["yes"], max_output=4, on_overflow="kill", stdout=said["b"].append),
        Command(["stty", "size"], pty=(5, 6)),
        Command(["sh", "-c", f"echo x > /proc/self/fd/{writer}"], pass_fds=[writer]),
    ]
    with open_box("/") as box:
        results = list(box.map(commands, jobs=2, on_failure="continue"))
    assert [result.exit for result in results] == [0, 0, -9, 0, 0]
    assert [result.out for result in results] == [b"1\n2", None, None, b"5 6\r\n", b""]
    assert results[0].out_size == 18
    assert results[2].limits_hit == ("output",)
    assert said == {"a": [b"a\n"], "b": [b"y\ny\n"]}
    assert os.read(reader, 9) == b"x\n"
    os.close(reader)
    os.close(writer)


def test_an_exception_in_a_function_ends_a_map() -> None:
    mark = f"{os.getpid()}.1414213"
    with open_box("/") as box:
        for fresh in (False, True):
            results = box.map([["sh", "-c", f"echo x; sleep {mark}"]] * 4, jobs=2, stdout=fail)
            with pytest.raises(Trouble):
                list(results)
            assert not processes(mark), fresh


@pytest.mark.parametrize("executor", ["bubblewrap", "linux_user_chroot"])
def test_executors_that_drive_a_program(
    executor: str, monkeypatch: pytest.MonkeyPatch, tool_path: str, shared_rootfs: Path
) -> None:
    monkeypatch.setenv("PATH", tool_path)
    api = sandboxlib.get_executor(executor)
    if reason := api.why_not():
        pytest.skip(reason)
    is_root = os.geteuid() == 0
    words: dict[str, Any] = {"policy": Policy(capabilities="all")} if is_root else {}

    def run(script: str, **more: Any) -> Result:
        result: Result = api.run_sandbox(shared_rootfs, ["sh", "-c", script], **words, **more)
        return result

    lines: list[bytes] = []
    assert run("seq 3; exit 7", stdout=Lines(lines.append)).exit == 7
    assert lines == [b"1\n", b"2\n", b"3\n"]
    result = run("seq 9; exit 7", max_output=3)
    assert (result.exit, result.out, result.out_size) == (7, b"1\n2", 18)
    result = run("while :; do echo y; done", max_output=4, on_overflow="kill")
    assert (result.out, result.limits_hit) == (b"y\ny\n", ("output",))
    with pytest.raises(SpecError):
        run("true", pass_fds=[closed()])
    with pytest.raises(SpecError):
        run("true", pass_fds=3)
    with pytest.raises(SetupError):
        api.run_sandbox(shared_rootfs, ["nonesuch"], **words, max_output=1)
    for pty in ((0, 80), "yes"):
        with pytest.raises(SpecError):
            run("true", pty=pty)
    with pytest.raises(UnsupportedError, match="terminal"):
        run("true", pty=True)
    with pytest.raises(UnsupportedError, match="grace"):
        run("true", timeout=60, grace=1)
    reader, writer = os.pipe()
    assert run(f"echo x > /proc/self/fd/{writer}", pass_fds=[writer]).exit == 0
    assert os.read(reader, 9) == b"x\n"
    os.close(reader)
    os.close(writer)


def test_a_terminal_and_grace_go_to_an_executor_that_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SANDBOXLIB_BACKEND", raising=False)
    native = "chroot" if IS_ROOT else "user_namespace"
    monkeypatch.setattr(choose, "EXECUTORS", ("bubblewrap", native))
    if reason := sandboxlib.get_executor("bubblewrap").why_not():
        pytest.skip(reason)
    box = open_box("/", policy=Policy(capabilities="all"))
    assert box.run(["true"]).executor == "bubblewrap"
    words = ["test", "-t", "0"]
    assert box.run(words, pty=True).executor == native
    assert [one.executor for one in box.map([words], pty=True)] == [native]
    assert box.run(["true"], timeout=60, grace=1).executor == native
    assert next(box.map([["true"]], timeout=60, grace=1)).executor == native
    with box.start(["true"]) as process:
        process.wait()
    assert process.result().executor == native
    monkeypatch.setenv("SANDBOXLIB_BACKEND", "bubblewrap")
    for words in ({"pty": True}, {"timeout": 60, "grace": 1}):
        with pytest.raises(UnsupportedError, match="terminal"):
            box.run(["tty"], **words)
