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
from lib.boxes import open_box
from lib.machine import needs_root, require

from sandboxlib import STDOUT, Mount, Sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lib.debian import Archive

pytest_plugins = ["lib.debian"]

pytestmark = [needs_root, pytest.mark.slow, pytest.mark.timeout(900)]


def inside(script: str, *mounts: Mount, timeout: float = 250, network: str = "isolated") -> bytes:
    """Run a shell in a sandbox over the machine's root, which must succeed; return its output."""
    env = {"PATH": os.environ["PATH"], "HOME": "/tmp"}
    tmp = [Mount.tmpfs("/tmp")]
    with open_box("/", extra_mounts=[*tmp, *mounts], network=network) as box:
        result = box.run(["sh", "-ec", script], cwd="/tmp", env=env, stderr=STDOUT, timeout=timeout)
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


#: AF_VSOCK and AF_ALG, which the default filter refuses and Python's tests find by trying.
LEFT_OUT = {"test_socket": ["*VSOCK*", "*VirtualSock*", "*Alg*"]}


@pytest.mark.parametrize(
    "name", ["test_os", "test_posix", "test_signal", "test_socket", "test_subprocess"]
)
def test_pythons_own_tests(name: str, tmp_path: Path) -> None:
    """Those that fail here fail outside as well."""
    file = Path(sysconfig.get_path("stdlib"), "test", f"{name}.py")
    found = file.exists() or file.with_suffix("").exists()
    require(found, "Python is installed without its tests")
    ignored = [word for pattern in LEFT_OUT.get(name, []) for word in ("-i", pattern)]
    argv = [os.path.realpath(sys.executable), "-m", "test", "-v", *ignored, name]

    def failed(text: bytes) -> set[str]:
        return set(re.findall(r"^(?:FAIL|ERROR): (\w+)", text.decode(errors="replace"), re.M))

    done = subprocess.run(
        argv, cwd=tmp_path, capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=250
    )
    outside = failed(done.stdout + done.stderr)
    with open_box("/", extra_mounts=[Mount.tmpfs("/tmp")]) as box:
        result = box.run(argv, cwd="/tmp", stderr=STDOUT, timeout=250)
    text = result.out or b""
    assert b"Total tests: run=" in text or b"Ran " in text, text[-2000:]
    assert failed(text) - outside == set()


def test_apt_installs_a_package(debian: Path) -> None:
    """With apt's change to the user _apt, dpkg's chroot and chown, and the package's scripts."""
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"}
    script = "apt-get -q update && apt-get -qy install hello && hello && dpkg -s hello"
    with Sandbox(debian, network="undefined", filesystem_writable_paths="all") as box:
        result = box.run(["sh", "-ec", script], cwd="/", env=env, stderr=STDOUT, timeout=300)
    text = (result.out or b"").decode(errors="replace")
    assert result.isolation["seccomp"] == "builds"
    assert (result.exit, result.timed_out) == (0, False), text[-3000:]
    assert "Hello, world!" in text
    assert "Status: install ok installed" in text


#: The line that sums up the checks of each.
SUMMARIES = {"hello": r"^# [A-Z]+: +\d+$", "ed": r"^tests? .*$"}


@pytest.mark.parametrize("name", SUMMARIES)
def test_configure_make_check(name: str, scratch: Path, archive: Archive) -> None:
    """A package of GNU's, built and checked inside and outside: the same statuses and sums."""
    require(shutil.which("make") and shutil.which("gcc"), "there is no compiler")
    work = scratch / name
    work.mkdir()
    archive.get("update", cwd=work)
    archive.get("source", "--download-only", name, cwd=work)
    (tarball,) = (path for path in work.glob("*.orig.tar.*") if path.suffix != ".asc")
    builds = [work / "outside", work / "inside"]
    for build in builds:
        build.mkdir()
        unpack = ["tar", "-xf", tarball, "-C", build, "--strip-components=1", "--no-same-owner"]
        subprocess.run(unpack, check=True)
    # Each step says its status, and the next one starts only after a success.
    steps = ("./configure", "make", "make check")
    script = " && ".join(f"{{ {step}; s=$?; echo {step}: $s; [ $s = 0 ]; }}" for step in steps)
    argv = ["sh", "-c", script]
    env = {"PATH": os.environ["PATH"], "HOME": "/tmp", "FORCE_UNSAFE_CONFIGURE": "1"}
    done = subprocess.run(
        argv, cwd=builds[0], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, check=False, timeout=300,
    )  # fmt: skip
    writable = [str(builds[1]), "/tmp"]
    tmp = [Mount.tmpfs("/tmp")]
    with open_box("/", extra_mounts=tmp, filesystem_writable_paths=writable) as box:
        result = box.run(argv, cwd=builds[1], env=env, stderr=STDOUT, timeout=300)
    assert result.isolation["seccomp"] == "builds"

    def sums(text: bytes) -> list[str]:
        lines = rf"^(?:\./configure|make|make check): \d+$|{SUMMARIES[name]}"
        return re.findall(lines, text.decode(errors="replace"), re.M)

    text = result.out or b""
    assert (result.exit, sums(text)) == (done.returncode, sums(done.stdout)), text[-3000:]
    assert "make check: 0" in sums(text), text[-3000:]
    assert len(sums(text)) > len(steps)
