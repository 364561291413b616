# SPDX-License-Identifier: Apache-2.0
"""Hosts: programs that use sandboxlib, as Python processes of their own.

A host knows `root` and `mode`, the keyword arguments of a Sandbox. {"fresh": True} in it makes each
run of a Sandbox a fresh one; {"map": True} makes each run a map of one command. `many` is that of
lib.machine, and threads() counts those of the host.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

MODES: dict[str, dict[str, Any]] = {
    "reaper": {},
    "init=False": {"init": False},
    "fresh": {"fresh": True},
    "map": {"map": True},
    "processes=undefined": {"processes": "undefined"},
}

PROLOGUE = """
import ctypes, gc, itertools, json, os, shutil, signal, sys, threading, time
import sandboxlib
from sandboxlib import (
    CAPTURE, STDOUT, Mount, Policy, Sandbox, SetupError, SpecError, StatusLost, run_sandbox)
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **options: Sandbox(root, **{**OPEN, **options})  # as in lib.boxes
root, mode = sys.argv[1], json.loads(sys.argv[2])
if mode.pop("fresh", False):
    run_in_slot = Sandbox.run
    Sandbox.run = lambda *args, **options: run_in_slot(*args, **{"fresh": True, **options})

def many(quick, deep):
    return deep if "SANDBOXLIB_DEEP" in os.environ else quick

def threads():
    "How many there are, once none is ending: join() is over a little before the thread is gone."
    end = time.monotonic() + 30
    while (count := len(os.listdir("/proc/self/task"))) > 1 and time.monotonic() < end:
        time.sleep(0.005)
    return count

def by_map(box, command, **options):
    from sandboxlib._runs import run as _process
    if _process.this_thread.stop is not None:  # a thread of a map, which runs what has no slot
        return run_itself(box, command, **options)
    (result,) = box.map([command], jobs=2, on_failure="continue", **options)
    if isinstance(result, BaseException):
        raise result
    return result
run_itself = Sandbox.run
if mode.pop("map", False):
    from sandboxlib._concurrent import map as _map  # not first of all in a signal handler
    Sandbox.run = by_map
"""


def command(script: str, root: Path, mode: object = None, *args: str) -> list[str]:
    """The argv that starts a host. args: further arguments for it."""
    return [sys.executable, "-c", PROLOGUE + script, str(root), json.dumps(mode or {}), *args]


def run(script: str, root: Path, mode: object = None, wrapper: Any = (), **options: Any) -> str:
    """Run a host, which must succeed, and return its output."""
    done = subprocess.run(
        [*wrapper, *command(script, root, mode)],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
        **options,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
