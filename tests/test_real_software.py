# SPDX-License-Identifier: Apache-2.0
"""Real software under the default filter, as root: what works outside works inside."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import needs_root, require

from sandboxlib import STDOUT, Mount, Sandbox

pytestmark = [needs_root, pytest.mark.slow, pytest.mark.timeout(900)]


def inside(script: str, *mounts: Mount, timeout: float = 250, network: str = "isolated") -> bytes:
    """What a shell prints in a sandbox of the machine's own root; it has to succeed."""
    env = {"PATH": os.environ["PATH"], "HOME": "/tmp"}
    tmp = [Mount.tmpfs("/tmp")]
    with Sandbox("/", extra_mounts=[*tmp, *mounts], network=network) as box:
        result = box.run(["sh", "-ec", script], "/tmp", env=env, stderr=STDOUT, timeout=timeout)
    assert result.isolation["seccomp"] == "builds"
    assert (result.exit, result.timed_out) == (0, False), (result.out or b"")[-3000:]
    return result.out or b""


PROGRAMS = {
    "strace": "strace -f -o log sh -c 'true; true' && grep -q execve log",
    "gdb": "gdb -q -batch -ex 'break exit' -ex run -ex bt -ex kill true | grep -q 'Breakpoint 1'",
    "git": "git init -q r && cd r && echo x > f && git add f && git -c user.name=x -c user.email=x "
    "commit -qm x && git gc -q && git fsck && git clone -q . ../s && cmp f ../s/f",
    "tar": "mkdir d && echo x > d/f && ln d/f d/g && mkfifo d/p && tar --xattrs -czf a.tgz d && "
    "mkdir e && tar --xattrs -xzf a.tgz -C e && cmp d/f e/d/g",
    "node": 'node -e \'const {Worker, isMainThread} = require("worker_threads"); '
    'require("child_process").execSync("true"); require("fs").readFileSync("/etc/passwd"); '
    'new Worker("process.exit(0)", {eval: true}).on("exit", c => process.exit(c))\'',
    "javac": "printf 'public class A { public static void main(String[] a) throws Exception {"
    "Thread t = new Thread(() -> System.out.println(42)); t.start(); t.join(); } }' > A.java && "
    "javac A.java && java A | grep -q 42",
    "cargo": "cargo init -q --vcs none --name demo demo && cd demo && cargo run -q --offline",
    "setarch": "setarch linux32 uname -m | grep -q i686 && setarch --addr-no-randomize true",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program(name: str) -> None:
    require(shutil.which(name), f"there is no {name}")
    env = {**os.environ, "RUSTUP_HOME": os.path.expanduser("~/.rustup")}
    script = PROGRAMS[name]
    if name == "cargo":
        script = f"export RUSTUP_HOME={env['RUSTUP_HOME']} CARGO_HOME=/tmp/cargo; {script}"
    inside(script)


@pytest.mark.parametrize("name", ["test_os", "test_posix", "test_signal", "test_subprocess"])
def test_pythons_own_tests(name: str, tmp_path: Path) -> None:
    """Those that fail here fail outside as well."""
    file = Path(sysconfig.get_path("stdlib"), "test", f"{name}.py")
    found = file.exists() or file.with_suffix("").exists()
    require(found, "Python is installed without its tests")
    argv = [os.path.realpath(sys.executable), "-m", "test", "-v", name]

    def failed(text: bytes) -> set[str]:
        return set(re.findall(r"^(?:FAIL|ERROR): (\w+)", text.decode(errors="replace"), re.M))

    done = subprocess.run(
        argv, cwd=tmp_path, capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=250
    )
    outside = failed(done.stdout + done.stderr)
    with Sandbox("/", extra_mounts=[Mount.tmpfs("/tmp")]) as box:
        result = box.run(argv, "/tmp", stderr=STDOUT, timeout=250)
    text = result.out or b""
    assert b"Total tests: run=" in text or b"Ran " in text, text[-2000:]
    assert failed(text) - outside == set()
