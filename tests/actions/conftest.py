# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lib.memory import Blobs, Entries, busybox

from sandboxlib import Store

pytest.importorskip("google.protobuf", reason="the extra remote is not installed")


class Place:
    """An Executor with a store of blobs in memory."""

    def __init__(self, store: Store, **site: Any) -> None:
        from sandboxlib._actions.execute import Executor
        from sandboxlib._actions.site import Site

        self.blobs = Blobs()
        self.executor = Executor(Site(**site), self.blobs, store)
        self.bin = busybox()

    def root(self, entries: Entries | None = None) -> str:
        """The digest of an input root with a shell."""
        return self.blobs.directory({"bin": self.bin, **(entries or {})})

    def run(self, script: str, outputs: Any = (), entries: Any = None, **options: Any) -> Any:
        """The Outcome of a shell's script."""
        execute = {
            name: options.pop(name) for name in ("stop", "stdout", "stderr") if name in options
        }
        root = options.pop("root", None) or self.root(entries)
        action = self.blobs.action(["/bin/sh", "-c", script], root, outputs, **options)
        return self.executor.execute(action, **execute)

    def file(self, outcome: Any, path: str) -> bytes:
        """The content of an output file."""
        for each in outcome.result.output_files:
            if each.path == path:
                return self.blobs[f"{each.digest.hash}/{each.digest.size_bytes}"]
        raise KeyError(path)

    def tree(self, outcome: Any, path: str) -> dict[str, object]:
        """What lies in an output directory, by paths: bytes of a file, str of a link, None of an
        empty directory.
        """
        from sandboxlib._remote.stubs import re_pb

        (told,) = [each for each in outcome.result.output_directories if each.path == path]
        digest = f"{told.tree_digest.hash}/{told.tree_digest.size_bytes}"
        tree = re_pb.Tree.FromString(self.blobs[digest])
        import hashlib

        children = {
            hashlib.sha256(each.SerializeToString(deterministic=True)).hexdigest(): each
            for each in tree.children
        }
        found: dict[str, object] = {}

        def walk(directory: Any, above: str) -> None:
            for file in directory.files:
                found[above + file.name] = self.blobs[
                    f"{file.digest.hash}/{file.digest.size_bytes}"
                ]
            for link in directory.symlinks:
                found[above + link.name] = link.target
            for each in directory.directories:
                found[above + each.name] = None
                walk(children[each.digest.hash], f"{above}{each.name}/")

        walk(tree.root, "")
        return found


@pytest.fixture
def make_place(tmp_path: Path) -> Iterator[Callable[..., Place]]:
    places: list[Place] = []

    def make(at: Path | None = None, max_size: int | None = None, **site: Any) -> Place:
        store = Store(at or tmp_path / "store", max_size=max_size)
        places.append(Place(store, **site))
        return places[-1]

    yield make
    for each in places:
        each.executor.close()


@pytest.fixture
def place(make_place: Callable[..., Place]) -> Place:
    return make_place()
