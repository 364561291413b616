# SPDX-License-Identifier: Apache-2.0
"""Programs of this Python, run by an ordinary user where the tests run as root."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import sandboxlib

NOBODY = 65534

# $1: an empty directory. Then, up to --, the directories that the user cannot pass, which a tmpfs
# covers; and up to another --, those that the user needs below them, which are bound there again.
IN_NAMESPACE = """
set -e
place=$1
shift
n=0 part=1
for word in "$@"; do
    if [ "$word" = -- ]; then
        part=$((part + 1))
    elif [ $part = 2 ]; then
        n=$((n + 1))
        mkdir -p "$place/$n"
        mount --rbind "$word" "$place/$n"
    fi
    [ $part != 3 ] || break
done
while [ "$1" != -- ]; do
    mount -t tmpfs -o mode=0755 sandboxlib "$1"
    shift
done
shift
n=0
while [ "$1" != -- ]; do
    n=$((n + 1))
    mkdir -p "$1"
    mount --move "$place/$n" "$1"
    shift
done
shift
exec "$@"
"""


def as_nobody(place: Path, *needed: Path) -> list[str]:
    """The argv in front of one that nobody shall run. It needs root; place is an empty directory.

    needed: directories beside those of Python and sandboxlib. All of it is one process, in a mount
    namespace of its own.
    """
    package = Path(sandboxlib.__file__).resolve().parent
    below: dict[Path, list[Path]] = {}
    for path in {Path(sys.base_prefix), Path(sys.prefix), package, *needed}:
        for above in [*reversed(path.parents), path]:
            if not above.stat().st_mode & stat.S_IXOTH:
                below.setdefault(above, []).append(path)
                break
    paths = [str(path) for several in below.values() for path in several]
    reach = ["sh", "-c", IN_NAMESPACE, "sh", str(place), *map(str, below), "--", *paths, "--"]
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return ["unshare", "--mount", *reach, *become]


def give_to_nobody(directory: Path) -> None:
    """Make nobody the owner of a directory and of all in it."""
    for path in [directory, *directory.rglob("*")]:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
