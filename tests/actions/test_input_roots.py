# SPDX-License-Identifier: Apache-2.0
"""Input roots: what a server sends is checked, and staged no more often than it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxlib import _reapi
from sandboxlib._inputs import memory


def staged(place: Any) -> set[Path]:
    """The layers of inputs: those in the store, and small ones in memory."""
    store = Path(place.executor.store.directory, "inputs")
    found = {each / "tree" for each in store.iterdir()} if store.exists() else set()
    in_memory = memory.find()
    return found | (set() if in_memory is None else set(Path(in_memory.path).iterdir()))


def files_of(layers: set[Path]) -> list[str]:
    """The names of all regular files in some layers."""
    paths = [path for layer in layers for path in layer.rglob("*")]
    return [path.name for path in paths if path.is_file() and not path.is_symlink()]


def numbered(count: int, changed: int = -1) -> dict[str, bytes]:
    return {
        f"f{number}": b"content %d%s" % (number, b"!" * (number == changed))
        for number in range(count)
    }


def test_the_same_input_root_is_staged_and_fetched_once(place: Any) -> None:
    root = place.root({"src": numbered(20)})
    place.run("true", root=root)
    before, calls = staged(place), len(place.blobs.calls)
    assert place.run("cat src/f3", root=root).result.stdout_raw == b"content 3"
    assert staged(place) == before
    assert place.blobs.calls[calls:] == ["fetch", "fetch"]  # the Action and the Command


@pytest.mark.parametrize("below", [(), ("a",), ("a", "b", "c", "d", "e")])
def test_of_an_input_root_that_differs_in_one_file_that_file_alone_is_staged(
    place: Any, below: tuple[str, ...]
) -> None:
    def root(changed: int) -> str:
        entries: Any = numbered(1000, changed)
        for name in reversed(below):
            entries = {name: entries}
        return str(place.root({"src": entries}))

    path = "/".join(("src", *below))
    place.run("true", root=root(-1))
    for changed in (7, 8, 999):
        before = staged(place)
        outcome = place.run(f"cat {path}/f{changed}; ls {path} | wc -l", root=root(changed))
        assert outcome.result.stdout_raw == b"content %d!1000\n" % changed
        assert files_of(staged(place) - before) == [f"f{changed}"]


def test_what_a_later_input_root_lacks_is_not_there(place: Any) -> None:
    entries: dict[str, Any] = {**numbered(200), "d": {"x": b"x"}, "kind": b"a file", "l": "f1"}
    place.run("true", root=place.root({"src": entries}))
    del entries["f5"], entries["d"]
    entries |= {"kind": {"y": b"y"}, "l": "f2", "f6": "f7", "f8": (b"content 8", True)}
    script = (
        "cd src; ls -d f5 d; cat kind/y; readlink l; readlink f6; [ -x f8 ] && echo x; ls | wc -l"
    )
    before = staged(place)
    outcome = place.run(script, root=place.root({"src": entries}))
    assert outcome.result.stdout_raw == b"yf2\nf7\nx\n201\n"
    assert sorted(files_of(staged(place) - before)) == ["f8", "y"]


def test_a_root_that_drifts_away_is_staged_anew_now_and_then(place: Any) -> None:
    entries = dict(numbered(300))
    for number in range(0, 300, 10):
        for each in range(number, number + 10):
            entries[f"f{each}"] = b"new %d" % each
        outcome = place.run(f"cat src/f{number}", root=place.root({"src": entries}))
        assert outcome.result.stdout_raw == b"new %d" % number
    total = len(files_of(staged(place)))
    assert total < 300 * 12, "each action has staged nearly all"


def test_two_roots_share_a_large_directory(place: Any) -> None:
    tools = numbered(600)
    place.run("true", root=place.root({"tools": tools, "src": {"a": b"a"}}))
    before = staged(place)
    outcome = place.run("cat */a tools/f1", root=place.root({"tools": tools, "lib": {"a": b"b"}}))
    assert outcome.result.stdout_raw == b"bcontent 1"
    assert files_of(staged(place) - before) == ["a"]


def test_the_files_of_a_layer_that_was_pruned_come_from_the_server_again(place: Any) -> None:
    root = place.root({"in.txt": b"here"})
    place.run("true", root=root)
    place.executor.release()
    place.executor.store.prune()
    assert place.run("cat in.txt", root=root).result.stdout_raw == b"here"


def test_a_file_that_the_disk_damaged_is_fetched_again(place: Any) -> None:
    root = place.root({"in.txt": b"as it was"})
    place.run("true", root=root)
    path = place.executor.files.path(_reapi.digest_of(b"as it was"))
    Path(path).write_bytes(b"as it is!")  # the same size
    other = place.root({"in.txt": b"as it was", "more.txt": b"more"})
    place.executor.release()
    place.executor.inputs.clear()
    assert place.run("cat in.txt", root=other).result.stdout_raw == b"as it was"


# ---- what no directory can have ----------------------------------------------------------------


def directory(place: Any, *nodes: tuple[int, bytes]) -> str:
    """The digest of a Directory with these fields, whatever they are."""
    encoded = b"".join(_reapi._message(field, node) for field, node in nodes)
    return str(place.blobs.put(encoded))


def hostile(place: Any) -> Iterator[tuple[str, str]]:
    file, empty = place.blobs.put(b"x"), place.blobs.put(b"")
    for name in (b"..", b".", b"", b"a/b", b"a\0b", b"x" * 256):
        yield repr(name[:9]), directory(place, (1, _reapi.file_node(name, file)))
        yield repr(name[:9]), directory(place, (2, _reapi.directory_node(name, empty)))
        yield repr(name[:9]), directory(place, (3, _reapi.symlink_node(name, b"x")))
    node = _reapi.file_node(b"a", file)
    yield "twice", directory(place, (1, node), (1, node))
    yield "two kinds", directory(place, (1, node), (3, _reapi.symlink_node(b"a", b"x")))
    yield "no target", directory(place, (3, _reapi.symlink_node(b"a", b"")))
    yield "NUL", directory(place, (3, _reapi.symlink_node(b"a", b"x\0y")))
    yield "a long target", directory(place, (3, _reapi.symlink_node(b"a", b"x" * 4096)))
    yield "no digest", directory(place, (1, b"\x0a\x01a"))
    yield "no message", str(place.blobs.put(b"\xff\xff\xff"))
    yield "a size", directory(place, (1, _reapi.file_node(b"a", f"{'0' * 64}/{1 << 52}")))


def test_what_no_directory_can_have_is_refused(place: Any) -> None:
    place.run("true")
    before = staged(place)
    for what, root in hostile(place):
        outcome = place.run("true", root=root)
        assert outcome.code == "INVALID_ARGUMENT", (what, outcome)
    assert staged(place) == before


def test_a_few_messages_of_a_trillion_paths_are_refused_before_they_are_walked(place: Any) -> None:
    digest = place.blobs.put(b"")
    for _ in range(40):
        nodes = [(2, _reapi.directory_node(name, digest)) for name in (b"a", b"b")]
        digest = directory(place, *nodes)
    outcome = place.run("true", root=digest)
    assert outcome.code == "INVALID_ARGUMENT"
    assert "entries" in outcome.message


def test_too_many_directories_in_each_other_are_refused(place: Any) -> None:
    digest = place.blobs.put(b"")
    for _ in range(450):
        digest = directory(place, (2, _reapi.directory_node(b"d", digest)))
    outcome = place.run("true", root=digest)
    assert outcome.code == "INVALID_ARGUMENT"
    assert "in each other" in outcome.message


def test_a_server_that_lies_about_a_content_is_found_out(place: Any) -> None:
    for content in (b"true", b"x" * (2 << 20)):
        root = place.root({"in.txt": content})
        place.blobs[_reapi.digest_of(content)] = content[:-1] + b"!"
        outcome = place.run("cat in.txt", root=root)
        assert outcome.result is None
        assert "digest" in outcome.message


def test_links_of_an_input_root_lead_nowhere_else(place: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    entries = {"out": "/", "up": "../../../../../..", "s": str(secret), "work": "out"}
    script = f"cat s out{secret} up{secret}; echo mine > work/made; cat /made"
    outcome = place.run(script, ["work/made", "s"], entries)
    assert outcome.result.stdout_raw == b"mine\n"
    assert not Path("/made").exists()
    assert [each.path for each in outcome.result.output_symlinks] == ["s"]
    assert place.file(outcome, "work/made") == b"mine\n"


def test_a_working_directory_behind_a_link_of_the_input_root(place: Any) -> None:
    entries = {"real": {"x": b"x"}, "link": "real"}
    outcome = place.run("echo y > y; cat x", ["y"], entries, directory="link")
    assert outcome.result.stdout_raw == b"x"
    assert place.file(outcome, "y") == b"y\n"


def test_properties_of_input_nodes_are_kept(place: Any) -> None:
    file, bin_ = place.blobs.put(b"x"), place.blobs.directory(place.bin)
    extra = _reapi.properties(None, (1_000_000_000, 5), 0o640)
    encoded = _reapi.directory(
        {b"f": _reapi.file_node(b"f", file, False, extra)},
        {b"bin": _reapi.directory_node(b"bin", bin_)},
        {b"l": _reapi.symlink_node(b"l", b"f", _reapi.properties(None, (2_000_000_000, 0)))},
    )
    outcome = place.run("stat -c '%a %Y' f; stat -c %Y l", root=place.blobs.put(encoded))
    assert outcome.result.stdout_raw == b"640 1000000000\n2000000000\n"


def test_properties_that_nobody_knows_are_refused(place: Any) -> None:
    extra = _reapi.properties({b"Colour": b"green"})
    for root in (
        _reapi.directory({}, {}, {}, extra),
        _reapi.directory(
            {b"f": _reapi.file_node(b"f", place.blobs.put(b""), False, extra)}, {}, {}
        ),
    ):
        outcome = place.run("true", root=place.blobs.put(root))
        assert outcome.code == "INVALID_ARGUMENT"
        assert "Colour" in outcome.message


def test_an_input_root_may_be_read_only_but_for_some_directories(place: Any) -> None:
    def put(entries: dict[bytes, str], told: bytes) -> str:
        nodes = {name: _reapi.directory_node(name, digest) for name, digest in entries.items()}
        extra = _reapi.properties({b"SubtreeReadOnly": told})
        return str(place.blobs.put(_reapi.directory({}, nodes, {}, extra)))

    bin_ = place.blobs.directory(place.bin)
    out = put({}, b"false")
    root = put({b"bin": bin_, b"out": out}, b"true")
    outcome = place.run("echo x > out/x; touch y || echo no; touch bin/y || echo no", root=root)
    assert outcome.result.stdout_raw == b"no\nno\n"
    # As BuildStream has it: the run has file systems of its own there, which are not the root's.
    marked = {name: put({}, b"false") for name in (b"dev", b"proc", b"tmp")}
    root = put({b"bin": bin_, b"out": out, **marked}, b"true")
    script = "echo x > tmp/x; echo x > dev/null; echo x > out/x; touch proc/x || echo no"
    outcome = place.run(f"{script}; touch y || echo no", ["out"], root=root)
    assert outcome.result.stdout_raw == b"no\nno\n", outcome.result.stderr_raw
    assert place.tree(outcome, "out") == {"x": b"x\n"}
    part = place.blobs.put(
        _reapi.directory({}, {b"a": _reapi.directory_node(b"a", put({}, b"true"))}, {})
    )
    assert place.run("true", root=part).code == "FAILED_PRECONDITION"


def test_an_input_root_may_lie_in_a_root_of_the_site(
    make_place: Callable[..., Any], place: Any
) -> None:
    from sandboxlib import File, Tree

    content = place.bin["busybox"][0]
    tools = {
        "bin/busybox": File(content, executable=True),
        "bin/sh": File(content, executable=True),
    }
    site = make_place(root=Tree({**tools, "etc/site": b"of the site"}), directory="/work/here")
    root = site.blobs.directory({"in.txt": b"in", "abs": "/etc/site"})
    script = "busybox pwd; busybox cat in.txt abs; echo o > d/o; echo no > /etc/new"
    outcome = site.run(script, ["d/o", "abs", "abs/x"], root=root)
    assert outcome.result.stdout_raw == b"/work/here\ninof the site"
    assert site.file(outcome, "d/o") == b"o\n"
    assert [each.path for each in outcome.result.output_symlinks] == ["abs"]
    assert site.run("busybox ls /etc", root=root).result.stdout_raw == b"site\n"
