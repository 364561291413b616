# SPDX-License-Identifier: Apache-2.0
"""Makes an Overlay of each root directory that a Sandbox gets, so that a suite which knows nothing
of layers runs over them: tests/roots/test_suites.py does so, by the variable.

All else stays as with a directory, so the default of filesystem_writable_paths too.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from typing import Any

from sandboxlib import Overlay
from sandboxlib._spec.spec import Spec

#: Its value is a key of KINDS.
VARIABLE = "SANDBOXLIB_TEST_LAYERS"


@cache
def _empty() -> str:
    """An empty directory, which this process makes once."""
    made = tempfile.mkdtemp(prefix="sandboxlib-empty.")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


KINDS = {
    "one": lambda root: Overlay(root),
    "two": lambda root: Overlay(root, _empty()),
    "disk": lambda root: Overlay(root, storage="disk"),
}


def _is_a_root(root: object) -> bool:
    is_path = isinstance(root, (str, os.PathLike))
    return is_path and os.path.isdir(f"{root}/bin") and os.path.realpath(root) != "/"


def install() -> None:
    """Does it for this process, if the variable says so."""
    name = os.environ.get(VARIABLE)
    if not name:
        return
    made = Spec.__init__

    def make(self: Spec, root: Any, **options: Any) -> None:
        if options.get("mounts", "isolated") == "isolated" and _is_a_root(root):
            root = KINDS[name](root)
            if options.get("filesystem_writable_paths") is None:
                options["filesystem_writable_paths"] = "none"
        made(self, root, **options)

    Spec.__init__ = make  # type: ignore[method-assign]
