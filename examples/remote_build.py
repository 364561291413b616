# SPDX-License-Identifier: Apache-2.0
"""Compiles every C file of a directory on the workers of a remote execution server:

python examples/remote_build.py grpc://HOST:PORT SOURCES OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from sandboxlib import Command, Overlay, Remote, Runner, Sandbox, Server


# [build]
def build(runner: Runner, sources: Path, out: Path) -> None:
    headers = {path.name: path for path in sources.glob("*.h")}
    steps = [
        Command(
            ["cc", "-O1", "-c", path.name, "-o", f"{path.name}.o"],
            "/src",
            inputs={path.name: path, **headers},
            outputs=[f"{path.name}.o"],
            timeout=60,
        )
        for path in sorted(sources.glob("*.c"))
    ]
    for result in runner.map(steps, jobs=16):
        result.outputs.collect(out, below="/src")


def main(url: str, sources: Path, out: Path) -> None:
    with Server(url) as server:
        # Overlay(): the root is that of the worker, which has a compiler
        build(Remote(Sandbox(Overlay()), server, platform={"OSFamily": "linux"}), sources, out)


# [end]
if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
