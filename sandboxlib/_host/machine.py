# SPDX-License-Identifier: Apache-2.0
"""What this machine forbids, why, and what an administrator can do about it.

One place for the knowledge that the hints of errors and `run-sandbox doctor` share. Nothing here
decides anything: whether an executor works is found by trying it.
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
    """The text of a small file, or "" where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def status(field: str) -> str:
    """A field of /proc/self/status (proc(5)), or ""."""
    for line in read("/proc/self/status").split("\n"):
        name, _, value = line.partition(":")
        if name == field:
            return value.strip()
    return ""


def kernel_is_older_than(major: int, minor: int) -> bool:
    """Whether uname(2) says so."""
    numbers = os.uname().release.split(".")[:2]
    try:
        return (int(numbers[0]), int("".join(filter(str.isdigit, numbers[1])))) < (major, minor)
    except (ValueError, IndexError):
        return False


Mounted = namedtuple("Mounted", "number root point type options")


def mounts(pid: int | str = "self") -> Iterator[Mounted]:
    """What a process sees mounted, in the order of proc_pid_mountinfo(5).

    number: the mount's ID. root: of its file system. options: those of its file system.
    Nothing where there is no /proc.
    """
    # A name may hold whatever str.split() takes for a space: the kernel puts b" " and b"\n" alone
    # between words and lines, and writes these in octal where they are part of a name.
    for fields in (line.split(b" ") for line in _mountinfo(pid).split(b"\n") if line):
        kind = fields.index(b"-", 6) + 1  # there are optional fields before it
        root, point, options = map(_plain, (fields[3], fields[4], fields[kind + 2]))
        yield Mounted(int(fields[0]), root, point, os.fsdecode(fields[kind]), options)


def _mountinfo(pid: int | str) -> bytes:
    try:
        with open(f"/proc/{pid}/mountinfo", "rb") as file:
            return file.read()
    except OSError:
        return b""


def _plain(word: bytes) -> str:
    """Characters that would part the words stand in octal, and so do the backslash and '#'."""
    if b"\\" not in word:  # nearly always, and this is done for every mount of the machine
        return os.fsdecode(word)
    for code, character in (
        (rb"\040", b" "),
        (rb"\011", b"\t"),
        (rb"\012", b"\n"),
        (rb"\043", b"#"),
        (rb"\134", b"\\"),
    ):
        word = word.replace(code, character)
    return os.fsdecode(word)


def real_path(path: str) -> str:
    """os.path.realpath of an absolute path, for any number of links. OSError: ELOOP where there are
    more than the kernel follows (path_resolution(7)).
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
            real = here  # no link, or nothing, or not to be seen: as it stands
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
    """Where file systems are mounted that may take for ever to answer: over a network, say."""
    kinds = tuple(_OVER_NETWORKS)
    return frozenset(mount.point for mount in mounts() if mount.type.startswith(kinds))


def may_hang(path: str, hanging: frozenset[str], root: str = "/") -> bool:
    """Whether the way to a path, inside the root, leads over one of those mount points.

    Told without going there: the way is gone as real_path() does, and only as far as that.
    """
    base = "/" if root == "/" else _way(root, "/", hanging)
    return base is None or _way(path, base, hanging) is None


def _way(path: str, base: str, hanging: frozenset[str]) -> str | None:
    """As real_path(), from a base that is none with links; None where it leads over a mount."""
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
            return real  # an error is sure to come, at once
        real = base if leads_to.startswith("/") else real
        todo += leads_to.split("/")[::-1]
    return None if real in hanging else real


def is_chrooted() -> bool:
    """Whether the caller's root is not the root of its mount namespace, as far as can be told."""
    return all(mount.point != "/" for mount in mounts())


def is_dumpable() -> bool:
    """Whether the files of the caller in /proc belong to it (proc(5))."""
    try:
        return os.stat("/proc/self/uid_map").st_uid == os.geteuid()
    except OSError:
        return True


def is_in_user_namespace() -> bool:
    """Whether the caller is in another user namespace than the machine's first."""
    return read("/proc/self/uid_map").split() not in ([], ["0", "0", "4294967295"])


def has_one_id() -> bool:
    """Whether the caller is in a user namespace in which only one uid exists."""
    counts = [int(line.split()[2]) for line in read("/proc/self/uid_map").splitlines()]
    return sum(counts) == 1


def is_root_of_the_machine() -> bool:
    """Whether the caller is uid 0 outside every user namespace as well."""
    maps = [[int(n) for n in line.split()] for line in read("/proc/self/uid_map").splitlines()]
    uid = os.geteuid()
    outside = [low + uid - first for first, low, count in maps if 0 <= uid - first < count]
    return 0 in outside if outside else uid == 0


def mount_point(path: str) -> str:
    """Where the mount begins on which a path lies."""
    point = real_path(os.path.abspath(path))
    while not os.path.ismount(point):
        point = os.path.dirname(point)
    return point


def mounts_below(path: str) -> list[str]:
    """The mount points below a path, not the path itself; none where it leads nowhere."""
    try:
        real = real_path(path).rstrip("/")
    except OSError:
        return []
    points = [mount.point for mount in mounts()]
    return [point for point in points if point.startswith(f"{real}/") and point != f"{real}/"]


def what_waits(pid: int) -> tuple[int, str]:
    """Of a process that was killed and those below it, one that does not end: its pid, and the
    function of the kernel that it waits in, or "".
    """
    todo, seen = [pid], 0
    found = pid, _waits_in(pid)
    while todo and seen < 500:
        process = todo.pop()
        seen += 1
        below = read(f"/proc/{process}/task/{process}/children").split()
        where = _waits_in(process)
        # A pid 1 waits for the end of its namespace: it is not what hangs.
        if where and where not in ("do_wait", "do_exit", "zap_pid_ns_processes"):
            return process, where
        todo += map(int, below)
    return found


def _waits_in(pid: int) -> str:
    """Of the first thread of a process that waits somewhere; threads that ended tell "0"."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return ""
    for thread in threads[:50]:
        where = read(f"/proc/{pid}/task/{thread}/wchan")
        if where not in ("", "0", "do_exit"):
            return where
    return ""


#: How the kernel calls the namespaces of each kind of isolation.
_KINDS = {"user": "", "mnt": "mounts", "net": "network", "pid": "processes", "ipc": "ipc"}

SECCOMP = (
    "a seccomp filter is in force, as in a container or in a sandbox",
    "docker run --security-opt seccomp=unconfined, or a profile that allows clone and mount calls; "
    "around it Policy(nesting=True), where that is a sandbox of sandboxlib",
)
MASKED_PROC = (
    "parts of the caller's /proc are hidden, as in a container, so the kernel gives no new one",
    "docker run --security-opt systempaths=unconfined, or processes='undefined'",
)


def missing_capabilities() -> list[tuple[str, str]]:
    """Which of the capabilities that isolation takes a caller that is root lacks."""
    bits = int(status("CapEff") or "0", 16)
    wanted = (("CAP_SYS_ADMIN", 21), ("CAP_SYS_CHROOT", 18))
    names = [name for name, bit in wanted if not bits >> bit & 1]
    return [(f"root lacks {name}", f"docker run --cap-add {name[4:]}") for name in names]


def limits(*kinds: str) -> list[tuple[str, str]]:
    """The sysctls user.max_*_namespaces that allow none; kinds: as in _KINDS, all by default."""
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
    """Why a process without privilege may not have a user namespace: (cause, remedy) pairs."""
    causes = limits()
    if read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        remedy = "sysctl -w kernel.unprivileged_userns_clone=1"
        causes.append(("sysctl kernel.unprivileged_userns_clone is 0", remedy))
    if read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        remedy = (
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile "
            "with 'userns,' for the calling program"
        )
        causes.append(("sysctl kernel.apparmor_restrict_unprivileged_userns is 1", remedy))
    if not is_dumpable():
        remedy = "execute a program after the change, or prctl(PR_SET_DUMPABLE, 1)"
        causes.append(("the caller changed its ids, so that its /proc files are root's", remedy))
    if is_chrooted():
        causes.append(("the caller is in a chroot", "call from a mount namespace of its own"))
    if status("Seccomp") == "2":
        causes.append(SECCOMP)
    if kernel_is_older_than(5, 12):
        causes.append((f"the kernel is {os.uname().release}", "Linux 5.12 or newer"))
    return causes


def proc_is_masked() -> bool:
    """Whether something is mounted over parts of /proc, as containers do."""
    return any(mount.point.startswith("/proc/") for mount in mounts())


def user_namespace_remedy(step: str, error: int) -> str:
    """The likely remedy for a step of a run in a user namespace, or ""."""
    if step in ("clone", "ids") or (step == "private" and error == errno.EACCES):
        causes = user_namespace_causes()
        return "; ".join(f"{cause}: {remedy}" for cause, remedy in causes)
    if step in ("source", "mount") and error == errno.EPERM and proc_is_masked():
        return ": ".join(MASKED_PROC)
    if step == "source" and error == errno.EPERM:
        return (
            "a proc of the caller's processes is the caller's: bind /proc, or processes='isolated'"
        )
    if step in ("source", "root") and error == errno.EINVAL:
        return "it hides mounts that a user namespace may not uncover: bind it recursively"
    return ""


def about_user_namespaces() -> list[tuple[str, str]]:
    """What the doctor says of user namespaces on this machine."""
    causes = user_namespace_causes()
    if proc_is_masked():
        causes.append(MASKED_PROC)
    return causes
