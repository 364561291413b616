# SPDX-License-Identifier: Apache-2.0
"""Frozen Commands and Sandboxes: an edit after the digest never runs under that digest."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.image_maker import END, Layout, directory, file
from lib.machine import require
from lib.roots import make_rootfs

from sandboxlib import (
    Command,
    File,
    Image,
    Mount,
    Overlay,
    Result,
    Sandbox,
    SandboxError,
    SetupError,
    Store,
    Tree,
    UnsupportedError,
)
from sandboxlib._digest.hermetic import NAMES
from sandboxlib._inputs.frozen import frozen, frozen_box


def _mapped(box: Sandbox, command: Command) -> Result:
    result = next(iter(box.map([command], 1, on_failure="continue")))
    if isinstance(result, SandboxError):
        raise result
    return result


def _in_slot(box: Sandbox, command: Command) -> Result:
    box.run(["true"])  # the slot is there, and the inputs come with the order
    return box.run(command)


WAYS: dict[str, Callable[[Sandbox, Command], Result]] = {
    "fresh": lambda box, command: box.run(command, fresh=True),
    "slot": _in_slot,
    "map": _mapped,
    "async": lambda box, command: asyncio.run(box.run_async(command)),
}
CAT = Command(["cat", "/src/a"], outputs=["/src/a"])


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Callable[[Sandbox, Command], Result]:
    return WAYS[request.param]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rootfs(tmp_path_factory.mktemp("roots") / "root")


@pytest.fixture
def box(root: Path, tmp_path: Path) -> Iterator[Sandbox]:
    with Sandbox(Overlay(root), store=Store(tmp_path / "store")) as box:
        if reasons := box.lacks():
            require(False, f"no Overlay here: {reasons}")
        yield box


def inputs_of(kind: str, place: Path) -> dict[str, Any]:
    """The file `place`/src/a as an input at /src/a."""
    return {
        "path": {"/src/a": place / "src" / "a"},
        "File": {"/src/a": File(place / "src" / "a")},
        "Tree": {"/src": Tree(place / "src")},
        "Tree of a File": {"/src": Tree({"a": File(place / "src" / "a")})},
    }[kind]


@pytest.fixture(
    params=["path", "File", "Tree", "Tree of a File"], ids=lambda k: k.replace(" ", "-")
)
def command(request: pytest.FixtureRequest, tmp_path: Path) -> Command:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a").write_bytes(b"first")
    return CAT.replace(inputs=inputs_of(request.param, tmp_path))


def test_an_edit_between_digest_and_run_is_an_error(
    box: Sandbox, command: Command, tmp_path: Path, way: Callable[[Sandbox, Command], Result]
) -> None:
    made = frozen(command)
    key = made.digest(box, NAMES)
    (tmp_path / "src" / "a").write_bytes(b"later")
    with pytest.raises(SetupError) as caught:
        way(box, made)
    assert caught.value.errno == errno.ESTALE
    assert made.digest(box, NAMES) == key


def test_an_edit_of_what_the_store_has_changes_nothing(
    box: Sandbox, command: Command, tmp_path: Path, way: Callable[[Sandbox, Command], Result]
) -> None:
    made = frozen(command)
    key = made.digest(box, NAMES)
    box.run(made)
    (tmp_path / "src" / "a").write_bytes(b"later")
    result = way(box, made)
    assert result.stdout == b"first" == result.outputs["/src/a"].read_bytes()
    assert made.digest(box, NAMES) == key


def test_a_frozen_command_is_equal_and_freezing_it_again_sees_the_edit(
    box: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"first")
    command = CAT.replace(inputs={"/src/a": tmp_path / "a"})
    made = frozen(command)
    assert made == command
    assert hash(made) == hash(command)
    (tmp_path / "a").write_bytes(b"later")
    assert frozen(command).digest(box, NAMES) != made.digest(box, NAMES)
    assert box.run(frozen(command)).stdout == b"later"
    assert frozen(Command(["true"])) == Command(["true"])


def test_the_executable_bit_is_that_of_the_digest(box: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"#!/bin/sh\necho runs\n")
    (tmp_path / "a").chmod(0o755)
    made = frozen(Command(["/src/a"], inputs={"/src/a": tmp_path / "a"}))
    (tmp_path / "a").chmod(0o644)
    assert box.run(made).stdout == b"runs\n"


def test_a_file_of_a_mount_is_read_once(box: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"first")
    mounted = box.replace(extra_mounts=[Mount.file(File(tmp_path / "a"), "/src/a")])
    with frozen_box(mounted) as made:
        key = CAT.digest(made, NAMES)
        assert key == CAT.digest(mounted, NAMES)
        (tmp_path / "a").write_bytes(b"later")
        assert made.run(["cat", "/src/a"]).stdout == b"first"
        assert CAT.digest(made, NAMES) == key != CAT.digest(mounted, NAMES)


def test_a_sandbox_with_nothing_to_freeze_is_itself(box: Sandbox) -> None:
    mounts = [Mount.tmpfs("/a"), Mount.file(b"1", "/b"), Mount.file(File(b"1"), "/c")]
    for each in (box, box.replace(extra_mounts=mounts), Sandbox("/")):
        assert frozen_box(each) is each


@pytest.mark.parametrize("is_layer", [False, True], ids=["root", "layer"])
def test_an_image_stays_the_one_that_it_was(
    tmp_path: Path, is_layer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = tmp_path / "image.tar", Store(tmp_path / "store")
    first, later = (
        Layout(directory("etc") + file("etc/name", text) + END, Env=[f"A={len(text)}"])
        for text in (b"first", b"the later one")
    )
    image = Image(first.tar(path))
    options: dict[str, Any] = {"umask": 0o022, "hostname": "box", "store": store}
    box = Sandbox(Overlay(image) if is_layer else image, user="root", **options)
    command = Command(["true"])
    try:
        made = frozen_box(box)
    except UnsupportedError as error:
        require(False, f"an image cannot be unpacked here: {error}")
    key = command.digest(made)
    assert key == command.digest(box)
    path.unlink()
    later.tar(path)
    assert command.digest(made) == key
    assert command.digest(box.replace()) != key
    assert frozen_box(made) == made
    store.prune()
    with pytest.raises(SetupError) as caught:
        made.prepare()
    assert caught.value.errno == errno.ESTALE
