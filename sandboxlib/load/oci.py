# SPDX-License-Identifier: Apache-2.0
"""OCI images: an image layout, as a directory or a tar, and what `docker save` writes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from .. import _types
from .._images import unpack
from .._images.config import of_oci
from .._values import check_text
from ..errors import ImageError, SetupError
from .command import Process


def is_oci_image(path: _types.Path) -> bool:
    """Returns whether a path is a directory or a tar that holds an image. path: str or path.

    A confined child process reads a tar: raises UnsupportedError if this caller cannot have one.
    """
    path = check_text("the path of an image", path)
    if os.path.isdir(path):
        return os.path.isfile(os.path.join(path, "oci-layout"))
    try:
        return unpack.holds_image(path)
    except (SetupError, ImageError):
        return False


@contextlib.contextmanager
def unpack_oci_image(
    path: _types.Path,
    ref: str | None = None,
    into: _types.Path | None = None,
    max_size: int = unpack.MAX_SIZE,
    max_members: int = unpack.MAX_MEMBERS,
    timeout: float | None = unpack.TIMEOUT,
    keep_set_ids: bool = False,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Unpacks an image, and yields (rootfs_path, config), a str and a dict. The end of the `with`
    block removes the root, unless `into` is given.

    path: str or path, the image: a layout, or a tar of one, or a docker-archive.
    ref: str, the name of the image in the layout, or its docker tag, if there are several; None by
        default.
    into: str or path, a directory that is created for the root, and stays. None (the default): a
        temporary directory.
    max_size: int, bytes of content of all layers, 16 GiB by default.
    max_members: int, files and directories of all layers, 1,000,000 by default.
    timeout: float, seconds, 600 by default; None: no limit.
    keep_set_ids: bool. True: files keep their set-user-ID and set-group-ID bits also in a directory
        `into` that other users can reach. False (the default): only if no other user can.

    It verifies sizes and digests. Raises ImageError if the image is broken or hostile, or exceeds
    max_size or max_members, SetupExists (a FileExistsError) if `into` exists already, SetupError
    (ETIMEDOUT) after the timeout, UnsupportedError if this caller cannot unpack images safely.
    After an error nothing of the image is left.
    """
    request = unpack.Request(
        "oci",
        path,
        ref=ref,
        into=into,
        max_size=max_size,
        max_members=max_members,
        timeout=timeout,
        keep_set_ids=keep_set_ids,
    )
    with unpack.unpacked(request) as image:
        yield image.path, image.value


def process(config: dict[str, Any]) -> Process:
    """Returns the Process that a config describes; raises ImageError if the config is wrong.

    config: dict, as unpack_oci_image yields it.
    """
    found = of_oci(config)
    return Process([*found.entrypoint, *found.cmd], found.cwd, found.env, found.account)
