# SPDX-License-Identifier: Apache-2.0
"""The demo by remote execution: with a cluster of its own, and by a server that is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lib.machine import require
from lib.waiting import wait_until

from sandboxlib import Overlay, RemoteError, Sandbox, Server, Store, Timeline
from sandboxlib._cli import demo, demo_cluster
from sandboxlib._cli.demo_elsewhere import Elsewhere, print_passes
from sandboxlib._cli.demo_project import Project, find_project, step_name
from sandboxlib._cluster.cluster import Cluster
from sandboxlib._reapi import digest_of
from sandboxlib._remote import cas

SOURCES = {
    "main.c": "int answer(void);\nint main(void) { return answer() - 42; }\n",
    "lib/answer.c": '#include "answer.h"\nint answer(void) { return ANSWER; }\n',
    "lib/answer.h": "#define ANSWER 42\n",
}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    require(shutil.which("cc"), "there is no C compiler")
    for name, text in SOURCES.items():
        (tmp_path / "source" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "source" / name).write_text(text)
    return find_project(tmp_path / "source")


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Sandbox]:
    """A Sandbox with this machine's compiler: a Runner as well as Remote is."""
    root = tmp_path / "root"
    demo.make_root(root)
    mounts = list(demo.host_mounts(root))
    with Sandbox(Overlay(root), extra_mounts=mounts, store=Store(tmp_path / "store")) as made:
        require(not made.lacks(), "there are no overlays for this caller")
        yield made


@pytest.fixture
def place() -> Iterator[Path]:
    """Where the demo's temporary files go: its database, which runs as nobody, gets there too."""
    made = Path(tempfile.mkdtemp(prefix="demo-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def start(place: Path, *words: object) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "sandboxlib", "demo", *map(str, words)]
    env = {**os.environ, "TMPDIR": str(place)}
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, env=env)


def left_of(place: Path) -> list[str]:
    """Files below the place, and processes that were told of it."""
    found = [path.name for path in place.iterdir()]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(place) in words and int(pid) != os.getpid():
            found.append(words.decode(errors="replace"))
    return found


# ---- the build, by whatever runs commands -----------------------------------------------------


def test_a_build_makes_the_same_files_after_an_edit_of_comments(
    project: Project, box: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    timeline = Timeline(name=step_name)
    there = Elsewhere(project, box, shutil.which("cc") or "cc", 2, timeline)
    seen: list[int] = []
    first, made = there.build("first", seen=lambda done: seen.append(done.steps))
    second, edited = there.build("edited", demo_cluster.EDIT)
    assert not first.failures + second.failures
    assert (first.steps, first.hits, second.hits) == (3, 0, 0)
    assert seen == [1, 2, 3]
    assert list(made) == ["/obj/lib%2Fanswer.o", "/obj/main.o", "/out/program"]
    assert made == edited
    names = [event["name"] for event in timeline.trace()["traceEvents"] if event["ph"] == "X"]
    assert sorted(names) == 2 * ["answer.o"] + 2 * ["main.o"] + 2 * ["program"]
    print_passes([first, second])
    assert re.search(r"first +3 +0 +0 +[\d.]+  none\n", capsys.readouterr().out)


def test_a_step_that_fails_is_told_and_nothing_is_linked(project: Project, box: Sandbox) -> None:
    (project.directory / "main.c").write_text("this is no C\n")
    there = Elsewhere(project, box, shutil.which("cc") or "cc", 2, None)
    done, made = there.build("first")
    (failure,) = done.failures
    assert "src/main.c" in failure
    assert "exit 1" in failure
    assert list(made) == ["/obj/lib%2Fanswer.o"]


# ---- what is missing, and wrong words ---------------------------------------------------------


@pytest.mark.parametrize("name", ["grpc", "buildgrid", "prometheus_client"])
def test_a_module_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    why = demo_cluster.lacks(tmp_path, ())
    assert why == f"there is no module {name} (pip install 'sandboxlib[worker]')"


def test_a_server_that_is_missing_is_named_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    project: Project,
    tmp_path: Path,
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(Cluster, "lacks", staticmethod(lambda: "there is no bgd (pip ...)"))
    assert demo.main(["--cluster", "--source", str(project.directory)]) == 1
    said = capsys.readouterr()
    assert said.err == "demo: a cluster cannot start here: there is no bgd (pip ...)\n"
    assert os.listdir(tmp_path / "tmp") == []


@pytest.mark.parametrize(
    "words",
    ["--cluster --remote grpc://h:1", "--instance main", "--remote grpc://h:1 --property OSFamily"],
)
def test_words_that_do_not_go_together_are_refused(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        demo.main(words.split())
    assert raised.value.code == 125
    assert "usage: " in capsys.readouterr().err


def test_a_server_that_is_no_server_is_told(
    capsys: pytest.CaptureFixture[str], project: Project
) -> None:
    assert demo.main(["--remote", "http://h:1", "--source", str(project.directory)]) == 1
    assert "grpc://" in capsys.readouterr().err


# ---- with servers ------------------------------------------------------------------------------


def needs_a_cluster() -> None:
    require(not Cluster.lacks(), f"no cluster: {Cluster.lacks()}")


def check_that_it_is_private(directory: Path) -> None:
    """No other user of this machine uses the server of a demo that runs, nor reads its token."""
    assert stat.S_IMODE((directory / "token").stat().st_mode) == 0o600
    for name in ("server", *demo_cluster.NAMES):
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o700
    addresses = re.findall(r'address: "(.*)"', (directory / "server/bgd.yml").read_text())
    assert len(addresses) == 2
    for address in addresses:
        url = address if address.startswith("unix:") else f"grpc://{address}"
        with Server(url) as server:
            for use in (server.capabilities, partial(cas.missing, server, [digest_of(b"a")])):
                with pytest.raises(RemoteError, match="UNAUTHENTICATED"):
                    use()
        with Server(url, token=directory / "token") as server:
            cas.missing(server, [digest_of(b"a")])


@pytest.mark.slow
def test_a_cluster_builds_three_times_and_leaves_nothing(
    project: Project, box: Sandbox, place: Path, tmp_path: Path
) -> None:
    needs_a_cluster()
    trace = tmp_path / "trace.json"
    with start(place, "--cluster", "--source", project.directory, "--timeline", trace) as process:
        assert wait_until(lambda: list(place.glob("*/two/log")), 120)
        check_that_it_is_private(next(place.glob("sandboxlib-demo-*")))
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    assert re.search(r"^first +3 +0 +0 .* (one|two) ", out, re.MULTILINE)
    assert re.search(r"^again, from the cache +3 +3 +0 .* none$", out, re.MULTILINE)
    assert re.search(r"^every source edited, a worker killed +3 +\d +0 ", out, re.MULTILINE)
    assert "worker one was killed with -9 after" in out
    assert "the same as of the first" in " ".join(out.split())
    assert left_of(place) == []
    events: list[Any] = json.loads(trace.read_text())["traceEvents"]
    names = {e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert "cache" in names
    assert names <= {"cache", "worker one", "worker two"}
    assert len([e for e in events if e["ph"] == "X"]) == 9


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_demo_leaves_nothing(
    project: Project, box: Sandbox, place: Path, number: int
) -> None:
    needs_a_cluster()
    with start(place, "--cluster", "--source", project.directory) as process:
        assert wait_until(lambda: list(place.glob("*/two/log")), 120)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert process.returncode in (128 + number, -number), out + err
    assert "Traceback" not in err
    if number == signal.SIGKILL:  # the directory of the demo stays, and no process does
        for path in place.glob("sandboxlib-demo-*"):
            shutil.rmtree(path)
    assert wait_until(lambda: left_of(place) == [], 60), left_of(place)


@pytest.mark.slow
def test_a_server_that_is_there_builds_twice(
    cluster: Cluster, project: Project, box: Sandbox, place: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    (tmp_path / "workers").mkdir()
    mounts = list(demo.host_mounts(root))
    workers = demo_cluster.Workers(tmp_path / "workers", cluster.url, root, mounts)
    try:
        words = ("--remote", cluster.url, "--source", project.directory)
        with start(place, *words, "--property", "OSFamily=linux") as process:
            out, err = process.communicate(timeout=240)
    finally:
        workers.close()
    assert process.returncode == 0, out + err
    assert re.search(r"^first +3 +0 +0 ", out, re.MULTILINE)
    assert re.search(r"^again, from the cache +3 +3 +0 ", out, re.MULTILINE)
    assert left_of(place) == []
