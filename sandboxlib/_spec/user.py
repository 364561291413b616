# SPDX-License-Identifier: Apache-2.0
"""Who a command is: its uid, gid and other groups."""

from __future__ import annotations

from collections.abc import Iterable

from .._values import Value, check_choice, check_flag, check_number
from ..errors import SpecError, SpecTypeError

WORDS = ("caller", "root", "ranges")
_MOST_ID = (1 << 32) - 2  # (uid_t)-1 means "unchanged" to setresuid(2)
_MOST_GROUPS = 32


class User(Value):
    """The ids that the commands of a Sandbox have inside. A frozen value.

    uid: int        from 0 to 4294967294.
    gid: int        None (the default): the same number as uid.
    groups          up to 32 more groups; () by default. The command has no others.
    ranges: bool    True: the ids lie in a user namespace that has, next to the caller's own id,
                    all ids that /etc/subuid and /etc/subgid give to the caller. False (the
                    default): root gives its commands these ids on the machine itself; another
                    caller has a single id, which the command sees as this one.

    Raises SpecError (a ValueError) for everything that makes no sense.
    """

    __module__ = "sandboxlib"  # as callers import it, and pickles name it

    _fields = ("uid", "gid", "groups", "ranges")
    uid: int
    gid: int
    groups: tuple[int, ...]
    ranges: bool

    def __init__(
        self,
        uid: int,
        gid: int | None = None,
        groups: Iterable[int] = (),
        *,
        ranges: bool = False,
    ) -> None:
        check_number("uid", uid, 0, _MOST_ID)
        gid = uid if gid is None else check_number("gid", gid, 0, _MOST_ID)
        check_flag("ranges", ranges)
        self.__dict__.update(uid=uid, gid=gid, groups=_groups(groups), ranges=ranges)


def _groups(value: object) -> tuple[int, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise SpecTypeError(f"groups is not several numbers: {value!r}")
    found = tuple(check_number("a group", group, 0, _MOST_ID) for group in value)
    if len(found) > _MOST_GROUPS:
        raise SpecError(f"there are {len(found)} groups, and may be {_MOST_GROUPS}")
    return found


def check_user(value: object) -> str | User:
    """What `user=` of a Sandbox stands for: one of WORDS, or a User; a number is a uid."""
    if isinstance(value, User):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return User(value)
    if not isinstance(value, str):
        raise SpecTypeError(f"user is neither a User, nor a uid, nor one of {WORDS}: {value!r}")
    check_choice("user", value, WORDS)
    return value
