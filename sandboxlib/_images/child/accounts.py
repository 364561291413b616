# SPDX-License-Identifier: Apache-2.0
"""The ids of an image's command. Names are looked up in the image's own files, never in the host's.

Part of the child. The image is its root directory, so symbolic links stay inside.
"""

from __future__ import annotations

import os
import re

from .blobs import Refused, shown
from .documents import MAX_JSON, open_regular

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LAST_ID = (1 << 32) - 2  # the highest id: the next number means "unchanged" to chown(2)


def resolve(
    account: str, read: Callable[[str], bytes | None] | None = None
) -> tuple[int, int] | None:
    """The ids of "USER", "USER:GROUP" or "". Returns None for uid 0 and gid 0. Raises Refused.

    Both are names or numbers. Without a group it is that of the user in /etc/passwd; a number that
    is not listed there has group 0.

    read: gives the content of a file of /etc by its name, None if there is none; by default those
    below the root directory of this process.
    """
    files = _Files(read or _read)
    user, _, group = account.partition(":")
    if not user:
        uid, gid = 0, "0"
    elif _is_number(user):
        uid = _number(user, account)
        gid = next((line[3] for line in files.lines("passwd") if line[2] == user), "0")
    else:
        line = files.named("passwd", user)
        uid, gid = _number(line[2], account), line[3]
    if group:
        gid = group if _is_number(group) else files.named("group", group)[2]
    ids = uid, _number(gid, account)
    return None if ids == (0, 0) else ids


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9]+", text))


def _number(text: str, account: str) -> int:
    if not _is_number(text) or len(text) > 10 or int(text) > LAST_ID:
        user = shown(account[:100])
        raise Refused(f"the user {user} of the image has the id {shown(text[:100])}")
    return int(text)


class _Files:
    """passwd(5) and group(5) of the image."""

    def __init__(self, read: Callable[[str], bytes | None]) -> None:
        self._read = read

    def named(self, file: str, name: str) -> list[str]:
        for line in self.lines(file):
            if line[0] == name:
                return line
        raise Refused(f"the image runs as {shown(name[:100])}, which is not in its /etc/{file}")

    def lines(self, name: str) -> Iterator[list[str]]:
        """The fields of each line of a file; none if the image has no such file."""
        data = self._read(name)
        least = 4 if name == "passwd" else 3
        for line in (data or b"").split(b"\n"):
            if line.count(b":") >= least - 1:
                yield os.fsdecode(line).split(":")


def _read(name: str) -> bytes | None:
    try:
        file = open_regular(f"/etc/{name}", f"/etc/{name} of the image")
    except Refused as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    try:
        return file.whole(MAX_JSON)
    finally:
        os.close(file.fd)
