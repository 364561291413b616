# SPDX-License-Identifier: Apache-2.0
"""User: the uid, the gid and the other groups of a command."""

from __future__ import annotations

from collections.abc import Iterable

from .. import _types
from .._values import Value, check_flag, check_number, unknown_keyword
from ..errors import SpecChoiceError, SpecError, SpecTypeError

NAMES = ("caller", "root", "ranges")
_MOST_ID = (1 << 32) - 2  # (uid_t)-1 means "unchanged" to setresuid(2)
_MOST_GROUPS = 32


class User(Value):
    """The ids of the commands of a Sandbox, as they see them themselves. A frozen value.

    uid: int        from 0 to 4294967294.
    gid: int        None (the default): the same number as uid.
    groups          iterable of int, up to 32 more groups; the command has no others. None (the
                    default): no other groups, except that a caller who may not give up its own
                    (one without privilege, and without ranges) passes them on, as with 'caller'.
    ranges: bool    True: the ids lie in a user namespace that has the caller's own id and all ids
                    that /etc/subuid and /etc/subgid give to the caller. False (the default): for
                    root the command has these ids on the machine itself; for another caller the
                    namespace has a single id, which is the caller's outside and this one inside.

    Raises SpecError (a ValueError) if a value is wrong, and SpecTypeError for a value of the wrong
    type, or an unknown keyword argument.
    """

    __module__ = "sandboxlib"  # as callers import it, and pickles name it

    _fields = ("uid", "gid", "groups", "ranges")
    uid: int
    gid: int
    groups: tuple[int, ...] | None
    ranges: bool

    def __init__(
        self,
        uid: int,
        gid: int | None = None,
        groups: Iterable[int] | None = None,
        *,
        ranges: bool = False,
        **unknown: _types.NoReturn,
    ) -> None:
        if unknown:
            raise unknown_keyword("User", unknown, self._fields)
        check_number("uid", uid, 0, _MOST_ID)
        gid = uid if gid is None else check_number("gid", gid, 0, _MOST_ID)
        check_flag("ranges", ranges)
        others = None if groups is None else _groups(groups)
        self.__dict__.update(uid=uid, gid=gid, groups=others, ranges=ranges)

    def replace(self, **changes: _types.Any) -> User:
        """Returns a User with other values: user.replace(groups=[27]). The gid stays the number
        that it is.

        changes: uid, gid, groups, ranges. Raises the errors of User.
        """
        user: User = self._replaced(changes)
        return user

    __replace__ = replace  # copy.replace() of Python 3.13


def _groups(value: object) -> tuple[int, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        remedy = f"; one is [{value!r}]" if isinstance(value, int) else ""
        raise SpecTypeError(f"groups is not an iterable of numbers: {value!r}{remedy}")
    groups = tuple(check_number("a group", group, 0, _MOST_ID) for group in value)
    if len(groups) > _MOST_GROUPS:
        raise SpecError(f"groups has {len(groups)} numbers, and may have {_MOST_GROUPS}")
    return groups


def check_user(value: object) -> _types.UserName | User:
    """Checks `user=` of a Sandbox: a User, one of NAMES, or an int, which stands for User(uid)."""
    if isinstance(value, User):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return User(value)
    if not isinstance(value, str):
        raise SpecTypeError(f"user is neither a User, nor a uid, nor one of {NAMES}: {value!r}")
    if value not in NAMES:
        uid = value if value.isdecimal() and value.isascii() else "1000"
        text = f"user is {value!r}, and has to be one of {', '.join(NAMES)}"
        raise SpecChoiceError(f"{text}, or a uid: user={uid}")
    return value  # type: ignore[return-value]
