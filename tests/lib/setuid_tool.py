# SPDX-License-Identifier: Apache-2.0
"""A set-user-ID linux-user-chroot for the tests, out of reach of every other process.

The program is tests/lib/linux-user-chroot.c. The machine's own file tree has only a copy without
privilege. Each call makes a mount namespace, mounts a tmpfs in it, installs the program there and
becomes an ordinary user; all of that ends with the last process of the call.

A pytest plugin: `pytest_plugins = ["lib.setuid_tool"]`.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lib.machine import python, require
from lib.roots import make_rootfs

import sandboxlib

#: Only root can write here, so sandboxlib trusts programs in it; and every user can read it.
SAFE = "/var/lib"
SOURCE = Path(__file__).with_name("linux-user-chroot.c")
NOBODY = 65534
VARIANTS = {"2015.1": [], "2013.1": ["-DVERSION_2013"], "file binds": ["-DFILE_BINDS"]}

# $1: the directory for the tmpfs, $2: the program, $3: its mode, $4: mount options. Then, up to --,
# pairs: a directory that the user cannot pass, which a tmpfs covers, and a directory below it that
# the user needs, which is bound there again.
IN_NAMESPACE = """
set -e
place=$1 program=$2 mode=$3 options=$4
shift 4
mount -t tmpfs -o "mode=0755,$options" sandboxlib "$place"
install -o 0 -g 0 -m "$mode" "$program" "$place/linux-user-chroot"
while [ "$1" != -- ]; do
    mkdir "$place/needed"
    mount --rbind "$2" "$place/needed"
    mount -t tmpfs -o mode=0755 sandboxlib "$1"
    mkdir -p "$2"
    mount --move "$place/needed" "$2"
    rmdir "$place/needed"
    shift 2
done
shift
exec "$@"
"""


class SetuidTool:
    """Runs programs as an ordinary user, with the tool in PATH."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.place = base / "tool"
        self.path = str(self.place / "linux-user-chroot")

    def run(
        self,
        *argv: str | Path,
        uid: int = NOBODY,
        variant: str = "2015.1",
        mode: str = "4755",
        options: str = "suid",
        before: tuple[str, ...] = (),
        timeout: float = 110,
        **env: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run argv as a user. before: a program that starts it, such as ('setpriv', '--nnp')."""
        program = self.base / variant
        args = [str(self.place), str(program), mode, options, *_unreachable(), "--"]
        become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        wrapper = ["unshare", "--mount", "sh", "-c", IN_NAMESPACE, "sh", *args, *become, *before]
        return subprocess.run(
            [*wrapper, *map(str, argv)],
            env={"PATH": f"{self.place}:/usr/bin:/bin:/usr/sbin:/sbin", **env},
            cwd=self.base,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def tool(
        self, *args: str | Path, uid: int = NOBODY, variant: str = "2015.1", **env: str
    ) -> tuple[int, str, str]:
        """Run the tool itself. Returns (exit, out, err)."""
        done = self.run(self.path, *args, uid=uid, variant=variant, **env)
        return done.returncode, done.stdout, done.stderr

    def python(
        self,
        script: str,
        *args: str | Path,
        uid: int = NOBODY,
        variant: str = "2015.1",
        before: tuple[str, ...] = (),
        **env: str,
    ) -> str:
        """Run a Python script with sandboxlib, which must succeed, and return its output."""
        env = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(_package().parent), **env}
        argv = [*python(), "-W", "error", "-c", script, *args]
        done = self.run(*argv, uid=uid, variant=variant, before=before, **env)
        assert done.returncode == 0, done.stderr
        return done.stdout


def _package() -> Path:
    return Path(sandboxlib.__file__).resolve().parent


def _unreachable() -> list[str]:
    """Pairs: the uppermost directory that others cannot pass, and one below it that they need."""
    pairs = []
    for needed in {Path(sys.base_prefix), Path(sys.prefix), _package()}:
        for above in [*reversed(needed.parents), needed]:
            if not above.stat().st_mode & stat.S_IXOTH:
                pairs += [str(above), str(needed)]
                break
    return pairs


@pytest.fixture(scope="session")
def setuid_tool() -> Iterator[SetuidTool]:
    """The compiled tool, and methods that run programs as a user who may use it."""
    if os.geteuid() != 0:
        pytest.skip("a set-user-ID program is installed by root")
    for program in ("cc", "unshare", "setpriv", "install"):
        require(shutil.which(program), f"there is no {program}")
    base = Path(tempfile.mkdtemp(prefix="sandboxlib-luc.", dir=SAFE))
    try:
        base.chmod(0o755)
        (base / "tool").mkdir()
        for variant, flags in VARIANTS.items():
            warnings = ["-O2", "-Wall", "-Wextra", "-Wshadow", "-Werror"]
            argv = ["cc", *warnings, *flags, str(SOURCE), "-o", str(base / variant)]
            subprocess.run(argv, check=True)
        yield SetuidTool(base)
    finally:
        shutil.rmtree(base)


@pytest.fixture
def user_rootfs(setuid_tool: SetuidTool) -> Iterator[Path]:
    """A root with busybox that belongs to the ordinary user, below no other mount than /."""
    place = Path(tempfile.mkdtemp(dir=setuid_tool.base))
    try:
        place.chmod(0o755)
        root = make_rootfs(place / "root")
        for directory, _, files in os.walk(place):
            for name in (".", *files):
                os.chown(os.path.join(directory, name), NOBODY, NOBODY, follow_symlinks=False)
        yield root
    finally:
        shutil.rmtree(place)
