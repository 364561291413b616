# SPDX-License-Identifier: Apache-2.0
"""The values: what comes out of a pickle went through the checks of its class."""

from __future__ import annotations

import copy
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest

from sandboxlib import (
    Command,
    Limits,
    Mount,
    Policy,
    Sandbox,
    SandboxError,
    SandboxExecutor,
    SpecError,
    SpecTypeError,
    Store,
    User,
)
from sandboxlib._spec.spec import Spec

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
    Store("/x", max_size="2G"),
    Sandbox("/", store=Store("/x")),
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


def test_a_sandbox_with_other_values_is_a_sandbox_for_a_type_checker_too() -> None:
    other = Sandbox("/").replace(root="/usr")
    assert type(other) is Sandbox
    kind: type[object] = get_type_hints(Sandbox.replace)["return"]
    assert kind is not Spec
    assert repr(kind) in ("typing.Self", "typing.Any")  # Any: Python 3.10


@pytest.mark.parametrize(
    ("value", "changes"),
    [
        (User(5, 6, [7]), {"groups": (8,), "ranges": True}),
        (Limits(memory="1M", pids=5), {"memory": None, "core": 0}),
        (Mount.tmpfs("/x", size=4096), {"mode": 0o700, "size": None}),
        (Mount.bind("/usr", "/x"), {"read_only": True, "source": "/srv"}),
        (Policy(nesting=True), {"capabilities": "none", "nesting": False}),
        (Sandbox("/", user=5), {"user": User(6), "umask": 0o77}),
        (Command(["cc"], timeout=5), {"timeout": None, "cwd": "/x"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_replace_gives_a_value_with_other_fields_and_leaves_the_rest(
    value: Any, changes: dict[str, Any]
) -> None:
    before, names = repr(value), value._fields
    for other in (value.replace(**changes), value.__replace__(**changes)):
        assert type(other) is type(value)
        wanted = {name: changes.get(name, getattr(value, name)) for name in names}
        assert {name: getattr(other, name) for name in names} == wanted
    assert value.replace() == value
    assert repr(value) == before
    with pytest.raises(SpecTypeError, match=r"has no keyword argument xyzzy: "):
        value.replace(xyzzy=1)
    with pytest.raises(SpecError):
        value.replace(**{next(iter(changes)): object()})


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda **o: User(5, **o), "User has no keyword argument group: did you mean groups?"),
        (lambda **o: User(5).replace(**o), "User.replace has no keyword argument group: did you"),
        (lambda **o: Policy(**o), "Policy has no keyword argument group: it has capabilities, no_"),
        (lambda **o: Mount("/x", "/y", **o), "Mount has no keyword argument group: it has target"),
        (lambda **o: Mount.bind("/x", "/y", **o), "Mount.bind has no keyword argument group: it "),
        (lambda **o: Mount.tmpfs("/x", **o), "Mount.tmpfs has no keyword argument group: it has "),
        (lambda **o: SandboxExecutor(Sandbox("/"), **o), "SandboxExecutor has no keyword argument"),
        (lambda **o: Limits().replace(**o), "Limits.replace has no keyword argument group: "),
    ],
)
def test_an_unknown_keyword_is_told_with_the_call_that_got_it(
    make: Callable[..., object], text: str
) -> None:
    with pytest.raises(SpecTypeError) as raised:
        make(group=1)
    assert str(raised.value).startswith(text)


def test_limits_show_what_is_given_alone() -> None:
    limits = Limits(pids=5, memory="4M") | Limits(cpu_time=1.0)
    assert repr(limits) == "Limits(cpu_time=1, memory=4194304, pids=5)"
    assert eval(repr(limits)) == limits
    assert repr(Limits()) == "Limits()"


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"cpu_time": 0}, "cpu_time is 0, and has to be from 0.001 to 4294967296 seconds"),
        ({"cpu_time": "3"}, "cpu_time is no number of seconds: '3'"),
        ({"cpu_time": True}, "cpu_time is no number of seconds: True"),
        ({"cpu_time": float("nan")}, "cpu_time is nan, and has to be from 0.001 to 4294967296"),
        ({"timeout": 3}, "Limits has no keyword argument timeout: timeout belongs to Command"),
    ],
)
def test_limits_say_what_is_wrong_with_a_time(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError) as raised:
        Limits(**wrong)
    assert str(raised.value).startswith(text)


def test_one_writable_path_is_told_to_be_a_list() -> None:
    with pytest.raises(SpecError, match=r"one path, and has to be a list of them: \['/srv'\]"):
        Sandbox("/", filesystem_writable_paths="/srv")
    with pytest.raises(SpecError, match=r"a writable path contains '..': '/a/../b'"):
        Sandbox("/", filesystem_writable_paths=["/a/../b"])
