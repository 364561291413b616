# SPDX-License-Identifier: Apache-2.0
"""`run-sandbox store`: what is kept from run to run, how large it is, and its removal."""

from __future__ import annotations

import time
from collections.abc import Sequence

from .._images.store import Store
from . import parser as _parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

DAMAGED = 1  # the exit status of verify if something is damaged
_UNITS = "KMGT"


def store_parser(prog: str) -> argparse.ArgumentParser:
    """The parser of run-sandbox store."""
    parser = _parser.Parser(
        prog=prog,
        description="Look at the store, in which layers, images and inputs are kept from run to "
        "run. list: what there is, how large, and when it was last used. prune: remove what nobody "
        "uses. verify: compare the layers with what was unpacked; the exit status is 1 if one is "
        "damaged.",
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=("list", "prune", "verify"), help="what to do")
    text = "which store (default: sandboxlib below XDG_CACHE_HOME, or ~/.cache)"
    parser.add_argument("--store", metavar="DIRECTORY", help=text)
    text = "prune: only until the store is no larger; what was used last stays (default: 0)"
    parser.add_argument("--max-size", metavar="SIZE", default="0", help=text)
    text = "verify: remove what is damaged, so that the next run makes it anew"
    parser.add_argument("--remove", action="store_true", help=text)
    return parser


def main(argv: Sequence[str], prog: str) -> int:
    """Do what run-sandbox store does, and return its exit status. Raises SandboxError."""
    options = store_parser(prog).parse_args(argv)
    store = Store(options.store)
    if options.command == "prune":
        print(f"{_size(store.prune(options.max_size))} freed in {store.directory}")
        return 0
    if options.command == "verify":
        damaged = store.verify(remove=options.remove)
        for path in damaged:
            print(f"damaged{', and removed' * options.remove}: {path}")
        return DAMAGED if damaged else 0
    total = 0
    for entry in sorted(store._entries(), key=lambda each: -each.used):
        total += entry.size
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        print(f"{_size(entry.size):>7}  {used}  {entry.kind}/{entry.name}")
    print(f"{_size(total):>7}  in all, in {store.directory}")
    return 0


def _size(size: float) -> str:
    unit = ""
    for each in _UNITS:
        if size < 1024:
            break
        size, unit = size / 1024, each
    return f"{size:.1f}{unit}" if unit else f"{size:.0f}"
