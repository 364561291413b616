# SPDX-License-Identifier: Apache-2.0
"""What a tree holds, as a value; and overlays in a mount namespace of a test's own.

It imports nothing of ours, because a process in another mount namespace runs it by path.
"""

from __future__ import annotations

import ast
import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

OVERLAYS = (b"trusted.overlay.", b"user.overlay.")

#: $1: options of the overlay; $2: a directory with u, w and m; $3: Python to run in the merged
#: view; $4: this file; $5: Python. Prints what the view holds.
MOUNT = """
set -e
cd "$2"
mount -t overlay overlay -o "$1" m
cd m
"$5" -c "$3" >&2
"$5" "$4" .
"""


def content_hash(name: str, size: int) -> str:
    """A hash of what a file holds and where, without its zeros: it may be a terabyte of a hole."""
    hashed = hashlib.sha256()
    with open(name, "rb") as file:
        at = 0
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA) & -65536
            except OSError:  # ENXIO: a hole up to the end
                break
            data = os.pread(file.fileno(), 65536, at)
            if data.strip(b"\0"):
                hashed.update(b"%d:" % at + data.rstrip(b"\0"))
            at += 65536
    return hashed.hexdigest()


def contents(status: os.stat_result, name: str) -> object:
    """The content of a file, by its type."""
    if stat.S_ISREG(status.st_mode):
        return status.st_size, content_hash(name, status.st_size)
    if stat.S_ISLNK(status.st_mode):
        return os.fsencode(os.readlink(name))
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        return status.st_rdev
    return None


def walk(top: str | Path, times: bool = True) -> dict[str, tuple[object, ...]]:
    """Every path below `top`, and what it is: (mode, uid, gid, mtime, content, attributes, the
    first name of the same file). The attributes are without overlay's. times: with mtimes.
    """
    found: dict[str, tuple[object, ...]] = {}
    firsts: dict[tuple[int, int], str] = {}
    todo = ["."]
    here = os.getcwd()
    os.chdir(top)
    try:
        while todo:
            name = todo.pop()
            status = os.lstat(name)
            is_directory = stat.S_ISDIR(status.st_mode)
            first = name
            if not is_directory and status.st_nlink > 1:
                first = firsts.setdefault((status.st_dev, status.st_ino), name)
            attributes = {
                each: os.getxattr(name, each, follow_symlinks=False)
                for each in sorted(os.listxattr(name, follow_symlinks=False))
                if not os.fsencode(each).startswith(OVERLAYS) and each != "security.selinux"
            }
            found[name] = (
                *(status.st_mode, status.st_uid, status.st_gid),
                *(status.st_mtime_ns if times else 0, contents(status, name), attributes, first),
            )
            if is_directory:
                inside = sorted(os.listdir(name), key=os.fsencode, reverse=True)
                todo += [os.path.join(name, each) for each in inside]
    finally:
        os.chdir(here)
    return found


def overlaid(
    place: Path, lowers: list[Path], script: str, *, user: bool = False
) -> dict[str, tuple[object, ...]]:
    """Run Python in an overlay over `lowers` (bottom first), with its upper at place/u. Returns the
    walk of the merged view.

    user: in a user namespace, with `userxattr`; this caller may be anybody then.
    """
    for name in ("u", "w", "m"):
        (place / name).mkdir()
    options = f"lowerdir={':'.join(map(str, reversed(lowers)))},upperdir=u,workdir=w,"
    options += "userxattr" if user else "redirect_dir=on,metacopy=off,index=off"
    argv = ["unshare", *(["-Ur"] if user else []), "-m", "sh", "-c", MOUNT, "sh"]
    argv += [options, str(place), script, __file__, sys.executable]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tree: dict[str, tuple[object, ...]] = ast.literal_eval(done.stdout)
    return tree


if __name__ == "__main__":
    print(ascii(walk(sys.argv[1])))
