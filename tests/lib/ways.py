# SPDX-License-Identifier: Apache-2.0
"""Every way to run a command, over both executors that need no other program.

A pytest plugin: `pytest_plugins = ["lib.ways"]`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib.boxes import open_box
from lib.machine import require

import sandboxlib
from sandboxlib import Command, Result, Sandbox, SandboxError


def _map(box: Sandbox, command: list[str]) -> Result:
    result: Result = list(box.map([command] * 3, jobs=2, on_failure="continue"))[-1]
    return result


def _start(box: Sandbox, command: list[str]) -> Result:
    with box.start(command) as process:
        process.communicate(timeout=60)
        return process.result()


def _slot(box: Sandbox, command: list[str]) -> Result:
    box.run(command, cwd="/")
    return box.run(command, cwd="/")


WAYS: dict[str, Callable[[Sandbox, list[str]], Result]] = {
    "fresh": lambda box, command: box.run(command, cwd="/", fresh=True),
    "slot": _slot,
    "map": _map,
    "start": _start,
    "async": lambda box, command: asyncio.run(box.run_async(command, cwd="/")),
}


def _in_session(box: Sandbox, command: list[str]) -> Result:
    with box.session() as session:
        return session.run(command, cwd="/")


#: Where a root keeps what a run writes only as long as the place that it runs in.
ROOT_WAYS = {**WAYS, "session": _in_session}


def _started(box: Sandbox, command: Command) -> Result:
    with box.start(command) as process:
        outputs = [file and file.read() for file in (process.stdout, process.stderr)]
        return Result(process.wait(), outputs[0], outputs[1])


def _second(box: Sandbox, command: Command) -> Result:
    box.run(["true"], cwd="/")
    return box.run(command)


#: The same for a Command.
COMMAND_WAYS: dict[str, Callable[[Sandbox, Command], Result]] = {
    "fresh": lambda box, command: box.run(command, fresh=True),
    "slot": _second,
    "map": lambda box, command: list(box.map([command] * 2, 2, on_failure="continue"))[-1],  # type: ignore[return-value]
    "start": _started,
    "async": lambda box, command: asyncio.run(box.run_async(command)),
}


@pytest.fixture(params=["chroot", "user_namespace"])
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One of both executors, which the test's sandboxes take."""
    if request.param == "chroot" and os.geteuid() != 0:
        pytest.skip("the native executor takes root")
    reason = sandboxlib.get_executor(request.param).why_not()
    require(not reason, f"{request.param}: {reason}")
    monkeypatch.setenv("SANDBOXLIB_BACKEND", request.param)
    return str(request.param)


@pytest.fixture(params=ROOT_WAYS)
def way(request: pytest.FixtureRequest) -> Callable[[Sandbox, list[str]], Result]:
    return ROOT_WAYS[request.param]


@pytest.fixture(params=WAYS)
def run(request: pytest.FixtureRequest, executor: str) -> Callable[..., Result]:
    way = WAYS[request.param]

    def call(root: Path | str, command: list[str], **options: Any) -> Result:
        with open_box(root, **options) as box:
            return way(box, command)

    return call


@pytest.fixture(params=COMMAND_WAYS)
def run_command(
    request: pytest.FixtureRequest, executor: str
) -> Callable[[Path | str, Command], Result]:
    way = COMMAND_WAYS[request.param]

    def call(root: Path | str, command: Command) -> Result:
        with open_box(root) as box:
            result = way(box, command)
        if isinstance(result, SandboxError):  # a map that goes on yields it
            raise result
        return result

    return call
