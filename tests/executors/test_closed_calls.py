# SPDX-License-Identifier: Apache-2.0
"""Behind a filter of the host's, or without a capability, the message names the call or capability
that is missing, and who can give it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from lib.machine import needs_root, not_sanitized, python

import sandboxlib

LIB = Path(__file__).resolve().parents[1]
SCRIPT = """
import os
from sandboxlib import Limits, Policy, Sandbox, SandboxError
os.environ["SANDBOXLIB_BACKEND"] = {executor!r}
try:
    Sandbox("/", {options}).run(["true"], cwd="/", timeout=60)
    print("it ran")
except SandboxError as error:
    print(error)
"""
#: A call that is closed: the step that takes it, options of the Sandbox, and what goes without.
CALLS = {
    "sethostname": ("hostname", "hostname='x'", "no hostname="),
    "mount": ("private", "", ""),
    "move_mount": ("attach", "", ""),
    "open_tree": ("root", "", ""),
    "mount_setattr": ("read_only", "", ""),
    "fsopen": ("source", "", ""),
    "openat2": ("target", "", ""),
    "pivot_root": ("pivot", "", "mounts='undefined'"),
    "personality": ("limits", "personality='linux32'", "no personality="),
    "setsid": ("session", "", ""),
    "capset": ("capabilities", "", ""),
    "seccomp": ("seccomp", "", ""),
}


def told(executor: str, options: str, *front: str) -> str:
    script = SCRIPT.format(executor=executor, options=options)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(LIB), str(LIB.parent)])}
    argv = [*front, "-c", script]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@not_sanitized
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("executor", ["chroot", "user_namespace"])
def test_a_call_that_a_filter_around_the_caller_closes_is_named(executor: str, call: str) -> None:
    if reason := sandboxlib.get_executor(executor).why_not():
        pytest.skip(reason)
    step, options, instead = CALLS[call]
    text = told(executor, options, *python(), "-m", "lib.closed", call)
    assert f"(EPERM, step {step}); a seccomp filter around the caller seems to close " in text
    assert call in text.partition("seems to close")[2].partition(":")[0]
    assert "docker run --security-opt seccomp=unconfined" in text
    assert instead in text


@not_sanitized
@pytest.mark.parametrize("call", ["setsid", "mount", "openat2"])
def test_bubblewrap_names_the_filter_as_well(call: str) -> None:
    if reason := sandboxlib.get_executor("bubblewrap").why_not():
        pytest.skip(reason)
    text = told("bubblewrap", "", *python(), "-m", "lib.closed", call)
    assert "EPERM" in text
    assert "seccomp=unconfined" in text


@needs_root
@pytest.mark.parametrize(
    ("capability", "options", "step"),
    [
        ("net_admin", "", "loopback"),
        ("setpcap", "", "capabilities"),
        ("sys_admin", "", "clone"),
        ("setuid", "user=1000", "user"),
        ("setgid", "user=1000", "user"),
    ],
)
def test_a_capability_that_root_lacks_is_named(capability: str, options: str, step: str) -> None:
    front = ["setpriv", f"--bounding-set=-{capability}", *python()]
    cause = f"(EPERM, step {step}); root lacks CAP_{capability.upper()}: docker run --cap-add"
    assert cause in told("chroot", options, *front)


@needs_root
def test_a_capability_that_the_caller_cannot_give_is_named() -> None:
    front = ["setpriv", "--bounding-set=-net_raw,-mknod", *python()]
    text = told("chroot", "policy=Policy(capabilities=['net_raw', 'chown', 'mknod'])", *front)
    assert "step capabilities); the caller lacks net_raw, mknod itself" in text
