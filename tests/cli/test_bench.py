# SPDX-License-Identifier: Apache-2.0
"""The benchmark: its short form for users, and the tables and goals of benchmarks/."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lib.machine import needs_root, require

import sandboxlib
from sandboxlib._cli import bench as _bench

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def bench(*words: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "sandboxlib", "bench", *words]
    env = {**os.environ, **({"PATH": path} if path is not None else {})}
    return subprocess.run(argv, capture_output=True, text=True, env=env, check=False)


def require_full_isolation() -> None:
    possible = sandboxlib.maximum_possible_isolation()
    require("undefined" not in possible.values(), "no executor here isolates everything")


def test_it_compares_sandboxes_with_a_bare_run() -> None:
    require_full_isolation()
    before = set(os.listdir("/tmp"))
    done = bench("--rounds", "2")
    assert done.returncode == 0, done.stderr
    ratios = {
        line[:36].strip(): float(line[36:].split()[1].replace(",", ""))
        for line in done.stdout.splitlines()
        if line.startswith((_bench.BARE, _bench.ONE_SHOT, _bench.PREPARED))
    }
    assert set(ratios) == {_bench.BARE, _bench.ONE_SHOT, _bench.PREPARED}
    assert ratios[_bench.PREPARED] == 1
    assert not [name for name in set(os.listdir("/tmp")) - before if "sandboxlib-bench" in name]


def test_without_a_compiler_and_bwrap_it_says_what_it_does_instead(tmp_path: Path) -> None:
    require_full_isolation()
    require(os.path.exists("/bin/true"), "there is no /bin/true")
    done = bench("--rounds", "1", path=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "/bin/true, as there is no C compiler" in done.stdout
    assert "there is no bwrap" in done.stdout


@pytest.mark.parametrize("rounds", ["0", "-1", "few"])
def test_rounds_are_a_number_from_one_on(rounds: str) -> None:
    done = bench("--rounds", rounds)
    assert done.returncode == 125
    assert "--rounds" in done.stderr


def test_the_interval_holds_the_median() -> None:
    low, high = _bench.interval([1.0, 2.0, 3.0, 4.0, 100.0])
    assert 1 <= low <= 3 <= high <= 100
    assert _bench.interval([7.0]) == (7.0, 7.0)


# ---- benchmarks/ -----------------------------------------------------------------------------


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules goals, report and table of benchmarks/."""
    require(BENCHMARKS.is_dir(), "this is not the source tree")
    pytest.importorskip("cffi.api")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import goals
    import report
    import table

    return goals, report, table


def test_a_goal_is_judged_by_the_ratios_within_the_rounds(modules: Any) -> None:
    goals, _, table = modules
    found = table.Table("isolation", "title", "us")
    # The medians are 10 and 20, those of the ratios 1.5.
    for one_value, two_value in ((3.0, 2.0), (10.0, 100.0), (30.0, 20.0)):
        found.add("chroot", "one", one_value)
        found.add("chroot", "two", two_value)
    one, two = ("chroot", "one"), ("chroot", "two")
    for sign, limit, outcome in (("<=", 1.5, "met"), ("<=", 1.4, "MISSED"), (">=", 1.6, "MISSED")):
        goal = goals.Goal("title", "isolation", one, two, sign, limit)
        verdict = goals.judge(goal, found)
        assert verdict.outcome == outcome
        assert verdict.figures == (1.5, 0.1, 1.5)


def test_a_goal_that_was_not_measured_says_why(modules: Any) -> None:
    goals, _, table = modules
    found = table.Table("isolation", "title", "us")
    found.missing = {"chroot": {"one": "there is no such thing"}}
    goal = goals.Goal("title", "isolation", ("chroot", "one"), None, "<=", 1)
    assert goals.judge(goal, found).outcome == "not measured: there is no such thing"
    assert goals.judge(goal, None).outcome == "not measured"


def test_a_table_survives_its_file(modules: Any, tmp_path: Path) -> None:
    _, report, table = modules
    found = table.Table("isolation", "title", "us", "a machine")
    found.add("chroot", "Sandbox.run", 150.5)
    found.recipes = {"chroot": {"Sandbox.run": 'box.run(["/say"], x="],")'}}
    found.save(tmp_path)
    again = table.load(tmp_path, "isolation")
    assert vars(again) == vars(found)
    assert "| Sandbox.run | 150 [150, 150] |" in report.markdown_table(again)
    assert table.load(tmp_path, "threads") is None


@needs_root
def test_the_script_that_strace_counts_runs(modules: Any, rootfs: Path) -> None:
    import rows
    import syscalls

    os.link(rootfs / "bin" / "true", rootfs / "say")
    for options in (rows.CHROOT, rows.FULL):
        script = syscalls.OURS_SCRIPT.format(root=str(rootfs), options=options, how="")
        subprocess.run([sys.executable, "-c", script, "1"], check=True)


def test_readme_has_the_marks_of_the_block_that_is_written(modules: Any) -> None:
    _, report, _ = modules
    text = (BENCHMARKS.parent / "README.md").read_text()
    assert text.count(report.START) == text.count(report.END) == 1
    assert text.index(report.START) < text.index(report.END)


@pytest.mark.slow
@needs_root
def test_the_benchmark_measures_a_table(tmp_path: Path) -> None:
    require(BENCHMARKS.is_dir(), "this is not the source tree")
    require(shutil.which("cc"), "there is no C compiler")
    argv = [sys.executable, str(BENCHMARKS / "run.py"), "--quick", "--no-install"]
    argv += ["--results", str(tmp_path), "isolation"]
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(argv, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert "sandlock is not installed" in done.stdout
    assert "full, run_sandbox / our core in C" in done.stdout
    assert (tmp_path / "isolation.json").stat().st_size < 20_000
