# SPDX-License-Identifier: Apache-2.0
"""The C project that the demo builds: which files, which flags, which programs."""

from __future__ import annotations

import os
import re
import sys
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path

from .._spec.command import Command
from ..errors import SandboxError
from ..result import Result
from . import demo_source


@dataclass
class Project:
    """C sources: the files to compile, and the programs to link."""

    name: str
    directory: Path
    files: list[str]
    flags: list[str] = field(default_factory=list)
    programs: dict[str, list[str]] = field(default_factory=dict)  # name: C files
    keeps_all: bool = True  # each step gets all files; otherwise its source, and no other source


def find_project(source: Path | None) -> Project:
    """The C project of the demo: the files below source; None: Lua, or sandboxlib's own core if Lua
    cannot be had. Raises SourceError.
    """
    if source is not None:
        return _own_project(source.resolve())
    try:
        return _lua_project(demo_source.fetch())
    except demo_source.SourceError as error:
        csrc = Path(__file__).resolve().parents[2] / "csrc"
        if not csrc.is_dir():
            raise
        print(f"{error}\nWithout it the demo builds sandboxlib's own csrc/.", file=sys.stderr)
        # host.c includes the programs of the reapers, which are not built here: any file will do.
        names = ("SBX_INIT", "SBX_INIT_SESSION", "SBX_INIT_CPU_TIME", "SBX_INIT_LAYERS")
        flags = ["-std=gnu11", *(f'-D{name}="/src/freestanding.c"' for name in names)]
        return Project("sandboxlib's csrc", csrc, _c_files(csrc), flags)


def _c_files(directory: Path) -> list[str]:
    found = (path for path in directory.rglob("*.c") if path.is_file())
    return sorted(str(path.relative_to(directory)) for path in found)


def _own_project(directory: Path) -> Project:
    files = _c_files(directory)
    if not files:
        raise demo_source.SourceError(f"there are no C files in {directory}")
    mains = [
        name
        for name in files
        if re.search(r"\bmain\s*\(", (directory / name).read_text(errors="replace"))
    ]
    programs = {"program": files} if len(mains) == 1 else {}
    return Project(str(directory), directory, files, programs=programs)


def _lua_project(directory: Path) -> Project:
    # Only the interpreters: luac and print belong to another program, onelua includes all the
    # others again, ltests is empty.
    sources = re.compile(r"lua5\d/(src/)?(?!luac|print|onelua|ltests)\w+\.c$")
    files = [name for name in _c_files(directory) if sources.match(name)]
    versions = sorted({name.split("/")[0] for name in files})
    programs = {version: [n for n in files if n.startswith(version)] for version in versions}
    return Project("Lua 5.1 to 5.5", directory, files, programs=programs, keeps_all=False)


def object_of(name: str) -> str:
    """The name of the object of a C file, quoted: that of a/b.c is not that of a-b.c."""
    return urllib.parse.quote(name.removesuffix(".c"), safe="") + ".o"


def step_name(outcome: Result | SandboxError) -> str:
    """What a step makes, from its last option -o."""
    argv = outcome.command.argv if isinstance(outcome.command, Command) else ()
    return os.path.basename(urllib.parse.unquote(argv[-1])) if argv else "step"
