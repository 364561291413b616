# SPDX-License-Identifier: Apache-2.0
"""What bwrap does otherwise than the native executors, and what is made of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lib.boxes import open_box
from lib.machine import require

from sandboxlib import Mount, SetupError, UnsupportedError, bubblewrap

EXECUTORS = ["chroot", "user_namespace", "bubblewrap"]


@pytest.fixture(autouse=True)
def _bwrap_works() -> None:
    reason = bubblewrap.why_not()
    require("no bwrap" not in reason, reason)
    if reason:
        pytest.skip(reason)


@pytest.mark.every_way
@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_file_that_is_no_program_is_not_given_to_a_shell(
    rootfs: Path, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOXLIB_BACKEND", executor)
    script = rootfs / "bin" / "script"
    script.write_text("echo a shell ran it\n")
    script.chmod(0o755)
    (rootfs / "bin" / "other").symlink_to("/bin/script")
    try:
        for name in ("/bin/script", "script", "other"):
            with open_box(rootfs) as box, pytest.raises(SetupError, match="ENOEXEC") as caught:
                box.run([name])
            assert caught.value.step == "exec"
    except UnsupportedError as error:
        pytest.skip(str(error))


SUBREAPER = """
import ctypes, json, os, sys
from sandboxlib import Sandbox, bubblewrap
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
with Sandbox(sys.argv[1]) as box:
    bubblewrap.run_in(box, ["true"])
    bubblewrap.run_in(box, ["sh", "-c", "sleep 1000 & exit 3"])
    bubblewrap.run_in(box, ["sleep", "1000"], timeout=0.2)
    try:
        bubblewrap.run_in(box, ["none"])
    except FileNotFoundError:
        pass
try:
    left = os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    left = None
print(json.dumps(left))
"""


def test_a_caller_that_is_a_subreaper_is_left_no_process(shared_rootfs: Path) -> None:
    argv = [sys.executable, "-c", SUBREAPER, str(shared_rootfs)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) is None


def test_it_binds_a_thousand_files_of_a_directory(
    rootfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOXLIB_BACKEND", "bubblewrap")
    sources = tmp_path / "sources"
    (rootfs / "t").mkdir()
    sources.mkdir()
    for number in range(1000):
        (sources / str(number)).write_text(f"{number}\n")
        (rootfs / "t" / str(number)).touch()
    mounts = [Mount.bind(sources / str(n), f"/t/{n}", read_only=n % 2 == 0) for n in range(1000)]
    with open_box(rootfs, extra_mounts=mounts) as box:
        script = "cat /t/0 /t/999; echo x >> /t/0; echo x >> /t/999"
        result = box.run(["sh", "-c", script])
    assert result.out == b"0\n999\n"
    assert result.err.count(b"Read-only") == 1 if result.err else False
    assert (sources / "999").read_text() == "999\nx\n"


def test_more_words_than_it_takes_are_refused_with_a_remedy(
    shared_rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOXLIB_BACKEND", "bubblewrap")
    with (
        open_box(shared_rootfs) as box,
        pytest.raises(UnsupportedError, match=r"9000 arguments.*take any number"),
    ):
        box.run(["true", *["x"] * 9500])


@pytest.mark.parametrize("executor", ["chroot", "user_namespace"])
def test_a_source_that_is_a_link_of_a_process_is_refused_with_the_reason(
    shared_rootfs: Path, tmp_path: Path, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOXLIB_BACKEND", executor)
    with open(tmp_path / "file", "w") as file:
        for source in (f"/proc/self/fd/{file.fileno()}", f"/dev/fd/{file.fileno()}"):
            mounts = [Mount.bind(source, "/tmp/x")]
            try:
                with (
                    open_box(shared_rootfs, extra_mounts=mounts) as box,
                    pytest.raises(SetupError, match=r"links of /proc/PID.*readlink"),
                ):
                    box.run(["true"])
            except UnsupportedError as error:
                pytest.skip(str(error))
