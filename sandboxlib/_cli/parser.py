# SPDX-License-Identifier: Apache-2.0
"""What the parsers of all commands share: the exit status of an error of ours, completion."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence

from .._version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

EXIT_OURS = 125  # the same as that of env(1), timeout(1), chroot(1) and docker run


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that ends with 125 after an error, as 2 may be the command's own status."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_OURS, f"{self.format_usage()}{self.prog}: {message}\n")


def add_version(parser: argparse.ArgumentParser) -> None:
    text = "print the version of sandboxlib, and exit"
    parser.add_argument(
        "--version", action="version", version=f"sandboxlib {__version__}", help=text
    )


def complete(parser: argparse.ArgumentParser, words: Mapping[str, Sequence[str]]) -> None:
    """Answers a shell that asks what may follow (argcomplete), and ends; otherwise does nothing.

    words: what an option without `choices` takes beside a path or a number, by its dest.
    """
    if "_ARGCOMPLETE" not in os.environ:
        return
    import argcomplete
    from argcomplete.completers import FilesCompleter

    files = FilesCompleter()
    for action in parser._actions:
        if action.dest in words:
            own = list(words[action.dest])
            is_path = "PATH" in str(action.metavar)
            action.completer = (  # type: ignore[attr-defined]
                lambda prefix, own=own, is_path=is_path, **_: own
                + (files(prefix) if is_path else [])
            )
    argcomplete.autocomplete(parser)
