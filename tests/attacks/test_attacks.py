# SPDX-License-Identifier: Apache-2.0
"""A hostile command makes every attempt of attacks.c: by every kind of caller, in every way of
running, with the default settings and an isolated network. None may work.

What such a command can do to the host's time and patience is in test_bounded.py, what it can leave
to the next run in test_carries_over.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.machine import IS_SANITIZED, LIB, python, require

WAYS = ("slot", "fresh", "map", "start", "async")

#: A caller is a process of its own: argv is the root, the way, the options of the Sandbox.
CALLER = """
import asyncio, json, sys
from sandboxlib import Sandbox
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})
root, way, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
words = ["attacks"]

async def in_a_loop(box):
    return await box.run_async(words, timeout=120)

def attack(box):
    if way == "slot":
        box.run(["true"])
        return box.run(words, timeout=120)
    if way == "fresh":
        return box.run(words, timeout=120, fresh=True)
    if way == "map":
        return list(box.map([["true"], words], jobs=1, timeout=120))[-1]
    if way == "start":
        with box.start(words) as process:
            out, err = process.communicate()
            return process.wait(), out, err
    return asyncio.run(in_a_loop(box))

with open_box(root, network="isolated", **options) as box:
    exit, out, err = attack(box)
sys.stdout.write(out.decode())
sys.stderr.write(err.decode())
sys.exit(exit)
"""

CONTROLS = {"control_trace", "control_linux32"}


@pytest.fixture(scope="module")
def cell() -> Iterator[Path]:
    """A root with the attacks in it, for everybody; MARK lies beside it, where none should get.

    pytest's own directories are closed to other users, so it is made apart from them.
    """
    require(shutil.which("cc"), "there is no C compiler")
    with tempfile.TemporaryDirectory(prefix="sandboxlib-attacks.") as name:
        place = Path(name)
        place.chmod(0o755)
        root = place / "root"
        for directory in ("bin", "dev", "proc", "tmp"):
            (root / directory).mkdir(parents=True)
        (root / "tmp").chmod(0o1777)
        (place / "MARK").touch()
        (place / "true.c").write_text("int main(void) { return 0; }")
        for source in (LIB / "attacks.c", place / "true.c"):
            argv = ["cc", "-static", "-o", str(root / "bin" / source.stem), str(source)]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            require(done.returncode == 0, f"no static program can be compiled: {done.stderr}")
        yield root


def attempts(root: Path, way: str, options: dict[str, Any], wrapper: list[str]) -> dict[str, str]:
    """By name: "worked", or "refused" and why."""
    argv = [*wrapper, *python(), "-c", CALLER, str(root), way, json.dumps(options)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=280)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-3000:]
    *lines, last = done.stdout.splitlines()
    assert last == "end", done.stdout
    return dict(line.split(" ", 1) for line in lines)


def as_nobody() -> list[str]:
    """The words that start a caller without privilege, where the tests have some."""
    if os.geteuid() != 0:
        return []
    if IS_SANITIZED:
        pytest.skip("an ordinary user cannot read the Python that the sanitizer is loaded into")
    require(shutil.which("setpriv"), "there is no setpriv (util-linux)")
    readable = subprocess.run(
        ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--",
         *python(), "-c", "import sandboxlib"],
        capture_output=True, check=False,
    )  # fmt: skip
    require(readable.returncode == 0, "nobody cannot read this Python, or this package")
    return ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]


def has_ranges() -> bool:
    """Whether the ordinary user of these tests has ids of its own (subuid(5))."""
    names = ("nobody", "65534") if os.geteuid() == 0 else (str(os.geteuid()), _own_name())
    try:
        lines = Path("/etc/subuid").read_text().splitlines()
    except OSError:
        return False
    return bool(shutil.which("newuidmap")) and any(line.split(":")[0] in names for line in lines)


def _own_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return ""


def user_namespaces_work(wrapper: list[str]) -> bool:
    argv = [
        *wrapper,
        *python(),
        "-c",
        "import sandboxlib; print(sandboxlib.user_namespace.why_not())",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stdout.strip() == ""


@pytest.fixture(params=["root", "user", "user=root", "user=ranges"])
def caller(request: pytest.FixtureRequest) -> tuple[list[str], dict[str, Any]]:
    """The words that start a caller, and its options."""
    if request.param == "root":
        if os.geteuid() != 0:
            pytest.skip("the native executor takes root")
        return [], {}
    wrapper = as_nobody()
    require(user_namespaces_work(wrapper), "an ordinary user gets no user namespace here")
    if request.param == "user=ranges":
        require(has_ranges(), "the ordinary user has no ranges in /etc/subuid, or no newuidmap")
    _, _, value = request.param.partition("=")
    return wrapper, {"user": value} if value else {}


@pytest.mark.parametrize("way", WAYS)
def test_no_attempt_works(cell: Path, caller: tuple[list[str], dict[str, Any]], way: str) -> None:
    wrapper, options = caller
    found = attempts(cell, way, options, wrapper)
    assert len(found) > 50
    worked = {name for name, said in found.items() if said == "worked"}
    assert worked == CONTROLS, found


@pytest.mark.parametrize("way", ["slot", "fresh"])
def test_the_attempts_are_real(cell: Path, way: str) -> None:
    # A control: without the filter, the closed calls work.
    if os.geteuid() != 0:
        pytest.skip("the native executor takes root")
    script = CALLER.replace("**options)", "policy=Policy(seccomp='none'), **options)")
    script = script.replace("import Sandbox", "import Policy, Sandbox")
    argv = [*python(), "-c", script, str(cell), way, "{}"]
    out = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=280).stdout
    worked = {line.split()[0] for line in out.splitlines() if line.endswith(" worked")}
    assert {"user_namespace", "io_uring", "kcmp", "read_implies_exec"} <= worked, out
