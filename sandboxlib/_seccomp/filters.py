# SPDX-License-Identifier: Apache-2.0
"""System call filters: the profile 'builds', and OCI/Docker profiles, as programs for seccomp(2).

The compiler is imported only if made.py has no compiled program for the request. made.py itself is
always imported: every run takes one of its programs by default, and a signal handler that starts a
run in the midst of the first import would find a half imported module.
"""

from __future__ import annotations

import os
from functools import lru_cache

from ..errors import UnsupportedError
from .made import PROGRAMS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

#: The machine as uname(2) names it, and its ABIs, the native one first.
MACHINES = {
    **dict.fromkeys(("x86_64", "i386", "i486", "i586", "i686"), ("x86_64", "i386", "x32")),
    **dict.fromkeys(("aarch64", "armv8l", "armv7l"), ("aarch64", "arm")),
}
#: The capabilities that open a call. The others do not change the program.
OPENERS = frozenset(
    "bpf dac_read_search net_raw perfmon sys_admin sys_boot sys_module sys_pacct sys_ptrace "
    "sys_rawio sys_time syslog".split()
)


def builds(
    capabilities: frozenset[str] = frozenset(),
    *,
    nesting: bool = False,
    in_slot: bool = False,
    machine: str = "",
) -> bytes:
    """The profile 'builds' for a machine, as the bytes of an array of struct sock_filter.

    capabilities: each opens the calls that need it. nesting: opens user namespaces, and mounts in
    them. in_slot: the program for the resident of a slot, which its commands inherit. It leaves
    mount calls and the other namespaces open; without user namespaces those take CAP_SYS_ADMIN. The
    resident must have joined a new session keyring before, because keyctl(2) is closed.
    machine: as uname(2) names it; "" (the default): this machine. Raises UnsupportedError if there
    are no tables for it.
    """
    openers = set(capabilities & OPENERS)
    openers |= {name for name, is_set in (("nesting", nesting), ("slot", in_slot)) if is_set}
    return _builds(frozenset(openers), _abis(machine or os.uname().machine))


@lru_cache(maxsize=64)
def _builds(openers: frozenset[str], abis: tuple[str, ...]) -> bytes:
    made = PROGRAMS.get((abis[0], openers))
    if made:
        return bytes.fromhex(made)
    from .builds import compile_builds

    return compile_builds(openers, abis)


def from_profile(
    profile: Mapping[str, Any] | bytes | str,
    capabilities: frozenset[str] = frozenset(),
    *,
    machine: str = "",
) -> bytes:
    """Compile an OCI or Docker seccomp profile, or its JSON text; returns bytes as builds() does.

    capabilities: those that the profile's includes and excludes refer to. Raises SpecError, which
    names the malformed part, and UnsupportedError as builds() does.
    """
    from .profile import compile_profile

    return compile_profile(profile, capabilities, _abis(machine or os.uname().machine))


def abis(machine: str = "") -> tuple[str, ...]:
    """The ABIs of a machine: its own, the 32-bit one, and x32. machine: as builds() has it."""
    return _abis(machine or os.uname().machine)


def native_abi() -> str:
    """The ABI of this machine's own programs."""
    return _abis(os.uname().machine)[0]


def _abis(machine: str) -> tuple[str, ...]:
    if machine not in MACHINES:
        raise UnsupportedError(
            f"there are no system call filters for {machine}: use seccomp='none', or ask for one"
        )
    return MACHINES[machine]
