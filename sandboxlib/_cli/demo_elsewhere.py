# SPDX-License-Identifier: Apache-2.0
"""The demo's build as commands that any worker can run, and its passes through a server.

All paths are relative, and the compiler is that of the worker's root: so the actions are portable.
The key of an action does not name that compiler; workers that share a cache have to have the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from .._inputs.tree import Tree
from .._runner import Runner
from .._spec.command import Command
from .._spec.inputs import File
from .._timeline.timeline import Timeline
from ..result import Result
from .demo_build import Outcome, Pass
from .demo_project import Project, object_of

GOAL = 0.25  # of the first pass: what the second may take


class Elsewhere:
    """Builds a project by a Runner, as often as wanted.

    compiler: its path in the root of the workers. jobs: int, how many actions are under way at
    once. timeline: Timeline that gets all actions; or None.
    """

    def __init__(
        self,
        project: Project,
        runner: Runner,
        compiler: str,
        jobs: int,
        timeline: Timeline | None,
    ) -> None:
        self._project, self._runner = project, runner
        self._compiler, self._jobs, self._timeline = compiler, jobs, timeline
        excluded = () if project.keeps_all else ("**/*.c",)
        self._shared = Tree(project.directory, exclude=excluded)

    def build(
        self, title: str, edit: bytes = b"", seen: Callable[[Pass], object] | None = None
    ) -> tuple[Pass, dict[str, str]]:
        """One pass. Returns what is told of it, and the digest of each file that it made.

        edit: is added to the end of each source. seen: is called as each action ends.
        """
        total = len(self._project.files) + len(self._project.programs)
        made: dict[str, File] = {}
        with Pass(title, total, self._timeline) as done:

            def note(ended: int, outcome: Outcome) -> None:
                done.note(ended, outcome)
                if isinstance(outcome, Result):
                    made.update(outcome.outputs)
                if seen is not None:
                    seen(done)

            for commands in (self._compile_steps(edit), lambda: self._link_steps(made)):
                self._run(commands() if callable(commands) else commands, note)
        return done, {path: file.digest() for path, file in sorted(made.items())}

    def _run(self, commands: Sequence[Command], note: Callable[[int, Outcome], None]) -> None:
        options: dict[str, Any] = {"ordered": False, "on_failure": "continue", "progress": note}
        for _ in self._runner.map(commands, self._jobs, **options):
            pass

    def _compile_steps(self, edit: bytes) -> list[Command]:
        return [self._compile_step(name, edit) for name in self._project.files]

    def _compile_step(self, name: str, edit: bytes) -> Command:
        flags = [flag.replace('"/src/', '"src/') for flag in self._project.flags]
        target = f"obj/{object_of(name)}"
        source = self._project.directory / name
        content: Any = File(source.read_bytes() + edit) if edit else source
        return Command(
            [
                *(self._compiler, *flags, "-I", os.path.join("src", os.path.dirname(name))),
                *("-c", f"src/{name}", "-o", target),
            ],
            "/",
            inputs={"src": self._shared, f"src/{name}": content},
            outputs=[re.sub(r"([*?[])", r"[\1]", target)],
        )

    def _link_steps(self, made: dict[str, File]) -> list[Command]:
        """Of the programs of which all objects are there."""
        steps = []
        for program, names in self._project.programs.items():
            objects = [f"obj/{object_of(name)}" for name in names]
            inputs = {path: made[f"/{path}"] for path in objects if f"/{path}" in made}
            argv = [self._compiler, *objects, "-lm", "-o", f"out/{program}"]
            if len(inputs) == len(objects):
                steps.append(Command(argv, "/", inputs=inputs, outputs=[f"out/{program}"]))
        return steps


def print_passes(passes: Sequence[Pass]) -> None:
    """The table of all passes, and the second by the first."""
    width = max(len(each.title) for each in passes)
    print(f"\n{'':{width}} {'actions':>8} {'hits':>6} {'failures':>9} {'seconds':>8}  run by")
    for each in passes:
        workers = ", ".join(f"{name} {count}" for name, count in sorted(each.workers.items()))
        print(
            f"{each.title:{width}} {each.steps:8} {each.hits:6} {len(each.failures):9}"
            f" {each.wall:8.2f}  {workers or 'none'}"
        )
    if len(passes) > 1:
        ratio = passes[1].wall / passes[0].wall
        text = "met" if ratio <= GOAL else "missed"
        print(f"the second build took {ratio:.3f} of the first (goal: at most {GOAL}: {text})")
