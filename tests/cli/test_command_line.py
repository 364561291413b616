# SPDX-License-Identifier: Apache-2.0
"""run-sandbox and python -m sandboxlib, as processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lib.machine import needs_root


def call(*words: object, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    argv = [sys.executable, "-m", "sandboxlib", *map(str, words)]
    return subprocess.run(argv, input=given, capture_output=True, check=False)


@needs_root
@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)]
)
def test_the_exit_status_is_the_commands(shared_rootfs: Path, script: str, status: int) -> None:
    assert call("run", shared_rootfs, "sh", "-c", script).returncode == status


@needs_root
def test_stdio_is_passed_through(shared_rootfs: Path) -> None:
    done = call("run", shared_rootfs, "sh", "-c", "cat; echo err >&2", given=b"in")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"in", b"err\n")


@needs_root
def test_without_a_command_it_is_a_shell(shared_rootfs: Path) -> None:
    assert call("run", shared_rootfs, given=b"echo $((6 * 7))\n").stdout == b"42\n"


@needs_root
def test_everything_after_path_belongs_to_the_command(shared_rootfs: Path) -> None:
    done = call("run", "--hostname", "box", shared_rootfs, "echo", "--json", "--", "-e")
    assert done.stdout == b"--json -- -e\n"


@needs_root
@pytest.mark.parametrize("before", [[], ["--"], ["--hostname", "box"], ["--hostname=box", "--"]])
def test_a_double_dash_after_path_is_the_commands(shared_rootfs: Path, before: list[str]) -> None:
    done = call("run", *before, shared_rootfs, "--", "true")
    assert done.returncode == 125
    assert b"exec '--'" in done.stderr


@needs_root
@pytest.mark.parametrize("words", [("none", "/tmp"), ("/tmp", "all")])
def test_writable_words_that_contradict_are_refused(
    shared_rootfs: Path, words: tuple[str, str]
) -> None:
    done = call("run", "--writable", words[0], "--writable", words[1], shared_rootfs, "true")
    assert done.returncode == 125
    assert b"--writable" in done.stderr


@needs_root
def test_an_error_of_ours_is_125_with_a_message(shared_rootfs: Path) -> None:
    done = call("run", shared_rootfs, "nonesuch")
    assert done.returncode == 125
    assert b"run: exec 'nonesuch'" in done.stderr
    done = call("run", "-e", "linux-user-chroot", shared_rootfs, "true")
    assert done.returncode == 125
    assert b"there is no linux-user-chroot" in done.stderr


@needs_root
def test_a_timeout_is_124(shared_rootfs: Path) -> None:
    assert call("run", "--timeout", "0.2", shared_rootfs, "sleep", "60").returncode == 124


@needs_root
def test_options_mirror_the_keywords(shared_rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("there\n")
    script = "cat /src/file; pwd; hostname; echo $A; touch /src/x /bin/x; wc -l < /proc/net/dev"
    done = call(
        *("run", "--bind-ro", f"{tmp_path}:/src", "--tmpfs", "/tmp:65536", "--cwd", "/tmp"),
        *("--hostname", "box", "--env", "A=b=c", "--network", "isolated", "--writable", "none"),
        *("--capabilities", "chown,kill", shared_rootfs, "sh", "-c", script),
    )
    assert done.stdout == b"there\n/tmp\nbox\nb=c\n3\n"
    assert done.stderr.count(b"Read-only") == 2


@needs_root
def test_json_is_the_record_of_the_run(shared_rootfs: Path) -> None:
    done = call("run", "--json", shared_rootfs, "sh", "-c", "echo out; kill -6 $$")
    record = json.loads(done.stdout)
    assert (record["exit"], record["signal"], record["out"]) == (-6, "SIGABRT", "out\n")
    assert record["isolation"]["processes"] == "isolated"
    assert done.returncode == 134


@needs_root
def test_the_most_output(shared_rootfs: Path) -> None:
    most = ("run", "--json", "--max-output", "3")
    record = json.loads(call(*most, shared_rootfs, "seq", "9").stdout)
    assert (record["exit"], record["out"], record["out_size"]) == (0, "1\n2", 18)
    assert record["limits_hit"] == ["output"]
    assert call(*most, "--kill-on-overflow", shared_rootfs, "yes").returncode == 137
    done = call("run", "--max-output", "3", shared_rootfs, "true")
    assert done.returncode == 125
    assert b"--max-output takes --json" in done.stderr
    done = call("run", "--json", "--kill-on-overflow", shared_rootfs, "true")
    assert done.returncode == 125


@needs_root
def test_the_grace_after_a_timeout(shared_rootfs: Path) -> None:
    script = "trap 'echo told; exit 3' TERM; while :; do sleep 0.05; done"
    words = ("run", "--json", "--timeout", "0.3", "--grace", "20", shared_rootfs, "sh", "-c")
    done = call(*words, script)
    record = json.loads(done.stdout)
    assert (done.returncode, record["exit"], record["out"]) == (124, 3, "told\n")


@needs_root
def test_a_record_that_cannot_be_written_is_an_error_of_ours(shared_rootfs: Path) -> None:
    argv = [sys.executable, "-m", "sandboxlib", "run", "--json", str(shared_rootfs), "true"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 125
    assert done.stderr.startswith(b"python -m sandboxlib run: [Errno 28]")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["run"],
        ["run", "--network", "none", "/"],
        ["run", "--env", "A", "/"],
        ["run", "--bind", "/src:relative", "/"],
        ["run", "--bind", "/src", "/"],
        ["run", "--tmpfs", "/x:many", "/"],
        ["run", "-e", "docker", "/"],
        ["nonsense"],
        [],
    ],
    ids=repr,
)
def test_words_that_make_no_sense_are_explained(words: list[str]) -> None:
    done = call(*words)
    assert done.returncode == 2
    assert b"usage:" in done.stderr
