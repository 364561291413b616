# SPDX-License-Identifier: Apache-2.0
"""A Process tells its end to whoever asks: threads, signal handlers, forks, after errors."""

from __future__ import annotations

import copy
import errno
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import many, needs_root, python
from lib.waiting import processes

from sandboxlib import CAPTURE, Limits, Lines, Process, Sandbox, SpecTypeError, StatusLost, Tee
from sandboxlib._core import native, workspace

pytestmark = needs_root
TESTS = Path(__file__).resolve().parent.parent
MODES: dict[str, dict[str, Any]] = {
    "reaper": {},
    "init=False": {"init": False},
    "processes=undefined": {"processes": "undefined"},
}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())


@pytest.fixture
def box(shared_rootfs: Path) -> Iterator[Sandbox]:
    with open_box(shared_rootfs) as made:
        yield made


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    native.init_descriptor()  # which is kept
    gc.collect()
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == before


def sh(box: Sandbox, script: str, **options: Any) -> Process:
    return box.start(["sh", "-c", script], **options)


# ---- the files ---------------------------------------------------------------------------------


@modes
@pytest.mark.parametrize("how", ["close", "with"])
def test_a_command_whose_reader_stops_gets_sigpipe(
    shared_rootfs: Path, mode: dict[str, Any], how: str
) -> None:
    # The kernel keeps signals without a handler from pid 1; the write then fails.
    code = 1 if mode == MODES["init=False"] else -13
    with open_box(shared_rootfs, **mode).start(["yes"]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"y\n"
        if how == "close":
            process.stdout.close()
            assert process.wait(60) == code
    assert process.returncode == code


def test_nobody_reads_behind_the_caller_s_back(box: Sandbox) -> None:
    """A command that fills its pipe waits, whatever the caller does but read."""
    with box.start(["yes"]) as process:
        assert process.stdout is not None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        assert process.poll() is None
        first = os.read(process.stdout.fileno(), 1 << 20)
        assert first == b"y\n" * (len(first) // 2)
        process.kill()


def test_an_output_is_another_command_s_input(box: Sandbox) -> None:
    with box.start(["seq", "100000"]) as source:
        with box.start(["wc", "-l"], stdin=source.stdout) as counter:
            assert counter.communicate(timeout=60) == (b"100000\n", b"")
        assert source.wait(60) == 0


def test_a_file_keeps_the_run(box: Sandbox) -> None:
    out = box.start(["sh", "-c", "echo one; sleep 0.1; echo two"], stderr=None).stdout
    assert out is not None
    gc.collect()
    with out:
        assert out.read() == b"one\ntwo\n"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_what_needs_a_reader_at_all_times_is_refused(box: Sandbox, name: str) -> None:
    for sink in (print, Lines(print), Tee(1)):
        for call in (box.start, box.start_async):
            with pytest.raises(SpecTypeError, match=rf"{name}: read Process\.{name}.*run\(\)"):
                call(["true"], **{name: sink})  # type: ignore[operator]


def test_a_terminal_that_cannot_have_its_size_leaves_nothing(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "termios", None)
    for call in (box.run, box.start):
        with pytest.raises(ImportError):
            call(["true"], pty=True)  # type: ignore[operator]


# ---- communicate -------------------------------------------------------------------------------


@modes
def test_communicate_goes_on_where_its_timeout_ended_it(
    shared_rootfs: Path, mode: dict[str, Any]
) -> None:
    content = os.urandom(5_000_000)
    with sh(open_box(shared_rootfs, **mode), "sleep 0.5; cat", stdin=CAPTURE) as process:
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            process.communicate(content, timeout=0.1)
        assert caught.value.args[0] == ["sh", "-c", "sleep 0.5; cat"]
        so_far: list[bytes] = []
        for _ in range(10_000):
            try:
                out, err = process.communicate(timeout=0.01)
                break
            except subprocess.TimeoutExpired as error:
                so_far.append(error.output or b"")
        assert (out, err) == (content, b"")
        assert all(content.startswith(each) for each in so_far)
        assert process.communicate() == (content, b"")  # as Popen does
        with pytest.raises(ValueError, match="before"):
            process.communicate(b"x")
    assert process.result() == (0, content, b"")


@modes
def test_communicate_kill_communicate(shared_rootfs: Path, mode: dict[str, Any]) -> None:
    """The recipe of the documentation of subprocess."""
    with open_box(shared_rootfs, **mode) as box:
        for _ in range(many(10, 200)):
            with sh(box, "echo begun; exec sleep 600", stdin=CAPTURE) as process:
                assert process.stdout is not None
                assert process.stdout.read(3) == b"beg"
                with pytest.raises(subprocess.TimeoutExpired):
                    process.communicate(b"x" * 200_000, timeout=0.01)
                process.kill()
                assert process.communicate() == (b"un\n", b"")
                assert process.returncode == -9


def test_communicate_takes_what_the_buffers_hold(box: Sandbox) -> None:
    with sh(box, "echo one; echo two; cat", stdin=CAPTURE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"three\n")  # neither flushed nor sent
        assert process.stdout.readline() == b"one\n"
        assert process.communicate(b"four\n", 60) == (b"two\nthree\nfour\n", b"")
    with sh(box, "echo one; echo two; echo three; read x; echo $x", stdin=CAPTURE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"one\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(b"four", timeout=0)
        pytest.raises(ValueError, process.communicate, b"five")
        assert process.communicate(timeout=60) == (b"two\nthree\nfour\n", b"")


def test_communicate_ends_with_the_run(shared_rootfs: Path) -> None:
    """Also where another process has the pipes open: a daemon, or one outside of the sandbox."""
    mark = f"67{os.getpid()}"
    with open_box(shared_rootfs, processes="undefined") as box:
        script = f"echo said; setsid sleep {mark} & exit 4"
        with sh(box, script, stdin=CAPTURE) as process:
            assert process.communicate(b"x" * 1_000_000, timeout=60) == (b"said\n", b"")
        assert process.returncode == 4
        for pid in processes(mark):
            os.kill(int(pid), signal.SIGKILL)
        process = box.start(["sleep", mark])
        with process, open(f"/proc/{process.pid}/fd/1", "wb") as held:
            process.kill()
            assert process.wait(60) == -9
            held.write(b"late")
            held.flush()
            assert process.communicate(timeout=60) == (b"late", b"")


def test_communicate_does_without_rwf_nowait(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipes have it since Linux 6.4."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "preadv", refuse)
    monkeypatch.setattr(os, "pwritev", refuse)
    content = os.urandom(1_000_000)
    with sh(box, "cat; echo end >&2", stdin=CAPTURE) as process:
        assert process.communicate(content, 60) == (content, b"end\n")
    with sh(box, "exit 3", stdin=CAPTURE) as process:
        assert process.communicate(content, 60) == (b"", b"")


def test_communicate_leaves_files_that_were_closed_or_taken(box: Sandbox) -> None:
    with sh(box, "echo a; echo b >&2", stdin=CAPTURE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        raw = process.stdout.detach()  # type: ignore[attr-defined]
        assert process.communicate(timeout=60) == (b"", b"b\n")
        with raw:
            assert raw.read() == b"a\n"
        with pytest.raises(ValueError, match="before"):
            process.communicate(b"x")


@pytest.mark.parametrize("script", ["kill -STOP $$; cat", "exec >&- 2>&- <&-; exec sleep 600"])
def test_communicate_bears_a_command_that_stops_or_hangs_up(box: Sandbox, script: str) -> None:
    with sh(box, script, stdin=CAPTURE) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(b"x" * 200_000, timeout=0.3)
        assert process.poll() is None
        process.kill()
        assert process.communicate(timeout=60) == (b"", b"")
        assert process.returncode == -9


def test_one_thread_feeds_while_others_read_and_wait(box: Sandbox) -> None:
    content = os.urandom(3_000_000)
    got: list[bytes] = []
    with box.start(["cat"], stdin=CAPTURE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        out = process.stdout
        threads = [
            threading.Thread(target=lambda: got.append(out.read())),
            threading.Thread(target=process.wait),
        ]
        for thread in threads:
            thread.start()
        process.stdin.write(content)
        process.stdin.close()
        for thread in threads:
            thread.join()
    assert (got, process.returncode) == ([content], 0)


# ---- whoever asks ------------------------------------------------------------------------------


@modes
def test_the_end_is_known_after_close(shared_rootfs: Path, mode: dict[str, Any]) -> None:
    with open_box(shared_rootfs, **mode) as box:
        process = box.start(["sleep", "600"])
        process.close()
        assert process.poll() == process.wait() == process.returncode == -9
        assert process.result() == (-9, None, None)
        process.kill()
        process.close()
        process = box.start(["sleep", "600"])
        with pytest.raises(KeyError), process:
            raise KeyError
        assert process.poll() == process.wait() == -9


HANDLER = """
import os, signal, sys, threading
from sandboxlib import Sandbox
root, what, end, mode = sys.argv[1:]
process = Sandbox(root, **eval(mode)).start(["sh", "-c", "while :; do echo line; sleep 0.05; done"])
inside = threading.Event()
def handler(signum, frame):
    getattr(process, end)()
    code = process.wait()
    assert code == process.poll() == process.returncode == (-15 if end == "terminate" else -9), code
    print("through", flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, handler)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
if what == "read":
    for line in process.stdout:
        pass
elif what == "poll":
    while process.poll() is None:
        pass
elif what == "close":
    while True:
        process.fileno()
else:
    getattr(process, what)()
threading.Event().wait(60)
"""


@pytest.mark.parametrize("end", ["terminate", "kill", "close"])
@pytest.mark.parametrize("what", ["read", "poll", "wait", "communicate", "close"])
def test_a_signal_handler_ends_it_and_waits(shared_rootfs: Path, what: str, end: str) -> None:
    argv = [*python(), "-c", HANDLER, str(shared_rootfs), what, end, "{}"]
    done = subprocess.run(argv, capture_output=True, timeout=120, check=True)
    assert (done.stdout, done.stderr) == (b"through\n", b"")


def test_many_threads_wait_at_once(box: Sandbox) -> None:
    for _ in range(many(5, 100)):
        codes: list[Any] = []
        with sh(box, "read x; exit 7", stdin=CAPTURE) as process:
            calls = [process.wait, process.poll, process.result] * 4

            def ask(call: Any, process: Process = process, codes: list[Any] = codes) -> None:
                while (code := call()) is None:
                    pass
                codes.append(getattr(code, "exit", code))

            threads = [threading.Thread(target=ask, args=(call,)) for call in calls]
            for thread in threads:
                thread.start()
            assert process.stdin is not None
            process.stdin.close()
            for thread in threads:
                thread.join()
        assert codes == [7] * 12


def test_the_result_is_whole_whoever_asks_first(box: Sandbox) -> None:
    with open_box(box.root, limits=Limits(cpu_time=100)) as limited:
        process = limited.start(["sh", "-c", "exit 6"])
        with process:
            process.wait()
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(process.result()))
        thread.start()
        thread.join()
        for result in (*results, process.result()):
            assert (result, result.executor, result.ok) == ((6, None, None), "chroot", False)
            assert result.usage is not None
            assert result.wall > 0
            assert result.command is not None
            assert result.command.argv == ("sh", "-c", "exit 6")


@pytest.mark.parametrize(
    "way", [copy.copy, copy.deepcopy, pickle.dumps], ids=lambda way: way.__name__
)
def test_a_process_is_not_copied(box: Sandbox, way: Any) -> None:
    with box.start(["sleep", "600"]) as process:
        with pytest.raises(TypeError, match="copied or pickled"):
            way(process)
        other = object.__new__(Process)
        other.__dict__.update(process.__dict__)  # as a copy would be
        del other
        gc.collect()
        assert process.poll() is None
        process.kill()
        assert process.wait(60) == -9


FORK = """
import os, sys, gc
from sandboxlib import CAPTURE, Sandbox, StatusLost
root, how, mode = sys.argv[1:]
process = Sandbox(root, **eval(mode)).start(["cat"], stdin=CAPTURE)
pid = os.fork()
if pid == 0:
    assert process.poll() is None
    if how == "close":
        process.close()
        for ask in (process.poll, process.wait, process.result):
            try:
                ask()
            except StatusLost as error:
                assert "fork" in str(error)
            else:
                os._exit(1)
        assert process.returncode is None
    elif how == "with":
        try:
            with process:
                raise SystemExit
        except SystemExit:
            pass
    elif how == "with and no error":
        with process:
            pass
    elif how == "garbage":
        del process
        gc.collect()
    elif how == "exit":
        sys.exit(0)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert process.poll() is None
assert process.communicate(b"x") == (b"x", b"")
assert process.returncode == 0
"""


@modes
@pytest.mark.parametrize("how", ["close", "with", "with and no error", "garbage", "exit"])
def test_a_fork_of_the_caller_ends_nothing(
    shared_rootfs: Path, how: str, mode: dict[str, Any]
) -> None:
    argv = [*python(), "-W", "ignore", "-c", FORK, str(shared_rootfs), how, repr(mode)]
    subprocess.run(argv, check=True, timeout=120)


def test_a_fork_may_end_it_on_purpose(box: Sandbox) -> None:
    with box.start(["sleep", "600"]) as process:
        if (pid := os.fork()) == 0:
            try:
                process.kill()
                while True:  # it sees the end, but not the status
                    process.wait(60)
            except StatusLost:
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        assert process.wait(60) == -9


# ---- hosts -------------------------------------------------------------------------------------

BARE = """
import os, sys
out = os.dup2(1, 50)
for fd in (0, 1, 2):
    os.close(fd)
from sandboxlib import CAPTURE, Sandbox
with Sandbox(sys.argv[1]).start(["sh", "-c", "cat; echo err >&2"], stdin=CAPTURE) as process:
    numbers = [f.fileno() for f in (process.stdin, process.stdout, process.stderr)]
    result = process.communicate(b"in")
os.write(out, repr((min(numbers) > 2, result)).encode())
"""


def test_a_host_without_standard_streams_starts_commands(shared_rootfs: Path) -> None:
    argv = [*python(), "-c", BARE, str(shared_rootfs)]
    done = subprocess.run(argv, capture_output=True, timeout=120, check=True)
    assert done.stdout == repr((True, (b"in", b"err\n"))).encode()


TIDY = """
import os, sys
from sandboxlib import Sandbox, StatusLost
process = Sandbox(sys.argv[1]).start(["sleep", "600"], stdout=None, stderr=None)
os.closerange(3, 1000)
files = [os.open("/dev/null", os.O_RDONLY) for _ in range(30)]
try:
    process.wait()
except StatusLost as error:
    print("lost")
process.close()
for fd in files:
    os.close(fd)  # EBADF if the Process has closed one
print("its own")
"""


def test_a_host_that_closes_all_descriptors_keeps_its_own(shared_rootfs: Path) -> None:
    argv = [*python(), "-c", TIDY, str(shared_rootfs)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("lost\nits own\n", "", 0)


def test_the_memory_of_a_start_is_free_for_the_next_run(box: Sandbox) -> None:
    before = workspace.take_workspace()
    workspace.give_back(before)
    with box.start(["sleep", "600"]) as process:
        after = workspace.take_workspace()
        workspace.give_back(after)
        assert after is before
        assert box.run(["true"]).exit == 0
        process.kill()
    assert process.returncode == -9


# ---- all at once -------------------------------------------------------------------------------


def test_races_for_a_process_damage_no_other_run(shared_rootfs: Path) -> None:
    """lib/handle_storm.py has a command line, for more rounds."""
    rounds = many(60, 2000)
    argv = [*python(), "-m", "lib.handle_storm", str(shared_rootfs), str(rounds), str(os.getpid())]
    env = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}"}
    done = subprocess.run(
        argv, cwd=TESTS, env=env, capture_output=True, text=True, timeout=1800, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
