# SPDX-License-Identifier: Apache-2.0
"""Removes a tree, of any depth and of any content. The child, its parent and the store use it."""

from __future__ import annotations

import errno
import os
import stat
import time


def empty(top: int, deadline: float = float("inf")) -> int:
    """Remove everything in the directory `top`, at any depth and of any owner. Returns how many
    bytes of blocks are free now: a file with other names keeps its own.

    It moves each directory to the top before it enters it. So the depth does not matter, no link is
    followed, and no mount point is entered, because the kernel does not move one.
    deadline: a time of time.monotonic(). Raises TimeoutError after it.
    """
    token = os.urandom(8).hex()
    todo = ["."]
    count = freed = 0
    is_root = os.geteuid() == 0
    while todo:
        name = todo.pop()
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
        try:
            with os.scandir(fd) as scan:
                entries = list(scan)
            for entry in entries:
                if time.monotonic() > deadline:
                    raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
                at = os.stat(entry.name, dir_fd=fd, follow_symlinks=False)
                if not stat.S_ISDIR(at.st_mode):
                    os.unlink(entry.name, dir_fd=fd)
                    freed += at.st_blocks * 512 if at.st_nlink == 1 else 0
                    continue
                freed += at.st_blocks * 512
                count += 1
                todo.append(f".{token}-{count}")
                if not is_root:
                    make_accessible(entry.name, fd)
                os.rename(entry.name, todo[-1], src_dir_fd=fd, dst_dir_fd=top)
        finally:
            os.close(fd)
        if name != ".":
            os.rmdir(name, dir_fd=top)
    return freed


def make_accessible(name: str, directory: int) -> None:
    """Give a directory of ours mode 0700. It never follows a link, even if another process puts one
    there meanwhile.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
    fd = os.open(name, flags, dir_fd=directory)
    try:
        os.chmod(f"/proc/self/fd/{fd}", 0o700)
    finally:
        os.close(fd)
