# SPDX-License-Identifier: Apache-2.0
"""run_sandbox shows the first form, and understands that of sandboxlib 0.3."""

from __future__ import annotations

import inspect
import pickle
import typing
import warnings
from typing import Any

import pytest

import sandboxlib
from sandboxlib import (
    Command,
    HostRootWarning,
    Policy,
    Sandbox,
    SpecError,
    SpecTypeError,
    compat,
    run_sandbox,
)

EXECUTORS = ("chroot", "linux_user_chroot", "user_namespace", "bubblewrap")
Seen = list[tuple[Sandbox, Command]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """The Sandboxes and Commands that run_sandbox would run."""
    found: Seen = []

    def run_command(box: Sandbox, command: Command, fresh: bool) -> Any:
        found.append((box, command))

    monkeypatch.setattr(sandboxlib._choice.choose.api, "_run", run_command)
    return found


@pytest.mark.parametrize("name", ["", *EXECUTORS])
def test_the_signature_is_that_of_the_first_form(name: str) -> None:
    call = sandboxlib.get_executor(name).run_sandbox if name else run_sandbox
    signature = inspect.signature(call)
    names = list(signature.parameters)
    assert names[:5] == ["rootfs_path", "command", "cwd", "extra_env", "network"]
    missing = {*Sandbox._fields[1:], *Policy._fields, *Command._fields[1:]} - set(names)
    assert not missing
    defaults = {name: each.default for name, each in signature.parameters.items()}
    assert defaults["network"] == "undefined"
    assert (defaults["filesystem_writable_paths"], defaults["tmp"]) == ("all", "root")
    assert "rootfs_path " in (inspect.getdoc(call) or "")
    assert typing.get_type_hints(call)["return"] is sandboxlib.Result


def test_all_arguments_reach_the_sandbox_and_the_command(seen: Seen) -> None:
    run_sandbox("/x", ["true"], "/y", {"A": "b"}, "isolated")
    run_sandbox("/x", "true", hostname="h", tmp="private", timeout=5, nesting=True, stdin=b"in")
    run_sandbox(rootfs_path="/x", command=Command(["true"], timeout=3), policy=Policy(nesting=True))
    (box, command), (other, late), (third, ready) = seen
    assert (box.root, box.network, command.cwd, dict(command.extra_env or {})) == (
        *("/x", "isolated", "/y"),
        {"A": "b"},
    )
    assert (other.hostname, other.tmp, other.network) == ("h", "private", "undefined")
    assert (other.policy, late.timeout, late.stdin) == (Policy(nesting=True), 5, b"in")
    assert (third.policy, ready.timeout) == (Policy(nesting=True), 3)


@pytest.mark.parametrize(
    ("words", "error", "text"),
    [
        ({"policy": Policy(), "nesting": True}, SpecError, "there is a policy, and nesting"),
        ({"policy": Policy(), "capabilities": "all"}, SpecError, "there is a policy"),
        ({"netwrk": "isolated"}, SpecTypeError, "run_sandbox has no .* netwrk.*network"),
        ({"ids": (1, 2)}, SpecTypeError, "belongs to User"),
        ({"command": Command("true"), "timeout": 5}, SpecTypeError, "replace"),
    ],
    ids=str,
)
def test_what_it_does_not_take(
    seen: Seen, words: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        run_sandbox("/x", **{"command": ["true"], **words})
    assert not seen


def test_the_form_of_0_3_is_told_by_its_arguments(seen: Seen) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_sandbox(["true"], filesystem_root="/x")
        run_sandbox(["true"], "/y", {"A": "b"}, "/x", ["/z"], "isolated", None, "isolated", None, 2)
        run_sandbox(command=["true"], filesystem_root="/x", filesystem_writable_paths=None)
        run_sandbox("/x", "true")  # may be either
    (first, bare), (ten, whole), (none, _), (safe, _) = seen
    assert (first.root, first.mounts, first.ipc, first.devices) == (
        *("/x", "undefined", "undefined"),
        "root",
    )
    assert first.policy == Policy(capabilities="all", seccomp="none")
    assert (bare.cwd, bare.env is not None) == ("/", True)
    assert (ten.root, ten.filesystem_writable_paths) == ("/x", ("/z",))
    assert (ten.network, ten.mounts, ten.tmp) == ("isolated", "isolated", "root")
    assert (whole.stdout, whole.stderr, dict(whole.env or {})) == (None, 2, {"A": "b"})
    assert none.filesystem_writable_paths == "none"
    assert (safe.policy, safe.mounts) == (Policy(), "isolated")


@pytest.mark.parametrize("call", [lambda: run_sandbox(["true"]), lambda: run_sandbox("true")])
def test_a_call_that_names_no_root_is_warned_about(seen: Seen, call: Any) -> None:
    with pytest.warns(HostRootWarning, match=r"say filesystem_root='/'.*Sandbox\('/'\)") as told:
        call()
    assert told[0].filename == __file__
    assert seen[0][0].root == "/"
    assert issubclass(HostRootWarning, UserWarning)


def test_the_names_of_0_3_are_in_one_file() -> None:
    for name in (
        *("run_sandbox_with_redirection", "degrade_config_for_capabilities"),
        *("validate_extra_mounts", "argv_to_string"),
    ):
        assert getattr(sandboxlib, name).__module__ == compat.__name__
    assert callable(sandboxlib.maximum_possible_isolation)


def test_run_sandbox_pickles() -> None:
    assert inspect.signature(pickle.loads(pickle.dumps(run_sandbox))) == inspect.signature(
        run_sandbox
    )
