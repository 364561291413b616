# SPDX-License-Identifier: Apache-2.0
"""Stack for the caller's side. It lives in child/, because the confined reader uses it as well."""

from __future__ import annotations

from .child.stack import TRUSTED, USER, Directory, Entry, Found, Stack

__all__ = ["TRUSTED", "USER", "Directory", "Entry", "Found", "Stack"]
