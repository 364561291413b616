# SPDX-License-Identifier: Apache-2.0
"""Tests beside each other (pytest -n): which share a process of pytest, one after the other.

Others may run at the same time as any test. So a test looks at what it made itself, and gives its
bounds slack; what has to look at the whole machine stands in one of these groups.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

#: The start of names of tests that look at the same part of the machine.
TOGETHER = ("tests/cgroups/", "tests/cli/test_demo.py", "tests/cli/test_bench.py")


class Scheduling(LoadScopeScheduling):
    """Each test by itself, and each group as one. (The mark xdist_group has no effect under pytest
    9.2 with pytest-xdist 3.8.)
    """

    def _split_scope(self, nodeid: str) -> str:
        return next((group for group in TOGETHER if nodeid.startswith(group)), nodeid)
