# SPDX-License-Identifier: Apache-2.0
"""Job: a command, encoded for the C core."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from .._spec.command import Command, encode_environment
from .._spec.spec import Spec
from .._values import ENCODING, caller_directory
from ..errors import SpecError

# ---- the job ---------------------------------------------------------------------------------


class Job:
    """A command as the core takes it: one blob of strings, each ended by a NUL.

    argv, settings, search: as in Command, encoded and checked. cwd_or_root: bool. True: the command
    runs in "/" if the sandbox has no such cwd. program: bytes, what to run if it is not argv[0].
    """

    def __init__(
        self,
        argv: Sequence[bytes],
        cwd: str,
        settings: Sequence[bytes],
        search: Sequence[bytes],
        cwd_or_root: bool = False,
        program: bytes | None = None,
    ) -> None:
        self._program = program = argv[0] if program is None else program
        if b"/" in program:
            self._paths = [program]
        else:
            self._paths = [directory + program for directory in search]
        self.cwd = cwd
        encoded = cwd.encode(ENCODING, "surrogateescape")
        self.counts = len(self._paths), len(argv), len(settings), int(cwd_or_root)
        self.blob = b"\0".join([encoded, *self._paths, *argv, *settings, b""])
        self.cwd_size = len(encoded) + 1

    @property
    def program(self) -> str:
        """The program as it was named: the executable, or the first argument of the command."""
        return os.fsdecode(self._program)

    @property
    def argv(self) -> list[str]:
        """The words of the command."""
        n_paths, n_words = self.counts[:2]
        words = self.blob.split(b"\0")[1 + n_paths : 1 + n_paths + n_words]
        return [os.fsdecode(word) for word in words]

    @property
    def paths(self) -> list[str]:
        """The paths at which the program is looked up, in order."""
        return [os.fsdecode(path) for path in self._paths]


def job_of(command: Command, box: Spec) -> Job:
    """The Job of a Command in a Sandbox. SetupError if its cwd is the caller's directory, and that
    was removed; SpecError if it asks for changes, which the root does not have.
    """
    if command.changes != "drop" and box._overlay is None:
        text = "takes a root that is an Overlay: a directory is changed in place"
        raise SpecError(f"changes={command.changes!r} {text}; Overlay(root) is one")
    cwd = command.cwd
    if cwd is None:
        cwd = box._cwd_of(command)
    or_root = cwd is None
    if cwd is None:
        cwd = caller_directory() if box._directory == "/" else "/"
    settings, search = command._settings, command._search
    env = box._env_of(command)
    if box.deterministic or env is not command.env:
        extra_env = command.extra_env
        if box.deterministic:
            extra_env = deterministic_environment(extra_env, env)
        settings, search = encode_environment(extra_env, env)
    program = None if command.executable is None else os.fsencode(command.executable)
    return Job(command._argv, cwd, settings, search, or_root, program)


def deterministic_environment(
    extra_env: Mapping[str, str] | None, env: Mapping[str, str] | None
) -> dict[str, str]:
    """The extra_env of a deterministic Sandbox: fixed variables, unless the caller sets them."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "315532800")  # 1980, the first year of a zip file
    fixed = {"TZ": "UTC", "LC_ALL": "C", "SOURCE_DATE_EPOCH": epoch}
    return {**{k: v for k, v in fixed.items() if k not in (env or ())}, **(extra_env or {})}
