# SPDX-License-Identifier: Apache-2.0
"""fromager, whose builds run in a sandbox: `pip install fromager sandboxlib`, then

    python examples/fromager_in_sandbox.py bootstrap flit_core

takes the arguments of fromager. Sources are fetched with the network, as ever. What comes from them
(the hooks of a build) has no network, sees no process but its own, has a /tmp of its own, and may
write below the current directory alone.
"""

from __future__ import annotations

import os
import sys

from sandboxlib import Mount, Sandbox


def run(place: str, *command: str) -> int:
    """Run a command of a build for fromager. place: the directory that it may write to."""
    # The environment of this Python may lie in /tmp, which is empty inside.
    mounts = [Mount.bind(sys.prefix, sys.prefix, read_only=True), Mount.bind(place, place)]
    box = Sandbox("/", extra_mounts=mounts)
    done = box.run(command, cwd=os.getcwd(), env=os.environ, stdin=0, stdout=1, stderr=2)
    return done.exit if done.exit >= 0 else 128 - done.exit


def main() -> int:
    from fromager import external_commands

    # fromager puts these words before each command that is to have no network. Before its command
    # line is imported, as that tries them.
    external_commands.NETWORK_ISOLATION = [sys.executable, __file__, "--inside", os.getcwd()]
    # The home directory is read-only in the sandbox, and /tmp another one.
    for name, directory in (("UV_CACHE_DIR", "uv-cache"), ("TMPDIR", "tmp")):
        os.environ[name] = os.path.abspath(directory)
        os.makedirs(directory, exist_ok=True)
    from fromager.__main__ import invoke_main

    invoke_main()
    return 0


if __name__ == "__main__":
    sys.exit(run(*sys.argv[2:]) if sys.argv[1:2] == ["--inside"] else main())
