# SPDX-License-Identifier: Apache-2.0
"""Trace: the paths that a run asked for."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator

from .. import _types
from .._choice import choose
from .._core import trace as flags_of
from .._host import machine
from .._runs.job import job_of
from .._runs.tracing import Tracer
from .._spec.command import Command
from .._spec.inputs import inside
from .._spec.policy import Profile, names_of
from .._spec.spec import Spec
from .._values import check_choice
from ..errors import SetupError, SpecError, UnsupportedError, printable
from ..result import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FOUND, _MISSING = flags_of.FOUND, flags_of.MISSING
_USED = flags_of.OPENED | flags_of.EXECED
_USES = ((flags_of.OPENED, "opened"), (flags_of.EXECED, "executed"))
#: Why the kernel refuses the listener (seccomp(2)).
_REFUSED = {
    errno.EBUSY: "this process, or a container of its, is watched in the same way already, and the"
    " kernel allows that once",
    errno.EPERM: "a system call filter of this process, as that of a container, forbids it",
    errno.EACCES: "it takes no_new_privs, or the capability sys_admin",
    errno.EINVAL: "the kernel is older than Linux 5.5",
    errno.ENOSYS: "the kernel has no seccomp",
}


class Trace:
    """What Sandbox.trace saw. Paths are absolute, as the sandbox names them, sorted, each once.

    result: Result, of the run.
    missing: tuple of str, paths that the command asked for and did not find, and that nothing of
        the run found or made later. An undeclared input is here.
    unused: tuple of str, inputs of the Command that the run never opened or executed. A Tree is
        here if nothing in it was opened.
    opened: tuple of str, files and directories that were opened, also to be written. They have the
        names of the files that links lead to.
    executed: tuple of str, the same of programs; of a script its interpreter too, and of a program
        its dynamic loader (ld.so(8)).
    paths: str, 'opens' or 'all', which calls were seen.
    calls: int, how many.
    unknown: int, of how many the path or its file is not known: the caller may not look there.
    truncated: bool. True: there were more paths than a Trace holds (98,304, of 16 MiB), and those
        that came later are lacking.
    """

    __module__ = "sandboxlib"  # as callers import it

    def __init__(
        self,
        result: Result,
        missing: Iterable[str] = (),
        unused: Iterable[str] = (),
        *,
        opened: Iterable[str] = (),
        executed: Iterable[str] = (),
        paths: _types.Depth = "opens",
        calls: int = 0,
        unknown: int = 0,
        truncated: bool = False,
    ) -> None:
        self.result = result
        self.missing = tuple(sorted(missing))
        self.unused = tuple(sorted(unused))
        self.opened = tuple(sorted(opened))
        self.executed = tuple(sorted(executed))
        self.paths = paths
        self.calls = calls
        self.unknown = unknown
        self.truncated = truncated

    def __repr__(self) -> str:
        parts = [f"exit={self.result.exit}"]
        for name in ("missing", "unused", "opened", "executed"):
            values = getattr(self, name)
            parts.append(f"{name}={values!r}" if len(values) <= 3 else f"{len(values)} {name}")
        if self.truncated:
            parts.append("truncated")
        return f"<sandboxlib.Trace: {', '.join(parts)}>"

    def __str__(self) -> str:
        """The missing and the unused paths, one a line, for people."""
        lines = []
        for title, paths in (
            ("asked for, and not found:", self.missing),
            ("declared, and never opened:", self.unused),
        ):
            lines += [title, *(f"    {printable(path)}" for path in paths)] if paths else []
        if not lines:
            lines.append("every path that it asked for was found")
        if self.unknown:
            lines.append(f"of {self.unknown} calls the path is not known")
        if self.truncated:
            lines.append("there were more paths than a trace holds: some are lacking")
        return "\n".join(lines)


def trace(box: Spec, command: Command, paths: _types.Depth) -> Trace:
    """Runs a Command and sees its paths; see Sandbox.trace."""
    check_choice("paths", paths, ("opens", "all"))
    if box.processes != "isolated":
        raise SpecError(
            "trace takes processes='isolated': a process that outlives the run would have nobody"
            " who answers its calls"
        )
    executor = choose.native_executor_of(box)
    # The search for the program is ours. One that the command makes for the same paths is lost.
    ours = frozenset(job_of(command, box).paths)
    tracer = Tracer(paths == "all", _may_wait(box), _declared(command))
    try:
        with tracer as fd:
            result = executor.run_command(box, command, tracer=fd)
    except SetupError as error:
        if error.step == "trace" and error.errno in _REFUSED:
            text = f"trace: the kernel refuses a listener: {_REFUSED[error.errno]}"
            raise UnsupportedError(f"{text} ({errno.errorcode[error.errno]})") from error
        raise
    return _trace_of(result, tracer, paths, ours)


def _may_wait(box: Spec) -> bool:
    """Whether a file system may lie in the run that a process of the run answers for, or that may
    never answer: then the tracer, which the run waits for, does not wait for it.
    """
    policy = box.policy
    if policy.nesting or policy.seccomp == "none" or isinstance(policy.seccomp, Profile):
        return True
    return "sys_admin" in names_of(policy) or bool(machine.hanging_mounts())


def _declared(command: Command) -> list[str]:
    """The paths of the inputs of a Command."""
    return [inside(path, command.cwd) for path in command.inputs]


def _unused(declared: Iterable[tuple[str, str]], used: Iterable[str]) -> Iterator[str]:
    """The declared paths that were not used, and in which nothing was.

    declared: (path, its name without links) of each. used: as the sandbox names them.
    """
    touched = set(used)
    for path in used:
        above = path.rpartition("/")[0]
        while above and above not in touched:
            touched.add(above)
            above = above.rpartition("/")[0]
    for path, name in declared:
        if path not in touched and name not in touched:
            yield path


def _trace_of(result: Result, tracer: Tracer, paths: _types.Depth, ours: frozenset[str]) -> Trace:
    known: dict[str, int] = {}
    used: set[str] = set()
    for flags, path in tracer.records():
        name = _plain(path)
        if flags & _FOUND and flags & _USED:
            used.add(name)
        if not flags & flags_of.IS_NAMED:
            known[name] = known.get(name, 0) | flags
    found: dict[str, Any] = {
        name: [path for path, flags in known.items() if flags & bit and flags & _FOUND]
        for bit, name in _USES
    }
    missing = {path for path, flags in known.items() if flags & (_MISSING | _FOUND) == _MISSING}
    return Trace(
        result,
        missing - ours,
        _unused(tracer.declared, used),
        **found,
        paths=paths,
        calls=tracer.n_calls,
        unknown=tracer.n_unknown,
        truncated=tracer.is_truncated,
    )


def _plain(path: bytes) -> str:
    """A path without "//", "/./" and "/../", and without a slash at its end. The tracer has
    resolved dots as far as there are directories, so what they follow here is missing, and no link.
    """
    if b"/.." in path:
        path = os.path.normpath(path)
    return "/" + os.fsdecode(
        b"/".join(part for part in path.split(b"/") if part not in (b"", b"."))
    )
