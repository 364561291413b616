# SPDX-License-Identifier: Apache-2.0
"""Sandboxes with the open defaults of run_sandbox, for tests that are not about the safe ones."""

from __future__ import annotations

import os
from typing import Any

from sandboxlib import Sandbox

#: The caller's network, a root that can be written to, and its /tmp: the defaults of run_sandbox.
OPEN: dict[str, Any] = {
    **{"network": "undefined", "filesystem_writable_paths": "all"},
    "tmp": "root",
}


def open_box(root: str | os.PathLike[str], **options: Any) -> Sandbox:
    """A Sandbox with the defaults of run_sandbox."""
    return Sandbox(root, **{**OPEN, **options})
