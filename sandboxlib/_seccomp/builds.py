# SPDX-License-Identifier: Apache-2.0
"""The profile 'builds': the system calls that it closes, and the conditions that open them.

docs/seccomp.md has the reasons. After a change here, run: python make_syscalls.py made
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

#: The closed calls, the answer to them, and the openers, of which one is enough: a capability,
#: "nesting", or "slot" (the filter of a slot). Some machines lack some of the calls.
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
    # The address family is in the caller's memory, which no filter can read.
    ("socketcall", ENOSYS, ""),
)  # fmt: skip
CLONE_NEWUSER = 0x10000000
#: CLONE_NEWUSER, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWPID and NEWNET.
CLONE_NEW = 0x7E020000
#: Without a reaper, this flag would make the new process a child of the caller.
CLONE_PARENT = 0x8000
CLONE_NEWTIME = 0x80  # a flag of unshare; in clone it is a part of a signal number
#: All bits of a personality but PER_LINUX32, UNAME26 and ADDR_NO_RANDOMIZE, which are open.
ODD_PERSONALITY = 0xFFFFFFFF & ~(0x8 | 0x20000 | 0x40000)
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET = 1, 2, 10, 16, 17
SOCK_TYPE, SOCK_PACKET = 0xF, 10
IPPROTO_IPV6, IPV6_FLOWLABEL_MGR = 41, 32
TIOCSTI, TIOCLINUX = 0x5412, 0x541C


def compile_builds(openers: frozenset[str], abis: Sequence[str]) -> bytes:
    """Compile the program for a machine with these ABIs. openers: as in CLOSED, or "net_raw"."""
    tables = []
    for name in abis:
        if name == "x32":  # it is closed as a whole: Abi(x32=) answers its calls
            continue
        numbers = numbers_of(name)
        # A call that is newer than the table gets ENOSYS, as on older kernels, until a developer
        # has decided about it.
        newest = max(number for number in numbers.values() if number < 0xF0000)
        abi = Abi(name, default=ALLOW, newest=newest, beyond=ENOSYS, skipped=ALLOW, x32=ENOSYS)
        # A resident makes calls of the machine's own ABI.
        answers = _answers(openers if name == abis[0] else openers - {"slot"})
        for call, rules in answers.items():
            if call in numbers:
                abi.calls[numbers[call]] = rules
        for number in numbers.values():
            if number > newest:  # the private calls of 32-bit ARM
                abi.calls[number] = [((), ALLOW)]
        tables.append(abi)
    return compile_abis(tables, foreign=ENOSYS)


def _answers(openers: frozenset[str]) -> dict[str, list[Rule]]:
    answers = _conditional_answers(openers)
    for names, answer, opened_by in CLOSED:
        if openers.isdisjoint(opened_by.split()):
            answers.update({name: [((), answer)] for name in names.split()})
    return answers


def _is(index: int, value: int, bits: int = 0xFFFFFFFF) -> Condition:
    """A condition on the lower 32 bits of an argument; in these calls the kernel uses no others."""
    return (index, EQUAL, bits, value, True)


def _conditional_answers(openers: frozenset[str]) -> dict[str, list[Rule]]:
    """The rules of the calls that are closed only for some arguments."""
    families = [AF_UNIX, AF_INET, AF_INET6, AF_NETLINK]
    sockets: list[Rule] = []
    if "net_raw" in openers:
        families.append(AF_PACKET)
    else:  # AF_INET with this type is an old way to open an AF_PACKET socket
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
            ((_is(0, 0xFFFFFFFF),), ALLOW),  # this value only asks for the current personality
            ((), EPERM),
        ],
    }
    if openers.isdisjoint(("sys_admin", "nesting")):
        spaces = CLONE_NEWUSER if "slot" in openers else CLONE_NEW
        times = 0 if "slot" in openers else CLONE_NEWTIME
        answers["clone"] = [((_is(0, 0, spaces | CLONE_PARENT),), ALLOW), ((), EPERM)]
        answers["unshare"] = [((_is(0, 0, spaces | times),), ALLOW), ((), EPERM)]
    return answers
