# SPDX-License-Identifier: Apache-2.0
"""Runs the steps of the demo's build, one after the other: bare, in a Sandbox, in bubblewrap."""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import peers

from sandboxlib import BASE_ENVIRONMENT
from sandboxlib._cli import demo

COMPILERS = {"tcc": ["tcc"], "gcc -O0": ["gcc", "-O0"], "gcc -O2": ["gcc", "-O2"]}
BARE, BOXED, BWRAP = "bare, subprocess.run", "Sandbox.run", "bubblewrap"


class Build:
    """The project with one compiler."""

    def __init__(self, directory: Path, compiler: str) -> None:
        program, *flags = COMPILERS[compiler]
        path = shutil.which(program)
        if path is None:
            raise peers.MissingError(f"there is no {program} in PATH")
        project = demo._project(argparse.Namespace(source=None))
        project.flags = [*project.flags, *flags]
        directory.mkdir()
        self.shop = demo.Workshop(project, directory, path, 1)
        demo._make_directories(self.shop)
        self.box = self.shop.box()
        self.steps = self.shop.compile_steps()
        self.runs: dict[str, Callable[[list[str]], tuple[float, int]]] = {
            BARE: self.bare,
            BOXED: self.boxed,
        }
        if shutil.which("bwrap"):
            self.runs[BWRAP] = self.bubblewrapped

    def bare(self, step: list[str]) -> tuple[float, int]:
        return self._tool(self.shop.outside(step))

    def boxed(self, step: list[str]) -> tuple[float, int]:
        start = time.perf_counter()
        result = self.box.run(step)
        return time.perf_counter() - start, result.exit

    def bubblewrapped(self, step: list[str]) -> tuple[float, int]:
        return self._tool([*self.bwrap(), *step])

    def bwrap(self) -> list[str]:
        """The argv of bwrap for the sandbox of Workshop.box()."""
        argv = [peers.tool("bwrap"), "--ro-bind", str(self.shop.directory / "root"), "/"]
        for mount in self.box.extra_mounts:
            if mount.type == "bind":
                how = "--ro-bind" if mount.read_only else "--bind"
                argv += [how, str(mount.source), mount.target]
            else:
                argv += [f"--{mount.type}", mount.target]
        for kind in ("pid", "ipc", "uts", "net", "cgroup"):
            argv.append(f"--unshare-{kind}")
        return [*argv, "--new-session", "--proc", "/proc"]

    def _tool(self, argv: list[str]) -> tuple[float, int]:
        start = time.perf_counter()
        done = subprocess.run(
            argv, env=BASE_ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        return time.perf_counter() - start, done.returncode

    def round(self, numbers: list[int]) -> dict[str, float]:
        """Run some steps in all ways, in random order. Returns the milliseconds of a step."""
        total = dict.fromkeys(self.runs, 0.0)
        for number in numbers:
            for name in random.sample(list(self.runs), len(self.runs)):
                spent, status = self.runs[name](self.steps[number % len(self.steps)])
                if status != 0:
                    raise RuntimeError(f"{name}: exit {status}: {self.steps[number]}")
                total[name] += spent
        return {name: round(1000 * spent / len(numbers), 3) for name, spent in total.items()}
