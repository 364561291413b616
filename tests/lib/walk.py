# SPDX-License-Identifier: Apache-2.0
"""The program that walks: it does operations on a tree, and says what the tree is like then.

    python walk.py TREE < operations

It runs in a sandbox and imports nothing of ours. The operations are a list in JSON, of lists: a
name of OPERATIONS, and what it takes. All paths are below TREE, and no symbolic link is followed.
Its output is JSON: the errno of each operation (0 if it went well), and the tree.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import sys

AT = os.fsencode(sys.argv[1])  # the tree


def path(name):
    return os.path.join(AT, os.fsencode(name))


def write(name, data, flags=os.O_TRUNC):
    # O_NONBLOCK: a FIFO without a reader is an error.
    flags |= os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(path(name), flags, 0o644)
    try:
        os.write(fd, os.fsencode(data))
    finally:
        os.close(fd)


def sparse(name, size):
    """A file that is a hole but for one byte in its middle."""
    write(name, "")
    with open(path(name), "r+b") as file:
        file.truncate(size)
        file.seek(size // 2)
        file.write(b"x")


def remove(name):
    """rm -r"""
    target = path(name)
    if stat.S_ISDIR(os.lstat(target).st_mode):
        shutil.rmtree(target)
    else:
        os.unlink(target)


def renew(name):
    """rm -r and mkdir: an opaque directory"""
    if not stat.S_ISDIR(os.lstat(path(name)).st_mode):  # rmtree would wait for a FIFO to be opened
        raise OSError(errno.ENOTDIR, "no directory")
    shutil.rmtree(path(name))
    os.mkdir(path(name))
    write(f"{name}/new", "in a new directory")


def chmod(name, mode):
    if stat.S_ISLNK(os.lstat(path(name)).st_mode):
        raise OSError(errno.ELOOP, "a link")
    os.chmod(path(name), mode)


def rename(one, other):
    os.rename(path(one), path(other))


def link(one, other):
    os.link(path(one), path(other), follow_symlinks=False)


OPERATIONS = {
    "write": write,
    "append": lambda name, data: write(name, data, os.O_APPEND),
    "sparse": sparse,
    "truncate": lambda name, size: write(name, "", os.O_APPEND) or os.truncate(path(name), size),
    "mkdir": lambda name: os.mkdir(path(name)),
    "rmdir": lambda name: os.rmdir(path(name)),
    "remove": remove,
    "renew": renew,
    "unlink": lambda name: os.unlink(path(name)),
    "rename": rename,
    "link": link,
    "symlink": lambda to, name: os.symlink(os.fsencode(to), path(name)),
    "fifo": lambda name: os.mkfifo(path(name), 0o600),
    "socket": lambda name: os.mknod(path(name), stat.S_IFSOCK | 0o600),
    "chmod": chmod,
    "chown": lambda name, uid, gid: os.lchown(path(name), uid, gid),
    "time": lambda name, when: os.utime(path(name), (when, when), follow_symlinks=False),
    "setxattr": lambda name, key, value: os.setxattr(
        path(name), f"user.{key}", os.fsencode(value), follow_symlinks=False
    ),
    "removexattr": lambda name, key: os.removexattr(
        path(name), f"user.{key}", follow_symlinks=False
    ),
}


def look(name):
    """What a file is like; its times only where an operation set them."""
    status = os.lstat(name)
    found = {"mode": status.st_mode, "uid": status.st_uid, "gid": status.st_gid}
    if stat.S_ISLNK(status.st_mode):
        found["to"] = os.fsdecode(os.readlink(name))
    elif stat.S_ISREG(status.st_mode):
        found["size"] = status.st_size
        found["links"] = status.st_nlink
        found["time"] = int(status.st_mtime) if status.st_mtime < 2_000_000 else "now"
        try:
            with open(name, "rb") as file:
                found["content"] = hashlib.sha256(file.read()).hexdigest()
        except PermissionError:
            found["content"] = "closed"
    try:
        found["xattrs"] = {
            key: os.fsdecode(os.getxattr(name, key, follow_symlinks=False))
            for key in sorted(os.listxattr(name, follow_symlinks=False))
        }
    except PermissionError:
        found["xattrs"] = "closed"
    return found


def tree():
    found, same = {}, {}
    todo = [AT]
    while todo:
        name = todo.pop()
        shown = os.fsdecode(name[len(AT) :])
        found[shown] = look(name)
        status = os.lstat(name)
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            same.setdefault((status.st_dev, status.st_ino), []).append(shown)
        if stat.S_ISDIR(status.st_mode):
            try:
                todo += [os.path.join(name, entry) for entry in os.listdir(name)]
            except PermissionError:
                found[shown]["entries"] = "closed"
    return {"files": found, "links": sorted(sorted(names) for names in same.values())}


def main():
    os.umask(0o22)
    done = []
    for name, *words in json.load(sys.stdin):
        try:
            OPERATIONS[name](*words)
            done.append(0)
        except OSError as error:
            done.append(error.errno)
    json.dump({"done": done, "tree": tree()}, sys.stdout)


if __name__ == "__main__":
    main()
