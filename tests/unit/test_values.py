# SPDX-License-Identifier: Apache-2.0
"""The values: what comes out of a pickle went through the checks of its class."""

from __future__ import annotations

import copy
import pickle
import pickletools
from typing import Any

import pytest

from sandboxlib import Command, Limits, Mount, Policy, Sandbox, SandboxError, SpecError, User

PROFILE = {"defaultAction": "SCMP_ACT_ALLOW"}
VALUES = (
    Mount.tmpfs("/x", size="2M"),
    Mount.bind("/usr", "/usr", read_only=True),
    Limits(memory="2G", cpu_time=1.5, cpuset=[0], cpus=0.5),
    User(5, 6, [7], ranges=True),
    Policy(capabilities=["chown"], nesting=True),
    Policy(seccomp=PROFILE),
    Sandbox("/", user=5, limits=Limits(pids=3), extra_mounts=[Mount.tmpfs("/x")]),
    Sandbox("/", deterministic=True),
)


class Forged:
    """A forged pickle: an object of a class, with this state."""

    def __init__(self, made: type, state: object) -> None:
        self._made, self._state = made, state

    def __reduce__(self) -> tuple[object, ...]:
        return object.__new__, (self._made,), self._state


def forged(made: type, state: object) -> Any:
    return pickle.loads(pickle.dumps(Forged(made, state)))


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_comes_back_out_of_a_pickle(value: Any) -> None:
    for same in (pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)):
        assert (same, hash(same), repr(same)) == (value, hash(value), repr(value))
        assert type(same) is type(value)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_pickle_holds_no_value_that_its_class_would_not_make(value: Any) -> None:
    state = value.__getstate__()
    assert forged(type(value), state) == value
    for wrong in (None, 5, [], {"x": 1}, {}, dict(list(state.items())[1:]), {**state, "x": 1}):
        if wrong is not None:  # without a state pickle calls nobody
            with pytest.raises(SpecError):
                forged(type(value), wrong)
    for name in state:
        with pytest.raises(SandboxError):
            forged(type(value), {**state, name: object()})


def test_a_forged_policy_is_refused_with_our_own_error() -> None:
    good = Policy().__getstate__()
    for name, wrong in (
        ("capabilities", "everything"),
        ("capabilities", ("no_such",)),
        ("no_new_privs", 0),
        ("seccomp", "off"),
        ("nesting", 1),
    ):
        with pytest.raises(SandboxError):
            forged(Policy, {**good, name: wrong})
    profile = type(Policy(seccomp=PROFILE).seccomp)
    for text in ("{", "[]", 5, '{"defaultAction": "SCMP_ACT_NONE"}'):
        with pytest.raises(SandboxError):
            forged(Policy, {**good, "seccomp": forged(profile, {"text": text})})


@pytest.mark.parametrize(
    "value", [*VALUES, Command(["cc"], env={"A": "b"}, timeout=5)], ids=lambda v: type(v).__name__
)
def test_a_pickle_names_the_package_alone_so_files_may_move(value: Any) -> None:
    text = pickle.dumps(value, 2)
    assert pickle.loads(text) == value
    named = [arg for op, arg, _ in pickletools.genops(text) if op.name == "GLOBAL"]
    assert {str(arg).split()[0] for arg in named} <= {"sandboxlib", "copy_reg", "__builtin__"}


def test_a_pickle_holds_no_command_that_could_not_be_made() -> None:
    for wrong in (5, [], {"x": 1}, {"timeout": 5}, {"argv": ["a"], "x": 1}, {"argv": []}):
        with pytest.raises(SpecError):
            forged(Command, wrong)
