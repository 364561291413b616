# SPDX-License-Identifier: Apache-2.0
"""Placing: the layers that the inputs and outputs of a Command add to its root."""

from __future__ import annotations

import os
from _thread import allocate_lock
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from weakref import WeakValueDictionary

from .._spec.command import Command
from .._spec.inputs import inside, is_wild
from .._spec.overlay import Lower, Owners
from .._store.locks import Lease
from .._store.storage import Storage
from ..errors import SpecError, UnsupportedError
from . import memory
from .memory import Directory, InMemory
from .snapshot import Folder, Leaf, difference, encoded, merged
from .staging import KIND, Attributes, Layer, Owner, source_date
from .targets import Targets
from .tree import node_of

_MOST_KNOWN = 64  # sets of inputs that stay ready; each holds the locks of its layers


class Wanted:
    """An output of a Command: a pattern, and where it is looked for.

    pattern: as the Command has it. parent: the directory that no wildcard touches, absolute, as the
    pattern names it. where: the same without links, as the root has it. rest: the pattern below.
    """

    __slots__ = ("parent", "pattern", "rest", "where")

    def __init__(self, pattern: str, cwd: str | None) -> None:
        self.pattern = pattern
        *above, last = inside(pattern, cwd).split("/")
        wild = next((number for number, part in enumerate(above) if is_wild(part)), len(above))
        self.parent = "/".join(above[:wild]) or "/"
        self.rest = "/".join([*above[wild:], last])
        self.where = self.parent

    @property
    def fixed(self) -> str:
        """The path up to the first wildcard."""
        part = self.rest.partition("/")[0]
        return self.parent if is_wild(part) else os.path.join(self.parent, part)


class Ready:
    """The layers of a set of inputs, bottom first, and the outputs of the same Command."""

    __slots__ = ("lowers", "outputs")

    def __init__(self, lowers: tuple[Lower, ...], outputs: tuple[Wanted, ...]) -> None:
        self.lowers, self.outputs = lowers, outputs


class Placer:
    """Places the inputs of Commands in one root, and remembers what it placed. The links of the
    root are looked up at the first use.

    root: returns the layers of the root, bottom first. prefix: of the overlay's own attributes.
    owners: as a run has them. ids: uid and gid of the command, if it has others than the caller.
    hidden: paths on which the run mounts something.
    """

    def __init__(
        self,
        storage: Storage,
        root: Callable[[], Sequence[Lower]],
        prefix: bytes,
        owners: Owners,
        ids: tuple[int, int] | None,
        hidden: Iterable[str],
    ) -> None:
        self._storage, self._root, self._prefix = storage, root, prefix
        self._owners, self._ids, self._hidden = owners, ids, tuple(hidden)
        self._lock = allocate_lock()
        self._memory: Directory | None = None
        self._known: dict[object, Ready] = {}
        # One lease of each layer for all that use it: a lock of the store takes a descriptor.
        self._leases: WeakValueDictionary[object, Lease | InMemory] = WeakValueDictionary()

    @property
    def directory(self) -> str:
        """Where the store has all layers of inputs, which a slot sees."""
        self._storage._ready()
        path = self._storage._path(KIND)
        os.makedirs(path, 0o700, exist_ok=True)
        return path

    @property
    def in_memory(self) -> Directory | None:
        """Where this process has layers in memory, which a slot sees; None: nowhere."""
        if self._memory is None or not self._memory.is_ours:
            self._memory = memory.find()
        return self._memory

    def ready(self, command: Command, cwd: str | None = None) -> Ready:
        """The layers of a Command. What is not in the store yet is staged. SandboxError.

        cwd: the directory of the Command, if it names none.
        """
        cwd = cwd if command.cwd is None else command.cwd
        nodes = {inside(path, cwd): _itself(node_of(each)) for path, each in command.inputs.items()}
        owner = self._owner()
        key = (
            *(os.getpid(), repr(owner), cwd, command.outputs),
            tuple([(path, *_key(node)) for path, node in nodes.items()]),
        )
        with self._lock:
            ready = self._known.pop(key, None)
            if ready is not None:
                self._known[key] = ready  # the last in order: it was used last
        if ready is None or not all(os.path.lexists(lower.path) for lower in ready.lowers):
            outputs = tuple(Wanted(pattern, cwd) for pattern in command.outputs)
            self._check_mounts([*nodes, *(each.fixed for each in outputs)])
            ready = self._place(nodes, outputs, owner)
            with self._lock:
                self._known[key] = ready
                while len(self._known) > _MOST_KNOWN:
                    del self._known[next(iter(self._known))]
        return ready

    def release(self) -> None:
        """Lets go of the layers of all sets of inputs; those that runs use stay."""
        with self._lock:
            self._known.clear()

    def _owner(self) -> Owner:
        owners, ids = self._owners, self._ids
        uid, gid = owners.uid, owners.gid
        if owners.kind == "real" and ids is not None:
            uid, gid = ids
        elif owners.kind == "ranges" and ids is not None and ids != (0, 0):
            raise UnsupportedError(
                f"inputs for uid {ids[0]} of the caller's ranges: files can be given to no other id"
                " than 0 there"
            )
        return Owner(uid, gid, source_date())

    def _check_mounts(self, paths: Iterable[str]) -> None:
        """SpecError if a mount of the run would hide an input, or what becomes an output."""
        for path in paths:
            for target in self._hidden:
                if f"{path}/".startswith(target.rstrip("/") + "/"):
                    text = f"the input or output {path!r} lies below {target!r}"
                    hint = "; tmp='root' leaves the root's" if target == "/tmp" else ""
                    raise SpecError(f"{text}, where the run mounts something of its own{hint}")

    def _place(
        self, nodes: Mapping[str, Leaf | Folder], outputs: tuple[Wanted, ...], owner: Owner
    ) -> Ready:
        with Targets(self._root(), self._prefix) as targets:
            placed: dict[str, Leaf | Folder] = {}
            for path, node in nodes.items():
                resolved = targets.resolve(path, isinstance(node, Folder))
                if resolved in placed:
                    raise SpecError(f"two inputs have the path {resolved!r} in this root")
                placed[resolved] = node
            for each in outputs:
                each.where = targets.directory(each.parent)
            self._check_mounts([*placed, *(each.where for each in outputs)])
            layers = list(self._layers(placed, outputs, owner, targets))
        lowers = []
        for content, layer, path, tree in layers:
            lease = self._leased(content, layer, tree is None)
            lowers.append(Lower(lease.path, lease))
            if tree is not None and tree.staged is None:
                # The snapshot stays whole, whatever becomes of its source.
                tree.staged = lease.path + path.rstrip("/"), lease
        return Ready(tuple(lowers), outputs)

    def _leased(self, content: object, layer: Layer, is_own: bool) -> Lease | InMemory:
        """A lease of a layer, which is staged if it is not there. is_own: it is hardly that of
        another command: it may be in memory.
        """
        key = os.getpid(), content  # a layer in memory is not that of a fork
        lease = self._leases.get(key)
        if lease is None or not os.path.lexists(lease.path):  # somebody removed the store
            here = self.in_memory if is_own else None
            lease = (here and here.stage(layer)) or layer.stage(self._storage)
            self._leases[key] = lease
        return lease

    def _layers(
        self,
        placed: Mapping[str, Leaf | Folder],
        outputs: tuple[Wanted, ...],
        owner: Owner,
        targets: Targets,
    ) -> Iterator[tuple[object, Layer, str, Folder | None]]:
        """One layer for each Tree, so that it is staged once for all sets of inputs that have it;
        and above them one for all Files, and the directories for outputs. A Tree with a base has
        two: that of the base, and what differs. With a layer comes a key, which equal ones share,
        the path of the Folder of which it has all, and that Folder.
        """
        if any(_is_below(os.path.dirname(path), placed) for path in placed):
            merged(placed, _itself)  # for its errors: what lies on the way to a longer path
        trees = {path: node for path, node in placed.items() if isinstance(node, Folder)}
        for path in sorted(trees, key=_depth):
            tree = trees[path]
            below = tree if tree.base is None else tree.base
            folder, above = merged({path: below}, _itself), _above([path], trees, targets)
            hides = "" if path == "/" else path
            args = owner, above, hides, self._prefix, below.fetch
            yield _content({path: below}, owner, above), Layer(folder, "", *args), path, below
            if tree.base is not None:
                folder = merged({path: difference(tree.base, tree)}, _itself)
                digest = f"{encoded(tree.base)} {encoded(tree)} {path}"
                layer = Layer(folder, digest, owner, above, fetch=tree.fetch)
                yield (digest, _content({}, owner, above)), layer, path, None
        small: dict[str, Leaf | Folder] = {
            each.where: Folder()
            for each in outputs
            if not targets.exists(each.where) or _is_below(each.where, trees)
        }
        if clash := small.keys() & (placed.keys() - trees.keys()):
            raise SpecError(f"an output lies below {min(clash)!r}, which is a File")
        small = {path: node for path, node in small.items() if path not in trees}
        small |= {path: node for path, node in placed.items() if isinstance(node, Leaf)}
        if small:
            above = _above(small, trees, targets)
            layer = Layer(merged(small, _itself), "", owner, above)
            yield _content(small, owner, above), layer, "", None


def _key(node: Leaf | Folder) -> tuple[str, bool | None]:
    return (node.digest, None) if isinstance(node, Folder) else (node.digest, node.is_executable)


def _content(
    nodes: Mapping[str, Leaf | Folder], owner: Owner, above: Mapping[bytes, Attributes]
) -> object:
    """What a layer has in it, as a key."""
    entries = tuple([(path, *_key(node)) for path, node in sorted(nodes.items())])
    return entries, repr(owner), tuple(sorted(above.items()))


def _itself(node: object) -> Leaf | Folder:
    assert isinstance(node, Leaf | Folder)
    return node


def _depth(path: str) -> tuple[int, str]:
    return path.count("/"), path


def _is_below(path: str, trees: Iterable[str]) -> bool:
    """Whether a path is that of a Tree, or lies below it."""
    return any(f"{path}/".startswith(tree.rstrip("/") + "/") for tree in trees)


def _above(paths: Iterable[str], trees: Iterable[str], targets: Targets) -> dict[bytes, Attributes]:
    """The attributes of the directories above some paths, as the root has them: the topmost layer
    tells those of a merged directory. A Tree hides what the root has.
    """
    found: dict[bytes, Attributes] = {}
    for path in paths:
        above = path
        while above != "/":
            above = os.path.dirname(above)
            if (name := os.fsencode(above)) in found:
                break
            if not _is_below(above, trees) and (at := targets.status(above)) is not None:
                found[name] = at.st_mode & 0o7777, at.st_uid, at.st_gid, at.st_mtime_ns
    return found
