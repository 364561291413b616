# SPDX-License-Identifier: Apache-2.0
"""A value that is refused is told apart: the message says which one, and what to write instead."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sandboxlib
from sandboxlib import Command, Limits, Mount, Sandbox, SpecError, User

BOX = Sandbox("/none")
ANY: Any = None  # hides from mypy what is wrong on purpose


def wrong(value: Any) -> Any:
    return value


MISTAKES: dict[str, tuple[Callable[[], object], tuple[str, ...]]] = {
    "None among the words": (lambda: Command(["a", wrong(None)]), ("argv[1]", "None", "leave it")),
    "a number among the words": (lambda: Command(["a", "b", wrong(5)]), ("argv[2]", ": '5'")),
    "a list among the words": (lambda: Command(wrong([["a"]])), ("argv[0]", "for map()")),
    "NUL in a word": (lambda: Command(["a", "b\0c"]), ("argv[1]", "NUL", r"'b\x00c'")),
    "NUL in bytes": (lambda: Command(["a", "b", b"\0"]), ("argv[2]", "NUL")),
    "a word that cannot be encoded": (lambda: Command(["a", "\ud800"]), ("argv[1]", "encoded")),
    "no word": (lambda: Command([]), ("it has no word",)),
    "an empty program": (lambda: Command(["", "a"]), ("the program, is ''",)),
    "a generator": (lambda: Command(wrong(x for x in "ab")), ("list(words)",)),
    "BytesIO as stdin": (
        lambda: Command(["cat"], stdin=io.BytesIO(b"x")),
        ("stdin is a BytesIO", "stdin=file.getvalue()"),
    ),
    "StringIO as stdin": (
        lambda: Command(["cat"], stdin=io.StringIO("x")),
        ("stdin is a StringIO", "stdin=file.getvalue().encode()"),
    ),
    "text as stdin": (lambda: Command(["cat"], stdin=wrong("x")), ("stdin=text.encode()",)),
    "BytesIO as stdout": (
        lambda: Command(["cat"], stdout=io.BytesIO()),
        ("stdout is a BytesIO", "stdout=file.write"),
    ),
    "a uid as text": (lambda: Sandbox("/", user=wrong("1000")), ("or a uid: user=1000",)),
    "a name of a user": (lambda: Sandbox("/", user=wrong("bob")), ("'bob'", "or a uid: user=")),
    "StringIO as stdout": (
        lambda: Command(["cat"], stdout=io.StringIO()),
        ("stdout is a StringIO", "has no descriptor: stdout=CAPTURE"),
    ),
    "a name as stderr": (
        lambda: Command(["cat"], stderr=wrong("log")),
        ("'log'", "stderr=open(path, 'wb')"),
    ),
    "one descriptor": (lambda: Command(["a"], pass_fds=wrong(3)), ("one is [3]",)),
    "a list of variables": (
        lambda: Command(["a"], extra_env=wrong(["A=5"])),
        ("extra_env is a list", "{'NAME': 'value'}"),
    ),
    "a variable that is a number": (
        lambda: Command(["a"], env={"A": wrong(5)}),
        ("variable 'A'", "of type int"),
    ),
    "NUL in a variable": (lambda: Command(["a"], env={"B": "b", "A": "\0"}), ("variable 'A'",)),
    "one group": (lambda: User(5, groups=wrong(5)), ("one is [5]",)),
    "a cpuset as text": (lambda: Limits(cpuset=wrong("0-3")), ("'0-3'", "cpuset=[0, 1]")),
    "one writable path": (
        lambda: Sandbox("/", filesystem_writable_paths=wrong(Path("/a"))),
        ("one path is [PosixPath('/a')]",),
    ),
    "a mount of docker": (
        lambda: Sandbox("/", extra_mounts=[wrong("/a:/b:ro")]),
        ("'/a:/b:ro'", "Mount.bind('/a', '/b', read_only=True)"),
    ),
    "a mount of docker, without options": (
        lambda: Sandbox("/", extra_mounts=[wrong("/a:/b")]),
        ("write Mount.bind('/a', '/b')",),
    ),
    "one mount of docker": (
        lambda: Sandbox("/", extra_mounts="/a:/b:ro"),
        ("is not a list", "[Mount.bind('/a', '/b', read_only=True)]"),
    ),
    "a mount as a dict": (
        lambda: Sandbox("/", extra_mounts=[wrong({"source": "/a", "target": "/b"})]),
        ("write Mount(target='/b', source='/a')",),
    ),
    "a mount as a dict of OCI": (
        lambda: Sandbox("/", extra_mounts=[wrong({"source": "/a", "destination": "/b"})]),
        ("write Mount(target=..., source=...)",),
    ),
    "a dict of mounts": (
        lambda: Sandbox("/", extra_mounts=wrong({"/a": "/b"})),
        ("write [Mount.bind('/a', '/b')]",),
    ),
    "one mount": (
        lambda: Sandbox("/", extra_mounts=wrong(Mount.tmpfs("/b"))),
        ("is not a list", "write [Mount("),
    ),
    "a pair": (
        lambda: Sandbox("/", extra_mounts=[("/a", "/b")]),
        ("write Mount.bind('/a', '/b')",),
    ),
    "no arguments": (lambda: ANY_CALL(), ("run_sandbox(root, command)",)),
    "no command": (lambda: ANY_CALL(cwd="/"), ("run_sandbox(root, command)",)),
    "a map over a str": (lambda: BOX.map("ls -l"), ("for run()", "['ls -l']")),
    "a map over a Command": (lambda: BOX.map(wrong(Command("ls"))), ("[Command(['ls'])]",)),
    "a map over the words of one": (
        lambda: BOX.map(["ls", "-l"]),
        ("'-l' is an option", "[['ls', '-l'], ...]"),
    ),
    "a map without a box": (
        lambda: list(sandboxlib.map(wrong([["ls"]]))),
        ("not a Sandbox and a command: ['ls']", "box.map()"),
    ),
}
ANY_CALL: Any = sandboxlib.run_sandbox


@pytest.mark.parametrize("case", MISTAKES)
def test_it_says_which_value_is_wrong_and_what_to_write(case: str) -> None:
    call, words = MISTAKES[case]
    with pytest.raises(SpecError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


def test_what_a_message_proposes_for_a_mount_is_a_mount() -> None:
    for text in ("/a:/b:ro", "/a:/b", "/a", "/a b:/c'd:z,ro", ":", "a:/b"):
        with pytest.raises(SpecError) as caught:
            Sandbox("/", extra_mounts=text)
        proposed = re.search(r"write (\[.*\])$", str(caught.value))
        assert proposed
        if text.startswith("/"):
            assert Sandbox("/", extra_mounts=eval(proposed[1], {"Mount": Mount})).extra_mounts


def test_a_long_value_is_cut_off() -> None:
    with pytest.raises(SpecError) as caught:
        Command(["a"] * 10_000 + [wrong(None)])
    assert len(str(caught.value)) < 500
    assert "argv[10000]" in str(caught.value)


def test_the_value_of_a_variable_is_not_told() -> None:
    for env in (
        {"A": wrong(["secret"])},
        {"A": "secret\0"},
        {b"A": b"secret\0"},
        {"A": "secret\ud800"},
    ):
        with pytest.raises(SpecError) as caught:
            Command(["a"], env=env)
        assert "secret" not in str(caught.value)


def test_a_closed_file_is_told_as_one(tmp_path: Path) -> None:
    with open(os.devnull, "rb") as file:
        pass
    with pytest.raises(SpecError, match="stdin is a BufferedReader that is closed"):
        Command(["cat"], stdin=file)
