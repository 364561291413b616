# SPDX-License-Identifier: Apache-2.0
"""Filters as seccomp(2) takes them: from the answers to the calls of each ABI to classic BPF.

The kernel runs a new filter once for every system call number, and notes which are allowed
whatever their arguments are: these cost nothing afterwards. So a program is a balanced tree over
the numbers, and only few calls have their arguments looked at.
"""

from __future__ import annotations

import struct

LOAD, RETURN, JUMP = 0x20, 0x06, 0x05  # BPF_LD|BPF_W|BPF_ABS, BPF_RET|BPF_K, BPF_JMP|BPF_JA
AND = 0x54
EQUAL, GREATER, AT_LEAST, ANY_BIT = 0x15, 0x25, 0x35, 0x45

# struct seccomp_data, little-endian
NUMBER, ARCH, POINTER, ARGS = 0, 4, 8, 16
#: How far a conditional jump reaches, less the one JUMP that may come between.
REACH = 254
MAXIMUM = 4096  # BPF_MAXINSNS

ALL = 0xFFFFFFFF

# SECCOMP_RET_*
KILL_THREAD, KILL_PROCESS, TRAP, ERRNO = 0, 0x80000000, 0x30000, 0x50000
LOG, ALLOW = 0x7FFC0000, 0x7FFF0000

#: AUDIT_ARCH_*; an x32 call is one of x86_64 with a bit in its number.
AUDIT = {
    "x86_64": 0xC000003E,
    "x32": 0xC000003E,
    "i386": 0x40000003,
    "aarch64": 0xC00000B7,
    "arm": 0x40000028,
}
#: Of these the kernel is kept from trying all numbers (see the top), by a comparison that is always
#: true, with something that it knows at a call only: that is a sixth of what installing a filter
#: takes, against some nanoseconds of each call of 32-bit programs.
SELDOM = (AUDIT["i386"], AUDIT["arm"])
X32_BIT = 0x40000000
MANY = 480  # calls of an ABI
UNIFORM = 424  # the first number that means the same call in every ABI
MOST_ALONE = 4  # comparisons of single calls, one after the other
WIDE = ("x86_64", "aarch64")  # arguments have 64 bits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    #: offset of the word, bits of it that count, comparison, constant, then, else
    Test = tuple[int, int, int, int, int, int]
    #: index of an argument, comparison, bits that count (of 64), constant, whether it is to hold
    Condition = tuple[int, int, int, int, bool]
    #: What is answered where all conditions hold.
    Rule = tuple[tuple[Condition, ...], int]


class TooLong(Exception):
    """More instructions than the kernel takes."""


class Program:
    """Nodes with two ways out. A node is made after those that it leads to, and equal ones are one
    node, so the order in which they were made, turned round, is that of the program.
    """

    def __init__(self) -> None:
        self._nodes: list[Test | int] = []  # an int: what is returned
        self._known: dict[Test | int, int] = {}

    def _add(self, node: Test | int) -> int:
        if node not in self._known:
            self._known[node] = len(self._nodes)
            self._nodes.append(node)
        return self._known[node]

    def leaf(self, action: int) -> int:
        return self._add(action)

    def test(
        self, offset: int, bits: int, comparison: int, constant: int, yes: int, no: int
    ) -> int:
        """Compares some bits of a word of struct seccomp_data."""
        if yes == no:
            return yes
        return self._add((offset, bits, comparison, constant, yes, no))

    def code(self, root: int) -> bytes:
        """The program that begins with a node."""
        loading = self._reached(root)
        at: dict[int, int] = {}  # of each node: its first instruction, from the end
        entered: dict[int, int] = {}  # of each test: its comparison, where the word is there
        code: list[bytes] = []

        def place(target: int, word: tuple[int, int]) -> int:
            """Where to jump to a node with this word loaded; near enough for a conditional jump."""
            node = self._nodes[target]
            same = not isinstance(node, int) and node[:2] == word
            found = entered[target] if same else at[target]
            if len(code) - found <= REACH:
                return found
            if isinstance(node, int):  # a copy of a return is no longer than a jump to it
                code.append(_instruction(RETURN, node))
                at[target] = len(code)
            else:
                code.append(_instruction(JUMP, len(code) - found))
            return len(code)

        for number, node in enumerate(self._nodes):
            if number not in loading:
                continue
            if isinstance(node, int):
                code.append(_instruction(RETURN, node))
                at[number] = len(code)
                continue
            offset, bits, comparison, constant, yes, no = node
            no_at = place(no, (offset, bits))
            yes_at = place(yes, (offset, bits))
            size = len(code)
            code.append(_instruction(comparison, constant, size - yes_at, size - no_at))
            entered[number] = len(code)
            if loading[number]:
                if bits != ALL:
                    code.append(_instruction(AND, bits))
                code.append(_instruction(LOAD, offset))
            at[number] = len(code)
        if len(code) > MAXIMUM:
            raise TooLong(f"{len(code)} instructions, and the kernel takes {MAXIMUM}")
        return b"".join(reversed(code))

    def _reached(self, root: int) -> dict[int, bool]:
        """Of each node that is reached from here: whether it has to load its word."""
        loading = {root: True}
        for number in range(root, -1, -1):
            node = self._nodes[number]
            if number not in loading or isinstance(node, int):
                continue
            for way in node[4:]:
                there = self._nodes[way]
                same = not isinstance(there, int) and there[:2] == node[:2]
                loading[way] = loading.get(way, False) or not same
        return loading


def _instruction(code: int, constant: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, constant)


class Abi:
    """What is answered to the calls of one ABI.

    calls: number to rules, of which the first that holds is taken; the last has no condition.
    default: the answer to other numbers. newest: the last of the numbers known. beyond: what
    newer ones get. skipped: number -1, by which a tracer says that there is to be no call.
    x32: of x86_64, the answer to x32's calls.
    """

    def __init__(
        self, name: str, *, default: int, newest: int, beyond: int, skipped: int, x32: int
    ) -> None:
        self.name = name
        self.default = default
        self.newest = newest
        self.beyond = beyond
        self.skipped = skipped
        self.x32 = x32
        self.calls: dict[int, Sequence[Rule]] = {}

    def stretches(self, program: Program) -> list[tuple[int, int]]:
        """The first number of each stretch of calls, and the node that answers them."""
        wide = self.name in WIDE
        default = program.leaf(self.default)
        beyond = program.leaf(self.beyond)
        found = {X32_BIT if self.name == "x32" else 0: default, self.newest + 1: beyond}
        for number in sorted(self.calls):
            found[number] = _rules_node(program, self.calls[number], wide)
            found.setdefault(number + 1, default if number < self.newest else beyond)
        if self.name == "x86_64":
            found[X32_BIT] = program.leaf(self.x32)
        found[ALL] = program.leaf(self.skipped)
        return sorted(found.items())


def compile_abis(abis: Iterable[Abi], foreign: int) -> bytes:
    """The program for these, and for an ABI that is none of them."""
    program = Program()
    trees: dict[int, list[tuple[int, int]]] = {}
    for abi in abis:
        stretches = abi.stretches(program)
        before = [way for way in trees.get(AUDIT[abi.name], ()) if way[0] < stretches[0][0]]
        trees[AUDIT[abi.name]] = before + stretches
    root = refuse = program.leaf(foreign)
    for audit in reversed(trees):
        tree = _tree(program, _merged(trees[audit]), ALL)
        if audit in SELDOM:
            tree = program.test(POINTER, ALL, AT_LEAST, 0, tree, refuse)
        root = program.test(ARCH, ALL, EQUAL, audit, tree, root)
    return program.code(root)


def _merged(ways: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbours with the same answer are one stretch."""
    found: list[tuple[int, int]] = []
    for first, node in ways:
        if not found or found[-1][1] != node:
            found.append((first, node))
    return found


def _tree(program: Program, ways: Sequence[tuple[int, int]], end: int) -> int:
    """Finds the stretch of a number; about half of the calls that there are go either way.

    A single call within a stretch takes one comparison there, and two if it were a stretch of its
    own. From UNIFORM on numbers are the same in all ABIs: a tree of these alone is made once.
    """
    alone = [way for i, way in enumerate(ways) if _is_alone(ways, i)]
    rest = _merged(way for way in ways if way not in alone)
    if len(rest) == 1 and len(alone) <= MOST_ALONE:
        found = rest[0][1]
        for number, node in reversed(alone):
            found = program.test(NUMBER, ALL, EQUAL, number, node, found)
        return found
    starts = [way[0] for way in (rest if len(rest) > 1 else ways)][1:]
    middle = (_calls_below(ways[0][0]) + _calls_below(end)) / 2
    split = min(starts, key=lambda number: abs(_calls_below(number) - middle))
    shared = [number for number in starts if number >= UNIFORM]
    if shared and ways[0][0] < UNIFORM and _calls_below(end) - _calls_below(ways[0][0]) < MANY / 2:
        split = shared[0]
    no = _tree(program, [way for way in ways if way[0] < split], split)
    yes = _tree(program, _from(ways, split), end)
    return program.test(NUMBER, ALL, AT_LEAST, split, yes, no)


def _from(ways: Sequence[tuple[int, int]], first: int) -> list[tuple[int, int]]:
    """The stretches from a number on, which may be in the middle of one."""
    before = [node for number, node in ways if number <= first]
    return [(first, before[-1]), *(way for way in ways if way[0] > first)]


def _is_alone(ways: Sequence[tuple[int, int]], i: int) -> bool:
    """Whether a stretch is a single call, with the same answer on both sides of it."""
    if not 0 < i < len(ways) - 1 or ways[i + 1][0] != ways[i][0] + 1:
        return False
    return ways[i - 1][1] == ways[i + 1][1]


def _calls_below(number: int) -> float:
    """About how many calls have a number below this one; x32's, after the gap, hardly count."""
    few = min(number, MANY)
    return few if number < X32_BIT else few + min(number - X32_BIT, MANY) / 100


def _rules_node(program: Program, rules: Sequence[Rule], wide: bool) -> int:
    """The first rule whose conditions hold; the last has none."""
    node = program.leaf(rules[-1][1])
    for conditions, action in reversed(rules[:-1]):
        yes = program.leaf(action)
        for condition in reversed(conditions):
            yes = _condition_node(program, condition, wide, yes, node)
        node = yes
    return node


def _condition_node(program: Program, condition: Condition, wide: bool, yes: int, no: int) -> int:
    """wide: the ABI's arguments have 64 bits; of the others the kernel sees 32."""
    index, comparison, bits, constant, holds = condition
    if not holds:
        yes, no = no, yes
    low, high = ARGS + 8 * index, ARGS + 8 * index + 4
    low_bits, low_constant = bits & ALL, constant & ALL
    high_bits, high_constant = (bits >> 32, constant >> 32) if wide else (0, 0)
    if comparison == EQUAL:
        node = _equal(program, low, low_bits, low_constant, yes, no)
        return _equal(program, high, high_bits, high_constant, node, no)
    node = program.test(low, low_bits, comparison, low_constant, yes, no)
    if high_bits:
        node = program.test(high, high_bits, EQUAL, high_constant, node, no)
        node = program.test(high, high_bits, GREATER, high_constant, yes, node)
    return node


def _equal(program: Program, word: int, bits: int, constant: int, yes: int, no: int) -> int:
    """Whether some bits of a word are those of a constant."""
    if not bits:
        return yes
    constant &= bits
    if bits != ALL and not constant:
        return program.test(word, ALL, ANY_BIT, bits, no, yes)
    if bits == constant and not bits & (bits - 1):
        return program.test(word, ALL, ANY_BIT, bits, yes, no)
    return program.test(word, bits, EQUAL, constant, yes, no)
