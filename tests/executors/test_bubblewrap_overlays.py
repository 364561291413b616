# SPDX-License-Identifier: Apache-2.0
"""A root of layers by bwrap, which takes them from version 0.11 on."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from lib.machine import needs_root

from sandboxlib import (
    Limits,
    Mount,
    Overlay,
    Policy,
    Result,
    Sandbox,
    SetupError,
    UnsupportedError,
    bubblewrap,
)
from sandboxlib._executors import bwrap_overlay

pytest_plugins = ["lib.bwraps"]


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    """A layer to lie over a root."""
    layer = tmp_path / "upper layer, with a comma: and a colon"
    (layer / "etc").mkdir(parents=True)
    (layer / "etc" / "two").write_text("of the second\n")
    return layer


def sh(box: Sandbox, script: str) -> Result:
    return bubblewrap.run_in(box, ["sh", "-c", script])


def content(*places: Path) -> list[tuple[str, int, int]]:
    """What is there, and when it changed."""
    found = [(path, path.lstat()) for place in places for path in [place, *place.rglob("*")]]
    return sorted((str(path), status.st_mode, status.st_ctime_ns) for path, status in found)


@pytest.mark.usefixtures("newer")
def test_layers_are_one_tree_which_each_run_finds_as_it_is(rootfs: Path, upper: Path) -> None:
    (rootfs / "etc" / "one").write_text("of the first\n")
    (rootfs / "etc" / "two").write_text("hidden\n")
    before = content(rootfs, upper)
    script = "cat /etc/one /etc/two; rm /etc/one; echo x > /etc/two; mkdir /new; ls /etc /new"
    with Sandbox(Overlay(rootfs, upper)) as box:
        for _ in range(2):
            assert sh(box, script) == (
                0,
                b"of the first\nof the second\n/etc:\ntwo\n\n/new:\n",
                b"",
            )
    assert content(rootfs, upper) == before


@pytest.mark.usefixtures("newer")
def test_a_root_of_layers_can_be_read_only(rootfs: Path, upper: Path) -> None:
    with Sandbox(Overlay(rootfs, upper), filesystem_writable_paths="none") as box:
        result = sh(box, "touch /tmp/x && cat /etc/two && ! touch /x")
    assert (result.exit, result.out) == (0, b"of the second\n")
    assert result.err == b"touch: /x: Read-only file system\n"


@pytest.mark.usefixtures("newer")
def test_what_a_mount_lies_on_is_made_in_no_layer(
    rootfs: Path, upper: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("bound\n")
    (upper / "link").symlink_to("/made")
    mounts = [
        Mount.bind(tmp_path / "file", "/link/deep/file", read_only=True),
        Mount.tmpfs("/some/where"),
        Mount.bind(upper / "etc", "/again", read_only=True),  # the same directory as a source
    ]
    before = content(rootfs, upper)
    with Sandbox(Overlay(rootfs, upper), extra_mounts=mounts) as box:
        script = "cat /made/deep/file /again/two; touch /some/where/x; stat -c %a /some /made"
        result = sh(box, script)
    assert result == (0, b"bound\nof the second\n755\n755\n", b"")
    assert content(rootfs, upper) == before


@pytest.mark.usefixtures("newer")
def test_the_root_directory_has_the_mode_of_the_uppermost_layer(rootfs: Path, upper: Path) -> None:
    upper.chmod(0o750)
    with Sandbox(Overlay(rootfs, upper)) as box:
        assert sh(box, "stat -c %a /").out == b"750\n"


@needs_root
@pytest.mark.usefixtures("newer")
def test_no_device_of_a_layer_opens(rootfs: Path) -> None:
    os.mknod(rootfs / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    script = "head -c 1 /zero | wc -c"
    with Sandbox(Overlay(rootfs)) as box:
        assert sh(box, script).out == b"0\n"
    with Sandbox(Overlay(rootfs), devices="root") as box:  # a control
        assert sh(box, script).out == b"1\n"


@pytest.mark.usefixtures("newer")
@pytest.mark.parametrize("program", ["/bin/none", "/etc/two", "/bin/script"])
def test_a_program_that_does_not_run_is_told(rootfs: Path, upper: Path, program: str) -> None:
    (rootfs / "bin" / "script").write_text("echo a shell ran it\n")
    (rootfs / "bin" / "script").chmod(0o755)
    with Sandbox(Overlay(rootfs, upper)) as box, pytest.raises(SetupError) as caught:
        bubblewrap.run_in(box, [program])
    assert caught.value.step == "exec"


@pytest.mark.usefixtures("newer")
def test_what_is_missing_or_no_directory_is_no_layer(rootfs: Path) -> None:
    for bad in (rootfs / "none", rootfs / "bin" / "busybox"):
        with Sandbox(Overlay(rootfs, bad)) as box, pytest.raises(SetupError) as caught:
            sh(box, "true")
        assert (caught.value.step, caught.value.filename) == ("root", str(bad))


@pytest.mark.usefixtures("newer")
@pytest.mark.parametrize("by_link", [False, True])
def test_a_layer_is_found_by_its_descriptor(
    rootfs: Path, upper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_link: bool
) -> None:
    # Another run puts something else in a layer's place, as soon as it has been opened.
    shutil.copytree(upper, tmp_path / "other")
    (tmp_path / "other" / "etc" / "two").write_text("the host's\n")
    real = bwrap_overlay.options

    def swap(*args: Any) -> list[str]:
        upper.rename(tmp_path / "away")
        if by_link:
            upper.symlink_to(tmp_path / "other")
        else:
            (tmp_path / "other").rename(upper)
        return real(*args)

    monkeypatch.setattr(bwrap_overlay, "options", swap)
    with Sandbox(Overlay(rootfs, upper)) as box:
        if by_link:  # bwrap itself follows it, and finds only what is on the stage
            with pytest.raises(SetupError, match="overlay"):
                sh(box, "cat /etc/two")
        else:
            assert sh(box, "cat /etc/two").out == b"of the second\n"


@pytest.mark.usefixtures("newer")
@pytest.mark.parametrize(
    ("words", "options", "told"),
    [
        ({"upper": "/tmp/none"}, {}, "upper='/tmp/none'"),
        ({"storage": "disk"}, {}, "storage='disk'"),
        ({}, {"filesystem_writable_paths": ["/etc"]}, "writable paths"),
        ({}, {"limits": Limits(changes="1M")}, "Limits.changes"),
    ],
)
def test_what_it_cannot_promise_is_refused(
    rootfs: Path, words: dict[str, Any], options: dict[str, Any], told: str
) -> None:
    box = Sandbox(Overlay(rootfs, **words), **options)
    assert told in bubblewrap.refusals(box)[0]
    with pytest.raises(UnsupportedError, match=told):
        bubblewrap.run_in(box, ["true"])


@pytest.mark.usefixtures("newer")
def test_layers_that_lie_in_each_other_are_refused(rootfs: Path, tmp_path: Path) -> None:
    for layers, mounts in (
        ([rootfs, rootfs / "etc"], []),
        ([rootfs], [Mount.bind(tmp_path, "/mnt")]),
        (["/"], []),
    ):
        with (
            Sandbox(Overlay(*layers), extra_mounts=mounts) as box,
            pytest.raises(UnsupportedError, match="the layer"),
        ):
            bubblewrap.run_in(box, ["true"])


@pytest.mark.usefixtures("newer")
def test_changes_are_refused(rootfs: Path) -> None:
    with (
        Sandbox(Overlay(rootfs)) as box,
        pytest.raises(UnsupportedError, match="changes"),
    ):
        bubblewrap.run_in(box, ["true"], changes="keep")


def test_an_older_one_is_refused_by_name(rootfs: Path, bwrap: str) -> None:
    box = Sandbox(Overlay(rootfs))
    told = subprocess.run([bwrap, "--help"], capture_output=True, text=True, check=True).stdout
    if "--tmp-overlay" in told:
        assert bubblewrap.run_in(box, ["true"]).exit == 0
        return
    assert "install bubblewrap 0.11" in bubblewrap.refusals(box)[0]
    with pytest.raises(UnsupportedError, match="takes no layers"):
        bubblewrap.run_in(box, ["true"])


def test_a_root_of_nothing_is_furnished_by_mounts(rootfs: Path, bwrap: str) -> None:
    mounts = [Mount.bind(rootfs / "bin", "/usr/bin", read_only=True), Mount.tmpfs("/tmp")]
    policy = Policy(capabilities="none")
    script = "ls /; touch /x /tmp/x; ! touch /usr/bin/x; stat -c %a / /usr"
    with Sandbox(Overlay(), extra_mounts=mounts, policy=policy) as box:
        for _ in range(2):
            result = sh(box, script)
            assert (result.exit, result.out) == (0, b"tmp\nusr\n755\n755\n")
        read_only = box.replace(filesystem_writable_paths="none")
        assert sh(read_only, "touch /tmp/x; ! touch /x").exit == 0
