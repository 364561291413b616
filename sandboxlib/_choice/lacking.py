# SPDX-License-Identifier: Apache-2.0
"""Sandbox.lacks(): tries the set-up of a Sandbox, and makes nothing in its root.

An executor sets up the sandbox for a program that does not exist. Mount points that the root lacks
would be made for that. So a mount on one is tried below a tmpfs of the trial's own, and whether the
mount point could be made is found out by looking at the directory above it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from .. import errors
from .._executors.base import Executor
from .._host import machine
from .._host.machine import is_below
from .._runs import explain, mounts
from .._runs.look import Found, Look
from .._runs.mounts import PlannedMount
from .._spec.mount import Mount
from .._spec.policy import Profile, program_of
from .._spec.spec import Spec
from . import choose

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Directories that a root probably has, on one of which a trial mounts its tmpfs.
_PLACES = "/tmp /mnt /opt /srv /run /media /home /var /usr /etc /lib /bin /sbin /boot".split()


def lacks(box: Spec) -> list[str]:
    """See Sandbox.lacks."""
    try:
        executor = choose.choose(box)
    except errors.UnsupportedError:
        return list(dict.fromkeys(_refusals(box)))
    names: dict[str, str] = {}
    boxes, reason = _without_stubs(box, names)
    for each in boxes:
        reason = reason or executor.attempt(each)
    reason = reason or _closes_exec(box)
    for name, real in names.items():
        reason = reason.replace(name, real)
    return [f"{executor.name}: {reason}"] if reason else []


def _closes_exec(box: Spec) -> str:
    """Why a profile lets nothing be executed, or "". A trial has no program, so it cannot tell."""
    program = program_of(box.policy)
    if not program or not isinstance(box.policy.seccomp, Profile):
        return ""
    from .._seccomp.filters import native_abi
    from .._seccomp.profile import ALLOWED, answer

    if answer(program, "execve", native_abi()) in ALLOWED:
        return ""
    return "the seccomp profile closes execve, which starts each command: allow it in the profile"


def _refusals(box: Spec) -> Iterator[str]:
    """Why no executor can keep the promises of a Sandbox: of those executors that work here at all,
    if there are any.
    """
    candidates: list[Executor] = [choose.executor_named(name) for name in choose.candidates()]
    for executor in [each for each in candidates if not each.why_not()] or candidates:
        for reason in executor.refusals(box):
            yield f"{executor.name}: {reason}"


def _without_stubs(box: Spec, names: dict[str, str]) -> tuple[list[Spec], str]:
    """The Sandboxes to try in place of one, which make no mount point in its root; and why one of
    its mount points cannot be made, or "".

    names: gets what the messages of these Sandboxes say, and what it was in the one.
    """
    missing, reason = _missing(box)
    if reason:
        return [], reason
    if not missing:
        return [box.replace()], ""  # a copy: it keeps no plan
    options: dict[str, Any] = {}
    alone: dict[str, Any] = {}  # what is tried on the root of the machine, which has its targets
    if box.deterministic and missing & {"/etc/passwd", "/etc/group"}:
        hostname = box.hostname or "sandbox"
        options |= {"deterministic": False, "hostname": hostname, "user": box.user}
        alone["deterministic"] = True
    if isinstance(box.devices, tuple) and "/dev" in missing:
        options["devices"] = "minimal"
        alone["devices"] = box.devices
    if "/tmp" in missing:
        options["tmp"] = "root"
    extra = list(box.extra_mounts)
    if (resolver := mounts.resolver_of(box)) is not None and resolver.target in missing:
        extra.insert(0, resolver)
        options["resolv_conf"] = False
    options["extra_mounts"] = _elsewhere(box, extra, missing, names)
    paths = box.filesystem_writable_paths
    if isinstance(paths, tuple):
        left = [path for path in paths if not any(is_below(path, above) for above in missing)]
        options["filesystem_writable_paths"] = left or "none"
    others = [Spec("/", user=box.user, **alone)] if alone else []
    return [box.replace(**options), *others], ""


def _missing(box: Spec) -> tuple[set[str], str]:
    """The targets that a run would make in the root; and why one cannot be made."""
    planned = [mount for mount in mounts._all_mounts(box) if mount.is_over_the_root]
    missing: set[str] = set()
    for index, mount in enumerate(planned):
        if not mount.in_root or mount.is_optional:
            continue
        with Look(box, planned[:index]) as look:
            found = look.find(mount.target)
            if found.hidden and not os.path.lexists(mount.target):  # in the run's own proc
                text = f"{mount.title}: target: {found.hidden} has no such file, and none is made"
                return missing, f"{text} there: bind onto a path that it has, or elsewhere"
            if not found.missing:
                continue
            missing.add(mount.target)
            above = look.find(os.path.dirname(found.missing))
            if reason := _cannot_make(box, planned, mount, above):
                return missing, reason
    return missing, ""


def _cannot_make(box: Spec, planned: list[PlannedMount], mount: PlannedMount, above: Found) -> str:
    """Why a mount point cannot be made, or ""."""
    import errno

    number = 0
    if above.is_there:
        path = f"/proc/self/fd/{above.file.number}"
        if os.fstatvfs(above.file.number).f_flag & os.ST_RDONLY:
            number = errno.EROFS
        elif not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
            number = errno.EACCES
        elif mounts.is_of_the_kernel(machine.real_path(path)):
            number = errno.EPERM
    if not number:
        return ""
    what = f"{mount.title}: make the mount point"
    hint = explain.hint_of_stub(number, box, mount.target, planned)
    return str(errors.setup_error(number, mount.target, "target", what, hint))


def _elsewhere(
    box: Spec, extra: list[Mount], missing: set[str], names: dict[str, str]
) -> list[Mount]:
    """The mounts, of which those on missing targets go below a tmpfs. names: see _without_stubs."""
    place = _place(box, extra)
    stay: list[Mount] = []
    moved: list[tuple[Mount, Mount]] = []
    new: dict[str, str] = {}  # the old targets, and what replaces them
    for mount in extra:
        target = mount.target
        above = max((old for old in new if is_below(target, old)), key=len, default="")
        # Below a missing /tmp or /dev lies what goes into the run's own.
        if target in missing or (not above and any(is_below(target, old) for old in missing)):
            above, new[target] = target, f"{place}/sandboxlib-{len(new)}"
        if not above:
            stay.append(mount)
        elif place:
            target = new[above] + target[len(above) :]
            moved.append((mount, Mount(**{**mount.__getstate__(), "target": target})))
    for index, (mount, other) in enumerate(moved, len(stay) + 1):
        names[_title(index, other)] = _title(extra.index(mount), mount)
    names.update({other: old for old, other in new.items()})
    return [*stay, *([Mount.tmpfs(place)] if moved else []), *(other for _, other in moved)]


def _title(index: int, mount: Mount) -> str:
    return f"mount {index}: {mounts.words_of(mount)}"


def _place(box: Spec, extra: list[Mount]) -> str:
    """A directory of the root that no mount uses, or ""."""
    with Look(box, ()) as look:
        for path in _PLACES:
            found = look.find(path)
            is_used = any(is_below(path, m.target) or is_below(m.target, path) for m in extra)
            if found.status is None or found.path != path or is_used:
                continue
            if stat.S_ISDIR(found.status.st_mode):
                return path
    return ""
