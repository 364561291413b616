# SPDX-License-Identifier: Apache-2.0
"""A trace sees the paths that strace sees."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from lib.machine import require

from sandboxlib import Mount, Sandbox

ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
CALL = re.compile(r"\d+ +(\w+)\((.*)\) += (-?\d+)(.*)")


def seen_by_strace(argv: list[str], log: Path) -> tuple[set[str], set[str]]:
    """The paths that were missing in some call, and those that were there in some."""
    words = ["strace", "-f", "-qq", "-s", "4096", "-e", "trace=%file", "-o", str(log), *argv]
    done = subprocess.run(words, env=ENV, cwd="/", capture_output=True, text=True, check=False)
    require("PTRACE" not in done.stderr and "ptrace" not in done.stderr, "strace may not trace")
    found: tuple[set[str], set[str]] = set(), set()
    for line in log.read_text().splitlines():
        if call := CALL.match(line):
            (path, *_) = re.findall(r'"([^"]*)"', call[2]) or [""]
            if path and not path.startswith("/proc/"):
                is_there = "ENOENT" not in call[4] and "ENOTDIR" not in call[4]
                found[is_there].add(os.path.normpath(os.path.join("/", path)))
    return found


def test_a_compiler_misses_the_same_paths(tmp_path: Path) -> None:
    for program in ("strace", "cc"):
        require(shutil.which(program), f"there is no {program}")
    (tmp_path / "a.c").write_text('#include <stdio.h>\n#include <sys/stat.h>\n#include "b.h"\n')
    cc = shutil.which("cc")
    argv = [str(cc), "-O1", f"-I{tmp_path}/nowhere", "-c", f"{tmp_path}/a.c", "-o", "/dev/null"]
    missing, there = seen_by_strace(argv, tmp_path / "log")
    mounts = [Mount.bind(tmp_path, tmp_path)]
    box = Sandbox("/", tmp="root", filesystem_writable_paths=["/tmp"], extra_mounts=mounts)
    trace = box.trace(argv, paths="all", env=ENV, cwd="/")
    assert trace.result.exit == 1, trace.result
    assert set(trace.missing) == missing - there
    assert f"{tmp_path}/b.h" in trace.missing
    assert trace.unknown == 0
