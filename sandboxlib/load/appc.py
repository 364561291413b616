# SPDX-License-Identifier: Apache-2.0
"""App container images: an .aci is a tar, compressed or not, of `manifest` and `rootfs`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from .. import sandbox
from ..errors import ImageError
from . import Process, _unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..sandbox import Path

BASE_ENVIRONMENT = sandbox.BASE_ENVIRONMENT


def is_app_container_image(path: Path) -> bool:
    """Whether the name says so: it ends in .aci."""
    return os.fspath(path).endswith(".aci")


@contextlib.contextmanager
def unpack_app_container_image(
    image_file: Path,
    max_size: int = _unpack.MAX_SIZE,
    max_members: int = _unpack.MAX_MEMBERS,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Unpacks an image: (rootfs_path, manifest). It is removed at the end of the `with`.

    max_size: bytes of content; max_members: files and directories. ImageError past them, and for
    whatever is wrong with the image.
    """
    name = os.path.basename(os.fspath(image_file))
    with contextlib.ExitStack() as undo:
        fd = _unpack.open_archive(image_file)
        undo.callback(os.close, fd)
        target = undo.enter_context(_unpack.target(max_size, max_members))
        data = target.extract(fd, name, prefix="rootfs")
        if data is None:
            raise ImageError(f"{name}: it has no manifest")
        what = f"{name}: the manifest"
        manifest = _unpack.checked(_unpack.parse_json(data, what), dict, what)
        for key in ("dependencies", "pathWhitelist"):
            if manifest.get(key):
                raise ImageError(f"{what} has {key}, which are not supported")
        yield target.path, manifest


def process(manifest: dict[str, Any]) -> Process:
    """What a manifest says about its command. ImageError."""
    app = _unpack.checked(manifest.get("app") or {}, dict, "app")
    env = {
        **BASE_ENVIRONMENT,
        "AC_APP_NAME": _unpack.strings([manifest.get("name") or ""], "name")[0],
    }
    for setting in _unpack.checked(app.get("environment") or [], list, "environment"):
        words = _unpack.checked(setting, dict, "a variable of environment")
        key, value = _unpack.strings([words.get("name"), words.get("value")], "environment")
        _unpack.set_variable(env, key, value)
    user, group, cwd = _unpack.strings(
        [app.get("user") or "0", app.get("group") or "0", app.get("workingDirectory") or "/"], "app"
    )
    if user.startswith("/") or group.startswith("/") or ":" in user + group:
        raise ImageError(f"user {user[:100]!r} and group {group[:100]!r} are no names or numbers")
    argv = _unpack.strings(app.get("exec"), "exec")
    return Process(argv, os.path.join("/", cwd), env, f"{user}:{group}")
