# SPDX-License-Identifier: Apache-2.0
"""Who a command of an image is: names are looked up in the image's own files, never the host's.

Part of the child. The image is its root directory, in which links are followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from .blobs import Refused, shown
from .documents import MAX_JSON, open_regular

LAST_ID = (1 << 32) - 2  # the last of all is no id (chown(2))


def resolve(account: str) -> tuple[int, int] | None:
    """The ids of "USER", "USER:GROUP" or "": None if that is uid 0 and gid 0. Refused.

    Both are names or numbers. The group of a user without one is that of /etc/passwd; a number
    that is not there has group 0.
    """
    user, _, group = account.partition(":")
    if not user:
        uid, gid = 0, "0"
    elif _is_number(user):
        uid = _number(user, account)
        gid = next((line[3] for line in _lines("passwd") if line[2] == user), "0")
    else:
        line = _named("passwd", user)
        uid, gid = _number(line[2], account), line[3]
    if group:
        gid = group if _is_number(group) else _named("group", group)[2]
    found = uid, _number(gid, account)
    return None if found == (0, 0) else found


def _is_number(word: str) -> bool:
    return bool(re.fullmatch(r"[0-9]+", word))


def _number(word: str, account: str) -> int:
    if not _is_number(word) or len(word) > 10 or int(word) > LAST_ID:
        raise Refused(
            f"the user {shown(account[:100])} of the image has the id {shown(word[:100])}"
        )
    return int(word)


def _named(file: str, name: str) -> list[str]:
    for line in _lines(file):
        if line[0] == name:
            return line
    raise Refused(f"{shown(name[:100])}, whom the image wants to run as, is not in its /etc/{file}")


def _lines(name: str) -> Iterator[list[str]]:
    """Of passwd(5) or group(5); none if the image has no such file."""
    try:
        file = open_regular(f"/etc/{name}", f"/etc/{name} of the image")
    except Refused as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return
        raise
    try:
        data = file.whole(MAX_JSON)
    finally:
        os.close(file.fd)
    least = 4 if name == "passwd" else 3
    for line in data.split(b"\n"):
        if line.count(b":") >= least - 1:
            yield os.fsdecode(line).split(":")
