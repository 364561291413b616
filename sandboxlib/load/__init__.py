# SPDX-License-Identifier: Apache-2.0
"""Loading container images. It is not built yet, and says so."""

from __future__ import annotations

from ..errors import UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


def _refuse() -> NoReturn:
    raise UnsupportedError("loading images is not part of this version of sandboxlib")


def is_app_container_image(path: Any) -> bool:
    """Raises UnsupportedError."""
    _refuse()


def unpack_app_container_image(image_file: Any) -> NoReturn:
    """Raises UnsupportedError."""
    _refuse()
