# SPDX-License-Identifier: Apache-2.0
"""Small functions that earlier versions had; sandboxlib itself does not need them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable

from .errors import ProgramNotFound, UnsupportedError


def find_program(program_name: str) -> str:
    """Returns the path of a program in the caller's PATH; raises ProgramNotFound if there is none.

    program_name: str.
    """
    path = shutil.which(program_name)
    if path is None:
        searched = os.environ.get("PATH", os.defpath)
        raise ProgramNotFound(f"Did not find {program_name!r} in PATH. Searched {searched!r}")
    return path


def check_parameter(name: str, value: object, supported_values: Iterable[object]) -> None:
    """Raises UnsupportedError, an AssertionError, if value is not among supported_values.

    name: str, the name of the parameter for the message.
    """
    supported = list(supported_values)
    if value not in supported:
        choices = ", ".join(map(repr, supported))
        raise UnsupportedError(f"{name} is {value!r}, and this backend supports {choices}")
