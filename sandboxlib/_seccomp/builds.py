# SPDX-License-Identifier: Apache-2.0
"""What the profile 'builds' closes, and what opens it. docs/seccomp.md has the reasons.

After a change here: python make_syscalls.py
"""

from __future__ import annotations

import errno

from .bpf import ALLOW, EQUAL, ERRNO, Abi, compile_abis
from .syscalls import numbers_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .bpf import Condition, Rule

EPERM, ENOSYS, EAFNOSUPPORT = (
    ERRNO | number for number in (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT)
)

#: Calls that are closed, what they answer, and what opens them: one of these capabilities,
#: nesting, or being the filter of a slot. Machines lack some of them.
CLOSED = (
    ("mount umount2 pivot_root fsopen fsconfig fsmount open_tree move_mount mount_setattr", EPERM,
     "sys_admin nesting slot"),
    ("umount fspick open_tree_attr", EPERM, "sys_admin nesting"),
    ("setns", EPERM, "sys_admin nesting"),
    ("sethostname setdomainname", EPERM, "sys_admin nesting slot"),
    ("clone3 listns", ENOSYS, "sys_admin nesting"),
    ("add_key request_key keyctl", EPERM, ""),
    ("bpf", EPERM, "sys_admin bpf"),
    ("perf_event_open", EPERM, "sys_admin perfmon"),
    ("io_uring_setup io_uring_enter io_uring_register", ENOSYS, ""),
    ("userfaultfd", EPERM, ""),
    ("fanotify_init", EPERM, "sys_admin"),
    ("kexec_load kexec_file_load", EPERM, ""),
    ("create_module init_module finit_module delete_module get_kernel_syms query_module", EPERM,
     "sys_module"),
    ("swapon swapoff", EPERM, ""),
    ("quotactl quotactl_fd", EPERM, "sys_admin"),
    ("acct", EPERM, "sys_pacct"),
    ("settimeofday stime clock_settime clock_settime64 adjtimex clock_adjtime clock_adjtime64",
     EPERM, "sys_time"),
    ("iopl ioperm", EPERM, "sys_rawio"),
    ("open_by_handle_at", EPERM, "dac_read_search"),
    ("kcmp", EPERM, "sys_ptrace"),
    ("reboot", EPERM, "sys_boot"),
    ("syslog", EPERM, "syslog sys_admin"),
    ("nfsservctl uselib", ENOSYS, ""),
    # The family is in the caller's memory, where no filter looks.
    ("socketcall", ENOSYS, ""),
)  # fmt: skip
CLONE_NEWUSER = 0x10000000
#: With CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWPID and NEWNET.
CLONE_NEW = 0x7E020000
#: The new process would be a child of the caller's, where there is no reaper.
CLONE_PARENT = 0x8000
CLONE_NEWTIME = 0x80  # of unshare; of clone it is part of a signal's number
#: Of the personalities: PER_LINUX32, UNAME26 and ADDR_NO_RANDOMIZE are open.
ODD_PERSONALITY = 0xFFFFFFFF & ~(0x8 | 0x20000 | 0x40000)
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET = 1, 2, 10, 16, 17
SOCK_TYPE, SOCK_PACKET = 0xF, 10
IPPROTO_IPV6, IPV6_FLOWLABEL_MGR = 41, 32
TIOCSTI, TIOCLINUX = 0x5412, 0x541C


def compile_builds(openers: frozenset[str], abis: Sequence[str]) -> bytes:
    """The program for what is open (see CLOSED, and "net_raw") on a machine with these ABIs."""
    tables = []
    for name in abis:
        if name == "x32":  # closed: its numbers are beyond those of x86_64
            continue
        numbers = numbers_of(name)
        # Newer calls are ENOSYS, as on older kernels, until somebody has looked at them.
        newest = max(number for number in numbers.values() if number < 0xF0000)
        abi = Abi(name, default=ALLOW, newest=newest, beyond=ENOSYS, skipped=ALLOW, x32=ENOSYS)
        # A resident makes calls of the machine's own ABI.
        answers = _answers(openers if name == abis[0] else openers - {"slot"})
        for call, rules in answers.items():
            if call in numbers:
                abi.calls[numbers[call]] = rules
        for number in numbers.values():
            if number > newest:  # 32-bit ARM's own
                abi.calls[number] = [((), ALLOW)]
        tables.append(abi)
    return compile_abis(tables, foreign=ENOSYS)


def _answers(openers: frozenset[str]) -> dict[str, list[Rule]]:
    answers = _looked_at(openers)
    for names, answer, opened_by in CLOSED:
        if openers.isdisjoint(opened_by.split()):
            answers.update({name: [((), answer)] for name in names.split()})
    return answers


def _is(index: int, value: int, bits: int = 0xFFFFFFFF) -> Condition:
    """Some of the lower 32 bits of an argument: of these calls the kernel sees no others."""
    return (index, EQUAL, bits, value, True)


def _looked_at(openers: frozenset[str]) -> dict[str, list[Rule]]:
    """Calls that are closed for some arguments."""
    families = [AF_UNIX, AF_INET, AF_INET6, AF_NETLINK]
    sockets: list[Rule] = []
    if "net_raw" in openers:
        families.append(AF_PACKET)
    else:  # AF_INET with this type is AF_PACKET by an older name
        old_packet = (_is(0, AF_INET), _is(1, SOCK_PACKET, SOCK_TYPE))
        sockets.append((old_packet, EAFNOSUPPORT))
    sockets += [((_is(0, family),), ALLOW) for family in families]
    sockets.append(((), EAFNOSUPPORT))
    answers: dict[str, list[Rule]] = {
        "socket": sockets,
        "socketpair": sockets,
        "ioctl": [*(((_is(1, call),), EPERM) for call in (TIOCSTI, TIOCLINUX)), ((), ALLOW)],
        "setsockopt": [
            ((_is(1, IPPROTO_IPV6), _is(2, IPV6_FLOWLABEL_MGR)), EPERM),
            ((), ALLOW),
        ],
        "personality": [
            ((_is(0, 0, ODD_PERSONALITY),), ALLOW),
            ((_is(0, 0xFFFFFFFF),), ALLOW),  # asks which one it is
            ((), EPERM),
        ],
    }
    if openers.isdisjoint(("sys_admin", "nesting")):
        spaces = CLONE_NEWUSER if "slot" in openers else CLONE_NEW
        times = 0 if "slot" in openers else CLONE_NEWTIME
        answers["clone"] = [((_is(0, 0, spaces | CLONE_PARENT),), ALLOW), ((), EPERM)]
        answers["unshare"] = [((_is(0, 0, spaces | times),), ALLOW), ((), EPERM)]
    return answers
