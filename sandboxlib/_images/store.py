# SPDX-License-Identifier: Apache-2.0
"""Store: a Storage that can also remove what ids of the caller's ranges own."""

from __future__ import annotations

from .._store.storage import New, Storage
from .._values import AnyStore, check_flag


class Store(Storage):
    """Where a caller keeps what is made once for many runs: unpacked layers, what is known of
    images, inputs. A frozen value; any number of threads and processes may use one directory.

    directory: str or path, made with mode 0700 if it is missing. It has to be the caller's, and
        nobody else may be able to write it. None (the default): sandboxlib below XDG_CACHE_HOME, or
        below ~/.cache.
    max_size: int, bytes, or a str like "20G". What was used least recently is removed when the
        store has grown by a sixteenth beyond that, except what is in use. None (the default): no
        limit.

    Raises SpecError (a ValueError) if a value is wrong, and SpecTypeError for a value of the wrong
    type, or an unknown keyword argument. Those who use it raise SetupError (an OSError, of step
    'store') if the directory cannot be used, as when the disk is full.
    """

    __module__ = "sandboxlib"  # as callers import it, and pickles name it

    def verify(self, *, remove: bool = False) -> list[str]:
        """Reads all unpacked layers, and compares them with what was unpacked. Returns the paths of
        those that are damaged: a disk that fails or lost power, or somebody who writes where only
        runs should read.

        remove: bool. True: it also removes them, so that the next run makes them anew, unless a run
            uses them. False (the default): it only tells.

        Raises SetupError if the store cannot be read; UnsupportedError if this caller can confine
        no child to read it. Layers that the caller unpacked with other ranges of ids are left out.
        """
        from .unpack_layers import is_whole, way_of

        check_flag("remove", remove)
        self._ready()
        damaged = []
        for entry in self._entries():
            lease = self._lease(entry.kind, entry.name)
            way = way_of(entry.kind)
            if lease is None or way is None:
                continue
            whole = is_whole(lease, way)
            lease.close()
            if not whole:
                damaged.append(entry.path)
                if remove:
                    self._remove(entry)
        return damaged

    def prune(self, max_size: int | str = 0) -> int:
        """Removes the entries that were used least recently, until the store is no larger than
        `max_size`. Returns how many bytes that freed.

        max_size: int, bytes, or a str like "2G"; 0 (the default): removes all that nobody uses.

        It never removes what a run has in use. What killed processes left behind, it always
        removes; also their uppers below TMPDIR (Overlay.storage='disk'), which it does not count.
        Raises SpecError for a wrong size; SetupError if the store cannot be read or written.
        """
        from .._runs.on_disk import place_of, sweep
        from .unpack import remove_foreign

        freed = super().prune(max_size)
        freed += sweep(place_of("disk"), remove_foreign)
        return freed

    def _empty_foreign(self, new: New) -> int:
        from .unpack import remove_foreign

        return remove_foreign(new.path)


def store_of(store: AnyStore | None) -> Storage:
    """The store that a caller names; None: the default one."""
    return store if isinstance(store, Storage) else Store()
