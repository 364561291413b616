# SPDX-License-Identifier: Apache-2.0
"""The compile steps of the demo: each in a pristine root, with the inputs that it declares."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from .._images.store import Store
from .._inputs.tree import Tree
from .._spec.command import Command
from .._spec.mount import Mount
from .._spec.overlay import Overlay
from ..api import Sandbox
from ..errors import SandboxError
from ..result import Result

MOST_SHOWN = 10  # lines of a list


class Steps:
    """Runs compile steps, and collects their objects.

    directory: has root/, store/ for the staged inputs, and build/ for the objects. sources: the
    project, which the steps see at /src. mounts: of the host's compiler. keeps_all: whether a step
    gets all files of the project, in place of one source and all that is no source.
    """

    def __init__(
        self, directory: Path, sources: Path, mounts: Sequence[Mount], keeps_all: bool
    ) -> None:
        self.box = Sandbox(
            Overlay(directory / "root"), extra_mounts=mounts, store=Store(directory / "store")
        )
        self._build, self._sources = directory / "build", sources
        self._shared = Tree(sources, exclude=() if keeps_all else ["**/*.c"])

    def command(self, argv: Sequence[str]) -> Command:
        """A compile step with its inputs and its output."""
        source, target = argv[argv.index("-c") + 1], argv[argv.index("-o") + 1]
        file = self._sources / source.removeprefix("/src/")
        inputs: dict[str, Tree | Path] = {"/src": self._shared, source: file}
        output = re.sub(r"([*?[])", r"[\1]", target)
        return Command(argv, inputs=inputs, outputs=[output])

    def run(self, argv: Sequence[str]) -> Result:
        """Runs a step, and takes its object."""
        result = self.box.run(self.command(argv))
        if result.ok:
            result.outputs.collect(self._build, below="/build")
        return result

    def show_changes(self, argv: Sequence[str]) -> bool:
        """Prints what a step changed in its root. Returns whether that was its object alone."""
        command = self.command(argv).replace(changes="keep")
        with self.box.run(command).changes as changes:
            print(f"What {argv[argv.index('-c') + 1]} changed in its root:")
            for change in list(changes)[:MOST_SHOWN]:
                print(f"  {change.kind} {change.type} {change.path}, {change.size} bytes")
            return [change.path for change in changes] == [argv[argv.index("-o") + 1]]

    def show_undeclared(self, argvs: Sequence[Sequence[str]]) -> bool:
        """Runs a step without a header of its project, and prints what the trace of it tells.
        Returns whether it names the header; True as well if no step includes one.
        """
        for argv in argvs:
            source = self._sources / argv[argv.index("-c") + 1].removeprefix("/src/")
            for name in re.findall(rb'#\s*include\s*"([^"/]+)"', source.read_bytes()):
                header = source.parent / os.fsdecode(name)
                if header.is_file():
                    return self._show_undeclared(argv, header)
        return True

    def _show_undeclared(self, argv: Sequence[str], header: Path) -> bool:
        path = f"/src/{header.relative_to(self._sources)}"
        command = self.command(argv)
        without = Tree(self._sources, exclude=[path.removeprefix("/src/"), "**/*.c"])
        command = command.replace(inputs={**command.inputs, "/src": without})
        try:
            trace = self.box.trace(command)
        except SandboxError as error:
            print(f"  (a trace cannot be had here: {error})")
            return True
        found = path in trace.missing and trace.result.exit != 0
        print(f"The same without {header.name}, which it does not declare:")
        print(
            f"  exit {trace.result.exit}; asked for, and not found: {path if found else 'nothing'}"
        )
        return found
