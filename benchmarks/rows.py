# SPDX-License-Identifier: Apache-2.0
"""The rows of each column: each is a run of /say, or the reason why this machine has none."""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
from loops import Loops
from loops import build as build_loops

from sandboxlib import Mount, Policy, Sandbox, run_sandbox

HERE = Path(__file__).resolve().parent
# These two name every option whose default differs between Sandbox and run_sandbox.
CHROOT: dict[str, Any] = {
    "network": "undefined",
    "mounts": "undefined",
    "processes": "undefined",
    "ipc": "undefined",
    "policy": Policy(capabilities="all", no_new_privs=False, seccomp="none"),
}
# Without the filter of system calls and the minimal /dev, which have rows of their own.
FULL: dict[str, Any] = {
    "network": "isolated",
    "filesystem_writable_paths": "all",
    "extra_mounts": (Mount.tmpfs("/tmp"),),
    "devices": "root",
    "policy": Policy(seccomp="none"),
}
OPTIONS_TEXT = {
    "chroot": "network='undefined', mounts='undefined', processes='undefined', ipc='undefined',"
    " policy=Policy(capabilities='all', no_new_privs=False, seccomp='none')",
    "full": "network='isolated', filesystem_writable_paths='all',"
    " extra_mounts=[Mount.tmpfs('/tmp')], devices='root', policy=Policy(seccomp='none')",
}

# The rows, in the order of the tables.
FLOOR = "C: vfork, chroot, exec, no more"
STRAIGHT = "C loop, written straight"
CORE = "C loop, our core, fresh"
SLOT = "C loop, our core, in a slot"
PREPARED = "Sandbox.run"
DIRECT = "Sandbox.run, init=False"
DEVICES = "Sandbox.run, devices='minimal'"
MAP = "Sandbox.map, jobs=CPUs"
ONE_SHOT = "run_sandbox"
ONE_SHOT_DIRECT = "run_sandbox, init=False"
FILTERED = "Sandbox.run, seccomp='builds'"
ONE_SHOT_FILTERED = "run_sandbox, seccomp='builds'"
BARE = "subprocess.run, no sandbox"
PREEXEC = "subprocess.run, chroot preexec_fn"
UNSHARE = "chroot(1) / unshare(1)"
BWRAP = "bubblewrap"
NSJAIL = "nsjail"
SANDLOCK = "sandlock"
EARLIER = "sandboxlib 0.3.1"
COLUMNS = {"chroot": 0, "full": 0, "full, 100 binds": 100, "full, 1,000 binds": 1000}
#: The rows of README.md
FRONT = [BARE, PREPARED, ONE_SHOT, UNSHARE, BWRAP, NSJAIL, SANDLOCK, EARLIER, PREEXEC]
PEERS = [UNSHARE, BWRAP, NSJAIL, SANDLOCK, EARLIER]
OF_CHROOT = [FLOOR, STRAIGHT, CORE, PREPARED, MAP, ONE_SHOT, BARE, PREEXEC, *PEERS]
OF_FULL = [STRAIGHT, CORE, SLOT, PREPARED, FILTERED, DIRECT, DEVICES, MAP]
OF_FULL += [ONE_SHOT, ONE_SHOT_FILTERED, ONE_SHOT_DIRECT, *PEERS]
OF_BINDS = [name for name in OF_FULL if name not in (STRAIGHT, DEVICES, EARLIER)]


def takes_fresh() -> bool:
    """Return True if this build keeps slots from run to run."""
    return "fresh" in inspect.signature(Sandbox.run).parameters


class Row:
    """A row. once() makes one run, and returns its nanoseconds; None: there is no such row, and
    `reason` says why. recipe: how to repeat it.
    """

    def __init__(self, once: Callable[[], int] | None, recipe: str, reason: str = "") -> None:
        self.once, self.recipe, self.reason = once, recipe, reason


# ---- the files -------------------------------------------------------------------------------


def build(directory: Path) -> None:
    """Make the root with /say in it, 1,000 directories to bind, and the C loops."""
    root = directory / "root"
    for name in ("proc", "tmp", "dev"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for source, target in binds(directory, 1000):
        Path(source).mkdir(parents=True, exist_ok=True)
        (root / target[1:]).mkdir(parents=True, exist_ok=True)
    compile_small(HERE / "say.c", root / "say")
    build_loops(directory)


def compile_small(source: Path, program: Path, *flags_of_source: str) -> None:
    """Compile a static program without libc."""
    flags = "-Os -static -nostdlib -ffreestanding -fno-stack-protector -Wl,--build-id=none -Wl,-s"
    argv = ["cc", *flags.split(), *flags_of_source, "-o", str(program), str(source)]
    subprocess.run(argv, check=True)


def binds(directory: Path, count: int) -> list[tuple[str, str]]:
    return [(f"{directory}/source/{n}", f"/b/{n}") for n in range(count)]


# ---- kinds of rows ---------------------------------------------------------------------------


def timed(call: Callable[[], bytes | None]) -> Callable[[], int]:
    def once() -> int:
        start = time.perf_counter_ns()
        out = call()
        end = time.perf_counter_ns()
        if out != b"ok\n":
            raise RuntimeError(f"the command did not say ok, but {out!r}")
        return end - start

    return once


class Guest:
    """Another library, in a process of its own that is as large as this one and times each run."""

    def __init__(self, package: str, directory: Path, megabytes: int, count: int) -> None:
        paths = itertools.chain(*binds(directory, count))
        argv = [
            peers.python(package),
            HERE / "guest.py",
            package,
            directory / "root",
            str(megabytes),
        ]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [*argv, *paths], stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd="/"
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._ask, self._answers = self._process.stdin, self._process.stdout
        self._answer()

    def _answer(self) -> str:
        line = self._answers.readline()
        if not line:
            lines = self._process.communicate()[1].strip().splitlines() or ["it ended"]
            raise peers.MissingError(lines[-1])
        return line

    def once(self) -> int:
        self._ask.write("\n")
        self._ask.flush()
        return int(self._answer())


class Maker:
    """Makes the rows of one column."""

    def __init__(self, directory: Path, megabytes: int, column: str, loops: Loops) -> None:
        self.directory, self.root, self.megabytes, self.loops = (
            directory,
            directory / "root",
            megabytes,
            loops,
        )
        self.full, self.binds = column != "chroot", binds(directory, COLUMNS[column])
        mounts = [Mount.bind(source, target, read_only=True) for source, target in self.binds]
        options = dict(FULL if self.full else CHROOT)
        options["extra_mounts"] = (*options.get("extra_mounts", ()), *mounts)
        self.options = options
        self.box = Sandbox(self.root, **options)
        self.direct = self.box.replace(init=False)
        options_text = OPTIONS_TEXT["full" if self.full else "chroot"]
        self.options_text = f"{options_text}, and {len(mounts)} x Mount.bind(..., read_only=True)"
        if not mounts:
            self.options_text = options_text

    def make(self, name: str) -> Row:
        """Make a row; if this machine cannot run it, one without once(), which says why."""
        maker: Callable[[Maker], Row] = MAKERS[name]
        try:
            row = maker(self)
            if row.once is not None:
                row.once()
            return row
        except (peers.MissingError, RuntimeError, OSError, subprocess.SubprocessError) as error:
            return Row(None, "", str(error) or type(error).__name__)

    def none(self, reason: str) -> Row:
        return Row(None, "", reason)

    def loop(self, once: Callable[[], int] | str, recipe: str) -> Row:
        return self.none(once) if isinstance(once, str) else Row(once, recipe)

    def floor(self) -> Row:
        return self.loop(self.loops.floor(), "benchmarks/loop.c, loop_floor")

    def straight(self) -> Row:
        recipe = "benchmarks/straight.c" + (", the command is pid 1" if self.full else "")
        return self.loop(self.loops.straight(self.full), recipe)

    def core(self) -> Row:
        return self.loop(self.loops.core(self.box), "benchmarks/loop.c, loop_core")

    def slot(self) -> Row:
        return self.loop(self.loops.slot(self.box), "benchmarks/loop.c, loop_slot")

    def prepared(self) -> Row:
        call = timed(lambda: self.box.run(["/say"]).out)
        return Row(call, f"box = Sandbox(ROOT, {self.options_text}); box.run(['/say'])")

    def run_direct(self) -> Row:
        call = timed(lambda: self.direct.run(["/say"]).out)
        return Row(call, f"box = Sandbox(ROOT, init=False, {self.options_text}); box.run(['/say'])")

    def devices(self) -> Row:
        """The default of Sandbox: a minimal /dev, which the slot keeps from run to run."""
        box = self.box.replace(devices="minimal")
        options = self.options_text.replace(", devices='root'", "")
        return Row(timed(lambda: box.run(["/say"]).out), f"Sandbox(ROOT, {options}).run(['/say'])")

    def one_shot(self, **changes: Any) -> Row:
        options, root = self.options | changes, str(self.root)
        call = timed(lambda: run_sandbox(root, ["/say"], **options).out)
        text = "".join(f"{name}={value!r}, " for name, value in changes.items())
        return Row(call, f"run_sandbox(ROOT, ['/say'], {text}{self.options_text})")

    def filtered(self) -> Row:
        box = self.box.replace(policy=Policy(seccomp="builds"))
        call = timed(lambda: box.run(["/say"]).out)
        return Row(
            call, self._filtered(f"box = Sandbox(ROOT, {self.options_text}); box.run(['/say'])")
        )

    def one_shot_filtered(self) -> Row:
        row = self.one_shot(policy=Policy(seccomp="builds"))
        row.recipe = self._filtered(f"run_sandbox(ROOT, ['/say'], {self.options_text})")
        return row

    def _filtered(self, recipe: str) -> str:
        return recipe.replace("seccomp='none'", "seccomp='builds'")

    def one_shot_direct(self) -> Row:
        return self.one_shot(init=False)

    def map(self) -> Row:
        if not hasattr(self.box, "map"):
            return self.none("this build has no map")
        commands, jobs = [["/say"]] * 32, os.cpu_count() or 1

        def once() -> int:
            start = time.perf_counter_ns()
            results = list(self.box.map(commands, jobs=jobs))
            end = time.perf_counter_ns()
            if [result.out for result in results] != [b"ok\n"] * len(commands):
                raise RuntimeError("a command of map did not say ok")
            return (end - start) // len(commands)

        return Row(once, f"box.map([['/say']] * {len(commands)}, jobs={jobs}): time / commands")

    def other(self, argv: list[str], **options: Any) -> Row:
        """A row of a program, which subprocess.run starts."""
        call = functools.partial(subprocess.run, argv, capture_output=True, check=True, **options)
        text = " ".join(argv).replace(str(self.root), "ROOT").replace(str(self.directory), "PLACE")
        return Row(timed(lambda: call().stdout), text.replace(str(peers.CACHE), "CACHE"))

    def binding(self, make: Callable[[Path, list[tuple[str, str]], bool], list[str]]) -> Row:
        """A row of a program that takes binds. If there are many, the recipe shows the first."""
        row = self.other(make(self.root, self.binds, self.full))
        if self.binds:
            row.recipe = self.other(make(self.root, self.binds[:1], self.full)).recipe
            row.recipe += f" (and so on: {len(self.binds)} binds)"
        return row

    def bare(self) -> Row:
        return self.other([str(self.root / "say")])

    def preexec(self) -> Row:
        row = self.other(["/say"], preexec_fn=lambda: os.chroot(self.root))
        row.recipe = "subprocess.run(['/say'], preexec_fn=lambda: os.chroot(ROOT))"
        return row

    def unshare(self) -> Row:
        if self.binds:
            return self.none("unshare(1) binds nothing")
        return self.other(peers.unshare(self.root, self.full))

    def bwrap(self) -> Row:
        return self.binding(peers.bwrap)

    def nsjail(self) -> Row:
        return self.binding(peers.nsjail)

    def sandlock(self) -> Row:
        guest = Guest("sandlock", self.directory, self.megabytes, len(self.binds))
        mounts = f", fs_mount_ro={{... {len(self.binds)}}}" if self.binds else ""
        options = f"chroot=ROOT, fs_readable=['/'], fs_writable=['/tmp']{mounts}"
        less = " (no namespaces: Landlock and seccomp)" if self.full else ""
        return Row(guest.once, f"sandlock.Sandbox({options}).run(['/say']){less}")

    def earlier(self) -> Row:
        if self.full:
            return self.none("its chroot isolates no more, linux-user-chroot is not packaged")
        guest = Guest("sandboxlib", self.directory, self.megabytes, 0)
        return Row(guest.once, "sandboxlib.chroot.run_sandbox(['/say'], filesystem_root=ROOT)")


MAKERS: dict[str, Callable[[Maker], Row]] = {
    FLOOR: Maker.floor,
    STRAIGHT: Maker.straight,
    CORE: Maker.core,
    SLOT: Maker.slot,
    PREPARED: Maker.prepared,
    DIRECT: Maker.run_direct,
    DEVICES: Maker.devices,
    MAP: Maker.map,
    ONE_SHOT: Maker.one_shot,
    ONE_SHOT_DIRECT: Maker.one_shot_direct,
    FILTERED: Maker.filtered,
    ONE_SHOT_FILTERED: Maker.one_shot_filtered,
    BARE: Maker.bare,
    PREEXEC: Maker.preexec,
    UNSHARE: Maker.unshare,
    BWRAP: Maker.bwrap,
    NSJAIL: Maker.nsjail,
    SANDLOCK: Maker.sandlock,
    EARLIER: Maker.earlier,
}


def rows(
    directory: Path, megabytes: int, names_by_column: dict[str, list[str]]
) -> dict[str, dict[str, Row]]:
    """Make the named rows of each column."""
    loops = Loops(directory)
    made = {}
    for column, names in names_by_column.items():
        maker = Maker(directory, megabytes, column, loops)
        made[column] = {name: maker.make(name) for name in names}
    return made


# ---- runs per second -------------------------------------------------------------------------


def _until(row: Row) -> Callable[[float], int]:
    """Call a row until the time is over, and return how often."""
    assert row.once is not None
    once = row.once

    def count(seconds: float) -> int:
        done, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            once()
            done += 1
        return done

    return count


def per_second(maker: Maker, row: Row, name: str, threads: int, seconds: float) -> float:
    """The runs per second of a row, from that many threads."""
    if name == MAP:
        return _map_per_second(maker.box, threads, seconds)
    count = _until(row)
    if name == STRAIGHT:
        count = functools.partial(maker.loops.straight_for, maker.full)
    done: list[int] = []
    pool = [threading.Thread(target=lambda: done.append(count(seconds))) for _ in range(threads)]
    start = time.perf_counter()
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    if len(done) != threads:
        raise RuntimeError(f"a thread of {name} failed")
    return sum(done) / (time.perf_counter() - start)


def _map_per_second(box: Any, jobs: int, seconds: float) -> float:
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        done += len(list(box.map([["/say"]] * 64 * jobs, jobs=jobs)))
    return done / (time.perf_counter() - start)
