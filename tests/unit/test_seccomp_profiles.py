# SPDX-License-Identifier: Apache-2.0
"""OCI and Docker seccomp profiles: what their programs answer, held against the words of the
profile, and against libseccomp.
"""

from __future__ import annotations

import errno
import json
import random
from typing import Any

import pytest
from lib import bpf
from lib.bpf import ALLOW, AUDIT, ERRNO, answer

from sandboxlib import SpecError
from sandboxlib._seccomp import filters as _seccomp
from sandboxlib._seccomp import syscalls

EPERM, ENOSYS = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
ACTIONS = {
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_KILL_THREAD": 0,
    "SCMP_ACT_KILL": 0,
    "SCMP_ACT_TRAP": 0x30000,
    "SCMP_ACT_ERRNO": ERRNO,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": ALLOW,
}
SEVERITY = [0x80000000, 0, 0x30000, ERRNO, 0x7FFC0000, ALLOW]
WIDE = ("x86_64", "aarch64")
#: Calls that i386 has twice, and those that libseccomp rewrites for it.
TWICE = {"socketcall", "ipc"}

#: Of the shape of the default profile of container engines, in words of our own.
NEW_SPACES = 0x7E020000
SHAPE: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 1,
    "archMap": [
        {
            "architecture": "SCMP_ARCH_X86_64",
            "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        },
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
        {"architecture": "SCMP_ARCH_S390X", "subArchitectures": ["SCMP_ARCH_S390"]},
        {"architecture": "SCMP_ARCH_RISCV64", "subArchitectures": None},
    ],
    "syscalls": [
        {
            "names": (
                "read write open openat close stat fstat lstat newfstatat mmap mmap2 munmap brk "
                "execve exit exit_group fork vfork wait4 waitid kill getpid gettid getuid getuid32 "
                "setuid setgid fcntl fcntl64 ioctl pipe pipe2 dup dup2 dup3 bind connect listen "
                "accept accept4 sendto recvfrom sendmsg recvmsg setsockopt getsockopt socketcall "
                "ipc semget semop shmget futex futex_time64 clock_gettime clock_gettime64 rseq "
                "statx faccessat2 openat2 close_range epoll_wait select _newselect prctl seccomp "
                "rt_sigaction rt_sigprocmask rt_sigreturn sigreturn mkdir unlink rename renameat2 "
                "futex_waitv memfd_secret set_robust_list no_such_call_at_all"
            ).split(),
            "action": "SCMP_ACT_ALLOW",
        },
        {
            "names": ["process_vm_readv", "process_vm_writev", "ptrace"],
            "action": "SCMP_ACT_ALLOW",
            "includes": {"minKernel": "4.8"},
        },
        {
            "names": ["process_madvise"],
            "action": "SCMP_ACT_ALLOW",
            "includes": {"minKernel": "99.0"},
        },
        {
            "names": ["socket"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 38, "op": "SCMP_CMP_LT"}],
        },
        *(
            {
                "names": ["socket"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": family, "valueTwo": 0, "op": "SCMP_CMP_EQ"}],
            }
            for family in (39, 41, 42, 43)
        ),
        *(
            {
                "names": ["personality"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}],
            }
            for value in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF)
        ),
        {
            "names": ["arch_prctl", "modify_ldt"],
            "action": "SCMP_ACT_ALLOW",
            "includes": {"arches": ["amd64", "x32"]},
        },
        {
            "names": ["cacheflush", "set_tls"],
            "action": "SCMP_ACT_ALLOW",
            "includes": {"arches": ["arm", "arm64"]},
        },
        {
            "names": ["bpf", "clone", "clone3", "mount", "umount2", "unshare", "setns"],
            "action": "SCMP_ACT_ALLOW",
            "includes": {"caps": ["CAP_SYS_ADMIN"]},
        },
        {
            "names": ["clone"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": NEW_SPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
            "excludes": {"caps": ["CAP_SYS_ADMIN"], "arches": ["s390", "s390x"]},
        },
        {
            "name": "clone3",
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 38,
            "args": None,
            "comment": "its flags are in memory",
            "excludes": {"caps": ["CAP_SYS_ADMIN"]},
        },
        {
            "names": ["chroot"],
            "action": "SCMP_ACT_ALLOW",
            "includes": {"caps": ["CAP_SYS_CHROOT"]},
        },
        {
            "names": ["kcmp", "pidfd_getfd"],
            "action": "SCMP_ACT_ALLOW",
            "includes": {"caps": ["CAP_SYS_PTRACE", "CAP_SYS_CHROOT"]},
        },
    ],
}


def returned(action: str, number: int | None) -> int:
    if action == "SCMP_ACT_ERRNO":
        return ERRNO | (errno.EPERM if number is None else number)
    return ACTIONS[action]


def default_of(profile: dict[str, Any]) -> int:
    return returned(profile["defaultAction"], profile.get("defaultErrnoRet"))


def rules_of(profile: dict[str, Any]) -> list[tuple[int, str, list[dict[str, Any]]]]:
    """Action, name and conditions, of a profile without includes and excludes."""
    return [
        (
            ACTIONS[entry["action"]]
            | entry.get("errnoRet", 1 if "ERRNO" in entry["action"] else 0),
            name,
            entry.get("args") or [],
        )
        for entry in profile["syscalls"]
        for name in entry["names"]
    ]


def holds(condition: dict[str, Any], args: list[int], wide: bool) -> bool:
    bits = (1 << 64 if wide else 1 << 32) - 1
    arg, value = args[condition["index"]] & bits, condition["value"] & bits
    if condition["op"] == "SCMP_CMP_MASKED_EQ":
        return arg & value == condition["valueTwo"] & value
    return {
        "SCMP_CMP_EQ": arg == value,
        "SCMP_CMP_NE": arg != value,
        "SCMP_CMP_LT": arg < value,
        "SCMP_CMP_LE": arg <= value,
        "SCMP_CMP_GT": arg > value,
        "SCMP_CMP_GE": arg >= value,
    }[condition["op"]]


def matching(profile: dict[str, Any], abi: str, name: str, args: list[int]) -> list[int]:
    """The actions of all rules that hold; of those without conditions the first."""
    found = []
    always = False
    for action, call, conditions in rules_of(profile):
        if call == name and not (always and not conditions):
            always = always or not conditions
            held = [holds(condition, args, abi in WIDE) for condition in conditions]
            several = len({c["index"] for c in conditions}) < len(conditions)
            if (any if several else all)(held):
                found.append(action)
    return found


def described(profile: dict[str, Any], abi: str, name: str, args: list[int]) -> int:
    """The answer that a profile without includes, excludes and i386's multiplexers must give."""
    found = matching(profile, abi, name, args)
    if found:
        return min(found, key=lambda action: SEVERITY.index(severe(action)))
    default = default_of(profile)
    numbers = syscalls.numbers_of(abi)
    named = [numbers[call] for _, call, _ in rules_of(profile) if call in numbers]
    if "ERRNO" in profile["defaultAction"] and named and numbers[name] > max(named):
        return ENOSYS
    return default


def severe(action: int) -> int:
    return action & 0xFFFF0000 if action & 0x7FFF0000 == ERRNO else action


CALLS = (
    "read write clone personality ioctl socket semop mmap fcntl prctl futex openat2 setns umount "
    "time lseek sched_yield cachestat"
).split()
VALUES = [0, 1, 5, 7, 8, 0xFF, 1 << 16, 0xFFFFFFFF, 1 << 32, (1 << 32) + 7, 1 << 63, (1 << 64) - 1]


def some_profile(chance: random.Random) -> dict[str, Any]:
    """Rules of every kind."""

    def condition() -> dict[str, Any]:
        word = chance.choice("EQ NE LT LE GT GE MASKED_EQ MASKED_EQ".split())
        found = {"index": chance.randrange(6), "value": value(), "op": f"SCMP_CMP_{word}"}
        if word == "MASKED_EQ":
            found["valueTwo"] = value()
        return found

    def value() -> int:
        return chance.choice(VALUES) | (chance.choice(VALUES) if chance.random() < 0.3 else 0)

    actions = chance.sample(list(ACTIONS), 2)
    profile: dict[str, Any] = {"defaultAction": chance.choice(list(ACTIONS)), "syscalls": []}
    if profile["defaultAction"] == "SCMP_ACT_ERRNO":
        profile["defaultErrnoRet"] = chance.choice([1, 38, 97])
    profile["architectures"] = ["SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_ARM"]
    for _ in range(chance.randrange(1, 12)):
        entry: dict[str, Any] = {
            "names": chance.sample(CALLS, chance.randrange(1, 4)),
            "action": chance.choice(actions),
            "args": [condition() for _ in range(chance.choice([0, 1, 1, 2, 3]))],
        }
        if entry["action"] == "SCMP_ACT_ERRNO" and chance.random() < 0.5:
            entry["errnoRet"] = chance.choice([1, 13, 4094])
        profile["syscalls"].append(entry)
    return profile


def some_args(chance: random.Random, profile: dict[str, Any]) -> list[int]:
    """Near the values that the profile compares with."""
    values = [
        condition[key]
        for _, _, conditions in rules_of(profile)
        for condition in conditions
        for key in ("value", "valueTwo")
        if key in condition
    ] + VALUES
    args = []
    for _ in range(6):
        arg = chance.choice(values) + chance.choice([0, 0, 0, 1, -1])
        if chance.random() < 0.2:
            arg ^= 1 << chance.randrange(64)
        args.append(arg & (1 << 64) - 1)
    return args


@pytest.mark.parametrize("seed", range(16))
@pytest.mark.slow
def test_programs_answer_as_the_profile_says(seed: int) -> None:
    chance = random.Random(seed)
    profile = some_profile(chance)
    for machine, abis in (("x86_64", ["x86_64", "i386", "x32"]), ("aarch64", ["aarch64", "arm"])):
        program = _seccomp.from_profile(json.dumps(profile), machine=machine)
        assert program == _seccomp.from_profile(profile, machine=machine)
        for abi in abis:
            for name, number in syscalls.numbers_of(abi).items():
                if name in TWICE or number > 0xF0000 != (abi == "x32"):
                    continue
                for args in [some_args(chance, profile) for _ in range(15 if name in CALLS else 1)]:
                    found = answer(program, AUDIT[abi], number, args)
                    assert found == described(profile, abi, name, args), (abi, name, args)


def as_rules(profile: dict[str, Any], abi: str) -> list[Any]:
    """For libseccomp, as runc hands them over: what is the default is left out.

    And the calls that the ABI lacks: libseccomp 2.5.4 then spoils the rule before.
    """
    numbers = syscalls.numbers_of(abi)
    default = default_of(profile)
    rules = []
    for action, name, conditions in rules_of(profile):
        if action == default or name not in numbers:
            continue
        args = [
            (
                condition["index"],
                condition["op"].removeprefix("SCMP_CMP_"),
                *(condition[key] for key in ("value", "valueTwo") if key in condition),
            )
            for condition in conditions
        ]
        if len({condition["index"] for condition in conditions}) < len(conditions):
            rules += [(action, name, arg) for arg in args]
        else:
            rules.append((action, name, *args))
    return rules


def plain_profile(chance: random.Random) -> dict[str, Any]:
    """For each call one rule, or several that compare one argument with values. (libseccomp 2.5.4
    merges rules about different arguments into trees that lose some of them.)
    """
    profile = some_profile(chance)
    entries = []
    for name in chance.sample(CALLS, 8):
        entry = {**chance.choice(some_profile(chance)["syscalls"]), "names": [name]}
        args = {condition["index"]: condition for condition in entry["args"]}
        entry["args"] = list(args.values())
        entries.append(entry)
        if len(args) == 1 and entry["args"][0]["op"] == "SCMP_CMP_EQ":
            for value in chance.sample(VALUES, 3):
                entries.append({**entry, "args": [{**entry["args"][0], "value": value}]})
    return {**profile, "syscalls": entries}


@pytest.mark.parametrize("abi", ["x86_64", "i386", "x32", "aarch64", "arm"])
@pytest.mark.slow
def test_libseccomp_makes_the_same_of_profiles(abi: str) -> None:
    chance = random.Random(abi)
    profiles = [plain_profile(chance) for _ in range(24)]
    machine = {"arm": "aarch64", "aarch64": "aarch64"}.get(abi, "x86_64")
    filters: list[Any] = [(default_of(one), 0, [abi], as_rules(one, abi)) for one in profiles]
    oracles, unknown = bpf.libseccomp(filters)
    numbers = syscalls.numbers_of(abi)
    for profile, oracle in zip(profiles, oracles, strict=True):
        program = _seccomp.from_profile(profile, machine=machine)
        for name in CALLS:
            if name not in numbers or name in unknown:
                continue
            for _ in range(20):
                args = some_args(chance, profile)
                if described(profile, abi, name, args) == ENOSYS:
                    continue
                theirs = answer(oracle, AUDIT[abi], numbers[name], args)
                ours = answer(program, AUDIT[abi], numbers[name], args)
                rules = [rule for rule in as_rules(profile, abi) if rule[1] == name]
                assert ours == theirs, (name, args, rules)


CAPABILITIES = [
    frozenset[str](),
    frozenset({"sys_admin"}),
    frozenset({"sys_ptrace"}),
    frozenset({"sys_ptrace", "sys_chroot"}),
]


def applied(capabilities: frozenset[str], machine: str) -> dict[str, Any]:
    """The shape, with includes and excludes as they are for these."""
    entries = []
    go = {"x86_64": "amd64", "aarch64": "arm64"}[machine]
    for entry in SHAPE["syscalls"]:
        includes, excludes = entry.get("includes", {}), entry.get("excludes", {})
        have = {f"CAP_{name.upper()}" for name in capabilities}
        wanted = set(includes.get("caps", ())) <= have
        wanted = wanted and go in includes.get("arches", [go])
        wanted = wanted and includes.get("minKernel") != "99.0"
        wanted = wanted and have.isdisjoint(excludes.get("caps", ()))
        if wanted:
            entries.append({**entry, "names": entry.get("names") or [entry["name"]]})
    return {**SHAPE, "syscalls": entries}


@pytest.mark.parametrize("capabilities", CAPABILITIES)
@pytest.mark.parametrize("abi", ["x86_64", "i386", "x32", "aarch64", "arm"])
def test_a_profile_of_the_shape_of_dockers(abi: str, capabilities: frozenset[str]) -> None:
    machine = {"arm": "aarch64", "aarch64": "aarch64"}.get(abi, "x86_64")
    plain = applied(capabilities, machine)
    (oracle,), unknown = bpf.libseccomp([(EPERM, 0, [abi], as_rules(plain, abi))])
    program = _seccomp.from_profile(SHAPE, capabilities, machine=machine)
    chance = random.Random(abi)
    numbers = syscalls.numbers_of(abi)
    often = "clone personality socket".split()
    for name in [*numbers, *often * 300]:
        args = some_args(chance, plain)
        if chance.random() < 0.3:
            args[0] = chance.choice([38, 39, 40, 41, 44, NEW_SPACES, 0x10000000, 0x11])
        expected = described(plain, abi, name, args)
        found = answer(program, AUDIT[abi], numbers[name], args)
        assert found == expected, (name, args)
        if expected != ENOSYS and name not in unknown:
            assert found == answer(oracle, AUDIT[abi], numbers[name], args), (name, args)
    newest = max(nr for name, nr in numbers.items() if name in {n for _, n, _ in rules_of(plain)})
    assert answer(program, AUDIT[abi], newest + 1) == ENOSYS


def test_other_abis_are_killed() -> None:
    profile = {"defaultAction": "SCMP_ACT_ALLOW"}
    program = _seccomp.from_profile(profile, machine="x86_64")
    assert answer(program, AUDIT["x86_64"], 39) == ALLOW
    assert answer(program, AUDIT["x86_64"], 0x40000000 | 39) == 0
    assert answer(program, AUDIT["x86_64"], 0xFFFFFFFF) == ALLOW
    assert answer(program, AUDIT["i386"], 20) == 0
    assert answer(program, AUDIT["aarch64"], 172) == 0
    program = _seccomp.from_profile(
        {**profile, "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_S390X"]}, machine="x86_64"
    )
    assert answer(program, AUDIT["i386"], 20) == ALLOW


@pytest.mark.parametrize(
    ("entries", "number", "args", "expected"),
    [
        # what is closed is closed by the other way as well, for all arguments
        ([("socket", "ERRNO", [])], 102, [1], EPERM),
        ([("socket", "ERRNO", [40])], 102, [1], EPERM),
        ([("socket", "ERRNO", [40])], 102, [8], ALLOW),
        ([("accept", "ERRNO", [])], 102, [5], EPERM),
        ([("semop", "ERRNO", [])], 117, [1], EPERM),
        ([("semop", "ERRNO", [])], 117, [0x10001], EPERM),
        ([("semop", "ERRNO", [])], 117, [2], ALLOW),
        # who names the other way decides about it
        ([("socket", "ERRNO", []), ("socketcall", "ALLOW", [])], 102, [1], ALLOW),
        ([("semop", "ERRNO", []), ("ipc", "ERRNO", [])], 117, [2], EPERM),
    ],
)
def test_what_i386_has_twice_is_closed_twice(
    entries: list[Any], number: int, args: list[int], expected: int
) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86"],
        "syscalls": [
            {
                "names": [name],
                "action": f"SCMP_ACT_{action}",
                "args": [{"index": 0, "value": v, "op": "SCMP_CMP_EQ"} for v in values],
            }
            for name, action, values in entries
        ],
    }
    program = _seccomp.from_profile(profile, machine="x86_64")
    assert answer(program, AUDIT["i386"], number, args) == expected


def test_what_is_open_for_some_arguments_is_not_open_by_the_other_way() -> None:
    families = [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86"],
        "syscalls": [
            {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": families},
            {"names": ["connect", "rseq"], "action": "SCMP_ACT_ALLOW"},
        ],
    }
    program = _seccomp.from_profile(profile, machine="x86_64")
    assert answer(program, AUDIT["i386"], 102, [1]) == EPERM
    assert answer(program, AUDIT["i386"], 102, [3]) == ALLOW


def test_the_most_severe_rule_wins_in_any_order() -> None:
    entries = [
        {"names": ["personality"], "action": "SCMP_ACT_ALLOW"},
        {
            "names": ["personality"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 5,
            "args": [{"index": 0, "value": 7, "op": "SCMP_CMP_GE"}],
        },
        {
            "names": ["personality"],
            "action": "SCMP_ACT_KILL_PROCESS",
            "args": [{"index": 0, "value": 9, "op": "SCMP_CMP_EQ"}],
        },
    ]
    for order in (entries, entries[::-1]):
        profile = {"defaultAction": "SCMP_ACT_LOG", "syscalls": order}
        program = _seccomp.from_profile(profile, machine="x86_64")
        found = [answer(program, AUDIT["x86_64"], 135, [value]) for value in (6, 7, 9)]
        assert found == [ALLOW, ERRNO | 5, 0x80000000]


def test_of_rules_without_conditions_the_first_counts() -> None:
    """Podman's profile has two for setns."""
    entries = [
        {"names": ["setns"], "action": f"SCMP_ACT_{action}"} for action in ("ALLOW", "ERRNO")
    ]
    for order, expected in ((entries, ALLOW), (entries[::-1], EPERM)):
        profile = {"defaultAction": "SCMP_ACT_KILL", "syscalls": order}
        program = _seccomp.from_profile(profile, machine="x86_64")
        assert answer(program, AUDIT["x86_64"], 308) == expected


def test_names_of_errnos_as_podman_has_them() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrno": "ENOSYS",
        "defaultErrnoRet": 38,
        "syscalls": [{"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errno": "EACCES"}],
    }
    program = _seccomp.from_profile(profile, machine="x86_64")
    assert answer(program, AUDIT["x86_64"], 321) == ERRNO | 13
    assert answer(program, AUDIT["x86_64"], 0) == ENOSYS


def entry(**changes: Any) -> dict[str, Any]:
    wanted = {"names": ["read"], "action": "SCMP_ACT_ERRNO", **changes}
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [wanted]}


def with_arg(**changes: Any) -> dict[str, Any]:
    return entry(args=[{"index": 0, "value": 1, "op": "SCMP_CMP_EQ", **changes}])


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        (b"{", "no JSON"),
        (b"\xff\xfe\xfd", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "defaultAction": "SCMP_ACT_KILL"}', "twice"),
        ('{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": NaN}', "defaultErrnoRet"),
        ("[]", "mapping"),
        (["read"], "mapping"),
        ({}, "defaultAction"),
        ({"defaultAction": "ALLOW"}, "defaultAction"),
        ({"defaultAction": ["SCMP_ACT_ALLOW"]}, "defaultAction"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "supervisor"),
        ({"defaultAction": "SCMP_ACT_TRACE"}, "tracer"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}, "defaultErrnoRet"),
        ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096}, "defaultErrnoRet"),
        ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": True}, "defaultErrnoRet"),
        ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrno": "ENOPE"}, "defaultErrno"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "sycalls": []}, "sycalls"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": {}}, "syscalls"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["amd64"]}, "architectures"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "architectures": "SCMP_ARCH_X86"}, "architectures"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "archMap": [{"arch": "x"}]}, r"archMap\[0\]"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "archMap": [{"architecture": 3}]}, r"archMap\[0\]"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"]}, "flags"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x"}, "listenerPath"),
        (
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86"],
                "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []}],
            },
            "one of the two",
        ),
        (entry(names=[]), r"syscalls\[0\].names"),
        (entry(names="read"), r"syscalls\[0\].names"),
        (entry(names=[3]), r"syscalls\[0\].names"),
        (entry(names=["no_such", "neither"]), "known"),
        (entry(name="write"), "one of the two"),
        (entry(action="SCMP_ACT_NOTIFY"), r"syscalls\[0\].action"),
        (entry(action=None), r"syscalls\[0\].action"),
        (entry(errnoRet=-1), r"syscalls\[0\].errnoRet"),
        (entry(errnoRet=5, errno="EPERM"), r"syscalls\[0\].errnoRet"),
        (entry(action="SCMP_ACT_ALLOW", errnoRet=5), r"syscalls\[0\].errnoRet"),
        (entry(priority=1), "priority"),
        (entry(includes=[]) | {"x": 1}, "'x'"),
        (entry(includes=["CAP_SYS_ADMIN"]), r"syscalls\[0\].includes"),
        (entry(includes={"capabilities": []}), r"syscalls\[0\].includes"),
        (entry(excludes={"caps": "CAP_SYS_ADMIN"}), r"syscalls\[0\].excludes"),
        (entry(excludes={"arches": [1]}), r"syscalls\[0\].excludes"),
        (entry(includes={"minKernel": "5"}), "minKernel"),
        (entry(includes={"minKernel": 4.8}), "minKernel"),
        (entry(args={}), r"syscalls\[0\].args"),
        (entry(args=[None]), r"syscalls\[0\].args\[0\]"),
        (with_arg(index=6), r"syscalls\[0\].args\[0\].index"),
        (with_arg(index="0"), r"syscalls\[0\].args\[0\].index"),
        (with_arg(value=-1), r"syscalls\[0\].args\[0\].value"),
        (with_arg(value=1 << 64), r"syscalls\[0\].args\[0\].value"),
        (with_arg(value=1.0), r"syscalls\[0\].args\[0\].value"),
        (with_arg(value=None), r"syscalls\[0\].args\[0\].value"),
        (with_arg(valueTwo=2), r"syscalls\[0\].args\[0\].valueTwo"),
        (with_arg(op="=="), r"syscalls\[0\].args\[0\].op"),
        (with_arg(opt=1), r"syscalls\[0\].args\[0\]"),
    ],
)
def test_what_is_malformed_is_named(profile: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        _seccomp.from_profile(profile)


def test_profiles_that_are_too_long_are_refused() -> None:
    args = [[{"index": i % 6, "value": i << 32 | i, "op": "SCMP_CMP_EQ"}] for i in range(1, 2000)]
    entries = [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": one} for one in args]
    with pytest.raises(SpecError, match="4096"):
        _seccomp.from_profile({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": entries})


def test_long_profiles_jump_far() -> None:
    """Conditional jumps of BPF reach 255 instructions."""
    entries = [
        {
            "names": ["personality" if i % 2 else "read"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 1 + i % 5,
            "args": [
                {"index": 0, "value": i << 33, "op": "SCMP_CMP_EQ"},
                {"index": 1, "value": i, "op": "SCMP_CMP_GT"},
            ],
        }
        for i in range(1, 400)
    ]
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": entries}
    program = _seccomp.from_profile(profile, machine="x86_64")
    assert len(program) / 8 > 2000
    for i in range(1, 400):
        number = 135 if i % 2 else 0
        assert answer(program, AUDIT["x86_64"], number, [i << 33, i + 1]) == ERRNO | 1 + i % 5
        assert answer(program, AUDIT["x86_64"], number, [i << 33, i]) == ALLOW
        assert answer(program, AUDIT["x86_64"], 135 - number, [i << 33, i + 1]) == ALLOW
