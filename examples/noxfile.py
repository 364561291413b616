# SPDX-License-Identifier: Apache-2.0
"""A noxfile whose tests run in a sandbox: `pip install nox sandboxlib`, then, beside tests/,

    nox -s tests

`session.install` has the network, as ever. What in_sandbox() runs has none, sees no process but its
own, and may write to the project alone; the environment of the session is read-only.
"""

from __future__ import annotations

import os

import nox

from sandboxlib import Mount, Sandbox


def in_sandbox(session: nox.Session, *command: str) -> None:
    """Run a command as session.run does, in a sandbox."""
    project, environment = os.getcwd(), os.path.abspath(session.virtualenv.location)
    mounts = [Mount.bind(project, project), Mount.bind(environment, environment, read_only=True)]
    inherited = {**os.environ, **{k: v for k, v in session.env.items() if v is not None}}
    env = {**inherited, "PATH": f"{session.bin}:{inherited.get('PATH', os.defpath)}"}
    with Sandbox("/", extra_mounts=mounts) as box:
        result = box.run(command, cwd=project, env=env, stdout=1, stderr=2)
    if not result.ok:
        session.error(f"{command[0]} failed: {result}")


@nox.session
def tests(session: nox.Session) -> None:
    session.install("pytest")
    in_sandbox(session, "pytest", "-q", "-p", "no:cacheprovider", "tests")
