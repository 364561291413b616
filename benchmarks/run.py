# SPDX-License-Identifier: Apache-2.0
"""What a sandbox costs: sandboxlib against bare C loops, and against others.

    python benchmarks/run.py [--quick] [--json FILE]     as root, in an environment with sandboxlib
    python benchmarks/run.py --syscalls                  system calls of a run, counted by strace

Two C loops make the same system calls in the same process: loop.c calls the library's own core,
straight.c shares nothing with it. --syscalls compares what straight.c and the library call.

The rows of a column are run in rounds, in random order, ten times each, of which the first two are
dropped; a round's figure is the median of the eight. Ratios are taken within a round, and their
median is given with a bootstrap interval of 95 %. One worker process for each size of the caller,
taking turns. Microseconds; the command is a static program that writes "ok\\n".
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sandboxlib import Mount, Sandbox, _native, run_sandbox
from sandboxlib._plan import Job, plan_for

HERE = Path(__file__).resolve().parent
CHROOT: dict[str, Any] = {
    "mounts": "undefined",
    "processes": "undefined",
    "ipc": "undefined",
    "capabilities": "all",
    "no_new_privs": False,
}
FULL: dict[str, Any] = {"network": "isolated", "extra_mounts": (Mount.tmpfs("/tmp"),)}
CORE, STRAIGHT = "C loop, same system calls", "C loop, written straight"
LATEST = HERE / "results" / "latest.json"
Row = Callable[[], int]  # one run; nanoseconds


# ---- what is measured ------------------------------------------------------------------------


def build(place: Path) -> tuple[Path, Path]:
    """The root with the command in it, and the C loops as a library."""
    root, library = place / "root", place / "loop.so"
    for name in ("proc", "tmp", "dev"):
        (root / name).mkdir(parents=True, exist_ok=True)
    small = "-Os -static -nostdlib -ffreestanding -fno-stack-protector -Wl,--build-id=none -Wl,-s"
    subprocess.run(["cc", *small.split(), "-o", root / "say", HERE / "say.c"], check=True)
    init = Path(_native.__file__).with_name("_init")
    flags = ["-std=gnu11", "-O3", "-shared", "-fPIC", "-Wl,-z,now", f'-DSBX_INIT="{init}"']
    subprocess.run(["cc", *flags, "-o", library, HERE / "loop.c"], check=True)
    subprocess.run(["cc", *flags, "-o", place / "straight.so", HERE / "straight.c"], check=True)
    return root, library


def timed(call: Callable[[], Any]) -> Row:
    def row() -> int:
        start = time.perf_counter_ns()
        result = call()
        end = time.perf_counter_ns()
        out = result.stdout if hasattr(result, "stdout") else result[1]
        assert out == b"ok\n", result
        return end - start

    return row


class Loops:
    """The C loops, called through cffi: the same structs, the same memory."""

    def __init__(self, library: Path) -> None:
        from cffi import FFI

        self.ffi = FFI()
        words = (HERE.parent / "csrc" / "sandbox.h").read_text()
        self.ffi.cdef(words)
        self.ffi.cdef(
            "int64_t loop_core(const struct sbx_place *, const struct sbx_job *, struct sbx_run *,"
            " char *, char *, char *, size_t);"
            "int64_t loop_floor(const char *, const char *);"
            "int64_t straight(const char *, const char *, int);"
        )
        self.lib = self.ffi.dlopen(str(library))
        self.straight_lib = self.ffi.dlopen(str(library.with_name("straight.so")))

    def core(self, box: Sandbox) -> Row:
        plan, job, work = plan_for(box), Job(["/say"], "/", None), _native.Workspace()
        init = _native.init_descriptor() if plan.reaper else -1
        stdio = (_native.lib.SBX_NULL, _native.lib.SBX_CAPTURE, _native.lib.SBX_CAPTURE)
        kept = _native.fill_job(
            work, job.blob, job.cwd_size, job.counts, stdio, init, plan.held(())
        )
        scratch = [self.ffi.new("char[]", _native.SCRATCH_SIZE) for _ in range(2)]
        pointers = []
        for kind, value in (
            ("struct sbx_place *", plan.place),
            ("struct sbx_job *", work.job),
            ("struct sbx_run *", work.run),
            ("char *", work.stack),
        ):
            number = int(_native.ffi.cast("uintptr_t", value))
            pointers.append(self.ffi.cast(kind, number))

        def row(kept: object = (kept, work, job, plan)) -> int:
            spent = int(self.lib.loop_core(*pointers, *scratch, _native.SCRATCH_SIZE))
            assert spent > 0
            return spent

        return row

    def floor(self, root: Path) -> Row:
        path = self.ffi.new("char[]", os.fsencode(root))
        program = self.ffi.new("char[]", b"/say")

        def row() -> int:
            spent = int(self.lib.loop_floor(path, program))
            assert spent > 0
            return spent

        return row

    def straight(self, root: Path, full: bool) -> Row:
        path = self.ffi.new("char[]", os.fsencode(root))
        program = self.ffi.new("char[]", b"/say")

        def row() -> int:
            spent = int(self.straight_lib.straight(path, program, full))
            assert spent > 0, spent
            return spent

        return row


def rows(root: Path, library: Path) -> dict[str, dict[str, Row]]:
    """Column by column, the rows."""
    loops = Loops(library)
    bare = Sandbox(root, **CHROOT)
    full, direct = Sandbox(root, **FULL), Sandbox(root, init=False, **FULL)
    say = str(root / "say")

    def other(argv: list[str], **words: Any) -> Row:
        return timed(lambda: subprocess.run(argv, capture_output=True, check=True, **words))

    columns = {
        "chroot only": {
            "C floor: vfork, chroot, exec": loops.floor(root),
            STRAIGHT: loops.straight(root, False),
            CORE: loops.core(bare),
            "sandboxlib Sandbox.run": timed(lambda: bare.run(["/say"])),
            "sandboxlib run_sandbox": timed(lambda: run_sandbox(str(root), ["/say"], **CHROOT)),
            "subprocess.run, no sandbox": other([say]),
            "subprocess.run, chroot preexec_fn": other(
                ["/say"], preexec_fn=lambda: os.chroot(root)
            ),
        },
        "full isolation": {
            STRAIGHT: loops.straight(root, True),
            CORE: loops.core(direct),
            "C loop with the reaper": loops.core(full),
            "sandboxlib init=False": timed(lambda: direct.run(["/say"])),
            "sandboxlib Sandbox.run": timed(lambda: full.run(["/say"])),
            "sandboxlib run_sandbox": timed(lambda: run_sandbox(str(root), ["/say"], **FULL)),
        },
    }
    if shutil.which("bwrap"):
        argv = "bwrap --unshare-pid --unshare-ipc --unshare-uts --unshare-net --unshare-cgroup"
        argv += f" --new-session --bind {root} / --proc /proc --tmpfs /tmp /say"
        columns["full isolation"]["bwrap"] = other(argv.split())
    if shutil.which("unshare"):
        argv = f"unshare -mpiunCf --root={root} --mount-proc /say"
        columns["full isolation"]["unshare --root"] = other(argv.split())
    return columns


# ---- rounds ----------------------------------------------------------------------------------


def one_round(column: dict[str, Row]) -> dict[str, float]:
    """The median of each row, in microseconds."""
    names = list(column)
    random.shuffle(names)
    found = {}
    for name in names:
        samples = [column[name]() for _ in range(10)][2:]
        found[name] = statistics.median(samples) / 1000
    return {name: found[name] for name in column}


def worker(megabytes: int, place: Path) -> None:
    """Does a round of every column for each line that it reads."""
    ballast = bytearray(os.urandom(1 << 20)) * megabytes
    columns = rows(place / "root", place / "loop.so")
    for column in columns.values():
        one_round(column)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps({name: one_round(column) for name, column in columns.items()}), flush=True)
    del ballast


class Caller:
    """A worker process of some size."""

    def __init__(self, megabytes: int, place: Path) -> None:
        argv = [sys.executable, __file__, "--worker", str(megabytes), "--place", str(place)]
        self.megabytes = megabytes
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True)
        self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"the worker of {self.megabytes} MB died: {self._process.wait()}")
        return line

    def round(self) -> dict[str, dict[str, float]]:
        assert self._process.stdin is not None
        self._process.stdin.write("round\n")
        self._process.stdin.flush()
        answer: dict[str, dict[str, float]] = json.loads(self._line())
        return answer

    def end(self) -> None:
        self._process.communicate()


def interval(values: list[float]) -> tuple[float, float]:
    """A bootstrap interval of 95 % for the median."""
    pick = random.Random(1)
    medians = sorted(statistics.median(pick.choices(values, k=len(values))) for _ in range(1000))
    return medians[25], medians[974]


def plain_interpreter(place: Path) -> Path:
    """An environment with sandboxlib as a wheel installs it. The finder of an editable install has
    loaded much of the standard library before anything is imported, which hides what that costs.
    """
    import _cffi_backend

    here = place / "plain"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", here], check=True)
    packages = next((here / "lib").glob("python*")) / "site-packages"
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(_native.__file__).parent, packages / "sandboxlib", ignore=leave)
    shutil.copy(_cffi_backend.__file__, packages)
    return here / "bin" / "python"


def import_cost(count: int, python: Path) -> float:
    """Milliseconds that `import sandboxlib` takes over a bare interpreter."""
    dropped = {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH"}
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    samples: dict[str, list[float]] = {"pass": [], "import sandboxlib": []}
    for number in range(count + 2):
        for code in random.sample(list(samples), 2):
            start = time.perf_counter()
            subprocess.run([python, "-c", code], check=True, env=environment, cwd="/")
            if number > 1:
                samples[code].append(time.perf_counter() - start)
    bare, ours = (statistics.median(found) for found in samples.values())
    return 1000 * (ours - bare)


STRAIGHT_SCRIPT = """
import ctypes, sys
run = ctypes.CDLL({library!r}).straight
run.restype = ctypes.c_int64
for _ in range(int(sys.argv[1])):
    assert run({root!r}, b"/say", {full}) > 0
"""
OURS_SCRIPT = """
import sys
from sandboxlib import Sandbox, Mount
box = Sandbox({root!r}, **{words!r})
for _ in range(int(sys.argv[1])):
    box.run(["/say"])
"""


def traced(place: Path, script: str) -> dict[str, float]:
    """System calls of one run, the host's and the child's, by name."""
    totals = []
    for count in (10, 110):
        argv = ["strace", "-f", "-c", "-U", "calls,name", "-o", str(place / "trace")]
        subprocess.run([*argv, sys.executable, "-c", script, str(count)], check=True)
        lines = [line.split() for line in (place / "trace").read_text().splitlines()[2:]]
        totals.append({w[1]: int(w[0]) for w in lines if len(w) == 2 and w[0].isdigit()})
    return {key: (totals[1][key] - totals[0].get(key, 0)) / 100 for key in totals[1]}


def count_syscalls(place: Path) -> int:
    """What the library calls in a run, and whether straight.c calls the same; 1: it does not."""
    root, library, missed = place / "root", place / "straight.so", 0
    for name, full, words in (
        ("chroot only", 0, CHROOT),
        ("full isolation, init=False", 1, {**FULL, "init": False}),
        ("full isolation", None, FULL),
    ):
        ours = traced(place, OURS_SCRIPT.format(root=str(root), words=words))
        signals = ours.get("rt_sigaction", 0)
        print(f"{name}: {ours['total']:.0f} system calls, {signals:.0f} of them rt_sigaction")
        if full is None:
            continue
        script = STRAIGHT_SCRIPT.format(library=str(library), root=os.fsencode(root), full=full)
        loop = traced(place, script)
        # How often a wait wakes, and on which side of the last byte, is the scheduler's choice.
        differ = {
            key: (loop.get(key, 0), ours.get(key, 0))
            for key in sorted({*loop, *ours} - {"total", "ppoll", "read", "ioctl"})
            if abs(loop.get(key, 0) - ours.get(key, 0)) > 0.5
        }
        verdict = f"NOT the same (loop, library): {differ}" if differ else "the same"
        print(f"    straight.c calls {verdict}")
        missed += bool(differ)
    return min(missed, 1)


# ---- report ----------------------------------------------------------------------------------


def machine() -> str:
    with open("/proc/meminfo") as file:
        memory = int(file.readline().split()[1]) // 1048576
    bwrap = "no bwrap"
    if shutil.which("bwrap"):
        bwrap = subprocess.check_output(["bwrap", "--version"], text=True).strip()
    mounts = len(Path("/proc/self/mountinfo").read_text().splitlines())
    return (
        f"{platform.machine()}, {os.cpu_count()} CPUs, {memory} GiB, Linux {platform.release()}, "
        f"{mounts} mounts, CPython {platform.python_version()}, {bwrap}, "
        + time.strftime("%Y-%m-%d, load ")
        + f"{os.getloadavg()[0]:.1f}"
    )


class Report:
    """All rounds of all callers."""

    def __init__(self, rounds: dict[int, list[dict[str, dict[str, float]]]]) -> None:
        self.rounds = rounds

    def values(self, size: int, column: str, row: str) -> list[float]:
        return [found[column][row] for found in self.rounds[size]]

    def ratio(self, size: int, column: str, row: str, to: str) -> list[float]:
        pairs = zip(self.values(size, column, row), self.values(size, column, to), strict=True)
        return [one / other for one, other in pairs]

    def table(self) -> None:
        sizes = list(self.rounds)
        for column in self.rounds[sizes[0]][0]:
            print(f"\n{column:34}" + "".join(f"{size:>9} MB{'ratio':>8}" for size in sizes))
            for row in self.rounds[sizes[0]][0][column]:
                line = f"  {row:32}"
                for size in sizes:
                    middle = statistics.median(self.values(size, column, row))
                    ratio = statistics.median(self.ratio(size, column, row, CORE))
                    line += f"{middle:12.0f}{ratio:8.2f}"
                print(line)

    def goals(self, import_ms: dict[str, float]) -> None:
        small, large = min(self.rounds), max(self.rounds)
        run, direct = "sandboxlib Sandbox.run", "sandboxlib init=False"
        reaper = [
            one - other
            for one, other in zip(
                self.values(small, "full isolation", run),
                self.values(small, "full isolation", direct),
                strict=True,
            )
        ]
        sizes = {
            column: [
                one / other
                for one, other in zip(
                    self.values(large, column, run), self.values(small, column, run), strict=True
                )
            ]
            for column in ("chroot only", "full isolation")
        }
        print()
        for base in (STRAIGHT, CORE):
            goal(f"chroot only / {base}", self.ratio(small, "chroot only", run, base), 1.20)
            name = f"full, init=False / {base}"
            goal(name, self.ratio(small, "full isolation", direct, base), 1.05)
        goal("what the reaper adds, us", reaper, 100)
        for column, values in sizes.items():
            goal(f"{column}, {large} MB caller / {small} MB caller", values, 1.05)
        for name, value in import_ms.items():
            goal(f"import sandboxlib, ms, {name}", [value], 20)


def goal(name: str, values: list[float], most: float) -> None:
    low, high = interval(values)
    middle = statistics.median(values)
    word = "met" if middle <= most else "MISSED"
    print(f"{name:48} {middle:8.2f}  [{low:.2f}, {high:.2f}]  goal <= {most:g}: {word}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--json", type=Path, default=LATEST, help="where to keep every round")
    parser.add_argument("--parents", default="50,1024", help="sizes of the caller, MB")
    parser.add_argument("--syscalls", action="store_true")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.worker is not None:
        worker(words.worker, words.place)
        return 0
    if os.geteuid() != 0:
        print("the benchmark takes root", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="sandboxlib-bench-") as place:
        build(Path(place))
        if words.syscalls:
            return count_syscalls(Path(place))
        measure(words, Path(place))
    return 0


def measure(words: argparse.Namespace, place: Path) -> None:
    print(machine(), flush=True)
    callers = [Caller(int(size), place) for size in words.parents.split(",")]
    report = Report({caller.megabytes: [] for caller in callers})
    for _ in range(6 if words.quick else 40):
        random.shuffle(callers)
        for caller in callers:
            report.rounds[caller.megabytes].append(caller.round())
    for caller in callers:
        caller.end()
    count = 5 if words.quick else 30
    pythons = {"plain install": plain_interpreter(place), "this interpreter": Path(sys.executable)}
    import_ms = {name: import_cost(count, python) for name, python in pythons.items()}
    report.table()
    report.goals(import_ms)
    kept = {"machine": machine(), "import_ms": import_ms, "rounds": report.rounds}
    words.json.parent.mkdir(parents=True, exist_ok=True)
    words.json.write_text(json.dumps(kept) + "\n")


if __name__ == "__main__":
    sys.exit(main())
