# SPDX-License-Identifier: Apache-2.0
"""The digest of a command in an image: its layers and what it says of commands, on any machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from lib.image_maker import END, Layout, directory, file
from lib.machine import needs_root, python, require
from lib.users import NOBODY, as_nobody

from sandboxlib import Command, Image, Overlay, Sandbox, Store, UnsupportedError, User
from sandboxlib._digest.hermetic import NAMES
from sandboxlib._images import unpack

PASSWD = file("etc/passwd", b"www:x:33:44::/:\n")
BASE = directory("etc") + file("etc/name", b"base\n") + PASSWD + END
OTHER = file("etc/name", b"other\n") + END
COMMAND = Command(["cat", "/etc/name"])


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    try:
        unpack.executor()
    except UnsupportedError as error:
        require(False, f"a layer cannot be unpacked here: {error}")


def box_of(path: Path, *layers: bytes, **config: Any) -> Sandbox:
    return Sandbox(Image(Layout(*layers, **config).tar(path)), umask=0o022, hostname="box")


def test_an_image_has_a_digest_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    boxes = [
        box_of(tmp_path / name, BASE, OTHER, Env=["A=1"], WorkingDir="/etc")
        for name in ("one.tar", "elsewhere/two.tar")
    ]
    assert not boxes[0].not_hermetic(COMMAND)
    assert COMMAND.digest(boxes[0]) == COMMAND.digest(boxes[1])
    (tmp_path / "one.tar").touch()
    assert COMMAND.digest(boxes[0]) == COMMAND.digest(boxes[1])


def test_the_layers_of_an_image_and_what_it_says_are_in_the_digest(tmp_path: Path) -> None:
    config: dict[str, Any] = {"Env": ["A=1"], "WorkingDir": "/etc", "User": "33"}
    boxes = [
        box_of(tmp_path / "1.tar", BASE, OTHER, **config),
        box_of(tmp_path / "2.tar", BASE, **config),
        box_of(tmp_path / "3.tar", BASE, OTHER, **{**config, "Env": ["A=2"]}),
        box_of(tmp_path / "4.tar", BASE, OTHER, **{**config, "WorkingDir": "/"}),
        box_of(tmp_path / "5.tar", BASE, OTHER, **{**config, "User": "33:33"}),
        box_of(tmp_path / "6.tar", BASE, OTHER, **{**config, "User": ""}),
    ]
    assert len({COMMAND.digest(box) for box in boxes}) == len(boxes)
    same = box_of(tmp_path / "7.tar", BASE, OTHER, **{**config, "User": "www"}, Cmd=["sh"])
    assert COMMAND.digest(same) == COMMAND.digest(boxes[0])


def test_what_a_command_says_itself_is_not_in_the_image(tmp_path: Path) -> None:
    boxes = [box_of(tmp_path / f"{a}.tar", BASE, Env=[f"A={a}"], WorkingDir="/etc") for a in "12"]
    command = COMMAND.replace(cwd="/etc", env={"A": "3"})
    assert command.digest(boxes[0]) == command.digest(boxes[1])
    assert COMMAND.digest(boxes[0]) == COMMAND.replace(cwd="/etc").digest(boxes[0])
    plain = boxes[0].replace(root=Overlay(boxes[0].root), user=1000)
    key = COMMAND.digest(plain)
    assert key != COMMAND.digest(boxes[0].replace(user=1000))
    assert key == COMMAND.digest(boxes[1].replace(root=plain.root, user=User(1000)))


def test_the_store_of_the_sandbox_has_the_image(tmp_path: Path) -> None:
    box = box_of(tmp_path / "one.tar", BASE)
    with_store = box.replace(store=Store(tmp_path / "store"))
    key = COMMAND.digest(with_store)
    assert (tmp_path / "store").exists()
    assert not (tmp_path / "cache").exists()
    assert COMMAND.digest(box) == key


PROGRAM = """
import sys
sys.path[:0] = {path!r}
from sandboxlib import Command, Image, Sandbox
box = Sandbox(Image({image!r}), umask=0o022, hostname="box")
print(box.not_hermetic({argv!r}), Command({argv!r}).digest(box, {names!r}))
"""


@needs_root
@pytest.mark.parametrize("config", [{}, {"User": "33"}], ids=str)
def test_an_image_has_the_same_digest_for_another_caller(config: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory(prefix="sandboxlib-digest.") as name:
        base = Path(name)
        base.chmod(0o755)
        for each in ("needed", "cache"):
            (base / each).mkdir()
        os.chown(base / "cache", NOBODY, NOBODY)
        box = box_of(base / "image.tar", BASE, OTHER, **config)
        (base / "image.tar").chmod(0o644)
        image, argv = str(base / "image.tar"), list(COMMAND.argv)
        code = PROGRAM.format(path=sys.path, image=image, argv=argv, names=NAMES)
        program = [*as_nobody(base / "needed"), *python(), "-B", "-c", code]
        env = {**os.environ, "XDG_CACHE_HOME": str(base / "cache"), "HOME": "/nowhere"}
        done = subprocess.run(program, env=env, capture_output=True, text=True, check=False)
        require("UnsupportedError" not in done.stderr, f"nobody unpacks no image: {done.stderr}")
        assert done.stdout == f"{{}} {COMMAND.digest(box)}\n", done.stderr
