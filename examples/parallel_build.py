# SPDX-License-Identifier: Apache-2.0
"""Compiles every C file of a directory, a few at a time and each in a sandbox, and links them:

python examples/parallel_build.py SOURCES OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from sandboxlib import CommandFailed, Mount, Sandbox


# [build]
def show(done: int, total: int) -> None:
    bar = "#" * (30 * done // total)
    print(f"\r[{bar:<30}] {done}/{total}", end="", file=sys.stderr, flush=True)


def build(sources: Path, out: Path) -> None:
    names = sorted(path.name for path in sources.glob("*.c"))
    box = Sandbox(
        "/",  # the machine's compiler; nothing of it can be written to
        extra_mounts=[
            Mount.bind(sources, "/tmp/src", read_only=True),
            Mount.bind(out, "/tmp/out"),
        ],
    )
    compiles = [["cc", "-O1", "-c", name, "-o", f"/tmp/out/{name}.o"] for name in names]
    link = ["cc", *(f"{name}.o" for name in names), "-o", "program"]
    with box:
        for result in box.map(
            compiles,
            ordered=False,
            cwd="/tmp/src",
            timeout=60,
            progress=lambda done, _: show(done, len(names)),
        ):
            if result.stderr:  # warnings of a file that compiled
                print(f"\n{names[result.number]}: {result.stderr.decode()}", file=sys.stderr)
        box.run(link, cwd="/tmp/out", timeout=60).check()


# [end]


def main() -> int:
    try:
        build(Path(sys.argv[1]), Path(sys.argv[2]))
    except CommandFailed as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    print(f"\n{sys.argv[2]}/program", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
