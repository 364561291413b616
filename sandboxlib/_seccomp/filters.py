# SPDX-License-Identifier: Apache-2.0
"""System call filters: the profile 'builds', and OCI/Docker profiles, as programs for seccomp(2).

The compiler is imported only where none of the programs that were made ahead (made.py) is
the one. Those are always there: every run takes one by default, and a signal handler may make a
run while the first one is on its way, when it would find a module that is half imported.
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

#: What uname(2) says, and the ABIs of such a machine, its own first.
MACHINES = {
    **dict.fromkeys(("x86_64", "i386", "i486", "i586", "i686"), ("x86_64", "i386", "x32")),
    **dict.fromkeys(("aarch64", "armv8l", "armv7l"), ("aarch64", "arm")),
}
#: The capabilities that open something: others make no other program.
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
    """The profile 'builds' for this machine, as the bytes of an array of struct sock_filter.

    capabilities: each opens what it is for. nesting: opens user namespaces, and mounts in them.
    in_slot: for the resident of a slot, whose commands inherit it: mount calls and the other
    namespaces stay open, which without user namespaces take CAP_SYS_ADMIN. It has to be in a
    session keyring of its own by then: keyctl(2) is closed.
    machine: another one than this, as uname(2) calls it.
    """
    openers = set(capabilities & OPENERS)
    openers |= {word for word, given in (("nesting", nesting), ("slot", in_slot)) if given}
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
    """An OCI or Docker seccomp profile, or its JSON text, compiled as by builds().

    SpecError names what is malformed in it. capabilities: those that includes and excludes see.
    """
    from .profile import compile_profile

    return compile_profile(profile, capabilities, _abis(machine or os.uname().machine))


def native_abi() -> str:
    """That of the programs of this machine."""
    return _abis(os.uname().machine)[0]


def _abis(machine: str) -> tuple[str, ...]:
    if machine not in MACHINES:
        raise UnsupportedError(
            f"there are no system call filters for {machine}: use seccomp='none', or ask for one"
        )
    return MACHINES[machine]
