# SPDX-License-Identifier: Apache-2.0
"""What is measured: for each column the rows, each one run of /say, or the reason why not."""

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
# Both say all that differs between Sandbox and run_sandbox.
CHROOT: dict[str, Any] = {
    "network": "undefined",
    "mounts": "undefined",
    "processes": "undefined",
    "ipc": "undefined",
    "policy": Policy(capabilities="all", no_new_privs=False, seccomp="none"),
}
# Without what has rows of its own: the filter of system calls, and the minimal /dev.
FULL: dict[str, Any] = {
    "network": "isolated",
    "filesystem_writable_paths": "all",
    "extra_mounts": (Mount.tmpfs("/tmp"),),
    "devices": "root",
    "policy": Policy(seccomp="none"),
}
OUR_WORDS = {
    "chroot": "network='undefined', mounts='undefined', processes='undefined', ipc='undefined',"
    " policy=Policy(capabilities='all', no_new_privs=False, seccomp='none')",
    "full": "network='isolated', filesystem_writable_paths='all',"
    " extra_mounts=[Mount.tmpfs('/tmp')], devices='root', policy=Policy(seccomp='none')",
}

# The rows, in the order in which they are shown.
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
    """Whether this build keeps something from run to run."""
    return "fresh" in inspect.signature(Sandbox.run).parameters


class Row:
    """once() is one run, in nanoseconds; words say how to repeat it; reason: why there is none."""

    def __init__(self, once: Callable[[], int] | None, words: str, reason: str = "") -> None:
        self.once, self.words, self.reason = once, words, reason


# ---- the place -------------------------------------------------------------------------------


def build(place: Path) -> None:
    """The root with /say in it, 1,000 things to bind, and the C loops."""
    root = place / "root"
    for name in ("proc", "tmp", "dev"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for source, target in binds(place, 1000):
        Path(source).mkdir(parents=True, exist_ok=True)
        (root / target[1:]).mkdir(parents=True, exist_ok=True)
    compile_small(HERE / "say.c", root / "say")
    build_loops(place)


def compile_small(source: Path, program: Path, *more: str) -> None:
    """A static program without libc."""
    flags = "-Os -static -nostdlib -ffreestanding -fno-stack-protector -Wl,--build-id=none -Wl,-s"
    argv = ["cc", *flags.split(), *more, "-o", str(program), str(source)]
    subprocess.run(argv, check=True)


def binds(place: Path, count: int) -> list[tuple[str, str]]:
    return [(f"{place}/source/{n}", f"/b/{n}") for n in range(count)]


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
    """A run of another library, timed by a process of its own, as large as this one."""

    def __init__(self, package: str, place: Path, megabytes: int, count: int) -> None:
        paths = itertools.chain(*binds(place, count))
        argv = [peers.python(package), HERE / "guest.py", package, place / "root", str(megabytes)]
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
            words = self._process.communicate()[1].strip().splitlines() or ["it ended"]
            raise peers.MissingError(words[-1])
        return line

    def once(self) -> int:
        self._ask.write("\n")
        self._ask.flush()
        return int(self._answer())


class Maker:
    """Makes the rows of one column."""

    def __init__(self, place: Path, megabytes: int, column: str, loops: Loops) -> None:
        self.place, self.root, self.megabytes, self.loops = place, place / "root", megabytes, loops
        self.full, self.binds = column != "chroot", binds(place, COLUMNS[column])
        mounts = [Mount.bind(source, target, read_only=True) for source, target in self.binds]
        words = dict(FULL if self.full else CHROOT)
        words["extra_mounts"] = (*words.get("extra_mounts", ()), *mounts)
        self.words = words
        self.box = Sandbox(self.root, **words)
        self.direct = self.box.replace(init=False)
        spoken = OUR_WORDS["full" if self.full else "chroot"]
        self.spoken = f"{spoken}, and {len(mounts)} x Mount.bind(..., read_only=True)"
        if not mounts:
            self.spoken = spoken

    def make(self, name: str) -> Row:
        """The row; one that cannot be had says why."""
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

    def loop(self, once: Callable[[], int] | str, words: str) -> Row:
        return self.none(once) if isinstance(once, str) else Row(once, words)

    def floor(self) -> Row:
        return self.loop(self.loops.floor(), "benchmarks/loop.c, loop_floor")

    def straight(self) -> Row:
        words = "benchmarks/straight.c" + (", the command is pid 1" if self.full else "")
        return self.loop(self.loops.straight(self.full), words)

    def core(self) -> Row:
        return self.loop(self.loops.core(self.box), "benchmarks/loop.c, loop_core")

    def slot(self) -> Row:
        return self.loop(self.loops.slot(self.box), "benchmarks/loop.c, loop_slot")

    def prepared(self) -> Row:
        call = timed(lambda: self.box.run(["/say"]).out)
        return Row(call, f"box = Sandbox(ROOT, {self.spoken}); box.run(['/say'])")

    def run_direct(self) -> Row:
        call = timed(lambda: self.direct.run(["/say"]).out)
        return Row(call, f"box = Sandbox(ROOT, init=False, {self.spoken}); box.run(['/say'])")

    def devices(self) -> Row:
        """The default: a minimal /dev, which the slot keeps."""
        box = self.box.replace(devices="minimal")
        words = self.spoken.replace(", devices='root'", "")
        return Row(timed(lambda: box.run(["/say"]).out), f"Sandbox(ROOT, {words}).run(['/say'])")

    def one_shot(self, **more: Any) -> Row:
        words, root = self.words | more, str(self.root)
        call = timed(lambda: run_sandbox(root, ["/say"], **words).out)
        spoken = "".join(f"{name}={value!r}, " for name, value in more.items()) + self.spoken
        return Row(call, f"run_sandbox(ROOT, ['/say'], {spoken})")

    def filtered(self) -> Row:
        box = self.box.replace(policy=Policy(seccomp="builds"))
        call = timed(lambda: box.run(["/say"]).out)
        return Row(call, self._filtered(f"box = Sandbox(ROOT, {self.spoken}); box.run(['/say'])"))

    def one_shot_filtered(self) -> Row:
        row = self.one_shot(policy=Policy(seccomp="builds"))
        row.words = self._filtered(f"run_sandbox(ROOT, ['/say'], {self.spoken})")
        return row

    def _filtered(self, words: str) -> str:
        return words.replace("seccomp='none'", "seccomp='builds'")

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

    def other(self, argv: list[str], **words: Any) -> Row:
        """A program through subprocess.run."""
        call = functools.partial(subprocess.run, argv, capture_output=True, check=True, **words)
        text = " ".join(argv).replace(str(self.root), "ROOT").replace(str(self.place), "PLACE")
        return Row(timed(lambda: call().stdout), text.replace(str(peers.CACHE), "CACHE"))

    def binding(self, make: Callable[[Path, list[tuple[str, str]], bool], list[str]]) -> Row:
        """A program that takes binds; of many the first is shown."""
        row = self.other(make(self.root, self.binds, self.full))
        if self.binds:
            row.words = self.other(make(self.root, self.binds[:1], self.full)).words
            row.words += f" (and so on: {len(self.binds)} binds)"
        return row

    def bare(self) -> Row:
        return self.other([str(self.root / "say")])

    def preexec(self) -> Row:
        row = self.other(["/say"], preexec_fn=lambda: os.chroot(self.root))
        row.words = "subprocess.run(['/say'], preexec_fn=lambda: os.chroot(ROOT))"
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
        guest = Guest("sandlock", self.place, self.megabytes, len(self.binds))
        mounts = f", fs_mount_ro={{... {len(self.binds)}}}" if self.binds else ""
        words = f"chroot=ROOT, fs_readable=['/'], fs_writable=['/tmp']{mounts}"
        less = " (no namespaces: Landlock and seccomp)" if self.full else ""
        return Row(guest.once, f"sandlock.Sandbox({words}).run(['/say']){less}")

    def earlier(self) -> Row:
        if self.full:
            return self.none("its chroot isolates no more, linux-user-chroot is not packaged")
        guest = Guest("sandboxlib", self.place, self.megabytes, 0)
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


def rows(place: Path, megabytes: int, wanted: dict[str, list[str]]) -> dict[str, dict[str, Row]]:
    """The rows that are wanted, by column."""
    loops = Loops(place)
    found = {}
    for column, names in wanted.items():
        maker = Maker(place, megabytes, column, loops)
        found[column] = {name: maker.make(name) for name in names}
    return found


# ---- runs per second -------------------------------------------------------------------------


def _until(row: Row) -> Callable[[float], int]:
    """Calls a row until the time is over; how often."""
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
    """Runs per second of a row from that many threads."""
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
