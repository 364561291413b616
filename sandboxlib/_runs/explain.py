# SPDX-License-Identifier: Apache-2.0
"""Turns a failed step into a SetupError: its sentence, and the likely remedy."""

from __future__ import annotations

import errno
from collections.abc import Mapping

from .. import errors
from .._core import native
from .._host import machine
from .._spec.limits import RLIMITS, SCHEDULERS
from .._spec.policy import Profile
from .job import Job
from .plan import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


SILENT = "a file system that does not answer (FUSE, network) is the usual cause"


# ---- sentences -------------------------------------------------------------------------------

_ROOT_STEPS = {
    "root": "Unable to chroot: open the root",
    "read_only": "make read-only, or without devices, the root",
    "attach": "attach a copy of the root",
    "pivot": "pivot_root into",
    "chroot": "Unable to chroot: into",
}
_STEPS = {
    "pipe": "make the pipes of the run",
    "lifeline": "open a pidfd of the caller",
    "clone": "clone into new namespaces",
    "ids": "map the ids of the new user namespace",
    "session": "make a session",
    "keyring": "join a new session keyring",
    "oom_score": "set oom_score_adj",
    "terminal": "make stdin the terminal of the session",
    "cgroup": "join the cgroup of the run",
    "loopback": "bring up lo in the new network namespace",
    "hostname": "set the hostname",
    "private": "make the mounts of the new namespace private",
    "capabilities": "cut the capabilities",
    "no_new_privs": "set no_new_privs",
    "seccomp": "install the system call filter",
    "parent_keyring": "keep the caller's session keyring from the command",
    "parent_death": "tie the command's life to the caller's",
    "reaper": "exec the reaper",
    "fork": "fork the command in its namespaces",
    "user": "change the ids of the command",
}
_LIMITS = "the limits of RLIMIT_NPROC (ulimit -u) and of the pids cgroup are the usual causes"
_NO_FILTER = (
    "the kernel has no filters (CONFIG_SECCOMP_FILTER), or a filter of the host forbids them; "
    "Policy(seccomp='none') goes without"
)
_HINTS = {
    ("clone", errno.EPERM): "it takes root, or CAP_SYS_ADMIN and CAP_SYS_CHROOT",
    ("clone", errno.ENOSPC): "not a full disk: a limit on namespaces, sysctl user.max_*_namespaces",
    ("clone", errno.EUSERS): "a limit on namespaces, sysctl user.max_*_namespaces",
    ("clone", errno.EAGAIN): _LIMITS,
    ("fork", errno.EAGAIN): _LIMITS,
    ("chroot", errno.EPERM): "it takes CAP_SYS_CHROOT",
    ("pipe", errno.EMFILE): "the caller has too many open files (ulimit -n)",
    ("pipe", errno.ENFILE): "the machine has too many open files (sysctl fs.file-max)",
    ("private", errno.EINVAL): "is the caller itself in a chroot whose root is no mount point?",
    ("pivot", errno.EINVAL): "is the caller's own root an initramfs?",
    ("read_only", errno.ENOSYS): "mount_setattr(2) takes Linux 5.12",
    (
        "keyring",
        errno.EDQUOT,
    ): "too many keys: sysctl kernel.keys.maxkeys, kernel.keys.root_maxkeys",
    ("capabilities", errno.EPERM): "the caller does not have all capabilities that were asked for",
    ("seccomp", errno.EINVAL): _NO_FILTER,
    ("seccomp", errno.ENOSYS): _NO_FILTER,
    ("seccomp", errno.EPERM): _NO_FILTER,
    ("seccomp", errno.EACCES): "it takes no_new_privs=True, or CAP_SYS_ADMIN",
    ("oom_score", errno.EACCES): "lowering it takes CAP_SYS_RESOURCE",
    ("oom_score", errno.EPERM): "lowering it takes CAP_SYS_RESOURCE",
    ("oom_score", errno.ENOENT): "the caller has no /proc",
    ("cgroup", errno.EACCES): "the caller may not move its processes there (cgroups(7))",
    ("cgroup", errno.EPERM): "the caller may not move its processes there (cgroups(7))",
    ("cgroup", errno.ENODEV): "another process removed it",
    ("cgroup", errno.EBUSY): "it has cgroups below it, and its cgroup.subtree_control is not empty",
    ("cgroup", errno.EOPNOTSUPP): "it is threaded, or one above it (cgroup.type)",
    ("parent_keyring", errno.EACCES): "it takes no_new_privs, or CAP_SYS_ADMIN",
    ("terminal", errno.EPERM): "it belongs to another session",
    ("terminal", errno.ENOTTY): "stdin is no terminal",
    ("exec", errno.EAGAIN): "the command's user has more processes than Limits.processes",
    ("cwd", errno.ENOENT): "it is looked for inside the root, below the mounts of the sandbox",
    ("cwd", errno.ELOOP): "links of /proc/PID are not followed",
    ("user", errno.EINVAL): "the user namespace, or the ranges of /etc/subuid, has no such id",
    ("exec", errno.ENOEXEC): "neither a program nor a script that begins with #!",
    ("exec", errno.E2BIG): "arguments and environment are too long (execve(2), Limits)",
    ("reaper", errno.E2BIG): "arguments and environment are too long (execve(2), Limits)",
    ("reaper", errno.EACCES): "sysctl vm.memfd_noexec, or a mount with noexec",
    (
        "source",
        errno.EINVAL,
    ): "links of /proc/PID lead into the mounts of that process, not the run's",
    ("source", errno.ENODEV): "it exists, but is no device",
    ("source", errno.EMFILE): "each bind takes a descriptor during the set-up (ulimit -Hn)",
    ("target", errno.ENOTDIR): "a part of the path is a file",
    ("target", errno.EBUSY): "a link leads it to the root itself",
    (
        "target",
        errno.ELOOP,
    ): "a loop of symbolic links, or more of them than the kernel follows (40)",
    ("target", errno.EMFILE): "each mount point that the root lacks takes two of the caller's "
    "descriptors (ulimit -n)",
    ("target", errno.ETIMEDOUT): "another process keeps a lock on it",
    ("target", errno.EAGAIN): "others rename or mount on the way to it all the time",
    ("source", errno.EAGAIN): "others rename or mount on the way to it all the time",
    ("cwd", errno.EAGAIN): "others rename or mount on the way to it all the time",
    ("mount", errno.EINVAL): "source and target are not both directories or both files",
}


_OTHER_LIMITS = ("nice", "scheduler", "cpus", "umask", "personality")  # enum sbx_limit
_HARD = "raising a limit that the caller has takes CAP_SYS_RESOURCE (ulimit -H -a)"
_SOONER = "it takes CAP_SYS_NICE, or RLIMIT_NICE (ulimit -e)"
_LIMIT_HINTS = {
    ("nice", errno.EACCES): _SOONER,
    ("nice", errno.EPERM): _SOONER,
    ("scheduler", errno.EPERM): _SOONER,
    ("cpus", errno.EINVAL): "the machine, or the cpuset of the caller, does not have all of them",
}


def _limit_name(index: int) -> str:
    """The name of an index of step 'limits': below 16 of setrlimit(2), then of enum sbx_limit."""
    if index >= 16:
        return _OTHER_LIMITS[index - 16]
    return next(name for name, number in RLIMITS.items() if number == index)


def _limit_text(index: int, values: Mapping[str, Any]) -> str:
    name = _limit_name(index)
    if name == "personality":
        return f"set the personality {values[name]:#x} (deterministic, linux32)"
    if name == "cpus":
        name, masks = "cpuset", enumerate(values["cpus"])
        value: Any = [64 * n + i for n, word in masks for i in range(64) if word >> i & 1]
    elif name == "scheduler":
        value = next(word for word, n in SCHEDULERS.items() if n == values["scheduler"])
    elif index < 16:
        value = values["rlimit"][index][0]
    else:
        value = values[name]
    return f"set the limit {name}={value!r}"


def _limit_hint(index: int, error: int) -> str:
    name = _limit_name(index)
    if index < 16 and error == errno.EPERM:
        return f"{_HARD}, sysctl fs.nr_open" if name == "open_files" else _HARD
    return _LIMIT_HINTS.get((name, error), "")


def hint(step: str, index: int, error: int, in_user_namespace: bool = False) -> str:
    """The likely remedy, or ""."""
    if in_user_namespace or step in ("source", "root", "mount"):
        applies = in_user_namespace or machine.is_in_user_namespace()
        remedy = machine.user_namespace_remedy(step, error) if applies else ""
        if remedy:
            return remedy
    if step == "exec" and error == errno.ENOENT:
        if index < 0:
            return "it is looked for inside the root, in the PATH of the sandbox"
        return "the file is there, but not its interpreter or loader"
    if error == errno.ENOSYS and step != "seccomp":
        return (
            "sandboxlib needs Linux 5.12, and no seccomp filter of the host that closes this call"
        )
    return _HINTS.get((step, error), "")


def hint_of_stub(error: int) -> str:
    """The likely remedy if a mount point cannot be made, or ""."""
    if error == errno.ENOENT:  # each missing directory would have been made
        return "a symbolic link on the way leads to nothing"
    if error == errno.EROFS:
        return "the file system of the root is read-only, and has no such directory or file"
    return hint("target", 0, error)


def error_of(plan: Plan, step: int, index: int, error: int, job: Job) -> errors.SetupError:
    """The exception for a failed step."""
    name = native.STEPS[step]
    what, filename = _about(plan, name, index, job)
    remedy = hint(name, index, error, plan.in_user_namespace)
    if name == "limits":
        remedy = _limit_hint(index, error)
    if error == errno.ETIMEDOUT:
        remedy = SILENT
    if name == "exec" and not remedy and isinstance(plan.box.policy.seccomp, Profile):
        remedy = "the seccomp profile may close execve"
    return errors.setup_error(error, filename, name, what, remedy)


def _about(plan: Plan, step: str, index: int, job: Job) -> tuple[str, str | None]:
    box = plan.box
    if step in ("source", "target", "mount"):
        mount = plan.mounts[index]
        return f"{mount.title}: {step}", mount.source if step == "source" else mount.target
    if step == "exec":
        path = job.paths[index] if index >= 0 else job.program
        return f"exec {path!r} in the root {box.root}", path
    if step == "cwd":
        what = f"Unable to set current working directory: {job.cwd!r} in the root {box.root}"
        return what, job.cwd
    if step in ("root", "read_only", "attach", "pivot", "chroot"):
        return f"{_ROOT_STEPS[step]} {box.root}", box.root
    if step == "stdio":
        names = ("stdin", "stdout", "stderr", "status", "lifeline")
        return f"descriptor {names[index] if index < 5 else 'of pass_fds'}", None
    is_limit = step == "limits"
    text = _limit_text(index, plan.values[step]) if is_limit else _STEPS.get(step, step)
    return text, None
