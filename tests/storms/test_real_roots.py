# SPDX-License-Identifier: Apache-2.0
"""Real software in roots of layers: what a builder does, with values in place of copies."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.machine import needs_root, require

from sandboxlib import STDOUT, Command, Layer, Overlay, Sandbox, Store, Tree

pytest_plugins = ["lib.debian"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

APT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"}


@pytest.fixture
def store() -> Iterator[Store]:
    """Apart from the machine's root, which is a layer here: no layer may lie in another."""
    require(os.access("/dev/shm", os.W_OK), "there is no /dev/shm to write to")
    with tempfile.TemporaryDirectory(prefix="sandboxlib-store.", dir="/dev/shm") as place:
        yield Store(place)


def sh(box: Sandbox, script: str, **options: Any) -> Any:
    """Runs a shell, which must succeed."""
    argv = ["sh", "-ec", script]
    result = box.run(argv, cwd="/", env=APT, stderr=STDOUT, timeout=300, **options)
    assert result.ok, (result.out or b"").decode(errors="replace")[-3000:]
    return result


def state(root: Path) -> list[tuple[str, int, int]]:
    """What is there, and when it changed."""
    found = [(path, path.lstat()) for path in [root, *root.rglob("*")]]
    return sorted((str(path), status.st_size, status.st_ctime_ns) for path, status in found)


@needs_root
def test_apt_installs_into_the_changes_and_the_next_overlay_has_it(
    debian: Path, store: Store
) -> None:
    before = state(debian)
    online: dict[str, Any] = {"network": "undefined", "resolv_conf": True}
    with Sandbox(Overlay(debian), **online) as box:
        result = sh(box, "apt-get -q update && apt-get -qy install tree", changes="keep")
    with result.changes as changes:
        paths = {change.path: change.kind for change in changes}
        layer = changes.commit(store, mtime=0)
    assert paths["/usr/bin/tree"] == "added"
    assert paths["/var/lib/dpkg/status"] == "modified"
    with Sandbox(Overlay(debian, layer)) as box:
        out = sh(box, "tree --version; dpkg -s tree; dpkg --audit").out.decode()
        assert "Status: install ok installed" in out
        # One more, over both: dpkg renames what a layer has, and removes it.
        result = sh(box, "apt-get -qy remove tree && ! ls /usr/bin/tree", changes="keep")
    with result.changes as changes:
        kinds = {change.path: change.kind for change in changes}
    assert kinds["/usr/bin/tree"] == "deleted"
    with Sandbox(Overlay(debian)) as box:
        assert sh(box, "! ls /usr/bin/tree").ok
    assert state(debian) == before


HELLO = """#include "hello.h"
#include <stdio.h>
int main(void) { printf("%s\\n", HELLO); return 0; }
"""


def test_gcc_builds_from_declared_inputs_alone(tmp_path: Path, store: Store) -> None:
    require(shutil.which("gcc"), "there is no compiler")
    source = tmp_path / "src"
    (source / "include").mkdir(parents=True)
    (source / "hello.c").write_text(HELLO)
    (source / "include" / "hello.h").write_text('#define HELLO "declared"\n')
    include = Tree(source / "include")
    compile = Command(
        ["gcc", "-I/src/include", "-c", "hello.c", "-o", "/out/hello.o"],
        "/src",
        env=APT,
        inputs={"/src/hello.c": source / "hello.c", "/src/include": include},
        outputs=["/out/*.o"],
    )
    with Sandbox(Overlay("/"), store=store) as box:
        compiled = box.run(compile, check=True)
        assert sorted(compiled.outputs) == ["/out/hello.o"]
        linked = box.run(
            ["gcc", "hello.o", "-o", "hello"],
            cwd="/out",
            env=APT,
            inputs={"/out/hello.o": compiled.outputs["/out/hello.o"]},
            outputs=["/out/hello"],
            check=True,
        )
        linked.outputs.collect(tmp_path / "built", below="/out")
        undeclared = compile.replace(inputs={"/src/hello.c": source / "hello.c"})
        result = box.run(undeclared)
    assert subprocess.run(
        [tmp_path / "built" / "hello"], capture_output=True, check=True
    ).stdout == (b"declared\n")
    assert result.exit == 1
    assert b"hello.h: No such file" in (result.err or b"")


PYTHON = os.path.realpath(sys.executable)
#: What the machine says of its package index.
PIP = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}


def test_a_wheel_is_built_without_the_network_from_what_was_fetched(
    tmp_path: Path, store: Store
) -> None:
    env = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **PIP}
    pip = [PYTHON, "-m", "pip", "--no-cache-dir"]
    source = tmp_path / "demo"
    source.mkdir()
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools>=77"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "demo"\nversion = "1"\ndependencies = ["iniconfig"]\n'
    )
    (source / "demo.py").write_text("WORD = 'built'\n")
    box = Sandbox(Overlay("/"), store=store)
    online = box.replace(network="undefined", resolv_conf=True)
    fetch = [*pip, "download", "-d", "/wheels", "iniconfig", "setuptools>=77"]
    with online, box:
        fetched = online.run(fetch, cwd="/", env=env, outputs=["/wheels/*"], timeout=200)
        require(fetched.exit == 0, f"no package index: {(fetched.err or b'')[-500:]!r}")
        wheels = fetched.outputs.tree(below="/wheels")
        build = [*pip, "wheel", "--no-index", "--find-links=/wheels", "-w", "/out", "/src/demo"]
        built = box.run(
            build,
            cwd="/",
            env=env,
            inputs={"/wheels": wheels, "/src/demo": Tree(source)},
            outputs=["/out/*.whl"],
            timeout=200,
        )
        assert built.exit == 0, built.err
        # Without what was fetched it is the network that is missing.
        offline = box.run(fetch, cwd="/", env={**env, "PIP_RETRIES": "0"}, timeout=200)
    assert offline.exit != 0
    names = sorted(os.path.basename(path) for path in built.outputs.collect(tmp_path, below="/out"))
    assert names[0] == "demo-1-py3-none-any.whl"
    with zipfile.ZipFile(tmp_path / "demo-1-py3-none-any.whl") as wheel:
        assert wheel.read("demo.py") == b"WORD = 'built'\n"


# ---- a builder's staging area ----------------------------------------------------------------

#: What such a builder knows of a component: what it depends on, and the steps that install it.
COMPONENTS: dict[str, tuple[list[str], str]] = {
    "base": ([], ""),
    "greeting": (
        ["base"],
        "echo '#define GREETING \"hello\"' > $DESTDIR/usr/include/greeting.h",
    ),
    "tool": (
        ["base", "greeting"],
        "printf '#include <greeting.h>\\nconst char *greeting = GREETING;\\n' > tool.c; "
        "gcc -c tool.c -o $DESTDIR/usr/lib/tool.o",
    ),
}


@needs_root
def test_a_builders_staging_area_is_a_stack_of_artifacts(tmp_path: Path, store: Store) -> None:
    """A builder of 0.3's time unpacked the artifacts of all dependencies into a directory, ran each
    step in it (filesystem_writable_paths: the build's and the install's), and packed what was
    installed. The directory was made anew for each component.
    """
    require(shutil.which("gcc"), "there is no compiler")
    artifacts: dict[str, Any] = {}
    staging: dict[str, list[str]] = {}
    for name, (needed, steps) in COMPONENTS.items():
        script = f"mkdir -p $DESTDIR/usr/include $DESTDIR/usr/lib /build && cd /build\n{steps}"
        env = {"PATH": "/usr/bin:/bin", "DESTDIR": "/install"}
        with Sandbox(Overlay("/", *(artifacts[each] for each in needed)), store=store) as box:
            result = box.run(
                ["sh", "-ec", script],
                cwd="/",
                env=env,
                outputs=["/install/**"],
                changes="keep",
                check=True,
            )
            result.changes.close()
            staging[name] = sorted(result.outputs)
            result.outputs.collect(tmp_path / name, below="/install")
        artifacts[name] = Layer.from_directory(tmp_path / name, store)
    assert staging["tool"] == ["/install/usr/lib/tool.o"]
    with Sandbox(Overlay("/", *artifacts.values())) as box:
        out = box.run(["strings", "/usr/lib/tool.o"]).out
    assert b"hello" in (out or b"")
    assert not os.path.exists("/usr/lib/tool.o")
