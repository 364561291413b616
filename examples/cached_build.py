# SPDX-License-Identifier: Apache-2.0
"""Compiles each C file of a directory once for all who ask the same server:

python examples/cached_build.py grpc://cache:8980 SOURCES OUT
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sandboxlib import Cached, Command, Mount, Overlay, Runner, Sandbox, Server, Tree


# [root]
def toolchain() -> Sandbox:
    """An empty root with the machine's compiler, which is the same wherever the cache is used."""
    mounts = [Mount.bind("/usr", "/usr", read_only=True)]
    mounts += [Mount.directory(path) for path in ("/tmp", "/proc", "/dev")]
    for name in ("bin", "lib", "lib64"):
        if os.path.islink(f"/{name}"):
            mounts.append(Mount.symlink(os.readlink(f"/{name}"), f"/{name}"))
        elif os.path.isdir(f"/{name}"):
            mounts.append(Mount.bind(f"/{name}", f"/{name}", read_only=True))
    if os.path.isdir("/etc/alternatives"):
        mounts.append(Mount.bind("/etc/alternatives", "/etc/alternatives", read_only=True))
    return Sandbox(Overlay(), extra_mounts=mounts, deterministic=True)


# [build]
def build(runner: Runner, sources: Path, out: Path) -> int:
    """Builds with any Runner. Returns how many of the results were in a cache."""
    version = subprocess.run(["cc", "--version"], capture_output=True, check=True).stdout
    headers = Tree(sources, exclude=["**/*.c"])
    steps = [
        Command(
            ["cc", "-c", path.name, "-o", f"/out/{path.stem}.o"],
            "/src",
            extra_env={"COMPILER": version},  # so that it is in the key
            inputs={"/src": headers, f"/src/{path.name}": path},
            outputs=[f"/out/{path.stem}.o"],
            timeout=60,
        )
        for path in sorted(sources.glob("*.c"))
    ]
    hits = 0
    for result in runner.map(steps):
        result.outputs.collect(out, below="/out")
        hits += result.cached
    print(f"{len(steps)} files, {hits} of them from the cache")
    return hits


# [main]
def main(url: str, sources: Path, out: Path) -> None:
    with (
        toolchain() as box,
        Server(url) as server,
        Cached(box, server, write=True, assume=["extra_mounts"]) as cached,
    ):
        build(cached, sources, out)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
