# SPDX-License-Identifier: Apache-2.0
"""The messages that sandboxlib encodes are those of protobuf, byte for byte."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lib.reapi import encoded, stubs

from sandboxlib import SpecError, _reapi

NAMES = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="/\0"), min_size=1, max_size=8
).filter(lambda name: name not in (".", ".."))
WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=200)
SIZES = st.one_of(st.integers(0, 300), st.integers(0, (1 << 63) - 1))
DIGESTS = st.builds(
    lambda data, size: f"{hashlib.sha256(data).hexdigest()}/{size}", st.binary(), SIZES
)
EXTRAS = st.none() | st.tuples(
    st.dictionaries(NAMES, WORDS, max_size=3),
    st.none() | st.tuples(st.integers(-(1 << 40), 1 << 40), st.integers(0, 999_999_999)),
    st.none() | st.integers(0, (1 << 32) - 1),
)
FILES = st.tuples(st.just("file"), DIGESTS, st.booleans(), EXTRAS)
LINKS = st.tuples(st.just("link"), WORDS, EXTRAS)
DIRECTORIES = st.tuples(st.just("directory"), DIGESTS)
CONTENTS = st.tuples(
    st.dictionaries(NAMES, st.one_of(FILES, LINKS, DIRECTORIES), max_size=6), EXTRAS
)
#: protobuf is imported, and hypothesis measures each example
QUIET = settings(deadline=None)


def theirs_extra(pb: Any, extra: Any) -> Any:
    if extra is None:
        return None
    named, mtime, mode = extra
    message = pb.NodeProperties()
    for name in sorted(named, key=str.encode):
        message.properties.add(name=name, value=named[name])
    if mtime is not None:
        message.mtime.SetInParent()
        message.mtime.seconds, message.mtime.nanos = mtime
    if mode is not None:
        message.unix_mode.SetInParent()
        message.unix_mode.value = mode
    return message


def ours_extra(extra: Any) -> bytes | None:
    if extra is None:
        return None
    named, mtime, mode = extra
    return _reapi.properties({n.encode(): v.encode() for n, v in named.items()}, mtime, mode)


def theirs_digest(pb: Any, digest: str) -> Any:
    name, _, size = digest.partition("/")
    return pb.Digest(hash=name, size_bytes=int(size))


def theirs_directory(pb: Any, content: Any) -> Any:
    named, extra = content
    message = pb.Directory(node_properties=theirs_extra(pb, extra))
    for name in sorted(named, key=str.encode):
        kind, what, *rest = named[name]
        more = theirs_extra(pb, rest[-1]) if rest else None
        if kind == "file":
            message.files.add(
                name=name,
                digest=theirs_digest(pb, what),
                is_executable=rest[0],
                node_properties=more,
            )
        elif kind == "link":
            message.symlinks.add(name=name, target=what, node_properties=more)
        else:
            message.directories.add(name=name, digest=theirs_digest(pb, what))
    return message


def ours_directory(content: Any) -> bytes:
    named, extra = content
    nodes: dict[str, dict[bytes, bytes]] = {"file": {}, "directory": {}, "link": {}}
    for text, (kind, what, *rest) in named.items():
        name = text.encode()
        if kind == "file":
            node = _reapi.file_node(name, what, rest[0], ours_extra(rest[1]))
        elif kind == "link":
            node = _reapi.symlink_node(name, what.encode(), ours_extra(rest[0]))
        else:
            node = _reapi.directory_node(name, what)
        nodes[kind][name] = node
    return _reapi.directory(*nodes.values(), extra=ours_extra(extra))


@given(content=CONTENTS)
@QUIET
def test_a_directory_is_that_of_protobuf(content: Any) -> None:
    assert ours_directory(content) == encoded(theirs_directory(stubs(), content))


@given(contents=st.lists(CONTENTS, min_size=1, max_size=4))
@QUIET
def test_a_tree_is_that_of_protobuf(contents: Any) -> None:
    pb = stubs()
    children = {_reapi.digest_of(ours_directory(each)): each for each in contents[1:]}
    ours = _reapi.tree(ours_directory(contents[0]), [ours_directory(each) for each in contents[1:]])
    theirs = pb.Tree(
        root=theirs_directory(pb, contents[0]),
        children=[theirs_directory(pb, children[digest]) for digest in sorted(children)],
    )
    assert ours == encoded(theirs)


@given(
    arguments=st.lists(WORDS, max_size=5),
    variables=st.dictionaries(NAMES, WORDS, max_size=5),
    outputs=st.lists(NAMES, max_size=5),
    directory=WORDS,
    wanted=st.lists(NAMES, max_size=3),
)
@QUIET
def test_a_command_is_that_of_protobuf(
    arguments: list[str],
    variables: dict[str, str],
    outputs: list[str],
    directory: str,
    wanted: list[str],
) -> None:
    pb = stubs()
    theirs = pb.Command(
        arguments=arguments,
        output_paths=sorted(set(outputs), key=str.encode),
        working_directory=directory,
        output_node_properties=sorted(set(wanted), key=str.encode),
    )
    for name in sorted(variables, key=str.encode):
        theirs.environment_variables.add(name=name, value=variables[name])
    ours = _reapi.command(
        [word.encode() for word in arguments],
        {name.encode(): value.encode() for name, value in variables.items()},
        [path.encode() for path in outputs],
        directory.encode(),
        [name.encode() for name in wanted],
    )
    assert ours == encoded(theirs)


@given(
    digests=st.tuples(DIGESTS, DIGESTS),
    nanoseconds=st.none() | st.integers(0, 10**15) | st.integers(0, 10**6).map(lambda n: n * 10**9),
    salt=st.binary(max_size=200),
    pairs=st.lists(st.tuples(NAMES, WORDS), max_size=4),
    is_private=st.booleans(),
)
@QUIET
def test_an_action_is_that_of_protobuf(
    digests: tuple[str, str],
    nanoseconds: int | None,
    salt: bytes,
    pairs: list[tuple[str, str]],
    is_private: bool,
) -> None:
    pb = stubs()
    theirs = pb.Action(
        command_digest=theirs_digest(pb, digests[0]),
        input_root_digest=theirs_digest(pb, digests[1]),
        do_not_cache=is_private,
        salt=salt,
    )
    if nanoseconds is not None:
        theirs.timeout.SetInParent()
        theirs.timeout.FromNanoseconds(nanoseconds)
    for name, value in sorted(pairs, key=lambda pair: (pair[0].encode(), pair[1].encode())):
        theirs.platform.properties.add(name=name, value=value)
    properties = _reapi.platform([(name.encode(), value.encode()) for name, value in pairs])
    timeout = None if nanoseconds is None else nanoseconds / 1e9
    ours = _reapi.action(*digests, timeout, salt, properties, is_private)
    assert ours == encoded(theirs)


@pytest.mark.parametrize("timeout", [0.9999999999, 1 - 2**-53])
def test_a_timeout_just_below_a_second_is_a_second(timeout: float) -> None:
    action = (_reapi.EMPTY, _reapi.EMPTY)
    assert _reapi.action(*action, timeout) == _reapi.action(*action, 1.0)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b"])
def test_a_name_that_no_directory_has_is_refused(name: bytes) -> None:
    node = _reapi.file_node(name, _reapi.EMPTY)
    with pytest.raises(SpecError, match="name"):
        _reapi.directory({name: node}, {}, {})


def test_a_name_that_two_things_have_is_refused() -> None:
    file, link = _reapi.file_node(b"a", _reapi.EMPTY), _reapi.symlink_node(b"a", b"b")
    with pytest.raises(SpecError, match="two things in a directory have the name b'a'"):
        _reapi.directory({b"a": file}, {}, {b"a": link})


def test_a_name_that_is_not_utf8_has_a_digest_of_its_own() -> None:
    names = [b"\xff", "\xff".encode(), b"\xfe", b"\xef\xbf\xbd"]
    digests = {
        _reapi.digest_of(_reapi.directory({name: _reapi.file_node(name, _reapi.EMPTY)}, {}, {}))
        for name in names
    }
    assert len(digests) == len(names)


def test_a_digest_is_a_hash_and_a_size() -> None:
    name = hashlib.sha256(b"hello").hexdigest()
    assert _reapi.digest_of(b"hello") == f"{name}/5" == _reapi.check_digest("it", f"{name}/5")


@pytest.mark.parametrize(
    "text",
    [
        *("", "/5", "a" * 64, "a" * 64 + "/", "a" * 63 + "/5", "A" * 64 + "/5", "g" * 64 + "/5"),
        *("a" * 64 + "/05", "a" * 64 + "/-1", "a" * 64 + "/5/5", "a" * 64 + "/5\n"),
        *("a" * 64 + f"/{1 << 63}", "a" * 64 + "/" + "9" * 5000, "a" * 64 + "/\u0665", None, b"a"),
    ],
)
def test_what_is_no_digest_is_refused(text: object) -> None:
    with pytest.raises(SpecError, match="no digest"):
        _reapi.check_digest("it", text)
