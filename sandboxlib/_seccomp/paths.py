# SPDX-License-Identifier: Apache-2.0
"""The system calls that take paths: the filter that stops them for a trace, and the table that
tells the tracer which of their arguments say what.

They are those of section 2 of the manual whose prototypes have a path; syscalls(2) lists all calls.
"""

from __future__ import annotations

from functools import lru_cache

from . import filters
from .bpf import ALLOW, AUDIT, EQUAL, Abi, compile_abis
from .syscalls import numbers_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .bpf import Rule

    Call = tuple[Any, ...]

NOTIFY = 0x7FC00000  # SECCOMP_RET_USER_NOTIF
#: enum sbx_path_what of csrc/sandbox.h.
ASKED, OPENED, EXECED, MAKES, MOVES, MOUNTS, OF_LINK, HOW = (1 << bit for bit in range(8))
MOST = 600  # SBX_MOST_CALLS: x32 has numbers up to 547

#: A call: its name, what it does, and which argument, counted from 1, is the descriptor of a
#: directory, a path, and flags (of open(2), or AT_*); 0: it has none. Then the same for a second
#: path: what, directory, path.
_OPENS: tuple[Call, ...] = (
    ("open", OPENED, 0, 1, 2),
    ("openat", OPENED, 1, 2, 3),
    ("openat2", OPENED | HOW, 1, 2, 3),
    ("creat", OPENED | MAKES, 0, 1, 0),
    ("uselib", OPENED, 0, 1, 0),
    ("execve", EXECED, 0, 1, 0),
    ("execveat", EXECED, 1, 2, 5),
    ("chdir", ASKED | MOVES, 0, 1, 0),
    ("fchdir", MOVES, 0, 0, 0),
    ("chroot", ASKED | MOVES | MOUNTS, 0, 1, 0),
    *((name, MOVES | MOUNTS, 0, 0, 0) for name in ("pivot_root", "setns", "unshare")),
    *((name, MOUNTS, 0, 0, 0) for name in ("mount", "move_mount", "umount2")),
    ("mkdir", MAKES, 0, 1, 0),
    ("mkdirat", MAKES, 1, 2, 0),
    ("mknod", MAKES, 0, 1, 0),
    ("mknodat", MAKES, 1, 2, 0),
    ("symlink", MAKES | OF_LINK, 0, 2, 0),
    ("symlinkat", MAKES | OF_LINK, 2, 3, 0),
    ("link", MAKES | OF_LINK, 0, 2, 0),
    ("linkat", MAKES | OF_LINK, 3, 4, 0),
    ("rename", MAKES | MOVES | OF_LINK, 0, 2, 0),
    ("renameat", MAKES | MOVES | OF_LINK, 3, 4, 0),
    ("renameat2", MAKES | MOVES | OF_LINK, 3, 4, 0),
)
_XATTR = ("setxattr", "getxattr", "listxattr", "removexattr")
_OTHERS: tuple[Call, ...] = (
    *((name, ASKED, 0, 1, 0) for name in ("stat", "stat64", "access", "truncate", "truncate64")),
    *((name, ASKED, 0, 1, 0) for name in ("chmod", "chown", "chown32", "utime", "utimes", "acct")),
    *((name, ASKED, 0, 1, 0) for name in ("statfs", "statfs64", "umount", "swapon")),
    *((name, ASKED, 0, 1, 0) for name in (*_XATTR, "swapoff", "oldstat")),
    ("oldlstat", ASKED | OF_LINK, 0, 1, 0),
    ("quotactl", ASKED, 0, 2, 0),
    *((name, ASKED | OF_LINK, 0, 1, 0) for name in ("lstat", "lstat64", "readlink", "lchown")),
    *((name, ASKED | OF_LINK, 0, 1, 0) for name in ("lchown32", "unlink", "rmdir")),
    *((f"l{name}", ASKED | OF_LINK, 0, 1, 0) for name in _XATTR),
    *((f"{name}at", ASKED, 1, 2, 3) for name in _XATTR),
    *((name, ASKED, 1, 2, 4) for name in ("newfstatat", "fstatat64", "faccessat2", "fchmodat2")),
    *((name, ASKED, 1, 2, 4) for name in ("utimensat", "utimensat_time64")),
    *((name, ASKED, 1, 2, 3) for name in ("statx", "open_tree", "open_tree_attr", "mount_setattr")),
    *((name, ASKED, 1, 2, 0) for name in ("faccessat", "fchmodat", "futimesat", "fspick")),
    *((name, ASKED, 1, 2, 5) for name in ("fchownat", "file_getattr", "file_setattr")),
    *((name, ASKED | OF_LINK, 1, 2, 0) for name in ("readlinkat", "unlinkat")),
    ("name_to_handle_at", ASKED | OF_LINK, 1, 2, 0),
    ("inotify_add_watch", ASKED, 0, 2, 0),
    ("mount", ASKED | MOUNTS, 0, 2, 0),
    ("umount2", ASKED | MOUNTS, 0, 1, 0),
    ("link", ASKED | OF_LINK, 0, 1, 0, MAKES | OF_LINK, 0, 2),
    ("linkat", ASKED | OF_LINK, 1, 2, 0, MAKES | OF_LINK, 3, 4),
    ("rename", ASKED | MOVES | OF_LINK, 0, 1, 0, MAKES | OF_LINK, 0, 2),
    ("renameat", ASKED | MOVES | OF_LINK, 1, 2, 0, MAKES | OF_LINK, 3, 4),
    ("renameat2", ASKED | MOVES | OF_LINK, 1, 2, 0, MAKES | OF_LINK, 3, 4),
)
#: Its 64-bit mask takes two arguments where they have 32 bits, so it is known in wide ABIs only.
_WIDE: tuple[Call, ...] = (("fanotify_mark", ASKED, 4, 5, 0),)
#: Calls by which libc asks for an open file, and the argument with AT_EMPTY_PATH: fstat(3).
_OF_FILES = {"newfstatat": 3, "fstatat64": 3, "statx": 2}
_EMPTY_PATH, _CURRENT = 0x1000, 0xFFFFFF9C  # AT_EMPTY_PATH, AT_FDCWD
#: A file that is asked for by its descriptor alone, the flag AT_EMPTY_PATH and no other.
_DIRECT = (0, EQUAL, 0xFFFFFFFF, _CURRENT, False)


def calls_of(every: bool) -> dict[str, tuple[int, ...]]:
    """The calls of a trace, by their names: what, directory, path and flags of the first path, then
    what, directory and path of the second.

    every: bool. False: those that open or execute a file, change the directory, or make a path.
    True: all.
    """
    listed = (*_OPENS, *_OTHERS, *_WIDE) if every else _OPENS
    return {name: (*fields, 0, 0, 0)[:7] for name, *fields in listed}


@lru_cache(maxsize=4)
def tracing(every: bool, machine: str = "") -> tuple[bytes, bytes, tuple[int, int]]:
    """What a tracer of a machine's programs takes: the filter, as the bytes of an array of
    struct sock_filter; the table, MOST entries of eight bytes for each of three ABIs (the
    machine's own, its 32-bit one, x32); and the AUDIT_ARCH_* of the first two.

    every: see calls_of. machine: as uname(2) names it; "" (the default): this machine. Raises
    UnsupportedError if there are no tables for it.
    """
    names = filters.abis(machine)
    table = bytearray(3 * MOST * 8)
    abis = []
    for position, name in enumerate(names):
        numbers = numbers_of(name)
        newest = max(number for number in numbers.values() if number & 0xFFFFFFF < 0xF0000)
        abi = Abi(name, default=ALLOW, newest=newest, beyond=ALLOW, skipped=ALLOW, x32=ALLOW)
        for call, fields in calls_of(every).items():
            if call not in numbers or (call == "fanotify_mark" and name in ("i386", "arm")):
                continue
            abi.calls[numbers[call]] = _rules(call)
            start = (position * MOST + (numbers[call] & 0xFFF)) * 8
            table[start : start + 8] = bytes((*fields, 0))
        abis.append(abi)
    audits = AUDIT[names[0]], AUDIT[names[1]]
    return compile_abis(abis, foreign=ALLOW), bytes(table), audits


def _rules(call: str) -> list[Rule]:
    if call not in _OF_FILES:
        return [((), NOTIFY)]
    is_empty = (_OF_FILES[call], EQUAL, 0xFFFFFFFF, _EMPTY_PATH, True)
    return [((is_empty, _DIRECT), ALLOW), ((), NOTIFY)]
