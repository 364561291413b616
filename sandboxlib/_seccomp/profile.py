# SPDX-License-Identifier: Apache-2.0
"""OCI and Docker seccomp profiles, read and compiled as runc and libseccomp do it.

If several rules for a call have no conditions, the first counts, as in runc. If the answer of
libseccomp depends on the shape of its tree, we take the most severe rule that holds; see
docs/seccomp.md.
"""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Mapping
from functools import lru_cache

from .._values import check_choice, check_number
from ..errors import SpecError, SpecTypeError
from .bpf import (
    ALLOW,
    AT_LEAST,
    AUDIT,
    EQUAL,
    ERRNO,
    GREATER,
    KILL_PROCESS,
    KILL_THREAD,
    LOG,
    TRAP,
    X32_BIT,
    Abi,
    TooLong,
    compile_abis,
)
from .syscalls import numbers_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from .bpf import Condition, Rule

#: The answers, the most severe first, in the kernel's order for several filters.
SEVERITY = (KILL_PROCESS, KILL_THREAD, TRAP, ERRNO, LOG, ALLOW)
ACTIONS = {
    "SCMP_ACT_KILL_PROCESS": KILL_PROCESS,
    "SCMP_ACT_KILL_THREAD": KILL_THREAD,
    "SCMP_ACT_KILL": KILL_THREAD,
    "SCMP_ACT_TRAP": TRAP,
    "SCMP_ACT_ERRNO": ERRNO,
    "SCMP_ACT_LOG": LOG,
    "SCMP_ACT_ALLOW": ALLOW,
}
#: Actions that are refused, because no process would answer the kernel.
UNANSWERED = {
    "SCMP_ACT_TRACE": "no tracer would answer it",
    "SCMP_ACT_NOTIFY": "no supervisor would answer it",
}
#: The comparison of each operator, and the outcome of it that the operator wants.
COMPARISONS = {
    "SCMP_CMP_EQ": (EQUAL, True),
    "SCMP_CMP_NE": (EQUAL, False),
    "SCMP_CMP_GT": (GREATER, True),
    "SCMP_CMP_LE": (GREATER, False),
    "SCMP_CMP_GE": (AT_LEAST, True),
    "SCMP_CMP_LT": (AT_LEAST, False),
    "SCMP_CMP_MASKED_EQ": (EQUAL, True),
}
ALL_BITS = (1 << 64) - 1
#: libseccomp's names of ABIs, and ours; "" if we have no table of the calls.
ARCHITECTURES = {
    **{f"SCMP_ARCH_{name.upper()}": name for name in ("x86_64", "x32", "aarch64", "arm")},
    "SCMP_ARCH_X86": "i386",
    **{
        f"SCMP_ARCH_{name}": ""
        for name in (
            "MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 MIPSEL64N32 PPC PPC64 PPC64LE S390 S390X "
            "RISCV64 LOONGARCH64 M68K SH SHEB PARISC PARISC64"
        ).split()
    },
}
#: Go's names of the machines, which includes and excludes use.
GO_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}
FLAGS = ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC")

SOCKETCALL = (
    "socket bind connect listen accept getsockname getpeername socketpair send recv sendto "
    "recvfrom shutdown setsockopt getsockopt sendmsg recvmsg accept4 recvmmsg sendmmsg"
).split()
#: Calls that i386 has, some of them only, as a sub-call of another call.
MULTIPLEXED = {
    "socketcall": {name: number for number, name in enumerate(SOCKETCALL, 1)},
    "ipc": {
        **{"semop": 1, "semget": 2, "semctl": 3, "semtimedop": 4},
        **{"msgsnd": 11, "msgrcv": 12, "msgget": 13, "msgctl": 14},
        **{"shmat": 21, "shmdt": 22, "shmget": 23, "shmctl": 24},
    },
}
IPC_CALL = 0xFFFF  # the bits of the sub-call; the higher bits are a version


def compile_profile(
    profile: Mapping[str, Any] | bytes | str, capabilities: frozenset[str], abis: tuple[str, ...]
) -> bytes:
    """Compile a profile; see filters.from_profile()."""
    if isinstance(profile, (bytes, str)):
        return _compile_text(profile, capabilities, abis)
    return _compile(profile, capabilities, abis)


@lru_cache(maxsize=16)
def _compile_text(text: bytes | str, capabilities: frozenset[str], abis: tuple[str, ...]) -> bytes:
    return _compile(parse(text), capabilities, abis)


def _compile(profile: object, capabilities: frozenset[str], abis: tuple[str, ...]) -> bytes:
    read = _Profile(profile, capabilities, abis[0])
    tables = [read.abi(name) for name in abis if name == abis[0] or name in read.architectures]
    try:
        return compile_abis(tables, foreign=KILL_THREAD)
    except TooLong as error:
        raise SpecError(f"the seccomp profile is too long: {error}") from None


def parse(text: bytes | str, what: str = "the seccomp profile") -> object:
    """Parse JSON. Raises SpecError if it is none, or has a key twice. what: for the message."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        mapping = dict(pairs)
        if len(mapping) != len(pairs):
            raise ValueError(f"a key is there twice among {', '.join(key for key, _ in pairs)}")
        return mapping

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{what} is no JSON: {error}") from None


class _Profile:
    """A checked profile, for a machine and a set of capabilities.

    calls: the rules that apply, by the name of the call. architectures: the other ABIs that the
    profile names, by our names.
    """

    def __init__(self, profile: object, capabilities: frozenset[str], machine: str) -> None:
        keys = "defaultAction defaultErrnoRet defaultErrno architectures archMap syscalls flags"
        table = _table("the seccomp profile", profile, f"{keys} listenerPath listenerMetadata")
        self.machine = machine
        self.capabilities = {f"CAP_{name.upper()}" for name in capabilities}
        self.default = _action(
            *("defaultAction", table.get("defaultAction")),
            *("defaultErrnoRet", table.get("defaultErrnoRet")),
            *("defaultErrno", table.get("defaultErrno")),
        )
        for key in ("listenerPath", "listenerMetadata"):
            if table.get(key):
                raise SpecError(f"{key}: no supervisor would listen")
        for flag in _list("flags", table.get("flags")):
            check_choice("flags", flag, FLAGS)
        self.architectures = self._architectures(table)
        self.calls: dict[str, list[Rule]] = {}
        known = False
        names = _known_names()
        for number, entry in enumerate(_list("syscalls", table.get("syscalls"))):
            calls, rules, applies = self._entry(f"syscalls[{number}]", entry)
            known = known or not names.isdisjoint(calls)
            for name in calls if applies else ():
                self.calls.setdefault(name, []).extend(rules)
        if table.get("syscalls") and not known:
            raise SpecError("syscalls: none of these names is known")

    def _architectures(self, table: Mapping[str, Any]) -> set[str]:
        names = _list("architectures", table.get("architectures"))
        pairs = _list("archMap", table.get("archMap"))
        if names and pairs:
            raise SpecError("architectures and archMap: a profile has one of the two")
        for name in names:
            check_choice("architectures", name, tuple(ARCHITECTURES))
        for number, pair in enumerate(pairs):
            where = f"archMap[{number}]"
            entry = _table(where, pair, "architecture subArchitectures")
            own = entry.get("architecture")
            subs = _list(f"{where}.subArchitectures", entry.get("subArchitectures"))
            for name in [own, *subs]:
                check_choice(where, name, tuple(ARCHITECTURES))
            if ARCHITECTURES[str(own)] == self.machine:
                names = [*names, *subs]
        return {ARCHITECTURES[name] for name in names}

    def _entry(self, where: str, entry: object) -> tuple[list[str], list[Rule], bool]:
        """The names and rules of an entry, and True if it applies to this machine and these
        capabilities.
        """
        table = _table(
            where, entry, "name names action errnoRet errno args comment includes excludes"
        )
        action = _action(
            *(f"{where}.action", table.get("action")),
            *(f"{where}.errnoRet", table.get("errnoRet")),
            *(f"{where}.errno", table.get("errno")),
        )
        names = _list(f"{where}.names", table.get("names"))
        if table.get("name"):
            if names:
                raise SpecError(f"{where}: name and names: an entry has one of the two")
            names = [table["name"]]
        if not names:
            raise SpecError(f"{where}.names is empty")
        for name in names:
            if not isinstance(name, str) or not name:
                raise SpecTypeError(f"{where}.names: {name!r} is no name")
        args = _list(f"{where}.args", table.get("args"))
        conditions = [_condition(f"{where}.args[{i}]", arg) for i, arg in enumerate(args)]
        if len({condition[0] for condition in conditions}) == len(conditions):
            rules: list[Rule] = [(tuple(conditions), action)]
        else:  # two conditions on one argument: in runc one of them is enough
            rules = [((condition,), action) for condition in conditions]
        includes = self._filter(f"{where}.includes", table.get("includes"), all)
        excludes = self._filter(f"{where}.excludes", table.get("excludes"), any)
        return names, rules, all(includes) and not any(excludes)

    def _filter(self, where: str, value: object, every: Any) -> Iterator[bool]:
        """The outcome of each condition in includes or excludes. every: the function all or any,
        which decides about several capabilities.
        """
        table = _table(where, value or {}, "caps arches minKernel")
        caps = _list(f"{where}.caps", table.get("caps"))
        arches = _list(f"{where}.arches", table.get("arches"))
        for name in [*caps, *arches]:
            if not isinstance(name, str):
                raise SpecTypeError(f"{where}: {name!r} is no name")
        kernel = table.get("minKernel")
        oldest = _kernel(f"{where}.minKernel", kernel) if kernel else (0, 0)
        answers = []
        if caps:
            answers.append(every(cap in self.capabilities for cap in caps))
        if arches:
            answers.append(GO_NAMES[self.machine] in arches)
        if kernel:
            answers.append(oldest <= _running_kernel())
        return iter(answers)

    def abi(self, name: str) -> Abi:
        """The answers for one ABI.

        If the default is an error, a call that is newer than all calls of the profile gets ENOSYS,
        as in runc: a program that tries a new call falls back to an older one for ENOSYS only.
        """
        numbers = numbers_of(name)
        by_number: dict[int, list[Rule]] = {}
        for call, rules in self.calls.items():
            if call in numbers:
                by_number[numbers[call]] = rules
        if name == "i386":
            for call, parts in MULTIPLEXED.items():
                rules = self._multiplexed(call, parts)
                if rules and call not in self.calls:
                    by_number[numbers[call]] = rules
        refuses = self.default & 0xFFFF0000 == ERRNO and bool(by_number)
        abi = Abi(
            name,
            default=self.default,
            newest=max(by_number) if refuses else X32_BIT - 1,
            beyond=ERRNO | errno.ENOSYS if refuses else self.default,
            skipped=self.default,
            x32=KILL_THREAD,
        )
        abi.calls = {number: _ordered(rules, self.default) for number, rules in by_number.items()}
        return abi

    def _multiplexed(self, call: str, parts: Mapping[str, int]) -> list[Rule]:
        """The rules of socketcall or ipc, whose arguments no filter can read. So a sub-call that is
        closed for some arguments is closed for all, and none is open for some arguments only.
        """
        bits = IPC_CALL if call == "ipc" else ALL_BITS
        return [
            (((0, EQUAL, bits, number, True),), action)
            for part, number in parts.items()
            for conditions, action in self.calls.get(part, ())
            if not conditions or action not in (ALLOW, LOG)
        ]


def _ordered(rules: Sequence[Rule], default: int) -> list[Rule]:
    """Sort rules by severity, up to one without conditions: the first of those, or the default."""
    always = next((number for number, rule in enumerate(rules) if not rule[0]), None)
    candidates = [rule for number, rule in enumerate(rules) if rule[0] or number == always]
    ordered: list[Rule] = []
    for rule in sorted(candidates, key=_severity):
        ordered.append(rule)
        if not rule[0]:
            return ordered
    return [*ordered, ((), default)]


def _severity(rule: Rule) -> int:
    return SEVERITY.index(rule[1] if rule[1] & 0xFFFF0000 != ERRNO else ERRNO)


@lru_cache(maxsize=1)
def _known_names() -> frozenset[str]:
    machines = ("x86_64", "i386", "aarch64", "arm")
    return frozenset().union(*map(numbers_of, machines), *MULTIPLEXED.values())


# ---- the values of a profile; `where` is the position in it, for messages ---------------------


def _table(where: str, value: object, keys: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SpecTypeError(f"{where} is a {type(value).__name__}, and has to be a mapping")
    unknown = [key for key in value if key not in keys.split()]
    if unknown:
        raise SpecError(f"{where}: unknown key {unknown[0]!r}; there are {', '.join(keys.split())}")
    return value


def _list(where: str, value: object) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise SpecTypeError(f"{where} is a {type(value).__name__}, and has to be a list")
    return list(value)


def _action(
    where: str,
    name: object,
    where_number: str,
    number: object,
    where_errno: str,
    errno_name: object,
) -> int:
    if isinstance(name, str) and name in UNANSWERED:
        raise SpecError(f"{where} is {name}, and {UNANSWERED[name]}")
    check_choice(where, name, tuple(ACTIONS))
    action = ACTIONS[str(name)]
    for where_value, value in ((where_number, number), (where_errno, errno_name)):
        if value is not None and value != "" and action != ERRNO:
            raise SpecError(f"{where_value} is given, and {name} returns none")
    if action != ERRNO:
        return action
    if errno_name is not None and errno_name != "":
        named = getattr(errno, errno_name, None) if isinstance(errno_name, str) else None
        if not isinstance(named, int):
            raise SpecError(f"{where_errno} is {errno_name!r}, and has to be the name of an errno")
        if number is not None and number != named:
            raise SpecError(f"{where_number} is {number!r}, and {where_errno} is {errno_name}")
        number = named
    if number is None:
        number = errno.EPERM
    return ERRNO | check_number(where_number, number, 0, 4095)


def _condition(where: str, arg: object) -> Condition:
    table = _table(where, arg, "index value valueTwo op")
    index = check_number(f"{where}.index", table.get("index"), 0, 5)
    value = check_number(f"{where}.value", table.get("value"), 0, ALL_BITS)
    two = table.get("valueTwo")
    second = check_number(f"{where}.valueTwo", 0 if two is None else two, 0, ALL_BITS)
    operation = table.get("op")
    check_choice(f"{where}.op", operation, tuple(COMPARISONS))
    comparison, holds = COMPARISONS[str(operation)]
    if operation == "SCMP_CMP_MASKED_EQ":
        return (index, comparison, value, second & value, holds)
    if second:
        raise SpecError(f"{where}.valueTwo is {second}, and {operation} has one value")
    return (index, comparison, ALL_BITS, value, holds)


def _kernel(where: str, value: object) -> tuple[int, int]:
    parts = value.split(".") if isinstance(value, str) else []
    if len(parts) != 2 or not all(word.isascii() and word.isdecimal() for word in parts):
        raise SpecError(f"{where} is {value!r}, and has to be a version such as '4.8'")
    return int(parts[0]), int(parts[1])


def _running_kernel() -> tuple[int, int]:
    parts = os.uname().release.split(".")
    minor = "".join(character for character in parts[1].partition("-")[0] if character.isdecimal())
    return int(parts[0]), int(minor)


ALLOWED = (ALLOW, LOG)
FATAL = (KILL_THREAD, KILL_PROCESS, TRAP)


def answer(program: bytes, name: str, abi: str) -> int:
    """The answer of a program to a call whose arguments are 0."""
    data = struct.pack("=II56x", numbers_of(abi)[name], AUDIT[abi])
    lines = list(struct.iter_unpack("=HBBI", program))
    at = value = 0
    while True:
        code, yes, no, constant = lines[at]
        at += 1
        if code == 0x06:  # RET
            return int(constant)
        if code == 0x20:  # LD W ABS
            value = struct.unpack_from("=I", data, constant)[0]
        elif code == 0x54:  # AND
            value &= constant
        elif code == 0x05:  # JA
            at += constant
        else:
            tests = {0x15: value == constant, 0x25: value > constant, 0x35: value >= constant}
            at += yes if {**tests, 0x45: bool(value & constant)}[code] else no
