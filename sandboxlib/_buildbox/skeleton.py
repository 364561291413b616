# SPDX-License-Identifier: Apache-2.0
"""The directories of an Action that its input root lacks: where it runs, and where outputs go."""

from __future__ import annotations

import os

from .._inputs.snapshot import Folder
from ..errors import SpecError
from .messages import Command, Known

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def place(command: Command, path: str) -> tuple[bytes, ...]:
    """The names of an output from the root on. path: as the Command has it. SpecError."""
    if path.startswith("/"):
        raise SpecError(f"the path of an output is relative to the working directory: {path!r}")
    names: list[bytes] = []
    for name in os.fsencode(f"{command.directory}/{path}").split(b"/"):
        if name == b"..":
            if not names:
                raise SpecError(f"the output {path!r} lies outside of the input root")
            names.pop()
        elif name not in (b"", b"."):
            names.append(name)
    if b"\0" in b"".join(names):
        raise SpecError(f"an output has a name with a zero byte: {path!r}")
    return tuple(names)


def _names(target: str) -> tuple[bytes, ...]:
    """The names of an absolute path; it has no `..`, as the target of a Mount has none."""
    return tuple(name for name in os.fsencode(target).split(b"/") if name not in (b"", b"."))


class Skeleton:
    """The layers of the root, as a context manager: what casd staged, and above it, if directories
    are missing there, a directory with these.

    path: what casd staged. mounts: source, target and whether it is read-only: a target that the
    root lacks is made too, an empty file for a file.
    """

    def __init__(
        self, path: str, folder: Known, command: Command, mounts: Sequence[tuple[str, str, bool]]
    ) -> None:
        self._path, self._folder, self._command = path, folder, command
        self._mounts = mounts
        self._made = ""

    def __enter__(self) -> list[str]:
        missing = dict.fromkeys(self._missing())
        files = [names for names in map(self._file, self._mounts) if names]
        if not missing and not files:
            return [self._path]
        from tempfile import mkdtemp

        self._made = mkdtemp(prefix="sandboxlib-root.")
        try:
            os.chmod(self._made, 0o755)
            for names in missing:
                self._make(names)
            for names in files:
                self._make(names[:-1])
                path = os.path.join(self._made, *map(os.fsdecode, names))
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        except BaseException:
            self.__exit__()
            raise
        return [self._path, self._made]

    def __exit__(self, *error: object) -> None:
        if self._made:
            from shutil import rmtree

            rmtree(self._made)
            self._made = ""

    def _missing(self) -> Iterator[tuple[bytes, ...]]:
        command = self._command
        ways = [place(command, ".")]
        ways += [place(command, path)[:-1] for path, _ in command.outputs]
        ways += [_names(target) for source, target, _ in self._mounts if os.path.isdir(source)]
        return (names for names in ways if self._lacks(names))

    def _lacks(self, names: tuple[bytes, ...]) -> bool:
        """Whether the input root lacks a path. One that leads through a link or a file is left to
        the kernel.
        """
        node: object = self._folder
        for name in names:
            if not isinstance(node, Folder):
                break
            node = node.get(name)
        return node is None

    def _file(self, mount: tuple[str, str, bool]) -> tuple[bytes, ...]:
        """Where a mount takes a file that the root lacks; () if it takes none."""
        source, target, _ = mount
        names = _names(target)
        return () if os.path.isdir(source) or not self._lacks(names) else names

    def _make(self, names: tuple[bytes, ...]) -> None:
        """Makes a directory with those above it; these have the mode of those that they hide."""
        made, staged = self._made, self._path
        for name in map(os.fsdecode, names):
            made, staged = os.path.join(made, name), os.path.join(staged, name)
            try:
                os.mkdir(made)
            except FileExistsError:
                continue
            mode = os.lstat(staged).st_mode if os.path.isdir(staged) else 0o755
            os.chmod(made, mode & 0o7777)
