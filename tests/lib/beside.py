# SPDX-License-Identifier: Apache-2.0
"""The tests that pytest -n may not run at the same time, because they look at the whole machine.

Each group runs in one process of pytest, one test after the other. Any other test may run beside
any test, so it looks only at things that it made itself, and its time bounds have slack.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

#: The groups: tests whose names begin with the same of these look at the same part of the machine.
TOGETHER = ("tests/cgroups/", "tests/cli/test_demo.py", "tests/cli/test_bench.py")


class Scheduling(LoadScopeScheduling):
    """Schedules each test by itself, and each group as one. (The mark xdist_group has no effect
    under pytest 9.2 with pytest-xdist 3.8.)
    """

    def _split_scope(self, nodeid: str) -> str:
        return next((group for group in TOGETHER if nodeid.startswith(group)), nodeid)
