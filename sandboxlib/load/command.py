# SPDX-License-Identifier: Apache-2.0
"""Process: the command that an image names."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .. import _types
    from .._spec.user import User


class Process:
    """The command that an image names, as arguments for run_sandbox.

    argv: list of str, empty if the image names no command.
    cwd: str, the working directory inside the root.
    env: dict of str to str, the whole environment.
    account: str, the user as the image writes it ("", "0", "name:group"); "" by default.
    user: str or User, for `user` of a Sandbox: 'caller' until open_image sets it to the account in
        this image, and to the kind of ids with which the image was unpacked.
    """

    def __init__(self, argv: list[str], cwd: str, env: dict[str, str], account: str = "") -> None:
        self.argv = argv
        self.cwd = cwd
        self.env = env
        self.account = account
        self.user: _types.UserName | User = "caller"
