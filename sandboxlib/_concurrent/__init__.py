# SPDX-License-Identifier: Apache-2.0
"""Several ways to run commands beside the caller: Process, event loops, map, a thread pool."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Later:
    """Imports a module of sandboxlib at its first use, so that `import sandboxlib` stays fast."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        import importlib

        return getattr(importlib.import_module(f"sandboxlib.{self._name}"), name)
