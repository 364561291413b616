# SPDX-License-Identifier: Apache-2.0
"""Runs tests of the interpreter's own library, test.test_subprocess and some of test.test_asyncio,
over Sandbox.start and Sandbox.start_async.

It is a program of its own, because it replaces names in the modules of those tests:

    python -m lib.cpython MODULE CLASS TEST...      prints {test: "ok", or what went wrong} as JSON

The commands run in the whole root of the caller, with its streams, environment and directory, as a
child of subprocess.Popen does. An argument of Popen that start() has not raises NotHere.
"""

from __future__ import annotations

import asyncio
import faulthandler
import importlib.util
import json
import os
import sys
import traceback
import types
import unittest
from typing import Any

from sandboxlib import Mount, Policy, Sandbox

LONGEST = 240  # seconds
DEVNULL = -3  # subprocess.DEVNULL
BOX = Sandbox(
    "/",
    network="undefined",
    ipc="undefined",
    filesystem_writable_paths="all",
    tmp="root",
    devices="root",
    policy=Policy(capabilities="all", no_new_privs=False, seccomp="none"),
    extra_mounts=[Mount.bind("/dev", "/dev")],
)
#: The arguments of Popen that change nothing here: a command never inherits other descriptors, has
#: default signals, and a new session.
NO_DIFFERENCE = {"close_fds", "restore_signals", "start_new_session"}
TAKEN = {"args", "executable", "stdin", "stdout", "stderr", "cwd", "env", "pass_fds"}


class NotHere(unittest.SkipTest):
    """The test needs something of Popen that start() has not."""


def options_of(given: dict[str, Any]) -> dict[str, Any]:
    """The options of start() for keyword arguments of Popen."""
    if others := given.keys() - TAKEN - NO_DIFFERENCE:
        raise NotHere(f"start() has no {', '.join(sorted(others))}")
    env = given.get("env")
    options: dict[str, Any] = {
        "cwd": os.getcwd() if given.get("cwd") is None else given["cwd"],
        "env": dict(os.environ) if env is None else dict(env),
        "pass_fds": tuple(given.get("pass_fds", ())),
    }
    if given.get("executable") is not None:
        options["executable"] = given["executable"]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        value = given.get(name)
        value = {None: number, DEVNULL: None}.get(value, value) if _is_simple(value) else value
        options[name] = value
    return options


def _is_simple(value: object) -> bool:
    return value is None or isinstance(value, int)


def start(args: Any, *rest: Any, **given: Any) -> Any:
    """A Process, by a call of subprocess.Popen."""
    if rest:
        raise NotHere("start() has no bufsize")
    return BOX.start(args, **options_of(given))


def a_copy_of_subprocess() -> types.ModuleType:
    """subprocess, whose run(), call() and check_output() start a Process."""
    spec = importlib.util.find_spec("subprocess")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    import subprocess

    # Whatever Process raises is an exception of the module that everybody has.
    for name in ("SubprocessError", "TimeoutExpired", "CalledProcessError"):
        setattr(module, name, getattr(subprocess, name))
    module.Popen = start  # type: ignore[attr-defined]
    return module


# ---- asyncio -----------------------------------------------------------------------------------


class _Transport:
    """As much of the transport of a subprocess as the tests look at."""

    def __init__(self, process: Any) -> None:
        self._process = process

    def get_pipe_transport(self, fd: int) -> Any:
        if fd == 0:
            return self._process.stdin.transport
        return getattr(self._process, ("", "stdout", "stderr")[fd])._transport


async def create_subprocess_exec(
    program: Any, *args: Any, limit: int | None = None, **given: Any
) -> Any:
    """asyncio.create_subprocess_exec over Sandbox.start_async."""
    if {"text", "encoding", "errors"} & given.keys():
        raise NotHere("start_async() has no text mode")
    limits = {} if limit is None else {"limit": limit}
    process = BOX.start_async([program, *args], **options_of(given), **limits)
    await process.__aenter__()
    process._transport = _Transport(process)  # type: ignore[attr-defined]
    return process


async def create_subprocess_shell(command: str, **given: Any) -> Any:
    given.pop("creationflags", None)
    return await create_subprocess_exec("/bin/sh", "-c", command, **given)


class _Overlaid(types.ModuleType):
    """A module in which some names are others."""

    def __init__(self, module: types.ModuleType, **others: Any) -> None:
        super().__init__(module.__name__)
        self.__dict__.update(others, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def overlay_asyncio(module: Any) -> None:
    """Let the tests of a module start processes through start_async."""
    ours: dict[str, Any] = {
        "create_subprocess_exec": create_subprocess_exec,
        "create_subprocess_shell": create_subprocess_shell,
    }
    module.asyncio = _Overlaid(asyncio, **ours)
    if hasattr(module, "subprocess"):
        module.subprocess = _Overlaid(asyncio.subprocess, **ours)


def case_of_mixin(module: Any, loop: str) -> type[unittest.TestCase]:
    """SubprocessMixin over an event loop of our choice, with no child watcher."""

    class Case(module.SubprocessMixin, unittest.TestCase):  # type: ignore[misc]
        def setUp(self) -> None:
            if loop == "uvloop":
                import uvloop

                self.loop = uvloop.new_event_loop()
            else:
                self.loop = asyncio.new_event_loop()
            self.addCleanup(self.loop.close)

    return Case


# ---- the program -------------------------------------------------------------------------------


def _case(module_name: str, class_name: str) -> Any:
    module: Any = importlib.import_module(module_name)
    if module_name == "test.test_subprocess":
        module.subprocess = a_copy_of_subprocess()
        module.setUpModule()
        return getattr(module, class_name)
    overlay_asyncio(module)
    name, _, loop = class_name.partition("/")
    return case_of_mixin(module, loop) if name == "SubprocessMixin" else getattr(module, name)


def _run(test: unittest.TestCase) -> str:
    result = unittest.TestResult()
    try:
        test.run(result)
    except KeyboardInterrupt:
        return traceback.format_exc()
    if result.skipped:
        return f"skipped: {result.skipped[0][1]}"
    wrong = [*result.failures, *result.errors]
    return "ok" if not wrong else wrong[0][1]


def main(module_name: str, class_name: str, *names: str) -> None:
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    out = os.dup(1)
    os.dup2(2, 1)  # the commands inherit it
    case = _case(module_name, class_name)
    results = {name: _run(case(name)) for name in names if hasattr(case, name)}
    with open(out, "w") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
