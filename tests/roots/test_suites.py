# SPDX-License-Identifier: Apache-2.0
"""The suites of the contract, of leaks and of attacks, over layers in place of their directories.

lib/layered.py makes each root of theirs an Overlay, in pytest and in the hosts that it starts. What
the tests below OTHERWISE expect is of a directory.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from lib.layered import KINDS, VARIABLE
from lib.machine import IS_SANITIZED, python

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TESTS = Path(__file__).resolve().parents[1]

SUITES = [
    "runs/test_contract.py",
    "runs/test_run.py",
    "runs/test_mounts.py",
    "runs/test_sessions.py",
    "runs/test_slots.py",
    "hosts/test_leaks.py",
    "hosts/test_hostile_host.py",
    "hosts/test_map.py",
    "attacks",
]

#: Tests, by parts of their names, that look at what a directory does; and what they look at.
OTHERWISE: dict[str, str] = {}

#: In every Python of theirs, before anything else.
AT_THE_START = "from lib import layered\nlayered.install()\n"


@pytest.mark.skipif(VARIABLE in os.environ, reason="it is one of these runs")
@pytest.mark.skipif(IS_SANITIZED, reason="the same code as in the suites themselves")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_holds_over_layers(suite: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(AT_THE_START)
    path = os.pathsep.join([str(tmp_path), str(TESTS), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, VARIABLE: kind, "PYTHONPATH": path}
    env.pop("SANDBOXLIB_DEEP", None)
    otherwise = " and ".join(f"not {name}" for name in OTHERWISE)
    argv = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", otherwise, str(TESTS / suite)]
    done = subprocess.run(
        [*python(), *argv], env=env, capture_output=True, text=True, check=False, timeout=800
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
