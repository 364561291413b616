# SPDX-License-Identifier: Apache-2.0
"""Traces of commands whose root is an Overlay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lib.machine import require

from sandboxlib import Mount, Overlay, Sandbox, Trace, UnsupportedError

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
