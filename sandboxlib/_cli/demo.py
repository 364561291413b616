# SPDX-License-Identifier: Apache-2.0
"""python -m sandboxlib demo: a real build, with every step in a new sandbox.

It compiles, each step in a pristine root with the inputs that it declares, links, runs the programs
that it built, tries to break out, shows what a step changed and a header that was not declared, and
then does the same steps without a sandbox, to show what the sandboxes cost.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from .._spec.command import BASE_ENVIRONMENT
from .._spec.mount import Mount
from ..api import Sandbox
from ..errors import SandboxError
from . import demo_source
from .demo_steps import Steps
from .parser import Parser

PROBE = r"""
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "connect")) {
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
        to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        int failed = connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&to, sizeof to);
        return printf("%s\n", failed ? strerror(errno) : "connected"), !!failed;
    }
    if (argc == 3 && !strcmp(argv[1], "write")) {
        int fd = open(argv[2], O_CREAT | O_WRONLY, 0644);
        return printf("%s\n", fd < 0 ? strerror(errno) : "written"), fd < 0;
    }
    if (argc == 2 && !strcmp(argv[1], "interfaces")) {
        for (struct if_nameindex *i = if_nameindex(); i && i->if_name; i++)
            printf("%s ", i->if_name);
        return 0;
    }
    if (argc == 3 && !strcmp(argv[1], "daemon")) {
        int there[2];
        char byte;
        if (pipe(there))
            return 2;
        if (fork()) /* 0 says that the daemon has been there */
            return close(there[1]), read(there[0], &byte, 1) == 1 ? 0 : 2;
        if (setsid(), fork())
            return 0;
        signal(SIGTERM, SIG_IGN);
        if (write(there[1], "x", 1) == 1)
            sleep(600);
    }
    return 2;
}
"""


@dataclass
class Project:
    """C sources: the files to compile, and the programs to link."""

    name: str
    directory: Path
    files: list[str]
    flags: list[str] = field(default_factory=list)
    programs: dict[str, list[str]] = field(default_factory=dict)  # name: C files
    keeps_all: bool = True  # each step gets all files; otherwise its source, and no other source


@dataclass
class Pass:
    """One time through all steps."""

    steps: int
    failures: list[str]
    wall: float


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
                *_host_mounts(self.directory / "root"),
                Mount.bind(self.project.directory, "/src", read_only=True),
                Mount.bind(self.directory / "build", "/build"),
            ],
        )

    def pristine(self) -> Steps:
        """The same for compile steps: a pristine root for each, with its inputs alone."""
        mounts = list(_host_mounts(self.directory / "root"))
        project = self.project
        return Steps(self.directory, project.directory, mounts, project.keeps_all)

    def outside(self, argv: Sequence[str]) -> list[str]:
        """The argv of a step with the paths that its directories have outside of the sandbox."""
        paths = {"/src": str(self.project.directory), "/build": str(self.directory / "bare")}
        pattern = re.compile(r"(?<![\w/])/(src|build)(?=/|$)")
        return [pattern.sub(lambda m: paths[m.group()], arg) for arg in argv]

    def bare(self, argv: Sequence[str]) -> tuple[int, bytes]:
        """Run a step without a sandbox. Returns the exit status and stderr."""
        done = subprocess.run(
            self.outside(argv),
            env=BASE_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        return done.returncode, done.stderr

    def compile_steps(self) -> list[list[str]]:
        return [
            [
                *(self.compiler, *self.project.flags, "-I", f"/src/{os.path.dirname(name)}"),
                *("-c", f"/src/{name}", "-o", _object(name)),
            ]
            for name in self.project.files
        ]

    def link_steps(self) -> list[list[str]]:
        return [
            [self.compiler, *map(_object, files), "-lm", "-o", f"/build/{name}"]
            for name, files in self.project.programs.items()
        ]


def main(argv: Sequence[str]) -> int:
    """Run the demo. Returns 0 if every step worked and every attempt to break out was stopped."""
    options = _parse(argv)
    try:
        project = _project(options)
        with tempfile.TemporaryDirectory(prefix="sandboxlib-demo-") as directory:
            os.chmod(directory, 0o755)
            shop = Workshop(project, Path(directory), options.cc, options.jobs)
            _make_directories(shop)
            return _demo(shop)
    except (SandboxError, demo_source.SourceError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m sandboxlib demo", description=__doc__)
    parser.add_argument("--source", type=Path, help="a directory of C files of your own")
    parser.add_argument("--jobs", type=_count, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cc", default=shutil.which("cc") or "/usr/bin/cc", help="a C compiler")
    return parser.parse_args(argv)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"not a number from 1 on: {text!r}")
    return int(text)


# ---- the project -----------------------------------------------------------------------------


def _project(options: argparse.Namespace) -> Project:
    if options.source:
        return _own_project(options.source.resolve())
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


def _object(name: str) -> str:
    # Quoted, so that no two files have the same object: a/b.c is not a-b.c.
    return "/build/" + urllib.parse.quote(name.removesuffix(".c"), safe="") + ".o"


# ---- the directories -------------------------------------------------------------------------


def _make_directories(shop: Workshop) -> None:
    for name in ("usr", "etc/alternatives", "src", "build", "tmp", "proc", "dev"):
        (shop.directory / "root" / name).mkdir(parents=True)
    for name in ("build", "bare"):
        (shop.directory / name).mkdir(exist_ok=True)
        (shop.directory / name / "probe.c").write_text(PROBE)
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        host, in_root = Path("/", name), shop.directory / "root" / name
        if host.is_symlink():
            in_root.symlink_to(os.readlink(host))
        elif host.is_dir():
            in_root.mkdir()


def _host_mounts(root: Path) -> Iterator[Mount]:
    for name in ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives"):
        if os.path.isdir(name) and not os.path.islink(name) and (root / name[1:]).is_dir():
            yield Mount.bind(name, name, read_only=True)


# ---- the demo --------------------------------------------------------------------------------


def _demo(shop: Workshop) -> int:
    box, steps = shop.box(), _pristine(shop)

    def in_sandbox(argv: Sequence[str]) -> tuple[int, bytes]:
        if steps is not None and "-c" in argv:
            return steps.run(argv)
        result = box.run(argv)
        return result.exit, result.err or b""

    print(f"Building {shop.project.name}: {len(shop.project.files)} C files, {shop.jobs} at a time")
    sandboxed = _build("each step in a sandbox", shop, in_sandbox)
    good = not sandboxed.failures
    if good and steps is not None:
        compiling = shop.compile_steps()
        good = steps.show_changes(compiling[0]) and steps.show_undeclared(compiling)
    good = good and _run_programs(shop, box)
    good &= _prove(shop, box)
    bare = _build("the same steps bare", shop, shop.bare)
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


def _build(title: str, shop: Workshop, run: Callable[[Sequence[str]], tuple[int, bytes]]) -> Pass:
    start = monotonic()
    total = Pass(0, [], 0.0)
    for steps in (shop.compile_steps(), shop.link_steps()):
        with ThreadPoolExecutor(shop.jobs) as pool:
            for argv, (exit, err) in zip(steps, pool.map(run, steps), strict=True):
                total.steps += 1
                if exit != 0:
                    total.failures.append(f"{' '.join(argv)}: exit {exit}\n{_text(err)}")
                _progress(title, total)
    total.wall = monotonic() - start
    _progress(title, total, end="\n")
    for failure in total.failures[:5]:
        print(failure, file=sys.stderr)
    return total


def _progress(title: str, total: Pass, end: str = "") -> None:
    if sys.stderr.isatty() or end:
        start = "\r" if sys.stderr.isatty() else ""
        failed = f", {len(total.failures)} failed" if total.failures else ""
        print(
            f"{start}  {title}: {total.steps} steps{failed}", end=end, file=sys.stderr, flush=True
        )


def _run_programs(shop: Workshop, box: Sandbox) -> bool:
    good = True
    for name in shop.project.programs:
        args = ["-e", "print(_VERSION)"] if name.startswith("lua5") else []
        exit, out, _ = box.run([f"/build/{name}", *args], timeout=30)
        print(f"  {name} {' '.join(args)}: exit {exit}, {_text(out)[:60]}")
        good &= exit == 0 or not args
    return good


def _prove(shop: Workshop, box: Sandbox) -> bool:
    """Run three steps that try to break out. Returns True if the sandbox stopped them all."""
    print("Three steps that try to break out:")
    built = box.run([shop.compiler, "/build/probe.c", "-o", "/build/probe"])
    if built.exit != 0:
        print(_text(built.err), file=sys.stderr)
        return False
    shutil.copy(shop.directory / "build" / "probe", shop.directory / "bare" / "probe")
    return all([_prove_network(shop, box), _prove_files(box), _prove_daemon(box)])


def _stopped(what: str, stopped: bool, how: str) -> bool:
    print(f"  {what}: {'stopped' if stopped else 'NOT STOPPED'} ({how})")
    return stopped


def _prove_network(shop: Workshop, box: Sandbox) -> bool:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        outside, _ = shop.bare(["/build/probe", "connect", port])
        exit, out, _ = box.run(["/build/probe", "connect", port])
    interfaces = _text(box.run(["/build/probe", "interfaces"]).out)
    text = f"inside: {_text(out)}, interfaces: {interfaces}; outside: exit {outside}"
    stopped = outside == 0 and exit == 1 and interfaces == "lo"
    return _stopped("connects to a server of the host", stopped, text)


def _prove_files(box: Sandbox) -> bool:
    good = True
    for path in ("/usr/escaped", "/src/escaped", "/escaped"):
        exit, out, _ = box.run(["/build/probe", "write", path])
        refused = exit == 1 and _text(out) == os.strerror(errno.EROFS)
        good &= _stopped(f"writes {path}", refused, _text(out))
    return good


def _prove_daemon(box: Sandbox) -> bool:
    mark = f"sandboxlib-demo-{os.getpid()}"
    exit, _, _ = box.run(["/build/probe", "daemon", mark])
    left = [pid for pid in os.listdir("/proc") if pid.isdigit() and mark in _command_line(int(pid))]
    return _stopped("leaves a daemon", exit == 0 and not left, f"{len(left)} processes left")


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def _text(data: bytes | None) -> str:
    return (data or b"").decode(errors="backslashreplace").strip()


def _print_table(sandboxed: Pass, bare: Pass) -> None:
    print(f"\n{'':12} {'steps':>6} {'failures':>9} {'wall s':>8} {'per second':>11}")
    for name, total in (("sandboxed", sandboxed), ("bare", bare)):
        rate = total.steps / total.wall
        print(f"{name:12} {total.steps:6} {len(total.failures):9} {total.wall:8.2f} {rate:11.1f}")
    print(f"overhead of a sandbox for every step: {100 * (sandboxed.wall / bare.wall - 1):+.1f} %")
    print("(one pass each, one after the other: other load on the machine can weigh as much)")
