# SPDX-License-Identifier: Apache-2.0
"""Compiles again only the C files whose command, source or headers changed since the last time:

python examples/incremental_build.py SOURCES OUT
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from sandboxlib import CommandFailed, Mount, Sandbox

INSIDE = "/tmp/src"


# [digest]
def digest(argv: list[str], sources: Path, out: Path, name: str) -> str:
    """What an object depends on: its command, and the files that the compiler read for it."""
    depends = out / f"{name}.d"
    read = depends.read_text().replace("\\\n", " ").split()[1:] if depends.exists() else []
    content = hashlib.sha256("\0".join(argv).encode())
    for path in sorted({name, *read}):
        file = sources / path.removeprefix(f"{INSIDE}/")
        content.update(file.read_bytes() if file.exists() else b"missing")
    return content.hexdigest()


# [build]
def build(sources: Path, out: Path) -> list[str]:
    state_file = out / "state.json"
    state: dict[str, str] = json.loads(state_file.read_text()) if state_file.exists() else {}
    commands = {
        path.name: [
            *("cc", "-c", path.name, "-o", f"/tmp/out/{path.stem}.o"),
            *("-MMD", "-MF", f"/tmp/out/{path.name}.d"),
        ]
        for path in sorted(sources.glob("*.c"))
    }
    stale = [n for n, argv in commands.items() if state.get(n) != digest(argv, sources, out, n)]
    mounts = [Mount.bind(sources, INSIDE, read_only=True), Mount.bind(out, "/tmp/out")]
    with Sandbox("/", extra_mounts=mounts) as box:
        try:
            for result in box.map((commands[n] for n in stale), cwd=INSIDE, timeout=60):
                name = stale[result.number]
                state[name] = digest(commands[name], sources, out, name)
        finally:  # what did compile is kept, also after a failure
            state_file.write_text(json.dumps(state))
    return stale


# [end]


def main() -> int:
    try:
        stale = build(Path(sys.argv[1]), Path(sys.argv[2]))
    except CommandFailed as error:
        print(error, file=sys.stderr)
        return 1
    print(f"compiled {len(stale)}: {' '.join(stale)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
