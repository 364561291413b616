# SPDX-License-Identifier: Apache-2.0
"""The restrictions of this machine, their causes, and what an administrator can do about each.

The hints of errors and `run-sandbox doctor` share this knowledge. Nothing here decides anything:
sandboxlib tries an executor to find out whether it works.
"""

from __future__ import annotations

import errno
import os
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


_MOST_LINKS = 40


def read(path: str) -> str:
    """The text of a small file, or "" if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def start_time_of(pid: int) -> int:
    """When a process started, in clock ticks since the boot: field 22 of /proc/PID/stat (proc(5)).
    0: it is gone, or dead already, or there is no /proc.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def status(field: str) -> str:
    """A field of /proc/self/status (proc(5)), or "" if there is no such field."""
    for line in read("/proc/self/status").split("\n"):
        name, _, value = line.partition(":")
        if name == field:
            return value.strip()
    return ""


def kernel_is_older_than(major: int, minor: int) -> bool:
    """Return True if the version that uname(2) gives is lower than major.minor."""
    numbers = os.uname().release.split(".")[:2]
    try:
        return (int(numbers[0]), int("".join(filter(str.isdigit, numbers[1])))) < (major, minor)
    except (ValueError, IndexError):
        return False


Mounted = namedtuple("Mounted", "number root point type options")


def mounts(pid: int | str = "self") -> Iterator[Mounted]:
    """The mounts that a process sees, in the order of proc_pid_mountinfo(5).

    number: the mount's ID. root: the directory of the file system that is mounted. options: those
    of the file system. Without a /proc there are none.
    """
    # Split at b" " and b"\n" only. The kernel writes these two in octal inside a name, but not the
    # other characters that str.split() takes for a space.
    for fields in (line.split(b" ") for line in _mountinfo(pid).split(b"\n") if line):
        kind = fields.index(b"-", 6) + 1  # there are optional fields before it
        root, point, options = map(_unescape, (fields[3], fields[4], fields[kind + 2]))
        yield Mounted(int(fields[0]), root, point, os.fsdecode(fields[kind]), options)


def _mountinfo(pid: int | str) -> bytes:
    try:
        with open(f"/proc/{pid}/mountinfo", "rb") as file:
            return file.read()
    except OSError:
        return b""


def _unescape(field: bytes) -> str:
    """A field of mountinfo as text: the kernel writes spaces, the backslash and '#' in octal."""
    if b"\\" not in field:  # nearly always true, and this runs for every mount of the machine
        return os.fsdecode(field)
    for code, character in (
        (rb"\040", b" "),
        (rb"\011", b"\t"),
        (rb"\012", b"\n"),
        (rb"\043", b"#"),
        (rb"\134", b"\\"),
    ):
        field = field.replace(code, character)
    return os.fsdecode(field)


def is_below(path: str, above: str) -> bool:
    """Whether a path is another one, or lies below it, by their names alone."""
    return path == above or path.startswith(above.rstrip("/") + "/")


def real_path(path: str) -> str:
    """os.path.realpath of an absolute path. Raises OSError (ELOOP) if there are more symbolic links
    than the kernel follows (path_resolution(7)).
    """
    real, todo, links = "/", path.split("/")[::-1], 0
    while todo:
        name = todo.pop()
        if name in ("", "."):
            continue
        if name == "..":
            real = os.path.dirname(real)
            continue
        here = os.path.join(real, name)
        try:
            leads_to = os.readlink(here)
        except OSError as error:
            if error.errno in (errno.ENOMEM, errno.ENAMETOOLONG):
                raise
            real = here  # it is no link, does not exist, or may not be read
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        real = "/" if leads_to.startswith("/") else real
        todo += leads_to.split("/")[::-1]
    return real


_OVER_NETWORKS = (
    "fuse nfs cifs smb 9p ceph afs lustre gpfs virtiofs autofs coda ocfs2 gfs2 beegfs orangefs"
).split()


def hanging_mounts() -> frozenset[str]:
    """The mount points of file systems that may never answer, such as those over a network."""
    kinds = tuple(_OVER_NETWORKS)
    return frozenset(mount.point for mount in mounts() if mount.type.startswith(kinds))


def may_wait(fd: int) -> bool:
    """Return True if the file of a descriptor lies on such a file system, or we cannot tell.

    Unlike statfs(2) this asks no server.
    """
    for line in read(f"/proc/self/fdinfo/{fd}").split("\n"):
        name, _, value = line.partition(":")
        if name == "mnt_id":
            kinds = [mount.type for mount in mounts() if mount.number == int(value)]
            return not kinds or kinds[0].startswith(tuple(_OVER_NETWORKS))
    return True


def may_hang(path: str, hanging: frozenset[str], root: str = "/") -> bool:
    """Return True if the way to a path, inside the root, leads over one of those mount points.

    It resolves the path as real_path() does, and stops at such a mount point without touching it.
    """
    base = "/" if root == "/" else _way(root, "/", hanging)
    return base is None or _way(path, base, hanging) is None


def _way(path: str, base: str, hanging: frozenset[str]) -> str | None:
    """As real_path(), with `base` (a path without links) as the root. Returns None if the way leads
    over a mount point in `hanging`.
    """
    real, todo, links = base, path.split("/")[::-1], 0
    while todo:
        if real in hanging:
            return None
        name = todo.pop()
        if name in ("", "."):
            continue
        if name == "..":
            real = real if real == base else os.path.dirname(real)
            continue
        here = os.path.join(real, name)
        if here in hanging:
            return None
        try:
            leads_to = os.readlink(here)
        except OSError:
            real = here
            continue
        links += 1
        if links > _MOST_LINKS:
            return real  # the kernel will refuse the path at once (ELOOP), so nothing hangs
        real = base if leads_to.startswith("/") else real
        todo += leads_to.split("/")[::-1]
    return None if real in hanging else real


def is_chrooted() -> bool:
    """Return True if the caller is in a chroot: then no mount of its namespace is at "/"."""
    return all(mount.point != "/" for mount in mounts())


def is_dumpable() -> bool:
    """Return True if the caller is dumpable: then its files in /proc belong to it (proc(5))."""
    try:
        return os.stat("/proc/self/uid_map").st_uid == os.geteuid()
    except OSError:
        return True


def is_in_user_namespace() -> bool:
    """Return True if the caller is not in the machine's first user namespace."""
    return read("/proc/self/uid_map").split() not in ([], ["0", "0", "4294967295"])


def has_one_id() -> bool:
    """Return True if the caller is in a user namespace in which only one uid exists."""
    counts = [int(line.split()[2]) for line in read("/proc/self/uid_map").splitlines()]
    return sum(counts) == 1


def is_root_of_the_machine() -> bool:
    """Return True if the caller is uid 0, and that is uid 0 outside its user namespace too."""
    maps = [[int(n) for n in line.split()] for line in read("/proc/self/uid_map").splitlines()]
    uid = os.geteuid()
    outside = [low + uid - first for first, low, count in maps if 0 <= uid - first < count]
    return 0 in outside if outside else uid == 0


def mount_point(path: str) -> str:
    """The mount point of the mount that a path lies on."""
    point = real_path(os.path.abspath(path))
    while not os.path.ismount(point):
        point = os.path.dirname(point)
    return point


def mounts_below(path: str) -> list[str]:
    """The mount points below a path, without the path itself; none if the path does not exist."""
    try:
        real = real_path(path).rstrip("/")
    except OSError:
        return []
    points = [mount.point for mount in mounts()]
    return [point for point in points if point.startswith(f"{real}/") and point != f"{real}/"]


def what_waits(pid: int) -> tuple[int, str]:
    """Find the process that hangs, among a process that was killed and its descendants.

    Returns its pid, and the kernel function that it waits in, or "" if that is not known.
    """
    todo, seen = [pid], 0
    first = pid, _waits_in(pid)
    while todo and seen < 500:
        process = todo.pop()
        seen += 1
        below = read(f"/proc/{process}/task/{process}/children").split()
        where = _waits_in(process)
        # A pid 1 that waits for the end of its namespace does not hang itself: another one does.
        if where and where not in ("do_wait", "do_exit", "zap_pid_ns_processes"):
            return process, where
        todo += map(int, below)
    return first


def _waits_in(pid: int) -> str:
    """The kernel function that a thread of the process waits in (a thread that ended has "0")."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return ""
    for thread in threads[:50]:
        where = read(f"/proc/{pid}/task/{thread}/wchan")
        if where not in ("", "0", "do_exit"):
            return where
    return ""


#: The kernel's names of namespaces, and the keyword argument of Sandbox for each.
_KINDS = {"user": "", "mnt": "mounts", "net": "network", "pid": "processes", "ipc": "ipc"}

_UNCONFINED = "docker run --security-opt seccomp=unconfined, or a profile that allows"
_NESTING = "if the caller is in a sandbox of sandboxlib, give that one Policy(nesting=True)"
SECCOMP = (
    "a seccomp filter is in force, as in a container or in a sandbox",
    f"{_UNCONFINED} clone and mount calls; {_NESTING}",
)
MASKED_PROC = (
    "parts of the caller's /proc are hidden, as in a container, so the kernel gives no new one",
    "docker run --security-opt systempaths=unconfined, or processes='undefined'",
)


#: For each step: the capability that the kernel asks for, its number (capability(7)), and what goes
#: without. Without mounts='isolated' chroot(2) takes CAP_SYS_CHROOT.
_NEEDED = {
    "clone": (("SYS_ADMIN", 21, ""),),
    "chroot": (("SYS_CHROOT", 18, ""),),
    "loopback": (("NET_ADMIN", 12, "network='undefined'"),),
    "capabilities": (("SETPCAP", 8, ""),),
    "user": (("SETUID", 7, "no user="), ("SETGID", 6, "no user=")),
}


def missing_capabilities(*steps: str) -> list[tuple[str, str]]:
    """The capabilities that root lacks for these steps, or for any: (cause, remedy) pairs."""
    bits = int(status("CapEff") or "0", 16)
    causes = []
    for step in steps or _NEEDED:
        for name, bit, instead in _NEEDED.get(step, ()):
            if not bits >> bit & 1:
                remedy = f"docker run --cap-add {name}" + (f", or {instead}" if instead else "")
                causes.append((f"root lacks CAP_{name}", remedy))
    return causes


#: The system calls of the steps that a filter around the caller may close.
_CALLS = {
    **{"lifeline": "pidfd_open", "clone": "clone", "session": "setsid", "keyring": "keyctl"},
    **{"parent_keyring": "keyctl", "loopback": "ioctl", "hostname": "sethostname"},
    **{"private": "mount", "root": "open_tree", "read_only": "mount_setattr"},
    **{"attach": "move_mount", "source": "open_tree", "target": "openat2", "mount": "move_mount"},
    **{"filesystem": "fsopen or fsmount", "fork": "clone", "cwd": "openat2"},
    **{
        "pivot": "pivot_root",
        "chroot": "chroot",
        "capabilities": "capset or prctl",
        "ids": "openat",
    },
    **{"no_new_privs": "prctl", "seccomp": "seccomp", "parent_death": "prctl", "user": "setresuid"},
    **{"personality": "personality", "scheduler": "sched_setscheduler", "nice": "setpriority"},
    **{"cpus": "sched_setaffinity", "reaper": "execveat", "terminal": "ioctl"},
}
#: What does without such a step.
_INSTEAD = {
    "keyring": "ipc='undefined'",
    "hostname": "no hostname=",
    "loopback": "network='undefined'",
    "personality": "no personality= nor deterministic=",
    "pivot": "mounts='undefined'",
}


def closed_by_a_filter(step: str, error: int) -> str:
    """The likely remedy if a seccomp filter around the caller closes the call of a step, or "".

    Docker's default filter answers EPERM, and ENOSYS to calls that are newer than itself.
    """
    if error not in (errno.EPERM, errno.ENOSYS) or status("Seccomp") != "2" or step not in _CALLS:
        return ""
    call = _CALLS[step]
    text = f"a seccomp filter around the caller seems to close {call}, as a container's does"
    instead = f", or {_INSTEAD[step]}" if step in _INSTEAD else ""
    return f"{text}: {_UNCONFINED} it{instead}; {_NESTING}"


def limits(*kinds: str) -> list[tuple[str, str]]:
    """The sysctls user.max_*_namespaces that are 0: (cause, remedy) pairs. kinds: keys of _KINDS;
    all of them by default.
    """
    causes = []
    for kind in kinds or _KINDS:
        name = f"user.max_{kind}_namespaces"
        if read(f"/proc/sys/{name.replace('.', '/')}") == "0":
            remedy = f"sysctl -w {name}=15000"
            if _KINDS[kind]:
                remedy += f", or {_KINDS[kind]}='undefined'"
            causes.append((f"sysctl {name} is 0", remedy))
    return causes


def user_namespace_causes() -> list[tuple[str, str]]:
    """Why a process without privilege cannot make a user namespace: (cause, remedy) pairs."""
    causes = limits()
    if read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        remedy = "sysctl -w kernel.unprivileged_userns_clone=1"
        causes.append(("sysctl kernel.unprivileged_userns_clone is 0", remedy))
    if read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        remedy = (
            f"as root: {apparmor_profile()}; or for all programs of the machine: "
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
        )
        causes.append(("sysctl kernel.apparmor_restrict_unprivileged_userns is 1", remedy))
    if not is_dumpable():
        remedy = "execute a program after the change, or prctl(PR_SET_DUMPABLE, 1)"
        causes.append(("the caller changed its ids, so its /proc files belong to root", remedy))
    if is_chrooted():
        remedy = (
            "let root start the caller by pivot_root in place of chroot (systemd-nspawn, bwrap)"
        )
        causes.append(("the caller is in a chroot", remedy))
    if status("Seccomp") == "2":
        causes.append(SECCOMP)
    if kernel_is_older_than(5, 12):
        causes.append((f"the kernel is {os.uname().release}", "Linux 5.12 or newer"))
    return causes


def apparmor_profile() -> str:
    """The command that lets the calling program make user namespaces (apparmor.d(5))."""
    import sys

    program = os.path.realpath(sys.executable or "/usr/bin/python3")
    file = "/etc/apparmor.d/sandboxlib"
    lines = (
        "abi <abi/4.0>,",
        "include <tunables/global>",
        f'profile sandboxlib "{program}" flags=(unconfined) {{',
        "  userns,",
        "}",
    )
    text = "\\n".join(lines)
    return f"printf '{text}\\n' > {file} && apparmor_parser -r {file}"


def proc_is_masked() -> bool:
    """Return True if a mount covers a part of /proc, as in most containers."""
    return any(mount.point.startswith("/proc/") for mount in mounts())


def user_namespace_remedy(step: str, error: int) -> str:
    """The likely remedy for a step that failed in a user namespace, or ""."""
    if step in ("clone", "ids") or (step == "private" and error == errno.EACCES):
        causes = user_namespace_causes()
        return "; ".join(f"{cause}: {remedy}" for cause, remedy in causes)
    if step in ("source", "filesystem", "mount") and error == errno.EPERM and proc_is_masked():
        return ": ".join(MASKED_PROC)
    if step in ("source", "filesystem") and error == errno.EPERM and status("Seccomp") != "2":
        return (
            "only the owner of a pid namespace can mount its proc: bind /proc, or use"
            " processes='isolated'"
        )
    if step in ("source", "root") and error == errno.EINVAL:
        return "it hides mounts, and a user namespace may not uncover them: bind it recursively"
    return ""


def about_user_namespaces() -> list[tuple[str, str]]:
    """The restrictions of user namespaces on this machine, for the doctor."""
    causes = user_namespace_causes()
    if proc_is_masked():
        causes.append(MASKED_PROC)
    return causes


def has_handlers() -> bool:
    """Whether the kernel runs files of other formats than ELF and #! (binfmt_misc)."""
    try:
        return bool(set(os.listdir("/proc/sys/fs/binfmt_misc")) - {"register", "status"})
    except OSError:
        return False
