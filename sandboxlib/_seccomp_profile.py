# SPDX-License-Identifier: Apache-2.0
"""OCI and Docker seccomp profiles."""

from __future__ import annotations

from .errors import UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def compile_profile(
    profile: Mapping[str, Any] | bytes | str, capabilities: frozenset[str], abis: tuple[str, ...]
) -> bytes:
    raise UnsupportedError("profiles are not compiled yet")
