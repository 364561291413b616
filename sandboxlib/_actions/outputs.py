# SPDX-License-Identifier: Apache-2.0
"""Outputs: what a command left at the paths that its Action names, out of the upper of its run.

The command may be hostile. Its processes are gone, and what it left is read by descriptors, one
name after the other: no link is followed, only regular files are opened, and all is bounded. What
it did not change is not read: it is known from the messages of the input root. An output that is
the whole input root, as BuildStream has it, costs what changed in it.
"""

from __future__ import annotations

import contextlib
import os
import stat

from .. import _reapi
from .._changes.child.stack import Directory, Entry, Stack
from .._inputs.collecting import clone, copy_data, write_all
from .._inputs.snapshot import Folder, Leaf, Link, Properties
from .._inputs.staging import source_date
from .._runs.run import Stopped
from .._runs.upper import Upper
from .._spec.inputs import CHUNK
from .files import Files
from .outcome import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from threading import Event

    from .._store.storage import New

MOST = 200_000  # files, directories and links that a command made or changed
MOST_BYTES = 64 << 30  # of large files, with their holes, which are read and sent as zeros
MOST_DEEP = 200  # directories in each other
_SMALL = 1 << 18  # bytes: such a file is in memory until it is uploaded
_MOST_IN_MEMORY = 32 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
#: What output_node_properties may ask for, beside names that no file has.
KNOWN = frozenset({"mtime", "unix_mode"})


class Reader:
    """Reads outputs. Use it in `with`, which lasts until all was uploaded.

    upper: of the run. where: the input root in the root, as names. wanted: the node properties that
    the Action asks for. stop: once it is set, read() raises Stopped. blobs: gets the contents, by
    their digests: bytes, or the path of a file.
    """

    def __init__(
        self,
        upper: Upper,
        where: str,
        files: Files,
        wanted: frozenset[str],
        stop: Event | None = None,
    ) -> None:
        self._where, self._files, self._wanted = where, files, wanted
        self.blobs: dict[str, bytes | str] = {}
        self._stack = contextlib.ExitStack()
        self._upper = upper
        self._room, self._left, self._bytes = _MOST_IN_MEMORY, MOST, MOST_BYTES
        self._stop = stop
        self._new: New | None = None
        self._stored: list[str] = []
        self._date = source_date()

    def __enter__(self) -> Reader:
        layers = [self._upper.fd]
        try:
            for lower in reversed(self._upper.lowers):
                layers.append(os.open(lower.path, _FOLDER))
                self._stack.callback(os.close, layers[-1])
            merged = Stack(layers, self._upper.prefix)
            self._root = self._stack.enter_context(merged.root())
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def publish(self) -> None:
        """Keeps the contents that went to the store for later actions."""
        if self._new is not None:
            self._files.publish(self._new, self._stored)
            self._stored = []

    def read(self, path: tuple[bytes, ...], folder: Folder) -> Leaf | Link | Folder | None:
        """What lies at a path below the input root; None if there is nothing, or no file, directory
        or link. folder: the input root as it was before.
        """
        names = [os.fsencode(name) for name in self._where.split("/") if name]
        with contextlib.ExitStack() as stack:
            directory = self._root
            known: Folder | None = folder
            if not names and not path:
                return self._directory(directory, known, MOST_DEEP, is_top=True)
            all_names = [*names, *path]
            for number, name in enumerate(all_names):
                inside = number >= len(names)
                entry = directory.look(name)
                if entry is None:
                    return None
                node = known.get(name) if inside and known is not None else None
                if number + 1 == len(all_names) and not (entry.is_directory()):
                    return self._node(directory, entry, node, MOST_DEEP)
                if not entry.is_directory():
                    return None
                below = stack.enter_context(self._open(directory, entry))
                if inside:
                    known = self._known(below, node)
                directory = below
            return self._directory(directory, known, MOST_DEEP)

    # ---- what lies in the merged view ----

    def _open(self, directory: Directory, entry: Entry) -> Directory:
        """A directory below. The owner of a directory that keeps its owner out opens it first: only
        the upper has such ones, which nobody uses any more.
        """
        mode, user = entry.status.st_mode, os.geteuid()
        if entry.layer == 0 and user and mode & 0o500 != 0o500 and entry.status.st_uid == user:
            self._unlock(entry, 0o700)
        return directory.open(entry.name)

    def _unlock(self, entry: Entry, mode: int) -> None:
        fd = os.open(entry.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=entry.directory)
        try:
            os.chmod(f"/proc/self/fd/{fd}", mode)
        finally:
            os.close(fd)

    def _known(self, directory: Directory, node: object) -> Folder | None:
        """The Folder that the layers below have for a directory; None if the command replaced it,
        or renamed another one to its place.
        """
        if not isinstance(node, Folder):
            return None
        in_upper = directory.parts[0][0] == 0
        if in_upper and not (directory.continues and len(directory.parts) > 1):
            return None
        return node

    def _directory(
        self, directory: Directory, known: Folder | None, room: int, is_top: bool = False
    ) -> Folder:
        """The Folder of a directory. known: what the layers below have there."""
        if known is not None and directory.parts[0][0] != 0:
            return known
        if not room:
            raise Refused("INVALID_ARGUMENT", f"outputs with more than {MOST_DEEP} directories")
        made = Folder()
        for entry in directory.entries():
            before = None if known is None else known.get(entry.name)
            if is_top and before is None and self._is_of_ours(directory, entry):
                continue
            if (node := self._node(directory, entry, before, room)) is not None:
                made[entry.name] = node
        if self._wanted:
            status = os.fstat(directory.parts[0][1])
            made.properties = self._properties(status)
        return made

    def _is_of_ours(self, directory: Directory, entry: Entry) -> bool:
        """Whether an entry is a mount point that the sandbox has beside the input root, and the
        command left as it was.
        """
        if entry.name not in (b"dev", b"proc", b"tmp") or not entry.is_directory():
            return False
        with self._open(directory, entry) as below:
            return next(iter(below.entries()), None) is None

    def _node(
        self, directory: Directory, entry: Entry, before: object, room: int
    ) -> Leaf | Link | Folder | None:
        if entry.layer != 0 and isinstance(before, (Leaf, Link)):
            return before
        if entry.is_directory():
            with self._open(directory, entry) as below:
                return self._directory(below, self._known(below, before), room - 1)
        self._left -= 1
        if self._left < 0:
            raise Refused("RESOURCE_EXHAUSTED", f"the command left more than {MOST} outputs")
        extra = self._properties(entry.status)
        if entry.is_link():
            return Link(entry.link(), extra)
        if not stat.S_ISREG(entry.status.st_mode):
            return None
        return self._file(entry, extra)

    def _properties(self, status: os.stat_result) -> Properties | None:
        if not self._wanted:
            return None
        seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
        return Properties(
            status.st_mode & 0o7777 if "unix_mode" in self._wanted else None,
            (seconds, nanoseconds) if "mtime" in self._wanted else None,
        )

    # ---- files ----

    def _file(self, entry: Entry, extra: Properties | None) -> Leaf:
        status = entry.status
        user = os.geteuid()
        if entry.layer == 0 and user and not status.st_mode & 0o400 and status.st_uid == user:
            self._unlock(entry, 0o600)
        fd = entry.open()
        try:
            size = os.fstat(fd).st_size
            is_executable = bool(status.st_mode & 0o100)
            if size <= min(_SMALL, self._room):
                content = _whole(fd, size)
                self._room -= len(content)
                digest = _reapi.digest_of(content)
                self.blobs[digest] = content
            else:
                digest = self._stored_file(fd, size)
            return Leaf(digest, is_executable, b"", 0, extra)
        finally:
            os.close(fd)

    def _stored_file(self, fd: int, size: int) -> str:
        """Puts a large file into the store: it is uploaded from there, and is an input later."""
        self._bytes -= size
        if self._bytes < 0:
            text = f"the outputs have more than {MOST_BYTES >> 30} GiB, holes included"
            raise Refused("RESOURCE_EXHAUSTED", text)
        if self._new is None:
            self._new = self._stack.enter_context(self._files.new())
        path = os.path.join(self._new.tree, f"new{len(self.blobs)}")
        new = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if not clone(fd, new):
                os.ftruncate(new, size)

                def write(at: int, data: bytes) -> None:
                    os.lseek(new, at, os.SEEK_SET)
                    write_all(new, data)

                copy_data(fd, size, write)
            os.lseek(new, 0, os.SEEK_SET)
            hash = _reapi.sha256(size)
            length = 0
            while chunk := os.read(new, CHUNK):
                if self._stop is not None and self._stop.is_set():
                    raise Stopped
                hash.update(chunk)
                length += len(chunk)
        finally:
            os.close(new)
        digest = f"{hash.hexdigest()}/{length}"
        target = os.path.join(self._new.tree, hash.hexdigest())
        os.rename(path, target)
        self.blobs[digest] = target
        self._stored.append(digest)
        return digest


def _whole(fd: int, size: int) -> bytes:
    content = bytearray()
    while len(content) < size and (data := os.read(fd, size - len(content))):
        content += data
    return bytes(content)


def utf8(what: str, text: bytes) -> str:
    """A text for a message. Refused if it is not UTF-8: whoever got the message could not read it,
    nor anything beside the text.
    """
    try:
        return text.decode()
    except UnicodeDecodeError:
        why = f"{what} {text!r}, which is not UTF-8: no message can have it"
        raise Refused("FAILED_PRECONDITION", why) from None


# ---- messages --------------------------------------------------------------------------------


class Encoder:
    """The Directory messages of output Folders. It leaves the Folders as they are: those of an
    input root are shared, and keep the digests of whoever sent them.

    wanted: the node properties that the Action asks for; all Folders get those, and no others.
    is_whole: True: also the messages that the server has already, for a Tree.
    """

    def __init__(self, wanted: frozenset[str], is_whole: bool = False) -> None:
        self._wanted, self._is_whole = wanted, is_whole
        self.messages: dict[str, bytes] = {}
        # By identity. Each Folder is kept with its digest: otherwise another one, made once it is
        # gone, could have its identity.
        self._known: dict[int, tuple[Folder, str]] = {}

    def digest(self, folder: Folder) -> str:
        """The digest of a Folder, whose messages, and those of all below it, are in `messages`."""
        if (found := self._known.get(id(folder))) is not None:
            return found[1]
        total = folder.total
        takes_messages = self._is_whole or bool(self._wanted) or total is None
        if not takes_messages and total.is_kept and total.is_plain:  # type: ignore[union-attr]
            return folder.digest
        files, directories, links = {}, {}, {}
        for name, node in folder.items():
            utf8("an output has the name", name)
            if isinstance(node, Leaf):
                extra = self._extra(node, 0o755 if node.is_executable else 0o644)
                files[name] = _reapi.file_node(name, node.digest, node.is_executable, extra)
            elif isinstance(node, Link):
                utf8("a symbolic link leads to", node.target)
                links[name] = _reapi.symlink_node(name, node.target, self._extra(node, 0o777))
            else:
                directories[name] = _reapi.directory_node(name, self.digest(node))
        extra = self._extra(folder, 0o755)
        message = _reapi.directory(files, directories, links, extra)
        digest = _reapi.digest_of(message)
        self._known[id(folder)] = folder, digest
        self.messages[digest] = message
        return digest

    def _extra(self, node: Leaf | Link | Folder, mode: int) -> bytes | None:
        if not self._wanted:
            return None
        told = node.properties or Properties()
        mtime = told.mtime or (source_date(), 0)
        return Properties(
            (told.mode if told.mode is not None else mode) if "unix_mode" in self._wanted else None,
            mtime if "mtime" in self._wanted else None,
        ).encoded()

    def extra(self, node: Leaf | Link | Folder) -> bytes | None:
        """The properties of an output that is no part of a directory."""
        mode = (
            0o755
            if isinstance(node, Folder) or (isinstance(node, Leaf) and node.is_executable)
            else 0o644
        )
        return self._extra(node, mode)

    def tree(self, folder: Folder) -> bytes:
        """The Tree message of a Folder."""
        mine = Encoder(self._wanted, is_whole=True)
        top = mine.digest(folder)
        children = [each for digest, each in mine.messages.items() if digest != top]
        return _reapi.tree(mine.messages[top], children)
