# SPDX-License-Identifier: Apache-2.0
"""run-sandbox --trace."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from lib.machine import python

pytestmark = pytest.mark.usefixtures("executor")
pytest_plugins = ["lib.ways"]


def run(*words: object) -> subprocess.CompletedProcess[str]:
    argv = [*python(), "-m", "sandboxlib", "run", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_the_paths_come_on_stderr_and_the_exit_status_is_the_command_s(rootfs: Path) -> None:
    (rootfs / "etc/busybox.conf").touch()
    line = "[ -e /etc/asked ]; cat /etc/opened 2>&1; exit 3"
    done = run("--trace", rootfs, "/bin/sh", "-c", line)
    assert done.returncode == 3
    assert done.stdout == "cat: can't open '/etc/opened': No such file or directory\n"
    assert done.stderr == "asked for, and not found:\n    /etc/opened\n"
    done = run("--trace=all", rootfs, "/bin/sh", "-c", line)
    assert done.stderr == "asked for, and not found:\n    /etc/asked\n    /etc/opened\n"


def test_the_record_has_them(rootfs: Path, tmp_path: Path) -> None:
    words = ("/bin/cat", "/etc/nowhere")
    done = run("--trace", "--json", rootfs, *words)
    record = json.loads(done.stdout)["trace"]
    assert record["missing"] == ["/etc/nowhere"]
    assert record["executed"] == ["/bin/cat"]
    assert record["paths"] == "opens"
    assert done.stderr == ""
    run("--trace", "--json-file", tmp_path / "record", rootfs, *words)
    assert json.loads((tmp_path / "record").read_text())["trace"] == record
    assert "trace" not in json.loads(run("--json", rootfs, *words).stdout)


@pytest.mark.parametrize("with_it", [("--tty",), ("--session", "-")])
def test_it_does_not_go_with_a_session_or_a_terminal(rootfs: Path, with_it: tuple[str]) -> None:
    done = run("--trace", *with_it, rootfs)
    assert done.returncode == 125
    assert "--trace does not go with --session or --tty" in done.stderr
