# SPDX-License-Identifier: Apache-2.0
"""Where the annotation says Iterable or Sequence, any iterable or sequence is taken."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from sandboxlib import Command, Limits, Mount, Policy, Sandbox, SpecTypeError, User
from sandboxlib._spec import spec

WAYS: dict[str, Callable[[list[Any]], Iterable[Any]]] = {
    "generator": lambda values: (value for value in values),
    "keys": lambda values: dict.fromkeys(values).keys(),
    "deque": deque,
    "map": lambda values: map(type(values[0]), values) if isinstance(values[0], str) else values,
}


@pytest.mark.parametrize("way", WAYS)
def test_any_iterable_is_taken(way: str) -> None:
    several = WAYS[way]
    mounts = [Mount.tmpfs("/a"), Mount.tmpfs("/b")]
    box = Sandbox(
        "/",
        extra_mounts=several(mounts),
        filesystem_writable_paths=several(["/x", "/y"]),
        devices=several(["/dev/kvm", "/dev/fuse"]),
        policy=Policy(capabilities=several(["chown", "kill"])),
        user=User(1, groups=several([2, 3])),
        limits=Limits(cpuset=several([0, 1])),
    )
    assert box.extra_mounts == tuple(mounts)
    assert box.filesystem_writable_paths == ("/x", "/y")
    assert box.devices == ("/dev/fuse", "/dev/kvm")
    assert box.policy.capabilities == ("chown", "kill")
    assert isinstance(box.user, User)
    assert box.user.groups == (2, 3)
    assert box.limits == Limits(cpuset=[0, 1])
    assert Command("x", pass_fds=several([4, 5])).pass_fds == (4, 5)


def test_an_argv_is_any_sequence() -> None:
    assert Command(deque(["cc", b"-c"])).argv == ("cc", "-c")
    for wrong in ({"cc": 1}, {"cc"}, iter(["cc"]), bytearray(b"cc"), 5):
        with pytest.raises(SpecTypeError, match="neither a list nor a str"):
            Command(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["filesystem_writable_paths", "devices"])
@pytest.mark.parametrize("wrong", [b"/dev/x", {"/dev/x": "y"}, 5, bytearray(b"/dev/x")])
def test_what_is_one_value_is_not_several(name: str, wrong: object) -> None:
    with pytest.raises(SpecTypeError, match=name):
        Sandbox("/", **{name: wrong})  # type: ignore[arg-type]
    with pytest.raises(SpecTypeError, match="capabilities"):
        Policy(capabilities=wrong)  # type: ignore[arg-type]


def test_an_iterable_that_changes_is_read_at_each_call() -> None:
    """run_sandbox keeps the Sandboxes of equal arguments; such a value equals only itself."""

    class Paths:
        paths = ("/x",)

        def __iter__(self) -> Iterator[str]:
            return iter(self.paths)

    several = Paths()
    first = spec.sandbox_for("/", {"filesystem_writable_paths": several})
    several.paths = ("/y",)
    second = spec.sandbox_for("/", {"filesystem_writable_paths": several})
    assert first.filesystem_writable_paths == ("/x",)
    assert second.filesystem_writable_paths == ("/y",)
    once = (path for path in ["/x"])
    made = spec.sandbox_for("/", {"filesystem_writable_paths": once, "devices": ["/dev/kvm"]})
    assert made.filesystem_writable_paths == ("/x",)


def test_replace_takes_another_argv() -> None:
    command = Command(["cc"], timeout=5)
    assert command.replace(argv=["ld"], cwd="/") == Command(["ld"], "/", timeout=5)
    assert command.replace(argv=None) == command
