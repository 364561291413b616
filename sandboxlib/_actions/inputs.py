# SPDX-License-Identifier: Apache-2.0
"""The input root of an Action as inputs of a Command: which parts of it are layers of their own.

A directory with much below it is a layer of its own, so that another input root with the same one
uses that layer. Of each layer the store has the whole, or a base and what differs from that. So an
input root of which one file changes from action to action is staged once, and then that file.

    split()     which directories are layers: at most MOST_UNITS, three names deep at most
    Bases       of each place the Folders that were staged as a whole lately, which may be a base
    Inputs      puts both together, and remembers the input roots that were used last
"""

from __future__ import annotations

from _thread import allocate_lock
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from math import isqrt

from .._changes.child.stack import MOST_LINKS
from .._inputs.snapshot import Folder, Leaf, Link, Node, Total, copied, encoded, is_same
from .._inputs.tree import Tree

MOST_UNITS = 16  # layers of an input root, each of which may have a base
_DEEPEST_UNIT = 3  # names of the path of a layer, below the input root
HEAVY = 512  # weight of a directory that is a layer of its own
_MOST_BASES = 4  # of one place
_MOST_PLACES = 256
_MOST_READY = 256  # input roots that stay ready

Units = list[tuple[str, Folder]]


def weight(folder: Folder) -> int:
    """What it takes to stage a Folder, in files: one more for each 64 KiB."""
    total = total_of(folder)
    return total.entries + (total.size >> 16)


def total_of(folder: Folder) -> Total:
    """The Total of a Folder, which is counted if it is one of ours."""
    if folder.total is None:
        entries, size, deepest, is_plain = len(folder), 0, 0, folder.properties is None
        for node in folder.values():
            if isinstance(node, Folder):
                total = total_of(node)
                entries, size = entries + total.entries, size + total.size
                deepest = max(deepest, total.deepest)
                is_plain = is_plain and total.is_plain
            else:
                is_plain = is_plain and node.properties is None
                if isinstance(node, Leaf):
                    size += int(node.digest.partition("/")[2])
        folder.total = Total(entries, size, deepest + 1, is_plain)
    return folder.total


def split(path: str, folder: Folder) -> Units:
    """The layers of an input root, the outermost first. A directory with properties of its own, or
    that is above one, stays in one piece: the directories above a layer have none.
    """
    units = _split(path, folder, _DEEPEST_UNIT)
    return units if len(units) <= MOST_UNITS else [(path, folder)]


def _split(path: str, folder: Folder, room: int) -> Units:
    heavy = {
        name: node
        for name, node in folder.items()
        if isinstance(node, Folder) and weight(node) >= HEAVY
    }
    if not heavy or not room or not total_of(folder).is_plain or len(heavy) >= MOST_UNITS:
        return [(path, folder)]
    rest = Folder({name: node for name, node in folder.items() if name not in heavy})
    units = [(path, rest)]
    for name, node in heavy.items():
        try:
            below = f"{path.rstrip('/')}/{name.decode()}"
        except UnicodeDecodeError:
            return [(path, folder)]
        units += _split(below, node, room - 1)
    return units


def distance(base: Folder, folder: Folder, most: int) -> int:
    """What it takes to stage what differs, as weight() counts; more than `most` if it is more."""
    cost = 1
    for name, node in folder.items():
        below = base.get(name)
        if node is below or is_same(node, below):
            continue
        if isinstance(node, Folder):
            if isinstance(below, Folder):
                cost += distance(below, node, most - cost)
            else:
                cost += weight(node)
        elif isinstance(node, Leaf):
            cost += 1 + (int(node.digest.partition("/")[2]) >> 16)
        else:
            cost += 1
        if cost > most:
            return cost
    return cost + len(base.keys() - folder.keys())


class Bases:
    """The Folders that may be a base, by the paths of their layers; a lock is the caller's."""

    def __init__(self) -> None:
        self._places: OrderedDict[str, OrderedDict[str, Folder]] = OrderedDict()

    def based(self, path: str, folder: Folder) -> Folder:
        """A Folder with a base, or one that is to be staged as a whole, and becomes a base.

        With a base the layer has the files that differ. They may be so many as the square root of
        all, by four: then a tree that drifts away from its base is seldom staged anew, and what is
        staged for each action stays small.
        """
        known = self._places.setdefault(path, OrderedDict())
        self._places.move_to_end(path)
        while len(self._places) > _MOST_PLACES:
            self._places.popitem(last=False)
        digest = encoded(folder)
        if (same := known.get(digest)) is not None:
            known.move_to_end(digest)
            return same
        best, cost = None, max(64, 4 * isqrt(weight(folder))) + 1
        for base in reversed(known.values()):
            if base.staged is None:  # its staging is under way, or has failed
                continue
            if (found := distance(base, folder, cost)) < cost:
                best, cost = base, found
        made = copied(folder)
        made.digest, made.total, made.base = digest, folder.total, best
        if best is None:
            known[digest] = made
            if len(known) > _MOST_BASES:
                known.popitem(last=False)
        else:
            known.move_to_end(best.digest)
        return made

    def clear(self) -> None:
        self._places.clear()


class Inputs:
    """Makes inputs of Folders, and remembers them. where: the path of the input root.

    fetch: called with a Folder before a layer is filled with its files.
    """

    def __init__(self, where: str, fetch: Callable[[Folder], object]) -> None:
        self._where, self._fetch = where, fetch
        self._lock = allocate_lock()
        self._bases = Bases()
        self._ready: OrderedDict[str, Mapping[str, Tree]] = OrderedDict()

    def of(self, folder: Folder) -> Mapping[str, Tree]:
        """The inputs of a Command whose input root this is."""
        digest = encoded(folder)
        with self._lock:
            ready = self._ready.get(digest)
            if ready is not None:
                self._ready.move_to_end(digest)
                return ready
            made: dict[str, Tree] = {}
            for path, part in split(self._where, folder):
                based = self._bases.based(path, part)
                based.fetch = self._fetch
                made[path] = Tree._of(based)
            self._ready[digest] = made
            if len(self._ready) > _MOST_READY:
                self._ready.popitem(last=False)
            return made

    def clear(self) -> None:
        """Forgets all, so that no layer is kept in the store."""
        with self._lock:
            self._ready.clear()
            self._bases.clear()


def with_directories(folder: Folder, paths: Iterable[tuple[bytes, ...]]) -> Folder:
    """A Folder that also has some directories, which are made where nothing is."""
    made: Folder | None = None
    for path in paths:
        if _lacks(folder if made is None else made, path):
            made = _with(folder if made is None else made, path)
    if made is None:
        return folder
    return made


def _lacks(folder: Folder, path: tuple[bytes, ...]) -> bool:
    at = folder
    for name in path:
        below = at.get(name)
        if below is None:
            return True
        if not isinstance(below, Folder):
            return False
        at = below
    return False


def _with(folder: Folder, path: tuple[bytes, ...]) -> Folder:
    made = copied(folder)
    if path:
        below = made.get(path[0])
        made[path[0]] = _with(below if isinstance(below, Folder) else Folder(), path[1:])
    return made


def resolved(folder: Folder, path: Iterable[bytes], is_root: bool) -> tuple[bytes, ...] | None:
    """Where a path below the input root leads, with the links of the input root, also the last one.
    Components after one that does not exist stay as they are. is_root: whether the input root is
    the root, so that nothing leads out of it; otherwise None for a link that does.
    """
    todo = list(reversed(list(path)))
    way: list[tuple[bytes, Node | None]] = []
    links = 0
    while todo:
        name = todo.pop()
        if name in (b"", b"."):
            continue
        if name == b"..":
            if way:
                way.pop()
            elif not is_root:
                return None
            continue
        at = folder if not way else way[-1][1]
        node = at.get(name) if isinstance(at, Folder) else None
        if isinstance(node, Link):
            links += 1
            if links > MOST_LINKS or (node.target.startswith(b"/") and not is_root):
                return None
            if node.target.startswith(b"/"):
                way.clear()
            todo += reversed(node.target.split(b"/"))
            continue
        way.append((name, node))
    return tuple(name for name, _ in way)
