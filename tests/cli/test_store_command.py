# SPDX-License-Identifier: Apache-2.0
"""run-sandbox store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lib.image_maker import END, file
from lib.machine import require

from sandboxlib import Layer, Store, UnsupportedError
from sandboxlib._images import unpack


def call(*words: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", "import sys; from sandboxlib.__main__ import *; "]
    argv[2] += "sys.exit(run_sandbox_command(sys.argv[1:]))"
    return subprocess.run([*argv, *map(str, words)], capture_output=True, text=True, check=False)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    try:
        unpack.executor()
    except UnsupportedError as error:
        require(False, f"a layer cannot be unpacked here: {error}")
    made = Store(tmp_path / "store")
    (tmp_path / "x.tar").write_bytes(file("a", b"x" * 100_000) + END)
    Layer.from_tar(tmp_path / "x.tar", made)
    return made


def test_list_shows_what_there_is(store: Store) -> None:
    done = call("store", "list", "--store", store.directory)
    assert done.returncode == 0
    assert "layers/" in done.stdout
    assert done.stdout.endswith(f"in all, in {store.directory}\n")


def test_prune_says_what_it_freed(store: Store) -> None:
    assert call("store", "prune", "--store", store.directory, "--max-size", "1G").stdout[0] == "0"
    done = call("store", "prune", "--store", store.directory)
    assert "K freed in " in done.stdout
    assert list(store._entries()) == []


def test_verify_names_what_is_damaged_and_removes_it(store: Store) -> None:
    words = ("store", "verify", "--store", store.directory)
    assert (call(*words).returncode, call(*words).stdout) == (0, "")
    for path in Path(store.directory).glob("layers/*/*/tree/a"):
        path.write_bytes(b"other")
    done = call(*words)
    assert done.returncode == 1
    assert done.stdout.startswith("damaged: /")
    assert call(*words, "--remove").returncode == 1
    assert call(*words).returncode == 0


@pytest.mark.parametrize(
    "words", [["--max-size", "many"], ["--store", "/dev/null/x"], ["--nonesuch"]]
)
def test_what_is_wrong_is_told(words: list[str]) -> None:
    done = call("store", "prune", *words)
    assert done.returncode == 125
    assert "run-sandbox store: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_root_of_that_name_is_a_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("store", "sh")
    assert done.returncode == 125
    assert "store list" not in done.stderr
