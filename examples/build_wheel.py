# SPDX-License-Identifier: Apache-2.0
"""pypa/build, whose hooks run in a sandbox: `pip install build sandboxlib`, then

    python examples/build_wheel.py SOURCE OUT

pip fetches what the build requires with the network, outside of the sandbox. What comes from SOURCE
(setup.py, its backend) has no network and sees no process but its own; it may write to SOURCE, to
OUT and to a directory of the build.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence

from build import ProjectBuilder
from build.env import DefaultIsolatedEnv

from sandboxlib import Mount, Sandbox


def build(source: str, out: str) -> str:
    source, out = os.path.realpath(source), os.path.realpath(out)
    with tempfile.TemporaryDirectory(prefix="build.") as work:
        tempfile.tempdir = work  # there build makes its environment, and talks with the hooks
        # The environment of this Python may lie in /tmp, which is empty inside.
        mounts = [Mount.bind(sys.prefix, sys.prefix, read_only=True)]
        mounts += [Mount.bind(path, path) for path in (source, out, work)]
        with Sandbox("/", extra_mounts=mounts) as box, DefaultIsolatedEnv() as environment:

            def runner(
                cmd: Sequence[str],
                cwd: str | None = None,
                extra_environ: Mapping[str, str] | None = None,
            ) -> None:
                env = {**os.environ, **(extra_environ or {}), "TMPDIR": work}
                box.run(cmd, cwd=cwd, env=env, stdout=2, stderr=2, check=True)

            builder = ProjectBuilder.from_isolated_env(environment, source, runner)
            environment.install(builder.build_system_requires)
            environment.install(builder.get_requires_for_build("wheel"))
            return builder.build("wheel", out)


if __name__ == "__main__":
    os.makedirs(sys.argv[2], exist_ok=True)
    print(build(*sys.argv[1:]))
