# SPDX-License-Identifier: Apache-2.0
"""Hosts: programs that use sandboxlib, as Python processes of their own.

A host knows `root` and `mode`, the words of a Sandbox; {"fresh": True} in it makes each run of a
Sandbox one without a slot, {"map": True} a map of one command. `many` is that of lib.machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PROLOGUE = """
import ctypes, gc, itertools, json, os, shutil, signal, sys, threading, time
import sandboxlib
from sandboxlib import (
    CAPTURE, STDOUT, Mount, Policy, Sandbox, SetupError, SpecError, StatusLost, run_sandbox)
OPEN = {"network": "undefined", "filesystem_writable_paths": "all", "tmp": "root"}
open_box = lambda root, **words: Sandbox(root, **{**OPEN, **words})  # as in lib.boxes
root, mode = sys.argv[1], json.loads(sys.argv[2])
if mode.pop("fresh", False):
    leased = Sandbox.run
    Sandbox.run = lambda *words, **more: leased(*words, **{"fresh": True, **more})

def many(quick, deep):
    return deep if "SANDBOXLIB_DEEP" in os.environ else quick

def by_map(box, command, **words):
    from sandboxlib._runs import run as _process
    if threading.get_ident() in _process.stops:  # a thread of a map, which runs what has no slot
        return run_itself(box, command, **words)
    (found,) = box.map([command], jobs=2, on_failure="continue", **words)
    if isinstance(found, BaseException):
        raise found
    return found
run_itself = Sandbox.run
if mode.pop("map", False):
    from sandboxlib._concurrent import map as _map  # not first of all in a signal handler
    Sandbox.run = by_map
"""


def command(script: str, root: Path, mode: object = None, *more: str) -> list[str]:
    """The words that start a host."""
    return [sys.executable, "-c", PROLOGUE + script, str(root), json.dumps(mode or {}), *more]


def run(script: str, root: Path, mode: object = None, wrapper: Any = (), **words: Any) -> str:
    """What a host prints; it has to succeed."""
    done = subprocess.run(
        [*wrapper, *command(script, root, mode)],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
        **words,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
