# SPDX-License-Identifier: Apache-2.0
"""python -m sandboxlib demo: a real build, with every step in a new sandbox.

It compiles, each step in a pristine root with the inputs that it declares, links, runs the programs
that it built, tries to break out, shows what a step changed and a header that was not declared, and
then does the same steps without a sandbox, to show what the sandboxes cost.

With --remote the workers of a server of remote execution do the steps, twice: the second time its
cache has them all. --cluster starts such a server and two workers on this machine first, and builds
a third time after an edit of all sources, in the midst of which it kills a worker.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from .._spec.command import BASE_ENVIRONMENT, Command
from .._spec.mount import Mount
from .._timeline.timeline import Timeline
from ..api import Sandbox
from ..errors import SandboxError
from ..result import Result
from . import demo_proofs, demo_source
from .demo_build import Pass, as_text, build
from .demo_project import Project, find_project, object_of, step_name
from .demo_steps import Steps
from .parser import Parser


@dataclass
class Workshop:
    """The directories that the steps use. The same step runs in a sandbox or without one.

    directory: a temporary one, with root/ for the sandboxes, build/ (their /build) and bare/ (the
    build directory of the steps without a sandbox).
    """

    project: Project
    directory: Path
    compiler: str
    jobs: int

    def box(self) -> Sandbox:
        """A sandbox without network, with the host's /usr read-only and a private /tmp; only /build
        can be written to.
        """
        return Sandbox(
            self.directory / "root",
            extra_mounts=[
                *host_mounts(self.directory / "root"),
                Mount.bind(self.project.directory, "/src", read_only=True),
                Mount.bind(self.directory / "build", "/build"),
            ],
        )

    def pristine(self) -> Steps:
        """The same for compile steps: a pristine root for each, with its inputs alone."""
        mounts = list(host_mounts(self.directory / "root"))
        project = self.project
        return Steps(self.directory, project.directory, mounts, project.keeps_all)

    def outside(self, argv: Sequence[str]) -> list[str]:
        """The argv of a step with the paths that its directories have outside of the sandbox."""
        paths = {"/src": str(self.project.directory), "/build": str(self.directory / "bare")}
        pattern = re.compile(r"(?<![\w/])/(src|build)(?=/|$)")
        return [pattern.sub(lambda m: paths[m.group()], arg) for arg in argv]

    def bare(self, argv: Sequence[str]) -> Result:
        """Run a step without a sandbox."""
        began = monotonic()
        done = subprocess.run(
            self.outside(argv),
            env=BASE_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        result = Result(done.returncode, None, done.stderr, False, monotonic() - began, "bare")
        result.began, result.command = began, Command(argv)
        return result

    def compile_steps(self) -> list[list[str]]:
        return [
            [
                *(self.compiler, *self.project.flags, "-I", f"/src/{os.path.dirname(name)}"),
                *("-c", f"/src/{name}", "-o", f"/build/{object_of(name)}"),
            ]
            for name in self.project.files
        ]

    def link_steps(self) -> list[list[str]]:
        return [
            [
                *(self.compiler, *(f"/build/{object_of(each)}" for each in files)),
                *("-lm", "-o", f"/build/{name}"),
            ]
            for name, files in self.project.programs.items()
        ]


def main(argv: Sequence[str]) -> int:
    """Run the demo. Returns 0 if every step worked and every attempt to break out was stopped."""
    options = _parse(argv)
    try:
        project = find_project(options.source)
        with tempfile.TemporaryDirectory(prefix="sandboxlib-demo-") as directory:
            os.chmod(directory, 0o755)
            shop = Workshop(project, Path(directory), options.cc, options.jobs)
            _make_directories(shop)
            if options.cluster or options.remote:
                return _elsewhere(shop, options)
            return _demo(shop, options.timeline)
    except (SandboxError, demo_source.SourceError, OSError, ImportError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _elsewhere(shop: Workshop, options: argparse.Namespace) -> int:
    from . import demo_cluster

    timeline = Timeline(name=step_name)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        if options.cluster:
            mounts = host_mounts(shop.directory / "root")
            return demo_cluster.demo(shop.project, shop.directory, shop.compiler, mounts, timeline)
        return demo_cluster.demo_at(
            *(shop.project, options.remote, shop.compiler, options.instance, options.token),
            dict(options.property),
            timeline,
        )
    finally:
        if options.timeline is not None:
            timeline.save(options.timeline)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m sandboxlib demo", description=__doc__)
    parser.add_argument("--source", type=Path, help="a directory of C files of your own")
    parser.add_argument("--jobs", type=_count, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--timeline", type=Path, metavar="FILE", help="write a trace for browsers")
    parser.add_argument("--cc", default=shutil.which("cc") or "/usr/bin/cc", help="a C compiler")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--cluster", action="store_true", help="start a server and two workers here")
    where.add_argument("--remote", metavar="URL", help="build by that server: grpc://HOST:PORT")
    parser.add_argument("--instance", metavar="NAME", default="", help="of that server")
    parser.add_argument("--token", metavar="FILE", type=Path, help="a JWT for that server")
    parser.add_argument(
        "--property",
        metavar="NAME=VALUE",
        type=_pair,
        action="append",
        default=[],
        help="what its workers have to have",
    )
    options = parser.parse_args(argv)
    if (options.instance or options.token or options.property) and not options.remote:
        parser.error("--instance, --token and --property go with --remote")
    return options


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise argparse.ArgumentTypeError(f"not NAME=VALUE: {text!r}")
    return name, value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"not a number from 1 on: {text!r}")
    return int(text)


# ---- the directories -------------------------------------------------------------------------


def _make_directories(shop: Workshop) -> None:
    make_root(shop.directory / "root")
    for name in ("build", "bare"):
        (shop.directory / name).mkdir(exist_ok=True)
        (shop.directory / name / "probe.c").write_text(demo_proofs.PROBE)


def make_root(root: Path) -> None:
    """Makes a root for the host's compiler, which host_mounts() mounts there."""
    for name in ("usr", "etc/alternatives", "src", "build", "tmp", "proc", "dev"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        host, in_root = Path("/", name), root / name
        if host.is_symlink():
            in_root.symlink_to(os.readlink(host))
        elif host.is_dir():
            in_root.mkdir()


def host_mounts(root: Path) -> Iterator[Mount]:
    for name in ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives"):
        if os.path.isdir(name) and not os.path.islink(name) and (root / name[1:]).is_dir():
            yield Mount.bind(name, name, read_only=True)


# ---- the demo --------------------------------------------------------------------------------


def _demo(shop: Workshop, file: Path | None) -> int:
    box, steps = shop.box(), _pristine(shop)

    def in_sandbox(argv: Sequence[str]) -> Result:
        if steps is not None and "-c" in argv:
            return steps.run(argv)
        return box.run(argv)

    stages = shop.compile_steps(), shop.link_steps()
    print(f"Building {shop.project.name}: {len(shop.project.files)} C files, {shop.jobs} at a time")
    timeline = Timeline(name=step_name)
    sandboxed = build("each step in a sandbox", stages, in_sandbox, shop.jobs, timeline)
    if file is not None:
        timeline.save(file)
    good = not sandboxed.failures
    if good and steps is not None:
        good = steps.show_changes(stages[0][0]) and steps.show_undeclared(stages[0])
    good = good and _run_programs(shop, box)
    good &= demo_proofs.prove(shop, box)
    bare = build("the same steps bare", stages, shop.bare, shop.jobs)
    _print_table(sandboxed, bare)
    return 0 if good and not bare.failures else 1


def _pristine(shop: Workshop) -> Steps | None:
    """The compile steps in pristine roots; None, with a line that says why, if this machine has no
    overlays for this caller.
    """
    steps = shop.pristine()
    if lacking := steps.box.lacks():
        print(f"The steps share a root, as there is no pristine one for each: {lacking[0]}")
        return None
    return steps


def _run_programs(shop: Workshop, box: Sandbox) -> bool:
    good = True
    for name in shop.project.programs:
        args = ["-e", "print(_VERSION)"] if name.startswith("lua5") else []
        exit, out, _ = box.run([f"/build/{name}", *args], timeout=30)
        print(f"  {name} {' '.join(args)}: exit {exit}, {as_text(out)[:60]}")
        good &= exit == 0 or not args
    return good


def _print_table(sandboxed: Pass, bare: Pass) -> None:
    print(f"\n{'':12} {'steps':>6} {'failures':>9} {'wall s':>8} {'per second':>11}")
    for name, total in (("sandboxed", sandboxed), ("bare", bare)):
        rate = total.steps / total.wall
        print(f"{name:12} {total.steps:6} {len(total.failures):9} {total.wall:8.2f} {rate:11.1f}")
    print(f"overhead of a sandbox for every step: {100 * (sandboxed.wall / bare.wall - 1):+.1f} %")
    print("(one pass each, one after the other: other load on the machine can weigh as much)")
