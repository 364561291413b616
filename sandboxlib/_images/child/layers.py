# SPDX-License-Identifier: Apache-2.0
"""Unpacks an archive into the root directory.

Part of the child, which has made the target its root directory. It changes its current directory to
that of the member, so that the kernel looks up one name and not a path in each call.
"""

from __future__ import annotations

import errno
import os
import stat

from .blobs import CHUNK, Full, Refused, shown
from .removal import empty
from .tar import MAX_NAME, REGULAR, Archive, Member, parts_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MAX_MANIFEST = 4 << 20
MAX_DEPTH = 500  # nested directories, because the kernel walks all of them in each look-up
MAX_FAR = 100  # slashes in a link, because the kernel follows up to 40 links in one look-up
#: Directories that no member names. A name of 4 KiB can imply 2,000, and each one takes time.
MAX_IMPLIED, IMPLIED_EACH = 1000, 4  # at the start, and so many more for each member
#: The kernel follows 40 links in a look-up. A rename anywhere on the machine makes it start anew,
#: and then it counts the same links a second time, so ELOOP may be false.
TRIES = 10
OPAQUE = b".wh..wh..opq"


class NoFile(Refused):
    """A hard link does not lead to a file."""


class Budget:
    """The rest of an image's limits, over all layers. Raises Refused when one is used up."""

    def __init__(self, max_size: int, max_members: int) -> None:
        self.size = max_size
        self.members = max_members
        self._implied = MAX_IMPLIED

    def member(self, name: bytes) -> None:
        self._count(name)
        self._implied += IMPLIED_EACH

    def implied(self, name: bytes) -> None:
        """Count a directory on the way to `name` that no member names."""
        self._count(name)
        self._implied -= 1
        if self._implied < 0:
            raise Refused(f"too many directories that no member names, as for {shown(name)}")

    def content(self, member: Member) -> None:
        self.content_of(member.size, member.name)

    def content_of(self, size: int, name: bytes) -> None:
        self.size -= size
        if self.size < 0:
            raise Refused(f"{shown(name)} is larger than the rest of max_size")

    def _count(self, name: bytes) -> None:
        self.members -= 1
        if self.members < 0:
            raise Refused(f"it has more than max_members members: {shown(name)}")


class Layer:
    """Unpacks one archive into the root directory.

    owners: True: files get their owners. set_ids: True: they also keep the set-user-ID and
    set-group-ID bits. prefix: the directory of the archive to unpack; b"" means all of it, and then
    whiteouts count.
    """

    def __init__(self, budget: Budget, owners: bool, set_ids: bool, prefix: bytes = b"") -> None:
        self._budget, self._owners, self._set_ids = budget, owners, set_ids
        self._prefix = prefix
        self.manifest: bytes | None = None
        self._has_prefix = False
        # In these paths a directory ends with a slash, a file does not.
        self._made = {b"/"}  # by this layer; whiteouts remove only files of lower layers
        self._directories: dict[bytes, Member] = {}  # whose modes and times are set at the end
        self._real: dict[bytes, bytes] = {}  # the real path of a member's directory
        self._here = b""  # the current directory
        self._cleared: set[bytes] = set()  # directories without a file of a lower layer

    def extract(self, archive: Archive) -> None:
        for member in archive:
            self._budget.member(member.name)
            try:
                self._unpack(archive, member)
            except OSError as error:
                kind = Full if error.errno in (errno.ENOSPC, errno.EDQUOT) else Refused
                raise kind(f"{shown(member.name)}: {error.strerror or error}") from None
        if self._prefix and not self._has_prefix:
            raise Refused("it has no rootfs")
        for path, member in self._directories.items():
            self._finish_directory(path, member)

    def _unpack(self, archive: Archive, member: Member) -> None:
        parts = parts_of(member.name, "the name of a member")
        if self._prefix and not self._strip(archive, member, parts):
            return
        if not parts:
            if member.kind != b"5":
                raise Refused(f"{shown(member.name)} is the root, and no directory")
            self._see_root(member)
            return
        whites_out = not self._prefix and b".wh." in member.name
        if whites_out and any(part.startswith(b".wh.") for part in parts):
            self._white_out(member, parts)
            return
        name = parts.pop()
        directory = self._enter(parts, member.name)
        path = self._checked(directory + name, member.name)
        self._put(archive, member, name, path)
        if member.kind == b"5":
            path += b"/"
        while path not in self._made:
            self._made.add(path)
            path = path[: path.rfind(b"/", 0, -1) + 1]

    def _strip(self, archive: Archive, member: Member, parts: list[bytes]) -> bool:
        """Take the prefix off the parts. Returns False if the member is not below it.

        An app container image has a manifest, which is kept, and a rootfs, which is unpacked.
        """
        if parts == [b"manifest"]:
            if member.kind not in REGULAR or member.map is not None or member.size > MAX_MANIFEST:
                raise Refused("its manifest is no regular file, or too large")
            if self.manifest is not None:
                raise Refused("it has two manifests")
            self.manifest = archive.content(archive.left)
        elif parts and parts[0] != self._prefix:
            raise Refused(f"{shown(member.name)} is neither manifest nor in {shown(self._prefix)}")
        elif parts:
            self._has_prefix = True
            del parts[0]
            return True
        return False

    # ---- the current directory ----

    def _enter(self, parts: list[bytes], name: bytes) -> bytes:
        """Change to a directory, and make it if it is missing. Returns its real path.

        Links in the root are followed, because layers put files under /lib, which may be one.
        """
        path = b"/".join(parts)
        real = self._real.get(path)
        if real is None:
            real = self._real[path] = self._make_way(parts, name)
        elif real != self._here:
            os.chdir(real)
        self._here = real
        return real

    def _make_way(self, parts: list[bytes], name: bytes) -> bytes:
        if len(parts) > MAX_DEPTH:
            raise Refused(f"{shown(name)} lies more than {MAX_DEPTH} directories deep")
        existing = len(parts)
        while not self._change_to(parts[:existing], name):
            existing -= 1
        real = self._here
        for part in parts[existing:]:
            real = self._checked(real + part + b"/", name)
            self._budget.implied(name)
            self._make_implied(part, real, name)
            os.chdir(part)
            self._here = real
        return real

    def _make_implied(self, part: bytes, path: bytes, name: bytes) -> None:
        """Make a directory that no member names. path: its real path. name: the member below it."""
        try:
            os.mkdir(part, 0o755)
        except FileExistsError:  # a symbolic link whose target does not exist
            raise no_directory(name) from None

    def _change_to(self, parts: list[bytes], name: bytes) -> bool:
        """Change to a directory. Returns False if it does not exist."""
        for tries in range(TRIES):
            try:
                os.chdir(b"/" + b"/".join(parts))
                break
            except FileNotFoundError:
                return False
            except OSError as error:
                if error.errno == errno.ELOOP and tries < TRIES - 1:
                    continue
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    raise no_directory(name) from None
                raise
        self._here = os.getcwdb().rstrip(b"/") + b"/"
        return True

    @staticmethod
    def _checked(path: bytes, name: bytes) -> bytes:
        """Return the path. Raises Refused if it is too long, or so deep that look-ups are slow."""
        if len(path) > MAX_NAME:
            raise Refused(f"name too long: {shown(name)}")
        if path.count(b"/") > MAX_DEPTH + 1:
            raise Refused(f"{shown(name)} lies more than {MAX_DEPTH} directories deep")
        return path

    def _remove(self, name: bytes) -> None:
        """Remove a file, a link or a tree. A link is not followed."""
        mode = os.lstat(name).st_mode
        if not stat.S_ISDIR(mode):
            os.unlink(name)
            if stat.S_ISLNK(mode):
                self._real.clear()
            return
        self._real.clear()
        trash = f"/.{os.urandom(16).hex()}"
        os.mkdir(trash)
        os.rename(name, f"{trash}/x".encode())
        fd = os.open(trash, os.O_RDONLY | os.O_DIRECTORY)
        try:
            empty(fd)
        finally:
            os.close(fd)
        os.rmdir(trash)

    # ---- the members ----

    def _put(self, archive: Archive, member: Member, name: bytes, path: bytes) -> None:
        """Make a member. path: its real path. name: its name in the current directory."""
        if member.kind in REGULAR:
            self._budget.content(member)
            self._make(lambda: self._write(archive, member, name, path), name)
        elif member.kind == b"5":
            self._make_directory(member, name, path + b"/")
        elif member.kind == b"1":
            self._make_link(member, name, path)
        elif member.kind == b"2":
            self._make_symlink(member, name, path)
        else:
            raise Refused(f"{shown(member.name)} is a device, a FIFO or the like")

    def _make(self, make: Callable[[], None], name: bytes) -> None:
        """Call make(), and if another file has the name, remove that and call it again."""
        try:
            make()
        except FileExistsError:
            self._remove(name)
            make()

    def _make_directory(self, member: Member, name: bytes, path: bytes) -> None:
        try:
            os.mkdir(name, 0o755)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(name).st_mode):
                self._remove(name)
                os.mkdir(name, 0o755)
                self._has_replaced(path)
        self._directories[path] = member

    def _has_replaced(self, path: bytes) -> None:
        """Is told that a new directory took the place of something else."""

    def _make_symlink(self, member: Member, name: bytes, path: bytes) -> None:
        if not member.link or b"\0" in member.link:
            raise Refused(f"the link {shown(member.name)} leads nowhere")
        if member.link.count(b"/") > MAX_FAR:
            raise Refused(f"the link {shown(member.name)} leads more than {MAX_FAR} names far")
        self._check_inside(member, path)
        self._make(lambda: os.symlink(member.link, name), name)
        self._own(member, name)
        os.utime(name, ns=(member.mtime, member.mtime), follow_symlinks=False)

    def _check_inside(self, member: Member, path: bytes) -> None:
        """Raise Refused if a symbolic link climbs out of the root, as a program that does not run
        in it would see it.
        """
        depth = path.count(b"/") - 1
        for part in () if member.link.startswith(b"/") else member.link.split(b"/"):
            depth += (part not in (b"", b".")) - 2 * (part == b"..")
            if depth < 0:
                raise Refused(f"the link {shown(member.name)} leads out: {shown(member.link)}")

    def _make_link(self, member: Member, name: bytes, path: bytes) -> None:
        """Make a hard link to a file of the image. If that is a symbolic link, the new name is a
        link to it, not to its target.
        """
        parts = parts_of(member.link, f"the target of the link {shown(member.name)}")
        if self._prefix and parts and parts.pop(0) != self._prefix:
            raise Refused(f"the link {shown(member.name)} leads out of {shown(self._prefix)}")
        if not parts:
            raise Refused(f"the link {shown(member.name)} leads to the root")
        here, last = self._here, parts.pop()
        source = self._checked(self._enter(parts, member.link) + last, member.link)
        if self._here != here:
            os.chdir(here)
            self._here = here
        try:
            is_file = not stat.S_ISDIR(os.lstat(source).st_mode)
        except FileNotFoundError:
            is_file = False
        if not is_file:
            raise NoFile(f"{shown(member.name)} is a hard link to {shown(member.link)}, no file")
        if source != path:
            self._make(lambda: os.link(source, name, follow_symlinks=False), name)

    def _write(self, archive: Archive, member: Member, name: bytes, path: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600)
        try:
            self._begin_content()
            data, at = b"", 0  # what was read, and how much of it is written
            for start, size in ((0, member.size),) if member.map is None else member.map:
                done = 0
                while done < size:
                    if at == len(data):
                        data, at = archive.content(min(archive.left, CHUNK)), 0
                    part = data[at : at + size - done]
                    if os.pwrite(fd, part, start + done) != len(part):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    self._see_content(part)
                    done, at = done + len(part), at + len(part)
            if member.map is not None:
                os.ftruncate(fd, member.size)
            self._finish(member, fd)
        finally:
            os.close(fd)

    def _see_root(self, member: Member) -> None:
        """Called with a member that is the root directory, which keeps its mode and its owner; see
        OverlayLayer.
        """

    def _begin_content(self) -> None:
        """Called before the content of a file; see OverlayLayer."""

    def _see_content(self, data: bytes) -> None:
        """Called with each part of the content."""

    def _finish(self, member: Member, file: int, is_directory: bool = False) -> bool:
        """Set the owner, the mode and the times; the owner first, because chown(2) clears the
        set-user-ID bit.

        A file keeps its set-user-ID bit only if it has its own owner. Otherwise it would run with
        the ids of a user that it was never meant for. Returns True if it has its owner.
        """
        is_own = self._own(member, file)
        keeps_bits = (is_own and self._set_ids) or is_directory
        os.chmod(file, member.mode if keeps_bits else member.mode & 0o1777)
        os.utime(file, ns=(member.mtime, member.mtime))
        return is_own

    def _finish_directory(self, path: bytes, member: Member) -> None:
        try:
            fd = os.open(path[:-1] or b"/", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # a later member took its place
            return
        try:
            self._finish(member, fd, is_directory=True)
        finally:
            os.close(fd)

    def _own(self, member: Member, file: int | bytes) -> bool:
        """Give a file its owner. Returns False if that id does not exist here; then the file stays
        the caller's.
        """
        if not self._owners:
            return False
        try:
            os.chown(file, member.uid, member.gid, follow_symlinks=isinstance(file, int))
        except OSError as error:
            if error.errno != errno.EINVAL:  # an id that this user namespace does not have
                raise
            return False
        return True

    # ---- whiteouts ----

    def _white_out(self, member: Member, parts: list[bytes]) -> None:
        """Remove files of lower layers: one name, or all of a directory."""
        name = whited_out(member, parts)
        if not name or not self._change_to(parts[:-1], member.name):
            return
        here = self._here
        if parts[-1] == OPAQUE:
            self._clear_below(here)
        else:
            self._clear(here + name)

    def _clear(self, path: bytes) -> None:
        if path + b"/" in self._made:
            self._clear_below(path + b"/")
        elif path not in self._made and os.path.lexists(path):
            self._remove(path)

    def _clear_below(self, top: bytes) -> None:
        """Remove the files that this layer did not put there. It lists a directory once in a layer,
        because afterwards all files in it are of this layer.
        """
        todo = [top]
        while todo:
            directory = todo.pop()
            if directory in self._cleared:
                continue
            self._cleared.add(directory)
            try:
                fd = os.open(directory[:-1] or b"/", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except (FileNotFoundError, NotADirectoryError):  # a later member took its place
                continue
            try:
                names = [os.fsencode(name) for name in os.listdir(fd)]
            finally:
                os.close(fd)
            for name in names:
                if directory + name + b"/" in self._made:
                    todo.append(directory + name + b"/")
                else:
                    self._clear(directory + name)


def whited_out(member: Member, parts: list[bytes]) -> bytes:
    """The name that a whiteout hides. Returns b"" if it is a record of aufs; raises Refused if it
    is no name.
    """
    name = parts[-1].removeprefix(b".wh.")
    if any(part.startswith(b".wh..wh.") and part != OPAQUE for part in parts):
        return b""  # aufs keeps its own records under such names
    if any(part.startswith(b".wh.") for part in parts[:-1]) or name in (b"", b".", b".."):
        raise Refused(f"a whiteout of no name: {shown(member.name)}")
    return name


def no_directory(name: bytes) -> Refused:
    return Refused(f"{shown(name)} lies in something that is no directory")
