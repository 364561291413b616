# SPDX-License-Identifier: Apache-2.0
"""The outputs of a run whose files this process may not read: the confined reader tells them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from .._inputs.outputs import Outputs
from .._inputs.placing import Wanted
from .._inputs.reading import MOST, MOST_NAMES, Taker
from .._store.storage import Storage
from ..errors import setup_error
from .child.globs import Globs
from .confined import STEP, Reader, nonsense
from .stream import Nonsense, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._runs.upper import Upper
    from .stream import Item

_MOST_BYTES = 1 << 28  # of all paths


def read_confined(upper: Upper, outputs: Sequence[Wanted], storage: Storage) -> Outputs:
    """The outputs of a run that is over. SetupError; UnsupportedError if nothing confines the
    reader.
    """
    args = [str(MOST_NAMES), str(MOST), str(_MOST_BYTES)]
    for each in outputs:
        args += [each.where, each.rest]
    with contextlib.ExitStack() as stack:
        taker = Taker(storage, stack)
        stream = Stream(_Consumer(taker, outputs))
        try:
            Reader(upper).call("outputs", *args, write=stream.take)
            stream.close()
            return taker.finish(outputs)
        except Nonsense as error:
            raise nonsense(error) from None
        except OSError as error:
            if hasattr(error, "step"):
                raise
            raise setup_error(error.errno or 0, None, STEP, "read the outputs") from None


class _Consumer:
    """Hands what the reader tells to a Taker, under the names that the patterns have for it."""

    def __init__(self, taker: Taker, outputs: Sequence[Wanted]) -> None:
        self._taker = taker
        self._wanted = [(each, Globs([each.rest])) for each in outputs]
        self._names: list[str] = []
        self._at = self._left = 0
        self._parts: list[tuple[int, int]] = []

    def _named(self, path: str) -> list[str]:
        """The paths of an output, and which patterns have it. Nonsense, if none does."""
        names = []
        for wanted, globs in self._wanted:
            start = wanted.where.rstrip("/") + "/"
            if path.startswith(start) and globs.matches(path[len(start) :]):
                names.append(os.path.join(wanted.parent, path[len(start) :]))
                self._taker.found.add(wanted.pattern)
        if not names:
            raise Nonsense(f"an output that nobody asked for: {path[:200]!r}")
        return list(dict.fromkeys(names))

    def begin(self, item: Item) -> None:
        change = item.change
        names = self._named(change.path)
        if change.type == "directory":
            for name in names:
                self._taker.directory(name)
        elif change.type == "symlink":
            for name in names:
                self._taker.link(name, change.target or "")
        elif change.type == "file" and item.parts is not None:
            self._taker.begin(names, change.size, bool(change.mode & 0o100))
            self._parts = list(item.parts)
            self._at = self._left = 0
        else:
            raise Nonsense(f"an output that is a {change.type}: {change.path[:200]!r}")

    def content(self, data: bytes) -> None:
        while data:
            if not self._left:
                self._at, self._left = self._parts.pop(0)
            piece = data[: self._left]
            self._taker.write(self._at, piece)
            self._at += len(piece)
            self._left -= len(piece)
            data = data[len(piece) :]

    def end(self, item: Item) -> None:
        if item.change.type == "file":
            self._taker.end()
