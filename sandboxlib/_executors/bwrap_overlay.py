# SPDX-License-Identifier: Apache-2.0
"""A root of layers by bwrap: what it can promise of an Overlay, and the layers as options.

bwrap looks a layer up by its name, at the moment at which it mounts the overlay, and no table of
mounts tells afterwards which directories were stacked. So each layer is bound to the stage by its
descriptor (see bwrap_mounts.py), and its name leads there: another run cannot change where a name
on the way leads. A bwrap without a stage is refused.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence

from .._host.machine import is_below
from .._spec.overlay import Lower, Owners
from .._spec.spec import Spec
from ..errors import SandboxError, UnsupportedError
from .bwrap_tool import Tool, find_tool
from .view import View


def refused(box: Spec) -> list[str]:
    """What of an Overlay bwrap cannot promise; [] if it can, or the root is a directory."""
    overlay = box._overlay
    if overlay is None:
        return []
    told = []
    if overlay.upper is not None:
        told.append(f"upper={overlay.upper!r}: bwrap does not tell when its overlay is gone")
    if overlay.upper is None and overlay.storage != "memory":
        told.append(f"storage={overlay.storage!r}: bwrap keeps new uppers in memory")
    if isinstance(box.filesystem_writable_paths, tuple):
        told.append("writable paths in an Overlay: bwrap binds nothing of what it has mounted")
    if box.limits is not None and box.limits.changes is not None:
        told.append("Limits.changes: bwrap does not bound an upper")
    if overlay.layers:
        with contextlib.suppress(SandboxError):  # that there is none is told elsewhere
            told += _refused_by(find_tool())
    return told


def _refused_by(tool: Tool) -> list[str]:
    if not tool.takes_overlays:
        return [f"{tool.path} takes no layers (Overlay); install bubblewrap 0.11"]
    if not tool.is_staged:
        text = "looks layers up in directories that other commands may change"
        return [f"{tool.path} {text}; chroot and user_namespace do not"]
    return []


def stacked(box: Spec) -> list[Lower]:
    """The layers of an Overlay, bottom first; their leases hold as long as they are referred to.
    SandboxError.
    """
    overlay = box._overlay
    if overlay is None:
        return []
    kind = "real" if os.geteuid() == 0 else "single"
    owners = Owners(kind, os.geteuid(), os.getegid())  # type: ignore[arg-type]
    lowers: list[Lower] = []
    for layer in overlay.layers:
        lowers += [Lower(layer)] if isinstance(layer, str) else layer._lowers(owners, box.store)
    return lowers


def check_places(paths: Sequence[str], sources: Sequence[str]) -> None:
    """Raises UnsupportedError if a layer could not be found by its descriptor alone: because it
    lies in another directory that is bound. sources: paths that are bound.
    """
    for path in paths:
        above = [other for other in (*paths, *sources) if other != path and is_below(path, other)]
        if path == "/" or above:
            why = (
                f"lies in {above[0]}, which is bound as well" if above else "is the machine's root"
            )
            raise UnsupportedError(f"bubblewrap: the layer {path} {why}")


def missing_parents(view: View, point: str) -> list[str]:
    """The options that make the missing directories above a mount point, which bwrap would close to
    other users than the caller.
    """
    parts = point.strip("/").split("/")[:-1]
    above = ["/" + "/".join(parts[: n + 1]) for n in range(len(parts))]
    lacking = [path for path in above if not view.find(path)]
    return [word for path in lacking for word in ("--perms", "755", "--dir", path)]


def options(paths: Sequence[str], top: int) -> list[str]:
    """The options that mount the overlay on the root. paths: bottom first. top: a descriptor of the
    uppermost layer, whose mode the root has.
    """
    argv = [word for path in paths for word in ("--overlay-src", path)]
    mode = stat.S_IMODE(os.fstat(top).st_mode)
    return [*argv, "--tmp-overlay", "/", "--chmod", f"{mode:o}", "/"]
