# SPDX-License-Identifier: Apache-2.0
"""Collecting: files are written into a directory of the caller's, each at once."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator

from .._spec.inputs import CHUNK, File, open_regular
from ..errors import setup_error

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FICLONE = 0x40049409  # linux/fs.h


class Collector:
    """Writes into a directory, which it makes if it is missing. Use it in `with`.

    Names are relative, and have no "..": they come from the names in directories. No link below the
    directory is followed: an earlier output may be one.
    """

    def __init__(self, directory: str) -> None:
        self._top = directory
        self._open: dict[str, int] = {}

    def __enter__(self) -> Collector:
        with self._step(""):
            os.makedirs(self._top, exist_ok=True)
            self._open[""] = os.open(self._top, _DIRECTORY)
        return self

    def __exit__(self, *error: object) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def directory(self, name: str) -> None:
        """Makes a directory, with those above."""
        with self._step(name):
            self._directory(name)

    def file(self, name: str, file: File) -> None:
        with self._step(name):
            above, _, last = name.rpartition("/")
            at = self._directory(above)
            new = _temporary()
            fd = os.open(new, _NEW, 0o777 if file.executable else 0o666, dir_fd=at)
            try:
                try:
                    write(fd, file)
                finally:
                    os.close(fd)
                os.rename(new, last, src_dir_fd=at, dst_dir_fd=at)
            except BaseException:
                os.unlink(new, dir_fd=at)
                raise

    def link(self, name: str, target: str) -> None:
        with self._step(name):
            above, _, last = name.rpartition("/")
            at = self._directory(above)
            new = _temporary()
            os.symlink(target, new, dir_fd=at)
            try:
                os.rename(new, last, src_dir_fd=at, dst_dir_fd=at)
            except BaseException:
                os.unlink(new, dir_fd=at)
                raise

    def _directory(self, name: str) -> int:
        """The descriptor of a directory, which is made if it is missing. Those of the last path
        stay open.
        """
        if name in self._open:
            return self._open[name]
        wanted = {""}
        for part in name.split("/"):
            wanted.add(f"{max(wanted, key=len)}/{part}".lstrip("/"))
        for each in self._open.keys() - wanted:
            os.close(self._open.pop(each))
        path = ""
        for part in name.split("/"):
            above, path = path, f"{path}/{part}".lstrip("/")
            if path not in self._open:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=self._open[above])
                flags = _DIRECTORY | os.O_NOFOLLOW
                self._open[path] = os.open(part, flags, dir_fd=self._open[above])
        return self._open[name]

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if hasattr(error, "step"):
                raise
            path = os.path.join(self._top, name)
            hint = ""
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                hint = "nothing is written through a link or a file that is there"
            what = f"collect the output {path}"
            raise setup_error(error.errno or 0, path, "outputs", what, hint) from None


def _temporary() -> str:
    return f".sandboxlib-{os.urandom(8).hex()}"


def write(fd: int, file: File) -> None:
    """Writes the content of a File to a new file; it shares the blocks if both are on a file system
    that can do that.
    """
    content = file.content
    if isinstance(content, bytes):
        write_all(fd, content)
        return
    source = open_regular(content)
    try:
        if clone(source, fd):
            return
        size = os.fstat(source).st_size
        os.ftruncate(fd, size)

        def write(at: int, data: bytes) -> None:
            os.lseek(fd, at, os.SEEK_SET)
            write_all(fd, data)

        copy_data(source, size, write)
    finally:
        os.close(source)


def clone(source: int, fd: int) -> bool:
    """Makes a file share the blocks of another. False if they cannot."""
    import fcntl

    try:
        fcntl.ioctl(fd, _FICLONE, source)
    except OSError:  # EOPNOTSUPP, EXDEV, EINVAL
        return False
    return True


def write_all(fd: int, content: bytes) -> None:
    unwritten = memoryview(content)
    while unwritten:
        unwritten = unwritten[os.write(fd, unwritten) :]


def copy_data(fd: int, size: int, write: Callable[[int, bytes], object]) -> None:
    """Copies the data of a file, and leaves its holes: a command can make one of any size. It reads
    no more than `size`: a process that is left may write on.
    """
    at = 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                break
            raise
        end = min(size, os.lseek(fd, at, os.SEEK_HOLE))
        os.lseek(fd, at, os.SEEK_SET)
        while at < end and (chunk := os.read(fd, min(end - at, CHUNK))):
            write(at, chunk)
            at += len(chunk)
        if at < end:  # it became shorter
            break
