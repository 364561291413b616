# SPDX-License-Identifier: Apache-2.0
"""The executor that wraps the program linux-user-chroot. It is not built yet, and says so."""

from __future__ import annotations

from .errors import UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

NAME = "linux_user_chroot"


def _refuse() -> NoReturn:
    raise UnsupportedError(
        "the executor linux_user_chroot is not part of this version of sandboxlib; "
        "sandboxlib.chroot runs commands as root"
    )


def maximum_possible_isolation() -> dict[str, str]:
    """Raises UnsupportedError."""
    _refuse()


def run_sandbox(*words: Any, **options: Any) -> NoReturn:
    """Raises UnsupportedError."""
    _refuse()
