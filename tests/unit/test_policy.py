# SPDX-License-Identifier: Apache-2.0
"""The value Policy: its arguments, the values that it refuses, and the ways to pass one."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lib.names import name_of

import sandboxlib
from sandboxlib import Policy, Sandbox, SpecError, SpecTypeError, compat, run_sandbox
from sandboxlib._spec.policy import Profile
from sandboxlib._spec.spec import sandbox_for

PROFILE = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}
KILLS_EXEC = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["execve"], "action": "SCMP_ACT_KILL"}],
}


def test_the_defaults() -> None:
    policy = Policy()
    assert (policy.capabilities, policy.no_new_privs) == ("default", True)
    assert (policy.seccomp, policy.nesting) == ("default", False)
    assert Sandbox("/").policy == policy


def test_it_is_a_value() -> None:
    words: dict[str, Any] = {
        "capabilities": ["CAP_KILL", "chown"],
        "no_new_privs": False,
        "seccomp": "none",
        "nesting": True,
    }
    policies = [Policy(), *(Policy(**{name: value}) for name, value in words.items())]
    policies.append(Policy(seccomp=PROFILE))
    assert len(set(policies)) == len({repr(policy) for policy in policies}) == len(policies)
    for policy in policies:
        assert pickle.loads(pickle.dumps(policy)) == policy
        assert policy.replace() == policy
        box = Sandbox("/", policy=policy)
        assert pickle.loads(pickle.dumps(box)) == box.replace() == box
    with pytest.raises(AttributeError):
        policies[0].nesting = True
    assert Policy(capabilities=["kill", "chown"]).capabilities == ("chown", "kill")


@pytest.mark.parametrize(
    "words",
    [
        {"capabilities": "most"},
        {"capabilities": ["sys_everything"]},
        {"capabilities": [5]},
        {"capabilities": 5},
        {"no_new_privs": 1},
        {"nesting": 0},
        {"seccomp": "docker"},
        {"seccomp": "/etc/profile.json"},
        {"seccomp": None},
        {"seccomp": 5},
        {"seccomp": [PROFILE]},
        {"seccomp": {5: 6}},
        {"seccomp": {"defaultAction": object()}},
        {"seccomp": PROFILE, "nesting": True},
        {"seccomp": Path("a\0b")},
        {"seccomp": {}},
        {"seccomp": {"defaultAction": "SCMP_ACT_ERRNO"}},  # so that nothing could end
        {"seccomp": KILLS_EXEC},
    ],
    ids=name_of,
)
def test_what_makes_no_sense(words: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        Policy(**words)
    if None in words.values():  # of run_sandbox it is the default
        return
    with pytest.raises(SpecError):
        run_sandbox("/none", ["true"], **words)


def test_a_profile_is_read_when_the_policy_is_made(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(PROFILE, indent=4))
    policy = Policy(seccomp=file)
    assert policy == Policy(seccomp=PROFILE) == Policy(seccomp=dict(reversed(PROFILE.items())))
    assert hash(policy) == hash(Policy(seccomp=PROFILE))
    file.write_text(json.dumps({"defaultAction": "SCMP_ACT_LOG"}))
    assert isinstance(policy.seccomp, Profile)
    assert policy.seccomp.content() == PROFILE
    assert Policy(seccomp=file) != policy
    file.write_text("[]")
    with pytest.raises(SpecError):
        Policy(seccomp=file)
    file.write_bytes(b"\xff")
    with pytest.raises(SpecError):
        Policy(seccomp=file)
    file.write_text("[" * 100000)
    with pytest.raises(SpecError):
        Policy(seccomp=file)
    with pytest.raises(FileNotFoundError) as caught:
        Policy(seccomp=tmp_path / "none")
    assert isinstance(caught.value, sandboxlib.SetupError)


@pytest.mark.parametrize("name", ["capabilities", "no_new_privs", "seccomp", "nesting"])
def test_a_sandbox_says_where_its_words_went(name: str) -> None:
    words: dict[str, Any] = {name: "all"}
    with pytest.raises(SpecTypeError, match=rf"policy=Policy\({name}=\.\.\.\)"):
        Sandbox("/", **words)
    with pytest.raises(SpecTypeError, match=rf"policy=Policy\({name}=\.\.\.\)"):
        Sandbox("/").replace(**words)


def test_an_unknown_word_is_named() -> None:
    words: dict[str, Any] = {"colour": "red"}
    with pytest.raises(SpecTypeError, match="colour"):
        Sandbox("/", **words)
    with pytest.raises(SpecTypeError, match="policy is not a Policy"):
        Sandbox("/", policy={})  # type: ignore[arg-type]


def test_a_call_takes_a_policy_or_its_words() -> None:
    for form in (["/", ["true"]], [["true"]]):
        for words in ({"capabilities": "none"}, {"nesting": False}):
            with pytest.raises(SpecError, match=f"there is a policy, and {next(iter(words))}"):
                run_sandbox(*form, policy=Policy(), **words)
    words = {"capabilities": ["kill"], "no_new_privs": False, "seccomp": "none"}
    assert sandbox_for("/", words).policy == Policy(**words)
    assert sandbox_for("/", words) is sandbox_for("/", dict(words))
    assert sandbox_for("/", {"policy": Policy(**words)}) is sandbox_for("/", words)


def test_the_form_of_0_3_keeps_what_its_callers_had(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def run_command(box: Sandbox, *words: object) -> None:
        seen.append(box.policy)

    for words in ({}, {"capabilities": "none"}, {"policy": Policy()}):
        executor = compat.EarlierNames("x", run_command, dict)  # type: ignore[arg-type]
        compat.run_form_of_0_3(executor, ["true"], filesystem_root="/", **words)
    assert seen[0] == Policy(capabilities="all", seccomp="none")
    assert seen[1] == Policy(capabilities="none", seccomp="none")
    assert seen[2] == Policy()


def test_degrading_asks_for_a_filter_that_can_be_had() -> None:
    for possible, asked, kept in (
        ("builds", "default", "default"),
        ("builds", "builds", "builds"),
        ("default", "builds", "default"),
        ("default", {}, "default"),
        ("none", "default", "none"),
        ("none", "none", "none"),
    ):
        isolation = {"mounts": "isolated", "seccomp": possible}
        degraded = compat.degrade("x", isolation, {"seccomp": asked}, warn=False)
        assert degraded == {"seccomp": kept}
        assert compat.degrade("x", isolation, {}) == {}
        if asked:
            config = {"policy": Policy(seccomp=asked, no_new_privs=False)}
            degraded = compat.degrade("x", isolation, config, warn=False)
            assert degraded == {"policy": Policy(seccomp=kept, no_new_privs=False)}
    with pytest.warns(UserWarning, match="x has no such filter here: going on with seccomp='none'"):
        compat.degrade("x", {"mounts": "isolated", "seccomp": "none"}, {"seccomp": "builds"})


def test_a_profile_that_is_no_file_keeps_nobody_waiting(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    program = f"import pathlib, sandboxlib\nsandboxlib.Policy(seccomp=pathlib.Path({str(fifo)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=60, check=False
    )
    assert b"SpecError" in done.stderr
    assert b"no regular file" in done.stderr
    for path in ("/dev/zero", "/dev/null"):
        with pytest.raises(SpecError, match="no regular file"):
            Policy(seccomp=Path(path))
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(1 << 32)
    with pytest.raises(SpecError, match="longer than"):
        Policy(seccomp=tmp_path / "huge")
