# SPDX-License-Identifier: Apache-2.0
"""Changes: what a run left in its upper."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator

from .. import _types
from .._values import AnyStore, check_flag, check_number, check_path, check_size
from ..errors import ImageError, SpecError, SpecTypeError, setup_error
from .apply import apply
from .archive import Archive, Gathered
from .change import Change
from .confined import STEP, Reader, nonsense
from .stream import SAME, Nonsense, Stream
from .writer import extract

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO

    from .._runs.upper import Upper
    from .stream import Consumer, Item

MOST_NAMES = 1_000_000
MOST_LIST = 1 << 27  # bytes of all paths and attributes
#: What is kept in memory: bytes of contents, items, and bytes of the last archive.
MOST_KEPT, MOST_ITEMS, MOST_ARCHIVED = 8 << 20, 10_000, 16 << 20
MOST_READ = "64M"
_LIMITS = str(MOST_NAMES), str(MOST_LIST)
_MOST_TIME = (1 << 33) - 1  # seconds, what the header of a tar holds


class Changes:
    """What a run changed in its root: the difference between the layers and what the run left.

        with box.run(["make", "install"], changes="keep").changes as changes:
            for change in changes:
                print(change.kind, change.path)
            changes.save("layer.tar", mtime=0)

    It is an iterable of Change, in the order of the paths, component by component; len() is their
    number. It compares two states, and not what the command did between them: a file that was
    written again with the same content is 'metadata' if its time is another one, and no change
    if nothing is. A directory is none either if only its time changed, as it does when an
    entry of it is added, removed or replaced. A renamed directory is 'deleted' under its old name,
    and 'added' under its new one with all that is below it. What went into mounts of the Sandbox
    (also the private /tmp) is not in it.

    complete: bool. False if the run was killed, by its timeout or otherwise, so that files may be
        half written.

    It owns the upper directory of the run, in memory or on disk, until close(); use it in a `with`
    block. One that is collected without close() issues a ResourceWarning. It cannot be pickled.

    What the command left is not trusted. A confined process reads it, which follows no link and
    opens neither FIFOs nor devices; there may be 1,000,000 names.
    """

    __module__ = "sandboxlib"  # as callers import it

    def __init__(self, upper: _types.Any) -> None:
        self.complete = upper.complete
        self._upper: Upper | None = upper
        self._lock = threading.RLock()
        self._reader: Reader | None = None
        self._list: tuple[Change, ...] | None = None
        # If they are small: all items with their contents, and the last archive with its mtime.
        self._kept: list[tuple[Item, bytes]] | None = None
        self._archived: tuple[int | None, list[bytes]] | None = None
        self._digests: dict[int | None, str] = {}

    # ---- the list ----

    def __iter__(self) -> Iterator[Change]:
        return iter(self._listed())

    def __len__(self) -> int:
        return len(self._listed())

    def __bool__(self) -> bool:
        return len(self) > 0

    def _listed(self) -> tuple[Change, ...]:
        with self._lock:
            self._feed(None)
            assert self._list is not None
            return self._list

    # ---- contents ----

    def read(self, path: _types.Path, *, max_size: int | str = MOST_READ) -> bytes:
        """Returns the content of a regular file, as the run left it; also of one that it did not
        change.

        path: str or path, absolute, in the root of the run. Links on the way are followed inside
        the
            root; one at its end is not.
        max_size: int, bytes, or a str like "200M"; "64M" is the default. A longer file is an error.

        Raises SetupError: ENOENT if there is no such file, EINVAL if it is no regular file, EFBIG
        if it is longer than max_size. SpecError for a wrong path or size.
        """
        name = check_path("the path of a file", path)
        if not name.startswith("/"):
            raise SpecError(f"the path of a file is not absolute: {name!r}")
        most = check_size("max_size", max_size, 0, 1 << 40)
        with self._lock:
            return self._running().call("read", name, str(most), max_output=most)

    def save(self, file: _types.Path | _types.IO[bytes], *, mtime: int | None = None) -> str:
        """Writes the changes as a layer of an OCI image: a tar, with whiteouts for what is gone.
        Returns its digest, "sha256:...", which is the diff_id of the layer.

        file: str or path: the layer takes its place once it is whole. Or a file that is open for
            writing bytes.
        mtime: int, seconds since 1970: the time of every file in the layer. None (the default):
        each
            has its own. Equal changes with an equal mtime are equal bytes.

        It has the directories on the way to each change as well, since they would get other modes
        and owners when the layer is unpacked. Sockets are left out, as in every tar. Raises
        UnsupportedError if a name of the command begins with ".wh.", which a layer means otherwise;
        SetupError if the file cannot be written.
        """
        check_mtime(mtime)
        if hasattr(file, "write"):
            if isinstance(file, io.TextIOBase):
                raise SpecTypeError("file is open for text: open(path, 'wb') takes the bytes")
            return self._archive(file.write, mtime)
        if not isinstance(file, (str, os.PathLike)):
            raise SpecTypeError(f"file is neither a path nor open for writing: {file!r}")
        path = check_path("file", file)
        with written(path) as out:
            return self._archive(out.write, mtime)

    def digest(self, *, mtime: int | None = None) -> str:
        """Returns the digest of what save() writes with this mtime. It writes nothing.

        mtime: as in save(), and the errors too.
        """
        check_mtime(mtime)
        if mtime not in self._digests:
            self._archive(None, mtime)
        self._check_open()
        return self._digests[mtime]

    def commit(self, store: AnyStore | None = None, *, mtime: int | None = None) -> _types.Layer:
        """Puts the changes into a store as a layer, and returns the Layer, which an Overlay stacks
        on the layers that the run had. Its digest is that of digest() with the same mtime.

        store: Store. None (the default): Store(), the caller's cache directory.
        mtime: as in save().

        Device nodes are left out, as in every layer of a store. Raises the errors of save(),
        ImageError if the layer is larger than the store takes, and SetupError if the store cannot
        be used.
        """
        check_mtime(mtime)
        import tempfile

        from .layer import Layer

        try:
            with tempfile.TemporaryFile() as file:
                digest = self._archive(file.write, mtime)
                file.flush()
                layer = Layer._from_file(file.fileno(), "the changes", store, timeout=None)
        except OSError as error:
            if isinstance(error, RuntimeError):  # a SetupError
                raise
            what = "write the changes to a temporary file"
            raise setup_error(error.errno or errno.EIO, None, STEP, what) from error
        if layer.digest != digest:
            raise ImageError(f"the store has {layer.digest}, and the changes are {digest}")
        return layer

    def extract(self, directory: _types.Path, *, keep_set_ids: bool = False) -> None:
        """Makes a directory with the files that were added or modified, or whose metadata were,
        below the directories that they are in. What was deleted is not told.

        directory: str or path; it does not exist yet, or is empty. It appears whole or not at all.
        keep_set_ids: bool. False (the default): files lose the set-user-ID and set-group-ID bits
        and
            their capabilities. True: they keep them; only in a directory that no other user can
            reach.

        Files have their modes and times, and attributes `user.*` where the file system has them.
        For root they have their owners; for other callers they are the caller's. Devices are left
        out. Raises SetupError if the directory cannot be made.
        """
        check_flag("keep_set_ids", keep_set_ids)
        path = check_path("directory", directory)
        extract(self._feed, path, self._keeps_owners(), keep_set_ids)

    def apply(self, directory: _types.Path) -> None:
        """Brings the changes into a directory: the layer that the run had, or a copy of it.

        directory: str or path, which nobody else changes meanwhile.

        All new files are made first, in a directory `.sandboxlib-*` in it, so that a full disk is
        met before anything changes. Then each file, and each new directory with all that is in it,
        takes its place by a rename. If one fails, those before it go back, and the directory is as
        it was; but a process that sees the directory meanwhile sees some of them, and if this
        process is killed meanwhile, some stay. With a single change there is a single rename.

        Modes, owners, times, set-user-ID bits and attributes are those that the run left. Raises
        UnsupportedError, before anything is touched, for devices and for files of other owners if
        the caller is not root; SetupError if a file cannot be written, or is not there to be
        changed (ENOENT).
        """
        path = check_path("directory", directory)
        apply(self._feed, self._listed(), path, self._keeps_owners())

    def _keeps_owners(self) -> bool:
        return self._check_open().owners.kind == "real" and os.geteuid() == 0

    def _archive(self, write: Callable[[bytes], object] | None, mtime: int | None) -> str:
        """Write the archive, and return its digest. A small one is made once for each mtime."""
        with self._lock:
            self._check_open()
            if self._archived is None or self._archived[0] != mtime:
                return self._make_archive(write, mtime)
            if write is not None:
                for data in self._archived[1]:
                    write(data)
            return self._digests[mtime]

    def _make_archive(self, write: Callable[[bytes], object] | None, mtime: int | None) -> str:
        hashed = hashlib.sha256()
        kept: list[bytes] | None = []
        left = MOST_ARCHIVED

        def take(data: bytes) -> None:
            nonlocal kept, left
            hashed.update(data)
            if write is not None:
                write(data)
            left -= len(data)
            if left < 0:
                kept = None
            elif kept is not None:
                kept.append(data)

        self._archived = None
        gathered = Gathered(take)
        archive = Archive(gathered.write, mtime)
        self._feed(archive)
        archive.close()
        gathered.flush()
        digest = f"sha256:{hashed.hexdigest()}"
        self._digests[mtime] = digest
        if kept is not None:
            self._archived = mtime, kept
        return digest

    # ---- reading ----

    def _feed(self, consumer: Consumer | None) -> None:
        """Give all items to a consumer; None: only list them. What a small upper holds is read
        once, and kept in memory.
        """
        with self._lock:
            self._check_open()
            if self._list is None:
                self._read_all()
            if consumer is not None and self._kept is not None:
                for item, content in self._kept:
                    consumer.begin(item)
                    if content:
                        consumer.content(content)
                    consumer.end(item)
            elif consumer is not None:
                self._stream(consumer, 1 << 63)

    def _read_all(self) -> None:
        listing = Listing()
        self._stream(listing, MOST_KEPT)
        self._list = listing.sorted()
        self._kept = listing.items

    def _stream(self, consumer: Consumer, budget: int) -> None:
        """Give all items to a consumer as the reader finds them. budget: bytes of content, after
        which it is left out.
        """
        reader = self._running()
        stream = Stream(consumer)
        try:
            arguments = reader.owner, *_LIMITS, str(budget), *reader.points
            reader.call("changes", *arguments, write=stream.take)
            stream.close()
        except Nonsense as error:
            raise nonsense(error) from None

    def _running(self) -> Reader:
        upper = self._check_open()
        if self._reader is None:
            self._reader = Reader(upper)
        return self._reader

    # ---- its life ----

    def close(self) -> None:
        """Gives up the upper: its memory, or its directory on disk. A second call does nothing."""
        with self._lock:
            upper, self._upper, self._reader = self._upper, None, None
            self._list = self._kept = self._archived = None
        if upper is not None:
            upper.close()

    def __enter__(self) -> _types.Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> _types.NoReturn:
        raise TypeError("Changes cannot be pickled: save() or commit() keeps them")

    def __repr__(self) -> str:
        state = "closed" if self._upper is None else f"complete={self.complete}"
        return f"<Changes {state}>"

    def __del__(self) -> None:
        if getattr(self, "_upper", None) is not None:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def _check_open(self) -> Upper:
        if self._upper is None:
            raise ValueError("the Changes are closed")
        return self._upper


class Listing:
    """The consumer that collects the changes. items: all items with their contents; None if they
    are too many, or if content was left out.
    """

    def __init__(self) -> None:
        self.items: list[tuple[Item, bytes]] | None = []
        self._changes: list[Change] = []
        self._content: list[bytes] = []

    def begin(self, item: Item) -> None:
        if item.change.kind != SAME:
            self._changes.append(item.change)
        if item.parts is None:
            self.items = None

    def content(self, data: bytes) -> None:
        self._content.append(data)

    def end(self, item: Item) -> None:
        if self.items is not None:
            self.items.append((item, b"".join(self._content)))
            if len(self.items) > MOST_ITEMS:
                self.items = None
        self._content.clear()

    def sorted(self) -> tuple[Change, ...]:
        """The changes in the order of their paths, component by component."""
        self._changes.sort(key=lambda change: os.fsencode(change.path).split(b"/"))
        return tuple(self._changes)


def check_mtime(mtime: object) -> None:
    if mtime is not None:
        check_number("mtime", mtime, 0, _MOST_TIME)


@contextlib.contextmanager
def written(path: str) -> Iterator[IO[bytes]]:
    """A new file beside `path`, which takes its place at the end, or is removed."""
    directory, name = os.path.split(path)
    new = os.path.join(directory, f".{name[:200]}.{os.urandom(6).hex()}")
    try:
        with open(new, "xb") as file:
            try:
                yield file
                file.flush()
                os.replace(new, path)
            except BaseException:
                os.unlink(new)
                raise
    except OSError as error:
        if isinstance(error, RuntimeError):  # a SetupError
            raise
        raise setup_error(error.errno or errno.EIO, path, STEP, f"write {path}") from error
