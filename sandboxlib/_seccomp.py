# SPDX-License-Identifier: Apache-2.0
"""System call filters: the profile 'builds', and OCI/Docker profiles, compiled for seccomp(2).

Imported when a filter is built, and not before.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

#: A program that allows everything, in place of what is to be compiled here.
_ALLOW = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)


def builds(
    capabilities: frozenset[str] = frozenset(), *, nesting: bool = False, in_slot: bool = False
) -> bytes:
    """The profile 'builds' for this machine, as the bytes of an array of struct sock_filter.

    capabilities: each opens what it is for. nesting: opens user namespaces, and mounts in them.
    in_slot: for the resident of a slot, whose commands inherit it: mount calls and the other
    namespaces stay open, which without user namespaces take CAP_SYS_ADMIN.
    """
    return _ALLOW


def from_profile(
    profile: Mapping[str, Any] | bytes | str, capabilities: frozenset[str] = frozenset()
) -> bytes:
    """An OCI or Docker seccomp profile, or its JSON text, compiled as by builds().

    SpecError names what is malformed in it. capabilities: those that includes and excludes see.
    """
    return _ALLOW
