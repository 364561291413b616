# SPDX-License-Identifier: Apache-2.0
"""Requests that make no sense are refused before sandboxlib changes anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lib.machine import many, needs_root
from lib.names import name_of

import sandboxlib
from sandboxlib import (
    STDOUT,
    Mount,
    Sandbox,
    SandboxError,
    SpecError,
    UnsupportedError,
    run_sandbox,
)

BAD_SANDBOXES: list[dict[str, Any]] = [
    {"root": ""},
    {"root": "/a\0b"},
    {"root": b"/"},
    {"root": None},
    {"root": "/\ud800"},
    {"network": "Isolated"},
    {"network": None},
    {"network": True},
    {"mounts": "none"},
    {"processes": ""},
    {"ipc": ["isolated"]},
    {"hostname": ""},
    {"hostname": "x" * 65},
    {"hostname": "a\0b"},
    {"hostname": 5},
    {"extra_mounts": "abc"},
    {"extra_mounts": [("/src",)]},
    {"extra_mounts": [("/src", "/dst", "nfs")]},
    {"extra_mounts": [("/src", "/dst", None)]},
    {"extra_mounts": [("/src", "/dst", None, "bind,suid")]},
    {"extra_mounts": [("/src", "/dst\0", None, "bind")]},
    {"extra_mounts": [("tmpfs", "/dst", "tmpfs", "size=many")]},
    {"extra_mounts": [5]},
    {"extra_mounts": [Mount.tmpfs("/x")], "mounts": "undefined"},
    {"filesystem_writable_paths": "some"},
    {"filesystem_writable_paths": 5},
    {"filesystem_writable_paths": ["/a/../b"]},
    {"filesystem_writable_paths": ["/a\0"]},
    {"filesystem_writable_paths": [5]},
    {"filesystem_writable_paths": "none", "mounts": "undefined"},
    {"policy": "all"},
    {"init": "no"},
    {"ids": (5, 5)},
    {"group": 5},
    {"groups": [5]},
    {"user": 5, "init": False},
    {"user": 5, "processes": "undefined"},
    {"no_such": 5},
]
BAD_RUNS: list[dict[str, Any]] = [
    {"command": []},
    {"command": ()},
    {"command": ""},
    {"command": [""]},
    {"command": ["a\0b"]},
    {"command": ["echo", "\0"]},
    {"command": ["echo", "\ud800"]},
    {"command": ["echo", 5]},
    {"command": ["echo", None]},
    {"command": 5},
    {"command": None},
    {"command": {"echo": 1}},
    {"cwd": ""},
    {"cwd": "/a\0b"},
    {"cwd": 5},
    {"extra_env": {"A": 5}},
    {"extra_env": {5: "A"}},
    {"extra_env": {"": "x"}},
    {"extra_env": {"A=B": "x"}},
    {"extra_env": {"A": "x\0"}},
    {"extra_env": {"A\0": "x"}},
    {"extra_env": {"A": "\ud800"}},
    {"extra_env": {"A": None}},
    {"extra_env": ["A=5"]},
    {"stdin": "text"},
    {"stdin": -5},
    {"stdin": True},
    {"stdout": STDOUT},
    {"stdout": True},
    {"stdout": -7},
    {"stdout": "file"},
    {"stderr": object()},
    {"timeout": -1},
    {"timeout": float("nan")},
    {"timeout": float("inf")},
    {"timeout": "5"},
    {"timeout": True},
]
BAD_MOUNTS: list[dict[str, Any]] = [
    {"target": "relative", "source": "/src"},
    {"target": "/", "source": "/src"},
    {"target": "/a/../b", "source": "/src"},
    {"target": "/a\0", "source": "/src"},
    {"target": "/" + "x" * 5000, "source": "/src"},
    {"target": "/a", "source": ""},
    {"target": "/a"},
    {"target": "/a", "source": "/src", "type": "overlay"},
    {"target": "/a", "source": "/src", "type": "tmpfs"},
    {"target": "/a", "source": "/src", "size": 5},
    {"target": "/a", "type": "tmpfs", "size": 0},
    {"target": "/a", "type": "tmpfs", "size": "1x"},
    {"target": "/a", "type": "tmpfs", "size": True},
    {"target": "/a", "type": "tmpfs", "mode": 0o77777},
    {"target": "/a", "type": "proc", "read_only": True},
    {"target": "/a", "source": "/src", "read_only": 1},
    {"target": 5, "source": "/src"},
    {"target": "/a", "type": "directory", "source": "/src"},
    {"target": "/a", "type": "directory", "mode": 0o2755},
    {"target": "/a", "type": "directory", "size": 5},
    {"target": "/a", "type": "directory", "read_only": True},
    {"target": "/", "type": "directory"},
    {"target": "/a", "type": "symlink"},
    {"target": "/a", "type": "symlink", "to": ""},
    {"target": "/a", "type": "symlink", "to": "x" * 5000},
    {"target": "/a", "type": "symlink", "to": "a\0"},
    {"target": "/a", "source": "/src", "to": "b"},
    {"target": "/a", "type": "file"},
    {"target": "/a", "type": "file", "content": "text"},
    {"target": "/a", "type": "file", "content": Path("/etc/passwd")},
    {"target": "/a", "type": "file", "content": b"", "mode": 0o4755},
    {"target": "/a", "source": "/src", "content": b""},
]


@pytest.mark.parametrize("words", BAD_SANDBOXES, ids=repr)
def test_a_sandbox_that_makes_no_sense_is_not_made(words: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        Sandbox(**{"root": "/none", **words})


@pytest.mark.parametrize("words", BAD_RUNS, ids=name_of)
def test_a_run_that_makes_no_sense_is_not_begun(words: dict[str, Any]) -> None:
    # The root does not exist: whoever looked at it would raise another error.
    with pytest.raises(SpecError):
        run_sandbox("/none", **{"command": ["true"], **words})


@pytest.mark.parametrize("words", BAD_MOUNTS, ids=name_of)
def test_a_mount_that_makes_no_sense_is_not_made(words: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        Mount(**words)


def test_a_file_of_a_mount_has_64_mib_at_most() -> None:
    with pytest.raises(SpecError, match="67108864 at most"):
        Mount.file(bytes((64 << 20) + 1), "/a")


def test_wrong_values_and_wrong_types_are_the_errors_of_subprocess_as_well() -> None:
    with pytest.raises(ValueError, match="NUL"):
        run_sandbox("/none", ["a\0b"])
    with pytest.raises(TypeError):
        run_sandbox("/none", [5])
    assert issubclass(UnsupportedError, AssertionError)
    with pytest.raises(TypeError):
        run_sandbox("/none", ["true"], no_such_keyword=1)


def test_a_good_value_in_the_cache_does_not_let_a_bad_one_pass() -> None:
    for flag in (True, 1):
        with pytest.raises(SandboxError) as caught:
            run_sandbox("/none", ["true"], no_new_privs=flag)
        assert isinstance(caught.value, SpecError) == (flag is not True)


@pytest.mark.parametrize(
    ("words", "mount"),
    [
        (("/a", "/b", None, "bind"), Mount("/b", "/a", recursive=False)),
        (("/a", "b", "", "rbind,ro"), Mount("/b", "/a", read_only=True)),
        (("/a", "/b", "none", "bind"), Mount("/b", "/a", recursive=False)),
        (("none", "/t", "tmpfs", "none"), Mount.tmpfs("/t")),
        (("tmpfs", "/dev/shm", "tmpfs"), Mount("/dev/shm", type="tmpfs")),
        ((None, "/t", "tmpfs", "size=2k,mode=700"), Mount.tmpfs("/t", size=2048, mode=0o700)),
        (("proc", "/proc", "proc"), Mount.proc()),
        (["dev", "/dev", "dev", None], Mount.dev()),
        (("", "/d", "directory", "mode=700"), Mount.directory("/d", mode=0o700)),
        (("d", "/l", "symlink"), Mount.symlink("d", "/l")),
        ((b"text", "/f", "file", "mode=644"), Mount.file(b"text", "/f", mode=0o644)),
    ],
)
def test_the_earlier_tuples_are_mounts(words: tuple[Any, ...], mount: Mount) -> None:
    assert Sandbox("/", extra_mounts=[words]).extra_mounts == (mount,)
    source, target, kind, options = (*words, None)[:4]
    listed = [[source or "", target, kind or "", options or ""]]
    assert sandboxlib.validate_extra_mounts([words]) == listed
    assert sandboxlib.validate_extra_mounts(None) == []


@pytest.mark.parametrize(
    "words",
    [
        ("proc", "tmpfs"),
        ("a", "/b", None, "bind", "more"),
        ("proc", None, "tmpfs"),
        ("x", "/y", "ext4"),
        ("/a", "/b"),
        ("/a", "/b", None),
        ("/a", "/b", None, "bind,nonesuch"),
        (None, "/b", None, "remount,ro"),
    ],
    ids=str,
)
def test_an_earlier_tuple_that_is_no_mount_is_an_assertion_error(words: tuple[Any, ...]) -> None:
    for call in (
        lambda: Sandbox("/none", extra_mounts=[words]),
        lambda: sandboxlib.validate_extra_mounts([words]),
        lambda: run_sandbox(["true"], filesystem_root="/none", extra_mounts=[words]),
    ):
        with pytest.raises(AssertionError) as caught:
            call()
        assert isinstance(caught.value, SpecError)


def test_a_command_as_one_would_type_it() -> None:
    typed = sandboxlib.argv_to_string(["echo", "a b", "$x"])
    assert typed == "echo 'a b' '$x'"


words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


@needs_root
@settings(max_examples=many(30, 150), deadline=None, suppress_health_check=list(HealthCheck))
@given(args=st.lists(words, max_size=8), env=st.dictionaries(words, words, max_size=5))
def test_the_command_gets_exactly_the_words_and_the_environment(
    shared_rootfs: Path, args: list[str], env: dict[str, str]
) -> None:
    env = {name: value for name, value in env.items() if name and "=" not in name}
    env = {**env, "PATH": "/bin"}
    box = Sandbox(shared_rootfs)
    script = 'for word in "$@"; do printf "%s\\0" "$word"; done'
    exit, out, _ = box.run(["sh", "-c", script, "sh", *args])
    assert (exit, out) == (0, b"".join(os.fsencode(word) + b"\0" for word in args))
    out = box.run(["cat", "/proc/self/environ"], extra_env=env).out
    assert set(out.split(b"\0")) == {b"", *(os.fsencode(f"{k}={v}") for k, v in env.items())}


@needs_root
@settings(max_examples=many(40, 200), deadline=None, suppress_health_check=list(HealthCheck))
@given(command=st.lists(st.text(max_size=20), max_size=3), cwd=st.none() | st.text(max_size=20))
def test_whatever_the_words_there_is_a_result_or_an_error_of_ours(
    shared_rootfs: Path, command: list[str], cwd: str | None
) -> None:
    try:
        result = run_sandbox(shared_rootfs, command, cwd, timeout=10)
    except SandboxError:
        return
    assert len(result) == 3
