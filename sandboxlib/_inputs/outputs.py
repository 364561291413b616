# SPDX-License-Identifier: Apache-2.0
"""Outputs: what a Command declared and left, by path."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from .. import _types
from .._spec.inputs import File
from .._values import check_inside, check_path, short
from .collecting import Collector
from .tree import Symlink, Tree


class Outputs(Mapping[str, File]):
    """The outputs of a run, by their paths in the sandbox: a mapping of str to File, which cannot
    change. Result.outputs has them.

        result.outputs["/out/a.o"].read_bytes()
        result.outputs.collect("build", below="/out")
        box.run(["ld", ...], inputs=result.outputs)

    Small files are in memory, large ones in the Store until their Files are gone. A copy out of a
    pickle does not keep what is in the Store from being pruned.

    missing: tuple of str, the patterns that nothing matched. A FIFO, a socket and a device match
        nothing.
    links: mapping of str to str, the symbolic links among the outputs, and what they say. Nothing
        followed them.
    directories: tuple of str, the directories among the outputs, also those without a file.
    """

    __module__ = "sandboxlib"  # as callers import it, and pickles name it

    missing: tuple[str, ...]
    links: _types.Variables
    directories: tuple[str, ...]

    def __init__(
        self,
        files: Mapping[str, File] = MappingProxyType({}),
        links: Mapping[str, str] = MappingProxyType({}),
        directories: tuple[str, ...] = (),
        missing: tuple[str, ...] = (),
    ) -> None:
        self.__dict__.update(
            _files=dict(files),
            links=MappingProxyType(dict(links)),
            directories=directories,
            missing=missing,
        )

    _files: _types.Any  # a dict of str to File

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Outputs do not change: {name}")

    def __getitem__(self, path: str) -> File:
        file: File = self._files[path]
        return file

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __bool__(self) -> bool:
        """True if there is a file, a link or a directory, or something is missing."""
        return bool(self._files or self.links or self.directories or self.missing)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Outputs):
            return bool(self._files == other)
        return self._state() == other._state()

    __hash__ = None  # type: ignore[assignment]

    def _state(self) -> tuple[object, ...]:
        return self._files, dict(self.links), self.directories, self.missing

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), self._state())

    def __repr__(self) -> str:
        missing = f", missing={self.missing!r}" if self.missing else ""
        return f"<sandboxlib.Outputs {short(list(self._files))}{missing}>"

    def collect(self, directory: _types.Path, *, below: str = "/") -> list[str]:
        """Writes the outputs into a directory of the caller's. Returns the paths of the files.

        directory: str or path, made if it is missing.
        below: str, a path in the sandbox: only what lies below it is written, and named from there
            on; '/' by default.

        A file replaces one that is there already at once (rename(2)), and shares its blocks with
        the Store where the file system can do that (FICLONE, ioctl_ficlone(2)). Its mode is 0666,
        or 0777 if it is executable, less the umask. Directories and symbolic links are made too;
        nothing is written through a link that is there already below the directory.

        Raises SpecError for a wrong path; SetupError if the directory cannot be written, then what
        was written before stays.
        """
        top = check_path("the directory of collect", directory)
        above = check_inside("below", below)
        with Collector(top) as collector:
            for path in self.directories:
                if (name := _name(path, above)) is not None:
                    collector.directory(name)
            written = []
            for path, file in self._files.items():
                if name := _name(path, above):
                    collector.file(name, file)
                    written.append(os.path.join(top, name))
            for path, target in self.links.items():
                if name := _name(path, above):
                    collector.link(name, target)
        return written

    def tree(self, below: str = "/") -> Tree:
        """Returns a Tree of the outputs, with directories and symbolic links.

        below: as in collect(). Raises SpecError for a wrong path.
        """
        above = check_inside("below", below)
        entries: dict[str, File | Tree | Symlink] = {}
        for path in self.directories:
            if name := _name(path, above):
                entries[name] = Tree({})
        for path, file in self._files.items():
            if name := _name(path, above):
                entries[name] = file
        for path, target in self.links.items():
            if name := _name(path, above):
                entries[name] = Symlink(target)
        return Tree(entries)  # type: ignore[arg-type]


def _name(path: str, above: str) -> str | None:
    """The path from a directory on; None if it does not lie there."""
    if path == above:
        return ""
    start = above.rstrip("/") + "/"
    return path[len(start) :] if path.startswith(start) else None
