# SPDX-License-Identifier: Apache-2.0
"""Traces of commands whose root is an Overlay."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.machine import require

from sandboxlib import File, Mount, Overlay, Sandbox, Store, Trace, Tree, UnsupportedError

pytest_plugins = ["lib.ways"]


def traced(root: Path, line: str, **options: Any) -> Trace:
    (root / "etc/busybox.conf").touch()
    box = Sandbox(Overlay(root))
    try:
        return box.trace(["/bin/sh", "-c", line], **options)
    except UnsupportedError as error:
        require(False, str(error))
        raise


def test_layers_and_what_the_run_wrote_are_looked_up_in(executor: str, rootfs: Path) -> None:
    (rootfs / "etc/lower").write_text("")
    line = "cat /etc/lower /etc/a; echo > /etc/b; cat /etc/b; rm /etc/lower; cat /etc/lower"
    trace = traced(rootfs, line)
    assert trace.missing == ("/etc/a",)
    assert {"/etc/lower", "/etc/b"} <= set(trace.opened)
    assert (rootfs / "etc/lower").exists()


def test_an_empty_root_lacks_all_that_is_not_mounted(executor: str, rootfs: Path) -> None:
    box = Sandbox(Overlay(), extra_mounts=[Mount.bind(rootfs / "bin", "/bin")])
    try:
        trace = box.trace(["/bin/cat", "/etc/nowhere", "/bin/cat"], stdout=None)
    except UnsupportedError as error:
        require(False, str(error))
    assert set(trace.missing) - {"/etc/busybox.conf"} == {"/etc/nowhere"}
    assert "/bin/cat" in trace.executed


def with_inputs(root: Path, store: Path, line: str, inputs: Mapping[str, Any]) -> Trace:
    (root / "etc/busybox.conf").touch()
    box = Sandbox(Overlay(root), store=Store(store))
    try:
        return box.trace(["/bin/sh", "-c", line], inputs=inputs, cwd="/src")
    except UnsupportedError as error:
        require(False, str(error))
        raise


def test_inputs_that_were_never_opened_are_unused(
    executor: str, rootfs: Path, tmp_path: Path
) -> None:
    (tmp_path / "include/sys").mkdir(parents=True)
    (tmp_path / "include/sys/b.h").write_text("")
    (tmp_path / "include/c.h").write_text("")
    (rootfs / "usr/lib").mkdir(parents=True)
    (rootfs / "lib").symlink_to("usr/lib")
    inputs = {
        "a.c": b"",
        "/src/unused.c": b"",
        "/src/include": Tree(tmp_path / "include"),
        "/src/nobody": Tree(tmp_path / "include"),
        "/src/run": File(b"#!/bin/sh\n", executable=True),
        "/lib/used": b"",
        "/lib/unused": b"",
        "/usr/lib/other": b"",
    }
    line = "cat a.c include/sys/b.h d.h /usr/lib/used /lib/other; ./run; [ -e unused.c ]"
    trace = with_inputs(rootfs, tmp_path / "store", line, inputs)
    assert trace.unused == ("/lib/unused", "/src/nobody", "/src/unused.c")
    assert trace.missing == ("/src/d.h",)
    assert "declared, and never opened:\n    /lib/unused\n" in str(trace)


def test_an_undeclared_header_is_told_by_its_name(
    executor: str, rootfs: Path, tmp_path: Path
) -> None:
    inputs = {"/src/a.c": b"a", "/src/c.c": b"c"}
    trace = with_inputs(rootfs, tmp_path / "store", "cat a.c b.h c.c", inputs)
    assert (trace.missing, trace.unused) == (("/src/b.h",), ())


def test_changes_are_kept_of_a_traced_run(executor: str, rootfs: Path) -> None:
    trace = traced(rootfs, "echo > /etc/new; cat /etc/nowhere", changes="keep")
    with trace.result.changes as changes:
        assert "/etc/new" in [os.fsdecode(change.path) for change in changes]
    assert trace.missing == ("/etc/nowhere",)
