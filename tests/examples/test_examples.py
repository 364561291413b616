# SPDX-License-Identifier: Apache-2.0
"""The programs of examples/, which the cookbook shows, each run as a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from lib.image_maker import docker, file
from lib.machine import python, require
from lib.roots import find_busybox, make_rootfs
from lib.users import NOBODY, as_nobody, give_to_nobody
from lib.waiting import processes, wait_until

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


Example = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(params=["whoever runs the tests", "nobody"])
def caller(request: pytest.FixtureRequest) -> Iterator[tuple[Path, list[str]]]:
    """Who runs the program: a directory that this user can write to, and an argv to begin with."""
    if request.param != "nobody":
        yield request.getfixturevalue("tmp_path"), []
        return
    if os.geteuid() != 0:
        pytest.skip("nobody but root can become nobody, and the other way is that of a user")
    for tool in ("unshare", "setpriv"):
        require(shutil.which(tool), f"there is no {tool}")
    with tempfile.TemporaryDirectory(prefix="sandboxlib-example.") as name:
        base = Path(name)
        base.chmod(0o755)
        (base / "needed").mkdir()
        (base / "place").mkdir()
        os.chown(base / "place", NOBODY, NOBODY)
        yield base / "place", as_nobody(base / "needed", EXAMPLES)


@pytest.fixture
def place(caller: tuple[Path, list[str]]) -> Path:
    return caller[0]


@pytest.fixture
def compiler() -> None:
    require(shutil.which("cc"), "there is no C compiler")


@pytest.fixture
def sources(place: Path, compiler: None) -> tuple[Path, Path]:
    """C files, and a directory for what is made of them."""
    (place / "out").mkdir()
    source = place / "src"
    source.mkdir()
    (source / "a.h").write_text("int six(void);\n")
    (source / "a.c").write_text('#include "a.h"\nint six(void) { return 6; }\n')
    (source / "b.c").write_text("int seven(void) { return 7; }\n")
    (source / "main.c").write_text(
        '#include "a.h"\n#include <stdio.h>\nint main(void) { printf("%d\\n", six()); }\n'
    )
    return source, place / "out"


def argv_of(caller: tuple[Path, list[str]], name: str, *args: object) -> list[str]:
    place, before = caller
    if before:
        give_to_nobody(place)
    return [*before, *python(), str(EXAMPLES / name), *map(str, args)]


@pytest.fixture
def example(caller: tuple[Path, list[str]]) -> Example:
    def run(name: str, *args: object) -> subprocess.CompletedProcess[str]:
        argv = argv_of(caller, name, *args)
        env = {**os.environ, "XDG_CACHE_HOME": str(caller[0] / "cache")}  # the store lies there
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=120, check=False, env=env
        )

    return run


def test_parallel_build_shows_its_progress_and_links(
    example: Example, sources: tuple[Path, Path]
) -> None:
    done = example("parallel_build.py", *sources)
    assert done.returncode == 0, done.stderr
    assert "[" + "#" * 30 + "] 3/3" in done.stderr
    program = [str(sources[1] / "program")]
    assert subprocess.run(program, capture_output=True, check=True).stdout == b"6\n"


def test_parallel_build_tells_what_does_not_compile(
    example: Example, sources: tuple[Path, Path]
) -> None:
    (sources[0] / "b.c").write_text("int seven(void) { return eight; }\n")
    done = example("parallel_build.py", *sources)
    assert done.returncode == 1
    assert "'eight' undeclared" in done.stderr


def test_incremental_build_compiles_what_changed(
    example: Example, sources: tuple[Path, Path]
) -> None:
    source, out = sources
    assert example("incremental_build.py", source, out).stdout == "compiled 3: a.c b.c main.c\n"
    assert example("incremental_build.py", source, out).stdout == "compiled 0: \n"
    (source / "a.h").write_text("int six(void); /* an even number */\n")
    assert example("incremental_build.py", source, out).stdout == "compiled 2: a.c main.c\n"
    (source / "b.c").write_text("int\n")
    assert example("incremental_build.py", source, out).returncode == 1
    (source / "b.c").write_text("int b;\n")
    assert example("incremental_build.py", source, out).stdout == "compiled 1: b.c\n"


def test_declared_inputs_names_a_file_that_a_step_did_not_declare(
    example: Example, sources: tuple[Path, Path]
) -> None:
    source, out = sources
    done = example("declared_inputs.py", source, out)
    assert (done.returncode, done.stderr) == (0, "")
    made = done.stdout.removeprefix("made").split()
    assert sorted(made) == [f"{out}/{name}.o" for name in ("a", "b", "main")]
    (source / "b.c").write_text('#include "a.c"\n')
    done = example("declared_inputs.py", source, out)
    assert (done.returncode, done.stderr) == (1, "not declared: /src/a.c\n")


def test_cached_build_compiles_nothing_twice(
    example: Example, sources: tuple[Path, Path], cluster: Any
) -> None:
    source, out = sources
    (source / "a.h").write_text(f"int six(void); /* {source} */\n")  # no other test has it
    first = example("cached_build.py", cluster.url, source, out)
    assert (first.returncode, first.stdout) == (0, "3 files, 0 of them from the cache\n")
    made = {path.name: path.read_bytes() for path in out.iterdir()}
    shutil.rmtree(out)
    again = example("cached_build.py", cluster.url, source, out)
    assert again.stdout == "3 files, 3 of them from the cache\n"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == made
    (source / "b.c").write_text("int b;\n")
    changed = example("cached_build.py", cluster.url, source, out)
    assert changed.stdout == "3 files, 2 of them from the cache\n"


@pytest.fixture
def worker_with_a_compiler(cluster: Any, tmp_path: Path) -> Iterator[None]:
    """A worker whose root has the machine's compiler, read-only, and nothing else."""
    from lib.farm import worker

    root, binds = tmp_path / "root", []
    for name in ("usr", "bin", "sbin", "lib", "lib64", "etc/alternatives"):
        path, inside = Path("/", name), root / name
        inside.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            inside.symlink_to(os.readlink(path))
        elif path.is_dir():
            inside.mkdir()
            binds.append(f'{{ source = "/{name}", target = "/{name}", read_only = true }}')
    config = tmp_path / "worker.toml"
    config.write_text(f'[sandbox]\nroot = "{root}"\nextra_mounts = [{", ".join(binds)}]\n')
    with worker(cluster.url, tmp_path / "cache", "", "--config", str(config)):
        yield


@pytest.mark.usefixtures("worker_with_a_compiler")
def test_remote_build_compiles_on_a_worker(
    example: Example, sources: tuple[Path, Path], cluster: Any
) -> None:
    source, out = sources
    (source / "a.h").write_text(f"int six(void); /* {source} */\n")  # no other test has it
    done = example("remote_build.py", cluster.url, source, out)
    assert (done.returncode, done.stderr) == (0, "")
    program = source / "program"
    objects = [out / f"{name}.c.o" for name in ("a", "b", "main")]
    subprocess.run(["cc", *objects, "-o", program], check=True)
    assert subprocess.run([program], capture_output=True, check=True).stdout == b"6\n"


def test_stacked_layers_sees_what_the_layers_below_have(example: Example, place: Path) -> None:
    root = make_rootfs(place / "root")
    done = example("stacked_layers.py", root, place / "saved.tar", "> /one; > /two", "rm /one")
    assert (done.returncode, done.stderr) == (0, "")
    first, second, third, listed, *digests = done.stdout.splitlines()
    assert [first, second, third] == ["added file /one", "added file /two", "deleted file /one"]
    assert "'two'" in listed
    assert "'one'" not in listed
    assert len(digests) == 2
    with tarfile.open(place / "saved.tar") as tar:
        assert tar.getnames() == [".wh.one"]
    assert not (root / "two").exists()


def test_run_image_runs_the_command_of_an_image(example: Example, place: Path) -> None:
    busybox = find_busybox()
    require(busybox, "there is no static busybox")
    assert busybox is not None
    layer = file("bin/sh", Path(busybox).read_bytes(), mode=0o755)
    command = {"Entrypoint": ["/bin/sh", "-c"], "Cmd": ["echo hello; exit 3"]}
    image = docker(place / "image.tar", layer, **command)
    for args, expected in (((), (3, "hello\n")), (("sh", "-c", "echo $0"), (0, "sh\n"))):
        done = example("run_image.py", image, *args)
        assert (done.returncode, done.stdout) == expected, done.stderr


COUNT = "i=0; while [ $i -lt 30000 ]; do i=$((i + 1)); done"


def test_run_tests_writes_a_junit_summary(example: Example, place: Path) -> None:
    directory, report = place / "tests", place / "report.xml"
    directory.mkdir()
    for name, text in {
        "good": "#!/bin/sh\necho fine\n",
        "bad": "#!/bin/sh\necho wrong; exit 3\n",
        "late": "#!/bin/sh\n# limits: timeout=0.5\nsleep 60\n",
        "lost": "#!/nowhere/sh\n",
        "slow": f"#!/bin/sh\n# limits: cpu_time=0.001\n{COUNT}\n",
    }.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
    done = example("run_tests.py", directory, report)
    assert done.returncode == 1, done.stderr
    suite = ElementTree.parse(report).getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("5", "3", "1")
    cases = {case.get("name"): next(iter(case), None) for case in suite}
    assert cases["good"] is None
    assert cases["bad"] is not None
    assert (cases["bad"].get("message"), cases["bad"].text) == ("exit status 3", "wrong\n")
    assert cases["late"] is not None
    assert cases["late"].get("message") == "timeout"
    assert cases["slow"] is not None  # although it exits with 0
    assert cases["slow"].get("message") == "cpu_time"
    assert cases["lost"] is not None
    assert "interpreter" in cases["lost"].get("message", "")


SUBMISSION = """
#include <stdio.h>
int main(void) {
    int a, b;
    scanf("%d %d", &a, &b);
    while (a == 3) {}
    while (a == 4) puts("and so on");
    if (a == 5) __builtin_trap();
    printf("%d\\n", a + b);
}
"""


def test_judge_gives_a_verdict_for_each_case(example: Example, place: Path, compiler: None) -> None:
    (place / "s.c").write_text(SUBMISSION)
    (place / "cases").mkdir()
    for a, expected in enumerate([3, 4, 0, 0, 0], 1):
        (place / "cases" / f"{a}.in").write_text(f"{a} 2\n")
        (place / "cases" / f"{a}.out").write_text(f"{expected}\n")
    (place / "cases" / "2.out").write_text("5\n")
    done = example("judge.py", place / "s.c", place / "cases")
    assert done.stdout.splitlines() == [
        "1: accepted",
        "2: wrong answer",
        "3: time limit exceeded",
        "4: output limit exceeded",
        "5: runtime error (-4)",
    ], done.stderr


def test_judge_tells_what_does_not_compile(example: Example, place: Path, compiler: None) -> None:
    (place / "s.c").write_text("int main(void) { return x; }\n")
    done = example("judge.py", place / "s.c", place)
    assert done.returncode == 1
    assert done.stdout.startswith("compile error\n")
    assert "'x' undeclared" in done.stdout


def test_service_and_clients_meet_in_a_session(example: Example, place: Path) -> None:
    site = place / "site"
    site.mkdir()
    for name, size in (("a", 5), ("b", 70_000)):
        (site / name).write_bytes(b"x" * size)
    done = example("service_and_clients.py", site)
    assert done.stdout == "a: 5\nb: 70000\n", done.stderr


def test_async_service_ends_the_run_of_a_client_who_goes_away(
    caller: tuple[Path, list[str]],
) -> None:
    argv = argv_of(caller, "async_service.py", "0")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout
        port = int(service.stdout.readline())
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"echo hello; exit 3\n")
            with client.makefile() as answer:
                assert answer.read() == "hello\nexit 3\n"
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"sleep 987654\n")
            assert wait_until(lambda: processes("987654"))
        assert service.stdout.readline() == "cancelled\n"
        assert not processes("987654")
        service.send_signal(signal.SIGTERM)


def test_the_files_for_a_worker_are_read_by_it_and_by_systemd(tmp_path: Path) -> None:
    """worker.toml, sandboxlib-worker.service."""
    argv = [*python(), "-m", "sandboxlib._worker.main", "--print-config", "--config"]
    done = subprocess.run(
        [*argv, EXAMPLES / "worker.toml"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 'metrics = "127.0.0.1:9464"' in done.stdout
    require(shutil.which("systemd-analyze"), "there is no systemd-analyze (apt: systemd)")
    text = (EXAMPLES / "sandboxlib-worker.service").read_text()
    unit = tmp_path / "sandboxlib-worker.service"
    unit.write_text(text.replace("/usr/bin/sandboxlib-worker", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
