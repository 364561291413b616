# SPDX-License-Identifier: Apache-2.0
"""What an image says about its command."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._spec.user import User


class Process:
    """What an image says about its command, as words of run_sandbox.

    argv: list of str, empty where the image names no command; cwd: str; env: dict, all of it.
    account: str, the user as the image has it ("", "0", "name:group").
    user: a str or a User, for `user` of a Sandbox: open_image sets it, to what the account is in
    this image and to the kind of ids that it was unpacked with.
    """

    def __init__(self, argv: list[str], cwd: str, env: dict[str, str], account: str = "") -> None:
        self.argv = argv
        self.cwd = cwd
        self.env = env
        self.account = account
        self.user: str | User = "caller"
