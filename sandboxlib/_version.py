# SPDX-License-Identifier: Apache-2.0
"""The version."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass

__version__ = "1.0.0.dev0"
