# SPDX-License-Identifier: Apache-2.0
"""A run as its caller sees it: arguments in, (exit, out, err) out."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import select
import signal
from pathlib import Path

import pytest
from lib.boxes import open_box
from lib.machine import needs_root
from lib.waiting import late, wait_until

import sandboxlib
from sandboxlib import STDOUT, Command, Mount, Sandbox, SetupError, SpecError, run_sandbox
from sandboxlib._core import native
from sandboxlib._runs import run as _process
from sandboxlib._runs.job import job_of
from sandboxlib._runs.plan import plan_for

pytestmark = needs_root
BARE = {"mounts": "undefined", "processes": "undefined", "ipc": "undefined"}
MODES = [
    pytest.param({}, id="reaper"),
    pytest.param({"init": False}, id="init=False"),
    pytest.param({"processes": "undefined"}, id="processes=undefined"),
    pytest.param(BARE, id="bare chroot"),
]


@pytest.fixture(params=MODES)
def box(request: pytest.FixtureRequest, shared_rootfs: Path) -> Sandbox:
    return open_box(shared_rootfs, **request.param)


def test_it_returns_exit_status_and_both_outputs_as_bytes(box: Sandbox) -> None:
    assert box.run(["sh", "-c", "echo out; echo err >&2; exit 3"]) == (3, b"out\n", b"err\n")


def test_the_environment_is_exactly_the_base_and_extra_env(box: Sandbox) -> None:
    out = box.run(["env"], extra_env={"A": "b c", "PATH": "/bin"}).out
    assert sorted(out.split(b"\n")) == [b"", b"A=b c", b"PATH=/bin"]
    path = sandboxlib.BASE_ENVIRONMENT["PATH"]
    assert box.run(["env"]).out == f"PATH={path}\n".encode()


def test_the_working_directory_is_inside_the_root(box: Sandbox) -> None:
    assert box.run(["pwd"]).out == b"/\n"
    assert box.run(["pwd"], cwd="/tmp").out == b"/tmp\n"
    assert box.run(["pwd"], cwd="tmp").out == b"/tmp\n"
    assert box.run(["pwd"], cwd="/../../tmp").out == b"/tmp\n"


def test_in_the_root_slash_it_is_the_callers_own(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_sandbox("/", ["pwd"]).out == os.fsencode(tmp_path) + b"\n"


def test_a_str_is_one_program_and_never_split(box: Sandbox) -> None:
    assert box.run("pwd") == (0, b"/\n", b"")
    with pytest.raises(FileNotFoundError, match="echo hi"):
        box.run("echo hi")


def test_the_program_is_looked_up_in_the_sandboxs_own_path(rootfs: Path) -> None:
    (rootfs / "tools").mkdir()
    (rootfs / "tools" / "mine").symlink_to("/bin/busybox")
    (rootfs / "tools" / "echo").symlink_to("/bin/busybox")
    assert run_sandbox(rootfs, ["echo", "x"], extra_env={"PATH": "/none:/tools"}).out == b"x\n"
    with pytest.raises(FileNotFoundError):
        run_sandbox(rootfs, ["pwd"], extra_env={"PATH": "/tools"})


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT, signal.SIGSEGV])
def test_death_by_a_signal_is_its_number_below_zero(shared_rootfs: Path, number: int) -> None:
    command = ["sh", "-c", f"kill -{int(number)} $$"]
    assert run_sandbox(shared_rootfs, command).exit == -number
    assert run_sandbox(shared_rootfs, command, **BARE).exit == -number


@pytest.mark.parametrize(
    ("words", "error", "step", "filename"),
    [
        ({"command": ["nonesuch"]}, FileNotFoundError, "exec", "nonesuch"),
        ({"command": ["/none/such"]}, FileNotFoundError, "exec", "/none/such"),
        ({"command": ["/etc"]}, PermissionError, "exec", "/etc"),
        ({"command": ["/etc/text"]}, OSError, "exec", "/etc/text"),
        ({"command": ["/etc/script"]}, FileNotFoundError, "exec", "/etc/script"),
        ({"command": ["pwd"], "cwd": "/none"}, FileNotFoundError, "cwd", "/none"),
        ({"command": ["pwd"], "cwd": "/bin/sh"}, NotADirectoryError, "cwd", "/bin/sh"),
    ],
)
def test_what_cannot_begin_names_step_and_path(rootfs: Path, words, error, step, filename) -> None:
    (rootfs / "etc" / "text").write_text("words\n")
    (rootfs / "etc" / "script").write_text("#!/none/such\n")
    for name in ("text", "script"):
        (rootfs / "etc" / name).chmod(0o755)
    for mode in ({}, {"init": False}, BARE):
        with pytest.raises(error) as caught:
            run_sandbox(rootfs, **words, **mode)
        assert isinstance(caught.value, SetupError)
        assert (caught.value.step, caught.value.filename) == (step, filename)
        assert filename in str(caught.value)
        assert str(rootfs) in str(caught.value)


def test_a_missing_interpreter_is_not_called_a_missing_program(rootfs: Path) -> None:
    (rootfs / "bin" / "script").write_text("#!/none/such\n")
    (rootfs / "bin" / "script").chmod(0o755)
    with pytest.raises(FileNotFoundError, match="interpreter"):
        run_sandbox(rootfs, ["script"])


@pytest.mark.parametrize("root", ["/none/such", "/etc/passwd"])
@pytest.mark.parametrize("mode", [{}, BARE])
def test_a_bad_root_is_an_oserror(root: str, mode: dict[str, str]) -> None:
    with pytest.raises((FileNotFoundError, NotADirectoryError)) as caught:
        run_sandbox(root, ["sh"], **mode)
    assert caught.value.step == "root"
    assert caught.value.filename == root


def test_stdin_is_empty_unless_one_is_given(box: Sandbox, tmp_path: Path) -> None:
    assert box.run(["cat"]).out == b""
    assert box.run(["cat"], stdin=b"x" * 200_000).out == b"x" * 200_000
    (tmp_path / "in").write_bytes(b"file")
    with open(tmp_path / "in", "rb") as file:
        assert box.run(["cat"], stdin=file).out == b"file"
        os.lseek(file.fileno(), 1, os.SEEK_SET)
        assert box.run(["cat"], stdin=file.fileno()).out == b"ile"


def test_outputs_go_to_files_descriptors_or_nowhere(box: Sandbox, tmp_path: Path) -> None:
    command = ["sh", "-c", "echo 1; echo 2 >&2; echo 3"]
    with open(tmp_path / "log", "ab") as log:
        log.write(b"0\n")
        log.flush()
        assert box.run(command, stdout=log, stderr=STDOUT) == (0, None, None)
    assert (tmp_path / "log").read_bytes() == b"0\n1\n2\n3\n"
    assert box.run(command, stdout=None) == (0, None, b"2\n")
    assert box.run(command, stderr=STDOUT) == (0, b"1\n2\n3\n", None)


def test_a_descriptor_is_given_as_it_is(box: Sandbox) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    assert box.run(["echo", "x"], stdout=writer).out is None
    assert os.read(reader, 10) == b"x\n"
    assert os.get_blocking(writer)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 3_000_000])
def test_every_byte_of_the_output_is_returned(box: Sandbox, size: int) -> None:
    exit, out, err = box.run(["sh", "-c", f"head -c {size} /bin/busybox; cat /bin/busybox >&2"])
    busybox = Path(box.root, "bin/busybox").read_bytes()
    assert exit == 0
    assert out == busybox[:size]
    assert err == busybox


def test_what_the_pipe_still_holds_at_the_end_is_read(box: Sandbox) -> None:
    # The command is dead before the first look, and its output is larger than the buffer.
    command = Command(["sh", "-c", "echo $(seq 500)"], "/", stderr=None)
    run = _process.Run(plan_for(box), job_of(command, box), command)
    run.struct.out.size = 16
    run.start(fresh=True)
    select.select([run.struct.pidfd], [], [])
    while not run.follow(native.lib.sbx_pump(run.struct, run.wait())):
        pass
    assert run.result("", 0.0, {}).out == " ".join(map(str, range(1, 501))).encode() + b"\n"
    native.lib.sbx_end(run.struct)
    run.release()


def test_hundreds_of_megabytes_on_both_streams_do_not_block(shared_rootfs: Path) -> None:
    count = 150_000_000
    script = f"head -c {count} /dev/zero >&2 & head -c {count} /dev/zero; wait"
    exit, out, err = run_sandbox(shared_rootfs, ["sh", "-c", script], extra_mounts=[Mount.dev()])
    assert (exit, len(out), len(err)) == (0, count, count)


def test_a_daemon_that_holds_the_pipes_does_not_hold_the_caller(box: Sandbox) -> None:
    script = "setsid sh -c 'trap \"\" TERM; sleep 30' & echo done"
    result = box.run(["sh", "-c", script])
    assert result[:2] == (0, b"done\n")
    assert result.wall < 20


def test_a_timeout_ends_everything_and_keeps_the_output(box: Sandbox) -> None:
    command = ["sh", "-c", "echo early; kill -STOP $$; exec sleep 1000"]
    result = late(lambda timeout: box.run(command, timeout=timeout), lambda result: result.out)
    assert result == (-9, b"early\n", b"")
    assert not box.run(["true"], timeout=60).timed_out


@pytest.mark.parametrize("script", ["while :; do echo x; usleep 10000; done", "exec yes"])
def test_output_that_never_ends_does_not_put_off_the_timeout(box: Sandbox, script: str) -> None:
    command = ["sh", "-c", script]
    result = late(lambda timeout: box.run(command, timeout=timeout), lambda result: result.out)
    assert result.out
    assert result.wall < 60


def test_a_failure_leaves_nothing_for_the_garbage_collector(box: Sandbox) -> None:
    # A cycle would keep the slot of the run open until then, and end it in who knows what thread.
    gc.collect()
    gc.disable()
    before = [one for one in gc.get_objects() if isinstance(one, _process.Run)]

    def left() -> list[object]:
        runs = [one for one in gc.get_objects() if isinstance(one, _process.Run)]
        return [run for run in runs if not any(run is other for other in before)]

    try:
        for call in (lambda: box.run(["nonesuch"]), lambda: list(box.map([["nonesuch"]] * 3))):
            with contextlib.suppress(FileNotFoundError):
                call()
            # A thread of the map may be in its last lines.
            assert wait_until(lambda: not left(), 20)
    finally:
        gc.enable()


def test_two_sandboxes_of_the_same_words_are_equal_and_survive_pickling(shared_rootfs) -> None:
    words = {"network": "isolated", "extra_mounts": [Mount.tmpfs("/tmp", size=4096)]}
    one, two = open_box(shared_rootfs, **words), open_box(shared_rootfs, **words)
    assert one == two
    assert hash(one) == hash(two)
    one.run(["true"])
    copy = pickle.loads(pickle.dumps(one))
    assert copy == one
    assert copy.run(["echo", "x"]).out == b"x\n"
    with pytest.raises(AttributeError):
        one.network = "undefined"


def test_a_result_is_a_tuple_with_more_as_attributes(shared_rootfs: Path) -> None:
    result = run_sandbox(shared_rootfs, ["echo", "x"], network="isolated")
    exit, out, err = result
    assert (exit, out, err) == (result.exit, result.out, result.err) == (0, b"x\n", b"")
    assert result.executor == "chroot"
    assert result.isolation == sandboxlib.maximum_possible_isolation()
    copy = pickle.loads(pickle.dumps(result))
    assert copy == result
    assert copy.__dict__ == result.__dict__


def test_errors_survive_pickling(shared_rootfs: Path) -> None:
    with pytest.raises(SetupError) as caught:
        run_sandbox(shared_rootfs, ["nonesuch"])
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.errno, copy.step) == (str(caught.value), 2, "exec")


def test_maximum_possible_isolation_can_be_splatted(shared_rootfs: Path) -> None:
    for executor in (sandboxlib, sandboxlib.chroot):
        words = executor.maximum_possible_isolation()
        assert executor.run_sandbox(shared_rootfs, ["true"], **words).exit == 0


def test_no_error_holds_a_value_of_the_environment(shared_rootfs: Path) -> None:
    for env in ({"TOKEN": "secret\0"}, {"A=B": "secret"}, {"TOKEN": "secret\ud800"}):
        with pytest.raises(SpecError) as caught:
            run_sandbox(shared_rootfs, ["true"], extra_env=env)
        assert "secret" not in str(caught.value)
    with pytest.raises(SetupError) as failed:
        run_sandbox(shared_rootfs, ["nonesuch"], extra_env={"TOKEN": "secret"})
    assert "secret" not in str(failed.value)
