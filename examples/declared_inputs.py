# SPDX-License-Identifier: Apache-2.0
"""Compiles each C file in a root of its own, which has nothing but what the step declares:

python examples/declared_inputs.py SOURCES OUT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sandboxlib import Command, CommandFailed, Mount, Overlay, Runner, Sandbox, Tree

SYSTEM = ("bin", "lib", "lib64", "etc/alternatives")


# [root]
def toolchain() -> Sandbox:
    """An empty root with the machine's compiler. What a step writes goes with the step."""
    mounts = [Mount.directory("/tmp"), Mount.directory("/proc"), Mount.directory("/dev")]
    mounts.append(Mount.bind("/usr", "/usr", read_only=True))
    for name in SYSTEM:
        if os.path.islink(f"/{name}"):
            mounts.append(Mount.symlink(os.readlink(f"/{name}"), f"/{name}"))
        elif os.path.isdir(f"/{name}"):
            mounts.append(Mount.bind(f"/{name}", f"/{name}", read_only=True))
    return Sandbox(Overlay(), extra_mounts=mounts)


# [build]
def build(runner: Runner, sources: Path, out: Path) -> list[str]:
    headers = Tree(sources, exclude=["**/*.c"])
    steps = [
        Command(
            ["cc", "-c", path.name, "-o", f"/out/{path.stem}.o"],
            "/src",
            inputs={"/src": headers, f"/src/{path.name}": path},
            outputs=["/out/*.o"],
            timeout=60,
        )
        for path in sorted(sources.glob("*.c"))
    ]
    made: list[str] = []
    for result in runner.map(steps):
        made += result.outputs.collect(out, below="/out")
    return made


# [explain]
def explain(box: Sandbox, error: CommandFailed, sources: Path) -> str:
    """Which files of the project the step asked for, and had not declared."""
    assert isinstance(error.command, Command)
    missing = box.trace(error.command).missing
    known = {f"/src/{path.relative_to(sources)}" for path in sources.rglob("*")}
    lacking = [path for path in missing if os.path.normpath(path) in known]
    return f"not declared: {' '.join(lacking)}" if lacking else str(error)


# [end]


def main() -> int:
    sources, out = Path(sys.argv[1]), Path(sys.argv[2])
    with toolchain() as box:
        try:
            print("made", *build(box, sources, out))
        except CommandFailed as error:
            print(explain(box, error, sources), file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
