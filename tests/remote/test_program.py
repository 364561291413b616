# SPDX-License-Identifier: Apache-2.0
"""One build function over a Sandbox, Cached, and Remote with real workers: program 4 of the API."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.farm import WorkerProcess, worker
from lib.machine import require
from lib.roots import find_busybox, make_rootfs
from lib.waiting import wait_until

from sandboxlib import (
    STDOUT,
    Cached,
    Command,
    File,
    Layer,
    Limits,
    Mount,
    Overlay,
    Remote,
    RemoteError,
    Result,
    Runner,
    Sandbox,
    SandboxExecutor,
    Server,
    Store,
    Tree,
    UnsupportedError,
)
from sandboxlib._cluster.cluster import Cluster

OURS = {"sandboxlib": "1"}
APPLETS = "cat cp date echo env head id ls ln mkdir sed sh sleep touch tr wc".split()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rootfs(tmp_path_factory.mktemp("roots") / "root")


@pytest.fixture(scope="module")
def tools() -> Tree:
    """A root with a shell."""
    busybox = find_busybox()
    require(busybox, "there is no static busybox")
    assert busybox
    file = File(Path(busybox), executable=True)
    return Tree({f"bin/{name}": file for name in APPLETS})


@pytest.fixture(scope="module")
def at_work(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """A worker whose actions have their input root as the root."""
    with worker(cluster.url, tmp_path_factory.mktemp("at-work") / "cache") as process:
        yield process
        assert process.end() == 0


@pytest.fixture
def server(cluster: Cluster) -> Iterator[Server]:
    with Server(cluster.url) as made:
        yield made


@pytest.fixture
def portable(at_work: WorkerProcess, server: Server, tools: Tree, tmp_path: Path) -> Remote:
    """A Remote for portable actions, with a store of its own."""
    return Remote(Sandbox(Overlay(tools), store=Store(tmp_path / "home")), server)


def script(text: str, *args: Any, **options: Any) -> Command:
    """A Command that no test before has given to a server."""
    return Command(["sh", "-c", text, uuid.uuid4().hex], *args, **options)


def box_of(root: Path, store: Path) -> Sandbox:
    try:
        layer = Layer.from_directory(root, Store(store))
    except UnsupportedError as error:
        require(False, f"a layer cannot be unpacked here: {error}")
    box = Sandbox(
        Overlay(layer),
        deterministic=True,
        user="root",
        hostname="h",
        umask=0o022,
        store=Store(store),
    )
    require(not box.lacks(), f"no Overlay here: {box.lacks()}")
    return box


# ---- the program -----------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Sources that no other test has."""
    (tmp_path / "src").mkdir()
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "a.h").write_text(f"{tmp_path}\n")
    for name in ("a.c", "b.c", "c.c"):
        (tmp_path / "src" / name).write_text(f"source {name}\n")
    return tmp_path


COMPILER = (
    "echo compiling $0; mkdir -p /out/$0.d; cat include/a.h $0 > /out/$0.o; echo warning $0 >&2;"
    " tr a-z A-Z < $0 > /out/$0.d/upper; ln -s upper /out/$0.d/link; echo ls > /out/$0.d/run;"
    " chmod +x /out/$0.d/run"
)


def build(runner: Runner, place: Path, out: Path) -> list[Result]:
    """The build of a user, for any Runner."""
    include = Tree(place / "include")
    steps = [
        Command(
            ["sh", "-c", COMPILER, path.name],
            "/src",
            inputs={"/src/include": include, f"/src/{path.name}": path},
            outputs=[f"/out/{path.name}.o", f"/out/{path.name}.d"],
        )
        for path in sorted((place / "src").iterdir())
    ]
    results = []
    for result in runner.map(steps):
        result.outputs.collect(out, below="/out")
        results.append(result)
    return results


def contents(directory: Path) -> dict[str, tuple[object, bool]]:
    """What a directory has: contents, targets of links, and executable bits."""
    return {
        str(path.relative_to(directory)): (os.readlink(path), False)
        if path.is_symlink()
        else (path.read_bytes(), os.access(path, os.X_OK) and bool(path.stat().st_mode & 0o111))
        for path in sorted(directory.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def told(results: list[Result]) -> list[object]:
    """What the Results of all Runners have in common."""
    return [
        (r.number, r.exit, r.out, r.err, r.outputs, r.outputs.links, r.outputs.missing)
        for r in results
    ]


def test_one_build_function_over_all_runners(
    cluster: Cluster, at_work: WorkerProcess, root: Path, sources: Path, server: Server
) -> None:
    with box_of(root, sources / "store") as box:
        remote = Remote(box, server, platform=OURS)
        ran = build(remote, sources, sources / "remote")
        here = build(box, sources, sources / "here")
        cached = Cached(box, server, write=True)
        first = build(cached, sources, sources / "first")
        second = build(cached, sources, sources / "second")
        again = build(remote, sources, sources / "again")
    assert told(here) == told(first) == told(second) == told(ran) == told(again)
    made = contents(sources / "here")
    assert made["a.c.o"][0] == f"{sources}\nsource a.c\n".encode()
    for name in ("first", "second", "remote", "again"):
        assert contents(sources / name) == made
    assert not any(each.cached for each in here + ran + first)
    assert all(each.cached for each in second + again)
    assert {each.executor for each in ran} == {"remote"}
    assert {each.worker for each in ran} == {at_work.name}
    assert all(each.usage is not None for each in ran)


def compiler_root(place: Path) -> Path:
    """A root with the machine's C compiler, as far as `cc -c` takes it, and nothing else."""
    cc = shutil.which("cc")
    require(cc, "there is no C compiler")
    assert cc

    def answer(*argv: str) -> str:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()

    programs = [answer(cc, f"-print-prog-name={name}") for name in ("cc1", "as")]
    require(all(map(os.path.isabs, map(str, map(shutil.which, programs)))), "cc is no gcc")
    found = {str(shutil.which(each)) for each in programs} | {cc}
    for each in sorted(found):
        found |= set(re.findall(r"(/\S+) \(0x", answer("ldd", each)))
    for each in sorted(found):
        target = place / each.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(each, target)
    (place / "usr" / "include").mkdir()
    return place


@pytest.mark.slow
def test_a_compiler_in_a_layer(at_work: WorkerProcess, server: Server, tmp_path: Path) -> None:
    root = compiler_root(tmp_path / "toolchain")
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "a.h").write_text(f'#define NAME "{uuid.uuid4()}"\n')
    (tmp_path / "src").mkdir()
    for name in ("a", "b"):
        text = f'#include "include/a.h"\nconst char *{name}(void) {{ return NAME; }}\n'
        (tmp_path / "src" / f"{name}.c").write_text(text)
    include = Tree(tmp_path / "include")

    def build(runner: Runner, out: Path) -> list[Result]:
        steps = [
            Command(
                ["cc", "-O1", "-c", path.name, "-o", f"/out/{path.name}.o"],
                "/src",
                inputs={"/src/include": include, f"/src/{path.name}": path},
                outputs=[f"/out/{path.name}.o"],
            )
            for path in sorted((tmp_path / "src").iterdir())
        ]
        results = list(runner.map(steps))
        for result in results:
            result.check().outputs.collect(out, below="/out")
        return results

    with box_of(root, tmp_path / "store") as box:
        build(box, tmp_path / "here")
        build(Cached(box, server, write=True), tmp_path / "first")
        second = build(Cached(box, server, write=True), tmp_path / "second")
        ran = build(Remote(box, server, platform=OURS), tmp_path / "remote")
    assert all(each.cached for each in second)
    assert {each.worker for each in ran} == {at_work.name}
    made = contents(tmp_path / "here")
    assert set(made) == {"a.c.o", "b.c.o"}
    for name in ("first", "second", "remote"):
        assert contents(tmp_path / name) == made


def test_what_only_workers_of_sandboxlib_keep(
    at_work: WorkerProcess, server: Server, root: Path, tmp_path: Path
) -> None:
    command = script(
        "id -u; cat; cat /etc/more; echo err >&2; ulimit -n; ls -ln /in | wc -l; echo x > /out/d/x",
        stdin=b"in\n",
        stderr=STDOUT,
        inputs={"/in": Tree({"a": b"a", "b": b"b"})},
        outputs=["/out/d/*"],
        limits=Limits(open_files=77),
    )
    more = [Mount.file(b"more\n", "/etc/more")]
    with box_of(root, tmp_path / "store") as made:
        box = made.replace(user=1234, extra_mounts=more, filesystem_writable_paths="all")
        remote = Remote(box, server, platform=OURS)
        here, ran = box.run(command), remote.run(command)
        assert told([here]) == told([ran])
        assert ran.stdout == b"1234\nin\nmore\nerr\n77\n3\n"
        with pytest.raises(RemoteError, match="isolates all actions") as refused:
            Remote(box.replace(network="undefined"), server, platform=OURS, assume=["network"]).run(
                command
            )
        assert refused.value.code == "FAILED_PRECONDITION"
    with pytest.raises(UnsupportedError, match=r"(?s)layers.*user.*stdin"):
        Remote(box, server).run(command)


# ---- portable actions ------------------------------------------------------------------------


@pytest.fixture
def in_directory(
    cluster: Cluster, root: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> Iterator[Remote]:
    """A Remote whose worker has a root of its own, in which the input root lies at /build."""
    cache = tmp_path_factory.mktemp("in-directory") / "cache"
    flags = ("--instance", "other/one", "--sandbox", f'root="{root}"')
    with (
        worker(cluster.url, cache, "", *flags) as process,
        Server(cluster.url, instance="other/one") as server,
    ):
        yield Remote(Sandbox(Overlay(), store=Store(tmp_path / "home")), server)
        assert process.end() == 0


def check_portable(remote: Remote, above: str) -> None:
    """above: where the input root lies at the worker."""
    ran = remote.run(
        script(
            "pwd; echo $WORD; cat a.txt sub/t; ls -l run | head -c 10; echo; echo err >&2;"
            " mkdir -p d/e made/x; echo 1 > d/e/f; echo 2 > d/run; chmod +x d/run;"
            " ln -s e/f d/link; ln -s d/run top; echo 3 > made/x/a.o; echo 4 > made/x/a.d; exit 3",
            "/src/deep",
            extra_env={"WORD": "a word"},
            inputs={
                "a.txt": b"a\n",
                "sub": Tree({"t": b"t\n"}),
                "run": File(b"", executable=True),
            },
            outputs=["d", "top", "made/*/*.o", "none"],
        )
    )
    assert ran.out == f"{above}src/deep\na word\na\nt\n-rwxr-xr-x\n".encode(), ran
    assert (ran.exit, ran.err, ran.timed_out, ran.ok) == (3, b"err\n", False, False)
    assert {path: file.read_bytes() for path, file in ran.outputs.items()} == {
        "/src/deep/d/e/f": b"1\n",
        "/src/deep/d/run": b"2\n",
        "/src/deep/made/x/a.o": b"3\n",
    }
    assert [path for path, file in ran.outputs.items() if file.executable] == ["/src/deep/d/run"]
    assert dict(ran.outputs.links) == {"/src/deep/d/link": "e/f", "/src/deep/top": "d/run"}
    assert ran.outputs.missing == ("none",)
    assert (ran.executor, ran.cached) == ("remote", False)
    assert ran.worker
    assert ran.usage is not None
    assert ran.usage.peak_memory
    late = remote.run(script("echo begun; sleep 60", timeout=1))
    assert (late.timed_out, late.out, late.ok) == (True, b"begun\n", False)
    assert late.wall < 30
    assert remote.run(["none"]).exit == 127


def test_portable_actions_whose_root_is_their_input(portable: Remote) -> None:
    check_portable(portable, "/")


def test_portable_actions_in_a_root_of_the_worker(in_directory: Remote, tools: Tree) -> None:
    check_portable(in_directory, "/build/")
    ours = Remote(
        Sandbox(
            Overlay(tools), user="root", hostname="h", umask=0o022, store=in_directory.box.store
        ),
        in_directory.server,
        platform=OURS,
    )
    command = script("pwd; ls /; ls /bin")
    assert ours.run(command).out == ours.box.run(command).out


# ---- every way to run ------------------------------------------------------------------------


def test_in_an_event_loop_and_as_an_executor(portable: Remote) -> None:
    commands = [script("echo $1; cat n", inputs={"n": b"%d" % n}) for n in range(6)]

    async def main() -> list[Result]:
        return list(await asyncio.gather(*map(portable.run_async, commands)))

    ran = asyncio.run(main())
    assert [each.stdout for each in ran] == [b"\n%d" % n for n in range(6)]
    with SandboxExecutor(portable, max_workers=3) as pool:
        again = [future.result(60) for future in [pool.submit(each) for each in commands]]
    assert [each.stdout for each in again] == [each.stdout for each in ran]
    assert all(each.cached for each in again)


@pytest.mark.slow
def test_a_map_of_200(portable: Remote) -> None:
    header = Tree({"common.h": b"common"})
    commands = [
        script("cat h/common.h n > o", inputs={"h": header, "n": b"%d" % n}, outputs=["o"])
        for n in range(200)
    ]
    ran = list(portable.map(commands))
    assert [each.outputs["/o"].read_bytes() for each in ran] == [
        b"common%d" % n for n in range(200)
    ]


# ---- workers that are lost -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_worker_lost_in_mid_action(
    server: Server, cluster: Cluster, tools: Tree, tmp_path: Path, number: signal.Signals
) -> None:
    """The server gives the action to another worker, and the caller gets one Result."""
    other = Server(cluster.url, instance="other/one")
    remote = Remote(Sandbox(Overlay(tools), store=Store(tmp_path / "home")), other)
    flags = ("--instance", "other/one", "--slots", "1")
    seen: list[Result] = []
    command = script("sleep 3; echo done")
    with other, worker(cluster.url, tmp_path / "1" / "cache", "", *flags) as first:
        run = threading.Thread(target=lambda: seen.append(remote.run(command)))
        run.start()
        first.wait_for("lease accepted")
        with worker(cluster.url, tmp_path / "2" / "cache", "", *flags) as second:
            first.process.send_signal(number)
            run.join(150)
            assert seen, second.log.read_text()
            assert (seen[0].stdout, seen[0].worker) == (b"done\n", second.name)
            if number == signal.SIGSTOP:
                first.process.send_signal(signal.SIGCONT)
                assert wait_until(lambda: len(first.events("session began")) == 2, 90)
            assert remote.run(command).cached
    assert len(seen) == 1
