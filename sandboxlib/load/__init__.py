# SPDX-License-Identifier: Apache-2.0
"""Container images: appc (.aci) and OCI (an image layout, or a docker-archive).

    with sandboxlib.load.open_image('busybox.tar') as (root, process):
        sandboxlib.run_sandbox(root, process.argv, process.cwd, env=process.env, user=process.user)

A child process that is confined to the target directory unpacks an image:
_images/child/extract.py. docs/images.md lists the parts of the formats that are supported, and
those that are refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from .. import _types
from .._spec.user import User
from ..errors import ImageError
from .command import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

    from . import appc, oci

__all__ = ["ImageError", "Process", "appc", "is_image", "oci", "open_image"]


def __getattr__(name: str) -> ModuleType:
    if name in ("appc", "oci"):
        import importlib

        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def is_image(path: _types.Path) -> bool:
    """Returns whether a path names an image of either kind; see is_app_container_image and
    is_oci_image, also for the errors. path: str or path.
    """
    from . import appc, oci

    return appc.is_app_container_image(path) or oci.is_oci_image(path)


@contextlib.contextmanager
def open_image(
    path: _types.Path, ref: str | None = None, timeout: float | None = 600.0
) -> Iterator[tuple[str, Process]]:
    """Unpacks an image of either kind, and yields (rootfs_path, process), a str and a Process. The
    end of the `with` block removes the root.

    path: str or path, the image.
    ref: str, the name of the image, if an OCI image layout or a docker-archive holds several; None
        by default.
    timeout: float, seconds for unpacking, 600 by default; None: no limit.

    Raises ImageError if the image is broken, hostile or too large, SetupError (ETIMEDOUT) after the
    timeout, UnsupportedError if this caller cannot unpack images safely.
    """
    from .._images import unpack
    from . import appc, oci

    is_aci = appc.is_app_container_image(path)
    if is_aci and ref is not None:
        raise ImageError(f"an .aci holds one image, and none of the name {ref!r}")
    kind = "aci" if is_aci else "oci"
    request = unpack.Request(kind, path, ref=ref, timeout=timeout, account=True)
    with unpack.unpacked(request) as image:
        process = (appc if is_aci else oci).process(image.value)
        process.user = image.user
        if image.ids is not None:
            process.user = User(*image.ids, ranges=image.user == "ranges")
        yield image.path, process
