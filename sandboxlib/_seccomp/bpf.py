# SPDX-License-Identifier: Apache-2.0
"""The compiler of filters for seccomp(2): from the answers to the calls of each ABI to classic BPF.

The kernel runs a new filter once for every system call number, and remembers the calls that it
allows whatever their arguments are: these take no time afterwards. So a program is a balanced tree
over the numbers, and it looks at the arguments of few calls only.
"""

from __future__ import annotations

import struct

LOAD, RETURN, JUMP = 0x20, 0x06, 0x05  # BPF_LD|BPF_W|BPF_ABS, BPF_RET|BPF_K, BPF_JMP|BPF_JA
AND = 0x54
EQUAL, GREATER, AT_LEAST, ANY_BIT = 0x15, 0x25, 0x35, 0x45

# struct seccomp_data, little-endian
NUMBER, ARCH, POINTER, ARGS = 0, 4, 8, 16
#: The reach of a conditional jump, minus one for a JUMP that may come between.
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
#: For these the program stops the kernel from trying all numbers (see the top), by a comparison
#: that is always true but whose value the kernel knows only at a call. That saves a sixth of the
#: time to install a filter, and adds some nanoseconds to each call of a 32-bit program.
SELDOM = (AUDIT["i386"], AUDIT["arm"])
X32_BIT = 0x40000000
MANY = 480  # about the number of calls of an ABI
UNIFORM = 424  # the first number that means the same call in every ABI
MOST_ALONE = 4  # single calls that are compared one after the other
WIDE = ("x86_64", "aarch64")  # ABIs whose arguments have 64 bits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    #: offset of the word, bits of it that count, comparison, constant, then, else
    Test = tuple[int, int, int, int, int, int]
    #: index of an argument, comparison, bits that count (of 64), constant, the wanted outcome
    Condition = tuple[int, int, int, int, bool]
    #: Conditions, and the answer to a call for which all of them hold.
    Rule = tuple[tuple[Condition, ...], int]


class TooLong(Exception):
    """The program has more instructions than the kernel takes."""


class Program:
    """The nodes of a decision graph: a test has two ways out, a leaf returns an answer.

    A node is made after the nodes that it leads to, and equal nodes are one. So the reverse of the
    order in which they were made is the order of the instructions.
    """

    def __init__(self) -> None:
        self._nodes: list[Test | int] = []  # an int: a leaf, with its answer
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
        """The node that compares some bits of a 32-bit word of struct seccomp_data."""
        if yes == no:
            return yes
        return self._add((offset, bits, comparison, constant, yes, no))

    def code(self, root: int) -> bytes:
        """The instructions of the program that begins with a node."""
        loading = self._reached(root)
        # Positions count from the end of the program.
        starts: dict[int, int] = {}  # the first instruction of each node
        comparisons: dict[int, int] = {}  # that of each test that has its word loaded already
        code: list[bytes] = []

        def jump_to(target: int, word: tuple[int, int]) -> int:
            """The position to jump to for a node, with this word loaded, within the reach of a
            conditional jump: it adds a JUMP, or a copy of a leaf, if the node is too far.
            """
            node = self._nodes[target]
            same = not isinstance(node, int) and node[:2] == word
            position = comparisons[target] if same else starts[target]
            if len(code) - position <= REACH:
                return position
            if isinstance(node, int):  # a copy of a return is no longer than a jump to it
                code.append(_instruction(RETURN, node))
                starts[target] = len(code)
            else:
                code.append(_instruction(JUMP, len(code) - position))
            return len(code)

        for number, node in enumerate(self._nodes):
            if number not in loading:
                continue
            if isinstance(node, int):
                code.append(_instruction(RETURN, node))
                starts[number] = len(code)
                continue
            offset, bits, comparison, constant, yes, no = node
            no_at = jump_to(no, (offset, bits))
            yes_at = jump_to(yes, (offset, bits))
            size = len(code)
            code.append(_instruction(comparison, constant, size - yes_at, size - no_at))
            comparisons[number] = len(code)
            if loading[number]:
                if bits != ALL:
                    code.append(_instruction(AND, bits))
                code.append(_instruction(LOAD, offset))
            starts[number] = len(code)
        if len(code) > MAXIMUM:
            raise TooLong(f"{len(code)} instructions, and the kernel takes {MAXIMUM}")
        return b"".join(reversed(code))

    def _reached(self, root: int) -> dict[int, bool]:
        """The nodes that are reached from this one, each with True if it must load its word."""
        loading = {root: True}
        for number in range(root, -1, -1):
            node = self._nodes[number]
            if number not in loading or isinstance(node, int):
                continue
            for way in node[4:]:
                following = self._nodes[way]
                same = not isinstance(following, int) and following[:2] == node[:2]
                loading[way] = loading.get(way, False) or not same
        return loading


def _instruction(code: int, constant: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, constant)


class Abi:
    """The answers to the calls of one ABI.

    calls: the rules of each number. The first rule that holds is taken; the last has no condition.
    default: the answer to other numbers. newest: the highest number that is known. beyond: the
    answer to higher ones. skipped: the answer to number -1, by which a tracer skips a call.
    x32: in x86_64, the answer to the calls of x32.
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
        nodes = {X32_BIT if self.name == "x32" else 0: default, self.newest + 1: beyond}
        for number in sorted(self.calls):
            nodes[number] = _rules_node(program, self.calls[number], wide)
            nodes.setdefault(number + 1, default if number < self.newest else beyond)
        if self.name == "x86_64":
            nodes[X32_BIT] = program.leaf(self.x32)
        nodes[ALL] = program.leaf(self.skipped)
        return sorted(nodes.items())


def compile_abis(abis: Iterable[Abi], foreign: int) -> bytes:
    """Compile the program for these ABIs. foreign: the answer to a call of any other ABI."""
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
    """Join neighbouring stretches that have the same answer."""
    merged: list[tuple[int, int]] = []
    for first, node in ways:
        if not merged or merged[-1][1] != node:
            merged.append((first, node))
    return merged


def _tree(program: Program, ways: Sequence[tuple[int, int]], end: int) -> int:
    """The tree that finds the stretch of a number. About half of the calls go each way.

    A single call within a stretch takes one comparison; as a stretch of its own it would take two.
    From UNIFORM on the numbers are the same in all ABIs, so those share one tree.
    """
    alone = [way for i, way in enumerate(ways) if _is_alone(ways, i)]
    stretches = _merged(way for way in ways if way not in alone)
    if len(stretches) == 1 and len(alone) <= MOST_ALONE:
        tree = stretches[0][1]
        for number, node in reversed(alone):
            tree = program.test(NUMBER, ALL, EQUAL, number, node, tree)
        return tree
    starts = [way[0] for way in (stretches if len(stretches) > 1 else ways)][1:]
    middle = (_calls_below(ways[0][0]) + _calls_below(end)) / 2
    split = min(starts, key=lambda number: abs(_calls_below(number) - middle))
    shared = [number for number in starts if number >= UNIFORM]
    if shared and ways[0][0] < UNIFORM and _calls_below(end) - _calls_below(ways[0][0]) < MANY / 2:
        split = shared[0]
    no = _tree(program, [way for way in ways if way[0] < split], split)
    yes = _tree(program, _from(ways, split), end)
    return program.test(NUMBER, ALL, AT_LEAST, split, yes, no)


def _from(ways: Sequence[tuple[int, int]], first: int) -> list[tuple[int, int]]:
    """The stretches from a number on. The number may lie in the middle of one."""
    before = [node for number, node in ways if number <= first]
    return [(first, before[-1]), *(way for way in ways if way[0] > first)]


def _is_alone(ways: Sequence[tuple[int, int]], i: int) -> bool:
    """Return True if a stretch is a single call between two with the same answer."""
    if not 0 < i < len(ways) - 1 or ways[i + 1][0] != ways[i][0] + 1:
        return False
    return ways[i - 1][1] == ways[i + 1][1]


def _calls_below(number: int) -> float:
    """About how many calls have a number below this one. Those of x32 hardly count, as few programs
    use them.
    """
    few = min(number, MANY)
    return few if number < X32_BIT else few + min(number - X32_BIT, MANY) / 100


def _rules_node(program: Program, rules: Sequence[Rule], wide: bool) -> int:
    """The node that answers by the first rule whose conditions hold; the last rule has none."""
    node = program.leaf(rules[-1][1])
    for conditions, action in reversed(rules[:-1]):
        yes = program.leaf(action)
        for condition in reversed(conditions):
            yes = _condition_node(program, condition, wide, yes, node)
        node = yes
    return node


def _condition_node(program: Program, condition: Condition, wide: bool, yes: int, no: int) -> int:
    """The node that tests a condition. wide: arguments of the ABI have 64 bits, otherwise 32."""
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
    """The node that compares some bits of a word with a constant."""
    if not bits:
        return yes
    constant &= bits
    if bits != ALL and not constant:
        return program.test(word, ALL, ANY_BIT, bits, no, yes)
    if bits == constant and not bits & (bits - 1):
        return program.test(word, ALL, ANY_BIT, bits, yes, no)
    return program.test(word, bits, EQUAL, constant, yes, no)
