# SPDX-License-Identifier: Apache-2.0
"""App container images: an .aci is a tar, compressed or not, of `manifest` and `rootfs`."""

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
from .command import Process


def is_app_container_image(path: _types.Path) -> bool:
    """Whether the name says so: it ends in .aci."""
    return check_text("the path of an image", path).endswith(".aci")


@contextlib.contextmanager
def unpack_app_container_image(
    image_file: _types.Path,
    max_size: int = unpack.MAX_SIZE,
    max_members: int = unpack.MAX_MEMBERS,
    timeout: float | None = unpack.TIMEOUT,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Unpacks an image: (rootfs_path, manifest). It is removed at the end of the `with`.

    max_size: bytes of content, 16 GiB by default; max_members: files and directories, 1,000,000 by
    default. ImageError past them, and for whatever is wrong with the image; UnsupportedError if
    this caller cannot unpack one safely.
    timeout: seconds, 600 by default; None is no limit. SetupError (ETIMEDOUT) after it, and nothing
    is left.
    """
    request = unpack.Request(
        "aci", image_file, max_size=max_size, max_members=max_members, timeout=timeout
    )
    with unpack.unpacked(request) as found:
        yield found.path, found.value


def process(manifest: dict[str, Any]) -> Process:
    """What a manifest says about its command. ImageError."""
    with unpack.refusals():
        app = documents.checked(manifest.get("app") or {}, dict, "app")
        name = documents.strings([manifest.get("name") or ""], "name")[0]
        env = {**BASE_ENVIRONMENT, "AC_APP_NAME": name}
        for setting in documents.checked(app.get("environment") or [], list, "environment"):
            words = documents.checked(setting, dict, "a variable of environment")
            variable = [words.get("name"), words.get("value")]
            unpack.set_variable(env, *documents.strings(variable, "environment"))
        cwd = documents.strings([app.get("workingDirectory") or "/"], "app")[0]
        argv = documents.strings(app.get("exec"), "exec")
        account = documents.aci_account(manifest)
    return Process(argv, os.path.join("/", cwd), env, account)
