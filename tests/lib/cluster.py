# SPDX-License-Identifier: Apache-2.0
"""The servers of the tests of remote execution: a BuildGrid with a PostgreSQL of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lib.machine import require

from sandboxlib._cluster.cluster import Cluster


@contextmanager
def new_cluster(directory: Path, **options: Any) -> Iterator[Cluster]:
    """A cluster of one test's own, or of all of one process of pytest's; skips the test if this
    machine has none.
    """
    why = Cluster.lacks()
    require(not why, f"no cluster: {why}")
    directory.mkdir(parents=True, exist_ok=True)
    with Cluster(directory, **options) as made:
        yield made
