# SPDX-License-Identifier: Apache-2.0
"""The digest of a Command in a Sandbox: that of an Action of the Remote Execution API.

The Action has all that the result of the command may depend on, and nothing of the caller or the
machine: so two machines find the same digest. What the API has no field for is JSON in its salt
(salt.py). docs/digest.md lists what is in and what is not. not_hermetic() in hermetic.py names what
has no digest at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from .. import _reapi
from .._inputs.snapshot import Folder, encoded, merged
from .._inputs.tree import node_of
from .._runs.job import deterministic_environment
from .._spec.command import Command, whole_environment
from .._spec.inputs import inside
from .._spec.spec import Spec
from .hermetic import refuse
from .salt import salt_of


def digest(command: Command, box: Spec, assume: Iterable[str]) -> str:
    """The digest. SpecError for what not_hermetic() names, unless `assume` has its name."""
    refuse(command, box, assume)
    return _reapi.digest_of(action_message(command, box))


def action_message(command: Command, box: Spec, more: Mapping[str, object] | None = None) -> bytes:
    """The Action of a Command in a Sandbox. more: as in salt_of()."""
    return _reapi.action(
        _reapi.digest_of(command_message(command, box)),
        encoded(input_root(command, box)),
        command.timeout,
        salt_of(command, box, more),
    )


def input_root(command: Command, box: Spec) -> Folder:
    """The inputs of a Command as one directory, from '/' on."""
    cwd = box._cwd_of(command)
    places = {inside(path, cwd): value for path, value in command.inputs.items()}
    return merged(places, node_of)


def command_message(command: Command, box: Spec) -> bytes:
    """The Command of the API that is in the Action."""
    extra_env = command.extra_env
    if box.deterministic:
        extra_env = deterministic_environment(extra_env, box._env_of(command))
    variables = whole_environment(extra_env, box._env_of(command))
    return _reapi.command(
        command._argv,
        {os.fsencode(name): os.fsencode(value) for name, value in variables.items()},
        [os.fsencode(_output(pattern, box._cwd_of(command))) for pattern in command.outputs],
        os.fsencode(box._cwd_of(command) or "/").strip(b"/"),
    )


def _output(pattern: str, cwd: str | None) -> str:
    """An output as the API has it, relative to the cwd; one that lies elsewhere starts with '/'."""
    path, above = inside(pattern, cwd), inside("x", cwd).removesuffix("x")
    return path.removeprefix(above)
