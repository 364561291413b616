# SPDX-License-Identifier: Apache-2.0
"""Who a command of an image is: names are looked up in the image's own files, never the host's."""

from __future__ import annotations

import os
import re

from ..errors import ImageError
from . import _unpack

_LAST = (1 << 32) - 2  # the last of all is no id (chown(2))


def resolve(root: str, account: str) -> tuple[int, int] | None:
    """The ids of "USER", "USER:GROUP" or "": None where that is uid 0 and gid 0. ImageError.

    Both are names or numbers. The group of a user without one is that of /etc/passwd; a number
    that is not there has group 0.
    """
    user, _, group = account.partition(":")
    if not user:
        uid, gid = 0, "0"
    elif _is_number(user):
        uid = _number(user, account)
        gid = next((line[3] for line in _lines(root, "passwd") if line[2] == user), "0")
    else:
        line = _named(root, "passwd", user)
        uid, gid = _number(line[2], account), line[3]
    if group:
        gid = group if _is_number(group) else _named(root, "group", group)[2]
    found = uid, _number(gid, account)
    return None if found == (0, 0) else found


def _is_number(word: str) -> bool:
    return bool(re.fullmatch(r"[0-9]+", word))


def _number(word: str, account: str) -> int:
    if not _is_number(word) or len(word) > 10 or int(word) > _LAST:
        raise ImageError(f"the user {account[:100]!r} of the image has the id {word[:100]!r}")
    return int(word)


def _named(root: str, file: str, name: str) -> list[str]:
    for line in _lines(root, file):
        if line[0] == name:
            return line
    raise ImageError(f"{name[:100]!r}, whom the image wants to run as, is not in its /etc/{file}")


def _lines(root: str, file: str) -> list[list[str]]:
    """Of passwd(5) or group(5); [] where the image has no such file."""
    what = f"/etc/{file} of the image"
    try:
        fd = _unpack.open_file(root, f"etc/{file}")
    except ImageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return []
        raise ImageError(f"{what}: {error}") from None
    try:
        data = _unpack.read_file(fd, os.fstat(fd).st_size, what)
    finally:
        os.close(fd)
    lines = (line.split(":") for line in os.fsdecode(data).splitlines())
    return [line for line in lines if len(line) >= (4 if file == "passwd" else 3)]
