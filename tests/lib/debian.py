# SPDX-License-Identifier: Apache-2.0
"""A root of Debian, from the machine's own archive.

A pytest plugin: `pytest_plugins = ["lib.debian"]`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lib.machine import require


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
