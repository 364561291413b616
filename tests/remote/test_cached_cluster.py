# SPDX-License-Identifier: Apache-2.0
"""Cached against a real BuildGrid: machines with stores of their own share their results."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.machine import python, require
from lib.roots import make_rootfs

from sandboxlib import (
    Cached,
    Command,
    Layer,
    Overlay,
    Result,
    Runner,
    Sandbox,
    Server,
    Store,
    Tree,
    UnsupportedError,
)
from sandboxlib._cluster.cluster import Cluster


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rootfs(tmp_path_factory.mktemp("roots") / "root")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Sources that no other test has, so that the cache knows nothing of them."""
    (tmp_path / "src").mkdir()
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "a.h").write_text(f"{tmp_path}\n")
    for name in ("a.c", "b.c", "c.c"):
        (tmp_path / "src" / name).write_text(f"source {name}\n")
    return tmp_path


def box_of(root: Path, store: Path) -> Sandbox:
    try:
        layer = Layer.from_directory(root, Store(store))
    except UnsupportedError as error:
        require(False, f"a layer cannot be unpacked here: {error}")
    box = Sandbox(Overlay(layer), deterministic=True, store=Store(store))
    require(not box.lacks(), f"no Overlay here: {box.lacks()}")
    return box


def steps(place: Path) -> list[Command]:
    include = Tree(place / "include")
    script = "cat include/a.h $0; date +%s%N; cat /proc/sys/kernel/random/uuid $0 > /out/$0.o"
    return [
        Command(
            ["sh", "-c", script, path.name],
            "/src",
            inputs={"include": include, path.name: path},
            outputs=[f"/out/{path.name}.o"],
        )
        for path in sorted((place / "src").iterdir())
    ]


def build(runner: Runner, place: Path, out: Path) -> list[Result]:
    """The build of a user, for any Runner."""
    results = []
    for result in runner.map(steps(place)):
        result.outputs.collect(out, below="/out")
        results.append(result)
    return results


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_one_build_function_runs_in_a_sandbox_and_with_a_cache(
    cluster: Cluster, root: Path, sources: Path
) -> None:
    with box_of(root, sources / "store") as box, Server(cluster.url) as server:
        assert not any(each.cached for each in build(box, sources, sources / "1"))
        first = build(Cached(box, server, write=True), sources, sources / "2")
        second = build(Cached(box, server, write=True), sources, sources / "3")
    assert not any(each.cached for each in first)
    assert all(each.cached for each in second)
    assert [each.stdout for each in first] == [each.stdout for each in second]
    assert contents(sources / "2") == contents(sources / "3") != contents(sources / "1")
    assert set(contents(sources / "1")) == {"a.c.o", "b.c.o", "c.c.o"}


def test_what_changes_is_run_and_nothing_else(cluster: Cluster, root: Path, sources: Path) -> None:
    with box_of(root, sources / "store") as box, Server(cluster.url) as server:
        cached = Cached(box, server, write=True)
        build(cached, sources, sources / "1")
        (sources / "src" / "b.c").write_text("another\n")
        again = build(cached, sources, sources / "2")
        assert [each.cached for each in again] == [True, False, True]
        (sources / "include" / "a.h").write_text("another\n")
        assert not any(each.cached for each in build(cached, sources, sources / "3"))


def test_large_outputs_and_directories(cluster: Cluster, root: Path, sources: Path) -> None:
    line = "mkdir -p /out/d/e; head -c 6000000 /dev/urandom > /out/d/large; ln -s large /out/d/l;"
    line += " echo run > /out/d/e/run; chmod +x /out/d/e/run; head -c 5000000 /dev/urandom"
    inputs = {"a.h": sources / "include" / "a.h"}
    command = Command(["sh", "-c", line], inputs=inputs, outputs=["/out/d"])
    with box_of(root, sources / "store") as box, Server(cluster.url) as server:
        first = Cached(box, server, write=True).run(command, check=True)
        other = box.replace(store=Store(sources / "other"))
        second = Cached(other, server).run(command)
    assert (first.cached, second.cached) == (False, True)
    assert first.stdout == second.stdout
    assert {path: file.read_bytes() for path, file in first.outputs.items()} == {
        path: file.read_bytes() for path, file in second.outputs.items()
    }
    assert second.outputs["/out/d/e/run"].executable
    assert dict(second.outputs.links) == {"/out/d/l": "large"}
    assert set(second.outputs.directories) == {"/out/d", "/out/d/e"}


def test_a_result_whose_blobs_the_server_lost_is_made_again(
    cluster: Cluster, root: Path, sources: Path
) -> None:
    with box_of(root, sources / "store") as box, Server(cluster.url) as server:
        cached = Cached(box, server, write=True)
        first = build(cached, sources, sources / "1")
        (digest,) = (first[1].outputs[path].digest() for path in first[1].outputs)
        lost = [
            path
            for path in (cluster.directory / "cas").rglob("*")
            if path.is_file() and digest[:64] in f"{path.parent.name}{path.name}"
        ]
        assert lost
        for path in lost:
            path.unlink()
        again = build(cached, sources, sources / "2")
        assert [each.cached for each in again] == [True, False, True]
        assert all(each.cached for each in build(cached, sources, sources / "3"))


PROGRAM = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from test_cached_cluster import box_of, build
from sandboxlib import Cached, Server
place, store = Path({place!r}), Path(sys.argv[1])
with box_of(Path({root!r}), store) as box, Server({url!r}) as server:
    with Cached(box, server, write=True) as cached:
        results = build(cached, place, store / "made")
print(sum(each.cached for each in results), len(results))
"""


@pytest.fixture
def machines(cluster: Cluster, root: Path, sources: Path) -> Iterator[Any]:
    """Starts the build in a process of its own, with a store of its own: as another machine."""
    started: list[subprocess.Popen[str]] = []

    def start(name: str) -> subprocess.Popen[str]:
        path = [str(Path(__file__).parent), *sys.path]
        code = PROGRAM.format(path=path, place=str(sources), root=str(root), url=cluster.url)
        argv = [*python(), "-B", "-c", code, str(sources / name)]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(argv, **pipes))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.communicate()


def answer(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    return out.strip()


def test_two_machines_share_what_one_of_them_ran(machines: Any, sources: Path) -> None:
    assert answer(machines("one")) == "0 3"
    assert answer(machines("two")) == "3 3"
    assert contents(sources / "one" / "made") == contents(sources / "two" / "made")


@pytest.mark.slow
def test_eight_machines_at_once(machines: Any, sources: Path) -> None:
    processes = [machines(f"machine{number}") for number in range(8)]
    hits = [answer(process) for process in processes]
    assert all(each.endswith(" 3") for each in hits)
    assert answer(machines("later")) == "3 3"
    last = contents(sources / "later" / "made")
    made = [contents(sources / f"machine{number}" / "made") for number in range(8)]
    assert all(set(each) == set(last) for each in made)
    for name, content in last.items():  # the whole file of one of them
        assert content in [each[name] for each in made]
