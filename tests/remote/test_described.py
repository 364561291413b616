# SPDX-License-Identifier: Apache-2.0
"""The salt of an Action: what is written into it is what another machine reads."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from sandboxlib import (
    STDOUT,
    Command,
    File,
    Layers,
    Mount,
    Overlay,
    Policy,
    Sandbox,
    SpecError,
    Tree,
    UnsupportedError,
    User,
)
from sandboxlib._digest.salt import PREFIX, blobs, salt_of
from sandboxlib._remote.described import Described, decode, is_ours

DIGEST = "sha256:" + "0" * 64


class Known(Layers):
    """Layers whose content has digests."""

    def __init__(self, keys: Any) -> None:
        self._all = keys

    def _lowers(self, owners: object, store: object = None) -> Any:
        raise AssertionError("a salt unpacks nothing")

    def _key(self, store: object = None) -> str:
        raise AssertionError("a salt has all digests")

    def _keys(self, store: object = None) -> Any:
        return self._all


BOX = Sandbox(Overlay(Known(DIGEST)), user=1000, umask=0o022, hostname="sandbox")
COMMAND = Command(["cc"], "/src")


def decoded(command: Command, box: Sandbox) -> Described:
    """What another machine reads, which has the blobs."""
    contents: dict[str, bytes] = {}
    for digest, source in blobs(command, box).items():
        contents[digest] = source if isinstance(source, bytes) else Path(source).read_bytes()
    return decode(salt_of(command, box), contents.__getitem__)


def again(salt: bytes, **changes: Any) -> bytes:
    """The salt with other fields; those that are None are left out."""
    fields = {**json.loads(salt.removeprefix(PREFIX)), **changes}
    return PREFIX + json.dumps({name: v for name, v in fields.items() if v is not None}).encode()


CHANGES: list[dict[str, Any]] = [
    {},
    {"network": "undefined", "ipc": "undefined"},
    {"processes": "undefined", "user": "root"},
    {"hostname": "other", "umask": 0, "personality": "linux32"},
    {"filesystem_writable_paths": "none", "tmp": "root"},
    {"filesystem_writable_paths": ["/out", os.fsdecode(b"/\xff")], "devices": ["/dev/kvm"]},
    {"init": False, "user": "root"},
    {"user": "ranges"},
    {"user": User(1000, 5, [27], ranges=True)},
    {"deterministic": True, "user": None},
    {"policy": Policy(capabilities=["chown"], no_new_privs=False, nesting=True)},
    {"policy": Policy(seccomp={"defaultAction": "SCMP_ACT_ALLOW"})},
    {"network": "undefined", "resolv_conf": True},
    {"extra_mounts": [Mount.tmpfs("/a", size="1M"), Mount.proc("/b"), Mount.symlink("/a", "/c")]},
    {"extra_mounts": [Mount.file(b"1", "/a", mode=0o400), Mount.directory("/d", mode=0o700)]},
]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: ",".join(changes) or "none")
def test_a_sandbox_of_what_was_read_gives_the_same_digest(changes: dict[str, Any]) -> None:
    box = BOX.replace(**changes)
    found = decoded(COMMAND, box)
    made = Sandbox(box.root, **found.sandbox)
    assume = box.not_hermetic(COMMAND)
    assert COMMAND.digest(made, assume) == COMMAND.digest(box, assume)
    if not box.deterministic and not any(each.content for each in box.extra_mounts):
        assert made == box


def test_every_field_of_a_sandbox_is_told_but_those_that_are_out() -> None:
    found = decoded(COMMAND, BOX)
    assert {*found.sandbox, "root", "limits", "store"} == set(Sandbox._fields)


def test_a_content_is_read_by_its_digest(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    mounts = [Mount.file(File(tmp_path / "file", executable=True), "/a"), Mount.file(b"2", "/b")]
    found = decoded(COMMAND, BOX.replace(extra_mounts=mounts))
    contents = [mount.content for mount in found.sandbox["extra_mounts"]]
    assert contents == [File(b"1", executable=True), File(b"2", executable=False)]


def test_layers_trees_and_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "5")
    tree, several = Tree({"a": b"1"}), Known([DIGEST, DIGEST[:-1] + "1"])
    box = BOX.replace(root=Overlay(Known(DIGEST), several, tree))
    command = COMMAND.replace(inputs={"include": tree, "a.c": b""})
    found = decoded(command, box)
    assert found.layers == [DIGEST, (DIGEST, DIGEST[:-1] + "1"), tree.digest()]
    assert (found.trees, found.source_date) == (("/src/include",), 5)
    assert found.machine == os.uname().machine
    assert decoded(COMMAND, BOX.replace(root=Overlay())).layers == []
    assert decoded(COMMAND, BOX).source_date is None


def test_what_of_a_command_is_told() -> None:
    command = COMMAND.replace(executable="/bin/cc", stdin=b"input", stderr=STDOUT)
    found = decoded(command, BOX)
    assert found.options == {"executable": "/bin/cc", "stderr": STDOUT}
    assert found.stdin is not None
    assert blobs(command, BOX) == {found.stdin: b"input"}
    assert (decoded(COMMAND, BOX).stdin, decoded(COMMAND, BOX).options) == (None, {})


def test_what_the_maker_adds_is_told_as_it_is() -> None:
    more = {"blobs": {DIGEST: 5}}
    salt = salt_of(COMMAND, BOX, more)
    assert decode(salt, _nothing, frozenset({"blobs"})).more == more
    with pytest.raises(SpecError, match="has 'blobs', which is not known here"):
        decode(salt, _nothing)


def test_another_version_is_refused_by_its_name() -> None:
    salt = salt_of(COMMAND, BOX).replace(PREFIX, b"sandboxlib 1 ")
    assert is_ours(salt)
    with pytest.raises(UnsupportedError, match="'sandboxlib 1'"):
        decode(salt, _nothing)
    assert not is_ours(b"bazel")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("root", {"root": "/srv/root"}),
        ("directory", {"root": Overlay("/srv/root")}),
        ("upper", {"root": Overlay(upper="/srv/upper")}),
        ("bind", {"extra_mounts": [Mount.bind("/srv", "/srv")]}),
        ("caller", {"user": "caller"}),
    ],
    ids=str,
)
def test_what_only_the_maker_knows_is_refused(name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=name):
        decoded(COMMAND, BOX.replace(**changes))


@pytest.mark.parametrize("options", [{"stdin": 0}, {"pass_fds": [3]}, {"pty": True}], ids=str)
def test_what_only_the_maker_of_a_command_has_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=next(iter(options))):
        decoded(COMMAND.replace(**options), BOX)


SALT = salt_of(COMMAND, BOX)
SANDBOX = json.loads(SALT.removeprefix(PREFIX))["sandbox"]
HOSTILE: dict[str, bytes] = {
    "no JSON": PREFIX + b"{",
    "no UTF-8": PREFIX + b'{"machine":"\xff"}',
    "a list": PREFIX + b"[]",
    "too deep": PREFIX + b"[" * 100_000,
    "a long number": PREFIX + b'{"mtime":' + b"1" * 100_000 + b"}",
    "a name twice": PREFIX + b'{"machine":"a","machine":"b"}',
    "an unknown name": again(SALT, setuid=True),
    "an unknown field": again(SALT, sandbox={**SANDBOX, "privileged": True}),
    "an unknown option": again(SALT, command={"shell": True}),
    "no sandbox": again(SALT, sandbox=None),
    "no layers": again(SALT, layers=None),
    "a layer that is a path": again(SALT, layers=["/etc"]),
    "a layer upwards": again(SALT, layers=["sha256:../../../../etc/passwd"]),
    "a layer in a layer": again(SALT, layers=[[[DIGEST]]]),
    "a tree upwards": again(SALT, trees=["/../etc"]),
    "a tree that is a number": again(SALT, trees=[5]),
    "a time before 1970": again(SALT, mtime=-1),
    "a time that is no number": again(SALT, mtime="5"),
    "a wrong word": again(SALT, sandbox={**SANDBOX, "network": "host"}),
    "a wrong mount": again(SALT, sandbox={**SANDBOX, "extra_mounts": [{"target": "/.."}]}),
    "a wrong user": again(SALT, sandbox={**SANDBOX, "user": {"uid": -1}}),
    "ids of an image": again(SALT, sandbox={**SANDBOX, "user": {"image": [0]}}),
    "a wrong digest": again(SALT, command={"stdin": "../etc/passwd"}),
    "a content of exabytes": again(
        SALT,
        sandbox={
            **SANDBOX,
            "extra_mounts": [
                {
                    "target": "/a",
                    "type": "file",
                    "content": {"digest": "0" * 64 + "/" + "9" * 18, "executable": False},
                }
            ],
        },
    ),
    "a profile of exabytes": again(
        SALT,
        sandbox={**SANDBOX, "policy": {"seccomp": {"profile": "0" * 64 + "/" + "9" * 18}}},
    ),
}


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: name.replace(" ", "-"))
def test_a_hostile_salt_is_refused_before_anything_is_read(name: str) -> None:
    with pytest.raises(SpecError):
        Sandbox(Overlay(), **decode(HOSTILE[name], _nothing).sandbox)


def _nothing(digest: str) -> bytes:
    raise AssertionError(f"{digest} is read")


VALUES = (None, True, -1, 1.5, 2**70, "", "..", "\0", "\ud800", [], [1], [[]], {}, {"a": 1})


def test_a_salt_with_any_part_replaced_or_missing_is_read_or_refused() -> None:
    box = BOX.replace(extra_mounts=[Mount.tmpfs("/x")])
    fields = json.loads(salt_of(COMMAND, box)[len(PREFIX) :])

    def check(changed: object) -> None:
        with contextlib.suppress(SpecError, UnsupportedError):
            decode(PREFIX + json.dumps(changed).encode(), lambda digest: b"{}")

    def walk(at: Any) -> None:
        for key in list(at) if isinstance(at, dict) else range(len(at)):
            before = at[key]
            for value in VALUES:
                at[key] = value
                check(fields)
            at[key] = before
            if isinstance(at, dict):
                del at[key]
                check(fields)
                at[key] = before
            if isinstance(before, (dict, list)):
                walk(before)

    walk(fields)
