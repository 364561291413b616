# SPDX-License-Identifier: Apache-2.0
"""Unpacks one archive as a layer of overlayfs, and measures such a layer.

Part of the child. A whiteout is a character device 0:0, and a directory that hides those of the
layers below has the attribute overlay.opaque: Documentation/filesystems/overlayfs.rst of Linux.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat

from .blobs import CHUNK, Refused, shown
from .layers import OPAQUE, Layer, NoFile, no_directory, whited_out

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .layers import Budget
    from .tar import Archive, Member

MARK = "user.overlay.opaque"
DEVICES, FIFO = (b"3", b"4"), b"6"
MAX_OPAQUE = 20_000  # directories: the parent gets their names
#: No other attribute is kept: `trusted.` and `system.` are commands to the kernel.
_PREFIX, _OURS, _CAPABILITY = b"user.", b"user.overlay.", b"security.capability"
_MODULUS = 1 << 256
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


class NeedsLowers(Refused):
    """The layer can be unpacked only over those below it: a link of its own leads there, or it has
    a hard link to one of their files.
    """


class OverlayLayer(Layer):
    """Unpacks one archive into the root directory, which has nothing else in it."""

    def __init__(self, budget: Budget, owners: bool, set_ids: bool, prefix: bytes = b"") -> None:
        super().__init__(budget, owners, set_ids, prefix)
        self._opaque: set[bytes] = set()  # directories, with a slash at the end
        self._named: set[bytes] = {b"/"}  # directories that a member names
        self._implied: set[bytes] = set()  # and those that none has named yet
        self.contents: dict[bytes, bytes] = {}  # paths of files, and digests of what is in them
        self._root: Member | None = None
        self.hides_all = False  # True: nothing of the layers below is to be seen
        self.lowers: Any = None  # a Stack of this layer and those below it, if they count
        self._inherited: dict[bytes, os.stat_result] = {}  # of implied directories

    def opaque(self) -> list[str]:
        """The paths of the directories that are marked as opaque."""
        paths = [path for path in self._opaque if is_opaque(path)]
        if len(paths) > MAX_OPAQUE:
            raise Refused(f"it has more than {MAX_OPAQUE} opaque directories")
        return [os.fsdecode(path) for path in sorted(paths)]

    def has_implied(self) -> bool:
        """Return True if the layer has directories that no member names. In the layers below they
        may have another mode or owner, or be links.
        """
        return bool(self._implied - self._named)

    def extract(self, archive: Archive) -> None:
        super().extract(archive)
        for path in self._implied - self._named:
            self._finish_implied(path, self._inherited.get(path))
        os.utime("/", (0, 0))

    def has_root(self) -> bool:
        """Return True if a member gave the root directory a mode and an owner."""
        return self._root is not None

    def _see_root(self, member: Member) -> None:
        self._root = member

    def finish_root(self) -> None:
        """Give the root directory what its member says. Last, since its mode may close it."""
        if self._root is not None:
            self._finish_directory(b"/", self._root)

    def _finish_implied(self, path: bytes, at: os.stat_result | None) -> None:
        """Set the times of a directory that no member names, and its mode and owner if it is one of
        a lower layer.
        """
        try:
            fd = os.open(path[:-1], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # a later member took its place
            return
        try:
            if at is not None:
                if self._owners:
                    os.chown(fd, at.st_uid, at.st_gid)
                os.chmod(fd, stat.S_IMODE(at.st_mode))
            os.utime(fd, ns=(0, 0) if at is None else (at.st_mtime_ns, at.st_mtime_ns))
        finally:
            os.close(fd)

    # ---- members ----

    def _put(self, archive: Archive, member: Member, name: bytes, path: bytes) -> None:
        if member.kind == FIFO:
            self._make(lambda: os.mkfifo(name, 0o600), name)
            is_own = self._own(member, name)
            os.chmod(name, member.mode & (0o7777 if is_own else 0o1777))
            os.utime(name, ns=(member.mtime, member.mtime))
        elif member.kind in DEVICES:
            # No device node of a layer works. It still hides a file of a lower layer.
            self._make(lambda: _make_whiteout(name), name)
        else:
            super()._put(archive, member, name, path)

    def _make_directory(self, member: Member, name: bytes, path: bytes) -> None:
        super()._make_directory(member, name, path)
        self._named.add(path)

    def _has_replaced(self, path: bytes) -> None:
        self._hide_below(path)  # what was replaced had hidden that as well

    def _make_way(self, parts: list[bytes], name: bytes) -> bytes:
        """With the layers below, their links are followed too."""
        if self.lowers is not None:
            try:
                found = self.lowers.find(b"/".join(parts))
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    raise no_directory(name) from None
                raise
            real = [part for part in found.path.split(b"/") if part]
            if found.missing and real[-found.missing :] != parts[-found.missing :]:
                raise no_directory(name)  # a link leads to what is not there
            parts = real
        return super()._make_way(parts, name)

    def _make_implied(self, part: bytes, path: bytes, name: bytes) -> None:
        if self.lowers is not None:
            at = self.lowers.find(path, follow=False).status
            if at is not None and stat.S_ISDIR(at.st_mode):
                self._inherited[path] = at
        try:
            os.mkdir(part, 0o755)
        except FileExistsError:
            at = os.lstat(part)
            if stat.S_ISLNK(at.st_mode) and self.lowers is None:
                raise NeedsLowers(str(no_directory(name))) from None
            if not is_whiteout(at):
                raise no_directory(name) from None
            os.unlink(part)
            os.mkdir(part, 0o755)
            self._hide_below(path)
        self._implied.add(path)

    def _change_to(self, parts: list[bytes], name: bytes) -> bool:
        try:
            return super()._change_to(parts, name)
        except Refused:
            # Below a whiteout of this layer a directory is new, so it does not exist yet.
            path = b""
            for part in parts:
                path += b"/" + part
                if os.path.lexists(path) and is_whiteout(os.lstat(path)):
                    return False
            raise

    def _make_link(self, member: Member, name: bytes, path: bytes) -> None:
        try:
            super()._make_link(member, name, path)
        except NoFile as error:
            if self.lowers is None:
                raise NeedsLowers(str(error)) from None
            self._copy_up(member, name, error)
        if is_whiteout(os.lstat(name)):
            os.unlink(name)
            raise Refused(f"{shown(member.name)} is a hard link to {shown(member.link)}, no file")
        self.contents.pop(path, None)

    def _copy_up(self, member: Member, name: bytes, error: NoFile) -> None:
        """Copy a file of a lower layer, to which a member is a hard link."""
        try:
            source, at = open_in(self.lowers, member.link, follow=False)
        except OSError:
            raise error from None
        if at is None:
            raise error
        try:
            self._make(lambda: os.close(os.open(name, _NEW, 0o600)), name)
            copy = os.open(name, os.O_WRONLY | os.O_NOFOLLOW)
            try:
                self._budget.content_of(at.st_size, name)
                while os.sendfile(copy, source, None, 1 << 30):
                    pass
                if self._owners:
                    os.chown(copy, at.st_uid, at.st_gid)
                os.chmod(copy, stat.S_IMODE(at.st_mode))
                os.utime(copy, ns=(at.st_mtime_ns, at.st_mtime_ns))
            finally:
                os.close(copy)
        finally:
            os.close(source)

    def _check_inside(self, member: Member, path: bytes) -> None:
        """In a layer no link leads out: `..` at the top of a root stays there."""

    def _write(self, archive: Archive, member: Member, name: bytes, path: bytes) -> None:
        super()._write(archive, member, name, path)
        if member.map is None:
            self.contents[path] = self._digest.digest()
        else:
            self.contents.pop(path, None)

    def _begin_content(self) -> None:
        self._digest = hashlib.sha256()

    def _see_content(self, data: bytes) -> None:
        self._digest.update(data)

    def _finish(self, member: Member, file: int, is_directory: bool = False) -> bool:
        is_own = super()._finish(member, file, is_directory)
        for name, value in member.attributes.items():
            is_users = name.startswith(_PREFIX) and not name.startswith(_OURS)
            if is_users or (name == _CAPABILITY and is_own and self._set_ids):
                os.setxattr(file, name, value)
        return is_own

    # ---- whiteouts ----

    def _white_out(self, member: Member, parts: list[bytes]) -> None:
        """Hide files of lower layers: one name, or all of a directory. What this layer has itself
        stays, wherever in it the whiteout stands.
        """
        name = whited_out(member, parts)
        if not name or (self.lowers is not None and not self._is_there(parts[:-1])):
            return
        here = self._enter(parts[:-1], member.name)
        if parts[-1] == OPAQUE:
            self._hide_below(here)
            return
        path = self._checked(here + name, member.name)
        try:
            at = os.lstat(name)
        except FileNotFoundError:
            _make_whiteout(name)
            return
        if stat.S_ISDIR(at.st_mode):
            self._hide_below(path + b"/")

    def _is_there(self, parts: list[bytes]) -> bool:
        """Return True if this layer or one below has a directory: a whiteout makes none."""
        return self.lowers.find(b"/".join(parts)).status is not None

    def _hide_below(self, path: bytes) -> None:
        """Hide what lower layers have in a directory. path: with a slash at the end."""
        if path == b"/":
            self.hides_all = True
            return
        os.setxattr(path[:-1], MARK, b"y", follow_symlinks=False)
        self._opaque.add(path)


def open_in(stack: Any, path: bytes, *, follow: bool = True) -> tuple[int, os.stat_result | None]:
    """Open a file of a stack of layers. Links are followed inside of it; with follow=False not one
    at the end. Returns a descriptor and the status of the file; (-1, None) if there is none. Raises
    OSError if it is no regular file.
    """
    found = stack.find(path, follow=follow)
    parts = [part for part in found.path.split(b"/") if part]
    if found.status is None or not parts:
        return -1, None
    directory = stack.root()
    try:
        for part in parts[:-1]:
            below = directory.open(part)
            directory.close()
            directory = below
        entry = directory.look(parts[-1])
        return entry.open(), entry.status
    finally:
        directory.close()


def is_whiteout(at: os.stat_result) -> bool:
    return stat.S_ISCHR(at.st_mode) and at.st_rdev == 0


def is_opaque(path: bytes) -> bool:
    """Return True if a path, with a slash at its end, is a directory with our mark."""
    try:
        return os.getxattr(path[:-1], MARK, follow_symlinks=False) == b"y"
    except OSError:
        return False


def _make_whiteout(name: bytes) -> None:
    os.mknod(name, stat.S_IFCHR, os.makedev(0, 0))  # it takes no CAP_MKNOD, since Linux 5.8


def measure(contents: dict[bytes, bytes]) -> tuple[str, int]:
    """The fingerprint of all that is in the root directory, and the bytes of blocks that it takes.

    contents: digests of files by their paths; other files are read. The fingerprint is the sum of a
    hash of each file, so that nothing has to be sorted. It tells damage, and no intention: who can
    write the store can write the fingerprint as well.
    """
    total = size = 0
    seen: dict[int, bytes] = {}  # digests of files with several names, by inode
    todo = [b"/"]
    while todo:
        directory = todo.pop()
        with os.scandir(directory) as scan:
            entries = list(scan)
        for entry in entries:
            at = entry.stat(follow_symlinks=False)
            path = directory + entry.name
            is_first = at.st_ino not in seen
            content = b""
            if stat.S_ISREG(at.st_mode):
                content = contents.get(path) or seen.get(at.st_ino) or _digest_of(path)
                if at.st_nlink > 1:
                    seen[at.st_ino] = content
            elif stat.S_ISLNK(at.st_mode):
                content = os.readlink(path)
            elif stat.S_ISDIR(at.st_mode):
                path += b"/"
                todo.append(path)
                content = b"opaque" if is_opaque(path) else b""
            size += at.st_blocks * 512 if is_first else 0
            values = (at.st_mode, at.st_uid, at.st_gid, at.st_size, at.st_mtime_ns)
            if stat.S_ISDIR(at.st_mode):
                values = (*values[:3], 0, values[4])
            line = b"%s\0%d %d %d %d %d\0%s" % (path, *values, content)
            total += int.from_bytes(hashlib.sha256(line).digest(), "big")
    return f"{total % _MODULUS:064x}", size


def _digest_of(path: bytes) -> bytes:
    digest = hashlib.sha256()
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        while data := os.read(fd, CHUNK):
            digest.update(data)
    finally:
        os.close(fd)
    return digest.digest()
