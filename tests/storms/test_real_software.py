# SPDX-License-Identifier: Apache-2.0
"""Real software under the default filter, as root: what works outside works inside."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lib.boxes import open_box
from lib.machine import needs_root, require

from sandboxlib import STDOUT, Mount, Sandbox

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


class Archive:
    """The machine's own Debian archive, and an apt that keeps its state in a directory of ours."""

    def __init__(self, work: Path) -> None:
        release = Path("/etc/os-release").read_text()
        found = re.search(r"^VERSION_CODENAME=(\w+)$", release, re.M)
        is_debian = re.search(r"^ID=debian$", release, re.M)
        require(found and is_debian and shutil.which("apt-get"), "the machine is no Debian release")
        assert found
        self.codename = found[1]
        words = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"]
        listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        uris = re.findall(rf"^(\S+) {self.codename} main$", listed, re.M)
        require(uris, "apt has no archive of the machine's own release")
        self.uri = uris[0].rstrip("/")
        dumped = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True)
        proxies = r"^Acquire::\S*proxy\S* .*;$"
        self.proxies = "".join(
            line + "\n" for line in re.findall(proxies, dumped.stdout, re.M | re.I)
        )
        self.config = self._configured(work)

    def _configured(self, work: Path) -> Path:
        """A configuration without the machine's hooks, which clean up after apt on the machine."""
        for name in ("state/lists/partial", "cache/archives/partial"):
            (work / name).mkdir(parents=True)
        keys = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
        (work / "sources.list").write_text(f"deb-src {keys} {self.uri} {self.codename} main\n")
        lines = (
            f'Dir::Etc::sourcelist "{work}/sources.list";',
            *('Dir::Etc::sourceparts "-";', 'Dir::Etc::parts "-";', 'Dir::Etc::main "-";'),
            *(f'Dir::State "{work}/state";', f'Dir::Cache "{work}/cache";'),
            'APT::Sandbox::User "root";',
        )
        config = work / "apt.conf"
        config.write_text("\n".join(lines) + "\n" + self.proxies)
        return config

    def get(self, *words: str, cwd: Path) -> None:
        env = {**os.environ, "APT_CONFIG": str(self.config)}
        _fetch(["apt-get", "-q", *words], cwd, env)


def _fetch(argv: list[str], cwd: Path, env: dict[str, str]) -> None:
    """Runs what needs the archive; a machine that cannot reach it skips."""
    done = subprocess.run(
        argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, check=False, timeout=300,
    )  # fmt: skip
    require(done.returncode == 0, f"{argv[:2]} failed: {done.stdout.decode()[-500:]}")


def _remove(tree: Path) -> None:
    """Leaves a tree with a mount below it where it is: removing it would reach into the mount."""
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    assert not [at for at in mounted if Path(at).is_relative_to(tree)]
    shutil.rmtree(tree)


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """Not below /tmp, which the sandboxes here cover."""
    work = Path(tempfile.mkdtemp(prefix="sandboxlib-real.", dir="/var/tmp")).resolve()
    work.chmod(0o755)
    yield work
    _remove(work)


@pytest.fixture(scope="session")
def archive(scratch: Path) -> Archive:
    return Archive(scratch)


@pytest.fixture(scope="session")
def debian(scratch: Path, archive: Archive) -> Path:
    require(shutil.which("debootstrap"), "there is no debootstrap")
    root = scratch / "root"
    env = dict(os.environ)
    proxy = re.search(r'^Acquire::http::proxy "(.+)";$', archive.proxies, re.M | re.I)
    if proxy:
        env["http_proxy"] = proxy[1]
    # debootstrap mounts a proc in the root meanwhile: not in the host's namespace.
    argv = ["unshare", "--mount", "--propagation", "private"]
    argv += ["debootstrap", "--variant=minbase", archive.codename, str(root), archive.uri]
    _fetch(argv, scratch, env)
    (root / "etc/apt/apt.conf.d/90proxy").write_text(archive.proxies)
    return root


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
