# SPDX-License-Identifier: Apache-2.0
"""OCI images: an image layout, as a directory or a tar, and what `docker save` writes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from .. import _types
from .._images import unpack
from .._images.child import documents
from .._spec.command import BASE_ENVIRONMENT
from .._values import check_text
from ..errors import ImageError, SetupError
from .command import Process


def is_oci_image(path: _types.Path) -> bool:
    """Whether it is a directory or a tar that holds an image.

    A tar is looked at by a confined child: UnsupportedError if this caller cannot have one.
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
    """Unpacks an image: (rootfs_path, config). It is removed at the end of the `with`.

    ref: which image, if there are several: its name in the layout, or its docker tag.
    into: a directory that is made for it, and stays; the default is a temporary one.
    max_size: bytes of content of all layers, 16 GiB by default; max_members: their files and
    directories, 1,000,000 by default. ImageError past them.
    timeout: seconds, 600 by default; None is no limit. SetupError (ETIMEDOUT) after it, and nothing
    is left.
    keep_set_ids: True keeps set-user-ID and set-group-ID of files in a directory `into` that other
    users can reach. False (the default): they are kept only if no other user can.

    Sizes and digests are verified. ImageError for whatever is wrong with the image, SetupExists (a
    FileExistsError) if `into` is there already, UnsupportedError if this caller cannot unpack one
    safely.
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
    with unpack.unpacked(request) as found:
        yield found.path, found.value


def process(config: dict[str, Any]) -> Process:
    """What a config says about its command. ImageError."""
    with unpack.refusals():
        settings = documents.checked(config.get("config") or {}, dict, "config")
        env = dict(BASE_ENVIRONMENT)
        for setting in documents.strings(settings.get("Env"), "Env"):
            name, equals, value = setting.partition("=")
            unpack.set_variable(env, name if equals else "", value)
        keys = ("Entrypoint", "Cmd")
        argv = [word for key in keys for word in documents.strings(settings.get(key), key)]
        cwd = documents.strings([settings.get("WorkingDir") or "/"], "config")[0]
        account = documents.oci_account(config)
    return Process(argv, os.path.join("/", cwd), env, account)
