# SPDX-License-Identifier: Apache-2.0
"""The doctor tells each cause once, with a remedy that can be followed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxlib import Overlay, Sandbox
from sandboxlib._cgroups import hierarchies
from sandboxlib._choice import choose, doctor
from sandboxlib._host import machine


def test_no_executor_and_no_cause_is_told_twice() -> None:
    lines = doctor.report().splitlines()
    for name in choose.EXECUTORS:
        assert len([line for line in lines if line.startswith(f"{name}:")]) == 1
    for result in doctor.examine():
        start = next(i for i, line in enumerate(lines) if line.startswith(f"{result['name']}:"))
        end = next(i for i, line in enumerate(lines) if i > start and not line.startswith(" "))
        text = "\n".join(lines[start:end])
        for cause, _ in result["causes"]:
            assert text.count(cause) == 1


def test_it_tells_of_each_executor_that_works_whether_it_takes_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = doctor.report()
    for result in doctor.examine():
        if not result["usable"]:
            assert result["overlay"] == ""
            continue
        assert f"    roots of layers (Overlay, Image): {result['overlay'] or 'work'}\n" in report
        monkeypatch.setenv("SANDBOXLIB_BACKEND", result["name"])
        assert bool(Sandbox(Overlay(tmp_path)).lacks()) == bool(result["overlay"])


def test_an_old_kernel_takes_no_layers_in_a_user_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "kernel_is_older_than", lambda *version: version == (5, 11))
    found = {result["name"]: result for result in doctor.examine()}["user_namespace"]
    if not found["usable"]:
        pytest.skip("there are no user namespaces here")
    assert found["overlay"] == "an Overlay in a user namespace takes Linux 5.11"


def test_it_tells_of_each_controller_whether_it_is_delegated() -> None:
    told = dict(hierarchies.about_controllers())
    assert set(told) == {"memory", "pids", "cpu", "io"}
    report = doctor.report()
    for name, text in told.items():
        assert f"    {name}: {text}" in report
        version, _, rest = text.partition(", ")
        if rest.startswith("delegated: "):
            assert version in ("v1", "v2")
            assert os.access(rest.removeprefix("delegated: "), os.W_OK, effective_ids=True)
        else:
            assert "; " in text  # the remedy


def test_apparmor_is_answered_with_a_profile_for_the_calling_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = machine.read

    def read(path: str) -> str:
        is_it = path.endswith("/apparmor_restrict_unprivileged_userns")
        return "1" if is_it else real(path)

    monkeypatch.setattr(machine, "read", read)
    causes = dict(machine.user_namespace_causes())
    remedy = causes["sysctl kernel.apparmor_restrict_unprivileged_userns is 1"]
    command = remedy.removeprefix("as root: ").partition("; or ")[0]
    printed, _, rest = command.partition(" > ")
    assert rest == "/etc/apparmor.d/sandboxlib && apparmor_parser -r /etc/apparmor.d/sandboxlib"
    done = subprocess.run(["sh", "-c", printed], capture_output=True, text=True, check=True)
    program = os.path.realpath(sys.executable)
    assert done.stdout.splitlines() == [
        "abi <abi/4.0>,",
        "include <tunables/global>",
        f'profile sandboxlib "{program}" flags=(unconfined) {{',
        "  userns,",
        "}",
    ]
    assert shlex.split(printed)[0] == "printf"


def test_what_nobody_packages_is_not_told_to_be_installed() -> None:
    report = doctor.report()
    if "there is no linux-user-chroot" in report:
        assert "no current distribution has it" in report
