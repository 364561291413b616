# SPDX-License-Identifier: Apache-2.0
"""Turns a failed step into a SetupError: its sentence, and the likely remedy."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Mapping, Sequence

from .. import errors
from .._core import native
from .._host import machine
from .._spec.limits import RLIMITS, SCHEDULERS
from .._spec.policy import CAPABILITIES, Profile
from .._spec.spec import Spec
from ..errors import printable
from .job import Job
from .mounts import PlannedMount
from .mounts import _all_mounts as all_mounts
from .plan import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .look import Found, Look


_OF_A_PROCESS = r"/proc/[^/]+/(fd|cwd|root|exe)(/|$)|/dev/(fd/|std)"
_LINK_OF_A_PROCESS = "links of /proc/PID lead into the mounts of that process, not the run's"
SILENT = "a file system that does not answer (FUSE, network) is the usual cause"


def _is_of_a_process(path: str) -> bool:
    import re  # it takes as long to import as a tenth of sandboxlib

    return re.match(_OF_A_PROCESS, path) is not None


# ---- sentences -------------------------------------------------------------------------------

_ROOT_STEPS = {
    "root": "Unable to chroot: open the root",
    "read_only": "make read-only, or without devices, the root",
    "attach": "attach a copy of the root",
    "pivot": "pivot_root into",
    "chroot": "Unable to chroot: into",
    "upper": "make the upper directory of",
    "overlay": "mount",
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
    "trace": "install the filter of a trace",
    "seccomp": "install the system call filter",
    "parent_keyring": "keep the caller's session keyring from the command",
    "parent_death": "tie the command's life to the caller's",
    "reaper": "exec the reaper",
    "fork": "fork the command in its namespaces",
    "user": "change the ids of the command",
}
#: Why an entry (Mount.directory, symlink, file) cannot be made.
ENTRY_HINTS = {
    errno.EOPNOTSUPP: "the command may write to the directory that it goes into, and what it writes"
    " there would be lost: make it there beforehand, or take a root that is read-only, or"
    " Overlay(root)",
    errno.EEXIST: "the root has something else at this path, which an entry does not hide",
    errno.E2BIG: "the directory that it goes into has more than 4,096 entries: make it there"
    " beforehand, or take Overlay(root)",
    errno.ENOTDIR: "the root has a file there, or on the way",
}
_MOUNTS_BELOW = (
    "the overlay does not take it as a layer: mounts of the caller's lie below it that a user"
    " namespace may not uncover, or its file system can be no layer; Overlay() with a"
    " Mount.bind of each directory that is needed goes without layers"
)
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
    (
        "stdio",
        errno.EFBIG,
    ): "RLIMIT_FSIZE of the caller (ulimit -f); a pipe or a file needs no copy",
    ("stdio", errno.EMFILE): "the caller has too many open files (ulimit -n)",
    ("stdio", errno.ENFILE): "the machine has too many open files (sysctl fs.file-max)",
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
    ("exec", errno.ELOOP): "a loop of symbolic links, or more of them than the kernel follows (40)",
    ("exec", errno.ETXTBSY): "a process has the file open for writing, and has to close it first",
    ("exec", errno.E2BIG): "arguments and environment are too long (execve(2), Limits)",
    ("reaper", errno.E2BIG): "arguments and environment are too long (execve(2), Limits)",
    ("reaper", errno.EACCES): "sysctl vm.memfd_noexec, or a mount with noexec",
    (
        "source",
        errno.EINVAL,
    ): _LINK_OF_A_PROCESS,
    ("source", errno.ENOENT): "a source is looked up outside of the root, as the caller",
    ("root", errno.ENOENT): "the root is a directory of the caller's, and has to be there",
    ("root", errno.ENOTDIR): "the root is a file: Sandbox(Image(path)) runs in an image",
    ("layer", errno.ENOENT): "a layer is a directory of the caller's, and has to be there",
    ("layer", errno.ENOTDIR): "it is a file: an image is Image(path), a tar Layer.from_tar(path)",
    ("layer", errno.EINVAL): _MOUNTS_BELOW,
    ("layer", errno.EMFILE): "the caller has too many open files (ulimit -n)",
    ("overlay", errno.EINVAL): _MOUNTS_BELOW,
    ("overlay", errno.ENODEV): "the kernel has no overlay file system: modprobe overlay",
    ("overlay", errno.EPERM): "an overlay in a user namespace takes Linux 5.11",
    ("overlay", errno.ELOOP): (
        "two of the layers are the same directory, or one lies in another: if '/' is a layer, "
        "inputs and other layers take a Store on another file system"
    ),
    ("upper", errno.ENOSPC): "Limits(changes=...) is too small, or the machine has no memory left",
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
    ("cpu_time", errno.ENOENT): "a fraction takes a procfs: make the directory /proc in the root",
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
    closed = "" if name in ("nice", "scheduler") else machine.closed_by_a_filter(name, error)
    return closed or _LIMIT_HINTS.get((name, error), "")


def hint(step: str, index: int, error: int, in_user_namespace: bool = False) -> str:
    """The likely remedy, or ""."""
    if in_user_namespace or step in ("source", "filesystem", "root", "mount"):
        applies = in_user_namespace or machine.is_in_user_namespace()
        remedy = machine.user_namespace_remedy(step, error) if applies else ""
        if remedy:
            return remedy
    if error == errno.EPERM and not in_user_namespace and os.geteuid() == 0:
        causes = machine.missing_capabilities(step) if step != "capabilities" else []
        if causes:
            return "; ".join(f"{cause}: {remedy}" for cause, remedy in causes)
    if closed := machine.closed_by_a_filter(step, error):
        return closed
    if error == errno.ENOSYS and step != "seccomp":
        return (
            "sandboxlib needs Linux 5.12, and no seccomp filter of the host that closes this call"
        )
    return _HINTS.get((step, error), "")


def _hint_of_capabilities(plan: Plan, error: int) -> str:
    """The likely remedy if the capabilities could not be cut, or given."""
    if plan.in_user_namespace or error != errno.EPERM:
        return hint("capabilities", 0, error, plan.in_user_namespace)
    have, asked = int(machine.status("CapEff") or "0", 16), plan.values.get("must_capabilities", 0)
    names = [name for bit, name in enumerate(CAPABILITIES) if (asked & ~have) >> bit & 1]
    causes = machine.missing_capabilities("capabilities")
    texts = [f"{cause}: {remedy}" for cause, remedy in causes]
    if names:
        text = f"the caller lacks {', '.join(names)} itself, and cannot give what it lacks"
        texts.append(f"{text}: leave that out of the Policy, or docker run --cap-add")
    return "; ".join(texts) or hint("capabilities", 0, error)


def _looking() -> contextlib.suppress:
    """An explanation that fails is left out. ImportError: of a caller that gave up the right to
    read its own modules.
    """
    return contextlib.suppress(OSError, ImportError)


def _look(box: Spec, mounts: Sequence[PlannedMount] | None) -> Look:
    from .look import Look

    return Look(box, mounts)


def hint_of_exec(
    box: Spec,
    argv: Sequence[str],
    paths: Sequence[str],
    directory: str,
    index: int | None,
    error: int,
    mounts: Sequence[PlannedMount] | None = None,
) -> str:
    """The likely remedy for a command that could not be executed, or ""; see exec_causes.Call.

    mounts: of the Sandbox, if the caller has them already.
    """
    with _looking(), _look(box, mounts) as seen:
        from . import exec_causes

        call = exec_causes.Call(box, argv, paths, directory, index)
        if text := exec_causes.cause(call, seen, error):
            return text
    return hint("exec", 0 if index is None else index, error)


def hint_of_cwd(
    box: Spec, directory: str, error: int, mounts: Sequence[PlannedMount] | None = None
) -> str:
    """The likely remedy for a cwd that cannot be entered, or ""."""
    why = ""
    with _looking(), _look(box, mounts) as seen:
        found = seen.find(directory)
        why = found.why_missing()
        if error == errno.ENOTDIR and found.is_there:
            why = f"{found.path} is no directory"
        if error == errno.EACCES and not why:
            why = "the ids of the command may not enter it, or a directory above it"
        if found.hidden == "the private /tmp":
            why += ": tmp='root' leaves it, or bind that directory"
    text = hint("cwd", 0, error)
    return printable(f"{why}; {text}" if why and text else why or text)


def hint_of_stub(
    error: int, box: Spec, target: str, mounts: Sequence[PlannedMount] | None = None
) -> str:
    """The likely remedy if the mount point of a target cannot be made, or ""."""
    if error == errno.EEXIST:
        return ENTRY_HINTS[error]
    if error == errno.EROFS:
        return "the file system of the root is read-only, and has no such directory or file"
    is_explained = error in (errno.ENOENT, errno.EACCES, errno.EPERM)
    if not is_explained or machine.closed_by_a_filter("target", error):
        return hint("target", 0, error)
    mounts = all_mounts(box) if mounts is None else mounts
    before = list(itertools.takewhile(lambda mount: mount.target != target, mounts))
    text = ""
    with _looking(), _look(box, before) as seen:
        found = seen.find(target)
        if error == errno.ENOENT:
            text = _about_a_missing_target(found)
        elif found.missing:
            text = _about_a_target_that_is_denied(found.missing, box)
    return printable(text or hint("target", 0, error))


def _about_a_missing_target(found: Found) -> str:
    """Each missing directory of the root itself would have been made."""
    if found.is_dangling():
        text = f"the symbolic link {found.link} leads to {found.leads_to!r}, which the root lacks"
        return f"{text}: make that, or bind onto where it leads"
    if found.missing:
        text = f"there is no {found.missing}, and a mount point is made in the root itself only"
        return f"{text}: make it in what the mount above it shows"
    return "a symbolic link on the way leads to nothing"


def _about_a_target_that_is_denied(missing: str, box: Spec) -> str:
    above = os.path.dirname(missing)
    text = f"the root lacks {missing}, and uid {os.geteuid()} may not make it there"
    text += ": make it beforehand, or bind onto a path that the root has"
    if above != "/":
        text += f"; Mount.tmpfs({above!r}) before this mount hides the root's {above}, and takes it"
    elif box.tmp == "private":
        text += ", or below /tmp, which is the run's own"
    return text


def error_of(plan: Plan, step: int, index: int, error: int, job: Job) -> errors.SetupError:
    """The exception for a failed step."""
    name = native.STEPS[step]
    what, filename = _about(plan, name, index, job)
    if name == "exec":
        words = [job.program, *job.argv[1:]]
        remedy = hint_of_exec(plan.box, words, job.paths, job.cwd, index, error, plan.mounts)
    elif name == "target" and error in ENTRY_HINTS and plan.mounts[index].is_entry:
        remedy = ENTRY_HINTS[error]
    elif name == "target" and error == errno.ENOENT:
        remedy = hint_of_stub(error, plan.box, plan.mounts[index].target, plan.mounts)
    elif name == "capabilities":
        remedy = _hint_of_capabilities(plan, error)
    elif name == "cwd":
        remedy = hint_of_cwd(plan.box, job.cwd, error, plan.mounts)
    else:
        is_new = name == "source" and plan.mounts[index].source is None
        remedy = hint("filesystem" if is_new else name, index, error, plan.in_user_namespace)
        if is_new and error == errno.ENOENT and what.startswith("writable path"):
            remedy = "a path inside the root, which has to be there"
    if name == "limits":
        remedy = _limit_hint(index, error)
    if name == "source" and _is_of_a_process(plan.mounts[index].source or ""):
        remedy = f"{_LINK_OF_A_PROCESS}; give the path that the link shows (readlink)"
    if name in ("source", "root", "cwd") and error == errno.ENOENT and "/~" in f"/{filename}":
        remedy = f"'~' is not expanded: os.path.expanduser(); {remedy}"
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
        return f"exec {path!r} in the root {box._root_name}", path
    if step == "cwd":
        what = f"Unable to set current working directory: {job.cwd!r} in the root {box._root_name}"
        return what, job.cwd
    if step == "layer" and plan.overlay is not None:
        path = plan.overlay.path_of(index)
        return f"layer {index}, {path}, of {box._root_name}", path
    if step in _ROOT_STEPS:
        return f"{_ROOT_STEPS[step]} {box._root_name}", box._directory or None
    return _about_the_rest(plan, step, index)


def _about_the_rest(plan: Plan, step: str, index: int) -> tuple[str, str | None]:
    box = plan.box
    if step == "stdio":
        names = ("stdin", "stdout", "stderr", "status", "lifeline")
        return f"descriptor {names[index] if index < 5 else 'of pass_fds'}", None
    is_limit = step == "limits"
    text = _limit_text(index, plan.values[step]) if is_limit else _STEPS.get(step, step)
    if is_limit and index == RLIMITS["cpu_time"] and box.limits is not None:
        text = f"set the limit cpu_time={box.limits.cpu_time}"  # the other one is rounded up
    return text, None
