# SPDX-License-Identifier: Apache-2.0
"""What works on this machine, and what an administrator can do about what does not."""

from __future__ import annotations

import os
from types import ModuleType

from . import _bwrap, _ladder, errors, linux_user_chroot
from ._host import machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def examine() -> list[dict[str, Any]]:
    """See sandboxlib.doctor."""
    return [_examine(_ladder.get_executor(name)) for name in _ladder.EXECUTORS]


def _examine(executor: ModuleType) -> dict[str, Any]:
    reason: str = executor.why_not()
    isolation: dict[str, str] = {} if reason else executor.maximum_possible_isolation()
    causes = []
    if reason or "undefined" in isolation.values():
        causes = _CAUSES[executor.NAME]()
    if executor.NAME == "user_namespace" and not reason:
        causes += _about_ranges()
    return {
        "name": executor.NAME,
        "usable": not reason,
        "reason": reason,
        "isolation": isolation,
        "causes": causes,
    }


def _about_root() -> list[tuple[str, str]]:
    if os.geteuid() != 0:
        return [("the caller is not root", "run as root, or use another executor")]
    causes = machine.missing_capabilities() + machine.limits("mnt", "net", "pid", "ipc")
    if machine.status("Seccomp") == "2":
        causes.append(machine.SECCOMP)
    if machine.proc_is_masked():
        causes.append(machine.MASKED_PROC)
    if machine.kernel_is_older_than(5, 12):
        causes.append((f"the kernel is {os.uname().release}", "Linux 5.12 or newer"))
    return causes


def _about_user_namespaces() -> list[tuple[str, str]]:
    causes = machine.user_namespace_causes()
    if machine.proc_is_masked():
        causes.append(machine.MASKED_PROC)
    return causes


def _about_ranges() -> list[tuple[str, str]]:
    """Only user='ranges' misses them."""
    if os.geteuid() == 0:
        return []
    from . import _mapper

    causes = []
    for kind in ("uid", "gid"):
        try:
            if _mapper.find_tool(f"new{kind}map") is None:
                causes.append((f"user='ranges': there is no new{kind}map", "install uidmap"))
        except errors.UnsupportedError as error:
            cause, _, remedy = str(error).partition("; ")
            causes.append((f"user='ranges': {cause}", remedy))
        try:
            _mapper.ranges(kind)
        except errors.UnsupportedError as error:
            cause, _, remedy = str(error).rpartition("; ")
            causes.append((f"user='ranges': {cause}", remedy))
    return causes


def _about_set_user_id() -> list[tuple[str, str]]:
    is_root = os.geteuid() == 0
    causes = []
    if is_root:
        causes = machine.missing_capabilities() + machine.limits("mnt", "net", "pid", "ipc")
    elif machine.status("NoNewPrivs") == "1":
        remedy = (
            "start the caller without it: no systemd NoNewPrivileges=, no docker no-new-privileges"
        )
        causes.append(("no_new_privs is set for the caller", remedy))
    path = linux_user_chroot.find_tool()
    if path is None:
        return [*causes, ("there is no linux-user-chroot in PATH", "install it, 2015.1 best")]
    if is_root:
        return causes
    status = os.stat(path)
    if status.st_uid != 0 or not status.st_mode & 0o4000:
        causes.append((f"{path} is not set-user-ID root", f"chown root {path}; chmod 4755 {path}"))
    if os.statvfs(path).f_flag & os.ST_NOSUID:
        remedy = f"mount -o remount,suid {machine.mount_point(path)}"
        causes.append((f"{path} is on a mount with nosuid", remedy))
    return causes


def _about_bubblewrap() -> list[tuple[str, str]]:
    try:
        _bwrap.find_tool()
    except errors.ProgramNotFound:
        return [("there is no bwrap in PATH", "install bubblewrap")]
    except errors.UnsupportedError as error:
        return [("the bwrap in PATH is not used", str(error))]
    except errors.SetupError:
        pass  # below is why bwrap does not work
    lacks = machine.missing_capabilities() if os.geteuid() == 0 else []
    return lacks + _about_user_namespaces()


_CAUSES = {
    "chroot": _about_root,
    "linux_user_chroot": _about_set_user_id,
    "user_namespace": _about_user_namespaces,
    "bubblewrap": _about_bubblewrap,
}


#: What maximum_possible_isolation() has for "seccomp", for people.
_FILTERS = {
    "builds": "that of sandboxlib ('builds'), and profiles",
    "default": "the program's own; 'builds' and profiles are refused",
    "none": "none; ask for it with seccomp='none'",
}


def report() -> str:
    """The same for people to read."""
    lines = []
    for found in examine():
        lines.append(f"{found['name']}: {'works' if found['usable'] else 'does not work'}")
        if found["reason"]:
            lines.append(f"    {found['reason']}")
        undefined = [name for name, value in found["isolation"].items() if value == "undefined"]
        if undefined:
            lines.append(f"    cannot isolate {', '.join(undefined)}")
        if found["isolation"]:
            lines.append(f"    filter of system calls: {_FILTERS[found['isolation']['seccomp']]}")
        lines += [f"    {cause}\n        remedy: {remedy}" for cause, remedy in found["causes"]]
    try:
        lines.append(f"chosen here: {_ladder.executor_for_platform().NAME}")
    except errors.UnsupportedError:
        lines.append("chosen here: none")
    return "\n".join(lines)
