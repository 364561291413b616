# SPDX-License-Identifier: Apache-2.0
"""App container images: an .aci is a tar, compressed or not, of `manifest` and `rootfs`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from .. import _types
from .._images import unpack
from .._images.config import of_aci
from .._values import check_text
from .command import Process


def is_app_container_image(path: _types.Path) -> bool:
    """Returns whether the name of a file ends in .aci. path: str or path."""
    return check_text("the path of an image", path).endswith(".aci")


@contextlib.contextmanager
def unpack_app_container_image(
    image_file: _types.Path,
    max_size: int = unpack.MAX_SIZE,
    max_members: int = unpack.MAX_MEMBERS,
    timeout: float | None = unpack.TIMEOUT,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Unpacks an image, and yields (rootfs_path, manifest), a str and a dict. The end of the `with`
    block removes the root.

    image_file: str or path.
    max_size: int, bytes of content, 16 GiB by default.
    max_members: int, files and directories, 1,000,000 by default.
    timeout: float, seconds, 600 by default; None: no limit.

    Raises ImageError if the image is broken or hostile, or exceeds max_size or max_members,
    SetupError (ETIMEDOUT) after the timeout, UnsupportedError if this caller cannot unpack images
    safely. After an error nothing of the image is left.
    """
    request = unpack.Request(
        "aci", image_file, max_size=max_size, max_members=max_members, timeout=timeout
    )
    with unpack.unpacked(request) as image:
        yield image.path, image.value


def process(manifest: dict[str, Any]) -> Process:
    """Returns the Process that a manifest describes; raises ImageError if the manifest is wrong.

    manifest: dict, as unpack_app_container_image yields it.
    """
    found = of_aci(manifest)
    return Process(found.entrypoint, found.cwd, found.env, found.account)
