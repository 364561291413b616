# SPDX-License-Identifier: Apache-2.0
"""The options of run-sandbox, seen from inside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lib.machine import needs_root, require

from sandboxlib import Limits, Sandbox, UnsupportedError

pytestmark = needs_root


def run(*words: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    argv = [sys.executable, "-m", "sandboxlib", "run", *map(str, words)]
    given = {"input": b"", "capture_output": True, **options}
    done: subprocess.CompletedProcess[bytes] = subprocess.run(argv, check=False, **given)  # type: ignore[call-overload]
    return done


def out(*words: object, **options: object) -> str:
    done = run(*words, **options)
    assert done.returncode == 0, done.stderr
    return str(done.stdout.decode())


def test_a_variable_has_a_value_or_is_passed_through(shared_rootfs: Path) -> None:
    words = ("--env", "A=b=c", "--env", "MINE", "--env", "NONE", "--env", "EMPTY=")
    env = {**os.environ, "MINE": "of the caller", "EMPTY": "full"}
    env.pop("NONE", None)
    lines = out(*words, shared_rootfs, "env", env=env).splitlines()
    assert {"A=b=c", "MINE=of the caller", "EMPTY="} <= set(lines)
    assert not [line for line in lines if line.startswith("NONE")]


def test_variables_come_from_a_file(shared_rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("\ufeffA=1\n# B=2\n\nMINE\nC= a 'b' # c \nD=x\r\nE=first\n")
    words = ("--env", "A=0", "--env-file", tmp_path / "env", "--env", "E=last")
    env = {**os.environ, "MINE": "mine"}
    lines = out(*words, "--clearenv", shared_rootfs, "/bin/env", env=env).splitlines()
    assert sorted(line for line in lines if not line.startswith(("PWD", "SHLVL"))) == [
        *("A=1", "C= a 'b' # c ", "D=x", "E=last", "MINE=mine"),
    ]


def test_a_line_of_such_a_file_that_is_wrong_is_named_and_not_shown(
    shared_rootfs: Path, tmp_path: Path
) -> None:
    (tmp_path / "env").write_text("A=1\nexport B=secret\n")
    done = run("--env-file", tmp_path / "env", shared_rootfs, "true")
    assert done.returncode == 125
    assert f"{tmp_path}/env:2:".encode() in done.stderr
    assert b"secret" not in done.stderr


def test_ids_umask_and_groups(shared_rootfs: Path) -> None:
    script = "id -u; id -g; id -G; umask"
    words = ("--user", "1000:1001", "--groups", "5,6", "--umask", "027")
    assert out(*words, shared_rootfs, "sh", "-c", script).split() == [
        *("1000", "1001", "1001", "5", "6", "0027"),
    ]
    assert out("--user", "1000", shared_rootfs, "id", "-g") == "1000\n"


def test_a_deterministic_place(shared_rootfs: Path) -> None:
    script = "hostname; echo $TZ $SOURCE_DATE_EPOCH"
    env = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    words = ("--deterministic", shared_rootfs, "sh", "-c", script)
    assert out(*words, env=env) == "sandbox\nUTC 315532800\n"


def test_limits_of_each_process(shared_rootfs: Path) -> None:
    words = (
        *("--open-files", "32", "--file-size", "1k", "--core", "0", "--stack", "2M", "--nice", "3"),
        *("--scheduler", "batch", "--data", "1g", "--address-space", "2G", "--cpu-time", "9"),
        *("--locked-memory", "64k", "--user-processes", "999", "--oom-score-adj", "200"),
        *("--user", "1000"),
    )
    lines = out(*words, shared_rootfs, "cat", "/proc/self/limits").splitlines()[1:]
    limits = {line[:26].strip(): line[26:].split()[0] for line in lines}
    assert limits["Max open files"] == "32"
    assert limits["Max file size"] == "1024"
    assert limits["Max core file size"] == "0"
    assert limits["Max stack size"] == str(2 << 20)
    assert limits["Max data size"] == str(1 << 30)
    assert limits["Max address space"] == str(2 << 30)
    assert limits["Max locked memory"] == str(64 << 10)
    assert limits["Max processes"] == "999"
    assert limits["Max cpu time"] == "9"
    script = "cut -d' ' -f19 /proc/self/stat; cat /proc/self/oom_score_adj"
    assert out(*words, shared_rootfs, "sh", "-c", script).split() == ["3", "200"]


@pytest.mark.parametrize("option", ["--cpuset", "--cpu-count"])
def test_the_cpus_to_run_on(shared_rootfs: Path, option: str) -> None:
    first = min(os.sched_getaffinity(0))
    value = f"{first}-{first}" if option == "--cpuset" else "1"
    script = "grep Cpus_allowed_list /proc/self/status"
    assert out(option, value, shared_rootfs, "sh", "-c", script).split()[1] == str(first)


def test_limits_of_the_whole_run(shared_rootfs: Path, tmp_path: Path) -> None:
    try:
        Sandbox(shared_rootfs, limits=Limits(memory="64M", pids=20, cpus=1)).run(["true"])
    except UnsupportedError as error:
        require(False, f"there are no cgroups: {error}")
    words = ("--memory", "64M", "--pids", "1", "--cpus", "0.5", "--json-file", tmp_path / "record")
    done = run(*words, shared_rootfs, "sh", "-c", "sleep 0 & wait")
    assert done.returncode != 0
    assert '"limits_hit": ["pids"]' in (tmp_path / "record").read_text()


def test_what_the_command_may_do(shared_rootfs: Path) -> None:
    script = "grep -E 'NoNewPrivs|Seccomp:|CapEff' /proc/self/status"
    words = ("--seccomp", "none", "--capabilities", "none", "--allow-new-privileges")
    assert out(*words, shared_rootfs, "sh", "-c", script).split()[1::2] == ["0" * 16, "0", "0"]
    assert out("--no-new-privs", shared_rootfs, "sh", "-c", script).split()[3::2] == ["1", "2"]


def test_the_machine_may_look_like_one_of_32_bits(shared_rootfs: Path) -> None:
    machine = os.uname().machine
    require(machine in ("x86_64", "aarch64"), f"{machine} has no name of 32 bits here")
    assert out("--personality", "linux32", shared_rootfs, "uname", "-m").strip() != machine


def test_sizes_have_units(shared_rootfs: Path) -> None:
    script = "df -k /mnt | tail -n 1"
    done = out("--tmpfs", "/mnt:64K", shared_rootfs, "sh", "-c", script)
    assert done.split()[1] == "64"
    assert out("--tmpfs", "/mnt:65536", shared_rootfs, "sh", "-c", script).split()[1] == "64"


def test_directories_links_and_files_are_added(shared_rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\nstat -c %a /new /run\n")
    (tmp_path / "script").chmod(0o755)
    words = ("--dir", "/new:700", "--symlink", "/new:/link", "--file", f"{tmp_path}/script:/run")
    assert out(*words, shared_rootfs, "/run").split() == ["700", "555"]
    assert out(*words, shared_rootfs, "readlink", "/link").strip() == "/new"


def test_a_descriptor_is_passed(shared_rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("passed\n")
    with open(tmp_path / "file") as file:
        fd = file.fileno()
        words = ("--pass-fd", fd, shared_rootfs, "sh", "-c", f"cat <&{fd}")
        assert out(*words, pass_fds=[fd]) == "passed\n"


def test_a_terminal_whose_output_is_passed_on(shared_rootfs: Path) -> None:
    script = "test -t 0 && test -t 1 && test -t 2 && echo a terminal; echo err >&2; exit 4"
    done = run("--pty", shared_rootfs, "sh", "-c", script)
    assert (done.returncode, done.stdout) == (4, b"a terminal\r\nerr\r\n")
    words = ("--pty", "--json", "--max-output", "4")
    assert b'"out": "a te"' in run(*words, shared_rootfs, "sh", "-c", script).stdout


@pytest.mark.parametrize("executor", ["chroot", "user-namespace"])
def test_the_executor_is_the_one_that_is_named(shared_rootfs: Path, executor: str) -> None:
    done = run("-e", executor, "--json", shared_rootfs, "true")
    if done.returncode == 125:
        require(executor == "chroot", f"{executor} does not work here")
    assert f'"executor": "{executor.replace("-", "_")}"'.encode() in done.stdout
