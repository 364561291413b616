# SPDX-License-Identifier: Apache-2.0
"""What the site allows of the options that an Action of ours asks for.

The client says in which Sandbox its command runs. The site's isolation is the least that it gets:
more may be asked for, and what would be less is refused. The site's Limits go over the client's.
"""

from __future__ import annotations

import os

from .._spec.limits import Limits
from .._spec.policy import Policy
from .._values import short
from ..errors import SpecError
from .outcome import Refused
from .site import Site

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ISOLATED = ("network", "mounts", "processes", "ipc")
#: Limits of which the smaller one is the stricter.
_SMALLER = frozenset(
    "cpu_time file_size core stack data processes open_files locked_memory address_space"
    " memory swap pids cpus cpu_weight io_weight changes".split()
)
_LARGER = frozenset({"nice", "oom_score_adj"})  # of which the larger one is


def refused(name: str, value: object, why: str) -> Refused:
    text = f"the action asks for {name}={short(value)}, which this worker does not give: {why}"
    return Refused("FAILED_PRECONDITION", text)


def clamped(options: dict[str, Any], limits: object, site: Site) -> dict[str, Any]:
    """The keyword arguments of Sandbox. limits: what the client says of Limits, as JSON has it."""
    allowed = dict(site.options)
    made = {name: value for name, value in options.items() if value is not None}
    for name in _ISOLATED:
        if made.get(name) != "isolated" and not (name == "network" and site.allow_network):
            raise refused(name, made.get(name), "it isolates all actions")
    if made.get("resolv_conf") and not site.allow_network:
        raise refused("resolv_conf", True, "it gives no network")
    if made.get("devices", "minimal") not in ("minimal", allowed.get("devices")):
        raise refused("devices", made["devices"], "it gives the minimal ones")
    if mounts := [each for each in made.get("extra_mounts", ()) if each.type == "bind"]:
        raise refused("extra_mounts", mounts, "nothing of its own files is seen by actions")
    if allowed.get("extra_mounts"):
        made["extra_mounts"] = [*made.get("extra_mounts", ()), *allowed["extra_mounts"]]
    made["policy"] = _policy(made.get("policy") or Policy(), allowed.get("policy") or Policy())
    _check_user(made, allowed, site)
    made["limits"] = _limits(limits, allowed.get("limits"))
    return made


def _policy(asked: Policy, allowed: Policy) -> Policy:
    """The policy that is asked for, if it gives no more than the site's."""
    if asked == allowed:
        return asked
    if asked.nesting and not allowed.nesting:
        raise refused("policy.nesting", True, "it lets no command make sandboxes")
    if not asked.no_new_privs and allowed.no_new_privs:
        raise refused("policy.no_new_privs", False, "set-user-ID programs have no effect")
    if asked.seccomp != allowed.seccomp:
        raise refused("policy.seccomp", asked.seccomp, "it has its own filter of system calls")
    if not _is_within(asked.capabilities, allowed.capabilities):
        text = f"it gives {allowed.capabilities!r}"
        raise refused("policy.capabilities", asked.capabilities, text)
    return asked


def _is_within(asked: object, allowed: object) -> bool:
    if asked in ("none", allowed) or allowed == "all":
        return True
    return isinstance(asked, tuple) and isinstance(allowed, tuple) and set(asked) <= set(allowed)


def _check_user(made: dict[str, Any], allowed: dict[str, Any], site: Site) -> None:
    """The site's user is that of all actions, unless `uids` of the site has others."""
    user, own = made.get("user"), allowed.get("user")
    if own is not None and user != own and site.uids is None:
        raise refused("user", user, f"its actions have {own!r}")
    if site.uids is not None:
        ids = {getattr(user, "uid", 0), getattr(user, "gid", 0)}
        if not ids <= site.uids:
            raise refused("user", user, f"it gives {', '.join(map(str, sorted(site.uids)))}")


def _limits(asked: object, own: Limits | None) -> Limits | None:
    """Of each limit the stricter one."""
    if asked is None:
        return own
    if not isinstance(asked, dict) or not asked.keys() <= set(Limits._fields):
        raise SpecError(f"the limits of the Action are none: {short(asked)}")
    if asked.get("cgroup"):
        raise refused("limits.cgroup", asked["cgroup"], "it chooses the control groups")
    values: dict[str, Any] = {
        name: tuple(each) if isinstance(each, list) else each for name, each in asked.items()
    }
    theirs = Limits(**values)
    if theirs.oom_score_adj is not None and theirs.oom_score_adj < 0:
        raise refused("limits.oom_score_adj", theirs.oom_score_adj, "it is 0 at least")
    if theirs.nice is not None and theirs.nice < 0:
        raise refused("limits.nice", theirs.nice, "it is 0 at least")
    if own is None:
        return theirs
    made = own | theirs
    stricter: dict[str, Any] = {}
    for name in Limits._fields:
        mine, yours = getattr(own, name), getattr(theirs, name)
        if mine is None or yours is None:
            continue
        if name in _SMALLER:
            stricter[name] = min(mine, yours)
        else:
            stricter[name] = max(mine, yours) if name in _LARGER else mine
    return made.replace(**stricter)


def check_machine(machine: str) -> None:
    """Refused for an Action of another machine."""
    here = os.uname().machine
    if machine != here:
        raise refused("machine", machine, f"it is {here}")
