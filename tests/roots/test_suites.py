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
    "attacks/test_attacks.py",
    "attacks/test_bounded.py",
    "attacks/test_confinement.py",
    "attacks/test_session_attacks.py",
]
#: Over these alone the suites run that are not about the kind of upper.
OTHER_KINDS = ["runs/test_contract.py", "hosts/test_leaks.py"]

#: Tests that look at what only a directory has, and what that is.
OTHERWISE = {
    "test_sandboxes_differ_by_every_word": "writable paths are none by default",
    "test_every_byte_of_the_output_is_returned": "box.root is a path",
    "test_megabytes_from_several_at_once_are_whole": "box.root is a path",
    "test_a_read_only_root_has_holes_where_asked": "what is written there is in the directory",
    "test_a_read_only_root_is_so_on_every_mount_below_it": "mounts below it are seen",
    "test_a_hole_may_be_a_file_or_lie_behind_a_link_that_stays_inside": "the same",
    "test_what_the_host_mounts_later_is_seen": "mounts below it are seen",
    "test_what_the_command_put_beside_a_mount_stays": "mount points are made in it",
    "test_concurrent_runs_share_a_mount_point_that_is_missing": "mount points are made in it",
    "test_the_next_run_removes_what_a_killed_host_left": "mount points are made in it",
    "test_a_mount_point_that_cannot_be_made_is_told": "mount points are made in it",
    "test_a_stub_that_somebody_locks_does_not_hold_the_caller": "mount points are made in it",
    "test_a_second_proc_in_the_root_ends_the_lease_of_it": "a run's directory is there later",
    "test_an_interrupt_at_any_point_of_a_look_leaves_nothing": "the host can look into it",
}

#: The same where uppers are on disk: between open(2) and the next bytecode a signal handler may
#: raise, as ARCHITECTURE.md says of stubs.
OTHERWISE_ON_DISK = ("test_an_interrupt_at_any_point",)

#: In every Python of theirs, before anything else.
AT_THE_START = "from lib import layered\nlayered.install()\n"


@pytest.mark.skipif(VARIABLE in os.environ, reason="it is one of these runs")
@pytest.mark.skipif(IS_SANITIZED, reason="the same code as in the suites themselves")
@pytest.mark.parametrize(
    ("suite", "kind"),
    [(suite, kind) for kind in KINDS for suite in (SUITES if kind == "one" else OTHER_KINDS)],
)
def test_a_suite_holds_over_layers(suite: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(AT_THE_START)
    path = os.pathsep.join([str(tmp_path), str(TESTS), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, VARIABLE: kind, "PYTHONPATH": path}
    env.pop("SANDBOXLIB_DEEP", None)
    names = (*OTHERWISE, *(OTHERWISE_ON_DISK if kind == "disk" else ()), "bubblewrap")
    otherwise = " and ".join(f"not {name}" for name in names)
    argv = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", otherwise, str(TESTS / suite)]
    done = subprocess.run(
        [*python(), *argv], env=env, capture_output=True, text=True, check=False, timeout=800
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
