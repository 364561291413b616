# SPDX-License-Identifier: Apache-2.0
"""What an Action left is read as it is, however hostile the command was."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sandboxlib import _reapi


def test_the_executable_bit_and_links_are_told(place: Any) -> None:
    script = "echo a > a; echo b > b; chmod +x b; ln -s a l; ln -s nowhere dangling; mkdir e"
    outcome = place.run(script, ["a", "b", "l", "dangling", "e"])
    assert {each.path: each.is_executable for each in outcome.result.output_files} == {
        "a": False,
        "b": True,
    }
    links = {each.path: each.target for each in outcome.result.output_symlinks}
    assert links == {"l": "a", "dangling": "nowhere"}
    assert place.tree(outcome, "e") == {}


def test_output_files_and_output_directories_of_earlier_versions(place: Any) -> None:
    fields = b"".join(
        _reapi._message(field, text)
        for field, text in ((3, b"f"), (3, b"d"), (4, b"d2"), (4, b"f2"), (4, b"l"))
    )
    script = "echo 1 > f; echo 2 > f2; mkdir -p d d2/e; ln -s d l"
    outcome = place.run(script, more=fields)
    assert [each.path for each in outcome.result.output_files] == ["f"]
    assert [each.path for each in outcome.result.output_directories] == ["d2"]
    assert [each.path for each in outcome.result.output_directory_symlinks] == ["l"]


def test_the_whole_input_root_as_an_output_has_the_changes_and_the_rest(place: Any) -> None:
    entries = {"keep": {"a": b"a", "b": {"c": b"c"}}, "gone": b"gone", "edit": b"old"}
    script = "rm gone; echo new > edit; mkdir made; echo x > keep/b/x; chmod -x bin/busybox"
    outcome = place.run(script, [""], entries, directory="")
    tree = place.tree(outcome, "")
    expected = {"keep": None, "keep/a": b"a", "keep/b": None, "keep/b/c": b"c", "keep/b/x": b"x\n"}
    assert {name: each for name, each in tree.items() if not name.startswith("bin")} == {
        **expected,
        "edit": b"new\n",
        "made": None,
    }
    assert tree["bin/sh"] == "busybox"


def test_what_did_not_change_is_neither_read_nor_sent(place: Any) -> None:
    entries = {"d": {f"f{number}": b"%d" % number for number in range(100)}}
    fields = _reapi._number(9, 1)  # output_directory_format: DIRECTORY_ONLY
    root = place.root(entries)
    outcome = place.run("echo x > d/x; echo y > f", ["d", "bin"], root=root, more=fields)
    same, made = outcome.result.output_directories
    assert (same.path, made.path) == ("bin", "d")
    assert not made.tree_digest.hash
    encoded = same.SerializeToString()
    bin_ = place.blobs.directory(place.bin)
    assert encoded.endswith(_reapi.output_directory(bin_))


def test_each_of_several_directories_has_its_own_digest(place: Any) -> None:
    fields = _reapi._number(9, 1)  # output_directory_format: DIRECTORY_ONLY
    names = [f"d{number}" for number in range(20)]
    script = "for d in {}; do echo $d > $d/f; done".format(" ".join(names))
    root = place.root({name: {"before": b""} for name in names})
    outcome = place.run(script, names, root=root, more=fields)
    ends = {each.SerializeToString()[-70:] for each in outcome.result.output_directories}
    assert len(ends) == 20


def test_a_renamed_directory_has_what_it_had_elsewhere(place: Any) -> None:
    entries = {"a": {"x": b"of a"}, "b": {"x": b"of b"}}
    script = "mv a c && mv b a && mv c b"
    outcome = place.run(script, ["a", "b"], entries)
    if outcome.result.exit_code:  # EXDEV, as mv(1) of busybox copies then
        pytest.fail(outcome.result.stderr_raw.decode())
    assert place.tree(outcome, "a") == {"x": b"of b"}
    assert place.tree(outcome, "b") == {"x": b"of a"}


def test_an_output_is_never_found_behind_a_link(place: Any, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"of the host")
    script = f"ln -s {tmp_path} d; ln -s {tmp_path}/out f; mkdir r; echo x > r/x; ln -s r s"
    outcome = place.run(script, ["d/out", "f", "s/x", "r/x"])
    assert [each.path for each in outcome.result.output_files] == ["r/x"]
    assert [each.path for each in outcome.result.output_symlinks] == ["f"]


def test_a_working_directory_that_was_renamed_or_replaced(place: Any) -> None:
    script = "echo x > out; cd ..; mv w elsewhere; ln -s /etc w"
    outcome = place.run(script, ["out"], directory="w")
    assert not outcome.result.output_files
    outcome = place.run(
        "echo x > out; cd ..; mv w v; mkdir w; echo y > w/out", ["out"], directory="w"
    )
    assert place.file(outcome, "out") == b"y\n"


def test_fifos_and_sockets_are_no_outputs_and_nobody_waits_for_them(place: Any) -> None:
    script = "mkfifo p; mkdir d; mkfifo d/p; echo x > d/x"
    began = time.monotonic()
    outcome = place.run(script, ["p", "d"])
    assert time.monotonic() - began < 20
    assert not outcome.result.output_files
    assert place.tree(outcome, "d") == {"x": b"x\n"}


def test_what_keeps_its_owner_out_is_read_all_the_same(place: Any) -> None:
    script = "mkdir -p d/e; echo x > d/e/x; chmod 0 d/e/x d/e d"
    outcome = place.run(script, ["d", "d/e/x"])
    assert outcome.code == "OK", outcome.message
    assert place.tree(outcome, "d") == {"e": None, "e/x": b"x\n"}
    assert place.file(outcome, "d/e/x") == b"x\n"


def test_an_action_that_deletes_all_that_it_can(place: Any) -> None:
    entries = {"in": {"a": b"a"}}
    outcome = place.run("echo o > o; rm -rf in bin/*; cd /; echo gone", ["o", "in"], entries)
    assert outcome.result.stdout_raw == b"gone\n"
    assert [each.path for each in outcome.result.output_files] == ["o"]
    assert place.run("cat in/a", [], entries).result.stdout_raw == b"a"


def test_processes_that_an_action_leaves_are_gone_before_its_outputs_are_read(place: Any) -> None:
    script = "(setsid sh -c 'while true; do echo x >> grows; done' &) ; sleep 0.2; echo end"
    outcome = place.run(script, ["grows"])
    assert outcome.code == "OK"
    size = outcome.result.output_files[0].digest.size_bytes
    assert len(place.file(outcome, "grows")) == size > 0


def test_an_action_that_forks_leaves_nothing_behind(place: Any) -> None:
    mark = f"sandboxlib-{os.getpid()}-{time.monotonic_ns()}"
    script = f"n=0; while [ $n -lt 300 ]; do n=$((n+1)); MARK={mark} sleep 600 & done; echo $n"
    assert place.run(script).result.stdout_raw == b"300\n"
    left = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes():
                left.append(path)
    assert not left


def test_node_properties_are_told_where_they_are_asked_for(place: Any) -> None:
    script = "echo x > f; chmod 640 f; mkdir d; touch -t 200001020304 d/t"
    entries = {"in": {"a": b"a"}}
    outcome = place.run(script, ["f", "d", "in"], entries, properties=["unix_mode", "mtime"])
    (file,) = outcome.result.output_files
    assert file.node_properties.unix_mode.value == 0o640
    assert file.node_properties.mtime.seconds > 1_600_000_000
    from sandboxlib._remote.stubs import re_pb

    for path, mtime in (("d", 946_782_240), ("in", 315_532_800)):
        (told,) = [each for each in outcome.result.output_directories if each.path == path]
        digest = f"{told.tree_digest.hash}/{told.tree_digest.size_bytes}"
        (node,) = re_pb.Tree.FromString(place.blobs[digest]).root.files
        assert node.node_properties.mtime.seconds == mtime
        assert node.node_properties.unix_mode.value == 0o644


@pytest.mark.slow
def test_very_many_outputs_are_refused_and_many_are_not(place: Any) -> None:
    many = "mkdir d; cd d; seq 1 %d | while read n; do : > $n; done"
    outcome = place.run(many % 20_000, ["d"])
    assert len(place.tree(outcome, "d")) == 20_000
    outcome = place.run(many % 201_000, ["d"], timeout=300)
    assert outcome.code == "RESOURCE_EXHAUSTED", outcome.message


def test_large_outputs_go_through_the_store_and_are_inputs_of_the_next(place: Any) -> None:
    outcome = place.run("dd if=/dev/zero of=big bs=1M count=3 2>/dev/null; echo x >> big", ["big"])
    (file,) = outcome.result.output_files
    assert file.digest.size_bytes == 3 * (1 << 20) + 2
    digest = f"{file.digest.hash}/{file.digest.size_bytes}"
    node = _reapi.file_node(b"big", digest)
    bin_ = _reapi.directory_node(b"bin", place.blobs.directory(place.bin))
    root = place.blobs.put(_reapi.directory({b"big": node}, {b"bin": bin_}, {}))
    place.blobs.calls.clear()
    assert place.run("cat big | wc -c", root=root).result.stdout_raw == b"3145730\n"
    assert "download" not in place.blobs.calls


def test_a_hole_is_read_as_one(place: Any) -> None:
    outcome = place.run("dd if=/dev/zero of=f bs=1 count=1 seek=8M 2>/dev/null", ["f"])
    assert outcome.result.output_files[0].digest.size_bytes == (8 << 20) + 1


def test_an_upper_is_bounded_where_the_site_says_so(make_place: Callable[..., Any]) -> None:
    from sandboxlib import Limits

    place = make_place(options={"limits": Limits(changes="4M")})
    outcome = place.run("dd if=/dev/zero of=f bs=1M count=16 2>/dev/null || echo full", ["f"])
    assert outcome.result.stdout_raw == b"full\n"
    assert os.path.isdir(place.executor.store.directory)


@pytest.mark.parametrize(
    "script",
    [
        r"mkdir d; : > d/$(printf '\377')",
        r"mkdir -p d/e/$(printf 'a\377')",
        r"mkdir d; ln -s $(printf '\377') d/l",
        r"mkdir d; ln -s x d/$(printf '\377')",
    ],
    ids=["a file", "a directory", "a target", "a link"],
)
def test_a_name_that_no_message_can_have_is_refused(place: Any, script: str) -> None:
    outcome = place.run(script, ["d"])
    assert outcome.code == "FAILED_PRECONDITION"
    assert "not UTF-8" in outcome.message


def test_an_output_of_holes_takes_no_hours(place: Any) -> None:
    outcome = place.run("truncate -s 3000G out", ["out"])
    assert outcome.code == "RESOURCE_EXHAUSTED"
    assert "64 GiB" in outcome.message


def test_a_stop_ends_the_reading_of_outputs(place: Any) -> None:
    stop = threading.Event()
    timer = threading.Timer(1.0, stop.set)
    timer.start()
    began = time.monotonic()
    outcome = place.run("truncate -s 60G out", ["out"], stop=stop)
    timer.join()
    assert outcome.code == "CANCELLED"
    assert time.monotonic() - began < 20
