# SPDX-License-Identifier: Apache-2.0
"""OCI and Docker seccomp profiles, read and compiled as runc and libseccomp do.

Of rules for one call that have no conditions the first counts, as there. Where libseccomp's answer
depends on the shape of its tree, the most severe rule that holds is taken; see docs/seccomp.md.
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

#: The most severe first, as the kernel has it for several filters.
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
NOBODY = {
    "SCMP_ACT_TRACE": "no tracer would answer it",
    "SCMP_ACT_NOTIFY": "no supervisor would answer it",
}
#: How each is asked: comparison, and whether it is to hold.
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
#: libseccomp's names of ABIs, and ours of those that we have tables of.
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
#: What Go calls the machines, in includes and excludes.
GO_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}
FLAGS = ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC")

SOCKETCALL = (
    "socket bind connect listen accept getsockname getpeername socketpair send recv sendto "
    "recvfrom shutdown setsockopt getsockopt sendmsg recvmsg accept4 recvmmsg sendmmsg"
).split()
#: Calls that i386 also, or only, has as a number of another call.
MULTIPLEXED = {
    "socketcall": {name: number for number, name in enumerate(SOCKETCALL, 1)},
    "ipc": {
        **{"semop": 1, "semget": 2, "semctl": 3, "semtimedop": 4},
        **{"msgsnd": 11, "msgrcv": 12, "msgget": 13, "msgctl": 14},
        **{"shmat": 21, "shmdt": 22, "shmget": 23, "shmctl": 24},
    },
}
IPC_CALL = 0xFFFF  # above it there is a version


def compile_profile(
    profile: Mapping[str, Any] | bytes | str, capabilities: frozenset[str], abis: tuple[str, ...]
) -> bytes:
    """See _seccomp.from_profile()."""
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
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError(f"a key is there twice among {', '.join(key for key, _ in pairs)}")
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{what} is no JSON: {error}") from None


class _Profile:
    """A profile that was checked, for a machine and a set of capabilities.

    calls: name to rules, of what applies to them. architectures: ours, beside the machine's own.
    """

    def __init__(self, profile: object, capabilities: frozenset[str], machine: str) -> None:
        keys = "defaultAction defaultErrnoRet defaultErrno architectures archMap syscalls flags"
        found = _table("the seccomp profile", profile, f"{keys} listenerPath listenerMetadata")
        self.machine = machine
        self.capabilities = {f"CAP_{name.upper()}" for name in capabilities}
        self.default = _action(
            *("defaultAction", found.get("defaultAction")),
            *("defaultErrnoRet", found.get("defaultErrnoRet")),
            *("defaultErrno", found.get("defaultErrno")),
        )
        for word in ("listenerPath", "listenerMetadata"):
            if found.get(word):
                raise SpecError(f"{word}: no supervisor would listen")
        for flag in _list("flags", found.get("flags")):
            check_choice("flags", flag, FLAGS)
        self.architectures = self._architectures(found)
        self.calls: dict[str, list[Rule]] = {}
        known = False
        names = _known_names()
        for number, entry in enumerate(_list("syscalls", found.get("syscalls"))):
            calls, rules, applies = self._entry(f"syscalls[{number}]", entry)
            known = known or not names.isdisjoint(calls)
            for name in calls if applies else ():
                self.calls.setdefault(name, []).extend(rules)
        if found.get("syscalls") and not known:
            raise SpecError("syscalls: none of these names is known")

    def _architectures(self, found: Mapping[str, Any]) -> set[str]:
        names = _list("architectures", found.get("architectures"))
        pairs = _list("archMap", found.get("archMap"))
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
        """Names, rules, and whether the machine and the capabilities are those meant."""
        found = _table(
            where, entry, "name names action errnoRet errno args comment includes excludes"
        )
        action = _action(
            *(f"{where}.action", found.get("action")),
            *(f"{where}.errnoRet", found.get("errnoRet")),
            *(f"{where}.errno", found.get("errno")),
        )
        names = _list(f"{where}.names", found.get("names"))
        if found.get("name"):
            if names:
                raise SpecError(f"{where}: name and names: an entry has one of the two")
            names = [found["name"]]
        if not names:
            raise SpecError(f"{where}.names is empty")
        for name in names:
            if not isinstance(name, str) or not name:
                raise SpecTypeError(f"{where}.names: {name!r} is no name")
        args = _list(f"{where}.args", found.get("args"))
        conditions = [_condition(f"{where}.args[{i}]", arg) for i, arg in enumerate(args)]
        if len({condition[0] for condition in conditions}) == len(conditions):
            rules: list[Rule] = [(tuple(conditions), action)]
        else:  # runc: then one of them is enough
            rules = [((condition,), action) for condition in conditions]
        includes = self._filter(f"{where}.includes", found.get("includes"), all)
        excludes = self._filter(f"{where}.excludes", found.get("excludes"), any)
        return names, rules, all(includes) and not any(excludes)

    def _filter(self, where: str, value: object, every: Any) -> Iterator[bool]:
        """What of includes or excludes is so: of several capabilities all, or any."""
        found = _table(where, value or {}, "caps arches minKernel")
        caps = _list(f"{where}.caps", found.get("caps"))
        arches = _list(f"{where}.arches", found.get("arches"))
        for word in [*caps, *arches]:
            if not isinstance(word, str):
                raise SpecTypeError(f"{where}: {word!r} is no name")
        kernel = found.get("minKernel")
        wanted = _kernel(f"{where}.minKernel", kernel) if kernel else (0, 0)
        answers = []
        if caps:
            answers.append(every(cap in self.capabilities for cap in caps))
        if arches:
            answers.append(GO_NAMES[self.machine] in arches)
        if kernel:
            answers.append(wanted <= _running_kernel())
        return iter(answers)

    def abi(self, name: str) -> Abi:
        """The answers for one ABI.

        What is newer than all calls of the profile is ENOSYS, as runc has it: programs look for
        new calls, and take only that for an answer. Not where others than errors are the default.
        """
        numbers = numbers_of(name)
        found: dict[int, list[Rule]] = {}
        for call, rules in self.calls.items():
            if call in numbers:
                found[numbers[call]] = rules
        if name == "i386":
            for call, parts in MULTIPLEXED.items():
                rules = self._multiplexed(call, parts)
                if rules and call not in self.calls:
                    found[numbers[call]] = rules
        refuses = self.default & 0xFFFF0000 == ERRNO and bool(found)
        abi = Abi(
            name,
            default=self.default,
            newest=max(found) if refuses else X32_BIT - 1,
            beyond=ERRNO | errno.ENOSYS if refuses else self.default,
            skipped=self.default,
            x32=KILL_THREAD,
        )
        abi.calls = {number: _ordered(rules, self.default) for number, rules in found.items()}
        return abi

    def _multiplexed(self, call: str, parts: Mapping[str, int]) -> list[Rule]:
        """Rules of socketcall or ipc: they hide the arguments, so what some of them close is closed
        for all, and what is open for some is open for none.
        """
        bits = IPC_CALL if call == "ipc" else ALL_BITS
        return [
            (((0, EQUAL, bits, number, True),), action)
            for part, number in parts.items()
            for conditions, action in self.calls.get(part, ())
            if not conditions or action not in (ALLOW, LOG)
        ]


def _ordered(rules: Sequence[Rule], default: int) -> list[Rule]:
    """By severity, up to the one that always holds: the first such, or the default."""
    always = next((number for number, rule in enumerate(rules) if not rule[0]), None)
    kept = [rule for number, rule in enumerate(rules) if rule[0] or number == always]
    found: list[Rule] = []
    for rule in sorted(kept, key=_severity):
        found.append(rule)
        if not rule[0]:
            return found
    return [*found, ((), default)]


def _severity(rule: Rule) -> int:
    return SEVERITY.index(rule[1] if rule[1] & 0xFFFF0000 != ERRNO else ERRNO)


@lru_cache(maxsize=1)
def _known_names() -> frozenset[str]:
    machines = ("x86_64", "i386", "aarch64", "arm")
    return frozenset().union(*map(numbers_of, machines), *MULTIPLEXED.values())


# Values, and where they are


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
    where: str, name: object, where_number: str, number: object, where_word: str, word: object
) -> int:
    if isinstance(name, str) and name in NOBODY:
        raise SpecError(f"{where} is {name}, and {NOBODY[name]}")
    check_choice(where, name, tuple(ACTIONS))
    action = ACTIONS[str(name)]
    for place, value in ((where_number, number), (where_word, word)):
        if value is not None and value != "" and action != ERRNO:
            raise SpecError(f"{place} is given, and {name} returns none")
    if action != ERRNO:
        return action
    if word is not None and word != "":
        named = getattr(errno, word, None) if isinstance(word, str) else None
        if not isinstance(named, int):
            raise SpecError(f"{where_word} is {word!r}, and has to be the name of an errno")
        if number is not None and number != named:
            raise SpecError(f"{where_number} is {number!r}, and {where_word} is {word}")
        number = named
    if number is None:
        number = errno.EPERM
    return ERRNO | check_number(where_number, number, 0, 4095)


def _condition(where: str, arg: object) -> Condition:
    found = _table(where, arg, "index value valueTwo op")
    index = check_number(f"{where}.index", found.get("index"), 0, 5)
    value = check_number(f"{where}.value", found.get("value"), 0, ALL_BITS)
    more = found.get("valueTwo")
    second = check_number(f"{where}.valueTwo", 0 if more is None else more, 0, ALL_BITS)
    operation = found.get("op")
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
    """What a program says of a call whose arguments are 0."""
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
