# SPDX-License-Identifier: Apache-2.0
"""File and Tree as values, and the inputs and outputs of a Command."""

from __future__ import annotations

import copy
import os
import pickle
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from sandboxlib import (
    Command,
    File,
    Sandbox,
    SetupError,
    SpecError,
    SpecTypeError,
    Tree,
    UnsupportedError,
)


def digest(content: bytes) -> str:
    return f"{sha256(content).hexdigest()}/{len(content)}"


def test_a_file_of_bytes_has_a_size_and_a_digest() -> None:
    file = File(b"abc")
    assert (file.size, file.executable, file.read_bytes()) == (3, False, b"abc")
    assert file.digest() == digest(b"abc")
    assert File(bytearray(b"abc"), executable=True).executable
    assert "abc" not in repr(file)


def test_a_file_reads_its_source_when_it_is_used(tmp_path: Path) -> None:
    source = tmp_path / "a"
    file = File(source)
    with pytest.raises(FileNotFoundError, match=r"read the input .*/a: "):
        file.read_bytes()
    source.write_bytes(b"x" * (3 << 20))
    (tmp_path / "link").symlink_to("a")
    assert (file.size, file.digest()) == (3 << 20, digest(b"x" * (3 << 20)))
    assert File(tmp_path / "link").read_bytes() == source.read_bytes()
    assert not file.executable
    source.chmod(0o700)
    assert file.executable
    assert not File(source, executable=False).executable


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_a_file_reads_nothing_but_regular_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    path.mkdir() if kind == "directory" else os.mkfifo(path)
    for use in (File(path).read_bytes, File(path).digest):
        with pytest.raises(SetupError, match="Tree" if kind == "directory" else "regular"):
            use()


def test_a_relative_path_starts_where_the_value_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    file, tree = File(Path("a")), Tree(".")
    monkeypatch.chdir("/")
    assert file.read_bytes() == b"1"
    assert tree.digest() == Tree({"a": b"1"}).digest()


@pytest.mark.parametrize(
    "value",
    [
        File(b"abc"),
        File(Path("/a"), executable=True),
        Tree("/a", exclude=["*.o"]),
        Tree({"a/b": b"1", "c": Tree("/x")}),
        Command("x", inputs={"/a": b"1", "b": Tree("/x")}, outputs=["/out/*"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_they_are_values(value: Any) -> None:
    for other in (copy.copy(value), pickle.loads(pickle.dumps(value))):
        assert other == value
        assert hash(other) == hash(value)
        assert repr(other) == repr(value)
    with pytest.raises(AttributeError):
        value.content = 1
    assert value not in (File(b"x"), Tree("/y"), Command("x"))


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: File("a"), SpecTypeError, r"Path\(\.\.\.\) for a file"),
        (lambda: File(5), SpecTypeError, "neither a path nor bytes"),
        (lambda: File(b"", executable=1), SpecTypeError, "not a bool"),
        (lambda: File(b"", mode=5), SpecTypeError, "no keyword argument mode"),
        (lambda: Tree(5), SpecTypeError, "neither a directory nor a mapping"),
        (lambda: Tree("/a", exclude="*.o"), SpecTypeError, r"one is \['\*\.o'\]"),
        (lambda: Tree("/a", exclude=["/x"]), SpecError, "relative to the Tree"),
        (lambda: Tree("/a", excludes=["x"]), SpecTypeError, "did you mean exclude"),
        (lambda: Tree({"/a": b""}), SpecError, "relative to it"),
        (lambda: Tree({"a/../b": b""}), SpecError, "contains '..'"),
        (lambda: Tree({"a": "text"}), SpecTypeError, r"\.encode\(\) for a text"),
        (lambda: Tree({"a": b"", "a/b": b""}), SpecError, "below '.*a', which is a File"),
        (lambda: Tree({"a": b"", "./a": b""}), SpecError, "'a' twice"),
        (lambda: Command("x", inputs=["/a"]), SpecTypeError, "not a mapping"),
        (lambda: Command("x", inputs={"/a": "/b"}), SpecTypeError, "write Path"),
        (lambda: Command("x", inputs={"/": b""}), SpecError, "the root itself"),
        (lambda: Command("x", "/src", inputs={"a": b"", "/src/a": b""}), SpecError, "two inputs"),
        (lambda: Command("x", inputs={"/a": b"", "/a/b/c": b""}), SpecError, "which is a File"),
        (lambda: Command("x", inputs={"/a/../b": b""}), SpecError, "contains '..'"),
        (lambda: Command("x", outputs="/out/*"), SpecTypeError, r"one is \['/out/\*'\]"),
        (lambda: Command("x", outputs=["/"]), SpecError, "the whole root"),
        (lambda: Command("x", outputs=["/a**"]), SpecError, "stands alone"),
        (lambda: Command("x", outputs=["../a"]), SpecError, "contains '..'"),
        (lambda: Command("x", outputs=[5]), SpecTypeError, "not a str"),
    ],
)
def test_what_makes_no_sense_is_refused_when_it_is_made(make: Any, kind: Any, text: str) -> None:
    with pytest.raises(kind, match=text):
        make()


def test_a_command_keeps_its_inputs_as_files_and_trees() -> None:
    command = Command(
        "x", "/src", inputs={"a//b": Path("/a"), "/t": Tree("/x")}, outputs=["o", "o"]
    )
    assert command.inputs == {"a/b": File(Path("/a")), "/t": Tree("/x")}
    assert command.outputs == ("o",)
    assert command.replace(outputs=()).outputs == ()
    with pytest.raises(SpecError, match="two inputs"):
        Command("x", "/src", inputs={"a": b"", "/b/a": b""}).replace(cwd="/b")


def test_inputs_and_outputs_take_a_root_of_layers(shared_rootfs: Path) -> None:
    for options in ({"inputs": {"/a": b""}}, {"outputs": ["/a"]}):
        with pytest.raises((SpecError, UnsupportedError), match="inputs"):
            Sandbox(shared_rootfs).run("true", **options)  # type: ignore[arg-type]
