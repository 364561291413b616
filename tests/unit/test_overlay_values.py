# SPDX-License-Identifier: Apache-2.0
"""Overlay as a value, and what a Sandbox and a Command say about one."""

import os
import pickle
from pathlib import Path

import pytest

from sandboxlib import Command, Limits, Overlay, Sandbox, SpecError, SpecTypeError


def test_an_overlay_keeps_its_layers_as_absolute_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    overlay = Overlay("base", Path("/srv/more"), upper="work", storage=Path("big"))
    assert overlay.layers == (f"{tmp_path}/base", "/srv/more")
    assert (overlay.upper, overlay.busy) == (f"{tmp_path}/work", "wait")
    assert os.fspath(overlay.storage) == f"{tmp_path}/big"


def test_an_overlay_is_a_value():
    overlay = Overlay("/a", "/b", upper="/u", busy="refuse", storage=Path("/s"))
    assert overlay == Overlay("/a", "/b", upper="/u", busy="refuse", storage=Path("/s"))
    assert overlay != Overlay("/b", "/a", upper="/u", busy="refuse", storage=Path("/s"))
    assert pickle.loads(pickle.dumps(overlay)) == overlay
    assert eval(repr(overlay)) == overlay
    assert overlay.replace(layers=["/c"], upper=None).layers == ("/c",)
    assert len({overlay, Overlay("/a"), Overlay("/a")}) == 2


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Overlay(3), SpecTypeError, "neither a directory nor a Layer"),
        (lambda: Overlay(["/a"]), SpecTypeError, r"write Overlay\(\*layers\)"),
        (lambda: Overlay(""), SpecError, "a layer is empty"),
        (lambda: Overlay("/a", uper="/b"), SpecTypeError, "did you mean upper"),
        (lambda: Overlay("/a", busy="no"), SpecError, "wait, refuse"),
        (lambda: Overlay("/a", storage="disc"), SpecError, "memory, disk"),
        (lambda: Overlay("/a", storage="/x"), SpecError, r"storage=Path\('/x'\)"),
        (lambda: Overlay(*["/a"] * 501), SpecError, "500"),
        (lambda: Sandbox(Overlay("/a"), mounts="undefined"), SpecError, "mounts='isolated'"),
        (
            lambda: Sandbox(Overlay("/a", upper="/u"), processes="undefined"),
            SpecError,
            "processes='isolated'",
        ),
        (lambda: Sandbox("/", limits=Limits(changes="1M")), SpecError, "an Overlay"),
        (
            lambda: Sandbox(Overlay("/a", storage="disk"), limits=Limits(changes=1)),
            SpecError,
            "in memory",
        ),
        (lambda: Command("true", changes="yes"), SpecError, "drop, keep, on-failure"),
    ],
)
def test_mistakes_are_told_at_once(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_all_of_an_overlay_is_writable_unless_the_sandbox_says_otherwise():
    assert Sandbox(Overlay("/a")).filesystem_writable_paths == "all"
    assert Sandbox(Overlay("/a"), filesystem_writable_paths="none").filesystem_writable_paths == (
        "none"
    )
    assert Sandbox(Overlay("/a")).replace(root="/").filesystem_writable_paths == "none"
